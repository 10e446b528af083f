"""Grids that are refused, each with a sentence that names the fix."""

from __future__ import annotations

import pytest

from gradless.bench import grid, grid_file
from gradless.bench.search import Search
from gradless.errors import BadInput
from grid_helpers import OWN, SMALL, choose, cost, read


def replaced(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)


REFUSED = {
    "method": (replaced('"fo-adam"', '"fo-adm"'), "unknown method 'fo-adm': did you mean 'fo-adam'"),
    "scheme": (replaced('"lora"', '"lorra"'), "unknown scheme 'lorra': did you mean 'lora'"),
    "task": (replaced('"sst2"', '"winogrand"'), "unknown task 'winogrand': did you mean 'winogrande'"),
    "top key": (replaced("\nseeds =", "\nseedz ="), "unknown key 'seedz': did you mean 'seeds'"),
    "setting": (replaced("num_dev", "num_dve"), r"\[base\]: unknown key 'num_dve': did you mean 'num_dev'"),
    "searched setting": (replaced("lr =", "lrr ="), r"\[grid\]: unknown key 'lrr': did you mean 'lr'"),
    "decided setting": (replaced("num_dev", "seed = 1\nnum_dev"), "seed is not set for single runs: set seeds"),
    "empty axis": (replaced('["full", "lora"]', "[]"), "scheme is an empty axis"),
    "empty grid": (replaced("[1e-6, 3e-6, 1e-5]", "[]"), "lr is an empty axis"),
    "no list": (replaced('["full", "lora"]', '"full"'), "scheme is 'full': give a list"),
    "type": (replaced("num_dev = 8", 'num_dev = "8"'), "num_dev is '8': give a whole number"),
    "type of a rate": (replaced("[1e-6,", '["a",'), r"\[grid\]: lr is 'a': give a finite number above 0 or auto"),
    "not finite": (replaced("[1e-6,", "[nan,"), "lr is nan: give a finite number"),
    "negative rate": (replaced("[1e-6,", "[-1.0,"), r"\[grid\]: lr is -1.0: give a finite number above 0"),
    "twice in an axis": (replaced('"full", "lora"', '"full", "full"'), "scheme holds a value twice"),
    "twice in the file": (replaced('model = "tiny-llama"', 'model = "a"\nscheme = "full"'), "scheme is given twice"),
    "no model": (replaced('model = "tiny-llama"\n', ""), "no model: name it in"),
    "no task": (replaced('task = ["sst2"]\n', ""), "no task: name it in"),
    "no budget": (replaced("budget = { forwards = 200 }\n", ""), "budget must name one of forwards and steps"),
    "two budgets": (replaced("forwards = 200", "forwards = 200, steps = 3"), "budget must name one of"),
    "unknown budget": (replaced("forwards = 200", "forward = 200"), "did you mean 'forwards'"),
    "no seeds": (replaced("[1, 2, 3]", "[]"), r"seeds is \[\]: give a list of whole numbers"),
    "same seeds": (replaced("[1, 2, 3]", "[1, 1]"), "one seed is there twice"),
    "selection": (replaced('"accuracy"', '"acuracy"'), "unknown selection 'acuracy': did you mean 'accuracy'"),
    "metric of the task": (replaced('"accuracy"', '"mcc"'), "cell mezo/full.*: its metric is accuracy, not mcc"),
    "no dev": (replaced("num_dev = 8", "num_dev = 0"), "cell mezo/full.*: its points are chosen on dev rows"),
    "no test": (replaced("num_test = 8", "num_test = 0"), "cell mezo/full.*: there are no test rows"),
    "place": (replaced("num_dev", 'data = "{taks}"\nnum_dev'), "cell mezo/full.*only {task}, {scheme} and {method}"),
    "own and task": (replaced("[base]\n", f"[base]\n{OWN}"), "leave out either own or task"),
    "no own test rows": (
        replaced('task = ["sst2"]\n', "").replace("[base]\n", f"[base]\n{OWN}").replace("num_test = 8", "num_test = 0"),
        "num_test = 0 asks for no row of test, and 0 means all: leave it out for all rows, or leave out test for none",
    ),
    "no own rows in an axis": (
        replaced('task = ["sst2"]\n', "")
        .replace("[base]\n", f"[base]\n{OWN}")
        .replace("lr = [", "num_train = [0, 8]\nlr = [")
        .replace("num_train = 16\n", ""),
        "num_train = 0 asks for no row of train",
    ),
    "unknown option": (replaced("lr = [", '"options.rnak" = [1]\nlr = ['), "cell mezo/full.*option"),
    "when's key": (SMALL + '[[when]]\nmetod = "mezo"\nskip = true\n', r"\[\[when\]\] 1: unknown key 'metod'"),
    "when's name": (SMALL + '[[when]]\nmethod = "mezzo"\nskip = true\n', r"\[\[when\]\] 1: unknown method 'mezzo'"),
    "when's base": (SMALL + '[[when]]\nmethod = "mezo"\nbase = { batch = 1 }\n', "base: unknown key 'batch'"),
    "when's cell": (SMALL + '[[when]]\nmethod = "mezo"\nbase = { task = "copa" }\n', "task names the cell"),
    "when's axis": (SMALL + '[[when]]\nmethod = "mezo"\ngrid = { lr = [] }\n', "lr is an empty axis"),
    "idle when": (SMALL + '[[when]]\nmethod = "mezo"\n', "changes nothing"),
    "all skipped": (SMALL + '[[when]]\nmethod = "*"\nskip = true\n', "every cell is skipped"),
    "forward-grad on accuracy": (
        replaced('["mezo", "fo-adam"]', '["forward-grad"]\nobjective = ["accuracy"]'),
        "cell forward-grad/full.*objective 'accuracy' has no gradient",
    ),
    "backprop on accuracy": (
        replaced("num_dev", 'objective = "accuracy"\nnum_dev'),
        "cell fo-adam/full/sst2/tiny-llama: objective 'accuracy' has no gradient",
    ),
    "objective of another task": (
        replaced("num_dev", 'objective = "f1"\nnum_dev'),
        "cell mezo/full.*objective 'f1' does not fit",
    ),
    "hybrid with prompts": (
        replaced('["mezo", "fo-adam"]', '["hybrid"]').replace('"lora"', '"prompt"'),
        "cell hybrid/prompt/sst2/tiny-llama: hybrid goes by layers",
    ),
    "layers of a head": (
        replaced('["mezo", "fo-adam"]', '["lezo"]').replace('"lora"', '"head"'),
        "cell lezo/head/sst2/tiny-llama: lezo goes by layers",
    ),
    "unaligned": (
        replaced('"sst2"', '"mrpc"').replace("num_dev", "aligned = false\nnum_dev"),
        "cell mezo/full/mrpc/tiny-llama/unaligned: task 'mrpc' has no prompt without alignment",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_grids_are_refused(tmp_path, case):
    text, sentence = REFUSED[case]
    with pytest.raises(BadInput, match=sentence) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "grid.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            replaced("forwards = 200", "forwards = 2"),
            "cell fo-adam/full.*: a step costs 3 forwards and the budget is 2",
        ),
        (
            replaced("num_dev", 'query_schedule = "linear"\nnum_dev')
            .replace("lr =", "queries = [4]\nlr =")
            .replace(', "fo-adam"', ""),
            "cell mezo/full.*: its steps cost more and more",
        ),
    ],
)
def test_budgets_that_buy_nothing_are_refused(tmp_path, text, sentence):
    with pytest.raises(BadInput, match=sentence):
        Search(read(tmp_path, text), cost)


def test_two_requests_for_one_run_are_refused(tmp_path):
    # Another point that says the same: the scheme's own first guess.
    text = replaced("lr = [1e-6, 3e-6, 1e-5]", "lr = [1e-6]\nqueries = [1]").replace(
        'method = ["mezo", "fo-adam"]', 'method = ["mezo"]\n"options.queries" = [1, 1.0]'
    )
    parsed = read(tmp_path, replaced("lr = [1e-6, 3e-6, 1e-5]", "lr = [1e-6]"))
    twin = grid.final_runs(parsed, choose(parsed, []), cost)[0]
    with pytest.raises(BadInput, match=r"cell mezo/full/sst2/tiny-llama .*these are the same run"):
        grid.distinct(parsed, [twin, twin._replace(seed=1)])
    with pytest.raises(BadInput, match="twice"):
        read(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BadInput, match=r"none\.toml cannot be read"):
        grid.read(tmp_path / "none.toml")
    with pytest.raises(BadInput, match="is not TOML"):
        read(tmp_path, "seeds = [1")


def test_own_files_lack_nothing(tmp_path):
    text = SMALL.replace('task = ["sst2"]\n', "")
    with pytest.raises(BadInput, match="own: template is missing"):
        read(tmp_path, text.replace("[base]\n", f"[base]\n{OWN}").replace('template = "{text} so", ', ""))
    with pytest.raises(BadInput, match="own: unknown key 'trian': did you mean 'train'"):
        read(tmp_path, text.replace("[base]\n", f"[base]\n{OWN}").replace("train =", "trian ="))


def test_the_first_difference_is_said():
    old = {"name": "a", "axes": {"method": ["mezo"]}, "base": {"x": 1}}
    assert grid_file.difference(old, old) is None
    new = {**old, "axes": {"method": ["lozo"]}}
    assert grid_file.difference(old, new) == "axes.method was ['mezo'] and is now ['lozo']"
    assert grid_file.difference(old, {**old, "base": {"x": 1.0}}) == "base.x was 1 and is now 1.0"
    assert grid_file.difference(old, {**old, "seeds": [1]}) == "seeds was None and is now [1]"
