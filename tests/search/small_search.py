"""A small real space, runs in it, and a trial function that does not train; importable by Ray's workers."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from bsconv_nas.api import SearchSpace
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.search.driver import Driver
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.record import Record
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Job, Metrics, Task, TrialFunction
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.training.data import Dataset, DataSpec, load
from bsconv_nas.training.recipe import Recipe

EPOCHS = 3
TRADE_OFF = ({"name": "val_accuracy", "direction": "max"}, {"name": "macs", "direction": "min"})


def resnet8(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    return cifar_resnet(8, in_channels=in_channels, num_classes=num_classes, width=8)


@cache
def small_space(scope: str = "layer", widths: tuple[float, ...] = (0.5, 1.0), depths: str = "all") -> SearchSpace:
    choices: dict[str, Any] = {"scope": scope, "widths": widths, "depths": depths}
    return SearchSpace.from_module(resnet8, input_size=(1, 8, 8), **choices)


def new_run(path: Path, space: SearchSpace, **search: Any) -> Store:
    resources = search.pop("resources", {"workers": 2})
    recipe = Recipe(epochs=EPOCHS, batch_size=64, learning_rate=0.05)
    experiment = Experiment.model_validate(
        {"name": "small", "space": "small.toml", "search": search, "resources": resources, "recipe": recipe}
    )
    return Store.create(path, experiment, space.to_json(), {})


@cache
def digits() -> Dataset:
    return load(DataSpec("digits"))


def task_of(space: SearchSpace, store: Store) -> Task:
    return Task(space.base, space.table, digits(), store.experiment.recipe)


def work_alone(
    store: Store,
    feasible: FeasibleSet,
    function: TrialFunction | None = None,
    on_change: Callable[[Record], None] = lambda record: None,
    trials: int | None = None,
) -> Record:
    """Run a search's jobs one after the other in this process, as a single worker would."""
    task = task_of(SearchSpace.from_json(store.space), store)
    with store.lock():
        driver = Driver(store, feasible, EPOCHS, trials, on_change)
        driver.begin()
        while (job := driver.next_job()) is not None:
            for epoch, metrics in (function or pretend)(task, job):
                if not driver.epoch_done(job.number, epoch, metrics, 1.0):
                    break
            else:
                driver.completed(job.number)
        driver.close()
    return driver.record


def quality(indices: tuple[int, ...]) -> float:
    """A made-up accuracy in (0, 1): each dimension has a weight, and high indices are good."""
    score = sum((1 + i % 3) * index for i, index in enumerate(indices))
    return 1 - 1 / (1.5 + score)


def pretend(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
    """Yield epochs of a curve that rises to the network's quality."""
    for epoch in range(job.epochs + 1, task.recipe.epochs + 1):
        yield epoch, {"val_accuracy": quality(job.architecture.indices) * (1 - 0.5**epoch)}
