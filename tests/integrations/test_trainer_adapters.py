"""Adapters of PEFT and the trainer of TRL for supervised fine-tuning, with forward passes only."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # which TRL's trainers send, and huggingface_hub reads when it is imported

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import gradless as gl  # noqa: E402
from gradless.integrations.replay import rebuild  # noqa: E402
from gradless.integrations.transformers import ZOTrainer, ZOTrainerMixin  # noqa: E402
from gradless.system.hashing import weights_sha256  # noqa: E402
from trainer_helpers import StopAt, arguments, digest, language_model, make_trainer, moves, texts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # names that TRL's arguments still use


def adapted(seed=1):
    model = language_model(seed)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))


@pytest.mark.few(1)
@pytest.mark.parametrize("ledger_only", [False, True], ids=["weights", "ledger"])
def test_lora_is_resumed_though_its_first_values_were_random(tmp_path, ledger_only):
    def run(folder, seed=1, resume=None, **rest):
        model = adapted()
        if seed != 1:  # the same base, another adapter
            for (name, p), (_, other) in zip(model.named_parameters(), adapted(seed).named_parameters(), strict=True):
                if "lora_A" in name:
                    p.data.copy_(other)
        trainer = make_trainer(folder, model, texts(), zo_options={"eps": 1e-1}, ledger_only=ledger_only, **rest)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", callbacks=[StopAt(6, "after")])
    again = run(tmp_path / "cut", seed=2, resume=True)
    assert digest(again) == digest(whole)
    names = {path.name for path in (tmp_path / "whole" / "checkpoint-8").iterdir()}
    assert ("adapter_model.safetensors" in names) is not ledger_only
    assert "model.safetensors" not in names
    model = adapted()
    base = weights_sha256((name, p) for name, p in model.named_parameters() if "lora" not in name)
    rebuild(model, tmp_path / "whole")
    assert weights_sha256(model.named_parameters()) == digest(whole)
    assert weights_sha256((name, p) for name, p in whole.model.named_parameters() if "lora" not in name) == base


def test_an_adapter_on_another_base_is_refused(tmp_path):
    make_trainer(tmp_path, adapted(), texts()).train()
    with pytest.raises(gl.BadInput, match="frozen weights differ"):
        make_trainer(tmp_path, adapted(2), texts()).train(resume_from_checkpoint=True)


def test_an_adapter_that_was_loaded_for_inference_is_refused(tmp_path):
    adapted().save_pretrained(tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(language_model(), tmp_path / "adapter")
    with pytest.raises(gl.BadInput, match="PEFT model has no trainable parameter: load the adapter with is_trainable"):
        make_trainer(tmp_path, model, texts())
    model = peft.PeftModel.from_pretrained(language_model(), tmp_path / "adapter", is_trainable=True)
    make_trainer(tmp_path, model, texts(), options={"max_steps": 1}).train()


def test_the_best_adapter_is_loaded_at_the_end(tmp_path):
    options = {
        **{"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True},
        **{"metric_for_best_model": "loss", "learning_rate": 3.0, "lr_scheduler_type": "constant"},
    }
    trainer = make_trainer(tmp_path, adapted(), texts(), options=options, eval_dataset=texts(8, seed=1))
    trainer.train()
    best = min(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best)
    assert trainer.state.best_global_step != 8


# ---------------------------------------------------------------------------------------------------------------
# TRL


def sft(folder, kind, *, options=None, **rest):
    import datasets
    import trl

    from gradless.lm.tiny_models import FAMILIES, make_tokenizer

    tokenizer = make_tokenizer(FAMILIES["opt"].specials)
    transformers.set_seed(1)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=128,
        attention_dropout=0.5,
        **ids,
    )
    words = [f"the film {i} was {'great' if i % 2 else 'terrible'}" for i in range(32)]
    data = datasets.Dataset.from_dict({"text": words})
    return kind(
        model=transformers.LlamaForCausalLM(config),
        args=arguments(folder, trl.SFTConfig, **{"bf16": False, "max_length": 32, **(options or {})}),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=tokenizer,
        **rest,
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_supervised_fine_tuning_of_trl(tmp_path, lora):
    trl = pytest.importorskip("trl")
    from gradless.integrations.trl import ZOSFTTrainer

    rest = {"peft_config": peft.LoraConfig(r=2, target_modules=["q_proj"])} if lora else {}
    options = {"eval_strategy": "steps", "eval_steps": 4, "gradient_accumulation_steps": 2, "max_steps": 6}
    rest |= {"options": options, "zo_options": {"eps": 1e-2}}
    whole = sft(tmp_path, ZOSFTTrainer, **rest)
    whole.train()
    assert isinstance(whole, trl.SFTTrainer)
    assert len(moves(tmp_path)) == 6
    logged = next(entry for entry in whole.state.log_history if "loss" in entry)
    assert {"entropy", "mean_token_accuracy", "projected_grad"} <= logged.keys()  # of training, by these names
    assert logged["loss"] == pytest.approx(logged["entropy"], abs=0.5)
    assert not any(name.startswith("eval") for name in logged)
    again = sft(tmp_path, ZOSFTTrainer, **rest)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert digest(again) == digest(whole)


def test_the_mixin_is_all_that_another_trainer_needs(tmp_path):
    trl = pytest.importorskip("trl")

    class ZOSFTTrainer(ZOTrainerMixin, trl.SFTTrainer):
        pass

    trainer = sft(tmp_path, ZOSFTTrainer, options={"max_steps": 2}, zo="lozo")
    trainer.train()
    assert trainer.window.inner.t == 2


def test_the_classes_say_what_they_are():
    pytest.importorskip("trl")
    from gradless.integrations import trl as integration

    assert issubclass(integration.ZOSFTTrainer, ZOTrainerMixin)
    assert not issubclass(integration.ZOSFTTrainer, ZOTrainer)
    assert issubclass(ZOTrainer, transformers.Trainer)
