"""Audit of a run from the folder of one of its peers: log, weights, statistics without data, and claims about data.

Each part says what it proves and what it does not (`PROVES`): a page full of green marks would otherwise be read as
trust in the peers' data, which nobody can check from outside.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput
from gradless.peers.log_checks import LOG, WEIGHTS, Finding, Say, check_coefficients, check_log
from gradless.peers.run_folder import RunFolder
from gradless.peers.scores import PeerFacts, facts, remarks
from gradless.runs import build, replay
from gradless.system.side_files import read_json, read_jsonl

RESULT: Final = "result.json"
STATISTICS, CLAIMS = "statistics", "claims"
PROVES: Final = {
    LOG: "which rows each peer signed and that a quorum decided them; not that the rows are true",
    WEIGHTS: "that these coefficients and this base model give these weights, on any machine; not that they are good",
    STATISTICS: ("nothing: they are reasons to look. Unlike data look like lies, and liars who know it stay below it"),
    CLAIMS: (
        "that a peer sent what its committed rows give in the drawn steps; not that the rows are good, true or its "
        "own, and nothing about other steps"
    ),
}
SIXTEEN: Final = (
    "with 16-bit weights the same row differs between processors by as much as tenths of its spread: single "
    "coefficients tell nothing, only the variance of at least 64 differences does"
)


class Audit(NamedTuple):
    """An audit of a run."""

    run: RunFolder
    findings: list[Finding]
    peers: list[PeerFacts]

    @property
    def holds(self) -> bool:
        """Whether nothing that was checked is wrong."""
        return all(finding.holds is not False for finding in self.findings)

    @property
    def remarks(self) -> list[str]:
        """What asks for a second look."""
        return remarks(self.peers, self.run.names)

    def to_json(self) -> dict[str, Any]:
        """Return the findings as plain values."""
        return {
            "run": self.run.manifest.sha256,
            "holds": self.holds,
            "findings": [{**one._asdict(), "proves": PROVES[one.part]} for one in self.findings],
            "peers": [
                {"name": self.run.names[one.peer], **one._asdict(), "score": _finite(one.score)} for one in self.peers
            ],
            "remarks": self.remarks,
        }


def audit(folder: Path, *, model: str | None = None, device: str | None = None, say: Say = lambda line: None) -> Audit:
    """Check the log, the weights and the statistics of a run.

    Args:
        folder: of one of its peers.
        model: where the base model is now, if not where the run found it.
        device: where to compute the weights; the bits are the same.
        say: takes a line of progress at a time.

    Raises:
        BadInput: no run of agreed peers, or a ``model`` that cannot be used.

    Cost: q + n signature checks and one rule a step, and a replay of the ledger; no forward pass.
    """
    run = RunFolder(folder)
    _ = run.group  # refuses what cannot be audited, which is no finding
    try:
        log = check_log(run, say)
    except BadInput as error:
        return Audit(run, [Finding(LOG, False, str(error))], [])
    findings = [log, check_coefficients(run)]
    if findings[-1].holds:
        findings.append(check_weights(run, model=model, device=device, say=say))
    peers = facts(run.records, run.group.byzantine)
    count = len(remarks(peers, run.names))
    text = f"{count} thing{'s' if count > 1 else ''} to look at" if count else "nothing unusual"
    return Audit(run, [*findings, Finding(STATISTICS, None, text)], peers)


def check_weights(run: RunFolder, *, model: str | None, device: str | None, say: Say) -> Finding:
    """Replay the ledger and compare the weights with what the peer and the others stated.

    Raises:
        BadInput: they cannot be rebuilt with the ``model`` that was named.
    """
    stated = _stated(run)
    say("replaying the ledger")
    try:
        built, contents = replay.rebuild(
            run.folder, model=run.base_model(model), device=device, anew=True, say=lambda line: None
        )
    except BadInput as error:
        if model is not None:  # which somebody named for this
            raise
        return Finding(WEIGHTS, None, f"the weights were not rebuilt ({error})")
    steps, own = len(contents.moves), build.tuned_sha256(built)
    if run.manifest.contents.base_sha256 not in ("", built.base_sha256):
        return Finding(WEIGHTS, False, f"the base model is not the manifest's ({built.base_sha256[:12]} here)")
    hashes = stated.get(steps, {})
    result = hashes.pop(RESULT, own)
    if result != own:
        return Finding(
            WEIGHTS, False, f"replay gives {own[:12]} after {steps} steps, and result.json says {result[:12]}"
        )
    others = {name: sha256 for name, sha256 in hashes.items() if sha256 != own}
    if others:  # f of them may lie; more than f that agree cannot all
        most = max(list(others.values()).count(sha256) for sha256 in others.values())
        told = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in others.items())
        text = f"replay gives {own[:12]} after {steps} steps; others stated: {told}"
        return Finding(WEIGHTS, most <= run.group.byzantine, text)
    agree = f", as {len(hashes)} others stated" if hashes else ""
    return Finding(WEIGHTS, True, f"replay gives {own} after {steps} steps{agree}")


def _stated(run: RunFolder) -> dict[int, dict[str, str]]:
    """Weights that were stated, by step and by whom: in result.json, and in metrics.jsonl by the others."""
    stated: dict[int, dict[str, str]] = {}
    result = read_json(run.folder / "result.json")
    if isinstance(result, dict) and isinstance(result.get("steps"), int):
        stated[result["steps"]] = {RESULT: str(result.get("weights_sha256"))}
    for event in read_jsonl(run.folder / "metrics.jsonl")[0]:
        if event.get("event") == "hash" and isinstance(event.get("step"), int):
            others = event.get("others")
            of_step = stated.setdefault(event["step"], {})
            of_step |= {str(name): str(sha256) for name, sha256 in others.items()} if isinstance(others, dict) else {}
    return stated


def _finite(score: float | None) -> float | None:
    """A score for JSON, which has no infinities."""
    return score if score is not None and math.isfinite(score) else None
