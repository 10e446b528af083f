"""Progress in a notebook: a bar that needs no widgets, so it shows in Jupyter, VS Code and Colab alike."""

from __future__ import annotations

import html
import sys
import time
from typing import Any, Final

from gradless.system.pace import Pace

EVERY: Final = 0.2  # seconds between two drawings, each of which is a message to the browser


def active() -> bool:
    """Return whether this code runs in a notebook's kernel."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class Bar:
    """A bar in the output of the present cell; it is updated in place and stays there when it is done.

    Args:
        title: what is worked on.
        pace: of the work, which knows how many parts there are.
        done: of them when the work begins.
    """

    def __init__(self, title: str, pace: Pace, done: int = 0) -> None:
        from IPython import display

        self._title, self._pace = title, pace
        self._shown = time.monotonic()
        self._handle: Any = display.display(self._drawn(done, ""), raw=True, display_id=True)
        self._last = (done, "")

    def update(self, done: int, note: str) -> None:
        """Show so many parts as done."""
        self._last = (done, note)
        if time.monotonic() - self._shown >= EVERY:
            self._draw()

    def close(self) -> None:
        """Show the last state."""
        self._draw()

    def _draw(self) -> None:
        self._shown = time.monotonic()
        self._handle.update(self._drawn(*self._last), raw=True)

    def _drawn(self, done: int, note: str) -> dict[str, str]:
        total = self._pace.total
        count = f"{done}" if total is None else f"{done}/{total}"
        text = "  ".join(filter(None, (self._title, count, note, self._pace.text(done))))
        value = "" if total is None else f' value="{done}" max="{max(total, 1)}"'
        bar = f'<progress{value} style="width: 20em; vertical-align: middle"></progress>'
        return {"text/plain": text, "text/html": f"<div>{bar} <code>{html.escape(text)}</code></div>"}
