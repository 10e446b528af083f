"""What pytest must not import where an optional part is not installed, and which tests belong to which tier.

``make test`` touches every module and every row of every table. Of a test with several parameters it runs the fewest
cases in which every value of each occurs, and of a costly test marked ``few(n)`` only ``n`` of these; the other cases
are the sweep, as is what is marked ``sweep``: a costly test whose promise a cheaper one holds in another way.
``make test-all`` runs the sweep as well. What is marked ``long`` repeats a test that is there already, with more kills,
seeds or schedules, and belongs to ``make test-long``; so do all cases of a test marked ``few(n, sweep=m)`` but ``m`` of
the fewest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

collect_ignore = [] if importlib.util.find_spec("triton") else ["src/gradless/kernels/cuda"]
if not (importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate")):
    wrapping = ("argument_checks", "events", "hooks", "losses", "overrides", "replay", "transformers")
    collect_ignore += [f"src/gradless/integrations/{name}.py" for name in wrapping]
# TRL warns when it is imported, by versions; its own tests import it.
collect_ignore += ["src/gradless/integrations/trl.py"]

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("long", max_examples=2000, deadline=None)

# The engine that ``auto`` stands for: hashes of runs must not depend on how fast this machine is. Tests of the choice
# itself take the variable away.
os.environ.setdefault("GRADLESS_ENGINE", "stream")

Case = tuple[tuple[str, tuple[int, ...]], ...]  # (axis, which of its values) for every axis


def case_of(item: Any) -> Case:
    """Place of a test's case on each axis: what one ``parametrize`` sets, be it one name or several."""
    params = item.callspec.params
    axes = [mark.args[0] for mark in item.iter_markers("parametrize")]
    names = [tuple(n.strip() for n in axis.split(",")) if isinstance(axis, str) else tuple(axis) for axis in axes]
    names += [(name,) for name in params if not any(name in axis for axis in names)]  # of fixtures
    return tuple((" ".join(axis), tuple(id(params[name]) for name in axis)) for axis in names)


def fewest(cases: Sequence[Case]) -> set[int]:
    """Numbers of few cases in which every value of every axis occurs: always one with the most new ones next."""
    uses = dict.fromkeys(itertools.chain.from_iterable(cases), 0)
    chosen: set[int] = set()
    while not all(uses.values()):
        new = [sum(not uses[value] for value in case) for case in cases]
        best = min(range(len(cases)), key=lambda i: (-new[i], sum(uses[value] for value in cases[i]), i))
        chosen.add(best)
        for value in cases[best]:
            uses[value] += 1
    return chosen


def spread(values: Sequence[int], count: int) -> list[int]:
    """So many of them, from the first on at even distances."""
    return [values[i * len(values) // count] for i in range(count)] if count < len(values) else list(values)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Iterable[Any]) -> None:
    """Mark the cases that only a sweep or a long run needs, before pytest looks at marks to choose."""
    tests: dict[tuple[Any, str], list[Any]] = {}
    for item in items:
        if hasattr(item, "callspec") and not any(item.iter_markers("sweep")) and not any(item.iter_markers("long")):
            tests.setdefault((item.parent, item.originalname), []).append(item)
    for group in tests.values():
        kept = sorted(fewest([case_of(item) for item in group]))
        swept: Sequence[int] = range(len(group))
        for mark in group[0].iter_markers("few"):
            swept = spread(kept, mark.kwargs["sweep"]) if mark.kwargs else swept
            kept = spread(kept, *mark.args)
        for number, item in enumerate(group):
            if number not in kept:
                item.add_marker(pytest.mark.sweep if number in swept else pytest.mark.long)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Look for examples in docstrings of the package alone: test files have none, and looking takes seconds."""
    collected = yield
    tests = Path(__file__).parent / "tests"
    return [one for one in collected if type(one) is pytest.Module or not file_path.is_relative_to(tests)]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--counts`` and ``--missing``."""
    parser.addoption("--counts", metavar="FILE", help="write what tests counted with record_property to a JSON file")
    parser.addoption("--missing", action="store_true", help="skip the tests that passed in the file of --counts")


def pytest_configure(config: pytest.Config) -> None:
    """Count, if it is asked for."""
    if (path := config.getoption("--counts")) is not None:
        known = counted(Path(path)) if config.getoption("--missing") else {}
        config.pluginmanager.register(Counts(Path(path), known, writes=not hasattr(config, "workerinput")))


def processor() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def counted(path: Path) -> dict[str, Any]:
    """What the tests in a file of counts counted; none if there is no file yet."""
    return dict(json.loads(path.read_text())["tests"]) if path.exists() else {}


def release() -> str:
    """The commit that is tested; empty outside a repository."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        )
        return described.stdout.strip()
    return ""


class Counts:
    """Writes the counts of a long run: what was repeated how often, of which commit, and on which processor.

    The file is written after each test, so that a run that was stopped goes on with ``--missing``.

    Args:
        path: of the JSON file.
        known: what it holds already.
        writes: False in a process of pytest-xdist that runs tests for another one.
    """

    def __init__(self, path: Path, known: dict[str, Any], *, writes: bool) -> None:
        self.path, self.tests, self.writes, self.release = path, known, writes, release() if writes else ""
        self.passed = frozenset(name for name, test in known.items() if test["outcome"] == "passed")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: Iterable[Any]) -> None:
        """Skip what has passed; what is collected stays the same in all processes."""
        for item in items:
            if item.nodeid in self.passed:
                item.add_marker(pytest.mark.skip(reason=f"passed in {self.path}"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that has ended."""
        if not self.writes or report.when != "call" or report.outcome == "skipped":
            return
        facts = {"outcome": report.outcome, "seconds": round(report.duration, 1), "commit": self.release}
        self.tests[report.nodeid] = {**dict(report.user_properties), **facts}
        command = shlex.join(["pytest", *sys.argv[1:]])
        tests = dict(sorted(self.tests.items()))
        whole = self.path.with_name(f"{self.path.name}.new")
        whole.write_text(json.dumps({"command": command, "processor": processor(), "tests": tests}, indent=1) + "\n")
        whole.replace(self.path)
