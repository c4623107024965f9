"""The 211 published networks and their pre-activation twins as uniform networks: the file's and the package's sizes."""

import csv
import math
import re
from functools import cache
from pathlib import Path

import bsconv.pytorch
import pytest
import torch
from torch import Tensor, nn

from bsconv_nas.api import SearchSpace
from bsconv_nas.network.layers import OrthonormalConv2d
from bsconv_nas.space.base import Base
from bsconv_nas.space.files import Choices
from bsconv_nas.space.table import Architecture

SIZE = (3, 32, 32)
LARGE = ("CIFAR10-wrn28", "CIFAR10-wrn40", "CIFAR100-wrn40", "CIFAR100-resnet302", "CIFAR100-resnet602")

with (Path(__file__).parent / "published.csv").open(encoding="utf-8") as lines:
    ROWS = list(csv.DictReader(line for line in lines if not line.startswith("#")))

# What the published networks choose among.
RESIDUAL = {"operators": ("regular", "bsconv_u", "bsconv_s"), "stem": True}
SEPARABLE = {"operators": ("dsc", "bsconv_u")}
INVERTED = {"blocks": ("mbconv", "mbconv:ortho=1")}
# Of each family: its names, and the factory that takes what the name says.
FAMILIES = {
    r"resnet(?P<depth>\d+)": ("cifar_resnet", RESIDUAL),
    r"preresnet(?P<depth>\d+)": ("cifar_preact_resnet", RESIDUAL),
    r"wrn(?P<depth>\d+)_(?P<k>\d+)": ("wrn", RESIDUAL),
    r"mobilenetv1_(?P<width>\w+)": ("mobilenet_v1", SEPARABLE),
    r"mobilenetv2_(?P<width>\w+)": ("mobilenet_v2", INVERTED),
    r"mobilenetv3_small_(?P<width>\w+)": ("mobilenet_v3_small", INVERTED),
    r"mobilenetv3_large_(?P<width>\w+)": ("mobilenet_v3_large", INVERTED),
}
# What the product calls the published variants, and what the package's names of them end in.
BASES = {"cifar_resnet": "regular", "cifar_preact_resnet": "regular", "wrn": "regular", "mobilenet_v1": "dsc"}
VARIANTS = {"bsconv_u": "bsconv_u", "bsconv_s:p=1/4": "bsconv_s", "bsconv_s:p=1/6": "mbconv:ortho=1"}
SUFFIXES = {"base": "", "bsconv_u": "_bsconvu", "bsconv_s:p=1/4": "_bsconvs_p1d4", "bsconv_s:p=1/6": "_bsconvs_p1d6"}


def family(model: str) -> tuple[str, dict[str, str | int], dict[str, object]]:
    """The factory, its arguments and the choices of a published name."""
    for pattern, (factory, choices) in FAMILIES.items():
        if found := re.fullmatch(pattern, model):
            arguments = {key: int(value) if value.isdigit() else value for key, value in found.groupdict().items()}
            return factory, arguments, choices
    raise AssertionError(model)


@cache
def space(model: str, num_classes: int) -> SearchSpace:
    factory, arguments, choices = family(model)
    base = Base(f"bsconv_nas.network.models:{factory}", arguments, SIZE, num_classes)
    return SearchSpace._traced(base, Choices(**choices, widths=(1.0,), depths="fixed", scope="network"))


def uniform(model: str, num_classes: int, variant: str) -> Architecture:
    """The network with one form everywhere, sizes as published."""
    table = space(model, num_classes).table
    option = BASES.get(family(model)[0], "mbconv") if variant == "base" else VARIANTS[variant]
    chosen = [d.options.index(option) if option in d.options else 0 for d in table.dimensions]
    assert any(option in d.options and len(d.options) > 1 for d in table.dimensions)
    return table.architecture(chosen)


def package(model: str, num_classes: int, variant: str) -> nn.Module:
    with torch.device("meta"):
        return bsconv.pytorch.get_model(f"cifar_{model}{SUFFIXES[variant]}", num_classes=num_classes)


def counted(module: nn.Module) -> tuple[int, int]:
    """Multiply-adds of the layers, by their outputs, and parameters."""
    macs = 0

    def count(layer: nn.Conv2d | nn.Linear, _: object, out: Tensor) -> None:
        nonlocal macs
        macs += layer.weight.numel() * math.prod(out.shape[2:])

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(torch.empty(1, *SIZE, device="meta"))
    return macs, sum(p.numel() for p in module.parameters())


def rows(*slow: str) -> list[object]:
    """The rows as parameters of a test; those whose names begin with one of `slow` are marked so."""
    ids = [f"{row['dataset']}-{row['model']}-{row['variant']}" for row in ROWS]
    marks = [pytest.mark.slow if name.startswith(slow) else () for name in ids]
    return [pytest.param(row, id=name, marks=mark) for row, name, mark in zip(ROWS, ids, marks, strict=True)]


def test_all_published_rows_are_here() -> None:
    assert len({(row["dataset"], row["model"], row["variant"]) for row in ROWS}) == len(ROWS) == 211


@pytest.mark.parametrize("row", rows(*LARGE))
def test_a_published_network_has_the_published_sizes(row: dict[str, str]) -> None:
    classes = int(row["dataset"].removeprefix("CIFAR"))
    cost = space(row["model"], classes).cost(uniform(row["model"], classes, row["variant"]))
    assert (f"{cost.params / 1e6:.3f}", f"{cost.macs / 1e6:.2f}") == (row["params"], row["macs"])


def assert_sizes_of_the_package(model: str, classes: int, variant: str) -> None:
    """Whether table, built network and the package's network have the same multiply-adds and parameters."""
    architecture = uniform(model, classes, variant)
    cost = space(model, classes).cost(architecture)
    with torch.device("meta"):
        built = space(model, classes).build(architecture)
    assert (cost.macs, cost.params) == counted(built) == counted(package(model, classes, variant))


# Those of CIFAR-10 differ in their classifier alone.
@pytest.mark.parametrize("row", rows("CIFAR10-", "CIFAR100-wrn28", "CIFAR100-resnet110", *LARGE))
def test_a_published_network_has_the_sizes_of_the_package(row: dict[str, str]) -> None:
    classes = int(row["dataset"].removeprefix("CIFAR"))
    assert_sizes_of_the_package(row["model"], classes, row["variant"])


# The twins are in no row; those that have a hundred layers and more take long.
TWINS = [pytest.param(depth, marks=pytest.mark.slow if depth > 56 else ()) for depth in (20, 56, 110, 302, 602)]


@pytest.mark.parametrize("variant", ["base", "bsconv_u", "bsconv_s:p=1/4"])
@pytest.mark.parametrize("depth", TWINS)
def test_a_preactivation_twin_has_the_sizes_of_the_package(depth: int, variant: str) -> None:
    assert_sizes_of_the_package(f"preresnet{depth}", 100, variant)


def test_another_networks_sizes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    other = package("preresnet20", 100, "bsconv_u")
    monkeypatch.setitem(globals(), "package", lambda *_: other)
    with pytest.raises(AssertionError):
        assert_sizes_of_the_package("preresnet20", 100, "base")


@pytest.mark.parametrize("model", ["mobilenetv2_w1", "mobilenetv3_small_w1", "mobilenetv3_large_w1"])
def test_the_penalty_stands_on_the_projections_of_the_package(model: str) -> None:
    with torch.device("meta"):
        built = space(model, 100).build(uniform(model, 100, "bsconv_s:p=1/6"))
    penalised = [tuple(module.weight.shape) for module in built.modules() if isinstance(module, OrthonormalConv2d)]
    blocks = (block for block in package(model, 100, "bsconv_s:p=1/6").modules() if hasattr(block, "_reg_loss"))
    assert penalised == [tuple(block.conv3.conv.weight.shape) for block in blocks]
