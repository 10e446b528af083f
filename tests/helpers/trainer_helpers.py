"""Tiny models and data for tests of trainers; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from gradless import ledger
from gradless.integrations.transformers import ZOTrainer
from gradless.system.hashing import weights_sha256

CONSTANT = {"lr_scheduler_type": "constant"}
SHORT = {"max_steps": 2, "save_strategy": "no", "logging_strategy": "no"}


def classifier(seed=1, **options):
    transformers.set_seed(seed)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        **options,
    )
    return transformers.BertForSequenceClassification(config)


def language_model(seed=1, **options):
    transformers.set_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


def sentences(count=32, seed=0, length=10):
    """Rows that a classifier can learn: the label says whether the first token is small."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, 64, (count, length), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] < 32)} for row in rows]


def texts(count=16, seed=0):
    """Rows of unlike lengths, padded, with labels for all but the padding."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(3, 12, (), generator=generator))
        ids = torch.zeros(12, dtype=torch.long)
        ids[:length] = torch.randint(3, 64, (length,), generator=generator)
        mask = (torch.arange(12) < length).long()
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)})
    return rows


def arguments(folder, kind=transformers.TrainingArguments, **options):
    usual = {
        **{"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": []},
        **{"logging_steps": 4, "save_steps": 4, "use_cpu": True, "disable_tqdm": True},
    }
    return kind(str(folder), **{**usual, **options})


def make_trainer(folder, model=None, data=None, *, options=None, kind=ZOTrainer, **rest):
    """A trainer of a tiny classifier; ``options`` are training arguments."""
    return kind(
        model=classifier() if model is None else model,
        args=arguments(folder, **(options or {})),
        train_dataset=sentences() if data is None else data,
        **rest,
    )


def digest(trained):
    """Hash of the weights of a trainer's model."""
    return weights_sha256(trained.model.named_parameters())


def moves(folder):
    """The steps of a run."""
    return ledger.read(Path(folder) / "ledger").moves


class StopAt(transformers.TrainerCallback):
    """Interrupts a run as Control-C does, in the midst of a step or after it."""

    def __init__(self, step, event):
        self.step, self.event = step, event

    def on_pre_optimizer_step(self, args, state, control, **rest):
        self.stop(state, "before")

    def on_optimizer_step(self, args, state, control, **rest):
        self.stop(state, "after")

    def stop(self, state, event):
        if (state.global_step, event) == (self.step, self.event):
            raise KeyboardInterrupt


class CutWindow(transformers.TrainerCallback):
    """Interrupts a run once, between two micro-batches of a step."""

    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **rest):
        if state.global_step == self.step:
            self.step = None
            raise KeyboardInterrupt
