"""A base is known again: every edit that changes the network is named, and no other is a difference."""

import importlib
import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bsconv_nas.network import identity as room
from bsconv_nas.network.answers import answers
from bsconv_nas.network.build import instantiate
from bsconv_nas.network.graph_lines import graph_lines, state_lines
from bsconv_nas.network.identity import first_difference, identity
from bsconv_nas.space.base import Base

SOURCE = """
import torch
from torch import nn
from torch.nn import functional


class Gate(nn.Module):
    def forward(self, x):
        if self.training:
            return x * 1.5
        return x


class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.25, 0.5, 0.75]).reshape(3, 1, 1))
        self.conv1 = nn.Conv2d(3, 8, 3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=1e-5, momentum=0.1)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(3, stride=2)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))
        self.gate = Gate()
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = (x - self.mean) * 2.0
        x = self.act(self.bn1(self.conv1(x)))
        x = self.conv2(self.pool(x)) * self.gain
        x = functional.leaky_relu(self.gate(x), 0.1)
        x = torch.flatten(x.mean((2, 3)), 1)
        return self.fc(self.drop(x))


def net(num_classes=10):
    return Net(num_classes)
"""
IMAGE = (3, 12, 12)
Make = Callable[..., Base]

# What is replaced, by what, and what a refusal says of it.
EDITS = {
    "activation": ("nn.ReLU()", "nn.ReLU6()", "'act: ReLU(inplace=False) of %5' is now 'act: ReLU6("),
    "stride": ("stride=1", "stride=2", "stride of 'conv1: Conv2d' was (1, 1) and is (2, 2) (operation 4)"),
    "padding": ("stride=1, padding=1", "stride=1, padding=0", "padding of 'conv1: Conv2d' was (1, 1) and is (0, 0)"),
    "eps": ("eps=1e-5", "eps=2e-5", "eps of 'bn1: BatchNorm2d' was 1e-05 and is 2e-05"),
    "momentum": ("momentum=0.1", "momentum=0.2", "momentum of 'bn1: BatchNorm2d' was 0.1 and is 0.2"),
    "dropout rate": ("Dropout(0.2)", "Dropout(0.25)", "p of 'drop: Dropout' was 0.2 and is 0.25"),
    "constant in the forward": ("* 2.0", "* 2.001", "'mul(%2, 2)' is now 'mul(%2, 2.001)'"),
    "slope of a function": ("x), 0.1)", "x), 0.11)", "negative_slope of 'leaky_relu' was 0.1 and is 0.11"),
    "order of two layers": ("self.act(self.bn1(self.conv1(x)))", "self.bn1(self.act(self.conv1(x)))", "'bn1: Batch"),
    "a layer more": (
        "self.drop(x)",
        "self.drop(self.act(x))",
        "inplace=False) of %14' is now 'act: ReLU(",
    ),
    "training alone": ("return x * 1.5", "return x * 1.6", "at equal weights its answers in training differ by"),
    "constant buffer": ("0.75]", "0.8]", "'mean: constant (3, 1, 1) [0.25, 0.5, 0.75]' is now 'mean: constant (3, "),
    "renamed parameter": ("self.gain", "self.scale", "'gain: parameter (8, 1, 1)' is now 'scale: parameter (8, 1, 1)'"),
    "reshaped parameter": ("ones(8, 1, 1)", "ones(1)", "'gain: parameter (8, 1, 1)' is now 'gain: parameter (1,)'"),
    "bias": (", bias=False", "", "'conv1.bias' was absent and is parameter (8,)"),
    "gradient cut off": ("(self.pool(x))", "(self.pool(x.detach()))", "'detach(%6)'"),
    "weights frozen": (
        "self.gain =",
        "self.conv1.requires_grad_(False)\n        self.gain =",
        "'conv1.weight' was parameter (8, 3, 3, 3) and is parameter (8, 3, 3, 3), frozen",
    ),
    "parameter that nobody reads": (
        "self.act =",
        "self.spare = nn.Linear(2, 2)\n        self.act =",
        "'spare.weight' was ab",
    ),
    "pooling": ("nn.MaxPool2d", "nn.AvgPool2d", "'pool: MaxPool2d(kernel_size=3, stride=2, "),
}
REWRITTEN = {
    "comment": ("        x = (x", "        # centred\n        x = (x"),
    "docstring": ("class Net(nn.Module):", 'class Net(nn.Module):\n    """A network."""'),
    "renamed variable": ("def forward(self, x):\n        if", "def forward(self, x, _unused=None):\n        if"),
    "renamed argument": (
        "x = torch.flatten(x.mean((2, 3)), 1)\n        return self.fc(self.drop(x))",
        "y = torch.flatten(x.mean((2, 3)), 1)\n        return self.fc(self.drop(y))",
    ),
    "method for function": ("torch.flatten(x.mean((2, 3)), 1)", "x.mean((2, 3)).flatten(1)"),
    "named argument": ("torch.flatten(x.mean((2, 3)), 1)", "torch.flatten(x.mean((2, 3)), start_dim=1)"),
    "function for layer": ("self.act(self.bn1(self.conv1(x)))", "functional.relu(self.bn1(self.conv1(x)))"),
    "renamed class": ("Net", "Network"),
    "in place": ("nn.ReLU()", "nn.ReLU(inplace=True)"),
    "a layer that nobody calls": ("self.act =", "self.unused = nn.Sigmoid()\n        self.act ="),
}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes the network, edited if asked, as a module of its own, and returns its reference."""
    monkeypatch.syspath_prepend(tmp_path)
    numbers = itertools.count()

    def written(old: str = "", new: str = "", source: str = SOURCE, **fields: Any) -> Base:
        assert old in source
        name = f"{tmp_path.name.replace('-', '_')}_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source.replace(old, new) if old else source)
        importlib.invalidate_caches()
        return Base(f"{name}:net", **{"input_size": IMAGE, **fields})

    return written


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_named(edit: str, make: Make) -> None:
    old, new, said = EDITS[edit]
    difference = first_difference(identity(make()), identity(make(old, new)))
    assert said in difference
    assert bool(difference) == bool(said)


def test_a_setting_is_named_that_hardly_shows_in_answers(make: Make) -> None:
    known = identity(make("nn.ReLU()", "nn.GELU()"))
    found = identity(make("nn.ReLU()", 'nn.GELU("tanh")'))
    assert first_difference(known, found) == "approximate of 'act: GELU' was none and is tanh (operation 6)"
    found["answers"] = known["answers"]
    assert first_difference(known, found) == "approximate of 'act: GELU' was none and is tanh (operation 6)"


def test_what_is_left_out_at_random_is_the_same_each_time(make: Make) -> None:
    source = SOURCE.replace("return x * 1.5", "return x if random.random() < 0.5 else x * 1.5")
    source = source.replace("import torch\n", "import random\nimport torch\n", 1)
    known = identity(make(source=source))
    for _ in range(8):
        assert first_difference(known, identity(make(source=source))) == ""


@pytest.mark.parametrize("way", REWRITTEN)
def test_other_words_are_no_difference(way: str, make: Make) -> None:
    assert first_difference(identity(make()), identity(make(*REWRITTEN[way]))) == ""


def test_an_identity_is_plain_small_and_names_no_place(make: Make, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    found = identity(make())
    assert torch.equal(torch.get_rng_state(), state)
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert len(text) < 20_000
    assert tmp_path.name not in text
    assert found["unchecked"] == ""
    assert found["evaluation"][0] == "input"
    assert "gate: Gate() of %10" in found["evaluation"]
    assert found["state"]["conv1.weight"] == "parameter (8, 3, 3, 3)"
    assert found["state"]["bn1.running_mean"] == "buffer (8,)"


def test_weights_do_not_count(make: Make) -> None:
    """They are what a search trains."""
    other = "(8, 1, 1))\n        nn.init.constant_(self.conv1.weight, 3.0)"
    assert first_difference(identity(make()), identity(make("(8, 1, 1))", other))) == ""


def test_another_torch_may_draw_other_masks(make: Make) -> None:
    """Of equal graphs with equal answers in evaluation, as its generator may differ; the same torch may not."""
    known, found = identity(make()), identity(make())
    found["answers"]["training"][0][1] += 1
    assert "its answers in training differ by" in first_difference(known, found)
    known["made_by"] = {**known["made_by"], "torch": "1.0"}
    assert first_difference(known, found) == ""
    found["answers"]["small"][0][1] += 1
    assert "its answers in evaluation differ by" in first_difference(known, found)


def test_answers_may_differ_by_a_ten_thousandth(make: Make) -> None:
    known, found = identity(make()), identity(make())
    largest = max(abs(number) for row in known["answers"]["small"] for number in row)
    found["answers"]["small"][0][1] += 0.9e-4 * largest
    assert first_difference(known, found) == ""
    found["answers"]["small"][0][1] += 0.2e-4 * largest
    assert first_difference(known, found) != ""


def test_leaves_are_kept_whole_and_their_code_counts(make: Make) -> None:
    source = SOURCE.replace("if self.training:\n            return x * 1.5", "if x.sum() > 1e9:\n            return x")
    known = identity(make(source=source, leaves=("gate",)))
    assert "gate: Gate() of %10" in known["evaluation"]
    edited = identity(
        make("        return x\n\n\nclass Net", "        return x + 1\n\n\nclass Net", source, leaves=("gate",))
    )
    assert known["evaluation"] == edited["evaluation"]
    assert "at equal weights its answers in evaluation differ by" in first_difference(known, edited)


def test_shared_weights_are_one(make: Make) -> None:
    tied = "self.gate = Gate()\n        self.conv2.weight = nn.Parameter(self.conv1.weight[:, :1].repeat(1, 8, 1, 1))"
    tied += "\n        self.third = nn.Conv2d(8, 8, 3, padding=1)\n        self.third.weight = self.conv2.weight"
    source = SOURCE.replace("self.gate = Gate()", tied).replace("self.pool(x))", "self.third(self.pool(x)))")
    known, apart = (
        identity(make(source=source)),
        identity(make("        self.third.weight = self.conv2.weight", "", source)),
    )
    assert first_difference(known, identity(make(source=source))) == ""
    assert first_difference(known, apart) != ""


def test_a_forward_that_refuses_doubles_is_computed_in_floats(make: Make) -> None:
    known = identity(make("x = (x - ", "x = (x.float() - "))
    assert known["unchecked"] == ""
    assert first_difference(known, identity(make("x = (x - ", "x = (x.float() - "))) == ""
    assert first_difference(known, identity(make())) == ""  # floats and doubles are closer than the tolerance


def test_a_base_that_fails_here_is_known_by_its_graph(make: Make) -> None:
    here = "        if x.device.type != 'meta':\n            raise OSError('no GPU')\n"
    fails = ("        if self.training:", f"{here}        if self.training:")
    known = identity(make(*fails, leaves=("gate",)))
    assert (known["answers"], known["unchecked"]) == (None, "its forward fails at seeded weights (no GPU)")
    assert first_difference(known, known) == ""
    edited = SOURCE.replace("stride=1", "stride=2")
    assert "stride of 'conv1: Conv2d'" in first_difference(known, identity(make(*fails, edited, leaves=("gate",))))


@pytest.mark.parametrize(
    ("limit", "said"),
    [("MOST_MACS", "multiply-adds, and"), ("MOST_WEIGHTS", "parameters, and")],
)
def test_a_large_base_is_known_by_its_graph(limit: str, said: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, limit, 500)
    found = identity(make())
    assert found["answers"] is None
    assert said in found["unchecked"]
    assert first_difference(found, identity(make())) == ""
    assert "momentum of" in first_difference(found, identity(make("momentum=0.1", "momentum=0.2")))


def test_multiply_adds_are_counted() -> None:
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert room._multiply_adds(layer, (3, 8, 8)) == 3 * 8 * 9 * 64


def test_auxiliary_classifiers_answer_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = Base("torchvision.models:googlenet", {"init_weights": False, "aux_logits": True}, (3, 64, 64))
        found = identity(base)
    assert found["training"] != found["evaluation"]
    assert found["answers"] is not None


DEEP = {
    "bsconv_nas.network.models:cifar_resnet": ({"depth": 110}, (3, 32, 32)),
    "torchvision.models:mobilenet_v3_large": ({}, (3, 96, 96)),
    "torchvision.models:efficientnet_b0": ({}, (3, 96, 96)),
    "torchvision.models:densenet121": ({}, (3, 64, 64)),
}


@pytest.mark.parametrize("factory", DEEP)
def test_deep_networks_neither_vanish_nor_explode(factory: str) -> None:
    """Images are told apart at the end, by more than the tolerance."""
    arguments, size = DEEP[factory]
    found = answers(instantiate(Base(factory, arguments, size)), size)
    for part in ("small", "large", "training"):
        rows = np.array(found[part])[:, 1:]
        assert np.ptp(rows, 0).max() > 1e-3 * np.abs(rows).max()
        assert 1e-6 < np.abs(rows).max() < 1e12


def test_the_first_layer_of_a_deep_network_counts(make: Make) -> None:
    """Hyperparameters of one layer of a hundred."""
    network = "bsconv_nas.network.models"
    source = f"from {network} import cifar_resnet\n\n\ndef net():\n    m = cifar_resnet(110)\n    return m\n"
    known = identity(make(source=source, input_size=(3, 32, 32)))
    for edit in ("m.bn1.eps = 3e-5", "m.layer1[0].bn1.momentum = 0.11", "m.layer3[17].bn2.eps = 3e-5"):
        other = identity(make("    return", f"    {edit}\n    return", source, input_size=(3, 32, 32)))
        assert f"{edit.split()[0].rpartition('.')[2]} of " in first_difference(known, other)


def test_the_files_of_large_networks_are_small() -> None:
    for name in ("efficientnet_b0", "mobilenet_v3_large"):
        found = identity(Base(f"torchvision.models:{name}", {}, (3, 64, 64), 1000))
        assert len(json.dumps(found, indent=1)) < 200_000


def test_lines_tell_constants_and_state() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.arange(6.0)
            self.fc = torch.nn.Linear(6, 2).requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x[:, 1:7] * self.scale).to(torch.float32)

    lines = graph_lines(Odd())
    assert lines[:2] == ["input", "getitem(%0, (None:None:None, 1:7:None))"]
    assert lines[2].startswith("scale: constant (6,) [0, 1, 2, 3, ... ")
    assert lines[-2:] == ["to(%4, torch.float32)", "output(%5)"]
    assert state_lines(Odd())["fc.weight"] == "parameter (2, 6), frozen"
