"""A whole group on this machine: keys, manifest and one process a peer, as for a run between machines.

The demonstration, the tests of processes and the benchmarks use it. It knows nothing that a user could not do by hand.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gradless.errors import BadInput
from gradless.peers import keys, prepare
from gradless.peers.manifest import USUAL, Manifest, Timing
from gradless.peers.node_files import RESULT, STATUS
from gradless.system import children
from gradless.system.side_files import read_json

THREADS: Final = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Several models on a machine, each on one core."""


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that were free a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class LoopbackGroup:
    """Peers of one run in processes of this machine.

    Args:
        folder: new folder for identities (``NAME/me``), manifest (``run``), runs (``NAME/run``) and output
            (``NAME/log``).
        names: of the peers.
        f: peers that may lie.
        settings: of `gradless.peers.prepare.manifest`: what shapes a step.
        mode: coefficients or parameters.
        recipe: whose settings to start from.
        own: options of ``gradless peers run`` by peer, such as ``["--train", "a.csv"]``.
        timing: of the agreement.
        check_every: steps between statements of the weights' hash.

    Raises:
        BadInput: settings that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        f: int,
        settings: Mapping[str, Any],
        mode: str = "coefficients",
        recipe: str | None = None,
        own: Sequence[Sequence[str]] | None = None,
        timing: Timing = USUAL,
        check_every: int = 50,
        parent: Path | None = None,
    ) -> None:
        self.folder, self.names = folder, tuple(names)
        self.own = [list(one) for one in own] if own is not None else [[] for _ in names]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        ports = free_ports(len(names))
        cards = [
            keys.make(name, f"tls/127.0.0.1:{port}", folder / name / "me")
            for name, port in zip(names, ports, strict=True)
        ]
        self.manifest: Manifest = prepare.manifest(
            cards,
            settings,
            f=f,
            mode=mode,
            recipe=recipe,
            out=folder / "run",
            check_every=check_every,
            timing=timing,
            days=30,
            parent=parent,
            say=lambda line: None,
        )

    def run_folder(self, peer: int) -> Path:
        """Return the folder of a peer's run."""
        return self.folder / self.names[peer] / "run"

    def start(self, peer: int, *options: str, command: str = "run", nice: int = 0) -> subprocess.Popen[bytes]:
        """Start the process of a peer with ``gradless peers run`` or ``join``; its output goes to ``NAME/log``."""
        home = self.folder / self.names[peer]
        line = [
            *children.PYTHON, "-m", "gradless", "peers", command, "--manifest", str(self.folder / "run"),
            "--identity", str(home / "me"), "--out", str(home / "run"), "--fingerprint", self.manifest.sha256,
            *self.own[peer], *options,
        ]  # fmt: skip
        if nice and os.name == "posix":
            line = ["nice", "-n", str(nice), *line]
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=children.environment(**THREADS)
            )
        self.processes[peer] = process
        return process

    def status(self, peer: int) -> dict[str, Any]:
        """Return ``status.json`` of a peer; empty before there is one."""
        contents = read_json(self.run_folder(peer) / STATUS)
        return contents if isinstance(contents, dict) else {}

    def step(self, peer: int) -> int:
        """Return how many steps a peer has taken, as its status tells."""
        return int(self.status(peer).get("step", 0))

    def result(self, peer: int) -> dict[str, Any] | None:
        """Return ``result.json`` of a peer; None before it is done."""
        contents = read_json(self.run_folder(peer) / RESULT)
        return contents if isinstance(contents, dict) else None

    def output(self, peer: int) -> str:
        """Return what a peer printed."""
        path = self.folder / self.names[peer] / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait(self, reached: Callable[[], bool], seconds: float, *, running: Sequence[int] = ()) -> bool:
        """Wait until something is so; returns whether it came to be.

        Args:
            reached: looked at ten times a second.
            seconds: that it may take.
            running: peers whose processes must go on meanwhile.

        Raises:
            BadInput: one of them ended with an error; the message has its last lines.
        """
        end = time.monotonic() + seconds
        while not (done := reached()) and time.monotonic() < end:
            for peer in running:
                if self.processes[peer].poll() not in (None, 0):
                    lines = self.output(peer).splitlines()[-5:]
                    raise BadInput(f"{self.names[peer]} ended: {' | '.join(lines)}")
            time.sleep(0.1)
        return done

    def signal(self, peer: int, number: int) -> None:
        """Send a signal to a peer's process."""
        self.processes[peer].send_signal(number)

    def kill(self, peer: int) -> None:
        """End a peer's process as a power cut would."""
        process = self.processes.pop(peer)
        process.kill()
        process.wait()

    def end(self, seconds: float = 20.0) -> None:
        """End all processes: first asked, then killed."""
        for process in self.processes.values():
            if process.poll() is None:
                if os.name == "posix":
                    process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
