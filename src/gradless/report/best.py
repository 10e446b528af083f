"""``best.toml``: the chosen settings of every cell, as `gradless tune --config` reads them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradless.config import TuneConfig
from gradless.report.choice import choose
from gradless.report.files import read_json
from gradless.report.study import Cell, Run, Score, Study, axis_name, metric_of, show, tested
from gradless.report.table import score_text

BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
ESCAPES = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def best_toml(study: Study) -> str:
    """A table ``[cell."METHOD/SCHEME/TASK/MODEL"]`` for every cell with a chosen point: what differs from defaults.

    Other axes of the grid, and ``unaligned``, follow the method's name. The settings are those of the first final run
    (its seed included), or of the best searched run while there is none.
    """
    lines = [
        f"# Chosen by dev in the benchmark {one_line(study.name)}; gradless report wrote this file.",
        '# gradless tune --config best.toml --cell "NAME" --out DIR',
    ]
    for name, cell in names(study).items():
        settings = best_settings(study, cell)
        if settings is not None:
            lines += ["", f"# {_told(study, cell)}", f"[cell.{quoted(name)}]", *assignments(settings)]
    return "\n".join([*lines, ""])


def names(study: Study) -> dict[str, Cell]:
    """Cells by name. A model that is a path goes by its last part, unless two models would share that."""
    models = {cell.model for cell in study.cells}
    short = {model: Path(model).name if model.startswith(("/", ".", "~")) else model for model in models}
    shared = Counter(short.values())
    found = {}
    for cell in study.cells:
        model = short[cell.model] if shared[short[cell.model]] == 1 else cell.model
        parts = [cell.method, cell.scheme, cell.task, model]
        parts += [] if cell.aligned else ["unaligned"]
        parts += [f"{axis_name(name)}={show(value)}" for name, value in cell.extras]
        found["/".join(parts)] = cell
    return found


def best_settings(study: Study, cell: Cell) -> dict[str, Any] | None:
    """Fields of `TuneConfig` that differ from its defaults, with the best point filled in; None before any result."""
    choice = choose(study, cell)
    if choice is None:
        return None
    found = study.cells[cell]
    run = next(iter([*found.done, *found.final]), choice.run)
    config = _config(study, run) if run is not None else {}
    if not config:  # the request is gone: what the result itself tells
        config = {"model": cell.model, "task": cell.task, "scheme": cell.scheme, "method": cell.method}
        config |= {} if cell.aligned else {"aligned": False}
        for name, value in (*cell.extras, *choice.point.items()):
            if name.startswith("options."):
                config.setdefault("options", {})[axis_name(name)] = value
            else:
                config[name] = value
    defaults = _defaults()
    return {
        name: value
        for name, value in config.items()
        if value is not None and (name not in defaults or value != defaults[name])
    }


def _config(study: Study, run: Run) -> dict[str, Any]:
    """What a run was asked for, or what it resolved that to."""
    asked = study.config(run)
    if asked:
        return asked
    return read_json(study.folder / "runs" / run.id / "config.json")


def _defaults() -> dict[str, Any]:
    """The fields' defaults as JSON would give them back."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(TuneConfig):
        if field.default is not dataclasses.MISSING:
            values[field.name] = list(field.default) if isinstance(field.default, tuple) else field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return values


def _told(study: Study, cell: Cell) -> str:
    """What dev and test said, for a comment."""
    choice = choose(study, cell)
    name = metric_of(cell.task)
    dev = choice.run.metric("dev", name) if choice and choice.run else None
    test: Score | None = tested(cell, study.cells[cell])
    parts = [] if dev is None else [f"dev {dev:.3f}"]
    parts += [] if test is None else [f"test {score_text(test)}"]
    edges = choice.edges if choice else {}
    parts += [f"{axis_name(axis)} is the {where}" for axis, where in edges.items()]
    return one_line(f"{name}: {', '.join(parts) or 'no result yet'}")


def one_line(text: str) -> str:
    """Text for a comment: TOML allows no control characters there."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """``key = value`` lines of a TOML table; None is left out, since TOML has no such value."""
    return [f"{key(name)} = {literal(value)}" for name, value in settings.items() if value is not None]


def key(name: str) -> str:
    """A TOML key, quoted where it must be."""
    return name if name and BARE.issuperset(name) else quoted(name)


def quoted(text: str) -> str:
    r"""A TOML basic string.

    Example:
        >>> print(quoted('say "a\\b"'))
        "say \"a\\b\""
    """
    letters = (ESCAPES.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F else c) for c in text)
    return f'"{"".join(letters)}"'


def literal(value: Any) -> str:
    """A TOML value: strings, numbers, booleans, and lists and tables of them in line."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else "nan" if math.isnan(value) else f"{value:+}"
        case list() | tuple():
            return f"[{', '.join(literal(item) for item in value if item is not None)}]"
        case dict():
            return f"{{ {', '.join(assignments({str(k): v for k, v in value.items()}))} }}" if value else "{}"
        case _:
            return quoted(str(value))
