"""The structure of the code: imports go one way, heavy libraries load late, files stay short, names have docstrings."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gradless
from gradless.system.moved import moved
from layer_order import INSIDE, PACKAGES
from public_names import public

SOURCE = Path(gradless.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE = 400

# The optimizer and what it stands on: usable without a language model in sight.
CORE = PACKAGES[: PACKAGES.index("methods") + 1]
ABOUT_MODELS = {"lm", "tasks", "transformers", "peft", "datasets", "tokenizers"}
WRAPS_MODELS = {"lm", "runs", "cost", "integrations"}  # packages that may import transformers or PEFT
LATE = {"transformers", "peft", "datasets", "sklearn", "matplotlib", "rich", "tokenizers", "huggingface_hub", "gguf"}
LATE |= {"jinja2", "markupsafe", "IPython", "zenoh", "cryptography", "networkx"}
# Aggregation and attacks: functions on tensors, for use outside a run as well.
PURE = ("collab.option_checks", "collab.aggregation", "collab.adversary", "collab.aggregators", "collab.attacks")
FORBIDDEN_MODULES = {"random", "pickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = (
    *("torch.manual_seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.seed", "torch.load"),
    *("torch.save", "torch.set_rng_state", "transformers.set_seed", "set_seed"),
)
# torch.Generator().manual_seed and fork_rng keep out of the global generator's way, so they are allowed.
# The one module that looks at the global generators: it remembers their states and puts them back.
PUTS_BACK = "forward.random_state"
ITS_CALLS = {f"np.random{name}" for name in ("", ".get_state", ".set_state", ".get_bit_generator", ".MT19937")}
ITS_CALLS |= {"torch.set_rng_state"}
DRAWS = (
    *("torch.randn", "torch.rand", "torch.randint", "torch.randperm", "torch.bernoulli"),
    *("torch.randn_like", "torch.rand_like"),
)


@cache
def trees() -> dict[str, ast.Module]:
    """Syntax trees by path below ``gradless``, such as ``collab.aggregation.base``; a package's is ``lm.__init__``."""
    return {".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text()) for path in FILES}


def imports(tree: ast.AST, *, at_top: bool) -> Iterator[str]:
    """Dotted names imported when a module is loaded (``at_top``), or anywhere; not those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=module, names=names):
                assert node.level == 0, "relative import"
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if at_top:
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if at_top:
                continue
            case _:
                yield from imports(node, at_top=at_top)


def module_of(name: str) -> str:
    """The module of this package that an imported dotted name belongs to, below ``gradless``."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in trees() and ".".join([*parts, "__init__"]) not in trees():
        parts.pop()
    path = ".".join(parts)
    return path if path in trees() else f"{path}.__init__".removeprefix(".")


@cache
def graph() -> dict[str, set[str]]:
    """Modules that each module imports, wherever in it; imports for type checkers count as well."""
    imported = {}
    for name, tree in trees().items():
        if name not in ("__init__", "__main__"):
            own = (one for one in imports(tree, at_top=False) if one.startswith("gradless."))
            imported[name] = {module_of(one) for one in own} - {"__init__", name}
    return imported


def top(name: str) -> str:
    return name.split(".")[0]


def test_every_package_has_a_place():
    assert {top(name) for name in trees()} - {"__init__", "__main__"} == set(PACKAGES)
    assert len([path for path in SOURCE.iterdir() if path.name != "__pycache__"]) <= 31


def test_imports_go_one_way():
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in sorted(others)
        if top(other) != top(name) and PACKAGES.index(top(other)) > PACKAGES.index(top(name))
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_go_one_way_inside_packages():
    wrong = []
    for package, order in INSIDE.items():
        parts = {".".join(name.split(".")[:2]) for name in trees() if top(name) == package} - {f"{package}.__init__"}
        assert parts - set(order) == set(), f"give {parts - set(order)} a place in INSIDE"
        for name, others in graph().items():
            here = ".".join(name.split(".")[:2])
            for other in others:
                there = ".".join(other.split(".")[:2])
                if here in order and there in order and order.index(there) > order.index(here):
                    wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circle():
    """No module reaches itself through imports, those inside functions and those for type checkers included."""
    remaining = {name: set(others) for name, others in graph().items()}
    while True:
        free = [name for name, others in remaining.items() if not others & remaining.keys()]
        if not free:
            break
        for name in free:
            del remaining[name]
    assert not remaining, f"these import each other, or what does: {sorted(remaining)}"


def test_aggregators_and_attacks_stand_on_nothing_else():
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if name.startswith(PURE) and not other.startswith((*PURE, "errors", "rng", "kernels", "system.typed"))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_knows_no_language_models():
    wrong = [
        f"{name} imports {other}"
        for name, tree in trees().items()
        for other in imports(tree, at_top=False)
        if top(name) in CORE and ABOUT_MODELS & {other.split(".")[0], top(other.removeprefix("gradless."))}
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_load_inside_functions():
    wrong = [
        f"{name} imports {other} when it is loaded"
        for name, tree in trees().items()
        for other in imports(tree, at_top=True)
        if other.split(".")[0] in LATE and top(name) != "integrations"  # derived from these libraries' classes
    ]
    assert not wrong, "\n".join(wrong)


def test_few_packages_wrap_transformers_and_peft():
    users = {
        top(name)
        for name, tree in trees().items()
        if {other.split(".")[0] for other in imports(tree, at_top=False)} & {"transformers", "peft"}
    }
    assert users <= WRAPS_MODELS


def test_no_pickle_and_no_global_generator():
    wrong = []
    for name, tree in trees().items():
        wrong += [
            f"{name} imports {other}"
            for other in imports(tree, at_top=False)
            if other.split(".")[0] in FORBIDDEN_MODULES and (name, other) != (PUTS_BACK, "random")
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                if name == PUTS_BACK and text in ITS_CALLS:
                    continue
                if text in FORBIDDEN_CALLS or text.startswith(("np.random", "numpy.random")):
                    wrong.append(f"{name}:{node.lineno} uses {text}")
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in DRAWS
                and "generator" not in {keyword.arg for keyword in node.keywords}
            ):
                wrong.append(f"{name}:{node.lineno} draws from the global generator")
    assert not wrong, "\n".join(wrong)


def test_text_files_name_their_encoding():
    """Python takes the one of the system, which on Windows is not UTF-8."""
    bare = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            mode = next((one.value for one in node.args if isinstance(one, ast.Constant)), "r")
            text = node.func.attr in ("read_text", "write_text")
            text |= node.func.attr == "open" and mode in ("r", "w", "a", "x", "r+", "w+")
            module = ast.unparse(node.func.value) in ("os", "tarfile", "Image", "archive", "zipfile", "typed", "zenoh")
            if text and not module and all(keyword.arg != "encoding" for keyword in node.keywords):
                bare.append(f"{name}:{node.lineno}")
    assert not bare, f'{bare}: add encoding="utf-8"'


def test_files_stay_short():
    long = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FILE}


def undocumented(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    """Public functions, classes and methods of public classes without a docstring."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node, f"{prefix}{node.name}.")


def test_the_public_is_documented():
    bare = [f"{name} has no docstring" for name, tree in trees().items() if not ast.get_docstring(tree)]
    bare += [f"{name}.{part} has no docstring" for name, tree in trees().items() for part in undocumented(tree)]
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import gradless.cli", "torch numpy transformers peft datasets sklearn matplotlib rich numba"),
        ("import gradless; gradless.mezo", "transformers peft datasets sklearn matplotlib rich"),
        (
            "import gradless.runs.train, gradless.runs.jobs, gradless.cli.demo",
            "peft datasets sklearn matplotlib rich",
        ),
    ],
)
def test_importing_stays_light(statement, absent):
    code = f"{statement}\nimport sys\nprint(*[m for m in {absent.split()} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == []


def test_every_public_name_resolves():
    for name, value in public().items():
        assert getattr(gradless, name) is value, name
    assert set(public()) <= set(dir(gradless))
    with pytest.raises(AttributeError, match="no attribute 'mezzo'"):
        gradless.mezzo  # noqa: B018


def test_a_public_name_stands_in_one_home():
    names = [name for home in gradless._HOMES for name in importlib.import_module(f"gradless.{home}").__all__]
    assert len(names) == len(set(names))
    # Type checkers read the same lists through the star imports.
    (checked,) = (
        node
        for node in trees()["__init__"].body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    assert {node.module for node in checked.body} == {f"gradless.{home}" for home in gradless._HOMES}


def test_old_paths_say_where_their_names_live():
    for old, new in moved().items():
        importlib.import_module(f"gradless.{new}")
        assert old not in trees(), old
        with pytest.raises(ModuleNotFoundError, match=rf"^gradless\.{old} is now gradless\.{new}: import it"):
            importlib.import_module(f"gradless.{old}")
    with pytest.raises(ModuleNotFoundError, match=r"gradless\.landscape is now gradless\.forward\.evaluator"):
        from gradless import landscape  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'gradless\.nowhere'"):
        importlib.import_module("gradless.nowhere")


PROMISED_PATHS = (
    *("errors", "rng", "ranks", "gradients", "directions", "estimators", "rules", "accept", "optimizer", "ledger"),
    *("methods", "methods.presets", "tasks", "tasks.base", "lm", "bench", "report", "recipes", "testing"),
    *("integrations.transformers", "integrations.replay", "collab.aggregators", "collab.attacks", "collab.config"),
)


@pytest.mark.parametrize("path", PROMISED_PATHS)
def test_promised_paths_import(path):
    if path.startswith("integrations"):
        pytest.importorskip("transformers")
    assert importlib.import_module(f"gradless.{path}").__doc__


def test_test_files_have_names_of_their_own():
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
