"""What a run ranks its networks by, and how people read it: accuracies in percent, any other metric as it is."""

from __future__ import annotations

from dataclasses import dataclass

from bsconv_nas.report.quantities import MISSING, percent, points
from bsconv_nas.search.record import Objective

__all__ = ["ACCURACY", "Measure"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of the trials and its direction.

    >>> ACCURACY.text(0.93214), Measure(Objective("iou", "max")).text(0.93214)
    ('93.21 %', '0.9321')
    """

    objective: Objective

    @property
    def name(self) -> str:
        """The metric's column."""
        return self.objective.name

    @property
    def is_accuracy(self) -> bool:
        """Whether it is the built-in training's share of right answers."""
        return self.name == "val_accuracy"

    @property
    def label(self) -> str:
        """The metric in words."""
        return "validation accuracy" if self.is_accuracy else self.name

    @property
    def unit(self) -> str:
        """What stands behind the label of an axis."""
        return " [%]" if self.is_accuracy else ""

    @property
    def scale(self) -> float:
        """What a value is multiplied with on an axis."""
        return 100.0 if self.is_accuracy else 1.0

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.objective.direction == "max" else -1

    def text(self, value: float) -> str:
        """Return a value, a dash where it is missing."""
        if self.is_accuracy:
            return percent(value)
        return MISSING if value != value else f"{value:.4g}"

    def difference(self, value: float) -> str:
        """Return a difference of two values with its sign, of accuracies in percentage points."""
        return points(value) if self.is_accuracy else f"{value:+.4g}".replace("-", "\N{MINUS SIGN}")


ACCURACY = Measure(Objective("val_accuracy", "max"))
