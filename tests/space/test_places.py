"""Runs of layers as one place: what is found, what its options build, and that their costs are exact."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from asked import asked_of
from interpreter import macs, parameters, peak_memory
from separable_networks import SEPARABLE, classifier, depthwise, inverted, pointwise, separable
from torch import Tensor, nn
from torchvision import models

from bsconv_nas.cost.analytic import CostModel
from bsconv_nas.decompositions import Activation, Conv, ConvSpec, Norm
from bsconv_nas.errors import SpaceError
from bsconv_nas.network.build import build, seeded_build
from bsconv_nas.network.layers import OrthonormalConv2d
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.places import Place
from bsconv_nas.space.table import Table
from bsconv_nas.space.trace import trace

SIZE = (3, 12, 10)
OPERATORS = ("dsc", "regular", "bsconv_u", "bsconv_u:r=2", "bsconv_s:p=1/2", "dsc:inner=none")


GIVEN = {"operators": OPERATORS, "widths": (0.5, 1.0, 1.5), "divisor": 2, "width_scope": "layer"}


def table_of(base: nn.Module, size: tuple[int, int, int] = SIZE, **choices: object) -> Table:
    return make_table(trace(base, size), Choices.model_validate({**GIVEN, **choices}))


def fitting(base: nn.Module, **choices: object) -> Table:
    """Return the table of what a base has a use for."""
    graph = trace(base, SIZE)
    return make_table(graph, Choices.model_validate(asked_of(graph, {**GIVEN, **choices})))


def roles(table: Table) -> dict[str, str]:
    return {node.path: node.place.role for node in table.graph.nodes if node.place is not None}


def option(table: Table, **chosen: object) -> dict[str, object]:
    """The base's options but for some dimensions."""
    return {**table.describe(table.base), **{name.replace("__", "."): value for name, value in chosen.items()}}


def test_a_pair_is_one_place_under_its_depthwise_path() -> None:
    table = table_of(separable())
    assert [(n.path, n.parts) for n in table.graph.nodes if n.place and n.place.role == "pair"] == [
        ("1.0", ("1.0", "1.1", "1.2", "1.3")),
        ("2", ("2", "3")),
        ("6", ("6", "7", "8")),
    ]
    places = [n.place for n in table.graph.nodes if n.place and n.place.role == "pair"]
    assert [(p.inner, p.biases, p.spec.activation) for p in places] == [
        ("bn_act", (False, False), "leaky_relu"),
        ("none", (True, True), "relu"),
        ("bn", (False, True), "relu"),
    ]
    assert {"conv.1.0", "conv.2", "conv.6"} <= set(table.names)
    assert not {"conv.1.3", "conv.3", "conv.8"} & {entry.name for entry in table.fixed}


def test_an_inverted_residual_is_two_halves_that_one_dimension_decides() -> None:
    table = table_of(inverted())
    assert {path: role for path, role in roles(table).items() if role != "conv"} == {
        "1.0.body.0": "depthwise",
        "1.0.body.4": "projection",
        "1.1.body.0": "expansion",
        "1.1.body.6": "projection",
        "2.0.body.0": "expansion",
        "2.0.body.7": "projection",
        "2.1.body.0": "expansion",
        "2.1.body.6": "projection",
    }
    blocks = {d.name: len(d.members) for d in table.dimensions if d.name.startswith("block.")}
    assert blocks == {"block.1.0.body": 1, "block.1.1.body": 2, "block.2.0.body": 2, "block.2.1.body": 2}


def test_what_is_no_pair_is_named() -> None:
    table = table_of(SEPARABLE["tapped"]())
    reasons = {entry.name: entry.reason for entry in table.fixed}
    outside = "depthwise convolution outside a separable pair: "
    assert [reasons[f"conv.1.dw{i}"].removeprefix(outside) for i in (1, 2, 3)] == [
        "2 operations read 1.norm1 (BatchNorm2d)",
        "before 1.pw2 stands 1.act (PReLU), but a pair holds a batch norm and an activation at most, as modules",
        "1.dense (Conv2d) follows, and no pointwise convolution",
    ]
    assert set(roles(table).values()) == {"conv", "depthwise"}


@pytest.mark.parametrize("name", SEPARABLE)
def test_costs_are_those_of_the_built_network(name: str) -> None:
    base = SEPARABLE[name]()
    table = fitting(base, kernels=(3, 5, 1), expansions=(2, 3, 6), scope="layer")
    population = np.random.default_rng(0).integers(0, table.sizes, size=(12, len(table.sizes)))
    costs = CostModel(table).costs(population)
    for i, architecture in enumerate(table.architectures(population)):
        module = build(base, table, architecture)
        found = macs(module, SIZE), parameters(module), peak_memory(copy.deepcopy(module), SIZE)
        assert found == tuple(int(costs[column][i]) for column in ("macs", "params", "memory"))


@pytest.mark.parametrize("name", SEPARABLE)
def test_every_shape_trains(name: str) -> None:
    base = SEPARABLE[name]()
    table = fitting(base, kernels=(3, 5), expansions=(2, 6))
    population = np.random.default_rng(1).integers(0, table.sizes, size=(3, len(table.sizes)))
    for architecture in table.architectures(population):
        module = seeded_build(base, table, architecture, seed=0)
        F.cross_entropy(module(torch.randn(4, *SIZE)), torch.tensor([0, 1, 2, 1])).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("name", SEPARABLE)
def test_the_base_s_architecture_with_the_base_s_weights_computes_what_the_base_does(name: str) -> None:
    base = SEPARABLE[name]().eval()
    table = fitting(base, kernels=(3, 5), expansions=(2, 3, 4))
    module = seeded_build(base, table, table.from_values({**table.describe(table.base), **_own_ratios(table)}), seed=0)
    module.load_state_dict(base.state_dict())
    x = torch.randn(2, *SIZE)
    assert torch.equal(module.eval()(x), base(x))


def _own_ratios(table: Table) -> dict[str, float]:
    """The ratios with which the networks were made: one dimension may tie blocks whose own ratios differ."""
    own = {"1.1.body.0": 4.0, "2.0.body.0": 3.0, "2.1.body.0": 3.0, "2.expand": 3.0}
    return {d.name: own[d.name.removeprefix("expand.")] for d in table.dimensions if d.kind == "expand"}


def test_a_pair_as_bsconv_u_is_pointwise_then_depthwise_and_the_inner_norm_and_activation_go() -> None:
    base = separable()
    table = table_of(base)
    module = build(base, table, table.from_values(option(table, conv__1__0="bsconv_u")))
    kinds = [type(m).__name__ for m in module[1].modules() if not list(m.children())]
    assert kinds == ["Conv2d", "Conv2d", "Identity", "Identity", "Identity", "BatchNorm2d", "ReLU6"]
    assert [tuple(conv.weight.shape) for conv in module[1][0]] == [(12, 8, 1, 1), (12, 1, 3, 3)]
    assert module[1][0].depthwise.stride == (2, 2)


def test_inner_layers_keep_their_settings_when_resized() -> None:
    base = separable()
    table = table_of(base)
    halved = {name: 0.5 for name in table.names if name.startswith("width.")}
    module = build(base, table, table.from_values({**option(table), **halved}))
    assert (module[7].num_features, module[7].eps) == (8, 1e-3)
    assert (module[1][1].num_features, module[1][2].negative_slope) == (4, 0.2)


def test_forms_of_an_inverted_residual() -> None:
    base = inverted()
    table = table_of(base)
    name = "block.2.0.body"
    built = {
        form: build(base, table, table.from_values({**table.describe(table.base), name: form}))[2][0].body
        for form in ("mbconv", "mbconv:ortho=1", "fused")
    }
    assert isinstance(built["mbconv:ortho=1"][7], OrthonormalConv2d)
    assert not isinstance(built["mbconv"][7], OrthonormalConv2d)
    fused = built["fused"]
    assert (fused[0].kernel_size, fused[0].in_channels, fused[0].out_channels, fused[0].groups) == ((3, 3), 12, 36, 1)
    assert [type(fused[i]).__name__ for i in (1, 2, 3, 4, 5)] == ["Identity"] * 3 + ["BatchNorm2d", "ReLU6"]
    costs = {
        form: CostModel(table).cost(table.from_values({**table.describe(table.base), name: form})) for form in built
    }
    assert costs["mbconv"] == costs["mbconv:ortho=1"]
    assert costs["fused"].params - costs["mbconv"].params == 12 * 36 * 9 - (12 * 36 + 2 * 36 + 36 * 9)


def test_an_expansion_ratio_multiplies_the_channels_that_its_block_reads() -> None:
    base = inverted()
    table = table_of(base, expansions=(2, 3, 6), widths=(0.5, 1.0), divisor=1)
    trunk = next(name for name in table.names if name.startswith("width.1.1"))
    values = {**table.describe(table.base), trunk: 0.5, "expand.2.1.body.0": 6.0}
    body = build(base, table, table.from_values(values))[2][1].body
    assert (body[0].in_channels, body[0].out_channels, body[3].groups, body[6].in_channels) == (6, 36, 36, 36)


def test_a_kernel_keeps_the_output_s_size_and_the_base_s_leaves_no_trace_in_the_key() -> None:
    base = classifier(depthwise(8, 3, 2), pointwise(8, 8), nn.Conv2d(8, 8, 3, padding=2, dilation=2), channels=8)
    fixed, free = table_of(base), table_of(base, kernels=(3, 7))
    assert free.from_values(option(free)).key == fixed.base.key
    values = {**option(free), "kernel.1": 7, "kernel.3": 7}
    module = build(base, free, free.from_values(values))
    assert (module[1].kernel_size, module[1].padding, module[3].padding) == ((7, 7), (3, 3), (6, 6))
    assert [m(torch.zeros(1, 8, 12, 10)).shape for m in (module[1], base[1])] == [(1, 8, 6, 5)] * 2
    assert free.from_values(values).key != free.base.key


def test_kernels_that_cannot_keep_the_size_stay() -> None:
    base = classifier(
        nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 2, padding=1), nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), channels=8
    )
    with pytest.raises(SpaceError, match=r"^kernels = \[3, 5\] needs convolutions that may vary with a square, odd ke"):
        table_of(base, kernels=(3, 5))
    with pytest.raises(SpaceError, match="whose kernels can vary, but matches none"):
        table_of(base, overrides=[{"pattern": "1", "kernels": (3, 5)}])


@pytest.mark.parametrize(("mode", "kept"), [("reflect", (3,)), ("circular", (3, 5)), ("zeros", (3, 5, 7))])
def test_kernels_for_which_images_are_too_small_to_be_padded_are_named(mode: str, kept: tuple[int, ...]) -> None:
    """By hand: 2x2 pixels have one beside a border to mirror and two to wrap, where 3, 5 and 7 need 1, 2 and 3."""
    conv = nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
    base = classifier(nn.AdaptiveAvgPool2d(2), conv, nn.ReLU(), channels=8)
    table = table_of(base, kernels=(3, 5, 7))
    (found,) = [d for d in table.dimensions if d.name.startswith("kernel.")]
    assert found.options == kept
    dropped = {entry.name: entry.reason for entry in table.fixed if entry.name.startswith("kernel.")}
    assert dropped == {
        f"kernel.2={k}": f"its padding_mode {mode!r} needs larger images than 2x2" for k in {3, 5, 7} - {*kept}
    }
    for kernel in kept:
        row = {**table.describe(table.base), "kernel.2": kernel}
        assert build(base, table, table.from_values(row))(torch.randn(2, *SIZE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("scope", "blocks", "kernels"),
    [("network", 1, 1), ("stage", 2, 2), ("block", 4, 4), ("layer", 4, 4)],
)
def test_scope_ties_forms_and_kernels(scope: str, blocks: int, kernels: int) -> None:
    names = table_of(inverted(), scope=scope, kernels=(3, 5)).names
    assert sum(name.startswith("block.") for name in names) == blocks
    assert sum(name.startswith("kernel.") for name in names) == kernels


def test_overrides_speak_of_forms_kernels_and_expansions_by_path() -> None:
    overrides = [
        {"pattern": "2.0*", "blocks": ["fused"], "kernels": [5, 7]},
        {"pattern": "2.1.body", "expansions": [2, 4]},
        {"pattern": "1.0*", "kernels": [3]},
    ]
    table = table_of(inverted(), overrides=overrides)
    options = {d.name: d.options for d in table.dimensions}
    assert options["block.2.0.body"] == ("fused",)
    assert options["block.2.1.body"] == ("mbconv", "mbconv:ortho=1", "fused")
    assert {name: o for name, o in options.items() if name.startswith("kernel.")} == {
        "kernel.1.0.body.0": (3,),
        "kernel.2.0.body.0": (5, 7),
    }
    assert options["expand.2.1.body.0"] == (2.0, 4.0)
    assert "width.2.0.body.0" in options


@pytest.mark.parametrize("key", ["blocks", "kernels", "expansions"])
def test_a_pattern_without_such_places_is_refused(key: str) -> None:
    value = {"blocks": ["fused"], "kernels": [5], "expansions": [2]}[key]
    with pytest.raises(SpaceError, match=f"whose {key} can vary, but matches none"):
        table_of(inverted(), overrides=[{"pattern": "nowhere*", key: value}])


FIXED = [("0.0", "operators"), ("0.0", "kernels"), ("1.0.body.3.down", "operators"), ("1.0*", "expansions")]


@pytest.mark.parametrize(("pattern", "key"), FIXED)
def test_a_pattern_that_matches_what_is_fixed_alone_is_refused(pattern: str, key: str) -> None:
    """The stem, a 1x1 convolution, and an inverted residual that does not expand."""
    value = {"operators": ["dsc"], "kernels": [5], "expansions": [2]}[key]
    with pytest.raises(SpaceError, match=f"whose {key} can vary, but matches none"):
        table_of(inverted(), overrides=[{"pattern": pattern, key: value}])


ASKED = {"kernels": (3, 5), "expansions": (2, 4), "blocks": ("mbconv", "fused"), "widths": (0.5, 1)}


@pytest.mark.parametrize("key", ["kernels", "expansions", "blocks"])
def test_what_is_asked_for_in_vain_is_refused(key: str) -> None:
    plain = classifier(nn.Conv2d(8, 8, (1, 3)), nn.ReLU(), channels=8)
    with pytest.raises(SpaceError, match=rf"^{key} = \[.*\] needs .*, but this base has none: leave {key} out\.$"):
        table_of(plain, **{key: ASKED[key]})
    assert table_of(plain).names, "as the sentence advises"
    assert table_of(inverted(), **ASKED).names


def test_widths_that_touch_nothing_are_refused_where_they_ask_for_something() -> None:
    graph = trace(classifier(nn.Conv2d(8, 8, 3), channels=8), SIZE)
    graph = dataclasses.replace(
        graph, groups=tuple(dataclasses.replace(g, reason=g.reason or "x") for g in graph.groups)
    )
    choices = {"operators": OPERATORS, "stem": True}
    for widths in ({}, {"widths": (1.0,)}):
        assert make_table(graph, Choices.model_validate({**choices, **widths})).names
    with pytest.raises(
        SpaceError, match=r"^widths = \[0\.5, 1\.0\] needs widths that may vary, but this base has none"
    ):
        make_table(graph, Choices.model_validate({**choices, "widths": (0.5, 1.0)}))


def test_no_place_of_mobilenet_v2_is_left_out() -> None:
    with torch.device("meta"):
        table = table_of(models.mobilenet_v2(), (3, 64, 64))
    found = list(roles(table).values())
    assert {role: found.count(role) for role in set(found)} == {"conv": 2, "pair": 1, "expansion": 16, "projection": 16}


def test_own_plans_have_the_base_s_biases_and_others_one_at_the_end() -> None:
    place = Place("pair", ConvSpec(8, 12, (3, 3), padding=(1, 1), bias=True), "bn", (True, False))
    kinds = [type(p) for p in place.plan("dsc", 4, 6)]
    assert kinds == [Conv, Norm, Conv]
    assert [p.bias for p in place.plan("dsc", 4, 6) if isinstance(p, Conv)] == [True, False]
    assert [p.bias for p in place.plan("bsconv_u", 4, 6) if isinstance(p, Conv)] == [False, True]
    assert [type(p) for p in Place("expansion", place.spec, "bn_act", (False, False)).plan("mbconv", 4, 6)] == [
        Conv,
        Norm,
        Activation,
        Conv,
    ]


class NormAct(nn.BatchNorm2d):
    """A norm that activates itself, as timm's do."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def activating() -> nn.Module:
    expansion = [pointwise(8, 24), NormAct(24), depthwise(24), NormAct(24), nn.Identity()]
    pair = [depthwise(12), NormAct(12), nn.Identity(), pointwise(12, 16), NormAct(16)]
    return classifier(*expansion, pointwise(24, 12), nn.BatchNorm2d(12), *pair, channels=16)


def test_a_norm_may_hold_the_activation_and_identities_do_not_count() -> None:
    base = activating()
    table = table_of(base)
    found = {n.path: (n.place.role, n.place.inner, n.parts) for n in table.graph.nodes if n.place and len(n.parts) > 1}
    assert found == {
        "1": ("expansion", "bn_act", ("1", "2", "", "3")),
        "8": ("pair", "bn_act", ("8", "9", "", "11")),
    }
    for name, place in (("conv.8", "bsconv_u"), (next(n for n in table.names if n.startswith("block.")), "fused")):
        architecture = table.from_values({**option(table), name: place})
        module = build(base, table, architecture)
        cost = CostModel(table).cost(architecture)
        assert (macs(module, SIZE), parameters(module)) == (cost.macs, cost.params)
        assert peak_memory(copy.deepcopy(module), SIZE) == cost.memory


def test_why_nothing_varies_is_said() -> None:
    base = nn.Sequential(nn.Conv2d(3, 8, 1, groups=1), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(960, 5))
    with pytest.raises(
        SpaceError, match=r"all of this base is fixed, such as conv\.0 \(1x1 kernel\), .*: take another base"
    ):
        table_of(base)


def test_where_runs_overlap_every_depthwise_convolution_still_has_its_place() -> None:
    """The pointwise layer of the first pair widens before the second depthwise one, as in MobileNetV1."""
    first = [depthwise(8), nn.BatchNorm2d(8), nn.ReLU(), pointwise(8, 16), nn.BatchNorm2d(16), nn.ReLU()]
    second = [depthwise(16), nn.BatchNorm2d(16), nn.ReLU(), pointwise(16, 32), nn.BatchNorm2d(32)]
    table = table_of(classifier(nn.Sequential(*first), nn.Sequential(*second), channels=32))
    assert {path: role for path, role in roles(table).items() if role != "conv"} == {"1.0": "pair", "2.0": "pair"}
    assert {"conv.1.0", "conv.2.0"} <= set(table.names)


def test_an_activation_without_a_norm_may_stand_in_a_pair() -> None:
    table = table_of(classifier(depthwise(8), nn.ReLU(), pointwise(8, 8), channels=8))
    assert not [name for name in table.names if name.startswith("block.")]
    assert {n.path: (n.place.role, n.place.inner) for n in table.graph.nodes if n.place and n.path == "1"} == {
        "1": ("pair", "act")
    }


def test_without_an_expansion_there_is_nothing_to_fuse() -> None:
    options = {d.name: d.options for d in table_of(inverted()).dimensions}
    assert options["block.1.0.body"] == ("mbconv", "mbconv:ortho=1")
    assert "fused" in options["block.1.1.body"]


def test_multipliers_that_round_to_zero_are_refused() -> None:
    for choices in (
        {"widths": [0.01, 1.0]},
        {"expansions": [0.02]},
        {"overrides": [{"pattern": "2*", "widths": [0.01]}]},
    ):
        with pytest.raises(
            SpaceError, match=r"of its widest, 36 channels, rounds to zero multiples of 2: take a larger"
        ):
            table_of(inverted(), **choices)


def test_an_override_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must say something of its pattern"):
        Choices.model_validate({"overrides": [{"pattern": "*"}]})
