"""A trained network of a run and its card: what an export says about where its weights come from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import nn

from bsconv_nas.errors import RecordError
from bsconv_nas.search.checkpoint import has_checkpoint, load_checkpoint
from bsconv_nas.search.known_base import check_base
from bsconv_nas.search.record import Trial
from bsconv_nas.training.weights import kept_weights

if TYPE_CHECKING:
    from bsconv_nas.run import Run

__all__ = ["trained"]

SPLITS = ("val_accuracy", "report_accuracy", "test_accuracy")


def trained(run: Run, number: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a trial in eval mode with its retrained or else its search's weights, and its card.

    Raises:
        RecordError: the weights were not kept, the base's code was edited since, or the record lacks what the card must
            say.
    """
    if (own := run.experiment.search.trial) is not None:
        raise RecordError(
            f"Weights must be kept to be exported, but search.trial {own.name!r} of run {run.store.name!r} keeps its "
            f"own: load the run in Python and build the network by run.space.build(run.architecture({number}))."
        )
    trainings = _trainings(run, number)
    source = max(trainings, key=lambda trial: trial.metrics.get("val_accuracy", 0.0))
    place = run.store.checkpoint(source.number)
    if not has_checkpoint(place):
        kept = [t.started.key for t in map(run.record.trials.get, run.front["number"]) if t and _is_kept(run, t)]
        pick = f"pick one of the front whose weights are kept ({', '.join(kept)}), or " if kept else ""
        raise RecordError(f"The weights of {source.started.key!r} must lie in {place!r}, but do not: {pick}retrain it.")
    check_base(run.store, run.space.base)
    model = run.space.build(run.architecture(number), seed=0)
    model.load_state_dict(kept_weights(load_checkpoint(place)[0]))
    return model.eval(), _card(run, source, trainings)


def _is_kept(run: Run, trial: Trial) -> bool:
    return has_checkpoint(run.store.checkpoint(trial.number))


def _trainings(run: Run, number: int) -> list[Trial]:
    """Return the complete retrainings of a trial's network; without any, the trial itself."""
    trial = run.record.trials[number]
    retrained = [t for t in run.record.trials.values() if t.started.kind == "retrain" and t.state == "complete"]
    return [t for t in retrained if t.started.key == trial.started.key] or [trial]


def _card(run: Run, source: Trial, trainings: list[Trial]) -> dict[str, Any]:
    experiment, started = run.experiment, source.started
    architecture = run.architecture(source.number)
    recipe = experiment.retrain_recipe if started.kind == "retrain" else experiment.recipe
    return {
        "title": f"{experiment.name}: network {started.key}, {started.costs['macs']:,} MACs",
        "key": started.key,
        "architecture": run.space.describe(architecture),
        "layers": run.space.table.resolve(architecture.indices),
        "base": run.store.space["base"],
        "num_classes": run.space.num_classes,
        "input": _input(run),
        **started.costs,
        "weights": {"from": started.kind, "trial": source.number, "seed": started.seed, "epochs": source.epochs},
        "accuracy": _accuracy(source),
        "accuracy_by_seed": [{"seed": trial.started.seed, **_accuracy(trial)} for trial in trainings],
        "data": {**experiment.to_json(run.path)["data"], **run.store.environment.get("data", {})},
        "recipe": dataclasses.asdict(recipe),
        "budget": str(run.budget),
        "versions": run.store.environment.get("versions", {}),
    }


def _input(run: Run) -> dict[str, Any]:
    """Return what has to be done to an image before the network sees it, as numbers and as one sentence."""
    data, size = run.store.environment.get("data", {}), run.space.input_size
    mean, std = (data.get(name, []) for name in ("mean", "std"))
    shown = [", ".join(f"{value:.6g}" for value in values) for values in (mean, std)]
    resized = f"resized to {size[1]}x{size[2]} pixels with antialiasing, " if run.experiment.data.resolution else ""
    return {
        "range": [0, 1],
        "mean": mean,
        "std": std,
        "preparation": f"Before that they are {resized}scaled to [0, 1] and normalised channel by channel: "
        f"(image - mean) / std with mean = [{shown[0]}] and std = [{shown[1]}].",
    }


def _accuracy(trial: Trial) -> dict[str, float]:
    """Return the accuracies of a training by split."""
    return {name: trial.metrics[name] for name in SPLITS if name in trial.metrics}
