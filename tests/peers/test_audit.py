"""Audits of a run that was made by hand: what holds, and what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cryptography")

from cli_helpers import call, refused
from folder_fuzz import write_ledger
from gradless import ledger
from gradless.errors import BadInput
from gradless.peers import claims, schema
from gradless.peers.audit import audit
from gradless.peers.claim_checks import steps_of
from gradless.peers.log import DecidedLog
from gradless.peers.run_folder import RunFolder
from gradless.peers.schema import Value
from peers_audit_helpers import NAMES, WrittenRun, certificate, copied, random_rows, rewritten, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> WrittenRun:
    return write_run(tmp_path_factory.mktemp("run"), random_rows(flips=(3,)), steps=60, evidence=(55, 2))


def test_an_audit_of_an_honest_log_holds_and_says_whose_rows_to_look_at(run: WrittenRun) -> None:
    result = audit(run.folder)
    assert result.holds
    assert [(one.part, one.holds) for one in result.findings] == [
        ("log", True),
        ("weights", True),
        ("weights", True),
        ("statistics", None),
    ]
    assert "60 steps, 60 certificates of 3 signatures" in result.findings[0].text
    by_name = dict(zip(NAMES, result.peers, strict=True))
    assert by_name["dora"].score is not None
    assert by_name["dora"].score < -3 < min(by_name[name].score or 0 for name in NAMES[:3])
    assert by_name["carl"].banned == 56
    assert by_name["carl"].heard == 56
    assert sum(one.led for one in result.peers) == 60
    assert any(line.startswith("dora disagrees with most others") for line in result.remarks)
    assert any(line.startswith("carl is banned from step 56") for line in result.remarks)
    assert not any(line.startswith(("anna", "bert")) for line in result.remarks)


def with_last_value(run: WrittenRun, folder: Path, change: Callable[[Value], Value]) -> None:
    """Put a log into a copy of the run whose last value is another one, decided by a quorum all the same."""
    decisions = list(DecidedLog(run.folder / "peers.log", run.group, writable=False))
    (folder / "peers.log").unlink()
    log = DecidedLog(folder / "peers.log", run.group)
    for step, value, decided in decisions:
        if step == len(decisions) - 1:
            value = schema.pack_value(change(schema.parse_value(value)))
            decided = certificate(run, step, value, (0, 1, 3))
        log.append(value, decided)
    log.close()


def row_nobody_signed(value: Value, run: bytes) -> Value:
    return value._replace(rows=(*value.rows[:-1], value.rows[-1]._replace(signature=bytes(64))))


def row_of_another_key(value: Value, run: bytes) -> Value:
    return value._replace(rows=(*value.rows[:-1], value.rows[-1]._replace(signature=value.rows[0].signature)))


def too_few_rows(value: Value, run: bytes) -> Value:
    return value._replace(rows=value.rows[:2])


def evidence_nobody_signed(value: Value, run: bytes) -> Value:
    bodies = [schema.row_body(run, value.rows[1], value.step, bytes([one]) * 32) + bytes(64) for one in (1, 2)]
    return value._replace(evidence=((bodies[0], bodies[1]),))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (row_nobody_signed, "signature"),
        (row_of_another_key, "signature"),
        (too_few_rows, "rows"),
        (evidence_nobody_signed, "signature"),
    ],
)
def test_what_a_value_says_a_peer_signed_needs_that_peers_signature_and_not_a_quorums_alone(
    run: WrittenRun, tmp_path: Path, change: Callable[[Value, bytes], Value], reason: str
) -> None:
    folder = copied(run, tmp_path)
    with_last_value(run, folder, lambda value: change(value, run.group.run))
    result = audit(folder)
    assert not result.holds
    assert result.findings[0].part == "log"
    text = result.findings[0].text
    assert text.startswith("step 59 of ")
    assert f"holds what no honest peer votes for ({reason})" in text


@pytest.mark.parametrize(
    ("settings", "rate", "sentence"),
    [
        ({}, -0.1, "step 0 of the ledger has the learning rate -0.1 instead of 0.001"),
        ({}, 0.0009, "step 0 of the ledger has the learning rate 0.0009 instead of 0.001"),
        ({"seed": 99}, None, "the ledger says that seed is 99, and the manifest 3"),
        ({"method": "mezo-momentum"}, None, "the ledger says that method is 'mezo-momentum', and the manifest 'mezo'"),
        ({"eps": 0.5}, None, "the ledger says that eps is 0.5, and the manifest 0.001"),
        ({"schedule": "linear"}, None, "the ledger says that schedule is 'linear', and the manifest 'constant'"),
        ({"scheme": "lora"}, None, "the ledger says that scheme is 'lora', and the manifest 'full'"),
        ({"layer_scale": "variance"}, None, "the ledger says that layer_scale is 'variance', and the manifest 'none'"),
        ({"seed": []}, None, "seed"),
    ],
)
def test_a_ledger_with_other_settings_than_the_manifest_is_found(
    run: WrittenRun, tmp_path: Path, settings: dict[str, Any], rate: float | None, sentence: str
) -> None:
    folder = copied(run, tmp_path)
    rewritten(folder, rate=rate, **settings)
    result = audit(folder)
    assert not result.holds
    assert sentence in result.findings[1].text


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("field", ["dtype", "label_token_ids", "base_sha256", "initial_sha256", "arithmetic", "config"])
def test_a_ledger_whose_header_no_peer_writes_is_found(
    run: WrittenRun, tmp_path: Path, version: int, field: str
) -> None:
    folder = copied(run, tmp_path)
    header = dict(ledger.read(folder / "ledger").header)
    del header[field]
    write_ledger(folder / "ledger", header, header["groups"], version)
    result = audit(folder)
    assert not result.holds
    assert field in result.findings[1].text


def test_a_ledger_that_is_not_what_the_rule_makes_of_the_rows_is_found(run: WrittenRun, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    contents = ledger.read(folder / "ledger")
    (folder / "ledger").unlink()
    written = ledger.Ledger(folder / "ledger", contents.header)
    for move in contents.moves:
        changed = tuple(np.nextafter(np.float32(move.coeffs[0]), np.float32(9)) for _ in "1") + move.coeffs[1:]
        written.append(move._replace(coeffs=changed) if move.step == 31 else move)
    written.close()
    result = audit(folder)
    assert not result.holds
    assert "step 31 of the ledger is not what the rule makes of the decided rows" in [
        one.text for one in result.findings
    ]


def test_other_weights_in_the_result_are_found(run: WrittenRun, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    (folder / "result.json").write_text('{"steps": 60, "weights_sha256": "' + "0" * 64 + '"}', encoding="utf-8")
    result = audit(folder)
    assert not result.holds
    assert "result.json says 000000000000" in result.findings[-2].text


@pytest.mark.parametrize("voters", [(0, 1), (0, 1, 1)])
def test_a_value_without_a_quorum_is_found(run: WrittenRun, tmp_path: Path, voters: tuple[int, ...]) -> None:
    folder = copied(run, tmp_path)
    log = DecidedLog(run.folder / "peers.log", run.group, writable=False)
    decisions = list(log)
    (folder / "peers.log").unlink()
    forged = DecidedLog(folder / "peers.log", run.group)
    for decision in decisions:
        cert = certificate(run, decision.step, decision.value, voters) if decision.step == 7 else decision.certificate
        forged.append(decision.value, cert)
    forged.close()
    result = audit(folder)
    assert not result.holds
    assert result.findings[0].part == "log"
    assert "step 7" in result.findings[0].text


def test_every_changed_byte_of_a_stretch_of_the_log_is_found(run: WrittenRun, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    data = (run.folder / "peers.log").read_bytes()
    for offset in range(len(data) // 2, len(data) // 2 + 400, 13):
        (folder / "peers.log").write_bytes(data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :])
        assert not audit(folder).holds


def test_a_peer_whose_rows_another_leader_leaves_out_is_told_by_leader(tmp_path: Path) -> None:
    rows = random_rows()

    def omitting(step: int, peer: int, history: object) -> object:
        leader = history.leader(0)  # type: ignore[attr-defined]
        return None if peer == 1 and leader == 3 else rows(step, peer, history)  # type: ignore[arg-type]

    written = write_run(tmp_path, omitting, steps=60)  # type: ignore[arg-type]
    result = audit(written.folder)
    omitted = result.peers[1].omitted
    assert set(omitted) == {3}
    assert [line for line in result.remarks if "left bert out of" in line and line.startswith("dora ")]
    assert not [line for line in result.remarks if line.startswith(("anna", "bert", "carl"))]


def test_the_log_draws_the_steps_of_each_peer_apart(run: WrittenRun) -> None:
    folder = RunFolder(run.folder)
    drawn = {name: steps_of(folder, name) for name in NAMES}
    assert all(len(steps) == 32 for steps in drawn.values())
    assert len({tuple(steps) for steps in drawn.values()}) == 4
    assert all(step < 56 for step in drawn["carl"])
    asked = steps_of(folder, "anna", claims.new_nonce())
    assert len(asked) == 32
    assert asked != drawn["anna"]


def test_evidence_of_the_run_convicts_the_peer_that_signed_twice(run: WrittenRun) -> None:
    value = schema.parse_value(DecidedLog(run.folder / "peers.log", run.group, writable=False)[55].value)
    ((first, second),) = value.evidence
    assert first != second
    assert RunFolder(run.folder).records.banned == {2: 56}


def test_the_command_says_what_holds_and_what_each_part_proves(run: WrittenRun, tmp_path: Path) -> None:
    result = call("peers", "audit", run.folder)
    assert result.exit_code == 0
    text = result.output
    assert "log         holds  60 steps, 60 certificates of 3 signatures, 236 signed rows" in text
    assert "look at: dora disagrees with most others" in text
    assert "statistics: proves nothing: they are reasons to look." in text
    assert "not that the rows are good, true or its own" in text
    folder = copied(run, tmp_path)
    (folder / "result.json").write_text('{"steps": 60, "weights_sha256": "x"}', encoding="utf-8")
    result = call("peers", "audit", folder, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["holds"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "a.csv"], "--data is for the claims of one peer: name it with --peer"),
        (["--nonce", "00" * 16], "--nonce is for the claims of one peer: name it with --peer"),
        (["--peer", "anna", "--nonce", "00" * 16], "claims are checked against rows"),
        (["--peer", "emil"], "the run has no peer emil"),
        (["--peer", "anna", "--data", "a.csv", "--opened", "pyproject.toml"], "claims are checked against rows"),
        (["--peer", "emil", "--data", "a.csv"], "the run has no peer emil"),
        (["--peer", "anna", "--opened", "pyproject.toml"], "anna committed to no rows"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: WrittenRun, arguments: list[str], sentence: str) -> None:
    refused(call("peers", "audit", run.folder, *arguments), sentence)


def test_a_run_without_a_log_and_one_of_models_are_refused(run: WrittenRun, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    (folder / "peers.log").unlink()
    result = audit(folder)
    assert not result.holds
    assert "peers.log cannot be read" in result.findings[0].text
    with pytest.raises(BadInput, match="give the manifest"):
        audit(tmp_path / "nothing")
