"""Searches, retrainings and own trials that are interrupted in all ways, compared with those that were left alone."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from killing import EPOCHS, PATIENCE, STEPS, User, asked, end_of, events_of, noted, once_each, timeless, user, weights
from local_cluster import wait_until

from bsconv_nas.search.record import Ended, Note

OWN_TRIAL = """
from pathlib import Path
import torch

def train(architecture, space, epochs, seed, checkpoint):
    model = space.build(architecture, seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    if state := checkpoint.load():
        model.load_state_dict(state)
    for epoch in range(checkpoint.epochs, epochs):
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(6):
            with Path(__file__).with_name("steps").open("ab") as file:
                file.write(b".")
            optimizer.zero_grad()
            loss = model(torch.randn(32, 1, 8, 8, generator=generator)).square().mean()
            loss.backward()
            optimizer.step()
        checkpoint.save(model.state_dict())
        yield {"calm": -loss.item()}
"""


@pytest.mark.slow
def test_an_own_training_that_saves_its_state_is_gone_on_with_too() -> None:
    own = (
        asked("additive", "pareto_asha")
        .replace("val_accuracy", "calm")
        .replace("[search]", '[search]\ntrial = "own:train"')
    )
    keys = ("data", "retrain", "recipe")
    own = "".join(line for line in own.splitlines(keepends=True) if not line.startswith(keys))
    with user(tiny__toml=f"recipe = {{epochs = {EPOCHS}}}\n{own}", own__py=OWN_TRIAL) as someone:
        whole, run = someone.folder / "whole", someone.folder / "run"
        someone.do("search", "tiny.toml", "--run", "whole")
        trained = someone.steps
        first, again = ["search", "tiny.toml", "--run", "run"], ["resume", "run"]
        killed = end_of(someone, run, first, again, ["driver", "worker"] * 2, seed=6, halfway=1.0)
        assert killed.total() >= 2  # it may end before the last
        assert timeless(run) == timeless(whole)
        assert noted(run) == noted(whole)
        assert weights(run) == weights(whole) != []
        once_each(events_of(run))
        assert trained <= someone.steps - trained <= trained + 4 * STEPS


@pytest.mark.slow
def test_a_worker_that_dies_under_its_driver_costs_notes_alone() -> None:
    """Killed while it starts, in an epoch, and between trials."""
    with user(tiny__toml=asked("additive", "pareto_asha")) as someone:
        someone.do("search", "tiny.toml", "--run", "whole")
        run = someone.folder / "run"
        driving = someone.start("search", "tiny.toml", "--run", "run")

        def kill_worker() -> None:
            wait_until(lambda: bool(someone.workers()), "a worker", 300)
            os.kill(someone.workers()[0], signal.SIGKILL)

        kill_worker()
        for trials in (1, 3):
            wait_until(lambda n=trials: sum(isinstance(e, Ended) for e in events_of(run)) >= n, "a trial's end", 300)
            kill_worker()
        assert driving.wait(timeout=PATIENCE) == 0, someone.said("err")
        assert timeless(run) == timeless(someone.folder / "whole")
        retried = [event for event in events_of(run) if isinstance(event, Note) and event.what == "retried"]
        assert len(retried) == 3
        assert all(event.detail["cause"].startswith("WorkerDied: ") for event in retried)
        once_each(events_of(run))


@contextmanager
def in_training(someone: User, run: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Begin a command line, go on once it has brought a training forward, and wait for its end."""
    known = len(events_of(run))
    driving = someone.start(*command)
    wait_until(lambda: len(events_of(run)) > known + 3, "an epoch", 300)
    yield driving
    driving.wait(timeout=PATIENCE)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on() -> None:
    """In a terminal it reaches the whole process group: once ends in good order, twice stops at once."""
    with user(tiny__toml=asked("additive", "pareto_asha")) as someone:
        someone.do("search", "tiny.toml", "--run", "whole")
        run = someone.folder / "run"
        with in_training(someone, run, "search", "tiny.toml", "--run", "run") as driving:
            os.killpg(driving.pid, signal.SIGINT)
        assert (driving.returncode, someone.said("err")) == (130, "")
        out = someone.said("out")
        assert out.splitlines()[-1] == "next: bsconv-nas resume run"
        assert not {"\x1b", "\r"} & set(out)
        last = events_of(run)[-1]
        assert isinstance(last, Note)
        assert last.what == "interrupted"
        assert someone.left_over == []

        with in_training(someone, run, "resume", "run") as driving:
            os.killpg(driving.pid, signal.SIGINT)
            wait_until(lambda: not someone.workers(), "the end of the worker", 300)
            os.killpg(driving.pid, signal.SIGINT)
        assert (driving.returncode, someone.said("err")) == (130, "")
        assert someone.said("out").splitlines()[-1] in (
            "stopped; go on with: bsconv-nas resume run",
            "next: bsconv-nas resume run",  # where it had come to its end in good order before the second
        )
        wait_until(lambda: someone.processes() == [], "the end of all processes")

        assert someone.do("resume", "run").splitlines()[-1] == "next: bsconv-nas report run"
        assert timeless(run) == timeless(someone.folder / "whole")
        assert noted(run) == noted(someone.folder / "whole")
        once_each(events_of(run))
        assert someone.left_over == []


@pytest.mark.slow
def test_a_retraining_killed_at_any_moment_trains_nothing_twice() -> None:
    with user(tiny__toml=asked("random", "none").replace(", startup = 2", "")) as someone:
        someone.do("search", "tiny.toml", "--run", "whole", "--trials", "2")
        whole, run = someone.folder / "whole", someone.folder / "run"
        shutil.copytree(whole, run)
        before = someone.steps
        said = someone.do("retrain", "whole")
        trained = someone.steps - before
        command = ["retrain", "run"]
        killed = end_of(someone, run, command, command, ["driver", "worker"] * 2, seed=2, halfway=0.0)
        assert killed.total() >= 3  # it may end before the last
        assert timeless(run) == timeless(whole)
        assert noted(run) == noted(whole)
        assert weights(run) == weights(whole)
        once_each(events_of(run))
        assert trained <= someone.steps - before - trained <= trained + 4 * STEPS
        assert someone.said("out").splitlines()[-1] == said.splitlines()[-1]
        assert (someone.left_over, someone.processes()) == ([], [])


@pytest.mark.slow
def test_more_trials_are_those_of_a_longer_search_be_it_killed_or_not() -> None:
    with user(tiny__toml=asked("nsga2", "pareto_asha")) as someone:
        someone.do("search", "tiny.toml", "--run", "whole", "--trials", "8")
        someone.do("search", "tiny.toml", "--run", "run", "--trials", "4")
        run, longer = someone.folder / "run", ["resume", "run", "--trials", "8"]
        assert end_of(someone, run, longer, ["resume", "run"], ["driver"], 4) == {"driver": 1}
        assert timeless(run) == timeless(someone.folder / "whole")
        once_each(events_of(run))
