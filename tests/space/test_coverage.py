"""The convolutional networks of torchvision and timm as spaces: exact costs, what varies, real training steps.

A row of a table is a family; its members come from the library's own list, so that a new one is covered as well.
"""

import fnmatch
import importlib
import json
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from asked import asked_of
from interpreter import macs, parameters
from odd_networks import ODD
from torch import Tensor, nn
from torchvision import models

from bsconv_nas.api import SearchSpace
from bsconv_nas.errors import SpaceError
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.trace import trace

CLASSES, NETWORKS = 10, 20
CHOICES: dict[str, object] = {
    "operators": ["regular", "dsc", "bsconv_u:r=2", "bsconv_s:p=1/2"],
    "widths": [0.5, 0.75, 1.0, 1.25],
    "kernels": [3, 5],
    "expansions": [2.0, 3.0],
    "width_scope": "layer",
    "divisor": 2,
}
RESIDUAL, INVERTED = "conv depth kernel width", "conv depth expand kernel width"


@dataclass(frozen=True)
class Family:
    """Networks of one design: which names, the least number of them, what must vary in each, and the smallest."""

    pattern: str
    varies: str
    members: int = 1
    smallest: str = ""
    size: int = 64
    arguments: dict[str, object] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        return self.smallest or self.pattern


TORCHVISION = (
    Family("resnet*", RESIDUAL, 5, "resnet18"),
    Family("wide_resnet*", RESIDUAL, 2, "wide_resnet50_2"),
    Family("resnext*", "depth width", 3, "resnext50_32x4d"),
    Family("vgg*_bn", "conv kernel width", 4, "vgg11_bn"),
    Family("mobilenet_v2", INVERTED),
    Family("mobilenet_v3_*", INVERTED, 2, "mobilenet_v3_small"),
    Family("efficientnet_b[0-4]", INVERTED, 5, "efficientnet_b0"),
    Family("efficientnet_v2_s", INVERTED),
    Family("mnasnet*", INVERTED, 4, "mnasnet0_5"),
    Family("regnet_x_*", "depth width", 7, "regnet_x_400mf"),
    Family("regnet_y_*", "depth width", 8, "regnet_y_400mf"),
    Family("densenet*", "conv kernel width", 4, "densenet121"),
    Family("googlenet", "conv kernel width", arguments={"init_weights": False, "aux_logits": False}),
    Family("inception_v3", "conv kernel width", size=299, arguments={"init_weights": False, "aux_logits": False}),
    Family("shufflenet_v2_*", "conv kernel width", 4, "shufflenet_v2_x0_5"),
    Family("squeezenet*", "conv kernel width", 2, "squeezenet1_1"),
    Family("convnext_*", "conv depth kernel", 4, "convnext_tiny"),
)
TIMM = (
    Family("resnet26d", RESIDUAL),
    Family("seresnet18", RESIDUAL),
    Family("ecaresnet26t", RESIDUAL),
    Family("resnext26ts", "conv kernel width"),
    Family("skresnet18", RESIDUAL),
    Family("resnest14d", "conv kernel width"),
    Family("resnetv2_18", RESIDUAL),
    Family("regnetx_002", "width"),
    Family("regnetz_005", "width"),
    Family("mobilenetv1_100", "conv kernel width"),
    Family("mobilenetv2_050", INVERTED),
    Family("mobilenetv3_small_050", INVERTED),
    Family("mobilenetv4_conv_small_035", INVERTED),
    Family("tf_efficientnet_lite0", INVERTED),
    Family("tf_efficientnetv2_b0", INVERTED),
    Family("mixnet_s", RESIDUAL),
    Family("ghostnet_050", RESIDUAL),
    Family("hardcorenas_a", INVERTED),
    Family("fbnetc_100", INVERTED),
    Family("tinynet_e", INVERTED),
    Family("lcnet_035", "conv kernel width"),
    Family("rexnetr_100", "conv kernel width"),
    Family("dla46_c", "conv kernel width"),
    Family("vgg11_bn", "conv kernel width", leaves=("pre_logits",)),
    Family("convnext_atto", "conv kernel width"),
    Family("repvgg_a0", "conv kernel width"),
    Family("res2net50_14w_8s", "conv kernel width"),
    Family("cs3darknet_s", RESIDUAL),
    Family("ese_vovnet19b_slim", "conv kernel width"),
    Family("dm_nfnet_f0", "depth width"),
    Family("xception41", "conv kernel width"),
    Family("selecsls42", "conv kernel width"),
    Family("hgnetv2_b0", RESIDUAL),
    Family("gernet_s", "conv kernel width"),
)
HEADS = [*(("torchvision", family) for family in TORCHVISION), *(("timm", family) for family in TIMM)]
SMALL = (
    ("torchvision", Family("squeezenet1_1", "conv kernel width")),
    ("torchvision", Family("shufflenet_v2_x0_5", "conv kernel width")),
    ("timm", Family("test_resnet", RESIDUAL)),
    ("timm", Family("test_byobnet", "conv kernel width")),
    ("timm", Family("test_efficientnet", "conv kernel width")),
    ("timm", Family("test_convnext", "conv")),
)


def known(family: Family) -> list[str]:
    return fnmatch.filter(models.list_models(module=models), family.pattern)


NAMES = [("torchvision", name, family) for family in TORCHVISION for name in known(family)]
NAMES += [("timm", family.pattern, family) for family in TIMM]


@contextmanager
def weightless() -> Iterator[None]:
    """Let modules register their weights on the meta device; what a factory computes for itself stays real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        empty = None if weight is None else nn.Parameter(weight.to("meta"), weight.requires_grad)
        register(module, name, empty)

    with mock.patch.object(nn.Module, "register_parameter", on_meta):
        yield


def network(library: str, name: str, family: Family) -> nn.Module:
    """A network of a library without values."""
    factory = getattr(importlib.import_module(f"{library}.models"), name)
    with weightless(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library's own deprecations are not ours
        return factory(num_classes=CLASSES, **family.arguments).to("meta")


def space_of(library: str, name: str, family: Family) -> SearchSpace:
    module = network(library, name, family)
    graph = trace(module, (3, family.size, family.size), family.leaves)
    return SearchSpace(module, make_table(graph, Choices.model_validate(asked_of(graph, CHOICES))))


@dataclass(frozen=True)
class Finding:
    """The kinds of dimensions with options to choose from, and the networks whose costs are not the table's."""

    varies: set[str]
    networks: int
    wrong: list[tuple[dict[str, object], tuple[int, ...], tuple[int, ...]]]
    unnamed: set[str]


def examine(library: str, name: str, family: Family, networks: int = NETWORKS) -> Finding:
    """Compare the costs of random networks with what torch counts on the built modules."""
    space = space_of(library, name, family)
    architectures = space.sample(networks, seed=0)
    costs = space.costs(architectures)
    wrong = []
    for i, architecture in enumerate(architectures):
        with torch.device("meta"):
            module = space.build(architecture)
        counted = macs(module, space.input_size), parameters(module)
        expected = int(costs["macs"][i]), int(costs["params"][i])
        if counted != expected:
            wrong.append((space.describe(architecture), counted, expected))
    varies = {dimension.kind for dimension in space.table.dimensions if len(dimension.options) > 1}
    return Finding(varies, len(architectures), wrong, unnamed(space))


def unnamed(space: SearchSpace) -> set[str]:
    """The convolutions of a base that neither vary nor are named as fixed."""
    assert isinstance(space.base, nn.Module)
    dimensions, nodes = space.table.dimensions, space.table.graph.nodes
    chosen = {path for d in dimensions if d.kind in ("conv", "kernel") for m in d.members for path in nodes[m].parts}
    fixed = {entry.name.removeprefix("conv.") for entry in space.table.fixed}
    paths = {path for path, m in space.base.named_modules() if isinstance(m, nn.Conv2d)}
    return paths - chosen - fixed


@dataclass(frozen=True)
class Step:
    """What one training step gives: shapes of all logits, and parameters without a finite gradient; then evaluation."""

    trained: set[tuple[int, ...]]
    lost: list[str]
    evaluated: tuple[int, ...]


def step(library: str, family: Family) -> Step:
    """Train the smallest network of a family as a user does it: from a file to a real network, and one step of it."""
    graph = space_of(library, family.head, family).table.graph
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "space.toml"
        file.write_text(space_file(f"{library}.models:{family.head}", family, asked_of(graph, CHOICES)))
        space = SearchSpace.load(file)
    module = space.build(space.sample(1, seed=1)[0], seed=0)
    images = torch.randn(2, *space.input_size, generator=torch.Generator().manual_seed(0))
    found = module(images)
    logits = [found] if isinstance(found, Tensor) else [part for part in found if isinstance(part, Tensor)]
    loss = torch.stack([F.cross_entropy(part, torch.tensor([0, 1])) for part in logits]).sum()
    loss.backward()
    lost = [path for path, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    return Step({tuple(part.shape) for part in logits}, lost, tuple(module.eval()(images).shape))


def space_file(factory: str, family: Family, choices: Mapping[str, object]) -> str:
    base = {
        "factory": factory,
        "arguments": family.arguments,
        "input_size": (3, family.size, family.size),
        "num_classes": CLASSES,
        "leaves": family.leaves,
    }
    return "[base]\n" + toml(base) + "[choices]\n" + toml(choices)


def toml(values: Mapping[str, object]) -> str:
    """A table of plain values, whose JSON differs from TOML in objects alone."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items() if key not in tables]
    lines += [
        f"{key}.{inner} = {json.dumps(value)}\n" for key, table in tables.items() for inner, value in table.items()
    ]
    return "".join(lines)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Any]]]:
    """What the slow tests that were asked for look at, computed on two cores."""
    jobs = {"test_costs_are_exact": examine, "test_the_smallest_of_a_family_trains": step}
    asked = [item for item in request.session.items if isinstance(item, pytest.Function) and item.originalname in jobs]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield {item.name: pool.submit(jobs[item.originalname], **item.callspec.params) for item in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name", "family"), NAMES, ids=[f"{library}-{name}" for library, name, _ in NAMES])
def test_costs_are_exact(
    request: pytest.FixtureRequest, results: dict[str, Future[Finding]], library: str, name: str, family: Family
) -> None:
    pytest.importorskip(library)
    found = results[request.node.name].result()
    assert found.networks == NETWORKS
    assert not found.wrong
    assert set(family.varies.split()) <= found.varies
    assert not found.unnamed


@pytest.mark.slow
@pytest.mark.parametrize(("library", "family"), HEADS, ids=[f"{library}-{family.head}" for library, family in HEADS])
def test_the_smallest_of_a_family_trains(
    request: pytest.FixtureRequest, results: dict[str, Future[Step]], library: str, family: Family
) -> None:
    pytest.importorskip(library)
    assert results[request.node.name].result() == Step({(2, CLASSES)}, [], (2, CLASSES))


@pytest.mark.parametrize(("library", "family"), SMALL, ids=[family.pattern for _, family in SMALL])
def test_costs_of_small_networks_are_exact(library: str, family: Family) -> None:
    pytest.importorskip(library)
    found = examine(library, family.pattern, family, 3)
    assert not found.wrong
    assert set(family.varies.split()) <= found.varies
    assert not found.unnamed


@pytest.mark.parametrize("family", TORCHVISION, ids=lambda family: family.pattern)
def test_a_family_has_its_members(family: Family) -> None:
    assert len(known(family)) >= family.members
    assert family.head in known(family)


def test_enough_of_timm_is_covered() -> None:
    names = pytest.importorskip("timm").list_models()
    assert {family.pattern for family in TIMM} <= set(names)
    assert len(TIMM) >= 25


class Measured(nn.Module):
    """Its way depends on the image's size, which a symbolic trace does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.shape[-1] > 1 else x


class Measuring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.after = nn.Conv2d(3, 8, 3), nn.Sequential(Measured()), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.inner(self.stem(x))).mean((2, 3)))


def test_what_cannot_be_traced_is_refused_with_its_line_and_the_way_out() -> None:
    law = (
        r"^The forward of 'Measuring' must be traceable by torch\.fx, but in 'inner\.0' \(Measured\) its line `.*` "
        r"\(.*test_coverage\.py:\d+\) branches on .*: write sizes other than the batch's as numbers, or keep that "
        r"module whole by base\.leaves = \['inner\.0'\]\.$"
    )
    with pytest.raises(SpaceError, match=law):
        trace(Measuring(), (3, 8, 8))


def test_a_declared_leaf_is_kept_whole_and_named() -> None:
    table = make_table(trace(Measuring(), (3, 8, 8), leaves=("inner.*",)), Choices())
    fixed = {entry.name: entry.reason for entry in table.fixed}
    assert fixed["conv.inner.0.conv"] == "inside inner.0, which is kept whole"
    assert fixed["width.stem"] == "enters inner.0"
    assert "conv.after" in table.names


def test_the_activation_inside_a_norm_is_the_one_behind_a_convolution() -> None:
    nodes = {node.path: node for node in trace(ODD["derived"].factory(), (3, 8, 8)).nodes}
    place = nodes["named"].place
    assert place is not None
    assert place.spec.activation == "silu"


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_a_network_in_which_nothing_can_vary_is_refused(name: str) -> None:
    with pytest.raises(SpaceError, match="must leave something to choose") as refused:
        space_of("torchvision", name, Family(name, "", size=224))
    assert "\n" not in str(refused.value)
