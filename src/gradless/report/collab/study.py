"""What a folder of collaborative runs holds: finished runs by algorithm, attack, split, peers and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradless.bench.results import FAILED
from gradless.errors import BadInput
from gradless.report.collab.names import ALPHA, GAMMA, NO_ATTACK, REFERENCE, algorithm_order, attack_order, split_name
from gradless.report.common.numbers import Score, number, score, show, unique
from gradless.report.common.read import mapping, parse_json, read_json
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


class Setting(NamedTuple):
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
    setting: Setting
    seed: Any
    status: str
    record: dict[str, Any]

    def number(self, *names: str) -> float | None:
        """The first of these fields that is a finite number, or None."""
        return next((value for name in names if (value := number(self.record.get(name))) is not None), None)

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
    def counts(self) -> bool:
        """A run ended by itself, with an accuracy or diverged."""
        return self.worst is not None or bool(self.diverged)


class Weakest(NamedTuple):
    """The attack that hurts an algorithm most."""

    attack: str
    outcome: Outcome
    complete: bool
    """Every attack of the study was tried there; otherwise another one may be worse."""

    @property
    def bound(self) -> str:
        """A sign of relation for the accuracy, which may yet be lower."""
        return "" if self.complete else "≤ "

    @property
    def so_far(self) -> str:
        """A remark for the attack, which may yet be another one."""
        return "" if self.complete else " (so far)"


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
    """Runs of which a later one has the same algorithm, attack, setting and seed."""
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
    def settings(self) -> list[Setting]:
        """Of runs under attack; where D-SGD without attackers is all there is, of that."""
        attacked = {run.setting for run in self.runs if not run.is_reference}
        return sorted(attacked or {run.setting for run in self.runs}, key=_setting_order)

    @property
    def splits(self) -> list[Split]:
        """From the most to the least heterogeneous."""
        return unique(setting.split for setting in sorted(self.settings, key=_setting_order))

    @property
    def peers(self) -> list[tuple[int | None, int | None]]:
        """The (n, f) that occur."""
        return unique((setting.n, setting.f) for setting in sorted(self.settings, key=_peer_order))

    def among(self, setting: Setting) -> str:
        """What tells a setting's peers from those of the others: "f = 5", with n where that differs too."""
        several = len({n for n, _ in self.peers}) > 1
        return setting.peers if several or setting.f is None else f"f = {setting.f}"

    @property
    def peers_tail(self) -> str:
        """What the peers of all settings have in common, for a title: "n = 26, f = 5", "n = 26" or nothing."""
        if len(self.peers) == 1:
            return self.settings[0].peers
        counts = {n for n, _ in self.peers}
        return f"n = {self.peers[0][0]}" if len(counts) == 1 and None not in counts else ""

    def of(self, algorithm: str, attack: str, setting: Setting) -> list[Run]:
        """The runs of all seeds; for D-SGD without attackers those that stand for it there."""
        if (algorithm, attack) == (REFERENCE, NO_ATTACK):
            return self.reference(setting)
        return [run for run in self.runs if (run.algorithm, run.attack, run.setting) == (algorithm, attack, setting)]

    def reference(self, setting: Setting) -> list[Run]:
        """D-SGD without attackers on the same split.

        Of as many peers and attackers if there is such a one, or else of as many peers, of as many honest ones, or of
        any number.
        """
        references = [run for run in self.runs if run.is_reference and run.setting.split == setting.split]

        def distance(other: Setting) -> tuple[bool, bool, bool, int, int]:
            honest = [None if p.n is None or p.f is None else p.n - p.f for p in (setting, other)]
            return (other != setting, other.n != setting.n, honest[0] not in (honest[1], other.n), *_peer_order(other))

        nearest = min((run.setting for run in references), key=distance, default=None)
        return [run for run in references if run.setting == nearest]

    def outcome(self, algorithm: str, attack: str, setting: Setting) -> Outcome | None:
        """None while there is no run."""
        runs = self.of(algorithm, attack, setting)
        return outcome(runs) if runs else None

    def weakest(self, algorithm: str, setting: Setting) -> Weakest | None:
        """The attack with the lowest mean over seeds of the worst accuracy; one that left no accuracy is lower still.

        Without attackers counts only where nothing else was tried.
        """
        tried = self.attacks_at(setting)
        endings = {attack: self.outcome(algorithm, attack, setting) for attack in tried}
        known = {attack: ending for attack, ending in endings.items() if ending is not None and ending.counts}
        if not known:
            calm = self.outcome(algorithm, NO_ATTACK, setting) if algorithm != REFERENCE else None
            return Weakest(NO_ATTACK, calm, not tried) if calm is not None and calm.counts else None
        worst = min(known, key=lambda attack: known[attack].worst or Score(-1.0, None, 0))
        return Weakest(worst, known[worst], len(known) == len(tried))

    def attacks_at(self, setting: Setting) -> list[str]:
        """Attacks to be expected there: all of the study's, but none where no attacker is declared."""
        return [] if setting.f == 0 else [attack for attack in self.attacks if attack != NO_ATTACK]


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
        runs: seeds of one algorithm, attack and setting.
        name: "worst", "mean" or "consensus".
        scale: applied before the mean is taken (a logarithm, say); None leaves the value out.
    """
    curves, ended = [], []
    for run in runs:
        lines = run.record.get("curve")
        values: dict[float, float] = {}
        for line in lines if isinstance(lines, list) and run.status != FAILED else ():
            step, value = number(mapping(line).get("step")), number(mapping(line).get(name))
            scaled = None if value is None else scale(value)
            if step is not None and scaled is not None:
                values[step] = scaled
        curves += [values] if values else []
        ended += [values] if values and run.status == DIVERGED and name != "consensus" else []
    for values in ended:
        last = max(values)
        values.update({step: values[last] for step in set().union(*curves) if step > last})
    shared = set.intersection(*map(set, curves)) if curves else set()
    scores = {step: score(values[step] for values in curves) for step in sorted(shared)}
    return [Point(step, mean) for step, mean in scores.items() if mean is not None]


def is_collab(folder: Path) -> bool:
    """Whether a folder holds collaborative runs, be it only begun ones."""
    path = folder / "results.jsonl"
    for record in _records(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ():
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
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [_run(record) for record in _records(text)]
    by_id = {run.id: run for run in _with_payloads([run for run in lines if run is not None])}
    latest: dict[tuple[Any, ...], Run] = {}
    for run in by_id.values():
        latest.pop(_key(run), None)
        latest[_key(run)] = run
    if not latest:
        raise BadInput(f"{folder} holds no finished collaborative run yet: {ADVICE}")
    begun = {other.parent.name for other in folder.glob("runs/*/config.json")}
    return Collab(
        folder=folder,
        runs=tuple(latest.values()),
        unread=lines.count(None),
        replaced=len(by_id) - len(latest),
        unfinished=len(begun - set(by_id)),
    )


def _with_payloads(runs: Sequence[Run]) -> list[Run]:
    """With the payload in the algorithm's name where runs differ in it."""
    payloads = {str(run.record.get("payload") or "") for run in runs}
    if len(payloads) < 2:
        return list(runs)
    plain = "parameters" if "parameters" in payloads else min(payloads)
    named = {payload: f" ({payload})" if payload not in (plain, "") else "" for payload in payloads}
    return [run._replace(algorithm=run.algorithm + named[str(run.record.get("payload") or "")]) for run in runs]


def facts_of(study: Collab, run: Run, file: str) -> dict[str, Any]:
    """``config.json`` or ``result.json`` of a run, which lies in the folder itself if it is the only one."""
    path = study.folder / "runs" / run.id / file
    inside = path.parent.parent == study.folder / "runs" and run.id not in ("", ".", "..")
    facts = read_json(path) if inside else {}
    return facts or (read_json(study.folder / file) if len(study.runs) == 1 else {})


def _records(text: str) -> Iterator[Any]:
    """Parsed lines; None for a damaged one, nothing for a last one that has no end yet."""
    for line in text.splitlines(keepends=True):
        if not line.strip():
            continue
        try:
            yield parse_json(line)
        except ValueError:
            if line.endswith("\n"):
                yield None


def _run(record: Any) -> Run | None:
    """A line as a run; None if it does not tell algorithm and attack."""
    if not isinstance(record, dict) or not isinstance(record.get("algorithm"), str) or "attack" not in record:
        return None
    algorithm, attack = record["algorithm"], str(record["attack"] or NO_ATTACK)
    algorithm = REFERENCE if algorithm.lower().replace("-", "").replace("_", "") == "dsgd" else algorithm
    attack += _options(record, "attack_options")
    algorithm += f" ({record['rule']})" if isinstance(record.get("rule"), str) and record["rule"] else ""
    algorithm += _options(record, "rule_options")
    graph = mapping(record.get("graph")).get("topology")
    algorithm += f" ({graph})" if isinstance(graph, str) else ""
    n, f, attackers = (
        _count(record.get(name), record.get(more))
        for name, more in (("n", "peers"), ("f", "byzantine"), ("b", "attackers"))
    )
    if attackers not in (None, f) and attack != NO_ATTACK:
        attack += f" ({attackers} attackers)"
    setting = Setting(_split(record), n, f)
    name = str(record.get("id") or f"{algorithm}/{attack}/{setting}/{record.get('seed')}")
    return Run(name, algorithm, attack, setting, record.get("seed"), str(record.get("status", FAILED)), record)


def _options(record: dict[str, Any], name: str) -> str:
    """Options of a rule or an attack as an end of its name, since runs that differ in them are not seeds of one."""
    options = mapping(record.get(name))
    return f" ({', '.join(f'{option} {value}' for option, value in sorted(options.items()))})" if options else ""


def _count(*values: Any) -> int | None:
    """The first of them that is a number."""
    return next((int(value) for value in map(number, values) if value is not None), None)


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
    return (run.algorithm, run.attack, run.setting, repr(run.seed))


def _peer_order(setting: Setting) -> tuple[int, int]:
    return (setting.f or 0, setting.n or 0)


def _setting_order(setting: Setting) -> tuple[Any, ...]:
    """Most heterogeneous first: by kind and parameter, extreme splits before and i.i.d. ones after the others."""
    kind, value = setting.split.kind, setting.split.value
    plain = kind.lower().replace(".", "").replace("-", "")
    rank = 0 if plain in ("extreme", "sorted") else 2 if plain == "iid" else 1
    return (rank, kind, setting.split.symbol, value or 0.0, *_peer_order(setting))
