"""The committed runs are whole: they load, their front is what their events say, and their page can be made again."""

from __future__ import annotations

from pathlib import Path

import pytest

import bsconv_nas as nas

RUNS = sorted(path.parent for path in (Path(__file__).parents[1] / "reports").glob("*/trials.jsonl"))


def test_there_is_one() -> None:
    assert RUNS


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_committed_run_is_whole(folder: Path, tmp_path: Path) -> None:
    run = nas.load_run(folder)
    assert (run.trials["macs"] <= run.budget.bounds["macs"][1]).all()
    assert run.trials.query("kind != 'retrain'")["key"].is_unique
    assert run.front["val_accuracy"].is_monotonic_increasing
    assert run.front["key"].isin(run.trials.query("state == 'complete'")["key"]).all()
    assert run.report(tmp_path / "report.html").stat().st_size > 1_000_000
    assert (folder / "report.html").is_file()
