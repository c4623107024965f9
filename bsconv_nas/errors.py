"""Every error that a user can cause, in one tree.

BsconvNasError
├── DecompositionError   an option or a convolution that no decomposition can express
├── SpaceError           a search-space file, a pattern or a module that cannot become a table
├── BudgetError          a malformed budget, or one that no network of the space meets
├── LatencyError         a table of latencies that is damaged or of something else, or a device that cannot be timed
├── DataError            an absent data root, an unreadable set, images of another shape
├── ExperimentError      an experiment file or an override
├── RecordError          a run folder that is corrupt, busy or of another schema
├── TrainingError        a candidate whose training failed
│   └── DivergedError    its loss became NaN or infinite
├── SearchError          a search that cannot start or had to end
└── ExportError          a network that cannot be exported, or whose export disagrees

A message is one sentence: the law, the value, the place and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BsconvNasError",
    "BudgetError",
    "DataError",
    "DecompositionError",
    "DivergedError",
    "ExperimentError",
    "ExportError",
    "LatencyError",
    "RecordError",
    "SearchError",
    "SpaceError",
    "TrainingError",
    "described",
    "first_line",
    "suggest",
]


class BsconvNasError(Exception):
    """What the user can mend; the command line prints it as one line and exits with code 2."""


class DecompositionError(BsconvNasError):
    """An option or a convolution that no decomposition can express."""


class SpaceError(BsconvNasError):
    """A search-space file, a pattern or a module that cannot become a table."""


class BudgetError(BsconvNasError):
    """A malformed budget, or one that no network of the space meets."""


class LatencyError(BsconvNasError):
    """A table of latencies that is damaged or of something else, or a device that cannot be timed."""


class DataError(BsconvNasError):
    """An absent data root, an unreadable set, or images of another shape."""


class ExperimentError(BsconvNasError):
    """An experiment file or an override that is malformed."""


class RecordError(BsconvNasError):
    """A run folder that is corrupt, busy or of another schema."""


class TrainingError(BsconvNasError):
    """A candidate whose training failed."""


class DivergedError(TrainingError):
    """A candidate whose loss became NaN or infinite."""

    def __init__(self, epoch: int, loss: float) -> None:
        super().__init__(
            f"The loss must stay finite, but was {loss} in epoch {epoch}: "
            "lower recipe.learning_rate or set recipe.clip."
        )
        self.epoch = epoch
        self.loss = loss

    def __reduce__(self) -> tuple[type[DivergedError], tuple[int, float]]:
        """Rebuild from the two arguments: errors cross process borders."""
        return type(self), (self.epoch, self.loss)


class SearchError(BsconvNasError):
    """A search that cannot start or had to end."""


class ExportError(BsconvNasError):
    """A network that cannot be exported, or whose export disagrees."""


def first_line(error: BaseException) -> str:
    r"""Return what an error says in its first line without a full stop, or its class where that says too little.

    >>> first_line(ValueError("no such layer.\nmore")), first_line(MemoryError()), first_line(KeyError("a"))
    ('no such layer', 'MemoryError', "KeyError 'a'")
    """
    line = _line(error)
    return f"{type(error).__name__} {line}".strip() if not line or isinstance(error, KeyError) else line


def described(error: BaseException) -> str:
    r"""Return an error's class and what it says in its first line without a full stop, for a record.

    >>> described(ValueError("no such layer.\nmore")), described(MemoryError()), described(KeyError("a"))
    ('ValueError: no such layer', 'MemoryError', "KeyError: 'a'")
    """
    return ": ".join(filter(None, (type(error).__name__, _line(error))))


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "").rstrip(".")


def suggest(value: str, valid: Iterable[str]) -> str:
    """Return the closing half sentence of an error: the valid names and the nearest one.

    >>> suggest("relgular", ["regular", "dsc"])
    "valid are 'dsc', 'regular'; did you mean 'regular'"
    """
    names = sorted(valid)
    listed = ", ".join(repr(name) for name in names)
    near = difflib.get_close_matches(value, names, n=1)
    return f"valid are {listed}" + (f"; did you mean {near[0]!r}" if near else "")
