"""Small generated sets in the real formats, so that torchvision's own readers read them."""

import hashlib
import pickle
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

CIFAR_SIZES = {"CIFAR10": (10, 100, 20), "CIFAR100": (100, 1000, 200)}


def images_of(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Write `kind` in its format and give torchvision's class the true checksums of these files."""
    reader = getattr(datasets, kind)
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    classes, train_count, test_count = CIFAR_SIZES[kind]
    key = "labels" if kind == "CIFAR10" else "fine_labels"
    for name, count in (("train_list", train_count), ("test_list", test_count)):
        files = [file for file, _ in getattr(reader, name)]
        images = images_of(count, 3072, seed=count)
        labels = np.arange(count) % classes
        for file, x, y in zip(
            files, np.array_split(images, len(files)), np.array_split(labels, len(files)), strict=True
        ):
            (folder / file).write_bytes(pickle.dumps({"data": x, key: y.tolist()}))
        monkeypatch.setattr(reader, name, [[file, md5(folder / file)] for file in files])
    meta = folder / reader.meta["filename"]
    meta.write_bytes(pickle.dumps({reader.meta["key"]: [f"class{i}" for i in range(classes)]}))
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5(meta)})


def write_fashion_mnist(root: Path) -> None:
    """Write the four idx files; Fashion-MNIST's reader checks their presence and lengths."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 100), ("t10k", 20)):
        images = images_of(count, 28, 28, seed=count)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())


def write_flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write 5 images a class: two for train, two for val, one for test; sizes differ as in the real set."""
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    count = 5 * 102
    for i in range(1, count + 1):
        image = Image.fromarray(images_of(1, 20 + i % 3, 24, 3, seed=i)[0])
        image.save(folder / "jpg" / f"image_{i:05d}.jpg")
    places = np.arange(1, count + 1)
    savemat(folder / "imagelabels.mat", {"labels": (places - 1) % 102 + 1})
    train, val, test = places[:204], places[204:408], places[408:]
    savemat(folder / "setid.mat", {"trnid": train, "valid": val, "tstid": test})
    files = {"image": datasets.Flowers102._file_dict["image"]}
    files |= {
        key: (f"{name}.mat", md5(folder / f"{name}.mat"))
        for key, name in (("label", "imagelabels"), ("setid", "setid"))
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)


def write_folder(
    root: Path, size: tuple[int, int], parts: tuple[str, ...] = ("train", "test"), count: int = 10
) -> None:
    """Write PNGs (width, height) = `size` of two classes; the first is dark, the second bright."""
    for part in parts:
        for name, level in (("dark", 60), ("light", 200)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = images_of(1, size[1], size[0], 3, seed=i)[0] // 8
                Image.fromarray(noise + np.uint8(level - 16)).save(folder / f"{i}.png")


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the writers of each set below `root`, and the random images that they write."""
    monkeypatch.setenv("BSCONV_NAS_DATA", str(tmp_path))
    return SimpleNamespace(
        root=tmp_path,
        images=images_of,
        cifar=partial(write_cifar, tmp_path, monkeypatch),
        fashion_mnist=partial(write_fashion_mnist, tmp_path),
        flowers102=partial(write_flowers102, tmp_path, monkeypatch),
        folder=partial(write_folder, tmp_path),
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
