"""Architectures: one canonical row and one key for every network, whatever the table's order and ties."""

import hashlib
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_spaces import SMALL, S, U, drawn, small_resnet, tiny_resnet, traced
from torch import nn

from bsconv_nas.cost.analytic import COLUMNS, CostModel
from bsconv_nas.errors import SpaceError
from bsconv_nas.network.build import build
from bsconv_nas.space.table import Architecture, Population, Table

TABLES = {name: traced(factory, **choices) for name, (factory, choices) in SMALL.items()}


@st.composite
def rows(draw: st.DrawFn) -> tuple[Table, Population]:
    """A table and a population of one row."""
    table = TABLES[draw(st.sampled_from(sorted(TABLES)))]
    return table, np.array([[draw(st.integers(0, size - 1)) for size in table.sizes.tolist()]])


@given(rows())
def test_a_canonical_row_is_its_own_canonical_row(drawn_row: tuple[Table, Population]) -> None:
    table, row = drawn_row
    canonical = table.canonical(row)
    assert (table.canonical(canonical) == canonical).all()
    assert (canonical <= row).all()
    assert table.architectures(canonical) == table.architectures(row)


@given(rows())
def test_a_canonical_row_costs_what_the_row_costs(drawn_row: tuple[Table, Population]) -> None:
    table, row = drawn_row
    model = CostModel(table)
    costs, canonical = model.costs(row), model.costs(table.canonical(row))
    assert {c: costs[c].tolist() for c in COLUMNS} == {c: canonical[c].tolist() for c in COLUMNS}


@given(rows())
def test_describe_and_from_values_are_inverse(drawn_row: tuple[Table, Population]) -> None:
    table, row = drawn_row
    architecture = table.architecture(row[0].tolist())
    values = table.describe(architecture)
    assert list(values) == list(table.names)
    assert table.from_values(json.loads(json.dumps(values))) == architecture


@settings(max_examples=20)
@given(rows())
def test_a_table_survives_a_json_file(drawn_row: tuple[Table, Population]) -> None:
    table, row = drawn_row
    read = Table.from_json(json.loads(json.dumps(table.to_json())))
    assert read == table
    assert read.architectures(row) == table.architectures(row)


def signature(base: nn.Module, table: Table, architecture: Architecture) -> str:
    """All that tells two built networks apart: classes, options and shapes of every layer, penalties included."""
    with torch.device("meta"):
        module = build(base, table, architecture)
    return repr(module) + repr({name: tuple(value.shape) for name, value in module.state_dict().items()})


def test_keys_are_equal_if_and_only_if_the_built_networks_are(factory: Callable[[], nn.Module], table: Table) -> None:
    with torch.device("meta"):
        base = factory()
    networks = table.architectures(np.concatenate([drawn(table, 8), *_neighbours(table)]))
    built = {a.key: signature(base, table, a) for a in networks}
    assert len(set(built.values())) == len(built)
    for row in drawn(table, 5, seed=1):  # a row that is not canonical builds the same as its canonical one
        architecture = table.architecture(row.tolist())
        raw = Architecture(tuple(row.tolist()), "")
        assert signature(base, table, raw) == signature(base, table, architecture)


def _neighbours(table: Table) -> list[Population]:
    """All that differs from a row in one dimension: where doubles are."""
    out = []
    for index, size in enumerate(table.sizes):
        near = np.repeat(drawn(table, 1, seed=2), size, axis=0)
        near[:, index] = np.arange(size)
        out.append(near)
    return out


@pytest.mark.parametrize("scope", ["layer", "block", "stage", "network"])
def test_reordered_and_added_options_change_no_key(scope: str) -> None:
    shuffled, depths = (*U, *reversed(S)), [2, 0, 1]
    few = traced(small_resnet, operators=S, widths=[0.5, 1.0], depths=[1, 2], scope=scope, divisor=2)
    many = traced(small_resnet, operators=shuffled, widths=[2.0, 1.0, 4.0, 0.5], depths=depths, scope=scope, divisor=2)
    one = few.architectures(drawn(few, 50))
    assert [many.from_values(few.describe(a)).key for a in one] == [a.key for a in one]


def test_an_option_beside_the_only_one_changes_no_key() -> None:
    one = traced(tiny_resnet, operators=["regular", "dsc"], widths=[1.0], depths="fixed")
    more = traced(tiny_resnet, operators=["regular", "dsc"], widths=[0.5, 1.0], depths="all")
    for architecture in one.architectures(drawn(one, 20)):
        assert more.from_values(one.describe(architecture)).key == architecture.key


def test_ties_leave_no_trace_in_a_key() -> None:
    tied = traced(small_resnet, operators=S, widths=[0.5, 1.0], scope="network", width_scope="network", divisor=2)
    free = traced(small_resnet, operators=S, widths=[0.5, 1.0], scope="layer", width_scope="layer", divisor=2)
    for architecture in tied.architectures(drawn(tied, 30)):
        chosen = tied.describe(architecture)
        everywhere = {"conv": chosen["conv.network"], "width": chosen["width.network"]}
        values = {name: everywhere.get(name.partition(".")[0], chosen.get(name, 0)) for name in free.names}
        assert free.from_values(values).key == architecture.key


def test_what_lives_in_dropped_blocks_is_masked() -> None:
    table = TABLES["layer"]
    values = table.describe(table.architecture([0] * len(table.sizes))) | {"depth.layer1": 0}
    other = values | {"conv.layer1.0.conv1": "bsconv_s:p=1/2", "conv.layer1.0.conv2": "bsconv_s:p=1/2"}
    assert table.from_values(values) == table.from_values(other)
    assert table.from_values(values | {"depth.layer1": 1}) != table.from_values(other | {"depth.layer1": 1})
    assert not [name for name in table.resolve(table.from_values(values).indices) if name.startswith("conv.layer1")]


def test_options_that_mean_the_same_at_these_widths_are_one() -> None:
    table = TABLES["layer"]
    values = table.describe(table.architecture([0] * len(table.sizes)))
    quarter, half = ({**values, "conv.layer3.0.conv1": f"bsconv_s{p}"} for p in ("", ":p=1/2"))
    assert table.from_values({**quarter, "width.network": 0.5}) == table.from_values({**half, "width.network": 0.5})
    assert table.from_values({**quarter, "width.network": 1.0}) != table.from_values({**half, "width.network": 1.0})


def test_a_resolved_network_says_operators_channels_and_blocks() -> None:
    table = traced(tiny_resnet, operators=["bsconv_u:r=12", "bsconv_s"], widths=[0.5], scope="network")
    assert table.resolve([1, 0, 0, 0, 0]) == {
        "depth.layer1": 1,
        "width.conv1": 4,
        "width.layer1.0.conv1": 4,
        "width.layer2.0.downsample.0": 8,
        "width.layer2.0.conv1": 8,
        "width.layer3.0.downsample.0": 16,
        "width.layer3.0.conv1": 16,
        **{f"conv.layer{stage}.0.conv{i}": "bsconv_u:inner=none,r=9" for stage in (1, 2, 3) for i in (1, 2)},
    }
    late = table.resolve([0, 0, 0, 0, 1])
    assert late["conv.layer3.0.conv2"] == "bsconv_s:inner=bn,mid=4,ortho=1"
    assert "conv.layer1.0.conv1" not in late


def test_a_key_is_the_hash_of_what_the_network_consists_of(table: Table) -> None:
    for architecture in table.architectures(drawn(table, 5)):
        resolved = table.resolve(architecture.indices)
        canonical = json.dumps(dict(sorted(resolved.items())), separators=(",", ":"))
        assert architecture.key == hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_keys_stay_what_they_were() -> None:
    """Records and reports are read by key: change this only with the record's schema."""
    table = traced(tiny_resnet, operators=["regular", "dsc", "bsconv_u", "bsconv_s"], widths=[0.5, 1.0])
    last = (table.sizes - 1).tolist()
    keys = [table.architecture(row).key for row in ([0] * len(last), last, [*last[:4], *([1] * len(last[4:]))])]
    assert keys == ["be89144a69042d69", "1560c8a5811385bc", "84d21f26ff736653"]


@pytest.mark.parametrize("indices", [[0], [0] * 99, [-1, 0, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]])
def test_indices_of_another_space_are_refused(indices: list[int]) -> None:
    with pytest.raises(
        SpaceError, match=r"An architecture of this space has 8 indices below \[2, 2, 3, .*, but got \["
    ):
        TABLES["layer"].architecture(indices)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width.netwrk": 1.0}, r"Unknown dimension 'width\.netwrk': valid are .*did you mean 'width\.network'"),
        ({"width.network": 3}, r"Dimension 'width\.network' must be one of \[0\.5, 1\.0\], but got 3\."),
        ({"depth.layer1": None}, r"needs every dimension of its space, but 'depth\.layer1' is missing"),
    ],
)
def test_values_of_another_space_are_refused(change: dict[str, object], sentence: str) -> None:
    table = TABLES["layer"]
    values = {**table.describe(table.architecture([0] * 8)), **change}
    with pytest.raises(SpaceError, match=sentence):
        table.from_values({name: value for name, value in values.items() if value is not None})  # type: ignore[misc]
