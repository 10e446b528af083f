"""Plugins in files, and a distribution that only its metadata makes one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gradless.plugins import TABLES
from gradless.plugins.loading import LOADED
from gradless.plugins.tables import rows_of

METHOD = """
import gradless as gl
from gradless.methods import METHODS, Method
from gradless.methods.common import build


def half(params, *, lr=1e-6, eps=1e-3, factor=0.5, **common):
    return build(params, gl.rademacher(), gl.spsa(eps=eps), gl.scale(lr), **common)


METHODS["half"] = Method(half, "half as much", "a test")
"""
TASK = """
from gradless.tasks import TASKS
from gradless.tasks.base import Example, Task


def render(row):
    return Example(f"{row['text']} It was", (" terrible", " great"), (int(row["label"]),), content_free="It was")


def read(folder):
    rows = [{"text": f"number {i}", "label": i % 2} for i in range(24)]
    return {"train": rows, "test": rows}


TASKS["spam"] = Task(
    name="spam", title="Spam", kind="classification", metrics=("accuracy",), render=render, read=None,
    source="a test", labels=("ham", "spam"), label_words=(" terrible", " great"),
)
"""
MARK = 'from pathlib import Path\nPath(__file__).with_suffix(".ran").touch()\n'


@contextlib.contextmanager
def tables_as_before() -> Iterator[None]:
    """Unload in the end what is loaded inside."""
    loaded, tables = dict(LOADED), {table: dict(rows_of(table)) for table in TABLES}
    try:
        yield
    finally:
        for rows, old in ((LOADED, loaded), *((rows_of(table), old) for table, old in tables.items())):
            rows.clear()
            rows.update(old)


class Written:
    """Writes plugins into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, text: str = METHOD, name: str = "own.py") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def distribution(self, points: str, text: str = METHOD, name: str = "theirs") -> Path:
        """A folder for ``sys.path`` with the package ``theirs`` and the entry points of its distribution."""
        site = self.folder / f"site-{name}"
        info = site / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(points)
        (info / "top_level.txt").write_text(f"{name}_parts\n")
        package = site / f"{name}_parts"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "methods.py").write_text(text)
        return site
