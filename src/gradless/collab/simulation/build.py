"""From a configuration to honest peers, a rule and an attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from gradless.accept import always
from gradless.collab import aggregators, attacks
from gradless.collab.aggregation.base import Aggregator
from gradless.collab.aggregation.neighbourhood_rules import least_neighbours, on_neighbourhoods
from gradless.collab.algorithms import ALGORITHMS, COEFFICIENTS, Group
from gradless.collab.attacks import Attack
from gradless.collab.config import CollabConfig
from gradless.collab.data.datasets import needs_files
from gradless.collab.learners.parameters import Learner, ParameterPeers, Workload, local_step
from gradless.collab.network import topology
from gradless.collab.network.delivery import ALL, FIRST, Delivery
from gradless.collab.network.neighbours import GraphNetwork
from gradless.collab.network.omniscient import Omniscient
from gradless.collab.network.simulated import SimulatedNetwork
from gradless.collab.network.topology import COMPLETE, OF_DEGREE, Topology
from gradless.errors import BadInput, unknown
from gradless.runs.config_io import spelling
from gradless.runs.reward_settings import RewardSettings
from gradless.system import typed


class Simulation(NamedTuple):
    """All parts of a run."""

    config: CollabConfig
    learner: Learner
    rule: Aggregator
    attack: Attack

    def close(self) -> None:
        """End the process of reward functions, if there is one."""
        if self.learner.texts is not None:
            self.learner.texts.close()


OF_REWARDS: Final = tuple(one.name for one in dataclasses.fields(RewardSettings) if one.name != "reward")


def build(config: CollabConfig) -> Simulation:
    """Load data and models and check that everything fits together.

    Raises:
        BadInput: anything in the configuration or the data that cannot work, before anything is computed.
    """
    config = config.resolved()
    rule = mixing_rule(config)
    attackers = config.attackers or 0
    honest = config.peers - attackers
    attack = attacks.named(config.attack, **config.attack_options)
    attack.check(honest, attackers)
    if config.payload == COEFFICIENTS:
        return Simulation(config, _coefficients(config, honest, rule, attack), rule, attack)
    learner = ParameterPeers(_workload(config, honest), local_step(config), poison=attack.flips)
    return Simulation(config, learner, rule, attack)


def network(
    simulation: Simulation, narrowed: Callable[[], tuple[Aggregator, Sequence[int]]] | None = None
) -> Omniscient:
    """Return the simulated network of a run, in which attackers have seen everything.

    Args:
        simulation: of the run.
        narrowed: the rule of an exchange and the peers whose rows it takes, where it looks back at earlier ones.
    """
    config, graph = simulation.config, topology_of(simulation.config)
    if graph is not None:
        messages: SimulatedNetwork | GraphNetwork = GraphNetwork(graph, byzantine=config.byzantine, seed=config.seed)
    else:
        messages = SimulatedNetwork(
            config.delivery,
            peers=config.peers,
            byzantine=config.byzantine,
            attackers=config.attackers or 0,
            seed=config.seed,
        )
    return Omniscient(messages, simulation.attack, simulation.rule, simulation.learner.poisoned, narrowed)


def mixing_rule(config: CollabConfig) -> Aggregator:
    """Return the rule of a configuration, checked against the number of rows that a peer will hold.

    Raises:
        BadInput: more Byzantine peers than the rule can stand.
    """
    group = Group(config.byzantine, config.radius)
    if config.rule is None:
        rule = ALGORITHMS[config.algorithm].rule(group)
    else:
        known = aggregators.options_of(config.rule)
        usual = {"radius": config.radius} if _clips(config) else {}
        for name in config.rule_options:
            if name not in known:
                raise BadInput(unknown(f"option of the rule {config.rule}", name, known))
        rule = aggregators.named(config.rule, f=config.byzantine, n=config.peers, **{**usual, **config.rule_options})
    if (graph := topology_of(config)) is not None:
        return _on_graph(rule, graph, config.byzantine)
    delivery = config.delivery
    rule.check(config.peers if _everything_arrives(config) else config.peers - config.byzantine)
    if delivery.mode != ALL and delivery.wait_for is not None:
        rule.check(delivery.wait_for)
    return rule


def topology_of(config: CollabConfig) -> Topology | None:
    """Return who hears whom in a resolved configuration; None where everybody hears everybody.

    Raises:
        BadInput: a graph that a group cannot have.
    """
    if config.topology == COMPLETE:
        return None
    return topology.named(
        config.topology,
        peers=config.peers,
        attackers=config.attackers or 0,
        degree=config.degree,
        seed=config.seed,
        sha256=config.graph,
    )


def _on_graph(rule: Aggregator, graph: Topology, byzantine: int) -> Aggregator:
    """Return what a rule is on a graph, checked against the neighbours of every honest peer."""
    rule = on_neighbourhoods(rule, byzantine)
    graph.require(least_neighbours(rule, byzantine), rule.name, byzantine)
    for rows in sorted({len(heard) + 1 for heard in graph.neighbours()[: graph.honest]}):
        rule.check(rows)
    return rule


def _clips(config: CollabConfig) -> bool:
    """Return whether the mixing rule takes the radius of the configuration."""
    if config.rule is None:
        return ALGORITHMS[config.algorithm].clips
    return "radius" in aggregators.options_of(config.rule) and "self-centred" not in config.rule


def check_used(configs: Sequence[CollabConfig], names: Iterable[str]) -> None:
    """Refuse a setting that somebody gave and none of the runs reads.

    Args:
        configs: the runs, resolved.
        names: fields of `CollabConfig` and `gradless.collab.network.delivery.Delivery`.

    Raises:
        BadInput: with what the setting is for.
    """
    uses = [_uses(config) for config in configs]
    for name in names:
        if not all(name in one for one in uses) or any(one[name][0] for one in uses):
            continue
        record = Delivery if name in typed.settings(Delivery) else CollabConfig
        flag = "a file of your own" if name == "own" else spelling(typed.settings(record)[name])
        raise BadInput(f"{flag} is for {uses[0][name][1]}: leave it out")


def _uses(config: CollabConfig) -> dict[str, tuple[bool, str]]:
    """Return, for settings that only some runs read, whether this one does, and which do."""
    language, own_momentum = config.model is not None, ALGORITHMS[config.algorithm].momentum
    coefficients = config.payload == COEFFICIENTS, "--payload coefficients"
    return {
        **dict.fromkeys(("task", "scheme", "num_train", "num_test", "own", "chat"), (language, "a language --model")),
        **dict.fromkeys(("queries", "eps", "sync", "memory", "method_options"), coefficients),
        **dict.fromkeys(OF_REWARDS, (bool(config.reward), "a group that learns from a --reward")),
        "image_size": (config.dataset == "folder", "a folder of images"),
        "net": (not language, "images (--dataset)"),
        "data": (
            language or needs_files(config.dataset or ""),
            "data in files (--dataset folder, npz, mnist, cifar10)",
        ),
        "radius": (_clips(config), "a rule that clips at a fixed radius"),
        "rule_options": (config.rule is not None, "a --rule of its own"),
        "momentum": (own_momentum in (None, config.momentum), "an algorithm that has no momentum of its own"),
        "wait_for": (config.delivery.mode != ALL, "--delivery first or adversarial"),
        "slow": (
            config.delivery.mode == FIRST or config.delivery.deadline is not None,
            "messages that can come too late (--delivery first, or a --deadline)",
        ),
        "slowness": (config.delivery.slow > 0, "peers that are late (--slow)"),
        "degree": (config.topology in OF_DEGREE, "--topology k-ring or random"),
    }


def _workload(config: CollabConfig, honest: int) -> Workload:
    if config.model is None:
        from gradless.collab.learners.vision import Vision

        return Vision(config, honest)
    from gradless.collab.learners.language import Text, TextGradients

    return TextGradients(Text(config, honest), honest)


def _coefficients(config: CollabConfig, honest: int, rule: Aggregator, attack: Attack) -> Learner:
    from gradless.collab.learners.language import Text, coefficient_peers

    if config.memory is not None and (rule.uses_pivot or attack.equivocates):
        what = f"the rule {rule.name}" if rule.uses_pivot else f"the attack {attack.name}"
        raise BadInput(
            f"memory needs rows that are the same for all peers, and {what} has others: leave one of them out"
        )
    if config.model is None:
        raise BadInput("coefficients are exchanged for a language model: give --model and --task instead of --dataset")
    # With all messages at all peers and a rule that has no favourite row, the weights of honest peers never differ.
    shared = _everything_arrives(config) and not rule.uses_pivot and not attack.equivocates and config.sync is None
    text = Text(config, honest)
    with text.closed_on_error():
        if text.model.optimizer.accept is not always:
            raise BadInput(
                f"the method {config.method} tries every step on its own batch before it takes it, which peers with "
                "other batches cannot do together: choose another --method, such as mezo"
            )
        return coefficient_peers(text, config, honest, shared=shared)


def _everything_arrives(config: CollabConfig) -> bool:
    delivery = config.delivery
    return delivery.mode == ALL and not delivery.drop and delivery.deadline is None
