"""Code blocks of Markdown pages, and what becomes of each; docs/reference/measured.md tells readers about it.

=========  ====================================================================================================
language   what is done with a block
=========  ====================================================================================================
python     run; the blocks of a page share one namespace and one empty folder
pycon      run as a doctest in the same namespace
bash       commands of gradless are run, all others are read
sh         read, not run: commands, options, values, extras, targets and files that are named must exist
csv, toml  written to the file in ``title="..."``; toml must also be well-formed
text       after a bash block: what its last command prints; numbers may differ by `NEAR`, ``...`` stands for anything;
           with a title: written to that file, such as JSONL
=========  ====================================================================================================

A block whose first line is ``# not run: REASON`` is compiled or read only. Any other language is an error. Commands
have no prompt, so that they can be copied.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.testing import CliRunner

from gradless import lm, tasks
from gradless.cli import main
from gradless.collab import recipes
from gradless.collab.aggregators import AGGREGATORS, PRE_AGGREGATORS
from gradless.collab.attacks import ATTACKS
from gradless.collab.network.delivery import MODES
from gradless.forward.engines import CHOICES, ENGINES
from gradless.lm import shapes
from gradless.lm.objectives import OBJECTIVES
from gradless.lm.schemes import SCHEMES
from gradless.methods import METHODS
from gradless.rules import SCHEDULES
from gradless.runs import jobs
from plugin_helpers import tables_as_before
from repository import ROOT

NEAR = 0.05
FENCE = re.compile(r"^( *)(```+) *([\w-]*) *(.*)$")
NOT_RUN = re.compile(r"^# not run: (\S.*)$")
LANGUAGES = ("python", "pycon", "bash", "sh", "csv", "toml", "text")
OTHERS = ("pip", "make", "torchrun", "ray", "python", "cd", "cat", "tensorboard", "git")
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
SETTABLE = ("options", "attack_options", "rule_options")


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    line: int  # of its first line of text, from 1
    language: str
    title: str | None
    text: str
    shown: str = ""  # the text block behind it

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.name}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run, if it says so."""
        marked = NOT_RUN.match(self.text.split("\n")[0])
        return marked[1] if marked else None


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order; those inside lists and notes lose their indentation."""
    collected, lines = [], page.read_text().splitlines()
    at = end = 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        at += 1
        if opened is None:
            continue
        indent, fence, language, rest = opened.groups()
        start = at
        while at < len(lines) and lines[at].strip() != fence:
            at += 1
        assert at < len(lines), f"{page.name}:{start}: the block is not closed"
        inside = [line.removeprefix(indent) for line in lines[start:at]]
        titled = re.search(r'title="([^"]+)"', rest)
        block = Block(page, start + 1, language, titled[1] if titled else None, "\n".join(inside) + "\n")
        if language == "text" and collected and not "".join(lines[end + 1 : start - 1]).strip():
            collected[-1] = collected[-1]._replace(shown=block.text)
        end = at
        collected.append(block)
        at += 1
    return collected


def needs(page: Path) -> list[str]:
    """Modules that a page's front_matter matter says its blocks need: ``needs: [trl]``."""
    front_matter = re.match(r"---\n(?:.*\n)*?needs: *\[([^\]]*)\]\n(?:.*\n)*?---\n", page.read_text())
    return [name.strip() for name in front_matter[1].split(",")] if front_matter else []


def run_page(page: Path) -> None:
    """Do with every block what its language says; the current folder is the page's."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        if block.title is not None:
            target = Path(block.title)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text)
        run_block(block, namespace)


def run_block(block: Block, namespace: dict[str, Any]) -> None:
    """Run or read one block."""
    assert block.language in LANGUAGES, f"{block.where}: '{block.language}' is no language that is checked"
    match block.language:
        case "python" if block.reason:
            compile(block.text, block.where, "exec")
        case "python":
            # Line numbers in tracebacks are those of the page.
            tree = ast.increment_lineno(ast.parse(block.text, block.where), block.line - 1)
            exec(compile(tree, block.where, "exec", dont_inherit=True), namespace)
        case "pycon":
            assert not block.reason, f"{block.where}: an example is run, or it is no example"
            _doctest(block, namespace)
        case "bash" if not block.reason:
            _run_commands(block)
        case "bash" | "sh":
            for command in commands(block.text):
                check_command(command, block.where)
        case "toml":
            tomllib.loads(block.text)
        case "csv":
            assert block.title, f"{block.where}: a table needs a title, the file that it is"
        case _:
            pass


def _doctest(block: Block, namespace: dict[str, Any]) -> None:
    example = doctest.DocTestParser().get_doctest(block.text, namespace, block.where, str(block.page), block.line - 1)
    assert example.examples, f"{block.where}: no example"
    output = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    runner.run(example, out=output.write, clear_globs=False)
    assert not runner.failures, output.getvalue()
    namespace.update(example.globs)


# ---------------------------------------------------------------------------------------------------------------
# commands that are run


def _run_commands(block: Block) -> None:
    """Run the commands of a block; what the last one prints must be what the page shows, if it shows anything."""
    lines = list(commands(block.text))
    for number, words in enumerate(lines, 1):
        check_command(words, block.where)
        if words[0] != "gradless":
            continue
        shown = block.shown if number == len(lines) else ""
        result = CliRunner().invoke(main, words[1:], catch_exceptions=False)
        expected = 2 if shown.startswith("gradless: ") else 0
        assert result.exit_code == expected, f"{block.where}: {shlex.join(words)}\n{result.output}"
        if shown.strip():
            compare(shown, result.output, f"{block.where}: {shlex.join(words)}")


def compare(shown: str, printed: str, where: str) -> None:
    """Lines of a page stand in the output, in order and next to each other; a line ``...`` skips any number."""
    lines, at, skip = [line.rstrip() for line in printed.splitlines()], 0, True
    for line in shown.splitlines():
        if line.strip() == "...":
            skip = True
            continue
        match = next((i for i in range(at, len(lines)) if _same(line, lines[i])), None)
        assert match is not None, f"{where}: the page shows\n{line}\nwhich is not in\n{printed}"
        assert skip or match == at, f"{where}: the page leaves out\n{lines[at]}"
        at, skip = match + 1, False


def _same(shown: str, printed: str) -> bool:
    """Equal but for spaces, numbers within `NEAR`, and anything at ``...``."""
    pattern, numbers = "", []
    for part in re.split(r"(\.\.\.|\s+)", shown.strip()):
        if part == "...":
            pattern += ".*?"
        elif not part.strip():
            pattern += r"\s+" if part else ""
        else:
            for index, piece in enumerate(NUMBER.split(part)):
                pattern += (f"({NUMBER.pattern})" if index else "") + re.escape(piece)
            numbers += NUMBER.findall(part)
    match = re.fullmatch(pattern, printed.strip())
    if match is None:
        return False
    return all(_close(a, b) for a, b in zip(numbers, match.groups(), strict=True))


def _close(a: str, b: str) -> bool:
    one, other = float(a.replace(",", "")), float(b.replace(",", ""))
    return abs(one - other) <= NEAR * max(abs(one), abs(other)) + 1e-12


# ---------------------------------------------------------------------------------------------------------------
# commands that are read


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell block; comments are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words[: words.index(">")] if ">" in words else words


def check_command(words: list[str], where: str) -> None:
    """Whatever a command names must exist.

    Raises:
        AssertionError: it does not, with what and where.
    """
    if words[0] == "gradless":
        check_gradless(words[1:], where)
    elif words[0] == "torchrun":
        assert "-m gradless" in " ".join(words), f"{where}: torchrun of what?"
        check_gradless(words[words.index("-m") + 2 :], where)
    elif words[:3] == ["python", "-m", "gradless"]:
        check_gradless(words[3:], where)
    else:
        assert words[0] in OTHERS or "=" in words[0], f"{where}: what is {words[0]}?"
        _check_other(words, where)


def _check_other(words: list[str], where: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if words[0] == "pip":
        for name in re.findall(r"(?:gradless|\.)\[([^\]]+)\]", " ".join(words)):
            for extra in name.split(","):
                assert extra in project["optional-dependencies"], f"{where}: no extra '{extra}'"
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"{where}: no target '{words[1]}'"
    for word in words:
        if word.endswith((".py", ".sh")) and "/" in word:
            assert (ROOT / word).is_file(), f"{where}: no file '{word}'"


def check_gradless(words: list[str], where: str) -> None:
    """Parse a command line without running it, then look at the names among its values."""
    command, path, above = main, ["gradless"], None
    while isinstance(command, click.Group):
        above = click.Context(command, above, path[-1], **command.context_settings)  # its settings are inherited
        assert words, f"{where}: {' '.join(path)} needs a command"
        if words[0].startswith("-"):
            return  # gradless --version
        assert words[0] in command.commands, f"{where}: no command '{words[0]}' of {' '.join(path)}"
        command, path, words = command.commands[words[0]], [*path, words[0]], words[1:]
    if path[1:] == ["tune"] and "--resume" in words and not {"--model", "--config"} & set(words):
        words = [*words, "--model", "tiny-llama"]  # the folder of the run would tell its model
    with contextlib.suppress(click.exceptions.Exit), tables_as_before(), contextlib.chdir(ROOT):  # --help, --plugin
        try:
            context = command.make_context(path[-1], _without_files(words), parent=above)
        except click.UsageError as error:
            raise AssertionError(f"{where}: {' '.join(path)}: {error.format_message()}") from None
        for name, value in context.params.items():
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None:
                    _check_value(name, one, context.params, f"{where}: {' '.join(path)} --{name.replace('_', '-')}")


def _without_files(words: list[str]) -> list[str]:
    """A command line without settings that would be read from a file, which need not be there."""
    kept, skip = [], False
    for index, word in enumerate(words):
        if skip or (word in ("--config", "--cell", "--task-file") and not Path(words[index + 1]).is_file()):
            skip = not skip
            continue
        kept.append(word)
    named = "--config" in words and "--model" not in words  # the file would name the model
    return [*kept, *(["--model", "tiny-opt"] if named else [])]


TABLES: dict[str, Any] = {
    "method": METHODS,
    "scheme": SCHEMES,
    "engine": CHOICES,
    "engines": ENGINES,
    "objective": (*OBJECTIVES, "lm"),
    "schedule": SCHEDULES,
    "dtype": lm.DTYPES,
    "attack": ATTACKS,
    "recipe": recipes.TABLES["recipes"](),
    "algorithm": recipes.TABLES["algorithms"](),
    "what": {**jobs.TABLES, **recipes.TABLES},
    "mode": (*jobs.MODES, *MODES, "coefficients", "parameters"),  # of eval, --delivery, peers init
    "payload": ("parameters", "coefficients"),
    "select": ("loss", "metric"),
}


def _check_value(name: str, value: Any, params: dict[str, Any], where: str) -> None:
    if name in TABLES:
        assert value in TABLES[name], f"{where}: no '{value}'"
    elif name == "task":
        tasks.get(value)
    elif name == "rule":
        assert all(part in {**AGGREGATORS, **PRE_AGGREGATORS} for part in value.split("+")), f"{where}: no '{value}'"
    elif name == "model":
        known = value in lm.sources() or value.removeprefix(shapes.PREFIX) in shapes.SHAPES
        assert known or "/" in value or value.endswith(".gguf"), f"{where}: no '{value}'"
    elif name == "options" and "method" in params:
        options = METHODS[params["method"]].options()
        assert value.split("=")[0] in options, f"{where}: {params['method']} has no '{value}'"
