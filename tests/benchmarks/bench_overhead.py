"""What a search costs beside training: ours and plain Ray Tune with OptunaSearch, proposals, and the driver's memory.

Run it with `python tests/benchmarks/bench_overhead.py [search|proposals|memory ...]`; without names it does all three.
The space is a CIFAR ResNet-44 of 40 dimensions, the objectives accuracy and multiply-adds; nothing is trained.

- search: 200 trials of 3 reports, 2 at a time, each search in a process and a Ray cluster of its own, ours and the
  plain one in turn. Seconds count from the first suggestion to the last record, start-up is printed apart. The plain
  side reuses its workers, which import torch as ours do, its loggers are off, and it writes nothing that outlives the
  process; ours writes every event to the disk and a journal for optuna-dashboard.
- proposals: seconds of one at 1,000 finished trials.
- memory: what the driver's process grows by from its 500th trial to its 5,500th, and whether trials become slower.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import median

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}

import numpy as np
import optuna
import ray
from bench_costs import space_of_40
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.budget import Budget
from bsconv_nas.search.driver import Driver
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.mirror import Mirror
from bsconv_nas.search.proposer import Proposer
from bsconv_nas.search.record import Ended, Objective, Record, Started
from bsconv_nas.search.runner import search
from bsconv_nas.search.samplers import sampler
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Job, Metrics, Task
from bsconv_nas.space.base import Base
from bsconv_nas.training.data import DataSpec, load
from bsconv_nas.training.recipe import Recipe

TRIALS, REPORTS, WORKERS = 200, 3, 2
ROUNDS = 2
BUDGET = Budget(macs="100M")
OBJECTIVES = (Objective("val_accuracy", "max"), Objective("macs", "min"))
PLAIN = {
    "tpe": lambda: None,  # OptunaSearch's own: TPESampler()
    "tpe, multivariate": lambda: optuna.samplers.TPESampler(multivariate=True),
    "nsga2": lambda: optuna.samplers.NSGAIISampler(),
}
OURS = ("tpe", "nsga2", "additive")
RIVALS = {"tpe": ("tpe", "tpe, multivariate"), "nsga2": ("nsga2",)}
PROPOSALS = {"additive": 50, "nsga2": 50, "evolution": 50, "tpe": 100}  # ms that one may take
QUARTER, SECONDS, BYTES = 0.25, 0.05, 20 * 1024  # the goals
FINISHED = 1000
GROWN = (500, 5500)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one search took.

    Attributes:
        startup: [s] before the first suggestion.
        seconds: [s] a trial from then to the last record, the start of the workers included.
        steady: [s] a trial from the first that ended to the last.
        cpu: [s] a trial that the driver's process was busy since the first suggestion.
    """

    startup: float
    seconds: float
    steady: float
    cpu: float


class Clock:
    """Tells the time from the first suggestion to the last record."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.suggested: float | None = None
        self.busy = 0.0
        self.ends: list[float] = []

    def suggestion(self) -> None:
        if self.suggested is None:
            self.suggested, self.busy = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.ends.append(time.perf_counter())

    def figures(self) -> Figures:
        assert self.suggested is not None
        assert len(self.ends) == TRIALS
        return Figures(
            startup=self.suggested - self.begin,
            seconds=(self.ends[-1] - self.suggested) / TRIALS,
            steady=(self.ends[-1] - self.ends[0]) / (TRIALS - 1),
            cpu=(time.process_time() - self.busy) / TRIALS,
        )


def space() -> SearchSpace:
    """The space of 40 dimensions, over a base that other processes can import."""
    return SearchSpace(Base("bsconv_nas.network.models:cifar_resnet", {"depth": 44}), space_of_40().table)


def quality(indices: tuple[int, ...]) -> float:
    """A made-up accuracy in (0, 1)."""
    return 1 - 1 / (1.5 + sum((1 + i % 3) * index for i, index in enumerate(indices)))


def pretend(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
    """Yield reports without any training."""
    for epoch in range(job.epochs + 1, task.recipe.epochs + 1):
        yield epoch, {"val_accuracy": quality(job.architecture.indices) * (1 - 0.5**epoch)}


@contextlib.contextmanager
def new_run(name: str, trials: int) -> Iterator[tuple[Store, SearchSpace]]:
    """Give a run folder that is removed in the end."""
    found = space()
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.model_validate(
            {
                "name": "overhead",
                "space": "space.toml",
                "search": {
                    "trials": trials,
                    "baselines": 0,
                    "sampler": {"name": name},
                    "scheduler": {"name": "none"},
                    "objectives": [asdict(objective) for objective in OBJECTIVES],
                },
                "resources": {"workers": WORKERS},
                "recipe": Recipe(epochs=REPORTS),
            }
        )
        yield Store.create(Path(folder) / "run", experiment, found.to_json(), {}), found


def ours(name: str) -> Figures:
    """Search with a sampler of ours."""
    with new_run(name, TRIALS) as (store, found):
        task = Task(found.base, found.table, load(DataSpec("digits")), store.experiment.recipe)
        clock = Clock()

        def changed(record: Record) -> None:
            if record.trials:
                clock.suggestion()
            if len(record.ended) > len(clock.ends):
                clock.end()

        record = search(store, found.feasible(BUDGET), task, on_change=changed, function=pretend)
        assert [trial.state for trial in record.trials.values()] == ["complete"] * TRIALS
        assert {trial.epochs for trial in record.trials.values()} == {REPORTS}
        return clock.figures()


class Pretending(tune.Trainable):
    """Reports without any training, in a process that could train."""

    def setup(self, config: dict[str, object]) -> None:
        import torch

        torch.set_num_threads(1)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        self._epoch = 0
        return True

    def step(self) -> dict[str, object]:
        self._epoch += 1
        accuracy = (hash(tuple(self.config.values())) % 1000) / 1000 * (1 - 0.5**self._epoch)
        return {"val_accuracy": accuracy, "macs": len(str(self.config)), "done": self._epoch == REPORTS}


def plain(name: str) -> Figures:
    """Search with Ray Tune and OptunaSearch alone."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    clock = Clock()

    class Timed(OptunaSearch):
        def suggest(self, trial_id: str) -> dict[str, object] | None:
            found = super().suggest(trial_id)
            clock.suggestion()
            return found

        def on_trial_complete(
            self, trial_id: str, result: dict[str, object] | None = None, error: bool = False
        ) -> None:
            super().on_trial_complete(trial_id, result, error)
            clock.end()

    options = {d.name: optuna.distributions.CategoricalDistribution(d.options) for d in space_of_40().table.dimensions}
    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        goals = {"metric": [o.name for o in OBJECTIVES], "mode": [o.direction for o in OBJECTIVES]}
        tuner = tune.Tuner(
            tune.with_resources(Pretending, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=Timed(options, sampler=PLAIN[name](), **goals),
                num_samples=TRIALS,
                max_concurrent_trials=WORKERS,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        results = tuner.fit()
        assert len(results) == TRIALS
        assert not results.errors
        ray.shutdown()
    return clock.figures()


def apart(side: str, name: str) -> Figures:
    """Run one search in a process of its own, so that none warms the other up."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", side, name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def searches() -> None:
    """Print start-up, seconds a trial and their ratios, of rounds in turn: the machine may be busy meanwhile."""
    sides = [("plain", name) for name in PLAIN] + [("ours", name) for name in OURS]
    found: dict[tuple[str, str], list[Figures]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side in sides:
            found[side].append(apart(*side))
    print(f"{TRIALS} trials of {REPORTS} reports, {WORKERS} at a time; medians of {ROUNDS} rounds")
    print(f"{'':26}{'start-up [s]':>14}{'[s] a trial':>14}{'once it runs':>14}{'driver CPU [s]':>16}")
    medians = {}
    for side, figures in found.items():
        medians[side] = Figures(*(median(values) for values in zip(*map(astuple, figures), strict=True)))
        of = medians[side]
        print(f"{' '.join(side):26}{of.startup:14.1f}{of.seconds:14.3f}{of.steady:14.3f}{of.cpu:16.3f}")
    for name, rivals in RIVALS.items():
        for rival in rivals:
            of, other = medians["ours", name], medians["plain", rival]
            ratio = of.seconds / other.seconds
            print(
                f"{name}: {ratio:.2f} of plain {rival} ({of.steady / other.steady:.2f} once both run)   "
                f"goal {QUARTER}: {verdict(ratio <= QUARTER)}"
            )
    for name in ("additive", "nsga2"):
        seconds = medians["ours", name].seconds
        print(f"{name}: {seconds:.3f} s   goal {SECONDS} s: {verdict(seconds <= SECONDS)}")


def proposals() -> None:
    """Print what a proposal takes at 1,000 finished trials."""
    feasible = space().feasible(BUDGET)
    rng = np.random.default_rng(0)
    record = Record()
    for number, network in enumerate(feasible.sample(FINISHED, rng)):
        costs = feasible.model.cost(network).known()
        record.add(Started(number, "search", network.key, network.indices, costs, 0))
        record.add(Ended(number, "complete", REPORTS, {"val_accuracy": quality(network.indices)}, 1.0))
    for name, goal in PROPOSALS.items():
        proposer = Proposer(feasible, sampler(name, {}), OBJECTIVES, 0)
        proposer.replay(record)
        walls, cpus = [], []
        for number in range(FINISHED, FINISHED + 20):
            wall, cpu = time.perf_counter(), time.process_time()
            proposal = proposer.propose(number)
            walls.append(1e3 * (time.perf_counter() - wall))
            cpus.append(1e3 * (time.process_time() - cpu))
            assert proposal is not None
            values = quality(proposal.architecture.indices), feasible.model.cost(proposal.architecture).macs
            proposer.tell(number, "complete", values)
        wall, cpu = median(walls), median(cpus)
        print(f"{name:12}{wall:8.1f} ms a proposal, {cpu:.1f} ms of CPU   goal {goal} ms: {verdict(wall <= goal)}")


def resident() -> int:
    """Resident memory of this process [bytes]; Linux alone tells."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(name: str = "additive") -> None:
    """Print what the driver grows by: record, study, journal and sampler, without Ray."""
    low, high = GROWN
    with new_run(name, high) as (store, found), store.lock():
        feasible = found.feasible(BUDGET)
        mirror = Mirror(store.path / "optuna.log", "run", feasible.table, OBJECTIVES)
        driver = Driver(store, feasible, REPORTS, high, mirror.update)
        driver.begin()
        sizes, times = {}, {}
        begin = time.process_time()
        while (job := driver.next_job()) is not None:
            accuracy = quality(job.architecture.indices)
            for epoch in range(1, REPORTS + 1):
                driver.epoch_done(job.number, epoch, {"val_accuracy": accuracy}, 1.0)
            done = job.number + 1
            if done % low == 0:
                sizes[done], times[done] = resident(), time.process_time() - begin
        each = (sizes[high] - sizes[low]) / (high - low)
        early, late = (1e3 * (times[n] - times[n - low]) / low for n in (2 * low, high))
        print(f"{name}: {each / 1024:.1f} KB a trial   goal {BYTES // 1024} KB: {verdict(each <= BYTES)}")
        print(
            f"{name}: {early:.0f} ms of CPU a trial about trial {3 * low // 2}, {late:.0f} ms about {high - low // 2}"
        )


PARTS = {"search": searches, "proposals": proposals, "memory": memory}


def main() -> None:
    """Print the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS])
    for part in parser.parse_args().parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:  # a search of `apart`
        print(json.dumps(asdict({"ours": ours, "plain": plain}[sys.argv[2]](sys.argv[3]))))
    else:
        main()
