"""Which format each weight of a GGUF model has: by the header of its file, or of a known name without its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gradless.lm import gguf_file
from gradless.lm.gguf_file import Unusable
from gradless.storage.gguf_blocks import FORMATS, BlockFormat, of_number


class Layout(NamedTuple):
    """How the weights of a file are stored.

    Attributes:
        architecture: llama.cpp's name of it.
        formats: by llama.cpp's names of tensors; those that are left out are float32.
    """

    architecture: str
    formats: Mapping[str, BlockFormat]

    def of(self, names: Any, path: str) -> BlockFormat:
        """Return the format of the weight of a module of transformers.

        Args:
            names: see `tensor_names`.
            path: the name of the module.
        """
        return self.formats.get(f"{names.get_name(path)}.weight", FORMATS["F32"])


def of_file(reader: Any) -> Layout:
    """Return the layout of a file that `gradless.lm.gguf_file.read` has opened.

    Raises:
        Unusable: a format that nothing here decodes.
    """
    formats = {str(tensor.name): format_of(tensor) for tensor in reader.tensors}
    return Layout(gguf_file.field(reader, "general.architecture"), formats)


def format_of(tensor: Any) -> BlockFormat:
    """Return the format of a tensor of `gguf`'s reader.

    Raises:
        Unusable: nothing here decodes it.
    """
    try:
        return of_number(int(tensor.tensor_type))
    except KeyError as error:
        kind = error.args[0] if isinstance(error.args[0], str) else tensor.tensor_type
        raise Unusable(f"stores {tensor.name} as {kind}, which is not decoded here: {gguf_file.OTHER_FORMAT}") from None


def tensor_names(architecture: str, layers: int) -> Any:
    """Return the names of tensors by those of modules (``get_name``), as the package `gguf` has them."""
    import gguf

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(number, layers)


def _mixed(layers: int, finer: tuple[int, ...], of_all: dict[str, str], of_finer: dict[str, str]) -> dict[str, str]:
    """Names of formats by tensors, where some layers have finer ones for some matrices, as llama.cpp's mixtures do."""
    names = {"token_embd.weight": "Q8_0"}
    for layer in range(layers):
        chosen = of_all | of_finer if layer in finer else of_all
        names |= {f"blk.{layer}.{matrix}.weight": form for matrix, form in chosen.items()}
    return names


_MATRICES: Final = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_MIXTURE: Final = ("Q5_0", "Q5_0", "Q5_0", "Q4_K", "Q5_0", "Q5_0", "Q4_K")
_NAMED: Final = {
    "smollm2-135m": ("llama", _mixed(30, (), dict.fromkeys(_MATRICES, "Q4_1"), {})),
    "gemma-3-270m": (
        "gemma3",
        _mixed(
            18,
            (0, 1, 4, 7, 10, 13, 15, 16, 17),
            dict(zip(_MATRICES, _MIXTURE, strict=True)),
            {"attn_v": "Q8_0", "ffn_down": "Q6_K"},
        ),
    ),
}
KNOWN: Final = {
    name: Layout(architecture, {tensor: FORMATS[form] for tensor, form in names.items()})
    for name, (architecture, names) in _NAMED.items()
}
"""Layouts of the files of known names (`gradless.lm.assets`), which are planned without them."""
