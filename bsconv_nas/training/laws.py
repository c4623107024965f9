"""What a field of an experiment file may hold, and the sentence that refuses the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from bsconv_nas.errors import ExperimentError, suggest

__all__ = ["FLAG", "Law", "check", "is_number", "number", "one_of", "optional", "whole"]


@dataclass(frozen=True, slots=True)
class Law:
    """The words of a law, its test, and the valid names where it is a choice."""

    words: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


FLAG = Law("true or false", lambda value: isinstance(value, bool))


def whole(low: int) -> Law:
    """Return the law of a whole number of at least `low`."""
    return Law(
        f"a whole number of at least {low}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low,
    )


def number(words: str, holds: Callable[[float], bool]) -> Law:
    """Return the law of a finite number with the property `holds`.

    >>> number("a number above 0", lambda value: value > 0).holds("0.1")
    False
    """
    return Law(words, lambda value: is_number(value) and holds(value))


def is_number(value: object) -> TypeGuard[float]:
    """Return whether `value` is a finite int or float; a bool is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def one_of(names: Iterable[str]) -> Law:
    """Return the law of a choice by name."""
    valid = tuple(names)
    return Law("one of " + ", ".join(map(repr, valid)), lambda value: value in valid, valid)


def optional(law: Law) -> Law:
    """Return `law`, or nothing at all."""
    return Law(f"{law.words}, or left out", lambda value: value is None or law.holds(value))


def check(section: str, owner: object, laws: Mapping[str, Law]) -> None:
    """Hold each field of `owner` against its law.

    Raises:
        ExperimentError: the first field that breaks it, as `section.field`.
    """
    for name, law in laws.items():
        value = getattr(owner, name)
        if law.holds(value):
            continue
        if law.names and isinstance(value, str):
            raise ExperimentError(f"Unknown {section}.{name} {value!r}: {suggest(value, law.names)}.")
        raise ExperimentError(f"{section}.{name} must be {law.words}, but got {value!r}.")
