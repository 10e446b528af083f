"""Two processes under torchrun: the coefficients of one process with the whole batch, and the same bits on both."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from repository import ROOT
from trainer_helpers import classifier, language_model, make_trainer, moves, texts

SCRIPT = """
import json, os, sys
sys.path.insert(0, {helpers!r})
import torch
from trainer_helpers import StopAt, classifier, digest, language_model, make_trainer, sentences, texts
rank = int(os.environ["RANK"])
results = {{}}

def run(name, model, data=None, resume=None, **rest):
    rest |= {{"zo_options": {{"eps": 1e-1}}, "eval_dataset": sentences(8)}}
    one = make_trainer({folder!r} + "/" + name, model, data, **rest)
    try:
        one.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        pass
    results[name + ("-again" if resume else "")] = digest(one)
    return one

small = {{"per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 4}}
one = run("plain", classifier(1 + rank), options=small)  # a random head in each process: the first one's counts
results["kind"] = type(one.model_wrapped).__name__
results["sent"] = one.shared.sent
run("cut", classifier(1 + rank), options=small, callbacks=[StopAt(6, "after")])
run("cut", classifier(3 + rank), options=small, resume=True)
parts = {{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}}
run("parts", classifier(), options=parts)
run("words", language_model(), texts(32), options=parts)
with open({folder!r} + f"/{{rank}}.json", "w") as file:
    json.dump(results, file)
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder of a run of two processes, and the results of each: hashes of weights and scalars sent."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(helpers=str(ROOT / "tests" / "helpers"), folder=str(folder)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.sweep
def test_ranks_keep_the_same_bits(two_ranks):
    _, (first, second) = two_ranks
    assert first | {"sent": 0} == second | {"sent": 0}
    assert first["cut-again"] == first["plain"] != first["cut"]


def test_only_scalars_travel_and_no_gradient_buckets_are_made(two_ranks):
    _, (first, second) = two_ranks
    assert first["kind"] == "BertForSequenceClassification"  # not DistributedDataParallel
    # A weight and two losses a step, one of them again in the first, hashes of 64 characters and their lengths at the
    # start and at each checkpoint, and the length of what the first rank refuses: nothing.
    # At the start also the engine: nothing is refused, and the first rank's choice, a line of JSON, with its length.
    assert second["sent"] == 8 * 24 + 16 + 3 * (64 + 8) + 8 + 16
    assert 0 < first["sent"] - second["sent"] < 300


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["plain", "parts", "words"])
def test_two_ranks_are_one_process_with_the_whole_batch(two_ranks, tmp_path, name):
    folder, _ = two_ranks
    model, data = (language_model(), texts(32)) if name == "words" else (classifier(), None)
    one = make_trainer(tmp_path, model, data, zo_options={"eps": 1e-1}, options={"per_device_train_batch_size": 8})
    one.train()
    ours = [move.coeffs[0] for move in moves(tmp_path)]
    theirs = [move.coeffs[0] for move in moves(folder / name)]
    assert theirs == pytest.approx(ours, abs=2e-5)
    assert max(map(abs, ours)) > 1e-2
