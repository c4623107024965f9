"""Forwards with plain asserts: pytest adds words to those of a test module, which nobody else has."""

from typing import Any

from torch import Tensor


def five_channels(self: Any, x: Tensor) -> Any:
    assert x.shape[1] == 5
    return self.head(self.maps(x).mean((2, 3)))


def three_channels(self: Any, x: Tensor) -> Any:
    assert x.shape[1] == 3
    return self.head(self.maps(x).mean((2, 3)))


def only_224(self: Any, x: Tensor) -> Any:
    assert x.shape[-1] == 224
    return self.head(self.maps(x).mean((2, 3)))
