"""Plugins from files and packages: what is loaded, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import hashlib
import sys

import pytest

from gradless import plugins, tasks
from gradless.cli import main
from gradless.errors import BadInput
from gradless.lm import objectives
from gradless.methods import METHODS
from gradless.plugins import imports, loading
from gradless.runs.config import TuneConfig
from plugin_helpers import METHOD, TASK

from click.testing import CliRunner  # isort: skip

POINTS = "[gradless.methods]\nhalf = theirs_parts.methods\n"


def test_a_file_adds_its_rows_and_is_recorded_by_what_names_them(written):
    path = written.file()
    (plugin,) = plugins.load(path)
    assert METHODS["half"].options() == {"factor": 0.5}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    settings = TuneConfig(model="tiny-llama", task="sst2", method="half").resolved()
    assert settings.plugins == {str(path): sha256} == {plugin.key: plugin.record}
    assert TuneConfig(model="tiny-llama", task="sst2").resolved().plugins == {}
    assert "plugins" not in TuneConfig(model="tiny-llama", task="sst2").to_json()
    assert TuneConfig.from_json(settings.to_json()) == settings
    assert plugins.load([path]) == [plugin]  # again: nothing happens
    assert not list(path.parent.glob("__pycache__"))


def test_an_edited_file_replaces_its_former_rows(written):
    plugins.load(written.file())
    (plugin,) = plugins.load(written.file(METHOD.replace('"half"]', '"third"]')))
    assert "half" not in METHODS
    assert "third" in METHODS
    assert plugin.rows == {"methods": {"third": None}}
    with pytest.raises(BadInput, match="line 1"):
        plugins.load(written.file("1 / 0"))
    assert "third" in METHODS  # the last one that worked
    assert {plugin.key: plugin} == loading.LOADED


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "x = 1\n\n1 / 0",
            r"the plugin own.py fails with ZeroDivisionError \(division by zero\) in line 3: correct it",
        ),
        ("def f(:\n", r"own.py fails with SyntaxError \(invalid syntax\) in line 1: correct it"),
        ("import json\njson.loads('{')", r"own.py fails with JSONDecodeError \(.*\) in line 2"),
        ("import nowhere_at_all", "the plugin own.py needs 'nowhere_at_all' in line 1: install it"),
        ("import sys\nsys.exit(3)", r"own.py ends the program in line 2 when it is imported: put what only a script"),
        ("x = 1", r"the plugin own.py defines nothing: let it add a row"),
        ("", "defines nothing"),
        ("\0", "own.py fails with"),
        (
            METHOD.replace('"half"]', '"mezo"]'),
            r"'mezo' of the methods, which gradless has: rename it, or say REPLACES",
        ),
        (METHOD.replace('"half"]', '"Me-Zo"]'), "'Me-Zo' of the methods, which is too much like 'mezo'"),
        (METHOD.replace('"half"]', '"a b"]'), "choose a name of letters"),
        (METHOD.replace('"half"]', "3]"), "choose a name of letters"),
        (METHOD.replace("Method(half, ", "(lambda *a: half)("), r"as function: make it a gradless.methods.Method"),
        (
            METHOD.replace(", **common", ""),
            r"does not take params and lr, eps, seed, engine, defer .*: give it \*\*common",
        ),
        (METHOD + "del METHODS['lozo']", "removes 'lozo' from the methods: leave it there"),
        (TASK.replace('TASKS["spam"]', 'TASKS["ham"]'), "and calls it 'spam' in the row: write one name"),
        (
            TASK.replace('label_words=(" terrible", ', 'label_words=(" great ", '),
            r"fails with BadInput \(the labels 'ham' and 'spam' have the same word 'great': give each its own word\)",
        ),
        (TASK.replace('label_words=(" terrible", ', 'masked_words=(" great", '), "have the same word 'great'"),
    ],
    ids=range(18),
)
def test_a_plugin_that_cannot_be_is_refused_whole(written, text, sentence):
    rows = dict(METHODS), dict(tasks.TASKS)
    with pytest.raises(BadInput, match=sentence) as refusal:
        plugins.load(written.file(text))
    assert "\n" not in str(refusal.value)
    assert (dict(METHODS), dict(tasks.TASKS)) == rows
    assert not loading.LOADED


def test_what_is_no_plugin_is_refused(tmp_path, written):
    (tmp_path / "folder.py").mkdir()
    for spec, sentence in (
        (tmp_path / "absent.py", "cannot be read"),
        (tmp_path / "folder.py", "cannot be read"),
        (written.file(name="own.txt"), "is no Python file"),
        ("nowhere_at_all", "there is no module nowhere_at_all to import"),
        ("nowhere_at_all.inside", "there is no module"),
        ("gradless.nowhere", "there is no module gradless.nowhere"),
        ("-m", "is no plugin"),
        ("", "is no plugin"),
    ):
        with pytest.raises(BadInput, match=sentence):
            plugins.load(spec)


def test_a_built_in_name_is_replaced_only_by_a_plugin_that_says_so(written):
    built_in = METHODS["mezo"]
    text = METHOD.replace('"half"]', '"mezo"]') + 'REPLACES = ("mezo",)\n'
    plugins.load(written.file(text))
    assert METHODS["mezo"] is not built_in
    settings = TuneConfig(model="tiny-llama", task="sst2")
    assert list(plugins.named(settings.resolved().plugins)) == ["own.py"]
    with pytest.raises(BadInput, match=r"own\.py was not used and is now"):  # a run that was made without it
        plugins.check(settings.parts(), {})
    plugins.load(written.file())
    assert METHODS["mezo"] is built_in


def test_two_plugins_of_one_name_or_with_one_row_are_refused(written):
    plugins.load(written.file())
    with pytest.raises(BadInput, match=r"other\.py defines 'half' of the methods, and so does the plugin own\.py"):
        plugins.load(written.file(name="other.py"))
    with pytest.raises(BadInput, match=r"two plugins are called own\.py"):
        plugins.load(written.file(TASK, "inside/own.py"))


def test_a_plugin_prints_to_stderr(written, capsys):
    plugins.load(written.file(METHOD + "print('hello')"))
    streams = capsys.readouterr()
    assert (streams.out, streams.err) == ("", "hello\n")


def test_options_of_any_kind_are_checked(written):
    plugins.load(written.file(METHOD.replace("factor=0.5", "factor=None, must, flag=True")))
    settings = {"model": "tiny-llama", "task": "sst2", "method": "half"}
    with pytest.raises(BadInput, match=r"the method half needs the option must: write --set must=\.\.\."):
        TuneConfig(**settings).resolved()
    with pytest.raises(BadInput, match="option flag of the method half is 3: give true or false"):
        TuneConfig(**settings, options={"must": 1, "flag": 3}).resolved()
    with pytest.raises(BadInput, match="unknown option of the method half 'facto': did you mean 'factor'"):
        TuneConfig(**settings, options={"must": 1, "facto": 3}).resolved()
    assert TuneConfig(**settings, options={"must": "a", "factor": 2}).resolved().options == {"must": "a", "factor": 2}


# ---------------------------------------------------------------------------------------------------------------
# installed packages


def test_an_entry_point_is_imported_when_its_name_is_asked_for(written, monkeypatch):
    monkeypatch.syspath_prepend(written.distribution(POINTS))
    assert plugins.installed("methods") == {"half": "theirs==1.2"}
    lines = CliRunner().invoke(main, ["list", "methods"]).output
    assert "half            [theirs==1.2, imported when it is named]" in lines
    TuneConfig(model="tiny-llama", task="sst2").resolved()
    with pytest.raises(BadInput, match="unknown method 'halv': did you mean 'half'"):
        TuneConfig(model="tiny-llama", task="sst2", method="halv").resolved()
    assert "theirs_parts" not in sys.modules
    settings = TuneConfig(model="tiny-llama", task="sst2", method="half").resolved()
    ((key, record),) = settings.plugins.items()
    assert key == "theirs_parts.methods"
    assert record.endswith(" theirs==1.2")
    assert "[theirs_parts.methods]" in CliRunner().invoke(main, ["list", "methods"]).output


def test_an_entry_point_may_name_the_row_itself(written, monkeypatch):
    text = METHOD.replace('METHODS["half"] =', "HALF =")
    points = "[gradless.methods]\nhalf = theirs_parts.methods:HALF\nother = theirs_parts.methods:HALF\n"
    monkeypatch.syspath_prepend(written.distribution(points, text))
    plugins.find("methods", "half")
    plugins.find("methods", "other")
    assert METHODS["half"] is METHODS["other"]
    (plugin,) = loading.LOADED.values()
    assert plugin.rows == {"methods": {"half": None, "other": None}}


def test_the_same_file_is_a_plugin_and_a_module(written, monkeypatch):
    monkeypatch.syspath_prepend(written.distribution(""))
    (plugin,) = plugins.load("theirs_parts.methods")
    assert plugin.package == "theirs==1.2"
    assert plugins.load("theirs_parts.methods") == [plugin]


def test_a_module_that_a_script_imported_before_is_found_out(written, monkeypatch):
    monkeypatch.syspath_prepend(written.distribution(""))
    import theirs_parts.methods  # noqa: F401

    (plugin,) = plugins.load("theirs_parts.methods")
    assert plugin.rows == {"methods": {"half": None}}


def test_the_hash_of_a_module_covers_its_package(written, monkeypatch):
    site = written.distribution(POINTS)
    monkeypatch.syspath_prepend(site)
    plugins.find("methods", "half")
    (plugin,) = loading.LOADED.values()
    (site / "theirs_parts" / "helper.py").write_text("x = 1")
    assert imports.package_sha256(sys.modules["theirs_parts.methods"]) != plugin.sha256


@pytest.mark.parametrize(
    ("points", "text", "sentence"),
    [
        (
            POINTS,
            METHOD.replace('"half"]', '"third"]'),
            "theirs==1.2 promises 'half' of the methods, and .* not define",
        ),
        (
            POINTS,
            "1 / 0",
            r"theirs_parts.methods fails with ZeroDivisionError .* in line 1 of .*methods\.py: correct it",
        ),
        ("[gradless.methods]\nhalf = theirs_parts.absent\n", "", "there is no module theirs_parts.absent"),
        ("[gradless.methods]\nhalf = theirs_parts.methods:ABSENT\n", "", "fails with AttributeError"),
    ],
    ids=("promised", "fails", "absent", "attribute"),
)
def test_a_package_that_cannot_be_is_one_sentence(written, monkeypatch, points, text, sentence):
    monkeypatch.syspath_prepend(written.distribution(points, text))
    rows = dict(METHODS)
    with pytest.raises(BadInput, match=sentence):
        plugins.find("methods", "half")
    assert rows == METHODS


def test_two_packages_that_promise_a_name(written, monkeypatch):
    monkeypatch.syspath_prepend(written.distribution(POINTS))
    monkeypatch.syspath_prepend(written.distribution(POINTS.replace("theirs", "others"), name="others"))
    with pytest.raises(BadInput, match=r"others==1.2 and theirs==1.2 both define 'half' of the methods: uninstall one"):
        plugins.find("methods", "half")


def test_tasks_and_objectives_of_packages_are_found_by_name(written, monkeypatch):
    points = "[gradless.tasks]\nspam = theirs_parts.methods\n[gradless.objectives]\nmine = theirs_parts.methods\n"
    text = TASK + (
        "from gradless.lm.objectives import OBJECTIVES\n"
        'OBJECTIVES["mine"] = OBJECTIVES["option_ce"]._replace(name="mine")\n'
    )
    monkeypatch.syspath_prepend(written.distribution(points, text))
    assert tasks.get("spam").title == "Spam"
    assert objectives.choose(tasks.get("Spam"), "mine").name == "mine"
    used = TuneConfig(model="tiny-llama", task="SPAM", objective="mine").resolved().plugins
    assert list(used) == ["theirs_parts.methods"]
