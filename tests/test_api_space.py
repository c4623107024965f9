"""The search space as its user has it: the README's verbs, every shipped file, and what crosses processes."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from interpreter import macs, parameters, peak_memory
from torch import nn
from torchvision.models import resnet18

import bsconv_nas as nas
from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.analytic import COLUMNS
from bsconv_nas.errors import SpaceError
from bsconv_nas.network.build import instantiate
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.base import Base
from bsconv_nas.space.summary import summarise

FILES = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.toml"))
LARGE = ("cifar_preact_resnet", "cifar_resnet56", "efficientnet_b0", "resnet26", "resnet50", "vgg11_bn", "wrn28_10")


def small(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    return cifar_resnet(8, num_classes=num_classes, in_channels=in_channels)


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def shipped(request: pytest.FixtureRequest) -> SearchSpace:
    return SearchSpace.load(request.param)


def test_a_shipped_space_is_sampled_and_built(shipped: SearchSpace) -> None:
    networks = shipped.sample(2, seed=1)
    assert len({a.key for a in networks}) == 2
    costs = shipped.costs(networks)
    for i, architecture in enumerate(networks):
        with torch.device("meta"):
            module = shipped.build(architecture)
        counted = (macs(module, shipped.input_size), parameters(module), peak_memory(module, shipped.input_size))
        assert tuple(int(costs[column][i]) for column in COLUMNS) == counted


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=pytest.mark.slow if p.stem in LARGE else ()) for p in FILES], ids=lambda p: p.stem
)
def test_a_shipped_space_trains_its_cheapest_network(path: Path) -> None:
    size = SearchSpace.load(path).input_size
    shipped = SearchSpace.load(path, input_size=(size[0], min(size[1], 32), min(size[2], 32)))
    networks = shipped.sample(50, seed=0)
    cheapest = networks[int(shipped.costs(networks)["macs"].argmin())]
    module = shipped.build(cheapest, seed=0)
    out = module(torch.rand(2, *shipped.input_size))
    assert out.shape == (2, shipped.num_classes)
    out.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_a_shipped_space_says_what_it_spans(shipped: SearchSpace) -> None:
    summary = summarise(shipped.model)
    assert summary.networks > 10**4
    assert all(0 < column.least < column.most for column in summary.columns)
    assert {entry.name for entry in summary.fixed} >= {f"width.{shipped.table.graph.groups[0].name}"}


def test_a_shipped_file_says_where_its_baseline_comes_from(
    shipped: SearchSpace, request: pytest.FixtureRequest
) -> None:
    """The paper, and the sizes, which are those of the base itself."""
    assert isinstance(shipped.base, Base)
    with torch.device("meta"):
        base = instantiate(shipped.base)
    cost = shipped.cost(shipped.table.architecture([d.base for d in shipped.table.dimensions]))
    assert (cost.macs, cost.params) == (macs(base, shipped.input_size), parameters(base))
    text, _, _ = request.node.callspec.params["shipped"].read_text(encoding="utf-8").partition("[base]")
    header = " ".join(line.removeprefix("# ") for line in text.splitlines())
    assert re.search(r"The baseline is .*arXiv \d{4}\.\d{4,5}", header)
    assert f"{cost.params:,} parameters and {cost.macs / 1e6:,.1f} M MACs" in header


def test_the_verbs_of_the_readme() -> None:
    space = nas.SearchSpace.load(FILES[0].with_name("cifar_resnet.toml"))
    budget = nas.Budget(macs="40M")
    networks = space.sample(100, budget=budget, seed=0)
    assert len({a.key for a in networks}) == 100
    assert isinstance(networks[0], nas.Architecture)
    cost = space.cost(networks[0])
    assert 0 < cost.macs <= 40_000_000
    assert (space.costs(networks)["macs"] <= 40_000_000).all()
    model = space.build(networks[0])
    assert sum(p.numel() for p in model.parameters()) == cost.params
    assert model(torch.rand(2, *space.input_size)).shape == (2, space.num_classes)
    assert (space.input_size, space.num_classes) == ((3, 32, 32), 10)


def test_data_override_the_file_s_size_and_classes() -> None:
    space = SearchSpace.load(FILES[0].with_name("cifar_resnet.toml"), input_size=(1, 16, 16), num_classes=7)
    assert (space.input_size, space.num_classes) == ((1, 16, 16), 7)
    assert space.build(space.sample(1)[0])(torch.rand(1, 1, 16, 16)).shape == (1, 7)


def test_a_space_crosses_processes_as_json() -> None:
    space = SearchSpace.from_module(small, (3, 16, 16), 5)
    read = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert read == space
    assert read.sample(3, seed=2) == space.sample(3, seed=2)
    architecture = space.sample(1)[0]
    first, second = space.build(architecture, seed=3).state_dict(), read.build(architecture, seed=3).state_dict()
    assert all(value.equal(second[name]) for name, value in first.items())


def test_a_factory_is_kept_by_reference_and_a_module_as_it_is() -> None:
    assert SearchSpace.from_module(resnet18, (3, 32, 32), 4).base == Base(
        "torchvision.models.resnet:resnet18", {}, (3, 32, 32), 4
    )
    module = small()
    space = SearchSpace.from_module(module, (3, 16, 16))
    assert space.base is module
    with pytest.raises(SpaceError, match=r"needs an importable base, but it was made from a module object"):
        space.to_json()


def test_a_local_function_is_called_and_kept_as_its_module() -> None:
    space = SearchSpace.from_module(lambda num_classes: small(num_classes), (3, 8, 8), 3)
    assert isinstance(space.base, nn.Module)
    assert space.num_classes == 3


def test_no_networks_have_no_costs() -> None:
    space = SearchSpace.from_module(small, (3, 8, 8))
    assert {column: values.shape for column, values in space.costs([]).items()} == dict.fromkeys(COLUMNS, (0,))


def test_a_description_names_every_dimension() -> None:
    space = SearchSpace.from_module(small, (3, 8, 8), operators=["dsc", "bsconv_u"])
    architecture = space.sample(1)[0]
    chosen = space.describe(architecture)
    assert space.table.from_values(chosen) == architecture
    assert {value for name, value in chosen.items() if name.startswith("conv")} <= {"dsc", "bsconv_u"}


def test_a_seed_decides_a_sample() -> None:
    space = SearchSpace.from_module(small, (3, 8, 8))
    assert space.sample(5, seed=1) == space.sample(5, seed=1) != space.sample(5, seed=2)
    assert not np.array_equal([a.indices for a in space.sample(5, seed=1)], [a.indices for a in space.sample(5)])


class OnlyByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, *, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class WithOptions(OnlyByName):
    def forward(self, x: torch.Tensor, *, scale: float = 1.0, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.body(x) * scale if mask is None else self.body(x) * mask


class WithAnything(OnlyByName):
    def forward(self, *args: torch.Tensor, **kwargs: bool) -> torch.Tensor:
        return self.body(args[0])


@pytest.mark.parametrize("kind", [WithOptions, WithAnything])
def test_a_forward_may_take_more_than_the_batch(kind: type[nn.Module]) -> None:
    space = SearchSpace.from_module(kind(), (3, 8, 8))
    for architecture in space.sample(3):
        assert space.build(architecture)(torch.randn(2, 3, 8, 8)).shape == (2, space.num_classes)


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        (3, {}, r"A base must be a module or a function that returns one, but got 'int'"),
        (small, {"operators": ["dcs"]}, r"Unknown decomposition 'dcs' .*did you mean 'dsc'"),
        (small, {"opertors": ["dsc"]}, r"Unknown key 'opertors' in 'from_module': .*did you mean 'operators'"),
        (small, {"exempt": ["layer7*"]}, r"Pattern 'layer7\*' must match a path of the base"),
        (
            small,
            {"input_size": (4, 0, 0)},
            r"base\.input_size must be \(channels, height, width\), each from 1 ",
        ),
        (small, {"input_size": (3, 10**20, 8)}, r"base\.input_size must be .* each from 1 to 65536, but got"),
        (
            resnet18,
            {"input_size": (1, 32, 32)},
            r"The forward of 'ResNet' must accept a batch of shape \(1, 1, 32, 32\)",
        ),
        (lambda: None, {}, r"A base must be a torch\.nn\.Module, but got 'NoneType'"),
        (lambda: 1 / 0, {}, r"Factory '.*' must be callable without arguments, but: division by zero; wrap"),
        (torch.zeros, {}, r"^Factory '.*zeros' must "),
        (dict, {}, r"^Factory 'builtins:dict' must return a torch\.nn\.Module, but returned 'dict'"),
        (functools.partial, {}, r"^Factory 'functools:partial' must accept \("),
        (functools.partial(small, 7), {"num_classes": 3}, r"^The base must end in 3 classes, but ends in 7: leave"),
        (small, {"input_size": (True, 16, 16)}, r"base\.input_size must be \(channels, height, width\), each from 1 "),
        (small(7), {"input_size": (True, 16, 16)}, r"input_size must be \(channels, height, width\), each from 1 "),
        (
            small(7).double(),
            {},
            r"must have float32 weights, but those of '.*' are torch\.float64: call its flo",
        ),
        (
            OnlyByName(),
            {},
            r"The forward of 'OnlyByName' must accept a batch of shape .*, but: .* takes 1 ",
        ),
    ],
)
def test_what_is_no_space_is_refused(source: object, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence) as refused:
        SearchSpace.from_module(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_a_network_with_other_classes_than_declared_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text('[base]\nfactory = "test_api_space:small"\narguments = {num_classes = 7}\nnum_classes = 3\n')
    with pytest.raises(SpaceError, match=r"The base must end in 3 classes, but 'test_api_space:small' ends in 7: let"):
        SearchSpace.load(path)


class NeedsArgument(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()


class ReadsItsWeights(nn.Module):
    """Computes with a weight while it is made, which the meta device cannot."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.scale = float(nn.Conv2d(3, 8, 3).weight.abs().max())
        self.body = small(num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x * self.scale)


def test_an_architecture_of_another_space_is_refused() -> None:
    mine = SearchSpace.from_module(small, input_size=(3, 8, 8), operators=["regular", "dsc"])
    other = SearchSpace.from_module(small, input_size=(3, 8, 8), operators=["dsc", "bsconv_u"])
    stranger = other.sample(1)[0]
    for use in (mine.cost, mine.build, mine.describe, lambda a: mine.costs([a])):
        with pytest.raises(SpaceError, match="must be one of this space"):
            use(stranger)
    longer = SearchSpace.from_module(resnet18).sample(1)[0]
    with pytest.raises(SpaceError, match="An architecture of this space has"):
        mine.cost(longer)


def test_a_modules_own_classes_cannot_be_talked_away() -> None:
    with pytest.raises(SpaceError, match="must end in 5 classes, but ends in 7"):
        SearchSpace.from_module(small(7), input_size=(3, 8, 8), num_classes=5)


def test_a_factory_that_needs_arguments_is_refused_by_a_sentence() -> None:
    with pytest.raises(SpaceError, match="must be callable without arguments, but"):
        SearchSpace.from_module(lambda channels: NeedsArgument(channels))


def test_a_factory_that_computes_with_its_weights_is_traced() -> None:
    assert SearchSpace.from_module(ReadsItsWeights, input_size=(3, 8, 8)).num_classes == 10
