"""The command line: one table of what it refuses, what its commands print, and what it need not import."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

import bsconv_nas as nas
from bsconv_nas import cli
from bsconv_nas.errors import SpaceError

SCRIPT = Path(sys.executable).with_name("bsconv-nas")
SET_DATA = "`--set data.root=FOLDER`, data.root or $BSCONV_NAS_DATA"
MODULE = """
import numpy as np
from torch import nn


def flat_images(spec):
    return {"train": (np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2)}


def few_labels(spec):
    return {"train": (np.zeros((20, 1, 8, 8), np.uint8), np.arange(19) % 2)}


def boom(spec):
    raise RuntimeError("no images today.\\nnor tomorrow")


def number(num_classes=10):
    return 7


def five_classes(in_channels=1):
    layers = nn.Conv2d(in_channels, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return nn.Sequential(*layers)


def flattening(num_classes=10):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 28 * 28, num_classes))


def keyless(num_classes=10):
    return {}["weights"]


class Typo(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, num_classes, 3)

    def forward(self, x):
        return self.convolution(x).mean((2, 3))


class Branching(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, num_classes, 3)

    def forward(self, x):
        return self.conv(x if x.sum() > 0 else x + 1).mean((2, 3))
"""


def nothing() -> None:
    """The input is what lies there."""


def write(name: str, text: str) -> Callable[[], None]:
    def change() -> None:
        Path(name).write_text(text)

    return change


def edit(name: str, old: str, new: str) -> Callable[[], None]:
    def change() -> None:
        text = Path(name).read_text()
        assert old in text
        Path(name).write_text(text.replace(old, new))

    return change


def base(factory: str) -> Callable[[], None]:
    return write("spaces/resnet8.toml", f'[base]\nfactory = "{factory}"\n')


def choose(text: str) -> Callable[[], None]:
    return edit("spaces/resnet8.toml", "widths = [0.5, 1.0]", text)


def event(text: str) -> Callable[[], None]:
    def append() -> None:
        with Path("runs/tiny/trials.jsonl").open("a") as file:
            file.write(text + "\n")

    return append


@dataclass(frozen=True)
class Row:
    """A command, what is wrong with its input, and the sentence that must say so; `...` stands for any text."""

    command: str
    input: Callable[[], None]
    sentence: str
    process: bool = False


SEARCH = "search experiments/tiny.toml"
FILE = "experiments/tiny.toml"
SPACE_FILE = "spaces/resnet8.toml"
TABLE = [
    # the command line itself
    Row("serch x.toml", nothing, "No such command 'serch': did you mean 'search'; see bsconv-nas --help.", True),
    Row("front", nothing, "Missing argument 'RUN'; see bsconv-nas front --help."),
    Row(f"{SEARCH} --seed 1", nothing, "No such option: --seed...; see bsconv-nas search --help."),
    Row(
        f"{SEARCH} --trials -1",
        nothing,
        "Invalid value for '--trials': Input should be greater than or equal to 0; see bsconv-nas search --help.",
    ),
    Row(
        "front runs/tiny --csv --json",
        nothing,
        "A front is printed in one format, but --csv and --json were both given: keep one of them.",
    ),
    # experiment files and overrides
    Row("search none.toml", nothing, "No file 'none.toml': check the path, relative to ..."),
    Row(
        SEARCH,
        write(FILE, "search = {trials = "),
        f"'{FILE}' must be valid TOML, but: Invalid value (at end of document).",
        True,
    ),
    Row(
        SEARCH,
        edit(FILE, "trials = 4", "trails = 4"),
        f"Unknown key 'search.trails' in '{FILE}': valid are 'baselines', 'objectives', 'sampler', 'scheduler', "
        "'seed', 'trials'; did you mean 'trials'.",
    ),
    Row(
        SEARCH,
        edit(FILE, "trials = 4", "trials = -4"),
        f"Key 'search.trials' in '{FILE}': it must be at least 0, but got -4.",
    ),
    Row(
        SEARCH,
        edit(FILE, "epochs = 2", "epochs = 2.5"),
        f"In [recipe] of '{FILE}': recipe.epochs must be a whole number of at least 1, but got 2.5.",
    ),
    Row(
        f"{SEARCH} --set search.seed",
        nothing,
        "An override must read key=value, such as search.seed=1, but got 'search.seed'.",
    ),
    Row(
        f"{SEARCH} --set serch.seed=1",
        nothing,
        f"Unknown key 'serch' in '{FILE} --set serch.seed=1': valid are ...; did you mean 'search'.",
    ),
    Row(
        f"{SEARCH} --set search.seed=1 --set recipe.epochs=0 --set search.trials=5",
        nothing,
        f"In [recipe] of '{FILE} --set recipe.epochs=0': recipe.epochs must be a whole number of at least 1, but got "
        "0.",
    ),
    Row(
        f"{SEARCH} --set search.sampler={{name='tpe',prior_weight=0.5}}",
        nothing,
        "The parameters {'prior_weight': 0.5} of search.sampler 'tpe' do not hold: `prior_weight` has been deprecated "
        "in v4.9.0.",
        True,
    ),
    Row(
        f"{SEARCH} --address 127.0.0.1:1 --set space=none.toml",
        nothing,
        "A Ray cluster must answer at --address '127.0.0.1:1', but: Connection refused; check host and port.",
        True,
    ),
    Row(
        "resume runs/tiny --trials 9 --address head",
        nothing,
        "--address must be 'auto' or HOST:PORT, such as 10.0.0.1:6379, but got 'head'.",
    ),
    Row(
        "retrain runs/tiny --address head",
        nothing,
        "--address must be 'auto' or HOST:PORT, such as 10.0.0.1:6379, but got 'head'.",
    ),
    Row(
        f"{SEARCH} --set search.sampler=tpa",
        nothing,
        "Unknown search.sampler 'tpa': valid are 'gp', 'nsga2', 'nsga3', 'random', 'tpe'; did you mean 'tpe'.",
    ),
    Row(
        f'{SEARCH} --set search.sampler={{name="tpe",n_startup_trials="a"}}',
        nothing,
        "The parameters {'n_startup_trials': 'a'} of search.sampler 'tpe' do not hold: ....",
    ),
    Row(
        f"{SEARCH} --set search.scheduler=asha --set recipe.epochs=1",
        nothing,
        "search.scheduler 'asha' needs min_epochs below recipe.epochs, else it stops nobody, but got min_epochs = 1 "
        'and recipe.epochs = 1: move one of them or set search.scheduler = "none".',
    ),
    Row(
        f"{SEARCH} --set search.scheduler=ahsa",
        nothing,
        "Unknown search.scheduler 'ahsa': valid are 'asha', 'none'; did you mean 'asha'.",
    ),
    Row(
        f"{SEARCH} --set resources.gpus_per_trial=64",
        nothing,
        "A trial needs 64 GPU (resources.gpus_per_trial), but this machine has ...: ask for less or name a cluster by "
        "--address.",
    ),
    # search spaces
    Row(
        f"{SEARCH} --set space=none.toml",
        nothing,
        "No file '.../none.toml': check the path, relative to ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose('opertors = ["dsc"]'),
        f"Unknown key 'choices.opertors' in '{SPACE_FILE}': valid are ...; did you mean 'operators'.",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose('operators = ["regular", "bsconv"]'),
        f"...'{SPACE_FILE}'... decomposition 'bsconv'...: valid are 'bsconv_s', 'bsconv_u', 'dsc', 'regular'; did you "
        "mean 'bsconv_u'...",
    ),
    Row(
        SEARCH,
        choose('exempt = ["layr1*"]'),
        "Pattern 'layr1*' must match ..., but matches none: valid are ...",
    ),
    Row(
        SEARCH,
        base("bsconv_nas.network.models:cifar_resnt"),
        "'bsconv_nas.network.models' has no 'cifar_resnt' (base.factory 'bsconv_nas.network.models:cifar_resnt'): "
        "valid are ...; did you mean 'cifar_resnet'.",
    ),
    Row(
        SEARCH,
        base("nowhere.models:resnet"),
        "Module 'nowhere.models' of base.factory 'nowhere.models:resnet' must be importable, but: No module named "
        "'nowhere'; install it or set PYTHONPATH.",
    ),
    Row(SEARCH, base("mine:number"), "Factory 'mine:number' must return a torch.nn.Module, but returned 'int'."),
    Row(
        "space show spaces/resnet8.toml",
        base("mine:keyless"),
        "Factory 'mine:keyless' must accept (num_classes=10), but: 'weights'; see base.arguments.",
    ),
    Row(
        "space show spaces/resnet8.toml",
        base("mine:Typo"),
        "The forward of 'Typo' must be traceable by torch.fx, but: 'Typo' object has no attribute 'convolution'; "
        "see ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        base("broken:network"),
        "Module 'broken' of base.factory 'broken:network' must be importable, but: invalid syntax (broken.py, line 1); "
        "...",
    ),
    Row(
        "analyze spaces/resnet8.toml --weights junk.pt",
        write("junk.pt", "junk"),
        "'junk.pt' must hold a state dict and nothing but tensors, but holds something else or is damaged: ...",
    ),
    Row(
        SEARCH,
        base("mine:five_classes"),
        "The base must end in 10 classes, but 'mine:five_classes' ends in 5: let the factory take num_classes, or set "
        "it in base.arguments.",
    ),
    Row(
        SEARCH,
        base("mine:Branching"),
        "The forward of 'Branching' must be traceable by torch.fx, but: ...",
    ),
    Row(
        SEARCH,
        base("torchvision.models:resnet18"),
        "The forward of 'ResNet' must accept a batch of shape (1, 1, 8, 8), but: ...",
    ),
    Row(
        SEARCH,
        base("mine:flattening"),
        "The forward of 'Sequential' must accept a batch of shape (1, 1, 8, 8), but: ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose('blocks = ["mbconvs"]'),
        f"Key 'choices.blocks' in '{SPACE_FILE}': unknown form of an inverted residual 'mbconvs': valid are 'fused', "
        "'mbconv', 'mbconv:ortho=1'; did you mean 'mbconv'.",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose("kernels = [3, 4]"),
        f"Key 'choices.kernels' in '{SPACE_FILE}': kernel sizes must be odd and lie in 1 to 31, but got ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose("widths = [0.5, 0.0]"),
        f"Key 'choices.widths' in '{SPACE_FILE}': multipliers must lie in (0, 16], but got ...",
    ),
    Row(
        "space show spaces/resnet8.toml",
        choose('[[choices.overrides]]\npattern = "layer1*"\nexpansions = [2]'),
        "Pattern 'layer1*' must match a path of the base whose expansions can vary, but matches none: there is none.",
    ),
    Row(
        f'{SEARCH} --set train.init="inherit"',
        nothing,
        "Key 'train' in ...: init = \"inherit\" and a checkpoint go together: give both or none, but got ...",
    ),
    Row(
        f'{SEARCH} --set train={{init="inherit",checkpoint="none.safetensors"}}',
        nothing,
        "No file '...none.safetensors': check the path of the weights.",
    ),
    Row(
        "analyze spaces/resnet8.toml --weights none.safetensors",
        nothing,
        "No file 'none.safetensors': check the path of the weights.",
    ),
    Row(
        "analyze mine:number",
        nothing,
        "Factory 'mine:number' must return a torch.nn.Module, but returned 'int'.",
    ),
    # budgets
    Row(
        f"{SEARCH} --set budget.macs=1K",
        nothing,
        "The upper bound on macs must be reachable, but is 1,000 (1 K) and the smallest network of this space has "
        "22,400 (22.4 K), most of it in conv1 (4.61 K), layer2.0.conv2 (4.35 K), layer2.0.conv1 (3.2 K): move the "
        "bound or give the space other widths, depths or operators.",
        True,
    ),
    Row(
        f'{SEARCH} --set budget.memory=["1GiB","2GiB"]',
        nothing,
        "The lower bound on memory must be reachable, but is 1,073,741,824 (1 GiB) and the largest network of this "
        "space has ..., most of it in ...: move the bound or give the space other widths, depths or operators.",
    ),
    Row(
        f"{SEARCH} --set budget.macs=10MiB",
        nothing,
        f"In [budget] of '{FILE} --set budget.macs=10MiB': Budget 'macs' must be a number of at least 0 with a unit of "
        "K, M, G, but got '10MiB'.",
    ),
    Row(
        f"{SEARCH} --set budget.mac=10M",
        nothing,
        f"In [budget] of '{FILE} --set budget.mac=10M': Unknown budget 'mac': valid are 'flops', 'macs', 'memory', "
        "'params'; did you mean 'macs'.",
    ),
    # data
    Row(
        f"{SEARCH} --set data.name=cifar10 --set data.root=somewhere",
        nothing,
        "The data set 'cifar10' must lie in .../somewhere/cifar-10-batches-py (the files of cifar-10-python.tar.gz "
        "from https://www.cs.toronto.edu/~kriz/cifar.html), but there is no such folder: put it there or name the "
        f"folder that holds cifar-10-batches-py/ by {SET_DATA}, or set data.download = true.",
        True,
    ),
    Row(
        f"{SEARCH} --set data.name=digit",
        nothing,
        f"In [data] of '{FILE} --set data.name=digit': Unknown data.name 'digit': valid are 'cifar10', 'cifar100', "
        "'digits', 'fashion_mnist', 'flowers102', 'folder', 'package.module:function'; did you mean 'digits'.",
    ),
    Row(
        f"{SEARCH} --set data.limit=20",
        nothing,
        "Every class must have an image in the selection part, but class '0' of 'digits' has 2 training images in all: "
        "raise data.selection and data.report, or data.limit.",
    ),
    Row(
        f"{SEARCH} --set data.name=mine:flat_images",
        nothing,
        "The images of mine:flat_images['train'] must be uint8 of shape (N, C, H, W), but are uint8 of (20, 8, 8).",
    ),
    Row(
        f"{SEARCH} --set data.name=mine:few_labels",
        nothing,
        "The labels of mine:few_labels['train'] must be 20 whole numbers from 0, but are int64 of shape (19,) from 0.",
    ),
    Row(
        f"{SEARCH} --set data.name=mine:boom",
        nothing,
        "mine:boom must return images and labels, but raised RuntimeError: no images today: mend it.",
    ),
    # run folders
    Row("status runs/nothing", nothing, "No run folder 'runs/nothing': check the path."),
    Row(
        "status spaces",
        nothing,
        "A run folder must hold 'experiment.json', but 'spaces' does not: it is no run or damaged.",
    ),
    Row(
        f"{SEARCH} --run runs/tiny",
        nothing,
        "A run folder must be new or empty, but 'runs/tiny' holds a run: choose another --run.",
    ),
    Row(
        f"{SEARCH} --run runs/tiny --set space=none.toml",  # first what is known first
        nothing,
        "A run folder must be new or empty, but 'runs/tiny' holds a run: choose another --run.",
    ),
    Row(
        f"{SEARCH} --run mine.py/new --set space=none.toml",
        nothing,
        "Folder '.../mine.py' must take a new run, but: Not a directory.",
    ),
    Row(
        f"{SEARCH} --run spaces",
        nothing,
        "A run folder must be new or empty, but 'spaces' holds 'resnet8.toml': choose another --run.",
    ),
    Row(
        "front runs/tiny",
        lambda: Path("runs/tiny/space.json").unlink(),
        "A run folder must hold 'space.json', but 'runs/tiny' does not: it is no run or damaged.",
    ),
    Row(
        "space show runs/tiny",
        write("runs/tiny/space.json", '{"base": '),
        "'runs/tiny/space.json' must be a JSON file, but: Expecting value: line 1 column 10 (char 9).",
    ),
    Row(
        "report runs/tiny",
        edit("runs/tiny/space.json", '"dimensions"', '"dimension"'),
        "'space.json' in run folder 'runs/tiny' must be what this version writes, but: 'dimensions'.",
    ),
    Row(
        "report runs/tiny",
        edit("runs/tiny/experiment.json", '"budget"', '"budgets"'),
        "In run folder 'runs/tiny': Unknown key 'budgets' in 'experiment.json': valid are ...; did you mean 'budget'.",
    ),
    Row(
        "status runs/tiny",
        event('{"schema":1,'),
        "Line ... of 'runs/tiny/trials.jsonl' is damaged: an event must be a JSON object, but: Expecting property name "
        "enclosed in double quotes: line 1 column 13 (char 12).",
    ),
    Row(
        "status runs/tiny",
        event('{"schema":2,"event":"note","what":"finished","detail":{},"time":1.0}'),
        "Line ... of 'runs/tiny/trials.jsonl' is damaged: An event must have schema 1, but got 2: read it with the "
        "version it names.",
        True,
    ),
    Row(
        "front runs/tiny",
        edit("runs/tiny/trials.jsonl", '"indices":[', '"indices":[9,'),
        "Trial 0 in run folder 'runs/tiny' must be a network of its 'space.json', but: An architecture of this space "
        "has ... indices below [...], but got [9, ...]: the folder is damaged.",
    ),
    Row(
        "front runs/tiny",
        edit("runs/tiny/trials.jsonl", '"params":', '"parms":'),
        "Trial 0 in run folder 'runs/tiny' must be a network of its 'space.json', but: it has no params: the folder is "
        "damaged.",
    ),
    Row(
        "resume runs/tiny",
        edit("runs/tiny/environment.json", '"fingerprint": "', '"fingerprint": "0'),
        "The data of run 'tiny' must be those it was searched with (0...), but 'digits' here has fingerprint ...: "
        "point data.root to them.",
    ),
    Row(
        "resume runs/tiny --trials 1",
        nothing,
        "--trials must be at least the 4 that were begun, but got 1.",
    ),
    Row(
        "resume runs/tiny --set search.seed=1",
        nothing,
        "Of a run, only the place of its data may change, by data.root=DIR, but got 'search.seed=1'.",
    ),
    Row(
        "retrain runs/tiny",
        write("runs/tiny/trials.jsonl", ""),
        "A run is retrained once a trial is complete, but this one has none: search on.",
    ),
    # exports and reports
    Row(
        "export runs/tiny --out new",
        write("runs/tiny/trials.jsonl", ""),
        "A network can be picked once a trial is complete, but this run has none: search on.",
    ),
    Row(
        "export runs/tiny --out new --pick zz",
        nothing,
        "A pick must be 'best', 'knee' or the first digits of one key, but 'zz' fits none; valid are ...",
    ),
    Row(
        "export runs/tiny --out new --pick=",
        nothing,
        "A pick must be 'best', 'knee' or the first digits of one key, but '' fits 6: ...",
    ),
    Row(
        "export runs/tiny --out spaces",
        nothing,
        "An export must go into a new folder or replace an earlier export, but .../spaces holds 'resnet8.toml': choose "
        "another folder or move it away.",
    ),
    Row("export runs/tiny --out mine.py", nothing, "An export must go into a folder, but .../mine.py is a file: ..."),
    Row(
        "report runs/tiny --out mine.py/r.html",
        nothing,
        "A report is written into an existing folder, but there is no 'mine.py': make it.",
    ),
    Row(
        "report runs/tiny --picture front.gif",
        nothing,
        "A picture must end in one of .pdf, .png, .svg, but got 'front.gif'.",
    ),
    Row(
        "report runs/tiny --picture pictures/front.svg",
        nothing,
        "A report is written into an existing folder, but there is no 'pictures': make it.",
    ),
    Row(
        "report runs/tiny --picture front.svg",
        write("runs/tiny/trials.jsonl", ""),
        "A picture of the front needs a trial, but run 'tiny' has none yet.",
    ),
]


def expect_sentence(stderr: str, pattern: str = "...") -> None:
    """Require one line `error: ...` on stderr, one sentence that ends in one full stop and fits `pattern`."""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith(".\n")
    assert not stderr.endswith("..\n")
    assert not re.search(r"[.!?] [A-Z]", stderr), "several sentences"
    assert "Traceback" not in stderr
    expected = ".*".join(map(re.escape, pattern.split("...")))
    assert re.fullmatch(expected, stderr.removeprefix("error: ").rstrip("\n")), stderr


@pytest.mark.parametrize(
    "stderr",
    [
        "",
        "Bounds must rise.\n",
        "error: Bounds must rise\n",
        "error: Bounds must rise..\n",
        "error: Bounds must rise.\nBut fall.\n",
        "error: Bounds must rise. But they fall.\n",
        "error: Bounds must not rise.\n",
        'Traceback (most recent call last):\n  File "cli.py"\nerror: Bounds must rise.\n',
    ],
)
def test_expect_sentence_can_fail(stderr: str) -> None:
    expect_sentence("error: Bounds must rise.\n", "Bounds must ...")
    with pytest.raises(AssertionError):
        expect_sentence(stderr, "Bounds must rise.")


@dataclass(frozen=True)
class Done:
    """What a command left: exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def bsconv_nas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Done]:
    """Runs a command line in this process."""

    def call(command: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["bsconv-nas", *command.split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return Done(int(end.value.code or 0), out, err)

    return call


@pytest.fixture
def place(own_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a user's project of their own, with a module that can be imported."""
    (own_project / "mine.py").write_text(MODULE)
    (own_project / "broken.py").write_text("def network(:\n")
    monkeypatch.chdir(own_project)
    monkeypatch.syspath_prepend(own_project)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.delenv("BSCONV_NAS_DATA", raising=False)
    return own_project


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return all files and folders below `folder` but Python's own."""
    paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: re.sub(r"\W+", "-", row.sentence)[:50])
def test_bad_input_is_refused(row: Row, place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    row.input()
    before = listing(place)
    done = bsconv_nas(row.command)
    expect_sentence(done.err, row.sentence)
    assert done.code == 2
    assert done.out == ""
    assert listing(place) == before
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.parametrize("row", [row for row in TABLE if row.process], ids=lambda row: row.command.split()[0])
def test_bad_input_is_refused_by_the_real_command(row: Row, place: Path) -> None:
    row.input()
    before = listing(place)
    done = subprocess.run([SCRIPT, *row.command.split()], capture_output=True, text=True, check=False)
    expect_sentence(done.stderr, row.sentence)
    assert (done.returncode, done.stdout) == (2, "")
    assert listing(place) == before


def test_a_second_driver_is_refused(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    before = listing(place)
    with nas.load_run("runs/tiny").store.lock():
        for command in ("resume runs/tiny --trials 9", "retrain runs/tiny"):
            done = bsconv_nas(command)
            expect_sentence(
                done.err, "A run must have one driver, but another process is driving 'runs/tiny': wait for its end."
            )
            assert done.code == 2
    assert listing(place) == before


def test_debug_shows_the_traceback(bsconv_nas: Callable[[str], Done], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("--debug space show none.toml", "space show none.toml --debug"):
        monkeypatch.setattr(sys, "argv", ["bsconv-nas", *command.split()])
        with pytest.raises(SpaceError, match=r"No file 'none.toml'"):
            cli.main()
    assert "--debug" in bsconv_nas("--help").out


def test_a_broken_installation_is_one_line(
    place: Path, bsconv_nas: Callable[[str], Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "bsconv_nas.search.proposer", raising=False)
    done = bsconv_nas(SEARCH)
    expect_sentence(done.err, "The installation must be whole, but: ...optuna...; see bsconv-nas doctor.")
    assert done.code == 2


QUICK = [
    "--help",
    "search --help",
    "search none.toml",
    f"{SEARCH} --set search.seed",
    f"{SEARCH} --set search.sampler=tpa",
    f"{SEARCH} --set data.name=cifar10",
    f"{SEARCH} --set space=none.toml",
    f"{SEARCH} --address 127.0.0.1:1",
    f"{SEARCH} --run runs/tiny",
    "report runs/tiny --picture front.gif",
    "status runs/none",
    "resume runs/tiny --set search.seed=1",
    "resume runs/tiny --trials 1",
]
READING = ["status runs/tiny", "front runs/tiny", "front runs/tiny --csv", "report runs/tiny", "space show runs/tiny"]


@pytest.mark.parametrize("commands", [QUICK, READING], ids=["refusals", "reading"])
def test_neither_torch_nor_ray_is_imported(commands: list[str], place: Path) -> None:
    code = """
import sys, time
from bsconv_nas import cli
for command in sys.argv[1:]:
    sys.argv = ["bsconv-nas", *command.split()]
    start = time.perf_counter()
    try:
        cli.main()
    except SystemExit as end:
        loaded = sorted({"torch", "torchvision", "ray"} & set(sys.modules))
        print(f"TOLD {end.code or 0} {loaded} {command} {time.perf_counter() - start:.2f} s")
"""
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    told = [line.split(maxsplit=3) for line in done.stdout.splitlines() if line.startswith("TOLD")]
    print(*(line[3] for line in told), sep="\n")
    assert [line[2] for line in told] == ["[]"] * len(commands)
    assert [line[1] for line in told] == (
        ["0"] * len(READING) if commands is READING else ["0", "0", *"2" * (len(QUICK) - 2)]
    )


def test_help_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    with capsys.disabled():
        print(f"\nbsconv-nas --help: {time.perf_counter() - start:.2f} s", end=" ")
    for command in ("search", "resume", "status", "front", "report", "retrain", "export", "doctor", "space"):
        assert command in done.stdout


def test_status_says_how_far_a_run_is(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    out = bsconv_nas("status runs/tiny").out
    assert out.startswith("tiny: finished, 6 trials planned, macs <= 400 K\n")
    assert re.search(r"baseline +complete +2", out)
    assert re.search(r"search +complete +4", out)
    best = nas.load_run("runs/tiny").trials["val_accuracy"].max()
    assert f"best {best:.2%} at " in out
    assert re.search(r"; \d+ s of training in (\d+ min )?\d+ s of searching\n", out)
    assert "resume" not in out


def test_status_of_an_interrupted_run_says_how_to_go_on(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    lines = Path("runs/tiny/trials.jsonl").read_text().splitlines(keepends=True)
    last = next(i for i, line in enumerate(lines) if '"finished"' in line)
    Path("runs/tiny/trials.jsonl").write_text("".join(lines[: last - 1]))
    out = bsconv_nas("status runs/tiny").out
    assert "tiny: not finished, 6 trials planned" in out
    assert re.search(r"search +running +1", out)
    assert "bsconv-nas resume runs/tiny" in out


def test_front_prints_each_member(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    front = nas.load_run("runs/tiny").front
    out = bsconv_nas("front runs/tiny").out
    for row in front.itertuples():
        assert re.search(rf"{row.key} +{row.kind} +{row.val_accuracy:.2%}", out)
    found = pd.read_csv(StringIO(bsconv_nas("front runs/tiny --csv").out))
    pd.testing.assert_frame_equal(found, front.reset_index(drop=True), check_dtype=False)
    rows = json.loads(bsconv_nas("front runs/tiny --json").out)
    assert [row["key"] for row in rows] == front["key"].tolist()
    assert [row["val_accuracy"] for row in rows] == pytest.approx(front["val_accuracy"].tolist())


@pytest.mark.parametrize("what", ["spaces/resnet8.toml", "runs/tiny"])
def test_space_show_prints_what_varies_what_is_fixed_and_costs(
    what: str, place: Path, bsconv_nas: Callable[[str], Done]
) -> None:
    out = bsconv_nas(f"space show {what}").out
    run = nas.load_run("runs/tiny")
    assert re.search(rf"^{what}: [\d,]+ distinct networks for images of 1x8x8$", out, re.MULTILINE)
    assert all(name in out for name in run.space.table.names)
    assert re.search(r"conv.conv1 +stem", out)
    assert re.search(r"conv.layer2.0.downsample.0 +1x1 kernel", out)
    assert "macs: from 22,400 (22.4 K) to " in out
    assert all(f"{column}: from " in out for column in ("params", "memory"))


def test_report_prints_its_path(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    assert bsconv_nas("report runs/tiny").out == "runs/tiny/report.html\n"
    (place / "pages").mkdir()
    assert bsconv_nas("report runs/tiny --out pages/a.html").out == "pages/a.html\n"
    assert Path("pages/a.html").read_bytes() == Path("runs/tiny/report.html").read_bytes()


@pytest.mark.browser
@pytest.mark.parametrize(("name", "begin"), [("a.svg", b"<svg"), ("b.PNG", b"\x89PNG"), ("c.pdf", b"%PDF")])
def test_report_draws_the_front(name: str, begin: bytes, place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    (place / "pictures").mkdir()
    done = bsconv_nas(f"report runs/tiny --picture pictures/{name}")
    assert (done.out, done.err) == (f"pictures/{name}\nruns/tiny/report.html\n", "")
    assert [path.name for path in (place / "pictures").iterdir()] == [name]
    assert (place / "pictures" / name).read_bytes().startswith(begin)


MISSING = {
    "kaleido": "import sys; sys.modules['kaleido'] = None",
    "Chrome": "import os; os.environ.update(PATH='', BROWSER_PATH='/nowhere/chrome')",
}


@pytest.mark.parametrize("missing", MISSING)
def test_a_report_without_what_draws_pictures_is_refused_whole(missing: str, place: Path) -> None:
    before = listing(place)
    code = f"{MISSING[missing]}\nfrom bsconv_nas import cli\ncli.main()"
    command = [sys.executable, "-c", code, "report", "runs/tiny", "--picture", "front.svg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expect_sentence(done.stderr, "A picture of the front needs kaleido and a Chrome or Chromium: pip install ....")
    assert (done.returncode, done.stdout) == (2, "")
    assert listing(place) == before


def test_export_prints_its_folder(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    key = nas.load_run("runs/tiny").front["key"].iloc[0]
    assert bsconv_nas(f"export runs/tiny --out out --pick {key[:8]}").out == f"{place / 'out'}\n"
    assert json.loads(Path("out/card.json").read_text())["key"] == key


@pytest.mark.slow
def test_a_search_from_the_command_line_when_piped(place: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [SCRIPT, *f"{SEARCH} --trials 3 --set search.seed=5".split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "0/5 no result yet, front of 0"
    last = next(line for line in lines if line.startswith("5/5 "))
    assert re.fullmatch(r"5/5 best \d+\.\d+% at [\d.]+ K MACs, front of \d+; front: .* MACs", last)
    assert lines[-2:] == ["run folder: runs/tiny-1", "next: bsconv-nas report runs/tiny-1"]
    assert "\x1b" not in done.stdout
    run = nas.load_run("runs/tiny-1")
    assert run.experiment.search.seed == 5
    assert run.experiment.search.trials == 3
