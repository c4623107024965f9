"""The kernel analysis: scores by known cases and by scikit-learn's PCA, the null level by simulation."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from bsconv_nas.errors import SpaceError
from bsconv_nas.network.analysis import (
    LeftOut,
    analyze_kernels,
    cross_correlation,
    intra_correlation,
    left_out,
    null_correlation,
)
from bsconv_nas.network.projection import energy_kept


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_score_is_the_first_ratio_of_a_principal_component_analysis():
    kernel = random(6, 16, 3, 3)
    intra = [PCA().fit(f.reshape(16, 9)).explained_variance_ratio_[0] for f in kernel.numpy()]
    cross = [PCA().fit(f.reshape(6, 9)).explained_variance_ratio_[0] for f in kernel.numpy().transpose(1, 0, 2, 3)]
    np.testing.assert_allclose(intra_correlation(kernel), intra, rtol=1e-12)
    np.testing.assert_allclose(cross_correlation(kernel), cross, rtol=1e-12)


def test_scores_of_kernels_that_are_known():
    weights, blueprints = random(8, 16, 1, 1), random(8, 1, 3, 3)
    one = weights * blueprints
    torch.testing.assert_close(intra_correlation(one), torch.ones(8).double())
    torch.testing.assert_close(intra_correlation(one + random(8, 1, 3, 3)), torch.ones(8).double())  # the mean is free
    assert cross_correlation(one).max() < 0.9
    torch.testing.assert_close(cross_correlation(weights * random(1, 16, 3, 3)), torch.ones(16).double())

    two = torch.zeros(1, 4, 3, 3)
    two[0, :, 0, 0], two[0, :, 2, 2] = torch.tensor([1.0, -1, 0, 0]), torch.tensor([0, 0, 1.0, -1])
    assert intra_correlation(two).item() == pytest.approx(0.5)


def test_where_nothing_varies_there_is_no_score():
    assert intra_correlation(random(4, 1, 3, 3)).isnan().all()
    assert cross_correlation(random(1, 4, 3, 3)).isnan().all()
    kernel = random(3, 7, 3, 3)
    kernel[1] = 0
    kernel[2] = random(3, 3) / 3  # the same slice for each channel: what centring leaves is rounding
    assert intra_correlation(kernel).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(("channels", "level"), [(16, 0.2875), (64, 0.1892), (256, 0.1478)])
def test_the_null_level_of_3x3_kernels(channels, level):
    """The specification's 0.29, 0.19 and 0.147, from 200,000 draws."""
    assert null_correlation(channels, 9) == pytest.approx(level, rel=0.004)


@pytest.mark.parametrize("shape", [(2, 3, 3), (5, 3, 3), (10, 3, 3), (40, 3, 3), (12, 5, 5), (60, 5, 5), (30, 1, 7)])
def test_the_null_level_is_that_of_random_kernels(shape):
    simulated = intra_correlation(random(4000, *shape))
    error = float(simulated.std()) / 4000**0.5
    assert null_correlation(shape[0], shape[1] * shape[2]) == pytest.approx(
        float(simulated.mean()), abs=7 * error + 1e-9
    )


def test_one_slice_has_no_null_level():
    assert np.isnan(null_correlation(1, 9))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.inner = nn.Sequential(nn.Conv2d(8, 6, (1, 7)), nn.ReLU())
        self.again = self.inner


def test_dense_kernels_are_analysed_in_order():
    stem, inner = analyze_kernels(Mixed(), ["regular", "bsconv_u"])
    assert (stem.path, stem.c_in, stem.c_out, stem.kernel, stem.stride) == ("stem", 3, 8, (5, 5), (2, 2))
    assert (inner.path, inner.c_in, inner.c_out, inner.kernel, inner.stride) == ("inner.0", 8, 6, (1, 7), (1, 1))
    assert (len(inner.intra), len(inner.cross)) == (6, 8)
    assert (inner.intra_null, inner.cross_null) == (null_correlation(8, 7), null_correlation(6, 7))


def test_every_other_convolution_is_left_out_by_its_kind():
    network = Mixed()
    network.up, network.line = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv1d(8, 8, 3)
    network.volume, network.one = nn.Conv3d(8, 8, 3), nn.Conv2d(1, 4, 3)
    found = left_out(network)
    assert found[0] == LeftOut("pointwise", 8, 8, (1, 1), (1, 1), "1x1")
    kinds = [("pointwise", "1x1"), ("depthwise", "depthwise"), ("grouped", "grouped")]
    assert [(layer.path, layer.kind) for layer in found[:3]] == kinds
    assert [layer.kind for layer in found[3:]] == ["transposed", "1-D", "3-D"]
    analysed = [layer.path for layer in analyze_kernels(network, ["dsc"])]
    convolutions = [path for path, m in network.named_modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert sorted([*analysed, *(layer.path for layer in found)]) == sorted(convolutions)


def test_the_numbers_of_a_layer_are_those_of_its_kernel():
    network, options = Mixed(), ["regular", "dsc", "bsconv_u:r=2"]
    weight = network.stem.weight.detach()
    layer = analyze_kernels(network, options)[0]
    assert layer.intra == tuple(intra_correlation(weight).tolist())
    assert layer.cross == tuple(cross_correlation(weight).tolist())
    assert layer.energy == energy_kept(weight, options)
    assert layer.energy_null["regular"] == pytest.approx(1)
    assert layer.energy_null["bsconv_u:r=2"] == pytest.approx(energy_kept(random(8, 3, 5, 5), options)["bsconv_u:r=2"])


def test_what_cannot_be_analysed_is_refused():
    with pytest.raises(SpaceError, match=r"ungrouped convolution larger than 1x1 .* but 'Linear' has none"):
        analyze_kernels(nn.Linear(3, 3), ["dsc"])
    network = Mixed()
    network.inner[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(SpaceError, match=r"must be finite, but those of 'inner.0' are not"):
        analyze_kernels(network, ["dsc"])


def mean(values: tuple[float, ...]) -> float:
    return float(np.nanmean(values))


def test_a_fresh_network_is_at_the_null_level_and_a_trained_one_above_it():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    options = ["dsc", "bsconv_u", "bsconv_s"]
    fresh = analyze_kernels(network, options)[1]
    assert mean(fresh.intra) == pytest.approx(fresh.intra_null, rel=0.1)
    assert mean(fresh.cross) == pytest.approx(fresh.cross_null, rel=0.1)
    assert fresh.energy == pytest.approx(fresh.energy_null, rel=0.1)

    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 16
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-3)
    for step in range(200):
        batch = slice(64 * (step % 28), 64 * (step % 28) + 64)
        optimizer.zero_grad()
        functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    trained = analyze_kernels(network, options)[1]
    assert mean(trained.intra) > 1.2 * trained.intra_null
    assert mean(trained.cross) > 1.2 * trained.cross_null
    assert all(trained.energy[option] > 1.2 * trained.energy_null[option] for option in options)
