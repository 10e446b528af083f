"""``gradless collab``: what works, and what is refused with one sentence before anything is written."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner

from cli_helpers import call as invoke
from cli_helpers import refused
from gradless.cli import commands
from gradless.collab.config import CollabConfig
from gradless.collab.simulation import study, workers
from gradless.collab.simulation.build import mixing_rule
from gradless.errors import BadInput


def call(line: str):
    return CliRunner().invoke(commands.main, ["collab", *shlex.split(line)])


SHORT = "--recipe monna-digits --steps 4 --eval-every 2"


def test_a_single_run_and_its_report(tmp_path):
    invocation = call(f"simulate {SHORT} --out {tmp_path / 'a'}")
    assert invocation.exit_code == 0, invocation.output
    assert "worst honest accuracy" in invocation.output
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert {"worst_accuracy", "mean_accuracy", "consensus_distance", "alpha", "lambda"} <= result.keys()
    assert {"gradients_per_peer", "bytes_per_peer_step"} <= result.keys()
    again = call(f"simulate {SHORT} --out {tmp_path / 'a'}")
    assert "nothing to do" in again.output
    assert not list(tmp_path.glob("a/.lock"))


OWN = "--peers 5 --byzantine 1 --attack sign-flip --steps 2 --eval-every 2 --batch-size 4"


@pytest.mark.sweep
def test_own_arrays_and_images_need_no_other_setting(tmp_path):
    """--data alone names them; network, shape and classes come from the data, and are printed."""
    image = pytest.importorskip("PIL.Image")
    rows = np.random.default_rng(0).normal(size=(50, 6))
    np.savez(tmp_path / "a.npz", x=rows, y=np.where(np.arange(50) < 46, "well", "ill"))
    result = call(f"simulate {OWN} --data {tmp_path / 'a.npz'} --out {tmp_path / 'arrays'}")
    assert result.exit_code == 0, result.output
    for sentence in (
        "a.npz: every fifth row of a class is for testing: 9 of 50",
        "a.npz: no test row has the class ill\n",
        "\nno test row has the class ill: the accuracy does not tell",
        "41 training rows of 6 features in 2 classes: ill, well",
        "9 test rows, of which the largest class has 100.0%",
        "network mlp with 902 parameters",
        "4 honest peers with",
        "of 41 in all; equal parts, as large as the scarcest class allows: --split dirichlet-workers or iid",
    ):
        assert result.output.count(sentence) == 1, sentence
    for label in range(3):
        (tmp_path / "scans" / str(label)).mkdir(parents=True)
        for number in range(10):
            image.new("RGB", (9, 7), (80 * label, number, 0)).save(tmp_path / "scans" / str(label) / f"{number}.png")
    several = "--attack ipm --split iid --net logreg"
    result = call(f"simulate {OWN} {several} --data {tmp_path / 'scans'} --out {tmp_path / 'images'}")
    assert result.exit_code == 0, result.output
    assert result.output.count("24 training rows of 7 x 9 pixels, channels: 3, in 3 classes: 0, 1, 2") == 1
    config = json.loads((tmp_path / "images" / "runs" / first(tmp_path / "images") / "config.json").read_text())
    assert (config["dataset"], config["image_size"]) == ("folder", None)
    assert call(f"split --data {tmp_path / 'scans'} --peers 3 --picture {tmp_path / 'p.png'}").exit_code == 0
    (tmp_path / "scans" / "1" / "0.png").write_bytes(b"no image")
    refused(call(f"simulate {OWN} --data {tmp_path / 'scans'} --out {tmp_path / 'x'}"), "not a whole image: 1/0.png")
    many = OWN.replace("--peers 5", "--peers 99")
    refused(call(f"simulate {many} --data {tmp_path / 'a.npz'} --out {tmp_path / 'x'}"), "cannot be dealt to")
    assert not (tmp_path / "x").exists()


def first(folder):
    return sorted(path.name for path in (folder / "runs").iterdir())[0]


def test_the_help_names_layouts_and_defaults():
    text = " ".join(call("simulate --help").output.split())
    for part in (
        "CLASS/NAME.png",
        "x_train, y_train",
        "[default: dirichlet-classes]",
        "alpha (by default 5)",
        "commonest",
    ):
        assert part in text
    assert "peers 26, byzantine 5" in CliRunner().invoke(commands.main, ["list", "recipes"]).output


def test_a_grid_may_have_several_workers(tmp_path, monkeypatch):
    asked, real = [], workers.results  # what two of them come to is tested with them

    def alone(jobs, workers, reporter):
        asked.append(workers)
        return real(jobs, 1, reporter)

    monkeypatch.setattr(workers, "results", alone)
    result = call(f"simulate {SHORT} --attack foe --attack ipm --workers 2 --out {tmp_path}")
    assert asked[-1] == 2
    assert result.exit_code == 0, result.output
    assert {"1/2", "2/2"} <= set(result.output.split())


def test_a_grid_goes_on_with_one_more_attack(tmp_path):
    assert call(f"simulate {SHORT} --attack foe --attack ipm --out {tmp_path}").exit_code == 0
    assert call(f"simulate {SHORT} --attack foe --out {tmp_path}").exit_code == 0  # one of those that are there
    assert call(f"simulate {SHORT} --attack alie --out {tmp_path}").exit_code == 0
    lines = [json.loads(text) for text in (tmp_path / study.RESULTS).read_text().splitlines()]
    assert sorted(line["attack"] for line in lines) == ["alie", "foe", "ipm"]
    assert {line["recipe"] for line in lines} == {"monna-digits"}
    other = call(f"simulate {SHORT} --steps 5 --attack alie --out {tmp_path}")
    assert other.exit_code == 2
    assert "steps 4 there, 5 here" in other.output


def test_torn_files_count_as_unfinished(tmp_path):
    assert call(f"simulate {SHORT} --attack foe --attack ipm --out {tmp_path}").exit_code == 0
    first, second = sorted((tmp_path / "runs").glob("*"))
    (first / "result.json").write_text('{"status": "do')
    text = (second / "metrics.jsonl").read_text()
    (second / "metrics.jsonl").write_text(text[:-20])
    assert call(f"simulate {SHORT} --attack foe --attack ipm --out {tmp_path}").exit_code == 0
    assert len((tmp_path / study.RESULTS).read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seed -1", "seed is -1"),
        ("--device foo", "foo"),
        ("--lr nan", "lr is nan"),
        ("--lr -1", "lr is -1"),
        ("--weight-decay nan", "weight_decay is nan"),
        ("--eval-rows 0", "eval_rows is 0"),
        ("--radius inf", "radius is inf"),
        ("--split iid --split-parameter 2", "has no parameter"),
        ("--attack alie --attack foo", "unknown attack 'foo'"),
        ("--attack alie --set strenght=1", "strength"),
        ("--algorithm mona", "did you mean 'monna'"),
        ("--byzantine 8 --algorithm mocwtm", "mocwtm with 8 of 16"),
        ("--rule nnm+krumm", "krum"),
        ("--payload coefficients", "coefficients"),
        ("--delivery first --wait-for 99", "wait_for is 99"),
        ("--net cnn-mnist", "takes images"),
        ("--dataset mnist", "needs files"),
    ],
)
def test_bad_input(tmp_path, options, message):
    result = call(f"simulate {SHORT} {options} --out {tmp_path / 'out'}")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert result.output.count("\n") <= 2
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for attacks in ("--attack foe", "--attack foe --attack ipm"):
        result = call(f"simulate {SHORT} {attacks} --out {tmp_path / 'file'}")
        assert result.exit_code == 2
        assert "is a file" in result.output


def test_another_program_s_folder_is_left_alone(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"id": "x"}\n')
    result = call(f"simulate {SHORT} --out {tmp_path}")
    assert result.exit_code == 2
    assert (tmp_path / "results.jsonl").read_text() == '{"id": "x"}\n'


def test_the_picture_of_a_split(tmp_path):
    result = call(
        f"split --dataset digits --peers 6 --split dirichlet-workers --split-parameter 1 --picture {tmp_path}/p.png"
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p.png").stat().st_size > 5000
    refused(
        call(f"split --peers 3 --byzantine 3 --picture {tmp_path}/x.png"), "byzantine is 3: give a number from 0 to 2"
    )


@pytest.mark.parametrize("what", ["aggregators", "attacks", "algorithms", "splits", "recipes"])
def test_lists(what):
    result = CliRunner().invoke(commands.main, ["list", what])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) >= 6
    if what == "aggregators":
        assert "(Farhadkhani et al. 2023; n > 2 f; cost G)" in result.output


def settings(monkeypatch, line: str) -> list[CollabConfig]:
    """What a command line would run."""
    asked: list[CollabConfig] = []
    monkeypatch.setattr(study, "run_all", lambda configs, out, **how: asked.extend(configs) or [{"status": "done"}] * 2)
    result = call(f"simulate {line} --out unused")
    assert result.exit_code == 0, result.output
    return asked


def test_every_setting_of_the_local_steps_can_be_given(monkeypatch):
    line = "--recipe monna-digits --seed 1 --seed 2 --decay 9 --refresh 3 --method mezo-momentum --freeze a --freeze b"
    one, _ = settings(monkeypatch, line)
    assert (one.decay, one.refresh, one.method, one.freeze) == (9.0, 3, "mezo-momentum", ("a", "b"))


def test_algorithms_without_momentum_have_their_own_rate_unless_one_is_given(monkeypatch):
    line = "--recipe monna-mnist --data x --algorithm nna --algorithm monna --attack foe --seed 1"
    for extra, expected in (("", {"nna": 0.3, "monna": 0.75}), ("--lr 0.1", {"nna": 0.1, "monna": 0.1})):
        rates = {run.algorithm: run.lr for run in settings(monkeypatch, f"{line} {extra}")}
        assert rates == expected
        compared = {run.algorithm: run.lr for run in settings(monkeypatch, f"{line} {extra} --comparison")}
        assert compared == {**expected, "d-sgd": expected["monna"]}


def test_few_steps_are_evaluated_more_often(monkeypatch):
    for line, every in (("--steps 30", 6), ("--steps 2", 1), ("--steps 51", 50), ("--steps 30 --eval-every 50", 50)):
        assert {run.eval_every for run in settings(monkeypatch, line)} == {every}


@pytest.mark.parametrize(
    ("runs", "remarks"),
    [
        ([{"byzantine": 2}], ["no attack: all 8 peers are honest; f = 2 is only what the rule is told"]),
        ([{"byzantine": 2}, {"byzantine": 2, "attack": "alie"}], []),
        ([{"byzantine": 0}], []),
        (
            [{"byzantine": 2, "attackers": 5, "attack": "alie"}],
            ["5 peers attack, more than the 2 that the rule is told to withstand"],
        ),
        ([{"byzantine": 2, "attackers": 1, "attack": "alie"}], []),
    ],
)
def test_likely_slips_are_remarked(runs, remarks):
    lines = study.remarks([CollabConfig(peers=8, **run).resolved() for run in runs])
    assert len(lines) == len(remarks)
    assert all(line.startswith(remark) for line, remark in zip(lines, remarks, strict=True))


def test_a_run_is_called_by_its_own_rule_too():
    assert CollabConfig(attack="alie", rule="nnm+median").title() == "monna (nnm+median) under alie"
    assert CollabConfig(attack="alie").title() == "monna under alie"


def test_nna_may_keep_a_part_of_all_peers():
    config = CollabConfig(peers=12, byzantine=2, rule="nna", rule_options={"keep": "all"})
    mixing_rule(config).check(10)
    with pytest.raises(BadInput, match="10 rows, but only 9"):
        mixing_rule(config).check(9)


def test_a_run_that_went_wrong_says_what_to_do(tmp_path):
    result = call(f"simulate {SHORT} --algorithm d-sgd --attack nan --out {tmp_path / 'a'}")
    assert result.exit_code == 1
    assert "diverged\nhonest models are not finite: try a lower --lr" in result.output


def test_mixing_that_drives_peers_apart_is_told():
    models = CollabConfig()
    numbers = CollabConfig(payload="coefficients")
    for status in ("done", "diverged"):
        for key in ("alpha", "alpha_mixing"):  # of a run, of its line
            assert "apart (alpha 1.28" in (study.advice(models, {"status": status, key: 1.278}) or "")
            for quiet in (0.9, 1.0000001, None):
                assert "apart" not in (study.advice(models, {"status": status, key: quiet}) or "")
        assert "apart" not in (study.advice(numbers, {"status": status, "alpha": 1.278}) or "")
    assert study.advice(models, {"status": "done"}) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--data", "nowhere"), "there is no"),
        (("--dataset", "digits", "--data", "."), "--data is for data in files (--dataset folder, npz,"),
        (("--radius", "2"), "--radius is for a rule that clips"),
        (("--rule", "krum", "--radius", "2"), "--radius is for a rule that clips"),
        (("--rule-set", "radius=2"), "--rule-set is for a --rule of its own"),
        (("--rule", "krum", "--rule-set", "radius=2"), "unknown option of the rule krum"),
        (("--set", "strength=1"), "the attack none has no options"),
        (("--scheme", "full"), "--scheme is for a language --model"),
        (("--queries", "2"), "--queries is for --payload coefficients"),
        (("--algorithm", "nna", "--momentum", "0.5"), "--momentum is for an algorithm"),
        (("--wait-for", "9"), "--wait-for is for --delivery first or adversarial"),
        (("--slow", "2"), "--slow is for messages that can come too late"),
        (("--delivery", "adversarial", "--slow", "2"), "--slow is for messages that can come too late"),
        (("--train", "rows.csv"), "a file of your own is for a language --model"),
        (("--dataset", "digit"), "did you mean 'digits'"),
        (("--net", "no-such"), "unknown network"),
    ],
)
def test_settings_that_nothing_reads_are_refused(tmp_path, options, sentence):
    result = call(shlex.join(["simulate", *options, "--steps", "1", "--out", str(tmp_path / "out")]))
    refused(result, sentence)
    assert not (tmp_path / "out").exists()


def test_a_setting_that_one_of_several_runs_reads_is_taken(tmp_path):
    both = ("--algorithm", "monna", "--algorithm", "nna", "--momentum", "0.5")
    result = call(shlex.join(["simulate", *both, "--steps", "1", "--eval-rows", "9", "--out", str(tmp_path / "out")]))
    assert result.exit_code == 0, result.output


def test_an_option_that_takes_one_value_says_which_counts(tmp_path):
    shown = invoke(
        "collab", "simulate", "--rule", "median", "--attack", "alie", "--attack", "foe", "--rule=crumb", "--out", "x"
    )
    assert shown.stderr.splitlines()[0] == "--rule takes one value: the last one, crumb, counts"
    assert "--attack" not in shown.stderr


NINE = "--peers 9 --byzantine 1 --attack sign-flip --steps 2 --eval-every 2 --batch-size 4"


@pytest.mark.sweep
def test_graphs_are_an_axis_and_files_count_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "ring.txt").write_text("".join(f"p{k} p{(k + 1) % 9}\n" for k in range(9)))
    monkeypatch.chdir(tmp_path)
    result = call(f"simulate {NINE} --topology k-ring --degree 4 --degree 6 --out study")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
    assert {(line["topology"], line["degree"], line["graph"]["topology"]) for line in lines} == {
        ("k-ring", 4, "k-ring of degree 4"),
        ("k-ring", 6, "k-ring of degree 6"),
    }
    assert call(f"simulate {NINE} --topology ring.txt --out own").exit_code == 0
    monkeypatch.chdir(tmp_path.parent)
    again = call(f"simulate {NINE} --topology {tmp_path / 'ring.txt'} --out {tmp_path / 'own'}")
    assert "nothing to do" in again.output


def test_graphs_that_cannot_be_are_refused(tmp_path):
    for options, part in (
        ("--topology ring --degree 4", "has no degree to choose"),
        ("--topology k-ring --degree 5", "give an even number"),
        ("--topology ring --algorithm bridge", "needs 3 neighbours"),
        ("--topology ring --rule krum", "needs the rows of all peers"),
        ("--degree 4", "has no degree to choose"),
        ("--topology nowhere.graphml", "there is no nowhere.graphml"),
    ):
        refused(call(f"simulate {NINE} {options} --out {tmp_path / 'x'}"), part)
    ten = NINE.replace("--peers 9", "--peers 10")
    refused(call(f"simulate {ten} --topology torus --out {tmp_path / 'x'}"), "a torus of 10 peers is none")
    assert not (tmp_path / "x").exists()
