"""The table of the front and the table of the uniform baselines, as numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pandas as pd

from bsconv_nas.report.networks import depths, stages, widths
from bsconv_nas.report.quantities import MISSING
from bsconv_nas.report.theme import COLORS, family
from bsconv_nas.report.view import TrialRow, View

__all__ = ["Row", "baselines_table", "front_table"]


@dataclass(frozen=True, slots=True)
class Row:
    """One network.

    `value` is that of the run's measure, `costs` has a value a cost column, `fvcore` is fvcore's count or None,
    `layers` counts the searched places by option, `families` by decomposition. `gap` is how much better the searched
    network is than the uniform one: of a searched row against the best baseline that costs no more, of a baseline the
    best searched network that costs no more against it; None where there is none.
    """

    number: int
    key: str
    kind: str
    state: str
    value: float
    costs: dict[str, float]
    fvcore: int | None
    epochs: int
    seconds: float
    layers: dict[str, int]
    families: dict[str, int]
    widths: tuple[str, ...]
    depths: tuple[str, ...]
    gap: float | None


def front_table(view: View) -> list[Row]:
    """Return a row a member of the front, cheapest first."""
    return _rows(view, view.front)


def baselines_table(view: View) -> list[Row]:
    """Return a row a baseline, cheapest first."""
    return _rows(view, view.candidates[view.candidates["kind"] == "baseline"])


def _rows(view: View, trials: pd.DataFrame) -> list[Row]:
    ordered = trials.sort_values([*view.costs[:1], "number"], kind="stable")
    return [_row(view, row) for row in ordered.to_dict("records")]


def _row(view: View, row: TrialRow) -> Row:
    indices = view.indices(row["number"])
    layers: Counter[str] = sum(stages(view.table, indices).values(), Counter())
    families = dict.fromkeys(COLORS, 0)
    for option, count in layers.items():
        families[family(option)] += count
    return Row(
        number=row["number"],
        key=row["key"],
        kind=row["kind"],
        state=row["state"],
        value=row[view.measure.name],
        costs={column: row[column] for column in view.costs},
        fvcore=view.fvcore.get(row["key"], {}).get("macs"),
        epochs=row["epochs"],
        seconds=row["seconds"],
        layers=dict(layers),
        families={name: count for name, count in families.items() if count},
        widths=tuple(MISSING if c is None else str(c) for c in widths(view.table, indices).values()),
        depths=tuple(map(str, depths(view.table, indices).values())),
        gap=_gap(view, row),
    )


def _gap(view: View, row: TrialRow) -> float | None:
    """Return how much better the searched network is than the uniform one (see `Row`)."""
    other = "search" if row["kind"] == "baseline" else "baseline"
    column = view.costs[0]
    rivals = view.finished[(view.finished["kind"] == other) & (view.finished[column] <= row[column])]
    name, sign = view.measure.name, view.measure.sign
    if rivals.empty or pd.isna(row[name]):
        return None
    gap = sign * float(row[name]) - float((sign * rivals[name]).max())
    return -gap if row["kind"] == "baseline" else gap
