"""Constructor expressions as values, and their text.

A call knows every argument and its default, so that two calls of one layer have the same shape whatever they leave out;
the text shows only what differs from the defaults.
"""

from __future__ import annotations

import itertools
import json
import keyword
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

__all__ = [
    "WIDTH",
    "Argument",
    "Call",
    "Expression",
    "Items",
    "Literal",
    "Name",
    "flat",
    "is_name",
    "literal",
    "render",
    "signature",
    "unique",
]

WIDTH = 100
INDENT = "    "
SHORTEST_RUN = 3


@dataclass(frozen=True, slots=True)
class Literal:
    """A Python constant."""

    value: object


@dataclass(frozen=True, slots=True)
class Name:
    """A piece of code that stands as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list, a tuple or a dict display; the keys of a dict are part of its items."""

    items: tuple[Expression, ...]
    brackets: str = "[]"


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a call; it is left out where it equals `default`, and shows its key unless `positional`."""

    key: str
    value: Expression
    default: Literal | None = None
    positional: bool = False

    @property
    def shown(self) -> bool:
        """Whether the value differs from the default, in type too: 1 is not True."""
        return self.default is None or repr(self.value) != repr(self.default)


@dataclass(frozen=True, slots=True)
class Call:
    """A call; `callee` is code such as `nn.Conv2d`."""

    callee: str
    arguments: tuple[Argument, ...] = ()


Expression = Literal | Name | Items | Call


def literal(value: object) -> str:
    """Return the code of a constant: text in double quotes, infinities by name, dtypes and devices from torch.

    >>> literal((1, "same", float("inf")))
    '(1, "same", math.inf)'
    """
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False)
        case float() if math.isinf(value):
            return "math.inf" if value > 0 else "-math.inf"
        case float() if math.isnan(value):
            return "math.nan"
        case tuple():
            return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case torch.device():
            return f'torch.device("{value}")'
        case _:
            return repr(value)


def render(expression: Expression, indent: int = 0, prefix: str = "", suffix: str = "") -> list[str]:
    """Return the lines of `prefix + expression + suffix` at `indent` [levels], broken at brackets beyond `WIDTH`.

    As ruff and black write them, broken brackets hold plain arguments on one line if they fit; others stand one a
    line with a trailing comma.
    """
    line = INDENT * indent + prefix + flat(expression) + suffix
    if len(line) <= WIDTH or isinstance(expression, Literal | Name):
        return [line]
    opening, parts, closing = _bracketed(expression)
    lines = [INDENT * indent + prefix + opening]
    inner = INDENT * (indent + 1) + ", ".join(key + flat(value) + tail for key, value, tail in parts)
    if len(inner) <= WIDTH and all(_is_simple(value) for _, value, _ in parts):
        return [*lines, inner, INDENT * indent + closing + suffix]
    for key, value, tail in parts:
        lines += render(value, indent + 1, key, tail + ",")
    return [*lines, INDENT * indent + closing + suffix]


def signature(head: str, params: Sequence[str], tail: str, indent: int = 0) -> list[str]:
    """Return the lines of `head(params)tail`, such as the first line of a function."""
    return render(Call(head, tuple(Argument("", Name(param), positional=True) for param in params)), indent, "", tail)


def flat(expression: Expression) -> str:
    """Return the expression on one line, whatever its width."""
    if isinstance(expression, Name):
        return expression.text
    if isinstance(expression, Literal):
        return literal(expression.value)
    opening, parts, closing = _bracketed(expression)
    text = ", ".join(key + flat(value) + tail for key, value, tail in parts)
    return opening + text + ("," if opening == "(" and len(parts) == 1 else "") + closing


def _is_simple(expression: Expression) -> bool:
    if isinstance(expression, Items):
        return all(map(_is_simple, expression.items))
    return not isinstance(expression, Call)


def _bracketed(expression: Items | Call) -> tuple[str, list[tuple[str, Expression, str]], str]:
    """Return the opening, (text before, expression, text behind) of each part, and the closing."""
    if isinstance(expression, Items):
        return expression.brackets[0], [("", item, "") for item in expression.items], expression.brackets[1]
    return f"{expression.callee}(", list(_parts(expression)), ")"


def _parts(call: Call) -> Iterator[tuple[str, Expression, str]]:
    """Yield the shown arguments; a run of equal positional calls becomes one generator."""
    by_position = True
    for argument, equal in itertools.groupby(call.arguments):
        count = len(list(equal))
        if not argument.shown:
            by_position = False
        elif count >= SHORTEST_RUN and isinstance(argument.value, Call):
            yield "*(", argument.value, f" for _ in range({count}))"
        else:
            key = "" if argument.positional and by_position else f"{argument.key}="
            yield from [(key, argument.value, "")] * count


def unique(name: str, taken: set[str], separator: str = "_") -> str:
    """Return `name`, numbered where it is taken, and take it."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}{separator}{number}", number + 1
    taken.add(candidate)
    return candidate


def is_name(text: str) -> bool:
    """Whether `text` can stand as a variable, an attribute or a keyword argument."""
    return text.isidentifier() and not keyword.iskeyword(text)
