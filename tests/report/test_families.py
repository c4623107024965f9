"""Whatever a space may hold has a colour, a word and a place in the report."""

from collections import Counter

from separable_networks import InvertedResidual, classifier, inverted, separable
from torch import nn

import bsconv_nas as nas
from bsconv_nas.decompositions import DECOMPOSITIONS
from bsconv_nas.report.importance import KINDS as SHOWN
from bsconv_nas.report.networks import kernels, stages, widths
from bsconv_nas.report.theme import COLORS, family
from bsconv_nas.space.places import FORMS
from bsconv_nas.space.summary import summarise
from bsconv_nas.space.table import KINDS


def test_every_option_has_a_colour_of_its_family_and_every_kind_a_word() -> None:
    assert {family(option) for option in (*DECOMPOSITIONS, *FORMS)} == set(COLORS)
    assert len(set(COLORS.values())) == len(COLORS)
    assert set(SHOWN) == set(KINDS)


def test_channels_of_an_expansion_follow_the_width_that_it_multiplies() -> None:
    choices = {"expansions": [2, 4], "kernels": [3, 5], "widths": [0.5, 1], "divisor": 1, "width_scope": "layer"}
    space = nas.SearchSpace.from_module(inverted, (3, 12, 12), 5, **choices)
    halves = {name: 0.5 for name in space.table.names if name.startswith("width.")}
    values = {**space.describe(space.table.base), **halves, "expand.2.0.body.0": 4.0, "kernel.2.0.body.0": 5}
    indices = space.table.from_values(values).indices
    assert widths(space.table, indices)["expand.2.0.body.0"] == 4 * 6
    assert kernels(space.table, indices)["kernel.2.0.body.0"] == 5
    dropped = {**values, **{name: 0 for name in space.table.names if name.startswith("depth.")}}
    assert kernels(space.table, space.table.from_values(dropped).indices)["kernel.2.0.body.0"] is None


def flat() -> nn.Module:
    """Two inverted residuals one after the other with nothing around each: their halves have one home."""
    return classifier(*InvertedResidual(8, 1, 8).body, *InvertedResidual(8, 3, 8).body, channels=8)


def acts_on(space: nas.SearchSpace) -> int:
    """Return on how many places the choices of operators and forms act, as `space show` says."""
    counts = zip(space.table.dimensions, summarise(space.model).acts_on, strict=True)
    return sum(count for dimension, count in counts if dimension.kind == "conv")


def test_a_place_is_counted_once_under_the_option_that_was_chosen_for_it() -> None:
    blocks = {"blocks": ["mbconv", "mbconv:ortho=1"], "widths": [1], "depths": "fixed"}
    for scope in ("network", "stage", "block", "layer"):
        space = nas.SearchSpace.from_module(inverted, (3, 12, 12), 5, scope=scope, **blocks)
        chosen = {name: "mbconv:ortho=1" for name in space.table.names if name.startswith("block.")}
        indices = space.table.from_values({**space.describe(space.table.base), **chosen}).indices
        assert stages(space.table, indices) == {"1": {"mbconv:ortho=1": 2}, "2": {"mbconv:ortho=1": 2}}
        assert acts_on(space) == 4
    space = nas.SearchSpace.from_module(flat, (3, 12, 12), 5, **blocks)
    assert sum(sum(stage.values()) for stage in stages(space.table, space.table.base.indices).values()) == 2


def test_a_separable_pair_is_one_place() -> None:
    space = nas.SearchSpace.from_module(separable, (3, 12, 12), 5, operators=["dsc", "bsconv_u"], widths=[1])
    found = stages(space.table, space.table.base.indices)
    assert sum(found.values(), Counter()) == {"dsc": 3}
    assert acts_on(space) == 3
