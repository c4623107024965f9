"""The table of decompositions without torch: options, plans, counts and their JSON form."""

import json
import math
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from bsconv_nas.decompositions import (
    DECOMPOSITIONS,
    Activation,
    Conv,
    ConvSpec,
    Norm,
    blueprints,
    mid_channels,
    parse_option,
    plan,
    plan_from_json,
    plan_macs,
    plan_parameters,
    plan_to_json,
    primitive_shapes,
)
from bsconv_nas.errors import DecompositionError

M, N, K = 24, 40, 3
SPEC = ConvSpec(M, N, (K, K), stride=(2, 2), padding=(1, 1))
MID = 6
IN, OUT = 16 * 16, 8 * 8


def message(error: pytest.ExceptionInfo[DecompositionError]) -> str:
    return str(error.value)


# The specification's table: option -> (weights, multiply-adds) at SPEC for a 16 x 16 input.
COUNTS = {
    "regular": (M * N * K**2, M * N * K**2 * OUT),
    "dsc:inner=none": (M * K**2 + M * N, (M * K**2 + M * N) * OUT),
    "bsconv_u": (M * N + N * K**2, M * N * IN + N * K**2 * OUT),
    "bsconv_s:inner=none": (MID * (M + N) + N * K**2, MID * (M + N) * IN + N * K**2 * OUT),
    "bsconv_u:r=3": (3 * (M * N + N * K**2), 3 * (M * N * IN + N * K**2 * OUT)),
}


@pytest.mark.parametrize("option", COUNTS)
def test_counts_are_the_formulas_of_the_paper(option: str) -> None:
    primitives = plan(SPEC, option)
    assert (plan_parameters(primitives), plan_macs(primitives, (16, 16))) == COUNTS[option]


def test_every_row_has_a_count() -> None:
    assert {parse_option(option).name for option in COUNTS} == set(DECOMPOSITIONS)


@pytest.mark.parametrize(
    ("option", "order"),
    [
        ("regular", "conv"),
        ("dsc", "depthwise norm activation pointwise"),
        ("dsc:inner=bn", "depthwise norm pointwise"),
        ("dsc:inner=none", "depthwise pointwise"),
        ("bsconv_u", "pointwise depthwise"),
        ("bsconv_u:inner=bn", "pointwise norm depthwise"),
        ("bsconv_s", "reduce norm_reduce pointwise norm depthwise"),
        ("bsconv_s:inner=none", "reduce pointwise depthwise"),
    ],
)
def test_layer_order(option: str, order: str) -> None:
    assert [primitive.name for primitive in plan(SPEC, option)] == order.split()


def test_norms_stand_on_the_channels_that_they_follow() -> None:
    assert [p.channels for p in plan(SPEC, "bsconv_s") if isinstance(p, Norm)] == [MID, N]
    assert [p.channels for p in plan(SPEC, "dsc") if isinstance(p, Norm)] == [M]


def test_the_spatial_layer_takes_stride_padding_dilation_mode_and_bias() -> None:
    spec = ConvSpec(8, 12, (3, 5), (2, 1), (1, 2), (1, 2), bias=True, padding_mode="reflect")
    for option in map(parse_option, DECOMPOSITIONS):
        convs = [p for p in plan(spec, option) if isinstance(p, Conv)]
        (spatial,) = (c for c in convs if c.kernel != (1, 1))
        taken = (spatial.kernel, spatial.stride, spatial.padding, spatial.dilation, spatial.bias, spatial.padding_mode)
        assert taken == ((3, 5), (2, 1), (1, 2), (1, 2), True, "reflect")
        for pointwise in set(convs) - {spatial}:
            assert (pointwise.stride, pointwise.padding, pointwise.bias) == ((1, 1), (0, 0), False)


def test_only_the_first_pointwise_layer_of_bsconv_s_is_orthonormal() -> None:
    for option, expected in {"bsconv_s": ["reduce"], "bsconv_s:ortho=0": [], "bsconv_u": [], "dsc": []}.items():
        assert [p.name for p in plan(SPEC, option) if isinstance(p, Conv) and p.orthonormal] == expected


def test_dsc_applies_the_activation_of_its_host() -> None:
    (activation,) = (p for p in plan(ConvSpec(8, 8, (3, 3), activation="silu"), "dsc") if isinstance(p, Activation))
    assert activation.kind == "silu"


def test_stride_makes_bsconv_u_dearer_than_dsc_at_equal_parameters() -> None:
    """MobileNetV1 at 224 x 224: 568.7 M conv MACs with DSC, 884.0 M with BSConv-U."""
    channels = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, *[1] * 5, 2, 1]
    stem_and_classifier = plan_macs(plan(ConvSpec(3, 32, (3, 3), (2, 2), (1, 1))), (224, 224)) + 1024 * 1000

    def macs(option: str) -> int:
        size, total = 112, stem_and_classifier
        for c_in, c_out, stride in zip(channels, channels[1:], strides, strict=False):
            total += plan_macs(plan(ConvSpec(c_in, c_out, (3, 3), (stride, stride), (1, 1)), option), (size, size))
            size //= stride
        return total

    assert [round(macs(option) / 1e6, 1) for option in ("dsc", "bsconv_u")] == [568.7, 884.0]


@pytest.mark.parametrize(
    ("c_in", "p", "mid"),
    [
        (100, "0.07", 7),  # ceil(0.07 * 100) is 8 in floating point
        (100, "7/100", 7),
        (100, "0.071", 8),
        (64, "1/4", 16),
        (8, "1/4", 4),  # never fewer than 4 ...
        (3, "1/4", 3),  # ... nor more than M
        (16, "1", 16),
    ],
)
def test_mid_channels(c_in: int, p: str, mid: int) -> None:
    assert mid_channels(ConvSpec(c_in, 8, (3, 3)), Fraction(p)) == mid
    assert plan(ConvSpec(c_in, 8, (3, 3)), f"bsconv_s:p={p}")[0] == Conv("reduce", c_in, mid, orthonormal=True)


@pytest.mark.parametrize(("r", "kernel", "expected"), [(1, 3, 1), (4, 3, 4), (9, 3, 9), (10, 3, 9), (30, 5, 25)])
def test_blueprints_end_at_the_kernels_pixels(r: int, kernel: int, expected: int) -> None:
    spec = ConvSpec(8, 8, (kernel, kernel))
    assert blueprints(spec, r) == expected
    assert parse_option(f"bsconv_u:r={r}").resolve(spec) == f"bsconv_u:inner=none,r={expected}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("regular", "regular"),
        ("dsc", "dsc"),
        ("dsc:inner=bn_act", "dsc"),
        ("dsc:inner=none", "dsc:inner=none"),
        ("bsconv_u:r=1,inner=none", "bsconv_u"),
        ("bsconv_u: r = 4 , inner = bn", "bsconv_u:inner=bn,r=4"),
        ("bsconv_s:p=0.25,inner=bn,ortho=1", "bsconv_s"),
        ("bsconv_s:p=0.07", "bsconv_s:p=7/100"),
        ("bsconv_s:p=2/16,ortho=0", "bsconv_s:ortho=0,p=1/8"),
    ],
)
def test_an_option_is_shown_in_its_shortest_form_and_read_back(text: str, canonical: str) -> None:
    option = parse_option(text)
    assert str(option) == canonical
    assert parse_option(canonical) == option


def test_defaults_are_the_published_forms() -> None:
    shown = {name: parse_option(name).resolve(SPEC) for name in DECOMPOSITIONS}
    assert shown == {
        "regular": "regular",
        "dsc": "dsc:inner=bn_act",
        "bsconv_u": "bsconv_u:inner=none,r=1",
        "bsconv_s": "bsconv_s:inner=bn,mid=6,ortho=1",
    }


def test_options_that_resolve_alike_are_the_same_layer() -> None:
    first, second = (parse_option(f"bsconv_s:p={p}") for p in ("1/4", "6/25"))
    assert first != second
    assert first.resolve(SPEC) == second.resolve(SPEC)
    assert plan(SPEC, first) == plan(SPEC, second)


NOT_A_FRACTION = "Parameter 'p' of {!r} must be a fraction in (0, 1], such as 1/4, but got {!r}."
NOT_A_COUNT = "Parameter 'r' of {!r} must be a whole number of at least 1, but got {!r}."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "relgular",
            "Unknown decomposition 'relgular' in 'relgular': "
            "valid are 'bsconv_s', 'bsconv_u', 'dsc', 'regular'; did you mean 'regular'.",
        ),
        ("regular:p=1/2", "Unknown parameter 'p' of 'regular' in 'regular:p=1/2': it takes none."),
        ("bsconv_u:p=1/2", "Unknown parameter 'p' of 'bsconv_u' in 'bsconv_u:p=1/2': valid are 'inner', 'r'."),
        ("bsconv_s:p", NOT_A_FRACTION.format("bsconv_s:p", "")),
        ("bsconv_s:p=0", NOT_A_FRACTION.format("bsconv_s:p=0", "0")),
        ("bsconv_s:p=5/4", NOT_A_FRACTION.format("bsconv_s:p=5/4", "5/4")),
        ("bsconv_s:p=1/0", NOT_A_FRACTION.format("bsconv_s:p=1/0", "1/0")),
        ("bsconv_s:p=nan", NOT_A_FRACTION.format("bsconv_s:p=nan", "nan")),
        ("bsconv_u:r=0", NOT_A_COUNT.format("bsconv_u:r=0", "0")),
        ("bsconv_u:r=1.5", NOT_A_COUNT.format("bsconv_u:r=1.5", "1.5")),
        ("bsconv_s:ortho=2", "Parameter 'ortho' of 'bsconv_s:ortho=2' must be 0 or 1, but got '2'."),
        (
            "bsconv_u:inner=bn_act",
            "Parameter 'inner' of 'bsconv_u:inner=bn_act' must be one of ('none', 'bn'), but got 'bn_act'.",
        ),
        (
            "dsc:inner=relu",
            "Parameter 'inner' of 'dsc:inner=relu' must be one of ('none', 'bn', 'act', 'bn_act'), but got 'relu'.",
        ),
        ("bsconv_u:r=2,r=3", "Parameter 'r' must be given once, but 'bsconv_u:r=2,r=3' repeats it: keep one."),
    ],
)
def test_a_malformed_option_is_refused_by_one_sentence(text: str, expected: str) -> None:
    with pytest.raises(DecompositionError) as error:
        parse_option(text)
    assert message(error).rstrip(".") == expected.rstrip(".")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("c_in", 0, "The c_in of a convolution must be at least 1, but got 0."),
        ("c_out", -1, "The c_out of a convolution must be at least 1, but got -1."),
        ("kernel", (3, 0), "The kernel of a convolution must be at least 1, but got 0."),
        ("stride", (0, 1), "The stride of a convolution must be at least 1, but got 0."),
        ("dilation", (1, 0), "The dilation of a convolution must be at least 1, but got 0."),
        (
            "padding",
            (0, -1),
            "The padding of a convolution must be two numbers of at least 0, .*, but got \\(0, -1\\).",
        ),
        (
            "padding",
            "smae",
            "The padding of a convolution must be two numbers .* or at stride 1 'same', but got 'smae'.",
        ),
    ],
)
def test_a_convolution_that_cannot_be_is_refused(field: str, value: object, expected: str) -> None:
    fields = {"c_in": 4, "c_out": 4, "kernel": (3, 3), field: value}
    with pytest.raises(DecompositionError) as error:
        ConvSpec(**fields)  # type: ignore[arg-type]
    assert re.fullmatch(expected, message(error))


def test_same_padding_needs_stride_1() -> None:
    with pytest.raises(DecompositionError, match="or at stride 1 'same', but got 'same'"):
        ConvSpec(4, 4, (3, 3), stride=(2, 2), padding="same")


def test_an_unknown_activation_is_refused_where_it_is_used() -> None:
    spec = ConvSpec(4, 4, (3, 3), activation="rellu")
    assert len(plan(spec, "dsc:inner=bn")) == 3
    with pytest.raises(DecompositionError, match=r"Unknown activation 'rellu' for 'dsc' .*did you mean 'relu'"):
        plan(spec, "dsc")


@pytest.mark.parametrize("option", ["regular", "dsc", "bsconv_u:r=2", "bsconv_s"])
@pytest.mark.parametrize("padding", [(1, 1), "same"])
def test_a_plan_survives_a_json_file(option: str, padding: tuple[int, int] | str) -> None:
    primitives = plan(ConvSpec(12, 10, (3, 5), padding=padding, bias=True), option)
    again = plan_from_json(json.loads(json.dumps(plan_to_json(primitives))))
    assert again == primitives
    assert hash(again) == hash(primitives)


def test_gains_multiply_to_the_dense_layers_variance() -> None:
    for option in ("regular", "dsc:inner=none", "bsconv_u", "bsconv_u:r=3", "bsconv_s:inner=none"):
        convs = [p for p in plan(SPEC, option) if isinstance(p, Conv)]
        # A sum over paths: every convolution but the spatial one of a depthwise kind adds up its inputs.
        paths = math.prod(c.c_in // c.groups for c in convs) / M
        variance = paths * math.prod(c.gain / c.fan_in for c in convs)
        assert math.isclose(variance, 2 / (M * K**2)), option


def test_resizing_keeps_everything_but_the_channels() -> None:
    assert SPEC.resized(5, 7) == ConvSpec(5, 7, (K, K), stride=(2, 2), padding=(1, 1))


def test_shapes_run_through_the_plan() -> None:
    assert primitive_shapes(plan(SPEC, "bsconv_u:inner=bn"), (15, 16)) == [(N, 15, 16), (N, 15, 16), (N, 8, 8)]


def test_the_table_needs_no_torch() -> None:
    code = "import sys, bsconv_nas.decompositions; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "False\n"
