"""The leaderboard: made of the files in benchmarks/results, whoever put them there."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import leaderboard
import pytest

from docs_blocks import ROOT

GRID = """name = "mine"
seeds = [1, 2, 3]
budget = { forwards = 64, search = 32 }
[base]
model = "gemma-3-270m"
batch_size = 8
num_train = 1000
num_dev = 64
num_test = 200
plugins = ["own.py"]
[axes]
task = ["sst2"]
method = ["mezo", "my-own"]
"""


def line(method: str, seed: int, value: float | None, task: str = "sst2", **more) -> dict:
    cell = {"method": method, "scheme": "full", "task": task, "model": "gemma-3-270m", "aligned": True}
    record = {
        "id": f"{method}-{task}-{seed}",
        "phase": "final",
        "cell": cell,
        "point": {},
        "seed": seed,
        "forwards": 64,
    }
    record |= {"status": "done", "test": {"accuracy": value}, "train_seconds": 10.0 if method == "mezo" else 15.0}
    return record | {"peak_memory_bytes": 2.2e9, "inference_memory_bytes": 2e9} | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results and grids of the repository, copied."""
    for name in ("results", "grids"):
        shutil.copytree(ROOT / "benchmarks" / name, tmp_path / name)
    return tmp_path


def add(folder: Path, lines: list, *, grid: str | None = GRID, name: str = "mine") -> list[leaderboard.Board]:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    (folder / "results" / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in texts))
    if grid is not None:
        (folder / "results" / f"{name}-grid.toml").write_text(grid)
    return leaderboard.boards(folder / "results", folder / "grids")


def publisher() -> ModuleType:
    """``benchmarks/publish.py``, imported."""
    spec = importlib.util.spec_from_file_location("publish", ROOT / "benchmarks" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    publish = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(publish)
    return publish


def boards_of(boards: list[leaderboard.Board], file: str = "mine.jsonl") -> list[leaderboard.Board]:
    return [board for board in boards if any(entry.file == file for entry in board.entries)]


def test_a_file_of_a_third_party_stands_beside_the_study(folder):
    lines = [
        line("my-own", seed, 0.9 + seed / 1000, versions={"machine": "a chip", "gradless": "9"}) for seed in (1, 2, 3)
    ]
    (board,) = boards_of(add(folder, [*lines, *(line("mezo", seed, 0.7) for seed in (1, 2, 3))]))
    assert {entry.file for entry in board.entries} >= {"study.jsonl", "auto.jsonl", "mine.jsonl"}
    text = leaderboard.section(board)
    (row,) = [row for row in text.splitlines() if row.startswith("| `my-own`")]
    assert "| **0.902 ± 0.001** |" in row
    assert "| 64 | ~1.50 | 1.10 | `results/mine-grid.toml` | a chip, gradless 9 |" in row
    assert row.endswith("`mine.jsonl` |")


@pytest.mark.parametrize(
    ("old", "new", "labels"),
    [
        ("forwards = 64", "forwards = 128", {"my-own", "mezo"}),
        ("forwards = 64", "steps = 64", {"my-own", "mezo"}),
        ("num_test = 200", "num_test = 872", {"my-own", "mezo"}),
        ("num_train = 1000", "num_train = 500", {"my-own", "mezo"}),
        ("batch_size = 8", "batch_size = 16", {"my-own", "mezo"}),
        ("[axes]", '[[when]]\nmethod = "my-*"\nbase = { num_test = 100 }\n[axes]', {"my-own"}),
        ("[axes]", '[[when]]\nmethod = "my-*"\nbase = { batch_size = 4 }\n[axes]', {"my-own"}),
    ],
)
@pytest.mark.parametrize("methods", [("my-own", "mezo"), ("mezo", "my-own")])
def test_another_budget_or_other_rows_are_another_table(folder, old, new, labels, methods):
    assert old in GRID
    boards = boards_of(add(folder, [line(method, 1, 0.9) for method in methods], grid=GRID.replace(old, new)))
    (board,) = (one for one in boards if "my-own" in {entry.label for entry in one.entries})
    assert {(entry.file, entry.label) for entry in board.entries} == {("mine.jsonl", label) for label in labels}
    assert len(boards) == 3 - len(labels)  # mezo alone joins the study's table


def test_a_file_without_a_grid_has_a_table_of_its_own(folder):
    (board,) = boards_of(add(folder, [line("my-own", 1, 0.9)], grid=None))
    assert board.budget == "unknown budget, mine.jsonl"
    assert "Rows: sst2: not recorded." in leaderboard.section(board)


def test_cells_that_lack_seeds_say_so_and_are_never_the_best(folder):
    lines = [line("my-own", 1, 0.99), line("my-own", 2, 0.98), line("my-own", 3, None, status="diverged")]
    (board,) = boards_of(add(folder, [*lines, line("other", 1, None, status="diverged")]))
    rows = {row.split("`")[1]: row for row in leaderboard.section(board).splitlines() if "| full |" in row}
    assert "| 0.985 ± 0.007 (2 of 3 seeds) |" in rows["my-own"]
    assert "| 0 of 3 seeds |" in rows["other"]
    assert "**0.873 ± 0.025**" in rows["fo-adam"] + rows["fo-adam-ckpt"]


def test_a_run_that_was_taken_over_counts_once(folder):
    study = [json.loads(text) for text in (folder / "results" / "study.jsonl").read_text().splitlines()]
    reused = [{**one, "reused": "study.jsonl"} for one in study if one["phase"] == "final"]
    boards = add(folder, [*reused, line("my-own", 1, 0.9)])
    assert [entry.label for board in boards for entry in board.entries if entry.file == "mine.jsonl"] == ["my-own"]
    (folder / "results" / "study.jsonl").unlink()
    labels = {
        e.label
        for board in leaderboard.boards(folder / "results", folder / "grids")
        for e in board.entries
        if e.file == "mine.jsonl"
    }
    assert labels > {"my-own", "mezo", "fo-adam"}


@pytest.mark.parametrize(
    "damage", ['{"id": "torn", "phase": "final", "ce', "[]", '{"id": "x"}', '{"phase": "final", "cell": 3}']
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_damaged_line_is_one_sentence(folder, damage, index):
    lines: list = [line("my-own", 1, 0.9), line("my-own", 2, 0.9)]
    lines.insert(index, damage)
    if index == 0 and '"phase"' not in damage:
        assert not boards_of(add(folder, lines))  # a file of something else
        return
    with pytest.raises(leaderboard.Damaged) as caught:
        add(folder, lines)
    assert str(caught.value).startswith(f"benchmarks/results/mine.jsonl, line {index + 1} is not a result")
    assert "\n" not in str(caught.value)


def test_files_of_other_kinds_are_no_benchmarks():
    names = {entry.file for board in leaderboard.boards() for entry in board.entries}
    assert names >= {"study.jsonl", "frontier.jsonl", "auto.jsonl", "checkpointed.jsonl", "lora-rate.jsonl"}
    assert not [name for name in names if name.startswith(("collab", "peers", "quantised", "reward"))]


def test_seconds_that_were_measured_side_by_side_are_marked_so():
    (frontier,) = boards_of(leaderboard.boards(), "frontier.jsonl")
    seconds = {entry.label: entry for entry in frontier.entries}
    timings = json.loads((ROOT / "benchmarks" / "results" / "frontier-timings.json").read_text())["cells"]
    steps = {name: timings[f"{name}/full/sst2/gemma-3-270m"]["step_seconds"] for name in ("mezo", "fzoo")}
    assert seconds["fzoo"].timed
    assert seconds["fzoo"].seconds == pytest.approx(22 * steps["fzoo"] / (100 * steps["mezo"]))
    (study,) = boards_of(leaderboard.boards(), "study.jsonl")
    assert not any(entry.timed for entry in study.entries)


def test_seconds_are_over_those_of_mezo_on_the_same_model(folder):
    lines = []
    for model, unit in (("a", 1.0), ("b", 10.0)):
        for method, seconds, status in (("mezo", unit, "done"), ("x", 2 * unit, "done"), ("mezo", 0.1, "diverged")):
            one = line(method, 1 + (status == "diverged"), 0.9, train_seconds=seconds, status=status)
            lines.append({**one, "id": f"{model}-{one['id']}", "cell": {**one["cell"], "model": model}})
    boards = boards_of(add(folder, lines))
    assert len(boards) == 2
    for board in boards:
        assert {entry.label: entry.seconds for entry in board.entries} == {"mezo": 1.0, "x": 2.0}


def test_means_of_one_total_share_the_mark(folder):
    right = {"mine": (615, 626, 694), "other": (612, 628, 695)}
    lines = [
        {**line(method, seed, count / 872), "cell": {**line(method, seed, 0)["cell"], "model": "m"}}
        for method, counts in right.items()
        for seed, count in enumerate(counts, 1)
    ]
    (board,) = boards_of(add(folder, lines))
    assert leaderboard.section(board).count("**0.740") == 2


def test_publishing_under_the_name_of_another_grid_is_refused(tmp_path, monkeypatch):
    publish = publisher()
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    out = tmp_path / "runs"
    out.mkdir()
    (out / "results.jsonl").write_text(json.dumps(line("mezo", 1, 0.9)) + "\n")
    (out / "grid.toml").write_text(GRID)
    with pytest.raises(SystemExit, match="publish under another name"):
        publish.publish(out, "long-a", {})
    assert not (tmp_path / "results").exists()


def test_publishing_a_folder_puts_it_on_the_board(folder, tmp_path, monkeypatch):
    publish = publisher()
    monkeypatch.setattr(publish, "RESULTS", folder / "results")
    out = tmp_path / "runs" / "mine"
    (out / "runs" / "my-own-sst2-1").mkdir(parents=True)
    (out / "runs" / "my-own-sst2-1" / "result.json").write_text(
        json.dumps({"versions": {"machine": "a chip", "torch": "9"}})
    )
    (out / "results.jsonl").write_text("".join(json.dumps(line("my-own", seed, 0.9)) + "\n" for seed in (1, 2)))
    (out / "grid.toml").write_text(GRID)
    written = {path.name for path in publish.publish(out, "mine", {})}
    assert written == {"mine.jsonl", "mine.md", "mine-best.toml", "mine-grid.toml"}
    (board,) = boards_of(leaderboard.boards(folder / "results", folder / "grids"))
    (entry,) = [entry for entry in board.entries if entry.file == "mine.jsonl"]
    assert entry.versions == "a chip, torch 9"
    text = (folder / "results" / "mine.md").read_text()
    assert text.startswith("Not complete: 1 run has no result yet.\n\n### ")
    assert "0.900 ± 0.000 (2 of 3 seeds)" in leaderboard.section(board)
