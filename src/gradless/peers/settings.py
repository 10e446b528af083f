"""Which settings of a run all peers share, in the two modes, and which each peer chooses for itself.

What shapes a step stands in the manifest: a peer with other values would move to other weights. Where rows lie and on
which device a loss is computed is a peer's own affair.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

from gradless.collab.algorithms import COEFFICIENTS, PARAMETERS
from gradless.collab.config import CollabConfig
from gradless.errors import BadInput
from gradless.rewards.builtin import BUILTIN
from gradless.runs import reward_settings
from gradless.runs.reward_settings import RewardSettings
from gradless.system import typed

if TYPE_CHECKING:
    from gradless.runs.config import TuneConfig

MODES: Final = {
    COEFFICIENTS: "agree on every step's coefficients; all honest peers keep equal weights",
    PARAMETERS: "mix the models of the first n - f peers (MoNNA); honest weights stay near each other",
}
LARGEST_VALUE: Final = 48_000
"""Bytes of a step's value; messages of agreed peers end at 64 kB."""
SHARED: Final = [
    "payload",
    "rule",
    "rule_options",
    "task",
    "own",
    "model",
    "scheme",
    "freeze",
    "chat",
    "reward",
    "reward_weight",
    "pass_reward",
    "max_new_tokens",
    "stop",
    "temperature",
    "method",
    "method_options",
    "queries",
    "eps",
    "steps",
    "batch_size",
    "lr",
    "seed",
    "num_train",
    "num_test",
    "eval_every",
    "eval_rows",
    "algorithm",
    "radius",
    "dataset",
    "image_size",
    "split",
    "split_parameter",
    "net",
    "decay",
    "refresh",
    "momentum",
    "weight_decay",
    "rounds",
    "memory",
]
"""Fields of `CollabConfig` that a manifest holds."""
FILES: Final = ("train", "dev", "test")
SCHEMES: Final = ("full", "lora", "prompt")
"""Schemes whose first weights are equal bits on every machine."""


def shared(values: Mapping[str, Any], *, peers: int, f: int) -> CollabConfig:
    """Return the settings of a group, checked and filled in.

    Args:
        values: fields of `CollabConfig` as a manifest holds them; what is absent is None where None is allowed.
        peers: n.
        f: peers that may lie.

    Raises:
        BadInput: a field that the manifest does not hold, more liars than the mode or the rule stands, or what peers
            cannot compute to equal bits.
    """
    for name in values:
        if name in typed.settings(CollabConfig) and name not in SHARED:
            raise BadInput(f"the setting {name} is each peer's own: a manifest cannot hold it")
    fields = typed.table(values, CollabConfig)
    for name in FILES:
        if name in fields.get("own", {}):
            raise BadInput(f"own.{name} is each peer's own: a manifest cannot hold it")
    config = CollabConfig(**{**_absent(), **fields, "peers": peers, "byzantine": f})
    for name in config.reward:
        _check_reward(name)
    return _agreed(config) if config.payload == COEFFICIENTS else _mixed(config)


def _check_reward(name: str) -> None:
    """Refuse a reward function that is somebody's code or file: a manifest makes nobody run or read what it names."""
    head = name.partition(":")[0]
    if head not in BUILTIN or BUILTIN[head].argument == "FILE":
        raise BadInput(
            f"a manifest cannot hold the reward {name}, since it makes nobody run or read a file or module: name a "
            "built-in one, or leave --reward out and let each peer give its own to 'gradless peers run'"
        )


def _absent() -> dict[str, None]:
    """Return None for all fields that may be None: their defaults are for simulations."""
    known = typed.settings(CollabConfig)
    return {name: None for name in SHARED if name in known and _optional(known[name].hint)}


def _optional(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _optional(typing.get_args(hint)[0])
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and types.NoneType in typing.get_args(hint)


def table(config: CollabConfig) -> dict[str, Any]:
    """Return the settings of a configuration that a manifest holds; what is None or empty is left out."""
    values = {name: value for name, value in config.to_json().items() if name in SHARED}
    values["own"] = {name: value for name, value in values["own"].items() if name not in FILES}
    return {name: value for name, value in values.items() if value is not None and value not in ({}, [], ())}


def _agreed(config: CollabConfig) -> CollabConfig:
    """Return a configuration with which peers agree on coefficients and compute equal bits."""
    n, f, k = config.peers, config.byzantine, config.queries
    if n < 3 * f + 1:
        raise BadInput(
            f"f is {f} of {n} peers: agreement stands at most {(n - 1) // 3} liars, so lower --f or add "
            f"{3 * f + 1 - n} peers"
        )
    if config.model is None:
        raise BadInput("agreed peers tune a language model: give --model, or --payload parameters for images")
    if config.scheme not in SCHEMES:
        raise BadInput(
            f"the scheme {config.scheme} begins with numbers that differ between machines: take {', '.join(SCHEMES)}"
        )
    if config.sync is not None:
        raise BadInput("agreed peers have equal weights, which need no --sync: leave it out")
    from gradless.peers import mixing
    from gradless.peers.schema import largest_value

    rule = config.rule or mixing.usual(k)
    mixing.AgreedRule(rule, peers=n, byzantine=f)
    if largest_value(n, f, k) > LARGEST_VALUE:
        raise BadInput(f"queries is {k}: the rows of {n} peers are more than {LARGEST_VALUE} bytes, so lower it")
    if config.rule_options:
        raise BadInput("rules that peers agree on have no options to set: leave --rule-set out")
    usual = _of_a_peer(config)
    assert isinstance(usual.lr, float)
    return dataclasses.replace(
        config, rule=rule, algorithm="bridge", momentum=0.0, lr=usual.lr, eps=usual.eps
    ).resolved()


def _of_a_peer(config: CollabConfig) -> TuneConfig:
    """Return the settings of a peer's own steps, as far as the manifest tells; refuses what no peer could run."""
    from gradless import tasks
    from gradless.runs.config import TuneConfig

    data: dict[str, Any] = {"own": {"template": "{t}", "label_column": "l", "labels": "0=a,1=b"}}
    if reward_settings.named(config):
        if config.task is not None and tasks.get(config.task).kind != "generation":
            raise BadInput(f"a reward scores generated text, and the task {config.task} has labels: leave --reward out")
        data = {"task": config.task} if config.task else {"own": {"template": "{t}", **config.own}}
        data |= {one.name: getattr(config, one.name) for one in dataclasses.fields(RewardSettings)}
    return TuneConfig(
        model=str(config.model),
        method=config.method,
        options=config.method_options,
        scheme=config.scheme,
        lr=config.lr,
        eps=config.eps,
        queries=config.queries,
        steps=config.steps,
        **data,
    ).resolved()


def _mixed(config: CollabConfig) -> CollabConfig:
    """Return a configuration with which peers mix the first n - f models."""
    n, f = config.peers, config.byzantine
    if n < 2 * f + 1:
        raise BadInput(f"f is {f} of {n} peers: fewer than half may lie, so lower --f")
    from gradless.collab.simulation.build import mixing_rule

    config = config.resolved()
    mixing_rule(config).check(n - f)
    return config
