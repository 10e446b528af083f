"""A small model that has everything leaves can be."""

from __future__ import annotations

import torch
from torch import nn

from gradless import rng


class Net(nn.Module):
    """An embedding tied to the output, a norm, biases: everything leaves can be."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embedding.weight
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(rng.normal(seed, name, p.shape) * 0.3)
        self.to(dtype)

    def forward(self, ids):
        return self.head(torch.tanh(self.hidden(self.norm(self.embedding(ids)))))


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def closure_of(model):
    def closure():
        logits = model(IDS[:, :-1]).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())

    return closure


def value_of(model):
    with torch.no_grad():
        return float(closure_of(model)())


def bits(model):
    return {
        name: p.detach().clone().view(torch.int32 if p.dtype == torch.float32 else torch.int16)
        for name, p in model.named_parameters()
    }


def equal_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
