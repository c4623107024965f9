"""From the choices to dimensions: names, ties, exceptions, and what they do to the network."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_networks import Concatenated
from small_spaces import small_resnet, tiny_resnet, traced
from torchvision import models

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.errors import SpaceError
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.dimensions import scaled_channels
from bsconv_nas.space.table import Table


def kinds(table: Table, kind: str) -> dict[str, tuple[object, ...]]:
    return {d.name: d.options for d in table.dimensions if d.kind == kind}


@given(st.integers(1, 2048), st.decimals("0.01", "16", places=2), st.integers(1, 64))
def test_channels_follow_the_formula(channels: int, width: object, divisor: int) -> None:
    exact = Fraction(str(width)) * channels / divisor + Fraction(1, 2)
    expected = channels if Fraction(str(width)) == 1 else max(divisor, divisor * math.floor(exact))
    assert scaled_channels(channels, float(str(width)), divisor) == expected


def test_default_places_are_ungrouped_spatial_convolutions_but_the_stem() -> None:
    table = traced(models.resnet50)
    depths = {1: 3, 2: 4, 3: 6, 4: 3}
    assert list(kinds(table, "conv")) == [f"conv.layer{s}.{b}.conv2" for s, n in depths.items() for b in range(n)]
    fixed = {entry.name: entry.reason for entry in table.fixed}
    assert (fixed["conv.conv1"], fixed["conv.layer1.0.conv3"]) == ("stem", "1x1 kernel")


def test_the_stem_is_a_place_if_asked() -> None:
    assert "conv.conv1" in kinds(traced(tiny_resnet, stem=True), "conv")


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("network", ["conv.network"]),
        ("stage", ["conv.layer1", "conv.layer2", "conv.layer3"]),
        ("block", [f"conv.layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]),
        ("layer", [f"conv.layer{s}.{b}.conv{i}" for s in (1, 2, 3) for b in (0, 1) for i in (1, 2)]),
    ],
)
def test_scope_ties_operators(scope: str, names: list[str]) -> None:
    assert list(kinds(traced(small_resnet, scope=scope), "conv")) == names


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("network", {"width.network"}),
        ("stage", {"width.layer1", "width.layer2", "width.layer3"}),
        ("block", {"width.conv1", *(f"width.layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1))}),
        (
            "layer",
            {
                "width.conv1",
                "width.layer2.0.downsample.0",
                "width.layer3.0.downsample.0",
                *(f"width.layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1)),
            },
        ),
    ],
)
def test_width_scope_ties_widths(scope: str, names: set[str]) -> None:
    assert set(kinds(traced(small_resnet, width_scope=scope), "width")) == names


def test_a_sequential_without_blocks_is_one_block_a_layer() -> None:
    names = kinds(traced(models.vgg11_bn, 32, scope="block"), "conv")
    assert list(names) == [f"conv.features.{i}" for i in (4, 8, 11, 15, 18, 22, 25)]


def test_stages_of_a_sequential_are_named_by_their_first_layer() -> None:
    names = kinds(traced(models.vgg11_bn, 32), "width")
    assert list(names) == [*(f"width.features.{i}" for i in (0, 4, 8, 15, 22)), "width.classifier.0"]


def test_depth_keeps_what_is_asked_and_there() -> None:
    assert kinds(traced(lambda: cifar_resnet(20), depths=[3, 2, 0]), "depth") == {
        "depth.layer1": (3, 2, 0),
        "depth.layer2": (2, 0),
        "depth.layer3": (2, 0),
    }
    assert kinds(traced(small_resnet), "depth")["depth.layer1"] == (0, 1, 2)


def test_an_only_option_is_what_is_built() -> None:
    """One width, one depth and one operator that are not the base's must not be mistaken for the base."""
    table = traced(
        small_resnet, operators=["regular", "dsc"], widths=[0.5], depths=[1], width_scope="network", divisor=1
    )
    assert {d.name: d.options for d in table.dimensions if len(d.options) == 1} == {
        "depth.layer1": (1,),
        "depth.layer2": (1,),
        "depth.layer3": (1,),
        "width.network": (0.5,),
    }
    full = traced(small_resnet, operators=["regular", "dsc"], widths=[1.0], depths="fixed")
    small, large = (CostModel(t).cost(t.architecture([0] * len(t.sizes))) for t in (table, full))
    assert small.params < large.params / 3


def test_multipliers_that_give_the_same_channels_are_one() -> None:
    table = traced(tiny_resnet, widths=[0.5, 0.55, 1.0, 1.01], width_scope="layer", divisor=4)
    assert kinds(table, "width") == {d.name: (0.5, 1.0) for d in table.dimensions if d.kind == "width"}
    assert {d.name: d.channels for d in table.dimensions}["width.conv1"] == ((4, 8),)


def test_overrides_say_otherwise_and_the_last_one_wins() -> None:
    overrides = [
        {"pattern": "layer*.conv2", "operators": ["regular"]},
        {"pattern": "layer3*", "operators": ["dsc", "bsconv_u"], "widths": [2], "depths": "fixed"},
    ]
    table = traced(small_resnet, operators=["regular", "dsc"], widths=[0.5, 1], overrides=overrides)
    options = {d.name: d.options for d in table.dimensions}
    assert options["conv.layer2.1.conv1"] == ("regular", "dsc")
    assert options["conv.layer2.1.conv2"] == ("regular",)
    assert options["conv.layer3.1.conv2"] == ("dsc", "bsconv_u")
    assert (options["width.layer2"], options["width.layer3"]) == ((0.5, 1), (2,))
    assert (options["depth.layer2"], options["depth.layer3"]) == ((0, 1), (1,))


def test_places_tied_by_scope_part_where_their_options_do() -> None:
    overrides = [{"pattern": "layer3*", "operators": ["regular"]}]
    table = traced(small_resnet, operators=["regular", "dsc"], scope="network", overrides=overrides)
    assert kinds(table, "conv") == {
        "conv.layer1.0.conv1": ("regular", "dsc"),
        "conv.layer3.0.conv1": ("regular",),
    }


def test_nothing_varies_at_an_exempt_path() -> None:
    table = traced(small_resnet, exempt=["layer2*"], width_scope="layer")
    fixed = {entry.name: entry.reason for entry in table.fixed}
    exempt = {name for name, reason in fixed.items() if reason == "exempt"}
    assert exempt == {
        "depth.layer2",
        "width.layer2.0.conv1",
        "width.layer2.0.downsample.0",
        "width.layer2.1.conv1",
        *(f"conv.layer2.{block}.conv{i}" for block in (0, 1) for i in (1, 2)),
        "conv.layer2.0.downsample.0",
    }
    assert not exempt & set(table.names)


def test_an_exempt_layer_keeps_the_channels_it_writes() -> None:
    """layer1.1.conv2 writes the trunk, which goes by the name of the stem."""
    table = traced(small_resnet, exempt=["layer1.1.conv2"])
    assert {"conv.layer1.1.conv2", "width.conv1", "depth.layer1"} >= {
        e.name for e in table.fixed if e.reason == "exempt"
    }
    assert "width.conv1" not in table.names


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (
            {"exempt": ["layer9*"]},
            r"Pattern 'layer9\*' must match a path of the base where something can vary, but matches none: valid are",
        ),
        (
            {"overrides": [{"pattern": "layer1.0.conv3", "operators": ["dsc"]}]},
            r"whose operators can vary, but matches none: valid are 'layer1\.0\.conv1', .*did you mean 'layer1",
        ),
        (
            {"overrides": [{"pattern": "*.bn1", "widths": [1]}]},
            r"Pattern '\*\.bn1' must match .* whose widths can vary",
        ),
        ({"overrides": [{"pattern": "layer1.0.conv1", "depths": [1]}]}, r"whose depths can vary, but matches none"),
        ({"depths": [5, 7]}, r"Stage 'layer1' can keep at most 2 droppable blocks, but depths = \[5, 7\] has none so"),
        (
            {"operators": ["dsc"], "widths": [1], "depths": "fixed"},
            r"must leave something to choose, but every dimension",
        ),
    ],
)
def test_choices_that_fit_no_base_are_refused(choices: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence):
        traced(small_resnet, **choices)


def test_a_base_without_stages_has_no_depth_to_override() -> None:
    with pytest.raises(SpaceError, match=r"whose depths can vary, but matches none: there is none\."):
        traced(Concatenated, overrides=[{"pattern": "*", "depths": [1]}])


def test_depths_need_droppable_blocks() -> None:
    with pytest.raises(SpaceError, match=r"depths = \[9\] needs droppable blocks, but this base has none"):
        traced(Concatenated, depths=[9])


def test_of_multipliers_with_equal_channels_one_is_shown() -> None:
    widths = kinds(traced(tiny_resnet, widths=[0.9, 1.0], divisor=4), "width")
    assert all(1.0 in options for options in widths.values())


def test_a_multiplier_of_an_override_is_judged_by_the_widths_that_it_speaks_of() -> None:
    """By hand: 0.15 of 16 channels rounds to 0 multiples of 8 where the base's 64 round to 1."""
    override = {"pattern": "layer1.0.conv1", "widths": [0.15, 1.0]}
    with pytest.raises(SpaceError, match=r"but 0\.15 of its widest, 16 channels, rounds to zero multiples of 8: take"):
        traced(lambda: cifar_resnet(8), divisor=8, width_scope="layer", overrides=[override])
