"""Costs of tables against counts on the networks that they describe, to the integer."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from interpreter import macs, parameters, peak_memory
from odd_networks import ODD
from torch import nn
from torchvision import models

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.analytic import COLUMNS, CostModel, Costs
from bsconv_nas.errors import SpaceError
from bsconv_nas.network.build import build
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.table import Architecture, Table
from bsconv_nas.space.trace import trace

OPERATORS = ("regular", "dsc", "dsc:inner=none", "bsconv_u", "bsconv_u:r=2", "bsconv_s:p=1/6", "bsconv_s:inner=none")
SCOPES = ("network", "stage", "block", "layer")


def meta(factory: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return factory()


def table_of(base: nn.Module, input_size: tuple[int, int, int], **choices: object) -> Table:
    given = {"operators": OPERATORS, "widths": (0.5, 0.75, 1.0, 1.5), "divisor": 2, **choices}
    return make_table(trace(base, input_size), Choices.model_validate(given))


def random_networks(table: Table, n: int, seed: int = 0) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    return table.architectures(rng.integers(0, table.sizes, size=(n, len(table.sizes))))


def assert_costs_exact(base: nn.Module, table: Table, networks: list[Architecture]) -> None:
    """The table's costs of each network are those counted on the built module."""
    costs = CostModel(table).costs(np.array([a.indices for a in networks]))
    size = table.graph.input_size
    for i, architecture in enumerate(networks):
        with torch.device("meta"):
            module = build(base, table, architecture)
        counted = {"macs": macs(module, size), "params": parameters(module), "memory": peak_memory(module, size)}
        assert {column: int(costs[column][i]) for column in COLUMNS} == counted, table.describe(architecture)


@pytest.mark.parametrize("name", ODD)
def test_costs_of_odd_networks(name: str) -> None:
    base = meta(ODD[name].factory)
    table = table_of(base, ODD[name].input_size, stem=name == "in place", width_scope="layer")
    assert_costs_exact(base, table, random_networks(table, 5))


@pytest.mark.parametrize(
    ("scope", "width_scope"), [*zip(SCOPES, SCOPES, strict=True), *zip(SCOPES, SCOPES[::-1], strict=True)]
)
def test_costs_under_every_scope(scope: str, width_scope: str) -> None:
    base = meta(lambda: cifar_resnet(14))
    table = table_of(base, (3, 16, 16), scope=scope, width_scope=width_scope)
    assert_costs_exact(base, table, random_networks(table, 2))


KNOWN: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "cifar_resnet8": (lambda: cifar_resnet(8), 32),
    "cifar_resnet20": (lambda: cifar_resnet(20, num_classes=100, width=10), 32),
    "cifar_resnet56": (lambda: cifar_resnet(56), 32),
    "resnet18": (models.resnet18, 224),
    "resnet34": (models.resnet34, 224),
    "resnet50": (models.resnet50, 224),
    "vgg11_bn": (models.vgg11_bn, 224),
}


def assert_known_costs_exact(name: str, n: int) -> None:
    factory, size = KNOWN[name]
    base = meta(factory)
    table = table_of(base, (3, size, size), stem=True, width_scope="layer", divisor=8)
    assert_costs_exact(base, table, random_networks(table, n))


@pytest.mark.parametrize("name", KNOWN)
def test_costs_of_known_networks(name: str) -> None:
    assert_known_costs_exact(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_costs_of_many_known_networks(name: str) -> None:
    assert_known_costs_exact(name, 20)


def test_the_uniform_regular_network_costs_what_the_literature_says() -> None:
    space = SearchSpace.from_module(models.resnet18, (3, 224, 224), 1000, widths=[1.0], depths="fixed")
    assert space.cost(space.table.architecture([0] * len(space.table.sizes))) == Costs(
        1_814_073_344, 11_689_512, 6_422_528
    )


def test_one_network_costs_what_it_costs_in_a_population() -> None:
    table = table_of(meta(lambda: cifar_resnet(20)), (3, 32, 32))
    model, networks = CostModel(table), random_networks(table, 50)
    costs = model.costs(np.array([a.indices for a in networks]))
    for i in (0, 17, 49):
        one = model.cost(networks[i])
        assert (one.macs, one.params, one.memory) == tuple(int(costs[column][i]) for column in COLUMNS)


def test_only_the_asked_columns_come_in_the_asked_order() -> None:
    table = table_of(meta(lambda: cifar_resnet(8)), (3, 8, 8))
    costs = CostModel(table).costs(np.zeros((3, len(table.sizes)), dtype=np.int64), ("memory", "macs"))
    assert list(costs) == ["memory", "macs"]
    assert all(values.shape == (3,) and values.dtype == np.int64 for values in costs.values())


def test_an_unknown_column_is_refused() -> None:
    table = table_of(meta(lambda: cifar_resnet(8)), (3, 8, 8))
    with pytest.raises(SpaceError, match=r"Unknown cost column 'mcas': valid are .*did you mean 'macs'"):
        CostModel(table).costs(np.zeros((1, len(table.sizes)), dtype=np.int64), ("mcas",))


@pytest.mark.parametrize("column", ["macs", "params"])
def test_shares_add_up_to_the_cost(column: str) -> None:
    table = table_of(meta(lambda: cifar_resnet(20)), (3, 32, 32))
    model = CostModel(table)
    for architecture in random_networks(table, 5):
        shares = model.shares(column, np.array(architecture.indices))
        assert sum(value for _, value in shares) == getattr(model.cost(architecture), column)
        assert [value for _, value in shares] == sorted((value for _, value in shares), reverse=True)


def test_memory_is_the_peak_over_the_steps() -> None:
    table = table_of(meta(lambda: cifar_resnet(14)), (3, 16, 16))
    model = CostModel(table)
    population = np.array([a.indices for a in random_networks(table, 20)])
    assert (4 * model.peaks(population).max(axis=1) == model.costs(population)["memory"]).all()
