"""Augmentations of a batch of uint8 images on their device: one choice a sample, no loop over samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Augment", "crop", "cutout", "flip"]


@dataclass(frozen=True, slots=True)
class Augment:
    """Random crop with `crop` pixels of padding, horizontal flip, cutout of a square with side `cutout` [pixels]."""

    flip: bool = False
    crop: int = 0
    cutout: int = 0

    def __call__(self, images: Tensor, generator: torch.Generator, fill: Tensor) -> Tensor:
        """Return augmented images, (N, C, H, W) uint8 as they came.

        Args:
            images: (N, C, H, W) uint8, on any device.
            generator: on the CPU, so that every device sees the same augmentation.
            fill: (C,) uint8, the colour of cutout.
        """
        count, _, height, width = images.shape
        if self.crop:
            offsets = torch.randint(2 * self.crop + 1, (count, 2), generator=generator)
            images = crop(images, offsets.to(images.device), self.crop)
        if self.flip:
            chosen = torch.randint(2, (count,), generator=generator)
            images = flip(images, chosen.to(images.device, torch.bool))
        if self.cutout:
            rows = torch.randint(height, (count,), generator=generator)
            columns = torch.randint(width, (count,), generator=generator)
            images = cutout(images, torch.stack((rows, columns), 1).to(images.device), self.cutout, fill)
        return images


def crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Return each image moved inside its black frame.

    Args:
        images: (N, C, H, W).
        offsets: (N, 2) whole numbers in [0, 2 padding]: the window's top and left in the padded image.
        padding: width of the frame [pixels].
    """
    height, width = images.shape[2:]
    windows = functional.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(images), device=images.device)
    return windows[samples, :, offsets[:, 0], offsets[:, 1]]


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Return the images (N, C, H, W), mirrored left to right where `chosen` (N,) is true."""
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, centres: Tensor, size: int, fill: Tensor) -> Tensor:
    """Return each image with one square blotted out (DeVries & Taylor, arXiv 1708.04552).

    Args:
        images: (N, C, H, W).
        centres: (N, 2) row and column of the square's centre; the square may reach over the border.
        size: side of the square [pixels].
        fill: (C,) its colour.
    """
    inside = []
    for axis in (0, 1):
        start = centres[:, axis, None] - size // 2
        pixels = torch.arange(images.shape[2 + axis], device=images.device)
        inside.append((pixels >= start) & (pixels < start + size))
    mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(mask, fill[:, None, None], images)
