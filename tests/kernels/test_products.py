"""Float32 products: the same numbers from either library, and oneDNN's for all that may be given to it."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import gradless as gl
from gradless.kernels import products
from gradless.methods import METHODS
from gradless.storage import upcast

Product = Callable[..., Tensor]
SHAPES = {"rows": ((7, 5), (3, 5)), "batches of rows": ((2, 7, 5), (3, 5)), "one column": ((7, 1), (4, 1))}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows, columns and outputs of oneDNN's products, which are preferred to torch's however small they are."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    shapes: list[tuple[int, int, int]] = []
    own = products._by_onednn

    def counted(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append((*input.shape, len(weight)))
        return own(input, weight, bias)

    monkeypatch.setattr(products, "_by_onednn", counted)
    monkeypatch.setattr(products, "is_faster", lambda: True)
    monkeypatch.setattr(products, "WORTH", 1)
    return shapes


@pytest.mark.parametrize("bias", ["no bias", "bias", "expanded", "strided"])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_layers_and_their_derivatives_are_torchs(calls: list[Any], name: str, strided: bool, bias: str) -> None:
    """First ones, and second ones as a penalty of gradients takes them. oneDNN would ignore the stride of a bias."""
    of_input, of_weight = SHAPES[name]
    torch.manual_seed(0)
    x, weight = (torch.randn(shape[::-1] if strided else shape) for shape in (of_input, of_weight))
    base, out = torch.randn(10), of_weight[0]
    inputs = [x.requires_grad_(), weight.requires_grad_(), *([] if bias == "no bias" else [base.requires_grad_()])]
    make = {"no bias": lambda: None, "bias": lambda: base[:out], "expanded": lambda: base[:1].expand(out)}
    make["strided"] = lambda: base[::2][:out]

    def derivatives() -> list[Tensor]:
        views = (x.permute(*reversed(range(x.ndim))), weight.mT) if strided else (x, weight)
        out = F.linear(*views, make[bias]())
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        return [out, *first, *second]

    expected = derivatives()
    assert not calls
    with products.faster():
        for own, other in zip(derivatives(), expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    assert calls
    before = len(calls)
    derivatives()
    assert len(calls) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own forward derivatives
@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch's own switch of oneDNN
@pytest.mark.filterwarnings("ignore:.*(prototype|beta):UserWarning")  # nested and sparse tensors
def test_what_transforms_or_watches_a_product_has_it_too(calls: list[Any]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(8, 5), torch.randn(3, 5)
    kept = F.linear(x, weight)

    def same(out: Tensor, *, ours: bool = True) -> None:
        torch.testing.assert_close(out, kept)
        assert bool(calls) is ours
        calls.clear()

    with products.faster():
        same(F.linear(x, weight))
        same(torch.func.vmap(F.linear, in_dims=(0, None))(x, weight))
        same(torch.func.jvp(lambda w: F.linear(x, w), (weight,), (weight,))[1])
        same(torch.func.vjp(F.linear, x, weight)[0])
        with forward_ad.dual_level():
            same(forward_ad.unpack_dual(F.linear(forward_ad.make_dual(x, x), weight)).tangent)
        with FlopCounterMode(display=False) as counter:
            same(F.linear(x, weight))
        assert counter.get_total_flops() == 2 * 8 * 5 * 3
        with torch.inference_mode():
            assert F.linear(x, weight).is_inference()
            same(F.linear(x, weight))
        with torch.device("cpu"):
            same(F.linear(x, weight))
        same(checkpoint(F.linear, x, weight, use_reentrant=False))
        same(F.linear(x.double(), weight.double()).float(), ours=False)
        same(F.linear(x, weight.to_sparse_csr()), ours=False)
        same(torch.addmm(kept, x, weight.mT, beta=0), ours=False)
        with torch.backends.mkldnn.flags(enabled=False), products.faster():
            assert F.linear(x[:0], weight).shape == (0, 3)
        assert F.linear(x.to("meta"), weight.to("meta")).shape == (8, 3)
        overlapping = torch.randn(20).as_strided((3, 5), (1, 2))
        torch.testing.assert_close(F.linear(x, overlapping), x @ overlapping.contiguous().mT)
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            F.linear(x, weight[:, :4])
        with pytest.raises(RuntimeError, match=r"must be (a matrix|matrices)"):
            torch.mm(x, weight[0])
        other = threading.Thread(target=lambda: F.linear(x, weight))
        calls.clear()
        other.start()
        other.join()
        assert not calls
    with torch.autocast("cpu", dtype=torch.bfloat16), products.faster():
        assert F.linear(x, weight).dtype == torch.bfloat16
    assert not calls


def test_what_is_kept_for_derivatives_is_what_torch_keeps(calls: list[Any]) -> None:
    sizes: list[int] = []
    x, weight = torch.randn(8, 5, requires_grad=True), torch.randn(3, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        with products.faster():
            F.linear(x, weight)
        assert calls
        assert sizes == [15]  # not the input, since the weight is frozen


def test_small_products_are_not_worth_a_start(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WORTH", 8 * 5 * 3 + 1)
    with products.faster():
        F.linear(torch.ones(8, 5), torch.ones(3, 5))
        F.linear(torch.ones(3, 50), torch.ones(300, 50))  # of few rows
        assert not calls
        F.linear(torch.ones(16, 5), torch.ones(3, 5))
    assert calls == [(16, 5, 3)]


def test_code_is_made_for_few_numbers_of_rows(calls: list[Any]) -> None:
    """Each costs oneDNN 0.6 MB, and batches of text have hundreds: of inputs, and of what is summed in a gradient."""
    weight = torch.ones(6, 5, requires_grad=True)
    for rows in (4, 7, 33, 64, 65, 100, 130, 250, 640, 700, 1000, 5000):
        calls.clear()
        x = torch.randn(rows, 5)
        with products.faster():
            out = F.linear(x, weight)
            blocks = [shape[0] for shape in calls]
            own = torch.autograd.grad(out, weight, torch.ones(rows, 6))[0]
        sums = [inner for _, inner, _ in calls[len(blocks) :]]
        torch.testing.assert_close(out, F.linear(x, weight))
        torch.testing.assert_close(own, x.sum(0).expand(6, 5), rtol=1e-4, atol=1e-4)
        assert {*blocks, *sums} <= {*products.SIZES}
        assert rows + products.FILLED >= sum(blocks) > rows - 4  # fewer are torch's
        assert rows + products.FILLED_SUM >= sum(sums) > rows - 64
        assert len(blocks) <= 5
        assert len(sums) <= 4


def test_what_is_filled_up_reaches_no_result(calls: list[Any]) -> None:
    """Rows that are not finite stay what they are, and others beside them too."""
    x, weight = torch.randn(61, 5), torch.randn(3, 5)
    x[7], x[60] = torch.inf, torch.nan
    with products.faster():
        out, room = F.linear(x, weight), torch.full((61, 3), 7.0)
        products.linear_into(room[1:], x[1:], weight)
    assert [shape[0] for shape in calls] == [64, 64]
    torch.testing.assert_close(out, F.linear(x, weight), equal_nan=True)
    torch.testing.assert_close(room[1:], out[1:], equal_nan=True)
    assert room[0].eq(7).all()


@pytest.mark.parametrize("biased", [False, True])
def test_products_into_a_tensor_and_added_to_one(calls: list[Any], biased: bool) -> None:
    x, weight, bias = torch.randn(8, 5), torch.randn(3, 5), torch.randn(6)[::2] if biased else None
    room = torch.empty(2, 8, 3)[0]
    with products.faster():
        products.linear_into(room, x, weight, bias)
        assert len(calls) == 1 - biased  # the stride of that bias is torch's
        torch.testing.assert_close(room, F.linear(x, weight, bias))
        calls.clear()
        products.add_linear(room, x, weight)
        assert len(calls) == 1
        torch.testing.assert_close(room, F.linear(x, 2 * weight, bias))
        (of_input,) = torch.autograd.grad(added(x.requires_grad_(), weight).sum(), x)
    torch.testing.assert_close(of_input, weight.sum(0).expand(8, 5))


def added(x: Tensor, weight: Tensor) -> Tensor:
    """A product that was added to zeros."""
    room = torch.zeros(8, 3)
    products.add_linear(room, x, weight)
    return room


class Net(nn.Module):
    """Layers that are tuned, frozen, and frozen in 16 bits that are read in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.frozen, self.head = nn.Linear(width, 512), nn.Linear(512, 300), nn.Linear(300, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(512, 1))
        self.frozen.requires_grad_(False)
        self.head.to(torch.bfloat16).requires_grad_(False)
        upcast.prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        """Of inputs ``[B, width]``; one of the weights is made of a tuned and a frozen one."""
        made = F.linear(torch.relu(self.first(x)), self.scale * EYE)
        return self.head(torch.relu(self.frozen(torch.relu(made))))


EYE = torch.eye(512)
WAYS = ["stream", "dual", "in-place", "lozo", "fo-adam", "forward-grad"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("error:.*:UserWarning")
@pytest.mark.parametrize("width", [5, 320])  # small and large layers are multiplied in other ways
@pytest.mark.parametrize(("how", "recorded"), [*((how, False) for how in WAYS), *((how, True) for how in WAYS[:-1])])
def test_every_layer_of_a_step_is_multiplied_so(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, how: str, width: int, recorded: bool
) -> None:
    """Also in closures that record gradients, by their input say."""
    torch.manual_seed(0)
    net, x, y = Net(width), torch.randn(100, width, requires_grad=recorded), torch.randint(2, (100,))

    def closure() -> Tensor:
        with torch.set_grad_enabled(recorded or torch.is_grad_enabled()):
            return F.cross_entropy(net(x), y)

    def losses() -> list[float]:
        named = [(name, p) for name, p in copied.named_parameters() if p.requires_grad]
        method = how if how in METHODS else "mezo"
        more = {"engine": how} if method == "mezo" else {}
        optimizer = METHODS[method].make(named, lr=1e-4, seed=3, **more)
        return [float(optimizer.step(closure)) for _ in range(3)]

    original, copied = copy.deepcopy(net), net
    own = losses()
    layers = {shape[1:] for shape in calls}
    net.load_state_dict(original.state_dict())
    monkeypatch.setattr(products, "is_faster", lambda: False)
    assert losses() == pytest.approx(own, rel=2e-5)
    assert {(512, 300), (300, 2)} <= layers
    assert (512, 512) in layers or how == "dual"  # which multiplies made weights in one batch
    assert (width, 512) in layers or how in ("lozo", "dual")


def test_a_resumed_run_has_the_bits_of_one_that_went_on(calls: list[Any]) -> None:
    """The first step of an optimizer is watched; the same products are oneDNN's there."""
    x, y = torch.randn(100, 300), torch.randint(2, (100,))

    def run(stops: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(300, 512), nn.ReLU(), nn.Linear(512, 2))
        opt = gl.mezo(net.named_parameters(), lr=1e-3, seed=3, engine="stream")
        for step in range(6):
            if stops and step == 3:
                state = opt.state_dict()
                opt = gl.mezo(net.named_parameters(), lr=1e-3, seed=3, engine="stream")
                opt.load_state_dict(state)
            opt.step(lambda: F.cross_entropy(net(x), y))
        return {name: values.clone() for name, values in net.state_dict().items()}

    whole = run(False)
    assert calls
    for name, values in run(True).items():
        assert torch.equal(values, whole[name])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler
@pytest.mark.sweep
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("engine", ["stream", "in-place"])
def test_a_compiled_model_goes_on(calls: list[Any], engine: str) -> None:
    """Frames of the kernels run inside of a compiled region, where inductor fails on oneDNN's product."""
    torch.manual_seed(0)
    net, x, y = Net(300), torch.randn(100, 300), torch.randint(2, (100,))
    original, losses = copy.deepcopy(net.state_dict()), []
    for model in (net, torch.compile(net)):
        net.load_state_dict(original)
        tuned = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        opt = gl.mezo(tuned, lr=1e-4, seed=3, engine=engine)
        losses.append([float(opt.step(lambda model=model: F.cross_entropy(model(x), y))) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert calls


@pytest.mark.parametrize(
    ("intel", "capability", "times", "expected"),
    [
        (True, "AVX512", None, False),
        (False, "AVX2", None, False),
        (False, "AVX512", 0.5, True),
        (False, "AVX512", 0.9, False),  # as wide units as MKL's code
    ],
)
def test_a_processor_is_timed_where_its_name_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, intel: bool, capability: str, times: float | None, expected: bool
) -> None:
    now = [0.0]

    def take(seconds: float | None) -> Callable[..., None]:
        def product(x: Tensor, *_: Any, **__: Any) -> None:
            assert seconds is not None, "nothing is to be measured"
            assert x.dtype == torch.float32
            now[0] += seconds

        return product

    monkeypatch.setattr(products, "is_intel", lambda: intel)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products, "_mm_out", take(times and 1.0))
    monkeypatch.setattr(products, "_by_onednn", take(times))
    monkeypatch.setattr(products.time, "perf_counter", lambda: now[0])
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert products.is_faster.__wrapped__() is expected
    finally:
        torch.set_default_dtype(torch.float32)
