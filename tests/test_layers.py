"""The shape of the code: imports go one way, heavy libraries load late, files stay short, the public is documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradless

SOURCE = Path(gradless.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST = 400

# From the bottom up; a module may import from the layers below its own.
LAYERS = (
    ("errors", "hashing"),
    ("claims", "ranks", "packing"),
    ("rng",),
    ("kernels",),  # a package: its parts import each other
    ("gradients",),
    ("directions", "points", "deferred", "copies", "ahead", "rules", "estimators", "derivatives", "accept", "moves"),
    ("thin", "masks", "moments", "signs", "muon", "subsets"),
    ("layers",),
    ("prefix",),
    ("streaming",),
    ("landscape", "leaves"),
    ("optimizer",),
    ("scales",),
    ("methods",),
    ("ledger", "memory", "progress", "eager_mezo"),
    ("cache", "tiny", "gguf_convert", "model_config"),
    ("assets",),
    ("lm",),
    ("schemes", "metrics", "tasks", "shapes"),
    ("blueprints", "live"),
    ("encode",),
    ("sharing",),
    ("batching",),
    ("scoring",),
    ("objectives", "footprint"),
    ("evaluate",),
    ("config", "notes", "plots", "shares"),
    ("config_file", "run", "workload", "predictions", "command_line", "reuse"),
    ("collab", "integrations"),
    ("recipes",),
    ("outcome", "cluster", "trackers", "card", "hub"),
    ("train", "saving"),
    ("jobs", "plan", "profiling", "commands"),
    ("bench", "testing", "doctor", "completion"),
    ("report",),
    ("collab_cli", "plan_cli", "doctor_cli", "demo"),
    ("cli",),
)
# The optimizer and what it stands on: usable without a language model in sight.
CORE = (
    *("errors", "hashing", "rng", "kernels", "gradients", "directions", "scales", "streaming", "rules", "estimators"),
    *(
        "points",
        "deferred",
        "copies",
        "ahead",
        "thin",
        "derivatives",
        "accept",
        "moves",
        "masks",
        "moments",
        "signs",
        "muon",
    ),
    *("layers", "subsets", "prefix"),
    *("ranks", "landscape", "leaves", "optimizer", "methods", "ledger"),
)
ABOUT_MODELS = {"lm", "tasks", "schemes", "transformers", "peft", "datasets", "tokenizers"}
LATE = {"transformers", "peft", "datasets", "sklearn", "matplotlib", "rich", "tokenizers", "huggingface_hub", "gguf"}
FORBIDDEN_MODULES = {"random", "pickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = (
    *("torch.manual_seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.seed", "torch.load"),
    *("torch.save", "torch.set_rng_state", "transformers.set_seed", "set_seed"),
)
# torch.Generator().manual_seed and fork_rng keep out of the global generator's way, so they are allowed.


def module_of(path: Path) -> str:
    """``gradless/tasks/own.py`` -> ``tasks``: the layer's unit."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST, *, at_top: bool) -> Iterator[str]:
    """Dotted names imported when a module is loaded (``at_top``), or anywhere; not those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=module, names=names):
                assert node.level == 0, "relative import"
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if at_top:
                continue
            case _:
                yield from imports(node, at_top=at_top)


def own(names: Iterator[str]) -> set[str]:
    """Units of the package among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("gradless.")} - {"__version__"}


def parsed() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in FILES]


TREES = parsed()
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


# Aggregation and attacks: pure functions on tensors, for use outside a run as well.
RULES = (
    *("geometry", "views", "rules", "spans", "crowds", "columns", "mixes", "sweeps", "compiled", "stages"),
    *("aggregators", "scene", "identical", "mimicry", "equivocation", "attacks", "strength"),
)


def test_aggregators_and_attacks_stand_on_nothing_else():
    for name in RULES:
        tree = ast.parse((SOURCE / "collab" / f"{name}.py").read_text())
        for found in (entry for entry in imports(tree, at_top=False) if entry.startswith("gradless.")):
            parts = found.split(".")
            assert parts[1] in ("errors", "rng", "kernels") or (parts[1] == "collab" and parts[2] in RULES), (
                f"{name} imports {found}"
            )


def test_every_module_has_a_layer():
    units = {module_of(path) for path in FILES} - {"__init__", "__main__"}
    assert units == set(LEVEL)


@pytest.mark.parametrize(("path", "tree"), TREES, ids=lambda value: value.stem if isinstance(value, Path) else "")
def test_imports_go_one_way(path, tree):
    unit = module_of(path)
    if unit in ("__init__", "__main__"):
        return
    for other in own(imports(tree, at_top=False)) - {unit}:
        assert LEVEL[other] < LEVEL[unit], f"{path.name} imports {other}, which is not below it"


def test_the_core_knows_no_language_models():
    for path, tree in TREES:
        if module_of(path) in CORE:
            names = list(imports(tree, at_top=False))
            found = (own(iter(names)) | {name.split(".")[0] for name in names}) & ABOUT_MODELS
            assert not found, f"{path.name} imports {found}"


def test_heavy_libraries_load_inside_functions():
    for path, tree in TREES:
        if module_of(path) == "integrations":  # they are derived from these libraries' classes
            continue
        found = {name.split(".")[0] for name in imports(tree, at_top=True)} & LATE
        assert not found, f"{path.name} imports {found} when it is loaded"


def test_only_three_modules_wrap_transformers_and_peft():
    users = {
        module_of(path)
        for path, tree in TREES
        if {name.split(".")[0] for name in imports(tree, at_top=False)} & {"transformers", "peft"}
    }
    assert users <= {
        *(
            "lm",
            "tiny",
            "shapes",
            "blueprints",
            "gguf_convert",
            "model_config",
            "schemes",
            "scoring",
            "notes",
            "train",
            "evaluate",
        ),
        "integrations",
    }
    assert {name for name in users if name in ("cli", "jobs", "tasks")} == set()


def test_no_pickle_and_no_global_generator():
    for path, tree in TREES:
        names = {name.split(".")[0] for name in imports(tree, at_top=False)}
        assert not names & FORBIDDEN_MODULES, f"{path.name} imports {names & FORBIDDEN_MODULES}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                assert text not in FORBIDDEN_CALLS, f"{path.name}:{node.lineno} uses {text}"
                assert not text.startswith(("np.random", "numpy.random")), f"{path.name}:{node.lineno} uses {text}"
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
                *("torch.randn", "torch.rand", "torch.randint", "torch.randperm", "torch.bernoulli"),
                *("torch.randn_like", "torch.rand_like"),
            ):
                given = {keyword.arg for keyword in node.keywords}
                assert "generator" in given, f"{path.name}:{node.lineno} draws from the global generator"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def public(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods of public classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize(("path", "tree"), TREES, ids=lambda value: value.stem if isinstance(value, Path) else "")
def test_the_public_is_documented(path, tree):
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    bare = [name for name, node in public(tree) if not ast.get_docstring(node)]
    assert not bare, f"{path.name}: no docstring on {', '.join(bare)}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import gradless.cli", "torch numpy transformers peft datasets sklearn matplotlib rich numba"),
        ("import gradless; gradless.mezo", "transformers peft datasets sklearn matplotlib rich"),
        ("import gradless.train, gradless.jobs, gradless.demo", "peft datasets sklearn matplotlib rich"),
    ],
)
def test_importing_stays_light(statement, absent):
    code = f"{statement}\nimport sys\nprint(*[m for m in {absent.split()} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == []


def test_every_public_name_resolves():
    for name, module in gradless._HOMES.items():
        assert getattr(gradless, name).__module__ == module or name == "always", name
    assert set(gradless._HOMES) <= set(dir(gradless))
    with pytest.raises(AttributeError, match="no attribute 'mezzo'"):
        gradless.mezzo  # noqa: B018
    # Type checkers read the other list.
    (checked,) = (node for node in ast.parse((SOURCE / "__init__.py").read_text()).body
                  if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")  # fmt: skip
    names = {alias.name: node.module for node in checked.body for alias in node.names}
    assert names == gradless._HOMES
