"""The data of a run: loaded when it begins, described in its record, and recognised when it goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsconv_nas.errors import RecordError
from bsconv_nas.search.store import Store
from bsconv_nas.training.spec import DataSpec, locate

if TYPE_CHECKING:
    from bsconv_nas.training.data import Dataset

__all__ = ["facts", "load", "load_again", "place_again"]


def load(spec: DataSpec) -> Dataset:
    """Return the data of a new run; torch is imported by then."""
    from bsconv_nas.training import data

    return data.load(spec)


def facts(dataset: Dataset) -> dict[str, Any]:
    """Return what the record keeps of the data."""
    return {
        "fingerprint": dataset.fingerprint,
        "counts": dataset.counts,
        "classes": list(dataset.class_names),
        "mean": list(dataset.statistics.mean),
        "std": list(dataset.statistics.std),
    }


def place_again(store: Store, root: str | Path | None) -> DataSpec:
    """Return where the data of a run that goes on are, under `root` if one is named; nothing is read yet.

    Raises:
        RecordError: another driver is at work on the run.
        DataError: the data are absent.
    """
    with store.lock():
        spec = store.experiment.data
    if root is not None:
        spec = dataclasses.replace(spec, root=str(root))
    locate(spec)
    return spec


def load_again(store: Store, spec: DataSpec) -> Dataset:
    """Return the data of a run that goes on.

    Raises:
        RecordError: they are not those that it was searched with.
        DataError: they are absent or unreadable.
    """
    dataset = load(spec)
    known = store.environment.get("data", {}).get("fingerprint")
    if dataset.fingerprint != known:
        raise RecordError(
            f"The data of run {store.name!r} must be those it was searched with ({str(known)[:12]}), but "
            f"{spec.name!r} here has fingerprint {dataset.fingerprint[:12]}: point data.root to them."
        )
    return dataset
