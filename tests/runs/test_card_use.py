"""The code of a model card: it is run, without gradless, and gives what `gradless predict` gives."""

from __future__ import annotations

import json
import re
import shlex
import warnings

import pytest

import gradless as gl
import run_helpers as h
from cli_helpers import call
from gradless.runs import jobs
from save_helpers import QUIET, tuned


def blocks(folder):
    """The command that saves the base, if there is one, and the Python code."""
    use = (folder / "README.md").read_text().partition("## Use")[2].partition("## How it was made")[0]
    commands = re.findall(r"```sh\n(python .*?)\n```", use, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)\n```", use, re.DOTALL)
    return commands, code


def names_of(folder, monkeypatch, *, with_base=True):
    """What the card's code computes, run where the folder lies: its variables; ``with_base`` saves the base first."""
    monkeypatch.chdir(folder.parent)
    commands, code = blocks(folder)
    for command in commands if with_base else ():
        program, option, text = shlex.split(command)
        assert (program, option) == ("python", "-c")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(text, {})
    assert "gradless" not in code
    assert len(code.splitlines()) <= 18
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries
        exec(code, names)
    return names


def saved(tmp_path, **changes):
    run = tuned(tmp_path, **changes)
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    return tmp_path / "saved"


MASKED = {"template": "{text} so {mask} ."}
CASES = [
    *((scheme, "tiny-llama", {}) for scheme in ("full", "lora", "prefix", "prompt", "head")),
    *(
        (scheme, "tiny-roberta", {"template": "{text} so {mask} ."})
        for scheme in ("full", "lora", "prefix", "prompt", "head")
    ),
    ("full", "tiny-llama", {"labels": "0=not at all good,1=really quite great indeed"}),
    ("lora", "tiny-opt", {"labels": {"0": "quite bad", "1": 'so "good" {x}'}}),
    ("full", "tiny-gemma", {"template": "Review: {text}\nVerdict:\n", "labels": "0=bad,1=good"}),
    ("prompt", "tiny-gemma", {"template": "{{ {text} }}", "labels": "0=not so bad,1=good"}),
]


@pytest.mark.few(4)
@pytest.mark.parametrize(("scheme", "model", "own"), CASES)
def test_the_code_of_the_card_gives_the_same_probabilities(tmp_path, monkeypatch, scheme, model, own):
    folder = saved(tmp_path, scheme=scheme, model=model, own={**h.sentiment(tmp_path / "data"), **own})
    names = names_of(folder, monkeypatch)
    row, shown = names["row"], names["probabilities"]
    (prediction,) = gl.load_classifier(folder).predict([row])
    assert list(shown) == list(prediction.probabilities)
    assert list(shown.values()) == pytest.approx(list(prediction.probabilities.values()), abs=5e-5)


@pytest.mark.parametrize("scheme", ["full", "lora", "prefix"])
def test_the_code_of_the_card_writes_by_the_logits_alone(tmp_path, monkeypatch, capsys, scheme):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Say the question of a row"}) + "\n")
    own = {"train": str(tmp_path / "rows.jsonl"), "test": str(tmp_path / "rows.jsonl"), "template": "{question} :"}
    rows = {"num_train": 1, "num_dev": 0, "num_test": 1, "batch_size": 1}
    rewarded = {"method": "es", "reward": ("length:9",), "max_new_tokens": 12, "stop": ("zz", "e")}
    folder = saved(tmp_path, scheme=scheme, own=own, lr=1e-3, **rows, **rewarded)
    names = names_of(folder, monkeypatch)
    plain = names["text"].strip()
    assert capsys.readouterr().out.endswith(f"{plain}\n")
    spec = (folder if scheme == "full" else folder.parent / "base") / "generation_config.json"
    theirs = json.loads(spec.read_text()) if spec.exists() else {}
    spec.write_text(json.dumps(theirs | {"repetition_penalty": 9.0, "suppress_tokens": names["tokens"].tolist()}))
    assert names_of(folder, monkeypatch, with_base=False)["text"].strip() == plain
    (tmp_path / "shown.jsonl").write_text(json.dumps(names["row"]) + "\n")
    done = call("predict", folder, "--input", tmp_path / "shown.jsonl", "--output", tmp_path / "written.jsonl")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "written.jsonl").read_text())["predicted_text"] == plain
