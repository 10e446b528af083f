"""Data sets: what is read from which files, what is refused, and how batches are prepared."""

from __future__ import annotations

import gzip
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_helpers import archive, damaged
from gradless.collab.data import datasets, image_files
from gradless.collab.data.datasets import Images, flips, load, prepare, training_batch
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
    for index, (split, count) in enumerate((("train", train), ("t10k", test))):
        images = (np.arange(count * 784) * (index + 3) % 251).astype(np.uint8).reshape(count, 28, 28)
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
    for index, name in enumerate((*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")):
        table = np.full((20, 3073), index, np.uint8)
        table[:, 0] = np.arange(20) % 10
        table[:, 1:1025] += 100  # red
        files[name] = table.tobytes()
    return files


@pytest.mark.usefixtures("small_batches")
def test_cifar_binary_batches_from_folder_and_archive(tmp_path):
    inner = tmp_path / "c" / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    for name, raw in cifar_files().items():
        (inner / name).write_bytes(raw)
    packed = archive(
        tmp_path / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{k}": v for k, v in cifar_files().items()}
    )
    data_sets = [load("cifar10", path) for path in (inner, inner.parent, packed, tmp_path)]
    for data in data_sets:
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
    for path in (folder, folder.parent, packed, tmp_path):
        with pytest.raises(BadInput, match=r"fetch the binary version, cifar-10-binary\.tar\.gz"):
            load("cifar10", path)


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
    state = torch.get_rng_state()
    training_batch(own_data(flip=True), torch.arange(20).view(2, 10), seed=0, step=5)
    assert torch.equal(state, torch.get_rng_state())
