"""Digits, and folders and archives of images: what is read, scaled, split and refused."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_helpers import archive, damaged
from gradless.collab.data import datasets
from gradless.collab.data.datasets import DATASETS, load, prepare
from gradless.errors import BadInput


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "cache"))


def test_digits_need_no_files():
    pytest.importorskip("sklearn")
    data = load("digits")
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    counts = torch.bincount(data.test_labels) / torch.bincount(torch.cat((data.test_labels, data.train_labels)))
    assert (counts - 360 / 1797).abs().max() < 0.006  # stratified as well as whole numbers allow
    assert torch.equal(load("digits").test_labels, data.test_labels)
    batch, _ = datasets.test_batch(data)
    everything = prepare(data.train_images, data.mean, data.std)
    assert float(everything.mean()) == pytest.approx(0, abs=1e-4)
    assert float(everything.std()) == pytest.approx(1, abs=1e-3)
    assert batch.dtype == torch.float32


def image_folder(folder: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    image = pytest.importorskip("PIL.Image")
    for split, count in (("train", 3), ("test", 2)):
        for index, label in enumerate(("cat", "ant")):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                colour = (40 * index, 10 * number, 7) if mode == "RGB" else 40 * index + number
                image.new(mode, size, colour).save(folder / split / label / f"{number}.png")
    return folder


def test_a_folder_of_images_and_its_archive_are_the_same(tmp_path):
    folder = image_folder(tmp_path / "f")
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    lines: list[str] = []
    data = load("folder", folder, say=lines.append)
    assert data.classes == ("ant", "cat")
    assert data.train_images.shape == (6, 3, 4, 6)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train_images[1, :, 0, 0].tolist() == [40, 10, 7]
    assert data.train_images[5, :, 3, 5].tolist() == [0, 20, 7]
    assert lines[1:] == ["f: 1 file without an image left out: train/cat/notes.txt"]
    del lines[1:]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"), reverse=True)}
    packed = load("folder", archive(tmp_path / "own.tar.xz", files, "w:xz"), say=lines.append)
    assert all(torch.equal(a, b) for a, b in zip(data[1:5], packed[1:5], strict=True))
    assert len(lines) == 2
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as zipped:
        for name, raw in files.items():
            zipped.writestr(f"wrapped/{name}", raw)
    same = load("folder", tmp_path / "own.zip")
    assert all(torch.equal(a, b) for a, b in zip(data[1:5], same[1:5], strict=True))
    load("folder", folder, say=lines.append)
    assert len(lines) == 3  # from the cache, which keeps what was left out
    del lines[2:]
    (folder / "test" / "ant" / "0.png").write_bytes((folder / "train" / "cat" / "2.png").read_bytes())
    changed = load("folder", folder, say=lines.append)
    assert len(lines) == 4
    assert changed.test_images[0, :, 0, 0].tolist() == [0, 20, 7]


def test_grey_images_have_one_channel(tmp_path):
    assert load("folder", image_folder(tmp_path / "f", mode="L")).shape == (1, 4, 6)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda f: (f / "train" / "cat" / "1.png").write_bytes(b"no image"),
            "is not a whole image: train/cat/1.png: re",
        ),
        (
            lambda f: damaged(f / "train" / "cat", "1.png", lambda raw: raw[:-30]),
            r"is not a whole image: train/cat/1.png \(",
        ),
        (
            lambda f: [(f / "train" / "cat" / f"{n}.png").write_bytes(b"no") for n in range(9)],
            r"are 9 files that are not whole images: train/cat/0.png, .*train/cat/4.png and 4 more: .* remove them",
        ),
        (lambda f: (f / "train" / "ant").rename(f / "train" / "bee"), "test images of ant but no training images"),
        (lambda f: [p.unlink() for p in f.rglob("*.png")], "no images at train/<class>/<name>"),
        (lambda f: [p.unlink() for p in (f / "test").rglob("*.png")], "too few images for training and testing"),
        (lambda f: [shutil.rmtree(f / s / "ant") for s in ("train", "test")], r"holds one class \(cat\)"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage, sentence):
    folder = image_folder(tmp_path / "f")
    damage(folder)
    with pytest.raises(BadInput, match=sentence):
        load("folder", folder)


def test_a_folder_of_classes_is_split_and_scaled(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label in ("ant", "Bee", "train"):  # a class may be called so
        (tmp_path / "own" / "deep" / label / "more").mkdir(parents=True)
        for number in range(10):
            size, mode = ((30, 20), "RGB") if number else ((21, 33), "P")
            where = tmp_path / "own" / "deep" / label / ("more" if number == 3 else "")
            image.new(mode, size, number).save(where / f"{number}.{'png' if number % 2 else 'bmp'}")
    (tmp_path / "own" / ".hidden").mkdir()
    (tmp_path / "own" / ".hidden" / "a.png").write_bytes(b"no image")
    lines: list[str] = []
    data = load("folder", tmp_path / "own", say=lines.append)
    assert data.classes == ("Bee", "ant", "train")
    assert data.shape == (3, 20, 30)
    assert (len(data.train_labels), data.test_labels.tolist()) == (24, [0, 0, 1, 1, 2, 2])
    assert lines[1:] == [
        "own: 1 file without an image left out: .hidden/a.png",
        "own: images have 2 sizes, mostly 30 x 20: they are scaled to 30 x 20 (--image-size sets it)",
        "own: every fifth image of a class is for testing: 6 of 30",
    ]
    assert load("folder", tmp_path / "own", size=5).shape == (3, 5, 5)
    image.new("L", (300, 200)).save(tmp_path / "own" / "deep" / "ant" / "large.png")
    assert load("folder", tmp_path / "own").shape == (3, 20, 30)
    with pytest.raises(BadInput, match="--image-size scales the images of a folder"):
        load("digits", size=3)


def test_parts_of_a_folder(tmp_path):
    folder = image_folder(tmp_path / "f", size=(130, 65))
    (folder / "test").rename(folder / "Val")
    lines: list[str] = []
    assert load("folder", folder, say=lines.append).shape == (3, 32, 64)
    assert lines[1:] == [
        "f: the images for validation are the test images",
        "f: images are 130 x 65: they are scaled to 64 x 32 (--image-size sets it)",
    ]
    shutil.copytree(folder / "Val", folder / "test")
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "0.png")
    load("folder", folder, say=lines.append)
    assert "f: the images for validation are left out" in lines
    assert any(line.startswith("f: 1 image outside the folders of classes left out: ") for line in lines)


def test_images_of_more_than_8_bits_keep_them(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label in range(2):
        (tmp_path / "f" / str(label)).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((4, 4), 300 + 1000 * label + number, np.uint16)
            image.fromarray(pixels).save(tmp_path / "f" / str(label) / f"{number}.png")
    data = load("folder", tmp_path / "f")
    assert (data.train_images.dtype, data.shape) == (torch.float32, (1, 4, 4))
    assert sorted(data.train_images[:, 0, 0, 0].tolist())[-1] >= 1303
    assert float(prepare(data.train_images, data.mean, data.std).std()) == pytest.approx(1, abs=0.02)


def test_torn_archives_are_refused(tmp_path):
    files = {f"{s}/a/{k}.png": os.urandom(3000) for s in ("train", "test") for k in range(5)}
    packed = archive(tmp_path / "torn.tar.gz", files)
    packed.write_bytes(packed.read_bytes()[:9000])
    with pytest.raises(BadInput, match="not a whole"):
        load("folder", packed)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(BadInput, match="not a whole zip archive"):
        load("folder", tmp_path / "text.zip")
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(BadInput, match="not a whole tar archive"):
        load("folder", tmp_path / "text.tar")


def test_names_and_folders_are_checked(tmp_path):
    with pytest.raises(BadInput, match="did you mean 'mnist'"):
        load("mnits")
    with pytest.raises(BadInput, match="'mnist' needs files: give the folder that holds MNIST's four IDX files"):
        load("mnist")
    with pytest.raises(BadInput, match="does not exist"):
        load("cifar10", tmp_path / "nowhere")
    assert set(DATASETS) == {"digits", "mnist", "cifar10", "folder", "npz"}
