"""fvcore's counts of a run's front, noted in its record for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsconv_nas.search.record import Note

if TYPE_CHECKING:
    from bsconv_nas.run import Run

__all__ = ["note_fvcore_counts"]


def note_fvcore_counts(run: Run) -> None:
    """Note fvcore's count of every network on the front that has none yet."""
    from bsconv_nas.network.reference import fvcore_macs

    known = {note.detail["key"] for note in run.record.notes if note.what == "fvcore"}
    with run.store.lock():
        for number in run.front["number"]:
            architecture = run.architecture(int(number))
            if architecture.key not in known:
                macs = fvcore_macs(run.space.build(architecture), run.space.input_size)
                run.store.append(Note("fvcore", {"key": architecture.key, "macs": macs}))
