"""Ray clusters of several nodes on this machine, started as users start theirs: by `ray start`."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bsconv_nas as nas
from bsconv_nas.search.address import check_address

__all__ = ["HEAD", "LocalCluster", "local_cluster", "wait_until"]

SCRIPTS = Path(sys.executable).parent
HEAD = "127.0.0.2"  # not 127.0.0.1, which Ray takes for the machine's outer address
# A dead node is noticed after a second instead of fifteen.
SOON = '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}'

JOINED = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
while len(ray.nodes()) < int(sys.argv[2]):
    time.sleep(0.1)
"""


@dataclass
class LocalCluster:
    """A running cluster, and the environment of its users."""

    folder: Path
    environment: dict[str, str]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)  # by IP

    @property
    def address(self) -> str:
        """Where the head listens: at a port that it took when it started."""
        return (self.folder / "ray/ray/ray_current_cluster").read_text()

    def start(self, host: str, cpus: int, *before: str, gpus: int = 0) -> None:
        """Start a node, the head first; `before` is a command that runs it, such as `unshare`."""
        place = ("--head", "--port=0", f"--system-config={SOON}", "--include-dashboard=false")
        if self.nodes:
            place = (f"--address={self.address}",)
        command = [
            "ray",
            "start",
            *place,
            f"--node-ip-address={host}",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
            "--block",
        ]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]  # of ranges, neighbours would hand out the same
        command[0] = str(SCRIPTS / "ray")
        self.nodes[host] = subprocess.Popen(
            [*before, *command],
            cwd=self.folder,
            env=self.environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self._answers(host), f"the node at {host}")

    def _answers(self, host: str) -> bool:
        assert self.nodes[host].poll() is None, f"ray start ended at {host}"
        with contextlib.suppress(nas.BsconvNasError, FileNotFoundError):
            check_address(self.address)
            return True
        return False

    def wait_for_nodes(self) -> None:
        """Return once all nodes that were started have joined."""
        done = self.run(sys.executable, "-c", JOINED, self.address, str(len(self.nodes)))
        assert done.returncode == 0, done.stderr

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's folder as its user."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def bsconv_nas(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command line of ours."""
        return self.run(SCRIPTS / "bsconv-nas", *command.split(), **environment)

    def processes(self, host: str) -> list[int]:
        """Return the living processes of a node: the session that its `ray start` leads."""
        leader = self.nodes[host].pid
        return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _session(stat) == leader]

    def kill(self, host: str) -> None:
        """End a node as a power cut does: all of its processes at once, by their ids."""
        while left := self.processes(host):
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.nodes[host].wait(timeout=60)

    @property
    def left_over(self) -> list[str]:
        """What lies in the home and temporary folders of the users."""
        return [str(path) for name in ("home", "tmp") for path in (self.folder / name).iterdir()]


@contextlib.contextmanager
def local_cluster(cpus: int, gpus: int = 0, **files: str) -> Iterator[LocalCluster]:
    """Run a head with a token of its own inside a `with` block; in the end exactly the cluster's processes are ended.

    Args:
        cpus: of the head.
        gpus: of the head; Ray believes whatever it is told.
        files: texts to lie in the users' folder, by name with `__` for the dot; modules there can be imported.
    """
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # short, for sockets
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    for name in ("home", "tmp", "torch", "ray", "ray/ray"):
        (folder / name).mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_", "BSCONV_"))
    }
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": f"{folder}/ray"}
    environment |= {"HOME": f"{folder}/home", "TMPDIR": f"{folder}/tmp", "OMP_NUM_THREADS": "1"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/torch"  # torchvision makes it when it is imported
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    cluster = LocalCluster(folder, environment)
    try:
        cluster.start(HEAD, cpus, gpus=gpus)
        yield cluster
    finally:
        for host in reversed(cluster.nodes):
            cluster.kill(host)
        shutil.rmtree(folder)


def wait_until(true: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    """Return once `true` is; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come about in {seconds:g} s"
        time.sleep(0.1)


def _session(stat: Path) -> int:
    """Return the session of a process; -1 if it has ended, be it as a zombie."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[3])
