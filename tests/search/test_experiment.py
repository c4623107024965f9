import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from bsconv_nas.errors import BsconvNasError, BudgetError, ExperimentError
from bsconv_nas.search.experiment import Experiment, Named
from bsconv_nas.search.record import Objective
from bsconv_nas.training.recipe import Recipe
from bsconv_nas.training.spec import DataSpec


def test_a_file_is_resolved_against_its_folder_and_named_after_itself(experiment, tmp_path):
    assert experiment.name == "tiny"
    assert experiment.space == str(tmp_path / "experiments" / "spaces" / "tiny.toml")
    assert experiment.data == DataSpec("digits", root=str(tmp_path / "data"))
    assert experiment.recipe == Recipe(epochs=3, milestones=(0.5, 0.75))
    assert experiment.retrain_recipe == Recipe(epochs=9, milestones=(0.5, 0.75))
    assert experiment.search.sampler == Named(name="nsga2", params={"population_size": 8})
    assert experiment.search.objectives == (Objective("val_accuracy", "max"), Objective("macs", "min"))
    assert experiment.budget == {"macs": "20M"}


def test_the_defaults_are_those_of_the_contract(tmp_path):
    (tmp_path / "least.toml").write_text('space = "s.toml"')
    experiment = Experiment.load(tmp_path / "least.toml")
    assert (experiment.data, experiment.recipe) == (DataSpec(), Recipe())
    search = experiment.search
    assert (search.sampler.name, search.scheduler.name) == ("additive", "none")
    assert (search.trials, search.seed, search.baselines, experiment.retrain.seeds) == (24, 0, 12, 5)
    assert search.objectives == (Objective("val_accuracy", "max"),)
    assert (experiment.budget, experiment.resources.workers) == ({}, 1)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("search.seed=7", lambda e: e.search.seed == 7),
        ("search.sampler=random", lambda e: e.search.sampler == Named(name="random")),
        ('search.sampler = "random"', lambda e: e.search.sampler == Named(name="random")),
        ("search.sampler.population_size=4", lambda e: e.search.sampler.params == {"population_size": 4}),
        ("search.scheduler={name='asha', eta=4}", lambda e: e.search.scheduler.params == {"eta": 4}),
        ("recipe.learning_rate=1e-2", lambda e: e.recipe.learning_rate == 0.01),
        ("recipe.flip=true", lambda e: e.recipe.flip is True),
        ("retrain.recipe.ema=0.9", lambda e: (e.retrain_recipe.ema, e.retrain_recipe.epochs) == (0.9, 9)),
        ("budget.macs=[1000, 2000]", lambda e: e.budget == {"macs": [1000, 2000]}),
        ("budget.memory=2MiB", lambda e: e.budget == {"macs": "20M", "memory": "2MiB"}),
        ("resources.gpus_per_trial=0.25", lambda e: e.resources.gpus_per_trial == 0.25),
        ("name=other", lambda e: e.name == "other"),
        ("data.root=/data", lambda e: e.data.root == "/data"),
        ("data.root=pictures", lambda e: e.data.root == str(Path.cwd() / "pictures")),
        ("space=s.toml", lambda e: e.space == str(Path.cwd() / "s.toml")),
    ],
)
def test_overrides_are_toml_values_or_bare_words(experiment_file, override, read):
    assert read(Experiment.load(experiment_file, [override]))


def test_the_last_override_wins(experiment_file):
    assert Experiment.load(experiment_file, ["search.seed=1", "search.seed=2"]).search.seed == 2


PLACE = "{place}"
BAD = [
    ("search.sead=1", "Unknown key 'search.sead' in '{place}': valid are 'baselines', 'objectives', 'sampler', "),
    ("search.sead=1", "did you mean 'seed'"),
    ("budgte.macs=1", "did you mean 'budget'"),
    ("recipe.epoch=1", "Unknown key 'recipe.epoch' in '{place}': valid are 'batch_size',"),
    ("retrain.recipe.epoch=1", "Unknown key 'retrain.recipe.epoch' in '{place}': valid are 'batch_size',"),
    ("retrain.epochs=1", "Unknown key 'retrain.epochs' in '{place}': valid are 'members', 'recipe', 'seeds'"),
    ("data.nam=digits", "Unknown key 'data.nam' in '{place}': valid are"),
    ("data.name=digit", "In [data] of '{place}': Unknown data.name 'digit': valid are"),
    ("recipe.epochs=0", "In [recipe] of '{place}': recipe.epochs must be a whole number of at least 1, but got 0."),
    ("retrain.recipe.epochs=0", "In [retrain.recipe] of '{place}': recipe.epochs must be a whole number of at least"),
    ("recipe=3", "Key 'recipe' in '{place}' must be a table, but got 3."),
    ("data=3", "Key 'data' in '{place}' must be a table, but got 3."),
    ("search.trials=-1", "Key 'search.trials' in '{place}': it must be at least 0, but got -1."),
    ("search.trials=many", "Key 'search.trials' in '{place}': it must be a whole number"),
    ("search.trials=true", "Key 'search.trials' in '{place}': it must be a whole number, but got True."),
    ('search.seed="1"', "Key 'search.seed' in '{place}': it must be a whole number, but got '1'."),
    ("search.baselines=true", "Key 'search.baselines' in '{place}': it must be a whole number, but got True."),
    ("train.images=true", "Key 'train.images' in '{place}': it must be a whole number, but got True."),
    ("retrain.seeds=true", "Key 'retrain.seeds' in '{place}': it must be a whole number, but got True."),
    ("retrain.members=true", "Key 'retrain.members' in '{place}': it must be a whole number, but got True."),
    ("search.objectives=[]", "Key 'search.objectives' in '{place}': it must not be empty"),
    ("search.sampler={eta=3}", "'{place}' needs the key 'search.sampler.name': add it."),
    ("search.sampler=", "Key 'search.sampler.name' in '{place}': it must not be empty"),
    ("name=a/b", "Key 'name' in '{place}': String should match pattern"),
    ("resources.workers=0", "Key 'resources.workers' in '{place}': it must be at least 1"),
    ("resources.workers=true", "Key 'resources.workers' in '{place}': it must be a whole number, but got True."),
    (
        "resources.cpus_per_trial=true",
        "'resources.cpus_per_trial' in '{place}': it must be a number, but got True.",
    ),
    ("resources.timeout_minutes=true", "'resources.timeout_minutes' in '{place}': it must be a number, but got True."),
    ("resources.gpus_per_trial=true", "'{place}': it must be a number of at least 0, or 'auto', but got True."),
    ("resources.gpus_per_trial=aut", "Key 'resources.gpus_per_trial' in '{place}': it must be a number of at least 0"),
    ("budget.mac=1", "In [budget] of '{place}': Unknown budget 'mac': valid are"),
    ("budget.macs=much", "In [budget] of '{place}': Budget 'macs' must be a number of at least 0"),
    ("search.seed", "An override must read key=value, such as search.seed=1, but got 'search.seed'."),
    (".seed=1", "An override must read key=value, such as search.seed=1, but got '.seed=1'."),
    ("space.x=1", "The override 'space.x=1' needs the table 'space', but the file has 'spaces/tiny.toml' there."),
]


@pytest.mark.parametrize(("override", "sentence"), BAD)
def test_a_bad_value_is_refused_by_one_sentence(experiment_file, override, sentence):
    with pytest.raises(BsconvNasError) as caught:
        Experiment.load(experiment_file, [override])
    assert isinstance(caught.value, ExperimentError | BudgetError)
    assert sentence.format(place=f"{experiment_file} --set {override}") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "guilty"),
    [
        (["search.seed=1", "search.trials=-1", "search.baselines=3"], "search.trials=-1"),
        (["search.trials=-1", "recipe.epochs=0"], "recipe.epochs=0"),  # the first that is looked at
        (["search.seed=-2", "search.seed=-1"], "search.seed=-1"),
        (["recipe.epochs=4", "recipe.milestones=[2,1]", "search.seed=1"], "recipe.milestones=[2,1]"),
        (["budget.macs=1K", "budget.params=x", "budget.macs=2K"], "budget.params=x"),
    ],
)
def test_of_several_overrides_the_wrong_one_is_named(experiment_file, overrides, guilty):
    with pytest.raises(BsconvNasError) as caught:
        Experiment.load(experiment_file, overrides)
    assert f"'{experiment_file} --set {guilty}'" in str(caught.value)
    assert str(caught.value).count("--set") == 1


def test_what_is_wrong_in_the_file_is_no_overrides_fault(experiment_file):
    experiment_file.write_text(experiment_file.read_text().replace("trials = 6", "trials = -6"))
    with pytest.raises(ExperimentError, match=rf"^Key 'search.trials' in '{experiment_file}': it must be"):
        Experiment.load(experiment_file, ["search.seed=1"])
    assert Experiment.load(experiment_file, ["search.trials=6"]).search.trials == 6


@pytest.mark.parametrize(
    ("objectives", "sentence"),
    [
        ('[{name = "macz", direction = "min"}]', "objectives must be distinct names of 'val_accuracy', 'val_loss', "),
        ('[{name = "macs", direction = "min"}, {name = "macs", direction = "max"}]', "objectives must be distinct"),
        ('[{name = "macs", direction = "down"}]', "Key 'search.objectives.0.direction' in"),
        ('[{name = "macs", direction = "min", weight = 2}]', "Unknown key 'search.objectives.0.weight' in"),
        ('[{name = "macs"}]', "needs the key 'search.objectives.0.direction': add it."),
    ],
)
def test_objectives_are_known_distinct_and_directed(experiment_file, objectives, sentence):
    with pytest.raises(ExperimentError) as caught:
        Experiment.load(experiment_file, [f"search.objectives={objectives}"])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs the key 'space': add it."),
        ("space = ", "must be valid TOML, but: Invalid value (at end of document)."),
        ("space = 3", "Key 'space' in"),
        ('space = ""', "Key 'space' in"),
        ('space = "a"\nsearch = 1', "Key 'search' in"),
        ('space = "a"\nbudget = 1', "Key 'budget' in"),
    ],
)
def test_a_bad_file_is_refused_by_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ExperimentError) as caught:
        Experiment.load(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ExperimentError, match=r"No file '.*none\.toml'"):
        Experiment.load(tmp_path / "none.toml")


def test_the_json_form_is_complete_and_moves_with_the_project(experiment, tmp_path):
    run = tmp_path / "runs" / "tiny-1"
    text = json.dumps(experiment.to_json(run), allow_nan=False)
    read = Experiment.from_json(json.loads(text), run)
    assert read.model_copy(update={"space": experiment.space}) == experiment
    assert str(tmp_path) not in text
    assert json.loads(text)["space"] == "tiny.toml"
    assert json.loads(text)["data"]["root"] == "../../data"
    moved = Experiment.from_json(json.loads(text), "/elsewhere/runs/tiny-1")
    assert moved.data.root == "/elsewhere/data"


@pytest.mark.parametrize("root", ["/private/data", "~/data"])
def test_the_json_form_holds_no_absolute_path(experiment_file, tmp_path, root):
    overrides = [f"data.root={root}", f"space={tmp_path}/spaces/tiny.toml"]
    data = Experiment.load(experiment_file, overrides).to_json(tmp_path / "runs" / "x")
    assert (data["data"]["root"], data["space"]) == (None, "tiny.toml")
    assert str(Path.home()) not in json.dumps(data).replace('"/"', "")


def test_experiments_are_written_in_python_too():
    experiment = Experiment(name="x", space="s.toml", recipe={"epochs": 2}, search={"sampler": "random"})
    assert (experiment.recipe, experiment.search.sampler.name) == (Recipe(epochs=2), "random")
    assert experiment.to_json(Path("runs/x-1").absolute())["space"] == "s.toml"
    with pytest.raises(ValidationError, match="Unexpected"):
        Experiment(name="x", space="s.toml", recipe={"epoch": 2})


def test_an_experiment_is_frozen(experiment):
    with pytest.raises(ValidationError, match="frozen"):
        experiment.name = "other"


def test_no_heavy_library_is_imported():
    code = "import sys, bsconv_nas.search.store, bsconv_nas.search.status;"
    code += "print([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
