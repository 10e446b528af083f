"""A small model, its loss, and refusals in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gradless as gl

X = torch.linspace(-1, 1, 12).view(3, 4)


class Net(nn.Module):
    """Two matrices in numbered blocks, and one around them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(torch.sin(torch.arange(p.numel()).float() + i).view(p.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def loss_of(model: nn.Module) -> Callable[[], torch.Tensor]:
    return lambda: model(X.to(next(model.parameters()).dtype)).float().square().mean()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def named(model: nn.Module, part: slice = slice(None)) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())[part]


def refused(call: Callable[[], Any], match: str | None = None) -> None:
    with pytest.raises(gl.BadInput, match=match) as error:
        call()
    assert "\n" not in str(error.value)
