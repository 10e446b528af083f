"""Jobs that do not fit are refused before weights are read, by the headers of their files; the machine is pretended."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import gguf_helpers
from gradless import lm
from gradless.cli import main
from gradless.cost import memory_guard
from gradless.errors import BadInput
from gradless.lm import assets, schemes
from gradless.runs.config import TuneConfig
from gradless.storage.stored import StoredWeight
from gradless.system import machine

GB = 10**9
LAYERS = {"q": (4096, 4096), "k": (1024, 4096), "gate": (14336, 4096), "down": (4096, 14336)}


def checkpoint(folder: Path, kind: str = "BF16", layers: int = 32) -> Path:
    """A folder as of a model of 5 billion weights, whose file has a header and a hole."""
    folder.mkdir(exist_ok=True)
    shapes = {"model.embed_tokens.weight": (128256, 4096), "model.norm.weight": (4096,)}
    shapes |= {f"layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in LAYERS.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * (2 if kind == "BF16" else 4)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    config = {"model_type": "llama", "dtype": "bfloat16", "architectures": ["LlamaModel"]}  # nothing that is loaded
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the machine have so many bytes."""

    def free(count: float | None, working: int = 0) -> None:
        monkeypatch.setattr(machine, "free_memory", lambda device: None if count is None else int(count))
        monkeypatch.setattr(memory_guard, "_working", lambda job: working)

    return free


def check(model: Path | str, **settings: Any) -> None:
    tunes = settings.pop("tunes", True)
    memory_guard.check(TuneConfig(model=str(model), task="sst2", **settings), tunes=tunes)


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path, pretend: Any) -> None:
    model = checkpoint(tmp_path / "model")
    pretend(14 * GB)
    with pytest.raises(BadInput, match=r"needs at least 19\.8 GB .* 14\.0 GB are free") as caught:
        check(model)
    words = str(caught.value)
    for way in ("--dtype bfloat16 (9.9 GB)", "--quantise nf4 (", "--scheme lora --offload disk (", "--force goes on"):
        assert way in words
    assert "\n" not in words
    pretend(GB / 10)
    with pytest.raises(BadInput, match=r"--dtype bfloat16 \(the rest stays in its files\) would fit"):
        check(model, scheme="lora", method="mezo")


@pytest.mark.parametrize(
    ("free", "settings"),
    [
        (23, {}),
        (23, {"scheme": "lora"}),
        (11, {"dtype": "bfloat16"}),
        (1, {"dtype": "bfloat16", "scheme": "lora"}),
        (1, {"dtype": "bfloat16", "tunes": False}),
        (5, {"scheme": "lora", "quantise": "nf4"}),
        (1, {"scheme": "lora", "offload": "disk"}),
        (None, {}),
    ],
    ids=str,
)
def test_what_fits_is_never_refused(tmp_path: Path, pretend: Any, free: int | None, settings: dict[str, Any]) -> None:
    pretend(None if free is None else free * GB)
    check(checkpoint(tmp_path / "model"), **settings)


def test_mapped_weights_count_only_where_they_are_written_or_cast(tmp_path: Path, pretend: Any) -> None:
    model = checkpoint(tmp_path / "model", kind="F32", layers=4)
    pretend(GB)
    check(model, scheme="lora")
    for settings in ({"scheme": "full"}, {"scheme": "lora", "dtype": "bfloat16"}):
        with pytest.raises(BadInput, match="GB are free"):
            check(model, **settings)
    pretend(2.5 * 4 * GB)
    with pytest.raises(BadInput, match="needs at least"):  # momentum stores a float32 for each weight
        check(checkpoint(tmp_path / "other"), method="zo-adam", dtype="bfloat16")


def test_forwards_count_where_weights_come_close(tmp_path: Path, pretend: Any) -> None:
    pretend(21 * GB, working=3 * GB)
    with pytest.raises(BadInput, match=r"at least 22\.8 GB .*--micro-batch-size 1 \(20\.0 GB\)"):
        check(checkpoint(tmp_path / "model"))
    pretend(60 * GB, working=100 * GB)
    check(tmp_path / "model")


def test_a_gguf_counts_where_it_is_decoded_into_memory(tmp_path: Path, pretend: Any) -> None:
    file = tmp_path / "mine.gguf"
    gguf_helpers.write_random_gguf(file, "llama", tied=True, formats=["Q8_0"])
    pretend(100)
    check(file, scheme="lora")
    with pytest.raises(BadInput, match=r"--scheme lora without --dtype .the rest stays in its files. would fit"):
        check(file, dtype="float32")


def test_models_without_headers_are_left_to_loading(tmp_path: Path, pretend: Any) -> None:
    pretend(1)
    for model in ("tiny-llama", tmp_path / "none", "gemma-3-270m", tmp_path):
        check(model)
    folder = checkpoint(tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"\xff" * 40)
    check(folder)
    check(checkpoint(tmp_path / "model"), method="none-such", tunes=False, dtype="bfloat16")


def test_the_command_asks_before_it_reads_and_goes_on_by_force(tmp_path: Path, pretend: Any) -> None:
    pretend(GB)
    model, data = checkpoint(tmp_path / "model"), tmp_path / "data.csv"
    data.write_text("text,label\n" + "good,1\nbad,0\n" * 8)
    own = ["--test", str(data), "--template", "{text} so", "--label-column", "label", "--labels", "0=bad,1=good"]
    for command in (
        ["tune", "--train", str(data), "--num-dev", "2", "--out", str(tmp_path / "run")],
        ["eval"],
    ):
        arguments = [*command, "--model", str(model), *own]
        refused = CliRunner().invoke(main, arguments)
        assert refused.exit_code == 2
        assert "1.0 GB are free" in refused.output
        forced = CliRunner().invoke(main, [*arguments, "--force"])
        assert forced.exit_code == 2
        assert "no language-model head" in forced.output
    assert not (tmp_path / "run" / "ledger").exists()


def test_limits_of_the_machine_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "max").write_text("5000000")
    (tmp_path / "now").write_text("1000000")
    monkeypatch.setattr(machine, "GROUPS", ((str(tmp_path / "max"), str(tmp_path / "now")),))
    assert machine.free_memory(torch.device("cpu")) == 4_000_000


@pytest.mark.parametrize(("scheme", "size"), [("codes", 1), ("scales", 2 / 32)])
def test_tuned_numbers_of_a_gguf_are_counted_beside_the_file(
    tmp_path: Path, pretend: Any, scheme: str, size: float
) -> None:
    file = tmp_path / "mine.gguf"
    gguf_helpers.write_gguf(lm.tiny("llama"), file, form="Q8_0")
    model = schemes.apply(lm.load(str(file)), scheme)
    need = sum(p.numel() * p.itemsize for _, p in schemes.trainable(model))
    assert need == sum(p.numel() for p in model.model.parameters() if isinstance(p, StoredWeight)) * size
    pretend(need)
    check(file, scheme=scheme)
    pretend(need - 1)
    with pytest.raises(BadInput, match=r"--scheme lora \(the rest stays in its files\) would fit"):
        check(file, scheme=scheme)
    check(file, scheme=scheme, tunes=False)


def test_known_names_are_counted_by_the_file_in_the_cache(tmp_path: Path, pretend: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(memory_guard, "cache_root", lambda: tmp_path)
    asset = assets.ASSETS["smollm2-135m"]
    pretend(1000)
    check("smollm2-135m", scheme="codes")  # not here yet
    file = assets.cached_folder(asset, "smollm2-135m", tmp_path) / asset.entry
    file.parent.mkdir(parents=True)
    gguf_helpers.write_random_gguf(file, "llama", tied=True, formats=["Q8_0"])
    check("smollm2-135m", scheme="lora")
    for settings in ({"scheme": "codes"}, {"scheme": "lora", "dtype": "float32"}):
        with pytest.raises(BadInput, match="needs at least"):
            check("smollm2-135m", **settings)
