"""Images as batches: small ones resident on the device as uint8, large ones streamed from their files.

torchvision is imported where an image is decoded or resized: the processes that train small ones start without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from bsconv_nas.errors import DataError
from bsconv_nas.training.augment import Augment
from bsconv_nas.training.spec import Size

__all__ = ["Arrays", "Files", "Loader", "Part", "Statistics", "resized"]

READ_AT_ONCE = 1024  # images decoded or resized together: bounds the memory of loading
RANDOM_AREA = (0.35, 1.0)  # share of a large image that its random crop covers, milder than ImageNet's for few epochs


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation of each channel over the training images, pixels being in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Loader(Protocol):
    """A part of a data set, ready on a device."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, augment: Augment | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised float images (B, C, H, W) with their labels (B,), each image once.

        With a generator the order is random and the batches differ in size by at most one, so that none is tiny;
        without one the order is the stored one, and nothing may be augmented.
        """
        ...


@dataclass(frozen=True, slots=True)
class Arrays:
    """Small images in memory: `images` uint8 (N, C, H, W), `labels` int64 (N,).

    NumPy arrays, because shared memory hands them to many processes without a copy.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, index: NDArray[np.int64]) -> Arrays:
        """Return the images at `index`."""
        return Arrays(self.images[index], self.labels[index])

    def loader(self, statistics: Statistics, device: torch.device) -> Loader:
        """Return the images on `device`."""
        return _Resident(self, _Finish(statistics, device))


@dataclass(frozen=True, slots=True)
class Files:
    """Large images on disk, given `size` (C, H, W) when read, by `workers` processes."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    size: Size
    workers: int = 0

    def take(self, index: NDArray[np.int64]) -> Files:
        """Return the images at `index`."""
        return Files(tuple(self.paths[i] for i in index), self.labels[index], self.size, self.workers)

    def loader(self, statistics: Statistics, device: torch.device) -> Loader:
        """Return the images, bound for `device`."""
        return _Streamed(self, _Finish(statistics, device))

    def decoded(self) -> Arrays:
        """Return all images in memory."""
        order = _in_order(len(self.paths), READ_AT_ONCE)
        images = [batch.numpy() for batch, _ in _read(self, order, [0] * len(self.paths), False)]
        return Arrays(np.concatenate(images), self.labels)


Part = Arrays | Files


class _Finish:
    """The last steps of every batch, on its device: augmentation, then normalisation."""

    def __init__(self, statistics: Statistics, device: torch.device) -> None:
        self.device = device
        mean, std = torch.tensor(statistics.mean) * 255, torch.tensor(statistics.std) * 255
        self._fill = mean.round().to(device, torch.uint8)
        self._mean, self._std = (values.to(device)[:, None, None] for values in (mean, std))

    def __call__(self, images: Tensor, generator: torch.Generator | None, augment: Augment | None) -> Tensor:
        if augment is not None and generator is not None:
            images = augment(images, generator, self._fill)
        return images.float().sub_(self._mean).div_(self._std)


class _Resident:
    """Loader of images that stay on the device."""

    def __init__(self, part: Arrays, finish: _Finish) -> None:
        self._images = _tensor(part.images).to(finish.device)
        self._labels = _tensor(part.labels).to(finish.device)
        self._finish = finish

    def __len__(self) -> int:
        return len(self._labels)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, augment: Augment | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in _order(len(self), batch_size, generator):
            index = chosen.to(self._finish.device)
            yield self._finish(self._images[index], generator, augment), self._labels[index]


class _Streamed:
    """Loader of images that are read from their files again and again."""

    def __init__(self, part: Files, finish: _Finish) -> None:
        self._part, self._finish = part, finish

    def __len__(self) -> int:
        return len(self._part.paths)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, augment: Augment | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        order = _order(len(self), batch_size, generator)
        seeds = torch.zeros(len(self), dtype=torch.int64)
        if generator is not None:
            seeds.random_(generator=generator)
        crops = augment is not None and augment.crop > 0
        rest = Augment(augment.flip, cutout=augment.cutout) if augment is not None else None
        device = self._finish.device
        for images, labels in _read(self._part, order, seeds.tolist(), crops, pin=device.type == "cuda"):
            images = images.to(device, non_blocking=True)
            yield self._finish(images, generator, rest), labels.to(device, non_blocking=True)


class _Decoded(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One decoded image (C, H, W) uint8 and its label for each pair (place, seed).

    The seed belongs to the image, so the number of workers changes nothing.
    """

    def __init__(self, part: Files, random_crop: bool) -> None:
        from torchvision.transforms import v2  # here, so that the processes that read are forked with it

        self._part = part
        side = part.size[1]
        self._fit = (
            v2.RandomResizedCrop(side, scale=RANDOM_AREA, antialias=True)
            if random_crop
            else partial(resized, side=side)
        )

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        place, seed = item
        image = _decode(self._part.paths[place], self._part.size[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._fit(image), int(self._part.labels[place])


def _read(
    part: Files, order: Sequence[Tensor], seeds: list[int], random_crop: bool, pin: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 images (B, C, H, W) and labels (B,) of each batch of `order`."""
    batches = [[(i, seeds[i]) for i in index.tolist()] for index in order]
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        _Decoded(part, random_crop), batch_sampler=batches, num_workers=part.workers, pin_memory=pin
    )
    try:
        yield from loader
    except DataError as error:
        # A worker's error arrives with its traceback as the message; the sentence is its end.
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from error


def _decode(path: str, channels: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path) as image:
            decoded: Tensor = functional.pil_to_tensor(image.convert("RGB" if channels == 3 else "L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"Every image must be readable, but {path} is not: {error}.") from error
    return decoded


def resized(images: Tensor, side: int) -> Tensor:
    """Return uint8 images (..., C, side, side): the shorter side resized with antialiasing, the centre cropped."""
    if images.shape[-2:] == (side, side):
        return images
    from torchvision.transforms.v2 import functional

    cropped: Tensor = functional.center_crop(functional.resize(images, [side], antialias=True), [side, side])
    return cropped


def _order(count: int, batch_size: int, generator: torch.Generator | None) -> Sequence[Tensor]:
    """Return the places of each batch's images."""
    if generator is None:
        return _in_order(count, batch_size)
    return torch.randperm(count, generator=generator).tensor_split(-(-count // batch_size))


def _in_order(count: int, batch_size: int) -> Sequence[Tensor]:
    return torch.split(torch.arange(count), batch_size)


def _tensor(array: NDArray[np.uint8] | NDArray[np.int64]) -> Tensor:
    """Return a view of an array that may lie in read-only shared memory; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
