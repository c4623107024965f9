"""From an experiment to advice on early stopping: train a few networks in full, and read their curves.

A calibration is a search without early stopping over networks drawn evenly over log MACs; its run is one like any.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bsconv_nas import run as runs
from bsconv_nas.errors import ExperimentError
from bsconv_nas.run import Run
from bsconv_nas.search.calibration import CONFIDENCE, GAIN, LOW, TAU, TOLERANCES, Calibration, Plan, calibration
from bsconv_nas.search.experiment import Experiment, Named
from bsconv_nas.search.record import Record
from bsconv_nas.search.status import status

__all__ = ["calibrate", "planned", "print_calibration"]

ROWS = 20  # of the table, at most
DIGITS = 8  # of a key; its first digits name it


def planned(experiment: Experiment, networks: int) -> Experiment:
    """Return the search that calibrates an experiment: networks evenly over log MACs, trained in full.

    Raises:
        ExperimentError: one epoch, after which nothing is left to stop.
    """
    if experiment.recipe.epochs < 2:
        raise ExperimentError(
            f"A calibration needs recipe.epochs of at least 2, but got {experiment.recipe.epochs}: there is nothing to "
            "stop early."
        )
    search = experiment.search.model_copy(
        update={
            "sampler": Named(name="stratified"),
            "trials": networks,
            "baselines": 0,
            "scheduler": Named(name="none"),
        }
    )
    return experiment.model_copy(update={"name": f"{experiment.name}-calibration", "search": search})


def calibrate(
    experiment: Experiment,
    run: str | Path | None = None,
    *,
    networks: int = 24,
    address: str | None = None,
    on_change: Callable[[Record], None] = lambda record: None,
) -> Run:
    """Train networks of an experiment's space in full and return the run; what it says gives `calibration`.

    Args:
        experiment: what is going to be searched.
        run: a new or empty folder; None takes the next free `runs/<experiment>-calibration-<n>`.
        networks: how many.
        address: of a running Ray cluster (`auto` or `HOST:PORT`); None starts one here.
        on_change: called with the record after every event.

    Raises:
        BsconvNasError: as `search` does.
    """
    return runs.search(planned(experiment, networks), run, address=address, on_change=on_change)


def print_calibration(console: Console, run: Run) -> None:
    """Print which epochs of a run's full trainings foretell the last one, and what early stopping would save.

    Of a run that is not finished, print how to go on.

    Raises:
        RecordError: too few networks, or none of like cost.
    """
    experiment = run.experiment
    if not status(run.record, experiment).finished:
        console.print("not finished; go on with:", *[f"bsconv-nas {v} {run.path}" for v in ("resume", "calibrate")])
        return
    found = calibration(run.record, experiment.search.objectives, experiment.recipe.epochs, experiment.search.seed)
    console.print(_basis(found, experiment.recipe.epochs), markup=False, soft_wrap=True)
    console.print(_fidelities(found))
    console.print(f"trusted: tau of at least {TAU:g}, and the interval from {LOW:g} up", soft_wrap=True)
    if found.plans:
        console.print(_plans(found))
    console.print(_advice(found), markup=False, soft_wrap=True)
    console.print(f"run folder: {run.path}", markup=False, soft_wrap=True)


def _basis(found: Calibration, epochs: int) -> str:
    """Return what the numbers rest on."""
    like = f"{found.pairs} pairs of like cost: within {found.tolerance:.0%} of their MACs"
    wider = ", wider than 10 % for want of pairs, which flatters" if found.tolerance > TOLERANCES[0] else ""
    return f"{found.networks} networks with all {epochs} epochs, {like}{wider}"


def _fidelities(found: Calibration) -> Table:
    table = Table("epoch", "Kendall's tau", f"{CONFIDENCE:.0%} interval", "pairs as at the end", "trusted")
    table.box, table.pad_edge = box.SIMPLE_HEAD, False
    shown = set(np.geomspace(1, len(found.fidelities), min(ROWS, len(found.fidelities))).round().astype(int).tolist())
    for row in found.fidelities:
        if row.epoch in shown:
            order = f"{(1 + row.tau) / 2:.0%}"
            interval = f"{row.low:.2f} to {row.high:.2f}"
            table.add_row(str(row.epoch), f"{row.tau:.2f}", interval, order, "yes" if row.trusted else "no")
    return table


def _plans(found: Calibration) -> Table:
    table = Table("scheduler", "rungs", "epochs", "device time", "front lost", "gain", "lost most often")
    table.box, table.pad_edge = box.SIMPLE_HEAD, False
    for plan in found.plans:
        often = sorted(plan.lost.items(), key=lambda item: -item[1])[:3]
        table.add_row(
            f"pareto_asha, eta {plan.eta}",
            " ".join(map(str, plan.rungs)),
            f"{plan.epochs:.0%}",
            f"{plan.seconds:.0%}",
            f"{plan.lost_share:.0%} of {plan.front}",
            f"{plan.gain:.2f}x",
            ", ".join(f"{key[:DIGITS]} ({share:.0%})" for key, share in often),
        )
    return table


def _advice(found: Calibration) -> str:
    """Return the line to put into the experiment, and why."""
    plan = found.recommended
    if plan is None:
        reason = f"early stopping gains less than {GAIN}x" if found.plans else "no rung can be trusted"
        return f'scheduler = "none"  # {reason}'
    return f"{_line(plan)}  # keeps {plan.gain:.2f} times as much of the front in a device-second"


def _line(plan: Plan) -> str:
    return f'scheduler = {{ name = "pareto_asha", eta = {plan.eta}, min_epochs = {plan.min_epochs} }}'
