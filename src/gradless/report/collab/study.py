"""What a folder of collaborative runs holds: finished runs by algorithm, attack, split, peers and seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradless.bench.results import FAILED
from gradless.errors import BadInput
from gradless.report.collab.names import ALPHA, GAMMA, NO_ATTACK, REFERENCE, algorithm_order, attack_order, split_name
from gradless.report.common.numbers import Score, number, score, show, unique
from gradless.report.common.read import read_json
from gradless.runs.record import DIVERGED

ADVICE = "finish a run of `gradless collab simulate` in it first"


class Split(NamedTuple):
    """How the data lie on the peers: a way of splitting and its parameter."""

    kind: str
    symbol: str
    """Alpha (of a Dirichlet distribution) or gamma (share of i.i.d. data) as a Greek letter, or nothing."""
    value: float | None

    @property
    def short(self) -> str:
        """For a column: "α = 1", or the kind where there is no parameter."""
        return split_name(self.kind) if self.value is None else f"{self.symbol} = {show(self.value)}"

    @property
    def head(self) -> str:
        """The kind alone, for what several splits share."""
        return split_name(self.kind) if self.value is not None else ""

    @property
    def label(self) -> str:
        """For a heading: "Dirichlet over classes, α = 1"."""
        return ", ".join(part for part in (self.head, self.short) if part)


class Place(NamedTuple):
    """Where algorithms are compared: the same split, the same peers, as many declared attackers."""

    split: Split
    n: int | None
    f: int | None

    @property
    def peers(self) -> str:
        """``n = 26, f = 5``, as far as it is known."""
        return ", ".join(f"{name} = {value}" for name, value in (("n", self.n), ("f", self.f)) if value is not None)


class Run(NamedTuple):
    """One line of ``results.jsonl``."""

    id: str
    algorithm: str
    attack: str
    place: Place
    seed: Any
    status: str
    record: dict[str, Any]

    def number(self, *names: str) -> float | None:
        """The first of these fields that is a finite number, or None."""
        found = (number(self.record.get(name)) for name in names)
        return next((value for value in found if value is not None), None)

    def ratio(self, name: str, which: str) -> float | None:
        """Median ("median") or maximum ("max") of alpha or lambda over a run's mixings, as a field or in a mapping."""
        value = self.record.get(f"{name}_mixing")
        if isinstance(value, dict):
            return number(value.get(which))
        return self.number(f"{name}_mixing" if which == "median" else f"{name}_max")

    @property
    def is_reference(self) -> bool:
        """D-SGD without attackers."""
        return (self.algorithm, self.attack) == (REFERENCE, NO_ATTACK)


class Outcome(NamedTuple):
    """What the seeds of one algorithm under one attack came to."""

    worst: Score | None
    """Accuracy of the worst honest peer."""
    mean: Score | None
    """Mean accuracy of the honest peers."""
    diverged: int
    """Runs that diverged; they count with the accuracy they had, if they had one."""
    failed: int

    @property
    def lost(self) -> bool:
        """Runs ended, and none of them with an accuracy."""
        return self.worst is None and bool(self.diverged or self.failed)


class Weakest(NamedTuple):
    """The attack that hurts an algorithm most."""

    attack: str
    outcome: Outcome
    complete: bool
    """Every attack of the study was tried there; otherwise another one may be worse."""


class Point(NamedTuple):
    """An evaluation over the seeds."""

    step: float
    score: Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Collab:
    """A folder of collaborative runs, read."""

    folder: Path
    runs: tuple[Run, ...]
    unread: int
    """Damaged lines of results.jsonl; the torn end of a file that is being written is none."""
    replaced: int
    """Runs of which a later one has the same algorithm, attack, place and seed."""
    unfinished: int
    """Directories under runs/ without a line in results.jsonl."""

    @property
    def name(self) -> str:
        """Of the recipe, or else of the folder."""
        names = unique(run.record["recipe"] for run in self.runs if isinstance(run.record.get("recipe"), str))
        return ", ".join(names) or self.folder.resolve().name

    @property
    def algorithms(self) -> list[str]:
        """Every algorithm, D-SGD last."""
        return sorted({run.algorithm for run in self.runs}, key=algorithm_order)

    @property
    def attacks(self) -> list[str]:
        """Every attack, none at all first if it was run with anything but D-SGD or is all there is."""
        names = {run.attack for run in self.runs if not run.is_reference} or {NO_ATTACK}
        return sorted(names, key=attack_order)

    @property
    def places(self) -> list[Place]:
        """Of runs under attack; where D-SGD without attackers is all there is, of that."""
        found = {run.place for run in self.runs if not run.is_reference} or {run.place for run in self.runs}
        return sorted(found, key=_place_order)

    @property
    def splits(self) -> list[Split]:
        """From the most to the least heterogeneous."""
        return unique(place.split for place in sorted(self.places, key=_place_order))

    @property
    def peers(self) -> list[tuple[int | None, int | None]]:
        """The (n, f) that occur."""
        return sorted({(place.n, place.f) for place in self.places}, key=lambda pair: (pair[1] or 0, pair[0] or 0))

    def among(self, place: Place) -> str:
        """What tells a place's peers from those of the others: "f = 5", with n where that differs too."""
        several = len({n for n, _ in self.peers}) > 1
        return place.peers if several or place.f is None else f"f = {place.f}"

    @property
    def peers_tail(self) -> str:
        """What the peers of all places have in common, for a title: "n = 26, f = 5", "n = 26" or nothing."""
        if len(self.peers) == 1:
            return self.places[0].peers
        counts = {n for n, _ in self.peers}
        return f"n = {self.peers[0][0]}" if len(counts) == 1 and None not in counts else ""

    def of(self, algorithm: str, attack: str, place: Place) -> list[Run]:
        """The runs of all seeds; for D-SGD without attackers those that stand for it there."""
        if (algorithm, attack) == (REFERENCE, NO_ATTACK):
            return self.reference(place)
        return [run for run in self.runs if (run.algorithm, run.attack, run.place) == (algorithm, attack, place)]

    def reference(self, place: Place) -> list[Run]:
        """D-SGD without attackers on the same split.

        Of as many peers and attackers if there is such a one, or else of as many peers, of as many honest ones, or of
        any number.
        """
        found = [run for run in self.runs if run.is_reference and run.place.split == place.split]

        def far(other: Place) -> tuple[bool, bool, bool, int, int]:
            honest = [None if p.n is None or p.f is None else p.n - p.f for p in (place, other)]
            return (other != place, other.n != place.n, honest[0] not in (honest[1], other.n), *_peer_order(other))

        nearest = min((run.place for run in found), key=far, default=None)
        return [run for run in found if run.place == nearest]

    def outcome(self, algorithm: str, attack: str, place: Place) -> Outcome | None:
        """None while there is no run."""
        runs = self.of(algorithm, attack, place)
        return outcome(runs) if runs else None

    def weakest(self, algorithm: str, place: Place) -> Weakest | None:
        """The attack with the lowest mean over seeds of the worst accuracy; one that left no accuracy is lower still.

        Without attackers counts only where nothing else was tried.
        """
        tried = self.attacks_at(place)
        found = {attack: self.outcome(algorithm, attack, place) for attack in tried}
        known = {attack: ending for attack, ending in found.items() if ending is not None and _counts(ending)}
        if not known:
            calm = self.outcome(algorithm, NO_ATTACK, place) if algorithm != REFERENCE else None
            return Weakest(NO_ATTACK, calm, not tried) if calm is not None and _counts(calm) else None
        worst = min(known, key=lambda attack: known[attack].worst or Score(-1.0, None, 0))
        return Weakest(worst, known[worst], len(known) == len(tried))

    def attacks_at(self, place: Place) -> list[str]:
        """Attacks to be expected there: all of the study's, but none where no attacker is declared."""
        return [] if place.f == 0 else [attack for attack in self.attacks if attack != NO_ATTACK]


def _counts(found: Outcome) -> bool:
    return found.worst is not None or bool(found.diverged)


def outcome(runs: Sequence[Run]) -> Outcome:
    """Means over runs with an accuracy; failed ones are only counted."""
    ended = [run for run in runs if run.status != FAILED]
    return Outcome(
        score(run.number("worst_accuracy") for run in ended),
        score(run.number("mean_accuracy") for run in ended),
        sum(run.status == DIVERGED for run in runs),
        len(runs) - len(ended),
    )


def curve(runs: Iterable[Run], name: str, scale: Callable[[float], float | None] = float) -> list[Point]:
    """Mean over the seeds at steps that every run with a curve was evaluated at; no survivors' mean past an end.

    A run that diverged keeps the accuracy that it ended with, as in the tables; its models' distance has no such value.

    Args:
        runs: seeds of one algorithm, attack and place.
        name: "worst", "mean" or "consensus".
        scale: applied before the mean is taken (a logarithm, say); None leaves the value out.
    """
    curves, ended = [], []
    for run in runs:
        lines = run.record.get("curve")
        found: dict[float, float] = {}
        for line in lines if isinstance(lines, list) and run.status != FAILED else ():
            step, value = (number(line.get(key)) for key in ("step", name)) if isinstance(line, dict) else (None, None)
            scaled = None if value is None else scale(value)
            if step is not None and scaled is not None:
                found[step] = scaled
        curves += [found] if found else []
        ended += [found] if found and run.status == DIVERGED and name != "consensus" else []
    for found in ended:
        last = max(found)
        found.update({step: found[last] for step in set().union(*curves) if step > last})
    shared = set.intersection(*map(set, curves)) if curves else set()
    scores = {step: score(found[step] for found in curves) for step in sorted(shared)}
    return [Point(step, mean) for step, mean in scores.items() if mean is not None]


def is_collab(folder: Path) -> bool:
    """Whether a folder holds collaborative runs, be it only begun ones."""
    path = folder / "results.jsonl"
    for record in _records(path.read_text(errors="replace")) if path.is_file() else ():
        if isinstance(record, dict):
            return "algorithm" in record and "attack" in record
    begun = (folder / "config.json", *sorted(folder.glob("runs/*/config.json"))[:1])
    return any({"algorithm", "attack"} <= set(read_json(path)) for path in begun)


def load(folder: Path) -> Collab:
    """Read a folder of collaborative runs.

    Raises:
        BadInput: no run in it has finished.
    """
    path = folder / "results.jsonl"
    text = path.read_text(errors="replace") if path.is_file() else ""
    lines = [_run(record) for record in _records(text)]
    by_id = {run.id: run for run in _told_apart([run for run in lines if run is not None])}
    latest: dict[tuple[Any, ...], Run] = {}
    for run in by_id.values():
        latest.pop(_key(run), None)
        latest[_key(run)] = run
    if not latest:
        raise BadInput(f"{folder} holds no finished collaborative run yet: {ADVICE}")
    begun = {other.parent.name for other in folder.glob("runs/*/config.json")}
    return Collab(
        folder=folder, runs=tuple(latest.values()), unread=lines.count(None), replaced=len(by_id) - len(latest),
        unfinished=len(begun - set(by_id)),
    )  # fmt: skip


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """With the payload in the algorithm's name where runs differ in it."""
    payloads = {str(run.record.get("payload") or "") for run in runs}
    if len(payloads) < 2:
        return list(runs)
    plain = "parameters" if "parameters" in payloads else min(payloads)
    return [
        run if (payload := str(run.record.get("payload") or "")) in (plain, "")
        else run._replace(algorithm=f"{run.algorithm} ({payload})")
        for run in runs
    ]  # fmt: skip


def facts_of(study: Collab, run: Run, file: str) -> dict[str, Any]:
    """``config.json`` or ``result.json`` of a run, which lies in the folder itself if it is the only one."""
    path = study.folder / "runs" / run.id / file
    inside = path.parent.parent == study.folder / "runs" and run.id not in ("", ".", "..")
    found = read_json(path) if inside else {}
    return found or (read_json(study.folder / file) if len(study.runs) == 1 else {})


def _records(text: str) -> Iterator[Any]:
    """Parsed lines; None for a damaged one, nothing for a last one that has no end yet."""
    for line in text.splitlines(keepends=True):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError:
            if line.endswith("\n"):
                yield None


def _run(record: Any) -> Run | None:
    """A line as a run; None if it does not tell algorithm and attack."""
    if not isinstance(record, dict) or not isinstance(record.get("algorithm"), str) or "attack" not in record:
        return None
    algorithm, attack = record["algorithm"], str(record["attack"] or NO_ATTACK)
    algorithm = REFERENCE if algorithm.lower().replace("-", "").replace("_", "") == "dsgd" else algorithm
    algorithm += f" ({record['rule']})" if isinstance(record.get("rule"), str) and record["rule"] else ""
    n, f, attackers = (
        _count(record.get(name), record.get(more))
        for name, more in (("n", "peers"), ("f", "byzantine"), ("b", "attackers"))
    )
    if attackers not in (None, f) and attack != NO_ATTACK:
        attack += f" ({attackers} attackers)"
    place = Place(_split(record), n, f)
    name = str(record.get("id") or f"{algorithm}/{attack}/{place}/{record.get('seed')}")
    return Run(name, algorithm, attack, place, record.get("seed"), str(record.get("status", FAILED)), record)


def _count(*values: Any) -> int | None:
    """The first of them that is a number."""
    found = (number(value) for value in values)
    return next((int(value) for value in found if value is not None), None)


def _split(record: dict[str, Any]) -> Split:
    """From ``split`` and its parameter, as ``split_parameter`` or by its own name."""
    kind = record["split"] if isinstance(record.get("split"), str) else ""
    plain = GAMMA if kind.startswith("gamma") else ALPHA
    for symbol, name in ((plain, "split_parameter"), (ALPHA, "alpha"), (GAMMA, "gamma")):
        value = number(record.get(name))
        if value is not None:
            return Split(kind, symbol, value)
    return Split(kind, "", None)


def _key(run: Run) -> tuple[Any, ...]:
    return (run.algorithm, run.attack, run.place, repr(run.seed))


def _peer_order(place: Place) -> tuple[int, int]:
    return (place.f or 0, place.n or 0)


def _place_order(place: Place) -> tuple[Any, ...]:
    """Most heterogeneous first: by kind and parameter, extreme splits before and i.i.d. ones after the others."""
    kind, value = place.split.kind, place.split.value
    plain = kind.lower().replace(".", "").replace("-", "")
    rank = 0 if plain in ("extreme", "sorted") else 2 if plain == "iid" else 1
    return (rank, kind, place.split.symbol, value or 0.0, *_peer_order(place))
