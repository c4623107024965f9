"""Quantities as people read them: costs, accuracies, times, and the ticks of an axis in octaves."""

from __future__ import annotations

import math

from bsconv_nas.cost.budget import format_quantity

__all__ = ["COSTS", "MISSING", "cost", "duration", "magnitude", "octave_ticks", "percent", "points"]

# The cost columns that a figure may have on its axis, and what they are called.
COSTS = {"macs": "MACs", "params": "Parameters", "memory": "Memory", "latency_ns": "Latency"}

MISSING = "\N{EN DASH}"


def cost(value: float, column: str) -> str:
    """Return a cost with its unit, a dash where it is missing.

    >>> cost(40_813_184, "macs")
    '40.8 M'
    """
    return format_quantity(value, column) if math.isfinite(value) else MISSING


def percent(fraction: float) -> str:
    """Return an accuracy with two digits.

    >>> percent(0.93214)
    '93.21 %'
    """
    return f"{100 * fraction:.2f} %" if math.isfinite(fraction) else MISSING


def points(difference: float) -> str:
    """Return a difference of two accuracies (fractions) in percentage points, with its sign.

    >>> points(0.0031)
    '+0.31'
    """
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(difference) else MISSING


def magnitude(number: int) -> str:
    """Return a whole number in full below a million, else its order.

    >>> magnitude(1_234), magnitude(3 * 10**13)
    ('1,234', 'about 10¹³')
    """
    if number < 10**6:
        return f"{number:,}"
    return "about 10" + str(round(math.log10(number))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def duration(seconds: float) -> str:
    """Return a time [s] in its two largest units.

    >>> duration(3905)
    '1 h 5 min'
    """
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def octave_ticks(low: float, high: float, anchor: float) -> list[float]:
    """Return the values in [low, high] that lie whole steps of an octave or its fraction from `anchor`.

    The step is the largest of 4, 2, 1, 1/2, ... octaves that gives at least four ticks.

    >>> octave_ticks(4, 40, anchor=40)
    [5.0, 10.0, 20.0, 40.0]
    """
    octaves = math.log2(high / low)
    step = 4.0
    while octaves / step < 3 and step > 1 / 64:
        step /= 2
    first = math.ceil(math.log2(low / anchor) / step - 1e-9)
    last = math.floor(math.log2(high / anchor) / step + 1e-9)
    return [anchor * 2.0 ** (i * step) for i in range(first, last + 1)]
