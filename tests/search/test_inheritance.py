"""Searches whose candidates start from a trained base."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bsconv_nas as nas
from bsconv_nas.errors import ExperimentError, RecordError
from bsconv_nas.network.build import instantiate
from bsconv_nas.network.inherit import inherit
from bsconv_nas.search.cluster import connected
from bsconv_nas.search.experiment import Resources
from bsconv_nas.space.base import Base
from bsconv_nas.training.data import Dataset, DataSpec, load
from bsconv_nas.training.loop import Trainer, evaluate
from bsconv_nas.training.recipe import Recipe

BASE = """[base]
factory = "bsconv_nas.network.models:cifar_resnet"
arguments = { depth = 20 }
input_size = [1, 8, 8]
[choices]
operators = ["regular", "bsconv_u:r=4", "bsconv_u"]
widths = [0.75, 1.0]
scope = "network"
depths = "fixed"
"""
EXPERIMENT = """space = "space.toml"
[data]
name = "digits"
[recipe]
epochs = 1
learning_rate = 0.001
[search]
sampler = "random"
trials = 1
baselines = 3
[train]
init = "inherit"
checkpoint = "trained/base.safetensors"
images = 512
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataSpec("digits"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A space over ResNet-20, an experiment, and the base's weights after four epochs on the digits."""
    folder = tmp_path_factory.mktemp("inherited")
    (folder / "trained").mkdir()
    (folder / "space.toml").write_text(BASE)
    (folder / "experiment.toml").write_text(EXPERIMENT)
    space = nas.SearchSpace.load(folder / "space.toml")
    assert isinstance(space.base, Base)
    torch.manual_seed(0)
    recipe = Recipe(epochs=6, batch_size=64, learning_rate=0.1, schedule="one_cycle", crop=1)
    trainer = Trainer(instantiate(space.base), digits, recipe, seed=0)
    list(trainer.epochs())
    save_file(trainer.final_model().state_dict(), folder / "trained" / "base.safetensors")
    return folder


def test_a_trained_resnet20_keeps_its_accuracy_under_four_blueprints_without_training(
    project: Path, digits: Dataset
) -> None:
    space = nas.SearchSpace.load(project / "space.toml")
    assert isinstance(space.base, Base)
    base = instantiate(space.base)
    base.load_state_dict(load_file(project / "trained" / "base.safetensors"))
    images = [batch for batch, _ in digits.loader("train").batches(256)]
    accuracy = {"base": evaluate(base, digits, "selection")[1]}
    for operator in ("bsconv_u:r=4", "bsconv_u"):
        chosen = {**space.describe(space.table.base), "conv.network": operator}
        child = inherit(base.eval(), space.table, space.table.from_values(chosen), images)
        accuracy[operator] = evaluate(child, digits, "selection")[1]
    assert accuracy["base"] > 0.95
    assert accuracy["bsconv_u:r=4"] > 0.97 * accuracy["base"]
    assert accuracy["bsconv_u"] < accuracy["bsconv_u:r=4"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the searches here."""
    with connected(Resources(workers=1), 10**6):
        yield


@pytest.fixture(scope="module")
def run(project: Path, cluster: None) -> nas.Run:
    """A search whose candidates inherit."""
    return nas.search(nas.Experiment.load(project / "experiment.toml"), project / "run")


def test_candidates_start_where_the_base_was_and_the_run_keeps_its_weights(
    run: nas.Run, project: Path, digits: Dataset
) -> None:
    trials = run.trials[run.trials["state"] == "complete"]
    whole = trials.filter(like="width.").eq(1.0).all(axis=1)
    base = trials[whole & (trials["conv.network"] == "regular")]
    assert float(base["val_accuracy"].max()) > 0.9
    kept, given = (load_file(folder / "base.safetensors") for folder in (run.path, project / "trained"))
    assert all(torch.equal(kept[name], given[name]) for name in (kept | given))
    assert str(project) not in (run.path / "experiment.json").read_text()
    assert isinstance(run.space.base, Base)
    torch.manual_seed(0)
    fresh = Trainer(instantiate(run.space.base), digits, run.experiment.recipe, seed=0)
    assert [epoch.val_accuracy < 0.6 for epoch in fresh.epochs()] == [True]  # from random weights


@pytest.mark.usefixtures("cluster")
def test_a_run_goes_on_without_the_file_that_its_base_came_from(run: nas.Run, tmp_path: Path) -> None:
    copied = shutil.copytree(run.path, tmp_path / "elsewhere" / "run")
    more = nas.resume(nas.load_run(copied), trials=3)
    assert (more.trials["state"] == "complete").all()
    later = more.trials[len(run.trials) :]
    assert len(later) == 2
    assert (later["val_accuracy"] > 0.6).any()  # as those that begin at random do not


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.checkpoint=absent.safetensors"], r"No file '.*absent\.safetensors': check the path of the weights"),
        (
            ["train.checkpoint=other.safetensors"],
            r"must be those of this 'CifarResNet', but 'input_norm.weight' is missing",
        ),
        (["train.checkpoint=weights.bin"], r"must lie in a \.safetensors, \.pt, \.pth file"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_and_leaves_nothing(
    overrides: list[str], sentence: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    experiment = nas.Experiment.load(project / "experiment.toml", overrides)
    with pytest.raises(RecordError, match=sentence):
        nas.search(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["train.init=random", "train.init=other", "train.images=0", "train.checkpoint=''"])
def test_sections_that_make_no_sense_are_refused(override: str, project: Path) -> None:
    with pytest.raises(ExperimentError, match=r"train"):
        nas.Experiment.load(project / "experiment.toml", [override])
