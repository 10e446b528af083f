"""Peers with a language model: LoRA weights by backpropagation, or coefficients by forward passes.

With forward passes they may also learn from a reward: each peer's members write texts behind its own prompts, and what
it sends are the same few coefficients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradless import lm, tasks
from gradless.collab.config import CollabConfig
from gradless.collab.data.splits import Batches
from gradless.collab.learners.assignment import own_share, shares
from gradless.collab.learners.coefficients import CoefficientPeers, Member, Score
from gradless.collab.learners.rewarded import Rewarded
from gradless.errors import BadInput, NotFinite
from gradless.forward.losses import Closure
from gradless.lm import encode, evaluate, objectives, schemes
from gradless.lm.encode import Encoded
from gradless.lm.metrics import REWARDS
from gradless.lm.objectives import Objective
from gradless.lm.predict import reading_limit
from gradless.lm.rewarded import RewardClosure, Sampling, drawn
from gradless.rewards import Rewards
from gradless.runs import build, reward_runs
from gradless.runs.build import Model
from gradless.runs.config import TuneConfig
from gradless.runs.fixed_engine import fixed_engine
from gradless.runs.reward_settings import RewardSettings
from gradless.runs.scheme_settings import STORED
from gradless.system import terminal
from gradless.tasks.base import Splits, Task

NOWHERE = Path("/nonexistent")  # these models have no run directory to take initial values from


class Text:
    """A task's rows, encoded and divided among peers.

    Args:
        config: names task, rows, model, method, rewards and seed.
        peers: H, among whom training rows are dealt.
        mine: the peers of this process; None: all.
        own: whether the training rows are those of the one peer ``mine`` alone, and are not dealt.

    Attributes:
        rewards: the functions that the group is trained on, to be closed by who made this; None without any.

    Raises:
        BadInput: rows, a model or reward functions that cannot be used.
    """

    def __init__(
        self, config: CollabConfig, peers: int, *, mine: Sequence[int] | None = None, own: bool = False
    ) -> None:
        if config.scheme in STORED:
            raise BadInput(
                f"a group tunes adapters or float weights, not the {config.scheme} of a GGUF file: use --scheme lora"
            )
        settings = tune_settings(config)
        self.tune = dataclasses.replace(settings, engine=fixed_engine(settings)).resolved()
        self.task, self.rows = _loaded(self.tune, test=not own)
        self.numbers = range(peers) if mine is None else mine
        self.rewards: Rewards | None = reward_runs.load(self.tune, self.task, self.rows, _say)
        with self.closed_on_error():
            self.objective = reward_runs.objective(self.tune, self.task, self.rewards)
            self._encode(config, peers, own)

    def _encode(self, config: CollabConfig, peers: int, own: bool) -> None:
        """Load the model, and turn the rows into its tokens and into shares."""
        self.model, self.label_tokens = self._built()
        self.encoded = build.encode_rows(self.model.lm, self.task, self.rows.train, None)
        if cut := sum(row.cut for row in self.encoded):
            limit = reading_limit(self.model.lm, self.task)
            _say(encode.cut_sentence(self.model.lm, "training", cut, len(self.encoded), limit))
        labels = torch.tensor([row.gold if row.correct else 0 for row in self.encoded])
        objectives.prepare(self.model.lm, self.objective, self.encoded[:1])  # refuses what cannot be batched
        alone = own_share(config, len(labels), self.numbers[0]) if own else None
        self.shares = alone or shares(config, labels, peers, self.numbers)

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """End the process of reward functions, if there is one, when what is done inside fails."""
        try:
            yield
        except BaseException:
            if self.rewards is not None:
                self.rewards.close()
            raise

    def build(self) -> build.Model:
        """Return a model of its own at the base weights."""
        return self._built()[0]

    def _built(self) -> tuple[Model, tuple[int, ...]]:
        return build.build_for(self.tune, NOWHERE, self.task, self.rows.train, say=lambda line: None)

    def batch(self, stream: Batches, step: int, name: str) -> list[Encoded]:
        """Return the rows that a peer reads in a step; ``name`` names the random numbers of texts behind them."""
        rows = [self.encoded[i] for i in stream.at(step).tolist()]
        return rows if self.rewards is None else drawn(rows, f"step/{step}/{name}")

    def closure(self, model: Model, peer: int, step: int) -> Closure:
        """Return the loss of a step of one of this process's peers, to be evaluated at any weights of ``model``.

        On a reward each peer draws random numbers of its own for its texts, as its rows are its own.
        """
        return self.loss(model, self.batch(self.shares.streams[peer], step, f"peer/{self.numbers[peer]}"))

    def poisoned(self, model: Model, step: int) -> Closure:
        """Return the loss that attackers measure who flip labels; of texts, whose rewards count with the other sign."""
        rows = self.batch(self.shares.poison, step, "poison")
        if (of_texts := self.objective.of_texts) is None:
            return self.loss(model, [flipped(row) for row in rows])
        return self.loss(model, rows, self.objective._replace(of_texts=lambda *texts: 0.0 - of_texts(*texts)))

    def loss(self, model: Model, rows: Sequence[Encoded], objective: Objective | None = None) -> Closure:
        """Return the loss of a batch, to be evaluated at any weights."""
        objective = objective or self.objective
        batches = objectives.prepare(model.lm, objective, list(rows))
        if objective.of_texts is None:
            return lambda: objectives.loss_over(model.lm, objective, batches)
        sampling = Sampling(self.tune.temperature, self.tune.seed)
        return RewardClosure(model.lm, objective, batches, sampling, rows=model.optimizer.estimator.rows)

    def score(self, model: lm.LanguageModel, rows: int | None) -> Score:
        """Evaluate test rows: by the task's main metric, or the share of texts that pass and their mean reward."""
        if not self.rows.test:
            return Score(math.nan)
        try:
            metrics = evaluate.evaluate(
                model, self.task, self.rows.test[:rows], objective=None if self.rewards is None else self.objective
            ).metrics
        except NotFinite:  # as of other models, whose rows without finite logits are wrong
            return Score(0.0)
        if self.rewards is None:
            return Score(metrics[self.task.metrics[0]])
        return Score(metrics["passed"], metrics.get(REWARDS[0], math.nan))


def tune_settings(config: CollabConfig) -> TuneConfig:
    """Return what the ledger of a member says of its run, before the engine is chosen; reads neither data nor model."""
    return TuneConfig(
        model=str(config.model),
        task=config.task,
        own=config.own,
        data=config.data,
        method=config.method,
        options=config.method_options,
        scheme=config.scheme,
        lr=config.lr,
        eps=config.eps,
        queries=config.queries,
        batch_size=config.batch_size,
        seed=config.seed,
        num_train=config.num_train or 0,
        num_dev=0,
        num_test=config.num_test or 0,
        freeze=config.freeze,
        device=config.device,
        dtype=weights_dtype(config),
        steps=config.steps,
        weight_decay=config.weight_decay,
        zero_shot=False,
        chat=config.chat,
        **{one.name: getattr(config, one.name) for one in dataclasses.fields(RewardSettings)},
    )


def weights_dtype(config: CollabConfig) -> str | None:
    """Return the type that weights are loaded in: all weights of a GGUF are tuned as float32 ones."""
    return "float32" if config.scheme == "full" and lm.is_gguf(str(config.model)) else None


@functools.cache
def _say(line: str) -> None:
    """Print a line about the data, once and not for every run of a study."""
    terminal.say(line)


def _loaded(tune: TuneConfig, test: bool) -> tuple[Task, Splits]:
    if tune.task is not None:  # before its data are fetched
        known = tasks.get(tune.task)
        objectives.choose(known, tune.objective)
        if known.kind == "generation" and not tune.reward:
            raise BadInput(f"task '{tune.task}' has no options to choose from: name a --reward for what is written")
    task, rows = build.load_task(tune, _say)
    if not rows.train or (test and not rows.test):
        both = "a group needs training and test rows: raise num_train and num_test"
        raise BadInput(both if test else "there are no training rows: give a file that has some")
    return task, rows


def flipped(row: Encoded) -> Encoded:
    """Return the row with its label turned round: option l becomes the last minus l."""
    return row._replace(correct=(len(row.options) - 1 - row.gold,))


def coefficient_peers(text: Text, config: CollabConfig, peers: int, *, shared: bool) -> CoefficientPeers:
    """Return peers that send coefficients; with ``shared`` they have one set of weights."""
    models = [text.model] * peers if shared else [text.model, *(text.build() for _ in range(peers - 1))]
    return CoefficientPeers(
        [_member(text, peer, model) for peer, model in enumerate(models)],
        batch_size=config.batch_size,
        sync=config.sync,
        texts=None if text.rewards is None else Rewarded(text.rewards),
    )


def _member(text: Text, peer: int, model: Model) -> Member:
    return Member(
        model.optimizer,
        closure=lambda step: text.closure(model, peer, step),
        poisoned=lambda step: text.poisoned(model, step),
        score=lambda rows: text.score(model.lm, rows),
        observe=lambda closure, step, loss: reward_runs.of_step(closure, model.optimizer.estimator, step, loss),
    )


class TextGradients:
    """A workload with gradients: one model in memory, whose tuned weights are each peer's in turn.

    Cost of a step: a backpropagation for each peer.
    """

    def __init__(self, text: Text, peers: int) -> None:
        self.text, self.peers = text, peers
        self.lm = text.model.lm
        self.tuned = [param for _, param in schemes.trainable(self.lm)]
        self.dimension = sum(param.numel() for param in self.tuned)

    def start(self) -> Tensor:
        """Return the tuned weights as the scheme begins with them, once for each peer."""
        row = torch.cat([param.detach().reshape(-1).float() for param in self.tuned])
        return row.expand(self.peers, -1).clone()

    def gradients(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See `gradless.collab.learners.parameters.Workload`."""
        gradients = torch.empty_like(theta)
        losses = torch.empty(self.peers)
        for peer in range(self.peers):
            losses[peer] = self._gradient(theta[peer], self.text.closure(self.text.model, peer, step), gradients[peer])
        return gradients, losses

    def poisoned(self, theta: Tensor, step: int) -> Tensor:
        """See `gradless.collab.learners.parameters.Workload`."""
        gradient = torch.empty_like(theta)
        self._gradient(theta[0], self.text.poisoned(self.text.model, step), gradient[0])
        return gradient

    def accuracy(self, theta: Tensor, rows: int | None) -> list[float]:
        """See `gradless.collab.learners.parameters.Workload`."""
        accuracies = []
        for row in theta:
            self._load(row)
            accuracies.append(self.text.score(self.lm, rows).accuracy)
        return accuracies

    def state(self) -> dict[str, Any]:
        """See `gradless.collab.learners.parameters.Workload`."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """See `gradless.collab.learners.parameters.Workload`."""

    def _gradient(self, row: Tensor, closure: Closure, out: Tensor) -> float:
        self._load(row)
        with torch.enable_grad():
            loss = torch.as_tensor(closure())
            parts = torch.autograd.grad(loss, self.tuned, allow_unused=True)
        out.copy_(
            torch.cat(
                [
                    param.new_zeros(param.numel(), dtype=torch.float32) if part is None else part.reshape(-1).float()
                    for param, part in zip(self.tuned, parts, strict=True)
                ]
            )
        )
        return float(loss.detach())

    @torch.no_grad()
    def _load(self, row: Tensor) -> None:
        start = 0
        for param in self.tuned:
            param.copy_(row[start : start + param.numel()].view(param.shape))
            start += param.numel()
