"""A user's own evaluation in place of the built-in training: a training loop of its own, and a replayed table."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from small_search import small_space, work_alone

import bsconv_nas as nas
from bsconv_nas.calibrate import planned, print_calibration
from bsconv_nas.cli import main
from bsconv_nas.errors import BsconvNasError, ExperimentError, RecordError, TrainingError
from bsconv_nas.search.cluster import connected
from bsconv_nas.search.experiment import Named, Resources, Search
from bsconv_nas.search.gpus import decide
from bsconv_nas.search.own_trial import OwnTrial, own_trial
from bsconv_nas.search.store import Store
from bsconv_nas.search.trial import Job, Task
from bsconv_nas.training.guard import StridedPointwiseGuard
from bsconv_nas.training.recipe import Recipe

# Ray leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SCRIPT = Path(sys.executable).with_name("bsconv-nas")
SPACES = {
    "resnet8": """
[base]
factory = "bsconv_nas.network.models:cifar_resnet"
arguments = { depth = 8 }
input_size = [1, 8, 8]

[choices]
widths = [0.5, 1.0]
""",
    "few": """
[base]
factory = "bsconv_nas.network.models:cifar_resnet"
arguments = { depth = 8 }
input_size = [3, 8, 8]

[choices]
operators = ["regular", "bsconv_u", "dsc"]
widths = [0.5, 1.0]
scope = "network"
""",
}
MODULE = """
import json

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import jaccard_score


def train(architecture, space, epochs, seed, device, steps=1):
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16
    model = space.build(architecture, seed).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for epoch in range(epochs):
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[:512]), labels[:512]).backward()
            optimizer.step()
        found = model.eval()(images[512:]).argmax(1)
        yield {"iou": jaccard_score(labels[512:], found, average="macro"), "step": epoch * steps}


def replay(*, architecture, epochs, table):
    with open(table) as file:
        yield from ({"loss": loss} for loss in json.load(file)[architecture.key][:epochs])


def shown(data, space):
    yield {"score": len(data.parts["train"].labels), "size": space.input_size[1]}


def no_metrics(**given):
    yield {}


def no_dict():
    yield 0.5


def no_number():
    yield {"score": torch.tensor(0.5)}


def no_name():
    yield {1: 0.5}


def costs():
    yield {"score": 0.5, "macs": 3}


def nothing():
    yield from ()


def returned():
    return {"score": 0.5}


def endless():
    while True:
        yield {"score": 0.5}


def early():
    yield {"score": 0.5}


def guarded():
    answer = torch.conv2d(torch.ones(1, 4, 8, 8), torch.ones(1, 4, 1, 1, requires_grad=True), stride=2)
    yield {"score": answer.grad_fn._saved_stride[0]}


def falling(architecture, epochs, at=9):
    for epoch in range(1, min(epochs, at) + 1):
        yield {"loss": 1 / (sum(architecture.indices) + epoch)}


def needy(fold):
    yield {"score": 0.5}


def counted(epochs, checkpoint, at=(), odd=None):
    # The metric is the sum of the epochs' numbers.
    total = checkpoint.load().get("total", torch.zeros(()))
    for epoch in range(checkpoint.epochs + 1, epochs + 1):
        total += epoch
        if not at or epoch in at:
            checkpoint.save({"total": total, "epoch": epoch, "odd": odd and object()})
        yield {"score": float(total)}


number = 3
"""
EXPERIMENT = """
space = "resnet8.toml"
recipe = {{ epochs = {epochs} }}

[search]
trial = {trial}
sampler = "random"
trials = {trials}
baselines = 2
objectives = [{{ name = "{name}", direction = "{direction}" }}, {{ name = "params", direction = "min" }}]

[budget]
macs = "400K"

[resources]
workers = 2
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with two spaces, the module `mine`, which this process can import, and an experiment."""
    place = tmp_path_factory.mktemp("user")
    for name, text in SPACES.items():
        (place / f"{name}.toml").write_text(text)
    (place / "mine.py").write_text(MODULE)
    own = {"trial": '"mine:train"', "epochs": 2, "trials": 3, "name": "iou", "direction": "max"}
    (place / "own.toml").write_text(EXPERIMENT.format(**own))
    sys.modules.pop("mine", None)  # another file's
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def searched(place: Path) -> Path:
    """A run of the command line in a process of its own, where PYTHONPATH alone leads to the user's module."""
    command = [SCRIPT, "search", "own.toml", "--run", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
    return place / "run"


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[None]:
    """One Ray for the searches of this process."""
    with connected(Resources(workers=1), 10**6):
        yield


def said(place: Path, *arguments: object, code: int = 0) -> str:
    """Return what a command prints, run here in the user's folder."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["bsconv-nas", *map(str, arguments)])
        patch.chdir(place)
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code or 0) == code, err.getvalue()
    return err.getvalue() if code else out.getvalue()


def test_an_own_training_is_searched_by_its_own_metric(searched: Path) -> None:
    run = nas.load_run(searched)
    assert run.trials["state"].tolist() == ["complete"] * 5
    assert (run.trials["epochs"] == 2).all()
    assert (run.trials["macs"] <= 400_000).all()
    rows = run.trials[["iou", "params"]].to_numpy()
    beaten = [any(o[0] >= r[0] and o[1] <= r[1] and tuple(o) != tuple(r) for o in rows) for r in rows]
    assert set(run.front["number"]) == {n for n, worse in zip(run.trials["number"], beaten, strict=True) if not worse}
    assert run.pick("best") == run.trials["iou"].idxmax()
    assert run.experiment.images is None
    assert "data" not in run.store.environment
    assert not (searched / "checkpoints").exists()


def test_the_function_gets_what_the_record_says(searched: Path) -> None:
    """Called again with the recorded architecture and seed, it gives the recorded curve."""
    import mine

    torch.set_num_threads(1)  # as on the workers
    run = nas.load_run(searched)
    for number in (0, 4):
        trial = run.record.trials[number]
        given: dict[str, Any] = {"epochs": 2, "seed": trial.started.seed, "device": "cpu"}
        with StridedPointwiseGuard():
            assert list(mine.train(run.architecture(number), run.space, **given)) == trial.curve


def test_front_status_and_report_show_the_own_metric(searched: Path, place: Path) -> None:
    run = nas.load_run(searched)
    best = run.trials["iou"].max()
    rows = json.loads(said(place, "front", "run", "--json"))
    assert max(row["iou"] for row in rows) == pytest.approx(best)
    table = said(place, "front", "run")
    assert "accuracy" not in table
    assert f"{best:.4g}" in table
    assert f"best iou {best:.4g} at" in said(place, "status", "run")
    page = (place / said(place, "report", "run").strip()).read_text()
    for text in (f">{best:.4g}<", "the line is the best iou", "iou is what it reported", '"text":"iou"'):
        assert text in page
    for text in ("accuracy [%]", "No trial is complete yet", "nan"):
        assert text not in page[page.index("<header>") :]


@pytest.mark.usefixtures("cluster")
def test_a_finished_run_gets_more_trials(searched: Path, place: Path, tmp_path: Path) -> None:
    before = nas.load_run(searched).trials
    copied = shutil.copytree(searched, tmp_path / "copied")
    said(place, "resume", copied, "--trials", 4)
    after = nas.load_run(copied).trials
    assert len(after) == 6
    assert after["state"].tolist() == ["complete"] * 6
    assert after[: len(before)].equals(before)
    assert after["key"].is_unique


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["retrain", "run"],
            "run 'run' was searched by search.trial 'mine:train': call that function with more",
        ),
        (["export", "run", "--out", "out"], "search.trial 'mine:train' of run 'run' keeps its own: load the run in Py"),
    ],
)
def test_what_needs_the_built_in_training_is_refused(
    searched: Path, place: Path, arguments: list[str], sentence: str
) -> None:
    error = said(place, *arguments, code=2)
    assert sentence in error
    assert error.count("\n") == 1


def test_a_run_goes_on_only_where_its_function_can_be_imported(searched: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(searched, tmp_path / "copied")
    written = copied / "experiment.json"
    written.write_text(written.read_text().replace("mine:train", "gone:train"))
    error = said(tmp_path, "resume", copied, "--trials", 9, code=2)
    assert "search.trial 'gone:train' must name an importable module, but No module named 'gone': install" in error
    assert len(nas.load_run(copied).trials) == 5


@pytest.mark.usefixtures("cluster")
def test_a_table_is_replayed_and_the_search_finds_its_front(place: Path, tmp_path: Path) -> None:
    space = nas.SearchSpace.load(place / "few.toml")
    networks = space.sample(1000)
    rng = np.random.default_rng(0)
    table = {network.key: rng.random(3).round(3).tolist() for network in networks}
    (tmp_path / "table.json").write_text(json.dumps(table))
    own = {"trial": f'{{ name = "mine:replay", table = "{tmp_path}/table.json" }}', "trials": 1000}
    text = EXPERIMENT.format(**own, epochs=3, name="loss", direction="min").replace("resnet8", "few")
    (place / "replay.toml").write_text(text.replace('macs = "400K"', ""))
    said(place, "search", "replay.toml", "--run", tmp_path / "run")
    run = nas.load_run(tmp_path / "run")
    assert 20 < len(networks) < 60
    assert {t.started.key: [m["loss"] for m in t.curve] for t in run.record.trials.values()} == table
    points = {a.key: (table[a.key][-1], space.cost(a).params) for a in networks}
    best = {
        key for key, p in points.items() if not any(o[0] <= p[0] and o[1] <= p[1] and o != p for o in points.values())
    }
    assert set(run.front["key"]) == best
    assert run.pick("best") == run.trials["loss"].idxmin()
    assert f"best loss {run.trials['loss'].min():.4g} at" in said(place, "status", tmp_path / "run")
    page = run.report().read_text()
    assert "The best searched network, " in page
    assert f"reached {run.trials.loc[run.trials['kind'] == 'search', 'loss'].min():.4g} at " in page


def calibrated(place: Path, run: Path, *overrides: str) -> str:
    """Return what a calibration of an own trial prints; it is done in this process."""
    goals = "search.objectives=[{name='loss', direction='min'}, {name='params', direction='min'}]"
    plan = planned(nas.Experiment.load(place / "own.toml", [goals, "recipe.epochs=3", *overrides]), 9)
    store = Store.create(run, plan, SPACE.to_json(), {})
    work_alone(store, SPACE.feasible(), own_trial(plan.search))
    out = StringIO()
    print_calibration(Console(file=out, width=120, highlight=False), nas.load_run(run))
    return out.getvalue()


def test_an_own_trial_can_be_calibrated(place: Path, tmp_path: Path) -> None:
    """Its metric is compared as its direction says: these keep their order from the first epoch on."""
    text = calibrated(place, tmp_path / "run", "search.trial=mine:falling")
    assert "9 networks with all 3 epochs, " in text
    trusted = [line.split() for line in text.splitlines() if line.endswith(" yes     ")]
    assert [row[:2] for row in trusted] == [["1", "1.00"], ["2", "1.00"]]
    assert nas.load_run(tmp_path / "run").experiment.search.trial == Named(name="mine:falling")


def test_an_own_trial_that_ends_before_its_budget_is_calibrated_with_what_it_needs(place: Path, tmp_path: Path) -> None:
    sentence = "all 3 epochs, but the run has 0: 9 ended by themselves before, so calibrate with recipe.epochs=2."
    with pytest.raises(RecordError, match=f"{sentence}$"):
        calibrated(place, tmp_path / "run", "search.trial={name='mine:falling', at=2}")


SPACE = small_space()
TASK = Task(SPACE.base, SPACE.table, None, Recipe(epochs=2))


def asked(name: str, **params: Any) -> Search:
    goal = {"name": "score", "direction": "max"}
    return Search.model_validate({"trial": {"name": name, **params}, "objectives": [goal]})


def evaluated(name: str, **params: Any) -> list[tuple[int, dict[str, float]]]:
    function = own_trial(asked(name, **params))
    assert isinstance(function, OwnTrial)
    return list(islice(function(TASK, Job(0, SPACE.sample(1)[0], 0, "nowhere")), 9))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_metrics", "yield the objective 'score' in every epoch, but epoch 1 has only an empty dict: add it, or"),
        ("train", "yield the objective 'score' in every epoch, but epoch 1 has only 'iou', 'step': add it, or name an"),
        ("no_dict", "yield a dict of metrics by name an epoch, but yielded 0.5 in epoch 1."),
        ("no_name", "yield a dict of metrics by name an epoch, but yielded {1: 0.5} in epoch 1."),
        ("no_number", "yield numbers, but 'score' of epoch 1 is the Tensor tensor(0.5000): yield float(...) of it."),
        ("costs", "yield metrics by free names, but 'macs' is a column of the record: call it otherwise."),
        ("nothing", "yield a dict of metrics an epoch, but yielded nothing: yield at least one."),
        ("returned", "yield a dict of metrics an epoch, but returned {'score': 0.5}: yield the dicts, with `yield`."),
        ("endless", "yield at most 2 dicts (recipe.epochs), but yielded another: stop after `epochs`."),
    ],
)
def test_what_is_no_metric_is_one_sentence(place: Path, name: str, sentence: str) -> None:
    with pytest.raises(TrainingError) as caught:
        evaluated(f"mine:{name}")
    assert str(caught.value).startswith(f"search.trial 'mine:{name}' must {sentence}")
    assert "\n" not in str(caught.value)


def test_the_last_epoch_of_too_many_is_not_reported(place: Path) -> None:
    function = own_trial(asked("mine:endless"))
    assert function is not None
    epochs = function(TASK, Job(0, SPACE.sample(1)[0], 0, "nowhere"))
    assert next(epochs) == (1, {"score": 0.5})
    with pytest.raises(TrainingError):
        next(epochs)


def test_a_function_may_end_before_its_budget(place: Path) -> None:
    assert evaluated("mine:early") == [(1, {"score": 0.5})]


def test_an_own_training_is_guarded_as_ours_is(place: Path) -> None:
    """What was written with stride 2 is computed with stride 1."""
    assert evaluated("mine:guarded") == [(1, {"score": 1.0})]


def scores(folder: Path, known: int = 0, **params: Any) -> Iterator[tuple[int, float]]:
    """Yield what a trial with five epochs reports that saves its state in `folder`."""
    function = own_trial(asked("mine:counted", **params))
    assert function is not None
    task = Task(SPACE.base, SPACE.table, None, Recipe(epochs=5))
    for epoch, metrics in function(task, Job(0, SPACE.sample(1)[0], 0, folder, known)):
        yield epoch, metrics["score"]


WHOLE = [(1, 1.0), (2, 3.0), (3, 6.0), (4, 10.0), (5, 15.0)]


@pytest.mark.parametrize("known", [0, 1, 2, 4, 5])
def test_an_own_trial_goes_on_from_what_it_saved(place: Path, tmp_path: Path, known: int) -> None:
    assert list(islice(scores(tmp_path / "0"), known)) == WHOLE[:known]
    assert list(scores(tmp_path / "0", known)) == WHOLE[known:]


def test_an_epoch_that_was_saved_but_not_reported_is_not_trained_again(place: Path, tmp_path: Path) -> None:
    list(islice(scores(tmp_path / "0"), 3))
    assert list(scores(tmp_path / "0", 2)) == WHOLE[2:]


def test_an_own_trial_may_save_now_and_then(place: Path, tmp_path: Path) -> None:
    list(islice(scores(tmp_path / "0", at=[2]), 4))
    assert list(scores(tmp_path / "0", 4, at=[2])) == WHOLE[2:]


def test_a_state_that_cannot_be_saved_is_one_sentence(place: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^checkpoint.save must get tensors and JSON values by name, but: [^\n]*$"):
        next(scores(tmp_path / "0", odd=True))
    assert not (tmp_path / "0").exists()


@pytest.mark.parametrize(
    ("name", "params", "sentence"),
    [
        ("mine:trian", {}, "Module 'mine' has no function 'trian': valid are "),
        ("mine:number", {}, "Module 'mine' has no function 'number': valid are "),
        ("mine", {}, "Module 'mine' has no function '': valid are "),
        ("yours:train", {}, "search.trial 'yours:train' must name an importable module, but No module named 'yours': "),
        ("mine:needy", {}, "and with the parameters beside its name (none), but: missing a required argument: 'fold'."),
        ("mine:early", {"fold": 1}, "beside its name (fold), but: got an unexpected keyword argument 'fold'."),
        ("mine:needy", {"fold": 1, "seed": 1}, "beside its name (fold, seed), but: 'seed' is the search's to give."),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_anything_starts(
    place: Path, name: str, params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ExperimentError) as caught:
        own_trial(asked(name, **params))
    assert sentence in str(caught.value)
    written = ", ".join(f"{key} = {json.dumps(value)}" for key, value in {"name": name, **params}.items())
    with pytest.raises(ExperimentError) as caught:
        nas.search(nas.Experiment.load(place / "own.toml", [f"search.trial={{{written}}}"]), place / "new")
    assert sentence in str(caught.value)
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["recipe.batch_size=7"],
            "'mine:train' takes recipe.epochs alone, but recipe.batch_size is set: leave it",
        ),
        (["train={init='inherit', checkpoint='w.pt'}"], "takes recipe.epochs alone, but train is set: leave it out"),
        (
            ["search.objectives=[{name='seconds', direction='min'}]"],
            "must be distinct names other than 'epochs', ",
        ),
        (["search.trial={lr=1}"], "needs the key 'search.trial.name': add it."),
    ],
)
def test_settings_that_do_nothing_are_refused(place: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(BsconvNasError) as caught:
        nas.Experiment.load(place / "own.toml", overrides)
    assert sentence in str(caught.value)


def test_the_built_in_training_keeps_its_objectives(place: Path) -> None:
    text = (place / "own.toml").read_text()
    (place / "built_in.toml").write_text(text.replace('trial = "mine:train"', ""))
    with pytest.raises(ExperimentError, match="objectives must be distinct names of 'val_accuracy', 'val_loss', 'tr"):
        nas.Experiment.load(place / "built_in.toml")


@pytest.mark.usefixtures("cluster")
def test_data_of_the_file_are_loaded_and_given(place: Path, tmp_path: Path) -> None:
    """Their size is that of the networks, as with the built-in training."""
    goals = "search.objectives=[{name='score', direction='max'}]"
    changes = ["data={name='digits', resolution=12, limit=100}", "search.trial=mine:shown", goals, "search.trials=0"]
    run = nas.search(nas.Experiment.load(place / "own.toml", [*changes, "budget={}"]), tmp_path / "run")
    counts = run.store.environment["data"]["counts"]
    assert run.trials[["score", "size"]].to_numpy().tolist() == [[counts["train"], 12.0]] * 2
    assert nas.load_run(run.path).experiment.images == run.experiment.data


def test_a_gpu_is_shared_only_if_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of the built-in training says nothing about another one."""
    monkeypatch.setattr("bsconv_nas.search.gpus.living_nodes", lambda: [{"Resources": {"GPU": 1.0}}])
    monkeypatch.setattr("bsconv_nas.search.gpus.costliest", lambda feasible: pytest.fail("a step is measured"))
    choice = decide(Resources(workers=4), TASK, nas.Budget(), own=True)
    assert choice.gpus_per_trial == 1.0
    assert "say by resources.gpus_per_trial what search.trial needs" in choice.sentence
    assert decide(Resources(workers=4, gpus_per_trial=0.25), TASK, nas.Budget(), own=True).gpus_per_trial == 0.25


def test_a_step_that_no_node_has_room_for_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Resources": {"GPU": 1.0, "CPU": 1.0}}]
    for module in ("gpus", "cluster"):
        monkeypatch.setattr(f"bsconv_nas.search.{module}.living_nodes", lambda: nodes)
    monkeypatch.setattr("bsconv_nas.search.gpus.costliest", lambda feasible: pytest.fail("a step is measured"))
    choice = decide(Resources(workers=4, cpus_per_trial=2), TASK, nas.Budget(), own=False)
    assert choice.gpus_per_trial == 1.0
    assert "no node has a GPU and the CPUs of a trial" in choice.sentence
