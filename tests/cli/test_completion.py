"""Shell completion: scripts, names, and how little is imported for them."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from click.testing import CliRunner

from gradless import lm, tasks
from gradless.cli import completion, main
from gradless.collab import aggregators, recipes
from gradless.collab.config import CollabConfig
from gradless.collab.network.delivery import Delivery
from gradless.forward.engines import CHOICES
from gradless.lm import assets, objectives
from gradless.rewards import BUILTIN
from gradless.runs import jobs
from gradless.runs import recipes as published
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.system import typed

TABLES = {
    "model": lm.sources(),
    "task": tasks.TASKS,
    "objective": objectives.OBJECTIVES,
    "recipe": recipes.RECIPES,
    "published": published.recipes(),
    "rule": {**aggregators.AGGREGATORS, **aggregators.PRE_AGGREGATORS},
    "list": {**jobs.TABLES, **recipes.TABLES},
    "reward": BUILTIN,
    "tracker": LOGGER_TYPE_TO_CLASS,
    "dtype": lm.DTYPES,
    "compute_dtype": ("auto", *lm.DTYPES),
    "device": ("cpu", "cuda", "mps"),
    "engine": CHOICES,
    "mode": jobs.MODES,
}
FIELDS = [
    names
    for record in (TuneConfig, CollabConfig, Delivery)
    for setting in typed.settings(record).values()
    if (names := setting.metadata(typed.Names)) is not None
]


def complete(line: str, shell: str = "bash") -> list[str]:
    """What a shell is told at the end of a line."""
    words = line.split(" ")
    env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_GRADLESS_COMPLETE": f"{shell}_complete"}
    if shell == "fish":
        env |= {"COMP_WORDS": line.rpartition(" ")[0], "COMP_CWORD": words[-1]}
    result = CliRunner().invoke(main, [], env=env, prog_name="gradless")
    assert result.exit_code == 0, (result.output, result.exception)
    return [line for line in result.stdout.splitlines() if line]


@pytest.mark.parametrize("kind", completion.TABLES)
def test_names_are_those_of_the_tables(kind):
    assert set(TABLES) == set(completion.TABLES)
    assert completion.names(typed.Names(kind)) == tuple(sorted(TABLES[kind]))


@pytest.mark.parametrize("names", FIELDS, ids=lambda names: names.kind)
def test_names_of_fields_are_those_of_their_tables(names):
    if names.table:
        assert completion.names(names) == tuple(sorted(names.load()))
    else:
        assert names.kind in completion.TABLES


def test_a_table_that_is_not_there_has_no_names():
    assert completion.keys("runs.jobs:NOTHING") == ()
    assert completion.keys("lm.assets:ASSETS") == tuple(assets.ASSETS)
    assert "movie-sentences" not in completion.names(typed.Names("model"))


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("gradless doc", ["plain,doctor"]),
        ("gradless tune --method mezo-a", ["plain,mezo-adam"]),
        ("gradless tune --model smol", ["plain,smollm2-135m"]),
        ("gradless eval --model ./mod", ["file,./mod"]),
        ("gradless tune --task sst2-", ["plain,sst2-bare"]),
        ("gradless tune --task nothing", []),
        ("gradless tune --scheme pre", ["plain,prefix"]),
        ("gradless plan --method fzo", ["plain,fzoo"]),
        ("gradless profile --engine in", ["plain,in-place"]),
        ("gradless list agg", ["plain,aggregators"]),
        ("gradless completion f", ["plain,fish"]),
        ("gradless recipe mezo/table1/sst2-mezo-l", ["plain,mezo/table1/sst2-mezo-lora"]),
        ("gradless collab simulate --recipe lo", ["plain,lora-sst2"]),
        ("gradless collab simulate --attack alie --attack mim", ["plain,mimic"]),
        ("gradless collab simulate --algorithm moc", ["plain,mocwtm"]),
        ("gradless collab simulate --rule nnm+trim", ["plain,nnm+trimmed-mean"]),
        ("gradless tune --config not-there.toml --meth", ["plain,--method"]),
        ("gradless tune --cell x --meth", ["plain,--method"]),
        ("gradless replay runs/x --verif", ["plain,--verify"]),
        ("gradless tunne --meth", []),
    ],
)
def test_what_a_shell_is_told(line, completions):
    assert complete(line) == completions


def test_other_shells_are_told_the_same():
    assert complete("gradless tune --scheme hea", "zsh") == ["plain", "head", "_"]
    assert complete("gradless tune --scheme hea", "fish")[0].split(",")[:2] == ["plain", "head"] or complete(
        "gradless tune --scheme hea", "fish"
    ) == ["plain", "head", "_"]


def completing(param: click.Parameter) -> bool:
    """Whether a shell is told values of an option."""
    return isinstance(param.type, completion.Named) or bool(param.type.setting.metadata(typed.Names))


def test_options_are_known_wherever_they_are():
    def options(command):
        yield from ((command.name, param) for param in command.params)
        for inner in getattr(command, "commands", {}).values():
            yield from options(inner)

    for command, param in options(main):
        if param.name in ("model", "task", "method", "scheme", "recipe", "algorithm", "attack"):
            assert completing(param), f"{command} --{param.name}"
    help_ = CliRunner().invoke(main, ["tune", "--help"]).output
    assert "--model TEXT" in help_


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_scripts_say_where_they_belong(shell):
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[-2].startswith(f"# Once: gradless completion {shell} > ")
    assert f"_GRADLESS_COMPLETE={shell}_complete" in result.output
    if shell == "zsh":
        assert lines[0] == "#compdef gradless"


def test_an_unknown_shell_is_refused():
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert result.exit_code == 2
    assert "tcsh" in result.stderr
    assert result.stderr.count("\n") == 1


def test_bash_reads_its_script_and_completes(tmp_path):
    """The real shell, if there is one: the script is sourced and its function called as on a key press."""
    bash = "/bin/bash"
    if not os.access(bash, os.X_OK):
        pytest.skip("there is no bash")
    (tmp_path / "gradless").write_text(
        f"#!{sys.executable}\nfrom gradless.cli import main\nmain(prog_name='gradless')\n"
    )
    (tmp_path / "gradless").chmod(0o755)
    (tmp_path / "script").write_text(CliRunner().invoke(main, ["completion", "bash"]).output)
    code = f"""
source {tmp_path}/script || exit 3
COMP_WORDS=(gradless tune --method mezo-a) COMP_CWORD=3
_gradless_completion gradless
echo "${{COMPREPLY[@]}}"
"""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run([bash, "--norc", "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert run.stdout.strip() == "mezo-adam", run.stderr


LIGHT = ("torch", "numpy", "rich", "transformers", "numba", "safetensors", "scipy", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "line",
    [
        *("gradless tune --model g", "gradless tune --task s", "gradless tune --method m", "gradless tune --scheme l"),
        *("gradless collab simulate --recipe m", "gradless collab simulate --attack a", "gradless list m"),
    ],
)
def test_a_key_press_imports_nothing_heavy(line):
    code = f"""
import sys
from gradless.cli import main
try:
    main(prog_name="gradless")
except SystemExit:
    print(*[name for name in {LIGHT!r} if name in sys.modules], file=sys.stderr)
"""
    env = {**os.environ, "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_GRADLESS_COMPLETE": "bash_complete"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert run.stdout.startswith("plain,")
    assert run.stderr.strip() == ""


HELPS = [
    [],
    *([name] for name, command in main.commands.items() if not isinstance(command, click.Group)),
    ["collab"],
    ["collab", "simulate"],
    ["collab", "split"],
    ["peers"],
    ["peers", "init"],
    ["peers", "run"],
    ["list", "methods"],
]


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    code = f"""
import sys
from gradless.cli import main
try:
    main({[*arguments, "--help"]!r}, prog_name="gradless")
except SystemExit as end:
    assert not end.code
    print(*[name for name in {LIGHT!r} if name in sys.modules], file=sys.stderr)
    print(sum(name.startswith("gradless") for name in sys.modules), file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith("Usage: gradless")
    heavy, own = run.stderr.split("\n")[:2]
    assert heavy == ""
    assert int(own) <= 33, "help needs modules of the package that it could do without"


@pytest.mark.parametrize("group", [main, main.commands["peers"]], ids=lambda group: group.name)
def test_a_list_of_commands_says_what_their_help_says(group):
    assert group.commands.later
    for name, later in group.commands.later.items():
        command = group.commands[name]
        assert command.name == name
        assert command.help.startswith(f"{later.summary}\n") or command.help == later.summary
    assert set(group.commands) == set(group.list_commands(None)) >= set(group.commands.later)


@pytest.mark.parametrize("record", [TuneConfig, OwnFiles, CollabConfig, Delivery])
def test_every_setting_has_a_help(record):
    assert not [one.name for one in typed.settings(record).values() if not one.help]
