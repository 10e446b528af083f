"""The parts of one run, assembled from its configuration alone.

Everything here is a function of the configuration, so the same code serves a new run, a resumed one, a replay, and
any later tool that has only a ledger.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradless import __version__, directions, ledger, lm, rng, tasks
from gradless.lm import encode, evaluate, objectives, schemes
from gradless.directions import masks
from gradless.runs.config import TuneConfig, difference, read_config
from gradless.lm.encode import Encoded
from gradless.errors import BadInput
from gradless.estimators import linear_queries
from gradless.system.hashing import weights_sha256
from gradless.forward.evaluator import STREAM
from gradless.lm import LanguageModel
from gradless.methods import METHODS
from gradless.optimizer import ZerothOrder
from gradless.rules import SCHEDULES
from gradless.methods.layer_scales import parameter_norm_scales
from gradless.tasks import Row, Splits, Task

Say = Callable[[str], None]
INITIAL = "initial.safetensors"
NORMS = "norms.safetensors"
BEST = "best.safetensors"  # the tuned weights of the best step, of methods that no ledger rebuilds
CALIBRATION = 32  # training rows that input norms are taken from


class Model(NamedTuple):
    """A model with its scheme and optimizer, at the weights of step ``optimizer.t``."""

    lm: LanguageModel
    optimizer: ZerothOrder
    base_sha256: str
    norms: dict[str, Tensor] | None = None  # of the inputs of linear layers, if masks are made from them


def load_task(config: TuneConfig) -> tuple[Task, Splits]:
    """The task and its rows."""
    if config.own:
        paths: dict[str, Any] = {
            key: Path(value) for key, value in config.own.items() if key in ("train", "dev", "test")
        }
        rest: dict[str, Any] = {key: value for key, value in config.own.items() if key not in paths}
        # Own files are used whole unless a size was asked for; dev rows are held out only without a dev file.
        return tasks.custom(**paths, **rest, seed=config.seed, k_shot=config.k_shot, **own_sizes(config))
    assert config.task is not None
    task = tasks.get(config.task) if config.aligned else tasks.unaligned(tasks.get(config.task))
    data = Path(config.data) if config.data else None
    sizes = {"num_train": config.num_train, "num_dev": config.num_dev, "num_test": config.num_test}
    return task, tasks.load(task, data=data, seed=config.seed, k_shot=config.k_shot, **sizes)


def own_sizes(config: TuneConfig) -> dict[str, Any]:
    """Sizes for own files: None where the configuration leaves the number open (0)."""
    return {name: getattr(config, name) or None for name in ("num_train", "num_dev", "num_test")}


def build(
    config: TuneConfig,
    folder: Path,
    *,
    label_token_ids: tuple[int, ...] = (),
    twin: Model | None = None,
    say: Say = print,
) -> Model:
    """Load the base model, apply the scheme, and make the optimizer; no data is needed.

    ``folder`` is the run's: initial values that it keeps (`keep_initial`) replace the computed ones. ``twin``, a model
    made from the same base, lends its tokenizer and the base's hash.
    """
    tokenizer, known = (twin.lm.tokenizer, twin.base_sha256) if twin else (None, None)
    base = lm.load(config.model, dtype=config.dtype, device=config.device, tokenizer=tokenizer, say=say)
    return _tuned(config, base, folder, label_token_ids, known=known)


def build_for(
    config: TuneConfig, folder: Path, task: Task, rows: Sequence[Row], *, say: Say = print
) -> tuple[Model, tuple[int, ...]]:
    """`build` for a task and its training rows, with what a run takes from them before its first step.

    That is the label tokens that the scheme ``head`` needs, and the input norms of Wanda's masks.
    """
    base = lm.load(config.model, dtype=config.dtype, device=config.device, say=say)
    tokens = label_tokens(base, task, rows[0]) if config.scheme == "head" else ()

    def measure(model: LanguageModel) -> dict[str, Tensor] | None:
        return measured_norms(config, model, task, rows)

    return _tuned(config, base, folder, tokens, measure), tokens


def measured_norms(
    config: TuneConfig, model: LanguageModel, task: Task, rows: Sequence[Row]
) -> dict[str, Tensor] | None:
    """Input norms of linear layers over a few training rows, if the masks of this configuration are made from them."""
    if not _needs_norms(config):
        return None
    encoded = encode_rows(model, task, list(rows[:CALIBRATION]), config.max_length)
    objective = objectives.choose(task, config.objective)
    batches = objectives.prepare(model, objective, encoded, config.micro_batch_size or config.batch_size)
    with torch.no_grad():
        return masks.input_norms(model.model.named_modules(), lambda: objectives.loss_over(model, objective, batches))


def _tuned(
    config: TuneConfig,
    base: LanguageModel,
    folder: Path,
    label_token_ids: tuple[int, ...],
    measure: Callable[[LanguageModel], dict[str, Tensor] | None] | None = None,
    known: str | None = None,
) -> Model:
    base_sha256 = known or weights_sha256(base.model.named_parameters())
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
        _load_initial(folder / INITIAL, dict(named))
    norms = input_norms(config, folder)
    if norms is None and _needs_norms(config):
        if measure is None:
            raise BadInput(f"{folder / NORMS} is missing, and this run's masks depend on it: put it beside the ledger")
        norms = measure(tuned)
    opt = optimizer(config, named, norms)
    if METHODS[config.method].blocks and opt.engine == STREAM and config.objective != "f1":  # f1 generates text
        opt.reuse_prefixes(tuned.model)
    return Model(tuned, opt, base_sha256, norms)


def _needs_norms(config: TuneConfig) -> bool:
    return config.options.get("mask") == "wanda"


def input_norms(config: TuneConfig, folder: Path) -> dict[str, Tensor] | None:
    """The input norms that a run keeps, if its masks are made from them."""
    path = folder / NORMS
    return load_file(path) if _needs_norms(config) and path.exists() else None


def keep_initial(config: TuneConfig, folder: Path, model: Model) -> None:
    """Keep initial values that another machine might compute differently.

    A prefix starts from the activations of a forward pass, whose last bits depend on processor and thread count; all
    other schemes start from the base weights and the counter streams. The same holds for norms. Cost: kilobytes.
    """
    if config.scheme == "prefix":
        keep_tensors(folder / INITIAL, tuned_tensors(model))
    if model.norms is not None:
        keep_tensors(folder / NORMS, model.norms)


def tuned_tensors(model: Model) -> dict[str, Tensor]:
    """The tuned parameters by name."""
    return {leaf.name: leaf.param.detach().contiguous() for leaf in model.optimizer.leaves}


def keep_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file of tensors whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@torch.no_grad()
def _load_initial(path: Path, named: Mapping[str, Tensor]) -> None:
    values = load_file(path)
    if values.keys() != named.keys():
        raise BadInput(f"{path} belongs to another run: restore it from a copy")
    for name, value in values.items():
        named[name].copy_(value)


def label_tokens(model: LanguageModel, task: Task, row: Row) -> tuple[int, ...]:
    """The single token of each label word, in label order; any row of the task serves.

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
    config: TuneConfig, named: list[tuple[str, nn.Parameter]], norms: dict[str, Tensor] | None = None
) -> ZerothOrder:
    """The configured method over the tuned parameters; ``norms`` of linear layers' inputs where its masks need them."""
    assert config.eps is not None
    make: Any = METHODS[config.method].make
    extra: dict[str, Any] = dict(config.options)
    if norms is not None:
        extra["norms"] = norms
    if config.queries is not None:
        linear = config.query_schedule == "linear"
        extra["queries"] = linear_queries(config.queries, config.steps) if linear else config.queries
    if config.layer_scale != "none":
        scales = parameter_norm_scales(dict(named))
        extra["transform"] = lambda base: directions.scaled(base, scales, mode=config.layer_scale)
    if config.lr == "auto":
        extra["normalise"] = True
    several = config.queries or int(METHODS[config.method].options().get("queries", 1))
    # The mean over K directions is smaller than each of them by the root of K. Steps along random directions are a
    # walk, which gets as far as the root of their number.
    auto = (METHODS[config.method].auto or 0.0) * config.eps * math.sqrt(several / config.steps)
    lr = auto if isinstance(config.lr, str) else config.lr
    assert lr is not None
    opt: ZerothOrder = make(
        _groups(config, named),
        lr=SCHEDULES[config.schedule](lr, config.steps, config.warmup),
        eps=config.eps,
        seed=config.seed,
        engine=config.engine or STREAM,
        defer=True,
        **extra,
    )
    return opt


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
    """Forward passes of a step, a backward counted as two. It may depend on how many blocks the model has."""
    names = _tuned_names(config.model, config.scheme, config.dtype, config.targets, config.freeze)
    small = [(name, nn.Parameter(torch.zeros(16, 16))) for name in names]
    plain = dataclasses.replace(config.resolved(), layer_scale="none")
    return optimizer(plain, small, {} if _needs_norms(config) else None).cost(0)


def _groups(config: TuneConfig, named: list[tuple[str, nn.Parameter]]) -> list[Any]:
    """Weight decay leaves biases and norms (one-dimensional parameters) alone, as in MeZO."""
    if not config.weight_decay:
        return named
    matrices = [(name, p) for name, p in named if p.ndim > 1]
    vectors = [(name, p) for name, p in named if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def header(config: TuneConfig, model: Model, splits: Splits, label_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """What the ledger says of the run it belongs to."""
    return {
        "gradless": __version__,
        "stream": rng.STREAM_VERSION,
        "config": config.to_json(),
        "base_sha256": model.base_sha256,
        "data_sha256": splits.fingerprint,
        "label_token_ids": list(label_token_ids),
        "dtype": str(model.lm.dtype).removeprefix("torch."),
        "initial_sha256": None if config.scheme == "full" else tuned_sha256(model),
        **({"norms_sha256": weights_sha256(model.norms.items())} if model.norms else {}),
        "groups": len(model.optimizer.param_groups),
        "tuned_parameters": sum(leaf.param.numel() for leaf in model.optimizer.leaves),
    }


def check_header(found: dict[str, Any], model: Model) -> None:
    """Refuse a ledger that was written for other weights or another stream.

    Raises:
        BadInput: with what differs.
    """
    if found["stream"] != rng.STREAM_VERSION:
        raise BadInput(
            f"the ledger was written with random stream {found['stream']}, this gradless has {rng.STREAM_VERSION}: "
            "install a release that has the former"
        )
    if found["base_sha256"] != model.base_sha256:
        raise BadInput(
            f"the ledger belongs to another base model (weights {found['base_sha256'][:12]}, here "
            f"{model.base_sha256[:12]}): load the model that it was trained from"
        )
    if found["initial_sha256"] not in (None, tuned_sha256(model)):
        raise BadInput(f"the initial adapter differs from the ledger's: put the run's {INITIAL} beside the ledger")
    if model.norms and found.get("norms_sha256", "") not in ("", weights_sha256(model.norms.items())):
        raise BadInput(f"the input norms differ from the ledger's: put the run's {NORMS} beside the ledger")


def check_config(found: dict[str, Any], config: TuneConfig) -> None:
    """Refuse a ledger that lies beside the configuration of another run.

    Raises:
        BadInput: with what differs.
    """
    changed = difference(TuneConfig.from_json(found["config"]), config)
    if changed:
        raise BadInput(f"the ledger belongs to another run than config.json ({changed}): restore either file")


def ledger_path(place: Path) -> Path:
    """The ledger in a run directory, or the file itself if ``place`` is a ledger without one."""
    return place if place.is_file() else place / "ledger"


def replays(place: Path) -> bool:
    """Whether a run's steps can be rebuilt from its ledger."""
    return METHODS[TuneConfig.from_json(ledger.read(ledger_path(place)).config).method].replays


def rebuild(
    place: Path,
    *,
    until: int | None = None,
    model: str | None = None,
    device: str | None = None,
    say: Say = print,
) -> tuple[Model, ledger.Contents]:
    """The weights of a run after ``until`` steps (default: all of them), from its ledger.

    Args:
        place: run directory, or a ledger without one. What a ledger cannot say (`keep_initial`) lies beside it.
        until: number of steps.
        model: where the base model is now, if not where the run found it.
        device: where to compute, if not where the run was; the bits are the same.
        say: receives lines about slow steps.

    Raises:
        BadInput: no ledger, a damaged one, another base model, or too few steps.
    """
    path = ledger_path(place)
    contents, folder = ledger.read(path), path.parent
    config = TuneConfig.from_json(contents.config)
    if path.name == "ledger" and (folder / "config.json").exists():
        check_config(contents.header, read_config(folder))
    steps = len(contents.moves) if until is None else until
    if not 0 <= steps <= len(contents.moves):
        raise BadInput(f"the ledger holds {len(contents.moves)} steps: --until {until} is out of reach")
    config = dataclasses.replace(
        config, model=model or config.model, device=device or config.device, dtype=contents.header["dtype"]
    )
    built = build(config, folder, label_token_ids=tuple(contents.header["label_token_ids"]), say=say)
    check_header(contents.header, built)
    if METHODS[config.method].replays:
        built.optimizer.replay(contents.moves[:steps])
    else:
        if not (folder / BEST).exists():
            raise BadInput(f"{config.method} leaves nothing to replay, and {folder / BEST} is missing: finish the run")
        _load_initial(folder / BEST, {leaf.name: leaf.param for leaf in built.optimizer.leaves})
        built.optimizer.t = steps
    return built, contents


def tuned_sha256(model: Model) -> str:
    """Hash of the tuned parameters."""
    return weights_sha256((leaf.name, leaf.param) for leaf in model.optimizer.leaves)


def batch_indices(num: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Training rows of one step: consecutive pieces of one fresh permutation an epoch."""
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: rng.permutation(num, seed, f"epoch/{epoch}") for epoch in {place // num for place in places}}
    return [int(orders[place // num][place % num]) for place in places]


def encode_rows(model: LanguageModel, task: Task, rows: list[Row], max_length: int | None) -> list[Encoded]:
    """Rows as tokens."""
    return encode.encode_all(model, task, evaluate.render(model, task, rows), max_length)
