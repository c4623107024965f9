"""From the lines of a log to a table: medians without drift, interpolated units, and the correction for wholes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.latency import Correction, Unit
from bsconv_nas.cost.latency_units import kind_of, work

__all__ = ["correction", "drift", "ridge", "unit_latencies"]

Lines = Sequence[Mapping[str, Any]]
Floats = npt.NDArray[np.float64]
ROUNDS = 8  # of the median polish
STRENGTHS = np.logspace(-8, 1, 19)  # of the ridge, in squares of the largest singular value
FACTOR, UNIT_US, NETWORK_US = 0.1, 1.0, 10.0  # how far corrections are expected to go


def drift(lines: Lines) -> Floats:
    """Return how slow the machine was as each network was timed, shape (n,); 1 is usual.

    A first answer is its reference network. A better one are the units that it shares with others, of which there are
    many: units and drift are found in turn, each as a median given the other (Tukey's median polish, in logarithms).
    """
    reference = np.array([line["reference_us"] for line in lines], dtype=np.float64)
    slow = reference / np.median(reference) if len(lines) else reference
    for _ in range(ROUNDS if len(lines) else 0):
        usual = {key: float(np.median(times)) for key, times in _by_unit(lines, slow, 1).items()}
        slow = np.array([_slowness(line, usual) for line in lines])
        slow /= np.median(slow)
    return slow


def _by_unit(lines: Lines, slow: Floats, column: int) -> dict[str, list[float]]:
    """Return the times of each unit, one a network, without drift [us]."""
    found: dict[str, list[float]] = {}
    for line, factor in zip(lines, slow, strict=True):
        for key, times in line["units"].items():
            found.setdefault(key, []).append(times[column] / factor)
    return found


def _slowness(line: Mapping[str, Any], usual: Mapping[str, float]) -> float:
    """Return the median of how much slower than usual the units of a network were, each as heavy as its share of it."""
    times = np.array([[row[1] / usual[key], row[1] * row[-1]] for key, row in line["units"].items()])
    ratios, weights = times[np.argsort(times[:, 0], kind="stable")].T
    middle = np.searchsorted(weights.cumsum(), weights.sum() / 2)
    return float(ratios[middle])


def unit_latencies(lines: Lines, asked: Iterable[str]) -> dict[str, Unit]:
    """Return the latency of every timed unit, and of those asked for that were not timed by interpolation.

    Medians are taken over the networks in which a unit ran. Others follow from log-linear laws in multiply-adds and
    values moved, one for each kind.
    """
    slow = drift(lines)
    medians, tails = (_by_unit(lines, slow, column) for column in (1, 2))
    units = {key: _unit(np.array(medians[key]), float(np.median(tails[key]))) for key in medians}
    missing = [key for key in asked if key not in units]
    return units | (_interpolated(units, missing) if missing and units else {})


def _unit(times: Floats, p90: float) -> Unit:
    low, p50, high = np.quantile(times, (0.25, 0.5, 0.75))
    return Unit(round(float(p50), 3), round(p90, 3), round(float((high - low) / 2 / p50), 4), len(times))


def _interpolated(units: Mapping[str, Unit], missing: Sequence[str]) -> dict[str, Unit]:
    out = {}
    for kind in {kind_of(key) for key in missing}:
        known = [key for key in units if kind_of(key) == kind] or list(units)
        asked = [key for key in missing if kind_of(key) == kind]
        times = np.log([[units[key].p50_us, units[key].p90_us] for key in known])
        law, *_ = np.linalg.lstsq(_logs(known), times, rcond=None)
        low, high = times.min(axis=0), times.max(axis=0)
        for key, (p50, p90) in zip(asked, np.exp(np.clip(_logs(asked) @ law, low - 1, high + 1)), strict=True):
            out[key] = Unit(round(float(p50), 3), round(float(p90), 3), 0.0, 0)
    return out


def _logs(keys: Iterable[str]) -> Floats:
    return np.array([[1.0, *np.log1p(work(key))] for key in keys])


def correction(lines: Lines, units: Mapping[str, Unit]) -> Correction:
    """Return the correction by which sums of units come nearest to the networks that were timed as wholes.

    A ridge regression of the relative error, shrunk towards the plain sum; its strength is chosen by cross-validation
    with one network left out.
    """
    slow = drift(lines)
    wholes = [(line, float(s)) for line, s in zip(lines, slow, strict=True) if "whole" in line]
    kinds = sorted({kind_of(key) for key in units})
    if len(wholes) < 2:
        return Correction({kind: (1.0, 0.0) for kind in kinds})
    measured = np.array([line["whole"]["p50_us"] / s for line, s in wholes])
    sums, counts = (np.array(rows) for rows in zip(*(_features(line, units, kinds) for line, _ in wholes), strict=True))
    scales = np.array([*[FACTOR] * len(kinds), *[UNIT_US] * len(kinds), NETWORK_US])
    rows = np.hstack([sums, counts, np.ones((len(wholes), 1))]) * scales
    found = scales * ridge(rows / measured[:, None], 1 - sums.sum(axis=1) / measured)
    factors, constants = found[: len(kinds)], found[len(kinds) : -1]
    pairs = {k: (round(1 + float(a), 4), round(float(b), 4)) for k, a, b in zip(kinds, factors, constants, strict=True)}
    spread = float(np.median([line["whole"]["spread"] for line, _ in wholes]))
    return Correction(pairs, round(float(found[-1]), 3), len(wholes), round(spread, 4))


def _features(
    line: Mapping[str, Any], units: Mapping[str, Unit], kinds: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Return the summed latency and the number of units of each kind in a network."""
    sums, counts = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0)
    for key, (*_, times) in line["units"].items():
        sums[kind_of(key)] += times * units[key].p50_us
        counts[kind_of(key)] += times
    return list(sums.values()), list(counts.values())


def ridge(rows: Floats, values: Floats) -> Floats:
    """Return the coefficients that explain values (n,) by rows (n, k), shrunk as much as foretells one left out best.

    Errors of the values left out follow from the fit to all (Hastie et al., Elements of Statistical Learning, 7.10).
    """
    left, sizes, right = np.linalg.svd(rows, full_matrices=False)
    aims = left.T @ values

    def error(strength: float) -> float:
        shares = sizes**2 / (sizes**2 + strength)
        off = (values - left @ (shares * aims)) / (1 - (left**2 * shares).sum(axis=1))
        return float(np.abs(off).mean())

    best = min(STRENGTHS * sizes[0] ** 2, key=error)
    return np.asarray(right.T @ (sizes / (sizes**2 + best) * aims))
