"""A run folder: everything that is known about a run, readable without the machine that wrote it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from bsconv_nas.errors import BsconvNasError, RecordError
from bsconv_nas.search.checkpoint import prune_checkpoints
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.record import Event, Kind, Record, event_from_json, event_to_json
from bsconv_nas.search.storage import below, reason
from bsconv_nas.training.laws import is_number

__all__ = ["Store", "kept"]

_EXPERIMENT, _SPACE, _ENVIRONMENT, _TRIALS = "experiment.json", "space.json", "environment.json", "trials.jsonl"


class Store:
    """One run folder.

    `experiment.json`, `space.json` and `environment.json` are written once, as is `base.json`, by which the base is
    known again (older runs lack it). `trials.jsonl` grows by one event a line and is the only source of truth; a line
    counts once its newline is on disk, so a killed driver leaves at most a torn tail, which the next driver cuts off.
    `checkpoints/`, `export/`, `optuna.log` and `report.html` follow from it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: int | None = None

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        experiment: Experiment,
        space: Mapping[str, Any],
        environment: Mapping[str, Any],
        more: Iterable[Callable[[Path], None]] = (),
    ) -> Store:
        """Make a run folder, whole or not at all.

        Args:
            path: a new or empty folder; None takes the next free `runs/<experiment>-<n>`.
            experiment: what is going to run; in a storage that it names, the run gets a place of its own.
            space: JSON values of the base and the table.
            environment: JSON values.
            more: each called with the folder before it is moved to its place; they write what else belongs into it.

        Raises:
            RecordError: the folder holds something, or cannot be written.
        """
        cls.check_free(path)
        experiment = _with_own_storage(experiment)
        places = _numbered(experiment.name) if path is None else iter((Path(path),))
        with _draft(_parent(path), experiment, {_SPACE: space, _ENVIRONMENT: environment}) as draft:
            for write in more:
                write(draft)
            for place in places:
                if _moved(draft, place):
                    return cls(place)
        raise _taken(place)

    @staticmethod
    def check_free(path: str | Path | None) -> None:
        """Refuse a path at which `create` cannot make a run folder, as far as looking tells.

        Raises:
            RecordError: something lies there, or no folder can be made there.
        """
        if path is not None and Path(path).absolute() == Path.cwd():
            raise RecordError("A run folder must not be the current folder: name a new one.")
        if path is not None and _is_taken(Path(path)):
            raise _taken(Path(path))
        parent = _parent(path)
        nearest = next(folder for folder in (parent, *parent.absolute().parents) if folder.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            reason = os.strerror(errno.EACCES if nearest.is_dir() else errno.ENOTDIR)
            raise RecordError(f"Folder {str(parent)!r} must take a new run, but: {reason}.")

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Return the run in `path`, be it finished, interrupted or going on.

        Raises:
            RecordError: no such folder, or one that lacks a piece or holds it damaged.
        """
        store = cls(path)
        if not store.path.is_dir():
            raise RecordError(f"No run folder {str(path)!r}: check the path.")
        for name in (_EXPERIMENT, _SPACE, _ENVIRONMENT, _TRIALS):
            if not (store.path / name).is_file():
                raise RecordError(
                    f"A run folder must hold {name!r}, but {str(path)!r} does not: it is no run or damaged."
                )
        _ = store.experiment, store.space, store.environment
        return store

    @property
    def name(self) -> str:
        """The run's name, its folder's."""
        return self.path.absolute().name

    @property
    def experiment(self) -> Experiment:
        """What was asked for."""
        try:
            return Experiment.from_json(self._json(_EXPERIMENT), self.path)
        except BsconvNasError as error:
            raise RecordError(f"In run folder {str(self.path)!r}: {error}") from None

    @property
    def space(self) -> dict[str, Any]:
        """The base and the table as they were searched."""
        return self._json(_SPACE)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device and commit."""
        data = self._json(_ENVIRONMENT)
        if not _are_facts(data.get("data", {})):
            raise RecordError(
                f"'data' in {str(self.path / _ENVIRONMENT)!r} must be what a search writes: it is damaged."
            )
        return data

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as reason:
            raise RecordError(f"{str(path)!r} must be a JSON file, but: {reason}.") from None
        if not isinstance(data, dict):
            raise RecordError(f"{str(path)!r} must hold a JSON object, but holds {type(data).__name__} {data!r:.40}.")
        return data

    def record(self) -> Record:
        """Return the fold over all events on disk.

        Raises:
            RecordError: a line that is no event of this version, by its number.
        """
        path = self.path / _TRIALS
        record = Record()
        whole = path.read_bytes().split(b"\n")[:-1]
        for number, line in enumerate(whole, 1):
            try:
                record.add(event_from_json(_row(line)))
            except RecordError as error:
                raise RecordError(f"Line {number} of {str(path)!r} is damaged: {error}") from None
        return record

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the run's one driver for the length of a `with` block; the system releases it with the process.

        Raises:
            RecordError: another process drives this run.
        """
        file = _claim(self.path / _TRIALS)
        try:
            os.ftruncate(file, (self.path / _TRIALS).read_bytes().rfind(b"\n") + 1)
            self._file = file
            yield
        finally:
            self._file = None
            os.close(file)

    def append(self, event: Event) -> Event:
        """Write one event to the disk, inside `lock`, and return it with its time.

        A write that fails, for instance on a full disk, leaves no torn line behind.
        """
        return self.extend([event])[0]

    def extend(self, events: Iterable[Event]) -> list[Event]:
        """Write events to the disk, as `append` does each; one wait for the disk is enough for all."""
        assert self._file is not None, "append needs lock()"
        stamped = [event if event.time else dataclasses.replace(event, time=time.time()) for event in events]
        lines = [json.dumps(event_to_json(event), separators=(",", ":")).encode() + b"\n" for event in stamped]
        end = os.fstat(self._file).st_size
        with self.writing():
            try:
                _write(self._file, b"".join(lines))
            except OSError:
                os.ftruncate(self._file, end)
                raise
        return stamped

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write to the run's folder inside a `with` block.

        Raises:
            RecordError: the system refuses, for instance because the disk is full.
        """
        try:
            yield
        except OSError as error:
            raise RecordError(
                f"Run folder {str(self.path)!r} must be writable, but: {reason(error)}; what it holds is whole, make "
                "room and go on by bsconv-nas resume."
            ) from error

    @cached_property
    def storage(self) -> str:
        """Where the checkpoints are: in the run folder, or in the storage that the experiment names."""
        return self.experiment.resources.storage or str(self.path.absolute() / "checkpoints")

    def checkpoint(self, number: int) -> str:
        """Return where the checkpoint of trial `number` belongs."""
        return below(self.storage, str(number))

    def prune_checkpoints(self, keep: Collection[int]) -> None:
        """Delete all checkpoints but those of the trials `keep`, as given by `kept`."""
        prune_checkpoints(self.storage, {str(number) for number in keep})


def kept(record: Record, experiment: Experiment) -> set[int]:
    """Return the trials whose checkpoints stay: running, on the front, and retrained."""
    running = (record.numbers(kind, "running") for kind in get_args(Kind))
    front = record.front(experiment.search.objectives)
    return record.numbers("retrain", "complete").union(front, *running)


def _with_own_storage(experiment: Experiment) -> Experiment:
    """Return an experiment whose storage no other run has: what lay there would be taken for its checkpoints."""
    if experiment.resources.storage is None:
        return experiment
    own = below(experiment.resources.storage, f"{experiment.name}-{secrets.token_hex(4)}")
    return experiment.with_resources(storage=own)


def _claim(path: Path) -> int:
    """Return `path` opened for appending and locked for this process; a lock ends with the process that holds it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except OSError as error:
        raise RecordError(f"{str(path)!r} must be writable, but: {error.strerror}.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise RecordError(
            f"A run must have one driver, but another process is driving {str(path.parent)!r}: wait for its end."
        ) from None
    return file


def _are_facts(data: object) -> bool:
    """Return whether something can be what a search writes of its data, as far as it is read."""
    if not isinstance(data, dict) or not isinstance(data.get("counts", {}), dict):
        return False
    lists = [data.get(name, []) for name in ("mean", "std")]
    return all(isinstance(values, list) and all(map(is_number, values)) for values in lists)


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"an event must be a JSON object, but: {error}.") from None
    if not isinstance(row, dict):
        raise RecordError(f"an event must be a JSON object, but got {row!r:.40}.")
    return row


def _parent(path: str | Path | None) -> Path:
    """Return the folder of a new run, which is `runs` where no path is named."""
    return Path("runs") if path is None else Path(path).absolute().parent


def _numbered(name: str) -> Iterator[Path]:
    return (_parent(None) / f"{name}-{number}" for number in itertools.count(1))


@contextlib.contextmanager
def _draft(parent: Path, experiment: Experiment, files: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    """Give a run folder in `parent` that is written whole; what is not moved away by the end is deleted."""
    draft = parent.absolute() / f".{experiment.name}.{secrets.token_hex(4)}"
    try:
        draft.mkdir(parents=True)
        for name, data in {_EXPERIMENT: experiment.to_json(draft), **files}.items():
            _write_file(draft / name, json.dumps(data, indent=1).encode() + b"\n")
        _write_file(draft / _TRIALS, b"")
        yield draft
    except OSError as error:
        raise RecordError(f"Folder {str(parent)!r} must take a new run, but: {error.strerror}.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _moved(draft: Path, place: Path) -> bool:
    """Rename `draft` to `place`, or return False if something is there; of two processes the system lets one win."""
    try:
        draft.rename(place)
    except OSError:
        if _is_taken(place):
            return False
        raise
    return True


def _is_taken(place: Path) -> bool:
    """Return whether `place` is a file or a folder with something in it."""
    return place.is_file() or (place.is_dir() and any(place.iterdir()))


def _taken(place: Path) -> RecordError:
    """Return the refusal of a place that holds something, by its first name."""
    first = min(item.name for item in place.iterdir()) if place.is_dir() else place.name
    holds = "a run" if (place / _EXPERIMENT).is_file() else repr(first)
    return RecordError(f"A run folder must be new or empty, but {str(place)!r} holds {holds}: choose another --run.")


def _write_file(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(file, data)
    finally:
        os.close(file)


def _write(file: int, data: bytes) -> None:
    """Write all of `data` and wait until the disk has it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)
