"""A user's own evaluation: `search.trial = "package.module:function"` instead of the built-in training.

The function gets, by keyword, what it declares of

- `architecture`: the network to evaluate, an index a dimension; `space.describe(architecture)` names its options
- `space`: the `bsconv_nas.SearchSpace`; `space.build(architecture, seed)` is the network as a plain module
- `epochs`: the budget, `recipe.epochs` of the experiment
- `seed`: of this network's trial; the same seed should give the same metrics
- `device`: where to train, `cuda` or `cpu`
- `data`: the `bsconv_nas.training.data.Dataset` of `[data]`, or None where the experiment has no such section
- `checkpoint`: a `Checkpoint`, from which a trial goes on that was broken off; without it such a trial begins anew

and the parameters beside `search.trial.name`. It yields one dict of metrics after each epoch: numbers, the measured
objectives among them. It may end before its budget, but not go on behind it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.analytic import ALL_COLUMNS
from bsconv_nas.errors import ExperimentError, TrainingError
from bsconv_nas.search.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from bsconv_nas.search.experiment import NOT_METRICS, Search
from bsconv_nas.training.sources import user_function

if TYPE_CHECKING:
    from bsconv_nas.search.trial import Job, Metrics, Task

__all__ = ["Checkpoint", "OwnTrial", "own_trial"]

GIVEN = ("architecture", "space", "epochs", "seed", "device", "data", "checkpoint")


class Checkpoint:
    """What a trial that was broken off goes on from; a function that asks for one begins behind `epochs`.

    The optimizer's state as such a flat dict is what `torch.distributed.checkpoint.state_dict.get_state_dict` returns
    with `StateDictOptions(flatten_optimizer_state_dict=True)`.

    Attributes:
        epochs: how many the trial has finished; none in a new one.

    >>> checkpoint = Checkpoint("no folder yet")
    >>> checkpoint.epochs, checkpoint.load()
    (0, {})
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder, self.epochs = folder, 0
        self._values: dict[str, Any] = {}
        self._metrics: Metrics = {}
        self._saved = False
        if has_checkpoint(folder):
            tensors, meta = load_checkpoint(folder)
            self.epochs, self._metrics = meta["epochs"], meta["metrics"]
            self._values = {**tensors, **meta["values"]}

    def load(self) -> dict[str, Any]:
        """Return what was saved, tensors on the CPU; nothing in a new trial."""
        return dict(self._values)

    def save(self, values: Mapping[str, Any]) -> None:
        """Keep tensors and JSON values by name; they are written with the metrics that are yielded next."""
        self._values, self._saved = dict(values), True

    def ahead(self, epochs: int) -> Iterator[tuple[int, Metrics]]:
        """Yield the epoch that was written, but not reported before the trial was broken off."""
        if self.epochs > epochs:
            yield self.epochs, self._metrics

    def write(self, epoch: int, metrics: Metrics) -> None:
        """Write what was saved in an epoch, if anything was."""
        if not self._saved:
            return
        from torch import Tensor

        tensors = {name: value for name, value in self._values.items() if isinstance(value, Tensor)}
        values = {name: value for name, value in self._values.items() if name not in tensors}
        try:
            json.dumps(values)
        except (TypeError, ValueError) as error:
            raise TrainingError(f"checkpoint.save must get tensors and JSON values by name, but: {error}.") from None
        save_checkpoint(self._folder, tensors, {"epochs": epoch, "metrics": metrics, "values": values})
        self._saved = False


@dataclass(frozen=True, slots=True)
class OwnTrial:
    """A trial function that asks the user's; it travels to the workers as a name.

    Attributes:
        name: `package.module:function`.
        params: the function's own parameters.
        objectives: metrics that every epoch must have.
    """

    name: str
    params: Mapping[str, Any]
    objectives: tuple[str, ...]

    def __call__(self, task: Task, job: Job) -> Iterator[tuple[int, Metrics]]:
        """Yield (epoch, metrics) from the first epoch on, or from the one behind the checkpoint.

        Raises:
            TrainingError: no dict, too many or none, one without an objective, or a value that is no number.
        """
        checkpoint = Checkpoint(job.checkpoint)
        yield from checkpoint.ahead(job.epochs)
        epochs, epoch = task.recipe.epochs, checkpoint.epochs
        taken = NOT_METRICS.union(ALL_COLUMNS, task.table.names)
        found = _guarded(self._begun(task, job, checkpoint))
        for said in found:
            epoch += 1
            metrics = self._metrics(epoch, said, taken)
            checkpoint.write(epoch, metrics)
            if epoch == epochs and next(found, None) is not None:
                raise self._refusal(f"at most {epochs} dicts (recipe.epochs)", "yielded another: stop after `epochs`")
            yield epoch, metrics
        if not epoch:
            raise self._refusal("a dict of metrics an epoch", "yielded nothing: yield at least one")

    def _begun(self, task: Task, job: Job, checkpoint: Checkpoint) -> Iterator[Any]:
        """Yield what the user's function answers."""
        space = SearchSpace(task.base, task.table)
        values = (job.architecture, space, task.recipe.epochs, job.seed, task.device, task.dataset, checkpoint)
        function = user_function(self.name, "search.trial", ExperimentError)
        made = function(**_chosen(function, dict(zip(GIVEN, values, strict=True))), **self.params)
        if isinstance(made, Mapping) or not isinstance(made, Iterable):
            raise self._refusal("a dict of metrics an epoch", f"returned {made!r:.60}: yield the dicts, with `yield`")
        yield from made

    def _metrics(self, epoch: int, said: Any, taken: frozenset[str]) -> Metrics:
        """Return the metrics of an epoch as numbers of the record."""
        if not isinstance(said, Mapping) or not all(isinstance(name, str) for name in said):
            raise self._refusal("a dict of metrics by name an epoch", f"yielded {said!r:.60} in epoch {epoch}")
        if missing := [name for name in self.objectives if name not in said]:
            raise self._refusal(
                f"the objective {missing[0]!r} in every epoch",
                f"epoch {epoch} has only {', '.join(map(repr, sorted(said))) or 'an empty dict'}: add it, or name "
                "another in search.objectives",
            )
        if odd := sorted(taken & said.keys()):
            raise self._refusal("metrics by free names", f"{odd[0]!r} is a column of the record: call it otherwise")
        for name, value in said.items():
            if not isinstance(value, Real):
                kind = type(value).__name__
                raise self._refusal(
                    "numbers", f"{name!r} of epoch {epoch} is the {kind} {value!r:.60}: yield float(...) of it"
                )
        return {name: float(value) for name, value in said.items()}

    def _refusal(self, law: str, found: str) -> TrainingError:
        return TrainingError(f"search.trial {self.name!r} must yield {law}, but {found}.")


def _guarded(dicts: Iterator[Any]) -> Iterator[Any]:
    """Yield what `dicts` does, computed under the guard of the built-in training, which is off between epochs."""
    from bsconv_nas.training.guard import StridedPointwiseGuard

    end = object()
    while True:
        with StridedPointwiseGuard():
            given = next(dicts, end)
        if given is end:
            return
        yield given


def own_trial(search: Search) -> OwnTrial | None:
    """Return the trial function that an experiment names; None where it names none.

    Raises:
        ExperimentError: a function that cannot be imported, or that cannot be called with what it gets.
    """
    if search.trial is None:
        return None
    name, params = search.trial.name, search.trial.params
    function = user_function(name, "search.trial", ExperimentError)
    try:
        if given := sorted(params.keys() & GIVEN):
            raise TypeError(f"{given[0]!r} is the search's to give")
        inspect.signature(function).bind(**dict.fromkeys((*_chosen(function, dict.fromkeys(GIVEN)), *params)))
    except (TypeError, ValueError) as error:  # ValueError: a callable that tells no signature
        raise ExperimentError(
            f"search.trial {name!r} must be callable by keyword with what it declares of {', '.join(GIVEN)} and with "
            f"the parameters beside its name ({', '.join(params) or 'none'}), but: {error}."
        ) from None
    return OwnTrial(name, params, tuple(o.name for o in search.objectives if o.name not in ALL_COLUMNS))


def _chosen(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a function declares of `given`; all of it where it takes any keyword."""
    declared = inspect.signature(function).parameters
    whole = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in declared.values())
    return {name: value for name, value in given.items() if whole or name in declared}
