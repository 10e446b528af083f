"""What the folder of a peer's run holds, as one plain record: finished, unfinished, torn, of either mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gradless import ledger
from gradless.errors import BadInput
from gradless.peers.manifest import FILE as MANIFEST
from gradless.peers.run_folder import RunFolder
from gradless.peers.scores import PeerFacts, Records, facts
from gradless.peers.scores import remarks as told_by_log
from gradless.report.common.numbers import counted, median, number
from gradless.report.common.read import mapping, read_json
from gradless.system.side_files import read_jsonl


class Step(NamedTuple):
    """A line of ``metrics.jsonl`` about a step; what is not known is None."""

    step: int
    loss: float | None
    reward: float | None
    heard: tuple[int, ...]
    late: tuple[int, ...]
    leader: int | None
    round: int
    probe_seconds: float | None
    agree_seconds: float | None
    seconds: float | None
    bytes: float | None


@dataclass(frozen=True)
class PeerRecord:
    """One peer's run."""

    folder: Path
    run: RunFolder
    steps: list[Step]
    """As this peer saw them."""
    log: Records | None
    """As all have decided them; None in the mode that exchanges models."""
    result: dict[str, Any]
    status: dict[str, Any]
    evaluations: list[tuple[int, float]]
    """(step, value of `metric`)."""
    statements: list[tuple[int, str, dict[str, str]]]
    """(step, own hash, hashes of others by name)."""
    bans: list[tuple[int, str, str]]
    """(first step, name, file of evidence)."""
    remarks: list[str] = field(default_factory=list)
    rewarded: bool = False
    """Whether this peer learns from a reward."""
    has_rewards: bool = False
    """Whether its evaluations have mean rewards."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the peers, by number."""
        return self.run.names

    @property
    def me(self) -> str:
        """The peer whose folder this is; empty where nothing says so."""
        return str(self.status.get("me") or "")

    @property
    def metric(self) -> str:
        """What evaluations measured."""
        return "mean reward" if self.has_rewards else "share of texts that pass" if self.rewarded else "accuracy"

    @property
    def taken(self) -> int:
        """Steps that are decided."""
        return self.log.steps if self.log is not None else len(self.steps)

    @cached_property
    def facts(self) -> list[PeerFacts]:
        """What the log tells about every peer; empty without one."""
        return facts(self.log, self.run.manifest.f) if self.log is not None and self.log.steps else []

    @property
    def headline(self) -> str:
        """The run in one line."""
        planned = self.run.manifest.config.steps
        whose = f" of {self.me}" if self.me else ""
        state = str(self.result.get("status") or "unfinished")
        return f"run {self.run.manifest.sha256[:12]}{whose}: {self.taken:,} of {counted(planned, 'step')}, {state}"

    def median_of(self, name: str) -> float | None:
        """Median of a column of ``metrics.jsonl``."""
        return median(getattr(step, name) for step in self.steps)


def is_peers(folder: Path) -> bool:
    """Whether a folder holds a peer's run, and not only the manifest that it would begin with."""
    begun = any((folder / name).exists() for name in ("peers.log", "metrics.jsonl", "status.json"))
    return begun and (folder / MANIFEST).exists()


def load(folder: Path) -> PeerRecord:
    """Read a peer's folder.

    Raises:
        BadInput: there is no manifest, or a log that belongs to another run or was changed.
    """
    run = RunFolder(folder)
    remarks: list[str] = []
    log = _log(run, remarks)
    events, torn = read_jsonl(folder / "metrics.jsonl")
    if torn:
        remarks.append(f"metrics.jsonl has {counted(torn, 'line')} that cannot be read")
    steps = [step for event in events if event.get("event") == "step" and (step := _step(event)) is not None]
    rewarded = any(event.get("event") == "step" and "equal" in event for event in events)
    measured = [event for event in events if event.get("event") == "eval" and isinstance(event.get("step"), int)]
    key = "reward" if any("reward" in event for event in measured) else "accuracy"
    values = [(int(event["step"]), number(event.get(key))) for event in measured]
    evaluations = [(step, value) for step, value in values if value is not None]
    record = PeerRecord(
        folder,
        run,
        sorted({step.step: step for step in steps}.values()),
        log,
        read_json(folder / "result.json"),
        read_json(folder / "status.json"),
        evaluations,
        _statements(events),
        _bans(run, log, folder),
        remarks,
        rewarded,
        key == "reward",
    )
    remarks += _differences(record)
    remarks += told_by_log(record.facts, run.names)
    return record


def _log(run: RunFolder, remarks: list[str]) -> Records | None:
    if not run.manifest.agreed:
        return None
    if not (run.folder / "peers.log").exists():
        remarks.append("there is no peers.log: nothing was decided yet, or the file is gone")
        return None
    records = run.records
    path = run.folder / "ledger"
    if path.exists():
        try:
            moves = len(ledger.read(path).moves)
        except BadInput as error:
            remarks.append(str(error))
        else:
            if moves > records.steps:
                remarks.append(
                    f"the ledger has {moves} steps, more than the {records.steps} that are decided: audit the run"
                )
    return records


def _step(event: dict[str, Any]) -> Step | None:
    if not isinstance(event.get("step"), int) or event["step"] < 0:
        return None
    leader, round_ = event.get("leader"), event.get("round")
    return Step(
        step=event["step"],
        loss=number(event.get("loss")),
        reward=number(event.get("reward")),
        heard=_peers(event.get("heard")),
        late=_peers(event.get("late")),
        leader=leader if isinstance(leader, int) else None,
        round=round_ if isinstance(round_, int) else 0,
        probe_seconds=number(event.get("probe_seconds")),
        agree_seconds=number(event.get("agree_seconds")),
        seconds=number(event.get("seconds")),
        bytes=number(event.get("bytes")),
    )


def _peers(value: Any) -> tuple[int, ...]:
    """Numbers of peers in a list; empty for anything else."""
    return tuple(one for one in value if isinstance(one, int)) if isinstance(value, list) else ()


def _statements(events: list[dict[str, Any]]) -> list[tuple[int, str, dict[str, str]]]:
    return [
        (
            event["step"],
            str(event.get("weights_sha256")),
            {str(k): str(v) for k, v in mapping(event.get("others")).items()},
        )
        for event in events
        if event.get("event") == "hash" and isinstance(event.get("step"), int)
    ]


def _bans(run: RunFolder, log: Records | None, folder: Path) -> list[tuple[int, str, str]]:
    """Bans of the log, each with the file of evidence that lies in the folder."""
    bans = []
    for peer, step in sorted((log.banned if log is not None else {}).items(), key=lambda ban: ban[1]):
        files = sorted(path.name for path in (folder / "evidence").glob(f"{run.names[peer]}-*.bin"))
        bans.append((step, run.names[peer], files[0] if files else ""))
    return bans


def _differences(record: PeerRecord) -> list[str]:
    """Peers that stated other weights than this one."""
    differing: dict[str, int] = {}
    for step, own, others in record.statements:
        for name, sha256 in others.items():
            if sha256 != own:
                differing.setdefault(name, step)
    return [f"{name} stated other weights than this peer at step {step}" for name, step in differing.items()]
