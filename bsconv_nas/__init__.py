"""Neural architecture search over convolution decompositions.

The names below are imported when they are first used, so that `import bsconv_nas` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsconv_nas.api import SearchSpace
    from bsconv_nas.cost.budget import Budget
    from bsconv_nas.errors import BsconvNasError
    from bsconv_nas.run import Run, load_run, resume, retrain, search
    from bsconv_nas.search.experiment import Experiment
    from bsconv_nas.space.table import Architecture

__all__ = [
    "Architecture",
    "BsconvNasError",
    "Budget",
    "Experiment",
    "Run",
    "SearchSpace",
    "__version__",
    "load_run",
    "resume",
    "retrain",
    "search",
]

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "space.table",
    "BsconvNasError": "errors",
    "Budget": "cost.budget",
    "Experiment": "search.experiment",
    "Run": "run",
    "SearchSpace": "api",
    "load_run": "run",
    "resume": "run",
    "retrain": "run",
    "search": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
