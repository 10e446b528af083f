"""Time, memory and error of the aggregation rules against ByzFL's and ByzPy's classes, interleaved in one run.

    pip install --no-deps byzfl==0.0.11 byzpy==0.1.4
    python benchmarks/aggregators.py --out benchmarks/results/aggregators-cpu.json

All get the same float32 rows, n = 26 and d = 431,080 (the published MNIST model) unless told otherwise, through the
calls of their users. ByzFL's Clipping and ARC write to the rows that they get: they get a copy in memory that is there
already, and its time counts, but "in place", where all may write. The error is the largest difference from a naive
float64 computation, over its largest entry; extra memory is the growth of the peak of the process beyond the result, in
units of the input (Linux only). ByzFL's SMEA and MDA look at all subsets, which takes minutes: ours alone are measured,
against all subsets in float64. ByzPy takes a list of rows and, called as here, computes in this process, in chunks of
its default size; of an even number of values it takes the lower median, which counts as its error; its geometric median
iterates until it converges, which is another computation. Without the others only our side is measured. Times on a
shared machine mean little by themselves: read the ratios. ``--receivers`` measures `Aggregator.for_all` against
one call for each honest receiver instead:

    python benchmarks/aggregators.py --receivers --out benchmarks/results/aggregators-for-all-cpu.json
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor

from gradless.collab.aggregators import arc, clipping, named, nnm
from gradless.system.machine import processor

STUBS = {
    "torchvision": ("torchvision.datasets", "torchvision.transforms"),
    "matplotlib": ("matplotlib.pyplot",),
    "seaborn": (),
}
BYZPY = {
    "aggregators.coordinate_wise.median": ("CoordinateWiseMedian",),
    "aggregators.coordinate_wise.trimmed_mean": ("CoordinateWiseTrimmedMean",),
    "aggregators.coordinate_wise.mean_of_medians": ("MeanOfMedians",),
    "aggregators.geometric_wise.krum": ("Krum", "MultiKrum"),
    "aggregators.geometric_wise.monna": ("MoNNA",),
    "pre_aggregators.arc": ("ARC",),
    "pre_aggregators.clipping": ("Clipping",),
    "pre_aggregators.nnm": ("NearestNeighborMixing",),
}


class Case(NamedTuple):
    """One rule, as each side computes it."""

    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Any, Tensor], Tensor] | None
    truth: Callable[[Tensor, Tensor], Tensor]  # (float64 rows, squared distances)
    in_place: bool = False  # all may write to the rows that they get: copies that are not timed
    overwrites: bool = False  # theirs writes to its rows, so it gets a copy, which is timed
    byzpy: Callable[[Any, list[Tensor]], Any] | None = None  # of a list of rows


def nearest(x: Tensor, distances: Tensor, f: int) -> Tensor:
    return x[distances.sort(stable=True).indices[: len(x) - f]].mean(0)


def krum_row(distances: Tensor, f: int) -> Tensor:
    return distances.sort(1).values[:, 1 : len(distances) - f].sum(1).sort(stable=True).indices


def apart(x: Tensor) -> Tensor:
    """Squared distances; each row is its own nearest."""
    distances = torch.stack([torch.stack([(a - b).square().sum() for b in x]) for a in x])
    return distances.fill_diagonal_(-1)


def published_median(x: Tensor) -> Tensor:
    z = torch.zeros_like(x[0])
    for _ in range(3):
        pull = 1 / torch.stack([(row - z).norm() for row in x]).clamp(min=0.1)
        z = (pull / pull.sum()) @ x
    return z


def around_median(x: Tensor, f: int) -> Tensor:
    median = torch.from_numpy(np.median(x.numpy(), 0))
    x = x.sort(dim=0).values  # of two values equally far from the median the smaller stays
    return x.gather(0, (x - median).abs().sort(dim=0, stable=True).indices[: len(x) - f]).mean(0)


def cut(x: Tensor, norm: float) -> Tensor:
    return x * (norm / x.norm(dim=1)).clamp(max=1)[:, None]


def cut_longest(x: Tensor, f: int) -> Tensor:
    n = len(x)
    return cut(x, float(x.norm(dim=1).sort().values[n - 2 * f * (n - f) // n - 1]))


def best_subset(x: Tensor, keep: int, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean of the subset with the least score, which is given the inner products [n, n] and subsets [B, k]."""
    inner = (x - x[0]) @ (x - x[0]).T
    subsets, least, best = itertools.combinations(range(len(x)), keep), float("inf"), torch.empty(0)
    while chunk := list(itertools.islice(subsets, 4096)):
        index = torch.tensor(chunk)
        scores = score(inner, index)
        if float(scores.min()) < least:
            least, best = float(scores.min()), index[int(scores.argmin())]
    return x[best].mean(0)


def top_eigenvalue(inner: Tensor, index: Tensor) -> Tensor:
    within = inner[index[:, :, None], index[:, None, :]]
    within = within - within.mean(1, keepdim=True)
    return torch.linalg.eigvalsh(within - within.mean(2, keepdim=True))[:, -1]


def diameter(inner: Tensor, index: Tensor) -> Tensor:
    lengths = inner.diagonal()
    squared = lengths[:, None] + lengths - 2 * inner
    return squared[index[:, :, None], index[:, None, :]].flatten(1).amax(1)


def pre_aggregated(n: int, f: int) -> dict[str, Case]:
    """Pre-aggregators, alone and before a rule."""
    norm = 300.0  # of rows of length 657 at the default width
    return {
        "clipping": Case(
            clipping(norm=norm),
            lambda b, x: b.Clipping(c=norm)(x),
            lambda x, d: cut(x, norm),
            overwrites=True,
            byzpy=lambda b, rows: b.Clipping(norm).pre_aggregate(rows),
        ),
        "arc": Case(
            arc(f=f),
            lambda b, x: b.ARC(f=f)(x),
            lambda x, d: cut_longest(x, f),
            overwrites=True,
            byzpy=lambda b, rows: b.ARC(f).pre_aggregate(rows),
        ),
        "clipping, in place": Case(
            lambda x: clipping(norm=norm)(x, in_place=True),
            lambda b, x: b.Clipping(c=norm)(x),
            lambda x, d: cut(x, norm),
            in_place=True,
        ),
        "arc, in place": Case(
            lambda x: arc(f=f)(x, in_place=True),
            lambda b, x: b.ARC(f=f)(x),
            lambda x, d: cut_longest(x, f),
            in_place=True,
        ),
        "nnm": Case(
            nnm(f=f),
            lambda b, x: b.NNM(f=f)(x),
            lambda x, d: torch.stack([nearest(x, row, f) for row in d]),
            byzpy=lambda b, rows: b.NearestNeighborMixing(f).pre_aggregate(rows),
        ),
        "arc+mean": Case(
            named("arc+mean", f=f),
            lambda b, x: b.Average()(b.ARC(f=f)(x)),
            lambda x, d: cut_longest(x, f).mean(0),
            overwrites=True,
        ),
        "arc+multi-krum": Case(
            named("arc+multi-krum", f=f),
            lambda b, x: b.MultiKrum(f=f)(b.ARC(f=f)(x)),
            lambda x, d: (y := cut_longest(x, f))[krum_row(apart(y), f)[: n - f]].mean(0),
            overwrites=True,
        ),
        "nnm+trimmed-mean": Case(
            named("nnm+trimmed-mean", f=f),
            lambda b, x: b.TrMean(f=f)(b.NNM(f=f)(x)),
            lambda x, d: torch.stack([nearest(x, row, f) for row in d]).sort(0).values[f : n - f].mean(0),
            byzpy=lambda b, rows: b.CoordinateWiseTrimmedMean(f).aggregate(
                b.NearestNeighborMixing(f).pre_aggregate(rows)
            ),
        ),
    }


def aggregated(n: int, f: int) -> dict[str, Case]:
    """Rules, some of which only we have in a usable form."""
    receivers = range(n - f)
    return {
        "nna, all honest peers": Case(
            lambda x: named("nna", f=f).for_all(x, receivers),
            lambda b, x: torch.stack([b.MoNNA(f=f, idx=p)(x) for p in receivers]),
            lambda x, d: torch.stack([nearest(x, d[p], f) for p in receivers]),
            byzpy=lambda b, rows: [b.MoNNA(f, reference_index=p).aggregate(rows) for p in receivers],
        ),
        "krum": Case(
            named("krum", f=f),
            lambda b, x: b.Krum(f=f)(x),
            lambda x, d: x[krum_row(d, f)[0]],
            byzpy=lambda b, rows: b.Krum(f).aggregate(rows),
        ),
        "multi-krum": Case(
            named("multi-krum", f=f),
            lambda b, x: b.MultiKrum(f=f)(x),
            lambda x, d: x[krum_row(d, f)[: n - f]].mean(0),
            byzpy=lambda b, rows: b.MultiKrum(f, n - f).aggregate(rows),
        ),
        "geometric-median": Case(
            named("geometric-median", f=f, nu=0.1, iterations=3, tolerance=0.0, start="origin"),
            lambda b, x: b.GeometricMedian(nu=0.1, T=3)(x),
            lambda x, d: published_median(x),
        ),
        "trimmed-mean": Case(
            named("trimmed-mean", f=f),
            lambda b, x: b.TrMean(f=f)(x),
            lambda x, d: x.sort(0).values[f : n - f].mean(0),
            byzpy=lambda b, rows: b.CoordinateWiseTrimmedMean(f).aggregate(rows),
        ),
        "median": Case(
            named("median"), lambda b, x: b.Median()(x), lambda x, d: torch.from_numpy(np.median(x.numpy(), 0))
        ),
        "median, of a list": Case(
            lambda x: named("median")(list(x)),
            lambda b, x: b.Median()(list(x)),
            lambda x, d: torch.from_numpy(np.median(x.numpy(), 0)),
            byzpy=lambda b, rows: b.CoordinateWiseMedian().aggregate(rows),
        ),
        "meamed": Case(
            named("meamed", f=f),
            lambda b, x: b.Meamed(f=f)(x),
            lambda x, d: around_median(x, f),
            byzpy=lambda b, rows: b.MeanOfMedians(f).aggregate(rows),
        ),
        "mean": Case(named("mean"), lambda b, x: b.Average()(x), lambda x, d: x.mean(0)),
        "mda": Case(named("mda", f=f), None, lambda x, d: best_subset(x, n - f, diameter)),
        "smea": Case(named("smea", f=f), None, lambda x, d: best_subset(x, n - f, top_eigenvalue)),
    }


def byzfl_or_none() -> Any | None:
    """ByzFL, with stubs for what its import pulls in and aggregation does not need."""
    if importlib.util.find_spec("byzfl") is None:
        return None
    missing = [top for top in STUBS if importlib.util.find_spec(top) is None]
    for top in missing:
        for name in (top, *STUBS[top]):
            module = types.ModuleType(name)
            module.__getattr__ = lambda attribute: MagicMock()  # type: ignore[method-assign]
            sys.modules[name] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import byzfl
    return byzfl


def byzpy_or_none() -> Any | None:
    """ByzPy's classes, which it keeps in modules of their own."""
    if importlib.util.find_spec("byzpy") is None:
        return None
    classes = {}
    for module, names in BYZPY.items():
        for name in names:
            classes[name] = getattr(importlib.import_module(f"byzpy.{module}"), name)
    return types.SimpleNamespace(**classes)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def extra(run: Callable[[], Any], size: int) -> float | None:
    """Growth of the peak of this process beyond the result, in units of ``size`` bytes."""

    def high() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    try:
        Path("/proc/self/clear_refs").write_text("5")
        base = high()
        result = run()
        size_of_result = sum(row.nbytes for row in result) if isinstance(result, list) else result.nbytes
        return round((high() - base - size_of_result) / size, 3)
    except OSError:
        return None


def error(result: Any, true: Tensor) -> float:
    whole = torch.stack(result) if isinstance(result, list) else result
    return float((whole.double() - true).abs().max() / true.abs().max())


def compare(case: Case, byzfl: Any | None, byzpy: Any | None, x: Tensor, true: Tensor, repeats: int) -> dict[str, Any]:
    """Medians of interleaved runs, after one to warm up; error and memory of each side."""
    scratch, other = x.clone(), torch.empty_like(x)
    sides: dict[str, Callable[[], Any]] = {"gradless": lambda: case.ours(scratch)}
    if byzfl is not None and case.theirs is not None:
        sides["byzfl"] = lambda: case.theirs(byzfl, other.copy_(scratch) if case.overwrites else scratch)
    if byzpy is not None and case.byzpy is not None:
        sides["byzpy"] = lambda: case.byzpy(byzpy, list(scratch))
    row: dict[str, Any] = {}
    for side, run in sides.items():
        scratch.copy_(x)
        row[f"{side}_error"] = error(run(), true)
        scratch.copy_(x)
        row[f"{side}_extra_memory"] = extra(run, x.nbytes)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            scratch.copy_(x)
            times[side].append(seconds(run))
    row |= {f"{side}_seconds": round(statistics.median(values), 5) for side, values in times.items()}
    if "byzfl" in sides:
        row["speedup"] = round(row["byzfl_seconds"] / row["gradless_seconds"], 2)
    if "byzpy" in sides:
        row["speedup_over_byzpy"] = round(row["byzpy_seconds"] / row["gradless_seconds"], 2)
    return row


def receivers(n: int, f: int, x: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds of all honest receivers at once and of one call for each, interleaved; both give the same bits."""
    rows, pivots = {}, range(n - f)
    for name in ("nna", "nnm+nna", "self-centred-clipping", "nnm+trimmed-mean"):
        rule = named(name, f=f)
        one_by_one, at_once = (
            (lambda rule=rule: torch.stack([rule(x, pivot=p) for p in pivots])),
            (lambda rule=rule: rule.for_all(x, pivots)),
        )
        assert torch.equal(one_by_one(), at_once())
        times = [(seconds(one_by_one), seconds(at_once)) for _ in range(repeats)]
        alone, together = (statistics.median(side) for side in zip(*times, strict=True))
        rows[name] = {"one_by_one_seconds": alone, "for_all_seconds": together, "speedup": round(alone / together, 1)}
        print(name, json.dumps(rows[name]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--rows", type=int, default=26)
    parser.add_argument("--byzantine", type=int, default=5)
    parser.add_argument("--columns", type=int, default=431_080)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--only", nargs="*", help="names of rules")
    parser.add_argument("--receivers", action="store_true", help="all receivers at once against one by one")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(args.columns, generator=draw) + 0.01 * torch.randn(args.rows, args.columns, generator=draw)
    if args.receivers:
        report = {"rows": args.rows, "byzantine": args.byzantine, "columns": args.columns, "processor": processor()}
        report |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "repeats": args.repeats}
        report["rules"] = receivers(args.rows, args.byzantine, x, args.repeats)
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")
        return
    wide = x.double()
    distances = apart(wide)
    byzfl, byzpy, rows = byzfl_or_none(), byzpy_or_none(), {}
    cases = pre_aggregated(args.rows, args.byzantine) | aggregated(args.rows, args.byzantine)
    for name, case in cases.items():
        if args.only and name not in args.only:
            continue
        rows[name] = compare(case, byzfl, byzpy, x, case.truth(wide, distances), args.repeats)
        print(name, json.dumps(rows[name]), flush=True)
    report = {
        "rows": args.rows,
        "byzantine": args.byzantine,
        "columns": args.columns,
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
        "machine": processor(),
        "torch": torch.__version__,
        "byzfl": None if byzfl is None else metadata.version("byzfl"),
        "byzpy": None if byzpy is None else metadata.version("byzpy"),
        "rules": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
