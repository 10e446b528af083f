"""The command ``gradless plan``, and what it refuses."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from gradless.cli import main
from gradless.cost import plan
from gradless.cost.plan import Settings
from gradless.errors import BadInput


def planned(path, *budgets):
    """The result of `gradless plan` for a tiny model and two rows of 8 tokens, compared with sizes of memory."""
    words = ["plan", "--model", "tiny-llama", "--batch-size", "2", "--length", "8", "--json", str(path)]
    return CliRunner().invoke(main, [*words, *(word for size in budgets for word in ("--memory", size))])


def test_the_command_prints_a_table_and_writes_it(tmp_path):
    path = tmp_path / "new" / "plan.json"
    result = planned(path, "500KB", "1GB")
    assert result.exit_code == 0, result.output
    lines = {line.split("  ")[0]: line for line in result.output.splitlines()}
    assert lines["inference"].endswith("500KB, 1GB")
    assert lines["adam, all weights"].endswith(" 1GB")
    saved = json.loads(path.read_text())
    row = saved["needs"]["mezo, full"]
    assert row["total_bytes"] == row["weights_bytes"] + row["activations_bytes"] + row["scratch_bytes"]
    assert saved["needs"]["adam, all weights"]["fits"] == ["1GB"]
    assert saved["budgets_bytes"] == {"500KB": 500_000, "1GB": 10**9}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("24", 24 * 10**9), (" 24 ", 24 * 10**9), ("0.5", 5 * 10**8), ("24gb", 24 * 10**9), ("24G", 24 * 10**9)),
        *(("24GiB", 24 * 2**30), ("1.5 TiB", 3 * 2**39), ("500MB", 5 * 10**8), ("8 kib", 8192), ("77B", 77)),
    ],
)
def test_a_size_has_a_unit_or_is_in_gb(text, expected):
    assert plan.size(text) == expected


def test_the_command_says_what_it_took(tmp_path):
    printed = planned(tmp_path / "plan.json", "24", "1GiB").output
    assert "Compared with 24GB = 24,000,000,000 bytes; 1GiB = 1,073,741,824 bytes." in printed
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved["budgets_bytes"] == {"24GB": 24 * 10**9, "1GiB": 2**30}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--model", "gemma-3-270n"], "did you mean 'gemma-3-270m'"),
        (["--model", "shape:opt-125n"], "did you mean 'opt-125m'"),
        (["--model", "/nowhere"], "check the path"),
        (["--model", "tiny-llama", "--method", "mezzo"], "did you mean 'mezo'"),
        (["--model", "tiny-llama", "--engine", "fast"], "unknown engine 'fast'"),
        (["--model", "tiny-llama", "--device", "cudaa"], "unknown device 'cudaa': use cpu, cuda, cuda:0 or auto"),
        (["--model", "tiny-llama", "--objective", "f1"], "unknown objective 'f1'"),
        (["--model", "tiny-llama", "--attention", "slow"], "unknown attention 'slow'"),
        (["--model", "tiny-llama", "--length", "9999"], "more than the 256 tokens"),
        (["--model", "tiny-llama", "--batch-size", "0"], "batch_size is 0: give a whole number of at least 1"),
        (["--model", "tiny-llama", "--memory", "lots"], "is no size of a memory: write 24 (GB), 24GiB or 500MB"),
        (["--model", "tiny-llama", "--memory", "24000000000"], "would be 24000000000 GB: write 24000000000B"),
        (["--model", "tiny-llama", "--memory", "0"], "is no size of a memory"),
        (["--model", "tiny-llama", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["--model", "tiny-roberta", "--objective", "lm"], "masked model"),
    ],
)
def test_bad_input_is_one_sentence(words, part):
    result = CliRunner().invoke(main, ["plan", *words])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("gradless: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr


def test_an_unknown_architecture_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "flying-llama", "architectures": ["FlyingLlamaForCausalLM"]}')
    with pytest.raises(BadInput, match=r"architecture 'flying-llama' that transformers .* does not know: upgrade"):
        plan.plan(Settings(model=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    with pytest.raises(BadInput, match="no language-model head"):
        plan.plan(Settings(model=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(BadInput, match="names no model_type that transformers knows: restore"):
        plan.plan(Settings(model=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        plan.plan(Settings(model=str(tmp_path)))
