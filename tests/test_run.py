"""One small real search on digits through the Python API, and everything that is made of it."""

import importlib.util
import json
import math
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from safetensors.torch import load_file

import bsconv_nas as nas
from bsconv_nas.errors import BsconvNasError, DataError, RecordError, SearchError
from bsconv_nas.search.checkpoint import load_checkpoint
from bsconv_nas.search.cluster import connected
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.record import TRIAL_COLUMNS
from bsconv_nas.search.status import front_text
from bsconv_nas.training.data import load
from bsconv_nas.training.loop import evaluate

# Ray leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

ACCURACIES = ("val_accuracy", "report_accuracy", "test_accuracy")


@pytest.fixture(scope="module")
def run(project: Path) -> nas.Run:
    return nas.load_run(project / "runs/tiny")


@pytest.fixture(scope="module")
def retrained(project: Path, tmp_path_factory: pytest.TempPathFactory) -> nas.Run:
    """A copy of the run, given two more trials and then retrained, on one cluster."""
    folder = shutil.copytree(project, tmp_path_factory.mktemp("retrained") / "project") / "runs/tiny"
    with connected(Resources(workers=1), 2**20):
        resumed = nas.resume(nas.load_run(folder), trials=6)
        assert ray.is_initialized()
        return nas.retrain(resumed)


@pytest.fixture(scope="module")
def exported(run: nas.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.export(tmp_path_factory.mktemp("exported") / "out", pick="best")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_trials_have_the_columns_of_the_contract(run: nas.Run) -> None:
    trials = run.trials
    assert tuple(trials.columns[: len(TRIAL_COLUMNS)]) == TRIAL_COLUMNS
    assert tuple(trials.columns[-len(run.space.table.names) :]) == run.space.table.names
    assert trials["number"].tolist() == list(range(6))
    assert trials["kind"].tolist() == ["baseline"] * 2 + ["search"] * 4
    assert set(trials["state"]) == {"complete"}
    assert (trials["epochs"] == 2).all()
    assert (trials["seconds"] > 0).all()
    assert trials["val_accuracy"].between(0, 1).all()
    assert "test_accuracy" not in trials


def test_every_network_fitted_before_it_was_trained_and_none_came_twice(run: nas.Run) -> None:
    assert run.trials["key"].is_unique
    assert (run.trials["macs"] <= 400_000).all()
    for number in run.trials["number"]:
        architecture = run.architecture(number)
        costs = run.space.cost(architecture).known()
        assert costs == run.trials.loc[number, ["macs", "params", "memory"]].to_dict()
        assert sum(p.numel() for p in run.space.build(architecture).parameters()) == costs["params"]
        assert run.space.table.architecture(architecture.indices) == architecture


def test_val_accuracy_is_that_of_the_last_epoch_and_of_the_kept_weights(run: nas.Run) -> None:
    curves = [trial.curve for trial in run.record.trials.values()]
    assert [curve[-1]["val_accuracy"] for curve in curves] == run.trials["val_accuracy"].tolist()
    assert any(curve[0]["val_accuracy"] != curve[-1]["val_accuracy"] for curve in curves)
    dataset = load(run.experiment.data)
    best = run.trials.loc[run.pick("best")]
    assert evaluate(run.model("best"), dataset, "selection")[1] == pytest.approx(best["val_accuracy"])
    assert evaluate(run.model("best"), dataset, "report")[1] == pytest.approx(best["report_accuracy"])


def test_the_front_is_what_no_trial_beats(run: nas.Run) -> None:
    beaten = [
        any(
            (other.macs <= row.macs and other.val_accuracy > row.val_accuracy)
            or (other.macs < row.macs and other.val_accuracy >= row.val_accuracy)
            for other in run.trials.itertuples()
        )
        for row in run.trials.itertuples()
    ]
    assert sorted(run.front["number"]) == run.trials["number"][~np.array(beaten)].tolist()
    assert run.front["macs"].is_monotonic_increasing
    assert run.front["val_accuracy"].is_monotonic_increasing
    kept = {int(path.name) for path in (run.path / "checkpoints").iterdir()}
    assert kept == set(run.front["number"])


def test_front_text_parses_back(run: nas.Run) -> None:
    from io import StringIO

    pd.testing.assert_frame_equal(
        pd.read_csv(StringIO(front_text(run.front, "csv"))), run.front.reset_index(drop=True), check_dtype=False
    )
    rows = json.loads(front_text(run.front, "json"))
    assert [row["key"] for row in rows] == run.front["key"].tolist()
    assert [row["macs"] for row in rows] == run.front["macs"].tolist()


def test_the_record_names_no_place_and_no_host(run: nas.Run, project: Path) -> None:
    for name, data in everything(run.path).items():
        if not name.startswith("checkpoints"):
            assert str(project).encode() not in data, name
            assert str(Path.home()).encode() not in data, name
            assert socket.gethostname().encode() not in data, name
    assert Path(run.experiment.space).name == "resnet8.toml"
    assert run.store.environment["versions"]["torch"] == importlib.metadata.version("torch")
    assert run.store.environment["data"]["counts"] == {"train": 240, "selection": 30, "report": 30}


def test_what_was_checked_is_kept_with_the_space(run: nas.Run) -> None:
    kept = run.store.space["check"]
    assert len(kept["networks"]) > 2
    assert kept["unchecked"] == []
    assert run.space.check().networks == tuple(kept["networks"])


def test_fvcores_count_stands_beside_ours(run: nas.Run) -> None:
    counted = run.view().fvcore
    assert set(counted) == set(run.front["key"])
    for row in run.front.itertuples():
        assert row.macs < counted[row.key]["macs"] < 1.5 * row.macs


def test_a_copy_elsewhere_is_whole(run: nas.Run, own_project: Path, project: Path) -> None:
    copied = nas.load_run(own_project / "runs/tiny")
    pd.testing.assert_frame_equal(copied.trials, run.trials)
    pd.testing.assert_frame_equal(copied.front, run.front)
    assert copied.experiment.data.root == str(own_project / "data")
    assert run.experiment.data.root == str(project / "data")
    x = torch.randn(4, *run.space.input_size)
    torch.testing.assert_close(copied.model()(x), run.model()(x), rtol=0, atol=0)
    assert copied.report() == own_project / "runs/tiny/report.html"


def test_the_report_is_one_page(run: nas.Run, tmp_path: Path) -> None:
    page = run.report(tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert all(key in page for key in run.front["key"])
    assert run.report(tmp_path) == tmp_path / "report.html"


def test_an_export_answers_like_the_run_in_a_clean_process(run: nas.Run, exported: Path, tmp_path: Path) -> None:
    x = torch.randn(5, *run.space.input_size)
    torch.save(x, tmp_path / "x.pt")
    code = """
import sys, json
sys.modules["bsconv_nas"] = None
sys.path.insert(0, sys.argv[1])
import torch, safetensors.torch
from model import model
network = model()
network.load_state_dict(safetensors.torch.load_file(sys.argv[1] + "/weights.safetensors"))
print(json.dumps(network.eval()(torch.load("x.pt")).tolist()))
"""
    command = [sys.executable, "-I", "-c", code, str(exported)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), run.model()(x), rtol=1e-5, atol=1e-5)


def test_the_card_says_where_the_weights_come_from(run: nas.Run, exported: Path) -> None:
    card = json.loads((exported / "card.json").read_text())
    best = run.trials.loc[run.pick("best")]
    assert card["macs"] == best["macs"]
    assert card["params"] == best["params"]
    assert card["architecture"] == run.space.describe(run.architecture(run.pick("best")))
    assert card["weights"] == {"from": best["kind"], "trial": best["number"], "seed": best["seed"], "epochs": 2}
    assert card["accuracy"] == {name: best[name] for name in ACCURACIES[:2]}
    assert card["accuracy_by_seed"] == [{"seed": best["seed"], **card["accuracy"]}]
    assert card["data"]["name"] == "digits"
    assert card["data"]["counts"]["train"] == 240
    assert card["recipe"]["ema"] == 0.9
    assert card["budget"] == "macs <= 400 K"
    assert card["versions"]["torch"] == importlib.metadata.version("torch")
    assert str(Path.home()) not in json.dumps(card)
    state = load_file(exported / "weights.safetensors")
    kept = load_checkpoint(run.store.checkpoint(best["number"]))[0]
    assert all(torch.equal(value, kept[f"ema.module.{name}"]) for name, value in state.items())


def test_the_exported_network_reaches_the_cards_accuracy_on_images_prepared_as_it_says(
    run: nas.Run, exported: Path
) -> None:
    card = json.loads((exported / "card.json").read_text())
    spec = importlib.util.spec_from_file_location("exported_model", exported / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.model().eval()
    network.load_state_dict(load_file(exported / "weights.safetensors"))
    selection = load(run.experiment.data).parts["selection"]
    mean, std = (torch.tensor(card["input"][name])[:, None, None] for name in ("mean", "std"))
    images = (torch.tensor(selection.images) / 255 - mean) / std
    right = network(images).argmax(1) == torch.tensor(selection.labels)
    assert right.double().mean().item() == pytest.approx(card["accuracy"]["val_accuracy"])
    sentence = " ".join((module.__doc__ or "").split())
    assert card["input"]["preparation"] in sentence
    assert f"mean = [{card['input']['mean'][0]:.6g}]" in sentence


def test_the_knee_is_on_the_front(run: nas.Run) -> None:
    assert run.pick("knee") in set(run.front["number"])


def test_best_is_kept_even_if_a_costlier_trial_ties(run: nas.Run) -> None:
    best = run.trials.loc[run.pick("best")]
    ties = run.trials[run.trials["val_accuracy"] == run.trials["val_accuracy"].max()]
    assert best["macs"] == ties["macs"].min()


def test_weights_that_were_not_kept_are_named(run: nas.Run) -> None:
    number = next(n for n in run.trials["number"] if n not in set(run.front["number"]))
    key = run.trials.loc[number, "key"]
    kept = ", ".join(run.front["key"])
    said = rf"The weights of '{key}' must lie in .*checkpoints/{number}', but do not: pick one .* are kept \({kept}\)"
    with pytest.raises(RecordError, match=said):
        run.model(key)


def test_no_network_is_advised_whose_weights_are_gone(run: nas.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(RecordError, match="but do not: retrain it"):
        nas.load_run(tmp_path / "run").model("best")


def test_more_trials_go_on_where_the_run_was(run: nas.Run, retrained: nas.Run) -> None:
    searched = retrained.trials[retrained.trials["kind"] != "retrain"]
    assert len(searched) == 8
    assert searched["key"].is_unique
    pd.testing.assert_frame_equal(searched[: len(run.trials)][run.trials.columns], run.trials, check_dtype=False)


def test_a_retraining_tests_each_network_with_each_seed(retrained: nas.Run) -> None:
    trials = retrained.trials[retrained.trials["kind"] == "retrain"]
    others = retrained.trials[retrained.trials["kind"] != "retrain"]
    assert set(trials["state"]) == {"complete"}
    assert (trials["epochs"] == 3).all()
    assert trials["test_accuracy"].between(0, 1).all()
    assert others["test_accuracy"].isna().all()
    assert (trials.groupby("key")["seed"].nunique() == 2).all()
    assert set(trials["key"]) <= set(others["key"])
    kept = {int(path.name) for path in (retrained.path / "checkpoints").iterdir()}
    assert kept == set(retrained.front["number"]) | set(trials["number"])
    assert not set(retrained.front["number"]) & set(trials["number"])


def test_a_retraining_ends_with_a_verdict(retrained: nas.Run, tmp_path: Path) -> None:
    note = retrained.record.notes[-1]
    assert note.what == "verdict"
    keys = retrained.trials.loc[retrained.trials["kind"] == "retrain", "key"].unique()
    assert len(note.detail["sentences"]) == 1
    assert retrained.view().verdict == tuple(note.detail["sentences"])
    for sentence in note.detail["sentences"]:
        basis = "test accuracy, 2 against 2 seeds, 95 % interval" if len(keys) > 1 else "test accuracy, 2 seeds"
        assert basis in sentence
        assert sentence in retrained.report(tmp_path / "r.html").read_text()


def test_an_export_prefers_retrained_weights_and_says_so(retrained: nas.Run, tmp_path: Path) -> None:
    trials = retrained.trials[retrained.trials["kind"] == "retrain"]
    key = trials["key"].iloc[0]
    card = json.loads((retrained.export(tmp_path / "out", pick=key[:10]) / "card.json").read_text())
    assert card["key"] == key
    own = trials[trials["key"] == key]
    source = own.loc[own["val_accuracy"].idxmax()]
    assert card["weights"] == {"from": "retrain", "trial": source["number"], "seed": source["seed"], "epochs": 3}
    assert card["accuracy"] == {name: source[name] for name in ACCURACIES}
    assert [row["test_accuracy"] for row in card["accuracy_by_seed"]] == own["test_accuracy"].tolist()
    assert card["recipe"]["epochs"] == 3


def test_a_retraining_that_is_done_is_not_done_again(retrained: nas.Run) -> None:
    again = nas.retrain(retrained)  # no cluster is up: nothing is left to run
    assert len(again.trials) == len(retrained.trials)
    assert again.view().verdict == retrained.view().verdict
    assert [note.what for note in again.record.notes].count("verdict") == 1


def test_a_run_goes_on_only_with_its_own_data(own_project: Path) -> None:
    place = own_project / "runs/tiny/environment.json"
    place.write_text(place.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(
        RecordError, match=r"The data of run 'tiny' must be those it was searched with \(0\w{11}\), but"
    ):
        nas.resume(nas.load_run(own_project / "runs/tiny"))


def test_a_run_has_one_driver(own_project: Path) -> None:
    run = nas.load_run(own_project / "runs/tiny")
    before = everything(run.path)
    with nas.load_run(run.path).store.lock():
        for verb in (nas.resume, nas.retrain):
            with pytest.raises(RecordError, match="A run must have one driver, but another process is driving"):
                verb(run)
    assert everything(run.path) == before


def test_data_may_lie_elsewhere_later(own_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BSCONV_NAS_DATA", raising=False)
    place = own_project / "runs/tiny/experiment.json"
    text = json.loads(place.read_text())
    text["data"] |= {"name": "cifar10", "root": None}
    place.write_text(json.dumps(text))
    run = nas.load_run(own_project / "runs/tiny")
    with pytest.raises(DataError, match=r"'cifar10' needs a folder that holds cifar-10-batches-py/"):
        nas.resume(run)
    with pytest.raises(DataError, match=rf"must lie in {own_project}/cifar-10-batches-py"):
        nas.resume(run, data_root=own_project)


def test_a_search_that_cannot_start_leaves_no_folder(own_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = nas.Experiment.load(own_project / "experiments/tiny.toml", ["resources.gpus_per_trial=64"])
    before = everything(own_project)
    with pytest.raises(SearchError, match=r"A trial needs 64 GPU \(resources.gpus_per_trial\), but this machine has"):
        nas.search(asked, own_project / "runs/new")
    asked = nas.Experiment.load(own_project / "experiments/tiny.toml")
    with pytest.raises(SearchError, match="--address must be 'auto' or HOST:PORT"):
        nas.search(asked, own_project / "runs/new", address="nowhere")
    assert everything(own_project) == before
    assert not (own_project / "runs/new").exists()


def test_the_calls_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the Python API stay."""
    monkeypatch.chdir(Path(__file__).parents[1])
    space = nas.SearchSpace.load("search_spaces/cifar_resnet.toml")
    archs = space.sample(100, budget=nas.Budget(macs="40M"), seed=0)
    assert len({arch.key for arch in archs}) == 100
    cost = space.cost(archs[0])
    assert cost.macs <= 40_000_000
    assert all(isinstance(value, int) for value in (cost.macs, cost.params, cost.memory))
    costs = space.costs(archs)
    assert costs["macs"].shape == (100,)
    assert costs["macs"][0] == cost.macs
    model = space.build(archs[0])
    assert sum(p.numel() for p in model.parameters()) == cost.params
    assert model(torch.randn(2, *space.input_size)).shape == (2, space.num_classes)
    assert nas.Experiment.load("experiments/quickstart.toml").search.trials >= 24
    assert callable(nas.search)  # a room of the package has this name, too
    assert nas.search.__name__ == "bsconv_nas.search"
    assert sorted(nas.__all__) == nas.__dir__()
    assert all(getattr(nas, name) is not None for name in nas.__all__)
    assert issubclass(RecordError, BsconvNasError)
    assert math.isfinite(cost.memory)
