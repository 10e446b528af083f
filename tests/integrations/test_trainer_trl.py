"""The trainers of TRL under the mixin: each trains, or is refused in one sentence when it is made."""

from __future__ import annotations

import importlib
import os
import warnings

import pytest

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # which TRL's trainers send, and huggingface_hub reads when it is imported
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

import gradless as gl  # noqa: E402
from gradless.integrations.transformers import ZOTrainerMixin  # noqa: E402
from gradless.lm import tiny  # noqa: E402
from trainer_helpers import StopAt, digest  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # names that TRL's arguments still use; experimental classes

PAIRS = {"prompt": ["one", "two"] * 4, "chosen": [" good", " fine"] * 4, "rejected": [" bad", " poor"] * 4}
PROMPTS = {"prompt": ["one", "two", "three", "four"] * 2}
CHAT = {
    "messages": [[{"role": "user", "content": letter}, {"role": "assistant", "content": "ok"}] for letter in "abcdefgh"]
}
KTO = {"prompt": ["one", "two"] * 4, "completion": [" good", " bad"] * 4, "label": [True, False] * 4}
TEXTS = {"text": [f"the film {i} was good" for i in range(8)]}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
ON_POLICY = {"max_completion_length": 4}


def lengths(completions, **rest):
    return [float(len(completion)) for completion in completions]


def teacher():
    return {"teacher_model": tiny("qwen").model}


TABLE = {  # class: (module below trl, rows, arguments, keyword arguments)
    "SFTTrainer": ("", TEXTS, {}, dict),
    "DPOTrainer": ("", PAIRS, {}, dict),
    "RewardTrainer": ("", {key: PAIRS[key] for key in ("chosen", "rejected")}, {}, dict),
    "KTOTrainer": ("", KTO, {}, dict),
    "RLOOTrainer": ("", PROMPTS, {"num_generations": 2, **ON_POLICY}, lambda: {"reward_funcs": lengths}),
    "DistillationTrainer": ("", PROMPTS, ON_POLICY, teacher),
    "GKDTrainer": ("experimental.gkd", CHAT, {"lmbda": 1.0, "max_new_tokens": 4}, teacher),
    "CPOTrainer": ("experimental.cpo", PAIRS, {}, dict),
    "ORPOTrainer": ("experimental.orpo", PAIRS, {}, dict),
}
REFUSED = {
    "GRPOTrainer": (
        "",
        PROMPTS,
        {"num_generations": 2},
        lambda: {"reward_funcs": lengths},
        "compares the model with itself.*ZORewardTrainer",
    ),
    "SFTTrainer": ("", TEXTS, {"loss_type": "dft"}, dict, "loss_type='dft' of SFTTrainer.*set loss_type='nll'"),
    "DPOTrainer": ("", PAIRS, {"use_weighting": True}, dict, "use_weighting=True of DPOTrainer"),
    "GMPOTrainer": (
        "experimental.gmpo",
        PROMPTS,
        {"num_generations": 2},
        lambda: {"reward_funcs": lengths},
        "GRPOTrainer does not go",
    ),
    "OnlineDPOTrainer": (
        "experimental.online_dpo",
        PROMPTS,
        {},
        dict,
        r"OnlineDPOTrainer.training_step uses gradients \(.*backward",
    ),
}


def make_trainer(name, module, rows, options, rest, folder, **more):
    try:
        home = importlib.import_module(f"trl.{module}" if module else "trl")
        parent, config = getattr(home, name), getattr(home, name.replace("Trainer", "Config"))
    except (ImportError, AttributeError):
        pytest.skip(f"this release of TRL has no {name}")
    lm = tiny("qwen")
    model, tokenizer = lm.model, lm.tokenizer
    tokenizer.chat_template = TEMPLATE
    if name == "RewardTrainer":
        transformers.set_seed(1)
        model.config.num_labels, model.config.pad_token_id = 1, tokenizer.pad_token_id
        model = transformers.AutoModelForSequenceClassification.from_config(model.config)
    base = folder.parent / f"base-{folder.name}"  # which reference models are loaded from
    model.save_pretrained(base)
    model.config._name_or_path = str(base)
    usual = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    usual |= {"bf16": False, "save_strategy": "no", "gradient_checkpointing": False, "learning_rate": 1e-3}
    args = config(str(folder), **{**usual, **options})
    kind = type(f"ZO{name}", (ZOTrainerMixin, parent), {})
    return kind(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(rows),
        **rest(),
        **more,
    )


@pytest.mark.sweep
@pytest.mark.parametrize("name", TABLE)
def test_it_trains(tmp_path, name):
    trainer = make_trainer(name, *TABLE[name], tmp_path / "out")
    initial = digest(trainer)
    trainer.train()
    assert trainer.state.global_step == 2
    assert digest(trainer) != initial


@pytest.mark.few(1)
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(tmp_path, name):
    *case, words = REFUSED[name]
    with pytest.raises(gl.BadInput, match=words):
        make_trainer(name, *case, tmp_path / "out")


@pytest.mark.sweep
def test_what_a_step_writes_is_written_again_after_an_interruption(tmp_path):
    options = {"lmbda": 1.0, "max_new_tokens": 4, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    case = ("experimental.gkd", CHAT, options, teacher)
    whole = make_trainer("GKDTrainer", *case, tmp_path / "whole")
    whole.train()
    cut = make_trainer("GKDTrainer", *case, tmp_path / "cut", callbacks=[StopAt(3, "before")])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = make_trainer("GKDTrainer", *case, tmp_path / "cut")
    again.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole)


def test_the_baseline_of_kto_is_spoken_of(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer("KTOTrainer", *TABLE["KTOTrainer"], tmp_path / "out")
    assert any("takes its KL baseline as a constant" in str(one.message) for one in caught)
