"""Conformance of every decomposition's module with its plan, its dense kernel and the reference package.

A new row of `DECOMPOSITIONS` is covered as it stands: `OPTIONS` crosses the values below over each row's parameters.
"""

import dataclasses
import itertools
import json
import math

import bsconv.pytorch
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bsconv_nas.decompositions import (
    DECOMPOSITIONS,
    SECOND_MOMENTS,
    Activation,
    ConvSpec,
    parse_option,
    plan,
    plan_from_json,
    plan_macs,
    plan_parameters,
    plan_to_json,
    primitive_shapes,
)
from bsconv_nas.errors import DecompositionError
from bsconv_nas.network.layers import ACTIVATIONS, OrthonormalConv2d, compose, layer
from bsconv_nas.space import trace_rules

VALUES = {"p": ("1/4", "1"), "r": ("1", "2", "9"), "ortho": ("0", "1")}


def options(name: str) -> list[str]:
    row = DECOMPOSITIONS[name]
    choices = [[f"{key}={value}" for value in {**VALUES, "inner": row.inner}[key]] for key in row.defaults]
    return [f"{name}:{','.join(values)}".rstrip(":") for values in itertools.product(*choices)]


OPTIONS = [option for name in DECOMPOSITIONS for option in options(name)]
INEXACT = {"inner=bn", "inner=act", "inner=bn_act"}
EXACT = [option for option in OPTIONS if not INEXACT & set(option.partition(":")[2].split(","))]

SPECS = {
    "3x3": ConvSpec(8, 12, (3, 3), padding=(1, 1)),
    "3x3 stride 2": ConvSpec(8, 12, (3, 3), (2, 2), (1, 1), bias=True),
    "1x1": ConvSpec(8, 12, (1, 1), bias=True),
    "1x3": ConvSpec(8, 12, (1, 3), padding=(0, 1)),
    "5x5 dilated": ConvSpec(8, 6, (5, 5), padding=(4, 4), dilation=(2, 2), bias=True),
    "2x2": ConvSpec(8, 12, (2, 2), (2, 2)),
    "same": ConvSpec(8, 12, (3, 5), padding="same", dilation=(2, 1), bias=True),
    "valid": ConvSpec(8, 12, (3, 3), padding="valid"),
    "reflect": ConvSpec(8, 12, (3, 3), (2, 1), (1, 2), bias=True, padding_mode="reflect"),
    "circular": ConvSpec(8, 12, (3, 3), padding="same", bias=True, padding_mode="circular"),
    "replicate": ConvSpec(3, 5, (4, 3), padding=(2, 1), padding_mode="replicate"),
    "one channel": ConvSpec(1, 1, (3, 3), padding=(1, 1), bias=True),
}
SIZE = (13, 11)

every_option = pytest.mark.parametrize("option", OPTIONS)
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
torch_copies_for_even_kernels = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@st.composite
def conv_specs(draw: st.DrawFn) -> ConvSpec:
    channels, two = st.integers(1, 9), st.tuples
    stride = draw(two(st.integers(1, 3), st.integers(1, 3)))
    named = ["same", "valid"] if stride == (1, 1) else ["valid"]
    return ConvSpec(
        draw(channels),
        draw(channels),
        draw(two(st.integers(1, 5), st.integers(1, 5))),
        stride,
        draw(st.one_of(two(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(named))),
        draw(two(st.integers(1, 2), st.integers(1, 2))),
        draw(st.booleans()),
        draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )


def dense(spec: ConvSpec) -> nn.Conv2d:
    """The convolution that `spec` describes, built without any code of ours."""
    return nn.Conv2d(
        spec.c_in,
        spec.c_out,
        spec.kernel,
        spec.stride,
        spec.padding,
        spec.dilation,
        1,
        spec.bias,
        spec.padding_mode,  # type: ignore[arg-type]
    )


def randomised(module: nn.Module) -> nn.Module:
    """The module with every parameter and running statistic away from its initial value."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) / 2)
    return module


def images(spec: ConvSpec, batch: int = 2) -> Tensor:
    return torch.randn(batch, spec.c_in, *SIZE)


def assert_conforms(module: nn.Module, spec: ConvSpec, option: str) -> None:
    """Shape, parameters and multiply-adds of the module are those of its plan."""
    primitives, x = plan(spec, option), images(spec, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = module.eval()(x)
    assert out.shape == dense(spec)(x).shape
    assert tuple(out.shape[1:]) == primitive_shapes(primitives, SIZE)[-1]
    assert sum(p.numel() for p in module.parameters()) == plan_parameters(primitives)
    assert counter.get_total_flops() == 2 * plan_macs(primitives, SIZE)


def assert_equals_dense(module: nn.Module, spec: ConvSpec) -> None:
    """The module is the dense convolution with the composed kernel, in float64, borders included."""
    module, reference, x = module.double(), dense(spec).double(), images(spec).double()
    with torch.no_grad():
        reference.weight.copy_(compose(module))
        if reference.bias is not None:
            constant = module(torch.zeros_like(x))
            reference.bias.copy_(constant[0, :, 0, 0])
        assert (module(x) - reference(x)).abs().max() <= 1e-11


@every_spec
@every_option
def test_the_module_is_what_the_plan_says(option: str, spec: ConvSpec) -> None:
    assert_conforms(layer(plan(spec, option)), spec, option)


@every_spec
@pytest.mark.parametrize("option", EXACT)
def test_without_norm_it_is_the_dense_convolution_of_the_composed_kernel(option: str, spec: ConvSpec) -> None:
    assert_equals_dense(randomised(layer(plan(spec, option))), spec)


@torch_copies_for_even_kernels
@settings(max_examples=60, deadline=None)
@given(spec=conv_specs(), option=st.sampled_from(OPTIONS))
def test_conformance_holds_for_any_convolution(spec: ConvSpec, option: str) -> None:
    module = layer(plan(spec, option))
    assert_conforms(module, spec, option)
    if option in EXACT:
        assert_equals_dense(randomised(module), spec)


def test_the_shared_asserts_can_fail() -> None:
    spec = SPECS["3x3"]
    module = layer(plan(spec, "bsconv_u"))
    with pytest.raises(AssertionError):
        assert_conforms(module, spec, "bsconv_u:r=2")
    with pytest.raises(AssertionError):
        assert_conforms(module, spec.resized(8, 13), "bsconv_u")
    with pytest.raises(AssertionError):
        assert_equals_dense(module, dataclasses.replace(spec, padding_mode="reflect"))


@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in EXACT and "act" not in name])
def test_an_inner_norm_differs_from_the_dense_convolution_on_the_border_at_most(option: str) -> None:
    """Folding the norms' scale into the kernel and their shift into a bias is exact away from the padding."""
    spec = SPECS["3x3"]
    module = randomised(layer(plan(spec, option))).double().eval()
    x = images(spec).double()
    pixel = torch.zeros(1, spec.c_in, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        bias = module(pixel)[0, :, 2, 2]
        kernel = torch.stack([(module(pixel + _impulse(spec, m)) - module(pixel))[0] for m in range(spec.c_in)], 1)
        folded = nn.functional.conv2d(x, kernel[..., 1:4, 1:4].flip(-1, -2), bias, padding=1)
        difference = (module(x) - folded).abs().amax((0, 1))
    assert difference[1:-1, 1:-1].max() <= 1e-11
    if option.startswith("dsc"):  # its norm stands behind the padding
        assert difference.max() <= 1e-11
    else:
        assert difference[0].min() > 1e-3


def _impulse(spec: ConvSpec, channel: int) -> Tensor:
    image = torch.zeros(1, spec.c_in, 5, 5, dtype=torch.float64)
    image[0, channel, 2, 2] = 1
    return image


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in EXACT])
def test_compose_refuses_what_is_no_dense_kernel(option: str) -> None:
    with pytest.raises(DecompositionError, match=r"compose to a dense kernel, but (BatchNorm2d|ReLU)"):
        compose(layer(plan(SPECS["3x3"], option)))


def test_as_many_blueprints_as_pixels_express_any_convolution() -> None:
    """Exact at R = K^2: one blueprint a pixel, the pointwise weights carry the kernel."""
    spec = SPECS["3x3"]
    module = layer(plan(spec, "bsconv_u:r=9"))
    kernel = torch.randn(spec.c_out, spec.c_in, 3, 3)
    with torch.no_grad():
        module.pointwise.weight.copy_(kernel.permute(0, 2, 3, 1).reshape(-1, spec.c_in, 1, 1))
        module.depthwise.weight.copy_(torch.eye(9).view(9, 3, 3).expand(spec.c_out, 9, 3, 3))
    assert torch.equal(compose(module), kernel)


def test_r_blueprints_are_the_sum_of_r_single_ones() -> None:
    spec = SPECS["3x3"]
    module, x = layer(plan(spec, "bsconv_u:r=2")).double(), images(spec).double()
    total = torch.zeros(())
    for i in range(2):
        part = layer(plan(spec, "bsconv_u")).double()
        part.load_state_dict(
            {
                "pointwise.weight": module.pointwise.weight.detach()[i::2],
                "depthwise.weight": module.depthwise.weight.detach()[:, i : i + 1],
            }
        )
        total = total + part(x)
    assert (total - module(x)).abs().max() <= 1e-13


@every_option
def test_gradients_are_finite_and_reach_every_parameter(option: str) -> None:
    spec = SPECS["5x5 dilated"]
    module = layer(plan(spec, option))
    out = module.train()(images(spec))
    penalties = [m.penalty() for m in module.modules() if isinstance(m, OrthonormalConv2d)]
    (out.square().mean() + sum(penalties)).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_option
def test_state_and_plan_survive_their_files(option: str) -> None:
    spec = SPECS["3x3 stride 2"]
    primitives = plan(spec, option)
    again = plan_from_json(json.loads(json.dumps(plan_to_json(primitives))))
    assert again == primitives
    module, twin, x = randomised(layer(primitives)).eval(), layer(again).eval(), images(spec)
    assert not torch.equal(module(x), twin(x))
    twin.load_state_dict(safetensors.torch.load(safetensors.torch.save(module.state_dict())))
    assert torch.equal(module(x), twin(x))


def test_a_single_convolution_stands_alone_and_a_sequence_has_the_plans_names() -> None:
    assert type(layer(plan(SPECS["3x3"], "regular"))) is nn.Conv2d
    names = [name for name, _ in layer(plan(SPECS["3x3"], "bsconv_s")).named_children()]
    assert names == ["reduce", "norm_reduce", "pointwise", "norm", "depthwise"]


# --- initialisation ---------------------------------------------------------------------------------------------------


def output_variance(spec: ConvSpec, option: str, draws: int = 12) -> float:
    """Variance over draws of the weights, images, channels and pixels, for inputs N(0, 1)."""
    with torch.no_grad():
        outs = [layer(plan(spec, option))(torch.randn(8, spec.c_in, 7, 7)) for _ in range(draws)]
    return torch.stack(outs).var().item()


@every_option
def test_every_option_starts_with_the_output_variance_of_the_dense_layer(option: str) -> None:
    assert output_variance(ConvSpec(96, 128, (3, 3), bias=True), option) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_inner_activation_does_not_change_the_output_variance(activation: str) -> None:
    spec = ConvSpec(128, 128, (3, 3), activation=activation)
    assert output_variance(spec, "dsc") == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("option", EXACT)
def test_the_composed_kernel_starts_with_the_variance_of_the_dense_kernel(option: str) -> None:
    spec = ConvSpec(96, 128, (3, 3))
    kernels = torch.stack([compose(layer(plan(spec, option))).detach() for _ in range(12)])
    assert kernels.var().item() == pytest.approx(2 / (96 * 9), rel=0.1)


def test_second_moments_are_those_of_the_activations() -> None:
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    moments = {name: torch.trapezoid(make()(z).square() * density, z).item() for name, make in ACTIVATIONS.items()}
    assert moments == pytest.approx(SECOND_MOMENTS, abs=1e-5)


def test_every_activation_that_tracing_names_can_be_built() -> None:
    assert set(trace_rules.ACTIVATIONS.values()) <= set(ACTIVATIONS)


def test_weights_come_from_the_global_generator() -> None:
    first, second, third = (
        torch.manual_seed(seed) and compose(layer(plan(SPECS["3x3"], "dsc:inner=none"))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("option", DECOMPOSITIONS)
def test_biases_start_at_zero(option: str) -> None:
    biases = [m.bias for m in layer(plan(SPECS["5x5 dilated"], option)).modules() if isinstance(m, nn.Conv2d)]
    assert [bias.abs().max().item() for bias in biases if bias is not None] == [0]


def test_an_unknown_activation_in_a_plan_is_refused() -> None:
    with pytest.raises(
        DecompositionError, match="Unknown activation 'swish' of 'activation' in a plan: valid are 'elu'"
    ):
        layer((Activation("activation", "swish"),))


# --- the reference package --------------------------------------------------------------------------------------------


class Penalised(bsconv.pytorch.BSConvS_ModelRegLossMixin, nn.Sequential):
    """The reference's loss over a reference module."""


def reference(spec: ConvSpec, option: str) -> nn.Sequential:
    parsed = parse_option(option)
    args = (spec.c_in, spec.c_out, spec.kernel, spec.stride, spec.padding, spec.dilation, spec.bias, spec.padding_mode)
    with_bn = parsed["inner"] == "bn"
    if parsed.name == "bsconv_u":
        return bsconv.pytorch.BSConvU(*args, with_bn=with_bn)
    return bsconv.pytorch.BSConvS(*args, p=float(parsed["p"]), with_bn=with_bn)


PUBLISHED = [
    *("bsconv_u", "bsconv_u:inner=bn"),
    *(f"bsconv_s:inner={inner},p={p}" for inner in ("none", "bn") for p in ("1/4", "1/2", "1")),
]


@every_spec
@pytest.mark.parametrize("option", PUBLISHED)
def test_the_reference_package_agrees(option: str, spec: ConvSpec) -> None:
    theirs, ours = randomised(reference(spec, option)), layer(plan(spec, option))
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = images(spec)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x), rtol=0, atol=0)
    if option.startswith("bsconv_s"):
        assert ours.reduce.penalty().item() == pytest.approx(Penalised(theirs).reg_loss(alpha=0.1).item(), rel=1e-6)
