"""The trainer over layers of a library: adapters above codes are tuned, and a model without any is refused."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import gradless as gl  # noqa: E402
from trainer_helpers import digest, language_model, make_trainer, texts  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:TorchaoLoraLinear:UserWarning"),  # merging is not asked for
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # names that PEFT still uses
]


def quantised(dynamic=False):
    library = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = language_model(1)
    kinds = (library.Int8WeightOnlyConfig, library.Int8DynamicActivationInt8WeightConfig)
    # The output layer stays in floats, as transformers leaves it.
    library.quantize_(
        model, kinds[dynamic](), lambda module, name: isinstance(module, torch.nn.Linear) and "head" not in name
    )
    return model


def adapted():
    return peft.get_peft_model(quantised(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


@pytest.mark.parametrize("engine", ["stream", "dual"])
def test_adapters_above_codes_are_tuned_and_resumed(tmp_path, engine):
    how = {"zo_options": {"eps": 1e-2, "engine": engine}}
    whole = make_trainer(tmp_path / "whole", adapted(), texts(), **how)
    whole.train()
    again = make_trainer(tmp_path / "whole", adapted(), texts(), **how)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert digest(again) == digest(whole)


def test_a_quantised_model_without_a_choice_is_refused(tmp_path):
    with pytest.raises(gl.BadInput, match=r"cannot move, so only the others|none by choice"):
        make_trainer(tmp_path, quantised(), texts()).train()


def test_layers_that_round_activations_are_refused(tmp_path):
    model = peft.get_peft_model(quantised(dynamic=True), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(gl.BadInput, match="round activations to a few bits"):
        make_trainer(tmp_path, model, texts()).train()
