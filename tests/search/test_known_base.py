"""A run knows its base again: a search, then fresh processes that import the network's code as it is by then."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bsconv_nas as nas
from bsconv_nas.errors import RecordError
from bsconv_nas.search import known_base
from bsconv_nas.search.known_base import check_base, read_identity, unchecked
from bsconv_nas.space.base import Base

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))
"""
FILES = {
    "net.py": NETWORK,
    "space.toml": '[base]\nfactory = "net:Net"\ninput_size = [1, 8, 8]\n',
    "experiment.toml": """
space = "space.toml"
data = { name = "digits", limit = 200 }
recipe = { epochs = 1, batch_size = 50 }
search = { sampler = "random", trials = 1, baselines = 1 }
resources = { workers = 1 }
retrain = { seeds = 1, members = 1 }
""",
}
EDIT = ("torch.relu(self.conv2(x))", "torch.sigmoid(self.conv2(x))")
SAID = "error: The base of run 'run' must be the network that was searched, but in 'net:Net' 'relu(%4)' is now "
SAID += "'sigmoid(%4)' (operation 5): restore its code as it was, or search anew.\n"
OLDER = "note: Run 'run' was made before bases were recorded: it cannot be checked that its base is still the network "
OLDER += "that was searched.\n"
VERBS = ("export run --out out", "analyze run", "resume run --trials 2", "retrain run")


def command(place: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own, where PYTHONPATH alone leads to the user's module."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
    script = Path(sys.executable).with_name("bsconv-nas")
    return subprocess.run([script, *line.split()], cwd=place, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a run of their own network; tests read it."""
    place = tmp_path_factory.mktemp("searched")
    for name, text in FILES.items():
        (place / name).write_text(text)
    done = command(place, "search experiment.toml --run run")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(searched: Path, tmp_path: Path) -> Path:
    return shutil.copytree(searched, tmp_path / "place", ignore=shutil.ignore_patterns("__pycache__"))


def edit(place: Path, old: str, new: str) -> None:
    assert old in NETWORK
    (place / "net.py").write_text(NETWORK.replace(old, new))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix != ".pyc" and path.is_file()
    }


@pytest.mark.parametrize("verb", VERBS)
def test_an_edited_network_is_refused_before_anything_is_written(verb: str, place: Path) -> None:
    edit(place, *EDIT)
    before = everything(place)
    done = command(place, verb)
    assert (done.returncode, done.stderr) == (2, SAID)
    assert everything(place) == before


def test_code_that_can_no_longer_be_followed_is_edited_code(place: Path) -> None:
    """What a refusal of a new network would advise is not what to do."""
    edit(place, "    def forward(self, x):\n", "    def forward(self, x):\n        raise ValueError('no')\n")
    done = command(place, "export run --out out")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: The base of run 'run' must be the network that was searched, but in 'net:Net' "
    )
    assert re.search(
        r"now it fails \(.*`raise ValueError\('no'\)`.*\): restore its code as it was, or search anew", done.stderr
    )
    assert "take that" not in done.stderr


def test_a_network_that_is_written_otherwise_is_exported(place: Path) -> None:
    edit(
        place,
        "        x = torch.relu(self.bn1(self.conv1(x)))",
        "        # first\n        x = self.bn1(self.conv1(x)).relu()",
    )
    done = command(place, "export run --out out")
    assert (done.returncode, done.stderr) == (0, "")
    assert (place / "out/weights.safetensors").is_file()


def test_a_network_that_is_gone_is_refused(place: Path) -> None:
    (place / "net.py").write_text(NETWORK.replace("class Net", "class Other"))
    done = command(place, "export run --out out")
    assert done.returncode == 2
    assert "'net' has no 'Net' (base.factory 'net:Net')" in done.stderr


def test_reading_needs_no_network(place: Path) -> None:
    (place / "net.py").unlink()
    for line in ("status run", "front run", "report run"):
        done = command(place, line)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_older_run_opens_with_a_sentence(place: Path) -> None:
    (place / "run/base.json").unlink()
    edit(place, "import torch\n", "import torch  # newer\n")
    for line in VERBS[:2]:
        done = command(place, line)
        assert (done.returncode, done.stderr) == (0, OLDER)
    assert command(place, "status run").stderr == ""
    done = command(place, VERBS[2])
    assert done.returncode == 0
    assert done.stderr.startswith(OLDER)
    assert not (place / "run/base.json").exists()  # what was searched before is not known by what is there now


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"answers"', '"answer"'),
        ('"small"', '"smaller"'),
        ('"state": {', '"state": 7, "other": {'),
        ('"input"', "5"),
        ('"unchecked": ""', '"unchecked": null'),
    ],
)
def test_a_damaged_record_is_refused(old: str, new: str, place: Path) -> None:
    file = place / "run/base.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    run = nas.load_run(place / "run")
    for look in (lambda: run.unchecked, lambda: check_base(run.store, run.space.base)):
        with pytest.raises(RecordError, match=r"run/base\.json' must be what a search writes: it is damaged"):
            look()
    file.write_text("{")
    with pytest.raises(RecordError, match=r"run/base\.json' must be a JSON file, but: "):
        _ = run.unchecked


def test_the_record_is_small_and_names_no_place(searched: Path) -> None:
    file = searched / "run/base.json"
    assert file.stat().st_size < 20_000
    known = json.loads(file.read_text())
    assert known["unchecked"] == ""
    assert str(searched) not in file.read_text()
    assert nas.load_run(searched / "run").unchecked == ""


def changing(num_classes: int = 10):
    """A network with another constant each time that it is made."""
    from torch import nn

    changing.made = getattr(changing, "made", 0) + 1
    layers = nn.Conv2d(1, 8, 3), nn.LeakyReLU(changing.made / 7), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, num_classes))


def failing(num_classes: int = 10):
    """A network that can no longer be made."""
    raise MemoryError


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (changing, "each making of it is another network: negative_slope of '1: LeakyReLU' was "),
        (failing, "it cannot be computed here (Factory 'test_known_base:failing' must accept "),
    ],
)
def test_what_cannot_be_known_again_is_searched_and_said_so(
    factory: Callable[[], object], said: str, place: Path
) -> None:
    base = Base(f"{__name__}:{factory.__name__}", input_size=(1, 8, 8))
    known = read_identity(base)
    assert said in known["unchecked"]
    run = nas.load_run(place / "run")
    known_base.keep_identity(run.path, known)
    check_base(run.store, base)
    sentence = unchecked(run.store)
    assert sentence.startswith("The base of run 'run' is not fully checked, nothing of it is compared: ")
    assert said in sentence


def test_a_base_known_by_its_graph_says_so(place: Path) -> None:
    run = nas.load_run(place / "run")
    known = json.loads((run.path / "base.json").read_text())
    known_base.keep_identity(run.path, {**known, "answers": None, "unchecked": "it has 3e+10 multiply-adds"})
    said = "The base of run 'run' is not fully checked, its graph alone is compared: it has 3e+10 multiply-adds."
    assert run.unchecked == said
    edit(place, *EDIT)
    done = command(place, "export run --out out")
    assert (done.returncode, done.stderr) == (2, f"note: {said}\n{SAID}")
