"""What a report is made of: one frozen value that the caller fills and every figure reads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from bsconv_nas.cost.budget import Budget
from bsconv_nas.cost.latency import LatencyTable, cost_model
from bsconv_nas.report.measure import ACCURACY, Measure
from bsconv_nas.report.quantities import COSTS
from bsconv_nas.search.record import Objective, Record, front
from bsconv_nas.space.extremes import extremes
from bsconv_nas.space.table import Table

__all__ = ["TrialRow", "View"]

TrialRow = Mapping[Hashable, Any]


@dataclass(frozen=True, eq=False)
class View:
    """A run as the report sees it.

    `experiment` and `environment` are the JSON objects of the run folder. `fvcore` maps a key to fvcore's counts of
    that network, such as `{"macs": 41_000_000}`; `verdict` holds the sentences that a retraining ended with.
    `selection_images` is the number of images that `val_accuracy` is measured on, where known. `measure` is what
    networks are ranked by. `latencies` is the table that latencies were predicted from, if they were.
    """

    name: str
    record: Record
    table: Table
    objectives: tuple[Objective, ...]
    budget: Budget = field(default_factory=Budget)
    experiment: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    fvcore: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    verdict: tuple[str, ...] = ()
    selection_images: int | None = None
    measure: Measure = ACCURACY
    latencies: LatencyTable | None = None

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial, as `Record.frame` gives it; the measure has its column, be it reported or not."""
        frame = self.record.frame(self.table)
        return frame if self.measure.name in frame else frame.assign(**{self.measure.name: float("nan")})

    @cached_property
    def candidates(self) -> pd.DataFrame:
        """The baseline and search trials: everything but retrainings."""
        return self.trials[self.trials["kind"] != "retrain"]

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The complete candidates that have a value of the measure."""
        complete = self.candidates[self.candidates["state"] == "complete"]
        return complete.dropna(subset=[self.measure.name])

    @cached_property
    def unreported(self) -> tuple[str, ...]:
        """Objectives that no trial has a value of."""
        reported = self.trials.dropna(axis="columns", how="all").columns
        return tuple(goal.name for goal in self.objectives if goal.name not in reported)

    @cached_property
    def front(self) -> pd.DataFrame:
        """The non-dominated trials under the run's objectives, cheapest first."""
        return self.trials.iloc[:0] if self.unreported else front(self.trials, self.objectives)

    @cached_property
    def costs(self) -> tuple[str, ...]:
        """The cost columns with values, the run's own first: an objective, else a bounded one, else MACs."""
        known = [column for column in COSTS if column in self.trials and self.trials[column].notna().any()]
        goals = {goal.name for goal in self.objectives}
        return tuple(sorted(known, key=lambda column: (column not in goals, column not in self.budget.bounds)))

    @cached_property
    def largest(self) -> dict[str, int]:
        """The largest value of each cost column in the space."""
        model = cost_model(self.table, self.latencies)
        return {column: int(max(values)) for column, values in model.costs(extremes(model)[1]).items()}

    @property
    def limits(self) -> str:
        """The budget in words and signs."""
        return str(self.budget).replace("<=", "\N{LESS-THAN OR EQUAL TO}")

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the classes."""
        return 1 / self.table.graph.num_classes

    def indices(self, number: int) -> tuple[int, ...]:
        """Return the option indices of trial `number`'s network."""
        return self.record.trials[number].started.indices
