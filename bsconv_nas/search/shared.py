"""Whether all nodes of the cluster read and write the one storage of the checkpoints: tried, not believed."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from pyarrow import fs
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bsconv_nas.errors import SearchError
from bsconv_nas.search.cluster import fitting, living_nodes
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.storage import below, forget, locate, read, reason, write

__all__ = ["Mark", "shared", "unmark"]

FAULTS = (OSError, ValueError, NotImplementedError)  # what storages answer with; pyarrow's own are among them
MARK = "shared"  # the name of the file
PATIENCE = 120.0  # seconds for a node to start a process and to reach the storage


@dataclass(frozen=True, slots=True)
class Mark:
    """A file in a storage that tells it from any other of the same name.

    Attributes:
        storage: a folder or URI.
        token: what the file holds.
    """

    storage: str
    token: str

    @property
    def place(self) -> str:
        """Where the file lies."""
        return below(self.storage, MARK)

    def fault(self) -> str:
        """Return what keeps this process from the marked storage; nothing if it sees the mark."""
        try:
            there = read(*locate(self.place)).decode()
        except FileNotFoundError:
            return "what this search wrote there cannot be seen"
        except FAULTS as error:
            return reason(error)
        return "" if there == self.token else "what lies there is not of this search"

    def check(self) -> None:
        """Refuse, in a worker, a storage that is not the marked one: its node may have come late.

        Raises:
            SearchError: the mark is not there, is another, or cannot be read.
        """
        if said := self.fault():
            raise SearchError(_refusal(self.storage, f"node {ray.util.get_node_ip_address()}", said))


@contextlib.contextmanager
def shared(storage: str, resources: Resources) -> Iterator[Mark]:
    """Mark the storage inside a `with` block, in which every node has read the mark and written beside it.

    Args:
        storage: a folder or URI.
        resources: what a trial asks for; nodes that cannot run one are not asked.

    Raises:
        SearchError: this process or a node cannot read and write there.
    """
    mark = Mark(storage, secrets.token_hex(16))
    system, place = locate(mark.place)
    try:
        system.create_dir(locate(storage)[1])
        write(system, place, mark.token.encode())
    except FAULTS as error:
        raise SearchError(
            f"Checkpoints must go to a storage that this machine can write, but {storage!r} says: {reason(error)}; "
            "see resources.storage."
        ) from None
    try:
        _ask_nodes(mark, resources)
        yield mark
    finally:
        unmark(storage)


def unmark(storage: str) -> None:
    """Delete the mark of a search that is over, and a folder in which it has left no checkpoint."""
    system, place = locate(storage)
    with contextlib.suppress(*FAULTS):
        forget(system, f"{place}/{MARK}")
        if not system.get_file_info(fs.FileSelector(place)):
            system.delete_dir(place)


def _ask_nodes(mark: Mark, resources: Resources) -> None:
    """Let every other node that can run a trial read the mark and write beside it, and read that here."""
    own = ray.get_runtime_context().get_node_id()
    others = [node for node in living_nodes() if node["NodeID"] != own and fitting(node, resources)]
    answers = [_sent(mark, node["NodeID"]) for node in others]  # all at once: each starts a process
    for node, answer in zip(others, answers, strict=True):
        name = f"node {node['NodeManagerAddress']}"
        if said := _answer(name, answer) or _echo(mark, node["NodeID"]):
            raise SearchError(_refusal(mark.storage, name, said))


def _sent(mark: Mark, node: str) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(_visit).options(scheduling_strategy=there).remote(mark, node)


def _visit(mark: Mark, node: str) -> str:
    """Run on a node: return what is wrong there, or nothing once the answer is written."""
    try:
        if said := mark.fault():
            return said
        write(*locate(below(mark.storage, node)), mark.token.encode())
    except FAULTS as error:
        return reason(error)
    return ""


def _echo(mark: Mark, node: str) -> str:
    """Return what is wrong with the answer of a node as it is seen here, and delete it."""
    system, place = locate(below(mark.storage, node))
    try:
        said = "" if read(system, place).decode() == mark.token else "what it writes arrives changed"
        forget(system, place)
    except FAULTS:
        return "what it writes cannot be seen here"
    return said


def _answer(name: str, answer: ray.ObjectRef) -> str:
    """Return what a node found wrong.

    Raises:
        SearchError: it cannot run our code, or does not answer.
    """
    try:
        said: str = ray.get(answer, timeout=PATIENCE)
    except GetTimeoutError:
        said = f"it has not answered for {PATIENCE:g} s"
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        last = str(cause).strip().splitlines()[-1]
        raise SearchError(
            f"Every node of the Ray cluster must be able to run trials, but {name} says {last!r}: install there "
            "what is installed here."
        ) from None
    return said


def _refusal(storage: str, name: str, said: str) -> str:
    return (
        f"Checkpoints must lie where all nodes of the Ray cluster read and write them, but at {storage!r} {name} "
        f"says: {said}; name a shared folder or a bucket by resources.storage."
    )
