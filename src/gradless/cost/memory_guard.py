"""Whether a job fits into the memory of this machine, asked before its weights are read.

Without it the system's out-of-memory killer ends a run after minutes, without a word. What is counted is a lower bound:
weights as they are kept, without those in mapped files, which the system can drop and read again, and what
`gradless.cost.plan` says of the engine that takes least, for short sequences where no length is given. So what is
refused does not fit; what passes may still not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from gradless.cost import stored_bytes
from gradless.cost.settings import PlanSettings
from gradless.errors import BadInput
from gradless.forward.engines import AUTO, STREAM
from gradless.lm import assets, checkpoint_files, gguf_file, gguf_layout, hub_ids, tiny_models
from gradless.lm.devices import device_of
from gradless.lm.model_names import is_gguf
from gradless.methods import METHODS
from gradless.runs.config import TuneConfig
from gradless.runs.scheme_settings import STORED
from gradless.storage.gguf_blocks import FORMATS
from gradless.storage.stored import SCRATCH_BYTES
from gradless.system import machine
from gradless.system.cache import cache_root

LENGTH: Final = 32
"""Tokens of a sequence where nothing says how many there are."""
NEAR: Final = 0.75
"""The share of the free memory from which on weights that fit are not enough to tell."""
GB: Final = 1e9
FLOAT: Final = 4
HALF: Final = 2
HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
DECODED: Final = "decoded"
"""Type of a weight in a GGUF file: in memory it has the one that is asked for."""
TYPES: Final = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
ITEMSIZE: Final = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, DECODED: 0}
EMBEDDINGS: Final = re.compile(r"(embed\w*|wte|wpe|lm_head|output)\.weight$")
"""Matrices that are not quantised as they are loaded."""


class Tensor(NamedTuple):
    """A weight in a file."""

    name: str
    size: int
    dtype: str
    """torch's name, or that of the file for codes."""
    matrix: bool
    nbytes: int
    form: str = ""
    """ggml's name of its format, in a GGUF file."""


class Job(NamedTuple):
    """What is to run."""

    settings: PlanSettings
    tunes: bool
    """Whether weights are tuned; else they are only read."""
    processes: int = 1
    """On this machine, each with weights of its own."""


def check(config: TuneConfig, *, tunes: bool = True) -> None:
    """Refuse a run that does not fit.

    Args:
        config: of the run.
        tunes: False for an evaluation.

    Cost: milliseconds, by the headers of the files; the seconds of one plan where weights take most of what is free, or
    where the model is on the hub and not here yet.

    Raises:
        BadInput: with what is needed, what is free, and what would fit.
    """
    named = ("model", "method", "scheme", "dtype", "device", "quantise", "offload", "rank")
    settings = PlanSettings(
        **{name: getattr(config, name) for name in named},
        batch_size=config.micro_batch_size or config.batch_size,
        length=config.max_length or LENGTH,
        engine=STREAM if config.engine in (None, AUTO) else config.engine,
        objective="lm" if config.objective == "lm" else "option_ce",
    )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if tunes and config.device == "cpu" else 1
    check_job(Job(settings, tunes, processes))


def check_job(job: Job) -> None:
    """`check` for any job.

    Raises:
        BadInput: it does not fit.
    """
    model = job.settings.model
    if tiny_models.is_name(model) or (free := _free(job.settings.device)) is None:
        return
    try:
        stays = is_gguf(model) and job.settings.dtype is None and not _fields(job)
        tensors = [] if stays else _tensors(model)
        need = _need(job, tensors)
    except (BadInput, OSError, ValueError, KeyError, TypeError, AttributeError):  # the job itself says what is wrong
        return
    working = _working(job) if NEAR * free < need <= free else 0  # else weights alone decide
    if need + working <= free:
        return
    others = {flags: _least(job, changed, tensors, working) for flags, changed in _ways(job)}
    listed = ", ".join(f"{flags} ({_gb(other)})" for flags, other in others.items() if other <= free)
    raise BadInput(
        f"{model} needs at least {_gb(need + working)} of memory, and {_gb(free)} are free here: "
        f"{listed + ' would fit' if listed else 'choose a smaller model'}, and --force goes on all the same"
    )


def _least(job: Job, changed: Job, tensors: list[Tensor], working: int) -> int:
    """Return what a changed job takes, where working memory goes with the size of the batch."""
    return _need(changed, tensors) + working * changed.settings.batch_size // job.settings.batch_size


def _gb(count: int) -> str:
    return f"{count / GB:.1f} GB" if count >= GB / 10 else "the rest stays in its files"


def _free(device: str) -> int | None:
    """Return the bytes that are free on a device, or on all of ``auto``; None where nothing tells."""
    if device == "auto":
        if not torch.cuda.is_available():
            return machine.free_memory(torch.device("cpu"))
        return sum(machine.free_memory(torch.device("cuda", i)) or 0 for i in range(torch.cuda.device_count()))
    target = device_of(device)
    return machine.free_memory(target) if target.type in ("cpu", "cuda") else None


def _need(job: Job, tensors: list[Tensor]) -> int:
    """Return the least bytes that a job takes and nothing can drop, by the headers of its files alone."""
    settings = job.settings
    on_cpu, tuned = settings.device == "cpu", job.tunes and settings.scheme == "full"
    wanted = settings.dtype or ("float32" if on_cpu else None)
    bytes_, largest = 0, 0
    for tensor in tensors:
        kind = wanted or tensor.dtype
        size = tensor.size * ITEMSIZE.get(kind, FLOAT)
        if tensor.dtype == DECODED and settings.dtype is None:  # in place
            size = _field_bytes(tensor, settings.scheme) if _fields(job) else 0
        elif tensor.matrix and settings.offload:
            largest, size = max(largest, size), 0
        elif tensor.matrix and settings.quantise and not EMBEDDINGS.search(tensor.name):
            largest, size = max(largest, size), stored_bytes.of_codes(tensor.size, settings.quantise)
        elif tensor.dtype not in ITEMSIZE:  # codes, which stay as they are
            size = 0 if on_cpu else tensor.nbytes
        elif on_cpu and kind == tensor.dtype and not tuned:  # mapped, and never written
            size = 0
        bytes_ += size
        if tuned:
            bytes_ += round(METHODS[settings.method].copies * FLOAT) * tensor.size
    return (bytes_ + min(largest, SCRATCH_BYTES)) * job.processes


def _fields(job: Job) -> bool:
    """Return whether numbers of the blocks of a GGUF file are tuned, which are in memory beside the file."""
    return job.tunes and job.settings.scheme in STORED


def _field_bytes(tensor: Tensor, scheme: str) -> int:
    """Return what is tuned of a weight: a byte for each code, or two for the factor of each block."""
    form = FORMATS.get(tensor.form)
    if form is None or form.split is None or not tensor.matrix:
        return 0
    return tensor.size if scheme == "codes" else HALF * (tensor.size // form.weights)


def _working(job: Job) -> int:
    """Return what forwards and an update need beside the weights; 0 where that cannot be known without weights.

    Cost: seconds.
    """
    from gradless.cost import plan

    try:
        subject = plan.subject(_on_device(job.settings), job.settings.scheme)
        if job.tunes:
            need = plan.of_method(subject, job.settings.method, job.settings.engine, "")
            return (need.total - need.weights - need.state) * job.processes
        return plan.inference(subject).activations * job.processes
    except (BadInput, ValueError, RuntimeError, OSError, AttributeError, TypeError, KeyError):
        return 0  # loading the model says what is wrong, or nothing is


def _on_device(settings: PlanSettings) -> PlanSettings:
    """Return the settings with the type that weights have on a device if none is named."""
    if settings.dtype is None and settings.device == "cpu":
        return dataclasses.replace(settings, dtype="float32")
    return settings


# ------------------------------------------------------------------------------------------------------------
# what a model consists of


def _tensors(model: str) -> list[Tensor]:
    """Return the weights of a model by the headers of its files; none of one that is not here.

    Of a hub id whose weights are not here its configuration tells their shapes.
    """
    path = Path(model).expanduser()
    if model in assets.ASSETS:
        asset = assets.ASSETS[model]
        path = assets.cached_folder(asset, model, cache_root()) / asset.entry
    if path.is_file():
        return _of_gguf(path) if is_gguf(model) else []
    if (path / checkpoint_files.ADAPTER).is_file():
        base = checkpoint_files.read_json(path / checkpoint_files.ADAPTER)
        name = base.get("base_model_name_or_path") if isinstance(base, dict) else None
        return _tensors(name) if isinstance(name, str) and name != model else []
    if path.is_dir():
        return [tensor for file in sorted(path.glob("*.safetensors")) for tensor in _header(file)]
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        return []
    return _of_hub(model)


def _of_gguf(path: Path) -> list[Tensor]:
    return [
        Tensor(tensor.name, int(tensor.n_elements), DECODED, len(tensor.shape) > 1, int(tensor.n_bytes), form.name)
        for tensor, form in ((one, gguf_layout.format_of(one)) for one in gguf_file.read(path).tensors)
    ]


def _of_hub(model: str) -> list[Tensor]:
    from huggingface_hub import try_to_load_from_cache

    from gradless.cost import meta_models

    name, revision = hub_ids.split(model)
    kept = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(kept, str) and (files := sorted(Path(kept).parent.glob("*.safetensors"))):
        return [tensor for file in files for tensor in _header(file)]
    built = meta_models.load(model)
    kind = str(built.dtype).removeprefix("torch.")
    return [
        Tensor(name, p.numel(), kind, p.ndim > 1, p.numel() * p.itemsize) for name, p in built.model.named_parameters()
    ]


def _header(file: Path) -> list[Tensor]:
    """Return what the header of a file in the format safetensors lists: eight bytes of its length, then JSON."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= HEADER_BYTES:
            return []
        listed = json.loads(stream.read(length))
    tensors = []
    for name, entry in listed.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            kind = TYPES.get(entry["dtype"], entry["dtype"])
            tensors.append(Tensor(name, math.prod(entry["shape"]), kind, len(entry["shape"]) > 1, end - start))
    return tensors


# ------------------------------------------------------------------------------------------------------------
# what a user can change


def _ways(job: Job) -> list[tuple[str, Job]]:
    """Return options, the least change first, and the job that they make."""
    settings = job.settings
    lora = {"scheme": "lora"} if job.tunes and settings.scheme == "full" else {}
    flags = "--scheme lora " if lora else ""
    changes: list[tuple[str, dict[str, Any]]] = []
    if settings.batch_size > 1:
        changes.append(("--micro-batch-size 1" if job.tunes else "--batch-size 1", {"batch_size": 1}))
    if _fields(job):
        less = [scheme for scheme in ("scales", "lora") if scheme != settings.scheme]
        changes += [(f"--scheme {scheme}", {"scheme": scheme}) for scheme in less]
    elif settings.dtype is None or settings.dtype == "float32":
        changes.append(("--dtype bfloat16", {"dtype": "bfloat16"}))
    if lora:
        changes.append(("--scheme lora", lora))
        changes.append(("--scheme lora --dtype bfloat16", {**lora, "dtype": "bfloat16"}))
    if is_gguf(settings.model) and settings.dtype is not None:
        changes.append((f"{flags}without --dtype", {**lora, "dtype": None}))
    elif not is_gguf(settings.model) and not settings.quantise and not settings.offload:
        changes.append((f"{flags}--quantise nf4", {**lora, "quantise": "nf4"}))
        changes.append((f"{flags}--offload disk", {**lora, "offload": "disk"}))
    return [(name, job._replace(settings=dataclasses.replace(settings, **change))) for name, change in changes]
