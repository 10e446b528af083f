"""What a run shows while it works: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


class Reporter:
    """Prints lines and shows progress; ``quiet`` prints warnings only.

    Plain output has a line for each tenth of a job, so that logs stay short.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stdout.isatty()
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print a line."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)

    def warn(self, line: str) -> None:
        """Print a line on stderr, also if quiet."""
        print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def job(self, title: str, total: int, *, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """Show the progress of ``total`` parts; yields a function that takes the number done and a note."""
        begun, start = time.perf_counter(), done
        if self.quiet:
            yield lambda done, note: None
        elif self.live:
            with self._progress() as bar:
                task = bar.add_task(title, total=total, completed=done, note="")
                self._bar = bar
                try:
                    yield lambda done, note: bar.update(task, completed=done, note=note)
                finally:
                    self._bar = None
        else:
            shown = 10 * start // max(total, 1)

            def line(done: int, note: str) -> None:
                nonlocal shown
                if 10 * done // max(total, 1) > shown:
                    shown = 10 * done // max(total, 1)
                    left = (time.perf_counter() - begun) / max(done - start, 1) * (total - done)
                    print(f"{title} {done}/{total}  {note}  {left:.0f} s left", flush=True)

            yield line

    @staticmethod
    def _progress() -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
