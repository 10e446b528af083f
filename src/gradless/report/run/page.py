"""``report.html`` of one run, by the same builder as that of a benchmark."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Sequence

from gradless.lm.metrics import SHARES
from gradless.methods import FIRST, FORWARD, HYBRID
from gradless.report.common.numbers import show
from gradless.report.common.page import assemble, definitions, inline
from gradless.report.common.read import mapping
from gradless.report.common.table import NOTHING, Table, as_html
from gradless.report.run.figures import Drawing
from gradless.report.run.record import UNFINISHED, RunRecord, counted
from gradless.report.run.verdict import shares, verdict
from gradless.runs.config_io import tune_command
from gradless.runs.record import DONE

ABOUT_COEFFICIENTS = {
    FORWARD: "A coefficient is the slope of the batch's loss along one random direction, by forward mode.",
    HYBRID: "Coefficients are of the layers below; the last layers had gradients by backpropagation.",
}
USUAL = (
    "A coefficient (projected gradient) is the slope of the batch's loss along one random direction, from losses at "
    "perturbed weights. These numbers are all that training keeps: with the base model they give the tuned weights "
    "again, bit for bit. Their sign is a coin's; their size tells how steep the loss is."
)


def page(record: RunRecord, tables: Sequence[Table], drawings: Sequence[Drawing], *, drawn: bool = True) -> str:
    """The page, without scripts and without anything to load; text of users is escaped.

    Args:
        record: the run.
        tables: of `run_tables`.
        drawings: of `run_figures.drawings`.
        drawn: False where nothing could draw pictures.
    """
    by_name = {table.name: as_html(table) for table in tables}
    undrawn = "" if drawn else "<p>No pictures: matplotlib is not installed (pip install 'gradless[plots]').</p>"
    examples = "".join(found for name, found in by_name.items() if name.startswith("examples-"))
    training = _pictures(drawings, "training-") or undrawn or "<p>No step was taken yet.</p>"
    cost = _pictures(drawings, ("speed", "memory")) + by_name["cost"]
    parts = [
        ("result", "Result", _result(record, by_name["outcome"])),
        ("training", "During training", training),
        ("cost", "Speed and memory", cost),
        ("gradients", "Coefficients", _gradients(record, drawings) + undrawn),
        ("examples", "Before and after", examples + _about_examples(record, bool(examples))),
        ("provenance", "How it was made", _provenance(record)),
    ]
    title = f"{record.model} on {record.task}"
    text = assemble(title, "gradless run", _lead(record), parts)
    return text.encode("utf-8", "replace").decode()  # halves of surrogate pairs, which no file can hold


# ------------------------------------------------------------------------------------------------------------
# the head


def _lead(record: RunRecord) -> str:
    config = record.config
    said = f"{record.method}, scheme {config.get('scheme', 'full')}, {counted(record.planned, 'step')}"
    said += f" of {show(config.get('batch_size'))} examples, learning rate {show(config.get('lr'))}"
    said += f", eps {show(config.get('eps'))}, seed {show(config.get('seed', 0))}."
    about = record.preset.summary if record.preset else ""
    title = f' title="{html.escape(about)}"' if about else ""
    kind, text = verdict(record)
    return f'<p class="lead"{title}>{html.escape(said)}</p><p class="verdict {kind}">{html.escape(text)}</p>'


def _result(record: RunRecord, table: str) -> str:
    body = _tiles(record)
    if record.status not in (DONE, UNFINISHED):
        body += f'<p class="missing">Status: {record.status}.</p>'
    body += "".join(f'<p class="missing">{html.escape(remark)}</p>' for remark in record.remarks)
    return body + (table if record.numbers("test") or record.numbers("zero_shot") else "<p>Test was not scored.</p>")


def _tiles(record: RunRecord) -> str:
    """Three large numbers: before, after, difference."""
    name = record.metric
    before, after = record.numbers("zero_shot").get(name), record.numbers("test").get(name)
    if after is None:
        return ""
    ends = {part: record.interval(part) if name in SHARES else None for part in ("zero_shot", "test")}
    gain, found = (None if before is None else after - before), shares(record)
    paired = record.interval("difference") if name in SHARES else None
    moved = "" if found.fixed is None else f"{found.fixed:,} fixed, {found.broken:,} broken"
    return (
        '<div class="tiles">'
        + _tile(f"zero-shot {name}", before, ".3f", ends["zero_shot"])
        + _tile(f"tuned {name}", after, ".3f", ends["test"])
        + _tile("difference", gain, "+.3f", paired, moved)
        + "</div>"
    )


def _tile(name: str, value: float | None, form: str, ends: tuple[float, float] | None, more: str = "") -> str:
    text = NOTHING if value is None else f"{value:{form}}"
    between = f"95 %: {ends[0]:{form}} to {ends[1]:{form}}" if ends else ""
    below = "<br>".join(html.escape(line) for line in (between, more) if line)
    return f"<div><span>{html.escape(name)}</span><strong>{text}</strong><small>{below}</small></div>"


# ------------------------------------------------------------------------------------------------------------
# the sections


def _pictures(drawings: Sequence[Drawing], starts: str | tuple[str, ...]) -> str:
    shown = [(f"p{place}", one) for place, one in enumerate(drawings) if one.name.startswith(starts)]
    figures = "".join(
        f'<figure id="{html.escape(one.name)}"><h3>{html.escape(one.title)}</h3>{inline(one.svg, prefix, one.title)}'
        f"<figcaption>{html.escape(one.caption)}</figcaption></figure>"
        for prefix, one in shown
    )
    return f'<div class="pictures pair">{figures}</div>' if figures else ""


def _gradients(record: RunRecord, drawings: Sequence[Drawing]) -> str:
    order = record.preset.order if record.preset else ""
    if order == FIRST:
        return f"<p>There are none: {html.escape(record.method)} differentiates by backpropagation.</p>"
    body = f"<p>{html.escape(ABOUT_COEFFICIENTS.get(order, USUAL))}</p>" + _pictures(drawings, "gradients-")
    return body if any(step.coeffs for step in record.steps) else body + "<p>None was noted.</p>"


def _about_examples(record: RunRecord, any_shown: bool) -> str:
    if not any_shown:
        if record.numbers("test"):
            return "<p>The run keeps no predictions.jsonl: it was made by an earlier release, or the file is gone.</p>"
        return "<p>Rows are shown once test has been scored.</p>"
    generated = all(one.after.probability is None for one in record.predictions)
    words = "" if generated else "p: share of the chosen option in the softmax over the row's options. "
    words += "Bold: wrong. "
    if not any(one.before for one in record.predictions):
        words += "The untouched model was not evaluated. "
    return f"<p>{words}These are rows of the test data: whoever gets this page can read them.</p>"


def _provenance(record: RunRecord) -> str:
    settings = record.settings
    body = ""
    if settings is not None:
        command = tune_command(settings, record.folder)
        body += f"<h3>The command</h3><pre><code>{html.escape(command)}</code></pre>"
        body += "<p>Written from the run's configuration, in which every blank is filled in.</p>"
    body += f"<h3>Rebuild and check it</h3>{_rebuild(record)}"
    body += f"<h3>Facts</h3>{definitions(_facts(record))}"
    body += f"<h3>config.json</h3>{_json(record.config)}"
    header = {name: value for name, value in record.header.items() if name != "config" or value != record.config}
    if header:
        body += f"<h3>Header of the ledger</h3>{_json(header)}"
        body += (
            "<p>Its copy of the configuration, the same as above, is left out.</p>" if "config" not in header else ""
        )
    return body


def _rebuild(record: RunRecord) -> str:
    folder = str(record.folder)
    if record.preset is not None and not record.preset.replays:
        words = f"No ledger rebuilds the steps of {record.method}; the weights of the best step lie in the folder."
        return f"<p>{html.escape(words)}</p>"
    verify = ["--verify"] if record.result.get("weights_sha256") else []
    lines = [shlex.join(["gradless", "replay", folder, *verify])]
    lines.append(shlex.join(["gradless", "replay", folder, "--save", "model"]) + "  # as a model that others can load")
    return f"<pre><code>{html.escape(chr(10).join(lines))}</code></pre>"


def _facts(record: RunRecord) -> dict[str, str]:
    result, header = record.result, record.header
    rows = mapping(result.get("rows"))
    facts = {
        "weights, SHA-256": result.get("weights_sha256"),
        "base weights, SHA-256": result.get("base_sha256") or header.get("base_sha256"),
        "data, SHA-256": result.get("data_sha256") or header.get("data_sha256"),
        "ledger": f"{record.ledger_bytes:,} bytes, {counted(len(record.steps), 'step')}" if header else None,
        "rows": ", ".join(f"{value} {name}" for name, value in rows.items()) or None,
        "tuned parameters": _whole(result.get("tuned_parameters") or header.get("tuned_parameters")),
        "seed": record.config.get("seed"),
        "device": record.config.get("device"),
        "dtype": header.get("dtype") or record.config.get("dtype"),
        "engine": result.get("engine") or record.config.get("engine"),
        **mapping(result.get("versions")),
    }
    return {name: show(value) for name, value in facts.items() if value is not None}


def _whole(value: object) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _json(value: dict[str, object]) -> str:
    return f"<pre><code>{html.escape(json.dumps(value, indent=2, ensure_ascii=False))}</code></pre>"
