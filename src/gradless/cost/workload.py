"""What `gradless profile` measures: a model with random tokens, and the candidates that take a step on it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradless import directions, lm, methods, rng
from gradless.cost import eager_mezo
from gradless.cost.settings import EAGER, FLOOR
from gradless.cost.settings import ProfileSettings as Settings
from gradless.cost.turns import Candidate, two_forwards
from gradless.errors import BadInput
from gradless.lm import LanguageModel, compute_types, objectives, schemes, shapes
from gradless.lm.batching import pad_id
from gradless.lm.encode import Encoded, length_limit
from gradless.optimizer import ZerothOrder
from gradless.runs.config import DEFAULTS

LR = 1e-9  # too small to change what is measured
CANDIDATE_TOKENS = (0, 1)


class Subject(NamedTuple):
    """A model under a scheme, and the loss that everything here evaluates."""

    lm: LanguageModel
    named: list[tuple[str, Any]]  # the tuned parameters
    closure: Callable[[], Tensor]
    settings: Settings


def subject(settings: Settings, say: Callable[[str], None]) -> Subject:
    """Load the model, apply the scheme, and make the batch.

    Raises:
        BadInput: no such model, a length that it does not take, or a loss that is not finite.
    """
    if settings.model.startswith(shapes.PREFIX):
        base = shapes.load(settings.model, dtype=settings.dtype, device=settings.device)
    else:
        names = ("dtype", "compute_dtype", "device", "quantise", "offload")
        kinds = {name: getattr(settings, name) for name in names}
        if settings.compute_dtype in (None, compute_types.AUTO):  # as in a run of the method
            differences = methods.METHODS[settings.method].estimates
            kinds["compute_dtype"] = compute_types.for_settings(settings, differences=differences)
        base = lm.load(settings.model, **kinds, say=say)
    size = min(base.head.weight.shape[0], _embeddings(base))
    if size < 2:
        raise BadInput(f"{base.name} has a vocabulary of {size}: two candidate tokens are needed")
    tuned = schemes.apply(base, settings.scheme, seed=settings.seed, label_token_ids=CANDIDATE_TOKENS)
    limit = length_limit(tuned, max(settings.length, 2))
    if settings.length > limit:
        raise BadInput(f"--length {settings.length} is more than the {limit} tokens that {base.name} takes: lower it")
    objective = objectives.OBJECTIVES["option_ce"]
    batches = objectives.prepare(tuned, objective, _examples(tuned, settings, size))

    def closure() -> Tensor:
        return objectives.loss_over(tuned, objective, batches)

    with torch.no_grad():
        if not torch.isfinite(closure()):
            dtype = str(tuned.dtype).removeprefix("torch.")
            raise BadInput(f"the loss of {base.name} in {dtype} is not finite: use --dtype float32 or bfloat16")
    return Subject(tuned, schemes.trainable(tuned), closure, settings)


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch use ``number`` threads inside the block; None: as it is set."""
    usual = torch.get_num_threads()
    torch.set_num_threads(number or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _embeddings(model: LanguageModel) -> int:
    whole: Any = model.model
    return int(whole.get_input_embeddings().weight.shape[0])


def _examples(model: LanguageModel, settings: Settings, size: int) -> list[Encoded]:
    """Return sequences of equal length of random tokens, with two candidate tokens for what follows."""
    rows, length = settings.batch_size, settings.length
    words = rng.philox_blocks(0, rows * length, rng.leaf_id("profile"), rng.fold(settings.seed, rng.ORDER))[:, 0]
    pad = pad_id(model)  # where a masked model looks for the end of a text
    tokens = torch.where(words % size == pad, (pad + 1) % size, words % size).view(rows, length).tolist()
    options, mask = tuple((token,) for token in CANDIDATE_TOKENS), length - 1 if model.masked else None
    return [Encoded(tuple(row), (tuple(row),), options, mask, (0,)) for row in tokens]


def candidate(subject: Subject, name: str) -> Candidate:
    """Return the floor, eager MeZO or an engine, by name."""
    settings, eps = subject.settings, DEFAULTS[subject.settings.scheme][1]

    if name == FLOOR:
        return Candidate(name, two_forwards(subject.closure), None)
    if name == EAGER:
        params, seeds = [p for _, p in subject.named], iter(range(settings.seed, sys.maxsize))
        return Candidate(name, lambda: eager_mezo.step(params, subject.closure, lr=LR, eps=eps, seed=next(seeds)), None)
    opt = optimizer(subject, engine=name, defer=name != "in-place")  # updates are deferred as a run defers them
    return Candidate(name, lambda: opt.step(subject.closure), opt)


def optimizer(subject: Subject, **how: Any) -> ZerothOrder:
    """Return the method over the tuned parameters, with the scheme's usual eps."""
    settings = subject.settings
    make: Any = methods.METHODS[settings.method].make
    if settings.scheme == "codes":
        how["transform"] = lambda base: directions.ternary()
    optimizer: ZerothOrder = make(subject.named, lr=LR, eps=DEFAULTS[settings.scheme][1], seed=settings.seed, **how)
    return optimizer


def toy_steps(subject: Subject, engine: str) -> None:
    """Two steps of an engine on linear layers of the same type: afterwards its kernels are compiled and loaded."""
    kind: dict[str, Any] = {"device": subject.lm.device, "dtype": subject.lm.dtype}
    layers: Any = nn.ModuleList(nn.utils.skip_init(nn.Linear, 64, 64, bias=False, **kind) for _ in range(6))
    named = [(f"layers.{name}", p) for name, p in layers.named_parameters()]  # some methods go by blocks
    for _, p in named:
        p.data.fill_(0.01)
    inputs = torch.ones(2, 64, **kind)

    def closure() -> Tensor:
        x = inputs
        for layer in layers:
            x = layer(x)
        return x.float().square().mean()

    toy = subject._replace(named=named, closure=closure)
    toy_candidate = candidate(toy, engine)
    for _ in range(2):
        toy_candidate.step()
