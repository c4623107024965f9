import copy
import json
import math
import re
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bsconv_nas.errors import DataError, DivergedError, TrainingError
from bsconv_nas.training.data import DataSpec, load, load_test
from bsconv_nas.training.loop import Trainer, evaluate, train
from bsconv_nas.training.recipe import Recipe, learning_rate


@pytest.fixture(scope="module")
def digits():
    return load(DataSpec())


@pytest.fixture(scope="module")
def few():
    return load(DataSpec(limit=300))


def network(classes=10, seed=0, dropout=0.0, channels=1):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


EVERYTHING = {"ema": 0.9, "flip": True, "crop": 1, "cutout": 3, "label_smoothing": 0.1, "clip": 1.0, "warmup_epochs": 1}


def measured(results):
    """Return what the results say besides their times."""
    return [(r.epoch, r.train_loss, r.val_loss, r.val_accuracy, r.learning_rate) for r in results]


def assert_equal_tensors(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_small_network_learns_the_digits(digits):
    model = network()
    results = list(train(model, digits, Recipe(epochs=6, batch_size=64, crop=1), seed=0))
    assert [result.epoch for result in results] == [1, 2, 3, 4, 5, 6]
    assert results[-1].val_accuracy > 0.9
    assert results[-1].train_loss < 0.5 * results[0].train_loss
    loss, accuracy = evaluate(model, load_test(DataSpec()))
    assert accuracy > 0.9
    assert loss < 0.4
    assert evaluate(model, digits, "selection") == pytest.approx(
        (results[-1].val_loss, results[-1].val_accuracy), abs=1e-5
    )


def test_two_trainings_with_one_seed_are_bitwise_equal_and_another_seed_is_not(few):
    recipe = Recipe(epochs=3, batch_size=32, **EVERYTHING)
    models = [network(dropout=0.2) for _ in range(3)]
    results = [list(train(model, few, recipe, seed=seed)) for model, seed in zip(models, (3, 3, 4), strict=True)]
    assert measured(results[0]) == measured(results[1])
    assert_equal_tensors(models[0].state_dict(), models[1].state_dict())
    assert measured(results[0]) != measured(results[2])


def test_every_epoch_has_its_own_order_and_augmentation(few):
    class Recorded(nn.Flatten):
        def forward(self, x):
            if self.training:
                batches.append(x.clone())
            return super().forward(x)

    batches = []
    model = nn.Sequential(Recorded(), nn.Linear(64, 10))
    list(train(model, few, Recipe(epochs=3, batch_size=1000), seed=0))
    pictures = [torch.unique(batch.flatten(1), dim=0) for batch in batches]
    assert torch.equal(pictures[0], pictures[1])  # the same images ...
    assert not torch.equal(batches[0], batches[1])  # ... in another order
    assert not torch.equal(batches[1], batches[2])


def test_training_leaves_the_callers_random_numbers_alone(few):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10, bias=False).requires_grad_())
    torch.manual_seed(9)
    list(train(model, few, Recipe(epochs=1), seed=0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_by_bit(few, stop):
    recipe = Recipe(epochs=4, batch_size=32, **EVERYTHING)
    through = Trainer(network(dropout=0.2), few, recipe, seed=3)
    expected = measured(through.epochs())

    first = Trainer(network(dropout=0.2), few, recipe, seed=3)
    begun = [first.run_epoch() for _ in range(stop)]
    tensors, meta = first.state()
    meta = json.loads(json.dumps(meta))
    first.run_epoch()  # what the state holds must not move on with the training

    torch.manual_seed(123)
    second = Trainer(network(seed=7, dropout=0.2), few, recipe, seed=3)
    second.load_state(tensors, meta)
    assert measured([*begun, *second.epochs()]) == expected
    assert_equal_tensors(second.state()[0], through.state()[0])
    assert_equal_tensors(second.final_model().state_dict(), through.final_model().state_dict())


def test_train_resumes_from_a_state(few):
    recipe = Recipe(epochs=3, batch_size=64)
    first = Trainer(network(), few, recipe, seed=1)
    begun = first.run_epoch()
    rest = list(train(network(seed=5), few, recipe, seed=1, resume=first.state()))
    assert measured([begun, *rest]) == measured(train(network(), few, recipe, seed=1))


def test_a_state_is_plain_tensors_and_json(few):
    trainer = Trainer(network(), few, Recipe(epochs=2, ema=0.5), seed=1)
    trainer.run_epoch()
    tensors, meta = trainer.state()
    assert {name.partition(".")[0] for name in tensors} == {"model", "ema", "momentum_buffer"}
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in tensors.values())
    from safetensors.torch import load as parse
    from safetensors.torch import save

    assert_equal_tensors(parse(save(tensors)), tensors)
    assert meta == {"epoch": 1, "seed": 1}
    untouched = Trainer(network(), few, Recipe(epochs=2, ema=0.5), seed=1).state()[0]
    assert untouched.keys() == tensors.keys()


def test_a_state_of_another_network_recipe_or_seed_is_refused(few):
    recipe = Recipe(epochs=2)
    state = Trainer(network(), few, recipe, seed=1).state()
    with pytest.raises(
        TrainingError, match=r"this one differs in 4 tensors, first 'model.9.bias': resume with the network"
    ):
        Trainer(network(classes=12), classes_of(few, 12), recipe, seed=1).load_state(*state)
    with pytest.raises(
        TrainingError, match="A checkpoint must be of the same network and recipe, but this one differs"
    ):
        Trainer(network(), few, Recipe(epochs=2, ema=0.5), seed=1).load_state(*state)
    with pytest.raises(TrainingError, match=re.escape("but seed 2 met {'epoch': 0, 'seed': 1}.")):
        Trainer(network(), few, recipe, seed=2).load_state(*state)


def classes_of(dataset, count):
    """Return `dataset` as if it had `count` classes."""
    from dataclasses import replace

    return replace(dataset, class_names=tuple(map(str, range(count))))


class Penalised(nn.Linear):
    def penalty(self):
        return 0.5 * self.weight.square().sum()


def one_step(few, model, **fields):
    """Train one epoch of one batch with plain gradient descent and return the result."""
    recipe = Recipe(
        epochs=1, batch_size=1000, momentum=0, nesterov=False, weight_decay=0, schedule="constant", **fields
    )
    return next(train(model, few, recipe, seed=0))


def test_penalties_are_added_to_the_loss_and_to_its_gradient(few):
    plain, penalised = (nn.Sequential(nn.Flatten(), kind(64, 10)) for kind in (nn.Linear, Penalised))
    penalised.load_state_dict(plain.state_dict())
    before = plain[1].weight.detach().clone()
    without, with_penalty = one_step(few, plain), one_step(few, penalised)
    assert with_penalty.train_loss == pytest.approx(without.train_loss + 0.5 * before.square().sum().item(), rel=1e-6)
    assert penalised[1].weight.detach() == pytest.approx(plain[1].weight.detach() - 0.1 * before, abs=1e-6)


def test_label_smoothing_is_in_the_training_loss_only(few):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images, labels = next(few.loader("train").batches(10**6))
    expected = functional.cross_entropy(model(images), labels, label_smoothing=0.3).item()
    result = one_step(few, model, label_smoothing=0.3)
    assert result.train_loss == pytest.approx(expected, rel=1e-5)
    images, labels = next(few.loader("selection").batches(10**6))
    assert result.val_loss == pytest.approx(functional.cross_entropy(model(images), labels).item(), rel=1e-5)


def test_clipping_bounds_the_step(few):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    one_step(few, model, clip=1e-2)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert moved.norm() == pytest.approx(0.1 * 1e-2, rel=1e-3)


def test_the_ema_weights_are_validated_and_kept(few):
    recipe = Recipe(epochs=2, batch_size=100, ema=0.3, learning_rate=0.5)
    trainer = Trainer(network(), few, recipe, seed=0)
    results = list(trainer.epochs())
    kept, raw = trainer.final_model(), trainer._model
    assert evaluate(kept, few, "selection") == pytest.approx((results[-1].val_loss, results[-1].val_accuracy), abs=1e-5)
    assert evaluate(raw, few, "selection")[0] != pytest.approx(results[-1].val_loss, abs=1e-3)
    assert type(kept) is nn.Sequential
    assert not kept.training


def test_ema_follows_its_formula_with_the_published_warm_up(few):
    weights = []

    class Recorded(nn.Linear):
        def forward(self, x):
            if self.training:
                weights.append(self.weight.detach().clone())
            return super().forward(x)

    model = nn.Sequential(nn.Flatten(), Recorded(64, 10))
    trainer = Trainer(model, few, Recipe(epochs=2, batch_size=40, ema=0.9), seed=0)
    list(trainer.epochs())
    weights = [*weights[1:], model[1].weight.detach()]  # after each step
    average = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert len(weights) == 12
    assert trainer.final_model()[1].weight.detach() == pytest.approx(average, abs=1e-6)


def test_a_final_model_is_a_copy_in_plain_layout(few):
    trainer = Trainer(network(), few, Recipe(epochs=2, channels_last=True), seed=0)
    trainer.run_epoch()
    final = trainer.final_model()
    before = copy.deepcopy(final.state_dict())
    trainer.run_epoch()
    assert_equal_tensors(final.state_dict(), before)
    assert all(tensor.is_contiguous() for tensor in final.state_dict().values())
    assert not trainer._model[3].weight.is_contiguous()


def test_the_learning_rate_follows_the_schedule_by_step(few):
    rates = []

    class Watched(Trainer):
        def _set_rate(self, rate):
            rates.append(rate)
            super()._set_rate(rate)

    recipe = Recipe(epochs=2, batch_size=80, learning_rate=0.1)
    results = list(Watched(network(), few, recipe, seed=0).epochs())
    middles = [1 / 6, 3 / 6, 5 / 6, 7 / 6, 9 / 6, 11 / 6]
    assert rates == pytest.approx([learning_rate(recipe, middle) for middle in middles])
    assert [result.learning_rate for result in results] == [rates[2], rates[5]]


@pytest.mark.parametrize("rate", [1e30, 1e4])
def test_a_diverging_loss_ends_the_training_with_its_epoch(few, rate):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    seen = []
    with pytest.raises(DivergedError, match=r"The loss must stay finite, but was (nan|inf) in epoch") as caught:
        seen.extend(train(model, few, Recipe(epochs=50, batch_size=50, learning_rate=rate, weight_decay=0), seed=0))
    assert caught.value.epoch == len(seen) + 1
    assert not math.isfinite(caught.value.loss)


def test_divergence_is_noticed_within_an_epoch(few):
    class Broken(nn.Linear):
        def forward(self, x):
            steps.append(len(x))
            return super().forward(x) * (math.nan if len(steps) > 3 else 1.0)

    steps = []
    with pytest.raises(DivergedError, match="was nan in epoch 1"):
        next(train(nn.Sequential(nn.Flatten(), Broken(64, 10)), few, Recipe(epochs=1, batch_size=2), seed=0))
    assert 3 < len(steps) < 60 < len(few.parts["train"].labels) / 2


def test_a_network_that_only_validates_to_nan_has_diverged(few):
    model = network()
    model[1].running_var.fill_(math.nan)
    model[1].track_running_stats = True
    model[1].momentum = 0.0
    with pytest.raises(DivergedError, match="was nan in epoch 1"):
        next(train(model, few, Recipe(epochs=1), seed=0))


def test_a_network_for_other_classes_is_refused(few):
    with pytest.raises(
        TrainingError, match=r"one logit a class, \(120, 10\), but answered with \(120, 7\): set its num_cl"
    ):
        next(train(network(classes=7), few, Recipe(epochs=1), seed=0))
    with pytest.raises(DataError, match="has no part 'test' here"):
        evaluate(network(), few)


def test_bf16_trains_too_and_fp32_is_what_a_cpu_gets(few):
    fields = {"epochs": 2, "batch_size": 32}
    auto, fp32, bf16 = (
        measured(train(network(), few, Recipe(precision=p, **fields), seed=0)) for p in ("auto", "fp32", "bf16")
    )
    assert auto == fp32
    assert bf16 != fp32
    assert bf16[-1][1] == pytest.approx(fp32[-1][1], rel=0.1)


def test_channels_last_changes_the_layout_and_not_the_mathematics(few):
    last, plain = (measured(train(network(), few, Recipe(epochs=1, channels_last=c), seed=0)) for c in ("auto", False))
    assert last[0][1] == pytest.approx(plain[0][1], rel=1e-3)


def test_large_images_train_from_their_files(generated):
    generated.folder((100, 90), ("train",), count=20)
    dataset = load(DataSpec("folder", resolution=72))
    recipe = Recipe(epochs=4, batch_size=8, learning_rate=0.05, crop=1, flip=True, cutout=8)
    runs = [list(train(network(classes=2, channels=3), dataset, recipe, seed=0)) for _ in range(2)]
    assert measured(runs[0]) == measured(runs[1])
    assert runs[0][-1].val_accuracy == 1.0


def test_times_add_up(few):
    start = time.perf_counter()
    result = next(train(network(), few, Recipe(epochs=1, batch_size=16), seed=0))
    assert 0 < result.seconds < time.perf_counter() - start
    assert result.images_per_second >= len(few.parts["train"].labels) / result.seconds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_resumes_and_gives_its_network_back(digits):
    recipe = Recipe(epochs=6, batch_size=64, crop=1, ema=0.9)
    trainer = Trainer(network(), digits, recipe, seed=0, device="cuda")
    for _ in range(3):
        trainer.run_epoch()
    resumed = Trainer(network(seed=1), digits, recipe, seed=0, device="cuda")
    resumed.load_state(*trainer.state())
    results = list(resumed.epochs())
    assert results[-1].val_accuracy > 0.9
    final = resumed.final_model()
    assert next(final.parameters()).device.type == "cpu"
    assert evaluate(final, digits, "selection")[1] == pytest.approx(results[-1].val_accuracy, abs=0.02)
    assert np.isfinite(results[-1].val_loss)


class Answering(nn.Module):
    """A network that answers otherwise in training."""

    def __init__(self, answer):
        super().__init__()
        self.inner, self.answer = network(), answer

    def forward(self, x):
        return self.answer(self.inner(x)) if self.training else self.inner(x)


@pytest.mark.parametrize(
    ("answer", "named"),
    [(lambda y: {"out": y}, "dict"), (lambda y: (y, y), "tuple"), (lambda y: y[:, :3], r"\(\d+, 3\)")],
)
def test_an_answer_that_is_no_classifiers_is_refused(answer, named, few):
    with pytest.raises(TrainingError, match=rf"one logit a class, \(\d+, 10\), but answered with {named}: set its"):
        next(train(Answering(answer), few, Recipe(epochs=1, batch_size=32), seed=0))
