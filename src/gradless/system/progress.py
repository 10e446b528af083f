"""What a run shows while it works: a live bar on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from gradless.system import notebook, terminal
from gradless.system.pace import Pace


class Reporter:
    """Prints lines and shows progress; ``quiet`` prints warnings only, ``err`` uses stderr, as where data go to stdout.

    Plain output has a line for each tenth of a job, so that logs stay short.
    """

    def __init__(self, *, quiet: bool = False, err: bool = False) -> None:
        self.quiet, self.err = quiet, err
        self.live = not quiet and terminal.live(err=err)
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print a line."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(terminal.cell(line))
        else:
            terminal.say(line, err=self.err)

    def warn(self, line: str) -> None:
        """Print a line on stderr, also if quiet."""
        terminal.say(line, err=True)

    @contextlib.contextmanager
    def job(
        self, title: str, total: int | None, *, done: int = 0, part: str = ""
    ) -> Iterator[Callable[[int, str], None]]:
        """Show the progress of ``total`` parts; yields a function that takes the number done and a note.

        The seconds a ``part``, if it has a name, and the time left are both means since the beginning. Where the total
        is not known, only a terminal shows anything.
        """
        pace, start = Pace(total, done, part), done
        if self.quiet or (total is None and not self.live):
            yield lambda done, note: None
        elif self.live:
            with self._progress() as bar:
                task = bar.add_task(terminal.escaped(title), total=total, completed=done, note="", pace="")
                self._bar = bar
                try:
                    yield lambda done, note: bar.update(
                        task, completed=done, note=terminal.escaped(note), pace=pace.text(done)
                    )
                finally:
                    self._bar = None
        elif notebook.active():
            with contextlib.closing(notebook.Bar(terminal.escaped(title), pace, done)) as drawn:
                yield lambda done, note: drawn.update(done, terminal.escaped(note))
        else:
            assert total is not None
            shown = 10 * start // max(total, 1)

            def line(done: int, note: str) -> None:
                nonlocal shown
                if 10 * done // max(total, 1) > shown:
                    shown = 10 * done // max(total, 1)
                    parts = (f"{title} {done}/{total}", note, pace.text(done))
                    terminal.say("  ".join(filter(None, parts)), err=self.err)

            yield line

    def _progress(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TextColumn("{task.fields[pace]}", markup=False),
            console=Console(stderr=self.err),
        )
