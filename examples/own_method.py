"""A method of your own: a rule, a preset of three lines, and a row that names it.

    python examples/own_method.py                                                          # checks it
    gradless tune --plugin examples/own_method.py --method mezo-bounded --set most=0.5 ...  # uses it

The rule cuts every projected gradient, so that one odd batch cannot move the weights far. `gradless.testing` checks
both against what the package relies on: replay from a ledger, resuming, determinism.
"""

from typing import Any

import torch

import gradless as gl
from gradless.errors import BadInput
from gradless.gradients import Mixture
from gradless.methods import METHODS, Method
from gradless.methods.common import build
from gradless.rules import Rule
from gradless.testing import check_method, check_rule


def bounded(most: float) -> Rule:
    """Cut every coefficient to [-most, most]. Cost: none; no state."""

    def update(g: Any, state: None) -> tuple[Mixture, None]:
        if not isinstance(g, Mixture):
            raise BadInput("bounded works on estimates along directions: put it first in the chain")
        return g._replace(weights=tuple(max(-most, min(most, weight)) for weight in g.weights)), state

    return Rule("bounded", lambda: None, update)


def mezo_bounded(params: Any, *, lr: float = 1e-6, eps: float = 1e-3, most: float = 1.0, **common: Any) -> Any:
    """MeZO with bounded coefficients."""
    return build(params, gl.rademacher(), gl.spsa(eps=eps), gl.chain(bounded(most), gl.scale(lr)), **common)


METHODS["mezo-bounded"] = Method(mezo_bounded, "MeZO with bounded coefficients; 2 forwards", "this file")


def main() -> None:
    """Check the parts, and use the method in Python."""
    check_rule(bounded(0.5))
    check_method(lambda params: mezo_bounded(params, lr=0.4, seed=1))
    model = torch.nn.Linear(8, 1)
    inputs = torch.eye(8)
    optimizer = mezo_bounded(model.named_parameters(), lr=0.05, most=2.0, seed=0)
    losses = [optimizer.step(lambda: (model(inputs) - 1).square().mean()) for _ in range(200)]
    print(f"all checks hold; loss {losses[0]:.3f} at the start, {losses[-1]:.3f} after 200 steps")


if __name__ == "__main__":  # not where it is a plugin
    main()
