"""A user's project as the current folder, and the command line run in it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import Done

from bsconv_nas import cli

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
