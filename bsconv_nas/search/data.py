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


def load(spec: DataSpec | None) -> Dataset | None:
    """Return the data of a new run, if it has any; torch is imported by then."""
    if spec is None:
        return None
    from bsconv_nas.training import data

    return data.load(spec)


def facts(dataset: Dataset | None) -> dict[str, Any]:
    """Return what the record keeps of the data, under `data`; nothing of none."""
    if dataset is None:
        return {}
    found = {
        "fingerprint": dataset.fingerprint,
        "counts": dataset.counts,
        "classes": list(dataset.class_names),
        "mean": list(dataset.statistics.mean),
        "std": list(dataset.statistics.std),
    }
    return {"data": found}


def place_again(store: Store, root: str | Path | None) -> DataSpec | None:
    """Return where the data of a run that goes on are, under `root` if one is named; nothing is read yet.

    A run whose own trial needs no data has none.

    Raises:
        RecordError: another driver is at work on the run.
        DataError: the data are absent.
    """
    with store.lock():
        spec = store.experiment.images
    if spec is None:
        return None
    if root is not None:
        spec = dataclasses.replace(spec, root=str(root))
    locate(spec)
    return spec


def load_again(store: Store, spec: DataSpec | None) -> Dataset | None:
    """Return the data of a run that goes on.

    Raises:
        RecordError: they are not those that it was searched with.
        DataError: they are absent or unreadable.
    """
    if (dataset := load(spec)) is None or spec is None:
        return None
    known = store.environment.get("data", {}).get("fingerprint")
    if dataset.fingerprint != known:
        raise RecordError(
            f"The data of run {store.name!r} must be those it was searched with ({str(known)[:12]}), but "
            f"{spec.name!r} here has fingerprint {dataset.fingerprint[:12]}: point data.root to them."
        )
    return dataset
