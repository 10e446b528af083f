"""The configuration of a command from its options, the files that they name, and the model that they open."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from gradless.cli.options import note_unused
from gradless.errors import BadInput
from gradless.runs.config import TuneConfig
from gradless.system import terminal

OWN_FILES: Final = "train dev test template label_column labels delimiter encoding"
SIZES: Final = "num_train num_dev num_test"
REWARDS: Final = "reward reward_weight reward_timeout pass_reward max_new_tokens stop temperature samples"


def config_of(settings: dict[str, Any], *, tuned: bool = False) -> TuneConfig:
    """Return the configuration of a command, with absolute paths; ``tuned`` takes what is open from a saved model."""
    from gradless.runs.config_io import parse_options

    del settings["config"], settings["cell"]
    options = parse_options(settings.pop("options", ()))
    meta = click.get_current_context().meta
    options, recorded = meta.get("gradless.options", options), meta.get("gradless.recorded", {})  # of a file as well
    own = _own_files(settings, tuned=tuned)
    _check_sizes(settings, own)
    for name in SIZES.split():
        if settings[name] is None:
            settings.pop(name)
            settings |= {name: 0} if own else {}
    if settings["data"] is not None:
        settings["data"] = str(settings["data"].resolve())
    settings["reward"] = _rewards(settings["reward"])
    if os.path.exists(settings["model"]):
        settings["model"] = str(Path(settings["model"]).resolve())
    config = TuneConfig(own=own, options=options, plugins=recorded, **settings)
    note_unused(config.parts())
    return config


def _check_sizes(settings: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse numbers of rows on the command line, and in a file that a user wrote, that nothing would read.

    Raises:
        BadInput: ``--k-shot`` says how many rows there are, or none are asked for of a file that is given.
    """
    from gradless.runs.own_files import check_size

    context = click.get_current_context()
    for name in SIZES.split():
        split, source = name.removeprefix("num_"), context.get_parameter_source(name)
        if source is ParameterSource.DEFAULT_MAP and name in context.meta.get("gradless.by_hand", ()):
            check_size(name, settings[name], own, written=f"{{}} = 0 in {context.params['config']}")
        if settings[name] is None or source is not ParameterSource.COMMANDLINE:
            continue
        if settings["k_shot"] is not None and split != "test":
            raise BadInput(f"--k-shot tells the number of training and dev rows: leave out one of it and --num-{split}")
        check_size(name, settings[name], own, written=f"--num-{split} 0", option="--{}")


def _rewards(names: Sequence[str]) -> tuple[str, ...]:
    """Return reward functions with the whole paths of their files.

    Raises:
        BadInput: a run names code of somebody's own, and the command line does not: opening a run runs nobody's code.
    """
    from gradless.rewards import BUILTIN

    ctx = click.get_current_context()
    recorded = ctx.params.get("resume") or str(ctx.params.get("config") or "").endswith(".json")
    if recorded and ctx.get_parameter_source("reward") is ParameterSource.DEFAULT_MAP:
        own = [name for name in names if name.partition(":")[0] not in BUILTIN]
        if own:
            again = " ".join(f"--reward {name}" for name in names)
            raise BadInput(f"the run is trained on code of its own, which runs only if it is named: add {again}")
    return whole_rewards(names)


def whole_rewards(names: Sequence[str]) -> tuple[str, ...]:
    """Return reward functions with the whole paths of their files, so that a run can go on from anywhere."""
    files = [(name, *name.rpartition(":")) for name in names]
    return tuple(f"{Path(path).resolve()}:{name}" if path.endswith(".py") else whole for whole, path, _, name in files)


def _own_files(settings: dict[str, Any], *, tuned: bool) -> dict[str, Any]:
    """Take the options of own files out of ``settings``; the task file fills those that are not given.

    Raises:
        BadInput: one of those that every task needs is missing.
    """
    from gradless.tasks.sources import absolute

    own = {name: settings.pop(name) for name in OWN_FILES.split()}
    task_file = settings.pop("task_file")
    if task_file is not None:
        from gradless.tasks import read_task_file

        own = {**read_task_file(task_file), **{name: value for name, value in own.items() if value is not None}}
    own = {name: value for name, value in own.items() if value is not None}
    own |= {name: absolute(own[name]) for name in ("train", "dev", "test") if name in own}
    ctx = click.get_current_context()
    if own and (name := ctx.meta.get("gradless.task_name")) is not None:
        own.setdefault("name", name)
    if tuned:
        from gradless.runs import tuned_words

        chosen = [name for name in settings if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
        own = tuned_words.completed(own, settings["model"], terminal.say)
        settings |= tuned_words.limits(settings["model"], bool(own), chosen, settings, terminal.say)
    labelled = own and ({"label_column", "labels"} & own.keys() or not settings.get("reward"))
    for name in ("template", *(("label_column", "labels") if labelled else ())) if own else ():
        if name not in own:
            also = ", or a --reward" if name == "label_column" and "labels" not in own else ""
            raise BadInput(f"own files need --{name.replace('_', '-')} as well{also}")
    return own
