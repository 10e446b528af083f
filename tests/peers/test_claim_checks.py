"""Claims about data, computed again from files and from opened rows: who is convicted, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cryptography")

from cli_helpers import call, refused
from gradless import lm
from gradless.errors import BadInput
from gradless.peers import claims, schema
from gradless.peers import manifest as manifests
from gradless.peers.claim_checks import check_file, check_opened, open_steps, steps_of
from gradless.peers.log import DecidedLog
from gradless.peers.opened import read_opened, training_file, write_opened
from gradless.peers.run_folder import RunFolder
from peers_audit_helpers import OWN, WrittenRun, certificate, copied, random_rows, rewritten, write_run


@pytest.fixture(scope="module")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> WrittenRun:
    """Anna sends what her rows give, dora 2 % more; all are committed to their rows."""
    factors = {0: [1.0] * 4, 3: [1.02] * 4}
    noise = random_rows(5)
    return write_run(
        tmp_path_factory.mktemp("claimed"),
        lambda step, peer, history: factors.get(peer) or noise(step, peer, history),
        steps=16,
        commit=True,
        truthful=(0, 3),
    )


def test_claims_are_computed_again_from_the_owners_file(claimed: WrittenRun) -> None:
    run = RunFolder(claimed.folder)
    own = check_file(run, "anna", str(claimed.files[0]), claimed.identities[0] / "salt")
    assert own.committed
    assert own.exact
    assert not own.verdict.convicted
    assert own.drawn == tuple(range(16))
    assert not own.asked
    assert all(check.claimed == pytest.approx(check.measured, abs=1e-4) for check in own.checks)
    theirs = check_file(run, "dora", str(claimed.files[3]), claimed.identities[3] / "salt")
    assert theirs.verdict.convicted


def test_rows_that_were_not_committed_to_are_refused_or_not_called_committed(
    claimed: WrittenRun, tmp_path: Path
) -> None:
    run = RunFolder(claimed.folder)
    with pytest.raises(BadInput, match="not the rows that anna committed to"):
        check_file(run, "anna", str(claimed.files[1]), claimed.identities[0] / "salt")
    with pytest.raises(BadInput, match="not the rows that anna committed to"):
        check_file(run, "anna", str(claimed.files[0]), claimed.identities[1] / "salt")
    other = check_file(run, "anna", str(claimed.files[1]), None)
    assert not other.committed
    assert other.verdict.convicted
    with pytest.raises(BadInput, match="the run has no peer emil"):
        check_file(run, "emil", str(claimed.files[0]), None)


def test_an_auditor_checks_rows_that_were_opened_and_learns_no_others(claimed: WrittenRun, tmp_path: Path) -> None:
    run, opened = RunFolder(claimed.folder), tmp_path / "dora.json"
    nonce = claims.new_nonce()
    count = open_steps(run, "dora", str(claimed.files[3]), claimed.identities[3] / "salt", opened, nonce=nonce)
    assert 2 <= count <= 12
    check = check_opened(run, "dora", opened, nonce=nonce)
    assert check.committed
    assert check.asked
    assert check.verdict.convicted
    anna = tmp_path / "anna.json"
    open_steps(run, "anna", str(claimed.files[0]), claimed.identities[0] / "salt", anna)
    assert not check_opened(run, "anna", anna).verdict.convicted
    text = anna.read_text(encoding="utf-8")
    anna.write_text(text.replace("film", "filn", 1), encoding="utf-8")
    with pytest.raises(BadInput, match="is not what anna committed to"):
        check_opened(run, "anna", anna)


def doubled(run: WrittenRun, folder: Path, *, voters: tuple[int, ...]) -> Path:
    """Return a copy of the run in which somebody doubled the rows of anna, which she never signed."""
    shutil.copytree(run.folder, folder / "copy")
    (folder / "copy" / "peers.log").unlink()
    log = DecidedLog(folder / "copy" / "peers.log", run.group)
    for step, data, _ in DecidedLog(run.folder / "peers.log", run.group, writable=False):
        value = schema.parse_value(data)
        twice = (2 * np.frombuffer(value.rows[0].coefficients, "<f4")).tobytes()
        rows = (value.rows[0]._replace(coefficients=twice, signature=bytes(64)), *value.rows[1:])
        data = schema.pack_value(value._replace(before=log.history.digest, rows=rows))
        log.append(data, certificate(run, step, data, voters) if voters else b"")
    log.close()
    return folder / "copy"


@pytest.mark.parametrize("voters", [(), (1, 2, 3)])
def test_nobody_is_convicted_by_rows_that_somebody_else_wrote(
    claimed: WrittenRun, tmp_path: Path, voters: tuple[int, ...]
) -> None:
    opened, salt = tmp_path / "anna.json", claimed.identities[0] / "salt"
    open_steps(RunFolder(claimed.folder), "anna", str(claimed.files[0]), salt, opened)
    run = RunFolder(doubled(claimed, tmp_path, voters=voters))
    reason = "was not decided" if not voters else "holds what no honest peer votes for"
    with pytest.raises(BadInput, match=reason):
        check_file(run, "anna", str(claimed.files[0]), salt)
    with pytest.raises(BadInput, match=reason):
        check_opened(run, "anna", opened)
    with pytest.raises(BadInput, match=reason):
        open_steps(run, "anna", str(claimed.files[0]), salt, tmp_path / "again.json")
    assert not (tmp_path / "again.json").exists()


def test_claims_are_checked_at_the_weights_of_the_run_or_not_at_all(claimed: WrittenRun, tmp_path: Path) -> None:
    data, salt = str(claimed.files[0]), claimed.identities[0] / "salt"
    folder = copied(claimed, tmp_path)
    rewritten(folder, rate=0.1)
    with pytest.raises(BadInput, match=r"the learning rate 0\.1 instead of 0\.001: .* proves nothing"):
        check_file(RunFolder(folder), "anna", data, salt)
    shutil.copy(claimed.folder / "ledger", folder / "ledger")
    rewritten(folder, steps=2)
    with pytest.raises(BadInput, match="the ledger ends at step 2, and the weights of step 15 are asked for"):
        check_file(RunFolder(folder), "anna", data, salt)
    with pytest.raises(BadInput, match="has other weights here"):
        check_file(RunFolder(claimed.folder), "anna", data, salt, model=other_model(tmp_path / "other"))


def other_model(folder: Path) -> str:
    """Save tiny-llama with another weight; return the folder."""
    base = lm.load("tiny-llama", device="cpu")
    with torch.no_grad():
        next(base.model.parameters())[0] += 1.0
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return str(folder)


def test_rows_are_opened_for_one_nonce_and_check_no_other_draw(tmp_path: Path) -> None:
    noise = random_rows(5)
    honest = write_run(
        tmp_path,
        lambda step, peer, history: noise(step, peer, history) if peer else [1.0] * 4,
        steps=40,
        commit=True,
        truthful=(0,),
        batch_size=1,
    )
    run, salt, opened = RunFolder(honest.folder), honest.identities[0] / "salt", tmp_path / "anna.json"
    nonces = ["11" * 16, "22" * 16]
    drawn = {nonce: steps_of(run, "anna", nonce) for nonce in nonces}
    assert drawn[nonces[0]] != drawn[nonces[1]]
    open_steps(run, "anna", str(honest.files[0]), salt, opened, nonce=nonces[0])
    check = check_opened(run, "anna", opened, nonce=nonces[0])
    assert list(check.drawn) == drawn[nonces[0]]
    assert not check.verdict.convicted
    whole = check_file(run, "anna", str(honest.files[0]), salt, nonce=nonces[0])
    assert check.checks == whole.checks  # the same bits


ROW = {"columns": {"text": "fine"}, "label": 1}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**ROW, "label": 7}, "label 7 of 2"),
        ({**ROW, "label": -1}, "label"),
        ({**ROW, "label": "1"}, "label"),
        ({"columns": ROW["columns"]}, "label"),
        ({**ROW, "more": 1}, "more"),
        ({**ROW, "columns": ["fine"]}, "columns"),
        ({**ROW, "columns": {"text": 3}}, "columns"),
        ([], "object"),
        (b"row", "JSON"),
        (b"", "truncated"),
        (b"[" * 5000, "object"),
        (b'{"columns":{"text":"fine"}, "label":1}', "not written as rows are committed to"),
        (b'{"columns":{"text":"fine"},"label":0,"label":1}', "not written as rows are committed to"),
        (b'{"columns":{"text":"\\ud800"},"label":1}', ""),
        ({**ROW, "columns": {"other": "fine"}}, None),
        ({**ROW, "columns": {"text": " "}}, None),
    ],
)
def test_a_row_that_no_file_gives_is_refused_in_a_sentence(row: Any, problem: str | None) -> None:
    data = row if isinstance(row, bytes) else claims.row_bytes(row)
    (opening,) = claims.open_rows([data], bytes(32), [0])
    assert claims.is_committed(opening, 1, claims.commit([data], bytes(32)))
    if problem is None:  # the reader of the file sees to it
        assert training_file([opening], OWN, "anna")
        return
    with pytest.raises(BadInput, match=f"row 0 of anna is no row of this run .*{problem}.*trust none of them"):
        training_file([opening], OWN, "anna")


def test_a_run_that_does_not_say_how_rows_are_read_has_no_claims(claimed: WrittenRun, tmp_path: Path) -> None:
    folder = copied(claimed, tmp_path)
    path = folder / "manifest.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('label_column = "label"\n', ""), encoding="utf-8")
    (folder / "peers.log").unlink()
    DecidedLog(folder / "peers.log", dataclasses.replace(claimed.group, run=manifests.read(folder).run)).close()
    with pytest.raises(BadInput, match="give --label-column too"):
        steps_of(RunFolder(folder), "anna")


def test_rows_that_were_committed_to_and_are_none_end_an_audit_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anna's card is of rows that no file gives, and of ten million of them: neither is worth a crash or a gigabyte."""
    rows = [claims.row_bytes({**ROW, "label": number}) for number in range(2, 14)]
    honest = claims.file_rows
    monkeypatch.setattr(
        claims, "file_rows", lambda path, own: rows if Path(path).name == "anna.csv" else honest(path, own)
    )
    run = write_run(tmp_path, random_rows(5), steps=3, commit=True)
    opened = tmp_path / "anna.json"
    open_steps(RunFolder(run.folder), "anna", str(run.files[0]), run.identities[0] / "salt", opened)
    with pytest.raises(BadInput, match=r"row \d+ of anna is no row of this run"):
        check_opened(RunFolder(run.folder), "anna", opened)


def test_only_opened_rows_are_written_for_a_check() -> None:
    """The rows of a file that nobody opened cost nothing, however many the peer says it has."""
    data = [claims.row_bytes({"columns": {"text": "long " * 1000}, "label": number % 2}) for number in range(100)]
    openings = claims.open_rows(data, bytes(32), [3, 97])
    text = training_file(openings, OWN, "anna")
    assert [json.loads(line)["label"] for line in text.splitlines()] == ["1", "1"]


def test_rows_beyond_what_an_auditor_shuffles_are_refused_everywhere(claimed: WrittenRun, tmp_path: Path) -> None:
    text = (claimed.folder / "manifest.toml").read_text(encoding="utf-8")
    with pytest.raises(BadInput, match="10000000"):
        manifests.parse(text.replace("rows = 12", "rows = 10000001", 1).encode())
    assert manifests.parse(text.replace("rows = 12", "rows = 10000000", 1).encode()).peers[0].rows == 10**7

    class Many(list[bytes]):
        def __len__(self) -> int:
            return 10**7 + 1

    with pytest.raises(BadInput, match="10,000,001 rows to commit to: give a file of at most 10,000,000"):
        claims.commit(Many([b"row"]), bytes(32))


def test_files_of_opened_rows_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "anna.json"
    (opening,) = claims.open_rows([claims.row_bytes(ROW)], bytes(32), [0])
    write_opened(path, "ab", "anna", [opening])
    whole = path.read_bytes()
    for data in (
        b"",
        b"[" * 9999,
        whole[:-9],
        whole.replace(b'"place":0', b'"place":"0"'),
        whole.replace(b'"salt":"', b'"salt":"zz'),
    ):
        path.write_bytes(data)
        with pytest.raises(BadInput, match="holds no opened rows"):
            read_opened(path, "ab", "anna")
    monkeypatch.setattr("gradless.peers.opened.LARGEST", len(whole) - 1)
    path.write_bytes(whole)
    with pytest.raises(BadInput, match="is larger than"):
        read_opened(path, "ab", "anna")
    with pytest.raises(BadInput, match="too long to be opened"):
        write_opened(path, "ab", "anna", [opening])


def test_a_nonce_is_made_for_who_asks_and_drawn_steps_say_who_drew_them(claimed: WrittenRun, tmp_path: Path) -> None:
    made_one = call("peers", "audit", claimed.folder, "--peer", "anna", "--json")
    assert made_one.exit_code == 0, made_one.output
    nonce = json.loads(made_one.output)["nonce"]
    told = call("peers", "audit", claimed.folder, "--peer", "anna").output
    assert "send it to anna when its run is over, and not before" in told
    assert nonce not in told  # another one
    rows = ["--data", claimed.files[0], "--salt", claimed.identities[0] / "salt"]
    opened = tmp_path / "anna.json"
    call("peers", "audit", claimed.folder, "--peer", "anna", *rows, "--open", opened, "--nonce", nonce)
    end = call("peers", "audit", claimed.folder, "--peer", "anna", "--opened", opened, "--nonce", nonce)
    assert end.exit_code == 0, end.output
    assert "without the --nonce" not in end.output
    alone = call("peers", "audit", claimed.folder, "--peer", "anna", *rows)
    assert alone.exit_code == 0, alone.output
    assert "the steps were drawn without the --nonce of an auditor" in alone.output
    refused(
        call("peers", "audit", claimed.folder, "--peer", "anna", *rows, "--nonce", "9f"), "is not 32 hexadecimal digits"
    )
