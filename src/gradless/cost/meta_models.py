"""Models without weights: built on torch's meta device from a configuration alone.

Of a hub id only ``config.json`` is fetched, and only because the user named it; everything else needs no network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from gradless.errors import BadInput, pick
from gradless.lm import (
    DTYPES,
    LanguageModel,
    adapters,
    checkpoint_config,
    checkpoint_files,
    gguf_layout,
    gguf_model,
    hub_ids,
    quiet_transformers,
    shapes,
    sources,
    tiny_models,
)
from gradless.lm.gguf_layout import Layout
from gradless.lm.shapes import Shape, Vocabulary
from gradless.system.cache import quiet as silent

ATTENTION: Final[dict[str, str | None]] = {"flash": None, "eager": "eager"}  # None: what transformers takes by itself
NO_LIMIT: Final = 1 << 30
_GEMMA_FULL: Final = (5, 11, 17)  # layers whose attention does not slide

# Configurations of the models that come from the package index, so that planning needs nothing of them.
KNOWN: Final[dict[str, Shape]] = {
    # Gemma 3 (Gemma Team 2025, arXiv 2503.19786).
    "gemma-3-270m": Shape(
        "Gemma3TextConfig",
        {
            **{"hidden_size": 640, "num_hidden_layers": 18, "intermediate_size": 2048, "head_dim": 256},
            **{"num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 262144},
            **{"max_position_embeddings": 32768, "sliding_window": 512, "query_pre_attn_scalar": 256},
            "layer_types": ["full_attention" if i in _GEMMA_FULL else "sliding_attention" for i in range(18)],
            "tie_word_embeddings": True,
        },
    ),
    # SmolLM2 (Ben Allal et al. 2025, arXiv 2502.02737).
    "smollm2-135m": Shape(
        "LlamaConfig",
        {
            **{"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "head_dim": 64},
            **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
            **{"max_position_embeddings": 8192, "tie_word_embeddings": True},
        },
    ),
    # BERT-tiny (Turc et al. 2019, arXiv 1908.08962).
    "splade-tiny": Shape(
        "BertConfig",
        {
            **{"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 512, "num_attention_heads": 2},
            **{"vocab_size": 30522, "max_position_embeddings": 512},
        },
        masked=True,
    ),
}


def load(source: str, *, dtype: str | None = None, attention: str = "flash") -> LanguageModel:
    """Return a language model without weights, on the meta device, in evaluation mode.

    Args:
        source: a name from `gradless.lm.sources`, ``shape:NAME``, a folder with ``config.json``, a ``.gguf`` file (of
            which only the header is read), or a hub id, ``owner/name`` or ``owner/name@revision``; or a folder or
            hub id of an adapter of PEFT.
        dtype: a key of `gradless.lm.DTYPES`; default the checkpoint's own, or float32 where it names none.
        attention: ``flash``, a fused kernel where the architecture has one, or ``eager``.

    Cost: about a second, whatever the size; no memory for weights.

    Raises:
        BadInput: no such model, an architecture that the installed transformers does not know, no language-model head.
    """
    kind = pick("attention", attention, ATTENTION)
    wanted = None if dtype is None else pick("dtype", dtype, DTYPES)
    folder = adapters.folder_of(source)
    if folder is None:
        try:
            return _load_model(source, wanted, kind)
        except BadInput as error:
            folder = adapters.from_hub(*hub_ids.split(source), error.__cause__)
            if folder is None:
                raise
    adapter = adapters.read(source, folder, silent)
    with quiet_transformers():
        base = _load_model(adapter.base, wanted, kind)
        model = adapters.attach(source, adapter, base.model, weights=False)
    return dataclasses.replace(base, model=model, source=source, name=_short(source), origin=adapter)


def _load_model(source: str, wanted: torch.dtype | None, kind: str | None) -> LanguageModel:
    """`load` without adapters."""
    with quiet_transformers():
        config, masked, layout, files = _described(source)
        if kind is not None:
            config._attn_implementation = kind
        asked, wanted = wanted, wanted or _own_dtype(config)
        model = _empty(config, masked, wanted, source)
    model.eval()
    model.config.use_cache = False
    text = config.get_text_config()
    tokens = Vocabulary(
        size=text.vocab_size,
        model_max_length=getattr(text, "max_position_embeddings", None) or NO_LIMIT,
        pad_token_id=getattr(text, "pad_token_id", None),
    )
    built = LanguageModel(model, tokens, masked, source=source, name=_short(source))
    if asked is None:
        built.files, built.layout = files, layout
    if not isinstance(built.head, torch.nn.Linear):
        raise BadInput(f"{source} has no linear output layer: choose a causal or masked language model")
    return built


def _own_dtype(config: Any) -> torch.dtype:
    named = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return DTYPES.get(named, torch.float32)


def _short(source: str) -> str:
    if source.startswith(shapes.PREFIX) or source in KNOWN:
        return source
    return Path(source.partition("@")[0]).name.removesuffix(".gguf")


def _described(source: str) -> tuple[Any, bool, Layout | None, tuple[Path, ...]]:
    """Return the configuration, whether the model is masked, and the layout and the files of a GGUF in place.

    A known name has no files here: it is planned without them.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf" and (opened := gguf_model.open_file(path)) is not None:
        config, layout = gguf_model.described(path, opened)
        return config, False, layout, opened.files
    return *_configuration(source), gguf_layout.KNOWN.get(source), ()


def _configuration(source: str) -> tuple[Any, bool]:
    """Return the configuration, and whether it is that of a masked model; not of a GGUF in place."""
    if source.startswith(shapes.PREFIX):
        return _built(pick("shape", source.removeprefix(shapes.PREFIX), shapes.SHAPES))
    if Path(source).is_dir():
        return _read(source, source, {"local_files_only": True})
    if source in KNOWN:
        return _built(KNOWN[source])
    if tiny_models.is_name(source):
        architecture, tied = tiny_models.parse(source)
        model, _, masked = tiny_models.build(architecture, seed=0, tied=tied)
        return model.config, masked
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _read(source, str(path.parent), {"local_files_only": True, "gguf_file": path.name})
    if path.exists() and not path.is_dir():
        raise BadInput(f"{source} is neither a folder nor a .gguf file: give the folder with its config.json")
    if path.is_dir():
        return _read(source, str(path), {"local_files_only": True})
    name, revision = hub_ids.checked(source, sources())
    return _read(source, name, {"revision": revision or "main"})


def _built(shape: Shape) -> tuple[Any, bool]:
    import transformers

    return getattr(transformers, shape.config)(**shape.options), shape.masked


def _read(source: str, location: str, options: Mapping[str, Any]) -> tuple[Any, bool]:
    """Return the configuration of a folder or hub id."""
    local = bool(options.get("local_files_only"))
    if local and "gguf_file" not in options and not (Path(location) / "config.json").is_file():
        raise BadInput(f"{source} has no config.json: give the folder of a saved model, or one of its .gguf files")
    try:
        return checkpoint_config.read(location, dict(options))
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    except Exception as error:  # transformers and the hub each raise their own
        text = " ".join(str(error).split())
        if "not recognize this architecture" in text or "Unrecognized model" in text:
            raise BadInput(_unknown_architecture(source, text)) from None
        first = str(error).strip().split("\n")[0].rstrip(".:") or type(error).__name__
        if local:
            raise BadInput(f"{source}: its configuration cannot be read ({first}): restore config.json") from None
        raise BadInput(checkpoint_files.load_failure(source, local, error, sorted(sources()))) from error


def _unknown_architecture(source: str, text: str) -> str:
    import transformers

    if "not recognize" not in text:
        return f"{source}: its config.json names no model_type that transformers knows: restore it from a copy"
    quoted = text.split("`")
    name = f" '{quoted[1]}'" if len(quoted) > 2 else ""
    return (
        f"{source} has an architecture{name} that transformers {transformers.__version__} does not know: upgrade "
        "transformers, or plan a shape of its size (shape:llama-3.1-8b, for instance)"
    )


def _empty(config: Any, masked: bool, dtype: torch.dtype, source: str) -> Any:
    """Return the model on the meta device."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    head: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    quantised = config.__dict__.pop("quantization_config", None)  # which building would ask the library about
    try:
        with torch.device("meta"), shapes._NoDraws():
            model = head.from_config(config, dtype=dtype)
        if quantised is not None:
            model.config.quantization_config = quantised
        return model
    except (ValueError, NotImplementedError, ImportError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0][:200].rstrip(".:")
        raise BadInput(
            f"{source} ({config.model_type}) cannot be built from its configuration ({first}): choose a causal or "
            "masked language model that transformers itself implements"
        ) from None
