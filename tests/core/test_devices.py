"""Models on several devices, and weights that are moved about by hooks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

import gradless as gl
import ranks_helpers as r
from gradless.errors import BadInput
from gradless.lm import schemes
from gradless.system import hashing
from ranks_run_helpers import result

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform == "linux"), reason="needs gloo, and processes that fork"
)


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


def test_torchrun(own, whole, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gradless"]
    begun = time.monotonic()
    run = subprocess.run(
        [*command, *r.tune_line(own, out, "--split", "directions")],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )
    assert run.returncode == 0, (run.stderr, time.monotonic() - begun)
    assert result(out)["weights_sha256"] == result(whole)["weights_sha256"]
    assert result(out)["ranks"] == {"size": 2, "split": "directions", "bytes_per_step": 3 * 8}
    assert run.stdout.count("tuned test") == 1
    assert run.stdout.count("weights_sha256") == 1
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
