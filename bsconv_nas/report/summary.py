"""What the run was and what it found, in plain words that claim no more than the numbers carry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bsconv_nas.report.measure import Measure
from bsconv_nas.report.networks import places, uniform
from bsconv_nas.report.quantities import COSTS, MISSING, cost, magnitude, points
from bsconv_nas.report.view import View
from bsconv_nas.space.counting import count_networks

__all__ = ["TIE", "Comparison", "best", "comparison", "facts", "lead", "notes", "sentences", "states"]

# Seed noise of a small training is 0.14-0.17 points: even 3 against 3 seeds tell apart only what differs by this much.
TIE = 0.004


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best searched network against the best uniform one, both inside the budget.

    Values are those of the run's measure; `gap` is how much better the searched network is, `limit` the difference
    below which the two count as equal.
    """

    key: str
    value: float
    cost: float
    baseline: str
    baseline_key: str
    baseline_value: float
    baseline_cost: float
    gap: float
    limit: float
    searched: int

    @property
    def tie(self) -> bool:
        """Whether the difference is within what a single seed cannot tell apart."""
        return abs(self.gap) < self.limit


def _inside(view: View, trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials inside the budget."""
    for column, (low, high) in view.budget.bounds.items():
        if column in trials:
            trials = trials[(trials[column] >= low) & (trials[column] <= high)]
    return trials


def _winner(trials: pd.DataFrame, measure: Measure) -> dict[str, Any]:
    return dict(trials.sort_values([measure.name, "number"], ascending=[measure.sign < 0, True]).iloc[0])


def comparison(view: View) -> Comparison | None:
    """Return best against best; None without a complete search trial and a complete baseline inside the budget."""
    finished = _inside(view, view.finished)
    searched, baselines = finished[finished["kind"] == "search"], finished[finished["kind"] == "baseline"]
    if searched.empty or baselines.empty or not view.costs:
        return None
    measure, column = view.measure, view.costs[0]
    winner, rival = _winner(searched, measure), _winner(baselines, measure)
    return Comparison(
        key=winner["key"],
        value=winner[measure.name],
        cost=winner[column],
        baseline=uniform(view.table, view.indices(rival["number"])),
        baseline_key=rival["key"],
        baseline_value=rival[measure.name],
        baseline_cost=rival[column],
        gap=measure.sign * (winner[measure.name] - rival[measure.name]),
        limit=_limit(rival[measure.name], view.selection_images) if measure.is_accuracy else 0.0,
        searched=len(searched),
    )


def best(view: View, kind: str) -> float:
    """Return the best value of a complete trial of `kind`; NaN where there is none."""
    found = view.finished[view.finished["kind"] == kind]
    return math.nan if found.empty else float(_winner(found, view.measure)[view.measure.name])


def _limit(accuracy: float, images: int | None) -> float:
    """Return the smallest difference of two accuracies that is worth a claim: seed noise, and that of few images.

    1.96 sqrt(p (1 - p) / n) is the half width of the 95 % interval of an accuracy p measured on n images.
    """
    return max(TIE, 1.96 * math.sqrt(accuracy * (1 - accuracy) / images)) if images else TIE


def sentences(view: View) -> tuple[str, ...]:
    """Return what the run found: the verdict of a retraining if there is one, else best against best with a caveat."""
    if view.verdict:
        return view.verdict
    found = comparison(view)
    if found is None:
        return (_incomparable(view),)
    column, text = view.costs[0], view.measure.text
    compared = (
        f"The best searched network, {found.key[:8]}, reached {text(found.value)} at "
        f"{cost(found.cost, column)} {COSTS[column]}; the best uniform one, {found.baseline}, "
        f"{text(found.baseline_value)} at {cost(found.baseline_cost, column)}"
    )
    within = f", both inside the budget ({view.limits})." if view.budget.bounds else "."
    if not view.measure.is_accuracy:
        return compared + within, _plain_caveat(found, view.measure)
    return compared + within, _caveat(found, view.selection_images)


def _plain_caveat(found: Comparison, measure: Measure) -> str:
    """Return how far to trust a difference in a metric of whose noise nothing is known."""
    return (
        f"That is {measure.difference(measure.sign * found.gap)} in {measure.name}, from a single seed each; the "
        f"winner is the best of {found.searched} noisy values, so evaluate both again with other seeds."
    )


def _caveat(found: Comparison, images: int | None) -> str:
    measured = f" on {images:,} images" if images else ""
    if found.tie:
        return (
            f"{points(found.gap)} points is a tie: with one seed each, differences below about "
            f"{100 * found.limit:.1f} points{measured} cannot be told from noise. "
            "Retraining (bsconv-nas retrain) decides."
        )
    direction = "ahead" if found.gap > 0 else "behind"
    return (
        f"That is {100 * abs(found.gap):.2f} points {direction}, from a single seed each; the winner is the highest "
        f"of {found.searched} noisy values, so expect less of it when both are trained again (bsconv-nas retrain)."
    )


def _incomparable(view: View) -> str:
    finished = view.finished
    if finished.empty:
        return "No trial is complete yet, so there is nothing to compare."
    missing = "uniform baseline" if (finished["kind"] == "search").any() else "search trial"
    winner, measure = _winner(finished, view.measure), view.measure
    return (
        f"The best network so far, {winner['key'][:8]}, reached {measure.text(winner[measure.name])}; without a "
        f"complete {missing} inside the budget there is nothing to compare it with."
    )


def lead(view: View) -> str:
    """Return what was searched, on what, in one sentence."""
    table = view.table
    options = list(dict.fromkeys(str(o) for i in places(table) for o in table.dimensions[i].options))
    kinds = [dimension.kind for dimension in table.dimensions]
    parts = [
        f"{len(options)} decompositions ({', '.join(options)}) at {_number(len(places(table)), 'place')}"
        * bool(options),
        f"the channels of {_number(kinds.count('width') + kinds.count('expand'), 'group')}" * ("width" in kinds),
        f"the kernels of {_number(kinds.count('kernel'), 'place')}" * ("kernel" in kinds),
        f"the depth of {_number(kinds.count('depth'), 'stage')}" * ("depth" in kinds),
    ]
    data = dict(view.experiment).get("data", {})
    name = data.get("name") if isinstance(data, Mapping) else None
    shape = "\N{MULTIPLICATION SIGN}".join(map(str, table.graph.input_size))
    where = f"{name}, " * bool(name) + f"{shape} images in {table.graph.num_classes} classes"
    size = magnitude(count_networks(table))
    return f"Searched: {_listed([p for p in parts if p])}, {size} distinct networks. Data: {where}."


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]


def states(view: View) -> dict[str, dict[str, int]]:
    """Return how many trials of each kind are in each state."""
    counts: dict[str, dict[str, int]] = {}
    for trial in view.record.trials.values():
        of_kind = counts.setdefault(trial.started.kind, {})
        of_kind[trial.state] = of_kind.get(trial.state, 0) + 1
    return counts


def facts(view: View) -> dict[str, dict[str, str]]:
    """Return the recorded settings and the environment: section, then name, then text."""
    shown = ("data", "recipe", "search", "resources", "retrain")
    sections = {name: view.experiment[name] for name in shown if view.experiment.get(name)}
    found = {name: dict(_flat(value)) for name, value in sections.items()}
    return found | ({"environment": dict(_flat(view.environment))} if view.environment else {})


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested settings as (dotted name, text)."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(_text, value))
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(text for _, text in _flat(value))
    return MISSING if value is None else str(value)


def notes(view: View) -> tuple[str, ...]:
    """Return what the reader should know before the figures: what is missing, and objectives that they do not show."""
    found = []
    if view.unreported and len(view.trials):
        found.append(f"No trial has reported {', '.join(view.unreported)} yet, so there is no front.")
    hidden = [g.name for g in view.objectives if g.name not in (view.measure.name, *COSTS)]
    if hidden:
        found.append(
            f"The run also optimises {', '.join(hidden)}: the table of the front follows all objectives, the figures "
            f"show {view.measure.label} over cost."
        )
    lost = ((view.candidates["state"] == "complete") & view.candidates[view.measure.name].isna()).sum()
    name = "accuracy" if view.measure.is_accuracy else view.measure.name
    if lost:
        found.append(f"{_number(int(lost), 'complete trial')} without a finite {name}: at the foot of the figure.")
    return tuple(found)
