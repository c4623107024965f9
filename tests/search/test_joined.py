"""Searches on a cluster that somebody else started, by the command line as on a cluster of machines."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bsconv_nas as nas
from bsconv_nas.search.address import check_address
from bsconv_nas.search.checkpoint import has_checkpoint

pytestmark = pytest.mark.slow

SCRIPTS = Path(sys.executable).parent
MODULE = """
from bsconv_nas.network.models import cifar_resnet


def resnet8(in_channels=1, num_classes=10):
    return cifar_resnet(8, in_channels=in_channels, num_classes=num_classes, width=8)
"""
SPACE = """
base = {factory = "mine:resnet8", input_size = [1, 8, 8]}
choices = {widths = [0.5, 1.0]}
"""
EXPERIMENT = """
space = "space.toml"
data = {name = "digits", limit = 300}
recipe = {epochs = 2, batch_size = 32}
search = {sampler = "random", trials = 4, baselines = 2}
budget = {macs = "60K"}
resources = {workers = 2}
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster of one node, and the environment of its users."""

    address: str
    folder: Path
    environment: dict[str, str]
    started: int

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command line of ours in the cluster's folder."""
        return subprocess.run(
            [SCRIPTS / "bsconv-nas", *command.split()],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    @property
    def processes(self) -> list[int]:
        """The living processes of the session that `ray start` leads."""
        return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if session(stat) == self.started]


def session(stat: Path) -> int:
    """Return the session of a process; -1 if it has ended, be it as a zombie."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[3])


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with a token of its own; in the end exactly the processes that it consists of are ended."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # short, for sockets
    for name, text in {"mine.py": MODULE, "space.toml": SPACE, "tiny.toml": EXPERIMENT}.items():
        (folder / name).write_text(text)
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_", "BSCONV_"))}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**kept, **token, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    port = free_port()
    command = f"--head --port={port} --temp-dir={folder}/ray --num-cpus=2 --num-gpus=0 --object-store-memory=200000000"
    command += " --include-dashboard=false --disable-usage-stats --block"
    head = subprocess.Popen(
        [SCRIPTS / "ray", "start", *command.split()],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    users = {**environment, "PYTHONPATH": os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])}
    running = Cluster(f"127.0.0.1:{port}", folder, users, head.pid)
    try:
        wait_for(running, head)
        yield running
    finally:
        end(running, head)
        shutil.rmtree(folder)


def wait_for(cluster: Cluster, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while head.poll() is None and time.monotonic() < deadline:
        try:
            return check_address(cluster.address)
        except nas.BsconvNasError:
            time.sleep(0.2)
    pytest.fail("Ray did not start")


def end(cluster: Cluster, head: subprocess.Popen[bytes]) -> None:
    """End the head, which ends its node, and then by their ids the processes that are left."""
    head.send_signal(signal.SIGTERM)
    head.wait(timeout=60)
    deadline = time.monotonic() + 10
    while (left := cluster.processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        os.kill(process, signal.SIGKILL)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "ray" not in path.relative_to(folder).parts}


def test_a_search_is_done_and_recorded_there(cluster: Cluster) -> None:
    """With a factory that the cluster's workers know from the user's process alone; then it goes on."""
    before = cluster.processes
    done = cluster.run(f"search tiny.toml --run run --address {cluster.address}")
    assert (done.returncode, done.stderr) == (0, "")
    more = cluster.run("resume run --trials 5 --address auto", RAY_ADDRESS=cluster.address)
    assert (more.returncode, more.stderr) == (0, "")
    run = nas.load_run(cluster.folder / "run")
    assert run.trials["kind"].tolist() == ["baseline"] * 2 + ["search"] * 5
    assert set(run.trials["state"]) == {"complete"}
    assert (run.trials["epochs"] == 2).all()
    assert (run.trials["macs"] <= 60_000).all()
    assert run.trials["key"].is_unique
    whats = [note.what for note in run.record.notes]
    assert [what for what in whats if what != "fvcore"] == ["planned", "finished", "planned", "finished"]
    kept = {number for number in run.record.trials if has_checkpoint(run.store.checkpoint(number))}
    assert kept == set(run.front["number"])
    assert run.store.environment["data"]["counts"] == {"train": 240, "selection": 30, "report": 30}
    assert socket.gethostname() not in (run.path / "trials.jsonl").read_text()
    assert set(before) <= set(cluster.processes), "the cluster goes on"
    assert list((cluster.folder / "tmp").glob("bsn-*")) == list((cluster.folder / "home").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "environment", "sentence"),
    [
        (
            "--set resources.cpus_per_trial=64",
            {},
            "error: A trial needs 64 CPU (resources.cpus_per_trial), but the Ray cluster has 2: ask for less.\n",
        ),
        (
            "",
            {"RAY_AUTH_TOKEN": "0" * 64},
            "error: A Ray cluster must take this process in at --address 'ADDRESS', but Ray says 'Failed to connect to "
            "Ray cluster at ",
        ),
        (
            "",
            {"RAY_AUTH_TOKEN": ""},
            "error: A Ray cluster must take this process in at --address 'ADDRESS', but Ray says 'Token authentication "
            "is enabled but no authentication token was found': start one of this version, or hand over its token by "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH.\n",
        ),
    ],
    ids=["a trial too large", "another token", "no token"],
)
def test_what_the_cluster_cannot_do_is_refused_first(
    cluster: Cluster, options: str, environment: dict[str, str], sentence: str
) -> None:
    """Before a space is traced: that of this experiment cannot be."""
    before = everything(cluster.folder)
    command = f"search tiny.toml --set space=none.toml --run new --address {cluster.address} {options}"
    done = cluster.run(command, **environment)
    assert done.stderr.startswith(sentence.replace("ADDRESS", cluster.address))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert everything(cluster.folder) == before
