"""Recipes: all of them parse, plan and have one name; the command shows them."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from collections import Counter

import pytest
import torch

import docs_blocks
from cli_helpers import call, refused
from gradless import tasks
from gradless.bench import grid
from gradless.collab.recipes import RECIPES
from gradless.cost import plan
from gradless.errors import BadInput
from gradless.lm import shapes
from gradless.methods import METHODS
from gradless.runs import config_io, recipes
from gradless.runs.config import TuneConfig
from gradless.runs.recipes import groups, record, written, zobench

ALL = recipes.recipes()


def test_names_are_unique_and_have_a_folder():
    every = [one.name for table in recipes.TABLES for one in table.recipes()]
    assert len(every) == len(set(every)) == len(ALL)
    assert set(recipes.sections()) == set(recipes.FOLDERS)
    assert all(name == name.lower() and " " not in name for name in every)
    assert not [name for name in every if any(other.startswith(f"{name}/") for other in every)]


@pytest.mark.parametrize("folder", recipes.FOLDERS)
def test_every_recipe_parses(folder, tmp_path):
    for one in recipes.sections()[folder]:
        path = tmp_path / "recipe.toml"
        path.write_text(written.file(one))
        if one.kind == "command":
            words = shlex.split(path.read_text())
            docs_blocks.check_command(words, one.name)
            if one.command[0] == "collab":
                assert words[words.index("--recipe") + 1] in RECIPES
            continue
        if one.kind == "grid":
            grid.read(path)
            path.write_text(written.file(one, single=True))
        config = TuneConfig(**config_io.read(path)).resolved()
        task = tasks.get(config.task)
        assert not config.k_shot or task.kind == "classification"
        docs_blocks.check_command(shlex.split(written.command(one)), one.name)


@pytest.mark.parametrize("folder", recipes.FOLDERS)
def test_every_recipe_says_what_it_is(folder):
    for one in recipes.sections()[folder]:
        facts = written.about(one)
        assert len(facts) >= 4, facts
        assert one.about
        assert one.source
        assert one.data
        assert bool(one.model) == (one.kind != "command" or one.command[0] in ("plan", "profile"))


def test_a_file_holds_the_settings_of_its_recipe():
    whole = tomllib.loads(written.file(ALL["mezo/table1/sst2-mezo"]))
    assert whole["grid"] == {"lr": [1e-6, 1e-7]}
    assert whole["budget"] == {"steps": 20000}
    assert (whole["seeds"], whole["search_seeds"], whole["judge"]) == ([0], [0], "best")
    assert whole["base"]["method"] == "mezo-gaussian"
    assert whole["base"]["eps"] == 1e-3
    single = tomllib.loads(written.file(ALL["mezo/table1/sst2-mezo"], single=True))
    assert single["lr"] == 1e-6
    assert (single["steps"], single["eval_every"], single["seed"]) == (20000, 4000, 0)
    sparse = tomllib.loads(written.file(ALL["zo-bench/sparsity/sst2-opt-1.3b-random"], single=True))
    assert sparse["options"] == {"keep": 0.46, "mask": "random"}


@pytest.mark.parametrize("name", [name for name, one in ALL.items() if one.kind != "command"][::37])
def test_what_is_written_is_what_was_meant(name):
    one = ALL[name]
    assert tomllib.loads(written.file(one)) == one.settings


def test_released_sweeps_of_zo_bench_are_all_there():
    """Its release has 44 sweeps of each zeroth-order method and 88 of first order; 72 of sparsity, 8 to a ratio."""
    folders = ("zo-bench/table2/", "zo-bench/copa/", "zo-bench/winogrande/")
    counts = Counter(one.settings["base"]["method"] for name, one in ALL.items() if name.startswith(folders))
    assert counts["zo-scalar-sign"] == counts["zo-cons"] == counts["zo-adam"] == 44
    assert counts["fo-sgd"] + counts["fo-adam"] == 88
    assert len(ALL["zo-bench/sparsity/sst2-opt-1.3b-random"].settings["axes"]["options.keep"]) == 72 // 8
    assert zobench.values("4-8") == [1e-4, 1e-5, 1e-6, 1e-7, 1e-8]


def test_ablations_have_the_grids_of_their_papers():
    folder = "zo-bench/alignment/"
    bare = {name.removeprefix(folder): one for name, one in ALL.items() if name.startswith(folder)}
    assert set(bare) == {
        *(f"sst2-opt-1.3b-bare-{method}" for method in ("zo-sgd", "forward-grad")),
        *(f"copa-opt-13b-bare-{method}" for method in ("zo-sgd", "forward-grad", "fo-sgd")),
    }
    assert bare["copa-opt-13b-bare-fo-sgd"].settings["grid"]["lr"] == [1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    for name in ("table5/sst2-prompt", "table6/sst2-n4", "table9/sst2-parameter-norm", "table10/sst2-expectation"):
        searched = ALL[f"mezo/{name}"].settings["grid"]
        assert {name: sorted(values) for name, values in searched.items()} == {
            "lr": [1e-7, 1e-6, 1e-5],
            "batch_size": [16, 64],
            "eps": [1e-5, 1e-3],
            "weight_decay": [0.0, 0.1],
        }


def test_a_linear_schedule_of_directions_spends_the_forwards_of_the_others():
    linear = ALL["mezo/table6/sst2-n4-linear"].settings
    steps = linear["budget"]["steps"]
    forwards = 2 * sum(max(1, t * linear["base"]["queries"] // steps) for t in range(steps))
    assert abs(forwards - 10000) < 20


def test_methods_that_draw_signs_where_the_paper_has_gaussian_directions_say_so():
    for name, one in ALL.items():
        method = one.flat.get("method", "")
        if name.startswith("zo-bench/") and one.kind == "grid" and not method.startswith("fo-"):
            stream = METHODS[method].make([("w", torch.nn.Parameter(torch.zeros(2, 2)))]).directions.stream
            assert (zobench.SIGNS in one.differs) == (stream.kind == "rademacher"), name


def test_rates_of_all_methods_are_searched_where_the_paper_did():
    assert ALL["mezo/table1/squad-mezo"].settings["grid"]["lr"] == [1e-6, 5e-7, 1e-7]
    assert ALL["mezo/roberta/sst2-k16-ft"].settings["grid"]["batch_size"] == [2, 4, 8]
    assert ALL["mezo/roberta/sst2-k512-ft"].settings["seeds"] == [13, 21, 42, 87, 100]


def test_no_number_that_is_not_verified_is_quoted():
    for table in recipes.TABLES:
        for row in table.rows:
            assert not row.published or len(row.published) == len(table.columns), (table.name, row.label)
            assert row.mark != record.UNVERIFIED or not any(row.published), (table.name, row.label)
            assert row.make or row.why, (table.name, row.label)


def test_notes_quote_published_numbers_alone():
    for table in recipes.TABLES:
        paper = table.name.partition("/")[0]
        published = {
            number
            for other in recipes.TABLES
            for row in other.rows
            for text in row.published
            for number in re.findall(r"\d+\.\d+", text)
            if other.name.partition("/")[0] == paper and row.mark != record.UNVERIFIED
        }
        assert set(re.findall(r"\d+\.\d+", table.note)) <= published, table.name


def test_group_recipes_are_all_there():
    named = {one.command[one.command.index("--recipe") + 1] for one in ALL.values() if "--recipe" in one.command}
    assert named == set(RECIPES)
    assert set(groups.OURS) < set(RECIPES)


# ---------------------------------------------------------------------------------------------------------------
# plans


def plans():
    """Settings of ``gradless plan`` for every kind of run of the recipes, each once."""
    kinds = {}
    for one in ALL.values():
        if one.kind not in ("run", "grid"):
            continue
        flat = one.flat
        how = {name: flat[name] for name in ("method", "scheme", "dtype", "rank", "num_prefix") if name in flat}
        shape = record.MODELS[one.model].shape
        kinds.setdefault((shape, how["method"], how["scheme"]), plan.Settings(model=shape, length=128, **how))
    return kinds


PLANS = plans()


@pytest.mark.few(3, sweep=12)
@pytest.mark.parametrize("kind", PLANS, ids="-".join)
def test_every_recipe_plans(kind):
    shape, method, scheme = kind
    subject = plan.subject(PLANS[kind], scheme)
    need = plan.of_method(subject, method, "dual", method)
    assert need.total >= need.weights > 0
    assert need.tuned > 0
    if scheme == "full":
        assert need.tuned == (TOTALS | SMALL)[shape.removeprefix("shape:")]


TOTALS = {
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "mistral-7b": 7_241_732_096,
    "roberta-large": 355_412_057,
}
"""Parameters of the published models; OPT's by 12 h^2 + 13 h a layer, its tables and the last norm."""
SMALL = {"splade-tiny": 4_416_698}
"""Of the model whose file is here: 30,522 words, 512 positions and 2 kinds of 128; 2 layers of 198,272; the head."""


@pytest.mark.parametrize("name", TOTALS)
def test_shapes_have_the_published_number_of_parameters(name):
    assert shapes.load(name, device="meta").num_parameters == TOTALS[name]


# ---------------------------------------------------------------------------------------------------------------
# the command


def test_the_command_lists_folders_recipes_and_one_recipe():
    folders = call("recipe").output.splitlines()
    assert [line.split()[0] for line in folders] == [*recipes.sections()]
    below = call("recipe", "mezo/table1/sst2").output.splitlines()
    assert len(below) == 7
    assert below[3].endswith("91.4 (accuracy, %) [paper]")
    one = call("recipe", "mezo/table1/sst2-mezo").output
    assert "published: 91.4 (accuracy, %) [paper]" in one
    assert "run: gradless bench recipe.toml --out runs/sst2-mezo" in one


def test_the_file_is_printed_whole():
    text = call("recipe", "zo-bench/table2/sst2-opt-1.3b-lora-zo-sgd", "--print").output
    assert written.file(ALL["zo-bench/table2/sst2-opt-1.3b-lora-zo-sgd"]) == text


def test_the_lines_of_a_group_recipe_are_a_command():
    text = call("recipe", "monna/mnist/alie-monna", "--print").output
    assert text.startswith("gradless collab simulate --recipe monna-mnist --data mnist/ --algorithm monna")
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["mezo/table1/sst2-meso"], "did you mean 'mezo/table1/sst2-mezo'"),
        (["mezo/table1", "--print"], "unknown recipe 'mezo/table1'"),
        (["nothing-like-it"], "gradless recipe lists them"),
        (["--print"], "--print needs the name of a recipe"),
        (["mezo/table1/sst2-mezo", "--single"], "add --print"),
        (["small/sst2-k16-mezo", "--print", "--single"], "is no grid: leave out --single"),
    ],
)
def test_what_is_refused(arguments, sentence):
    refused(call("recipe", *arguments), sentence)


def test_a_grid_of_no_grid_is_refused_in_python():
    run = dataclasses.replace(ALL["small/sst2-k16-mezo"])
    with pytest.raises(BadInput, match="no grid"):
        written.file(run, single=True)
