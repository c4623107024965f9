"""Weights by projection: exact where nothing is lost, the best that fits elsewhere."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from asked import asked_of
from odd_networks import ODD
from separable_networks import SEPARABLE, classifier, depthwise, inverted, pointwise, separable
from torch import Tensor, nn
from torchvision import models

import bsconv_nas as nas
from bsconv_nas.network.inherit import inherit
from bsconv_nas.network.layers import compose
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.network.reestimate import reestimate
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.table import Table
from bsconv_nas.space.trace import trace

SIZE = (3, 12, 12)


def images(count: int = 4, seed: int = 0, size: tuple[int, int, int] = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, *size, generator=generator) for _ in range(count)]


def lived_in(base: nn.Module, size: tuple[int, int, int] = SIZE) -> nn.Module:
    """A network whose norms have seen images and scale each channel differently, in double precision."""
    torch.manual_seed(0)
    for module in base.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    reestimate(base, images(size=size))
    return base.double().eval()


def table_of(base: nn.Module, size: tuple[int, int, int] = SIZE, **choices: object) -> Table:
    given = {"widths": (0.5, 1.0, 1.5, 2.0), "divisor": 1, "width_scope": "layer", **choices}
    return make_table(trace(copy.deepcopy(base).float(), size), Choices.model_validate(given))


def heir(base: nn.Module, table: Table, **chosen: object) -> nn.Module:
    """The base's network but for some kinds of dimensions: `conv="regular"` is for all places that have it."""
    values = table.describe(table.base)
    for name, dimension in zip(table.names, table.dimensions, strict=True):
        value = chosen.get(name.partition(".")[0])
        if value in dimension.options:
            values[name] = value  # type: ignore[assignment]
    return inherit(base, table, table.from_values(values)).eval()


def close(a: nn.Module, b: nn.Module, x: Tensor | None = None) -> float:
    """Largest difference of the logits, as a share of the largest logit."""
    x = images(1, seed=1)[0].double() if x is None else x
    with torch.no_grad():
        first, second = a(x), b(x)
    return float((first - second).abs().max() / second.abs().max())


BASES: dict[str, Callable[[], nn.Module]] = {**SEPARABLE, "cifar_resnet": lambda: cifar_resnet(14, width=4)}


@pytest.mark.parametrize("name", BASES)
def test_the_base_inherits_itself(name: str) -> None:
    base = lived_in(BASES[name]())
    table = table_of(base)
    before = copy.deepcopy(base.state_dict())
    child = inherit(base, table, table.base)
    assert child.training
    assert all(torch.equal(child.state_dict()[key], value) for key, value in before.items())
    assert all(torch.equal(base.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("operator", ["bsconv_u:r=9", "bsconv_u:inner=bn,r=9"])
def test_as_many_blueprints_as_pixels_lose_nothing(operator: str) -> None:
    base = lived_in(cifar_resnet(14, width=4))
    table = table_of(base, operators=("regular", operator))
    assert close(heir(base, table, conv=operator), base) < 1e-6
    table = table_of(base, operators=("regular", "bsconv_u:r=8"))
    assert close(heir(base, table, conv="bsconv_u:r=8"), base) > 1e-4


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("width", [1.5, 2.0])
def test_more_channels_compute_the_same(name: str, width: float) -> None:
    base = lived_in(BASES[name]())
    child = heir(base, table_of(base), width=width)
    assert sum(p.numel() for p in child.parameters()) > 1.3 * sum(p.numel() for p in base.parameters())
    assert close(child, base) < 1e-9


@pytest.mark.parametrize("name", ["functional", "bare", "squeeze", "concatenated", "resized", "in place"])
def test_more_channels_compute_the_same_in_odd_networks(name: str) -> None:
    size = ODD[name].input_size
    base = lived_in(ODD[name].factory(), size)
    child = heir(base, table_of(base, size), width=2.0)
    assert sum(p.numel() for p in child.parameters()) > 1.1 * sum(p.numel() for p in base.parameters())
    assert close(child, base, images(1, 1, size)[0].double()) < 1e-9


@pytest.mark.parametrize("name", BASES)
def test_larger_kernels_compute_the_same(name: str) -> None:
    base = lived_in(BASES[name]())
    child = heir(base, table_of(base, kernels=(3, 5, 7)), kernel=7)
    assert any(m.kernel_size == (7, 7) for m in child.modules() if isinstance(m, nn.Conv2d))
    assert close(child, base) < 1e-9


def test_a_wider_expansion_computes_the_same() -> None:
    base = lived_in(inverted())
    assert close(heir(base, table_of(base, expansions=(3, 4, 6)), expand=6.0), base) < 1e-9


def test_a_bare_pair_as_a_regular_convolution_computes_the_same() -> None:
    base = lived_in(separable())
    table = table_of(base)
    for place in ("conv.2", "conv.6"):  # without an activation between; the third one shifts behind its padding
        child = inherit(base, table, table.from_values({**table.describe(table.base), place: "regular"})).eval()
        assert close(child, base) < 1e-9


def test_the_shift_of_a_norm_that_goes_is_made_good_by_the_next_one() -> None:
    pair = [depthwise(8), nn.BatchNorm2d(8), pointwise(8, 12), nn.BatchNorm2d(12), nn.ReLU()]
    base = lived_in(classifier(*pair, channels=12))
    table = table_of(base, operators=("dsc", "bsconv_u:r=9", "regular"))
    for operator in ("bsconv_u:r=9", "regular"):
        assert close(heir(base, table, conv=operator), base) < 1e-9


def test_an_orthonormal_projection_starts_as_the_trained_one() -> None:
    base = lived_in(inverted())
    assert close(heir(base, table_of(base), block="mbconv:ortho=1"), base) == 0


def test_a_channel_that_nobody_listens_to_is_left_out_first() -> None:
    base = lived_in(cifar_resnet(8, width=4))
    with torch.no_grad():
        base.layer1[0].conv2.weight[:, [1, 2]] = 0
        base.layer1[0].bn1.weight[[1, 2]] = 0
    table = table_of(base)
    values = {**table.describe(table.base), "width.layer1.0.conv1": 0.5}
    child = inherit(base, table, table.from_values(values)).eval()
    assert child.layer1[0].conv1.out_channels == 2
    assert close(child, base) < 1e-9


def test_more_blueprints_come_closer() -> None:
    base = lived_in(cifar_resnet(14, width=4))
    operators = ["bsconv_u", *(f"bsconv_u:r={r}" for r in (2, 4, 6, 8))]
    table = table_of(base, operators=("regular", *operators))
    trained = base.layer2[1].conv1.weight.detach()
    children = (heir(base, table, conv=operator).layer2[1].conv1 for operator in operators)
    errors = [float((compose(child).detach() - trained).square().sum() / trained.square().sum()) for child in children]
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < errors[0] < 1


def test_a_dropped_block_is_gone() -> None:
    base = lived_in(cifar_resnet(14, width=4))
    child = heir(base, table_of(base), depth=1)
    assert isinstance(child.layer1[1], nn.Identity)
    assert torch.equal(child.layer1[0].conv1.weight, base.layer1[0].conv1.weight)


def test_norms_between_new_layers_stay_the_identity_when_statistics_are_taken_anew() -> None:
    base = lived_in(cifar_resnet(14, width=4))
    operators = ("regular", "bsconv_u:r=9", "bsconv_u:inner=bn,r=9")
    table = table_of(base, operators=operators)
    batches = [batch.double() for batch in images(1)]
    children = []
    for operator in operators:
        values = {n: operator if n.startswith("conv.") else v for n, v in table.describe(table.base).items()}
        children.append(inherit(base, table, table.from_values(values), batches))
    with_norms = children[2]
    norm = with_norms.layer1[0].conv1.norm
    assert float(norm.running_var.std()) > 0
    assert torch.allclose(norm.weight, (norm.running_var + norm.eps).sqrt())
    for mode in ("eval", "train"):
        x = torch.cat(batches)  # in training the batch has just these statistics
        first, *others = [getattr(child, mode)() for child in children]
        assert max(close(other, first, x) for other in others) < 1e-6


def test_statistics_are_means_over_the_batches() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3))
    module.train()
    batches = [torch.randn(8, 3, 4, 4) + i for i in range(3)]
    reestimate(module, iter(batches))
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(module[0].running_mean, expected, atol=1e-5)
    assert (module[0].momentum, module.training) == (0.3, True)
    reestimate(module, [])
    assert torch.allclose(module[0].running_mean, expected, atol=1e-5)


@pytest.mark.parametrize("factory", [models.mobilenet_v3_small, models.squeezenet1_1, models.shufflenet_v2_x0_5])
def test_every_architecture_of_a_space_inherits_finite_weights(factory: Callable[..., nn.Module]) -> None:
    graph = trace(factory(num_classes=5), (3, 64, 64))
    choices = asked_of(graph, {"kernels": [3, 5], "expansions": [2, 6], "widths": [0.5, 1.0, 1.25]})
    space = nas.SearchSpace.from_module(factory, input_size=(3, 64, 64), num_classes=5, **choices)
    base = factory(num_classes=5).eval()
    for architecture in space.sample(3):
        child = inherit(base, space.table, architecture, [torch.randn(2, 3, 64, 64)])
        assert all(torch.isfinite(value).all() for value in child.state_dict().values())
        assert torch.isfinite(child.eval()(torch.randn(2, 3, 64, 64))).all()


def test_a_norm_that_activates_inherits_as_well() -> None:
    base = lived_in(timm.create_model("mobilenetv3_small_050", num_classes=5), (3, 32, 32))
    table = table_of(base, (3, 32, 32))
    child = heir(base, table, width=2.0)
    assert sum(p.numel() for p in child.parameters()) > 1.5 * sum(p.numel() for p in base.parameters())
    assert close(child, base, images(1, 1, (3, 32, 32))[0].double()) < 1e-9


@pytest.mark.parametrize("name", SEPARABLE)
def test_a_kernel_may_shrink_to_a_pixel_and_a_width_to_a_channel(name: str) -> None:
    base = lived_in(SEPARABLE[name]())
    table = table_of(base, kernels=(1, 3), widths=(0.07, 1.0))
    child = heir(base, table, kernel=1, width=0.07)
    assert torch.isfinite(child(images(1)[0].double())).all()
