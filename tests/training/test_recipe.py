import math
import re

import pytest
import torch

from bsconv_nas.errors import ExperimentError
from bsconv_nas.training.recipe import Recipe, learning_rate


def test_a_recipe_reads_the_values_of_a_toml_file():
    recipe = Recipe(**{"epochs": 200, "learning_rate": 1, "schedule": "steps", "milestones": [100, 150, 180]})
    assert recipe.milestones == (100, 150, 180)
    assert hash(recipe) == hash(Recipe(epochs=200, learning_rate=1, schedule="steps", milestones=(100, 150, 180)))


def torch_rates(make, epochs, rate=0.2):
    """Return the rates at the start of each epoch by torch's own scheduler."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate, momentum=0.9)
    scheduler = make(sgd)
    rates = []
    for _ in range(epochs):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    return rates


LR = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("fields", "make"),
    [
        ({"schedule": "constant"}, lambda sgd: LR.ConstantLR(sgd, factor=1.0)),
        ({"schedule": "cosine"}, lambda sgd: LR.CosineAnnealingLR(sgd, T_max=200)),
        ({"schedule": "linear"}, lambda sgd: LR.LinearLR(sgd, start_factor=1.0, end_factor=0.0, total_iters=200)),
        ({"schedule": "steps"}, lambda sgd: LR.MultiStepLR(sgd, [100, 150, 180])),
        (
            {"schedule": "steps", "milestones": [0.25, 100], "factor": 0.2},
            lambda sgd: LR.MultiStepLR(sgd, [50, 100], gamma=0.2),
        ),
    ],
    ids=["constant", "cosine", "linear", "published steps", "steps mixed"],
)
def test_a_schedule_equals_torchs(fields, make):
    recipe = Recipe(epochs=200, learning_rate=0.2, **fields)
    ours = [learning_rate(recipe, epoch) for epoch in range(200)]
    assert ours == pytest.approx(torch_rates(make, 200), abs=1e-12)


def test_one_cycle_equals_torchs():
    recipe = Recipe(epochs=1000, learning_rate=0.2, schedule="one_cycle")
    theirs = torch_rates(lambda sgd: LR.OneCycleLR(sgd, 0.2, total_steps=10_000), 10_000)
    # torch spreads n steps over [0, 1] with both ends, we over the epochs: a shift of at most one step.
    ours = [learning_rate(recipe, step / 9_999 * 1000) for step in range(10_000)]
    assert ours == pytest.approx(theirs, abs=2e-4)
    assert max(ours) == pytest.approx(0.2)
    assert ours[-1] == pytest.approx(0.2 / 25e4)


def test_the_warm_up_rises_linearly_and_the_schedule_begins_behind_it():
    recipe = Recipe(epochs=10, learning_rate=0.1, warmup_epochs=2)
    assert [learning_rate(recipe, p) for p in (0, 0.5, 1, 1.5)] == pytest.approx([0, 0.025, 0.05, 0.075])
    assert learning_rate(recipe, 2) == pytest.approx(0.1)
    assert learning_rate(recipe, 6) == pytest.approx(0.05)
    assert learning_rate(recipe, 8) == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.75)))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"epochs": 0}, "recipe.epochs must be a whole number of at least 1, but got 0."),
        ({"epochs": True}, "recipe.epochs must be a whole number of at least 1, but got True."),
        ({"batch_size": 12.5}, "recipe.batch_size must be a whole number of at least 1, but got 12.5."),
        ({"learning_rate": 0}, "recipe.learning_rate must be a number above 0, but got 0."),
        ({"learning_rate": "0.1"}, "recipe.learning_rate must be a number above 0, but got '0.1'."),
        ({"learning_rate": math.nan}, "recipe.learning_rate must be a number above 0, but got nan."),
        ({"momentum": 1.0}, "recipe.momentum must be a number in [0, 1), but got 1.0."),
        ({"nesterov": 1}, "recipe.nesterov must be true or false, but got 1."),
        ({"momentum": 0}, "recipe.nesterov needs recipe.momentum above 0, but got 0: set nesterov = false."),
        ({"weight_decay": -1e-4}, "recipe.weight_decay must be a number of at least 0, but got -0.0001."),
        ({"schedule": "cosin"}, "Unknown recipe.schedule 'cosin': valid are 'constant', 'cosine', 'linear', "),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": 3}, "recipe.schedule must be one of 'constant', 'cosine', 'linear', 'one_cycle', 'steps', but"),
        ({"milestones": [0.9, 0.5]}, "recipe.milestones must be a list of rising numbers above 0, but got (0.9, 0.5)."),
        ({"milestones": 0.5}, "recipe.milestones must be a list of rising numbers above 0, but got 0.5."),
        ({"milestones": []}, "recipe.milestones must be a list of rising numbers above 0, but got ()."),
        (
            {"schedule": "steps", "milestones": [100, 150]},
            "recipe.milestones must lie inside recipe.epochs = 20, but got (100, 150): give fractions such as 0.5",
        ),
        ({"factor": 0}, "recipe.factor must be a number in (0, 1], but got 0."),
        ({"warmup_epochs": 20}, "recipe.warmup_epochs must be less than recipe.epochs = 20, but got 20."),
        (
            {"schedule": "one_cycle", "warmup_epochs": 1},
            "The schedule 'one_cycle' warms up by itself, but recipe.warmup_epochs is 1: set it to 0.",
        ),
        ({"label_smoothing": 1}, "recipe.label_smoothing must be a number in [0, 1), but got 1."),
        ({"ema": 1.0}, "recipe.ema must be a decay in [0, 1), 0 being off, but got 1.0."),
        ({"precision": "fp16"}, "Unknown recipe.precision 'fp16': valid are 'auto', 'bf16', 'fp32'"),
        ({"channels_last": "yes"}, "recipe.channels_last must be true, false or 'auto', but got 'yes'."),
        ({"clip": -1}, "recipe.clip must be a number of at least 0, 0 being off, but got -1."),
        ({"flip": "no"}, "recipe.flip must be true or false, but got 'no'."),
        ({"crop": -1}, "recipe.crop must be a whole number of at least 0, but got -1."),
        ({"cutout": 1.5}, "recipe.cutout must be a whole number of at least 0, but got 1.5."),
    ],
)
def test_a_value_outside_its_law_is_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ExperimentError, match=re.escape(sentence)):
        Recipe(**fields)
