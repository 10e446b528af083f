"""What a run of ranks has left."""

# ruff: noqa: NPY002 (the global generator of NumPy is one of those that losses draw from)

from __future__ import annotations

import itertools
import json
import math
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradless as gl
import ranks_helpers as r
from engine_helpers import race
from gradless import ranks
from gradless.errors import BadInput, BrokenRanks, ReportedElsewhere
from gradless.lm import objectives
from gradless.lm.encode import encode_all
from gradless.lm.evaluate import evaluate
from gradless.system import hashing
from gradless.tasks import custom

SIZES = (1, 2, 4)


METHODS = {
    "mezo": (gl.mezo, {"queries": 3}),
    "one query": (gl.mezo, {}),
    "one-sided": (gl.mezo_one_sided, {"queries": 4}),
    "acceptance": (gl.zo_cons, {}),
    "low rank": (gl.lozo, {"refresh": 3}),
    "forward mode": (gl.forward_gradient, {"queries": 3}),
}


# ---------------------------------------------------------------------------------------------------------------
# on every rank


def messages(group: ranks.Ranks) -> dict[str, Any]:
    """Every kind of message once."""
    answers: dict[str, Any] = {"gather": group.gather([group.rank, 0.1 * group.rank])}
    group.weight = float(group.rank)  # 0, 1, 2, 3: the first one's losses do not count, whatever they are
    answers["mean"] = group.mean([float("nan") if group.rank == 0 else 10.0 * group.rank, 7.0])
    answers["nan"] = group.mean([float("nan") if group.rank == 2 else 1.0])
    group.weight = 0.0
    with pytest.raises(BadInput, match="weight"):
        group.mean([1.0])
    answers["spread"] = group.spread(range(10), lambda own: [float(i * i) for i in own])
    answers["fewer"] = group.spread([3], lambda own: [float(i) for i in own])
    answers["exchange"] = group.exchange(b"\0x" * group.rank)
    answers["nothing"] = (group.exchange(b""), group.broadcast(b""))
    answers["broadcast"] = group.broadcast(b"from rank %d" % group.rank)
    answers["sent"] = group.sent
    sent = group.sent
    group.gather([1.0, 2.0])
    answers["two numbers"] = group.sent - sent
    with group.agreed():
        answers["all well"] = True
    try:
        with group.agreed():
            if group.rank >= 2:
                raise BadInput(f"{group.rank} is too many")
    except BadInput as error:
        answers["refused"] = (str(error), type(error) is ReportedElsewhere)
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(0.5), layer.bias.fill_(0.0)
    group.weight = 1.0
    opt = gl.mezo(layer.named_parameters(), lr=0.1, eps=0.1, ranks=group)
    for poison in (0.0, 0.0 if group.rank else math.inf, 0.0):  # the second loss of one rank is not finite
        opt.step(lambda poison=poison: layer(torch.ones(1, 2)).square().sum() + poison)
    answers["skipped"] = (opt.skipped, opt.t, hashing.weights_sha256(layer.named_parameters()))
    group.check_equal("abc", "the weights")
    with pytest.raises(BrokenRanks, match="the weights of rank 2 differ from those of rank 0") as caught:
        group.check_equal("abc" if group.rank < 2 else "abd", "the weights")
    answers["apart"] = str(caught.value)
    return answers


def steps(group: ranks.Ranks | None, split: str) -> dict[str, Any]:
    """Hash, losses and coefficients after some steps of every method; a batch of seven splits unevenly."""
    runs = {}
    for name, (make, options) in METHODS.items():
        model = r.lm.load("tiny-llama").model
        whole = torch.arange(7 * 12).view(7, 12) * 5 % 290 + 3
        if group is not None:
            group.split = split
            group.sent = 0
        ids = whole if group is None or split == ranks.DIRECTIONS else group.own(whole)
        if group is not None:
            group.weight = float(len(ids))
        opt = make(model.named_parameters(), lr=1e-3, ranks=group, defer=True, **options)
        closure = lambda model=model, ids=ids: model(input_ids=ids, labels=ids).loss  # noqa: E731
        probes, first = [opt.step_with(closure)[0]], group.sent if group else 0
        probes += [opt.step_with(closure)[0] for _ in "23"]
        opt.flush()
        sha = hashing.weights_sha256(model.named_parameters())
        runs[name] = {
            "sha": sha,
            "losses": [p.loss for p in probes],
            "coeffs": [p.sketch.coeffs for p in probes],
            "forwards": opt.forwards,
            "sent": group.sent - first if group else 0,
        }
    return runs


def drawing(group: ranks.Ranks | None) -> dict[str, Any]:
    """Hashes of runs whose losses draw random numbers, and what the generators give then.

    Generators of ranks other than 0 start elsewhere; with four ranks some have no point.
    """
    runs = {}
    for make, options in ((gl.mezo, {}), (gl.mezo, {"queries": 3}), (gl.zo_cons, {}), (gl.forward_gradient, {})):
        rank = 0 if group is None else group.rank
        torch.manual_seed(rank), random.seed(rank), np.random.seed(rank)
        layer = torch.nn.Linear(3, 1)
        with torch.no_grad():
            layer.weight.fill_(0.5), layer.bias.fill_(0.0)
        opt = make(layer.named_parameters(), lr=0.1, eps=0.1, ranks=group, **options)

        def closure(layer=layer):
            x = torch.nn.functional.dropout(torch.ones(4, 3)) + random.random() + np.random.rand()
            return layer(x).square().mean()

        for _ in range(3):
            opt.step(closure)
        ahead = (torch.rand(1).item(), random.random(), np.random.rand())
        runs[f"{make.__name__} {options}"] = hashing.weights_sha256(layer.named_parameters()), ahead
    return runs


def tokens(group: ranks.Ranks | None, rows: list[Any], task: Any) -> tuple[float, list[float], Any]:
    """Loss and coefficients of a token-weighted objective over answers of uneven lengths, and an evaluation."""
    model = r.lm.load("tiny-llama")
    encoded = encode_all(model, task, rows, None)
    mine = encoded if group is None else group.own(encoded)
    batches = objectives.prepare(model, objectives.OBJECTIVES["lm"], mine)
    if group is not None:
        group.weight = sum(batch.weight for batch in batches)
    opt = gl.mezo(model.model.named_parameters(), lr=1e-3, queries=2, ranks=group)
    probe = opt.probe(lambda: objectives.loss_over(model, objectives.OBJECTIVES["lm"], batches))
    seen = evaluate(model, task, rows, ranks=group, batch_size=2)
    return probe.loss, list(probe.sketch.coeffs), (seen.loss, seen.predictions, seen.probabilities, seen.forwards)


def population(group: ranks.Ranks | None) -> dict[str, Any]:
    """Loss and coefficients of an evolution strategy: five rows, which the ranks share unevenly."""
    probes = {}
    data = torch.sin(torch.arange(20.0)).view(5, 4)
    for split, single in itertools.product(ranks.SPLITS, (True, False)):
        layer = torch.nn.Linear(4, 1)
        with torch.no_grad():
            layer.weight.fill_(0.5), layer.bias.fill_(0.0)
        mine = data
        if group is not None:
            group.split = split
            mine = group.own(data) if split == "batch" else data
            group.weight = float(len(mine))
        opt = gl.es(layer.named_parameters(), lr=0.1, eps=0.1, queries=2, shaping="none", ranks=group)

        def closure(layer=layer, mine=mine, single=single):
            losses = layer(mine).square().mean(1)
            return losses.mean() if single else losses

        probe = opt.step_with(closure)[0]
        probes[split, single] = (probe.loss, *probe.sketch.coeffs, opt.forwards, opt.check_forwards)
    return probes


def refusals(group: ranks.Ranks) -> list[str]:
    """What does not go with ranks."""
    model = r.lm.load("tiny-llama").model
    with pytest.raises(BadInput, match="stores gradients") as stored:
        gl.fo_sgd(model.named_parameters(), lr=1e-3, ranks=group)
    with pytest.raises(BadInput, match="unknown split 'batches': did you mean 'batch'"):
        ranks.group("batches")
    group.split = "directions"
    with pytest.warns(UserWarning, match="how many points a rank evaluates") as warned:
        opt = gl.mezo(model.named_parameters(), lr=1e-3, engine="dual", ranks=group)
    return [str(stored.value), str(warned[0].message), opt.engine]


def told(group: ranks.Ranks | None) -> list[list[str]]:
    """Warnings of three steps of an optimizer that knows of the group, and of one that does not."""
    warned = []
    for known in (group, None):
        layer = torch.nn.Linear(4, 1)
        opt = gl.mezo(layer.named_parameters(), lr=1e-3, ranks=known)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                opt.step(lambda layer=layer: layer(torch.eye(4)).square().mean())
        warned.append([str(one.message) for one in caught])
    return warned


def chosen(group: ranks.Ranks) -> list[Any]:
    """The engine ``auto``, where every rank would choose another one than the rank before."""
    model = torch.nn.Linear(4, 1)
    torch.nn.init.ones_(model.weight)
    choices = []
    with tempfile.TemporaryDirectory() as folder, race(Path(folder), dual=1.0 if group.rank % 2 == 0 else 9.0) as raced:
        for split in ranks.SPLITS:
            group.split = split
            opt = gl.mezo(model.named_parameters(), lr=1e-3, eps=1e-2, ranks=group)
            opt.step(lambda: model(torch.eye(4)).square().mean())
            choices.append((opt.engine, len(raced.calls) > 0, hashing.weights_sha256(model.named_parameters())))
            raced.calls.clear()
    return choices


def all_of_it(group: ranks.Ranks | None, rows: list[Any], task: Any) -> dict[str, Any]:
    """One start of the processes for many checks."""
    results = {split: steps(group, split) for split in ranks.SPLITS}
    if group is not None:
        group.split = "directions"
    results["drawing"] = drawing(group)
    results["population"] = population(group)
    if group is not None:
        group.split = "batch"
    results["tokens"] = tokens(group, rows, task)
    if group is not None:
        results["refusals"] = refusals(group)
        results["engine"] = chosen(group)
        group.split = "batch"
    results["told"] = told(group)
    if group is not None and group.size == 4:
        results["messages"] = messages(group)
    return results


def core(own: dict[str, Any]) -> dict[str, Any]:
    """`all_of_it` in a group; rows of a task are read here, since a task is no value to send."""
    task, splits = custom(
        train=Path(own["train"]),
        test=Path(own["test"]),
        template=own["template"],
        label_column="label",
        labels=own["labels"],
    )
    rows = [task.render(dict(row)) for row in splits.test[:7]]
    rows = [row._replace(prompt="and so on " * (i % 4) + row.prompt) for i, row in enumerate(rows)]
    return r.in_group(lambda group: all_of_it(group, rows, task))


# ---------------------------------------------------------------------------------------------------------------
# a run


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())
