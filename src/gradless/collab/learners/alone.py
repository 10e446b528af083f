"""One peer by itself, as it runs on a network: the learner that a simulation has for all, with this peer's rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless import ledger
from gradless.accept import always
from gradless.collab.algorithms import COEFFICIENTS
from gradless.collab.config import CollabConfig
from gradless.collab.data.splits import Batches
from gradless.collab.learners.parameters import Learner, ParameterPeers, Workload, local_step
from gradless.errors import BadInput
from gradless.optimizer import ZerothOrder
from gradless.runs import build, replay
from gradless.runs.config import TuneConfig
from gradless.runs.reward_settings import RewardSettings

SCHEDULES: Final = ("constant", "linear")  # of products and quotients alone; a cosine is that of the C library
LEDGER: Final = "ledger"
OWN: Final = "own"
"""What a ledger calls reward functions of a peer's own, whose names are nobody else's affair."""


class OnePeer(NamedTuple):
    """A peer of a network: its learner, and what it says of itself."""

    learner: Learner
    rows: int
    """Training rows."""
    start: int
    """Steps that the ledger in its folder held, and that the weights have taken."""
    base_sha256: str | None
    """Of the base weights, which all peers must share; None: a small network, made from the seed."""
    ledger: ledger.Ledger | None = None
    """Receives every update of coefficients before it is applied; `gradless.runs.replay` takes it."""
    streams: list[Batches] | None = None
    """Of coefficients: which rows the peer reads in a step; one entry, and another in its place counts from then on."""

    def close(self) -> None:
        """Flush and close the ledger, and end the process of reward functions."""
        if self.learner.texts is not None:
            self.learner.texts.close()
        if self.ledger is not None:
            self.ledger.close()


class OwnRewards(NamedTuple):
    """Reward functions of one peer."""

    names: tuple[str, ...] = ()
    """In place of the configuration's; empty: those."""
    weights: tuple[float, ...] = ()
    timeout: float | None = None
    """Seconds that a call may take; None: the configuration's."""

    def over(self, config: CollabConfig) -> CollabConfig:
        """Return the configuration with these functions."""
        if self.names or self.weights:
            names = self.names or config.reward
            config = dataclasses.replace(config, reward=names, reward_weight=self.weights, reward_sha256=())
        return config if self.timeout is None else dataclasses.replace(config, reward_timeout=self.timeout)

    def hidden(self, tune: TuneConfig) -> TuneConfig:
        """Return settings for others to read, which name no function of this peer's own."""
        if not tune.reward:
            return tune
        if self.names or self.weights:
            tune = dataclasses.replace(tune, reward=(OWN,), reward_weight=())
        return dataclasses.replace(tune, reward_timeout=RewardSettings().reward_timeout)


def one_peer(
    config: CollabConfig,
    me: int,
    *,
    own: Mapping[str, Any] | None = None,
    rewards: OwnRewards | None = None,
    folder: Path | None = None,
) -> OnePeer:
    """Build peer ``me`` of a group alone.

    Without rows of its own it gets those that the peer ``me`` has in a simulation of the same configuration without
    attackers, and computes what that peer does.

    Args:
        config: of the run; what it says of attackers and delivery is not looked at.
        me: its number, from 0.
        own: where its own rows are: of a language model "train" and perhaps "test", as ``own`` of
            `gradless.runs.config.TuneConfig`; of images "data".
        rewards: its own reward functions; None: those of the configuration.
        folder: where the ledger of coefficients lies, or will; one that is there already is taken again. None: none.

    Raises:
        BadInput: data, a model or a method that cannot be used, or the ledger of another run.
    """
    rewards = rewards or OwnRewards()
    config = rewards.over(_without_attackers(config)).resolved()
    if not 0 <= me < config.peers:
        raise BadInput(f"there is no peer {me}: give a number from 0 to {config.peers - 1}")
    if own is not None:
        config = _with_rows(config, own)
    if config.payload == COEFFICIENTS:
        return _of_coefficients(config, me, own is not None, rewards, folder)
    workload, rows, base_sha256 = _workload(config, me, own is not None)
    return OnePeer(ParameterPeers(workload, local_step(config)), rows, 0, base_sha256)


def _without_attackers(config: CollabConfig) -> CollabConfig:
    return dataclasses.replace(config, attack="none", attackers=0, attack_options={})


def _with_rows(config: CollabConfig, own: Mapping[str, Any]) -> CollabConfig:
    """Return the configuration with a peer's own files; all their rows are used."""
    if config.model is None:
        if set(own) != {"data"}:
            raise BadInput(f"own images are a folder or a file: give 'data' instead of {', '.join(sorted(own))}")
        return dataclasses.replace(config, data=str(own["data"]))
    if "train" not in own:
        raise BadInput("a peer with rows of its own needs training rows: give --train")
    files = {**config.own, **own}
    if "template" not in files:
        raise BadInput(
            "own rows need the template of the run, and its labels and their column: put them in its settings"
        )
    return dataclasses.replace(config, task=None, own=files, num_train=None, num_test=None)


def _workload(config: CollabConfig, me: int, own: bool) -> tuple[Workload, int, str | None]:
    if config.model is None:
        from gradless.collab.learners.vision import Vision

        images = Vision(config, config.peers, mine=[me], own=own)
        return images, len(images.shares.streams[0].indices), None
    from gradless.collab.learners.language import Text, TextGradients

    text = Text(config, config.peers, mine=[me], own=own)
    return TextGradients(text, 1), len(text.shares.streams[0].indices), text.model.base_sha256


def _of_coefficients(config: CollabConfig, me: int, own: bool, rewards: OwnRewards, folder: Path | None) -> OnePeer:
    from gradless.collab.learners.language import Text, coefficient_peers

    if config.model is None:
        raise BadInput("coefficients are exchanged for a language model: give --model and --task instead of --dataset")
    if config.sync is not None:
        raise BadInput("peers that agree on coefficients have equal weights: leave sync out")
    text = Text(config, config.peers, mine=[me], own=own)
    with text.closed_on_error():
        learner = coefficient_peers(text, config, 1, shared=True)
        check_bits(text.tune, text.model.optimizer)
        file, start = None, 0
        if folder is not None:
            header = replay.header(rewards.hidden(text.tune), text.model, text.rows, text.label_tokens)
            file, start = _opened(text.tune, text.model, header, folder)
            learner.members[0] = learner.members[0]._replace(log=file.append)
    streams = text.shares.streams
    return OnePeer(learner, len(streams[0].indices), start, text.model.base_sha256, file, streams)


def _opened(tune: TuneConfig, model: build.Model, header: Mapping[str, Any], folder: Path) -> tuple[ledger.Ledger, int]:
    """Open the ledger of a peer; take what it holds already. Returns it and the number of steps taken."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LEDGER
    if not path.exists():
        build.keep_initial(tune, folder, model)
        return ledger.Ledger(path, dict(header)), 0
    contents = ledger.read(path)
    replay.check_header(contents.header, model)
    if contents.header["config"] != header["config"]:
        raise BadInput(f"{path} belongs to a run with other settings: choose another --out")
    model.optimizer.replay(contents.moves)
    return ledger.Ledger(path, contents.header, contents=contents), len(contents.moves)


def check_bits(tune: TuneConfig, optimizer: ZerothOrder) -> None:
    """Refuse a method whose steps could differ in their last bits between two processors.

    Raises:
        BadInput: a rule that is not linear, a policy that evaluates losses, or a schedule with a cosine.
    """
    if not optimizer.rule.linear or optimizer.accept is not always:
        raise BadInput(
            f"peers that agree on coefficients need a step that is linear in them: {tune.method} is not; take mezo or "
            "mezo-momentum"
        )
    if tune.schedule not in SCHEDULES:
        raise BadInput(
            f"a {tune.schedule} schedule may differ in its last bits between machines: take {' or '.join(SCHEDULES)}"
        )
