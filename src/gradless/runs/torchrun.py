"""A run on several processes: joining and leaving them, checks, and one run directory; `gradless.ranks` does the rest.

Rank 0 alone works in the run directory. Every other rank works in a temporary folder that begins as a copy of it and
is thrown away at the end, so that machines need not share a disk, and no part of a run knows on which rank it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from safetensors.torch import load, save

from gradless import ranks as sharing
from gradless.errors import BadInput, BrokenRanks, pick
from gradless.estimators import FORWARD_MODE
from gradless.lm import schemes
from gradless.methods import FORWARD, METHODS
from gradless.ranks import BATCH, SPLITS, Ranks
from gradless.ranks import agreed as agreed
from gradless.runs import build
from gradless.runs.build import Model
from gradless.runs.config import TuneConfig, difference
from gradless.system.signals import interrupting

TIMEOUT: Final = 600.0  # seconds that ranks wait for each other
MIRRORED: Final = ("config.json", "ledger", "metrics.jsonl", "result.json", build.INITIAL, build.NORMS)
AGAIN: Final = 2.0  # seconds in which a second signal is the same Ctrl-C, passed on by the launcher


@contextlib.contextmanager
def joined(device: str, split: str, timeout: float = TIMEOUT) -> Iterator[Ranks | None]:
    """Join the processes that torchrun (or whoever sets its environment variables) started; None if this one is alone.

    ``cuda`` becomes the GPU of the local rank. SIGTERM is taken like Ctrl-C, so that a run notes where it stopped.

    Args:
        device: what the user gave.
        split: ``batch`` or ``directions``.
        timeout: seconds after which a rank that does not answer is given up.

    Raises:
        BadInput: fewer GPUs than processes, an impossible timeout, or half a set of environment variables.
        BrokenRanks: the others did not come in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise BadInput(f"WORLD_SIZE is set but {missing[0]} is not: start the job with torchrun")
    seconds = timeout if timeout > 0 else TIMEOUT  # refused below, by all ranks in one voice
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except RuntimeError as error:
        raise BrokenRanks(f"the other ranks did not come within {seconds:g} s: start them all") from error
    try:
        ranks = sharing.group()
        assert ranks is not None
        with warnings.catch_warnings(), interrupting(signal.SIGTERM, signal.SIGINT, apart=AGAIN):
            if ranks.rank:  # rank 0 speaks for all
                warnings.simplefilter("ignore")
            with ranks.agreed():
                if not timeout > 0:
                    raise BadInput(f"--timeout is {timeout:g}: it must be positive")
                ranks.split = pick("split", split, {name: name for name in SPLITS})
                _choose_gpu(device, ranks.rank)
            yield ranks
    finally:
        dist.destroy_process_group()


def _choose_gpu(device: str, rank: int) -> None:
    if device == "auto" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise BadInput("--device auto spreads one model over all GPUs: start one process a machine, or use cuda")
    if device != "cuda" or not torch.cuda.is_available():  # other names are checked where the model is loaded
        return
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", rank))
    if local >= gpus:
        raise BadInput(f"local rank {local} has no GPU of its own ({gpus} found): start {gpus} processes a machine")
    torch.cuda.set_device(local)


def check(config: TuneConfig, ranks: Ranks | None) -> None:
    """Refuse runs that several processes cannot share.

    Raises:
        BadInput: with the way out.
    """
    if ranks is None:
        return
    if not METHODS[config.method].replays:
        raise BadInput(f"{config.method} stores gradients, which are no scalars to share: use one process")
    if ranks.split == BATCH and config.batch_size < ranks.size:
        raise BadInput(
            f"a batch of {config.batch_size} cannot be split over {ranks.size} ranks: raise --batch-size to at least "
            f"{ranks.size}, or use --split directions"
        )


def idle(config: TuneConfig, model: Model, ranks: Ranks | None) -> str:
    """Return a warning if a step has fewer points than ranks, else ``""``."""
    if ranks is None or ranks.split == BATCH:
        return ""
    estimator, forward = model.optimizer.estimator, METHODS[config.method].family == FORWARD
    points = estimator.forwards(estimator.queries(config.steps)) // (FORWARD_MODE if forward else 1)
    if points >= ranks.size:
        return ""
    return (
        f"a step evaluates {points} points, so {ranks.size - points} of {ranks.size} ranks have nothing to do: raise "
        "--queries, or use --split batch"
    )


def check_same(header: dict[str, Any], ranks: Ranks | None) -> None:
    """Refuse ranks that began with different things; inside no `Ranks.agreed`, as it is collective itself.

    Raises:
        BadInput: with what differs, such as the base model's hash or the data's.
    """
    if ranks is None:
        return
    first, *others = (json.loads(text) for text in ranks.exchange(json.dumps(header).encode()))
    with ranks.agreed():
        for rank, other in enumerate(others, 1):
            # Where files and GPUs are is each machine's own business: `difference` leaves it out.
            changed = difference(TuneConfig.from_json(first["config"]), TuneConfig.from_json(other["config"]))
            if changed:
                raise BadInput(f"rank {rank} has other settings than rank 0 ({changed}): start all with one command")
            name = next((name for name in header if name != "config" and other[name] != first[name]), None)
            if name is not None:
                raise BadInput(
                    f"rank {rank} has another {name} than rank 0 ({str(other[name])[:60]} instead of "
                    f"{str(first[name])[:60]}): give all machines the same model, data and gradless"
                )


@contextlib.contextmanager
def mirrored(folder: Path, ranks: Ranks | None) -> Iterator[Path]:
    """Yield the run directory on rank 0, and a temporary copy of what a run reads from it on all others."""
    if ranks is None:
        yield folder
        return
    files = {name: folder / name for name in MIRRORED} if not ranks.rank and folder.is_dir() else {}
    held = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    head = json.dumps({name: len(data) for name, data in held.items()}).encode()
    sizes = json.loads(ranks.broadcast(head))
    body = ranks.broadcast(b"".join(held.values()))
    if not ranks.rank:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gradless-rank-") as scratch:
        copy, start = Path(scratch) / "run", 0
        for name, size in sizes.items():
            copy.mkdir(exist_ok=True)
            (copy / name).write_bytes(body[start : start + size])
            start += size
        yield copy


def adopt_initial(config: TuneConfig, model: Model, ranks: Ranks | None) -> Model:
    """Copy to every rank those initial values of rank 0 that another machine may compute differently.

    These are what `gradless.runs.build.keep_initial` keeps: prefixes, and the norms that masks are made from.
    """
    if ranks is None or not (config.scheme == "prefix" or model.norms is not None):
        return model
    tensors = build.tuned_tensors(model) if config.scheme == "prefix" else {}
    initial = load(ranks.broadcast(save({name: t.cpu() for name, t in tensors.items()})))
    norms = load(ranks.broadcast(save(model.norms or {}))) or None
    with torch.no_grad():
        for leaf in model.optimizer.leaves:
            if leaf.name in initial:
                leaf.param.copy_(initial[leaf.name])
    opt = build.optimizer(config, schemes.trainable(model.lm), norms)  # it has looked at the old values
    if model.optimizer.evaluator.prefix is not None:
        opt.reuse_prefixes(model.lm.model)
    return model._replace(optimizer=opt, norms=norms)
