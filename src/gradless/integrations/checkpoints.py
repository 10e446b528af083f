"""Checkpoints of a run inside a training loop: the ledger, and a few numbers beside it; nothing is pickled.

A checkpoint holds ``ledger``, the scalars of all steps so far, and ``gradless.json``, the state of the method and of
the learning-rate schedule. Methods that keep tensors (stored moments, masks) add ``gradless.safetensors``. The model's
weights are saved by the loop itself; a *bare* checkpoint does without them: the ledger rebuilds them from the base
model.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gradless import ledger
from gradless.errors import BadInput
from gradless.forward.engines import AUTO, EngineChoice
from gradless.forward.random_state import RandomState
from gradless.optimizer import ZerothOrder
from gradless.ranks import Ranks
from gradless.system.atomic import replacing, write_json
from gradless.system.hashing import weights_sha256
from gradless.system.tensor_state import pack, unpack, write_tensors

LEDGER, STATE, TENSORS, INITIAL = "ledger", "gradless.json", "gradless.safetensors", "initial.safetensors"
LOOP = "trainer_state.json"  # what Trainer writes last of all
RANDOM = "random-{rank}.json.gz"  # where the random generators stood, in runs whose steps draw from them
ADAPTER = 0.1  # share of the parameters below which initial values are worth keeping


class Saved(NamedTuple):
    """A checkpoint that was read."""

    folder: Path
    contents: ledger.Contents
    state: dict[str, Any]

    @property
    def bare(self) -> bool:
        """Return whether it holds no weights."""
        return self.state["method"] is None


def header(opt: ZerothOrder, model: nn.Module, choice: dict[str, Any]) -> dict[str, Any]:
    """Return what the ledger says of the run it belongs to. Cost: one pass over all weights, for their hashes."""
    tuned = dict(_tuned(opt))
    known = {id(p) for p in tuned.values()}
    return ledger.header(
        trainer=choice,
        seed=opt.seed,
        frozen_sha256=weights_sha256((name, p) for name, p in model.named_parameters() if id(p) not in known),
        initial_sha256=tuned_sha256(opt),
        weight_decay=[float(group["weight_decay"]) for group in opt.param_groups],
        groups=len(opt.param_groups),
        tuned_parameters=sum(p.numel() for p in tuned.values()),
    )


def _tuned(opt: ZerothOrder) -> list[tuple[str, Tensor]]:
    """All parameters of an optimizer by name, those too that a callback has frozen since."""
    return [entry for group in opt.param_groups for entry in zip(group["param_names"], group["params"], strict=True)]


def tuned_sha256(opt: ZerothOrder) -> str:
    """Return the hash of the tuned parameters."""
    return weights_sha256(_tuned(opt))


def begin(
    output: Path,
    opt: ZerothOrder,
    model: nn.Module,
    choice: dict[str, Any],
    saved: Saved | None,
    *,
    bare: bool,
    ranks: Ranks | None,
) -> ledger.Ledger | None:
    """Bring a new optimizer to where its run begins, and open the run's ledger.

    Args:
        output: folder of the run.
        opt: new; its parameters hold the weights of the checkpoint or, without one or if that is bare, the first ones.
        model: the model they belong to.
        choice: the method, for the ledger's header.
        saved: checkpoint to continue from.
        bare: whether checkpoints will hold no weights.
        ranks: processes that train together; the first one writes.

    Returns:
        The ledger, if this process writes.
    """
    opt.evaluator.share(ranks)
    if ranks is not None:
        _same_start(model, ranks)
    if saved is not None and saved.bare:
        put_initial(saved.folder.parent, opt)
    own_header = header(opt, model, choice)
    if opt.engine == AUTO and (chosen := recorded_engine(saved)):
        opt.evaluator.settle(chosen)
    if saved is not None:
        restore(saved, opt, own_header)
    if ranks is not None and ranks.rank:
        return None
    output.mkdir(parents=True, exist_ok=True)
    if saved is not None:
        # A copy: steps after the checkpoint, which the interrupted run may have logged, are taken again.
        with replacing(output / LEDGER) as copied:
            shutil.copyfile(saved.folder / LEDGER, copied)
    else:
        (output / INITIAL).unlink(missing_ok=True)
        if bare:
            keep_initial(output, opt, model)
    return ledger.Ledger(output / LEDGER, own_header, contents=saved.contents if saved else None)


def recorded_engine(saved: Saved | None) -> EngineChoice | None:
    """Return how the run of a checkpoint chose its engine; None: it was named, or there is no checkpoint."""
    return None if saved is None else EngineChoice.from_json(saved.contents.header.get("engine"))


@torch.no_grad()
def _same_start(model: nn.Module, ranks: Ranks) -> None:
    """Copy the weights of the first process to all, if they differ: new layers are random in each of them."""
    digest = weights_sha256(model.named_parameters()).encode()
    if len(set(ranks.exchange(digest))) > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            torch.distributed.broadcast(tensor.detach(), src=0)


def write(folder: Path, opt: ZerothOrder, run: Path, scheduler: Any, *, bare: bool) -> None:
    """Add what continues the run to a checkpoint of the training loop.

    Args:
        folder: the checkpoint.
        opt: at the step to continue from.
        run: the folder of the run, whose ledger holds that step last.
        scheduler: the learning-rate schedule, if there is one.
        bare: whether the checkpoint has no weights, so that all steps will be replayed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != run.resolve():
        shutil.copyfile(run / LEDGER, folder / LEDGER)
    tensors: dict[str, Tensor] = {}
    method = None if bare else pack(opt.state_dict()["gradless"], tensors)
    (folder / TENSORS).unlink(missing_ok=True)
    if tensors:
        write_tensors(folder / TENSORS, tensors)
    schedule = None if scheduler is None else scheduler.state_dict()
    state = {"step": opt.t, "forwards": opt.forwards, "weights_sha256": tuned_sha256(opt)}
    write_json(folder / STATE, {**state, "schedule": schedule, "method": method})


def copy(saved: Path, folder: Path) -> None:
    """Copy the files that belong to a checkpoint's weights to a folder with a copy of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (LEDGER, STATE, TENSORS):
        if (saved / name).exists() and saved.resolve() != folder.resolve():
            shutil.copyfile(saved / name, folder / name)


def find(resume: str | os.PathLike[str] | bool | None, output: str) -> Saved | None:
    """Return the checkpoint to continue from: the given one, or for True the last complete one of the output directory.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    if resume is None or resume is False:
        return None
    if resume is not True:
        return read(Path(resume))
    folders = [path for path in Path(output).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for folder in sorted(folders, key=lambda path: -int(path.name.split("-")[1])):
        if complete(folder):
            return read(folder)
    raise BadInput(f"resume_from_checkpoint is True, but {output} holds no complete checkpoint: train without it")


def has_all(folder: Path) -> bool:
    """Return whether a checkpoint has the first and the last file that are written to it."""
    return (folder / STATE).exists() and (folder / LOOP).exists()


def complete(folder: Path) -> bool:
    """Return whether all files were written before the process ended, and none is deleted."""
    try:
        state, loop = (json.loads((folder / name).read_bytes()) for name in (STATE, LOOP))
    except (OSError, ValueError):
        return False
    if not isinstance(state, dict) or not isinstance(loop, dict) or not (folder / LEDGER).exists():
        return False
    weights = {path for pattern in ("*.safetensors", "*.bin") for path in folder.rglob(pattern)}
    return state.get("method") is None or bool(weights - {folder / TENSORS, folder / "training_args.bin"})


def read(folder: Path) -> Saved:
    """Read a checkpoint.

    Raises:
        BadInput: it was not written by a `ZOTrainer`, or is damaged.
    """
    if not (folder / STATE).exists() or not (folder / LEDGER).exists():
        raise BadInput(
            f"{folder} is not a checkpoint of ZOTrainer ({STATE} or {LEDGER} is missing): to start from its weights, "
            "load the model from it and train without resume_from_checkpoint"
        )
    contents, state = ledger.read(folder / LEDGER), _state(folder / STATE)
    if state["step"] != len(contents.moves):
        raise BadInput(
            f"{folder / LEDGER} has {len(contents.moves)} steps, not {state['step']}: restore it from a copy"
        )
    return Saved(folder, contents, state)


def _state(path: Path) -> dict[str, Any]:
    """Read what `write` wrote beside the ledger."""
    kinds = {"step": int, "forwards": int, "weights_sha256": str, "schedule": dict | None, "method": dict | None}
    try:
        state = json.loads(path.read_bytes())
        if isinstance(state, dict) and all(isinstance(state[name], kind) for name, kind in kinds.items()):
            return state
    except (ValueError, KeyError):
        pass
    raise BadInput(f"{path} is damaged: restore it from a copy, or resume from another checkpoint")


def check_weights(folder: Path, opt: ZerothOrder) -> None:
    """Refuse weights that a ledger gave, where a checkpoint says that its run had others after that step.

    Raises:
        BadInput: something else than the steps changed weights in that run.
    """
    state = _state(folder / STATE) if (folder / STATE).exists() else None
    if state is not None and state["step"] == opt.t and state["weights_sha256"] != tuned_sha256(opt):
        raise BadInput(
            f"the ledger of {folder} does not give the weights of its run, in which a callback froze weights, or wrote "
            "to them: load the saved ones"
        )


def write_random(folder: Path, ranks: Ranks | None, state: RandomState) -> None:
    """Keep where the random generators of this process stand. Cost: 10 kB, and as much for each accelerator."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RANDOM.format(rank=0 if ranks is None else ranks.rank)
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(state.to_bytes(), mtime=0))


def random(folder: Path, ranks: Ranks | None, present: RandomState) -> RandomState | None:
    """Return where the generators stood, for the devices of ``present``; None if the run did not draw from them.

    Raises:
        BadInput: the file is damaged.
    """
    path = folder / RANDOM.format(rank=0 if ranks is None else ranks.rank)
    try:
        return present.replaced(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError):
        raise BadInput(
            f"{path} is damaged, or of other devices: restore it from a copy, or delete it to go on with other "
            "random numbers"
        ) from None


def restore(saved: Saved, opt: ZerothOrder, own_header: dict[str, Any]) -> None:
    """Bring a new optimizer to the step of a checkpoint.

    Args:
        saved: the checkpoint.
        opt: new; its parameters hold the checkpoint's weights or, if that is bare, the base model's.
        own_header: `header` of this optimizer.

    Raises:
        BadInput: another method, seed or model, or other weights than the checkpoint was written with.
    """
    if saved.bare:
        check_base(saved.contents.header, own_header, saved.folder)
        opt.replay(saved.contents.moves)
        opt.evaluator.forwards = saved.state["forwards"]
    else:
        check_run(saved.contents.header, own_header)
        try:
            tensors = load_file(saved.folder / TENSORS) if (saved.folder / TENSORS).exists() else {}
            opt.load_state_dict({**opt.state_dict(), "gradless": unpack(saved.state["method"], tensors)})
        except BadInput:
            raise
        except (SafetensorError, LookupError, TypeError, ValueError, AttributeError):
            raise BadInput(
                f"{saved.folder / STATE} or {TENSORS} beside it is damaged: restore them from a copy, or resume from "
                "another checkpoint"
            ) from None
    if tuned_sha256(opt) != saved.state["weights_sha256"]:
        raise BadInput(
            f"the weights are not those of step {saved.state['step']} of {saved.folder}: restore it from a copy"
        )


def check_run(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse the ledger of another run; both are headers.

    Raises:
        BadInput: with what differs.
    """
    ledger.check_release(then)
    for key in ("trainer", "seed", "weight_decay", "tuned_parameters"):
        if then[key] != now[key]:
            raise BadInput(f"the checkpoint belongs to a run with {key} {then[key]}, not {now[key]}: use the same")
    if then["frozen_sha256"] != now["frozen_sha256"]:
        raise BadInput("the frozen weights differ from those of the checkpoint's run: load the same base model")


def check_base(then: dict[str, Any], now: dict[str, Any], folder: str | Path) -> None:
    """`check_run`, and refuse a model that does not hold the weights that the run began with.

    Raises:
        BadInput: with what differs.
    """
    check_run(then, now)
    if then["initial_sha256"] != now["initial_sha256"]:
        raise BadInput(
            f"the model's tuned weights are not those that the run of {folder} began with: load the same base model, "
            "and call transformers.set_seed before you make layers or adapters with random weights"
        )


def keep_initial(folder: Path, opt: ZerothOrder, model: nn.Module) -> None:
    """Keep the random values that adapters begin with, for bare checkpoints; other weights come from the base model."""
    tuned = sum(leaf.param.numel() for leaf in opt.leaves)
    if tuned < ADAPTER * sum(p.numel() for p in model.parameters()):
        write_tensors(folder / INITIAL, {leaf.name: leaf.param.detach().contiguous() for leaf in opt.leaves})


@torch.no_grad()
def put_initial(folder: Path, opt: ZerothOrder) -> None:
    """Copy the kept initial values into the parameters, if there are any for these."""
    values = load_file(folder / INITIAL) if (folder / INITIAL).exists() else {}
    if values.keys() == {leaf.name for leaf in opt.leaves}:
        for leaf in opt.leaves:
            leaf.param.copy_(values[leaf.name])
