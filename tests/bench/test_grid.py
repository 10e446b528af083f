"""Grids: what their files may say, which runs they ask for, and what is refused before anything runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import gradless
from gradless import rng
from gradless.bench import grid
from gradless.bench.search import Search
from gradless.runs.config import TuneConfig
from grid_helpers import OWN, SMALL, choose, cost, read, search_runs


def line(one: grid.Request, accuracy: float | None, loss: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A finished run, as results.jsonl says it."""
    dev = {"loss": loss} if accuracy is None else {"accuracy": accuracy, "loss": loss}
    told = {"id": one.id, "phase": one.phase, "cell": one.cell, "point": one.point, "seed": one.seed}
    return json.loads(json.dumps({**told, "status": "done", "dev": dev, "test": {}, **changes}))


# ---------------------------------------------------------------------------------------------------------------
# cells and points


def test_cells_are_the_product_of_the_axes(tmp_path):
    cells = grid.cells(read(tmp_path))
    assert [cell.name for cell in cells] == [
        f"{method}/{scheme}/sst2/tiny-llama" for method in ("mezo", "fo-adam") for scheme in ("full", "lora")
    ]
    assert cells[0].values == {
        "method": "mezo",
        "scheme": "full",
        "task": "sst2",
        "model": "tiny-llama",
        "aligned": True,
    }
    assert cells[0].points == [{"lr": 1e-6}, {"lr": 3e-6}, {"lr": 1e-5}]


def test_everything_that_matches_applies_in_order(tmp_path):
    more = """
[[when]]
method = "fo-*"
grid = { lr = [1e-5, 3e-5], weight_decay = [0.0] }
base = { batch_size = 8 }
[[when]]
scheme = ["lora", "prefix"]
grid = { lr = [1e-4] }
[[when]]
method = "fo-adam"
scheme = "full"
skip = true
[[when]]
method = "mezo"
base = { lr = 0.5 }
"""
    mezo, mezo_lora, adam_lora = grid.cells(read(tmp_path, SMALL + more))
    assert mezo.searched == {}
    assert mezo.base["lr"] == 0.5
    assert mezo_lora.searched == {}
    assert adam_lora.name == "fo-adam/lora/sst2/tiny-llama"
    assert adam_lora.searched == {"lr": (1e-4,), "weight_decay": (0.0,)}
    assert adam_lora.base["batch_size"] == 8
    assert "batch_size" not in mezo.base


def test_a_later_skip_can_be_undone(tmp_path):
    more = '[[when]]\nmethod = "*"\nskip = true\n[[when]]\nmethod = "mezo"\nscheme = "full"\nskip = false\n'
    assert [cell.name for cell in grid.cells(read(tmp_path, SMALL + more))] == ["mezo/full/sst2/tiny-llama"]


def test_further_axes_name_their_cells_and_reach_the_configuration(tmp_path):
    text = SMALL.replace('method = ["mezo", "fo-adam"]', 'method = ["lozo"]\n"options.rank" = [2, 4]\nbatch_size = [4]')
    parsed = read(tmp_path, text + "options.refresh = [7]\n")
    cell = grid.cells(parsed)[0]
    assert cell.name == "lozo/full/sst2/tiny-llama/rank=2/batch_size=4"
    assert cell.points[0] == {"lr": 1e-6, "options.refresh": 7}
    config = grid.configure(parsed, cell, cell.points[0], seed=0, test=True)
    assert config.options == {"rank": 2, "refresh": 7}
    assert config.batch_size == 4


def test_task_names_are_spelt_as_the_table_spells_them(tmp_path):
    text = SMALL.replace('"sst2"', '"SST-2"') + '[[when]]\ntask = "SST-2"\nbase = { batch_size = 3 }\n'
    assert all(
        cell.values["task"] == "sst2" and cell.base["batch_size"] == 3 for cell in grid.cells(read(tmp_path, text))
    )


def test_unaligned_cells_are_named(tmp_path):
    cells = grid.cells(read(tmp_path, SMALL.replace('task = ["sst2"]', 'task = ["sst2"]\naligned = [true, false]')))
    assert cells[0].name == "mezo/full/sst2/tiny-llama"
    assert cells[1].name == "mezo/full/sst2/tiny-llama/unaligned"


# ---------------------------------------------------------------------------------------------------------------
# requests


def test_search_touches_no_test_row_and_final_runs_take_every_seed(tmp_path):
    parsed = read(tmp_path)
    search = search_runs(parsed)
    assert len(search) == 4 * 3
    assert {(one.phase, one.seed, one.config.seed, one.config.num_test) for one in search} == {("search", 0, 0, 0)}
    chosen = {grid.cells(parsed)[0].name: {"lr": 3e-6}, grid.cells(parsed)[1].name: None}
    final = grid.final_runs(parsed, chosen, cost)
    assert [(one.seed, one.config.seed, one.config.num_test, one.config.lr) for one in final] == [
        (seed, seed, 8, 3e-6) for seed in (1, 2, 3)
    ]
    assert not any(one.config.zero_shot for one in search + final)
    assert {one.config.select for one in search} == {"metric"}


def test_a_budget_in_forwards_buys_steps_by_their_cost(tmp_path):
    search = search_runs(read(tmp_path))
    assert {(one.cell["method"], one.config.steps, one.config.eval_every) for one in search} == {
        ("mezo", 100, 20),
        ("fo-adam", 66, 14),
    }


def test_runs_that_only_search_may_be_shorter(tmp_path):
    parsed = read(tmp_path, SMALL.replace("{ forwards = 200 }", "{ forwards = 200, search = 100 }"))
    search = search_runs(parsed)
    assert {(one.cell["method"], one.config.steps) for one in search} == {("mezo", 50), ("fo-adam", 33)}
    chosen = {grid.cell_name(one.cell): one.point for one in search}
    assert {one.config.steps for one in grid.final_runs(parsed, chosen, cost)} == {100, 66}


@pytest.mark.parametrize(("steps", "evaluations", "every"), [(10, 5, 2), (11, 5, 3), (3, 5, 1), (10, 1, 10)])
def test_the_last_evaluation_is_at_the_last_step(tmp_path, steps, evaluations, every):
    text = SMALL.replace("{ forwards = 200 }", f"{{ steps = {steps} }}")
    text = text.replace("num_dev = 8", f"num_dev = 8\nevaluations = {evaluations}")
    config = search_runs(read(tmp_path, text))[0].config
    assert (config.steps, config.eval_every) == (steps, every)
    assert len({*range(every, steps + 1, every), steps}) <= evaluations


def test_a_cell_with_one_point_has_nothing_to_search(tmp_path):
    parsed = read(tmp_path, SMALL.replace("[1e-6, 3e-6, 1e-5]", "[1e-6]"))
    assert search_runs(parsed) == []
    chosen = choose(parsed, [])
    assert len(grid.final_runs(parsed, chosen, cost)) == 4 * 3


def test_one_zero_shot_run_for_each_template_and_seed(tmp_path):
    text = SMALL.replace('task = ["sst2"]', 'task = ["sst2", "copa"]\naligned = [true, false]')
    runs = grid.zero_shot_runs(read(tmp_path, text))
    assert len(runs) == 2 * 2 * 3
    assert {one.phase for one in runs} == {"zero-shot"}
    assert {(one.config.num_train, one.config.num_dev, one.config.num_test) for one in runs} == {(0, 0, 8)}
    assert grid.zero_shot_runs(read(tmp_path, "zero_shot = false\n" + text)) == []


def test_an_axis_of_chat_evaluates_the_untouched_model_both_ways(tmp_path):
    text = SMALL.replace('task = ["sst2"]', 'task = ["sst2"]\nchat = [true, false]').replace("tiny-llama", "tiny-qwen")
    runs = grid.zero_shot_runs(read(tmp_path, text))
    assert sorted({(one.config.chat, one.cell["chat"]) for one in runs}) == [(False, False), (True, True)]
    assert "chat" not in grid.zero_shot_runs(read(tmp_path, SMALL))[0].cell


def test_paths_are_relative_to_the_grid_and_filled_in(tmp_path):
    (tmp_path / "tiny-model").mkdir()
    text = SMALL.replace('model = "tiny-llama"', 'model = "tiny-model"\ndata = "rows/{task}-{scheme}"')
    config = search_runs(read(tmp_path, text))[0].config
    assert config.data == str(tmp_path / "rows" / "sst2-full")
    assert config.model == str(tmp_path / "tiny-model")


def test_own_files_are_a_task_and_search_runs_do_not_see_the_test_file(tmp_path):
    text = SMALL.replace('task = ["sst2"]\n', "").replace("[base]\n", f"[base]\n{OWN}")
    parsed = read(tmp_path, text)
    cell = grid.cells(parsed)[0]
    assert cell.name == "mezo/full/own/tiny-llama"
    search = search_runs(parsed)[0].config
    assert search.task is None
    assert "test" not in search.own
    assert search.own["train"] == str(tmp_path / "a.csv")
    final = grid.final_runs(parsed, {cell.name: cell.points[0]}, cost)[0].config
    assert final.own["test"] == str(tmp_path / "b.csv")


# ---------------------------------------------------------------------------------------------------------------
# ids


def test_an_id_is_the_hash_of_what_determines_the_run(tmp_path):
    one = search_runs(read(tmp_path))[0]
    config = {k: v for k, v in one.config.resolved().to_json().items() if k not in ("device", "data", "chat")}
    whole = {"config": config, "gradless": gradless.__version__, "stream": rng.STREAM_VERSION}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    assert one.id == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert one.id == search_runs(read(tmp_path))[0].id
    assert TuneConfig.from_json(one.to_json()["config"]) == one.config


def test_ids_follow_every_setting_but_the_device(tmp_path):
    config = search_runs(read(tmp_path))[0].config
    known = grid.run_id(config)
    for change in ({"lr": 2e-6}, {"seed": 5}, {"steps": 7}, {"options": {"x": 1}}, {"num_test": 1}, {"aligned": False}):
        assert grid.run_id(dataclasses.replace(config, **change)) != known
    assert grid.run_id(dataclasses.replace(config, device="cuda")) == known


def test_all_possible_runs_have_ids_of_their_own(tmp_path):
    runs = Search(read(tmp_path), cost).possible
    assert len({one.id for one in runs}) == len(runs) == 3 + 4 * 3 + 4 * 3 * 3


def test_a_whole_number_is_the_same_rate(tmp_path):
    ids = [[one.id for one in search_runs(read(tmp_path, SMALL.replace("1e-5]", f"{rate}]")))] for rate in ("1", "1.0")]
    assert ids[0] == ids[1]


# ---------------------------------------------------------------------------------------------------------------
# choice


def searched(folder: Path, scores: list[tuple[float | None, float]], **changes: Any) -> Any:
    """What is chosen in the first cell, whose three points have these dev metrics and losses."""
    parsed = read(folder)
    runs = search_runs(parsed)[:3]
    lines = [line(one, *score, **changes) for one, score in zip(runs, scores, strict=True)]
    return choose(parsed, lines).get(grid.cells(parsed)[0].name, "absent")


def test_the_best_point_on_dev_is_chosen(tmp_path):
    assert searched(tmp_path, [(0.5, 1.0), (0.75, 2.0), (0.5, 0.1)]) == {"lr": 3e-6}


def test_loss_decides_between_equals_and_then_the_order(tmp_path):
    assert searched(tmp_path, [(0.5, 1.0), (0.75, 2.0), (0.75, 0.1)]) == {"lr": 1e-5}
    assert searched(tmp_path, [(0.5, 1.0), (0.75, 0.1), (0.75, 0.1)]) == {"lr": 3e-6}


def test_the_test_set_has_no_say(tmp_path):
    parsed = read(tmp_path)
    runs = search_runs(parsed)[:3]
    lines = [line(one, 0.5 + 0.1 * i, test={"accuracy": 1.0 - i}) for i, one in enumerate(runs)]
    finals = [line(one, 1.0) for one in grid.final_runs(parsed, {grid.cells(parsed)[0].name: {"lr": 1e-6}}, cost)]
    assert choose(parsed, lines + finals)[grid.cells(parsed)[0].name] == {"lr": 1e-5}


def test_what_diverged_or_failed_is_not_chosen(tmp_path):
    parsed = read(tmp_path)
    cell = grid.cells(parsed)[0].name
    runs = search_runs(parsed)[:3]
    bad = [line(one, 0.9, status=status) for one, status in zip(runs, ("diverged", "failed", "done"), strict=True)]
    assert choose(parsed, [bad[0], bad[1], line(runs[2], 0.1)])[cell] == {"lr": 1e-5}
    assert choose(parsed, [*bad[:2], line(runs[2], 0.9, status="diverged")])[cell] is None
    assert choose(parsed, [*bad[:2], line(runs[2], None)])[cell] is None
    assert cell not in choose(parsed, bad[:2])


def test_selection_by_loss(tmp_path):
    parsed = read(tmp_path, SMALL.replace('"accuracy"', '"loss"'))
    runs = search_runs(parsed)[:3]
    lines = [line(one, score, loss) for one, score, loss in zip(runs, (0.9, 0.1, 0.5), (2.0, 1.0, 3.0), strict=True)]
    assert choose(parsed, lines)[grid.cells(parsed)[0].name] == {"lr": 3e-6}
    assert runs[0].config.select == "loss"


def test_another_law_of_auto_is_another_run(monkeypatch):
    config = TuneConfig(model="tiny-llama", task="sst2", steps=4, lr="auto").resolved()
    now = grid.run_id(config)
    monkeypatch.setattr("gradless.runs.walks.RISE", 0.2)
    assert grid.run_id(config) != now
    assert grid.run_id(dataclasses.replace(config, walk=9.0)) != now
