import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from small_search import new_run, small_space, task_of

from bsconv_nas.errors import DivergedError
from bsconv_nas.search.checkpoint import load_checkpoint
from bsconv_nas.search.trial import Job, Task, train, trial_seed
from bsconv_nas.training.recipe import Recipe

SPACE = small_space()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    torch.set_num_threads(1)
    return task_of(SPACE, new_run(tmp_path / "run", SPACE))


def job(folder: Path, seed: int = 3, epochs: int = 0) -> Job:
    network = SPACE.feasible().sample(1, np.random.default_rng(0))[0]
    return Job(0, network, seed, str(folder), epochs)


def test_a_candidate_learns(task: Task, tmp_path: Path) -> None:
    results = list(train(task, job(tmp_path / "a")))
    assert [epoch for epoch, _ in results] == [1, 2, 3]
    assert results[-1][1]["val_accuracy"] > 0.5
    assert results[-1][1]["train_loss"] < results[0][1]["train_loss"]


def test_its_seed_reproduces_a_trial(task: Task, tmp_path: Path) -> None:
    first, second, other = (
        list(train(task, job(tmp_path / name, seed))) for name, seed in zip("abc", (3, 3, 4), strict=True)
    )
    assert first == second
    assert first != other


def test_its_seed_draws_the_initial_weights(task: Task, tmp_path: Path) -> None:
    still = dataclasses.replace(task, recipe=Recipe(epochs=1, batch_size=64, learning_rate=1e-12))
    for name, seed in (("a", 3), ("b", 4)):
        list(train(still, job(tmp_path / name, seed)))
    one, other = (load_checkpoint(tmp_path / name)[0]["model.fc.weight"] for name in "ab")
    assert (one - other).abs().max() > 0.1


def test_images_that_decide_nothing_are_evaluated_once(task: Task, tmp_path: Path) -> None:
    with_test = dataclasses.replace(
        task, test=dataclasses.replace(task.dataset, parts={"test": task.dataset.parts["report"]})
    )
    results = [metrics for _, metrics in train(with_test, job(tmp_path / "a"))]
    assert [sorted(metrics.keys() & {"test_accuracy", "report_accuracy"}) for metrics in results[:-1]] == [[], []]
    assert results[-1]["test_accuracy"] == results[-1]["report_accuracy"]
    assert "test_accuracy" not in list(train(task, job(tmp_path / "b")))[-1][1]


@pytest.mark.parametrize("known", [0, 1])
def test_a_checkpoint_is_gone_on_from(task: Task, tmp_path: Path, known: int) -> None:
    whole = list(train(task, job(tmp_path / "whole")))
    begun = list(itertools.islice(train(task, job(tmp_path / "part")), 1))
    rest = list(train(task, job(tmp_path / "part", epochs=known)))
    # An epoch that was saved but never reported is reported first.
    assert begun + rest[1 - known :] == whole
    assert rest[: 1 - known] == begun[: 1 - known]
    kept, other = (load_checkpoint(tmp_path / name)[0] for name in ("whole", "part"))
    assert all(torch.equal(kept[name], other[name]) for name in kept)


def test_divergence_names_its_epoch(task: Task, tmp_path: Path) -> None:
    wild = dataclasses.replace(task, recipe=Recipe(epochs=3, batch_size=64, learning_rate=1e30))
    with pytest.raises(DivergedError, match="in epoch 1"):
        list(train(wild, job(tmp_path / "a")))


def test_seeds_differ_by_run_and_network() -> None:
    seeds = {trial_seed(run, key) for run in range(30) for key in ("a1", "b2", "c3")}
    assert len(seeds) == 90
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert trial_seed(0, "a1") == trial_seed(0, "a1")
