"""Several processes that tune one model: the same bits on all of them, and a clear end when one is lost."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import gradless as gl
import ranks_helpers as r
import run_helpers
from gradless import ledger, ranks
from gradless.cli import main
from gradless.errors import BadInput, BrokenRanks, ReportedElsewhere
from gradless.lm import objectives, schemes
from gradless.lm.encode import encode_all
from gradless.lm.evaluate import evaluate
from gradless.system import hashing
from gradless.tasks import custom

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"), reason="needs gloo, and processes that fork"
)
SIZES = (1, 2, 4)
METHODS = {
    "mezo": (gl.mezo, {"queries": 3}),
    "one query": (gl.mezo, {}),
    "one-sided": (gl.mezo_one_sided, {"queries": 4}),
    "acceptance": (gl.zo_cons, {}),
    "low rank": (gl.lozo, {"refresh": 3}),
    "forward mode": (gl.forward_gradient, {"queries": 3}),
}
# ---------------------------------------------------------------------------------------------------------------
# on every rank


def messages(group: ranks.Ranks) -> dict[str, Any]:
    """Every kind of message once."""
    found: dict[str, Any] = {"gather": group.gather([group.rank, 0.1 * group.rank])}
    group.weight = float(group.rank)  # 0, 1, 2, 3: the first one's losses do not count, whatever they are
    found["mean"] = group.mean([float("nan") if group.rank == 0 else 10.0 * group.rank, 7.0])
    found["nan"] = group.mean([float("nan") if group.rank == 2 else 1.0])
    group.weight = 0.0
    with pytest.raises(BadInput, match="weight"):
        group.mean([1.0])
    found["spread"] = group.spread(range(10), lambda own: [float(i * i) for i in own])
    found["fewer"] = group.spread([3], lambda own: [float(i) for i in own])
    found["exchange"] = group.exchange(b"\0x" * group.rank)
    found["nothing"] = (group.exchange(b""), group.broadcast(b""))
    found["broadcast"] = group.broadcast(b"from rank %d" % group.rank)
    found["sent"] = group.sent
    before = group.sent
    group.gather([1.0, 2.0])
    found["two numbers"] = group.sent - before
    with group.agreed():
        found["all well"] = True
    try:
        with group.agreed():
            if group.rank >= 2:
                raise BadInput(f"{group.rank} is too many")
    except BadInput as error:
        found["refused"] = (str(error), type(error) is ReportedElsewhere)
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(0.5), layer.bias.fill_(0.0)
    group.weight = 1.0
    opt = gl.mezo(layer.named_parameters(), lr=0.1, eps=0.1, ranks=group)
    for poison in (0.0, 0.0 if group.rank else math.inf, 0.0):  # the second loss of one rank is not finite
        opt.step(lambda poison=poison: layer(torch.ones(1, 2)).square().sum() + poison)
    found["skipped"] = (opt.skipped, opt.t, hashing.weights_sha256(layer.named_parameters()))
    group.check_equal("abc", "the weights")
    with pytest.raises(BrokenRanks, match="the weights of rank 2 differ from those of rank 0") as caught:
        group.check_equal("abc" if group.rank < 2 else "abd", "the weights")
    found["apart"] = str(caught.value)
    return found


def steps(group: ranks.Ranks | None, split: str) -> dict[str, Any]:
    """Hash, losses and coefficients after some steps of every method; a batch of seven splits unevenly."""
    found = {}
    for name, (make, options) in METHODS.items():
        model = r.lm.load("tiny-llama").model
        whole = torch.arange(7 * 12).view(7, 12) * 5 % 290 + 3
        if group is not None:
            group.split = split
            group.sent = 0
        ids = whole if group is None or split == ranks.DIRECTIONS else group.own(whole)
        if group is not None:
            group.weight = float(len(ids))
        opt = make(model.named_parameters(), lr=1e-3, ranks=group, defer=True, **options)
        probes = [opt.step_with(lambda model=model, ids=ids: model(input_ids=ids, labels=ids).loss)[0] for _ in "123"]
        opt.flush()
        sha = hashing.weights_sha256(model.named_parameters())
        found[name] = {
            "sha": sha, "losses": [p.loss for p in probes], "coeffs": [p.sketch.coeffs for p in probes],
            "forwards": opt.forwards, "sent": group.sent if group else 0,
        }  # fmt: skip
    return found


def tokens(group: ranks.Ranks | None, rows: list[Any], task: Any) -> tuple[float, list[float], Any]:
    """Loss and coefficients of a token-weighted objective over answers of uneven lengths, and an evaluation."""
    model = r.lm.load("tiny-llama")
    encoded = encode_all(model, task, rows, None)
    mine = encoded if group is None else group.own(encoded)
    batches = objectives.prepare(model, objectives.OBJECTIVES["lm"], mine)
    if group is not None:
        group.weight = sum(batch.weight for batch in batches)
    opt = gl.mezo(model.model.named_parameters(), lr=1e-3, queries=2, ranks=group)
    probe = opt.probe(lambda: objectives.loss_over(model, objectives.OBJECTIVES["lm"], batches))
    seen = evaluate(model, task, rows, ranks=group, batch_size=2)
    return probe.loss, list(probe.sketch.coeffs), (seen.loss, seen.predictions, seen.probabilities, seen.forwards)


def refusals(group: ranks.Ranks) -> list[str]:
    """What does not go with ranks."""
    model = r.lm.load("tiny-llama").model
    with pytest.raises(BadInput, match="stores gradients") as stored:
        gl.fo_sgd(model.named_parameters(), lr=1e-3, ranks=group)
    with pytest.raises(BadInput, match="unknown split 'batches': did you mean 'batch'"):
        ranks.group("batches")
    group.split = "directions"
    with pytest.warns(UserWarning, match="how many points a rank walks") as warned:
        opt = gl.mezo(model.named_parameters(), lr=1e-3, engine="dual", ranks=group)
    return [str(stored.value), str(warned[0].message), opt.engine]


def all_of_it(group: ranks.Ranks | None, rows: list[Any], task: Any) -> dict[str, Any]:
    """One start of the processes for many checks."""
    found = {split: steps(group, split) for split in ranks.SPLITS}
    if group is not None:
        group.split = "batch"
    found["tokens"] = tokens(group, rows, task)
    if group is not None:
        found["refusals"] = refusals(group)
    if group is not None and group.size == 4:
        found["messages"] = messages(group)
    return found


def core(own: dict[str, Any]) -> dict[str, Any]:
    """`all_of_it` in a group; rows of a task are read here, since a task is no value to send."""
    task, splits = custom(
        train=Path(own["train"]), test=Path(own["test"]), template=own["template"], label_column="label",
        labels=own["labels"],
    )  # fmt: skip
    rows = [task.render(dict(row)) for row in splits.test[:7]]
    rows = [row._replace(prompt="and so on " * (i % 4) + row.prompt) for i, row in enumerate(rows)]
    return r.in_group(lambda group: all_of_it(group, rows, task))


# ---------------------------------------------------------------------------------------------------------------
# the optimizer


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of a task."""
    return run_helpers.sentiment(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def found(own: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What every rank of 1, 2 and 4 found."""
    folder = tmp_path_factory.mktemp("core")
    ended = {size: r.together(size, folder / str(size), core, own) for size in SIZES}
    for size in SIZES:
        assert [end.code for end in ended[size]] == [0] * size, [end.err for end in ended[size]]
    return {size: [end.value for end in ended[size]] for size in SIZES}


def test_messages_arrive_in_rank_order(found):
    seen = [value["messages"] for value in found[4]]
    assert all(each["gather"] == [(float(i), 0.1 * i) for i in range(4)] for each in seen)
    for each in seen:
        assert each["mean"] == pytest.approx([(10 + 40 + 90) / 6, 7.0])
        assert math.isnan(each["nan"][0])
        assert each["spread"] == [float(i * i) for i in range(10)]
        assert each["fewer"] == [3.0]
        assert each["exchange"] == [b"", b"\0x", b"\0x\0x", b"\0x\0x\0x"]
        assert each["nothing"] == ([b""] * 4, b"")
        assert each["broadcast"] == b"from rank 0"
        assert each["two numbers"] == 2 * 8 * 3
    assert {each["skipped"] for each in seen} == {(1, 3, seen[0]["skipped"][2])}
    assert [each["refused"] for each in seen] == [("2 is too many (on rank 2)", told) for told in (False, *[True] * 3)]
    assert all("continue with --resume" in each["apart"] for each in seen)


@pytest.mark.parametrize("method", METHODS)
def test_split_directions_end_with_the_bits_of_one_process(found, method):
    (alone,) = found[1]
    for size in (2, 4):
        for value in found[size]:
            there = value["directions"][method]
            assert there["sha"] == alone["directions"][method]["sha"]
            assert there["coeffs"] == alone["directions"][method]["coeffs"]
            assert there["forwards"] == alone["directions"][method]["forwards"]


@pytest.mark.parametrize("method", METHODS)
def test_a_split_batch_gives_the_coefficients_of_the_whole_up_to_rounding(found, method):
    (alone,) = found[1]
    for size in (2, 4):
        hashes = {value["batch"][method]["sha"] for value in found[size]}
        assert len(hashes) == 1
        for value in found[size]:
            there, here = value["batch"][method], alone["batch"][method]
            assert there["losses"] == pytest.approx(here["losses"], rel=2e-6)
            # A loss near 7 in float32 has steps of 5e-7, which 2 eps = 2e-3 makes 2e-4 of.
            assert there["coeffs"][0] == pytest.approx(here["coeffs"][0], abs=3e-3)
            assert there["forwards"] == here["forwards"]


def test_bytes_of_a_step_are_counted(found):
    for size in (2, 4):
        sent = {split: found[size][0][split]["mezo"]["sent"] for split in ranks.SPLITS}
        # Six losses and a weight, or as many losses as a rank finds, to every other rank, in three steps.
        assert sent == {"batch": 3 * 7 * 8 * (size - 1), "directions": 3 * -(-6 // size) * 8 * (size - 1)}


def test_token_weights_make_uneven_shards_the_batch(found):
    loss, coeffs, seen = found[1][0]["tokens"]
    for size in (2, 4):
        for value in found[size]:
            assert value["tokens"][0] == pytest.approx(loss, rel=1e-6)
            assert value["tokens"][1] == pytest.approx(coeffs, abs=2e-3)
            assert value["tokens"][2] == seen  # an evaluation has the same bits


def test_what_does_not_go_with_ranks(found):
    for value in found[2]:
        stored, walked, engine = value["refusals"]
        assert "use one process" in stored
        assert engine == "stream"
        assert "'stream'" in walked


# ---------------------------------------------------------------------------------------------------------------
# a run


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


def moves(out: Path) -> list[Any]:
    return ledger.read(out / "ledger").moves


@pytest.fixture(scope="module")
def whole(own: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, in the engine of runs that split directions."""
    out = tmp_path_factory.mktemp("whole") / "run"
    (end,) = r.together(1, out.parent, r.command, r.tune_line(own, out, "--split", "directions"))
    assert end.code == 0, end.err
    assert result(out)["engine"] == "stream"
    assert "ranks" not in result(out)
    return out


def test_a_killed_rank_ends_the_run_and_any_number_goes_on(own, whole, tmp_path):
    out = tmp_path / "run"
    line = r.tune_line(own, out, "--split", "directions", "--timeout", 30)
    survivor, dead = r.together(2, tmp_path, r.command, line, at=5, what="SIGKILL")
    assert (survivor.code, dead.code) == (1, -9)
    assert survivor.seconds < 20
    assert survivor.err.count("\n") == 1, survivor.err
    assert "gradless: rank 0 of 2 lost another one" in survivor.err
    assert "continue with --resume" in survivor.err
    assert not (out / "result.json").exists()
    assert moves(out) == moves(whole)[:5]
    # Four ranks go on, and lose one of them; one process finishes.
    *alive, _ = ended = r.together(4, tmp_path, r.command, [*line, "--resume"], at=7, who=3, what="SIGKILL")
    assert [end.code for end in ended] == [1, 1, 1, -9]
    assert all(f"rank {rank} of 4 lost" in end.err for rank, end in enumerate(alive))
    assert "replaying 5 steps" in ended[0].out
    assert [end.out for end in ended[1:]] == ["", "", ""]
    assert moves(out) == moves(whole)[:7]
    (end,) = r.together(1, tmp_path, r.command, [*r.tune_line(own, out), "--resume"])  # it keeps the engine
    assert end.code == 0, end.err
    assert moves(out) == moves(whole)
    for key in ("weights_sha256", "selected_step", "forwards", "zero_shot", "dev", "test", "engine"):
        assert result(out)[key] == result(whole)[key], key


def test_a_rank_that_hangs_is_given_up_and_the_batch_can_be_split_by_fewer(own, tmp_path):
    out = tmp_path / "run"
    line = r.tune_line(own, out, "--timeout", 3)
    begun = r.start(2, tmp_path, r.command, line, at=6, what="SIGSTOP")
    (survivor,) = r.wait(begun, but=(1,))
    assert survivor.code == 1
    assert "did not answer in time" in survivor.err
    assert survivor.err.count("\n") == 1
    assert len(moves(out)) == 6
    ended = r.together(2, tmp_path, r.command, [*line, "--resume"])
    assert [end.code for end in ended] == [0, 0], ended
    found = result(out)
    assert found["ranks"] == {"size": 2, "split": "batch", "bytes_per_step": 7 * 8}
    assert found["status"] == "done"
    (end,) = r.together(1, tmp_path, r.command, ["replay", str(out), "--verify"])
    assert end.code == 0, end.err


def test_a_termination_is_noted_and_resumed(own, whole, tmp_path):
    out = tmp_path / "run"
    line = r.tune_line(own, out, "--split", "directions")
    ended = r.together(2, tmp_path, r.command, line, at=3, who=0, what="SIGTERM")
    assert [end.code for end in ended] == [1, 1]
    assert result(out)["status"] == "interrupted"
    assert "lost another one" in ended[1].err
    assert "interrupted: continue with --resume" in ended[0].out
    (end,) = r.together(1, tmp_path, r.command, [*line, "--resume"])
    assert end.code == 0, end.err
    assert moves(out) == moves(whole)


@pytest.mark.parametrize("way", [["--scheme", "prefix"], ["--method", "zo-sparse", "--set", "mask=wanda"]])
def test_initial_values_that_machines_compute_differently_are_those_of_rank_0(own, tmp_path, way):
    line = without("--queries", r.tune_line(own, tmp_path / "run", "--split", "directions", "--eval-every", 8, *way))
    ended = r.together(2, tmp_path, r.command, line, at=0, what="other values")
    assert [end.code for end in ended] == [0, 0], ended
    line[line.index("--out") + 1] = str(tmp_path / "alone")
    (end,) = r.together(1, tmp_path, r.command, line)
    assert end.code == 0, end.err
    assert result(tmp_path / "run")["weights_sha256"] == result(tmp_path / "alone")["weights_sha256"]


def test_ranks_without_points_are_told(own, tmp_path):
    line = without("--queries", r.tune_line(own, tmp_path / "run", "--split", "directions", "--no-zero-shot"))
    ended = r.together(4, tmp_path, r.command, [*line, "--steps", "1"])
    assert [end.code for end in ended] == [0] * 4, ended
    assert "a step evaluates 2 points, so 2 of 4 ranks have nothing to do: raise --queries" in ended[0].out


def test_other_weights_on_a_rank_are_noticed(own, tmp_path):
    out = tmp_path / "run"
    ended = r.together(2, tmp_path, r.command, r.tune_line(own, out), at=2, what="flip")
    assert [end.code for end in ended] == [1, 1]
    for end in ended:
        assert "the weights at step 4 of rank 1 differ from those of rank 0" in end.err
        assert end.err.count("\n") == 1
    assert len(moves(out)) == 4
    assert not (out / "result.json").exists()


def without(option: str, line: list[str]) -> list[str]:
    return [*line[: line.index(option)], *line[line.index(option) + 2 :]]


def test_bad_input_is_said_once(own, tmp_path):
    other = dict(own, test=str(tmp_path / "other.csv"))
    run_helpers.write_csv(Path(other["test"]), 24, 9)
    out = tmp_path / "run"
    for size, line, text in (
        (4, r.tune_line(own, out, "--batch-size", 3), "a batch of 3 cannot be split over 4 ranks: raise --batch-size"),
        (2, without("--queries", r.tune_line(own, out, "--method", "fo-sgd")), "fo-sgd stores gradients"),
        (2, r.tune_line(own, out, "--split", "steps"), "unknown split 'steps'"),
        (2, r.tune_line(own, out, "--timeout", 0), "--timeout is 0: it must be positive"),
        (2, r.tune_line(own, out, "--steps", "many"), "'many' is not a valid integer"),
        (2, [r.tune_line(own, out), r.tune_line(other, out)], "rank 1 has other settings than rank 0 (test was"),
        (2, [r.tune_line(own, out), r.tune_line(dict(own, train="nothing.csv"), out)], "nothing.csv"),
    ):
        ended = r.together(size, tmp_path, r.command, line)
        assert [end.code for end in ended] == [2] * size, ended
        assert text in ended[0].err
        assert ended[0].err.count("\n") == 1
        assert "".join(end.err for end in ended[1:]) == ""
        assert not out.exists()


def test_other_commands_are_not_for_several_processes(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    refused = CliRunner().invoke(main, ["list", "tasks"])
    assert refused.exit_code == 2
    assert "call 'gradless list' without torchrun" in refused.stderr


# ---------------------------------------------------------------------------------------------------------------
# models on several devices


def hooked(
    engine: str, scheme: str, devices: dict[str, str] | None, *, freeze: tuple[str, ...] = (), **more: Any
) -> tuple[list[float], str]:
    """Losses of a few steps, and the weights after them, of a model with accelerate's hooks, or without any."""
    accelerate = pytest.importorskip("accelerate")
    model = r.lm.load("tiny-llama")
    if devices is not None:
        accelerate.dispatch_model(model.model, device_map=devices, force_hooks=True, **more)
    model = schemes.apply(model, scheme, freeze=freeze)
    named = list(schemes.trainable(model))
    opt = gl.mezo(named, lr=1e-3, queries=2, engine=engine, defer=True)
    ids = torch.arange(36).view(3, 12) + 3
    losses = [opt.step(lambda: model.model(input_ids=ids, labels=ids).loss) for _ in "123"]
    opt.flush()
    return losses, hashing.weights_sha256(named)


PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.mark.parametrize("engine", ["stream", "dual", "in-place"])
@pytest.mark.parametrize("scheme", ["full", "lora"])
def test_perturbed_weights_reach_a_model_that_is_moved_about_by_hooks(engine, scheme):
    assert hooked(engine, scheme, dict.fromkeys(PARTS, "cpu")) == hooked(engine, scheme, None)


def test_offloaded_weights_are_refused_unless_they_are_frozen(tmp_path):
    devices = {**dict.fromkeys(PARTS, "cpu"), "model.layers.0": "disk"}
    how: dict[str, Any] = {"main_device": "cpu", "offload_dir": str(tmp_path)}
    with pytest.raises(BadInput, match=r"model.layers.0.*offloaded.*freeze it"):
        hooked("stream", "full", devices, **how)
    frozen = {"freeze": (r"layers\.0\.",)}
    assert hooked("stream", "full", devices, **how, **frozen) == hooked("stream", "full", None, **frozen)


def test_device_auto(tmp_path, monkeypatch):
    tiny = r.lm.load("tiny-llama")
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    model = r.lm.load(str(tmp_path / "model"), device="auto")
    assert not model.spread
    assert hashing.weights_sha256(model.model.named_parameters()) == hashing.weights_sha256(
        tiny.model.named_parameters()
    )
    # On a machine with two GPUs that hold nothing, accelerate would put all on a disk.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = dict.fromkeys(PARTS, "disk")
    monkeypatch.setattr("transformers.modeling_utils._get_device_map", lambda *_, **__: devices)
    with pytest.raises(BadInput, match=r"does not fit on the devices here.*--dtype bfloat16"):
        r.lm.load(str(tmp_path / "model"), device="auto")


@pytest.mark.slow
def test_torchrun(own, whole, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gradless"]
    begun = time.monotonic()
    run = subprocess.run(
        [*command, *r.tune_line(own, out, "--split", "directions")], capture_output=True, text=True, timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, (run.stderr, time.monotonic() - begun)
    assert result(out)["weights_sha256"] == result(whole)["weights_sha256"]
    assert result(out)["ranks"] == {"size": 2, "split": "directions", "bytes_per_step": 3 * 8}
    assert run.stdout.count("tuned test") == 1
    assert run.stdout.count("weights_sha256") == 1
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
