"""A Ray cluster for the length of a search: started here or joined, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

# Read when Ray is imported, so this module is the first of the search to do it: dead workers are the record's matter.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed")

import ray
from ray.exceptions import AuthenticationError

from bsconv_nas.errors import SearchError
from bsconv_nas.search.address import check_address
from bsconv_nas.search.experiment import Resources

__all__ = ["concurrency", "connected"]

# Ray caches the token of a process, so all clusters that one process starts share it.
_TOKEN = secrets.token_hex(32)
OBJECT_STORE = 128 * 2**20  # bytes, beside the data
SOCKET_ROOM = 70  # bytes that Ray appends to its temporary folder in socket paths, which end at 107
PREFIX = "bsn-"  # of scratch folders; a short one, for the sockets
LOCK = "lock"  # in a scratch folder, held while its session lives
PATIENCE = 5.0  # seconds for Ray's last processes to end by themselves
MARK = "BSCONV_NAS_SCRATCH"  # in the environment of every process of a session


@contextlib.contextmanager
def connected(resources: Resources, data_bytes: int, address: str | None = None) -> Iterator[Path]:
    """Be connected to Ray inside a `with` block, which gets a scratch folder that is removed at its end.

    A session that was killed could not remove its own; the next one does.

    Args:
        resources: what a local cluster must offer.
        data_bytes: what the trials share.
        address: of a running cluster (`auto` or `HOST:PORT`); None starts one here and stops it in the end. A process
            that is connected already stays so.

    Raises:
        SearchError: the cluster cannot be reached, or cannot run one trial.
    """
    _sweep(Path(_short_folder() or tempfile.gettempdir()))
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_short_folder()))
    with _claimed(scratch):
        try:
            with _environment(_settings(scratch) | ({} if address else _token(scratch))):
                yield from _session(resources, data_bytes, address, scratch)
        finally:
            _remove(scratch)


def _session(resources: Resources, data_bytes: int, address: str | None, scratch: Path) -> Iterator[Path]:
    if ray.is_initialized():
        yield scratch
        return
    try:
        if address is None:
            _start(resources, data_bytes, scratch)
        else:
            _join(address)
        yield scratch
    finally:
        ray.shutdown()


def _start(resources: Resources, data_bytes: int, scratch: Path) -> None:
    ray.init(
        address="local",  # whatever $RAY_ADDRESS says
        num_cpus=math.ceil(resources.workers * resources.cpus_per_trial),
        num_gpus=None if resources.gpus_per_trial else 0,
        object_store_memory=OBJECT_STORE + 2 * data_bytes,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(scratch),
    )


def _join(address: str) -> None:
    """Connect to a running cluster, whose workers learn by their environment what this process can import."""
    check_address(address)
    importable = os.pathsep.join((os.environ["PYTHONPATH"], "${PYTHONPATH}"))
    try:
        with _silent_stderr():
            ray.init(
                address=address,
                runtime_env={"env_vars": {"PYTHONPATH": importable}},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        said = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
        raise SearchError(
            f"A Ray cluster must take this process in at --address {address!r}, but Ray says {said!r}: start one of "
            "this version, or hand over its token by RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
        ) from None


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep a line a second of Ray's native half away from the user: what it means is raised in the end."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def concurrency(resources: Resources) -> int:
    """Return how many trials the connected cluster can run at a time, at most `resources.workers`.

    Raises:
        SearchError: not one.
    """
    wanted = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    there: Mapping[str, float] = ray.cluster_resources()
    for kind, amount in wanted.items():
        if there.get(kind, 0) < amount:
            raise SearchError(
                f"A trial needs {amount:g} {kind} (resources.{kind.lower()}s_per_trial), but the Ray cluster has "
                f"{there.get(kind, 0):g}: ask for less."
            )
    fitting = [int(there[kind] / amount + 1e-9) for kind, amount in wanted.items() if amount]
    return min(resources.workers, *fitting)


def _settings(scratch: Path) -> dict[str, str]:
    """Return the environment that keeps Ray quiet, and its files inside `scratch`."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        MARK: str(scratch),
        "PYTHONPATH": _importable(),
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }


def _token(scratch: Path) -> dict[str, str]:
    """Return the environment that lets this user alone into a cluster of ours; a running one has its own token."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"}:
        return {}
    token = scratch / "token"
    token.touch(mode=0o600)
    token.write_text(_TOKEN)
    return {"RAY_AUTH_TOKEN_PATH": str(token)}


def _importable() -> str:
    """Return a PYTHONPATH with which workers import what this process can: the user's factories above all."""
    own = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
    return os.pathsep.join(dict.fromkeys(own))


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside a `with` block, and leave none behind that Ray sets on the way."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            if name in settings or name.startswith(("RAY_", "TUNE_", "PYTHONBREAKPOINT")):
                del os.environ[name]
        os.environ.update({name: before[name] for name in settings.keys() & before.keys()})


def _short_folder() -> str | None:
    """Return where scratch folders go: the system's place, or /tmp where that is too long for sockets."""
    return "/tmp" if len(tempfile.gettempdir()) + SOCKET_ROOM > 107 else None


@contextlib.contextmanager
def _claimed(scratch: Path) -> Iterator[None]:
    """Hold the lock of a scratch folder inside a `with` block."""
    fresh = scratch / f"{LOCK}.new"
    with fresh.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fresh.rename(scratch / LOCK)  # locked before it can be seen: others take a free lock for a dead session
        yield


def _sweep(folder: Path) -> None:
    """Remove the user's scratch folders in `folder` whose sessions are dead."""
    for lock in folder.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):  # held, another user's, or gone by now
            if lock.parent.is_symlink() or lock.parent.stat().st_uid != os.getuid():
                continue
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock.parent)


def _remove(scratch: Path) -> None:
    """Delete the folder of a session once its last process is gone: one that is late would make it anew."""
    deadline = time.monotonic() + PATIENCE
    while (left := _processes(scratch)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)


def _processes(scratch: Path) -> list[int]:
    """Return the processes that were started inside a session; only Linux shows them."""
    mark = f"{MARK}={scratch}\0".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found
