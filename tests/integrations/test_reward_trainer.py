"""Training on reward functions in TRL's form: what is learnt, resumed, replayed, taken and refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import gradless as gl  # noqa: E402
from gradless import ledger  # noqa: E402
from gradless.integrations.replay import rebuild  # noqa: E402
from gradless.integrations.rewards import ZORewardTrainer  # noqa: E402
from gradless.lm import tiny  # noqa: E402
from gradless.system.hashing import weights_sha256  # noqa: E402
from repository import ROOT  # noqa: E402
from trainer_helpers import CutWindow, StopAt, arguments, digest, moves  # noqa: E402

ROWS = [{"prompt": f"say {number}", "many": count} for count, number in enumerate(("one", "two", "three", "four"))]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def letters(completions, **columns):
    return [float(sum(letter in text for letter in "aeiou")) for text in completions]


def make_trainer(folder, reward=letters, rows=ROWS, *, options=None, model=None, tokenizer=None, **rest):
    lm = tiny("llama")
    usual = {"max_completion_length": 5, "zo_options": {"eps": 2e-2, "queries": 2, "rank": 1}}
    steps = {"max_steps": 4, "learning_rate": 2e-2, "per_device_train_batch_size": 2, "save_steps": 2}
    return ZORewardTrainer(
        model or lm.model,
        reward,
        arguments(folder, **{**steps, **(options or {})}),
        rows,
        processing_class=tokenizer or lm.tokenizer,
        **{**usual, **rest},
    )


def test_a_run_logs_evaluates_and_is_replayed(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=ROWS[:3], options={"logging_steps": 2, "eval_strategy": "steps"})
    trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["loss"] == pytest.approx(-line["reward"], abs=1e-3)
        assert line["frac_valid"] == 1.0
        assert 1 <= line["completions/mean_length"] <= 5
        assert {"reward_std", "frac_reward_zero_std", "projected_grad", "forwards"} <= line.keys()
    assert any("eval_reward" in line for line in trainer.state.log_history)
    predicted = trainer.predict(ROWS[:3])
    assert predicted.metrics["test_reward"] == np.mean(letters(predicted.predictions))
    recorded = ledger.read(tmp_path / "ledger").header["trainer"]
    assert recorded["reward_funcs"] == ["letters"]
    model = tiny("llama").model
    rebuild(model, tmp_path)
    assert weights_sha256(model.named_parameters()) == digest(trainer)


@pytest.mark.sweep
def test_the_reward_rises(tmp_path):
    def many_letters(completions, **columns):
        return [float(sum(one.isascii() and one.isalpha() for one in text)) for text in completions]

    options = {"max_steps": 25, "per_device_train_batch_size": 16, "lr_scheduler_type": "constant"}
    options |= {"learning_rate": 0.06, "save_strategy": "no", "logging_steps": 5}
    population = {"eps": 0.03, "rank": 1, "queries": 8}
    trainer = make_trainer(
        tmp_path, many_letters, ROWS * 4, eval_dataset=ROWS, options=options, temperature=0.3, zo_options=population
    )
    untrained = trainer.evaluate()["eval_reward"]
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert rewards[-1] > 1.3 * rewards[0]  # of members, sampled: 1.7 times
    assert trainer.evaluate()["eval_reward"] > 2 * untrained  # of the weights, greedily: 5.8 times


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"options": {"gradient_accumulation_steps": 2}},
        {"ledger_only": True, "zo_options": {"eps": 5e-2, "queries": 2, "engine": "stream"}},
    ],
)
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(tmp_path, settings):
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", callbacks=[StopAt(3, "before")], **settings).train()
    again = make_trainer(tmp_path / "cut", **settings)
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)
    assert moves(tmp_path / "cut") == moves(tmp_path / "whole")


@pytest.mark.parametrize("step", [0, 1])
def test_a_window_that_was_cut_off_adds_nothing_to_the_next_run_of_the_same_trainer(tmp_path, step):
    settings = {"options": {"gradient_accumulation_steps": 2, "max_steps": 2, "save_steps": 1, "logging_steps": 1}}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    cut = make_trainer(tmp_path / "cut", callbacks=[CutWindow(step)], **settings)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    cut.train(resume_from_checkpoint=step > 0)
    assert moves(tmp_path / "cut") == moves(tmp_path / "whole")
    figures = [[line["reward"] for line in one.state.log_history if "reward" in line] for one in (cut, whole)]
    assert figures[0] == figures[1]


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
import test_reward_trainer as own
calls = 0
def letters(completions, **columns):
    global calls
    calls += 1
    if calls == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return own.letters(completions)
own.make_trainer(sys.argv[1], letters).train()
"""


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process with SIGKILL")
def test_a_run_that_is_killed_in_a_generation_is_resumed(tmp_path):
    paths = [str(ROOT / "tests/integrations"), str(ROOT / "tests/helpers")]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), *paths]
    process = subprocess.run(command, capture_output=True, env=os.environ, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr[-2000:]
    again, whole = make_trainer(tmp_path / "cut"), make_trainer(tmp_path / "whole")
    again.train(resume_from_checkpoint=True)
    whole.train()
    assert digest(again) == digest(whole)


def test_accumulated_batches_are_one_large_batch(tmp_path):
    def steps(folder, size, accumulated):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 2}
        make_trainer(tmp_path / folder, options={**options, "lr_scheduler_type": "constant"}).train()
        return [move.coeffs for move in moves(tmp_path / folder)]

    assert steps("one", 4, 1) == steps("two", 2, 2)


def test_reward_functions_are_told_columns_conversations_and_the_state(tmp_path):
    tokenizer = tiny("llama").tokenizer
    tokenizer.chat_template = TEMPLATE
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}], "many": row["many"]} for row in ROWS]
    calls = []

    def length(prompts, completions, many, trainer_state, **columns):
        calls.append((prompts, completions, many, trainer_state.global_step))
        return [float(len(one[0]["content"])) for one in completions]

    def silent(completions, **columns):
        return [None] * len(completions)

    trainer = make_trainer(tmp_path, [length, silent], rows, tokenizer=tokenizer, reward_weights=[2.0, 1.0])
    with pytest.warns(UserWarning, match="the reward silent returned None"):
        trainer.train()
    prompts, completions, many, step = calls[0]
    assert len(prompts) == len(completions) == 8  # two prompts of four members
    assert prompts[0][0]["content"] == f"say {('one', 'two', 'three', 'four')[many[0]]}"
    assert completions[0][0]["role"] == "assistant"
    assert step == 0


def test_members_that_all_earn_the_same_are_told_of_once_and_change_nothing(tmp_path):
    def same(completions, **columns):
        return [1.0] * len(completions)

    trainer = make_trainer(tmp_path, same)
    initial = digest(trainer)
    with pytest.warns(UserWarning, match=r"all members of step 0 earned the same.*said once") as caught:
        trainer.train()
    assert sum("earned the same" in str(one.message) for one in caught) == 1
    assert digest(trainer) == initial


def without_completions(prompts):
    return []


def unknown_column(completions, answer):
    return [0.0] * len(completions)


def wrong_length(completions, **columns):
    return [0.0]


BAD = {
    "no prompt": ({"rows": [{"text": "a"}]}, "train_dataset has no column 'prompt'.*text"),
    "no completions": ({"reward": without_completions}, "takes .*prompts.* and no completions"),
    "no such column": ({"reward": unknown_column}, "needs 'answer', which is no column"),
    "a reward model": ({"reward": tiny("llama").model}, "is a reward model, which ZORewardTrainer does not call"),
    "a name of the hub": ({"reward": "owner/reward-model"}, "owner/reward-model is a reward model"),
    "an unknown name": ({"reward": "exact-match"}, "exact_match"),
    "weights": ({"reward_weights": [1.0, 2.0]}, "2 weights for 1 rewards"),
    "no tokens": ({"max_completion_length": 0}, "max_completion_length"),
    "a method of losses": ({"zo": "mezo", "zo_options": {}}, "spsa compares no members of a population"),
    "no tokenizer": ({"tokenizer": False}, "no tokenizer"),
    "a long answer": ({"max_completion_length": 10**5}, "leaves no room for 100000 new ones"),
    "a long prompt": ({"rows": [{"prompt": "word " * 3000}] * 2}, "leaves no room for 5 new ones"),
    "an empty prompt": ({"rows": [{"prompt": None}] * 2}, "a prompt is None: give a text"),
    "no template": ({"rows": [{"prompt": [{"role": "user", "content": "a"}]}] * 2}, "no chat template"),
    "too few answers": ({"reward": wrong_length}, "returned 1 rewards for 8 completions"),
}


@pytest.mark.few(5)
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(tmp_path, case):
    settings, words = BAD[case]
    if settings.get("tokenizer") is False:
        lm = tiny("llama")
        lm.model.config._name_or_path = str(tmp_path)
        with pytest.raises(gl.BadInput, match=words):
            ZORewardTrainer(lm.model, letters, arguments(tmp_path), ROWS)
        return
    with pytest.raises(gl.BadInput, match=words):
        make_trainer(tmp_path, **settings).train()


def test_an_override_of_the_loss_is_refused(tmp_path):
    class Own(ZORewardTrainer):
        def compute_loss(self, *args, **rest):
            return 0.0

    with pytest.raises(gl.BadInput, match=r"Own\.compute_loss would have no effect"):
        Own(tiny("llama").model, letters, arguments(tmp_path), ROWS)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # which PEFT reads
def test_an_adapter_is_trained_and_saved(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, peft_config=config, zo_options={"eps": 0.3, "queries": 2})
    trainer.train()
    assert {leaf.name.split(".")[-3] for leaf in trainer.window.inner.leaves} == {"lora_A", "lora_B"}
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()
    with pytest.raises(gl.BadInput, match="has an adapter of PEFT already"):
        make_trainer(tmp_path / "other", model=trainer.model, peft_config=config)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # which GRPOConfig sets itself
class TestConfigOfTRL:
    @pytest.fixture
    def config(self, tmp_path):
        pytest.importorskip("trl")
        from trl import GRPOConfig

        usual = {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4, "learning_rate": 1e-2}
        usual |= {"max_completion_length": 3, "report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True}
        return lambda **rest: GRPOConfig(str(tmp_path), **{**usual, **rest})

    def trainer(self, args, **rest):
        lm = tiny("llama")
        return ZORewardTrainer(lm.model, letters, args, ROWS, processing_class=lm.tokenizer, **rest)

    @pytest.mark.filterwarnings("ignore")
    def test_it_is_taken(self, config):
        trainer = self.trainer(config(shuffle_dataset=False, temperature=0.5), zo_options={"eps": 1e-2})
        trainer.train()
        assert trainer.reward_settings.new_tokens == 3
        assert trainer.reward_settings.temperature == 0.5
        assert trainer.window.inner.forwards == 2 * 4  # steps x members

    @pytest.mark.parametrize(
        ("options", "rest", "words"),
        [
            ({"beta": 0.1}, {}, "beta=0.1 does not go with ZORewardTrainer"),
            ({"top_p": 0.9}, {}, "top_p=0.9"),
            ({"use_vllm": True}, {}, "use_vllm"),
            ({"num_generations": 4}, {"zo_options": {"queries": 3}}, "num_generations=4 and queries=3 differ"),
        ],
    )
    def test_what_cannot_be_done_is_refused(self, config, options, rest, words):
        with pytest.raises(gl.BadInput, match=words):
            self.trainer(config(**options), **rest)

    def test_what_has_no_effect_and_a_rate_for_gradients_are_told(self, config):
        with pytest.warns(UserWarning, match="has no effect") as warned:
            self.trainer(config(scale_rewards="none", top_entropy_quantile=0.2, off_policy_mask_threshold=0.5))
        text = " ".join(str(one.message) for one in warned)
        for setting in ("scale_rewards='none'", "top_entropy_quantile=0.2", "off_policy_mask_threshold=0.5"):
            assert f"{setting} has no effect" in text
        with pytest.warns(UserWarning, match="learning_rate=1e-06 is the default of GRPOConfig"):
            self.trainer(config(learning_rate=1e-6))
