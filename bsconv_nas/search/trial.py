"""One candidate from start to end: seed, build, train, checkpoint. Nothing here knows who asked for it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bsconv_nas.network.build import build, instantiate
from bsconv_nas.network.inherit import inherit
from bsconv_nas.search.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from bsconv_nas.space.base import Base
from bsconv_nas.space.table import Architecture, Table
from bsconv_nas.training.augment import Augment
from bsconv_nas.training.data import Dataset
from bsconv_nas.training.loop import Trainer, evaluate
from bsconv_nas.training.recipe import Recipe

__all__ = ["Job", "Metrics", "Task", "TrialFunction", "train", "trial_seed"]

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Task:
    """What all trials of a search share.

    Attributes:
        base: the network that the space starts from.
        table: the space.
        dataset: with the parts train, selection and report; only an own trial may have none.
        recipe: of every trial.
        device: where to train.
        test: if there, the last epoch is evaluated on it once.
        trained: weights of the base that candidates inherit; without them they start at random.
        images: of the train part, to take the statistics of norms anew where weights are inherited.
    """

    base: Base
    table: Table
    dataset: Dataset | None
    recipe: Recipe
    device: str = "cpu"
    test: Dataset | None = None
    trained: Mapping[str, Tensor] | None = None
    images: int = 0

    @property
    def data(self) -> Dataset:
        """The dataset where there is one, as for the built-in training."""
        assert self.dataset is not None
        return self.dataset


@dataclass(frozen=True, slots=True)
class Job:
    """One trial to run.

    Attributes:
        number: of the trial.
        architecture: what to train.
        seed: of its initial weights and its training; the same seed gives the same trial.
        checkpoint: the folder where its state belongs.
        epochs: how many of its epochs are known already; the next one to report is `epochs + 1`.
    """

    number: int
    architecture: Architecture
    seed: int
    checkpoint: str | Path
    epochs: int = 0


# Yields the metrics of one epoch after the other, from `job.epochs + 1` on if it can resume, else from the first.
TrialFunction = Callable[[Task, Job], Iterator[tuple[int, Metrics]]]


def trial_seed(run_seed: int, key: str) -> int:
    """Return the seed of a network's trial, below 2^32: it depends on the run's seed and the network alone.

    >>> trial_seed(0, "3f1c") == trial_seed(0, "3f1c") != trial_seed(1, "3f1c")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{key}".encode()).digest()[:4], "big")


def train(task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
    """Train a candidate and yield (epoch, metrics); its state is on disk before an epoch is reported.

    A checkpoint in its folder is gone on from. If it is an epoch ahead of what is known, that epoch is reported first.

    Raises:
        DivergedError: the loss became NaN or infinite.
        TrainingError: the network does not fit the data.
    """
    torch.manual_seed(job.seed)
    model = _start(task, job)
    trainer = Trainer(model, task.data, task.recipe, seed=job.seed, device=task.device)
    if has_checkpoint(job.checkpoint):
        tensors, meta = load_checkpoint(job.checkpoint)
        trainer.load_state(tensors, meta)
        if trainer.epoch > job.epochs:
            yield trainer.epoch, meta["metrics"]
    for result in trainer.epochs():
        metrics = {"val_accuracy": result.val_accuracy, "val_loss": result.val_loss, "train_loss": result.train_loss}
        if result.epoch == task.recipe.epochs:
            metrics |= _unseen(task, trainer)
        tensors, meta = trainer.state()
        save_checkpoint(job.checkpoint, tensors, {**meta, "metrics": metrics})
        yield result.epoch, metrics


def _start(task: Task, job: Job) -> nn.Module:
    """Return the candidate's network as it is before its first epoch."""
    if task.trained is None or has_checkpoint(job.checkpoint):  # what a checkpoint holds replaces all weights
        return build(task.base, task.table, job.architecture)
    base = instantiate(task.base)
    base.load_state_dict(dict(task.trained))
    recipe, generator = task.recipe, torch.Generator().manual_seed(job.seed)
    # Statistics of images that are not augmented cost a trained ResNet-20 two points of its accuracy.
    augment = Augment(recipe.flip, recipe.crop, recipe.cutout)
    batches = task.data.loader("train", task.device).batches(recipe.batch_size, generator, augment)
    count = -(-task.images // recipe.batch_size)
    images = (images for images, _ in itertools.islice(batches, count))
    return inherit(base, task.table, job.architecture, images)


def _unseen(task: Task, trainer: Trainer) -> Metrics:
    """Return the accuracy on the images that decided nothing: the report part, and the test split if it is there."""
    model = trainer.final_model()
    unseen = {"report": task.data} | ({} if task.test is None else {"test": task.test})
    return {
        f"{part}_accuracy": evaluate(model, dataset, part, device=task.device)[1] for part, dataset in unseen.items()
    }
