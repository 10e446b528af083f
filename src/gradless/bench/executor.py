"""What starts the runs of a benchmark and waits for them: processes here, or a cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from gradless.bench.grid import Request


class Ended(NamedTuple):
    """How a run has ended, which its directory knows."""

    request: Request
    lock: int
    """File descriptor, which is for the caller to close once the result can be seen by all."""
    stop: str = ""
    """Why the whole benchmark has to stop: the disk is full."""
    note: str = ""
    """What was lost beside the run, in a sentence."""


class Executor(AbstractContextManager["Executor"], Protocol):
    """Makes runs. Leaving its context stops those that still work, as Ctrl-C does, and gives their locks back."""

    def free(self) -> bool:
        """Return whether another run may be started."""

    def busy(self) -> bool:
        """Return whether a run is at work."""

    def has(self, request: Request) -> bool:
        """Return whether this run is at work."""

    def start(self, request: Request, lock: int) -> None:
        """Start a run.

        Args:
            request: what to run; its file is written.
            lock: file descriptor of the lock on it, which belongs to the executor from now on, unless this raises.

        Raises:
            OSError: the directory of the run cannot be written.
        """

    def ended(self, seconds: float) -> list[Ended]:
        """Wait about ``seconds`` at most; record in their directories how runs have ended, and return them."""
