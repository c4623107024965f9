"""A Ray cluster for the length of a search: started here or joined, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import platform
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

# Read when Ray is imported, so this module is the first of the search to do it: deaths are the record's matter.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX", "^(A worker died or was killed|The node with node id|Raylet is terminated)"
)

import ray
from ray.exceptions import AuthenticationError

from bsconv_nas.errors import SearchError
from bsconv_nas.search.address import check_address
from bsconv_nas.search.experiment import Resources

__all__ = ["concurrency", "connected", "fitting", "living_nodes", "room", "sweep"]

# Ray caches the token of a process, so all clusters that one process starts share it.
_TOKEN = secrets.token_hex(32)
OBJECT_STORE = 128 * 2**20  # bytes, beside the data
SOCKET_ROOM = 70  # bytes that Ray appends to its temporary folder in socket paths, which end at 107
PREFIX = "bsn-"  # of scratch folders; a short one, for the sockets
LOCK = "lock"  # in a scratch folder, held while its session lives
PATIENCE = 5.0  # seconds for Ray's last processes to end by themselves
QUIET = 0.15  # seconds without one: a process that has just been started shows no environment for a moment
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
    sweep()
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_short_folder()))
    with _claimed(scratch):
        try:
            with _environment(_settings(scratch) | ({} if address else _token(scratch))):
                yield from _session(resources, data_bytes, address, scratch)
        finally:
            try:
                _remove(scratch)
            except KeyboardInterrupt:
                _remove(scratch, patience=0.0)
                raise


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
        with _interrupts_later():
            ray.shutdown()


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold a Ctrl-C back until the end of a `with` block.

    A shutdown that is broken off leaves Ray's native half, which ends this process once it finds that its node is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)


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
    with tempfile.TemporaryFile() as aside:
        try:
            with _stderr_into(aside):
                ray.init(
                    address=address,
                    runtime_env={"env_vars": {"PYTHONPATH": importable}},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, RuntimeError, AuthenticationError) as error:
            aside.seek(0)
            raise _refusal(address, error, aside.read()) from None


def _refusal(address: str, error: Exception, aside: bytes) -> SearchError:
    """Return why a cluster does not take this process in; what matters may be in what Ray's native half printed."""
    if isinstance(error, AuthenticationError) or b"Unauthenticated" in aside:
        handed = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        what = "refuses the one" if handed and b"Unauthenticated" in aside else "got none"
        return SearchError(
            f"The Ray cluster at --address {address!r} must be given its token, but {what} of this process: set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds it; `ray get-auth-token` prints it on "
            "the cluster's head."
        )
    said = " ".join(str(error).split())[:300].rstrip(".")
    return SearchError(
        f"A Ray cluster must take this process in at --address {address!r}, but Ray says {said!r}: start one of "
        f"Ray {ray.__version__}, Python {platform.python_version()}."
    )


@contextlib.contextmanager
def _stderr_into(file: IO[bytes]) -> Iterator[None]:
    """Keep what Ray's native half prints away from the user, a line a second: what it means is raised in the end."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
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
    if places := room(resources):
        return places
    nodes = living_nodes()
    for kind, amount in _wanted(resources).items():
        most = max((node["Resources"].get(kind, 0) for node in nodes), default=0)
        if most < amount:
            raise SearchError(
                f"A trial needs {amount:g} {kind} (resources.{kind.lower()}s_per_trial), but no node of the Ray "
                f"cluster has more than {most:g}: ask for less, or start nodes that have it."
            )
    raise SearchError(
        "A trial needs its CPUs and GPUs on one node of the Ray cluster, but none has "
        f"{resources.cpus_per_trial:g} CPU and {resources.gpus_per_trial} GPU: ask for less."
    )


def room(resources: Resources) -> int:
    """Return how many trials the nodes that live have room for, at most `resources.workers`; it may be none."""
    return min(resources.workers, sum(fitting(node, resources) for node in living_nodes()))


def living_nodes() -> list[dict[str, Any]]:
    """Return what Ray tells of the nodes of the connected cluster that live."""
    return [node for node in ray.nodes() if node["Alive"]]


def fitting(node: Mapping[str, Any], resources: Resources) -> int:
    """Return how many trials fit on a node."""
    return min(int(node["Resources"].get(kind, 0) / amount + 1e-9) for kind, amount in _wanted(resources).items())


def _wanted(resources: Resources) -> dict[str, float]:
    """Return what a trial asks for, without what it asks nothing of or what is not decided yet."""
    gpus = 0.0 if resources.gpus_per_trial == "auto" else resources.gpus_per_trial
    return {kind: amount for kind, amount in (("CPU", resources.cpus_per_trial), ("GPU", gpus)) if amount}


def _settings(scratch: Path) -> dict[str, str]:
    """Return the environment that keeps Ray quiet, and its files inside `scratch`."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        MARK: str(scratch),
        "SPT_NOENV": "1",  # or Ray's agents write their titles over the environment that shows whose they are
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


def sweep() -> None:
    """End and remove what is left of this user's killed sessions: their processes, and their scratch folders."""
    for lock in Path(_short_folder() or tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):  # held, another user's, or gone by now
            if lock.parent.is_symlink() or lock.parent.stat().st_uid != os.getuid():
                continue
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock.parent, patience=0.0)


def _remove(scratch: Path, patience: float = PATIENCE) -> None:
    """Delete the folder of a session once its last process is gone: one that is late would make it anew.

    Processes that have not ended by themselves after `patience` [s] are killed.
    """
    begun = seen = time.monotonic()
    while (now := time.monotonic()) < seen + QUIET and now < begun + patience + PATIENCE:
        for process in _processes(scratch):
            seen = time.monotonic()
            if now >= begun + patience:
                _kill(process, scratch)
        time.sleep(0.05)
    for folder in scratch.glob("*/"):  # what is big first: the lock lets others finish what is broken off here
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _kill(process: int, scratch: Path) -> None:
    """Kill a process of a session; never one that has got its number meanwhile, which the handle does not mean."""
    with contextlib.suppress(OSError):  # it has ended
        handle = os.pidfd_open(process)
        try:
            if _is_of(process, scratch):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _processes(scratch: Path) -> list[int]:
    """Return the processes that were started inside a session; only Linux shows them."""
    numbers = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [process for process in numbers if _is_of(process, scratch)]


def _is_of(process: int, scratch: Path) -> bool:
    """Return whether a process lives and was started inside a session."""
    try:
        return f"{MARK}={scratch}\0".encode() in Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False
