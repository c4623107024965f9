"""A run as a search would record it: a CIFAR ResNet-20 space, real costs, accuracies drawn by a law."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.cost.budget import Budget
from bsconv_nas.network.models.cifar_resnet import cifar_resnet
from bsconv_nas.report.view import View
from bsconv_nas.search.record import Ended, EpochDone, Event, Note, Objective, Record, Started
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture, Table
from bsconv_nas.space.trace import trace

OPERATORS = ("regular", "dsc", "bsconv_u", "bsconv_s:p=1/8", "bsconv_s")
OBJECTIVES = (Objective("val_accuracy", "max"), Objective("macs", "min"))
EPOCHS = 6


@pytest.fixture(scope="session")
def table() -> Table:
    choices = Choices(operators=OPERATORS, widths=(0.5, 0.75, 1.0))
    return make_table(trace(cifar_resnet(20, num_classes=10), (3, 32, 32)), choices)


@pytest.fixture(scope="session")
def feasible(table: Table) -> FeasibleSet:
    return FeasibleSet(CostModel(table), Budget(macs="20M"))


class Writer:
    """Builds a record from events, with a clock that ticks a second an epoch."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.model = CostModel(table)
        self.events: list[Event] = []
        self.clock = 1_000.0

    def started(self, kind: str, architecture: Architecture, seed: int = 0) -> int:
        number = sum(isinstance(event, Started) for event in self.events)
        cost = self.model.cost(architecture)
        costs = {"macs": cost.macs, "params": cost.params, "memory": cost.memory}
        self.events.append(Started(number, kind, architecture.key, architecture.indices, costs, seed, time=self.clock))
        return number

    def trial(
        self,
        kind: str,
        architecture: Architecture,
        accuracy: float,
        *,
        state: str = "complete",
        epochs: int = EPOCHS,
        cause: str = "",
        seed: int = 0,
        **metrics: float,
    ) -> int:
        number = self.started(kind, architecture, seed)
        begun = self.clock
        for epoch in range(1, epochs + 1):
            self.clock += 1.0
            reached = 0.1 + (accuracy - 0.1) * (1 - math.exp(-epoch)) / (1 - math.exp(-epochs))
            self.events.append(EpochDone(number, epoch, {"val_accuracy": reached}, self.clock - begun, self.clock))
        last = {} if math.isnan(accuracy) else {"val_accuracy": accuracy}
        seconds = self.clock - begun
        self.events.append(Ended(number, state, epochs, {**last, **metrics}, seconds, cause, self.clock))
        return number

    def view(self, **changes: object) -> View:
        """Return the view of what was written, under a budget of 20 M MACs."""
        given = {"objectives": OBJECTIVES, "budget": Budget(macs="20M"), **changes}
        return View("cifar10-1", Record(self.events), self.table, **given)


@pytest.fixture
def writer(table: Table) -> Writer:
    return Writer(table)


def law(table: Table, architecture: Architecture, macs: int, rng: np.random.Generator) -> float:
    """An accuracy that grows with MACs, favours BSConv-U late in the network and has a seed's noise."""
    chosen = table.describe(architecture)
    late = np.mean([str(v).startswith("bsconv") for k, v in chosen.items() if k.startswith("conv.layer3")])
    early = np.mean([v == "regular" for k, v in chosen.items() if k.startswith("conv.layer1")])
    return float(0.70 + 0.045 * math.log2(macs / 1e6) + 0.02 * late + 0.01 * early + rng.normal(0, 0.004))


@pytest.fixture(scope="session")
def network(table: Table) -> Callable[..., Architecture]:
    """Return the full-size network of one operator, but for changes (`depth_layer1=2` is dimension depth.layer1)."""

    def make(operator: str = "regular", **changes: object) -> Architecture:
        values = {d.name: operator if d.kind == "conv" else max(d.options) for d in table.dimensions}
        return table.from_values(values | {name.replace("_", "."): value for name, value in changes.items()})

    return make


EXPERIMENT = {
    "name": "cifar10_16px_6epochs",
    "data": {"name": "cifar10", "resolution": 16, "split_seed": 0},
    "recipe": {"epochs": EPOCHS, "learning_rate": 0.1, "milestones": [0.5, 0.75], "ema": None},
    "search": {"sampler": {"name": "tpe", "params": {}}, "trials": 40, "seed": 1},
    "budget": {"macs": [0, 20_000_000]},
}
ENVIRONMENT = {"device": "NVIDIA H200", "versions": {"torch": "2.15.0", "optuna": "5.0.0"}}


def written_run(feasible: FeasibleSet, trials: int) -> Writer:
    """Return 6 baselines and so many search trials, some stopped early, one failed and one still running."""
    writer = Writer(feasible.table)
    rng = np.random.default_rng(0)  # not that of the sampling, which may draw as often as it likes
    networks = [("baseline", a) for a in feasible.baselines(6)]
    *found, broken, last = feasible.sample(trials + 2, np.random.default_rng(0))
    for kind, architecture in [*networks, *(("search", a) for a in found)]:
        accuracy = law(writer.table, architecture, writer.model.cost(architecture).macs, rng)
        if kind == "search" and rng.random() < 0.3:
            writer.trial(kind, architecture, 0.6 * accuracy, state="stopped", epochs=2)
        else:
            writer.trial(kind, architecture, accuracy)
    writer.trial("search", broken, math.nan, state="failed", epochs=0, cause="The loss became NaN in epoch 1.")
    writer.started("search", last)
    writer.events.append(Note("duplicate", {"key": found[0].key}, writer.clock))
    return writer


@pytest.fixture(scope="session")
def view(feasible: FeasibleSet) -> View:
    """A whole run: 40 search trials, three front members retrained with three seeds, fvcore's counts."""
    writer = written_run(feasible, 40)
    rng = np.random.default_rng(1)
    for number in writer.view().front["number"].tolist()[-3:]:
        trial = writer.view().record.trials[number]
        for seed in range(3):
            test = trial.metrics["val_accuracy"] + 0.015 + rng.normal(0, 0.003)
            architecture = Architecture(trial.started.indices, trial.started.key)
            writer.trial("retrain", architecture, test + 0.002, seed=seed, test_accuracy=test)
    counts = {e.key: {"macs": e.costs["macs"] + 500_000} for e in writer.events if isinstance(e, Started)}
    return writer.view(experiment=EXPERIMENT, environment=ENVIRONMENT, selection_images=5000, fvcore=counts)
