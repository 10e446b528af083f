"""Groups that learn from a reward: what peers send, what attackers send, what is noted, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from collab_helpers import cut_at
from gradless import rewards
from gradless.collab.config import CollabConfig, from_json
from gradless.collab.learners.alone import one_peer
from gradless.collab.learners.language import Text
from gradless.collab.learners.rewarded import Rewarded
from gradless.collab.simulation import study
from gradless.collab.simulation.build import build
from gradless.collab.simulation.simulate import simulate
from gradless.errors import BadInput
from gradless.gradients import Probe, Sketch
from gradless.runs import reward_runs
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
FUNCTION = """
def letters(prompts, completions, letter, **rest):
    return [min(1.0, text.count(one) / 4) for text, one in zip(completions, letter)]

def broken(prompts, completions, **rest):
    raise ValueError("out of luck")

def same(prompts, completions, **rest):
    return [0.5] * len(prompts)

calls = 0

def late(prompts, completions, letter, **rest):
    global calls
    calls += 1
    if calls <= 4:
        raise ValueError("not yet")
    return letters(prompts, completions, letter)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewarded")
    rows = [json.dumps({"question": f"Say {letter}", "letter": letter}) for letter in "aeiotnsr" * 5]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "score.py").write_text(FUNCTION)
    return folder


@pytest.fixture(scope="module")
def config(folder) -> CollabConfig:
    rows = str(folder / "rows.jsonl")
    return CollabConfig(
        dataset=None,
        model="tiny-llama",
        own={"train": rows, "test": rows, "template": "{question} :"},
        reward=(f"{folder / 'score.py'}:letters",),
        pass_reward=0.25,
        max_new_tokens=6,
        num_train=None,
        num_test=8,
        scheme="lora",
        payload="coefficients",
        method="es",
        method_options={"rank": 1},
        algorithm="bridge",
        momentum=0.0,
        peers=4,
        byzantine=1,
        queries=3,
        eps=0.05,
        lr=0.05,
        steps=4,
        batch_size=4,
        eval_every=2,
        split="iid",
        split_parameter=None,
    )


def with_function(config, name):
    return dataclasses.replace(config, reward=(config.reward[0].replace("letters", name),))


def proposed(config, step=0):
    simulation = build(config)
    try:
        return simulation.learner.propose(step, "coefficients")
    finally:
        simulation.close()


def test_a_peer_alone_sends_the_row_that_it_sends_in_a_simulation(config):
    rows = proposed(config)
    assert rows.isfinite().all()
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)  # other prompts, and other random numbers
    for me, row in enumerate(rows):
        alone = one_peer(config, me)
        try:
            assert torch.equal(alone.learner.propose(0, "coefficients")[0], row)
        finally:
            alone.close()


def test_peers_with_equal_prompts_draw_other_texts(config):
    text = Text(dataclasses.replace(config.resolved(), batch_size=8), 2)
    try:
        first, second = (text.batch(text.shares.streams[0], 0, f"peer/{peer}") for peer in (0, 1))
        assert [row.prompt for row in first] == [row.prompt for row in second]
        assert not {row.draw for row in first} & {row.draw for row in second}
        assert len({row.draw for row in first}) == len(first)
    finally:
        text.rewards.close()


def test_attackers_who_flip_labels_count_rewards_with_the_other_sign(config):
    text = Text(config.resolved(), 3)
    try:
        flipped, model = text.poisoned(text.model, 0), text.model
        honest = text.loss(model, text.batch(text.shares.poison, 0, "poison"))
        turned, plain = (model.optimizer.probe(closure).sketch.coeffs for closure in (flipped, honest))
        assert any(plain)
        assert turned == pytest.approx([-coefficient for coefficient in plain])
    finally:
        text.rewards.close()


def test_a_simulation_notes_what_texts_earn(config, tmp_path):
    result = simulate(dataclasses.replace(config, attack="sign-flip"), tmp_path, reporter=QUIET)
    assert result["status"] == "done"
    assert result["mean_reward"] == pytest.approx(sum(result["reward"]) / 3)
    assert result["bytes_per_peer_step"] == 3 * 4 * 3
    assert result["rewards"]["raised"] == 0
    assert result["rewards"]["calls"] > 0
    notes = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for note in notes:
        if note["event"] == "step":
            assert note["reward"] == pytest.approx(-note["loss"])
            assert 0 < note["completion_tokens"] <= 6
            assert note["valid"] == 1.0
        else:
            assert note["accuracy"] == [result["accuracy"][0]] * 3 or note["step"] < 4
            assert note["mean_reward"] is not None
    line = study.line(tmp_path, {})
    assert line["mean_reward"] == line["curve"][-1]["mean_reward"] == result["mean_reward"]


@pytest.mark.filterwarnings("ignore:5 estimates in a row were exactly zero")
@pytest.mark.parametrize("function", ["letters", "same"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(config, function, tmp_path, monkeypatch, capsys):
    config = with_function(dataclasses.replace(config, attack="sign-flip"), function)
    whole = simulate(config, tmp_path / "whole", reporter=QUIET)
    cut_at(2, config, tmp_path / "cut", monkeypatch)
    capsys.readouterr()
    again = simulate(config, tmp_path / "cut", reporter=Reporter())
    assert "goes on after step 2" in capsys.readouterr().out
    for name in ("train_seconds", "seconds_per_step", "peak_memory_bytes"):
        del again[name], whole[name]
    assert again == whole  # weights, rewards, and what was counted before the stop
    assert again["rewards"]["equal_steps"] == 4 * 3 or function == "letters"
    unmoved = simulate(dataclasses.replace(config, lr=1e-30), tmp_path / "unmoved", reporter=QUIET)
    assert (unmoved["weights_sha256"] != whole["weights_sha256"]) == (function == "letters")


def test_a_function_that_always_fails_ends_the_run_and_is_said(config, tmp_path, capsys):
    config = with_function(dataclasses.replace(config, steps=8), "broken")
    assert proposed(config).isnan().all()
    result = simulate(config, tmp_path, reporter=Reporter())
    output = "".join(capsys.readouterr())
    assert "step 0: the members of 4 of 4 peers cannot be compared, no text has a reward" in output
    assert "out of luck" in output
    assert (result["mean_reward"], result["status"], result["steps"]) == (None, "diverged", reward_runs.UNREWARDED)
    assert "out of luck" in study.advice(config, result)


def test_a_step_without_any_reward_is_passed_over(config, tmp_path):
    config = with_function(dataclasses.replace(config, steps=3, eval_every=3), "late")
    result = simulate(config, tmp_path, reporter=QUIET)
    assert (result["status"], result["steps"], result["rewards"]["raised"]) == ("done", 3, 4)
    notes = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    steps = [note for note in notes if note["event"] == "step"]
    assert [one["reward"] is None for one in steps] == [True, False, False]
    assert steps[0]["equal"] == 4


def test_a_model_that_writes_nothing_finite_ends_the_run(config, tmp_path, capsys):
    config = dataclasses.replace(config, rule="mean", lr=1e30)
    result = simulate(config, tmp_path, reporter=Reporter())
    assert result["status"] == "diverged"
    output = "".join(capsys.readouterr())
    assert "of 4 of 4 peers writes nothing finite: lower --lr" in output
    assert study.advice(config, result) == "honest models are not finite: try a lower --lr or another --rule"


def noted(*observed, step=0):
    """What is said of peers whose members earned this; None: nothing, "": the model wrote nothing finite."""
    texts = Rewarded(rewards.load([lambda completions, **rest: [0.0] * len(completions)]))
    for peer, (reward, coefficient) in enumerate(observed):
        finite = reward not in (None, "")
        probe = Probe(step, 0.0, Sketch((1,), (coefficient,)), 2, finite)
        texts.note(
            step, peer, {} if reward == "" else {"reward": reward, "valid": 1.0, "completion_tokens": 2.0}, probe
        )
    return texts


def test_what_is_said_is_said_of_the_peers_that_compared_nothing():
    assert noted((0.5, 1.0), (0.2, 2.0)).sentence(0) == ""
    assert "of 1 of 3 peers cannot be compared, all have the reward 0.9 " in noted(
        (0.5, 1.0), (0.9, 0.0), (0.2, 1.0)
    ).sentence(0)
    assert "no text has a reward" in noted((0.5, 1.0), (None, 0.0), (0.2, 0.0)).sentence(0)
    assert "all of a peer have the same reward" in noted((0.5, 0.0), (0.2, 0.0)).sentence(0)
    assert "the model of 1 of 2 peers writes nothing finite" in noted((0.5, 1.0), ("", 0.0)).sentence(0)
    alone = noted((0.5, 0.0))
    assert alone.sentence(0).startswith("step 0: the members cannot be compared, all have the reward 0.5 (")
    assert alone.sentence(0) == alone.sentence(1) == ""  # said once, and there was no such step
    assert alone.of_step(1) == {}


def test_what_the_run_is_called_depends_on_the_function_and_not_on_its_place(config, tmp_path):
    (tmp_path / "score.py").write_text(FUNCTION)
    moved = dataclasses.replace(config, reward=(f"{tmp_path / 'score.py'}:letters",))
    assert moved.resolved().id() == config.resolved().id()
    recorded = from_json(json.loads(json.dumps(moved.resolved().to_json())))
    assert recorded.resolved() == moved.resolved()
    (tmp_path / "score.py").write_text(FUNCTION + "# mended\n")
    assert moved.resolved().id() != config.resolved().id()
    with pytest.raises(BadInput, match=r"score\.py:letters has changed since the run began"):
        recorded.resolved()


def test_a_folder_says_which_function_has_changed(config, tmp_path):
    (tmp_path / "score.py").write_text(FUNCTION)
    here = dataclasses.replace(config, reward=(f"{tmp_path / 'score.py'}:letters",), steps=1)
    study.run_all([here], tmp_path / "out", reporter=QUIET)
    study.run_all([dataclasses.replace(config, steps=1)], tmp_path / "out", reporter=QUIET)  # finished: nothing to do
    (tmp_path / "score.py").write_text(FUNCTION + "# mended\n")
    with pytest.raises(BadInput, match=r"other settings .SHA-256 of reward files"):
        study.run_all([dataclasses.replace(here, attack="sign-flip")], tmp_path / "out", reporter=QUIET)


def test_functions_end_with_what_could_not_be_built(config, monkeypatch):
    ended = []
    real = rewards.Rewards.close
    monkeypatch.setattr(rewards.Rewards, "close", lambda self: (ended.append(self), real(self)))
    monkeypatch.setattr(Text, "build", lambda self: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        build(dataclasses.replace(config, sync=2))
    assert len(ended) == 1


def test_a_group_without_rewards_records_what_it_always_did():
    values = CollabConfig().to_json()
    assert not {"reward", "temperature", "chat", "method_options", "reward_sha256"} & values.keys()


def test_a_task_brings_its_own_reward(tmp_path):
    config = CollabConfig(
        dataset=None, model="tiny-llama", task="arithmetic", payload="coefficients", momentum=0.0, method="es"
    )
    assert config.resolved().reward == ("arithmetic",)
    with pytest.raises(BadInput, match="a reward has no gradient"):
        dataclasses.replace(config, payload="parameters", method="mezo").resolved()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"payload": "parameters", "method": "mezo", "method_options": {}}, "no gradient.*--payload coefficients"),
        ({"method": "forward-grad", "method_options": {}}, "reward has no gradient, which the method forward-grad"),
        ({"reward": ("nowhere.py:f",)}, "cannot be read"),
        ({"reward": ("exact_match",)}, "exact_match"),
        ({"reward": ("exact_match", "length:4"), "reward_weight": (1.0,)}, "1 --reward-weight for 2 --reward"),
        ({"reward": ()}, "own files without --labels need a --reward"),
        ({"method_options": {"rang": 1}}, "rang"),
        ({"task": "sst2", "own": {}}, "does not fit the classification task"),
        ({"model": None, "dataset": "digits"}, "a language --model"),
    ],
)
def test_bad_input(config, change, match, tmp_path):
    with pytest.raises(BadInput, match=match):
        simulate(dataclasses.replace(config, **change), tmp_path / "out", reporter=QUIET)
    assert not (tmp_path / "out").exists()
