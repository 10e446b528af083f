"""Without extras: what works with the packages of the core alone, and what the rest says."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

import gradless
from gradless.cli.options import EXTRAS
from hidden import OPTIONAL
from hidden import gradless as bare
from hidden import python as bare_python
from repository import ROOT

SOURCE = Path(gradless.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"torch", "numpy", "click", "rich", "safetensors", "msgspec", "jinja2", "filelock", "packaging"}
MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "protobuf": "google", "mkdocs-material": "mkdocs"}
MODULES |= {"eclipse-zenoh": "zenoh", "math-verify": "math_verify"}
BROUGHT = {
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
    "psutil": "accelerate",
    "pyarrow": "datasets",
    "referencing": "jsonschema",
    "llvmlite": "numba",
}  # by what is asked for
ELSEWHERE = {
    "markupsafe": "comes with jinja2",
    "triton": "comes with torch on Linux with CUDA",
    "trl": "of users who train with it",
    "IPython": "imported where a notebook has imported it",
    **dict.fromkeys(("wandb", "trackio", "comet_ml"), "trackers that the user names, and installs"),
}
# Asked for, but not imported: by what is.
INDIRECT = {
    "sentencepiece": "transformers reads tokenizers of models that have no tokenizer.json with it",
    "google": "the same",
    "accelerate": "transformers loads models on several devices with it",
    "mkdocs": "a program",
    "mkdocstrings": "a plugin of it",
}


def modules_of(extra: str) -> set[str]:
    """Modules that an extra brings, those of extras inside it included."""
    modules = set()
    for line in PROJECT["optional-dependencies"][extra]:
        name = re.match(r"[A-Za-z0-9._-]+", line)[0]
        inner = re.search(r"\[(.*?)\]", line)
        if name == "gradless":
            modules |= {module for part in inner[1].split(",") for module in modules_of(part)}
        else:
            modules.add(MODULES.get(name, name))
    return modules


BROUGHT_BY = {extra: modules_of(extra) for extra in PROJECT["optional-dependencies"]}


def imported() -> dict[str, set[str]]:
    """Third-party modules that the package imports anywhere, and the files that do."""
    files: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "gradless":
                    files.setdefault(top, set()).add(path.name)
    return files


def one_sentence(process, *parts: str) -> None:
    """Exit code 2, one line on stderr, no traceback."""
    assert process.returncode == 2, (process.stdout, process.stderr)
    assert process.stderr.startswith("gradless: ")
    assert process.stderr.count("\n") == 1, process.stderr
    for part in parts:
        assert part in process.stderr


def test_the_core_is_small():
    asked = {re.match(r"[a-z0-9-]+", line)[0] for line in PROJECT["dependencies"]}
    assert asked == CORE


def test_everything_that_is_imported_is_in_an_extra():
    every = set().union(*BROUGHT_BY.values())
    for name, files in imported().items():
        brought = name in CORE | every or BROUGHT.get(name) in every or name in ELSEWHERE
        assert brought, f"{name}, imported in {', '.join(sorted(files))}, is in no extra"


def test_extras_bring_nothing_that_is_not_used():
    used = set(imported())
    for extra, modules in BROUGHT_BY.items():
        idle = {module for module in modules if module.replace("-", "_") not in used and module not in INDIRECT}
        assert not idle - {"mkdocs"}, f"{extra} brings {idle}"


def test_a_module_is_said_to_be_in_an_extra_that_brings_it():
    for module, extra in EXTRAS.items():
        assert BROUGHT.get(module, module) in BROUGHT_BY[extra], (module, extra)
    silent = (
        set(imported()) - CORE - set(ELSEWHERE) - set(EXTRAS) - {"numba", "llvmlite", "psutil"}
    )  # all works without them
    assert not silent, f"{silent} would end a command with a traceback"


@pytest.mark.few(3)
@pytest.mark.parametrize("command", ["tune", "eval", "profile", "replay", "bench", "collab", "demo", "doctor", "plan"])
def test_help_works(command):
    process = bare(command, "--help")
    assert process.returncode == 0, process.stderr
    assert f"gradless {command}" in process.stdout


@pytest.mark.sweep
def test_every_list_works():
    from gradless.collab import recipes
    from gradless.runs import jobs

    code = "from click.testing import CliRunner\nfrom gradless.cli import main\nimport json\n"
    code += "print(json.dumps({w: CliRunner().invoke(main, ['list', w]).exit_code for w in sys.argv[1:]}))"
    process = bare_python(code, *jobs.TABLES, *recipes.TABLES)
    assert process.returncode == 0, process.stderr
    assert set(json.loads(process.stdout).values()) == {0}


@pytest.mark.sweep
def test_the_optimizer_works():
    code = """
import torch, gradless as gl
model = torch.nn.Linear(4, 1)
x = torch.eye(4)
for make in (gl.mezo, gl.mezo_momentum, gl.lozo, gl.zo_adam):
    opt = make(model.named_parameters(), lr=1e-2)
    moves = [opt.step_with(lambda: (model(x) - 1).square().mean())[1] for _ in range(5)]
print([m for m in sys.modules if m.split(".")[0].lower() in HIDDEN and sys.modules[m] is not None])
"""
    process = bare_python(code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[]"


@pytest.mark.sweep
def test_aggregation_and_the_suites_work():
    code = """
import torch, gradless as gl
from gradless.collab.aggregators import compose, krum, nnm
from gradless.testing import aggregator_checks, direction_checks
for check in (*direction_checks()[:4], *aggregator_checks(permutation=False)[:3]):
    check(gl.gaussian() if check.kind == "direction" else lambda f: compose(nnm(f=f), krum(f=f)))
"""
    process = bare_python(code)
    assert process.returncode == 0, process.stderr


@pytest.mark.sweep
def test_doctor_works_and_says_what_is_missing(tmp_path):
    process = bare("doctor", "--json", tmp_path / "doctor.json", GRADLESS_CACHE=str(tmp_path / "cache"))
    assert process.returncode == 0, process.stderr
    told = json.loads((tmp_path / "doctor.json").read_text())
    assert told["kernels"]["cpu"] == "torch reference"
    assert told["kernels"]["cpu self-test"] == "same bits"
    assert told["versions"]["transformers"] == "-"
    assert told["broken"] == []
    assert any("pip install 'gradless[cpu]'" in line for line in told["advice"])


@pytest.fixture
def own(tmp_path) -> list[str]:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(12)))
    return [
        *("--train", str(rows), "--test", str(rows), "--template", "{text} so"),
        *("--label-column", "label", "--labels", "0=bad,1=good"),
    ]


@pytest.mark.sweep
def test_commands_name_the_extra_that_they_need(tmp_path, own):
    """All in one process, since each import of torch takes seconds."""
    lm, out = "'transformers' is not installed: pip install 'gradless[lm]'", tmp_path / "out"
    cases = [
        (["tune", "--model", "tiny-llama", *own, "--out", out], lm),
        (["eval", "--model", "tiny-llama", *own], lm),
        (["profile", "--model", "shape:opt-125m"], lm),
        (["plan", "--model", "shape:opt-125m"], lm),
        (["demo", "--out", out], "pip install 'gradless[demo]'"),
        (["collab", "simulate", "--recipe", "monna-digits", "--out", out], "pip install 'gradless[collab]'"),
        (["collab", "split", "--dataset", "digits", "--picture", out], "pip install 'gradless[collab]'"),
    ]
    code = """
import json
from click.testing import CliRunner
from gradless.cli import main
for line in json.loads(sys.argv[1]):
    found = CliRunner().invoke(main, line)
    print(json.dumps([found.exit_code, found.stderr, found.stdout]))
"""
    ran = bare_python(code, json.dumps([list(map(str, line)) for line, _ in cases]))
    assert ran.returncode == 0, ran.stderr
    for (line, sentence), answer in zip(cases, ran.stdout.splitlines(), strict=True):
        status, error, output = json.loads(answer)
        assert status == 2, (line, output, error)
        assert error.startswith("gradless: "), line
        assert error.count("\n") == 1, error
        assert sentence in error
    assert not out.exists()


@pytest.mark.sweep
def test_the_demo_looks_for_its_packages_before_it_fetches_anything(tmp_path):
    process = bare("demo", "--out", tmp_path / "demo", GRADLESS_CACHE=str(tmp_path / "cache"))
    one_sentence(process, "pip install 'gradless[demo]'")
    assert process.stdout == ""
    assert not (tmp_path / "cache").exists()


@pytest.mark.sweep
@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("hidden", "options", "sentence"),
    [
        ("peft", ["--scheme", "lora"], "'peft' is not installed: pip install 'gradless[lm]'"),
        ("tensorboard", ["--tensorboard"], "pip install 'gradless[tensorboard]'"),
    ],
)
def test_one_package_missing(tmp_path, own, hidden, options, sentence):
    sizes = ["--steps", "1", "--num-train", "4", "--num-dev", "4", "--num-test", "4", "--batch-size", "2"]
    process = bare("tune", "--model", "tiny-llama", *own, *sizes, "--out", tmp_path / "out", *options, hidden=[hidden])
    one_sentence(process, sentence)


@pytest.mark.sweep
def test_hub_data_without_datasets(tmp_path):
    process = bare("tune", "--model", "tiny-llama", "--task", "sst2", "--out", tmp_path / "out", hidden=["datasets"])
    one_sentence(process, "--data DIR", "pip install 'gradless[data]'")


@pytest.mark.sweep
def test_a_run_without_numba_matplotlib_and_sklearn(tmp_path, own):
    """A language model needs transformers; the rest makes it faster or draws."""
    sizes = ["--steps", "2", "--num-train", "4", "--num-dev", "4", "--num-test", "4", "--batch-size", "2"]
    absent = ["numba", "llvmlite", "matplotlib", "datasets", "tensorboard", "trl", "triton", "gguf", "PIL"]
    process = bare("tune", "--model", "tiny-opt", *own, *sizes, "--out", tmp_path / "out", hidden=absent)
    assert process.returncode == 0, process.stderr
    again = bare("replay", tmp_path / "out", "--verify", hidden=absent)
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.sweep
def test_collaboration_needs_no_language_models(tmp_path):
    absent = [
        name for name in OPTIONAL if name not in BROUGHT_BY["collab"] | {"scipy", "joblib", "pillow", "scikit-learn"}
    ]
    absent = [name for name in absent if name not in ("llvmlite", "packaging")]  # of numba and matplotlib
    process = bare(
        *("collab", "simulate", "--recipe", "monna-digits", "--steps", "3", "--out", tmp_path / "out"), hidden=absent
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(next((tmp_path / "out").rglob("result.json")).read_text())["status"] == "done"
