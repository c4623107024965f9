"""The small spaces, traced once for the whole session."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from small_spaces import SMALL, traced
from torch import nn

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.space.table import Population, Table


@pytest.fixture(scope="session", params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def factory(name: str) -> Callable[[], nn.Module]:
    return SMALL[name][0]


@pytest.fixture(scope="session")
def table(name: str) -> Table:
    found, choices = SMALL[name]
    return traced(found, **choices)


@pytest.fixture(scope="session")
def model(table: Table) -> CostModel:
    return CostModel(table)


@pytest.fixture(scope="session")
def everything(table: Table) -> Population:
    """Every row of a small space, doubles included."""
    return np.array(list(itertools.product(*map(range, table.sizes))), dtype=np.int64)
