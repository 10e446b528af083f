"""What a run shows while it works: a live bar on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from gradless.system import notebook, terminal


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
    def job(self, title: str, total: int | None, *, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """Show the progress of ``total`` parts; yields a function that takes the number done and a note.

        Where the total is not known, only a terminal shows anything.
        """
        begun, start = time.perf_counter(), done
        if self.quiet or (total is None and not self.live):
            yield lambda done, note: None
        elif self.live:
            with self._progress() as bar:
                task = bar.add_task(terminal.escaped(title), total=total, completed=done, note="")
                self._bar = bar
                try:
                    yield lambda done, note: bar.update(task, completed=done, note=terminal.escaped(note))
                finally:
                    self._bar = None
        elif notebook.active():
            with contextlib.closing(notebook.Bar(terminal.escaped(title), total, done)) as drawn:
                yield lambda done, note: drawn.update(done, terminal.escaped(note))
        else:
            assert total is not None
            shown = 10 * start // max(total, 1)

            def line(done: int, note: str) -> None:
                nonlocal shown
                if 10 * done // max(total, 1) > shown:
                    shown = 10 * done // max(total, 1)
                    left = (time.perf_counter() - begun) / max(done - start, 1) * (total - done)
                    terminal.say(f"{title} {done}/{total}  {note}  {left:.0f} s left", err=self.err)

            yield line

    def _progress(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=self.err),
        )
