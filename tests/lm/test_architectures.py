"""Every architecture of the table under every scheme: right in all that a cell promises, or refused in one sentence."""

from __future__ import annotations

import importlib.util
import json

import pytest

import architectures
from gradless.errors import BadInput
from gradless.lm import schemes
from repository import ROOT

RESULTS = json.loads((ROOT / "benchmarks" / "results" / "architectures.json").read_text())


def outcome(cell: architectures.Cell) -> bool:
    """Whether a cell is right; it is refused otherwise, and nothing else."""
    assert cell.wrong == ()
    assert "\n" not in cell.refused
    assert not cell.refused or ": " in cell.refused  # what is wrong, then what to do
    return not cell.refused


@pytest.mark.few(2, sweep=len(architectures.ROWS))  # every architecture; all cells: benchmarks/architectures.py
@pytest.mark.parametrize("scheme", architectures.SCHEMES)
@pytest.mark.parametrize("name", architectures.ROWS)
def test_a_scheme_is_right_or_refused(name, scheme):
    right = outcome(architectures.run(architectures.ROWS[name], scheme))
    assert right == (not RESULTS["rows"][name]["cells"][scheme]["refused"])


@pytest.mark.few(1, sweep=len(architectures.ROWS) // 4)
@pytest.mark.parametrize("name", architectures.ROWS)
def test_memory_is_planned_or_refused(name, tmp_path):
    outcome(architectures.planned(architectures.ROWS[name], tmp_path / name))


def test_the_page_shows_the_results():
    spec = importlib.util.spec_from_file_location("of_architectures", ROOT / "benchmarks" / "architectures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.rendered(RESULTS)
    assert len(RESULTS["rows"]) >= 40


@pytest.mark.parametrize(
    ("name", "adapted"),
    [
        ("gpt2", "c_attn"),
        ("bloom", "query_key_value"),
        ("llama", "q_proj v_proj"),
        ("mamba", "in_proj x_proj"),
        ("phi3", "qkv_proj o_proj"),
        ("deepseek_v3", "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj"),
        ("rwkv", "key value receptance output"),
        ("deberta", "in_proj"),
    ],
)
@pytest.mark.few(3)
def test_lora_adapts_by_default(name, adapted):
    lm = architectures.start(architectures.build(architectures.ROWS[name]), "lora")
    names = [one.partition(".lora_")[0].rpartition(".")[2] for one, _ in schemes.trainable(lm)]
    assert set(names) == set(adapted.split())


def test_a_stacked_weight_of_experts_is_no_layer():
    with pytest.raises(BadInput, match=r"gate_up_proj is a weight, .* choose targets from .*q_proj"):
        schemes.apply(architectures.build(architectures.ROWS["mixtral"]), "lora", targets=("gate_up_proj",))


def test_a_projection_that_kernels_read_themselves_is_refused():
    with pytest.raises(BadInput, match=r"LoRA does not fit mamba .*out_proj.*: use"):
        schemes.apply(architectures.build(architectures.ROWS["mamba"]), "lora", targets=("out_proj",))


@pytest.mark.parametrize("name", architectures.READ_AHEAD)
def test_a_model_that_reads_ahead_is_no_causal_model(name):
    with pytest.raises(BadInput, match="reads what follows a token"):
        architectures.build(architectures.ROWS[name])


def test_only_models_that_read_ahead_are_refused_under_the_scheme_full():
    cells = {name: row["cells"]["full"]["refused"] for name, row in RESULTS["rows"].items()}
    assert {name for name, refused in cells.items() if refused} == {*architectures.READ_AHEAD}
    assert all("reads what follows a token" in cells[name] for name in architectures.READ_AHEAD)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "esm"])
def test_a_label_head_starts_at_the_models_own_logits(name):
    assert outcome(architectures.run(architectures.ROWS[name], "head"))
