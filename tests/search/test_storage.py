"""Checkpoints away from the run folder: folders, URIs, a bucket."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pyarrow import fs

from bsconv_nas.errors import BsconvNasError, ExperimentError, SearchError
from bsconv_nas.search.checkpoint import has_checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.shared import Mark
from bsconv_nas.search.storage import below, locate
from bsconv_nas.search.store import Store


@pytest.mark.parametrize(
    ("storage", "place"),
    [
        ("/shared/runs", "/shared/runs/7"),
        ("runs", f"{Path.cwd()}/runs/7"),
        ("file:///shared/runs/", "file:///shared/runs/7"),
        ("s3://bucket", "s3://bucket/7"),
        ("s3://bucket/runs?region=eu-west-1&scheme=http", "s3://bucket/runs/7?region=eu-west-1&scheme=http"),
    ],
)
def test_places_lie_below_their_storage(storage: str, place: str) -> None:
    assert below(storage, "7") == place


def test_a_storage_that_pyarrow_does_not_know_is_refused() -> None:
    with pytest.raises(SearchError, match=r"pyarrow\.fs takes, but 'ftp://host/runs' is not: Unrecognized "):
        locate("ftp://host/runs")


SERVER = """
import threading
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@pytest.fixture
def bucket() -> Iterator[str]:
    """A storage of a real S3 server on this machine."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs moto[server]")
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-c", SERVER]
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            place = {
                "endpoint_override": f"127.0.0.1:{int(server.stdout.readline())}",
                "scheme": "http",
                "region": "us-east-1",
            }
            fs.S3FileSystem(allow_bucket_creation=True, **place).create_dir("bucket")
            yield "s3://bucket/runs?" + "&".join(f"{name}={value}" for name, value in place.items())
        finally:
            server.terminate()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["folder", "file", pytest.param("bucket", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "bucket":
        return str(request.getfixturevalue("bucket"))
    return str(tmp_path / "runs") if request.param == "folder" else f"file://{tmp_path}/runs"


def test_checkpoints_live_in_any_storage(storage: str) -> None:
    for number in range(3):
        for epoch in (1, 2):
            save_checkpoint(below(storage, str(number)), {"a": torch.full((3,), number + epoch)}, {"epoch": epoch})
    loaded, meta = load_checkpoint(below(storage, "2"))
    assert (loaded["a"].tolist(), meta) == ([4, 4, 4], {"epoch": 2})
    system, inside = locate(storage)
    names = sorted(info.base_name for info in system.get_file_info(fs.FileSelector(f"{inside}/2")))
    assert [Path(name).suffix for name in names] == [".safetensors", ".json"]
    prune_checkpoints(storage, {"1"})
    assert [has_checkpoint(below(storage, str(number))) for number in range(3)] == [False, True, False]
    with pytest.raises(BsconvNasError, match=r"'checkpoint\.json' is missing there"):
        load_checkpoint(below(storage, "0"))


def test_a_checkpoint_in_memory() -> None:
    """As long as the process lives: the file system of the URI is opened once."""
    save_checkpoint("mock:///runs/7", {"a": torch.ones(1)}, {"epoch": 1})
    assert load_checkpoint("mock:///runs/7")[1] == {"epoch": 1}
    assert not has_checkpoint("mock:///runs/8")


def test_a_mark_tells_one_storage_from_another(storage: str) -> None:
    mark = Mark(storage, "0123")
    assert mark.fault() == "what this search wrote there cannot be seen"
    save_checkpoint(storage, {}, {})  # makes the folder
    system, place = locate(mark.place)
    with system.open_output_stream(place) as stream:
        stream.write(b"0123")
    mark.check()
    assert Mark(storage, "4567").fault() == "what lies there is not of this search"


@pytest.mark.parametrize(
    ("written", "loaded"),
    [
        ("/shared/runs", "/shared/runs"),
        ("../shared", "{project}/shared"),
        ("s3://bucket/runs?region=x", "s3://bucket/runs?region=x"),
    ],
)
def test_each_run_has_a_place_of_its_own(written: str, loaded: str, experiment_file: Path, tmp_path: Path) -> None:
    """In the storage that the file names, relative to the file; the record keeps it."""
    asked = Experiment.load(experiment_file, ["search.trials=1"])
    assert asked.resources.storage is None
    experiment_file.write_text(experiment_file.read_text() + f'[resources]\nstorage = "{written}"\n')
    asked = Experiment.load(experiment_file)
    assert asked.resources.storage == loaded.format(project=experiment_file.parent.parent)
    runs = [Store.create(tmp_path / "runs" / name, asked, {}, {}) for name in ("one", "two")]
    assert len({run.storage for run in runs}) == 2
    for run in runs:
        parent, _, own = run.storage.partition("?")[0].rpartition("/")
        assert parent == asked.resources.storage.partition("?")[0]
        assert own.startswith("tiny-")
        again = Store.open(run.path)
        assert (again.storage, again.checkpoint(3)) == (run.storage, below(run.storage, "3"))


def test_no_key_gets_into_the_record(experiment_file: Path) -> None:
    with pytest.raises(ExperimentError, match="storage must hold no key, because the record keeps it: hand keys over"):
        Experiment.load(experiment_file, ["resources.storage=s3://me:secret@bucket/runs"])
