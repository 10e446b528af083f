"""The weights of a run from its ledger, and what a ledger says of the run it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradless import ledger, plugins
from gradless.errors import BadInput
from gradless.lm import assets
from gradless.lm.loading import IN_PLACE
from gradless.methods import METHODS
from gradless.runs import build, extend
from gradless.runs.build import OWN_PATHS, Model
from gradless.runs.config import TuneConfig, as_recorded, difference, read_config
from gradless.runs.reward_settings import SOURCES
from gradless.system.hashing import weights_sha256
from gradless.tasks import Splits, hub


def shared(config: TuneConfig) -> TuneConfig:
    """Return the configuration without folders of this machine, for what others will read: ledgers, models, cards.

    Own files, data and plugins keep their names; a model that is a folder or file becomes ``./NAME``, see
    `shared_model`.
    """
    names = ("model", "data", "own", "plugins", "reward")
    return dataclasses.replace(config, **shared_values({name: getattr(config, name) for name in names}))


def shared_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name as `shared` does, also those of another release."""
    own, plugged, model, data, rewards = (values.get(name) for name in ("own", "plugins", "model", "data", "reward"))
    known: dict[str, Any] = {}
    if isinstance(own, Mapping):
        known["own"] = {key: _name(str(value)) if key in OWN_PATHS else value for key, value in own.items()}
    if isinstance(plugged, Mapping):
        known["plugins"] = plugins.named(plugged)
    if isinstance(model, str):
        known["model"] = shared_model(model)
    if isinstance(data, str):
        known["data"] = _name(data)
    if isinstance(rewards, list | tuple):
        known["reward"] = type(rewards)(shared_reward(str(one)) for one in rewards)
    if isinstance(hashes := values.get(SOURCES), Mapping):
        known[SOURCES] = {shared_reward(str(name)): sha256 for name, sha256 in hashes.items()}
    return {**values, **known}


def shared_model(model: str) -> str:
    """Return ``./NAME`` for a model that is a folder or file, else its name or hub id.

    Example:
        >>> shared_model("/home/me/models/mine"), shared_model("./mine"), shared_model("facebook/opt-1.3b")
        ('./mine', './mine', 'facebook/opt-1.3b')
    """
    if model in assets.ASSETS:
        return model
    path = Path(model).expanduser()
    local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or path.exists()
    return f"./{_name(model)}" if local or path.suffix == ".gguf" else model


def shared_reward(name: str) -> str:
    """Return a reward function without the folder of its file.

    Example:
        >>> shared_reward("/home/me/score.py:length"), shared_reward("exact_match"), shared_reward("package:name")
        ('score.py:length', 'exact_match', 'package:name')
    """
    path, colon, function = name.rpartition(":")
    if path == "json_schema":
        return f"{path}{colon}{Path(function).name}"
    return f"{Path(path).name}{colon}{function}" if path.endswith(".py") else name


def _name(path: str) -> str:
    return path if hub.is_name(path) else Path(path).expanduser().absolute().name


def header(config: TuneConfig, model: Model, splits: Splits, label_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Return what the ledger says of the run it belongs to."""
    return ledger.header(
        config=shared(config).to_json(),
        base_sha256=model.base_sha256,
        data_sha256=splits.fingerprint,
        label_token_ids=list(label_token_ids),
        dtype=model.lm.dtype_name,
        initial_sha256=None if config.scheme == "full" and not model.lm.origin else build.tuned_sha256(model),
        **({"norms_sha256": weights_sha256(model.norms.items())} if model.norms else {}),
        groups=len(model.optimizer.param_groups),
        tuned_parameters=sum(leaf.param.numel() for leaf in model.optimizer.leaves),
    )


def check_header(recorded: dict[str, Any], model: Model) -> None:
    """Refuse a ledger that was written for other weights or another stream.

    Raises:
        BadInput: with what differs.
    """
    ledger.check_release(recorded)
    if "initial_sha256" not in recorded:
        raise BadInput("the header of the ledger lacks initial_sha256: restore the file from a copy")
    if recorded["groups"] != len(model.optimizer.param_groups):
        groups = f"{recorded['groups']} parameter groups, its run {len(model.optimizer.param_groups)}"
        raise BadInput(f"the ledger has {groups}: restore the file from a copy")
    if recorded["base_sha256"] != model.base_sha256:
        raise BadInput(
            f"the ledger belongs to another base model (weights {recorded['base_sha256'][:12]}, here "
            f"{model.base_sha256[:12]}): load the model that it was trained from"
        )
    if recorded["initial_sha256"] not in (None, build.tuned_sha256(model)):
        if model.lm.origin and not model.lm.adapters:
            raise BadInput(
                "the adapter was merged into other bits than here, because matrix products differ between processors "
                "and numbers of threads: replay it where it was run"
            )
        raise BadInput(
            f"the initial adapter differs from the ledger's: put the run's {build.INITIAL} beside the ledger"
        )
    if model.norms and recorded.get("norms_sha256", "") not in ("", weights_sha256(model.norms.items())):
        raise BadInput(f"the input norms differ from the ledger's: put the run's {build.NORMS} beside the ledger")


def check_config(recorded: dict[str, Any], config: TuneConfig, done: int) -> None:
    """Refuse a ledger that lies beside the configuration of another run.

    The number of steps may differ where none of the ``done`` ones depends on it: a crash may have come before the
    ledger of an extended run had it.

    Raises:
        BadInput: with what differs.
    """
    held = TuneConfig.from_json(recorded["config"])
    if not extend.dependence(held, config, done):
        held = dataclasses.replace(held, steps=config.steps)
    changed = difference(_named(held), _named(config))
    if changed:
        raise BadInput(f"the ledger belongs to another run than config.json ({changed}): restore either file")


def _named(config: TuneConfig) -> TuneConfig:
    """Return the configuration with names in place of all paths, for comparison with a ledger of any release."""
    return dataclasses.replace(shared(config), model=_name(config.model))


def ledger_path(source: Path) -> Path:
    """Return the ledger in a run directory, or the file itself if ``source`` is a ledger without one."""
    return source if source.is_file() else source / "ledger"


def recorded_scheme(source: Path) -> str:
    """Return the scheme of a run.

    Raises:
        BadInput: no ledger, or a damaged one.
    """
    return str(ledger.read(ledger_path(source)).config.get("scheme", "full"))


def replays(source: Path) -> bool:
    """Return whether a run's steps can be rebuilt from its ledger.

    Raises:
        BadInput: no ledger, a damaged one, or a plugin of the run is not loaded, or has changed.
    """
    path = ledger_path(source)
    contents = ledger.read(path)
    if path.name == "ledger" and (path.parent / "config.json").exists():
        read_config(path.parent)  # which tells where a missing plugin lay
    config = TuneConfig.from_json(contents.config)
    plugins.check(config.parts(), config.plugins)
    return METHODS[config.method].replays


def rebuild(
    source: Path,
    *,
    until: int | None = None,
    model: str | None = None,
    device: str | None = None,
    anew: bool = False,
    say: build.Say = print,
) -> tuple[Model, ledger.Contents]:
    """Return the weights of a run after ``until`` steps (default: all of them), from its ledger, and the ledger.

    Args:
        source: run directory, or a ledger without one. What a ledger cannot say (`keep_initial`) lies beside it.
        until: number of steps.
        model: where the base model is now, if not where the run found it.
        device: where to compute, if not where the run was; the bits are the same.
        anew: hash the base model's files again, whatever is remembered of them.
        say: receives lines about slow steps.

    Raises:
        BadInput: no ledger, a damaged one, another base model, or too few steps.
    """
    path = ledger_path(source)
    contents, folder = ledger.read(path), path.parent
    config = as_recorded(TuneConfig.from_json(contents.config))
    plugins.check(config.parts(), config.plugins)
    if path.name == "ledger" and (folder / "config.json").exists():
        own = read_config(folder)
        check_config(contents.header, own, len(contents.moves))
        config = dataclasses.replace(config, model=own.model)  # where it is on this machine
    if model is None and config.model.startswith("./") and not Path(config.model).exists():
        raise BadInput(
            f"the ledger tells the name of its base model, {config.model}, and not where it is: give --model"
        )
    steps = len(contents.moves) if until is None else until
    if not 0 <= steps <= len(contents.moves):
        raise BadInput(f"the ledger holds {len(contents.moves)} steps: --until {until} is out of reach")
    dtype = contents.header["dtype"]
    config = dataclasses.replace(
        config,
        model=model or config.model,
        device=device or config.device,
        dtype=None if dtype == IN_PLACE else dtype,
    )
    tokens = tuple(contents.header["label_token_ids"])
    built = build.build(config, folder, label_token_ids=tokens, anew=anew, say=say)
    check_header(contents.header, built)
    if METHODS[config.method].replays:
        built.optimizer.replay(contents.moves[:steps])
    else:
        if not (folder / build.BEST).exists():
            raise BadInput(
                f"{config.method} leaves nothing to replay, and {folder / build.BEST} is missing: finish the run"
            )
        build.load_tuned(folder / build.BEST, {leaf.name: leaf.param for leaf in built.optimizer.leaves})
        built.optimizer.t = steps
    return built, contents
