"""The split protocol: disjoint, deterministic, never smaller than asked for; the hub without a network."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gradless import tasks
from gradless.errors import BadInput
from gradless.tasks import Splits

SST2 = tasks.get("sst2")


def sst2(folder: Path, train: int = 60, test: int = 20) -> Path:
    for name, count in (("train", train), ("dev", test)):
        # A third of the rows are positive.
        lines = [f"{int(i % 3 == 0)}\t{name} sentence {i}\n" for i in range(count)]
        (folder / f"{name}.tsv").write_text("label\tsentence\n" + "".join(lines))
    return folder


def load(folder: Path, train: int = 20, dev: int = 10, test: int = 15, seed: int = 0, **more: Any) -> Splits:
    return tasks.load(SST2, data=folder, num_train=train, num_dev=dev, num_test=test, seed=seed, **more)


def texts(rows: list[tasks.Row]) -> list[str]:
    return [row["sentence"] for row in rows]


def test_sizes_and_disjointness(tmp_path: Path) -> None:
    train, dev, test, _ = load(sst2(tmp_path))
    assert (len(train), len(dev), len(test)) == (20, 10, 15)
    assert len({*texts(train), *texts(dev), *texts(test)}) == 45
    assert all(text.startswith("train") for text in texts(train) + texts(dev))
    assert all(text.startswith("dev") for text in texts(test))


def test_dev_follows_train_in_one_permutation(tmp_path: Path) -> None:
    sst2(tmp_path)
    small, large = load(tmp_path, train=5, dev=5), load(tmp_path, train=10, dev=0)
    assert small.train + small.dev == large.train


def test_seed_decides_the_rows(tmp_path: Path) -> None:
    sst2(tmp_path)
    assert load(tmp_path) == load(tmp_path)
    assert load(tmp_path, seed=1).train != load(tmp_path).train
    assert load(tmp_path, seed=1).test != load(tmp_path).test
    assert load(tmp_path, seed=1).fingerprint != load(tmp_path).fingerprint


def test_rows_are_shuffled(tmp_path: Path) -> None:
    rows = load(sst2(tmp_path), train=60, dev=0).train
    assert sorted(texts(rows)) != texts(rows)
    assert sorted(texts(rows)) == sorted(f"train sentence {i}" for i in range(60))


@pytest.mark.sweep
def test_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    sst2(tmp_path)
    code = (
        "from pathlib import Path; from gradless import tasks; "
        f"print(tasks.load(tasks.get('sst2'), data=Path({str(tmp_path)!r}), num_train=20, num_dev=10, "
        "num_test=15, seed=0).fingerprint)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == load(tmp_path).fingerprint


def test_fingerprint_sees_every_field(tmp_path: Path) -> None:
    original = load(sst2(tmp_path), train=60, dev=0, test=20).fingerprint
    text = (tmp_path / "train.tsv").read_text()
    (tmp_path / "train.tsv").write_text(text.replace("0\ttrain sentence 7\n", "1\ttrain sentence 7\n"))
    assert load(tmp_path, train=60, dev=0, test=20).fingerprint != original


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    sst2(tmp_path)
    before = random.getstate(), json.dumps(np.random.get_state()[1].tolist()), torch.get_rng_state().tolist()  # noqa: NPY002
    load(tmp_path)
    after = random.getstate(), json.dumps(np.random.get_state()[1].tolist()), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


def test_zero_shot(tmp_path: Path) -> None:
    sst2(tmp_path)
    (tmp_path / "train.tsv").unlink()
    train, dev, test, _ = load(tmp_path, train=0, dev=0, test=20)
    assert (train, dev, len(test)) == ([], [], 20)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"train": 51},
            r"asked for 51 train rows and 10 dev rows after them, but .* has 60: lower --num-train or",
        ),
        ({"train": 61, "dev": 0}, r"asked for 61 train rows, but .* has 60: lower --num-train"),
        ({"test": 21}, r"asked for 21 test rows, but .* has 20: lower --num-test"),
        ({"train": -1}, r"--num-train is -1: pass 0 or more"),
        ({"k_shot": 11}, r"11-shot needs 22 training rows of 'positive' .* has 20"),
        ({"k_shot": 0}, r"k-shot is 0"),
    ],
)
def test_too_small_a_split_is_an_error(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load(sst2(tmp_path), **sizes)


def test_exactly_enough_is_enough(tmp_path: Path) -> None:
    splits = load(sst2(tmp_path), train=50, dev=10, test=20)
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (50, 10, 20)


def test_a_missing_split_names_its_files(tmp_path: Path) -> None:
    sst2(tmp_path)
    (tmp_path / "train.tsv").unlink()
    with pytest.raises(BadInput, match=r"has 0: add train.tsv or .*, or pass --num-train 0 and --num-dev 0"):
        load(tmp_path)
    sst2(tmp_path)
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(BadInput, match=r"asked for 15 test rows, but .* has 0: add dev.tsv"):
        load(tmp_path)


def test_k_shot(tmp_path: Path) -> None:
    train, dev, _, _ = load(sst2(tmp_path), k_shot=8)
    assert [row["label"] for row in train].count(0) == [row["label"] for row in train].count(1) == 8
    assert [row["label"] for row in dev].count(0) == [row["label"] for row in dev].count(1) == 8
    assert not set(texts(train)) & set(texts(dev))
    order = load(tmp_path, train=60, dev=0).train
    for label in (0, 1):
        expected = [row for row in order if row["label"] == label][:16]
        drawn = [row for row in train if row["label"] == label], [row for row in dev if row["label"] == label]
        assert drawn == (expected[:8], expected[8:])


def test_k_shot_needs_classes(tmp_path: Path) -> None:
    row = {"premise": "p", "choice1": "a", "choice2": "b", "question": "effect", "label": 1}
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadInput, match="COPA has no classes"):
        tasks.load(tasks.get("copa"), data=tmp_path, num_train=0, num_dev=0, num_test=1, seed=0, k_shot=1)


def test_own_dev_split_is_used(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("dev", 4), ("test", 3)):
        (tmp_path / f"stsa.binary.{split}").write_text("".join(f"1 {split} {i}\n" for i in range(count)))
    train, dev, test, _ = load(tmp_path, train=6, dev=4, test=3)
    assert sorted(texts(dev)) == [f"dev {i}" for i in range(4)]
    assert sorted(texts(train)) == [f"train {i}" for i in range(6)]
    assert sorted(texts(test)) == [f"test {i}" for i in range(3)]
    with pytest.raises(BadInput, match=r"asked for 5 dev rows, but .* has 4: lower --num-dev"):
        load(tmp_path, train=6, dev=5, test=3)


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, **more: Any) -> Any:
        calls.append((name, config, more))
        return answer(len(calls))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


HUB_ROWS = {
    "train": [{"sentence": f"t{i} ", "label": i % 2, "idx": i} for i in range(4)],
    "validation": [{"sentence": "v ", "label": 1, "idx": 0}],
}


def hub(num_train: int = 3) -> Splits:
    return tasks.load(SST2, data=None, num_train=num_train, num_dev=1, num_test=1, seed=0)


def test_hub_rows_become_canonical(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, lambda _: HUB_ROWS)
    splits = hub()
    assert calls == [("nyu-mll/glue", "sst2", {})]
    assert splits.test == [{"sentence": "v", "label": 1}]
    assert sorted(texts(splits.train + splits.dev)) == ["t0", "t1", "t2", "t3"]


def test_hub_falls_back_to_the_branch_without_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(call: int) -> Any:
        if call == 1:
            raise RuntimeError("Dataset scripts are no longer supported, but found glue.py")
        return HUB_ROWS

    calls = fake_hub(monkeypatch, answer)
    assert len(hub().train) == 3
    assert calls[1][2] == {"revision": "refs/convert/parquet"}


def test_hub_troubles_say_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: int) -> Any:
        raise ConnectionError("no route\nto host")

    fake_hub(monkeypatch, unreachable)
    with pytest.raises(
        BadInput, match=r"hub:nyu-mll/glue/sst2 is not in the cache and the hub cannot be reached: .* pass --data"
    ):
        hub()
    fake_hub(monkeypatch, lambda _: HUB_ROWS)
    with pytest.raises(BadInput, match=r"asked for 9 train rows .* nyu-mll/glue on the hub has 4"):
        hub(num_train=9)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"needs the package 'datasets': pip install .*, or pass --data DIR"):
        hub()
    with pytest.raises(BadInput, match="MPQA is not read from the hub: pass --data"):
        tasks.load(tasks.get("mpqa"), data=None, num_train=1, num_dev=0, num_test=1, seed=0)
