"""Searches on a cluster that somebody else started, by the command line as on a cluster of machines."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import HEAD, LocalCluster, local_cluster

import bsconv_nas as nas
from bsconv_nas.search.checkpoint import has_checkpoint

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2, mine__py=MODULE, space__toml=SPACE, tiny__toml=EXPERIMENT) as cluster:
        yield cluster


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "ray" not in path.relative_to(folder).parts}


def test_a_search_is_done_and_recorded_there(cluster: LocalCluster) -> None:
    """With a factory that the cluster's workers know from the user's process alone; then it goes on."""
    before = cluster.processes(HEAD)
    done = cluster.bsconv_nas(f"search tiny.toml --run run --address {cluster.address}")
    assert (done.returncode, done.stderr) == (0, "")
    more = cluster.bsconv_nas("resume run --trials 5 --address auto", RAY_ADDRESS=cluster.address)
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
    assert f'"{socket.gethostname()}"' not in (run.path / "trials.jsonl").read_text()
    assert set(before) <= set(cluster.processes(HEAD)), "the cluster goes on"
    assert cluster.left_over == []


TOKEN = (
    "error: The Ray cluster at --address 'ADDRESS' must be given its token, but {} of this process: set "
    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds it; `ray get-auth-token` prints it on the "
    "cluster's head.\n"
)


@pytest.mark.parametrize(
    ("options", "environment", "sentence"),
    [
        (
            "--set resources.cpus_per_trial=64",
            {},
            "error: A trial needs 64 CPU (resources.cpus_per_trial), but no node of the Ray cluster has more than 2: "
            "ask for less, or start nodes that have it.\n",
        ),
        ("", {"RAY_AUTH_TOKEN": "0" * 64}, TOKEN.format("refuses the one")),
        ("", {"RAY_AUTH_TOKEN": ""}, TOKEN.format("got none")),
        ("", {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, TOKEN.format("got none")),
        ("", {"RAY_AUTH_MODE": "disabled"}, TOKEN.format("got none")),
    ],
    ids=["a trial too large", "another token", "no token", "no such file", "tokens off"],
)
def test_what_the_cluster_cannot_do_is_refused_first(
    cluster: LocalCluster, options: str, environment: dict[str, str], sentence: str
) -> None:
    """Before a space is traced: that of this experiment cannot be."""
    before = everything(cluster.folder)
    command = f"search tiny.toml --set space=none.toml --run new --address {cluster.address} {options}"
    done = cluster.bsconv_nas(command, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence.replace("ADDRESS", cluster.address))
    assert everything(cluster.folder) == before


OTHER = "127.0.0.3"
MOUNTED = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]


@pytest.fixture(scope="module")
def apart() -> Iterator[LocalCluster]:
    """A cluster whose second node sees an empty folder `own` where the users have theirs, as another machine does."""
    if shutil.which("unshare") is None or subprocess.run(MOUNTED, check=False).returncode:
        pytest.skip("needs a mount in unshare -rm")
    with local_cluster(1, mine__py=MODULE, space__toml=SPACE, tiny__toml=EXPERIMENT) as cluster:
        for name in ("own", "shared"):
            (cluster.folder / name).mkdir()
        hidden = f'mount -t tmpfs none {cluster.folder}/own && exec "$@"'
        cluster.start(OTHER, 1, "unshare", "-rm", "sh", "-c", hidden, "sh")
        cluster.wait_for_nodes()
        yield cluster


def test_a_node_that_does_not_share_the_storage_is_named_before_anything_is_trained(apart: LocalCluster) -> None:
    before = everything(apart.folder)
    done = apart.bsconv_nas(f"search tiny.toml --run own/run --address {apart.address}")
    assert (done.returncode, done.stderr) == (
        2,
        "error: Checkpoints must lie where all nodes of the Ray cluster read and write them, but at "
        f"'{apart.folder}/own/run/checkpoints' node {OTHER} says: what this search wrote there cannot be seen; name a "
        "shared folder or a bucket by resources.storage.\n",
    )
    assert everything(apart.folder) == before


def test_a_storage_that_is_shared_serves_nodes_that_share_nothing_else(apart: LocalCluster) -> None:
    """The search itself needs no folder of its own there; the front is exported from the storage."""
    shared = apart.folder / "shared"
    options = f"--run own/run --address {apart.address} --set resources.storage=file://{shared}"
    done = apart.bsconv_nas(f"search tiny.toml {options}")
    assert (done.returncode, done.stderr) == (0, "")
    run = nas.load_run(apart.folder / "own/run")
    assert set(run.trials["state"]) == {"complete"}
    (place,) = shared.iterdir()
    assert place.name.startswith("tiny-")
    assert {int(path.name) for path in place.iterdir()} == set(run.front["number"])
    assert not (run.path / "checkpoints").exists()
    exported = apart.bsconv_nas("export own/run --out out")
    assert (exported.returncode, exported.stderr) == (0, "")
    assert (apart.folder / "out/model.py").is_file()
