"""How good the searches are: samplers and schedulers replayed on tables of finished trainings.

Run it with `python tests/benchmarks/bench_search.py tests/benchmarks/tables/NAME.toml`. Each search has the
device-seconds of 150 full trainings. Printed are means over 20 seeds: the score at shares of that time and after so
many trials, and the device-seconds in which the mean curve reaches the last score of stratified random search and of
TPE, as shares of the whole time and of the time in which those reached it. The score are the points of accuracy above
the front of uniform networks, mean over three octaves of MACs below the budget; networks of the front count with seeds
that the search did not see.

`plain` is what Ray Tune's OptunaSearch does: Optuna's default sampler, which proposes what breaks the budget, repeats
itself, and takes early values for final ones.
"""

from __future__ import annotations

import argparse
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import optuna
from replay import Curve, Ours, Replay, Tabulated, replayed

from bsconv_nas.search.samplers import sampler
from bsconv_nas.search.scheduler import scheduler
from bsconv_nas.search.table_sampler import distributions

TRAININGS = 150
SHARES = (0.1, 0.2, 1 / 3, 0.5, 0.75, 1.0)
TRIALS = (15, 30, 50, 100, 150)


class Plain:
    """Optuna's default sampler without a budget, as `OptunaSearch` asks it."""

    def __init__(self, table: Tabulated, name: str, seed: int) -> None:
        self._table = table
        made = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}[name](seed=seed)
        self._study = optuna.create_study(directions=["maximize", "minimize"], sampler=made)
        self._space = distributions(table.space.table)
        self._trials: dict[int, optuna.Trial] = {}

    def next(self, number: int) -> int | None:
        while True:
            self._trials[number] = self._study.ask(self._space)
            network = self._table.space.table.from_values(self._trials[number].params)
            place = self._table.index.get(np.array(network.indices).tobytes())
            if place is not None:
                return place
            self._study.tell(self._trials[number], state=optuna.trial.TrialState.FAIL)  # not tabulated yet

    def tell(self, number: int, network: int, accuracy: float, full: bool) -> None:
        self._study.tell(self._trials[number], [accuracy, self._table.macs[network]])


@dataclass(frozen=True, slots=True)
class Method:
    """A sampler with a scheduler."""

    sampler: str
    scheduler: str = "none"
    sampler_params: tuple[tuple[str, object], ...] = ()
    scheduler_params: tuple[tuple[str, object], ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or (f"{self.sampler} + {self.scheduler}" if self.scheduler != "none" else self.sampler)

    def replay(self, table: Tabulated, seed: int) -> Replay:
        stops = scheduler(self.scheduler, dict(self.scheduler_params), table.epochs)
        if self.sampler.startswith("plain"):
            return Replay(table, Plain(table, self.sampler.removeprefix("plain "), seed), stops, seed)
        return Replay(table, Ours(table, sampler(self.sampler, dict(self.sampler_params)), seed), stops, seed)


EARLY = (("eta", 3), ("min_epochs", 1))
METHODS = (
    Method("stratified"),
    Method("random"),
    Method("tpe"),
    Method("nsga2"),
    Method("evolution"),
    Method("additive"),
    Method("stratified", "pareto_asha"),
    Method("tpe", "pareto_asha"),
    Method("additive", "pareto_asha"),
    Method("plain tpe"),
    Method("plain nsga2"),
    Method("plain tpe", "asha"),
)
ABLATIONS = (
    Method("additive", sampler_params=(("temperature", 0.0),), label="additive without Thompson's draw"),
    Method("additive", sampler_params=(("temperature", 0.5),), label="additive with half the draw"),
    Method("additive", sampler_params=(("generations", 0),), label="additive without evolution"),
    Method("additive", sampler_params=(("startup", 0),), label="additive without the even start"),
    Method("additive", "asha", label="additive + asha (all costs alike)"),
    Method("additive", "pareto_asha", scheduler_params=EARLY, label="additive + pareto_asha, early"),
)


@cache
def table_of(path: Path) -> Tabulated:
    return Tabulated(path)


def one(path: Path, method: Method, seed: int) -> Curve:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = table_of(path)
    return replayed(method.replay(table, seed), TRAININGS * typical(table))


def typical(table: Tabulated) -> float:
    """Return the device-seconds of a full training, mean over the networks inside the budget."""
    return float(table.seconds.sum(axis=1)[table.macs <= table.high].mean())


def mean(curves: list[Curve], grid: np.ndarray) -> Curve:
    at = [curve.score[np.searchsorted(curve.seconds, grid, side="right") - 1] for curve in curves]
    return Curve(grid, np.mean(at, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=[], help="only those of these names")
    args = parser.parse_args()
    table = table_of(args.table)
    limit = TRAININGS * typical(table)
    seeds = np.isfinite(table.report).sum(axis=1)
    print(f"{args.table.stem}: {len(table.rows)} networks, trainings by seed {seeds.tolist()}")
    print(f"budget {table.high:,.0f} MACs, {typical(table):.2f} device-seconds a training, {args.seeds} searches each")
    grid = np.linspace(0, limit, 1501)
    means: dict[str, Curve] = {}
    header = "".join(f"{share:>7.0%}" for share in SHARES) + "  |" + "".join(f"{count:>7}" for count in TRIALS)
    print(f"{'score after a share of the time':<34}{header}  {'+-':>5}")
    for method in (*METHODS, *ABLATIONS):
        if args.methods and method.name not in args.methods:
            continue
        start = time.perf_counter()
        with ProcessPoolExecutor(args.workers) as pool:
            curves = list(pool.map(partial(one, args.table, method), range(args.seeds)))
        means[method.name] = mean(curves, grid)
        at = [float(means[method.name].score[int(share * (len(grid) - 1))]) for share in SHARES]
        spread = np.std([curve.score[-1] for curve in curves]) / np.sqrt(len(curves))
        counts = [np.mean([c.score[min(count, len(c.score) - 1)] for c in curves]) for count in TRIALS]
        shown = "".join(f"{value:>7.2f}" for value in at) + "  |" + "".join(f"{value:>7.2f}" for value in counts)
        print(f"{method.name:<34}{shown}  {spread:>5.2f}   ({time.perf_counter() - start:.0f} s)", flush=True)
    for rival in ("stratified", "tpe"):
        if rival in means:
            print_ratios(rival, means, limit)


def print_ratios(rival: str, means: dict[str, Curve], limit: float) -> None:
    target = float(means[rival].score[-1])
    took = means[rival].first(target)
    print(f"\ndevice-seconds in which {rival!r}'s last score, {target:.2f}, is reached, as a share of")
    print(f"{'':<34}{'all':>8}{'its own':>9}")
    for name, curve in means.items():
        first = curve.first(target)
        print(f"{name:<34}{first / limit:>8.0%}{first / took:>9.0%}")


if __name__ == "__main__":
    main()
