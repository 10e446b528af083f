"""Pages: every block runs or is read, every public name has its place, and the site builds without a network."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import command_pages
import fields
import hooks
import pytest
import result_tables
from click.testing import CliRunner

import docs_blocks
import gradless
from docs_blocks import ROOT, Block
from gradless.cli import main
from gradless.methods import METHODS, SHARED, common
from gradless.tasks import TASKS
from public_names import public

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
API_PAGES = [*(DOCS / "reference" / "api").glob("*.md")]
API = {name for page in API_PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)}
README = ROOT / "README.md"
RUN = [page for page in [README, *PAGES] if docs_blocks.blocks(page)]


def ids(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else ""


# ---------------------------------------------------------------------------------------------------------------
# blocks


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.few(2)
@pytest.mark.parametrize("page", RUN, ids=ids)
def test_the_blocks_of_a_page_hold(page, tmp_path, monkeypatch):
    for module in docs_blocks.needs(page):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{page.name} needs {module}, which is not installed")
    monkeypatch.chdir(tmp_path)
    docs_blocks.run_page(page)


def test_most_blocks_run_and_the_others_say_why():
    every = [block for page in PAGES for block in docs_blocks.blocks(page)]
    run = [b for b in every if b.language in ("python", "pycon", "bash") and not b.reason]
    assert len(run) > len(every) / 3
    shown = sum(bool(b.shown) for b in every)
    assert sum(b.language == "text" and not b.title for b in every) <= shown + 5  # one with a title is a file
    assert all(len(b.reason) > 10 for b in every if b.reason)


def test_commands_of_all_helps_can_be_read():
    for path, command in command_pages.leaves(["gradless"], main):
        text = command_pages.section(path, command)
        for example in re.findall(r"```sh\n(.*?)```", text, re.S):
            for words in docs_blocks.commands(example):
                docs_blocks.check_command(words, " ".join(path))


def _block(language: str, text: str, title: str | None = None) -> Block:
    return Block(Path("page.md"), 1, language, title, text)


@pytest.mark.parametrize(
    ("language", "text", "part"),
    [
        ("sh", "gradless tune --model tiny-opt --tusk sst2 --out x", "No such option"),
        ("sh", "gradless tune --model tiny-opt --task sst2 --method mezzo --out x", "no 'mezzo'"),
        ("sh", "gradless tune --model tiny-opt --task sst3 --out x", "sst3"),
        ("sh", "gradless tune --model tiny-opt --method lezo --set kept=1 --out x", "no 'kept=1'"),
        ("sh", "gradless tune --model tiny-optt --task sst2 --out x", "no 'tiny-optt'"),
        ("sh", "gradless tune --model tiny-opt --task sst2", "Missing option '--out'"),
        ("sh", "gradless tone --model tiny-opt", "no command 'tone'"),
        ("sh", "gradless collab simulate --rule nnm+crumb --out x", "no 'nnm+crumb'"),
        ("sh", "gradless list metods", "no 'metods'"),
        ("sh", "torchrun -m gradless tune --model tiny-opt --splitt batch --out x", "No such option"),
        ("sh", "pip install 'gradless[hup]'", "no extra 'hup'"),
        ("sh", "pip install '.[hup]'", "no extra 'hup'"),
        ("sh", "make demmo", "no target 'demmo'"),
        ("sh", "python benchmarks/plans.py", "no file"),
        ("sh", "curl https://example.org", "what is curl"),
        ("bash", "gradless list metods", "no 'metods'"),
        ("bash", "ls", "what is ls"),
        ("bash", "$ gradless list schemes", "what is $"),
        ("console", "$ gradless list schemes", "no language"),
        ("python", "assert 1 + 1 == 3", ""),
        ("pycon", ">>> 1 + 1\n3", "Expected"),
        ("csv", "a,b", "needs a title"),
        ("ruby", "puts 1", "no language"),
    ],
)
def test_a_wrong_block_is_noticed(language, text, part):
    with pytest.raises((AssertionError, gradless.BadInput), match=re.escape(part) if part else None):
        docs_blocks.run_block(_block(language, text + "\n"), {})


@pytest.mark.parametrize(
    ("shown", "part"), [("full   some weights", "some weights"), ("full   all weights\nprefix ...", "leaves out")]
)
def test_wrong_output_is_noticed(shown, part):
    block = _block("bash", "gradless list schemes\n")._replace(shown=shown)
    with pytest.raises(AssertionError, match=part):
        docs_blocks.run_block(block, {})


def test_output_is_compared_by_words_and_numbers():
    docs_blocks.compare("a 1.00 b\n...\nlast 2e3", "first\na   1.02  b\nmore\nlast 2,010\nrest", "here")
    for shown in ("a 1.10 b", "a b", "last ...\na ...", "a 1.02 b\nlast 2e3"):
        with pytest.raises(AssertionError):
            docs_blocks.compare(shown, "a 1.02 b\nmore\nlast 2,010", "here")


# ---------------------------------------------------------------------------------------------------------------
# names


def test_every_public_name_is_on_a_page():
    for name in API:
        importlib.import_module(name)  # whatever a page asks for is there
    homes = {value.__module__ for value in public().values() if inspect.isroutine(value) or inspect.isclass(value)}
    assert not homes - API, f"no page shows {sorted(homes - API)}: add '::: MODULE' to a page of docs/reference/api"
    testing = importlib.import_module("gradless.testing")
    for name, part in vars(testing).items():
        if not name.startswith("_") and inspect.isfunction(part):
            assert part.__module__ in API, f"no page shows {part.__module__}.{name}"


def _source(part: object) -> ast.FunctionDef | ast.ClassDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]  # type: ignore[arg-type]
    assert isinstance(tree, ast.FunctionDef | ast.ClassDef)
    return tree


FUNCTIONS = [name for name, value in public().items() if inspect.isfunction(value)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_name_errors_arguments_and_cost(name):
    part = getattr(gradless, name)
    text, tree = inspect.getdoc(part) or "", _source(part)
    refuses = any("BadInput" in ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Raise))
    assert "Raises:" in text or not refuses, f"{name} raises BadInput and does not say when"
    preset = part.__module__.startswith("gradless.methods.")
    arguments = set(inspect.signature(part).parameters)
    if preset:
        assert re.search(r"Cost:|for costs", text), f"{name} does not say what it costs"
        arguments -= {*SHARED, "queries"}
        assert all(argument in (common.__doc__ or "") for argument in ("params", "lr", "eps", "queries"))
    elif len(arguments) > 1:
        missing = [argument for argument in arguments if not re.search(rf"\b{argument}\b", text)]
        assert not missing, f"{name} does not say what {missing[0]} is"


def test_every_method_and_result_is_on_a_page():
    shown = result_tables.methods()
    assert all(f"`{name}`" in shown for name in METHODS)
    page = (DOCS / "reference" / "measured.md").read_text()
    for path in (ROOT / "benchmarks" / "results").iterdir():
        assert f"`{path.name}`" in page, f"docs/reference/measured.md does not say which command made {path.name}"


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), f"README.md links to {target}, which does not exist"


def test_pages_that_code_names_exist():
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "CONTRIBUTING.md"]:
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text()):
            assert (ROOT / name).is_file(), f"{path.name} names {name}, which does not exist"


def test_the_page_of_the_architecture_shows_every_module_at_the_top():
    tree = re.search(r"```text\nsrc/gradless/\n(.*?)```", (DOCS / "concepts" / "architecture.md").read_text(), re.S)
    assert tree is not None
    shown = set(re.findall(r"^  ([\w.]+)", tree[1], re.M))
    modules = {path.name for path in (ROOT / "src" / "gradless").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert shown == modules - {"__init__.py", "__main__.py", "__pycache__"}


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    assert sorted(re.findall(r"[\w/-]+\.md", nav)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_tables_are_made_of_results():
    runs = json.loads((result_tables.RESULTS / "sst2-gemma-3-270m.json").read_text())["runs"]
    assert all(f"{run['test']['accuracy']:.3f}" in result_tables.sst2() for run in runs.values())
    for name, rows in result_tables.TABLES.items():
        assert rows().strip(), name
    assert all(f"\n| `{name}` | {task.title} | " in result_tables.tasks() for name, task in TASKS.items())


def test_long_tables_are_links_on_a_forge_and_stand_in_the_page_of_the_site():
    linked = 0
    for page in PAGES:
        text = page.read_text()
        for region in hooks.MARK.finditer(text):
            linked += 1
            assert f"](../../{region[1]})" in region[0]
            assert (ROOT / region[1]).read_text() in hooks.on_page_markdown(text)
        assert text.count("<!-- file") == len(hooks.MARK.findall(text))
        assert text.count("<!-- end -->") == text.count("<!-- f"), f"{page.name}: a mark without an end"
        assert text.count("<!--") == 2 * text.count("<!-- f"), f"{page.name}: a mark that is neither fields nor file"
    assert linked


def test_the_reference_has_every_option():
    for path, command in command_pages.leaves(["gradless"], main):
        text = command_pages.section(path, command)
        printed = CliRunner().invoke(main, [*path[1:], "--help"]).output
        options = set(re.findall(r"(?<=[ ,/])--[a-z][\w-]*", printed))
        assert "--help" in options, path
        for option in options - {"--help"}:
            assert option in text, (path, option)


def test_the_tables_of_fields_are_those_of_the_program():
    for page in PAGES:
        text = page.read_text()
        assert fields.filled(text) == text, f"{page.name}: a table is another now: make reference"
    shown = "".join(page.read_text() for page in PAGES)
    assert all(f"<!-- fields: {name} -->" in shown for name in fields.TABLES)
    assert (
        fields.filled("<!-- fields: rates -->\n| lr |\n<!-- end -->") != "<!-- fields: rates -->\n| lr |\n<!-- end -->"
    )


COPIED = [README, ROOT / "CONTRIBUTING.md", *PAGES, ROOT / "src" / "gradless" / "runs" / "card.md.j2"]


def test_copied_blocks_hold_commands_only():
    """No prompt, and what a command prints stands in a block of its own."""
    for page in COPIED:
        for block in docs_blocks.blocks(page):
            prompts = [line for line in block.text.splitlines() if re.match(r"(\$|%|#!?|In \[\d+\]:) \S", line.strip())]
            shell = block.language in ("sh", "bash", "console", "shell", "")
            assert not shell or block.language in ("sh", "bash"), f"{block.where}: name the block sh, bash or text"
            assert not [one for one in prompts if not one.startswith("#")], f"{block.where}: a prompt"
            if shell and "{{" not in block.text:
                for words in docs_blocks.commands(block.text):
                    docs_blocks.check_command(words, block.where)


# ---------------------------------------------------------------------------------------------------------------
# the site

needs_site = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason="the site needs the extra docs: pip install 'gradless[docs]'",
)
FAULTS = {
    "a page that is not there": ("[x](nowhere.md)", "nowhere.md"),
    "an anchor that is not there": ("[x](other.md#nowhere)", "#nowhere"),
    "an absolute link": ("[x](/other.md)", "/other.md"),
    "a name that is not there": ("[x][gradless.nowhere]", "gradless.nowhere"),
    "an argument that is not there": ("::: faulty.wrong", "nothing_like_it"),
}


@pytest.mark.sweep
@needs_site
def test_a_warning_ends_the_build(tmp_path):
    """Every kind of fault at once, each with its line; the same pages without them build."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "faulty.py").write_text(
        '"""A module."""\n\n\ndef wrong(one):\n    """Do it.\n\n    Args:\n        nothing_like_it: what.\n    """\n'
    )
    settings = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnav: [index.md, other.md]\n"
    paths = f"plugins:\n  mkdocstrings: {{default_handler: python, handlers: {{python: {{paths: [{tmp_path}]}}}}}}\n"
    (tmp_path / "mkdocs.yml").write_text(settings + paths)

    def build(text: str) -> subprocess.CompletedProcess:
        (tmp_path / "docs" / "index.md").write_text(f"# One\n\n{text}\n")
        (tmp_path / "docs" / "other.md").write_text("# Two\n")
        command = [sys.executable, "-W", "error", "-m", "mkdocs", "build", "--strict", "--site-dir", "site"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert build("[x](other.md)").returncode == 0
    faulty = build("\n\n".join(text for text, _ in FAULTS.values()))
    assert faulty.returncode != 0
    assert "warnings in strict mode" in faulty.stdout + faulty.stderr
    for kind, (_, part) in FAULTS.items():
        assert re.search(f"WARNING.*{re.escape(part)}", faulty.stderr), kind


def test_the_makefile_hides_no_warning():
    (recipe,) = re.findall(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert "-W error -m mkdocs build --strict" in recipe
    assert not re.search(r"NO_\w+=|2>|-q\b.*mkdocs|\|\| true", recipe.splitlines()[-1])


@needs_site
def test_the_site_builds_and_needs_no_network(tmp_path):
    """``make docs`` leaves the site in a folder, named in GRADLESS_SITE by .ci/run; else it is built here."""
    site = Path(os.environ.get("GRADLESS_SITE", ""))
    if not os.environ.get("GRADLESS_SITE"):
        site = tmp_path / "site"
        command = [sys.executable, "-W", "error", "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
    pages = {path.relative_to(site): path.read_text() for path in site.rglob("*.html")}
    assert len(pages) >= len(PAGES)
    for path, text in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]* src="?([^" >]+)|<link[^>]* href="?([^" >]+)', text)
        outside = [url for pair in loaded for url in pair if url.startswith(("http:", "https:", "//"))]
        assert not outside, f"{path} loads {outside[0]}"
    shown = "".join(text for path, text in pages.items() if "api" in path.parts)
    for name in public():
        assert re.search(rf'id="gradless[\w.]*\.{name}"', shown), f"the site does not show {name}"
