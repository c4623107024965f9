from collections.abc import Iterator
from pathlib import Path

import pytest
from small_search import EPOCHS, TRADE_OFF, new_run, pretend, small_space, task_of, work_alone

from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.cluster import connected
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.record import Record
from bsconv_nas.search.runner import search

# Ray leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SPACE = small_space()
FEASIBLE = SPACE.feasible(Budget(macs="60K"))


def decided(record: Record) -> list[tuple[str, str, int]]:
    return [(trial.started.key, trial.state, trial.epochs) for trial in record.trials.values()]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests here."""
    with connected(Resources(workers=1), 10**6):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("scheduler", ["pareto_asha", "median", "hyperband"])
def test_one_worker_of_ray_stops_what_the_driver_alone_would(tmp_path: Path, scheduler: str) -> None:
    asked = {
        "trials": 20,
        "baselines": 3,
        "scheduler": scheduler,
        "objectives": TRADE_OFF,
        "resources": {"workers": 1},
    }
    store = new_run(tmp_path / "ray", SPACE, **asked)
    record = search(store, FEASIBLE, task_of(SPACE, store), function=pretend)
    assert decided(record) == decided(work_alone(new_run(tmp_path / "alone", SPACE, **asked), FEASIBLE))
    stopped = [epochs for _, state, epochs in decided(record)[3:] if state == "stopped"]
    assert stopped
    assert max(stopped) < EPOCHS
    assert {(state, epochs) for _, state, epochs in decided(record)[:3]} == {("complete", EPOCHS)}
