"""fvcore's counts of a run's front, noted in its record for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsconv_nas.errors import described
from bsconv_nas.search.record import Note

if TYPE_CHECKING:
    from bsconv_nas.run import Run

__all__ = ["note_fvcore_counts"]


def note_fvcore_counts(run: Run) -> None:
    """Note fvcore's count of every network on the front that has none yet, or why it counts none.

    It cannot follow every network that torch runs; a search that is done shall not end by that.
    """
    from bsconv_nas.network.reference import fvcore_macs

    known = {note.detail["key"] for note in run.record.notes if note.what in ("fvcore", "fvcore_failed")}
    with run.store.lock():
        for number in run.front["number"]:
            architecture = run.architecture(int(number))
            if architecture.key in known:
                continue
            try:
                macs = fvcore_macs(run.space.build(architecture), run.space.input_size)
            except Exception as error:  # whatever the user's forward raises where it is scripted or traced
                run.store.append(Note("fvcore_failed", {"key": architecture.key, "cause": described(error)}))
            else:
                run.store.append(Note("fvcore", {"key": architecture.key, "macs": macs}))
