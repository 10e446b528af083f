"""Settings of a run whose files are sent to another machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradless.errors import BadInput
from gradless.lm import checkpoint_files, model_names
from gradless.rewards.builtin import BUILTIN
from gradless.system.shipped import Shipment

PATHS = ("model", "data")
ROWS = ("train", "dev", "test")


def shipped(values: Mapping[str, Any], shipment: Shipment) -> dict[str, Any]:
    """Return the settings in a ``config.json`` with the paths that its files will have there.

    Args:
        values: of `TuneConfig` or `CollabConfig`.
        shipment: takes files of model, data, own rows, rewards, plugins and graph. Known names, hub ids and modules
            stay as they are, for the other machine to look for.

    Raises:
        BadInput: an adapter whose base model is another folder.
    """
    there = dict(values)
    _check_adapter(values.get("model"))
    for name in PATHS:
        if isinstance(there.get(name), str) and there[name] not in model_names.sources():
            there[name] = shipment.add(there[name])
    if Path(str(there.get("topology"))).is_absolute():  # a graph's file
        there["topology"] = shipment.add(there["topology"])
    if there.get("own"):
        own = there["own"]
        there["own"] = {key: shipment.add(one) if key in ROWS and one is not None else one for key, one in own.items()}
    if there.get("reward"):
        there["reward"] = [_of_file(one, shipment) for one in there["reward"]]
    if there.get("plugins"):
        there["plugins"] = {shipment.add(key): record for key, record in there["plugins"].items()}
    if str(there.get("device", "")).startswith("cuda:"):
        there["device"] = "cuda"  # of a task's graphics cards the first
    return there


def modules(values: Mapping[str, Any]) -> list[str]:
    """Return the modules that a run imports from elsewhere: plugins and rewards that are no files."""
    rewards = [one.rpartition(":")[0] for one in values.get("reward") or () if one.partition(":")[0] not in BUILTIN]
    named: Iterable[str] = [*(values.get("plugins") or ()), *rewards]
    return [one for one in named if one and not one.endswith(".py") and one.replace(".", "").isidentifier()]


def _of_file(reward: str, shipment: Shipment) -> str:
    name, colon, argument = reward.partition(":")
    if colon and Path(argument).is_file():  # of a built-in reward
        return f"{name}:{shipment.add(argument)}"
    path, colon, function = reward.rpartition(":")
    return f"{shipment.add(path)}:{function}" if colon and path.endswith(".py") else reward


def _check_adapter(model: Any) -> None:
    path = Path(str(model)).expanduser() / checkpoint_files.ADAPTER
    if model is None or not path.is_file():
        return
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        return  # the run says what is wrong
    if isinstance(base, str) and Path(base).expanduser().exists():
        raise BadInput(
            f"{model} adapts {base}, a folder that other machines do not have: save the merged model, or name a known "
            "model or a hub id in its adapter_config.json"
        )
