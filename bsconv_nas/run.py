"""A run as its user sees it, and the verbs that make or continue one: search, resume, retrain.

Torch and Ray are imported by the functions that need them, so that status, front and report need neither.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.analytic import ALL_COLUMNS, COLUMNS
from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import RecordError, SpaceError
from bsconv_nas.search import data
from bsconv_nas.search.environment import environment
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.fvcore_counts import note_fvcore_counts
from bsconv_nas.search.inheritance import keep_weights, kept_base, read_base
from bsconv_nas.search.known_base import check_base, keep_identity, read_identity, unchecked
from bsconv_nas.search.latencies import keep_latencies, kept_latencies, measured_latencies, read_latencies
from bsconv_nas.search.machines import device, joined
from bsconv_nas.search.names import check_names
from bsconv_nas.search.own_trial import own_trial
from bsconv_nas.search.pick import pick
from bsconv_nas.search.record import Note, Record, front
from bsconv_nas.search.store import Store
from bsconv_nas.space.base import Base
from bsconv_nas.space.table import Architecture
from bsconv_nas.space.unvaried import why_no_operator
from bsconv_nas.training.sources import shape
from bsconv_nas.training.spec import DataSpec

if TYPE_CHECKING:
    from torch import nn

    from bsconv_nas.report.view import View
    from bsconv_nas.search.retrain import Pair
    from bsconv_nas.search.trial import Task
    from bsconv_nas.training.data import Dataset

__all__ = ["Run", "load_run", "resume", "retrain", "search"]

OnChange = Callable[[Record], None]
Say = Callable[[str], None]


def _ignore(told: object) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Run:
    """A run folder: its trials, its front, and what can be made of them.

    >>> run = load_run("runs/quickstart-1")
    >>> run.export("out", pick="knee")
    """

    store: Store

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.store.path

    @property
    def experiment(self) -> Experiment:
        """What was asked for."""
        return self.store.experiment

    @cached_property
    def space(self) -> SearchSpace:
        """The space as it was searched."""
        try:
            return SearchSpace.from_json(self.store.space).with_latencies(kept_latencies(self.path))
        except (SpaceError, LookupError, TypeError, ValueError) as error:
            raise RecordError(
                f"'space.json' in run folder {str(self.path)!r} must be what this version writes, but: {error}."
            ) from error

    @cached_property
    def record(self) -> Record:
        """The fold over the run's events, as they are now."""
        record = self.store.record()
        columns = COLUMNS if self.space.latencies is None else ALL_COLUMNS
        for number, trial in record.trials.items():
            missing = sorted(set(columns) - trial.started.costs.keys())
            try:
                if missing:
                    raise SpaceError(f"it has no {missing[0]}.")
                self.space.table.architecture(trial.started.indices)
            except SpaceError as error:
                raise RecordError(
                    f"Trial {number} in run folder {str(self.path)!r} must be a network of its 'space.json', but: "
                    f"{str(error).rstrip('.')}: the folder is damaged."
                ) from None
        return record

    @property
    def budget(self) -> Budget:
        """The bounds that every trial keeps."""
        return Budget(**self.experiment.budget)

    @property
    def unchecked(self) -> str:
        """A sentence about what cannot be checked of the base before its code is used again, or ""."""
        return unchecked(self.store)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial: `number, key, kind, state, val_accuracy`, costs, time, seed and one column a dimension."""
        return self.record.frame(self.space.table)

    @cached_property
    def front(self) -> pd.DataFrame:
        """The non-dominated complete trials, cheapest first."""
        return front(self.trials, self.experiment.search.objectives)

    def architecture(self, number: int) -> Architecture:
        """Return the network of a trial."""
        started = self.record.trials[number].started
        return Architecture(started.indices, started.key)

    def pick(self, how: str = "best") -> int:
        """Return the number of a trial: `best`, `knee`, or the first digits of a key.

        Raises:
            RecordError: no complete trial, or a prefix that fits no key or several.
        """
        search = self.experiment.search
        names = [goal.name for goal in search.objectives]
        cost = next((name for name in names if name in ALL_COLUMNS), "macs")
        return pick(self.trials, self.front, how, cost, search.measured)

    def model(self, how: str = "best") -> nn.Module:
        """Return a trained network of the run as a plain module in eval mode: (N, C, H, W) -> (N, classes).

        Retrained weights if there are any, else those of the search.

        Raises:
            RecordError: the network's weights were not kept, or the base's code was edited.
        """
        from bsconv_nas.card import trained

        return trained(self, self.pick(how))[0]

    def export(self, out: str | Path, pick: str = "best") -> Path:
        """Write a picked network as `model.py`, `weights.safetensors` and `card.json`, verified in a clean process.

        Raises:
            RecordError: there is no such network, its weights were not kept, or the base's code was edited.
            ExportError: the folder cannot be replaced, or the written network disagrees.
        """
        from bsconv_nas.card import trained
        from bsconv_nas.export.bundle import write

        model, card = trained(self, self.pick(pick))
        return write(model, Path(out), card, self.space.input_size)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the offline HTML report and return its path; in a folder, by default the run's, `report.html`."""
        from bsconv_nas.report.page import write

        place = Path(path or self.path)
        return write(self.view(), place / "report.html" if place.is_dir() else place)

    def picture(self, path: str | Path) -> Path:
        """Write the front as a .png, .svg or .pdf, whole or not at all, and return its path.

        Raises:
            RecordError: another ending, no such folder, or no trial yet.
            BsconvNasError: kaleido or Chrome is missing (extra `images`).
        """
        from bsconv_nas.report.front import save_image

        return save_image(self.view(), path)

    def view(self) -> View:
        """Return the run as the report reads it."""
        from bsconv_nas.report.measure import Measure
        from bsconv_nas.report.view import View

        details = {what: [n.detail for n in self.record.notes if n.what == what] for what in ("fvcore", "verdict")}
        facts = self.store.environment.get("data", {})
        return View(
            name=self.store.name,
            record=self.record,
            table=self.space.table,
            objectives=self.experiment.search.objectives,
            budget=self.budget,
            experiment=self.experiment.to_json(self.path),
            environment=self.store.environment,
            fvcore={d["key"]: {"macs": d["macs"]} for d in details["fvcore"]},
            verdict=tuple(details["verdict"][-1]["sentences"]) if details["verdict"] else (),
            selection_images=facts.get("counts", {}).get("selection"),
            measure=Measure(self.experiment.search.measured),
            latencies=self.space.latencies,
        )


def load_run(path: str | Path) -> Run:
    """Return the run in a folder, be it finished, interrupted or going on.

    Raises:
        RecordError: no such folder, or one that lacks a piece or holds it damaged.
    """
    return Run(Store.open(path))


def search(
    experiment: Experiment,
    run: str | Path | None = None,
    *,
    trials: int | None = None,
    address: str | None = None,
    on_change: OnChange = _ignore,
    say: Say = _ignore,
) -> Run:
    """Search as an experiment says and return the run.

    Args:
        experiment: what to search.
        run: a new or empty folder; None takes the next free `runs/<experiment>-<n>`.
        trials: instead of the experiment's.
        address: of a running Ray cluster (`auto` or `HOST:PORT`); None starts one here.
        on_change: called with the record after every event.
        say: called with what to know of the space before anything is trained.

    Raises:
        BsconvNasError: whatever is wrong with the space, the budget, the data, the folder or the cluster; before
            anything is trained or written, where it can be known.
    """
    if trials is not None:
        experiment = experiment.model_copy(update={"search": experiment.search.model_copy(update={"trials": trials})})
    check_names(experiment)
    Store.check_free(run)
    with joined(experiment.resources, address):
        return _begin(experiment, run, address, on_change, say)


def _begin(experiment: Experiment, run: str | Path | None, address: str | None, on_change: OnChange, say: Say) -> Run:
    """Do what takes time: trace the space, load the data, check the space, make the folder, search."""
    images = experiment.images
    latencies = read_latencies(experiment)
    space = SearchSpace.load(experiment.space, *(shape(images) if images else ()))
    say(why_no_operator(space.table.fixed, space.table.dimensions))
    space = space.with_latencies(latencies or measured_latencies(experiment, space))
    device(experiment.resources, address)
    space.feasible(Budget(**experiment.budget)).check()
    dataset = data.load(images)
    trained = read_base(experiment.train, space)
    say((checked := space.check()).sentence)
    assert isinstance(space.base, Base)  # a file's space has one
    known = partial(keep_identity, known=read_identity(space.base))
    kept = [known, partial(keep_weights, weights=trained), partial(keep_latencies, latencies=space.latencies)]
    proved, facts = {**space.to_json(), "check": checked.to_json()}, {**environment(), **data.facts(dataset)}
    store = Store.create(run, experiment, proved, facts, kept)
    try:
        return _search(Run(store), dataset, None, address, on_change)
    except BaseException:
        if not store.record().trials:  # it could not start: nothing half-written
            shutil.rmtree(store.path)
        raise


def resume(
    run: Run,
    *,
    trials: int | None = None,
    data_root: str | Path | None = None,
    address: str | None = None,
    on_change: OnChange = _ignore,
) -> Run:
    """Go on with a search that was interrupted, or that shall have more trials.

    Args:
        run: the run.
        trials: how many networks to search in all; without it, the number that was asked for last.
        data_root: folder of the data here; the record keeps none outside its own surroundings.
        address: of a running Ray cluster.
        on_change: called with the record after every event.

    Raises:
        RecordError: another driver is at work, `trials` is less than were begun, or the base's code was edited.
        DataError: the data are absent, or not those of the search.
    """
    begun = sum(trial.started.kind == "search" for trial in run.store.record().trials.values())
    if trials is not None and trials < begun:
        raise RecordError(f"--trials must be at least the {begun} that were begun, but got {trials}.")
    spec = data.place_again(run.store, data_root)
    check_base(run.store, run.space.base)
    with joined(run.experiment.resources, address):
        return _search(run, data.load_again(run.store, spec), trials, address, on_change)


def _search(run: Run, dataset: Dataset | None, trials: int | None, address: str | None, on_change: OnChange) -> Run:
    from bsconv_nas.search import runner
    from bsconv_nas.search.trial import train

    feasible = run.space.feasible(run.budget)
    task = _task(run, dataset, address)
    function = own_trial(run.experiment.search) or train
    with runner.stoppable(run.store, "resume"):
        record = runner.search(
            run.store, feasible, task, trials=trials, address=address, on_change=on_change, function=function
        )
        if record.notes[-1].what != "interrupted":  # whoever pressed Ctrl-C does not wait for counts
            note_fvcore_counts(Run(run.store))
    return Run(run.store)


def retrain(
    run: Run,
    *,
    members: int | None = None,
    seeds: int | None = None,
    data_root: str | Path | None = None,
    address: str | None = None,
    on_change: OnChange = _ignore,
) -> Run:
    """Train members of the front and uniform networks of like cost in full, and say what mixing gains.

    The test split is evaluated once, by the last epoch of each training.

    Args:
        run: a run with a front.
        members: how many members; the experiment's number without it.
        seeds: trainings of each network; the experiment's number without it.
        data_root: folder of the data here, as in `resume`.
        address: of a running Ray cluster.
        on_change: called with the record after every event.

    Raises:
        RecordError: no trial is complete, another driver is at work, or the base's code was edited.
        DataError: the data are not those of the search.
    """
    from bsconv_nas.search.retrain import chosen

    own, retraining = run.experiment.search.trial, run.experiment.retrain
    if own is not None:
        raise RecordError(
            f"Retraining follows [recipe], but run {run.store.name!r} was searched by search.trial {own.name!r}: call "
            "that function with more epochs and other seeds."
        )
    pairs = chosen(run.trials, run.front, members or retraining.members)
    spec = data.place_again(run.store, data_root)
    check_base(run.store, run.space.base)
    with joined(run.experiment.resources, address):
        return _retrain(run, pairs, seeds or retraining.seeds, spec, address, on_change)


def _retrain(
    run: Run, pairs: list[Pair], seeds: int, spec: DataSpec | None, address: str | None, on_change: OnChange
) -> Run:
    from bsconv_nas.search import runner
    from bsconv_nas.search.retrain import Retraining
    from bsconv_nas.search.verdict import comparisons, verdict
    from bsconv_nas.training.data import load_test

    assert spec is not None  # the built-in training has data
    experiment = run.experiment
    task = _task(run, data.load_again(run.store, spec), address)
    task = dataclasses.replace(task, recipe=experiment.retrain_recipe, test=load_test(spec))
    with runner.stoppable(run.store, "retrain"), run.store.lock():
        driver = Retraining(run.store, pairs, seeds, task.recipe.epochs, on_change)
        runner.run(driver, run.store, task, address=address)
        done = Run(run.store)
        if not driver.interrupted:
            found = comparisons(done.record, done.trials, pairs, done.space.table)
            said, last = {"sentences": list(verdict(found))}, done.record.last("verdict", "interrupted")
            if last is None or (last.what, last.detail) != ("verdict", said):  # it may have been killed just after it
                run.store.append(Note("verdict", said))
    return Run(run.store)


def _task(run: Run, dataset: Dataset | None, address: str | None) -> Task:
    from bsconv_nas.search.trial import Task

    experiment, base = run.experiment, run.space.base
    assert isinstance(base, Base)  # a recorded space has one
    where = device(experiment.resources, address)
    weights = kept_base(run.path), experiment.train.images
    return Task(base, run.space.table, dataset, experiment.recipe, where, None, *weights)
