"""Repeated structure as functions: calls that differ in a few numbers become calls of one function of these numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bsconv_nas.export.expression import Argument, Call, Expression, Literal, Name, flat, render, signature, unique

__all__ = ["Function", "skeleton", "unify"]

CHANNELS = {"in_channels", "out_channels", "num_features", "num_channels", "in_features", "out_features", "size"}
INPUTS = {"in_channels", "in_features", "num_features"}
MOST_PARAMS = 6
SHORT = 60  # [characters] a call that is no longer reads as well as a function's name


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the exported file that returns `body`."""

    name: str
    params: tuple[tuple[str, Literal | None], ...]
    body: Call

    def lines(self) -> list[str]:
        """Return the definition's lines."""
        params = [name if default is None else f"{name}={flat(default)}" for name, default in self.params]
        return [*signature(f"def {self.name}", params, ":"), *render(self.body, 1, "return ")]


@dataclass(frozen=True, slots=True)
class _Column:
    """One place of a literal in calls of one skeleton, and its value in each of them."""

    key: str
    default: Literal | None
    values: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Columns of one kind that agree everywhere are one parameter."""
        return "channels" if self.key in CHANNELS or self.key.startswith("c_") or self.key == "groups" else self.key

    @property
    def varies(self) -> bool:
        return len(set(self.values)) > 1


def skeleton(expression: Expression) -> object:
    """Return what calls must share to become one function: everything but the literals."""
    if isinstance(expression, Call):
        return expression.callee, tuple((argument.key, skeleton(argument.value)) for argument in expression.arguments)
    return None if isinstance(expression, Literal) else flat(expression)


def unify(calls: Sequence[Call], name: str, taken: set[str]) -> tuple[Function, list[Call]] | None:
    """Return the function that builds all `calls` of one skeleton, and its calls; None where it gains nothing.

    What is equal in all calls stays in the body. Channels that agree in every call become one parameter.
    """
    rows = [list(_literals(call)) for call in calls]
    columns = [
        _Column(places[0].key, places[0].default, tuple(repr(place.value) for place in places))
        for places in zip(*rows, strict=True)
    ]
    groups = _groups(columns)
    if len(calls) < 2 or len(groups) > MOST_PARAMS or min(len(flat(call)) for call in calls) <= SHORT:
        return None
    params = _named(groups, columns)
    body = _substitute(calls[0], iter(_parameter_of(columns, params)))
    function = Function(unique(name, taken), tuple((param, _default(group)) for param, group in params), body)
    return function, [_call(function, params, columns, row) for row in rows]


def _literals(call: Call) -> Iterator[Argument]:
    for argument in call.arguments:
        if isinstance(argument.value, Call):
            yield from _literals(argument.value)
        elif isinstance(argument.value, Literal):
            yield argument


def _groups(columns: Sequence[_Column]) -> list[list[_Column]]:
    """Return the varying columns, those that are one parameter together, in order of first appearance."""
    groups: dict[tuple[str, tuple[str, ...]], list[_Column]] = {}
    for column in columns:
        if column.varies:
            groups.setdefault((column.kind, column.values), []).append(column)
    return list(groups.values())


def _default(group: list[_Column]) -> Literal | None:
    default = group[0].default
    return default if all(column.default == default for column in group) else None


def _named(groups: list[list[_Column]], columns: Sequence[_Column]) -> list[tuple[str, list[_Column]]]:
    """Return each parameter's name and columns, those without a default first."""
    channels = [column for column in columns if column.kind == "channels" and column.default is None]
    taken: set[str] = set()
    named = [(unique(_name(group, channels), taken), group) for group in groups]
    return sorted(named, key=lambda item: _default(item[1]) is not None)


def _name(group: list[_Column], channels: list[_Column]) -> str:
    if group[0].kind != "channels" or _default(group) is not None:
        return group[0].key
    reads = any(column is channels[0] for column in group)
    writes = any(column is channels[-1] for column in group)
    return "channels" if reads and writes else "c_in" if reads else "c_out" if writes else "c_mid"


def _parameter_of(columns: Sequence[_Column], params: list[tuple[str, list[_Column]]]) -> list[str | None]:
    """Return for each column the parameter that stands there, or None for a constant."""
    return [next((name for name, group in params if any(c is column for c in group)), None) for column in columns]


def _substitute(call: Call, names: Iterator[str | None]) -> Call:
    def value(argument: Argument) -> Expression:
        if isinstance(argument.value, Call):
            return _substitute(argument.value, names)
        name = next(names) if isinstance(argument.value, Literal) else None
        return argument.value if name is None else Name(name)

    return Call(call.callee, tuple(dataclasses.replace(argument, value=value(argument)) for argument in call.arguments))


def _call(
    function: Function, params: list[tuple[str, list[_Column]]], columns: Sequence[_Column], row: list[Argument]
) -> Call:
    places = [next(i for i, column in enumerate(columns) if column is group[0]) for _, group in params]
    return Call(
        function.name,
        tuple(
            Argument(name, row[place].value, default, default is None)
            for place, (name, default) in zip(places, function.params, strict=True)
        ),
    )
