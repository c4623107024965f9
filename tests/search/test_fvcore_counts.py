"""A count by another tool is beside the search: it can fail, and never end it."""

from pathlib import Path

from brought_networks import CLASSES, SIZE, Plain, Untraced
from small_search import new_run, work_alone
from torch import nn

import bsconv_nas as nas
from bsconv_nas.search.fvcore_counts import note_fvcore_counts


def searched(path: Path, factory: type[nn.Module]) -> nas.Run:
    space = nas.SearchSpace.from_module(factory, input_size=SIZE, num_classes=CLASSES, operators=["regular", "dsc"])
    store = new_run(path, space, trials=2, baselines=1, sampler="random")
    work_alone(store, space.feasible())
    note_fvcore_counts(nas.load_run(path))
    return nas.load_run(path)


def test_a_network_that_fvcore_cannot_follow_is_noted_once(tmp_path: Path) -> None:
    run = searched(tmp_path / "run", Untraced)
    notes = [note for note in run.record.notes if note.what.startswith("fvcore")]
    assert len(notes) == len(run.front) > 0
    assert {(note.what, note.detail["cause"]) for note in notes} == {
        ("fvcore_failed", "NotImplementedError: no tracing here")
    }
    note_fvcore_counts(nas.load_run(run.path))
    assert len(nas.load_run(run.path).record.notes) == len(run.record.notes)
    assert run.report().is_file()


def test_others_are_counted(tmp_path: Path) -> None:
    run = searched(tmp_path / "run", Plain)
    notes = [note for note in run.record.notes if note.what.startswith("fvcore")]
    assert {note.what for note in notes} == {"fvcore"}
    assert len(notes) == len(run.front) > 0
