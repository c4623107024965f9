"""Recipes: everything that decides how a candidate is trained, as plain values; no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bsconv_nas.errors import ExperimentError
from bsconv_nas.training.laws import FLAG, Law, check, is_number, number, one_of, whole

__all__ = ["SCHEDULES", "Recipe", "learning_rate"]

# Smith & Topin, "Super-Convergence" (arXiv 1708.07120), with the constants of torch.optim.lr_scheduler.OneCycleLR.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = ONE_CYCLE_START / 1e4


@dataclass(frozen=True, slots=True)
class Recipe:
    """SGD with a schedule, regularisation, precision and augmentation; an augmentation says what the data bear.

    Attributes:
        milestones: of `steps`: below 1 a fraction of the epochs, else an epoch. The published 100, 150, 180 of 200.
        factor: of `steps`: what the rate is multiplied with at each milestone.
        weight_decay: of dense kernels and linear weights only; depthwise weights, norms and biases are spared.
        warmup_epochs: the rate rises linearly from 0 over so many epochs; `one_cycle` warms up by itself.
        ema: decay of the weights' exponential moving average, which is what gets validated; 0 is off.
        precision: `auto` is bf16 autocast on CUDA and fp32 elsewhere: on CPUs bf16 slows depthwise layers down.
        channels_last: `auto` is on: it gained 1.1 to 1.7 times on CPU for dense and separable ResNet-20s at 8, 16 and
            32 pixels, and tensor cores ask for it.
        clip: largest norm of the whole gradient; 0 is off.
        crop: pixels of black padding for the random crop; large images get a random resized crop if it is not 0.
        cutout: side [pixels] of the square that is blotted out with the mean colour; 0 is off.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75, 0.9)
    factor: float = 0.1
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    precision: str = "auto"
    channels_last: bool | str = "auto"
    clip: float = 0.0
    flip: bool = False
    crop: int = 0
    cutout: int = 0

    def __post_init__(self) -> None:
        """Turn a file's list into a tuple and refuse what no training can follow."""
        if isinstance(self.milestones, list):
            object.__setattr__(self, "milestones", tuple(self.milestones))
        check("recipe", self, _LAWS)
        _check_schedule(self)
        if self.nesterov and not self.momentum:
            raise ExperimentError("recipe.nesterov needs recipe.momentum above 0, but got 0: set nesterov = false.")


def _check_schedule(recipe: Recipe) -> None:
    """Refuse milestones and warm-ups that the epochs cannot hold."""
    if recipe.warmup_epochs >= recipe.epochs:
        raise ExperimentError(
            f"recipe.warmup_epochs must be less than recipe.epochs = {recipe.epochs}, but got {recipe.warmup_epochs}."
        )
    if recipe.schedule == "one_cycle" and recipe.warmup_epochs:
        raise ExperimentError(
            f"The schedule 'one_cycle' warms up by itself, but recipe.warmup_epochs is {recipe.warmup_epochs}: "
            "set it to 0."
        )
    if recipe.schedule == "steps" and _milestones(recipe)[-1] >= recipe.epochs:
        raise ExperimentError(
            f"recipe.milestones must lie inside recipe.epochs = {recipe.epochs}, but got {recipe.milestones}: "
            "give fractions such as 0.5 or fewer epochs."
        )


def _are_milestones(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) > 0
        and all(is_number(item) and item > 0 for item in value)
        and all(a < b for a, b in itertools.pairwise(value))
    )


def _milestones(recipe: Recipe) -> list[float]:
    """Return the milestones in epochs, rising also where fractions and epochs are mixed."""
    return sorted(item * recipe.epochs if item < 1 else item for item in recipe.milestones)


def _progress(recipe: Recipe, position: float) -> float:
    """Return the share in [0, 1] of the epochs behind the warm-up that `position` [epochs] has passed."""
    return (position - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)


def _anneal(start: float, end: float, share: float) -> float:
    """Return the half cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _one_cycle(recipe: Recipe, position: float) -> float:
    share = _progress(recipe, position)
    if share < ONE_CYCLE_RISE:
        return _anneal(ONE_CYCLE_START, 1.0, share / ONE_CYCLE_RISE)
    return _anneal(1.0, ONE_CYCLE_END, (share - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))


def _steps(recipe: Recipe, position: float) -> float:
    passed = sum(position >= milestone for milestone in _milestones(recipe))
    return float(recipe.factor**passed)


# Recipe and position [epochs] -> factor of the learning rate behind the warm-up.
SCHEDULES: dict[str, Callable[[Recipe, float], float]] = {
    "constant": lambda recipe, position: 1.0,
    "cosine": lambda recipe, position: _anneal(1.0, 0.0, _progress(recipe, position)),
    "linear": lambda recipe, position: 1.0 - _progress(recipe, position),
    "one_cycle": _one_cycle,
    "steps": _steps,
}

_LAWS: dict[str, Law] = {
    "epochs": whole(1),
    "batch_size": whole(1),
    "learning_rate": number("a number above 0", lambda value: value > 0),
    "momentum": number("a number in [0, 1)", lambda value: 0 <= value < 1),
    "nesterov": FLAG,
    "weight_decay": number("a number of at least 0", lambda value: value >= 0),
    "schedule": one_of(SCHEDULES),
    "milestones": Law("a list of rising numbers above 0", _are_milestones),
    "factor": number("a number in (0, 1]", lambda value: 0 < value <= 1),
    "warmup_epochs": number("a number of at least 0", lambda value: value >= 0),
    "label_smoothing": number("a number in [0, 1)", lambda value: 0 <= value < 1),
    "ema": number("a decay in [0, 1), 0 being off", lambda value: 0 <= value < 1),
    "precision": one_of(("auto", "bf16", "fp32")),
    "channels_last": Law("true, false or 'auto'", lambda value: isinstance(value, bool) or value == "auto"),
    "clip": number("a number of at least 0, 0 being off", lambda value: value >= 0),
    "flip": FLAG,
    "crop": whole(0),
    "cutout": whole(0),
}


def learning_rate(recipe: Recipe, position: float) -> float:
    """Return the learning rate at `position` [epochs], anywhere in [0, recipe.epochs].

    The rate depends on nothing else, so a resumed training needs no schedule state.

    >>> learning_rate(Recipe(epochs=10, learning_rate=0.2), 5.0)
    0.1
    """
    if position < recipe.warmup_epochs:
        return recipe.learning_rate * position / recipe.warmup_epochs
    return recipe.learning_rate * SCHEDULES[recipe.schedule](recipe, position)
