"""Gradients of many peers at once: the same as of plain modules, each with its own statistics and masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradless.collab.data import datasets
from gradless.collab.data.splits import batches, gather, split
from gradless.collab.learners.nets import NETS, Dropout, Net
from gradless.collab.learners.stacked import Stack, _mask, evaluation_rows
from gradless.errors import BadInput
from repository import SHARED_DATA


def _tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        Dropout(0.25, 4, 3, 3),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


TINY = Net("tiny", _tiny, (2, 6, 6), 3, 4 * 18 + 4 + 8 + 36 * 3 + 3, "loop", False, "", "")
SMALL = [TINY, NETS["cnn-mnist"], NETS["mlp-digits"], NETS["logreg"]]


def problem(net: Net, peers: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Different parameters for every peer, and a batch for each."""
    generator = torch.Generator().manual_seed(seed)
    theta = Stack(net, peers, seed=1).initial()
    theta += 0.03 * torch.randn(theta.shape, generator=generator)
    images = torch.randn(peers, rows, *net.shape, generator=generator)
    return theta, images, torch.randint(net.classes, (peers, rows), generator=generator)


def plain(
    net: Net, theta: Tensor, images: Tensor, labels: Tensor, masks: dict[str, Tensor]
) -> tuple[Tensor, nn.Module]:
    """Gradient of one peer by an ordinary module, and that module."""
    module = net.make().train()
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    for name, mask in masks.items():
        module.get_submodule(name.removesuffix(".mask")).mask = mask
    F.nll_loss(F.log_softmax(module(images), 1), labels).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()]), module


@pytest.mark.parametrize("way", ["loop", "vmap"])
@pytest.mark.parametrize("net", SMALL, ids=lambda net: net.name)
def test_gradients_are_those_of_plain_modules(net, way):
    theta, images, labels = problem(net, 3, 5)
    kept = theta.clone()
    stack = Stack(net, 3, seed=1, way=way, threads=1)
    out = torch.full_like(theta, torch.nan)
    grads, losses = stack.gradients(theta, images, labels, step=4, out=out)
    assert grads is out
    assert torch.equal(theta, kept)
    for peer in range(3):
        expected, module = plain(net, theta[peer], images[peer], labels[peer], stack._masks(peer, 4, 5))
        assert torch.allclose(grads[peer], expected, atol=2e-6)
        logits = module.train()(images[peer]).detach()
        assert float(losses[peer]) == pytest.approx(float(F.cross_entropy(logits, labels[peer])), abs=1e-5)


@pytest.mark.parametrize("net", [*SMALL, NETS["mlp"], NETS["empire-cnn"]], ids=lambda net: net.name)
def test_both_ways_give_the_same_numbers(net):
    theta, images, labels = problem(net, 2, 4)
    stacks = [Stack(net, 2, seed=1, way=way) for way in ("loop", "vmap")]
    (a, loss_a), (b, loss_b) = (stack.gradients(theta, images, labels, step=0) for stack in stacks)
    assert torch.allclose(a, b, atol=1e-6 + 2e-5 * float(a.abs().max()))
    assert torch.allclose(loss_a, loss_b, atol=1e-5)
    for name, value in stacks[0].statistics.items():
        assert torch.allclose(value.double(), stacks[1].statistics[name].double(), atol=1e-6)
    right = [stack.evaluate(theta, images[0], labels[0]) for stack in stacks]
    assert torch.equal(*right)


def test_float64_gradients_agree_with_finite_differences():
    net = NETS["mlp-digits"]
    theta, images, labels = (value.double() if value.is_floating_point() else value for value in problem(net, 2, 3))
    stack = Stack(net, 2, threads=1)
    grads, _ = stack.gradients(theta, images, labels, step=0)
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ends = [stack.gradients(theta + eps * direction, images, labels, step=0)[1] for eps in (1e-6, -1e-6)]
    assert torch.allclose((ends[0] - ends[1]) / 2e-6, (grads * direction).sum(1), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# statistics and masks


@pytest.mark.parametrize("way", ["loop", "vmap"])
def test_running_statistics_belong_to_one_peer_each(way):
    theta, images, labels = problem(TINY, 3, 8)
    stack = Stack(TINY, 3, way=way, seed=1)
    stack.gradients(theta, images, labels, step=0)
    means = stack.statistics["2.running_mean"]
    for peer in range(3):
        _, module = plain(TINY, theta[peer], images[peer], labels[peer], stack._masks(peer, 0, 8))
        assert torch.allclose(means[peer], module[2].running_mean, atol=1e-6)
        assert torch.allclose(stack.statistics["2.running_var"][peer], module[2].running_var, atol=1e-6)
    statistics = {name: value.clone() for name, value in stack.statistics.items()}
    other = images.clone()
    other[1] += 5  # only this peer's data change
    again = Stack(TINY, 3, way=way, seed=1)
    again.gradients(theta, other, labels, step=0)
    changed = (again.statistics["2.running_mean"] != statistics["2.running_mean"]).any(1)
    assert changed.tolist() == [False, True, False]
    assert stack.statistics["2.num_batches_tracked"].tolist() == [1, 1, 1]
    stack.gradients(theta, other, labels, step=1, track=False)
    for name, value in stack.statistics.items():
        assert torch.equal(value, statistics[name])


def test_evaluation_uses_the_peers_own_statistics_and_no_dropout():
    theta, images, labels = problem(TINY, 2, 40)
    for way in ("loop", "vmap"):
        stack = Stack(TINY, 2, way=way, seed=1)
        for step in range(3):
            stack.gradients(theta, images, labels, step=step)
        statistics = {name: value.clone() for name, value in stack.statistics.items()}
        accuracies = stack.evaluate(theta, images[0], labels[0])
        for peer in range(2):
            module = TINY.make().eval()
            nn.utils.vector_to_parameters(theta[peer].clone(), module.parameters())
            module.load_state_dict({name: value[peer] for name, value in stack.statistics.items()}, strict=False)
            expected = (module(images[0]).argmax(1) == labels[0]).double().mean()
            assert float(accuracies[peer]) == float(expected)
        assert all(torch.equal(value, statistics[name]) for name, value in stack.statistics.items())


def test_masks_have_the_rate_and_belong_to_seed_step_peer_and_layer():
    device = torch.device("cpu")
    mask = _mask(7, "drop", 0.25, (50, 64, 7, 5), device)
    assert mask.shape == (50, 64, 7, 5)
    assert sorted(mask.unique().tolist()) == pytest.approx([0, 4 / 3])
    count = mask.numel()
    assert abs(float((mask == 0).double().mean()) - 0.25) < 5 * (0.25 * 0.75 / count) ** 0.5
    flat = (mask.flatten() == 0).double() - 0.25  # neighbours of any distance inside a block are independent
    for lag in (1, 2, 4, 16):
        assert abs(float((flat[lag:] * flat[:-lag]).mean())) < 5 * 0.1875 / count**0.5
    stack = Stack(NETS["empire-cnn"], [3, 8], seed=2)
    drawn = [stack._masks(peer, step, 2)["drop3.mask"] for peer, step in ((3, 0), (8, 0), (3, 1))]
    drawn += [Stack(NETS["empire-cnn"], [3], seed=5)._masks(3, 0, 2)["drop3.mask"]]
    assert len(torch.stack(drawn).view(4, -1).unique(dim=0)) == 4
    layers = stack._masks(3, 0, 2)
    assert {name: tuple(mask.shape) for name, mask in layers.items()} == {
        "drop1.mask": (2, 64, 16, 16),
        "drop2.mask": (2, 128, 8, 8),
        "drop3.mask": (2, 128),
    }
    assert not torch.equal(layers["drop3.mask"].flatten(), layers["drop2.mask"].flatten()[:256])


def test_a_peer_alone_computes_what_it_computes_among_others():
    theta, images, labels = problem(TINY, 3, 6)
    together, _ = Stack(TINY, [4, 5, 6], seed=1, way="loop").gradients(theta, images, labels, step=2)
    alone, _ = Stack(TINY, [5], seed=1, way="loop").gradients(theta[1:2], images[1:2], labels[1:2], step=2)
    assert torch.equal(alone[0], together[1])


# ---------------------------------------------------------------------------------------------------------------
# threads, determinism, contracts


@pytest.mark.parametrize("net", [TINY, NETS["cnn-mnist"]], ids=lambda net: net.name)
def test_the_number_of_threads_changes_no_bit(net):
    theta, images, labels = problem(net, 5, 4)
    usual = torch.get_num_threads()
    runs = []
    for threads in (1, 2, 3, 9):
        stack = Stack(net, 5, seed=1, way="loop", threads=threads)
        grads, losses = stack.gradients(theta, images, labels, step=0)
        runs.append([grads, losses, stack.evaluate(theta, images[0], labels[0]), *stack.statistics.values()])
    assert torch.get_num_threads() == usual
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_an_error_in_a_thread_is_raised_and_threads_are_restored():
    theta, images, labels = problem(TINY, 4, 3)
    usual = torch.get_num_threads()
    with pytest.raises(IndexError):
        Stack(TINY, 4, threads=2).gradients(theta, images, labels + 3, step=0)
    assert torch.get_num_threads() == usual


def test_nothing_is_drawn_from_the_global_generator():
    state = torch.get_rng_state()
    theta, images, labels = problem(TINY, 2, 3)
    stack = Stack(TINY, 2)
    stack.gradients(theta, images, labels, step=0)
    stack.evaluate(theta, images[0], labels[0], 2)
    assert torch.equal(state, torch.get_rng_state())


def test_initial_rows_are_equal_but_independent():
    theta = Stack(NETS["logreg"], 4, seed=3).initial()
    assert theta.shape == (4, 7850)
    assert torch.equal(theta[0], theta[3])
    theta[0] += 1  # the published code moves all peers at once here
    assert not torch.equal(theta[0], theta[1])
    assert torch.equal(theta[1], theta[3])


def test_a_broken_model_gets_nothing_right():
    theta, images, labels = problem(NETS["mlp-digits"], 2, 50)
    theta[1] = torch.nan
    accuracies = Stack(NETS["mlp-digits"], 2).evaluate(theta, images[0], torch.zeros_like(labels[0]))
    assert accuracies[1] == 0
    assert accuracies.dtype == torch.float64


def test_evaluation_rows_are_a_fixed_draw():
    rows = evaluation_rows(1000, 100, seed=0)
    assert len(rows.unique()) == 100
    assert rows.max() > 900
    assert rows.min() < 100
    assert torch.equal(rows, evaluation_rows(1000, 100, seed=0))
    assert len(evaluation_rows(30, 100, seed=0)) == 30
    theta, images, labels = problem(TINY, 2, 30)
    stack = Stack(TINY, 2)
    some = stack.evaluate(theta, images[0], labels[0], 10)
    rows = evaluation_rows(30, 10, seed=0)
    assert torch.equal(some, stack.evaluate(theta, images[0][rows], labels[0][rows]))
    assert torch.equal(some, stack.evaluate(theta, images[0], labels[0], rows))


def test_wrong_shapes_and_ways_are_refused():
    theta, images, labels = problem(TINY, 3, 4)
    stack = Stack(TINY, 3)
    for wrong in ((theta[:2], images), (theta[:, :-1], images), (theta, images[:2]), (theta, images[..., :5])):
        with pytest.raises(ValueError, match="tiny of 3 peers takes parameters"):
            stack.gradients(*wrong, labels, step=0)
    for change in ({"way": "grouped"}, {"peers": 0}, {"threads": -1}):
        with pytest.raises(BadInput, match="loop or vmap"):
            Stack(**{"net": TINY, "peers": 3, **change})


# ---------------------------------------------------------------------------------------------------------------
# learning


def learn(data: datasets.Images, net: Net, *, peers: int, steps: int, lr: float) -> list[float]:
    """Accuracy after D-SGD among peers with different data."""
    stack = Stack(net, peers, seed=0)
    theta = stack.initial()
    parts = split("dirichlet-classes", data.train_labels, peers, alpha=1.0)
    streams = [batches(part, 25, 0, peer) for peer, part in enumerate(parts)]
    for step in range(steps):
        images, labels = datasets.training_batch(data, gather(streams, step), seed=0, step=step)
        grads, _ = stack.gradients(theta, images, labels, step=step)
        theta = (theta - lr * grads).mean(0, keepdim=True).expand_as(theta).clone()
    return stack.evaluate(theta, *datasets.test_batch(data), 500).tolist()


def test_digits_are_learnt():
    pytest.importorskip("sklearn")
    assert min(learn(datasets.load("digits"), NETS["mlp-digits"], peers=4, steps=80, lr=0.3)) > 0.85


@pytest.mark.sweep
def test_mnist_is_learnt():
    if not (SHARED_DATA / "mnist").is_dir():
        pytest.skip(f"{SHARED_DATA / 'mnist'} is absent; set GRADLESS_SHARED_DATA to the folder with the data sets")
    data = datasets.load("mnist", SHARED_DATA / "mnist")
    assert min(learn(data, NETS["cnn-mnist"], peers=3, steps=60, lr=0.1)) > 0.8
