"""``gradless report`` on the folder of a peer's run: finished, cut short, and with what strangers may have written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from gradless.report import report, tables
from gradless.report.peers.record import is_peers, load
from gradless.report.peers.tables import all_tables
from peers_audit_helpers import NAMES, WrittenRun, random_rows, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> WrittenRun:
    run = write_run(tmp_path_factory.mktemp("run"), random_rows(flips=(3,)), steps=60, evidence=(50, 2))
    write_metrics(run.folder)
    return run


def write_metrics(folder: Path) -> None:
    """What the node of the first peer writes beside the log."""
    lines: list[dict[str, Any]] = [
        {
            **{"event": "step", "step": step, "loss": 1.0 - step / 100, "heard": [0, 1, 2, 3], "leader": step % 4},
            **{"late": [1] if step % 5 == 0 else [], "round": int(step == 12), "probe_seconds": 0.02},
            **{"agree_seconds": 0.03 + step / 1e4, "seconds": 0.06, "bytes": 1700},
        }
        for step in range(60)
    ]
    lines += [{"event": "hash", "step": 50, "weights_sha256": "a" * 64, "others": {"bert": "a" * 64, "dora": "b" * 64}}]
    lines += [{"event": "eval", "step": step, "accuracy": 0.5 + step / 200} for step in (20, 40, 60)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    known = [{"name": name, "alive": True, "heard": 60, "weights_sha256": "a" * 64} for name in NAMES]
    status = {"run": "x", "me": "anna", "step": 60, "steps": 60, "updated": 0.0, "phase": "ended", "peers": known}
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
    result = {"status": "done", "steps": 60, "weights_sha256": "a" * 64, "accuracy": 0.8, "bytes_per_step": 1700.0}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "evidence").mkdir()
    (folder / "evidence" / "carl-50.bin").write_bytes(b"")


def page_of(folder: Path) -> tuple[str, list[str]]:
    messages: list[str] = []
    (path,) = report(folder, say=messages.append)
    return path.read_text(encoding="utf-8"), messages


def test_the_page_says_who_was_heard_late_banned_and_how_long_agreement_took(run: WrittenRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copytree(run.folder, tmp_path / "run")
    text, messages = page_of(tmp_path / "run")
    for part in ("who-presence", "who-scores", "time-agreement", "training-loss", "training-accuracy", "table-peers"):
        assert f'id="{part}"' in text
    assert "<script" not in text
    assert "evidence/carl-50.bin" in text
    assert "dora stated other weights than this peer at step 50" in text
    assert "dora disagrees with most others" in text
    assert run.manifest.fingerprint in text
    assert messages[0].endswith("of anna: 60 of 60 steps, done")


def test_the_tables_have_the_numbers_of_the_log_and_of_this_peer(run: WrittenRun) -> None:
    by_name = {table.name: table for table in tables(run.folder)}
    rows = {row["peer"]: row for row in by_name["peers"].records}
    assert rows["bert"]["late"] == 12
    assert rows["carl"]["banned"] == 51
    assert rows["carl"]["heard"] == 51
    assert rows["dora"]["score"] < -3
    assert by_name["latency"].records[1]["median"] == pytest.approx(0.033, abs=1e-4)
    assert "omissions" not in by_name  # a banned peer is not left out


def test_what_is_missing_is_left_out_of_the_page(run: WrittenRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    for missing in ("evidence", "ledger", "result.json", "peers.log", "status.json"):
        path = folder / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert all_tables(load(folder))
    text, _ = page_of(folder)
    assert "<h2>Who was heard</h2>" in text
    (folder / "metrics.jsonl").unlink()
    assert not is_peers(folder)  # a manifest alone is no run


def test_files_that_hold_anything_else_are_no_error(run: WrittenRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    odd = '{"event": "step", "step": "x", "peers": 3, "heard": {}, "late": [9, -1]}'
    for held in ("", "[]", "{", "null", "\0\n", odd, odd.replace('"x"', "-1"), odd.replace('"x"', "3")):
        for name in ("metrics.jsonl", "status.json", "result.json"):
            (folder / name).write_text(held, encoding="utf-8")
        record = load(folder)
        assert record.taken == 60
        assert all_tables(record)
    page_of(folder)


def test_what_others_stated_is_escaped(run: WrittenRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    line = {"event": "hash", "step": 55, "weights_sha256": "<b>x", "others": {"<i>y": "<u>z"}}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    text, _ = page_of(folder)
    assert "<b>x" not in text
    assert "<i>y" not in text
    assert "&lt;u&gt;z" in text
