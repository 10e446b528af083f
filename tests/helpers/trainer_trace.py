"""What Trainer and `ZOTrainer` do around a step, side by side: events, hooks, logs, files and the state in the end."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
import transformers

from gradless.integrations.transformers import ZOTrainer
from trainer_helpers import arguments, classifier, language_model, sentences, texts

# What only one of them has, by design: optimizer state is in the ledger, and there is no norm of a gradient.
GRADIENT_FILES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"}
OWN_FILES = {"ledger", "gradless.json", "gradless.safetensors"}
OWN_LOGS = {"grad_norm", "projected_grad", "forwards"}
TIMES = ("runtime", "per_second", "train_mem", "init_mem", "eval_mem", "before_init")
EVENTS = [name for name in dir(transformers.TrainerCallback) if name.startswith("on_")]
FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
# Hooks that a loop calls as often for one as for the other. Losses are evaluated more often, by design.
HOOKS = (
    *("create_optimizer", "create_scheduler", "get_train_dataloader", "get_eval_dataloader", "get_batch_samples"),
    *("get_decay_parameter_names", "training_step", "_prepare_inputs", "compute_loss_context_manager", "log"),
    *("floating_point_ops", "store_flos", "evaluate", "evaluation_loop", "prediction_step", "save_model"),
    *("set_initial_training_values", "num_examples", "get_total_train_batch_size", "call_model_init"),
)


class Recorder(transformers.TrainerCallback):
    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if name not in EVENTS:
            return super().__getattribute__(name)

        def record(args, state, control, **rest):
            flags = "".join(str(int(getattr(control, flag))) for flag in FLAGS)
            self.events.append((name, state.global_step, round(state.epoch or 0, 6), flags))

        return record


def recording(base):
    """A subclass that counts the hooks that are called, in their order."""

    def hook(name):
        def method(self, *args, **rest):
            vars(self).setdefault("hooks", []).append(name)
            return getattr(super(kind, self), name)(*args, **rest)

        return method

    kind = type(f"Recorded{base.__name__}", (base,), {name: hook(name) for name in HOOKS if hasattr(base, name)})
    return kind


def _files(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name not in GRADIENT_FILES | OWN_FILES
    }


def _logs(state):
    return [
        {key: value for key, value in entry.items() if key not in OWN_LOGS and not any(time in key for time in TIMES)}
        for entry in state.log_history
    ]


def trace(kind, folder, config):
    """Run one configuration; returns what was seen, under names."""
    config = dict(config)
    options = {"learning_rate": 1e-12, "max_steps": 4, "save_steps": 2, "logging_steps": 2, **config.pop("options", {})}
    make, data = config.pop("make", classifier), config.pop("data", None)
    resume, prepare = config.pop("resume", None), config.pop("prepare", None)
    zo = {"zo_options": {"eps": 1e-4}} if issubclass(kind, ZOTrainer) else {}
    recorder = Recorder()
    still = {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0}  # gradless evaluates without dropout
    model = None if "model_init" in config else make(**(still if make is classifier else {}))
    rows = (texts() if make is language_model else sentences()) if data is None else data
    callbacks = [recorder, *(callback() for callback in config.pop("callbacks", ()))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = recording(kind)(
            model=model, args=arguments(folder, **options), train_dataset=rows, callbacks=callbacks, **config, **zo
        )
        if prepare is not None:
            prepare(subject)
        result = subject.train(resume_from_checkpoint=resume and str(Path(folder) / resume))
    state = subject.state
    return {
        "events": recorder.events,
        "hooks": subject.hooks,
        "logs": _logs(state),
        "metrics": sorted(result.metrics),
        "files": _files(folder),
        "step": (state.global_step, round(state.epoch, 6), state.max_steps, state.num_train_epochs),
        "tokens": state.num_input_tokens_seen,
        "flos": state.total_flos,
        "best": (state.best_metric, state.best_global_step),
        "weights": {name: value.clone() for name, value in subject.model.state_dict().items()},
    }


def _same(one, other):
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=2e-3, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, atol=1e-6, equal_nan=True)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def differences(folder, config):
    """Names of what differs between Trainer and `ZOTrainer`, with both values.

    A window that is never full has no loss here, and half of one with Trainer.
    """
    theirs, ours = (trace(kind, Path(folder) / kind.__name__, config) for kind in (transformers.Trainer, ZOTrainer))
    known = {"logs"} if EndsMidWindow in config.get("callbacks", ()) else set()
    names = theirs.keys() - known
    return {name: (theirs[name], ours[name]) for name in names if not _same(theirs[name], ours[name])}


class StopsAt(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        control.should_training_stop = state.global_step == 3


class EndsEpochs(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        control.should_epoch_stop = state.global_step % 2 == 0


class EndsMidWindow(transformers.TrainerCallback):
    def on_substep_end(self, args, state, control, **rest):
        control.should_training_stop = state.global_step == 2


class AsksForAll(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        control.should_log = control.should_evaluate = control.should_save = state.global_step == 3


def accuracy(result):
    return {"accuracy": float((result[0].argmax(-1) == result[1]).mean())}


def spread(outputs, labels, num_items_in_batch=None):
    return (outputs.logits[:, 1] - labels).square().sum() / num_items_in_batch


EVALUATED = {"eval_dataset": sentences(8, seed=1)}
EVERY_2 = {"eval_strategy": "steps", "eval_steps": 2}
BEST = {**EVERY_2, "load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
_OPTIONS = {
    "plain": {},
    "epochs": {"max_steps": -1, "num_train_epochs": 2},
    "a part of an epoch": {"max_steps": -1, "num_train_epochs": 0.5},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "accumulation, cut by the epoch": {"gradient_accumulation_steps": 3, "max_steps": 6},
    "accumulation over epochs": {"gradient_accumulation_steps": 3, "max_steps": -1, "num_train_epochs": 2},
    "last batch dropped": {"per_device_train_batch_size": 5, "dataloader_drop_last": True, "max_steps": 8},
    "last batch short": {"per_device_train_batch_size": 5, "max_steps": 8},
    "logging every step": {"logging_steps": 1},
    "logging the first step": {"logging_first_step": True, "logging_steps": 3},
    "logging by epochs": {"logging_strategy": "epoch", "max_steps": 16},
    "no logging": {"logging_strategy": "no"},
    "logging by a share": {"logging_steps": 0.5},
    "saving by epochs": {"save_strategy": "epoch", "max_steps": 16},
    "no saving": {"save_strategy": "no"},
    "saving by a share": {"save_steps": 0.25},
    "saving two": {"save_steps": 1, "save_total_limit": 2},
    "saving one": {"save_steps": 1, "save_total_limit": 1},
    "weights only": {"save_only_model": True},
    "linear": {"lr_scheduler_type": "linear", "logging_steps": 1},
    "cosine with warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 2, "logging_steps": 1},
    "constant with warm-up": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2, "logging_steps": 1},
    "polynomial": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0.0}, "logging_steps": 1},
    "inverse root": {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 1, "logging_steps": 1},
    "cosine with restarts": {
        "lr_scheduler_type": "cosine_with_restarts",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "logging_steps": 1,
    },
    "weight decay": {"weight_decay": 0.1},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "tokens counted": {"include_num_input_tokens_seen": "all"},
    "tokens counted without padding": {"include_num_input_tokens_seen": "non_padding"},
    "cache emptied": {"torch_empty_cache_steps": 1},
    "memory measured": {"skip_memory_metrics": False},
    "full determinism": {"full_determinism": False, "seed": 3, "data_seed": 5},
    "columns kept": {"remove_unused_columns": False},
    "no clipping": {"max_grad_norm": 0.0},
    "no nan filter": {"logging_nan_inf_filter": False},
    "state of callbacks": {"restore_callback_states_from_checkpoint": True},
}
_EVALUATIONS = {
    "evaluation": EVERY_2,
    "evaluation by epochs": {"eval_strategy": "epoch", "max_steps": 16},
    "evaluation at the start": {**EVERY_2, "eval_on_start": True},
    "evaluation delayed": {"eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2},
    "evaluation accumulated": {**EVERY_2, "eval_accumulation_steps": 1},
    "evaluation of losses alone": {**EVERY_2, "prediction_loss_only": True},
    "evaluation dropped": {**EVERY_2, "eval_do_concat_batches": False},
    "best": BEST,
    "best, one kept": {**BEST, "save_total_limit": 1, "save_steps": 2},
    "best only": {**BEST, "save_strategy": "best"},
    "plateau": {**EVERY_2, "lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"},
}
TABLE = {name: {"options": options} for name, options in _OPTIONS.items()}
for _name, _options in _EVALUATIONS.items():
    _metrics = {"compute_metrics": accuracy} if "dropped" not in _name and "losses" not in _name else {}
    TABLE[_name] = {**EVALUATED, **_metrics, "options": _options}
TABLE |= {
    "two evaluation sets": {
        "eval_dataset": {"a": sentences(4, seed=1), "b": sentences(4, seed=2)},
        "options": EVERY_2,
    },
    "logits preprocessed": {
        **EVALUATED,
        "preprocess_logits_for_metrics": lambda logits, labels: logits * 2,
        "compute_metrics": accuracy,
        "options": EVERY_2,
    },
    "early stopping": {
        **EVALUATED,
        "compute_metrics": accuracy,
        "callbacks": [lambda: transformers.EarlyStoppingCallback(early_stopping_patience=1)],
        "options": {**BEST, "max_steps": 12},
    },
    "stopped by a callback": {"callbacks": [StopsAt], "options": {"max_steps": 8}},
    "epochs ended by a callback": {"callbacks": [EndsEpochs], "options": {"max_steps": 8}},
    "stopped amid a window": {
        "callbacks": [EndsMidWindow],
        "options": {"gradient_accumulation_steps": 2, "logging_strategy": "no"},
    },
    "all asked for by a callback": {**EVALUATED, "callbacks": [AsksForAll], "options": {"save_strategy": "no"}},
    "model from a function": {"model_init": lambda: classifier(attention_probs_dropout_prob=0, hidden_dropout_prob=0)},
    "own loss function": {"compute_loss_func": spread, "options": {"gradient_accumulation_steps": 2}},
    "language model": {"make": language_model, "options": {"logging_steps": 1}},
    "language model, accumulation": {"make": language_model, "options": {"gradient_accumulation_steps": 2}},
    "language model, tokens": {
        "make": language_model,
        "options": {"include_num_input_tokens_seen": "non_padding", "gradient_accumulation_steps": 2},
    },
    "language model, smoothing": {"make": language_model, "options": {"label_smoothing_factor": 0.1}},
    "sampling by length": {"make": language_model, "options": {"train_sampling_strategy": "group_by_length"}},
    "sequential sampling": {"options": {"train_sampling_strategy": "sequential"}},
    "tokens averaged in one process": {
        "make": language_model,
        "options": {"average_tokens_across_devices": False, "gradient_accumulation_steps": 2},
    },
}
