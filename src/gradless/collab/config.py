"""What determines a collaborative run: one frozen record, saved as ``config.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from gradless.collab.algorithms import ALGORITHMS, COEFFICIENTS, PARAMETERS
from gradless.collab.data.splits import SPLITS
from gradless.collab.network.simulated import Delivery
from gradless.errors import BadInput, pick, unknown
from gradless.methods import METHODS

PAYLOADS = (PARAMETERS, COEFFICIENTS)
USUAL = {"alpha": 5.0, "gamma": 0.5}  # parameters of splits
WHOLE = (
    *("peers", "steps", "batch_size", "rounds", "eval_every", "eval_rows", "refresh", "queries", "sync"),
    *("num_train", "num_test"),
)
POSITIVE = ("lr", "eps", "decay", "radius")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollabConfig:
    """One run of a group. Equal configurations give equal results on one machine."""

    # the group
    peers: int = 12
    """n, attackers included."""
    byzantine: int = 1
    """f, what the rules are told."""
    attackers: int | None = None
    """b, how many there are; None: f, or none without an attack."""
    algorithm: str = "monna"
    rule: str | None = None
    """Mixing rule in place of the algorithm's, e.g. nnm+trimmed-mean."""
    rule_options: dict[str, Any] = field(default_factory=dict)
    attack: str = "none"
    attack_options: dict[str, Any] = field(default_factory=dict)
    delivery: Delivery = field(default_factory=Delivery)
    radius: float = 1.0
    """Of clipping rules with a fixed radius."""
    # the data
    dataset: str | None = "digits"
    """Images (gradless.collab.data.datasets), or None: a language model's task."""
    data: str | None = None
    split: str = "dirichlet-classes"
    split_parameter: float | None = None
    """Concentration of a Dirichlet split, or gamma; None: 5 and 0.5."""
    # the model
    net: str | None = None
    """None: what the data set's table names."""
    model: str | None = None
    """A language model, for ``task``."""
    task: str | None = None
    own: dict[str, Any] = field(default_factory=dict)
    """Own files instead of a task, as in `gradless.runs.config.TuneConfig`."""
    scheme: str = "lora"
    num_train: int | None = 1000
    num_test: int | None = 500
    freeze: tuple[str, ...] = ()
    # the local steps
    payload: str = PARAMETERS
    method: str = "mezo"
    """Of the estimate, if coefficients are exchanged."""
    queries: int = 4
    eps: float | None = None
    sync: int | None = None
    """Steps between exchanges of parameters beside coefficients."""
    steps: int = 200
    batch_size: int = 16
    lr: float | None = None
    decay: float | None = None
    """lr at step t is lr / (t / decay + 1)."""
    refresh: int = 1
    """...with t rounded down to a multiple of this."""
    momentum: float = 0.99
    weight_decay: float = 0.0
    rounds: int = 1
    """Mixing rounds of a step, K."""
    eval_every: int = 50
    eval_rows: int | None = 1000
    """Test rows of evaluations during training; the last one uses all."""
    device: str = "cpu"
    seed: int = 0

    def resolved(self) -> CollabConfig:
        """Check the fields that stand alone and fill in what follows from others.

        Raises:
            BadInput: an unknown name or an impossible number.
        """
        pick("algorithm", self.algorithm, ALGORITHMS)
        if self.payload not in PAYLOADS:
            raise BadInput(unknown("payload", self.payload, PAYLOADS))
        if (self.dataset is None) == (self.model is None):
            raise BadInput("name a --dataset of images or a language --model with its --task, not both")
        self._check_numbers()
        if not 0 <= self.byzantine < self.peers:
            raise BadInput(f"byzantine is {self.byzantine}: give a number from 0 to {self.peers - 1}, below peers")
        attackers = self.attackers
        if attackers is None:
            attackers = 0 if self.attack == "none" else self.byzantine
        if not 0 <= attackers < self.peers:
            raise BadInput(f"attackers is {attackers}: at least one of the {self.peers} peers must be honest")
        if attackers and self.attack == "none":
            raise BadInput(f"{attackers} attackers need an --attack (gradless list attacks)")
        if self.attack != "none" and not attackers:
            raise BadInput(f"the attack {self.attack} needs attackers: raise --byzantine or --attackers")
        if self.payload == COEFFICIENTS:
            self._check_coefficients()
        elif self.method != "mezo":
            raise BadInput(f"the method {self.method} finds coefficients: add --payload coefficients, or leave it out")
        if self.refresh > 1 and self.decay is None:
            raise BadInput(f"refresh is {self.refresh}, but nothing decays: give a decay too, or leave refresh out")
        if self.freeze and self.model is None:
            raise BadInput("parameters of a language --model can be frozen: leave freeze out")
        self.delivery.check(self.peers, self.byzantine, attackers)
        parameter = pick("split", self.split, SPLITS).parameter
        if parameter is None and self.split_parameter is not None:
            raise BadInput(f"the split {self.split} has no parameter: leave out --split-parameter")
        value = self.split_parameter if self.split_parameter is not None or parameter is None else USUAL[parameter]
        return dataclasses.replace(self, attackers=attackers, split_parameter=value)

    def _check_numbers(self) -> None:
        for name in WHOLE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} is {value}: it must be at least 1")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadInput(f"{name} is {value}: it must be positive and finite")
        if not 0.0 <= self.momentum < 1.0:
            raise BadInput(f"momentum is {self.momentum}: it must be at least 0 and below 1")
        if not 0.0 <= self.weight_decay < math.inf:
            raise BadInput(f"weight_decay is {self.weight_decay}: it must be at least 0 and finite")
        if self.seed < 0:
            raise BadInput(f"seed is {self.seed}: it must not be negative")

    def _check_coefficients(self) -> None:
        if self.rounds > 1 or ALGORITHMS[self.algorithm].gradients_first:
            raise BadInput("coefficients are exchanged once a step: leave rounds at 1 and choose another algorithm")
        if ALGORITHMS[self.algorithm].momentum != 0.0 and self.momentum:
            raise BadInput(
                "coefficients carry no momentum: set --momentum 0, and if the group shall have one, a method such as "
                "mezo-momentum, which applies it to what was mixed"
            )
        if self.decay is not None:
            raise BadInput("the learning rate of coefficients does not decay: leave decay out")
        if not pick("method", self.method, METHODS).replays:
            able = ", ".join(name for name, row in METHODS.items() if row.replays)
            raise BadInput(f"method {self.method} has no coefficients to send: forward-only methods do ({able})")

    def lr_at(self, base: float, step: int) -> float:
        """The learning rate of a step."""
        if self.decay is None:
            return base
        return base / (step // self.refresh * self.refresh / self.decay + 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "freeze": list(self.freeze)}

    def id(self) -> str:
        """Twelve hexadecimal digits of what determines the result. Only an own folder is known by its place."""
        known = {name: value for name, value in self.to_json().items() if name != "data" or self.dataset == "folder"}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def from_json(values: dict[str, Any]) -> CollabConfig:
    """The inverse of `CollabConfig.to_json`."""
    values = dict(values)
    values["delivery"] = Delivery(**values.get("delivery", {}))
    values["freeze"] = tuple(values.get("freeze", ()))
    return CollabConfig(**values)
