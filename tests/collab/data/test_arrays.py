"""Own arrays: the names and shapes that people save, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradless.collab.data.datasets import load, prepare
from gradless.errors import BadInput

GREY = np.arange(20 * 6 * 5).reshape(20, 6, 5).astype(np.uint8)
GOLD = np.arange(20) % 2
FEATURES = np.stack([np.linspace(-1, 1, 20), np.linspace(0, 1000, 20), np.full(20, 7.0)], 1)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path / "a.npz", **arrays)
    return path / "a.npz"


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("images_train", "labels_train", "images_val", "labels_val"),
        ("trainX", "trainY", "testX", "testY"),
        ("data", "target", "test_data", "test_target"),
    ],
)
def test_names_that_people_give(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = load("npz", saved(tmp_path, **dict(zip(names, (GREY[:16], GOLD[:16], GREY[16:], GOLD[16:]), strict=True))))
    assert data.shape == (1, 6, 5)
    assert torch.equal(data.train_images[:, 0], torch.from_numpy(GREY[:16]))
    assert data.test_labels.tolist() == GOLD[16:].tolist()
    assert data.classes == ("0", "1")


def test_without_a_test_part_every_fifth_row_is_held_out(tmp_path: Path) -> None:
    lines: list[str] = []
    data = load("npz", saved(tmp_path, x=GREY, y=GOLD, weights=GOLD).parent, say=lines.append)
    assert (len(data.train_labels), data.test_labels.tolist()) == (16, [0, 1, 0, 1])
    assert lines == ["a.npz: weights is left out", "a.npz: every fifth row of a class is for testing: 4 of 20"]
    np.savez(tmp_path / "a.npz", GREY, GOLD)
    assert torch.equal(load("npz", tmp_path).train_images, data.train_images)
    lines.clear()
    only_a = {"x_test": GREY[::2], "y_test": GOLD[::2], "val_x": GREY, "val_y": GOLD}
    load("npz", saved(tmp_path, x_train=GREY, y_train=GOLD, **only_a), say=lines.append)
    assert lines == ["a.npz: val_x, val_y are left out", "a.npz: no test row has the class 1"]


@pytest.mark.parametrize(
    ("inputs", "shape", "dtype"),
    [
        (GREY, (1, 6, 5), torch.uint8),
        (GREY.astype(np.int64), (1, 6, 5), torch.uint8),
        (GREY / 255, (1, 6, 5), torch.float32),
        (GREY.astype(np.uint16) * 9, (1, 6, 5), torch.float32),
        (np.stack([GREY] * 3, -1), (3, 6, 5), torch.uint8),
        (np.stack([GREY] * 3, 1), (3, 6, 5), torch.uint8),
        (GREY[..., None], (1, 6, 5), torch.uint8),
        (GREY.reshape(20, 30), (1, 1, 30), torch.uint8),
        (FEATURES, (3, 1, 1), torch.float32),
    ],
    ids=["grey", "int64", "float", "uint16", "last", "first", "one channel", "flat", "features"],
)
def test_shapes(tmp_path: Path, inputs: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if shape == (1, 1, 30):
        inputs = np.where(inputs == inputs.max(), 255, inputs)
    data = load("npz", saved(tmp_path, x=inputs, y=GOLD))
    assert (data.shape, data.train_images.dtype) == (shape, dtype)
    original = data.train_images.clone()
    ready = prepare(data.train_images, data.mean, data.std)
    assert torch.equal(original, data.train_images)
    assert ready.isfinite().all()
    assert abs(float(ready.mean())) < 1e-3


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float64])
def test_features_have_mean_0_and_deviation_1_whatever_numbers_they_are_saved_as(tmp_path: Path, kind: type) -> None:
    years, yes, rare = np.arange(200) % 70 + 20, np.arange(200) % 3 == 0, np.arange(200) % 25 == 0
    table = np.stack([years, yes, rare, np.full(200, 7)], 1).astype(kind)
    data = load("npz", saved(tmp_path, x=table, y=np.arange(200) // 7 % 2))
    ready = prepare(data.train_images, data.mean, data.std).flatten(1)
    torch.testing.assert_close(ready.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(ready.std(0, correction=0), torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (GOLD[:, None], ("0", "1")),
        (GOLD.astype(float), ("0", "1")),
        (GOLD == 1, ("False", "True")),
        (np.where(GOLD, "well", "ill"), ("ill", "well")),
        (np.where(GOLD, b"well", b"ill"), ("ill", "well")),
        (np.eye(2)[GOLD], ("0", "1")),
        (GOLD * 7 - 3, ("-3", "4")),
    ],
)
def test_labels(tmp_path: Path, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    data = load("npz", saved(tmp_path, x=GREY, y=labels))
    assert data.classes == classes
    assert sorted(data.test_labels.tolist()) == [0, 0, 1, 1]


NAN = np.where(FEATURES > 900, np.nan, FEATURES)
TEST = {"x_test": GREY, "y_test": GOLD}


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"foo": GREY}, r"no train inputs and labels \(it has foo\): name the arrays x_train"),
        ({"x": GREY}, r"no train labels \(it has x\)"),
        ({"x": GREY, "images": GREY, "y": GOLD}, "has both x and images: leave out one"),
        ({"x": GREY, "y": GOLD[:3]}, "20 rows in x but 3 labels in y"),
        ({"x": np.array([[1], [2, 3]], object), "y": GOLD[:2]}, "holds Python objects, which can run code"),
        ({"x": GREY, "y": np.array(["a", None] * 10, object)}, "holds Python objects, which can run code"),
        ({"x": NAN, "y": GOLD}, r"x holds NaN or infinity in 2 rows \(18, 19\)"),
        ({"x": GREY[0, 0], "y": GOLD[:5]}, r"x has the shape \[5\]: save \[N, H, W\]"),
        ({"x": np.zeros((20, 5, 5, 5)), "y": GOLD}, "which dimension of x .* are channels is not clear"),
        ({"x": np.array(["a"] * 20)[:, None], "y": GOLD}, "x holds <U1: save numbers"),
        ({"x": GREY, "y": np.ones((20, 4))}, "y gives rows several classes or none"),
        ({"x": GREY, "y": np.linspace(0, 1, 20)}, "y holds numbers that are no classes"),
        ({"x": GREY, "y": GOLD * 0}, r"holds one class \(0\)"),
        ({"x": GREY, "y": GOLD, "x_test": GREY[:, :3], "y_test": GOLD}, "test inputs of another shape"),
        ({"x": GREY, "y": GOLD, "x_test": GREY, "y_test": GOLD + 1}, "test rows of the class 2 but no training rows"),
        ({**TEST}, "no train inputs and labels"),
    ],
)
def test_what_is_refused(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        load("npz", saved(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no .npz files: give the file"):
        load("npz", tmp_path)
    np.save(tmp_path / "one.npy", GREY)
    with pytest.raises(BadInput, match="holds one array: save inputs and labels"):
        load("npz", tmp_path / "one.npy")
    whole = saved(tmp_path, x=GREY, y=GOLD).read_bytes()
    for content in (whole[:400], b"", b"text"):
        (tmp_path / "torn.npz").write_bytes(content)
        with pytest.raises(BadInput, match=r"npz"):
            load("npz", tmp_path / "torn.npz")
