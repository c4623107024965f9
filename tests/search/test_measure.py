"""The measured training step, on the CPU as far as it can be, and what is made of it on a cluster."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from local_cluster import local_cluster
from rich.console import Console
from small_search import digits, small_space

from bsconv_nas.cost.budget import Budget
from bsconv_nas.network.build import build
from bsconv_nas.search.experiment import Experiment, Resources
from bsconv_nas.search.fraction import Step, costliest
from bsconv_nas.search.gpus import Choice, decide
from bsconv_nas.search.measure import costliest_step, measure
from bsconv_nas.search.record import Note, Record, event_from_json, event_to_json
from bsconv_nas.search.trial import Task
from bsconv_nas.show import Progress
from bsconv_nas.training.recipe import Recipe

SPACE = small_space()
BUDGET = Budget(macs="60K")


def task(batch_size: int, device: str = "cpu") -> Task:
    return Task(SPACE.base, SPACE.table, digits(), Recipe(epochs=1, batch_size=batch_size), device)


def test_a_step_is_measured() -> None:
    """Larger batches take longer, if not in proportion; on the CPU, the device is never idle."""
    torch.set_num_threads(1)
    network = costliest(SPACE.feasible(BUDGET))[0]
    small, large = (min((measure(task(size), network) for _ in range(3)), key=lambda s: s.seconds) for size in (8, 256))
    assert 0 < small.seconds < large.seconds
    assert (small.device_seconds, large.device_seconds) == (small.seconds, large.seconds)
    images = digits().parts["train"].images.nbytes
    weights = sum(4 * weight.numel() for weight in build(SPACE.base, SPACE.table, network).parameters())
    assert large.peak_bytes > images + weights


def test_the_time_is_the_slowest_networks_and_the_memory_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"a": Step(0.03, 0.01, 5), "b": Step(0.02, 0.02, 3)}
    monkeypatch.setattr("bsconv_nas.search.measure.measure", lambda task, network: steps[network])
    assert costliest_step(task(8), ["a", "b"]) == Step(0.02, 0.02, 5)


def test_what_is_declared_is_not_measured() -> None:
    assert decide(Resources(gpus_per_trial=0.25), task(8, "cuda"), BUDGET).gpus_per_trial == 0.25
    assert decide(Resources(gpus_per_trial=0), task(8), BUDGET).gpus_per_trial == 0


def test_the_choice_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """By whatever shows the progress, as the record has it."""
    experiment = Experiment.model_validate({"name": "small", "space": "small.toml"})
    record = Record()
    step = Step(0.02, 0.005, 2**31)
    choice = Choice(0.25, "4 trials share a GPU: it waits.", step)
    with Progress(Console(width=200), experiment) as progress:
        for event in (Note("planned", {"baselines": 0, "trials": 1}), Note("gpus", choice.detail)):
            record.add(event_from_json(event_to_json(event)))
            progress(record)
            progress(record)
    assert capsys.readouterr().out.count("4 trials share a GPU: it waits.\n") == 1
    assert record.notes[-1].detail["gpus_per_trial"] == 0.25
    assert record.notes[-1].detail["peak_bytes"] == 2**31


DECIDE = """
import json, sys
from bsconv_nas.search.cluster import connected
from bsconv_nas.search.experiment import Resources
from bsconv_nas.search.gpus import decide
from test_measure import BUDGET, task

found = {}
for name, workers, device in (("alone", 1, "cpu"), ("measured", 4, "cpu"), ("absent", 4, "cuda")):
    resources = Resources(workers=workers)
    with connected(resources, 0, sys.argv[1]):
        found[name] = decide(resources, task(64, device), BUDGET).detail
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_step_is_measured_where_a_gpu_is_said_to_be() -> None:
    """Ray believes in a GPU there. On it, the CPU's step is measured; that of CUDA cannot be, and nothing is shared."""
    with local_cluster(2, gpus=1) as cluster:
        paths = f"{cluster.environment['PYTHONPATH']}:{sys.path[0]}:{':'.join(sys.path)}"
        done = cluster.run(sys.executable, "-c", DECIDE, cluster.address, PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[name]["gpus_per_trial"] for name in ("alone", "measured", "absent")] == [1, 1, 1]
    assert found["alone"]["sentence"] == "Every trial has a GPU of its own: there are enough."
    assert found["measured"]["seconds"] == found["measured"]["device_seconds"] > 0
    assert "of which the GPU works 100%, and " in found["measured"]["sentence"]
    assert found["absent"]["sentence"].startswith("Every trial has a GPU of its own: no step could be measured (")
