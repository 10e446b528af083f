"""Two engines, one answer: the same coefficients to rounding, the same weights from the same ledger to the last bit."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import gradless as gl
import scoring_helpers as s
from gradless import lm
from gradless.forward.deferred import LIMIT
from gradless.lm import objectives, schemes
from gradless.lm.encode import encode
from gradless.optimizer import ENGINES, Update
from gradless.system.hashing import weights_sha256

SCHEMES = ("full", "lora", "prefix", "prompt")
METHODS = {"mezo": gl.mezo, "gaussian": gl.mezo_gaussian, "one-sided": gl.mezo_one_sided, "lozo": gl.lozo}


def tuned(architecture: str, scheme: str, dtype: torch.dtype = torch.float32) -> Any:
    model = lm.tiny(architecture)
    model.model.to(dtype)
    return schemes.apply(model, scheme, seed=1, num_prefix=3, num_prompt=3)


def closure_of(model: Any, objective: str = "option_ce") -> Any:
    chosen = objectives.OBJECTIVES[objective]
    batches = objectives.prepare(model, chosen, [encode(model, example) for example in s.single(model)], 2)
    return lambda: objectives.loss_over(model, chosen, batches)


def hash_of(opt: gl.ZerothOrder) -> str:
    return weights_sha256((leaf.name, leaf.param) for leaf in opt.leaves)


def shake(opt: gl.ZerothOrder) -> None:
    """Give adapters that start at zero something to do."""
    with torch.no_grad():
        for leaf in opt.leaves:
            leaf.param.add_(0.01)


# Every scheme meets every method and every architecture; the architectures share the pairs among them.
CASES = [
    (architecture, scheme, method)
    for a, architecture in enumerate(s.ARCHITECTURES)
    for b, scheme in enumerate(SCHEMES)
    for c, method in enumerate(METHODS)
    if (a + b + c) % 3 == 0
]


@pytest.mark.few(6)
@pytest.mark.parametrize(("architecture", "scheme", "method"), CASES)
def test_the_engines_find_the_same_coefficients(architecture, scheme, method):
    probes = {}
    for engine in ENGINES:
        model = tuned(architecture, scheme)
        opt = METHODS[method](
            schemes.trainable(model), eps=1e-2, lr=1e-3, seed=3, queries=2, engine=engine, defer=engine != "in-place"
        )
        shake(opt)
        closure = closure_of(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no engine gives way
            probes[engine] = [opt.step_with(closure)[0] for _ in range(2)]
        assert opt.engine == engine
        assert opt.forwards == 2 * opt.estimator.forwards(2)
    for engine in ENGINES[1:]:
        for one, other in zip(probes["stream"], probes[engine], strict=True):
            assert other.loss == pytest.approx(one.loss, rel=1e-5)
            # A last-bit difference of a loss near 1 moves a coefficient by 1e-7 / eps.
            assert other.sketch.coeffs == pytest.approx(one.sketch.coeffs, rel=1e-3, abs=3e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_deferred_or_not_any_engine_writes_the_weights_that_its_moves_replay(method, dtype):
    for engine, defer in (("stream", False), ("dual", True), ("in-place", True)):
        model = tuned("gemma", "full", dtype)
        start = [p.detach().clone() for p in model.model.parameters()]
        options = {"eps": 1e-2, "lr": 1e-2, "seed": 5, "weight_decay": 0.1 if method == "one-sided" else 0.0}
        opt = METHODS[method](schemes.trainable(model), engine=engine, defer=defer, **options)
        closure, moves = closure_of(model), []
        for step in range(7):
            moves.append(opt.step_with(closure)[1])
            if step == 3:
                opt.flush()  # at any time, without a trace
        opt.flush()
        lived = hash_of(opt)
        with torch.no_grad():
            for p, value in zip(model.model.parameters(), start, strict=True):
                p.copy_(value)
        again = METHODS[method](schemes.trainable(model), **options)
        again.replay(moves)
        assert hash_of(again) == lived, (engine, defer)


def test_rows_that_are_never_read_are_written_in_time():
    """More steps than may wait, on a model whose embedding is read row by row; weights as if written at once."""
    moves = [Update(t, (float((-1) ** t * (t + 1)),), (1e-4,), False) for t in range(LIMIT + 9)]
    hashes = set()
    for engine, defer in (("stream", False), ("dual", True), ("stream", True)):
        model = tuned("llama", "full")
        opt = gl.mezo(schemes.trainable(model), eps=1e-2, seed=5, engine=engine, defer=defer)
        closure = closure_of(model)
        for move in moves:
            if move.step % 16 == 15:
                opt.probe(closure)
            opt.apply(opt.sketch(move), lrs=move.lrs)
        assert opt._deferred.pending(opt.leaves[0]).decays.size < LIMIT
        opt.flush()
        hashes.add(hash_of(opt))
    assert len(hashes) == 1


@pytest.mark.parametrize(("beta", "most"), [(0.0, 14), (0.9, 2)])
def test_a_leaf_is_written_once_reading_its_rows_has_cost_as_much(beta, most):
    """Each read of 16 rows runs all that they wait for: a direction for each step, or with momentum a window of 66."""
    hashes = set()
    for defer in (False, True):
        model = nn.Embedding(65536, 16)
        with torch.no_grad():
            model.weight.fill_(0.5)
        opt = gl.mezo_momentum(model.named_parameters(), lr=1e-3, beta=beta, seed=5, defer=defer)
        waited = []
        for _ in range(90):
            opt.step(lambda model=model: model(torch.arange(16)).square().sum())
            waited += opt._deferred.waiting()
        opt.flush()
        hashes.add(hash_of(opt))
    assert max(waited[-30:]) == most
    assert len(hashes) == 1


def test_a_deferred_update_is_felt_by_the_next_probe():
    """The loss measured after a step is the loss at the updated weights, written or not."""
    curves = []
    for defer in (False, True):
        for engine in ("stream", "dual"):
            for make in (gl.mezo, gl.lozo):
                model = tuned("qwen", "full")
                opt = make(schemes.trainable(model), eps=1e-3, lr=5e-4, seed=2, engine=engine, defer=defer)
                closure = closure_of(model)
                losses = [opt.step_with(closure)[0].loss for _ in range(6)]
                curves.append((make, losses))
    for make, losses in curves:
        (reference, *_) = [other for maker, other in curves if maker is make]
        assert losses == pytest.approx(reference, rel=1e-3)
        assert max(losses) - min(losses) > 1e-3


@pytest.mark.parametrize("objective", ["gold", "lm", "accuracy"])
def test_other_objectives_are_walked(objective):
    coeffs = []
    for engine in ("stream", "dual"):
        model = tuned("opt", "full")
        opt = gl.mezo(schemes.trainable(model), eps=1e-2, engine=engine)
        coeffs.append(opt.probe(closure_of(model, objective)).sketch.coeffs)
        assert opt.engine == engine
    assert coeffs[1] == pytest.approx(coeffs[0], rel=1e-3, abs=3e-4)


class Net(nn.Module):
    """Reads weights in most of the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.batch = nn.BatchNorm1d(6).eval()
        self.linear = nn.Linear(6, 4)
        self.mix = nn.Parameter(torch.full((6,), 0.5))
        self.q, self.v = nn.Parameter(torch.eye(6)), nn.Parameter(torch.eye(6))
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.add_(0.1 * torch.sin(torch.arange(p.numel()).float() + i).view(p.shape))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(ids) * self.mix)
        x = x + self.batch(self.conv(x.transpose(1, 2))).transpose(1, 2)
        heads = (x @ self.q).unsqueeze(1), x.unsqueeze(1), torch.einsum("bld,de->ble", x, self.v).unsqueeze(1)
        x = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True).squeeze(1)
        return torch.addmm(self.linear.bias, x.flatten(0, 1), self.linear.weight.T)


@pytest.mark.parametrize("make", [gl.mezo, gl.lozo])
def test_weights_read_in_unusual_ways_are_walked(make):
    net, ids, coeffs = Net(), torch.arange(20).reshape(2, 10) % 11, []
    for engine in ENGINES:
        options = {"rank": 2} if make is gl.lozo else {}
        opt = make(net.named_parameters(), eps=1e-2, queries=2, engine=engine, **options)
        coeffs.append(opt.probe(lambda: net(ids).square().mean()).sketch.coeffs)
        assert opt.engine == engine
    assert coeffs[1] == pytest.approx(coeffs[0], rel=1e-3, abs=1e-5)  # losses are float32
    assert coeffs[2] == pytest.approx(coeffs[0], rel=1e-3, abs=1e-5)  # losses are float32


def test_masked_attention_is_folded_for_every_shape_of_mask():
    q = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(torch.eye(4))
    masks = {
        "causal": torch.ones(5, 5).tril().bool(),
        "shared": torch.ones(1, 1, 5, 5).tril().bool(),
        "each": torch.stack([torch.ones(5, 5).tril().roll(i, 1) for i in range(3)]).unsqueeze(1) > 0,
    }
    for name, mask in masks.items():
        mask[..., 0] = True

        def closure(mask=mask):
            x = q @ weight
            attended = torch.nn.functional.scaled_dot_product_attention(x, q, x, attn_mask=mask)
            return (attended * torch.arange(4.0)).square().mean()

        both = [gl.mezo([("w", weight)], eps=1e-2, engine=e).probe(closure).sketch.coeffs for e in ("stream", "dual")]
        assert both[1] == pytest.approx(both[0], rel=1e-3), name


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda loss: float(loss), "item"),
        (lambda loss: torch.tensor(loss.item()), "item"),
        (lambda loss: loss * 2 if loss > 0 else loss, "control flow"),
    ],
)
def test_what_cannot_be_walked_gives_way_visibly(what, reason):
    weight, x = nn.Parameter(torch.eye(3)), torch.arange(6.0).reshape(2, 3)
    expected = gl.mezo([("w", weight)]).probe(lambda: what((x @ weight).square().mean())).sketch
    opt = gl.mezo([("w", weight)], engine="dual")
    with pytest.warns(UserWarning, match=f"(?s)dual engine cannot.*{reason}"):
        probe = opt.probe(lambda: what((x @ weight).square().mean()))
    assert probe.sketch == expected
    assert opt.engine == "stream"
    opt.probe(lambda: what((x @ weight).square().mean()))  # and says so only once


def test_an_error_of_the_closure_is_its_own():
    weight = nn.Parameter(torch.eye(3))

    def broken():
        raise ZeroDivisionError("from the closure")

    opt = gl.mezo([("w", weight)], engine="dual")
    with pytest.raises(ZeroDivisionError, match="from the closure"):
        opt.probe(broken)
    assert opt.engine == "dual"


def test_an_interrupted_write_is_known(monkeypatch):
    from gradless.forward import perturbed

    model = tuned("opt", "full")
    opt = gl.mezo(schemes.trainable(model), lr=1e-3, engine="dual", defer=True)
    closure = closure_of(model)
    opt.step(closure)
    original = perturbed.branch_many

    def interrupted(*args, **kwargs):
        original(*args, **kwargs)
        raise KeyboardInterrupt

    assert not opt.torn
    with monkeypatch.context() as patch:
        patch.setattr(perturbed, "branch_many", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opt.step(closure)
    assert opt.torn


def test_restored_weights_do_not_get_older_updates():
    model = tuned("opt", "full")
    opt = gl.mezo(schemes.trainable(model), lr=1e-2, engine="dual", defer=True)
    closure = closure_of(model)
    opt.step(closure)
    state = opt.state_dict()
    kept = {name: p.detach().clone() for name, p in schemes.trainable(model)}
    opt.step(closure)
    with torch.no_grad():
        for name, p in schemes.trainable(model):
            p.copy_(kept[name])
    opt.load_state_dict(state)
    opt.flush()
    assert all(torch.equal(p, kept[name]) for name, p in schemes.trainable(model))


def test_unknown_engine():
    with pytest.raises(gl.BadInput, match="did you mean 'dual'"):
        gl.mezo([("w", nn.Parameter(torch.ones(1)))], engine="duall")


@pytest.mark.parametrize("make", [gl.mezo, functools.partial(gl.lozo, rank=2)])
def test_a_tuned_parameter_that_goes_into_a_tuned_layer_is_perturbed(make):
    """As prompts go into the network that makes them."""
    net, prompt = nn.Linear(4, 4), nn.Parameter(torch.sin(torch.arange(12.0)).view(3, 4))
    coeffs = []
    for engine in ENGINES:
        opt = make([*net.named_parameters(), ("prompt", prompt)], eps=1e-2, engine=engine)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            coeffs.append(opt.probe(lambda: net(prompt).square().mean()).sketch.coeffs)
    assert coeffs[1] == pytest.approx(coeffs[0], rel=1e-3)
    assert coeffs[2] == pytest.approx(coeffs[0], rel=1e-3)
