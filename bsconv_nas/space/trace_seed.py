"""The random numbers that a user's forward may draw, by whichever generator: the same each time, and none lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["Draws", "seeded"]


class Draws:
    """Whether any generator was asked since this was made."""

    def __init__(self) -> None:
        self._before = self._state()

    @property
    def any(self) -> bool:
        """Whether random numbers were drawn."""
        return self._state() != self._before

    @staticmethod
    def _state() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().numpy().tobytes()


@contextmanager
def seeded(seed: int) -> Iterator[Draws]:
    """Seed the generators of Python, NumPy and torch's CPU inside a `with` block; they go on behind it as before.

    >>> with seeded(0) as draws:
    ...     before, one, after = draws.any, random.random(), draws.any
    >>> with seeded(0):
    ...     print(one == random.random(), before, after)
    True False True
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield Draws()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
