"""Peers that learn from rewards of their own: real processes, one of which has a function that fails."""

from __future__ import annotations

import json

import pytest

from cli_helpers import call as gradless
from gradless import rewards
from gradless.collab.learners.rewarded import Rewarded
from gradless.errors import BadInput
from gradless.peers import own_data, own_rewards, settings
from gradless.peers.loopback import LoopbackGroup
from gradless.peers.manifest import Timing
from gradless.peers.node_files import METRICS, RESULT
from gradless.system.side_files import read_jsonl

pytest.importorskip("zenoh")
SECONDS = 600.0
NAMES = ["anna", "ben", "cleo", "dora"]
FUNCTION = """
def letters(prompts, completions, letter, **rest):
    return [min(1.0, text.count(one) / 4) for text, one in zip(completions, letter)]

def broken(prompts, completions, **rest):
    raise ValueError("out of luck")
"""
LABELS = {"label_column": "letter", "labels": "0=a,1=b"}
SETTINGS = {
    "model": "tiny-llama",
    "scheme": "lora",
    "method": "es",
    "method_options": ["rank=1"],
    "queries": 3,
    "eps": 0.05,
    "lr": 0.05,
    "steps": 6,
    "batch_size": 4,
    "template": "{question} :",
    "max_new_tokens": 6,
    "pass_reward": 0.25,
    "eval_every": 3,
}


def group_of(folder, functions, **changed):
    rows = [json.dumps({"question": f"Say {letter}", "letter": letter}) for letter in "aeiotnsr" * 3]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "score.py").write_text(FUNCTION)
    data = ["--train", str(folder / "rows.jsonl"), "--test", str(folder / "rows.jsonl")]
    own = [[*data, *(["--reward", f"{folder / 'score.py'}:{name}"] if name else [])] for name in functions]
    return LoopbackGroup(
        folder / "group",
        NAMES,
        f=1,
        settings={**SETTINGS, **changed},
        own=own,
        timing=Timing(grace=1.0, base=4.0),
        check_every=3,
    )


@pytest.mark.sweep
def test_a_group_learns_from_rewards_of_its_own(tmp_path):
    group = group_of(tmp_path, ["letters", "letters", "letters", "broken"])
    assert group.manifest.config.reward == ()
    everybody = range(len(NAMES))
    try:
        for peer in everybody:
            group.start(peer)
        ended = group.wait(lambda: all(group.result(peer) for peer in everybody), SECONDS, running=everybody)
        assert ended, [group.output(peer)[-300:] for peer in everybody]
    finally:
        group.end()
    told: list[str] = []
    results = [group.result(peer) for peer in everybody]
    assert {result["status"] for result in results} == {"done"}
    assert len({result["weights_sha256"] for result in results}) == 1
    for result in results[:3]:
        assert result["test"].keys() == {"reward", "passed"}
        assert result["accuracy"] == result["test"]["passed"]
        assert (result["rewards"]["raised"], result["rewards"]["completions"] > 0) == (0, True)
    assert results[3]["rewards"]["raised"] > 0
    assert results[3]["rewards"]["equal_steps"] == 6
    assert results[3]["test"].keys() == {"passed"}
    assert "the members cannot be compared, no text has a reward" in group.output(3)
    lines = read_jsonl(group.run_folder(0) / METRICS)[0]
    steps = [line for line in lines if line["event"] == "step"]
    assert all(0.0 <= line["reward"] <= 1.0 and line["completion_tokens"] <= 6 for line in steps)

    metrics = group.run_folder(3) / METRICS
    again = Rewarded(rewards.load([lambda completions, **rest: [0.0] * len(completions)]))
    assert own_rewards.resumed(again, metrics, told.append)["event"] == "rewards"
    assert (again.equal_steps, told) == (6, [])  # what a restart remembers
    held = metrics.read_text()
    metrics.write_text(held.replace('{"score.py:broken":"', '{"score.py:broken":"0'))
    with rewards.load([f"{tmp_path / 'score.py'}:broken"]) as functions:
        own_rewards.resumed(Rewarded(functions), metrics, told.append)
    assert [one.partition(" since")[0] for one in told] == ["score.py:broken has changed"]

    folder = group.run_folder(1)
    (tmp_path / "score.py").unlink()  # nothing that looks at a run needs the functions
    shown = gradless("replay", folder, "--verify")
    assert shown.exit_code == 0, shown.output
    assert gradless("peers", "audit", folder).exit_code == 0
    assert gradless("report", folder).exit_code == 0
    page = (folder / "report.html").read_text()
    assert "mean reward on test rows" in page
    assert "share of texts that pass" in page
    header = (folder / "ledger").read_bytes().decode("latin-1")  # what others may get names no function and no place
    assert '"own"' in header
    assert not {secret for secret in ("letters", "score", str(tmp_path)) if secret in header}
    claims = gradless("peers", "audit", folder, "--peer", "ben", "--data", tmp_path / "rows.jsonl")
    assert claims.exit_code == 2
    assert "coefficients of a reward cannot be computed again" in claims.output
    assert json.loads((folder / RESULT).read_text())["selected_step"] == 6


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"reward": ["score.py:letters"]}, "a manifest cannot hold the reward score.py:letters"),
        ({"reward": ["exact_match"], "method": "forward-grad"}, "a reward has no gradient"),
        ({"reward": ["exact_match"], "own": {**LABELS, "template": "{a}"}}, "--labels are for choosing among words"),
        ({"reward": ["exact_match"], "own": {}, "task": "sst2"}, "the task sst2 has labels: leave --reward out"),
        ({"rule_options": {"radius": 2}}, "leave --rule-set out"),
        ({"reward": ["package.module:name"]}, "leave --reward out and let each peer give its own"),
        ({"reward": ["json_schema:answer.json"]}, "a manifest cannot hold the reward json_schema"),
        ({"reward": ["exact_match"], "reward_weight": [1.0, 2.0]}, "2 --reward-weight for 1 --reward"),
        ({"reward_timeout": 3.0}, "reward_timeout is each peer's own"),
        ({"method_options": {"ranks": 1}}, "ranks"),
    ],
)
def test_what_a_manifest_cannot_hold(changed, sentence):
    values = {**SETTINGS, "method_options": {}, "payload": "coefficients", "own": {"template": SETTINGS["template"]}}
    del values["template"]
    assert settings.shared(values, peers=4, f=1).reward == ()
    with pytest.raises(BadInput, match=sentence):
        settings.shared({**values, **changed}, peers=4, f=1)


def test_a_manifest_may_name_built_in_rewards_and_those_of_a_task():
    values = {"model": "tiny-llama", "task": "arithmetic", "method": "es", "payload": "coefficients"}
    read = settings.shared(values, peers=4, f=1)
    assert read.reward == ("arithmetic",)
    assert settings.shared(settings.table(read), peers=4, f=1) == read
    both = {**values, "reward": ["answer_tag", "length:40"], "reward_weight": [1.0, 0.5]}
    assert settings.shared(both, peers=4, f=1).reward == ("answer_tag", "length:40")


def test_rows_without_labels_are_for_rewards():
    shared, own = {"template": "{question} :"}, {"train": "rows.jsonl"}
    assert own_data.merged(shared, own, rewarded=True) == {**shared, **own}
    with pytest.raises(BadInput, match="own files need --label-column as well, or a --reward"):
        own_data.merged(shared, own)
    with pytest.raises(BadInput, match="own files need --labels as well"):
        own_data.merged({**shared, "label_column": "letter"}, own, rewarded=True)


def test_a_peer_without_a_reward_is_told_before_it_connects(tmp_path):
    group = group_of(tmp_path, ["letters", "letters", "letters", ""])
    home = group.folder / "dora"
    line = ("peers", "run", "--manifest", group.folder / "run", "--identity", home / "me", "--out", home / "run")
    ended = gradless(*line, "--fingerprint", group.manifest.sha256, *group.own[3])
    assert ended.exit_code == 2
    assert "own files need --label-column as well, or a --reward" in ended.output
    assert not (home / "run").exists()
