"""Folders and hub ids that are no model, or not a whole one: the reason and the fix, each in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from torch import nn

from gradless.errors import BadInput

INDEX: Final = "model.safetensors.index.json"
ADAPTER: Final = "adapter_config.json"
SHOWN: Final = 5  # folders that a sentence lists
REASON: Final = 100  # letters of somebody else's message
HARMLESS: Final = re.compile(
    r"(^|\.)(pooler|seq_relationship|classifier|classification_head|score|qa_outputs|v_head|value_head)\."
    r"|(^|\.)(inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias|num_batches_tracked)$"
)
"""Weights that a language model does not use: heads of other tasks, and constants that older releases saved."""


def checked_folder(folder: Path) -> Path:
    """Return a folder that holds a configuration and all weights that it names.

    Raises:
        BadInput: it does not; the message says what it holds instead.
    """
    if (folder / ADAPTER).is_file():
        raise BadInput(f"{folder} holds an adapter of PEFT{_base(folder)}, not a model: {_MERGE}")
    if (folder / "ledger").is_file():
        raise BadInput(
            f"{folder} is a run, not a model: write its model with 'gradless replay {folder} --save DIR' and give that"
        )
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json{_hint(folder)}")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise BadInput(f"{folder / 'config.json'} holds no settings: save the model or download it again")
    if (folder / INDEX).is_file():
        _check_index(folder)
    elif not any(folder.glob("*.safetensors")):
        pickled = any(path for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        what = "only pickled weights, which are not read for safety" if pickled else "no weights"
        raise BadInput(f"{folder} has {what}: save the model with save_pretrained, which writes safetensors")
    return folder


_MERGE: Final = "merge it into its base (merge_and_unload), save that with save_pretrained, and give the new folder"


def _base(folder: Path) -> str:
    settings = read_json(folder / ADAPTER)
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    return f" for {base!r}" if isinstance(base, str) and base else ""


def _hint(folder: Path) -> str:
    """What to give instead of a folder without a configuration."""
    if inside := sorted(file.name for file in folder.glob("*.gguf")):
        return f"; did you mean {folder / inside[0]}?"
    if (folder / "modules.json").is_file():
        return ": it is a model of sentence-transformers, which has no language-model head: choose a language model"
    if inside := sorted({str(path.parent) for name in ("config.json", ADAPTER) for path in folder.glob(f"*/{name}")}):
        more = f" or {len(inside) - SHOWN} more" if len(inside) > SHOWN else ""
        return f"; did you mean {' or '.join(inside[-SHOWN:])}{more}?"
    return ": give the folder of a saved model" if any(folder.iterdir()) else ", it is empty: give a saved model"


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        BadInput: it cannot be read, or is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "too deep"
        raise BadInput(f"{path} is not JSON ({reason}): save the model or download it again") from None


def _check_index(folder: Path) -> None:
    """Refuse a sharded model of which a shard is missing."""
    index = read_json(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise BadInput(f"{folder / INDEX} names no files: save the model or download it again")
    shards = sorted({*names.values()})
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(f"{folder} lacks {missing[0]}{more} of {len(shards)} files of weights: download it again")


def weight_files(folder: str, revision: str | None) -> tuple[Path, ...]:
    """Return the files that decide the weights of a checkpoint: safetensors and configuration.

    Args:
        folder: or a hub id, whose files lie in the hub's cache.
        revision: on the hub.
    """
    inside = Path(folder)
    if not inside.is_dir():
        from huggingface_hub import try_to_load_from_cache

        kept = try_to_load_from_cache(folder, "config.json", revision=revision)
        if not isinstance(kept, str):
            return ()
        inside = Path(kept).parent
    return tuple(sorted((*inside.glob("*.safetensors"), *inside.glob("*.json"))))


def check_report(source: str, model: nn.Module, report: dict[str, Any]) -> None:
    """Refuse a model that is not made of exactly the weights of its checkpoint.

    Args:
        source: what the user named.
        model: the model.
        report: ``output_loading_info`` of ``from_pretrained``.

    Raises:
        BadInput: weights that the checkpoint lacks, which would be random; weights of other shapes; weights that the
            model has no place for, such as layers beyond those that the configuration counts.
    """
    name = type(model).__name__
    if missing := sorted(report["missing_keys"]):
        raise BadInput(
            f"{source} lacks {len(missing)} weights of {name} (such as {missing[0]}): "
            "choose a checkpoint saved with its language-model head"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        key, *shapes = mismatched[0] if isinstance(mismatched[0], tuple) else (mismatched[0],)
        sizes = f", {' and '.join(str(list(shape)) for shape in shapes)}" if shapes else ""
        raise BadInput(
            f"{source} has {len(mismatched)} weights of other shapes than its config.json says (such as {key}{sizes}): "
            "restore the file that belongs to the weights"
        )
    unused = sorted(key for key in report["unexpected_keys"] if not HARMLESS.search(key))
    if unused:
        raise BadInput(
            f"{source} has {len(unused)} weights that {name} with this config.json does not use (such as {unused[0]}): "
            "restore the file that belongs to the weights, or choose another model"
        )


# ------------------------------------------------------------------------------------------------------------
# what the libraries raise


def load_failure(source: str, local: bool, error: Exception, known: list[str]) -> str:
    """Return one sentence about what transformers, the hub, safetensors or tokenizers raised.

    Args:
        source: what the user named.
        local: whether it is a folder.
        error: the exception.
        known: names that need no hub.
    """
    text = str(error).strip()
    first = " ".join(text.split("\n")[0].split()).rstrip(".:") or type(error).__name__
    if local:
        return _local_failure(source, first)
    name = source.partition("@")[0]
    log_in = "log in with 'hf auth login', or set HF_TOKEN"
    kinds = {type(one).__name__ for one in chain(error)}
    if "GatedRepoError" in kinds or "gated repo" in text:
        return f"{source} is gated: accept its terms on https://huggingface.co/{name}, and {log_in}"
    if "RevisionNotFoundError" in kinds or "not a valid git identifier" in text:
        return f"{name} has no revision '{source.partition('@')[2]}': leave out the part after the @, or correct it"
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        fix = "unset HF_HUB_OFFLINE if it is set, check the network, or give a local folder"
        return f"{source} is not in the hub's cache here, and the hub was not asked or did not answer: {fix}"
    if "RepositoryNotFoundError" in kinds or "not a valid model identifier" in text:
        return (
            f"model '{source}' is no local path, no known name ({', '.join(known)}), and no public model of the hub: "
            f"check the name; if it is private, {log_in}"
        )
    if any(code in text for code in ("401 Client", "403 Client", "401 Unauthorized", "403 Forbidden")):
        return f"the hub does not let you read {source} ({first}): {log_in}"
    if "file named config.json" in text:
        return f"{source} has no config.json, so it is an adapter, a GGUF or something else: choose a model"
    if "safetensors" in text:
        return (
            f"{source} has no safetensors weights, and pickled ones are not read: name a revision that has "
            f"them, such as '{source}@refs/pr/1'"
        )
    return (
        f"model '{source}' is no local path and no known name ({', '.join(known)}), and the hub "
        f"did not give it ({first}): check the name and the network, or give a local folder"
    )


def _local_failure(source: str, first: str) -> str:
    if "does not recognize this architecture" in first or "Unrecognized model" in first:
        return f"{source} is of an architecture that this release of transformers does not know: upgrade it"
    if "okenizer" in first:
        return f"{source} has no tokenizer that can be read ({first}): save its tokenizer into the same folder"
    return f"{source} cannot be loaded ({first}): the folder seems incomplete, save it or download it again"


def first_line(error: Exception) -> str:
    """Return the beginning of somebody else's message, for a sentence of ours."""
    lines = str(error).strip().splitlines()
    return (lines[0][:REASON].rstrip(" .:;") if lines else "") or type(error).__name__


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
