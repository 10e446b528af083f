"""The tables of a peer's run: what happened to whose rows, by the log and as this peer saw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradless.peers.scores import PeerFacts, omitting
from gradless.report.common.numbers import number, show
from gradless.report.common.read import mapping
from gradless.report.common.table import NOTHING, Column, Item, Table
from gradless.report.peers.record import PeerRecord

HEADS = ("peer", "rows in", "left out", "led/failed", "among extremes", "score", "banned from")


def all_tables(record: PeerRecord) -> list[Table]:
    """The tables of the page, empty ones included."""
    return [peers(record), omissions(record), latency(record)]


def from_log(some: Sequence[PeerFacts], names: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table of a log as texts: heads, and a row a peer."""
    return HEADS, [
        (
            names[one.peer],
            f"{one.heard:,}",
            f"{sum(one.omitted.values()):,}",
            f"{one.led:,}/{one.failed:,}",
            _share(one.trimmed, one.expected),
            NOTHING if one.score is None else f"{one.score:.1f}",
            NOTHING if one.banned is None else str(one.banned),
        )
        for one in some
    ]


def peers(record: PeerRecord) -> Table:
    """A row for each peer: what the log tells of it, and what this peer saw and was told."""
    known = {str(one.get("name")): one for one in _list(record.status.get("peers")) if isinstance(one, dict)}
    late = [sum(peer in step.late for step in record.steps) for peer in range(len(record.names))]
    rows, records = [], []
    _, texts = from_log(record.facts, record.names)
    for peer, name in enumerate(record.names):
        seen = known.get(name, {})
        told = seen.get("weights_sha256")
        cells = texts[peer] if texts else (name, str(seen.get("heard", NOTHING)), *(NOTHING,) * 5)
        warn = bool(record.facts and (record.facts[peer].banned is not None or (record.facts[peer].score or 0) < -3))
        weights = str(told)[:12] if told else NOTHING
        mine = f"{name} (this one)" if name == record.me else name
        rows.append(
            (
                Item(mine),
                *(Item(text, warn=warn and text != NOTHING) for text in cells[1:]),
                Item(f"{late[peer]:,}"),
                Item(weights),
            )
        )
        fact = record.facts[peer] if record.facts else None
        records.append(
            {
                "peer": name,
                "heard": fact.heard if fact else number(seen.get("heard")),
                "left_out": sum(fact.omitted.values()) if fact else None,
                "late": late[peer],
                "led": fact.led if fact else None,
                "failed": fact.failed if fact else None,
                "trimmed": fact.trimmed if fact else None,
                "score": fact.score if fact and fact.score is not None and math.isfinite(fact.score) else None,
                "banned": fact.banned if fact else None,
                "weights_sha256": told,
            }
        )
    caption = (
        "Rows in: steps whose value holds the peer's row. Left out: the other steps, up to its ban. Led/failed: values "
        "that it proposed, and rounds that it lost. Among extremes: share of its coefficients among the f lowest or "
        "highest of their column, with the usual share. Score: median t-value of its products with the others' "
        "coefficients; honest peers with like data have -1 to 2. Late here: of those left out the rows that had not "
        "come to this peer when the step was decided. Weights: the hash that it last stated. Scores and shares are "
        "reasons to look, no proofs."
    )
    columns = tuple(map(Column, (*HEADS, "late here", "weights")))
    return Table("peers", "Peers", caption, 1, columns, tuple(rows), tuple(records))


def omissions(record: PeerRecord) -> Table:
    """Who left out whom: rows that are missing in the values of each leader."""
    led = {one.peer: one.led for one in record.facts}
    unusual = {(leader, peer) for leader, peer, _ in omitting(record.facts)}
    rows, records = [], []
    for one in record.facts:
        if not one.omitted:
            continue
        values = [one.omitted.get(leader, 0) for leader in range(len(record.names))]
        texts = [
            Item(
                NOTHING if not led[leader] else f"{value:,} of {led[leader]:,}",
                warn=(leader, one.peer) in unusual,
            )
            for leader, value in enumerate(values)
        ]
        rows.append((Item(record.names[one.peer]), *texts))
        records += [
            {"peer": record.names[one.peer], "leader": record.names[leader], "left_out": value, "led": led[leader]}
            for leader, value in enumerate(values)
        ]
    caption = (
        "Steps without a row of the peer on the left, of those whose value the peer above proposed. A slow peer is "
        "missing under every leader; one that a single leader leaves out was in time for the others (marked)."
    )
    columns = (Column("left out"), *(Column(name, "leader") for name in record.names))
    return Table("omissions", "Rows that are missing, by leader", caption, 1, columns, tuple(rows), tuple(records))


def latency(record: PeerRecord) -> Table:
    """Seconds of a step: median, 95th percentile, longest."""
    rows, records = [], []
    for name, title in (
        ("probe_seconds", "own forward passes"),
        ("agree_seconds", "agreement, from the own row to the decision"),
        ("seconds", "whole step"),
    ):
        values = sorted(value for step in record.steps if (value := getattr(step, name)) is not None)
        if not values:
            continue
        at = [values[len(values) // 2], values[min(len(values) - 1, math.ceil(0.95 * len(values)))], values[-1]]
        rows.append((Item(title), *(Item(f"{1000 * value:,.1f}") for value in at)))
        records.append({"what": name, **dict(zip(("median", "p95", "longest"), at, strict=True))})
    columns = tuple(map(Column, ("milliseconds", "median", "95 %", "longest")))
    return Table("latency", "Time of a step", "As this peer measured it.", 1, columns, tuple(rows), tuple(records))


def facts(record: PeerRecord) -> dict[str, str]:
    """Facts about the run, by name."""
    manifest, result = record.run.manifest, record.result
    config = manifest.config
    values: dict[str, Any] = {
        "run, SHA-256 of its manifest": manifest.sha256,
        "this peer": record.me or None,
        "peers": f"{len(record.names)}, of which {manifest.f} may lie",
        "exchange": config.payload,
        "rule": config.rule or config.algorithm,
        "model": config.model or config.net or config.dataset,
        "steps": f"{record.taken:,} of {config.steps:,}",
        "digest of the last value": record.log.digests[-1].hex()
        if record.log is not None and record.log.steps
        else None,
        "weights, SHA-256": result.get("weights_sha256"),
        "base weights, SHA-256": manifest.contents.base_sha256 or None,
        "bytes sent a step": result.get("bytes_per_step"),
        "mean reward on test rows": mapping(result.get("test")).get("reward"),
        "share of texts that pass" if record.rewarded else "accuracy on test rows": result.get("accuracy"),
        "committed to their rows": ", ".join(one.name for one in manifest.peers if one.commitment) or "nobody",
    }
    return {name: show(value) for name, value in values.items() if value is not None}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _share(trimmed: float | None, expected: float | None) -> str:
    if trimmed is None:
        return NOTHING
    return f"{trimmed:.0%}" + (f" (usual {expected:.0%})" if expected is not None else "")
