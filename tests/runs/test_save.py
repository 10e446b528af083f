"""Saved models load elsewhere with the very same outputs, their record rebuilds them, and none is ever half there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import adapter_helpers as adapters
import run_helpers as h
from gradless import ledger, lm
from gradless.cli import main
from gradless.errors import BadInput
from gradless.runs import build, card, jobs, replay
from gradless.runs.config import read_config
from save_helpers import QUIET, facts_of, tuned


def selected(run: Path) -> int:
    """The step that a run chose."""
    step: int = json.loads((run / "result.json").read_text())["selected_step"]
    return step


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a Markdown text."""
    return [part.partition("\n```")[0] for part in text.split(f"```{language}\n")[1:]]


def load(folder: Path, dtype: str = "float32") -> nn.Module:
    """The model, by the code in its card; in the type of its weights."""
    text = (folder / "README.md").read_text()
    (code,) = blocks(text, "python")
    names: dict[str, Any] = {}
    with lm.quiet_transformers(), warnings.catch_warnings(), contextlib.chdir(folder.parent):  # where "./NAME" lies
        warnings.simplefilter("ignore")  # of PEFT, about names that transformers will drop
        for command in blocks(text, "sh"):
            if command.startswith("python -c"):  # saves the base model
                exec(shlex.split(command)[2], {})
        exec(code.replace('dtype="float32"', f'dtype="{dtype}"'), names)
    assert len(names["tokenizer"]) > 100
    model: nn.Module = names["model"]
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 17, 30, 42, 7, 9], [6, 18, 31, 43, 8, 10]])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def weight_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


# ---------------------------------------------------------------------------------------------------------------
# loading elsewhere


@pytest.mark.parametrize("scheme", ["full", "lora", "prefix", "prompt"])
@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("tiny-gemma", "float32"),
        ("tiny-gemma", "bfloat16"),
        ("tiny-opt", "bfloat16"),
        ("tiny-llama-untied", "float16"),
        ("tiny-roberta", "float32"),
    ],
)
def test_a_saved_model_gives_the_same_logits(tmp_path, model, dtype, scheme):
    # The card's plain model computes in the type of its weights, whatever this processor is fast at.
    run = tuned(tmp_path, model=model, dtype=dtype, compute_dtype=dtype, scheme=scheme)
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    rebuilt, _ = replay.rebuild(run, until=selected(run))
    loaded = load(tmp_path / "saved", dtype)
    tensors = dict(loaded.named_parameters())  # PEFT keeps virtual tokens in float32, and casts them in a forward
    assert all(
        torch.equal(leaf.param.to(tensors[leaf.name].dtype), tensors[leaf.name]) for leaf in rebuilt.optimizer.leaves
    )
    if scheme in ("full", "lora"):
        assert {p.dtype for p in tensors.values()} == {lm.DTYPES[dtype]}
    expected = logits(rebuilt.lm.model)
    assert torch.equal(logits(loaded), expected)
    assert not torch.equal(logits(lm.load(model, dtype=dtype).model), expected)
    assert (tmp_path / "saved" / ("model.safetensors" if scheme == "full" else "adapter_model.safetensors")).exists()
    assert not list((tmp_path / "saved").rglob("*.bin"))


@pytest.mark.parametrize("model", ["tiny-gemma", "tiny-opt", "tiny-llama-untied", "tiny-roberta"])
def test_tuned_label_rows_stand_in_the_output_layer(tmp_path, model):
    run = tuned(tmp_path, model=model, scheme="head")
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    built, contents = replay.rebuild(run, until=selected(run))
    tokens, head = contents.header["label_token_ids"], built.lm.model.label_head
    loaded = load(tmp_path / "saved")
    output, base = loaded.get_output_embeddings(), lm.load(model).model
    assert torch.equal(output.weight[tokens], head.weight)
    others = [i for i in range(len(output.weight)) if i not in tokens]
    assert torch.equal(output.weight[others], base.get_output_embeddings().weight[others])
    assert torch.equal(loaded.get_input_embeddings().weight, base.get_input_embeddings().weight)
    tuned_logits, base_logits = logits(loaded), logits(base)
    assert torch.allclose(tuned_logits[..., others], base_logits[..., others], atol=1e-6)
    assert not torch.allclose(tuned_logits[..., tokens], base_logits[..., tokens], atol=1e-5)
    config = read_config(run)
    again = jobs.evaluate(
        dataclasses.replace(config, model=str(tmp_path / "saved"), scheme="full"),
        mode="zero-shot",
        num_demonstrations=0,
        out=None,
        reporter=QUIET,
    )
    measured = json.loads((run / "result.json").read_text())["test"]
    assert again["test"] == pytest.approx({name: measured[name] for name in again["test"]})


@pytest.mark.sweep
def test_what_a_gguf_file_became_is_saved_as_an_ordinary_folder(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    from gguf_helpers import write_gguf

    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "cache"))
    write_gguf(lm.tiny("llama", tied=False), tmp_path / "tiny.gguf")
    run = tuned(tmp_path, model=str(tmp_path / "tiny.gguf"), dtype="float32")
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    rebuilt, _ = replay.rebuild(run, until=selected(run))
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(logits(load(tmp_path / "saved")), logits(rebuilt.lm.model))


def test_an_adapter_names_a_base_that_is_a_folder(tmp_path):
    base = lm.tiny("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    run = tuned(tmp_path, model=str(tmp_path / "base"), scheme="lora")
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    settings = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "./base"
    rebuilt, _ = replay.rebuild(run, until=selected(run))
    assert torch.equal(logits(load(tmp_path / "saved")), logits(rebuilt.lm.model))


# ---------------------------------------------------------------------------------------------------------------
# from the ledger alone


@pytest.mark.parametrize("scheme", ["full", "lora", "prompt", "head"])
def test_a_ledger_alone_gives_the_same_weight_files(tmp_path, scheme):
    run = tuned(tmp_path, scheme=scheme)
    shutil.copy(run / "ledger", tmp_path / "mine.ledger")
    last = len(replay.rebuild(run)[1].moves)
    jobs.replay(run, until=last, save=tmp_path / "a", reporter=QUIET)
    jobs.replay(tmp_path / "mine.ledger", model="tiny-llama", save=tmp_path / "b", reporter=QUIET)
    assert weight_files(tmp_path / "a") == weight_files(tmp_path / "b") != {}
    names = [{str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*")} for name in "ab"]
    assert names[1] == names[0] - {"gradless/result.json"}
    assert (tmp_path / "a" / "gradless" / "ledger").read_bytes() == (tmp_path / "mine.ledger").read_bytes()


def test_the_record_inside_a_saved_model_rebuilds_it(tmp_path, monkeypatch):
    run = tuned(tmp_path, scheme="prefix")
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    shutil.rmtree(run)
    monkeypatch.chdir(tmp_path / "saved")
    for line in blocks((tmp_path / "saved" / "README.md").read_text(), "sh")[-1].splitlines():
        if line.startswith("gradless "):
            done = CliRunner().invoke(main, line.split()[1:])
            assert done.exit_code == 0, done.output
    assert weight_files(tmp_path / "saved") == weight_files(tmp_path / "saved" / "rebuilt")
    assert jobs.replay(Path("gradless"), verify=True, reporter=QUIET).agrees


def test_what_a_ledger_cannot_say_is_named(tmp_path):
    run = tuned(tmp_path / "prefix", scheme="prefix")
    (run / build.INITIAL).write_bytes(b"")
    shutil.copy(run / "ledger", tmp_path / "prefix.ledger")
    other = tuned(tmp_path / "other", scheme="prefix", seed=1)
    shutil.copy(other / build.INITIAL, tmp_path / build.INITIAL)
    with pytest.raises(BadInput, match=r"put the run's initial\.safetensors beside the ledger"):
        jobs.replay(tmp_path / "prefix.ledger", reporter=QUIET)
    run = tuned(tmp_path / "wanda", method="zo-sparse", options={"mask": "wanda"})
    shutil.copy(run / "ledger", tmp_path / "wanda.ledger")
    with pytest.raises(BadInput, match=r"norms\.safetensors is missing.* beside the ledger"):
        jobs.replay(tmp_path / "wanda.ledger", reporter=QUIET)
    other = tuned(tmp_path / "other2", method="zo-sparse", options={"mask": "wanda"}, seed=1)
    shutil.copy(other / build.NORMS, tmp_path)
    with pytest.raises(BadInput, match=r"put the run's norms\.safetensors beside the ledger"):
        jobs.replay(tmp_path / "wanda.ledger", reporter=QUIET)
    shutil.copy(run / build.NORMS, tmp_path)
    jobs.replay(tmp_path / "wanda.ledger", until=2, save=tmp_path / "saved", reporter=QUIET)
    assert (tmp_path / "saved" / "gradless" / build.NORMS).exists()


@pytest.mark.parametrize("name", ["initial_sha256", "tuned_parameters"])
def test_a_ledger_that_lacks_a_field_is_replayed_without_it_or_refused(tmp_path, name):
    contents = ledger.read(tuned(tmp_path, scheme="lora") / "ledger")
    lacking = {key: value for key, value in contents.header.items() if key != name}
    file = ledger.Ledger(tmp_path / "crafted", lacking)
    for move in contents.moves:
        file.append(move)
    file.close()
    refused = name.endswith("sha256")
    with pytest.raises(BadInput, match=f"lacks {name}") if refused else contextlib.nullcontext():
        jobs.replay(tmp_path / "crafted", save=tmp_path / "saved", reporter=QUIET)
    assert (tmp_path / "saved").exists() != refused


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["forwards", "train_seconds", "peak_memory_bytes", "rows", "versions"])
@pytest.mark.parametrize("value", [None, "x", [3]])
def test_a_result_may_lack_a_figure_and_not_hold_another_thing(tmp_path, name, value):
    run = tuned(tmp_path)
    result = json.loads((run / "result.json").read_text())
    odd = {**result, name: value} if value is not None else {key: v for key, v in result.items() if key != name}
    (run / "result.json").write_text(json.dumps(odd))
    refused = value is not None
    with pytest.raises(BadInput, match=r"result\.json cannot be read") if refused else contextlib.nullcontext():
        jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    assert (tmp_path / "saved").exists() != refused


def test_the_card_names_where_the_base_model_is_now(tmp_path):
    base = lm.tiny("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    run = tuned(tmp_path, model=str(tmp_path / "base"), scheme="lora")
    (tmp_path / "base").rename(tmp_path / "moved")
    jobs.replay(run, model=str(tmp_path / "moved"), save=tmp_path / "saved", reporter=QUIET)
    settings = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "./moved"
    load(tmp_path / "saved")
    record = tmp_path / "saved" / "gradless"
    assert json.loads((record / "config.json").read_text())["model"] == "./base"  # as in its ledger
    assert jobs.replay(record, model=str(tmp_path / "moved"), verify=True, reporter=QUIET).agrees


@pytest.mark.parametrize("scheme", ["full", "lora"])
@pytest.mark.parametrize("labels", ["0=bad,1=good", {"0": "bad", "1": "good"}])
def test_nothing_that_is_shared_holds_a_path_of_this_machine(tmp_path, scheme, labels):
    home = tmp_path / "home-of-zaphod"
    home.mkdir()
    base = lm.tiny("llama")
    base.model.save_pretrained(home / "base")
    base.tokenizer.save_pretrained(home / "base")
    config = h.config(home, model=str(home / "base"), scheme=scheme)
    h.tune(dataclasses.replace(config, own={**config.own, "labels": labels}), home / "run")
    jobs.replay(home / "run", save=home / "saved", reporter=QUIET)
    for path in (home / "run" / "ledger", *(home / "saved").rglob("*")):
        assert not path.is_file() or b"zaphod" not in path.read_bytes(), path
    header = ledger.read(home / "run" / "ledger").config
    assert header["model"] == "./base"
    assert jobs.replay(home / "run", verify=True, reporter=QUIET).agrees  # config.json knows where the model is
    with pytest.raises(BadInput, match=r"name of its base model, ./base, and not where it is: give --model"):
        jobs.replay(home / "saved" / "gradless", reporter=QUIET)
    assert jobs.replay(home / "saved" / "gradless", model=str(home / "base"), verify=True, reporter=QUIET).agrees


def test_a_ledger_of_an_older_release_that_holds_paths_still_belongs_to_its_run(tmp_path):
    config = h.config(tmp_path, model="tiny-llama")
    recorded = {"config": dataclasses.replace(config, data=None).to_json()}
    assert any("/" in str(value) for value in recorded["config"]["own"].values())
    replay.check_config(recorded, config, 3)
    moved = {
        name: f"/elsewhere/{Path(value).name}" if name in replay.OWN_PATHS else value
        for name, value in config.own.items()
    }
    replay.check_config(recorded, dataclasses.replace(config, own=moved), 3)
    with pytest.raises(BadInput, match="another run than config"):
        replay.check_config(recorded, dataclasses.replace(config, model="tiny-opt"), 3)


def test_figures_go_only_with_the_weights_that_they_are_of(tmp_path):
    run = tuned(tmp_path)
    result = json.loads((run / "result.json").read_text())
    other = 1 if result["selected_step"] != 1 else 2
    jobs.replay(run, until=other, save=tmp_path / "other", reporter=QUIET)
    text = (tmp_path / "other" / "README.md").read_text()
    assert "model-index" not in text
    assert "No measurement of them is on record" in text
    assert f"--until {other}" in text
    assert not (tmp_path / "other" / "gradless" / "result.json").exists()
    (run / "result.json").write_text(json.dumps({**result, "weights_sha256": "0" * 64}))
    with pytest.raises(BadInput, match="not those in"):
        jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    assert not (tmp_path / "saved").exists()


def test_a_method_without_replay_is_saved_from_its_best_step(tmp_path):
    run = tuned(tmp_path, method="fo-sgd", lr=1e-2)
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    rebuilt, _ = replay.rebuild(run, until=selected(run))
    assert torch.equal(logits(load(tmp_path / "saved")), logits(rebuilt.lm.model))
    assert "the only copy" in (tmp_path / "saved" / "README.md").read_text()


def test_weights_of_an_unknown_step_are_not_saved(tmp_path):
    run = tuned(tmp_path, method="fo-sgd", lr=1e-2, steps=4, eval_every=2)
    assert ", a backward pass counted as two, in 4 steps" in card.render(facts_of(run))
    (run / "result.json").unlink()  # of a run that was killed after its first dev evaluation
    with pytest.raises(BadInput, match="does not tell which step's weights"):
        jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    assert not (tmp_path / "saved").exists()


# ---------------------------------------------------------------------------------------------------------------
# what is saved is taken back


@pytest.mark.parametrize(
    ("scheme", "model"),
    [("lora", "tiny-gemma"), ("prefix", "tiny-llama"), ("prompt", "tiny-opt"), ("lora", "tiny-roberta")],
)
def test_a_saved_adapter_is_evaluated_tuned_further_and_saved_again(tmp_path, scheme, model):
    run = tuned(tmp_path, model=model, scheme=scheme)
    jobs.replay(run, save=tmp_path / "saved", reporter=QUIET)
    config, result = read_config(run), json.loads((run / "result.json").read_text())
    rebuilt, _ = replay.rebuild(run, until=selected(run))
    again = lm.load(str(tmp_path / "saved"))
    assert torch.equal(logits(again.model), logits(rebuilt.lm.model))
    further = dataclasses.replace(config, model=str(tmp_path / "saved"), num_prefix=5, num_prompt=10)
    evaluated = jobs.evaluate(further, mode="zero-shot", num_demonstrations=0, out=None, reporter=QUIET)
    assert evaluated["test"] == {name: result["test"][name] for name in evaluated["test"]}
    second = h.tune(further, tmp_path / "second")
    assert second["zero_shot"] == result["test"]
    assert second["weights_sha256"] != result["weights_sha256"]
    assert second["tuned_parameters"] == result["tuned_parameters"]
    assert jobs.replay(tmp_path / "second", save=tmp_path / "twice", verify=True, reporter=QUIET).agrees
    rebuilt, _ = replay.rebuild(tmp_path / "second", until=selected(tmp_path / "second"))
    assert torch.equal(logits(load(tmp_path / "twice")), logits(rebuilt.lm.model))
    assert json.loads((tmp_path / "twice" / "adapter_config.json").read_text())["base_model_name_or_path"] == model
    card_text = (tmp_path / "twice" / "README.md").read_text()
    assert f"`{model}` with the adapter `./saved` tuned further on" in card_text
    assert not torch.equal(logits(rebuilt.lm.model), logits(again.model))


def test_a_run_on_an_adapter_belongs_to_that_adapter(tmp_path):
    jobs.replay(tuned(tmp_path / "a", scheme="lora"), save=tmp_path / "one", reporter=QUIET)
    jobs.replay(tuned(tmp_path / "b", scheme="lora", seed=1), save=tmp_path / "other", reporter=QUIET)
    run = tuned(tmp_path / "c", model=str(tmp_path / "one"), scheme="lora")
    with pytest.raises(BadInput, match="belongs to another base model"):
        jobs.replay(run, model=str(tmp_path / "other"), reporter=QUIET)
    with pytest.raises(BadInput, match="belongs to another base model"):
        jobs.replay(run, model="tiny-llama", reporter=QUIET)
    (tmp_path / "one").rename(tmp_path / "moved")
    assert jobs.replay(run, model=str(tmp_path / "moved"), verify=True, reporter=QUIET).agrees


@pytest.mark.parametrize("scheme", ["full", "head"])
def test_all_weights_are_tuned_with_the_adapter_merged(tmp_path, scheme):
    jobs.replay(tuned(tmp_path / "a", scheme="lora"), save=tmp_path / "one", reporter=QUIET)
    run = tuned(tmp_path / "b", model=str(tmp_path / "one"), scheme=scheme)
    scores = json.loads((tmp_path / "a" / "run" / "result.json").read_text())["test"]
    result = json.loads((run / "result.json").read_text())
    assert result["zero_shot"] == pytest.approx(scores, rel=1e-4)
    assert jobs.replay(run, save=tmp_path / "saved", verify=True, reporter=QUIET).agrees
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    text = (tmp_path / "saved" / "README.md").read_text()
    assert "`tiny-llama` with the adapter `./one` tuned further on" in text
    if scheme == "full":
        rebuilt, _ = replay.rebuild(run, until=selected(run))
        assert torch.equal(logits(load(tmp_path / "saved")), logits(rebuilt.lm.model))
        settings = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
        (tmp_path / "one" / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 15}))
        with pytest.raises(BadInput, match="belongs to another base model"):
            jobs.replay(run, reporter=QUIET)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [kind for kind in adapters.KINDS if kind not in ("ia3", "p-tuning", "masked")])
def test_adapters_of_others_are_tuned_further_and_loaded_by_peft(tmp_path, kind):
    name, settings = adapters.KINDS[kind]
    folder = adapters.save_adapter(tmp_path / "adapter", name, **settings)
    scheme = {"Lora": "lora", "PrefixTuning": "prefix", "PromptTuning": "prompt"}[name]
    run = tuned(tmp_path, model=str(folder), scheme=scheme)
    assert jobs.replay(run, save=tmp_path / "saved", verify=True, reporter=QUIET).agrees
    rebuilt, _ = replay.rebuild(run, until=selected(run))
    again = adapters.by_peft(tmp_path / "saved", settings.get("base", "tiny-llama"))
    assert torch.equal(logits(again), logits(rebuilt.lm.model))
    assert not torch.equal(logits(again), logits(lm.load(str(folder)).model))
