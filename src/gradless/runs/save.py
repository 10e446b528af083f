"""Saving a tuned model as others expect it: a folder of transformers or PEFT, with the record of its run inside.

::

    config.json, model.safetensors, ...                 a model (schemes full and head), or
    adapter_config.json, adapter_model.safetensors      an adapter (lora, prefix, prompt)
    tokenizer.json, ...
    README.md                                           the model card
    gradless/ledger, config.json, result.json           the run; a run directory for `gradless replay`
    gradless/classifier.json                            prompt, labels and limits, for `gradless predict`
    gradless/initial.safetensors, norms.safetensors     what its ledger needs besides, if anything
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gradless import ledger, lm
from gradless.errors import BadInput
from gradless.ledger import Contents
from gradless.lm import gguf_writing
from gradless.lm.batching import has_label_head
from gradless.runs import card, hub
from gradless.runs.build import INITIAL, NORMS, OWN_PATHS, Model, Say, tuned_sha256
from gradless.runs.card import RECORD, TASK_FILE, Facts
from gradless.runs.classifier import spec_of, write_spec
from gradless.runs.config import TuneConfig
from gradless.runs.record import read_result
from gradless.runs.replay import ledger_path, shared, shared_model
from gradless.runs.scheme_settings import STORED
from gradless.runs.usage import usage
from gradless.storage.stored import decode_parameters
from gradless.system import locks
from gradless.system.atomic import write_json
from gradless.system.signals import ENDING, interrupting
from gradless.system.tensor_state import native_errors

TEMPORARY = ".saving-"  # begins the name of the folder beside the target in which it is made
PUSHED = ".push"  # folder beside the ledger for what is pushed and not saved
MADE = "model"  # what is made there


def is_gguf(save: Path | None) -> bool:
    """Return whether a model is saved as a GGUF file rather than a folder."""
    return save is not None and save.suffix.lower() == gguf_writing.SUFFIX


def check_scheme(save: Path | None, push: str | None, scheme: str) -> None:
    """Refuse a form that a scheme's result does not have.

    Raises:
        BadInput: with the form that it has.
    """
    if is_gguf(save) and scheme not in (*STORED, "lora"):
        others = f"{', '.join(STORED)} and lora"
        raise BadInput(f"a run of the scheme {scheme} is saved as a folder (of {others} as a .gguf): give --save DIR")
    if scheme in STORED and push is not None:
        raise BadInput(f"a run of the scheme {scheme} ends in a GGUF file: write it with --save x.gguf")
    if scheme in STORED and save is not None and not is_gguf(save):
        raise BadInput(f"a run of the scheme {scheme} is saved as a GGUF file: give --save a name that ends in .gguf")


def check(save: Path | None, push: str | None, *, public: bool = False, beside: Iterable[Path] = ()) -> None:
    """Refuse, before any work is done, what cannot be saved or pushed.

    Args:
        save: the folder, or the GGUF file.
        push: the name on the hub.
        public: whether everybody may see it there.
        beside: folders that will hold something by the time the model is saved.

    Raises:
        BadInput: the folder holds something or will, or the hub cannot be reached for a reason known without it.
    """
    if public and push is None:
        raise BadInput("--public says how a model is pushed: add --push OWNER/NAME, or leave it out")
    if save is not None and is_gguf(save):
        if save.exists():
            raise BadInput(f"{save} exists already: choose a new file for --save, or remove it")
        if not save.absolute().parent.is_dir():
            raise BadInput(f"{save.absolute().parent} is no folder: make it, or choose another file for --save")
    elif save is not None:
        if any("\ud800" <= letter <= "\udfff" for letter in str(save.resolve())):
            raise BadInput(f"{save} is no UTF-8, which tokenizers cannot write to: choose another folder for --save")
        if save.exists() and not save.is_dir():
            raise BadInput(f"{save} exists already and is a file: choose a new folder for --save")
        if save.is_dir() and any(save.iterdir()):
            raise BadInput(f"{save} exists already and is not empty: choose a new folder for --save, or remove it")
        for folder in beside:
            if folder.resolve().is_relative_to(save.resolve()):
                raise BadInput(f"{save} will hold {folder}, and --save needs a folder of its own: choose another")
    if push is not None:
        hub.check(push)


def is_saved(save: Path) -> bool:
    """Return whether a folder holds a saved model, whole or not; or whether a GGUF file is there."""
    if is_gguf(save):
        with contextlib.suppress(OSError), save.open("rb") as file:
            return file.read(4) == b"GGUF"
        return False
    return (save / RECORD / "ledger").is_file()


def holds_gguf(save: Path, built: Model) -> bool:
    """Return whether a file is the GGUF file of a rebuilt model.

    Cost: one pass over the file and the weights.
    """
    return bool(built.lm.files) and gguf_writing.holds(built.lm, save)


def holds(folder: Path, contents: Contents, sha256: str) -> bool:
    """Return whether a folder holds, whole, the tuned weights of this hash, of the run with this ledger.

    Cost: one look at the headers of its weights.
    """
    try:
        old = ledger.read(folder / RECORD / "ledger")
        card_text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        weights = list(folder.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="pt"):  # which checks the length of the file
                pass
    except (BadInput, OSError, SafetensorError):
        return False
    saved = read_result(folder / RECORD)
    known = saved["weights_sha256"] == sha256 if saved is not None else sha256 in card_text
    same = old.moves == contents.moves and old.header.get("base_sha256") == contents.header.get("base_sha256")
    return bool(weights) and known and same


def save(
    built: Model,
    contents: Contents,
    source: Path,
    target: Path,
    *,
    result: dict[str, Any] | None = None,
    repo_id: str | None = None,
) -> None:
    """Write a rebuilt model to a folder, whole or not at all.

    The model is of no use afterwards: tuned label rows are moved into its output layer, for instance.

    Args:
        built: the model, from `gradless.runs.replay.rebuild`.
        contents: its ledger.
        source: run directory or ledger file that it was rebuilt from.
        target: folder that does not exist yet, or is empty.
        result: contents of ``result.json`` if they describe exactly these weights. Text of test rows is left out.
        repo_id: name on the hub, if it is going there.

    Disk: the weights. Written beside the target under another name, and renamed in the end.

    Raises:
        BadInput: ``target`` holds something.
        OSError: it cannot be written; nothing is left behind.
    """
    check(target, None)
    target = target.resolve()
    facts = _facts(built, contents, repo_id or f"./{target.name}", result)
    with _scratch(target.parent / (TEMPORARY + target.name)) as folder:
        folder.mkdir()
        _weights(built.lm, facts, folder)
        _record(contents, source, result, folder / RECORD)
        write_spec(folder / RECORD, spec_of(facts.config, masked=built.lm.masked))
        readme = folder / "README.md"
        readme.write_text(card.render(facts), encoding="utf-8")
        for path in folder.rglob("*.safetensors"):  # which safetensors lets nobody else read
            path.chmod(readme.stat().st_mode)
        _sync(folder)
        check(target, None)  # whoever filled it meanwhile keeps what is there
        if target.is_dir():
            target.rmdir()
        folder.rename(target)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a path inside a folder that this process holds; nothing is left of it, whether the block ends or not.

    Signals that end a process are taken like Ctrl-C. What a killed process left there, or beside it, is removed.
    """
    with locks.claimed(folder, option="--save"), interrupting(*ENDING):
        _remove(folder.iterdir())
        for left in folder.parent.glob(TEMPORARY + "*"):
            with contextlib.suppress(BadInput, OSError):  # another process holds it, or it is no folder
                if left != folder and {path.name for path in left.iterdir()} <= {locks.LOCK, MADE}:
                    with locks.claimed(left):
                        _remove([left])
        try:
            yield folder / MADE
        finally:
            _remove(folder.iterdir())
    with contextlib.suppress(OSError):  # another process holds it now
        folder.rmdir()


def _remove(paths: Iterable[Path]) -> None:
    """Remove folders and what is in them, as far as possible."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk: a power cut must not leave a folder of empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def _facts(built: Model, contents: Contents, location: str, result: dict[str, Any] | None) -> Facts:
    """Return what the model card tells; it names no folder of this machine."""
    config = shared(TuneConfig.from_json(contents.header["config"]))
    config = dataclasses.replace(config, model=shared_model(built.lm.source))
    began_from = shared_model(built.lm.origin.base) if built.lm.origin else None
    return Facts(
        name=location.rpartition("/")[2],
        location=location,
        config=config,
        use=usage(
            built.lm,
            spec_of(config, masked=built.lm.masked),
            location=location,
            adapter=config.scheme in card.ADAPTERS,
            base=card.loaded_from(began_from or config.model),
        ),
        base=began_from,
        step=built.optimizer.t,
        header=contents.header,
        result=result,
        ledger_bytes=contents.good_bytes,
        sha256=tuned_sha256(built),
        masked=built.lm.masked,
    )


def _weights(model: lm.LanguageModel, facts: Facts, folder: Path) -> None:
    """Write weights and tokenizer as transformers and PEFT do."""
    inner: Any = model.model
    settings: Any = inner.config
    settings.use_cache = not model.masked  # off for training only; whoever generates wants it
    extra: dict[str, Any] = {}
    if has_label_head(model):
        _place_label_rows(model, facts.header["label_token_ids"])
    if not model.adapters:
        decode_parameters(inner)
    if model.adapters:
        name, revision = card.base_id(facts.base_model) or (facts.base_model, None)
        for adapter in model.adapters:
            adapter.base_model_name_or_path, adapter.revision = name, revision
        # Embeddings are never tuned beside an adapter, but one may bring its own. Left to itself, PEFT may ask the hub.
        extra["save_embedding_layers"] = bool(model.origin and model.origin.has_embeddings)
    with lm.quiet_transformers(), native_errors(folder):
        inner.save_pretrained(folder, **extra)
        model.tokenizer.save_pretrained(folder)


@torch.no_grad()
def _place_label_rows(model: lm.LanguageModel, tokens: list[int]) -> None:
    """Put the tuned rows of a label head where the label words have their rows in the output layer."""
    inner: Any = model.model
    rows = inner.label_head.weight
    weight = model.head.weight.detach().clone()  # a tied table stays as it is for the embeddings
    weight[tokens] = rows
    model.head.weight = nn.Parameter(weight, requires_grad=False)
    if model.head.bias is not None:  # masked models tie it too, to one that is saved under another name
        model.head.bias = nn.Parameter(model.head.bias.detach().clone(), requires_grad=False)
    del inner.label_head
    for settings in (inner.config, inner.config.get_text_config()):
        settings.tie_word_embeddings = False


def _record(contents: Contents, source: Path, result: dict[str, Any] | None, folder: Path) -> None:
    """Write the run's own files; the folder is a run directory again."""
    folder.mkdir()
    path, config = ledger_path(source), shared(TuneConfig.from_json(contents.header["config"]))
    with path.open("rb") as file:  # without the torn end of a run that was killed
        (folder / "ledger").write_bytes(file.read(contents.good_bytes))
    write_json(folder / "config.json", config.to_json())
    if result is not None:
        write_json(folder / "result.json", {key: value for key, value in result.items() if key != "examples"})
    for name in (INITIAL, NORMS):
        if (path.parent / name).exists():
            shutil.copyfile(path.parent / name, folder / name)
    text = card.task_file(config)
    if text is not None:
        (folder / TASK_FILE).write_text(text, encoding="utf-8")


def deliver(
    built: Model,
    contents: Contents,
    source: Path,
    *,
    save_to: Path | None,
    result: dict[str, Any] | None,
    push: str | None,
    public: bool,
    say: Say,
) -> None:
    """Save, push, or both; what is only pushed is first written to a temporary folder beside the ledger.

    Raises:
        BadInput: as `save` and `gradless.runs.hub.push`.
    """
    if save_to is not None and is_gguf(save_to):
        check(save_to, None)
        gguf_writing.write(built.lm, save_to)
        say(f"saved to {save_to}")
        if push is None:
            return
        save_to = None
    with contextlib.ExitStack() as stack:
        target = save_to
        if target is None:
            target = stack.enter_context(_scratch(ledger_path(source).parent / PUSHED))
        save(built, contents, source, target, result=result, repo_id=push)
        if save_to is not None:
            say(f"saved to {save_to}")
        if push is not None:
            say(f"the ledger and the card name the model and data: {_named(contents)}")
            say(f"pushed to {hub.push(target, push, public=public, say=say)}")


def _named(contents: Contents) -> str:
    """Return the names in the ledger's header, which whoever sees the model can read; old ledgers hold whole paths."""
    config = contents.header["config"]
    own = (config["own"].get(name) for name in OWN_PATHS)
    names = (config["model"], config["data"], *own)
    return ", ".join(dict.fromkeys(str(name) for name in names if name))
