"""The memory that a way of tuning needs, from the model's configuration alone.

The model is built on torch's meta device, where tensors have shapes but no data, and one forward, or a forward and its
backward pass, is run there while every tensor is counted (`gradless.cost.footprint`). So the activations are those of
the model's own code, whatever its architecture, and nothing is downloaded or allocated. B sequences of L tokens, hidden
size h, vocabulary V. Terms, in bytes:

* **weights**: elements x bytes of their type, summed over all parameters, tied ones once, adapters included.
* **activations**, of forwards: the most that is alive at once in one forward. Of backpropagation: what is alive between
  the forward and the backward pass, the tensors saved for it. For a Transformer layer as GPT-2's, in 16 bits and with
  eager attention, that is B L h (34 + 5 a L / h), with a heads (Korthikanti et al. 2022, arXiv 2205.05198, with
  dropout); fused attention saves no term in L^2. With activation checkpointing: B L h values for each block, and all of
  one block while it is computed again (Chen et al. 2016, arXiv 1604.06174). With the objective ``option_ce`` only
  hidden states of scored tokens reach the output layer, and only the candidates' rows of it; with ``lm`` every token
  has V float32 logits, which forwards make in parts of at most 256 MB and backpropagation keeps.
* **gradients**: the tuned weights once more, in their type.
* **optimizer state**: for Adam two float32 moments a tuned weight, and a float32 master copy of 16-bit ones (mixed
  precision: Micikevicius et al. 2018, arXiv 1710.03740; 16 bytes a weight in all: Rajbhandari et al. 2020, arXiv
  1910.02054). For a gradless method what its rule stores: `Method.copies` float32 tensors, and a byte a weight of
  masks; none of them keeps master copies, since updates round stochastically.
* **scratch**: perturbed copies that an engine serves to forwards (`gradless.forward.perturbed`). Leaves of up to
  `SMALL` elements are there all together; of larger ones as many as are visited in a row, at most `ROW` elements or
  one leaf that has more. Tables that are read by rows have copies of at most B L rows. A low-rank direction of a
  linear layer takes its factors. All of that once for each point that is evaluated at once: one with the engine
  ``stream``, 2 K with ``dual`` for K directions, whose activations are in memory together, too. ``in-place`` keeps a
  copy of the tuned weights and makes one leaf at a time. Forward-mode slopes take a tangent of the largest leaf. A
  rule that is not linear in the directions needs `TEMPORARIES` float32 copies of the largest leaf in its update, when
  activations have gone.

The **total** is the peak: weights and state, and the larger of what forwards (and backwards) and the update need. With
backpropagation it may be less than the sum, because activations are freed while gradients are made.

Left out: the runtime (a CUDA context; Python, torch and transformers), workspaces inside kernels, fragmentation, the
tokenizer, the data, and a checkpoint's pages that stay mapped. `benchmarks/plan.py` compares with measured peaks.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from torch import Tensor, nn

from gradless.cost import footprint, meta_models, stored_bytes
from gradless.cost.footprint import Batch
from gradless.cost.settings import PlanSettings as Settings
from gradless.cost.stored_bytes import Stored
from gradless.errors import BadInput
from gradless.forward.batched import SMALL
from gradless.forward.block_order import last_units
from gradless.forward.engines import DUAL, IN_PLACE, MOST_COPIES
from gradless.forward.live_memory import Live
from gradless.forward.read_order import ROW
from gradless.lm import LanguageModel, compute_types, quiet_transformers, schemes
from gradless.lm.devices import parsed
from gradless.lm.encode import length_limit
from gradless.lm.weight_storage import Storage
from gradless.methods import FIRST, FORWARD, HYBRID, METHODS, Method
from gradless.optimizer import ZerothOrder
from gradless.runs.config import TuneConfig
from gradless.runs.fixed_engine import fixed_engine
from gradless.runs.scheme_settings import STORED
from gradless.system import typed

BUDGETS: Final = ("8GB", "16GB", "24GB", "40GB", "80GB")
LABELS: Final = (0, 1)
FLOAT: Final = 4
TEMPORARIES: Final = 3
UNITS: Final = {
    **{"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12},
    **{"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40},
}
MOST_GB: Final = 10**5
"""A number alone above it was meant in bytes, and not in GB."""


class Need(NamedTuple):
    """What one way of tuning needs, in bytes; the module explains the terms."""

    name: str
    weights: int
    gradients: int
    state: int
    activations: int
    scratch: int
    total: int
    tuned: int  # parameters

    def fits(self, budget: int) -> bool:
        """Return whether the total is within ``budget`` bytes."""
        return self.total <= budget


class Plan(NamedTuple):
    """What several ways of using one model need."""

    settings: Settings
    parameters: int
    dtype: str
    engine: str
    needs: tuple[Need, ...]

    def need(self, name: str) -> Need:
        """Return the need of the way of that name."""
        return next(need for need in self.needs if need.name == name)


class Subject(NamedTuple):
    """A model without weights under a scheme."""

    lm: LanguageModel
    tuned: list[tuple[str, nn.Parameter]]
    batch: Batch
    stored: Stored

    @property
    def weights(self) -> int:
        """Return the bytes of all parameters as they are kept, adapters included."""
        return self.stored.weights

    @property
    def elements(self) -> int:
        """Return the number of tuned weights."""
        return sum(p.numel() for _, p in self.tuned)


def plan(settings: Settings) -> Plan:
    """Plan inference, the method under its scheme, and Adam, with LoRA and over all weights, checkpointed and not.

    Cost: a few seconds, whatever the model's size; no weights are made. LoRA is left out where the architecture has no
    projections of a known name; what does not go with the adapter that a model has is left out, too.

    Raises:
        BadInput: anything wrong with the settings or the model, or a model whose forward depends on values.

    Example:
        >>> tiny = plan(Settings(model="tiny-llama", batch_size=4, length=16))
        >>> print(*(need.name for need in tiny.needs), sep="; ")
        inference; mezo, full; adam, lora, checkpointed; adam, lora; adam, all weights, checkpointed; adam, all weights
        >>> tiny.needs[0].total < tiny.needs[1].total < tiny.needs[5].total
        True
    """
    typed.check(settings)
    if settings.device != "auto":
        parsed(settings.device)  # it need not be here
    with quiet_transformers():
        return _plan(settings)


def _plan(settings: Settings) -> Plan:
    # An in-place adapter changes the model, so each scheme has a model of its own.
    own = subject(settings, settings.scheme)
    full, lora = (own if settings.scheme == scheme else _if_it_fits(settings, scheme) for scheme in ("full", "lora"))
    coded = own.lm.layout is not None or own.stored.buffer > 0  # quantised, or elsewhere
    read = (lora or own) if coded else (full or own)  # what codes are tuned by is not read
    asked = {name: getattr(settings, name) for name in ("model", "method", "device", "engine")}
    engine = fixed_engine(TuneConfig(**asked))
    needs = [
        inference(read),
        of_method(own, settings.method, engine, f"{settings.method}, {settings.scheme}"),
        *_adams(lora, "lora"),
        *_adams(full, "all weights"),
    ]
    return Plan(settings, (full or read).lm.num_parameters, own.lm.dtype_name, engine, tuple(needs))


def subject(settings: Settings, scheme: str) -> Subject:
    """Build the model and apply a scheme.

    Raises:
        BadInput: no such model, or a length that it does not take.
    """
    base = meta_models.load(settings.model, dtype=settings.dtype, attention=settings.attention)
    compute_types.apply(base, settings.compute_dtype)
    if settings.objective == "lm" and base.masked:
        raise BadInput(f"{base.name} is a masked model, which has no objective lm: use option_ce")
    Storage(settings.quantise, settings.offload).check_source(settings.model)
    if scheme == "full" and base.files:
        raise BadInput(
            f"the weights of {base.name} stay in their GGUF file, where the scheme full has nothing to tune: use "
            f"--scheme lora, {' or '.join(STORED)}, or --dtype float32 for weights in floats"
        )
    if scheme == "full":  # of a known name, which is decoded for it
        base.layout = None
    with Live():  # answers what transformers asks about masks
        sizes = {name: getattr(settings, name) for name in ("rank", "num_prefix", "num_prompt")}
        model = schemes.apply(base, scheme, label_token_ids=LABELS, **sizes)
    limit = length_limit(model, max(settings.length, 2))
    if settings.length > limit:
        raise BadInput(f"--length {settings.length} is more than the {limit} tokens that {base.name} takes: lower it")
    batch = Batch(settings.batch_size, settings.length, settings.objective == "lm")
    stored = stored_bytes.of_model(model, settings.quantise, settings.offload)
    if scheme in STORED:  # perturbed numbers of the largest weight, which no function of the model here reads
        copies = 2 * max(p.numel() * p.itemsize for _, p in schemes.trainable(model))
        stored = stored._replace(buffer=stored.buffer + copies)
    if scheme == "full" and stored.buffer:
        raise BadInput(f"{base.name} is quantised, so the scheme full has nothing to tune: use --scheme lora")
    return Subject(model, schemes.trainable(model), batch, stored)


def size(text: str) -> int:
    """Return the bytes of a size in words; a number alone is in GB.

    Raises:
        BadInput: it is no size, or a number alone that can only be bytes.

    Example:
        >>> size("24GB"), size("24 GiB"), size("512m"), size("24")
        (24000000000, 25769803776, 512000000, 24000000000)
    """
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([KMGT]I?B?|B)?\s*", text.upper())
    if match is None or not float(match[1]):
        raise BadInput(f"'{text}' is no size of a memory: write 24 (GB), 24GiB or 500MB")
    number, unit = float(match[1]), match[2] or "GB"
    if not match[2] and number > MOST_GB:
        raise BadInput(f"'{text}' without a unit would be {text.strip()} GB: write {text.strip()}B if it is bytes")
    return round(number * UNITS[unit.removesuffix("B")])


# ---------------------------------------------------------------------------------------------------------------
# ways


def inference(subject: Subject) -> Need:
    """Return what one forward without gradients needs."""
    peak = footprint.forward_peak(subject.lm, subject.batch) + subject.stored.buffer
    return Need("inference", subject.weights, 0, 0, peak, 0, subject.weights + peak, 0)


def adam(subject: Subject, name: str, *, checkpoint: bool = False) -> Need:
    """Return what Adam by backpropagation needs, in mixed precision for 16-bit weights; its update is fused."""
    state = sum(p.numel() * (2 * FLOAT + (FLOAT if p.itemsize < FLOAT else 0)) for _, p in subject.tuned)
    return _backprop(subject, name, state, 0, checkpoint=checkpoint)


def _adams(subject: Subject | None, what: str) -> list[Need]:
    if subject is None:
        return []
    return [adam(subject, f"adam, {what}, checkpointed", checkpoint=True), adam(subject, f"adam, {what}")]


def of_method(subject: Subject, name: str, engine: str, label: str) -> Need:
    """Return what a method of gradless needs under its scheme.

    Args:
        subject: the model under the scheme.
        name: a key of `gradless.methods.METHODS`.
        engine: one of `gradless.forward.engines.ENGINES`.
        label: what the way is to be called.
    """
    method = METHODS[name]
    toy = _toy(method)
    if method.family == FIRST:
        state = round((method.copies - 1) * FLOAT) * subject.elements  # one of its copies is the gradient
        return _backprop(subject, label, state, TEMPORARIES, checkpoint=method.checkpoint)
    masks = subject.elements if any(leaf.mask is not None for leaf in toy.leaves) else 0
    deep = _deep(subject, method) if method.family == HYBRID else None
    stored = subject.elements if deep is None else deep.elements
    state = round((method.copies - (1 if deep else 0)) * FLOAT) * stored + masks
    points = (
        min(MOST_COPIES, toy.estimator.forwards(toy.estimator.queries(0))) if engine == DUAL and deep is None else 1
    )
    # Tangents of forward mode lie beside the values, layer by layer, and no fused attention makes them.
    tangents = method.family == FORWARD
    batch = subject.batch._replace(copies=2 if tangents else points)
    activations = footprint.forward_peak(subject.lm, batch, fused=not tangents)
    scratch, kept = _scratch(subject, toy, engine, points)
    scratch += subject.stored.buffer
    largest = max(p.numel() for _, p in subject.tuned)
    if tangents:
        scratch = max(scratch, FLOAT * largest)
    working = activations + scratch
    if not toy.rule.linear:
        working = max(working, TEMPORARIES * FLOAT * largest + kept)
    gradients = 0
    if deep is not None:
        back = _deep_traced(subject, deep)
        gradients, working = back.gradients, max(working + back.gradients, back.peak + subject.stored.buffer)
        activations = max(activations, back.saved)
    total = subject.weights + state + working
    return Need(label, subject.weights, gradients, state, activations, scratch, total, subject.elements)


def _backprop(subject: Subject, name: str, state: int, temporaries: int, *, checkpoint: bool) -> Need:
    back = _traced(subject, checkpoint=checkpoint)
    update = back.gradients + temporaries * FLOAT * max(p.numel() for _, p in subject.tuned)
    decoded = subject.stored.buffer
    total = subject.weights + state + max(back.peak + decoded, update)
    return Need(name, subject.weights, back.gradients, state, back.saved, decoded, total, subject.elements)


def _traced(subject: Subject, *, checkpoint: bool) -> footprint.Backward:
    return footprint.backward(subject.lm, [p for _, p in subject.tuned], subject.batch, checkpoint=checkpoint)


def _deep_traced(subject: Subject, deep: Subject) -> footprint.Backward:
    """Return what backpropagation through the deep part alone needs."""
    inside = {name for name, _ in deep.tuned}
    for name, p in subject.tuned:
        p.requires_grad_(name in inside)
    back = _traced(deep, checkpoint=False)
    for _, p in subject.tuned:
        p.requires_grad_(True)
    return back


def _deep(subject: Subject, method: Method) -> Subject:
    """Return the part of a hybrid that has gradients."""
    with Live():
        names = last_units([name for name, _ in subject.tuned], method.options()["deep_units"], subject.lm.model)
    return subject._replace(tuned=[(name, p) for name, p in subject.tuned if name in names])


# ---------------------------------------------------------------------------------------------------------------
# what an engine serves


def _scratch(subject: Subject, toy: ZerothOrder, engine: str, points: int) -> tuple[int, int]:
    """Return the bytes of perturbed copies (see the module), and how many of them stay allocated between forwards."""
    if engine == IN_PLACE:
        return sum(_bytes(p) for _, p in subject.tuned) + max(_bytes(p) for _, p in subject.tuned), 0
    stream = toy.leaves[0].stream
    small = {id(p): _bytes(p) for _, p in subject.tuned if p.numel() <= SMALL}
    held, buffers, tables = sum(small.values()) * points, [0], [0]
    seen: set[int] = set()
    large: list[Tensor] = []
    for read in footprint.reads(subject.lm, [p for _, p in subject.tuned], subject.batch):
        p = read.param
        if id(p) in small or id(p) in seen:
            continue
        if not read.whole:
            tables.append(_bytes(p[:1]) * min(len(p), subject.batch.rows * subject.batch.length) * points)
            continue
        seen.add(id(p))
        if read.linear and stream.kind == "low_rank":
            rows, columns = p.shape
            held += FLOAT * stream.rank * (columns + rows * (points + 1))
        else:
            large.append(p)
    row = 0
    for p in large:
        row = row + p.numel() if row + p.numel() <= ROW else p.numel()
        buffers.append(row * p.itemsize * points)
    return held + max(*buffers, *tables), max(buffers)


def _toy(method: Method) -> ZerothOrder:
    """Return the method over a few small layers, to see its number of points, its directions and its masks."""
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(6))})
    make: Any = method.make
    optimizer: ZerothOrder = make(model.named_parameters(), lr=1e-3, eps=1e-3)
    return optimizer


def _if_it_fits(settings: Settings, scheme: str) -> Subject | None:
    try:
        return subject(settings, scheme)
    except BadInput:  # no query and value projections of a known name, or an adapter that the scheme has no place for
        return None


def _bytes(p: Tensor) -> int:
    return p.numel() * p.itemsize
