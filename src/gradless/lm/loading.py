"""Loading language models: known offline names, folders, GGUF files, hub ids, adapters and tiny random ones.

Only safetensors weights are read (never a pickle), missing weights are an error rather than random numbers,
tied embeddings stay one parameter, and nothing goes to the network unless the source is a hub id or a known
name that is not in the cache yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from gradless.errors import BadInput, pick
from gradless.lm import (
    adapters,
    checkpoint_config,
    checkpoint_files,
    compute_types,
    gguf_model,
    hub_ids,
    model_names,
    quantisation,
    tiny_models,
    weight_storage,
)
from gradless.lm import chat as chat_templates
from gradless.lm.adapters import Adapter
from gradless.lm.causality import looks_ahead
from gradless.lm.chat import Chat
from gradless.lm.devices import device_of
from gradless.lm.gguf_layout import Layout
from gradless.lm.model_names import sources
from gradless.lm.quiet import quiet_transformers
from gradless.lm.weight_storage import Storage
from gradless.system import cache as store
from gradless.system.cache import Say
from gradless.system.cache import quiet as silent

DTYPES: Final[dict[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

AUTO: Final = "auto"
IN_PLACE: Final = "gguf"
"""What a ledger's header has for the type of weights that stay in GGUF files."""
CPU: Final = torch.device("cpu")


@dataclass(slots=True)
class LanguageModel:
    """A causal or masked language model in evaluation mode, with its tokenizer.

    Attributes:
        model: the Hugging Face model (or the PEFT model around it); ``use_cache`` is off.
        tokenizer: its fast tokenizer, which pads on the right and has a padding token.
        masked: True for masked models (RoBERTa, BERT), False for causal ones.
        source: what the user named, see `load`.
        name: a short name for tables.
        chat: the text of the tokenizer's chat template, if prompts are messages of a chat.
        origin: the adapter that the model was loaded with, and its base; None for a model without one.
        upcast: whether its forward reads 16-bit weights in float32 (`gradless.storage.upcast`).
        files: the files, in their order, whose bytes its stored weights are (a GGUF in place); else none. The base
            hash is theirs, see `gradless.lm.base_hash`.
        weight_files: the files that its float weights were read from, whole; none where they do not decide them.
        layout: of a model without data that is planned as if its weights stayed in a GGUF file, their formats there.
    """

    model: nn.Module
    tokenizer: Any
    masked: bool
    source: str
    name: str
    chat: Chat | None = None
    origin: Adapter | None = None
    files: tuple[Path, ...] = ()
    weight_files: tuple[Path, ...] = ()
    layout: Layout | None = None
    upcast: bool = False

    @property
    def device(self) -> torch.device:
        """Device of the output layer's weights."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the model's weights are kept."""
        return self.head.weight.dtype

    @property
    def dtype_name(self) -> str:
        """Name of the type of the weights for a ledger's header; `IN_PLACE` if they are in their files."""
        return IN_PLACE if self.files or self.layout else str(self.dtype).removeprefix("torch.")

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the model's activations and products."""
        return torch.float32 if self.upcast else self.dtype

    @property
    def spread(self) -> bool:
        """Whether the weights are on several devices."""
        return len({*getattr(self.model, "hf_device_map", {}).values()}) > 1

    @property
    def head(self) -> nn.Linear:
        """Output layer from hidden states to the vocabulary, weight ``[V, H]``, which tied models share."""
        head: Any = cast(Any, self.model).get_output_embeddings()
        own = getattr(head, "modules_to_save", None)  # an adapter's own copy of the layer stands in for it
        return cast(nn.Linear, head if own is None else own["default"])

    @property
    def num_embeddings(self) -> int:
        """Tokens that the model knows; a tokenizer may have more."""
        return int(cast(Any, self.model).get_input_embeddings().weight.shape[0])

    @property
    def config(self) -> Any:
        """Configuration of the (text) model."""
        config = cast(Any, self.model).config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def adapters(self) -> tuple[Any, ...]:
        """Configurations of PEFT's adapters; none for a plain model."""
        return tuple((getattr(self.model, "peft_config", None) or {}).values())

    @property
    def num_parameters(self) -> int:
        """Number of weights, each shared one counted once."""
        return sum(p.numel() for p in self.model.parameters())


def load(
    source: str,
    *,
    dtype: str | None = None,
    compute_dtype: str | None = None,
    device: str = "cpu",
    cache: Path | None = None,
    tokenizer: Any = None,
    chat: bool = False,
    quantise: str | None = None,
    offload: str | None = None,
    say: Say = silent,
) -> LanguageModel:
    """Return a model and its tokenizer.

    Args:
        source: a name from `sources`, a folder with ``config.json`` and safetensors, a ``.gguf`` file
            (whose weights stay in the file and are decoded as they are used), or a hub id, ``owner/name`` or
            ``owner/name@revision``; or a folder or hub id of an adapter of PEFT, which is put around the base model
            that it names (`gradless.lm.adapters`).
        dtype: type in which weights are kept, a key of `DTYPES`; default float32 on the CPU, elsewhere the
            checkpoint's own. Of a ``.gguf`` file, the type of its weights decoded into memory.
        compute_dtype: type of activations and products, float32 or that of the weights; default: that of the weights,
            but float32 on a processor that multiplies 16-bit matrices more slowly. To tune without derivatives on a
            CPU, give ``float32``: 16-bit products drown small differences of losses (`gradless.lm.compute_types`).
        device: device of the weights, ``cpu``, ``cuda`` or ``cuda:1`` for instance; ``auto`` spreads them over all
            GPUs (accelerate's device map).
        cache: cache folder (default: `gradless.system.cache.cache_root`).
        tokenizer: that of this model, if it has been read before; large ones take seconds.
        chat: let prompts be messages of a chat, by the tokenizer's own template (`gradless.lm.chat`).
        quantise: ``nf4``, ``fp4`` or ``int8``: what linear layers are quantised to, one after the other; weights that
            are quantised already stay as they are stored (`gradless.lm.quantisation`).
        offload: where weights stay until their layer runs: ``disk`` maps them from their files, ``cpu`` keeps them in
            the host's memory while a graphics card computes. Values and losses have the same bits as without.
        say: receives lines about slow steps.

    Memory: about the weights; they are mapped from the file and copied one tensor at a time.

    Raises:
        BadInput: no such model, a broken file, no language-model head, unknown dtype or device, too large for ``auto``,
            an adapter that does not fit its base; ``chat`` with a masked model, or without a template; ``quantise`` or
            ``offload`` of what cannot be.
    """
    storage = Storage(quantise, offload)
    lm = _preloaded.pop((source, dtype, device), None) if storage == Storage() else None
    lm = lm or _loaded(source, dtype, device, cache, tokenizer, storage, say)
    compute_types.apply(lm, compute_dtype)
    set_chat(lm, chat)
    return lm


def set_chat(lm: LanguageModel, chat: bool) -> None:
    """Let the prompts of a model be messages of a chat, or plain text.

    Raises:
        BadInput: a masked model, or a tokenizer without a chat template that can be used.
    """
    if chat and lm.masked:
        raise BadInput(f"{lm.source} is a masked model, which is no chat's assistant: leave out --chat")
    lm.chat = chat_templates.read(lm.tokenizer, lm.source) if chat else None


def _loaded(
    source: str, dtype: str | None, device: str, cache: Path | None, tokenizer: Any, storage: Storage, say: Say
) -> LanguageModel:
    """Return a model, or an adapter around its base."""
    options: dict[str, Any] = {"dtype": dtype, "device": device, "cache": cache, "storage": storage, "say": say}
    folder = adapters.folder_of(source)
    if folder is None:
        try:
            return _load_model(source, tokenizer=tokenizer, **options)
        except BadInput as error:
            folder = adapters.from_hub(*hub_ids.split(source), error.__cause__)
            if folder is None:
                raise
    return _load_adapter(source, folder, tokenizer, options)


def _load_adapter(source: str, folder: Path, tokenizer: Any, options: dict[str, Any]) -> LanguageModel:
    """Return the base model of an adapter with the adapter around it."""
    adapter = adapters.read(source, folder, options["say"])
    with quiet_transformers():
        tokenizer = tokenizer or (adapters.tokenizer(source, folder) if adapter.has_tokenizer else None)
        try:
            base = _load_model(adapter.base, tokenizer=tokenizer, **options)
        except BadInput as error:
            raise BadInput(f"{source} is an adapter of {adapter.base}: {error}") from error
        model = adapters.attach(source, adapter, base.model)
    name = model_names.short_name(source if not Path(source).expanduser().exists() else str(folder.absolute()))
    tokenizer = tokenizer or base.tokenizer
    tuned = LanguageModel(model, tokenizer, base.masked, source=source, name=name, origin=adapter, files=base.files)
    return _finish(tuned)


def _load_model(
    source: str, *, dtype: str | None, device: str, cache: Path | None, tokenizer: Any, storage: Storage, say: Say
) -> LanguageModel:
    """`load` without adapters."""
    weights_dtype = None if dtype is None else pick("dtype", dtype, DTYPES)
    several = device == AUTO and torch.cuda.device_count() > 1
    target = device_of(("cuda" if torch.cuda.is_available() else "cpu") if device == AUTO else device)
    if weights_dtype is None and target.type == "cpu":
        weights_dtype = torch.float32
    storage.check(source, target, several=several)
    if tiny_models.is_name(source):
        architecture, tied = tiny_models.parse(source)
        lm = tiny(architecture, tied=tied)
        lm.model.to(target)
        for parameter in lm.model.parameters():  # rotary frequencies stay float32, as in models from files
            parameter.data = parameter.data.to(weights_dtype or parameter.dtype)
        storage.settle(lm.model, None, weights_dtype, target)
        return lm
    root = cache or store.cache_root()
    file = model_names.gguf_file(source, root, say)
    if file is not None and (opened := gguf_model.open_file(file)) is not None:
        return _from_gguf(source, file, opened, None if dtype is None else weights_dtype, target, tokenizer, root, say)
    folder, revision = model_names.resolve(source, file, root, say)
    with quiet_transformers():
        return _from_folder(
            source, folder, revision, weights_dtype, AUTO if several else target, tokenizer, storage, say
        )


_preloaded: dict[tuple[str, str | None, str], LanguageModel] = {}


def preload(source: str, *, dtype: str | None = None) -> None:
    """Load a model to the CPU for the next `load` of it, in this process or in one that is forked from it."""
    _preloaded[source, dtype, "cpu"] = load(source, dtype=dtype)


def tiny(architecture: str, *, seed: int = 0, tied: bool | None = None) -> LanguageModel:
    """Return a random two-layer model: hidden size 32, a few hundred tokens, float32, the same on every call.

    Args:
        architecture: opt, llama, mistral, qwen, gemma or roberta.
        seed: of the weights.
        tied: share input and output embeddings; default as the architecture's small models do.

    Raises:
        BadInput: unknown architecture.

    Example:
        >>> tiny("llama").head.weight.shape[1]
        32
    """
    with quiet_transformers():
        model, tokenizer, masked = tiny_models.build(architecture, seed=seed, tied=tied)
    suffix = "" if tied is None else "-tied" if tied else "-untied"
    name = f"tiny-{architecture}{suffix}"
    return _finish(LanguageModel(model, tokenizer, masked, source=name, name=name))


# ------------------------------------------------------------------------------------------------------------
# from a folder, hub id or GGUF file to a model


def _from_gguf(
    source: str,
    file: Path,
    opened: gguf_model.Opened,
    dtype: torch.dtype | None,
    device: torch.device,
    tokenizer: Any,
    root: Path,
    say: Say,
) -> LanguageModel:
    """Return the model of a GGUF file: in place, or with decoded weights if their type is asked for."""
    if dtype is not None:
        say(f"decoding the weights of {file.name} into {str(dtype).removeprefix('torch.')}")
    with quiet_transformers():
        model = gguf_model.load(file, opened, dtype, device)
        tokenizer = tokenizer or gguf_model.tokenizer(file, opened, root)
    files = opened.files if dtype is None else ()
    return _finish(
        LanguageModel(model, tokenizer, False, source=source, name=model_names.short_name(source), files=files)
    )


def _from_folder(
    source: str,
    folder: str,
    revision: str | None,
    dtype: torch.dtype | None,
    device: torch.device | str,
    tokenizer: Any,
    storage: Storage,
    say: Say,
) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    local, method = Path(folder).is_dir(), None
    options: dict[str, Any] = {"revision": revision or "main"} | ({"local_files_only": True} if local else {})
    try:
        config, masked = checkpoint_config.read(folder, options)
        method = quantisation.method_of(getattr(config, "quantization_config", None))
        where = None if (device == CPU and method is None) or not storage.plain else device
        head = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        model, report = head.from_pretrained(
            folder,
            config=config,
            dtype=dtype if dtype and storage.plain else "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **({} if where is None else {"device_map": AUTO if where == AUTO else {"": where}}),
            **options,
            **checkpoint_config.OWN_CODE,
        )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder, **options, **checkpoint_config.OWN_CODE)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    except Exception as error:  # transformers, hub, safetensors and tokenizers each raise their own
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        if device == AUTO and "offload" in str(error):  # to a disk, which was not asked for
            raise BadInput(weight_storage.too_large(source)) from error
        if method is not None and local and "okenizer" not in str(error):
            raise BadInput(f"{source}: {quantisation.failure(method, error)}") from error
        raise BadInput(checkpoint_files.load_failure(source, local, error, sorted(sources()))) from error
    weight_storage.refuse_offloaded(source, model)
    checkpoint_files.check_report(source, model, report)
    try:
        line = storage.settle(model, method, dtype, device)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    if line:
        say(f"{source}: {line}")
    files = checkpoint_files.weight_files(folder, revision) if method is None and storage.quantise is None else ()
    name = model_names.short_name(source)
    return _finish(LanguageModel(model, tokenizer, masked, source=source, name=name, weight_files=files))


def _finish(lm: LanguageModel) -> LanguageModel:
    lm.model.eval()
    if hasattr(lm.model.config, "use_cache"):
        lm.model.config.use_cache = False
    _set_padding(lm)
    if not isinstance(getattr(lm.head, "base_layer", lm.head), nn.Linear):  # an adapter may wrap it
        raise BadInput(f"{lm.source} has no linear output layer: choose a causal or masked language model")
    if not lm.masked and looks_ahead(lm.model):
        raise BadInput(
            f"{lm.source} ({type(lm.model).__name__}) reads what follows a token, so it cannot score options token by "
            "token: choose a causal model, or a checkpoint of the masked one"
        )
    return lm


def _set_padding(lm: LanguageModel) -> None:
    """Make the tokenizer pad on the right, with a token for which the model has an embedding."""
    tokenizer: Any = lm.tokenizer
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    token = next((one for one in special if one is not None and one < lm.num_embeddings), None)
    if token is None:
        raise BadInput(f"the tokenizer of {lm.source} has no special token to pad with: add a pad_token to it")
    if token != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
    tokenizer.padding_side = "right"
