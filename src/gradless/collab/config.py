"""What determines a collaborative run: one frozen record, saved as ``config.json``.

As in `gradless.runs.config` the fields are the options of the command line too, and nothing here imports torch before a
configuration is resolved.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from gradless.collab.network.delivery import ALL, Delivery
from gradless.collab.network.topology import COMPLETE, DEGREE, OF_DEGREE, TOPOLOGIES, fingerprint, named
from gradless.collab.network.topology import title as topology_title
from gradless.errors import BadInput, pick
from gradless.runs import reward_settings
from gradless.runs.config import Device, Folder, MethodName, Model, Task, check_options, check_own
from gradless.runs.reward_settings import RewardSettings
from gradless.system import typed
from gradless.system.typed import Amount, Count, Few, Flag, Names, NotNegative, Positive, Seed

USUAL = {"alpha": 5.0, "gamma": 0.5}  # parameters of splits
GRAPH_FIELDS = ("topology", "degree", "graph")
ADDED = ("plugins", "memory", "chat", "method_options", "reward_sha256")
"""Settings that ``config.json`` holds only where they say something, as those of a graph and of rewards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollabConfig(RewardSettings):
    """One run of a group. Equal configurations give equal results on one machine."""

    # the group
    peers: Annotated[int, Meta(ge=1, le=10**4)] = 12
    """n, attackers included."""
    byzantine: Amount = 1
    """f, what the rule is told."""
    attackers: Amount | None = None
    """How many there are; by default f.

    None without an attack."""
    algorithm: Annotated[str, Names("algorithm", "collab.algorithms:ALGORITHMS", closed=False)] = "monna"
    """gradless list algorithms."""
    rule: Annotated[str, Names("rule", closed=False)] | None = None
    """Mixing rule in place of the algorithm's, e.g. nnm+trimmed-mean."""
    rule_options: Annotated[dict[str, Any], Flag("--rule-set")] = field(default_factory=dict)
    """Option of that rule, e.g. --rule-set radius=2."""
    memory: Annotated[int, Meta(ge=30, le=10**4)] | None = None
    """Steps to look back for peers that disagree with the others, whose rows are left out.

    They are at most f, of --payload coefficients; None: off. 100 was studied."""
    attack: Annotated[str, Names("attack", "collab.attacks:ATTACKS", closed=False)] = "none"
    """gradless list attacks."""
    attack_options: Annotated[dict[str, Any], Flag("--set")] = field(default_factory=dict)
    """Option of the attack, e.g. --set strength=1.5."""
    delivery: Delivery = field(default_factory=Delivery)
    """What the network does with messages."""
    topology: Annotated[str, Names("topology", "collab.network.topology:TOPOLOGIES", closed=False)] = "complete"
    """Who can hear whom: complete, ring, k-ring, torus, random, or a graph's file.

    A file holds an edge list (.txt, .edges, .edgelist), GraphML (.graphml) or JSON as networkx writes it (.json); its
    last peers, in natural order, are the attackers. Other graphs than the complete one are for algorithms that are
    defined on neighbourhoods, and f counts attackers among a peer's neighbours."""
    degree: Annotated[int, Meta(ge=1, le=10**4)] | None = None
    """Neighbours of a peer on a k-ring or a random graph; by default 4."""
    graph: str | None = None
    """SHA-256 of the edges of a topology's file.

    A record: filled in when the run begins."""
    radius: Positive = 1.0
    """Of clipping rules with a fixed radius."""
    # the data
    dataset: Annotated[str, Names("data set", "collab.data.datasets:DATASETS")] | None = "digits"
    """digits, which needs no files, mnist, cifar10, folder (of images) or npz; --data alone: one of the last two.

    None: a language model's task."""
    data: Folder | None = None
    """Where the files of --dataset or --task are.

    Own images: CLASS/NAME.png, or train/CLASS/NAME.png and test/CLASS/NAME.png; without a test part every fifth of a
    class. An .npz: x_train, y_train, x_test, y_test, or x, y."""
    image_size: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Height and width of a folder's images; by default the commonest, at most 64."""
    split: Annotated[str, Names("split", "collab.data.splits:SPLITS")] = "dirichlet-classes"
    """How rows are dealt to peers: gradless list splits."""
    split_parameter: NotNegative | None = None
    """Its alpha (by default 5) or gamma (0.5).

    Alpha is the concentration of a Dirichlet split."""
    # the model
    net: str | None = None
    """Network for images: cnn, cnn-mnist, mlp, logreg, mlp-digits or empire-cnn; own images: cnn, features: mlp."""
    model: Model | None = None
    """A language model instead of --dataset."""
    task: Task | None = None
    """Its task."""
    own: dict[str, Any] = field(default_factory=dict)
    """Own files instead of a task, as in `gradless.runs.config.TuneConfig`."""
    scheme: Annotated[str, Names("scheme", "runs.scheme_settings:DEFAULTS", closed=False)] = "lora"
    """What of the language model is tuned."""
    num_train: Count | None = 1000
    """Training rows; own files: all."""
    num_test: Count | None = 500
    """Test rows; own files: all."""
    freeze: tuple[str, ...] = ()
    """Pattern of parameter names to leave alone."""
    chat: Annotated[bool, Flag("--chat/--no-chat")] = False
    """Prompts as messages, by the model's own chat template."""
    reward_sha256: tuple[str, ...] = ()
    """SHA-256 of the files of --reward functions, in their order; empty for those without a file.

    A record: filled in when the run begins."""
    # the local steps
    payload: Literal["parameters", "coefficients"] = "parameters"
    """parameters, or coefficients: a few numbers a step."""
    method: MethodName = "mezo"
    """Of the estimate, if coefficients are exchanged: gradless list methods."""
    method_options: Annotated[dict[str, Any], Flag("--method-set")] = field(default_factory=dict)
    """Option of that method, e.g. --method-set rank=1."""
    queries: Few = 4
    """Coefficients of a step."""
    eps: Positive | None = None
    """Perturbation scale of the estimate."""
    sync: Count | None = None
    """Steps between exchanges of parameters beside coefficients."""
    steps: Count = 200
    """Steps of every peer."""
    batch_size: Few = 16
    """Rows a step of every peer."""
    lr: Positive | None = None
    """Learning rate; by default 0.5, for coefficients a first guess for the scheme."""
    decay: Positive | None = None
    """The rate at step t is lr / (t / decay + 1)..."""
    refresh: Count = 1
    """...with t rounded down to a multiple of this."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    """Of the local steps."""
    weight_decay: NotNegative = 0.0
    """Of the local steps."""
    rounds: Few = 1
    """Mixing rounds of a step."""
    eval_every: Count = 50
    """Steps between evaluations; the command line takes a fifth of --steps if they are fewer."""
    eval_rows: Count | None = 1000
    """Test rows of evaluations during training; the last one uses all."""
    device: Device = "cpu"
    """cpu, cuda, cuda:1 or mps."""
    seed: Seed = 0
    """Of the split, batches, initial weights and attacks."""
    plugins: Annotated[dict[str, str], Flag("--plugin")] = field(default_factory=dict)
    """Plugins that define what the run names: file or module, and SHA-256.

    A record: the plugins themselves are loaded with --plugin."""

    def resolved(self) -> CollabConfig:
        """Check the fields and fill in what follows from others.

        Raises:
            BadInput: an unknown name, an impossible number, or fields that contradict each other.
        """
        from gradless import plugins
        from gradless.collab.algorithms import ALGORITHMS
        from gradless.collab.data.splits import SPLITS

        parts = self.parts()
        plugins.require(parts, typed.value("plugins", self.plugins, dict[str, str]))
        typed.check(self)
        check_own(self.own)
        pick("algorithm", self.algorithm, ALGORITHMS)
        if (self.dataset is None) == (self.model is None):
            raise BadInput("name a --dataset of images or a language --model with its --task, not both")
        attackers = self._attackers()
        self._check_payload()
        if self.refresh > 1 and self.decay is None:
            raise BadInput(f"refresh is {self.refresh}, but nothing decays: give a decay too, or leave refresh out")
        if self.freeze and self.model is None:
            raise BadInput("parameters of a language --model can be frozen: leave freeze out")
        self.delivery.check(self.peers, self.byzantine, attackers)
        on_graph = self._graph_fields(attackers)
        parameter = SPLITS[self.split].parameter
        if parameter is None and self.split_parameter is not None:
            raise BadInput(f"the split {self.split} has no parameter: leave out --split-parameter")
        value = self.split_parameter if self.split_parameter is not None or parameter is None else USUAL[parameter]
        used = plugins.used_again(parts, self.plugins)
        other = {**on_graph, **self._reward_fields()}
        return dataclasses.replace(self, attackers=attackers, split_parameter=value, plugins=used, **other)

    def parts(self) -> dict[str, list[str]]:
        """Return the parts that the run names, by table (`gradless.plugins.TABLES`)."""
        stages = (self.rule or "").split("+")
        rewards = [str(one).partition(":")[0] for one in self.reward]
        names: dict[str, Iterable[Any]] = {
            **{"algorithms": [self.algorithm], "aggregators": stages, "pre_aggregators": stages},
            **{"attacks": [self.attack, self.attack_options.get("of")], "splits": [self.split], "nets": [self.net]},
            **{"datasets": [self.dataset], "tasks": [self.task], "methods": [self.method], "rewards": rewards},
        }
        return {table: [one for one in some if one and isinstance(one, str)] for table, some in names.items()}

    def title(self) -> str:
        """Return what lines of progress call it, e.g. ``monna under alie``; a rule of its own is in parentheses."""
        where = "" if self.topology == COMPLETE else f" on {topology_title(self.topology, self.degree)}"
        return f"{self.algorithm}{f' ({self.rule})' if self.rule else ''}{where} under {self.attack}"

    def _attackers(self) -> int:
        """Return b, by default f, or 0 without an attack."""
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
        return attackers

    def _graph_fields(self, attackers: int) -> dict[str, Any]:
        """Check what a graph can be combined with; return the fields that follow from it."""
        from gradless.collab.algorithms import ALGORITHMS

        if self.topology not in OF_DEGREE and self.degree is not None:
            raise BadInput(f"the topology {self.topology} has no degree to choose: leave out --degree")
        if self.topology == COMPLETE:
            return {"graph": None}
        if self.delivery.mode != "all" or self.delivery.drop or self.delivery.deadline is not None:
            raise BadInput(
                f"the topology {self.topology} is simulated with all messages in time: leave out --delivery, --drop "
                "and --deadline, or leave --topology at complete"
            )
        if self.payload != "parameters":
            raise BadInput(
                "coefficients are of use to peers whose weights are the same, which only a complete group's are: leave "
                "--topology at complete, or --payload at parameters"
            )
        if ALGORITHMS[self.algorithm].gradients_first:
            raise BadInput(
                f"{self.algorithm} exchanges gradients with all peers: leave --topology at complete, or choose another "
                "algorithm"
            )
        degree = (self.degree or DEGREE) if self.topology in OF_DEGREE else None
        graph = named(
            self.topology, peers=self.peers, attackers=attackers, degree=degree, seed=self.seed, sha256=self.graph
        )
        known = self.topology in TOPOLOGIES
        return {"degree": degree, "graph": None if known else fingerprint(graph.peers, graph.edges)}

    def _reward_fields(self) -> dict[str, Any]:
        """Return the reward functions of a group that is trained on some, and the hashes of their files.

        Raises:
            BadInput: they do not go with the other settings, or a file is not there or has changed.
        """
        names = reward_settings.named(self)
        if not names:
            return {}
        if self.model is None:
            raise BadInput("a reward is for what a language --model writes: leave --reward out, or give a model")
        if self.payload == "parameters":
            raise BadInput(
                "a reward has no gradient, by which peers that exchange parameters learn: add --payload coefficients "
                "--momentum 0 --method es"
            )
        from gradless.rewards.loading import source_of

        hashes = tuple(source_of(name).sha256 for name in names)
        for name, held, sha256 in zip(names, self.reward_sha256, hashes, strict=False):
            if held != sha256:
                raise BadInput(f"{name} has changed since the run began: put its file back, or choose another --out")
        return {"reward": names, "reward_sha256": hashes if any(hashes) else ()}

    def _check_payload(self) -> None:
        from gradless.collab.algorithms import ALGORITHMS
        from gradless.methods import METHODS

        if self.memory is not None:
            self._check_memory()
        if self.payload == "parameters":
            if self.method != "mezo":
                raise BadInput(
                    f"the method {self.method} finds coefficients: add --payload coefficients, or leave it out"
                )
            if self.method_options:
                raise BadInput("--method-set is for --payload coefficients: add it, or leave the option out")
            return
        algorithm = ALGORITHMS[self.algorithm]
        if self.rounds > 1 or algorithm.gradients_first:
            raise BadInput("coefficients are exchanged once a step: leave rounds at 1 and choose another algorithm")
        if algorithm.momentum != 0.0 and self.momentum:
            raise BadInput(
                "coefficients carry no momentum: set --momentum 0, and if the group shall have one, a method such as "
                "mezo-momentum, which applies it to what was mixed"
            )
        if self.decay is not None:
            raise BadInput("the learning rate of coefficients does not decay: leave decay out")
        if not METHODS[self.method].replays:
            able = ", ".join(name for name, row in METHODS.items() if row.replays)
            raise BadInput(f"method {self.method} has no coefficients to send: forward-only methods do ({able})")
        if "queries" not in METHODS[self.method].options():
            raise BadInput(
                f"the method {self.method} takes no number of directions, and the peers of a group send equally many "
                "coefficients (--queries): choose another --method"
            )
        check_options(self.method, self.method_options)

    def _check_memory(self) -> None:
        if self.payload == "parameters":
            raise BadInput("memory is of coefficients: add --payload coefficients, or leave it out")
        delivery = self.delivery
        partial = delivery.mode != ALL or delivery.drop or delivery.deadline is not None or self.topology != COMPLETE
        if partial or self.sync is not None:
            raise BadInput(
                "memory needs rows that all peers see: leave out --delivery, --drop, --deadline, --topology and --sync"
            )

    def lr_at(self, base: float, step: int) -> float:
        """Return the learning rate of a step."""
        if self.decay is None:
            return base
        return base / (step // self.refresh * self.refresh / self.decay + 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, which `from_json` reads back."""
        values = {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }
        unused = [name for name in ADDED if not values[name]]
        if self.topology == COMPLETE:
            unused += GRAPH_FIELDS
        for name in (*unused, *reward_settings.unset(self)):  # as before there were such settings
            del values[name]
        return values

    @property
    def shared_rewards(self) -> list[str]:
        """The reward functions, without the folders of their files."""
        from gradless.runs.replay import shared_reward

        return [shared_reward(name) for name in self.reward]

    def id(self) -> str:
        """Return what determines the result as 12 hexadecimal digits; of data only an own folder counts by its path."""
        from gradless import plugins

        own = self.dataset in ("folder", "npz")
        known = {name: value for name, value in self.to_json().items() if name != "data" or own}
        if self.graph is not None:  # wherever its file lies
            known["topology"] = "file"
        if self.reward_sha256:  # likewise
            known["reward"] = self.shared_rewards
        if self.image_size is None:  # results of releases without it keep their names
            del known["image_size"]
        if self.plugins:
            known["plugins"] = plugins.named(self.plugins)
        import hashlib  # late: help needs none

        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def from_json(values: dict[str, Any]) -> CollabConfig:
    """Return the configuration that `CollabConfig.to_json` wrote.

    Raises:
        BadInput: a field that this release does not know, or one that holds what it may not.
    """
    if not isinstance(values, dict) or not isinstance(values.get("delivery", {}), dict):
        raise BadInput("it holds no settings of a collaborative run: restore it from a copy")
    delivery = Delivery(**typed.table(values.get("delivery", {}), Delivery))
    fields = typed.table({name: value for name, value in values.items() if name != "delivery"}, CollabConfig)
    return CollabConfig(**fields, delivery=delivery)
