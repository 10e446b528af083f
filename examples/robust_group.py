"""Ten peers, two of them liars, learn one regression without a server: python examples/robust_group.py.

Every honest peer takes a gradient step on data of its own and mixes what all peers send. The liars send ten times the
mean of the honest models, turned round. `gradless collab simulate` does this at scale: data sets, networks, attacks
that search their strength, messages that are lost.
"""

import torch

from gradless.collab.aggregators import mean, nna

PEERS, LIARS, COLUMNS = 10, 2, 20
generator = torch.Generator().manual_seed(0)
truth = torch.randn(COLUMNS, generator=generator)
inputs = torch.randn(PEERS - LIARS, 50, COLUMNS, generator=generator)  # 50 examples a peer
targets = inputs @ truth + 0.1 * torch.randn(PEERS - LIARS, 50, generator=generator)


def train(robust: bool) -> float:
    """The largest distance of an honest model from the truth after 100 steps."""
    rule = nna(f=LIARS) if robust else mean()
    models = torch.zeros(PEERS - LIARS, COLUMNS)
    for _ in range(100):
        errors = torch.einsum("nbd,nd->nb", inputs, models) - targets
        models = models - 0.1 * torch.einsum("nbd,nb->nd", inputs, errors) / 50
        lies = (-10 * models.mean(0)).expand(LIARS, -1)
        rows = torch.cat([models, lies])  # what everybody receives
        models = torch.stack([rule(rows, pivot=peer) for peer in range(PEERS - LIARS)])
    return (models - truth).norm(dim=1).max().item()


print(f"distance of the worst honest model: nearest neighbours {train(True):.3f}, plain mean {train(False):.3g}")
