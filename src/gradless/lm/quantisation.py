"""Checkpoints with quantised weights, and float ones that are quantised as they are loaded.

bitsandbytes and torchao load as transformers loads them; their weights then go under plain layers
(`gradless.storage.libraries`), so that activations stay floats. The layers of GPTQ, AWQ and compressed-tensors are used
as they are, where their library runs. What rounds activations is refused: the losses at +eps and -eps differ by less
than that rounding, so that a coefficient is mostly noise. (Measured with int8 activations in blocks of 32 on SmolLM2:
coefficients at eps 1e-2 correlate 0.41 with exact ones, and at 1e-3 they are ten times too large.)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from gradless.errors import BadInput, pick
from gradless.lm.checkpoint_files import first_line
from gradless.storage import libraries, quantised
from gradless.storage.stored import StoredWeight

LIBRARY: Final = {"nf4": "bitsandbytes", "fp4": "bitsandbytes", "int8": "torchao"}
"""What a float model can be quantised to as it is loaded, and by what."""
DROWNED: Final = "the losses at +eps and -eps differ by less than that, so that a step would follow noise"


class Library(NamedTuple):
    """What layers of a kind need."""

    modules: tuple[str, ...]
    pip: str
    plain: bool = False
    """Whether plain layers are put in place of the library's."""


LIBRARIES: Final[dict[str, Library]] = {
    "bitsandbytes": Library(("bitsandbytes",), "'gradless[quantised]'", plain=True),
    "torchao": Library(("torchao",), "'gradless[quantised]'", plain=True),
    "gptq": Library(("gptqmodel", "optimum"), "gptqmodel optimum"),
    "awq": Library(("gptqmodel",), "gptqmodel"),
    "auto-round": Library(("auto_round",), "auto-round"),
    "compressed-tensors": Library(("compressed_tensors",), "compressed-tensors"),
    "hqq": Library(("hqq",), "hqq"),
    "quanto": Library(("optimum.quanto",), "optimum-quanto", plain=True),
}
"""By ``quant_method`` of config.json."""
ACTIVATIONS: Final = ("fp8", "fbgemm_fp8", "nvfp4", "mxfp8", "fp_quant", "bitnet", "quark")
"""Methods whose layers round activations."""


def method_of(settings: Any) -> str | None:
    """Return the method that a ``quantization_config`` names; None if there is none."""
    if not settings:
        return None
    values = settings if isinstance(settings, Mapping) else settings.to_dict()
    name = values.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in values else None)
    name = str(getattr(name, "value", name) or "of a kind that config.json does not name")
    return name.removesuffix("_4bit").removesuffix("_8bit")


def check(settings: Any) -> str | None:
    """Return the method by which the weights of a checkpoint are quantised; None if they are floats.

    Args:
        settings: ``quantization_config`` of its config.json.

    Raises:
        BadInput: its layers would round activations, its library is missing, or nothing here knows it.
    """
    method = method_of(settings)
    if method is None:
        return None
    values = settings if isinstance(settings, Mapping) else settings.to_dict()
    if method in ACTIVATIONS or _rounded_inputs(values):
        raise BadInput(
            f"its layers round activations to a few bits ({method}), and {DROWNED}: choose weights alone in few bits, "
            "such as nf4, int8 of torchao or a GGUF file, or the original model"
        )
    library = LIBRARIES.get(method)
    if library is None:
        raise BadInput(
            f"its weights are quantised in a way that is not read here ({method}): choose one of bitsandbytes, "
            "torchao, GPTQ, AWQ or a GGUF file, or the original model with --quantise nf4"
        )
    need(method, library)
    return method


def need(method: str, library: Library) -> None:
    """Refuse what needs a library that is not installed.

    Raises:
        BadInput: with what installs it.
    """
    missing = [name for name in library.modules if not _installed(name)]
    if missing:
        raise BadInput(
            f"its weights are quantised ({method}), which needs {missing[0]}, which is not installed: pip install "
            f"{library.pip}"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _rounded_inputs(values: Mapping[str, Any]) -> bool:
    """Return whether compressed-tensors rounds what goes into its layers."""
    groups = values.get("config_groups")
    if not isinstance(groups, Mapping):
        return False
    return any(isinstance(group, Mapping) and group.get("input_activations") for group in groups.values())


def check_choice(codes: str) -> str:
    """Return what a float model is to be quantised to.

    Raises:
        BadInput: an unknown name, or its library is not installed.
    """
    name = pick("quantise", codes, LIBRARY)
    if not _installed(name):
        raise BadInput(f"--quantise {codes} needs {name}, which is not installed: pip install 'gradless[quantised]'")
    return codes


def failure(method: str, error: Exception) -> str:
    """Return a sentence about what a library raised while transformers loaded its layers."""
    return (
        f"its weights are quantised ({method}), and its library does not load them here "
        f"({first_line(error)}): choose a release of it that does, or the original model with --quantise nf4"
    )


def plain(model: nn.Module, method: str, dtype: torch.dtype) -> str:
    """Put plain layers over a library's codes, where that can be, and let transformers forget the library.

    Returns:
        What is computed otherwise than by the library, for the user; mostly nothing.

    Raises:
        BadInput: layers that stay the library's round activations.
    """
    rounded = quantised.rounds_activations(model)
    if not LIBRARIES[method].plain:
        if rounded is not None:
            raise BadInput(f"its layers round activations ({rounded}), and {DROWNED}: choose the original model")
        return ""
    libraries.replace(model, dtype)
    owner: Any = model
    owner.hf_quantizer, owner.is_quantized = None, False
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(owner.config, "quantization_config"):
        del owner.config.quantization_config
    if rounded is None:
        return ""
    return f"activations are not rounded as its own layers would ({rounded}): {DROWNED}"


def apply(model: nn.Module, codes: str, dtype: torch.dtype, device: torch.device) -> None:
    """Quantise the linear layers of a float model but for its output layer, one after the other.

    Args:
        model: loaded; its weights may be mapped from a file. It is changed.
        codes: a key of `LIBRARY`.
        dtype: of the values that layers get.
        device: where they are to be.

    Memory: one matrix in ``dtype`` beside what there is; mapped weights are not kept.

    Raises:
        BadInput: no linear layers.
    """
    output = model.get_output_embeddings()  # type: ignore[operator]
    kept = None if output is None else output.weight
    count = 0
    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            weight: Any = module.weight
            if weight is kept or isinstance(weight, StoredWeight):
                continue
            store = libraries.quantise(weight.data.to(device, dtype), codes)
            module.weight = nn.Parameter(StoredWeight(store), requires_grad=False)
            count += 1
    if not count:
        raise BadInput("it has no linear layers to quantise: leave out --quantise")
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, StoredWeight):
                parameter.data = parameter.data.to(device, dtype)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
