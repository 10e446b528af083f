"""Methods by name: one table of presets, each a function of a few lines in one of the modules here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from gradless.errors import ELSEWHERE, unknown
from gradless.methods import baselines, mezo, recent, zobench
from gradless.optimizer import ZerothOrder

SHARED = ("params", "lr", "eps", "common", "norms", "model")  # arguments that are not options of a method
PASSED = ("lr", "eps", "seed", "engine", "defer")  # arguments that every method gets by name
AUTO = 0.45  # `Method.auto` of MeZO and its like: benchmarks/results/auto-rate.jsonl, 100 to 2,000 steps
# Families, by what a method asks of the loss: values, slopes along directions, a gradient, values and a gradient.
ZEROTH, FORWARD, FIRST, HYBRID = "zeroth", "forward-mode", "first", "hybrid"


class Method(NamedTuple):
    """A preset and what is worth knowing before it is chosen."""

    make: Callable[..., ZerothOrder]
    summary: str
    paper: str
    family: str = ZEROTH
    copies: float = 0.0  # float32 copies of the tuned weights that it keeps beside them
    lr_factor: float = 1.0  # first guess of the learning rate, in units of the scheme's for plain MeZO
    lr_in_eps: float | None = None  # or in units of eps, where steps do not depend on the size of the loss
    auto: float | None = None  # with lr "auto", change of a weight (rms) in a step of a short run, in units of eps
    blocks: bool = False  # perturbs some blocks only, so that forwards may share what lies before them
    rows: bool = False  # compares the losses of the rows of a batch
    checkpoint: bool = False  # keep the activations of few layers, and compute the others again

    @property
    def replays(self) -> bool:
        """Whether a ledger of its scalars rebuilds the weights."""
        return self.family in (ZEROTH, FORWARD)

    @property
    def differentiates(self) -> bool:
        """Whether the objective must have derivatives."""
        return self.family != ZEROTH

    @property
    def estimates(self) -> bool:
        """Whether its steps subtract losses at perturbed weights from one another, alone or beside derivatives."""
        return self.family not in (FIRST, FORWARD)

    def auto_step(self, steps: int, walk: float = math.inf) -> float:
        """Change of a weight (rms) in a step of a run of so many steps with lr "auto", in units of eps.

        Longer steps gain more until they no longer fit the curvature, which does not depend on the length of a run. In
        a long one the steps add up to a walk along random directions, whose length grows with the root of their number,
        and so does the noise that it leaves: it is held at ``walk``, what the model stands (`gradless.runs.walks`).
        docs/log.md has what was measured.
        """
        assert self.auto is not None
        return min(self.auto, walk / math.sqrt(steps))

    def options(self) -> dict[str, Any]:
        """Its own hyper-parameters and their defaults."""
        own = (p for p in inspect.signature(self.make).parameters.values() if p.name not in SHARED)
        return {p.name: p.default for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    def problem(self) -> str:
        """Return what keeps gradless from calling `make`, as the end of a sentence about a plugin; empty if nothing."""
        try:
            inspect.signature(self.make).bind([], **dict.fromkeys(PASSED), **self.options())
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            return f"whose function does not take params and {', '.join(PASSED)} ({reason}): give it **common as well"
        return ""


# Momentum sums about ten gradients, and Adam and signs normalise them: hence the factors of learning rates.
METHODS: dict[str, Method] = {
    "mezo": Method(
        mezo.mezo, "ZO-SGD, +1/-1 directions; 2K forwards, memory of inference", "Malladi et al. 2023", auto=AUTO
    ),
    "mezo-gaussian": Method(
        mezo.mezo_gaussian, "ZO-SGD, Gaussian directions, as published", "Malladi et al. 2023", auto=AUTO
    ),
    "mezo-one-sided": Method(
        mezo.mezo_one_sided, "ZO-SGD from forward differences; K+1 forwards", "Spall 1992", auto=AUTO
    ),
    "mezo-momentum": Method(
        mezo.mezo_momentum, "momentum recomputed from past scalars; no buffer", "Malladi et al. 2023", lr_factor=0.1
    ),
    "mezo-adam": Method(
        mezo.mezo_adam, "Adam over the scalars of the last 64 steps; no buffers", "Malladi et al. 2023", lr_factor=10.0
    ),
    "mezo-rms": Method(
        recent.mezo_rms, "momentum over the running size of the scalars; no buffer", "MEAZO 2026", lr_factor=10.0
    ),
    "lozo": Method(
        mezo.lozo, "ZO-SGD along low-rank directions applied beside the weights", "Chen et al. 2024", auto=AUTO
    ),
    "zo-momentum": Method(
        zobench.zo_momentum, "ZO-SGD-MMT with a stored buffer", "Zhang et al. 2024", copies=1.0, lr_factor=0.1
    ),
    "zo-adam": Method(
        zobench.zo_adam, "ZO-Adam with stored float32 moments", "Zhang et al. 2024", copies=2.0, lr_factor=10.0
    ),
    "zo-sign": Method(zobench.zo_sign, "ZO-SGD-Sign, element by element", "Liu et al. 2019", lr_factor=10.0),
    "zo-scalar-sign": Method(
        zobench.zo_scalar_sign, "sign of the projected gradient times z", "Zhang et al. 2024", lr_factor=10.0
    ),
    "zo-cons": Method(
        zobench.zo_cons, "ZO-SGD-Cons: the best of three on the batch; 2K+3 forwards", "Zhang et al. 2024"
    ),
    "zo-sparse": Method(
        zobench.zo_sparse, "a fixed share of the weights: random, magnitude, wanda", "Zhang et al. 2024"
    ),
    "zo-block": Method(zobench.zo_block, "one random block a query", "Park et al. 2025", blocks=True),
    "zo-blockwise": Method(
        zobench.zo_blockwise, "every block in turn; 2 forwards a block", "Zhang et al. 2024", blocks=True
    ),
    "fzoo": Method(
        recent.fzoo, "one-sided batch of signs, normalised by its spread; K+1 forwards", "FZOO 2025", lr_in_eps=1.0
    ),
    "es": Method(
        recent.es,
        "evolution strategies: shaped losses of a population; 2K forwards",
        "Salimans et al. 2017",
        lr_in_eps=1.0,
        rows=True,
    ),
    "zo-muon": Method(recent.zo_muon, "orthogonalised low-rank estimates", "ZO-Muon 2026", lr_factor=100.0),
    "sparse-mezo": Method(recent.sparse_mezo, "only the smallest weights of each layer", "Liu et al. 2024"),
    "lezo": Method(recent.lezo, "a random share of the layers a query", "LeZO 2024", blocks=True),
    "forward-grad": Method(
        baselines.forward_gradient, "exact slopes by forward mode; 2K forwards", "Baydin et al. 2022", FORWARD
    ),
    "hybrid": Method(
        baselines.hybrid_zo_fo, "Adam in the last layers, MeZO below", "Zhang et al. 2024", HYBRID, copies=3.0
    ),
    "fo-sgd": Method(
        baselines.fo_sgd, "SGD by backpropagation", "Robbins and Monro 1951", FIRST, copies=1.0, lr_factor=1000.0
    ),
    "fo-adam": Method(
        baselines.fo_adam, "AdamW by backpropagation", "Loshchilov and Hutter 2019", FIRST, copies=3.0, lr_factor=10.0
    ),
    "fo-sgd-ckpt": Method(
        baselines.fo_sgd,
        "fo-sgd with activation checkpointing",
        "Chen et al. 2016",
        FIRST,
        copies=1.0,
        lr_factor=1000.0,
        checkpoint=True,
    ),
    "fo-adam-ckpt": Method(
        baselines.fo_adam,
        "fo-adam with activation checkpointing",
        "Chen et al. 2016",
        FIRST,
        copies=3.0,
        lr_factor=10.0,
        checkpoint=True,
    ),
}


def no_option(method: str, option: str) -> str:
    """Return a sentence about an option that a method does not have: a setting of all methods, or of other ones."""
    setting, options = ELSEWHERE.get(option, option), METHODS[method].options()
    if setting in ELSEWHERE.values() and (setting != "queries" or setting in options):
        return f"{option} is no option of the method {method}: write --{setting.replace('_', '-')}"
    if others := ", ".join(name for name, other in METHODS.items() if option in other.options()):
        return f"the method {method} has no option {option}: leave it out, or choose a method that has: {others}"
    return unknown(f"option of the method {method}", option, options)
