"""Experiment files: what to search, on which data, with which recipe, how long and inside which budget."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from bsconv_nas.cost.analytic import ALL_COLUMNS, COLUMNS, LATENCY
from bsconv_nas.cost.budget import LATENCY_MS, Budget
from bsconv_nas.errors import BsconvNasError, ExperimentError, suggest
from bsconv_nas.search.record import TRIAL_COLUMNS, Objective
from bsconv_nas.search.scheduler import compared
from bsconv_nas.space.files import read_toml, validate
from bsconv_nas.training.laws import is_number
from bsconv_nas.training.recipe import Recipe
from bsconv_nas.training.spec import DataSpec

__all__ = ["NOT_METRICS", "OBJECTIVES", "Experiment", "Latency", "Named", "Resources", "Retrain", "Search", "Train"]

OBJECTIVES = ("val_accuracy", "val_loss", "train_loss", *COLUMNS, LATENCY_MS)  # where the built-in training is used
NOT_METRICS = frozenset(TRIAL_COLUMNS) - {"val_accuracy", *COLUMNS}  # columns that the record fills by itself
_ROOT, _CHECKPOINT = ("data", "root"), ("train", "checkpoint")
_STORAGE, _TABLE = ("resources", "storage"), ("latency", "table")
_PATHS = (("space",), _ROOT, _CHECKPOINT, _STORAGE, _TABLE)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Named(_Section):
    """A name and its parameters: in the file `"tpe"`, or `{name = "asha", eta = 3}`."""

    name: str = Field(min_length=1)
    params: dict[str, JsonValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, Mapping) or "params" in value:
            return value
        named = {"name": value["name"]} if "name" in value else {}
        return {**named, "params": {key: item for key, item in value.items() if key != "name"}}

    @model_serializer
    def _write(self) -> JsonValue:
        return {"name": self.name, **self.params} if self.params else self.name


class Latency(_Section):
    """The table of measured latencies that a budget or an objective is read from; without one it is measured first.

    The other keys say how it is measured; where there is a table, it must have been measured so.
    """

    table: str | None = Field(None, min_length=1)
    processor: str | None = Field(None, min_length=1)
    device: Literal["cpu", "cuda"] | None = None
    backend: Literal["eager", "compile", "onnxruntime"] | None = None
    batch: StrictInt | None = Field(None, ge=1)
    threads: StrictInt | None = Field(None, ge=1)
    precision: Literal["fp32", "bf16"] | None = None
    channels_last: bool | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """What the table has to be measured with."""
        return self.model_dump(exclude={"table"}, exclude_none=True)

    @property
    def setting(self) -> dict[str, Any]:
        """How it is measured where there is none."""
        return self.model_dump(exclude={"table", "processor"}, exclude_none=True)


class Search(_Section):
    """Who proposes, how many networks, who trains them, who stops them early, and what counts.

    `trials` does not count the `baselines`, of which there are at most so many. `trial` is a function of the user's
    instead of the built-in training (see `own_trial`): its metrics can be objectives by any name.
    """

    trial: Named | None = None
    sampler: Named = Named(name="additive")
    trials: StrictInt = Field(24, ge=0)
    seed: StrictInt = Field(0, ge=0)
    baselines: StrictInt = Field(12, ge=0)
    scheduler: Named = Named(name="none")
    objectives: tuple[Objective, ...] = Field((Objective("val_accuracy", "max"),), min_length=1)

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: tuple[Objective, ...], info: ValidationInfo) -> tuple[Objective, ...]:
        value = tuple(Objective(LATENCY, o.direction) if o.name == LATENCY_MS else o for o in value)
        names, own = [objective.name for objective in value], info.data.get("trial") is not None
        known = set(names) - NOT_METRICS if own else {*OBJECTIVES, LATENCY}
        if len(set(names)) < len(names) or not set(names) <= known:
            law = f"other than {_listed(sorted(NOT_METRICS))}" if own else f"of {_listed(OBJECTIVES)}"
            raise ValueError(f"objectives must be distinct names {law}")
        return value

    @property
    def measured(self) -> Objective:
        """What networks are ranked by: validation accuracy, or the first objective of an own trial that is no cost."""
        return compared(() if self.trial is None else self.objectives, ALL_COLUMNS)[0]


class Train(_Section):
    """What a candidate starts from: `random` weights, or those it can `inherit` from a trained base.

    `checkpoint` is the base's weights (.safetensors, .pt, .pth); so many `images` of the train part serve to take the
    statistics of the norms anew.
    """

    init: Literal["random", "inherit"] = "random"
    checkpoint: str | None = Field(None, min_length=1)
    images: StrictInt = Field(2048, ge=1)

    @model_validator(mode="after")
    def _agree(self) -> Train:
        if (self.init == "inherit") != (self.checkpoint is not None):
            raise ValueError('init = "inherit" and a checkpoint go together: give both or none')
        return self


class Resources(_Section):
    """How many trials run at a time, and what each gets: CPUs, a fraction of a GPU, time [min].

    `auto` is the fraction of a GPU that a measured training step suggests, or none where there is no GPU. Checkpoints
    go to the run folder, or to a `storage`: another folder, or a URI such as `s3://bucket/runs`.
    """

    workers: StrictInt = Field(1, ge=1, le=10_000)
    cpus_per_trial: StrictFloat = Field(1.0, gt=0, le=1024)
    gpus_per_trial: StrictFloat | Literal["auto"] = "auto"
    timeout_minutes: StrictFloat | None = Field(None, gt=0)
    storage: str | None = Field(None, min_length=1)

    @field_validator("gpus_per_trial", mode="before")
    @classmethod
    def _share(cls, value: object) -> object:
        if value != "auto" and not (is_number(value) and value >= 0):
            raise ValueError("it must be a number of at least 0, or 'auto'")
        return value

    @field_validator("storage")
    @classmethod
    def _without_secrets(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and urlsplit(value).username:
            raise ValueError(
                "storage must hold no key, because the record keeps it: hand keys over by the environment, such as "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return value


class Retrain(_Section):
    """How finalists are trained: `members` of the front, `seeds` times each, `recipe` on top of the search's."""

    seeds: StrictInt = Field(5, ge=1)
    members: StrictInt = Field(3, ge=1)
    recipe: dict[str, JsonValue] = {}


class Experiment(_Section):
    """A file of `experiments/`.

    An own trial takes `recipe.epochs` as its budget of epochs. Its `data` are loaded only if the file has them.
    Paths are absolute once loaded. The record keeps the file names of the space, the latency table and the checkpoint,
    which are recorded themselves, and the root relative to the run folder if the file had it relative to itself; so the
    storage, which is recorded as it is otherwise.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$")
    space: str = Field(min_length=1)
    data: DataSpec = DataSpec()
    recipe: Recipe = Recipe()
    search: Search = Search()
    budget: dict[str, JsonValue] = {}
    latency: Latency = Latency()
    train: Train = Train()
    resources: Resources = Resources()
    retrain: Retrain = Retrain()
    _relative: frozenset[tuple[str, ...]] = PrivateAttr(frozenset())

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
        """Return the experiment of a TOML file, named as its file unless it says otherwise.

        Args:
            path: the file.
            overrides: `a.b=value` each, the value as in TOML; a bare word is a string. Paths in them are relative to
                the current folder, those of the file to the file.

        Raises:
            ExperimentError: no such file, malformed TOML, an unknown key or a value outside its law.
            BudgetError: a malformed budget.
        """
        path = Path(path)
        try:
            return cls._read(path, overrides, str(path))
        except BsconvNasError as error:
            guilty = cls._guilty(path, overrides, str(error))
            if guilty is None:
                raise
        return cls._read(path, overrides, f"{path} --set {guilty}")

    @classmethod
    def _read(cls, path: Path, overrides: Sequence[str], where: str) -> Experiment:
        """Return the experiment of a file, called `where`, under `overrides`."""
        raw = {"name": path.stem, **read_toml(path, ExperimentError)}
        for text in overrides:
            _override(raw, text, path.parent)
        return cls._resolve(raw, path.parent, where)

    @classmethod
    def _guilty(cls, path: Path, overrides: Sequence[str], sentence: str) -> str | None:
        """Return the override by which a refusal comes, the first that brings it about; None if the file does alone."""
        for count in range(len(overrides) + 1):
            try:
                cls._read(path, overrides[:count], str(path))
            except BsconvNasError as error:
                if str(error) == sentence:
                    return overrides[count - 1] if count else None
        return None

    @classmethod
    def from_json(cls, data: Mapping[str, Any], folder: str | Path = ".") -> Experiment:
        """Return the experiment that `to_json` wrote for a file in `folder`.

        Raises:
            ExperimentError: a key or value that this version does not write.
        """
        return cls._resolve({key: _copy(value) for key, value in data.items()}, Path(folder), "experiment.json")

    @classmethod
    def _resolve(cls, raw: dict[str, Any], folder: Path, where: str) -> Experiment:
        """Return the experiment whose parsed file, called `where`, lies in `folder`."""
        relative = _absolute_paths(raw, folder)
        for section, kind in (("data", DataSpec), ("recipe", Recipe)):
            if section in raw:
                raw[section] = _build(kind, raw[section], section, where)
        experiment = validate(cls, raw, where, ExperimentError)
        experiment._relative = relative
        with _placed("budget", where):
            Budget(**experiment.budget)
        experiment._check_own_trial(where)
        _build(Recipe, experiment._retrained(), "retrain.recipe", where)
        return experiment

    def _check_own_trial(self, where: str) -> None:
        """Refuse settings of the built-in training that an own trial would not follow."""
        if (trial := self.search.trial) is None:
            return
        other = [f.name for f in dataclasses.fields(Recipe) if getattr(self.recipe, f.name) != f.default]
        idle = [f"recipe.{name}" for name in other if name != "epochs"] + ["train"] * (self.train != Train())
        if idle:
            raise ExperimentError(
                f"In {where!r}, search.trial {trial.name!r} takes recipe.epochs alone, but {idle[0]} is set: leave it "
                "out, or give the function parameters of its own beside search.trial.name."
            )

    @property
    def images(self) -> DataSpec | None:
        """The data to load; None for an own trial whose file names none."""
        return None if self.search.trial is not None and "data" not in self.model_fields_set else self.data

    @property
    def asks_latency(self) -> bool:
        """Whether the budget or an objective is a latency, or a table is named to be shown beside them."""
        goals = {goal.name for goal in self.search.objectives}
        return LATENCY_MS in self.budget or LATENCY in goals or self.latency.table is not None

    def _retrained(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.recipe), **self.retrain.recipe}

    @property
    def retrain_recipe(self) -> Recipe:
        """The recipe with the overrides of `[retrain.recipe]`."""
        return Recipe(**self._retrained())

    def with_resources(self, **changes: Any) -> Experiment:
        """Return the experiment with other resources."""
        changed = self.model_copy(update={"resources": self.resources.model_copy(update=changes)})
        changed._relative = self._relative
        return changed

    def to_json(self, folder: str | Path = ".") -> dict[str, Any]:
        """Return plain values for a file in `folder`; no absolute path is among them."""
        data = self.model_dump(mode="json", exclude={"data"} if self.images is None else None)
        root = self.data.root
        if root is not None:
            relative = _ROOT in self._relative or not Path(root).is_absolute()
            data["data"]["root"] = Path(os.path.relpath(root, folder)).as_posix() if relative else None
        storage = self.resources.storage
        if storage is not None and _STORAGE in self._relative:
            data["resources"]["storage"] = Path(os.path.relpath(storage, folder)).as_posix()
        data["space"] = Path(self.space).name
        if self.latency.table is not None:
            data["latency"]["table"] = Path(self.latency.table).name
        if self.train.checkpoint is not None:
            data["train"]["checkpoint"] = Path(self.train.checkpoint).name
        return data


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _absolute_paths(raw: dict[str, Any], folder: Path) -> frozenset[tuple[str, ...]]:
    """Make the paths of a parsed file absolute in place and return the keys of those that were relative."""
    relative = set()
    for key in _PATHS:
        table: Any = raw
        for part in key[:-1]:
            table = table.get(part) if isinstance(table, dict) else None
        value = table.get(key[-1]) if isinstance(table, dict) else None
        if isinstance(value, str) and value and "://" not in value:
            path = Path(value).expanduser()
            table[key[-1]] = os.path.normpath(folder.absolute() / path)
            if not path.is_absolute():
                relative.add(key)
    return frozenset(relative)


def _build(kind: type[DataSpec] | type[Recipe], value: Any, section: str, where: str) -> DataSpec | Recipe:
    """Return the table `[section]` as the training room's dataclass, which knows its own laws."""
    if not isinstance(value, Mapping):
        raise ExperimentError(f"Key {section!r} in {where!r} must be a table, but got {value!r}.")
    known = [field.name for field in dataclasses.fields(kind)]
    for key in value:
        if key not in known:
            raise ExperimentError(f"Unknown key '{section}.{key}' in {where!r}: {suggest(key, known)}.")
    with _placed(section, where):
        return kind(**value)


@contextlib.contextmanager
def _placed(section: str, where: str) -> Iterator[None]:
    """Put the place in front of what another room refuses."""
    try:
        yield
    except BsconvNasError as error:
        raise type(error)(f"In [{section}] of {where!r}: {error}") from None


def _override(raw: dict[str, Any], text: str, folder: Path) -> None:
    """Set one `a.b=value` in the parsed file in place; a path is turned relative to the file's `folder`."""
    key, separator, written = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not separator or not all(parts):
        raise ExperimentError(f"An override must read key=value, such as search.seed=1, but got {text!r}.")
    table = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ExperimentError(f"The override {text!r} needs the table {part!r}, but the file has {table!r} there.")
    value = _value(written.strip())
    is_path = parts in _PATHS and isinstance(value, str) and value and "://" not in value
    if is_path and not Path(value).expanduser().is_absolute():
        value = os.path.relpath(value, folder)
    table[parts[-1]] = value


def _value(text: str) -> Any:
    """Return `text` as a TOML value, or as the bare string that it is otherwise.

    >>> _value("1e-3"), _value("[1, 2]"), _value("tpe"), _value("40M")
    (0.001, [1, 2], 'tpe', '40M')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
