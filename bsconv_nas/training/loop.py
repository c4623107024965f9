"""The training loop for one candidate: a plain module, a data set and a recipe; it knows no search.

Random streams derive from (seed, epoch), so a training resumed after epoch k goes on exactly as if never interrupted.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bsconv_nas.errors import DivergedError, TrainingError
from bsconv_nas.training.augment import Augment
from bsconv_nas.training.data import Dataset
from bsconv_nas.training.guard import StridedPointwiseGuard
from bsconv_nas.training.images import Loader
from bsconv_nas.training.optimizer import optimizer
from bsconv_nas.training.recipe import Recipe, learning_rate

__all__ = ["EpochResult", "Trainer", "evaluate", "train"]

EVALUATION_BATCH = 512
CHECK_EVERY = 50  # steps between looks at the loss: each look makes a GPU wait

Checkpoint = tuple[Mapping[str, Tensor], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch gave.

    Attributes:
        epoch: from 1.
        train_loss: mean of what was minimised: smoothed cross-entropy plus penalties.
        val_loss: mean cross-entropy on the selection part, of the EMA weights if they are on.
        val_accuracy: fraction of the selection part, of the same weights.
        learning_rate: of the last step.
        seconds: of training and validation together.
        images_per_second: of training alone.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float


def train(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    resume: Checkpoint | None = None,
) -> Iterator[EpochResult]:
    """Train `model` in place and yield one result an epoch; `Trainer` gives checkpoints and the EMA weights as well.

    Raises:
        DivergedError: the loss became NaN or infinite.
        TrainingError: the model or the checkpoint does not fit.

    Example:
        for result in train(model, load(DataSpec("digits")), Recipe(epochs=5), seed=0):
            print(result.epoch, result.val_accuracy)
    """
    trainer = Trainer(model, dataset, recipe, seed=seed, device=device)
    if resume is not None:
        trainer.load_state(*resume)
    yield from trainer.epochs()


class Trainer:
    """A training that can stop after any epoch and go on elsewhere.

    Args:
        model: maps normalised images (N, C, H, W) to logits (N, num_classes); trained in place.
        dataset: with parts `train` and `selection`.
        recipe: how to train.
        seed: of the order, the augmentation and the model's own randomness, not of its initial weights.
        device: where to train.
    """

    def __init__(
        self, model: nn.Module, dataset: Dataset, recipe: Recipe, *, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.epoch = 0
        self._recipe, self._seed, self._device = recipe, seed, torch.device(device)
        self._classes = dataset.num_classes
        self._train, self._selection = (dataset.loader(part, self._device) for part in ("train", "selection"))
        self._format = torch.channels_last if recipe.channels_last in (True, "auto") else torch.contiguous_format
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=_uses_bf16(recipe, self._device))
        self._guard = StridedPointwiseGuard() if self._device.type == "cpu" else contextlib.nullcontext()
        self._model = model.to(self._device).to(memory_format=self._format)
        penalties = (getattr(module, "penalty", None) for module in model.modules())
        self._penalties: list[Callable[[], Tensor]] = [penalty for penalty in penalties if callable(penalty)]
        self._averaged = AveragedModel(model, use_buffers=True) if recipe.ema else None
        self._optimizer = optimizer(model, recipe)

    def epochs(self) -> Iterator[EpochResult]:
        """Yield the results of the epochs that are left."""
        while self.epoch < self._recipe.epochs:
            yield self.run_epoch()

    def run_epoch(self) -> EpochResult:
        """Train one epoch and validate."""
        start = time.perf_counter()
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            stream = _stream(self._seed, self.epoch)
            torch.manual_seed(stream)
            train_loss = self._pass(torch.Generator().manual_seed(stream))
        trained = time.perf_counter()
        with self._autocast:
            val_loss, val_accuracy = _evaluate(self._validated, self._selection, EVALUATION_BATCH, self._classes)
        self.epoch += 1
        _refuse_divergence(self.epoch, val_loss)
        rate = self._optimizer.param_groups[0]["lr"]
        speed = len(self._train) / (trained - start)
        return EpochResult(self.epoch, train_loss, val_loss, val_accuracy, rate, time.perf_counter() - start, speed)

    def _pass(self, generator: torch.Generator) -> float:
        """Return the mean loss of one pass over the train part."""
        recipe, count = self._recipe, len(self._train)
        steps = -(-count // recipe.batch_size)
        augment = Augment(recipe.flip, recipe.crop, recipe.cutout)
        total = torch.zeros((), device=self._device)
        self._model.train()
        for step, (images, labels) in enumerate(self._train.batches(recipe.batch_size, generator, augment)):
            # The middle of the step: the first rate of a warm-up and the last of a cosine are not wasted on zero.
            self._set_rate(learning_rate(recipe, self.epoch + (step + 0.5) / steps))
            total += self._step(images, labels) * len(labels)
            if step % CHECK_EVERY == 0 or step == steps - 1:
                _refuse_divergence(self.epoch + 1, total.item())
        return total.item() / count

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step and return its loss, without gradient."""
        with self._guard, self._autocast:
            answer = self._model(images.to(memory_format=self._format))
        loss = self._cross_entropy(answer, labels)
        for penalty in self._penalties:
            loss = loss + penalty()
        self._optimizer.zero_grad()
        with self._guard:  # checkpointed activations are computed again
            loss.backward()
        if self._recipe.clip:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip)
        self._optimizer.step()
        self._average()
        return loss.detach()

    def _cross_entropy(self, logits: Any, labels: Tensor) -> Tensor:
        _check_logits(logits, len(labels), self._classes)
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self._recipe.label_smoothing)

    def _average(self) -> None:
        """Move the EMA weights, faster in the first steps so that short trainings profit too.

        The decay is min(decay, (1 + n) / (10 + n)) after n steps, as in TensorFlow's ExponentialMovingAverage.
        """
        if self._averaged is None:
            return
        steps = float(self._averaged.n_averaged)
        self._averaged.multi_avg_fn = get_ema_multi_avg_fn(min(self._recipe.ema, (1 + steps) / (10 + steps)))
        self._averaged.update_parameters(self._model)

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    @property
    def _validated(self) -> nn.Module:
        """The module whose accuracy counts."""
        return self._model if self._averaged is None else self._averaged.module

    def final_model(self) -> nn.Module:
        """Return a copy of the network to keep: EMA weights if on, in eval mode, on the CPU, in contiguous layout."""
        return copy.deepcopy(self._validated).cpu().to(memory_format=torch.contiguous_format).eval()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of all tensors (contiguous, on the CPU) and the plain values that continue this training."""
        tensors = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self._tensors().items()
        }
        return tensors, {"epoch": self.epoch, "seed": self._seed}

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            TrainingError: the state is of another network, recipe or seed.
        """
        own = self._tensors()
        odd = own.keys() ^ tensors.keys() or {name for name in own if own[name].shape != tensors[name].shape}
        if odd:
            raise TrainingError(
                f"A checkpoint must be of the same network and recipe, but this one differs in {len(odd)} tensors, "
                f"first {min(odd)!r}: resume with the network and recipe that wrote it."
            )
        if meta.get("seed") != self._seed:
            raise TrainingError(
                f"A checkpoint must be resumed with the seed that wrote it, but seed {self._seed} met {dict(meta)}."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self.epoch = meta["epoch"]

    def _tensors(self) -> dict[str, Tensor]:
        """Return every live tensor that the next step depends on."""
        tensors = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        if self._averaged is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self._averaged.state_dict().items()}
        for name, parameter in self._model.named_parameters():
            for kind, tensor in self._optimizer.state[parameter].items():
                tensors[f"{kind}.{name}"] = tensor
        return tensors


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    part: str = "test",
    *,
    device: torch.device | str = "cpu",
    batch_size: int = EVALUATION_BATCH,
) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy (fraction) of `model`, in full precision, on a part of `dataset`.

    The model is left on `device`, in eval mode.

    Raises:
        DataError: the data set has no such part.
        TrainingError: the model does not answer with one logit a class.
    """
    loader = dataset.loader(part, device)
    return _evaluate(model.to(device), loader, batch_size, dataset.num_classes)


@torch.inference_mode()
def _evaluate(model: nn.Module, loader: Loader, batch_size: int, classes: int) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy; one wait for the device in all."""
    model.eval()
    sums: list[Tensor] = []
    for images, labels in loader.batches(batch_size):
        logits = model(images)
        _check_logits(logits, len(labels), classes)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        sums.append(torch.stack((loss, (logits.argmax(1) == labels).sum())))
    loss_sum, correct = torch.stack(sums).sum(0).tolist()
    return loss_sum / len(loader), correct / len(loader)


def _uses_bf16(recipe: Recipe, device: torch.device) -> bool:
    return recipe.precision == "bf16" or (recipe.precision == "auto" and device.type == "cuda")


def _stream(seed: int, epoch: int) -> int:
    """Return the seed of an epoch's random numbers, unlike that of any neighbouring seed or epoch."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)


def _check_logits(logits: Tensor, count: int, classes: int) -> None:
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (count, classes):
        raise TrainingError(
            f"A model must answer {count} images with one logit a class, {(count, classes)}, but answered with "
            f"{shape or type(logits).__name__}: set its num_classes to the data's."
        )


def _refuse_divergence(epoch: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(epoch, loss)
