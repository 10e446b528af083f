"""Data sets: what is read from which files, what is refused, and how batches are prepared."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gradless.collab.data import datasets, image_files
from gradless.collab.data.datasets import DATASETS, Images, flips, load, prepare, training_batch
from gradless.errors import BadInput
from repository import SHARED_DATA


def real(name: str) -> Path:
    if not (SHARED_DATA / name).is_dir():
        pytest.skip(f"{SHARED_DATA / name} is absent; set GRADLESS_SHARED_DATA to the folder with the data sets")
    return SHARED_DATA / name


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------------------------------------------------------
# MNIST


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def mnist_folder(folder: Path, train: int = 30, test: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for place, (split, count) in enumerate((("train", train), ("t10k", test))):
        images = (np.arange(count * 784) * (place + 3) % 251).astype(np.uint8).reshape(count, 28, 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def test_mnist_is_read_from_plain_and_compressed_files(tmp_path):
    data = load("mnist", mnist_folder(tmp_path / "m"))
    assert data.train_images.shape == (30, 1, 28, 28)
    assert data.train_images.dtype == torch.uint8
    assert data.train_images.view(-1)[:4].tolist() == [0, 3, 6, 9]
    assert data.train_labels.tolist() == [*range(10)] * 3
    assert data.test_images.shape == (10, 1, 28, 28)
    assert (data.shape, len(data.classes), data.flip) == ((1, 28, 28), 10, False)
    assert torch.equal(load("mnist", mnist_folder(tmp_path / "n" / "MNIST" / "raw").parents[1])[1], data.train_images)


def damaged(folder: Path, name: str, change) -> Path:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "t10k-images-idx3-ubyte").unlink(), "has no t10k-images-idx3-ubyte"),
        (lambda f: damaged(f, "train-images-idx3-ubyte", lambda raw: raw[:-5]), "it is torn, fetch it again"),
        (lambda f: damaged(f, "train-images-idx3-ubyte", lambda raw: raw + b"x"), "promises 23520 bytes"),
        (lambda f: damaged(f, "train-images-idx3-ubyte", lambda raw: b"\0\0\x0d\3" + raw[4:]), "not an IDX file"),
        (lambda f: damaged(f, "train-images-idx3-ubyte", lambda raw: raw[:7]), "not an IDX file"),
        (lambda f: damaged(f, "train-labels-idx1-ubyte.gz", lambda raw: raw[:-9]), "cannot be read"),
        (lambda f: damaged(f, "train-labels-idx1-ubyte.gz", lambda raw: raw[:-4] + b"abcd"), "cannot be read"),
        (lambda f: (f / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(29, np.uint8))), "30 train images but 29"),
        (lambda f: (f / "train-labels-idx1-ubyte").write_bytes(idx(np.full(30, 11, np.uint8))), "does not hold MNIST"),
    ],
)
def test_damaged_mnist_is_refused(tmp_path, damage, sentence):
    folder = mnist_folder(tmp_path / "m")
    damage(folder)
    with pytest.raises(BadInput, match=sentence):
        load("mnist", folder)


def test_the_real_mnist():
    data = load("mnist", real("mnist"))
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert data.train_labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    pixels = data.train_images[::7].double() / 255
    assert float(pixels.mean()) == pytest.approx(data.mean[0], abs=2e-3)
    assert float(pixels.std()) == pytest.approx(data.std[0], abs=2e-3)


# ---------------------------------------------------------------------------------------------------------------
# CIFAR-10


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR_ROWS", 20)


def cifar_files() -> dict[str, bytes]:
    files = {}
    for place, name in enumerate((*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")):
        table = np.full((20, 3073), place, np.uint8)
        table[:, 0] = np.arange(20) % 10
        table[:, 1:1025] += 100  # red
        files[name] = table.tobytes()
    return files


def archive(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


@pytest.mark.usefixtures("small_batches")
def test_cifar_binary_batches_from_folder_and_archive(tmp_path):
    inner = tmp_path / "c" / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    for name, raw in cifar_files().items():
        (inner / name).write_bytes(raw)
    packed = archive(
        tmp_path / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{k}": v for k, v in cifar_files().items()}
    )
    found = [load("cifar10", place) for place in (inner, inner.parent, packed, tmp_path)]
    for data in found:
        assert data.train_images.shape == (100, 3, 32, 32)
        assert data.train_images[25, :, 3, 4].tolist() == [101, 1, 1]  # second batch, red plane first
        assert data.test_images[0, :, 0, 0].tolist() == [105, 5, 5]
        assert data.train_labels[:12].tolist() == [*range(10), 0, 1]
        assert data.flip


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda files: files.pop("data_batch_3.bin"), "data_batch_3.bin is missing"),
        (lambda files: files.pop("test_batch.bin"), "test_batch.bin is missing"),
        (lambda files: files.update({"test_batch.bin": bytes(3073 * 19)}), "58387 bytes instead of 61460"),
        (lambda files: files.update({"data_batch_1.bin": bytes([12]) * 61460}), "a label above 9"),
    ],
)
def test_damaged_cifar_is_refused(tmp_path, change, sentence):
    files = cifar_files()
    change(files)
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(BadInput, match=sentence):
        load("cifar10", tmp_path)


def test_pickled_cifar_is_refused_and_never_opened(tmp_path):
    folder = tmp_path / "py" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"\x80\x04.")
    packed = archive(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": b"\x80\x04."})
    for place in (folder, folder.parent, packed, tmp_path):
        with pytest.raises(BadInput, match=r"fetch the binary version, cifar-10-binary\.tar\.gz"):
            load("cifar10", place)


@pytest.mark.sweep
def test_the_real_cifar_jpegs(tmp_path, monkeypatch):
    """Some of the archive's images; a whole decoding takes half a minute."""
    source = real("cifar10") / "cifar10-jpg.tar.xz"
    pytest.importorskip("PIL")
    files: dict[str, bytes] = {}
    for name, raw in image_files._members(source, wanted=(".jpg",)):
        split, label, _ = name.split("/")
        if sum(key.startswith(f"{split}/{label}/") for key in files) < 3 and raw:
            files[name] = raw
        if name.startswith("train/bird/0"):  # three classes are enough
            break
    packed = archive(
        tmp_path / "some.tar.xz", files | {k.replace("train", "test"): v for k, v in files.items()}, "w:xz"
    )
    monkeypatch.setattr(datasets, "CIFAR_CLASSES", tuple(sorted({name.split("/")[1] for name in files})))
    start = time.perf_counter()
    data = load("cifar10", packed)
    first = time.perf_counter() - start
    assert data.train_images.shape[1:] == (3, 32, 32)
    assert len(data.train_images) == len(files)
    assert 0.2 < float(data.train_images.double().mean()) / 255 < 0.8
    start = time.perf_counter()
    again = load("cifar10", packed)
    assert time.perf_counter() - start < max(1.0, first)
    assert torch.equal(data.train_images, again.train_images)


# ---------------------------------------------------------------------------------------------------------------
# digits and folders


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
        for place, label in enumerate(("cat", "ant")):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                colour = (40 * place, 10 * number, 7) if mode == "RGB" else 40 * place + number
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


# ---------------------------------------------------------------------------------------------------------------
# batches


def own_data(flip: bool) -> Images:
    images = torch.arange(20 * 3 * 4 * 4).remainder(256).to(torch.uint8).view(20, 3, 4, 4)
    labels = torch.arange(20)
    return Images("own", images, labels, images[:5], labels[:5], ("a",), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), flip)


def test_pixels_are_normalised_by_channel():
    data = own_data(flip=False)
    wanted = (data.train_images.double() / 255 - torch.tensor(data.mean).double().view(3, 1, 1)) / torch.tensor(
        data.std
    ).double().view(3, 1, 1)
    assert torch.allclose(prepare(data.train_images, data.mean, data.std).double(), wanted, atol=1e-6)


def test_flips_are_fair_and_belong_to_seed_step_and_peer():
    drawn = torch.stack([flips(0, step, peer, 100) for step in range(10) for peer in range(10)])
    assert abs(float(drawn.double().mean()) - 0.5) < 0.02
    assert len(drawn.unique(dim=0)) == 100
    assert torch.equal(flips(0, 3, 2, 100), drawn[32])
    assert not torch.equal(flips(1, 3, 2, 100), drawn[32])


def test_training_images_are_mirrored_only_where_allowed_and_test_images_never():
    data, rows = own_data(flip=True), torch.arange(20).view(2, 10)
    images, labels = training_batch(data, rows, seed=0, step=5)
    plain = prepare(data.train_images, data.mean, data.std).view(2, 10, 3, 4, 4)
    mirrored = torch.stack([flips(0, 5, peer, 10) for peer in range(2)])
    assert mirrored.any()
    assert not mirrored.all()
    assert torch.equal(images, torch.where(mirrored[..., None, None, None], plain.flip(-1), plain))
    assert torch.equal(labels, rows)
    alone, _ = training_batch(data, rows[1:], seed=0, step=5, peers=[1])
    assert torch.equal(alone[0], images[1])
    assert torch.equal(training_batch(own_data(flip=False), rows, seed=0, step=5)[0], plain)
    assert torch.equal(datasets.test_batch(data)[0], plain[0, :5])
    assert torch.equal(datasets.test_batch(data, torch.tensor([4, 1]))[1], torch.tensor([4, 1]))
    assert torch.equal(data.to("cpu").train_images, data.train_images)


def test_preparing_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    training_batch(own_data(flip=True), torch.arange(20).view(2, 10), seed=0, step=5)
    assert torch.equal(before, torch.get_rng_state())
