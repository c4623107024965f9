"""Searches in processes of their own, started as users start theirs, and killed at moments drawn at random."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster import wait_until

from bsconv_nas.search.driver import RETRIES
from bsconv_nas.search.record import Ended, EpochDone, Event, Note, Record, Started, Trial, event_from_json
from bsconv_nas.search.store import Store

__all__ = [
    "EPOCHS",
    "STEPS",
    "User",
    "asked",
    "end_of",
    "events_of",
    "noted",
    "once_each",
    "timeless",
    "user",
    "weights",
]

SCRIPT = Path(sys.executable).with_name("bsconv-nas")
PATIENCE = 300.0  # seconds for what takes a few on a machine of one's own
EPOCHS = 4
# The real training of a real network, which adds a dot to a file with every step.
COUNTED = """
from pathlib import Path
from bsconv_nas.network.models import cifar_resnet

def counted(module, inputs):
    if module.training and len(inputs[0]) > 5:  # a check of the space, or of its base, has no more
        with Path(__file__).with_name("steps").open("ab") as file:
            file.write(b".")

def resnet8(in_channels=1, num_classes=10):
    network = cifar_resnet(8, in_channels=in_channels, num_classes=num_classes, width=8)
    network.register_forward_pre_hook(counted)
    return network
"""
SPACE = """
base = {factory = "counted_network:resnet8", input_size = [1, 8, 8]}
choices = {widths = [0.5, 1.0]}
"""
EXPERIMENT = f"""
space = "space.toml"
data = {{name = "digits", limit = 300}}
recipe = {{epochs = {EPOCHS}, batch_size = 32, ema = 0.9}}
budget = {{macs = "60K"}}
resources = {{workers = 1}}
retrain = {{seeds = 2, members = 1, recipe = {{epochs = 6}}}}

[search]
trials = 8
baselines = 2
objectives = [{{name = "val_accuracy", direction = "max"}}, {{name = "macs", direction = "min"}}]
"""
STEPS = 6  # of an epoch
OWN = ("planned", "interrupted", "retried", "finished", "retraining", "retrained")  # notes about drivers


def asked(sampler: str, scheduler: str) -> str:
    """Return an experiment in which the sampler is heard early, and the scheduler stops early."""
    eta = "" if scheduler == "none" else ", eta = 2, min_epochs = 1"
    lines = [f'sampler = {{name = "{sampler}", startup = 2}}', f'scheduler = {{name = "{scheduler}"{eta}}}']
    return EXPERIMENT + "\n".join(lines) + "\n"


@dataclass(frozen=True)
class User:
    """Someone with a folder, a home and a place for temporary files of their own."""

    folder: Path
    environment: dict[str, str]

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Begin a command line of ours in a process group of its own; what it says goes to two files."""
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            return subprocess.Popen(
                [SCRIPT, *command],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def do(self, *command: str) -> str:
        """Run a command line to its good end and return what it said."""
        assert self.start(*command).wait(timeout=PATIENCE) == 0, self.said("err")
        assert self.said("err") == ""
        return self.said("out")

    def said(self, where: str) -> str:
        """Return what the last command line wrote to `out` or `err`."""
        return (self.folder / where).read_text()

    @property
    def steps(self) -> int:
        """Training steps so far, in all processes."""
        steps = self.folder / "steps"
        return steps.stat().st_size if steps.exists() else 0

    def processes(self, title: str = "") -> list[int]:
        """Return the living processes of this user whose command line begins with `title`."""
        mark, found = f"TMPDIR={self.environment['TMPDIR']}\0".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    begins = (process / "cmdline").read_bytes().startswith(title.encode())
                    found += [int(process.name)] if begins else []
        return found

    def workers(self) -> list[int]:
        """Return the processes that train."""
        return self.processes("ray::ResourceTrainable")

    @property
    def left_over(self) -> list[str]:
        """What lies in the home and the place for temporary files."""
        return [str(path) for name in ("home", "tmp") for path in (self.folder / name).iterdir()]


@contextlib.contextmanager
def user(**files: str) -> Iterator[User]:
    """Have a user inside a `with` block; in the end exactly the user's processes are killed."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # short, for sockets
    texts = {"counted_network__py": COUNTED, "space__toml": SPACE, "tiny__toml": EXPERIMENT} | files
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    for name in ("home", "tmp", "torch"):
        (folder / name).mkdir()
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_", "BSCONV_"))}
    rest |= {"HOME": f"{folder}/home", "TMPDIR": f"{folder}/tmp"}
    rest["PYTHONPATH"] = os.pathsep.join([str(folder), rest.get("PYTHONPATH", "")])
    someone = User(folder, rest | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch"})
    try:
        yield someone
    finally:
        while left := someone.processes():
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        sys.modules.pop("counted_network", None)  # where a test has trained in its own process
        shutil.rmtree(folder)


def events_of(run: Path) -> list[Event]:
    """Return the whole events of a run that may be going on."""
    events = run / "trials.jsonl"
    lines = events.read_bytes().split(b"\n")[:-1] if events.exists() else []
    return [event_from_json(json.loads(line)) for line in lines]


def end_of(
    someone: User,
    run: Path,
    first: list[str],
    again: list[str],
    victims: Iterable[str],
    seed: int,
    halfway: float = 0.4,
) -> Counter[str]:
    """Do `first`, and `again` after every death of its driver, until the good end; return who was killed how often.

    The victims, `driver` or `worker`, are killed one after the other, in a share `halfway` of the cases when a trial
    has some of its epochs, otherwise after a few events, or at any time, be it while Ray starts.
    """
    draw, killed = random.Random(seed), Counter[str]()
    driving = someone.start(*first)
    for victim in victims:
        if not _moment(driving, run, draw, halfway):
            break
        if victim == "worker" and _bears_a_death(run) and (workers := _workers(someone, driving)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
                killed["worker"] += 1
        else:
            driving.kill()
            killed["driver"] += driving.wait(timeout=PATIENCE) == -signal.SIGKILL
            driving = someone.start(*(again if run.exists() else first))
    assert driving.wait(timeout=PATIENCE) == 0, someone.said("err")
    assert someone.said("err") == ""
    return killed


def _moment(driving: subprocess.Popen[bytes], run: Path, draw: random.Random, halfway: float) -> bool:
    """Wait for the next moment at which to kill; return whether the driver still lives."""
    enough = len(events_of(run)) + draw.randrange(1, 8)
    if draw.random() < halfway:
        wait_until(lambda: _half_trained(run, enough) or driving.poll() is not None, "half a trial", PATIENCE)
        return driving.poll() is None
    if draw.random() < 0.7:
        wait_until(lambda: len(events_of(run)) >= enough or driving.poll() is not None, "an event", PATIENCE)
    with contextlib.suppress(subprocess.TimeoutExpired):
        driving.wait(timeout=draw.choice((0.3, 0.3, 10.0)) * draw.random())
    return driving.poll() is None


def _half_trained(run: Path, enough: int) -> bool:
    """Return whether there are so many events and a running trial has some of its epochs."""
    events = events_of(run)
    trials = Record(events).trials.values()
    return len(events) >= enough and any(trial.state == "running" and 0 < trial.epochs < EPOCHS for trial in trials)


def _workers(someone: User, driving: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes that train, once there are any; none if the driver ends before."""
    wait_until(lambda: bool(someone.workers()) or driving.poll() is not None, "a worker", PATIENCE)
    return someone.workers()


def _bears_a_death(run: Path) -> bool:
    """Return whether no running trial has used up its retries."""
    record = Record(events_of(run))
    retried = Counter(note.detail["number"] for note in record.notes if note.what == "retried")
    return all(retried[n] < RETRIES for n, trial in record.trials.items() if trial.state == "running")


def timeless(run: Path) -> dict[int, Trial]:
    """Return a run's trials but for the times at which things happened and which they took."""
    return {
        number: dataclasses.replace(
            trial,
            started=dataclasses.replace(trial.started, time=0.0),
            curve_seconds=[0.0 for _ in trial.curve_seconds],
            seconds=0.0,
            ended=0.0,
        )
        for number, trial in Store(run).record().trials.items()
    }


def noted(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return a run's notes, in their order, but for those about its drivers."""
    return [(note.what, note.detail) for note in Store(run).record().notes if note.what not in OWN]


def weights(run: Path) -> list[str]:
    """Return the checkpoints' files; those with weights are named by their digests."""
    return sorted(str(path.relative_to(run)) for path in (run / "checkpoints").rglob("*"))


def once_each(events: list[Event]) -> None:
    """Assert that each trial started once, ended once, and had each of its epochs once, in their order."""
    started = [event.number for event in events if isinstance(event, Started)]
    ended = {event.number: event.epochs for event in events if isinstance(event, Ended)}
    assert started == sorted(set(started))
    assert sum(isinstance(event, Ended) for event in events) == len(ended) == len(started)
    for number, epochs in ended.items():
        told = [event for event in events if isinstance(event, EpochDone) and event.number == number]
        assert [event.epoch for event in told] == list(range(1, epochs + 1))
        seconds = [event.seconds for event in told]
        assert seconds[0] > 0
        assert seconds == sorted(seconds)
    notes = [event for event in events if isinstance(event, Note) and event.what in ("repaired", "duplicate")]
    assert len({(note.what, note.detail["number"]) for note in notes}) == len(notes)
