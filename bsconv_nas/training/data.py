"""Data sets for a search: loaded, resized and split once, then shared by all trials.

A search sees `load(spec)`: train, selection (compares candidates) and report (what is published). The test split is
`load_test(spec)`, for the final evaluation of chosen networks.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bsconv_nas.errors import DataError, suggest
from bsconv_nas.training.images import READ_AT_ONCE, Arrays, Files, Loader, Part, Statistics, resized
from bsconv_nas.training.sources import Labelled, ranks, read, shape
from bsconv_nas.training.spec import RESIDENT_PIXELS, DataSpec, Size, fitted, locate

__all__ = ["DataSpec", "Dataset", "load", "load_test", "locate", "shape", "split"]

STATISTICS_IMAGES = 1024  # of a set on disk; more change the mean by less than 0.01
LEAST_STD = 1e-6  # a channel below it is constant but for rounding, and is not scaled


@dataclass(frozen=True, slots=True)
class Dataset:
    """Parts of a labelled image set and what a network must know about it.

    Holds NumPy arrays and plain values, so a shared-memory store hands it to many processes without a copy.

    Attributes:
        parts: `train`, `selection` and `report`, or `test` alone.
        input_size: (C, H, W) of every image.
        statistics: of the train part, by which all parts are normalised.
        fingerprint: sha256 of all images and labels before the split; of files, their names, bytes and labels count.
    """

    name: str
    parts: Mapping[str, Part]
    input_size: Size
    class_names: tuple[str, ...]
    statistics: Statistics
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each part."""
        return {name: len(part.labels) for name, part in self.parts.items()}

    def loader(self, part: str, device: torch.device | str = "cpu") -> Loader:
        """Return the batches of `part` on `device`.

        Raises:
            DataError: the data set has no such part.
        """
        if part not in self.parts:
            raise DataError(f"The data set {self.name!r} has no part {part!r} here: {suggest(part, self.parts)}.")
        return self.parts[part].loader(self.statistics, torch.device(device))


def load(spec: DataSpec) -> Dataset:
    """Return the train, selection and report parts of `spec`, never its test split.

    Raises:
        DataError: absent or unreadable data, or a class too small to be split.

    >>> load(DataSpec("digits")).counts
    {'train': 1154, 'selection': 143, 'report': 145}
    """
    labelled = _checked(spec, read(spec, test=False))
    if spec.limit is not None:
        labelled = labelled.take(_balanced(labelled.labels, spec.limit, spec.split_seed))
    places = split(labelled, spec)
    whole = _prepared(labelled, spec)
    parts = {name: whole.take(index) for name, index in places.items()}
    return Dataset(
        spec.name,
        parts,
        fitted(spec, labelled.size),
        labelled.class_names,
        _statistics(parts["train"]),
        _fingerprint(whole),
    )


def load_test(spec: DataSpec) -> Dataset:
    """Return the test split alone, normalised by the statistics of the train part as in training.

    Raises:
        DataError: as `load`, or the source has no test images.
    """
    dataset = load(spec)
    labelled = _checked(spec, read(spec, test=True))
    if len(labelled.class_names) != dataset.num_classes or fitted(spec, labelled.size) != dataset.input_size:
        raise DataError(
            f"The test images of {spec.name!r} must be like its training images, {dataset.input_size} in "
            f"{dataset.num_classes} classes, but are {fitted(spec, labelled.size)} in {len(labelled.class_names)}."
        )
    part = _prepared(labelled, spec)
    return dataclasses.replace(dataset, parts={"test": part}, fingerprint=_fingerprint(part))


def split(labelled: Labelled, spec: DataSpec) -> dict[str, NDArray[np.int64]]:
    """Return the places of the train, selection and report images: the same share of each class, by `split_seed`.

    Raises:
        DataError: a class that would be absent from a part.
    """
    labels, classes = labelled.labels, len(labelled.class_names)
    counts = np.bincount(labels, minlength=classes)
    share = (ranks(labels, spec.split_seed) + 0.5) / counts[labels]
    part = np.digitize(share, [spec.selection, spec.selection + spec.report])
    places = {name: np.flatnonzero(part == i) for i, name in enumerate(("selection", "report", "train"))}
    for name, index in places.items():
        absent = np.flatnonzero(np.bincount(labels[index], minlength=classes) == 0)
        if len(absent):
            raise DataError(
                f"Every class must have an image in the {name} part, but class {labelled.class_names[absent[0]]!r} of "
                f"{spec.name!r} has {counts[absent[0]]} training images in all: raise data.selection and data.report, "
                "or data.limit."
            )
    return {name: places[name] for name in ("train", "selection", "report")}


def _balanced(labels: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """Return the places of `limit` images, taken from the classes in turn."""
    return np.sort(np.lexsort((labels, ranks(labels, seed)))[:limit])


def _checked(spec: DataSpec, labelled: Labelled) -> Labelled:
    """Refuse labels without a class, and channels that cannot be had from the images."""
    highest, classes = int(labelled.labels.max()), len(labelled.class_names)
    if highest >= classes:
        raise DataError(f"The labels of {spec.name!r} must be below its {classes} classes, but one is {highest}.")
    if spec.channels not in (None, labelled.size[0]) and labelled.size[0] not in (1, 3):
        raise DataError(
            f"data.channels = {spec.channels} needs images of 1 or 3 channels, but those of {spec.name!r} have "
            f"{labelled.size[0]}: leave data.channels out."
        )
    return labelled


def _prepared(labelled: Labelled, spec: DataSpec) -> Part:
    """Return the images at the spec's resolution and channels, in memory if they are small."""
    size = fitted(spec, labelled.size)
    if isinstance(labelled.images, tuple):
        files = Files(labelled.images, labelled.labels, size, spec.workers)
        return files.decoded() if max(size[1:]) <= RESIDENT_PIXELS else files
    chunks = np.array_split(labelled.images, -(-len(labelled.images) // READ_AT_ONCE))
    return Arrays(np.concatenate([_fit(chunk, size, spec.resolution) for chunk in chunks]), labelled.labels)


def _fit(images: NDArray[np.uint8], size: Size, resolution: int | None) -> NDArray[np.uint8]:
    tensor = torch.tensor(images)
    if size[0] != tensor.shape[1]:
        from torchvision.transforms.v2 import functional

        convert = functional.grayscale_to_rgb if size[0] == 3 else functional.rgb_to_grayscale
        tensor = convert(tensor)
    fitting: NDArray[np.uint8] = (tensor if resolution is None else resized(tensor, resolution)).numpy()
    return fitting


def _statistics(part: Part) -> Statistics:
    """Return mean and standard deviation of each channel, exact from the histogram of its 256 values."""
    if isinstance(part, Files):
        sample = np.linspace(0, len(part.paths) - 1, min(STATISTICS_IMAGES, len(part.paths))).astype(np.int64)
        part = part.take(np.unique(sample)).decoded()
    values = np.arange(256) / 255
    moments = []
    for channel in range(part.images.shape[1]):
        weights = torch.tensor(part.images[:, channel]).flatten().bincount(minlength=256).numpy()
        mean = float(np.average(values, weights=weights))
        std = float(np.average((values - mean) ** 2, weights=weights)) ** 0.5
        moments.append((mean, std if std > LEAST_STD else 1.0))
    mean_of, std_of = zip(*moments, strict=True)
    return Statistics(mean_of, std_of)


def _fingerprint(part: Part) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(part.labels).tobytes())
    if isinstance(part, Arrays):
        digest.update(str(part.images.shape).encode())
        digest.update(np.ascontiguousarray(part.images).data)
    else:
        for path in map(Path, part.paths):
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
