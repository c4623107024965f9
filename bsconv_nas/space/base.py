"""The network that a space starts from, by reference: plain values that any process can instantiate."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bsconv_nas.errors import SpaceError

__all__ = ["LARGEST", "Base"]

LARGEST = 65_536  # [channels or pixels] of an image along each axis
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Base:
    """A reference to a base network: `factory` is an importable `package.module:function`.

    The factory is called with `arguments`, and with `num_classes` and `in_channels` where its signature has them;
    `input_size` is (C, H, W) of the images [pixels]. `leaves` are patterns of module paths that are kept whole: tracing
    does not look inside, and nothing varies there.

    Raises:
        SpaceError: a field outside its law.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # for files, which pydantic reads

    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10
    leaves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot name a network."""
        laws = {
            "factory": ("package.module:function", FACTORY.fullmatch(self.factory)),
            "arguments": ("plain values: text, numbers, true or false, lists, tables", _is_plain(self.arguments)),
            "input_size": (
                f"(channels, height, width), each from 1 to {LARGEST}",
                len(self.input_size) == 3 and all(type(n) is int and 1 <= n <= LARGEST for n in self.input_size),
            ),
            "num_classes": ("a whole number of at least 2", type(self.num_classes) is int and self.num_classes >= 2),
        }
        for name, (law, holds) in laws.items():
            if not holds:
                raise SpaceError(f"base.{name} must be {law}, but got {getattr(self, name)!r}.")


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
