"""Arguments of a Trainer that forward-only training cannot use: refused or warned about, by name."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import torch.distributed as dist
import transformers
from torch import nn

from gradless.errors import BadInput
from gradless.integrations import batches, method_choice

# Arguments of backpropagation and its optimizers; they do no harm.
IDLE = {
    "max_grad_norm": "there is no gradient to clip",
    "optim": "the method is chosen with zo=",
    "optim_args": "options of the method are given with zo_options=",
    "optim_target_modules": "the method is chosen with zo=",
    "adam_beta1": "options of the method are given with zo_options=",
    "adam_beta2": "options of the method are given with zo_options=",
    "adam_epsilon": "options of the method are given with zo_options=",
    "neftune_noise_alpha": "the model is in evaluation mode, so that both losses of a step see the same noise: none",
    "activation_offloading": "no activations are kept, so there is nothing to move",
}
SAVING = ("activation_checkpointing", "gradient_checkpointing")  # two names of one argument
# Arguments that would train something else than what was asked for, or fail later.
REFUSED = {
    "fp16": "it scales gradients, and there are none: load the model with dtype=torch.float16 or torch.bfloat16, or "
    "set bf16=True",
    "deepspeed": "it shards optimizer state and gradients, and there are none: leave it out and start with torchrun",
    "fsdp": "sharded weights cannot be perturbed: leave it out and start with torchrun, or load with device_map",
    "parallelism_config": "sharded weights cannot be perturbed: leave it out and start with torchrun",
    "auto_find_batch_size": "it starts over on weights that have moved: set per_device_train_batch_size",
    "torch_compile": "a compiled model reads its weights where they cannot be served: leave it out",
}


def own(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a trainer is made from with a copy of the training arguments: others may use the user's."""

    def copied(value: Any) -> Any:
        return batches.fresh(value) if isinstance(value, transformers.TrainingArguments) else value

    return tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()}


def arguments(args: Any) -> None:
    """Check training arguments, and switch off those that have no effect but cost time.

    Raises:
        BadInput: an argument that cannot be used, with the fix.
    """
    for name, reason in REFUSED.items():
        if getattr(args, name, None):
            raise BadInput(f"{name} does not go with ZOTrainer, since {reason}")
    if args.n_gpu > 1:
        raise BadInput(
            f"{args.n_gpu} GPUs in one process: start one process for each with torchrun, or hide the others"
        )
    started = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if started > 1 == args.world_size:  # transformers says so in a line of its log, and all write the same files
        raise BadInput(
            f"{started} processes were started, and Trainer takes each of them for the only one: without GPUs, set "
            "use_cpu=True in its arguments"
        )
    usual = {field.name: field.default for field in dataclasses.fields(args)}
    for name, reason in IDLE.items():
        if name in usual and getattr(args, name) not in (usual[name], None, False):
            warnings.warn(f"{name}={getattr(args, name)!r} has no effect in ZOTrainer: {reason}", stacklevel=4)
    if any(getattr(args, name, False) for name in SAVING):
        if not any(usual.get(name) for name in SAVING):  # TRL's arguments set it unasked
            warnings.warn(
                "gradient_checkpointing (activation_checkpointing) has no effect in ZOTrainer: no activations are kept",
                stacklevel=4,
            )
        for name in SAVING:
            setattr(args, name, False)


def trainer(trainer: Any) -> None:
    """Check the model, the optimizer and the collator of a Trainer.

    Raises:
        BadInput: what cannot be trained, with the fix.
    """
    model: nn.Module = trainer.model
    if trainer.optimizer_cls_and_kwargs is not None:
        raise BadInput("optimizer_cls_and_kwargs is for optimizers with gradients: choose the method with zo=")
    if trainer.given is not None and method_choice.checked(trainer.given).t:
        raise BadInput(
            f"the optimizer has taken {trainer.given.t} steps already, which no ledger holds: make a new one"
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise BadInput("DeepSpeed and FSDP shard weights and gradients: start with torchrun, without them")
    if not any(p.requires_grad for p in model.parameters()):
        adapter = hasattr(model, "peft_config")
        raise BadInput(
            "the PEFT model has no trainable parameter: load the adapter with is_trainable=True, or leave "
            "inference_mode out of its config"
            if adapter
            else "the model has no parameter that requires grad: unfreeze some"
        )
    if trainer.ledger_only and trainer.args.load_best_model_at_end:
        raise BadInput("load_best_model_at_end needs checkpoints with weights: leave ledger_only out")
    tokenizer = getattr(trainer.data_collator, "tokenizer", None)
    if tokenizer is not None and getattr(tokenizer, "pad_token", "") is None:
        raise BadInput(
            f"the tokenizer has no pad token, and {type(trainer.data_collator).__name__} pads: set "
            "tokenizer.pad_token = tokenizer.eos_token and model.config.pad_token_id = tokenizer.eos_token_id"
        )


def schedule(scheduler: Any) -> None:
    """Check that a learning-rate schedule can be put beside the ledger.

    Raises:
        BadInput: its state is more than JSON can hold.
    """
    try:
        json.dumps(scheduler.state_dict())
    except TypeError:
        raise BadInput(
            f"the state of {type(scheduler).__name__} is not plain numbers, so it cannot be saved: "
            "use lr_scheduler_type"
        ) from None
