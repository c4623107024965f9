"""Whatever a space may hold has a colour, a word and a place in the report."""

from separable_networks import inverted

import bsconv_nas as nas
from bsconv_nas.decompositions import DECOMPOSITIONS
from bsconv_nas.report.importance import KINDS as SHOWN
from bsconv_nas.report.networks import kernels, widths
from bsconv_nas.report.theme import COLORS, family
from bsconv_nas.space.places import FORMS
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
