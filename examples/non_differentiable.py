"""Train a classifier on its accuracy itself, which has no gradient: python examples/non_differentiable.py.

The accuracy of a batch is a step function of the weights. Its slope along a random direction is found by two forward
passes that are far enough apart (a large eps), and several directions a step make the estimate steadier.
"""

import torch

import gradless as gl

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(512, 16, generator=generator)
labels = (inputs @ torch.randn(16, 3, generator=generator)).argmax(1)
with torch.random.fork_rng():
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 3)


def accuracy() -> torch.Tensor:
    """The share of right answers: any number would do, also one that your own code computes."""
    return (model(inputs).argmax(1) == labels).float().mean()


optimizer = gl.mezo(model.named_parameters(), lr=0.5, eps=0.1, queries=8, seed=0)
start = accuracy().item()
for _ in range(200):
    optimizer.step(lambda: -accuracy())
print(f"accuracy {start:.3f} at the start, {accuracy().item():.3f} after 200 steps")
