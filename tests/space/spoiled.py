"""A network whose forward is spoiled, and what is said of it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from bsconv_nas.errors import SpaceError
from bsconv_nas.space.trace import trace

SIZE = (3, 32, 32)
FORBIDDEN = ("Proxy", "symbolically traced", "torch.fx.wrap", "TraceError", "symbolic tracing", ": ;", ": .")


class Trunk(nn.Module):
    """What the others spoil."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def maps(self, x: Tensor) -> Tensor:
        maps: Tensor = self.b(F.relu(self.a(x)))
        return maps

    def forward(self, x: Tensor) -> Any:
        return self.head(self.maps(x).mean((2, 3)))


def spoiled(change: Callable[[Trunk, Tensor], Any]) -> Trunk:
    """Return a network whose forward is `change`."""
    kind = type("Spoiled", (Trunk,), {"forward": change})
    network: Trunk = kind()
    return network


def good(self: Trunk, x: Tensor) -> Any:
    return Trunk.forward(self, x)


def refusal(network: nn.Module, size: tuple[int, int, int] = SIZE) -> str:
    """Return what is said of a network that is refused, which must be one sentence without words of torch.fx."""
    with pytest.raises(SpaceError) as refused:
        trace(network, size)
    said = str(refused.value)
    shown = re.sub("`[^`]*`", "", said)  # without the user's own lines
    assert not any(word in shown for word in FORBIDDEN), said
    assert said.endswith(".")
    assert "\n" not in said
    return said
