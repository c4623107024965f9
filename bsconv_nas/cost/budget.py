"""Budgets: upper bounds or bands on cost columns, with units."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import LATENCY
from bsconv_nas.errors import BudgetError, suggest

__all__ = ["Budget", "format_quantity", "parse_quantity"]

COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
BYTE_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TIME_UNITS = {"": 10**6, "us": 10**3, "ms": 10**6, "s": 10**9}  # a bare number is milliseconds
UNITS = {"macs": COUNT_UNITS, "params": COUNT_UNITS, "memory": BYTE_UNITS, LATENCY: TIME_UNITS}
FLOPS = "flops"  # accepted as twice the multiply-adds
LATENCY_MS = "latency_ms"
SPELLINGS = {FLOPS: "macs", LATENCY_MS: LATENCY}  # the column that a budget's key stands for
SMALLEST = {"memory": "B", LATENCY: "ns"}
KEYS = ("macs", "params", "memory", *SPELLINGS)
LARGEST = 10**30  # of any unit; no network comes near, and floats hold it


def parse_quantity(value: object, column: str) -> int:
    """Return a bound such as 40_000_000, "40M" or "1.5 MiB" as a whole number of the column's unit.

    Raises:
        BudgetError: no number, a negative one, or a unit that the column does not have.

    >>> parse_quantity("2.5M", "macs"), parse_quantity("1.5 MiB", "memory")
    (2500000, 1572864)
    >>> parse_quantity(2.5, "latency_ms"), parse_quantity("800 us", "latency_ms")
    (2500000, 800000)
    """
    units = UNITS[SPELLINGS.get(column, column)]
    match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][+]?[0-9]{1,3})?)\s*([A-Za-z]*)\s*", str(value))
    by_case = {unit.lower(): factor for unit, factor in units.items()}
    if isinstance(value, bool) or match is None or match[2].lower() not in by_case:
        shown = ", ".join(unit for unit in units if unit)
        raise BudgetError(
            f"Budget {column!r} must be a number of at least 0 with a unit of {shown}, but got {value!r}."
        )
    bound = int(Fraction(match[1].replace("_", "")) * by_case[match[2].lower()])
    if bound > LARGEST:
        raise BudgetError(f"Budget {column!r} must be at most {LARGEST:.0e}, but got {value!r}.")
    return bound


def format_quantity(value: float, column: str) -> str:
    """Return a cost with its unit: 40,813,184 MACs are "40.8 M", bytes use KiB and MiB, nanoseconds us and ms.

    >>> format_quantity(40_813_184, "macs"), format_quantity(65_536, "memory"), format_quantity(2_712_000, "latency_ns")
    ('40.8 M', '64 KiB', '2.71 ms')
    """
    units = [(unit, factor) for unit, factor in UNITS.get(column, COUNT_UNITS).items() if unit not in ("", "B")]
    unit, factor = next(((u, f) for u, f in reversed(units) if value >= f), (SMALLEST.get(column, ""), 1))
    return f"{value / factor:.3g} {unit}".strip() if value < 1000 * factor else f"{value / factor:,.0f} {unit}".strip()


@dataclass(frozen=True, init=False)
class Budget:
    """Bounds that every trained network keeps, by cost column: `(low, high)`, both inclusive.

    >>> str(Budget(macs="40M", memory=["1MiB", "2MiB"]))
    'macs <= 40 M and 1 MiB <= memory <= 2 MiB'
    >>> str(Budget(flops="80M"))
    'flops <= 80 M (2 x macs)'
    >>> str(Budget(latency_ms=3.0))
    'latency <= 3 ms'
    """

    bounds: Mapping[str, tuple[int, int]]
    in_flops: bool = field(compare=False)  # MACs are shown and written as they were given

    def __init__(self, **columns: Any) -> None:
        """Read an upper bound or a band `[low, high]` for each column.

        `flops` is read as twice the MACs, and `latency_ms`, in milliseconds, as the column `latency_ns`.

        Raises:
            BudgetError: an unknown column or a malformed bound.
        """
        bounds: dict[str, tuple[int, int]] = {}
        for column, value in columns.items():
            if column not in KEYS:
                raise BudgetError(f"Unknown budget {column!r}: {suggest(column, KEYS)}.")
            low, high = _band(column, value)
            name = SPELLINGS.get(column, column)
            if name in bounds:
                raise BudgetError("A budget must bound MACs once, but got both 'macs' and 'flops': keep one of them.")
            bounds[name] = (-(-low // 2), high // 2) if column == FLOPS else (low, high)
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "in_flops", FLOPS in columns)

    def feasible(self, costs: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
        """Return which networks keep every bound, shape (n,)."""
        return self.violations(costs) <= 0

    def violations(self, costs: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
        """Return the summed relative excess over the bounds of each network, shape (n,); 0 where all are kept."""
        total = np.zeros(len(next(iter(costs.values()))) if costs else 0)
        for column, (low, high) in self.bounds.items():
            values = costs[column].astype(np.float64)
            total += np.maximum(values - high, 0) / max(high, 1) + np.maximum(low - values, 0) / max(low, 1)
        return total

    def _given(self) -> dict[str, tuple[int, int]]:
        """Return the bounds in the columns that the user wrote."""
        if not self.in_flops:
            return dict(self.bounds)
        low, high = self.bounds["macs"]
        rest = {column: bounds for column, bounds in self.bounds.items() if column != "macs"}
        return {FLOPS: (2 * low, 2 * high), **rest}

    def without(self, column: str) -> Budget:
        """Return the budget with nothing said about a column."""
        spelling = next((key for key, name in SPELLINGS.items() if name == column), column)
        return Budget(**{key: bounds for key, bounds in self.to_json().items() if key not in (column, spelling)})

    def to_json(self) -> dict[str, list[float]]:
        """Return the bounds as plain JSON values."""
        given = self._given().items()
        return {LATENCY_MS if column == LATENCY else column: _written(column, bounds) for column, bounds in given}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[float]]) -> Budget:
        """Return the budget that `to_json` wrote."""
        return cls(**data)

    def __str__(self) -> str:
        parts = []
        for column, (low, high) in self._given().items():
            lower = f"{format_quantity(low, column)} <= " if low else ""
            unit = " (2 x macs)" if column == FLOPS else ""
            name = "latency" if column == LATENCY else column
            parts.append(f"{lower}{name} <= {format_quantity(high, column)}{unit}")
        return " and ".join(parts) or "no bound"


def _written(column: str, bounds: Sequence[int]) -> list[float]:
    """Return bounds as a file has them."""
    return [bound / TIME_UNITS["ms"] if column == LATENCY else bound for bound in bounds]


def _band(column: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list | tuple):
        return 0, parse_quantity(value, column)
    if len(value) != 2:
        raise BudgetError(f"A band of {column!r} must be [low, high], but got {list(value)!r}.")
    low, high = (parse_quantity(bound, column) for bound in value)
    if low > high:
        raise BudgetError(f"A band of {column!r} must have low <= high, but got [{value[0]!r}, {value[1]!r}].")
    return low, high
