"""What ``report.html`` of one run says; ``page.html.j2`` says it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gradless import plugins
from gradless.forward.engines import EngineChoice
from gradless.methods import FIRST, FORWARD, HYBRID
from gradless.report.common.numbers import counted, show
from gradless.report.common.page import inlined, render
from gradless.report.common.read import mapping
from gradless.report.common.table import NOTHING, Table
from gradless.report.run.figures import Drawing
from gradless.report.run.record import RunRecord
from gradless.report.run.tables import classes, data_facts, reward_facts
from gradless.report.run.verdict import shares, verdict
from gradless.runs.config import RECORDED
from gradless.runs.config_io import tune_command
from gradless.runs.replay import shared, shared_values

ABOUT_COEFFICIENTS = {
    FORWARD: "A coefficient is the slope of the batch's loss along one random direction, by forward mode.",
    HYBRID: "Coefficients are of the layers below; the last layers had gradients by backpropagation.",
    FIRST: "",
}
USUAL = (
    "A coefficient (projected gradient) is the slope of the batch's loss along one random direction, from losses at "
    "perturbed weights. These numbers are all that training keeps: with the base model they give the tuned weights "
    "again, bit for bit. Their sign is as random as the direction; their size tells how steep the loss is."
)
OF_REWARDS = (
    "A coefficient says how the texts of a model that is perturbed along one random direction were rewarded, compared "
    "with those of the other members of the step; it is negative where they were better. These numbers are all that "
    "training keeps: with the base model they give the tuned weights again, bit for bit, without a text or a reward."
)
SECTIONS = {"training": ("training-",), "cost": ("speed", "memory"), "gradients": ("gradients-",)}
"""First letters of the names of the pictures in a section."""


def page(record: RunRecord, tables: Sequence[Table], drawings: Sequence[Drawing], *, drawn: bool = True) -> str:
    """The page, without scripts and without anything to load; text of users is escaped.

    Args:
        record: the run.
        tables: of `gradless.report.run.tables`.
        drawings: of `gradless.report.run.figures`.
        drawn: False where matplotlib is missing.
    """
    by_name = {table.name: table for table in tables}
    config, folder = shared_values(record.config), _folder(record)
    known = (record.config, config)
    header = {name: value for name, value in record.header.items() if name != "config" or value not in known}
    return render(
        "run/page.html.j2",
        title=f"{record.model} on {record.task}",
        record=record,
        lead=_lead(record),
        verdict=verdict(record),
        tiles=list(_tiles(record)),
        outcome=by_name["outcome"],
        cost=by_name["cost"],
        data=data_facts(record),
        classes=classes(record),
        rewards=reward_facts(record),
        pass_at=by_name.get("pass-at"),
        prompt=record.data.prompt if record.data is not None else None,
        warnings=record.data.warnings if record.data is not None else [],
        examples=[table for name, table in by_name.items() if name.startswith("examples-")],
        drawings=inlined((drawing.name, drawing.title, drawing.svg) for drawing in drawings),
        by_section={id_: [one for one in drawings if one.name.startswith(start)] for id_, start in SECTIONS.items()},
        drawn=drawn,
        coefficients=_about_coefficients(record),
        command=tune_command(shared(record.settings), folder) if record.settings is not None else "",
        replay=_replay(record, folder),
        remarks=[remark.replace(str(record.folder), folder) for remark in record.remarks],
        facts=_facts(record),
        config=_json(config),
        header=_json(header) if header else "",
        same_config="config" not in header,
    )


def _about_coefficients(record: RunRecord) -> str:
    family = record.preset.family if record.preset else ""
    return ABOUT_COEFFICIENTS.get(family, OF_REWARDS if record.rewarded else USUAL)


def _folder(record: RunRecord) -> str:
    """Return the run's folder as whoever gets the page may read it: no other folders of this machine."""
    local = record.folder.is_absolute() or ".." in record.folder.parts
    return record.folder.resolve().name if local else str(record.folder)


def _lead(record: RunRecord) -> str:
    config = record.config
    options = [f"{name} {show(config.get(field))}" for name, field in (("learning rate", "lr"), ("eps", "eps"))]
    steps = f"{counted(record.planned, 'step')} of {show(config.get('batch_size'))} examples"
    seed = f"seed {show(config.get('seed', 0))}"
    return ", ".join([record.method, f"scheme {config.get('scheme', 'full')}", steps, *options, seed]) + "."


class Tile(NamedTuple):
    """A large number with its name above, its interval and a remark below."""

    name: str
    value: str
    below: list[str]


def _tiles(record: RunRecord) -> Iterator[Tile]:
    """Three large numbers: zero-shot, tuned, difference; none while test is not scored."""
    name = record.metric
    zero_shot, tuned = record.numbers("zero_shot").get(name), record.numbers("test").get(name)
    if tuned is None:
        return
    right = shares(record)
    changed = "" if right.fixed is None else f"{right.fixed:,} fixed, {right.broken:,} broken"
    difference = None if zero_shot is None else tuned - zero_shot
    for part, title, value, form, remark in (
        ("zero_shot", f"zero-shot {name}", zero_shot, ".3f", ""),
        ("test", f"tuned {name}", tuned, ".3f", ""),
        ("difference", "difference", difference, "+.3f", changed),
    ):
        ends = record.interval_of(name, part)
        interval = f"95 %: {ends[0]:{form}} to {ends[1]:{form}}" if ends else ""
        yield Tile(
            title, NOTHING if value is None else f"{value:{form}}", [text for text in (interval, remark) if text]
        )


def _replay(record: RunRecord, folder: str) -> str:
    """Commands that rebuild the weights from the ledger; empty for a method that has none."""
    if record.preset is not None and not record.preset.replays:
        return ""
    verify = ["--verify"] if record.result.get("weights_sha256") else []
    used = shared_values({"plugins": mapping(record.config.get("plugins"))})["plugins"]
    replay = ["gradless", "replay", folder, *plugins.arguments(used)]
    return (
        f"{shlex.join(replay + verify)}\n{shlex.join([*replay, '--save', 'model'])}  # as a model that others can load"
    )


def _facts(record: RunRecord) -> dict[str, str]:
    result, header = record.result, record.header
    rows = mapping(result.get("rows"))
    tuned = result.get("tuned_parameters") or header.get("tuned_parameters")
    facts: dict[str, Any] = {
        "weights, SHA-256": result.get("weights_sha256"),
        "base weights, SHA-256": result.get("base_sha256") or header.get("base_sha256"),
        "data, SHA-256": result.get("data_sha256") or header.get("data_sha256"),
        "ledger": f"{record.ledger_bytes:,} bytes, {counted(len(record.steps), 'step')}" if header else None,
        "rows": ", ".join(f"{value} {name}" for name, value in rows.items()) or None,
        "tuned parameters": f"{tuned:,}" if isinstance(tuned, int) else None,
        "seed": record.config.get("seed"),
        "device": record.config.get("device"),
        "dtype": header.get("dtype") or record.config.get("dtype"),
        "engine": _engine(record),
        **mapping(result.get("versions")),
    }
    return {name: show(value) for name, value in facts.items() if value is not None}


def _engine(record: RunRecord) -> Any:
    """The engine, and how it was chosen where it was."""
    engine = record.result.get("engine") or record.config.get("engine")
    choice = EngineChoice.from_json(record.config.get(RECORDED))
    return engine if choice is None or choice.engine != engine else str(choice)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
