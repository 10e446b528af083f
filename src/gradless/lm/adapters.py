"""Adapters of PEFT as models: a folder or hub id with ``adapter_config.json``, put around the base that it names.

An adapter is read as PEFT reads it, by PEFT, and stays an adapter: base and adapter are not merged, so that a saved one
gives the bits that its run measured. Only safetensors are read, and a weight that is missing, left over or of another
shape is an error rather than a random number. Weights that were stored in 16 bits are computed with in the type of the
base; those stored in float32 stay float32 beside a base of 16 bits, as in PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from gradless.errors import BadInput
from gradless.lm import assets, checkpoint_config, checkpoint_files, tiny_models
from gradless.storage.codes import is_tuned
from gradless.system.cache import Say

CONFIG: Final = checkpoint_files.ADAPTER
WEIGHTS: Final = "adapter_model.safetensors"
PICKLED: Final = "adapter_model.bin"
TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
FILES: Final = (CONFIG, WEIGHTS, *TOKENIZER, "merges.txt", "special_tokens_map.json", "chat_template.jinja")
"""What is fetched of an adapter on the hub."""

LORA: Final = "LORA"
VIRTUAL: Final = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
"""Kinds of virtual tokens, and the schemes that tune them."""
UNUSABLE: Final = {
    "XLORA": "it mixes further adapters",
    "POLY": "it needs the number of a task with every text",
    "MULTITASK_PROMPT_TUNING": "it needs the number of a task with every text",
    "CPT": "it belongs to one text",
}
TEXT_TASKS: Final = (None, "", "CAUSAL_LM", "FEATURE_EXTRACTION")
EMBEDDINGS: Final = re.compile(r"(embed\w*|wte|lm_head)(\.base_layer)?\.weight$")
LARGEST: Final = 10**6  # no adapter has a rank, or virtual tokens, beyond it


class Adapter(NamedTuple):
    """A folder with an adapter, and what it says of itself."""

    folder: Path
    kind: str
    """PEFT's name of it, such as LORA or PREFIX_TUNING."""
    base: str
    """The model that it belongs to, as `gradless.lm.load` takes it."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of its weights, by their names in the file."""
    has_embeddings: bool
    """Whether the file holds the base model's embeddings too, as PEFT's does after tokens were added."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies beside the weights."""
        return any((self.folder / name).is_file() for name in TOKENIZER)


# ------------------------------------------------------------------------------------------------------------
# from a source to a folder


def folder_of(source: str) -> Path | None:
    """Return the local folder of an adapter that a source names, or None if it names something else."""
    if source in assets.ASSETS:
        return None
    folder = Path(source).expanduser()
    return folder if (folder / CONFIG).is_file() else None


def from_hub(name: str, revision: str | None, error: BaseException | None) -> Path | None:
    """Return the folder of an adapter on the hub that could not be loaded as a model, or None if it is none.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit.
        error: what loading it as a model raised; the hub is asked again only where that may be because it is an
            adapter.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if error is None or Path(name).exists():  # the hub was not asked
        return None
    here = isinstance(try_to_load_from_cache(name, CONFIG, revision=revision), str)
    if not here and not any("named config.json" in str(one) for one in checkpoint_files.chain(error)):
        return None
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError, *cast(Any, HfHubHTTPError.__bases__)):
        return None
    return folder if (folder / CONFIG).is_file() else None


def read(source: str, folder: Path, say: Say) -> Adapter:
    """Return what an adapter's folder says of it; nothing is loaded.

    Raises:
        BadInput: a configuration that cannot be read, an adapter for another kind of model, weights that are missing,
            pickled or damaged, no base model or one that is not there.
    """
    settings = checkpoint_files.read_json(folder / CONFIG)
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise BadInput(f"{folder / CONFIG} does not say what kind of adapter it is (peft_type): save the adapter again")
    kind, task = settings["peft_type"], settings.get("task_type")
    if kind in UNUSABLE:
        raise BadInput(f"{source} is an adapter of the kind {kind}, which is not read ({UNUSABLE[kind]}): use another")
    if task not in TEXT_TASKS:
        raise BadInput(
            f"{source} is an adapter for {task}, which has no language-model head: give one of a causal or masked "
            "language model"
        )
    large = [key for key in ("r", "num_virtual_tokens", "token_dim") if _beyond(settings.get(key))]
    if large:
        raise BadInput(f"{folder / CONFIG} asks for {large[0]} beyond {LARGEST}: restore that file from a copy")
    base, shapes = _base(source, folder, settings, say), _shapes(source, folder)
    embeddings = not settings.get("modules_to_save") and any(map(EMBEDDINGS.search, shapes))
    return Adapter(folder, kind, base, shapes, embeddings)


def _beyond(value: Any) -> bool:
    return isinstance(value, int) and value > LARGEST


def _base(source: str, folder: Path, settings: Mapping[str, Any], say: Say) -> str:
    """Return the base model as `gradless.lm.load` takes it: a known name, a path, or a hub id with its revision.

    A path is looked for as it stands, which is relative to the current folder as in PEFT, and by its last part beside
    the adapter and inside of it.
    """
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    fix = f"write the model that it was tuned on into base_model_name_or_path of {folder / CONFIG}"
    if not isinstance(name, str) or not name.strip("./~ "):
        raise BadInput(f"{source} is an adapter that does not name its base model: {fix}")
    if name in assets.ASSETS or tiny_models.is_name(name):
        return name
    path = Path(name).expanduser()
    if path.exists():
        return name
    if not (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".gguf"):
        return f"{name}@{revision}" if isinstance(revision, str) and revision else name
    parents = (folder.absolute().parent, folder)
    near = next((parent / path.name for parent in parents if (parent / path.name).exists()), None)
    if near is None:
        raise BadInput(
            f"{source} is an adapter of the model {name}, which is neither there nor at {parents[0] / path.name}: move "
            f"or link it to there, or {fix}"
        )
    say(f"the base model of {source} is taken from {near}")
    return str(near)


def _shapes(source: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's weights, from the header of their file."""
    from safetensors import SafetensorError, safe_open

    if not (folder / WEIGHTS).is_file():
        why = "only pickled weights, which are not read for safety" if (folder / PICKLED).exists() else f"no {WEIGHTS}"
        raise BadInput(f"{source} has {why}: save the adapter with save_pretrained of PEFT, which writes safetensors")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder / WEIGHTS} is broken or truncated ({error}): save it again or copy it again") from None


# ------------------------------------------------------------------------------------------------------------
# from a folder to a model


def attach(source: str, adapter: Adapter, model: nn.Module, *, weights: bool = True) -> nn.Module:
    """Return PEFT's model of a base and its adapter, in evaluation mode; the base is changed, not copied.

    What PEFT would train of the adapter requires gradients, and nothing else.

    Args:
        source: what the user named.
        adapter: from `read`.
        model: the base model.
        weights: False leaves the adapter without its values, on the device of the base (``meta``).

    Raises:
        BadInput: the adapter does not fit the base; the message says how.
    """
    from peft import PeftConfig, get_peft_model

    embeddings = cast(Any, model).get_input_embeddings()
    device = embeddings.weight.device
    _resize(adapter, model)
    # PEFT draws initial values from the global generator before it reads the file.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            config: Any = PeftConfig.from_pretrained(str(adapter.folder))
            _prepare(config)
            wrapped: Any = get_peft_model(cast(Any, model), config)
            if adapter.kind in VIRTUAL:  # PEFT guesses by the size of the vocabulary
                wrapped.word_embeddings = cast(Any, model).get_input_embeddings()
            if not weights:
                return cast(nn.Module, wrapped.to(device).eval())
            report = wrapped.load_adapter(str(adapter.folder), "default", is_trainable=True, torch_device=str(device))
        except BadInput:
            raise
        except Exception as error:  # PEFT and the architectures each raise their own
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
                raise
            raise BadInput(_does_not_fit(source, adapter, error)) from error
    _check_report(source, adapter, report)
    _set_types(adapter, wrapped, model)
    wrapped.eval()
    if config.is_prompt_learning:
        _check_forward(source, adapter, wrapped)
    return cast(nn.Module, wrapped)


def _prepare(config: Any) -> None:
    """Let PEFT make the adapter as it was tuned, without initial values of its own."""
    config.inference_mode = config.peft_type == "P_TUNING"  # whose file holds what its network has computed
    if config.peft_type == "PREFIX_TUNING":
        config.prefix_projection = False  # likewise
    if config.peft_type == "PROMPT_TUNING":
        config.prompt_tuning_init = "RANDOM"  # not the tokens of a text, for which PEFT would fetch a tokenizer


def _resize(adapter: Adapter, model: Any) -> None:
    """Give the base as many embeddings as the adapter's file holds, if it holds them: tokens may have been added."""
    table = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table)
    ends = (f"{name}.weight", f"{name}.base_layer.weight")
    rows = [shape[0] for key, shape in adapter.shapes.items() if key.endswith(ends)]
    if rows and rows[0] != table.weight.shape[0]:
        model.resize_token_embeddings(rows[0], mean_resizing=False)


def _does_not_fit(source: str, adapter: Adapter, error: Exception) -> str:
    """Return a sentence about what PEFT raised."""
    text = str(error)
    mismatch = re.search(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", text, re.DOTALL)
    if mismatch:
        name, here, there = mismatch.groups()
        reason = f"its {name} is {here}, and would be {there}"
    elif isinstance(error, KeyError):
        reason = f"its file lacks {text}"
    else:
        reason = checkpoint_files.first_line(error)
    return (
        f"the adapter {source} does not fit its base model {adapter.base} ({reason}): name the model that it was tuned "
        f"on in base_model_name_or_path of {adapter.folder / CONFIG}, or restore the adapter's files"
    )


def _check_report(source: str, adapter: Adapter, report: Any) -> None:
    """Refuse an adapter with weights that its file lacks, or that nothing reads.

    Raises:
        BadInput: with the first of them.
    """
    missing = sorted(key for key in report.missing_keys if "prompt_encoder" not in key)
    unused = sorted(key for key in report.unexpected_keys if key != "prompt_embeddings")
    for keys, what in ((missing, "lacks"), (unused, "has")):
        if keys:
            raise BadInput(
                f"the adapter {source} {what} {len(keys)} weights that its {CONFIG} and {adapter.base} "
                f"{'ask for' if what == 'lacks' else 'have no place for'} (such as {keys[0]}): restore its files, or "
                "correct base_model_name_or_path"
            )


def _set_types(adapter: Adapter, wrapped: Any, model: nn.Module) -> None:
    """Keep float32 weights of an adapter in float32, and give the others the type of the base."""
    from safetensors import safe_open

    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    base: torch.dtype = cast(Any, model).get_input_embeddings().weight.dtype
    kind = torch.float32 if "F32" in stored else base
    for _, parameter in tuned(wrapped):
        if parameter.dtype != kind and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(kind)


@torch.no_grad()
def _check_forward(source: str, adapter: Adapter, wrapped: Any) -> None:
    """Refuse virtual tokens that the base cannot read. Cost: one forward of two tokens."""
    config = wrapped.peft_config["default"]
    layers = getattr(wrapped.config.get_text_config(), "num_hidden_layers", None)
    ids = torch.tensor([[3, 4]], device=cast(Tensor, next(wrapped.base_model.parameters())).device)
    try:
        if adapter.kind == "PREFIX_TUNING" and layers not in (None, config.num_layers):
            raise ValueError(f"it is for {config.num_layers} layers of {layers}")
        wrapped(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # every architecture raises its own
        raise BadInput(_does_not_fit(source, adapter, error)) from error


# ------------------------------------------------------------------------------------------------------------
# what an adapter consists of


def tuned(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what would be tuned of a model."""
    return ((name, p) for name, p in model.named_parameters() if is_tuned(p))


def scalings(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the factor of each layer's adapter, float64 ``[1]``; nothing of a model without one.

    With its weights it decides what an adapter computes; PEFT makes it of alpha and rank, and it is no parameter.
    """
    for name, module in model.named_modules():
        factors = getattr(module, "scaling", None)
        if isinstance(factors, dict):
            for adapter, factor in factors.items():
                if isinstance(factor, int | float):
                    yield f"{name}.scaling.{adapter}", torch.tensor([factor], dtype=torch.float64)


def tokenizer(source: str, folder: Path) -> Any:
    """Return the tokenizer beside an adapter.

    Raises:
        BadInput: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **checkpoint_config.OWN_CODE)
    except Exception as error:  # tokenizers and transformers each raise their own
        reason = checkpoint_files.first_line(error)
        raise BadInput(
            f"the tokenizer beside the adapter {source} cannot be read ({reason}): save it again, or remove its files "
            "to take the base model's"
        ) from error
