"""The data, model and optimizer of a run, built from its configuration alone.

So the same code serves a new run, a resumed one, and a replay, which has only a ledger.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gradless import directions, lm, rng, tasks
from gradless.directions import masks
from gradless.errors import BadInput
from gradless.estimators import linear_queries
from gradless.forward.engines import AUTO
from gradless.lm import (
    LanguageModel,
    adapter_schemes,
    base_hash,
    compute_types,
    devices,
    encode,
    evaluate,
    objectives,
    schemes,
)
from gradless.lm.encode import Encoded
from gradless.methods import METHODS
from gradless.methods.layer_scales import parameter_norm_scales
from gradless.optimizer import ZerothOrder
from gradless.rules import SCHEDULES
from gradless.runs import reward_settings
from gradless.runs.config import TuneConfig, as_recorded
from gradless.runs.shared_front import share_front
from gradless.system.cache import quiet as silent
from gradless.system.hashing import weights_sha256
from gradless.system.tensor_state import write_tensors
from gradless.tasks import Row, Splits, Task, hub

Say = Callable[[str], None]
INITIAL = "initial.safetensors"
NORMS = "norms.safetensors"
BEST = "best.safetensors"  # the tuned weights of the best step, of methods that no ledger rebuilds
OWN_PATHS = ("train", "dev", "test")
CALIBRATION = 32  # training rows that input norms are taken from


class Model(NamedTuple):
    """A model under a scheme with its optimizer, at the weights of step ``optimizer.t``."""

    lm: LanguageModel
    optimizer: ZerothOrder
    base_sha256: str
    norms: dict[str, Tensor] | None = None  # of the inputs of linear layers, if masks are made from them


def pinned(config: TuneConfig, recorded: TuneConfig | None = None, *, tunes: bool = True) -> TuneConfig:
    """Return a configuration in which data sets of the hub have their commit, so that the run can be made again.

    What depends on the machine is settled as well: the type in which 16-bit weights are computed with.

    Args:
        config: of the run.
        recorded: of the same run, which goes on; it keeps its commits and its compute type.
        tunes: whether steps are taken, and not an evaluation alone.

    Raises:
        BadInput: a data set cannot be fetched.
    """
    own = {
        name: hub.pinned(value, recorded.own.get(name, "") if recorded else "") if name in OWN_PATHS else value
        for name, value in config.own.items()
    }
    held = config.compute_dtype or (as_recorded(recorded).compute_dtype if recorded else None)
    return dataclasses.replace(config, own=own, compute_dtype=held or _compute_dtype(config, tunes=tunes))


def _compute_dtype(config: TuneConfig, *, tunes: bool = True) -> str | None:
    """Return what a run without a compute type takes; None where there is no choice."""
    return compute_types.for_settings(config, differences=tunes and METHODS[config.method].estimates)


def load_task(config: TuneConfig, say: Say = silent) -> tuple[Task, Splits]:
    """Return the task and its rows; ``say`` receives what was guessed of own files."""
    sizes: dict[str, Any] = {name: getattr(config, name) for name in ("num_train", "num_dev", "num_test")}
    if config.own:
        # Own files are used whole unless a size was asked for; dev rows are held out only without a dev file.
        asked: dict[str, Any] = {name: size or None for name, size in sizes.items()}
        make: Any = tasks.custom if config.own.get("labels") is not None else tasks.prompts
        task, splits = make(**config.own, seed=config.seed, k_shot=config.k_shot, say=say, **asked)
        return reward_settings.for_run(task, config), splits
    assert config.task is not None
    task = tasks.get(config.task) if config.aligned else tasks.unaligned(tasks.get(config.task))
    data = Path(config.data) if config.data else None
    splits = tasks.load(task, data=data, seed=config.seed, k_shot=config.k_shot, **sizes)
    return reward_settings.for_run(task, config), splits


def base_model(config: TuneConfig, *, tokenizer: Any = None, say: Say = silent) -> LanguageModel:
    """Return the model of a configuration before any scheme is applied; see `gradless.lm.load`."""
    names = ("dtype", "device", "chat", "quantise", "offload")
    kinds = {name: getattr(config, name) for name in names}
    kinds["compute_dtype"] = config.compute_dtype or _compute_dtype(config)
    if line := devices.idle(config.device):
        say(line)
    return lm.load(config.model, **kinds, tokenizer=tokenizer, say=say)


def build(
    config: TuneConfig,
    folder: Path,
    *,
    label_token_ids: tuple[int, ...] = (),
    twin: Model | None = None,
    anew: bool = False,
    say: Say = print,
) -> Model:
    """Load the base model, apply the scheme, and make the optimizer; no data is needed.

    Args:
        config: of the run.
        folder: of the run; initial values that it keeps (`keep_initial`) replace the computed ones.
        label_token_ids: what the scheme ``head`` needs, see `label_tokens`.
        twin: a model made from the same base, whose tokenizer and base hash are used again.
        anew: hash the base model's files again, whatever is remembered of them.
        say: receives lines about slow steps.
    """
    tokenizer, base_sha256 = (twin.lm.tokenizer, twin.base_sha256) if twin else (None, None)
    base = base_model(config, tokenizer=tokenizer, say=say)
    return _tuned(config, base, folder, label_token_ids, base_sha256=base_sha256, anew=anew)


def build_for(
    config: TuneConfig, folder: Path, task: Task, rows: Sequence[Row], *, say: Say = print
) -> tuple[Model, tuple[int, ...]]:
    """`build`, with what a run takes from its training rows before the first step; returns the label tokens, too.

    That is the label tokens, which only the scheme ``head`` needs, and the input norms of Wanda's masks.
    """
    base = base_model(config, say=say)
    if line := adapter_schemes.sentence(base, config.scheme):
        say(line)
    tokens = label_tokens(base, task, rows[0]) if config.scheme == "head" else ()

    def measure(model: LanguageModel) -> dict[str, Tensor] | None:
        return measured_norms(config, model, task, rows)

    return _tuned(config, base, folder, tokens, measure), tokens


def measured_norms(
    config: TuneConfig, model: LanguageModel, task: Task, rows: Sequence[Row]
) -> dict[str, Tensor] | None:
    """Return input norms of linear layers over a few training rows; None if no mask is made from them."""
    if not _needs_norms(config):
        return None
    encoded = encode_rows(model, task, rows[:CALIBRATION], config.max_length)
    objective = objectives.choose(task, config.objective, max_length=config.max_length)
    batches = objectives.prepare(model, objective, encoded, config.micro_batch_size or config.batch_size)
    with torch.no_grad():
        return masks.input_norms(model.model.named_modules(), lambda: objectives.loss_over(model, objective, batches))


def _tuned(
    config: TuneConfig,
    base: LanguageModel,
    folder: Path,
    label_token_ids: tuple[int, ...],
    measure: Callable[[LanguageModel], dict[str, Tensor] | None] | None = None,
    base_sha256: str | None = None,
    anew: bool = False,
) -> Model:
    base_sha256 = base_sha256 or base_hash.base_sha256(base, anew=anew)
    tuned = schemes.apply(
        base,
        config.scheme,
        seed=config.seed,
        rank=config.rank,
        alpha=config.alpha,
        num_prefix=config.num_prefix,
        num_prompt=config.num_prompt,
        targets=config.targets or None,
        freeze=config.freeze,
        label_token_ids=label_token_ids,
    )
    named = schemes.trainable(tuned)
    if config.scheme == "prefix" and (folder / INITIAL).exists():
        load_tuned(folder / INITIAL, dict(named))
    norms = input_norms(config, folder)
    if norms is None and _needs_norms(config):
        if measure is None:
            raise BadInput(f"{folder / NORMS} is missing, and this run's masks depend on it: put it beside the ledger")
        norms = measure(tuned)
    opt = optimizer(config, named, norms, tuned.model)
    share_front(opt, config, tuned.model)
    return Model(tuned, opt, base_sha256, norms)


def _needs_norms(config: TuneConfig) -> bool:
    return config.options.get("mask") == "wanda"


def input_norms(config: TuneConfig, folder: Path) -> dict[str, Tensor] | None:
    """Return the input norms that a run keeps; None if no mask is made from them."""
    path = folder / NORMS
    return load_file(path) if _needs_norms(config) and path.exists() else None


def keep_initial(config: TuneConfig, folder: Path, model: Model) -> None:
    """Write to the run directory the initial values that another machine might compute differently.

    A prefix starts from the activations of a forward pass, whose last bits depend on processor and thread count; all
    other schemes start from the base weights and the counter streams. The same holds for norms. Cost: kilobytes.
    """
    if config.scheme == "prefix":
        write_tensors(folder / INITIAL, tuned_tensors(model))
    if model.norms is not None:
        write_tensors(folder / NORMS, model.norms)


def tuned_tensors(model: Model) -> dict[str, Tensor]:
    """Return the tuned parameters by name."""
    return {leaf.name: leaf.param.detach().contiguous() for leaf in model.optimizer.leaves}


@torch.no_grad()
def load_tuned(path: Path, named: Mapping[str, Tensor]) -> None:
    """Copy kept values into parameters.

    Raises:
        BadInput: the names in the file are others.
    """
    values = load_file(path)
    if values.keys() != named.keys():
        raise BadInput(f"{path} belongs to another run: restore it from a copy")
    for name, value in values.items():
        named[name].copy_(value)


def label_tokens(model: LanguageModel, task: Task, row: Row) -> tuple[int, ...]:
    """Return the single token of each label word, in label order; any row of the task serves.

    Raises:
        BadInput: the task has no fixed label words, or one of them is not one token.
    """
    if not (task.masked_words if model.masked else task.label_words):
        raise BadInput(f"task '{task.name}' has no fixed label words for a head: use --scheme full or lora")
    (encoded,) = encode_rows(model, task, [row], None)
    if not encoded.single:
        raise BadInput(f"a label word of '{task.name}' is not one token of {model.name}: use --scheme full or lora")
    return tuple(option[0] for option in encoded.options)


def optimizer(
    config: TuneConfig,
    named: list[tuple[str, nn.Parameter]],
    norms: dict[str, Tensor] | None = None,
    model: nn.Module | None = None,
) -> ZerothOrder:
    """Return the configured method over the tuned parameters.

    Args:
        config: of the run.
        named: the tuned parameters.
        norms: of linear layers' inputs, where its masks need them.
        model: of the parameters, for methods that ask it for the order of its blocks.
    """
    assert config.eps is not None
    make: Any = METHODS[config.method].make
    extra: dict[str, Any] = dict(config.options)
    if norms is not None:
        extra["norms"] = norms
    if model is not None and "model" in inspect.signature(make).parameters:
        extra["model"] = model
    if config.queries is not None:
        linear = config.query_schedule == "linear"
        extra["queries"] = linear_queries(config.queries, config.steps) if linear else config.queries
    if config.scheme == "codes":
        extra["transform"] = functools.partial(_on_codes, config)
    if config.layer_scale != "none":
        scales = parameter_norm_scales(dict(named))
        extra["transform"] = lambda base: directions.scaled(base, scales, mode=config.layer_scale)
    if config.lr == "auto":
        extra["normalise"] = True
    lr = auto_rate(config) if isinstance(config.lr, str) else config.lr
    assert lr is not None
    opt: ZerothOrder = make(
        _groups(config, named),
        lr=SCHEDULES[config.schedule](lr, config.steps, config.warmup),
        eps=config.eps,
        seed=config.seed,
        engine=config.engine or AUTO,
        defer=True,
        **extra,
    )
    return opt


def auto_rate(config: TuneConfig) -> float:
    """Return the learning rate that "auto" stands for: estimates are normalised, so it is the change of a weight.

    Until the walk is measured (`gradless.runs.walks`) it is that of a short run.
    """
    method = METHODS[config.method]
    assert config.eps is not None
    queries = config.queries or int(method.options().get("queries", 1))
    # The mean over K directions is smaller than each of them by the root of K.
    return method.auto_step(config.steps, config.walk or math.inf) * config.eps * math.sqrt(queries)


def _on_codes(config: TuneConfig, base: directions.Directions) -> directions.Directions:
    """Directions of whole codes in place of dense ones.

    Raises:
        BadInput: the method has directions of another kind, which is what it is about.
    """
    if base.name not in ("rademacher", "gaussian"):
        raise BadInput(f"the method {config.method} has directions of its own, and codes need others: use mezo")
    return directions.ternary(config.density)


@functools.cache
def _tuned_names(
    model: str, scheme: str, dtype: str | None, targets: tuple[str, ...], freeze: tuple[str, ...]
) -> tuple[str, ...]:
    """Names of the parameters that a scheme tunes; loads the model once."""
    base = lm.load(model, dtype=dtype, device="cpu")
    tokens = (0, 1) if scheme == "head" else ()
    tuned = schemes.apply(base, scheme, targets=targets or None, freeze=freeze, label_token_ids=tokens)
    return tuple(name for name, _ in schemes.trainable(tuned))


def step_cost(config: TuneConfig) -> int:
    """Return the forward passes of a step, a backward counted as two. They may depend on the number of blocks."""
    names = _tuned_names(config.model, config.scheme, config.dtype, config.targets, config.freeze)
    small = [(name, nn.Parameter(torch.zeros(16, 16))) for name in names]
    plain = dataclasses.replace(config.resolved(), layer_scale="none")
    return optimizer(plain, small, {} if _needs_norms(config) else None).cost(0)


def _groups(config: TuneConfig, named: list[tuple[str, nn.Parameter]]) -> list[Any]:
    """Return parameter groups; biases and norms (one-dimensional parameters) do not decay, as in MeZO."""
    if not config.weight_decay:
        return named
    matrices = [(name, p) for name, p in named if p.ndim > 1]
    vectors = [(name, p) for name, p in named if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def tuned_sha256(model: Model) -> str:
    """Return the hash of the tuned parameters."""
    return weights_sha256((leaf.name, leaf.param) for leaf in model.optimizer.leaves)


def finite(model: Model) -> bool:
    """Return whether all tuned parameters are finite. Cost: one pass over them."""
    return all(bool(leaf.param.isfinite().all()) for leaf in model.optimizer.leaves)


def batch_indices(num: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the training rows of one step: consecutive pieces of one fresh permutation an epoch."""
    drawn = range(step * batch_size, (step + 1) * batch_size)  # counted over all steps
    orders = {epoch: rng.permutation(num, seed, f"epoch/{epoch}") for epoch in {draw // num for draw in drawn}}
    return [int(orders[draw // num][draw % num]) for draw in drawn]


def encode_rows(model: LanguageModel, task: Task, rows: Sequence[Row], max_length: int | None) -> list[Encoded]:
    """Return rows as tokens."""
    return encode.encode_all(model, task, evaluate.render(model, task, rows), max_length)
