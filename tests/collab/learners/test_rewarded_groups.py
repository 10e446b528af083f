"""Groups that learn from a reward: what peers send, what attackers send, what is noted, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from gradless.collab.config import CollabConfig, from_json
from gradless.collab.learners.alone import one_peer
from gradless.collab.learners.language import Text
from gradless.collab.simulation import progress, study
from gradless.collab.simulation.build import build
from gradless.collab.simulation.simulate import simulate
from gradless.errors import BadInput
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
FUNCTION = """
def letters(prompts, completions, letter, **rest):
    return [min(1.0, text.count(one) / 4) for text, one in zip(completions, letter)]

def broken(prompts, completions, **rest):
    raise ValueError("out of luck")

def same(prompts, completions, **rest):
    return [0.5] * len(prompts)
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
        text.close()


def test_attackers_who_flip_labels_count_rewards_with_the_other_sign(config):
    text = Text(config.resolved(), 3)
    try:
        flipped, model = text.poisoned(text.model, 0), text.model
        honest = text.loss(model, text.batch(text.shares.poison, 0, "poison"))
        turned, plain = (model.optimizer.probe(closure).sketch.coeffs for closure in (flipped, honest))
        assert any(plain)
        assert turned == pytest.approx([-coefficient for coefficient in plain])
    finally:
        text.close()


def test_a_simulation_notes_what_texts_earn(config, tmp_path):
    result = simulate(dataclasses.replace(config, attack="sign-flip"), tmp_path, reporter=QUIET)
    assert result["status"] == "done"
    assert result["mean_reward"] == pytest.approx(sum(result["reward"]) / 3)
    assert result["bytes_per_peer_step"] == 3 * 4 * 3
    assert (result["rewards"]["raised"], result["rewards"]["calls"]) > (0, 0)
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
def test_a_run_that_was_stopped_ends_with_the_same_bits(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, reward=(config.reward[0].replace("letters", "same"),), attack="sign-flip")
    whole = simulate(config, tmp_path / "whole", reporter=QUIET)
    monkeypatch.setattr(progress, "SAVE_EVERY", 0.0)

    class Stops(Reporter):
        def warn(self, text: str) -> None:
            if "step 1" in text:
                raise RuntimeError("a power cut")

    with pytest.raises(RuntimeError, match="a power cut"):
        simulate(config, tmp_path / "stopped", reporter=Stops(quiet=True))
    again = simulate(config, tmp_path / "stopped", reporter=QUIET)
    assert again["weights_sha256"] == whole["weights_sha256"]
    # Of every step all members of all peers had the same; those before the stop are not forgotten.
    assert again["rewards"]["equal_steps"] == whole["rewards"]["equal_steps"] == 4 * 3


def test_a_function_that_fails_moves_nothing_and_is_said(config, tmp_path, capsys):
    config = dataclasses.replace(config, reward=(config.reward[0].replace("letters", "broken"),), steps=2)
    rows = proposed(config)
    assert rows.isnan().all()
    result = simulate(config, tmp_path, reporter=Reporter())
    output = capsys.readouterr()
    assert "no text has a reward" in output.out + output.err
    assert "out of luck" in output.out + output.err
    assert result["rewards"]["raised"] > 0
    assert (result["mean_reward"], result["status"]) == (None, "diverged")  # nobody had anything to send


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
