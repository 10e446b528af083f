"""The tables of collaborative runs: accuracy under each attack, the worst attack, mixing, and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from gradless.bench.results import FAILED
from gradless.report.collab.names import (
    ALPHA,
    GAMMA,
    MIXING,
    NO_ATTACK,
    REFERENCE,
    algorithm_name,
    algorithm_order,
    attack_name,
)
from gradless.report.collab.study import Collab, Outcome, Run, Setting, Weakest, facts_of, outcome
from gradless.report.common.numbers import Score, median, number, score, unique, usual_count
from gradless.report.common.table import NOTHING, Column, Item, Table, marked, score_record
from gradless.system import finished_runs

MEGABYTE = 1e6
COSTS = {
    "gradients / peer": ("gradients_per_peer", "{:.0f}", 1.0),
    "\u00d7 D-SGD": ("gradient_overhead", "{:.2f}", 1.0),
    "MB / peer and step": ("bytes_per_peer_step", "{:#.3g}", MEGABYTE),
    "seconds": ("train_seconds", "{:#.3g}", 1.0),
    "runs": ("ended", "{:.0f}", 1.0),
}
"""Heading, and name, format and unit of the number."""


def all_tables(study: Collab) -> list[Table]:
    """Every table that the results have something for."""
    tables = [accuracy(study), mean_accuracy(study), reward(study)]
    tables += [*([worst(study)] if len(study.settings) > 1 else []), *(mixing(study, name) for name in MIXING)]
    return [table for table in (*tables, cost(study)) if table.rows]


class Frame(NamedTuple):
    """The label columns of a table over several settings: what varies; what does not goes into its title."""

    heads: tuple[str, ...]
    tail: str
    short: bool
    """All splits are of one kind, so that their parameters tell them apart."""

    @staticmethod
    def of(study: Collab) -> Frame:
        """For all settings of a study."""
        splits, peers = study.splits, study.peers
        kinds = unique(split.head for split in splits)
        data = splits[0].label if len(splits) == 1 else kinds[0] if len(kinds) == 1 else ""
        same = (data, study.peers_tail)
        heads = (("Data",) if len(splits) > 1 else ()) + (("Peers",) if len(peers) > 1 else ())
        return Frame(heads, "".join(f", {text}" for text in same if text), len(kinds) == 1)

    def items(self, study: Collab, setting: Setting, algorithm: str) -> tuple[Item, ...]:
        """Label entries of an algorithm in a setting."""
        texts = {"Data": setting.split.short if self.short else setting.split.label, "Peers": study.among(setting)}
        return (*(Item(texts[head] or NOTHING) for head in self.heads), Item(algorithm_name(algorithm)))

    @property
    def bold(self) -> str:
        """What bold numbers are."""
        return f"Bold: best of the column{' for the same data and peers' if self.heads else ''}."

    def table(self, name: str, title: str, caption: str, columns: Iterable[str], rows: Any, records: Any) -> Table:
        """A table with the label columns in front; ``tail`` is part of its title."""
        heads = (*self.heads, "Algorithm")
        every = tuple(map(Column, (*heads, *columns)))
        return Table(name, title + self.tail, caption, len(heads), every, tuple(rows), tuple(records))


def percent(value: float) -> str:
    """``0.9534`` -> ``95.3``."""
    return f"{100 * value:.1f}"


def outcome_text(ending: Outcome | None, which: str = "worst", *, usual: int | None = None) -> str:
    """``95.3 ± 0.2``, with what happened to the runs: ``(n=2)`` of another number of seeds, ``(1 diverged)``."""
    if ending is None:
        return NOTHING
    mean: Score | None = getattr(ending, which)
    notes = [f"{ending.diverged} diverged"] if ending.diverged else []
    notes += [f"{ending.failed} failed"] if ending.failed else []
    if mean is None:
        return "diverged" if ending.diverged else "failed" if ending.failed else NOTHING
    if mean.n != usual:
        notes.insert(0, f"n={mean.n}")
    spread = "" if mean.std is None else f" ± {percent(mean.std)}"
    return f"{percent(mean.mean)}{spread}" + (f" ({', '.join(notes)})" if notes else "")


def usual_seeds(study: Collab) -> int | None:
    """The number of seeds that most combinations of algorithm, attack and setting have."""
    endings = [study.outcome(*key) for key in unique((run.algorithm, run.attack, run.setting) for run in study.runs)]
    return usual_count(ending.worst for ending in endings if ending is not None)


def seeds_sentence(usual: int | None) -> str:
    """What ± means, where most scores are of ``usual`` seeds."""
    if usual is None:
        return ""
    if usual == 1:
        return "One seed; (n=...) where there are more."
    return f"Mean ± sample standard deviation over {usual} seeds; (n=...) where the number differs."


def gap(study: Collab, weakest: Weakest | None, setting: Setting) -> float | None:
    """Worst accuracy under the worst attack less that of D-SGD without attackers, in points; negative is below."""
    reference = outcome(study.reference(setting)).worst
    if weakest is None or weakest.outcome.worst is None or reference is None:
        return None
    return 100 * (weakest.outcome.worst.mean - reference.mean)


def accuracy(study: Collab) -> Table:
    """Accuracy of the worst honest peer of every algorithm (rows) under each attack (columns), worst attack and gap."""
    frame, usual, attacks = Frame.of(study), usual_seeds(study), _attacks(study)
    rows, records = _outcomes(study, frame, "worst", usual, _outcome_record, _worst_columns)
    return frame.table(
        name="accuracy",
        title="Accuracy of the worst honest peer, in %",
        caption=f"Test accuracy after the last step. {seeds_sentence(usual)} Worst attack: the one under which it is "
        "lowest; so far, and ≤: an attack has no result yet, so that it may be worse. Gap: accuracy under the worst "
        "attack less that of D-SGD without attackers on the same data, in points; negative is below. Diverged runs "
        f"count with the accuracy they had. {frame.bold}",
        columns=(*map(attack_name, attacks), "worst attack", "gap"),
        rows=rows,
        records=records,
    )


def mean_accuracy(study: Collab) -> Table:
    """Mean accuracy of the honest peers of every algorithm (rows) under each attack (columns)."""
    frame, usual = Frame.of(study), usual_seeds(study)
    rows, records = _outcomes(study, frame, "mean", usual, lambda ending: score_record(ending.mean))
    return frame.table(
        name="mean-accuracy",
        title="Mean accuracy of the honest peers, in %",
        caption=f"Test accuracy after the last step. {seeds_sentence(usual)} {frame.bold}",
        columns=map(attack_name, _attacks(study)),
        rows=rows,
        records=records,
    )


def reward(study: Collab) -> Table:
    """Mean reward of every algorithm (rows) under each attack (columns), where groups learn from a reward."""

    def cell(runs: list[Run]) -> tuple[Item, dict[str, Any]]:
        mean, worst = (score(run.number(name) for run in runs) for name in ("mean_reward", "worst_reward"))
        if mean is None or worst is None:
            return Item(), {}
        return Item(f"{mean.mean:.3f} ({worst.mean:.3f})"), {"what": "reward", **score_record(mean)}

    return _by_attack(
        study,
        cell,
        name="reward",
        title="Mean reward of the honest peers",
        caption="Of greedy texts behind the test rows, after the last step; in parentheses that of the worst honest "
        "peer. Means over seeds. Accuracy is the share of texts whose reward passes.",
    )


def _outcomes(
    study: Collab,
    frame: Frame,
    which: str,
    usual: int | None,
    fields: Callable[[Outcome], dict[str, Any]],
    more: Callable[[Collab, Setting, list[str]], list[list[Item]]] = lambda study, setting, names: [],
) -> tuple[list[tuple[Item, ...]], list[dict[str, Any]]]:
    """A row for every algorithm in every setting with such an accuracy, and a record of every outcome.

    Args:
        study: the runs.
        frame: label columns.
        which: accuracy in the columns, one for each attack: "worst" or "mean" of the honest peers.
        usual: number of seeds of most outcomes.
        fields: numbers of a record.
        more: further columns.
    """
    rows: list[tuple[Item, ...]] = []
    records: list[dict[str, Any]] = []
    for setting in study.settings:
        names, columns, measured = at(study, setting), [], which == "worst"
        for attack in _attacks(study):
            endings = [study.outcome(name, attack, setting) for name in names]
            columns.append(_items(endings, which, usual))
            measured |= any(ending is not None and ending.mean is not None for ending in endings)
            for name, ending in zip(names, endings, strict=True):
                records += [_record(name, attack, setting) | fields(ending)] if ending is not None else []
        columns += more(study, setting, names)
        if measured:
            for name, *items in zip(names, *columns, strict=True):
                rows.append((*frame.items(study, setting, name), *items))
    return rows, records


def _worst_columns(study: Collab, setting: Setting, names: list[str]) -> list[list[Item]]:
    weakest = [study.weakest(name, setting) for name in names]
    attacks = [Item() if one is None else Item(attack_name(one.attack) + one.so_far) for one in weakest]
    return [attacks, [_gap_item(gap(study, one, setting), one) for one in weakest]]


def at(study: Collab, setting: Setting) -> list[str]:
    """Algorithms with a run there; D-SGD also where it only stands in from elsewhere."""
    names = {run.algorithm for run in study.runs if run.setting == setting}
    names |= {REFERENCE} if study.reference(setting) else set()
    return sorted(names, key=algorithm_order)


def _attacks(study: Collab) -> list[str]:
    """Columns: no attack first, wherever D-SGD ran without attackers."""
    return unique([*(run.attack for run in study.runs if run.attack == NO_ATTACK), *study.attacks])


def _items(endings: Sequence[Outcome | None], which: str, usual: int | None) -> list[Item]:
    """A column of outcomes, the best in bold, what diverged or failed marked."""
    scores: list[Score | None] = [None if ending is None else getattr(ending, which) for ending in endings]
    texts = [outcome_text(ending, which, usual=usual) for ending in endings]
    lost = [ending is not None and bool(ending.diverged or ending.failed) for ending in endings]
    return [item._replace(warn=warn) for item, warn in zip(marked(texts, scores), lost, strict=True)]


def _gap_item(points: float | None, weakest: Weakest | None) -> Item:
    if points is None or weakest is None:
        return Item()
    text = f"{points:+.1f}"
    return Item(weakest.bound + ("0.0" if float(text) == 0 else text.replace("-", "\u2212")))


def _record(algorithm: str, attack: str, setting: Setting) -> dict[str, Any]:
    split, symbols = setting.split, {"alpha": ALPHA, "gamma": GAMMA}
    parameters = {name: split.value if split.symbol == symbol else None for name, symbol in symbols.items()}
    named = {"algorithm": algorithm, "attack": attack, "split": split.kind}
    return {**named, **parameters, "n": setting.n, "f": setting.f}


def _outcome_record(ending: Outcome) -> dict[str, Any]:
    worst, mean = score_record(ending.worst), score_record(ending.mean)
    record = {"worst_accuracy": worst["mean"], "worst_accuracy_std": worst["std"]}
    record |= {"mean_accuracy": mean["mean"], "mean_accuracy_std": mean["std"], "seeds": worst["seeds"]}
    return record | {"diverged": ending.diverged, "failed": ending.failed}


def worst(study: Collab) -> Table:
    """The numbers of the heat maps: worst accuracy under the worst attack (columns: data; rows: algorithm and f)."""
    usual, splits = usual_seeds(study), study.splits
    heads = ("Algorithm", "Peers") if len(study.peers) > 1 else ("Algorithm",)
    rows, records = [], []
    for name in study.algorithms:
        for n, f in study.peers:
            weakest = {setting: study.weakest(name, setting) for setting in (Setting(split, n, f) for split in splits)}
            if not any(weakest.values()):
                continue
            labels = (Item(algorithm_name(name)), Item(study.among(Setting(splits[0], n, f)) or NOTHING))
            rows.append((*labels[: len(heads)], *(_weakest_item(one, usual) for one in weakest.values())))
            for setting, one in weakest.items():
                if one is not None:
                    record = _record(name, one.attack, setting) | _outcome_record(one.outcome)
                    records.append(record | {"complete": one.complete, "gap_points": gap(study, one, setting)})
    return Table(
        name="worst-attack",
        title=f"Worst accuracy under the worst attack, in %{_tail(study)}",
        caption="Test accuracy of the worst honest peer, mean over seeds, under the attack that makes it lowest (in "
        f"parentheses). {seeds_sentence(usual)} ≤: an attack has no result yet, so that another one may be worse.",
        labels=len(heads),
        columns=tuple(map(Column, (*heads, *(split.short or "data" for split in splits)))),
        rows=tuple(rows),
        records=tuple(records),
    )


def _tail(study: Collab) -> str:
    return f", {study.peers_tail}" if study.peers_tail else ""


def _weakest_item(weakest: Weakest | None, usual: int | None) -> Item:
    if weakest is None:
        return Item()
    text = f"{weakest.bound}{outcome_text(weakest.outcome, usual=usual)} ({attack_name(weakest.attack)})"
    return Item(text, warn=bool(weakest.outcome.diverged))


def mixing(study: Collab, name: str) -> Table:
    """Empirical alpha or lambda of the mixings (columns: attacks): median over runs of medians, largest maximum."""
    title, meaning = MIXING[name]

    def cell(runs: list[Run]) -> tuple[Item, dict[str, Any]]:
        middle = median(run.ratio(name, "median") for run in runs)
        tops = [value for run in runs if (value := run.ratio(name, "max")) is not None]
        numbers = {"median": middle, "max": max(tops, default=None)}
        record = {"what": name, **numbers, "runs": len(runs)} if middle is not None or tops else {}
        return _mixing_item(*numbers.values(), limit=name == "alpha"), record

    return _by_attack(
        study,
        cell,
        name=name,
        title=f"{title} in a mixing",
        caption=f"Median over all mixings of models, and in parentheses their maximum. {meaning} Median over the "
        "seeds of a run's median; largest maximum of all seeds.",
    )


def _by_attack(study: Collab, cell: Callable[[list[Run]], tuple[Item, dict[str, Any]]], **about: str) -> Table:
    """A row for every algorithm in every setting with a number under an attack (columns).

    ``cell`` makes an item of the runs of a cell, and the numbers of its record; empty without any.
    """
    frame, attacks = Frame.of(study), _attacks(study)
    rows, records = [], []
    for setting in study.settings:
        for algorithm in at(study, setting):
            items = []
            for attack in attacks:
                runs = [run for run in study.of(algorithm, attack, setting) if run.status != FAILED]
                item, numbers = cell(runs)
                items.append(item)
                records += [_record(algorithm, attack, setting) | numbers] if numbers else []
            if not all(item.empty for item in items):
                rows.append((*frame.items(study, setting, algorithm), *items))
    return frame.table(**about, columns=map(attack_name, attacks), rows=rows, records=records)


def _mixing_item(middle: float | None, top: float | None, *, limit: bool) -> Item:
    if middle is None and top is None:
        return Item()
    texts = [NOTHING if middle is None else _figure(middle), *([] if top is None else [f"({_figure(top)})"])]
    return Item(" ".join(texts), warn=limit and middle is not None and middle >= 1)


def _figure(value: float) -> str:
    """Two digits, plain where that is short."""
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:#.2g}".rstrip(".") if 0 < abs(value) < 100 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def cost(study: Collab) -> Table:
    """What a run takes of every algorithm (rows): medians over attacks, splits and seeds."""
    heads = ("Peers", "Algorithm") if len(study.peers) > 1 else ("Algorithm",)
    rows, records = [], []
    for n, f in study.peers:
        settings = [setting for setting in study.settings if (setting.n, setting.f) == (n, f)]
        references = [run for setting in settings for run in study.reference(setting)]
        base = median(run.number("gradients_per_peer") for run in references)
        for name in unique(name for setting in settings for name in at(study, setting)):
            runs = [run for run in study.runs if run.algorithm == name and run.setting in settings] or references
            numbers = _costs(study, [run for run in runs if run.status != FAILED], base)
            labels = (Item(study.among(settings[0]) or NOTHING), Item(algorithm_name(name)))
            items = [_cost_item(numbers[field], form, unit) for field, form, unit in COSTS.values()]
            if not all(item.empty for item in items[:-1]):
                rows.append((*labels[-len(heads) :], *items))
            records.append({"algorithm": name, "n": n, "f": f, **numbers, "runs": len(runs)})
    return Table(
        name="cost",
        title=f"Cost{_tail(study)}",
        caption="Medians over attacks, splits and seeds. Gradients (forward passes, where coefficients are "
        "exchanged) of single examples by each honest peer. \u00d7 D-SGD: that over the same of D-SGD without "
        "attackers; where there is none, over one for each example. MB = 1e6 bytes per honest peer and step. "
        "Seconds are those of the whole simulation, the search for the strength of an attack included, without "
        f"evaluations; they are comparable only within one machine."
        f"{finished_runs.origin(run.record for run in study.runs)}",
        labels=len(heads),
        columns=tuple(map(Column, (*heads, *COSTS))),
        rows=tuple(rows),
        records=tuple(records),
    )


def _costs(study: Collab, runs: Sequence[Run], base: float | None) -> dict[str, float | None]:
    names = ("gradients_per_peer", "bytes_per_peer_step", "train_seconds")
    medians = {name: median(run.number(name) for run in runs) for name in names}
    gradients = medians["gradients_per_peer"]
    overhead = gradients / base if gradients is not None and base else None
    if overhead is None:
        overhead = median(run.number("gradient_overhead") for run in runs)
    if overhead is None:
        overhead = median(number(facts_of(study, run, "result.json").get("gradient_overhead")) for run in runs)
    return {**medians, "gradient_overhead": overhead, "ended": float(len(runs))}


def _cost_item(value: float | None, form: str, unit: float) -> Item:
    if value is None:
        return Item()
    return Item(f"{value / unit:,.0f}" if value / unit >= 1000 else form.format(value / unit).rstrip("."))
