"""Where labelled images come from: the embedded digits, torchvision's sets, a folder, the user's own function.

Neither torch nor torchvision is imported before images are read, so that a refusal is quick.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsconv_nas.errors import BsconvNasError, DataError, described, first_line, suggest
from bsconv_nas.training.spec import LARGE_PIXELS, RESIDENT_PIXELS, USER, DataSpec, Size, fitted, image_set, locate

__all__ = ["READERS", "Labelled", "ranks", "read", "shape", "user_function", "user_module"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images with their classes.

    `images` is uint8 (N, C, H, W) or N file paths, `labels` int64 (N,); `size` is the (C, H, W) that the images have
    or, where their files differ, should be given.
    """

    images: NDArray[np.uint8] | tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    size: Size

    def take(self, index: NDArray[np.int64]) -> Labelled:
        """Return the images at `index`."""
        images = tuple(self.images[i] for i in index) if isinstance(self.images, tuple) else self.images[index]
        return dataclasses.replace(self, images=images, labels=self.labels[index])


def read(spec: DataSpec, *, test: bool) -> Labelled:
    """Return the training or the test images of `spec`, whole and in the source's size.

    Raises:
        DataError: absent or unreadable files, or arrays of another shape.
    """
    return READERS[USER if ":" in spec.name else spec.name](spec, test)


def shape(spec: DataSpec) -> tuple[Size, int]:
    """Return (C, H, W) and the number of classes of what `load(spec)` will give, without loading it.

    Only `folder` (listed) and a user's function (called) touch the data.

    >>> shape(DataSpec("cifar10", resolution=16))
    ((3, 16, 16), 10)
    """
    known = image_set(spec).size
    if known is None:
        labelled = read(spec, test=False)
        known = labelled.size, len(labelled.class_names)
    return fitted(spec, known[0]), known[1]


def ranks(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return each image's place (N,), from 0, in a random order of its class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    places = np.empty(len(labels), np.int64)
    places[order] = np.arange(len(labels)) - starts[labels[order]]
    return places


def _arrays(images: NDArray[np.uint8], labels: Any, class_names: Iterable[object]) -> Labelled:
    channels, height, width = images.shape[1:]
    return Labelled(images, np.asarray(labels, np.int64), tuple(map(str, class_names)), (channels, height, width))


def _files(paths: Iterable[object], labels: Any, class_names: Iterable[str], side: int) -> Labelled:
    return Labelled(tuple(map(str, paths)), np.asarray(labels, np.int64), tuple(class_names), (3, side, side))


def _digits(spec: DataSpec, test: bool) -> Labelled:
    """Return scikit-learn's 1,797 handwritten digits; a fifth of each class, always the same, is the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    is_test = ranks(labels, seed=0) < np.bincount(labels)[labels] // 5
    return _arrays(images, labels, digits.target_names).take(np.flatnonzero(is_test == test))


def _folder_of(spec: DataSpec) -> Path:
    folder = locate(spec)
    assert folder is not None
    return folder


def _torchvision(spec: DataSpec, make: Callable[[Any, Path], Any]) -> Any:
    """Return torchvision's data set, its many complaints turned into one."""
    from torchvision import datasets

    folder = _folder_of(spec)
    below_root = len(Path(image_set(spec).folder or "").parts)
    try:
        return make(datasets, folder.parents[below_root - 1])
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        fetched = "could not be downloaded" if spec.download else "cannot be read"
        raise DataError(
            f"The data set {spec.name!r} must lie complete in {folder}, but {fetched} ({error}): "
            f"put {image_set(spec).origin} there anew."
        ) from error


def _cifar(kind: str, spec: DataSpec, test: bool) -> Labelled:
    data = _torchvision(spec, lambda sets, root: getattr(sets, kind)(root, not test, download=spec.download))
    return _arrays(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), data.targets, data.classes)


def _fashion_mnist(spec: DataSpec, test: bool) -> Labelled:
    data = _torchvision(spec, lambda sets, root: sets.FashionMNIST(root, not test, download=spec.download))
    return _arrays(data.data.numpy()[:, None], data.targets, data.classes)


def _flowers102(spec: DataSpec, test: bool) -> Labelled:
    """Return the files of Oxford 102 Flowers; its own two small splits are the training images together."""
    paths: list[Path] = []
    labels: list[int] = []
    for split in ("test",) if test else ("train", "val"):
        make = partial(lambda split, sets, root: sets.Flowers102(root, split, download=spec.download), split)
        data = _torchvision(spec, make)
        paths += data._image_files
        labels += data._labels
    return _files(paths, labels, data.classes, LARGE_PIXELS)


def _image_folder(folder: Path) -> Labelled:
    """Return the files of `folder`: their own size if the first one is small and square, else 224 pixels."""
    from PIL import Image
    from torchvision.datasets import ImageFolder

    try:
        data = ImageFolder(folder)
        with Image.open(data.samples[0][0]) as first:
            width, height = first.size
    except OSError as error:
        raise DataError(f"{folder} must hold one folder of readable images a class, but does not: {error}.") from error
    paths, labels = zip(*data.samples, strict=True)
    side = width if width == height <= RESIDENT_PIXELS else LARGE_PIXELS
    return _files(paths, labels, data.classes, side)


def _folder(spec: DataSpec, test: bool) -> Labelled:
    train = _folder_of(spec)
    if not test:
        return _image_folder(train)
    candidates = [train.with_name(name) for name in ("test", "val")]
    found = next((folder for folder in candidates if folder.is_dir()), None)
    if found is None:
        raise DataError(f"The test images must lie in {candidates[0]} or {candidates[1]}, but neither folder exists.")
    labelled = _image_folder(found)
    expected = tuple(sorted(path.name for path in train.iterdir() if path.is_dir()))
    if labelled.class_names != expected:
        odd = sorted(set(labelled.class_names) ^ set(expected))
        raise DataError(f"{found} must have the class folders of {train}, but they differ in {', '.join(odd)}.")
    return labelled


def user_function(name: str, key: str, kind: type[BsconvNasError]) -> Callable[..., Any]:
    """Return the function `package.module:function` that the setting `key` names.

    Raises:
        BsconvNasError: of that `kind`: it cannot be imported, or there is no such function.
    """
    module, function_name = user_module(name, key, kind)
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise kind(f"Module {module.__name__!r} has no function {function_name!r}: {suggest(function_name, public)}.")
    return function


def user_module(name: str, key: str, kind: type[BsconvNasError]) -> tuple[ModuleType, str]:
    """Return the module of `package.module:attribute`, which the setting `key` names, and the attribute's name.

    Raises:
        BsconvNasError: of that `kind`: it cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    try:
        return importlib.import_module(module_name), attribute
    except (ImportError, ValueError) as error:
        raise kind(
            f"{key} {name!r} must name an importable module, but {first_line(error)}: install it or put its folder on "
            "PYTHONPATH."
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise kind(f"{key} {name!r} must name an importable module, but {described(error)}: mend it.") from error


def _called(spec: DataSpec) -> Any:
    function = user_function(spec.name, "data.name", DataError)
    try:
        return function(spec)
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"{spec.name} must return images and labels, but raised {described(error)}: mend it."
        ) from error


def _user(spec: DataSpec, test: bool) -> Labelled:
    parts = _called(spec)
    part = "test" if test else "train"
    if not isinstance(parts, Mapping) or not {"train", part} <= set(parts):
        got = f"the keys {sorted(parts)}" if isinstance(parts, Mapping) else f"a {type(parts).__name__}"
        raise DataError(
            f"{spec.name} must return {{'train': (images, labels), 'test': ...}} with {part!r}, but gave {got}."
        )
    _, train_labels = _user_arrays(f"{spec.name}['train']", parts["train"])
    images, labels = _user_arrays(f"{spec.name}[{part!r}]", parts[part])
    return _arrays(images, labels, parts.get("class_names", range(train_labels.max() + 1)))


def _user_arrays(place: str, pair: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images and labels that keep the law, or say which part of it they break."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{place} must be a pair (images, labels), but is a {type(pair).__name__}.")
    try:
        images, labels = np.asarray(pair[0]), np.asarray(pair[1])
    except (TypeError, ValueError) as error:
        raise DataError(f"{place} must be two arrays, but NumPy cannot read them: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise DataError(
            f"The images of {place} must be uint8 of shape (N, C, H, W), but are {images.dtype} of {images.shape}."
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(
            f"The labels of {place} must be {len(images)} whole numbers from 0, but are {labels.dtype} of shape "
            f"{labels.shape}{f' from {labels.min()}' if labels.size else ''}."
        )
    return images, labels.astype(np.int64)


READERS: dict[str, Callable[[DataSpec, bool], Labelled]] = {
    "digits": _digits,
    "cifar10": partial(_cifar, "CIFAR10"),
    "cifar100": partial(_cifar, "CIFAR100"),
    "fashion_mnist": _fashion_mnist,
    "flowers102": _flowers102,
    "folder": _folder,
    USER: _user,
}
