"""Projections: the best of their form (Eckart & Young), exact where they can be, in the layout of the plan."""

import numpy as np
import pytest
import torch

from bsconv_nas.decompositions import DECOMPOSITIONS, ConvSpec, Option, parse_option, plan
from bsconv_nas.errors import DecompositionError
from bsconv_nas.network.layers import compose, layer
from bsconv_nas.network.projection import PROJECTIONS, energy_kept, project

# (N, M, Kh, Kw): more and fewer channels than kernel pixels on either side, one of each, oblong kernels.
SHAPES = [(12, 16, 3, 3), (16, 5, 3, 3), (5, 16, 3, 3), (4, 3, 5, 5), (6, 1, 3, 3), (1, 6, 3, 3), (8, 10, 1, 7)]
OPTIONS = ["regular", "dsc", "bsconv_u", "bsconv_u:r=2", "bsconv_u:r=4", "bsconv_u:r=99", "bsconv_s", "bsconv_s:p=1"]


def random(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bare(kernel: torch.Tensor, option: str) -> torch.nn.Module:
    """The option's layer for a kernel, freshly drawn, with nothing between its convolutions."""
    n, m, *size = kernel.shape
    parsed = parse_option(option)
    params = {**dict(parsed.params), **({"inner": "none"} if "inner" in dict(parsed.params) else {})}
    return layer(plan(ConvSpec(m, n, tuple(size)), Option(parsed.name, tuple(sorted(params.items()))))).double()


def composed(kernel: torch.Tensor, option: str, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The dense kernel of the layer that has the projection's weights; torch checks their names and shapes."""
    module = bare(kernel, option)
    weights = project(kernel, option) if weights is None else weights
    single = isinstance(module, torch.nn.Conv2d)
    module.load_state_dict({"weight" if single else f"{name}.weight": tensor for name, tensor in weights.items()})
    return compose(module).detach()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().sum())


def tail(matrices: np.ndarray, rank: int) -> float:
    """What the best approximations of `rank` leave: the squared singular values behind it."""
    return float(sum((np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum() for matrix in matrices))


def test_every_decomposition_has_a_projection():
    assert PROJECTIONS.keys() == DECOMPOSITIONS.keys()
    with pytest.raises(DecompositionError, match=r"cannot be projected onto 'fused': valid are 'bsconv_s', "):
        project(random((4, 4, 3, 3)), Option("fused"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_blueprints_leave_the_tail_of_each_filter(shape, rank):
    kernel = random(shape)
    left = distance(kernel, composed(kernel, f"bsconv_u:r={rank}"))
    assert left == pytest.approx(tail(kernel.flatten(2).numpy(), rank), rel=1e-10, abs=1e-20)


@pytest.mark.parametrize("shape", SHAPES)
def test_dsc_leaves_the_tail_of_each_input_channel(shape):
    kernel = random(shape)
    left = distance(kernel, composed(kernel, "dsc"))
    assert left == pytest.approx(tail(kernel.flatten(2).transpose(0, 1).numpy(), 1), rel=1e-10, abs=1e-20)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_subspace_leaves_the_tail_of_the_weights_besides(shape):
    kernel = random(shape)
    weights = project(kernel, "bsconv_u")["pointwise"].flatten(1).numpy()
    mid = len(project(kernel, "bsconv_s")["reduce"])
    expected = tail(kernel.flatten(2).numpy(), 1) + tail(weights[None], mid)
    assert distance(kernel, composed(kernel, "bsconv_s")) == pytest.approx(expected, rel=1e-10, abs=1e-20)


@pytest.mark.parametrize("option", ["dsc", "bsconv_u", "bsconv_u:r=2"])
def test_no_kernel_of_the_form_is_nearer(option):
    kernel, generator = random((6, 8, 3, 3)), torch.Generator().manual_seed(1)
    weights = project(kernel, option)
    best = distance(kernel, composed(kernel, option))
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            moved = {n: w + scale * torch.randn(w.shape, generator=generator).double() for n, w in weights.items()}
            assert distance(kernel, composed(kernel, option, moved)) > best


def test_no_subspace_of_its_blueprints_is_nearer():
    kernel, generator = random((12, 16, 3, 3)), torch.Generator().manual_seed(1)
    weights = project(kernel, "bsconv_s")
    best = distance(kernel, composed(kernel, "bsconv_s"))
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            moved = {n: w + scale * torch.randn(w.shape, generator=generator).double() for n, w in weights.items()}
            moved["depthwise"] = weights["depthwise"]
            assert distance(kernel, composed(kernel, "bsconv_s", moved)) > best


@pytest.mark.parametrize("shape", SHAPES)
def test_all_blueprints_give_the_kernel_itself(shape):
    kernel = random(shape)
    for option in ("regular", f"bsconv_u:r={shape[2] * shape[3]}"):
        torch.testing.assert_close(composed(kernel, option), kernel, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_kernel_of_the_form_stays_as_it_is(shape, option):
    torch.manual_seed(0)
    kernel = compose(bare(random(shape), option)).detach()
    torch.testing.assert_close(composed(kernel, option), kernel, rtol=0, atol=1e-10)
    assert energy_kept(kernel, [option])[option] == pytest.approx(1, abs=1e-12)


def test_the_whole_subspace_is_bsconv_u():
    kernel = random((12, 16, 3, 3))
    torch.testing.assert_close(composed(kernel, "bsconv_s:p=1"), composed(kernel, "bsconv_u"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_templates_are_orthonormal(shape):
    kernel = random(shape)
    reduce = project(kernel, "bsconv_s:p=1")["reduce"].flatten(1)  # wider than the filters need in some shapes
    torch.testing.assert_close(reduce @ reduce.T, torch.eye(len(reduce)).double(), rtol=0, atol=1e-12)
    for blueprints in project(kernel, "bsconv_u:r=4")["depthwise"].flatten(2):
        torch.testing.assert_close(blueprints @ blueprints.T, torch.eye(4).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_energy_kept_is_that_of_the_projection(shape):
    kernel = random(shape)
    for option, kept in energy_kept(kernel, OPTIONS).items():
        left = distance(kernel, composed(kernel, option)) / float(kernel.square().sum())
        assert kept == pytest.approx(1 - left, abs=1e-12), option


def test_an_empty_kernel_has_no_energy_to_keep():
    assert np.isnan(list(energy_kept(torch.zeros(4, 4, 3, 3), OPTIONS).values())).all()


def test_the_weights_have_the_type_of_the_kernel():
    kernel = random((12, 16, 3, 3))
    for name, weight in project(kernel.float(), "bsconv_s").items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.double().abs(), project(kernel, "bsconv_s")[name].abs(), rtol=0, atol=1e-5)
