"""The tables of collaborative runs: accuracy under each attack, the worst attack, mixing, and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gradless.bench.results import FAILED
from gradless.report.collab.names import (
    ALPHA,
    GAMMA,
    NO_ATTACK,
    REFERENCE,
    algorithm_name,
    algorithm_order,
    attack_name,
)
from gradless.report.collab.study import Collab, Outcome, Place, Run, Weakest, facts_of, outcome
from gradless.report.common.numbers import Score, median, number, unique, usual_count
from gradless.report.common.table import NOTHING, Column, Item, Table, marked, score_record
from gradless.system import finished_runs

MEGABYTE = 1e6
MIXING = {"alpha": "Contraction (alpha)", "lambda": "Drift of the mean (lambda)"}


def all_tables(study: Collab) -> list[Table]:
    """Every table that the results have something for."""
    found = [accuracy(study), mean_accuracy(study), *([worst(study)] if len(study.places) > 1 else [])]
    found += [*(mixing(study, name) for name in MIXING), cost(study)]
    return [table for table in found if table.rows]


class Frame(NamedTuple):
    """The label columns of a table over several places: what varies; what does not goes into its title."""

    heads: tuple[str, ...]
    tail: str
    short: bool
    """All splits are of one kind, so that their parameters tell them apart."""

    @staticmethod
    def of(study: Collab) -> Frame:
        """For all places of a study."""
        splits, peers = study.splits, study.peers
        kinds = unique(split.head for split in splits)
        data = splits[0].label if len(splits) == 1 else kinds[0] if len(kinds) == 1 else ""
        same = (data, study.peers_tail)
        heads = (("Data",) if len(splits) > 1 else ()) + (("Peers",) if len(peers) > 1 else ())
        return Frame(heads, "".join(f", {text}" for text in same if text), len(kinds) == 1)

    def items(self, study: Collab, place: Place) -> tuple[Item, ...]:
        """Label entries of a place."""
        texts = {"Data": place.split.short if self.short else place.split.label, "Peers": study.among(place)}
        return tuple(Item(texts[head] or NOTHING) for head in self.heads)

    @property
    def bold(self) -> str:
        """What bold numbers are."""
        return f"Bold: best of the column{' for the same data and peers' if self.heads else ''}."

    @property
    def columns(self) -> tuple[Column, ...]:
        """Their headings."""
        return tuple(Column(head) for head in self.heads)


def percent(value: float) -> str:
    """``0.9534`` -> ``95.3``."""
    return f"{100 * value:.1f}"


def outcome_text(found: Outcome | None, which: str = "worst", *, usual: int | None = None) -> str:
    """``95.3 ± 0.2``, with what happened to the runs: ``(n=2)`` of another number of seeds, ``(1 diverged)``."""
    if found is None:
        return NOTHING
    mean: Score | None = getattr(found, which)
    ends = [f"{found.diverged} diverged"] if found.diverged else []
    ends += [f"{found.failed} failed"] if found.failed else []
    if mean is None:
        return "diverged" if found.diverged else "failed" if found.failed else NOTHING
    if mean.n != usual:
        ends.insert(0, f"n={mean.n}")
    spread = "" if mean.std is None else f" ± {percent(mean.std)}"
    return f"{percent(mean.mean)}{spread}" + (f" ({', '.join(ends)})" if ends else "")


def usual_seeds(study: Collab) -> int | None:
    """The number of seeds that most combinations of algorithm, attack and place have."""
    endings = [study.outcome(*key) for key in unique((run.algorithm, run.attack, run.place) for run in study.runs)]
    return usual_count(found.worst for found in endings if found is not None)


def seeds_sentence(usual: int | None) -> str:
    """What ± means."""
    if usual is None:
        return ""
    if usual == 1:
        return "One seed; (n=...) where there are more."
    return f"Mean ± sample standard deviation over {usual} seeds; (n=...) where the number differs."


def gap(study: Collab, found: Weakest | None, place: Place) -> float | None:
    """Worst accuracy under the worst attack less that of D-SGD without attackers, in points; negative is below."""
    calm = outcome(study.reference(place)).worst
    if found is None or found.outcome.worst is None or calm is None:
        return None
    return 100 * (found.outcome.worst.mean - calm.mean)


def accuracy(study: Collab) -> Table:
    """Accuracy of the worst honest peer of every algorithm (rows) under each attack (columns), worst attack and gap."""
    frame, usual, attacks = Frame.of(study), usual_seeds(study), _attacks(study)
    rows, records = [], []
    for place in study.places:
        names = at(study, place)
        columns = []
        for attack in attacks:
            found = [study.outcome(name, attack, place) for name in names]
            columns.append(_items(found, "worst", usual))
            records += [
                _record(name, attack, place) | _outcome_record(one)
                for name, one in zip(names, found, strict=True) if one is not None
            ]  # fmt: skip
        weakest = [study.weakest(name, place) for name in names]
        gaps = [gap(study, one, place) for one in weakest]
        columns.append([Item(_weakest_text(one)) for one in weakest])
        columns.append([_gap_item(value, one) for value, one in zip(gaps, weakest, strict=True)])
        rows += [
            (*frame.items(study, place), Item(algorithm_name(name)), *items)
            for name, *items in zip(names, *columns, strict=True)
        ]
    return Table(
        name="accuracy",
        title=f"Accuracy of the worst honest peer, in %{frame.tail}",
        caption=f"Test accuracy after the last step. {seeds_sentence(usual)} Worst attack: the one under which it is "
        "lowest; so far, and ≤: an attack has no result yet, so that it may be worse. Gap: accuracy under the worst "
        "attack less that of D-SGD without attackers on the same data, in points; negative is below. Diverged runs "
        f"count with the accuracy they had. {frame.bold}",
        labels=len(frame.heads) + 1,
        columns=(
            *frame.columns, Column("Algorithm"), *(Column(attack_name(attack)) for attack in attacks),
            Column("worst attack"), Column("gap"),
        ),
        rows=tuple(rows),
        records=tuple(records),
    )  # fmt: skip


def mean_accuracy(study: Collab) -> Table:
    """Mean accuracy of the honest peers of every algorithm (rows) under each attack (columns)."""
    frame, usual, attacks = Frame.of(study), usual_seeds(study), _attacks(study)
    rows, records = [], []
    for place in study.places:
        names = at(study, place)
        found = [[study.outcome(name, attack, place) for name in names] for attack in attacks]
        columns = [_items(ones, "mean", usual) for ones in found]
        if any(one is not None and one.mean is not None for ones in found for one in ones):
            rows += [
                (*frame.items(study, place), Item(algorithm_name(name)), *items)
                for name, *items in zip(names, *columns, strict=True)
            ]
        for attack, ones in zip(attacks, found, strict=True):
            records += [
                _record(name, attack, place) | score_record(one.mean)
                for name, one in zip(names, ones, strict=True) if one is not None
            ]  # fmt: skip
    return Table(
        name="mean-accuracy",
        title=f"Mean accuracy of the honest peers, in %{frame.tail}",
        caption=f"Test accuracy after the last step. {seeds_sentence(usual)} {frame.bold}",
        labels=len(frame.heads) + 1,
        columns=(*frame.columns, Column("Algorithm"), *(Column(attack_name(attack)) for attack in attacks)),
        rows=tuple(rows),
        records=tuple(records),
    )


def at(study: Collab, place: Place) -> list[str]:
    """Algorithms with a run there; D-SGD also where it only stands in from elsewhere."""
    names = {run.algorithm for run in study.runs if run.place == place}
    names |= {REFERENCE} if study.reference(place) else set()
    return sorted(names, key=algorithm_order)


def _attacks(study: Collab) -> list[str]:
    """Columns: no attack first, wherever D-SGD ran without attackers."""
    calm = [NO_ATTACK] if any(run.attack == NO_ATTACK for run in study.runs) else []
    return unique([*calm, *study.attacks])


def _items(found: Sequence[Outcome | None], which: str, usual: int | None) -> list[Item]:
    """A column of outcomes, the best in bold, what diverged or failed marked."""
    scores: list[Score | None] = [None if one is None else getattr(one, which) for one in found]
    texts = [outcome_text(one, which, usual=usual) for one in found]
    items = marked(texts, [score and score.mean for score in scores], [False] * len(texts))
    return [
        item._replace(warn=one is not None and bool(one.diverged or one.failed))
        for item, one in zip(items, found, strict=True)
    ]


def _weakest_text(found: Weakest | None) -> str:
    if found is None:
        return NOTHING
    return attack_name(found.attack) + ("" if found.complete else " (so far)")


def _gap_item(points: float | None, found: Weakest | None) -> Item:
    if points is None or found is None:
        return Item()
    return Item(("" if found.complete else "≤ ") + _signed(points))


def _signed(points: float) -> str:
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")


def _record(algorithm: str, attack: str, place: Place) -> dict[str, Any]:
    return {"algorithm": algorithm, "attack": attack, **_place_record(place)}


def _place_record(place: Place) -> dict[str, Any]:
    split = place.split
    values = {
        name: split.value if split.symbol == symbol else None for name, symbol in (("alpha", ALPHA), ("gamma", GAMMA))
    }
    return {"split": split.kind, **values, "n": place.n, "f": place.f}


def _outcome_record(found: Outcome) -> dict[str, Any]:
    worst_, mean = score_record(found.worst), found.mean
    return {
        "worst_accuracy": worst_["mean"], "worst_accuracy_std": worst_["std"], "mean_accuracy": mean and mean.mean,
        "mean_accuracy_std": mean and mean.std, "seeds": worst_["seeds"], "diverged": found.diverged,
        "failed": found.failed,
    }  # fmt: skip


def worst(study: Collab) -> Table:
    """The numbers of the heat maps: worst accuracy under the worst attack (columns: data; rows: algorithm and f)."""
    usual, splits = usual_seeds(study), study.splits
    several = len(study.peers) > 1
    rows, records = [], []
    for name in study.algorithms:
        for n, f in study.peers:
            found = [study.weakest(name, Place(split, n, f)) for split in splits]
            if not any(found):
                continue
            label = (Item(study.among(Place(splits[0], n, f)) or NOTHING),) if several else ()
            rows.append((Item(algorithm_name(name)), *label, *(_weakest_item(one, usual) for one in found)))
            for split, one in zip(splits, found, strict=True):
                if one is not None:
                    place = Place(split, n, f)
                    record = _record(name, one.attack, place) | _outcome_record(one.outcome)
                    records.append(record | {"complete": one.complete, "gap_points": gap(study, one, place)})
    tail = f", {study.peers_tail}" if study.peers_tail else ""
    return Table(
        name="worst-attack",
        title=f"Worst accuracy under the worst attack, in %{tail}",
        caption="Test accuracy of the worst honest peer, mean over seeds, under the attack that makes it lowest (in "
        f"parentheses). {seeds_sentence(usual)} ≤: an attack has no result yet, so that another one may be worse.",
        labels=2 if several else 1,
        columns=(
            Column("Algorithm"), *([Column("Peers")] if several else []), *(Column(s.short or "data") for s in splits),
        ),
        rows=tuple(rows),
        records=tuple(records),
    )  # fmt: skip


def _weakest_item(found: Weakest | None, usual: int | None) -> Item:
    if found is None:
        return Item()
    bound = "" if found.complete else "≤ "
    text = f"{bound}{outcome_text(found.outcome, usual=usual)} ({attack_name(found.attack)})"
    return Item(text, warn=bool(found.outcome.diverged))


def mixing(study: Collab, name: str) -> Table:
    """Empirical alpha or lambda of the mixings (columns: attacks): median over runs of medians, largest maximum."""
    frame, attacks = Frame.of(study), _attacks(study)
    title = MIXING[name]
    rows, records = [], []
    for place in study.places:
        for algorithm in at(study, place):
            items = []
            for attack in attacks:
                runs = [run for run in study.of(algorithm, attack, place) if run.status != FAILED]
                middle = median(run.ratio(name, "median") for run in runs)
                tops = [value for run in runs if (value := run.ratio(name, "max")) is not None]
                items.append(_mixing_item(middle, max(tops, default=None), limit=name == "alpha"))
                if middle is not None or tops:
                    numbers = {"median": middle, "max": max(tops, default=None), "runs": len(runs)}
                    records.append({**_record(algorithm, attack, place), "what": name, **numbers})
            if any(item.text != NOTHING for item in items):
                rows.append((*frame.items(study, place), Item(algorithm_name(algorithm)), *items))
    meaning = {
        "alpha": "alpha: spread of the honest peers after a mixing over that before (mean squared distances to the "
        "mean); below 1 peers come together. Marked where the median is 1 or more.",
        "lambda": "lambda: squared shift of the honest mean in a mixing over the spread of the honest peers "
        "before; 0 means that the mean stays where it is.",
    }
    return Table(
        name=name,
        title=f"{title} in a mixing{frame.tail}",
        caption=f"Median over all mixings of models, and in parentheses their maximum. {meaning[name]} Median over the "
        "seeds of a run's median; largest maximum of all seeds.",
        labels=len(frame.heads) + 1,
        columns=(*frame.columns, Column("Algorithm"), *(Column(attack_name(attack)) for attack in attacks)),
        rows=tuple(rows),
        records=tuple(records),
    )


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
    several = len(study.peers) > 1
    rows, records = [], []
    for n, f in study.peers:
        places = [place for place in study.places if (place.n, place.f) == (n, f)]
        base = median(run.number("gradients_per_peer") for place in places for run in study.reference(place))
        label = (Item(study.among(places[0]) or NOTHING),) if several else ()
        for name in unique(name for place in places for name in at(study, place)):
            runs = [run for run in study.runs if run.algorithm == name and run.place in places]
            runs = runs or [run for place in places for run in study.reference(place)]
            numbers = _costs(study, [run for run in runs if run.status != FAILED], base)
            rows.append((*label, Item(algorithm_name(name)), *_cost_items(numbers)))
            records.append({"algorithm": name, "n": n, "f": f, **numbers, "runs": len(runs)})
    tail = f", {study.peers_tail}" if study.peers_tail else ""
    return Table(
        name="cost",
        title=f"Cost{tail}",
        caption="Medians over attacks, splits and seeds. Gradients (forward passes, where coefficients are "
        "exchanged) of single examples by each honest peer. \u00d7 D-SGD: that over the same of D-SGD without "
        "attackers; where there is none, over one for each example. MB = 1e6 bytes per honest peer and step. "
        "Seconds are those of the whole simulation, the search for the strength of an attack included, without "
        f"evaluations; they are comparable only within one machine."
        f"{finished_runs.origin(run.record for run in study.runs)}",
        labels=2 if several else 1,
        columns=(
            *([Column("Peers")] if several else []), Column("Algorithm"), Column("gradients / peer"),
            Column("\u00d7 D-SGD"), Column("MB / peer and step"), Column("seconds"), Column("runs"),
        ),
        rows=tuple(row for row in rows if any(item.text != NOTHING for item in row[-5:-1])),
        records=tuple(records),
    )  # fmt: skip


def _costs(study: Collab, runs: Iterable[Run], base: float | None) -> dict[str, float | None]:
    runs = list(runs)
    names = ("gradients_per_peer", "bytes_per_peer_step", "train_seconds")
    found = {name: median(run.number(name) for run in runs) for name in names}
    gradients = found["gradients_per_peer"]
    overhead = gradients / base if gradients is not None and base else None
    if overhead is None:
        overhead = median(run.number("gradient_overhead") for run in runs)
    if overhead is None:
        overhead = median(number(facts_of(study, run, "result.json").get("gradient_overhead")) for run in runs)
    return {**found, "gradient_overhead": overhead, "ended": float(len(runs))}


def _cost_items(numbers: dict[str, float | None]) -> tuple[Item, ...]:
    def text(name: str, form: str, scale: float = 1.0) -> Item:
        value = numbers[name]
        if value is None:
            return Item()
        return Item(f"{value / scale:,.0f}" if value / scale >= 1000 else form.format(value / scale).rstrip("."))

    return (
        text("gradients_per_peer", "{:.0f}"), text("gradient_overhead", "{:.2f}"),
        text("bytes_per_peer_step", "{:#.3g}", MEGABYTE), text("train_seconds", "{:#.3g}"), text("ended", "{:.0f}"),
    )  # fmt: skip
