"""Tuned tiny models and their blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import scoring_helpers as s
from gradless import lm
from gradless.forward.model_blocks import blocks
from gradless.lm import objectives, schemes
from gradless.lm.encode import encode


def tuned(architecture: str, scheme: str = "full") -> Any:
    model = lm.load(f"tiny-{architecture}")
    model = schemes.apply(model, scheme, seed=1, num_prefix=3, num_prompt=3)
    with torch.no_grad():  # LoRA starts with zeros
        for i, (_, p) in enumerate(schemes.trainable(model)):
            p.add_(0.02 * torch.sin(torch.arange(p.numel()) + i).view(p.shape))
    return model


def closure_of(model: Any, count: int = 4, micro: int | None = 2) -> Any:
    chosen = objectives.OBJECTIVES["option_ce"]
    batches = objectives.prepare(model, chosen, [encode(model, example) for example in s.single(model, count)], micro)
    return lambda: objectives.loss_over(model, chosen, batches)


def modules_of(model: Any) -> list[nn.Module]:
    return [block for _, block in blocks(model.model)]


class Pair(nn.Module):
    """A block that returns a tuple with more than tensors in it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = 0

    def forward(self, x: torch.Tensor, *, shift: float = 0.0) -> tuple[torch.Tensor, None, dict[str, torch.Tensor]]:
        self.calls += 1
        return x * self.scale + shift, None, {"seen": x}


class Stack(nn.Module):
    def __init__(self, count: int = 4, *, spoil: bool = False) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.ones(3))
        self.layers = nn.ModuleList([Pair(0.5 + i) for i in range(count)])
        self.spoil = spoil

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.embed
        for layer in self.layers:
            x, nothing, rest = layer(x, shift=0.25)
            assert nothing is None
            assert set(rest) == {"seen"}
            if self.spoil:
                x.mul_(2.0)
        return x.square().mean()


X = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]])
