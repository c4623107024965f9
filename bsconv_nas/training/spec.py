"""Data specs: which images, from where, at which size, split how; plain values, no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bsconv_nas.errors import DataError, ExperimentError, suggest
from bsconv_nas.training.laws import FLAG, Law, check, number, optional, whole

__all__ = [
    "LARGE_PIXELS",
    "RESIDENT_PIXELS",
    "ROOT_VARIABLE",
    "SETS",
    "USER",
    "DataSpec",
    "ImageSet",
    "Size",
    "fitted",
    "image_set",
    "locate",
]

ROOT_VARIABLE = "BSCONV_NAS_DATA"
RESIDENT_PIXELS = 64  # images up to this side live on the device as uint8, larger ones are streamed from their files
LARGE_PIXELS = 224  # side of larger images where the spec names none
USER = "package.module:function"

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ImageSet:
    """One row of `SETS`.

    Attributes:
        size: (C, H, W) of the images and their number of classes, where that never varies.
        folder: where the files lie below the data root; None needs no root.
        origin: what has to be put there.
        downloads: torchvision can fetch it.
    """

    size: tuple[Size, int] | None = None
    folder: str | None = None
    origin: str = ""
    downloads: bool = True


SETS: dict[str, ImageSet] = {
    "digits": ImageSet(((1, 8, 8), 10)),
    "cifar10": ImageSet(
        ((3, 32, 32), 10),
        "cifar-10-batches-py",
        "the files of cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": ImageSet(
        ((3, 32, 32), 100),
        "cifar-100-python",
        "the files of cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "fashion_mnist": ImageSet(
        ((1, 28, 28), 10),
        "FashionMNIST/raw",
        "the four idx files of https://github.com/zalandoresearch/fashion-mnist, unpacked",
    ),
    "flowers102": ImageSet(
        ((3, LARGE_PIXELS, LARGE_PIXELS), 102),
        "flowers-102",
        "jpg/, imagelabels.mat and setid.mat from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "folder": ImageSet(folder="train", origin="one folder of images a class", downloads=False),
    USER: ImageSet(),
}

_FRACTION = number("a fraction in (0, 0.5]", lambda value: 0 < value <= 0.5)
_LAWS: dict[str, Law] = {
    "name": Law("the name of a data set", lambda value: isinstance(value, str) and bool(value)),
    "root": optional(Law("a folder", lambda value: isinstance(value, str | os.PathLike))),
    "resolution": optional(whole(1)),
    "channels": optional(Law("1 or 3", lambda value: value in (1, 3) and not isinstance(value, bool))),
    "split_seed": whole(0),
    "selection": _FRACTION,
    "report": _FRACTION,
    "limit": optional(whole(1)),
    "workers": whole(0),
    "download": FLAG,
}


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Which images, from where, at which size, split how.

    Attributes:
        name: a key of `SETS`, or `package.module:function` of the user.
        root: folder of the data; without it the environment variable BSCONV_NAS_DATA.
        resolution: images are resized to this side [pixels] when loaded; None keeps small ones as they are and makes
            the larger ones of `folder` and `flowers102` 224.
        channels: 3 repeats grey images, 1 makes colours grey, None keeps what the source has.
        split_seed: decides which training images select and report; the test split is the source's own.
        selection: share of the training images that the search compares candidates on.
        report: share of the training images that reported accuracies come from.
        limit: a class-balanced subset of so many training images, taken before they are split.
        workers: processes that read large images.
        download: fetch a missing torchvision set.
    """

    name: str = "digits"
    root: str | None = None
    resolution: int | None = None
    channels: int | None = None
    split_seed: int = 0
    selection: float = 0.1
    report: float = 0.1
    limit: int | None = None
    workers: int = 0
    download: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their laws, and unknown names."""
        check("data", self, _LAWS)
        if self.selection + self.report >= 1:
            raise ExperimentError(
                f"data.selection + data.report must leave training images, but got {self.selection} + {self.report}."
            )
        if ":" not in self.name and self.name not in SETS:
            raise ExperimentError(f"Unknown data.name {self.name!r}: {suggest(self.name, SETS)}.")


def image_set(spec: DataSpec) -> ImageSet:
    """Return the row of `spec`."""
    return SETS[USER if ":" in spec.name else spec.name]


def fitted(spec: DataSpec, size: Size) -> Size:
    """Return (C, H, W) of images that had `size`, after the spec's resolution and channels."""
    channels, height, width = size
    side = spec.resolution
    return spec.channels or channels, side or height, side or width


def locate(spec: DataSpec) -> Path | None:
    """Return the folder that must hold the files of `spec`, or None where it needs none.

    Raises:
        DataError: no root is named, or the folder is absent and must not be downloaded.
    """
    row = image_set(spec)
    if row.folder is None:
        return None
    root = spec.root or os.environ.get(ROOT_VARIABLE)
    if not root:
        raise DataError(
            f"The data set {spec.name!r} needs a folder that holds {row.folder}/ ({row.origin}): "
            f"name it by `--set data.root=FOLDER`, data.root or ${ROOT_VARIABLE}."
        )
    folder = Path(root) / row.folder
    if not folder.is_dir() and not (spec.download and row.downloads):
        raise DataError(
            f"The data set {spec.name!r} must lie in {folder} ({row.origin}), but there is no such folder: put it there"
            f" or name the folder that holds {row.folder}/ by `--set data.root=FOLDER`, data.root or ${ROOT_VARIABLE}"
            f"{', or set data.download = true.' if row.downloads else '.'}"
        )
    return folder
