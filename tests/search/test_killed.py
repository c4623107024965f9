"""Searches killed again and again, compared with those that were left alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from killing import STEPS, asked, end_of, events_of, noted, once_each, timeless, user, weights
from local_cluster import wait_until


def mirrored(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's Optuna journal but for times and who wrote them."""
    lines = [json.loads(line) for line in (run / "optuna.log").read_text().splitlines()]
    return [{key: line[key] for key in line if "datetime" not in key and key != "worker_id"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "scheduler", "times", "seed"),
    [("additive", "pareto_asha", 10, 0), ("nsga2", "asha", 6, 1), ("tpe", "none", 6, 2)],
)
def test_a_search_killed_many_times_leaves_the_folder_of_one_that_was_not(
    sampler: str, scheduler: str, times: int, seed: int
) -> None:
    with user(tiny__toml=asked(sampler, scheduler)) as someone:
        whole, run = someone.folder / "whole/run", someone.folder / "killed/run"
        someone.do("search", "tiny.toml", "--run", "whole/run")
        trained = someone.steps
        first, again = ["search", "tiny.toml", "--run", "killed/run"], ["resume", "killed/run"]
        killed = end_of(someone, run, first, again, ["driver", "worker"] * (times // 2), seed)
        assert killed.total() >= times // 2  # it may end before the last
        assert min(killed["driver"], killed["worker"]) > 0
        assert timeless(run) == timeless(whole)
        assert noted(run) == noted(whole)
        assert weights(run) == weights(whole)
        assert mirrored(run) == mirrored(whole)
        assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
        once_each(events_of(run))
        assert trained <= someone.steps - trained <= trained + times * STEPS
        assert someone.left_over == []
        wait_until(lambda: someone.processes() == [], "the end of all processes")
