"""The families of base networks: parity with their references, forms, widths, and what a space needs of them."""

from collections.abc import Callable, Iterator
from fractions import Fraction

import bsconv.pytorch
import pytest
import torch
import torchvision
from interpreter import macs, parameters
from torch import Tensor, nn

from bsconv_nas.errors import SpaceError
from bsconv_nas.network import models
from bsconv_nas.network.models.blocks import form_strides, scaled, width_multiplier
from bsconv_nas.network.models.inverted_residual import InvertedResidual

CLASSES = 7
MOBILENETS = {
    "mobilenet_v1": "mobilenetv1",
    "mobilenet_v2": "mobilenetv2",
    "mobilenet_v3_small": "mobilenetv3_small",
    "mobilenet_v3_large": "mobilenetv3_large",
}
FORMED = (*MOBILENETS, "efficientnet_b0")
DEPTHS = (10, 18, 26, 34, 68, 102)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small to share, and a busy machine makes them wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def named(factory: str, *args: object, **options: object) -> nn.Module:
    model: nn.Module = getattr(models, factory)(*args, num_classes=CLASSES, **options)
    return model


def small(factory: str, **options: object) -> nn.Module:
    """The network of a family at a quarter of its width, where it has one."""
    return named(factory, "w1d4", **options) if factory in FORMED else named(factory, **options)


def theirs(name: str) -> nn.Module:
    return bsconv.pytorch.get_model(name, num_classes=CLASSES)


# Networks that the package has as well and `published.csv` has not, by its names, and the size of their images.
TWINS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{
        f"{name}_{width}": (lambda f=f, w=width: named(f, w, form="imagenet"), 224)
        for f, name in MOBILENETS.items()
        for width in ("w1", "w3d4", "w7d20")
    },
    **{f"cifar_{name}_w7d5": (lambda f=f: named(f, "w7d5"), 32) for f, name in MOBILENETS.items()},
    **{f"resnet{depth}": (lambda d=depth: named("resnet", d), 224) for depth in DEPTHS},
    **{f"cifar_preresnet{depth}": (lambda d=depth: named("cifar_preact_resnet", d), 32) for depth in (20, 56, 110)},
}


@pytest.mark.parametrize("name", TWINS)
def test_sizes_are_those_of_the_package(name: str) -> None:
    make, size = TWINS[name]
    with torch.device("meta"):
        mine, reference = make(), theirs(name)
    assert (parameters(mine), macs(mine, (3, size, size))) == (
        parameters(reference),
        macs(reference, (3, size, size)),
    )


def assert_same_function(mine: nn.Module, reference: nn.Module, size: int) -> None:
    """Whether two networks with the same weights, in the order of their layers, have the same logits."""
    generator = torch.Generator().manual_seed(0)
    for tensor in reference.double().state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator) / 10)
    state = mine.double().state_dict()
    values = reference.state_dict().values()
    mine.load_state_dict({k: v.reshape(state[k].shape) for k, v in zip(state, values, strict=True)})
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(x), reference.eval()(x), rtol=1e-9, atol=0)


@pytest.mark.parametrize("form", ["cifar", "imagenet"])
@pytest.mark.parametrize("factory", MOBILENETS)
def test_logits_of_a_mobilenet_are_those_of_the_package(factory: str, form: str) -> None:
    name = f"{'cifar_' if form == 'cifar' else ''}{MOBILENETS[factory]}_w1d4"
    assert_same_function(small(factory, form=form), theirs(name), 32)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cifar_wrn16_2", lambda: named("wrn", 16, 2)),
        ("cifar_preresnet20", lambda: named("cifar_preact_resnet", 20)),
        ("resnet10", lambda: named("resnet", 10)),
    ],
)
def test_logits_of_a_resnet_are_those_of_the_package(name: str, make: Callable[[], nn.Module]) -> None:
    assert_same_function(make(), theirs(name), 16)


def test_logits_of_efficientnet_b0_are_those_of_torchvision() -> None:
    reference = torchvision.models.efficientnet_b0(num_classes=CLASSES)
    assert_same_function(named("efficientnet_b0", form="imagenet"), reference, 32)


def test_networks_that_differ_in_one_weight_are_told_apart() -> None:
    mine, reference = small("mobilenet_v1"), theirs("cifar_mobilenetv1_w1d4")
    mine.stem.bn.eps = 1e-3
    with pytest.raises(AssertionError):
        assert_same_function(mine, reference, 32)


@pytest.mark.parametrize("factory", FORMED)
@pytest.mark.parametrize(("form", "reduction"), [("cifar", 8), ("imagenet", 32)])
def test_a_form_says_how_often_the_resolution_is_halved(factory: str, form: str, reduction: int) -> None:
    with torch.device("meta"):
        model = named(factory, form=form, in_channels=1)
        seen: list[Tensor] = []
        model.avgpool.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        assert model.eval()(torch.empty(2, 1, 64, 64)).shape == (2, CLASSES)
    assert seen[0].shape[2:] == (64 // reduction, 64 // reduction)


@pytest.mark.parametrize("factory", FORMED)
def test_a_width_is_a_name_or_a_number(factory: str) -> None:
    with torch.device("meta"):
        assert parameters(named(factory, "w3d4")) == parameters(named(factory, 0.75)) < parameters(named(factory))


def test_a_width_is_exact_and_channels_are_truncated() -> None:
    assert [width_multiplier(w) for w in ("w1", "w7d20", 0.35, 2)] == [1, Fraction(7, 20), Fraction(7, 20), 2]
    assert [scaled(c, Fraction(7, 20)) for c in (16, 20, 40)] == [5, 7, 14]


@pytest.mark.parametrize("width", ["3d4", "w", "w0", "w3d0", "w3/4", "", "w1d4 ", 0, -1.0, float("nan"), float("inf")])
def test_what_is_no_width_is_refused(width: float | str) -> None:
    law = r"^A width must be a positive number or a name such as 'w1' or 'w3d4', but got "
    with pytest.raises(SpaceError, match=law):
        models.mobilenet_v1(width)


def test_a_width_that_leaves_no_channel_is_refused() -> None:
    with pytest.raises(
        SpaceError, match=r"must leave at least one of 16 channels, but 0\.05 leaves none: take 'w1d16'"
    ):
        models.mobilenet_v3_small(0.05)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"Unknown form 'imagnet' of a base network: .*did you mean 'imagenet'"):
        models.efficientnet_b0(form="imagnet")
    assert form_strides("cifar", (2, 2, 1, 2)) == (1, 1, 1, 2)
    assert form_strides("imagenet", (2, 2, 1, 2)) == (2, 2, 1, 2)


@pytest.mark.parametrize("factory", models.__all__)
@pytest.mark.parametrize("size", ["in_channels", "num_classes"])
def test_a_size_below_1_is_refused(factory: str, size: str) -> None:
    with pytest.raises(SpaceError, match=f"The {size} of a {factory} must be at least 1, but got 0"):
        getattr(models, factory)(**{size: 0})


@pytest.mark.parametrize(
    ("factory", "depth", "sentence"),
    [
        ("cifar_preact_resnet", 21, r"of a cifar_preact_resnet must be 6n \+ 2 with n >= 1, but got 21: take 20"),
        ("wrn", 26, r"of a wrn must be 6n \+ 4 with n >= 1, but got 26: take 28"),
        ("wrn", 4, r"of a wrn must be 6n \+ 4 with n >= 1, but got 4: take 10"),
        ("resnet", 50, r"of a resnet must be one of \[10, 18, 26, 34, 68, 102\], but got 50"),
    ],
)
def test_a_depth_that_a_family_does_not_have_is_refused(factory: str, depth: int, sentence: str) -> None:
    with pytest.raises(SpaceError, match=f"^The depth {sentence}"):
        getattr(models, factory)(depth)


def test_a_wrn_widens_its_stages_and_not_its_stem() -> None:
    with torch.device("meta"):
        model = models.wrn(16, 3)
    assert model.conv1.out_channels == 16
    assert [stage[-1].conv2.out_channels for stage in (model.layer1, model.layer2, model.layer3)] == [48, 96, 192]


def test_a_separable_pair_is_four_modules_in_a_row_that_nobody_shares() -> None:
    model = models.mobilenet_v1("w1d4")
    order = [module for module in model.modules() if not list(module.children())]
    pairs = [i for i, m in enumerate(order) if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(pairs) == 13
    for i in pairs:
        assert [type(m) for m in order[i + 1 : i + 4]] == [nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    calls = [n.target for n in torch.fx.symbolic_trace(model).graph.nodes if n.op == "call_module"]
    assert len(calls) == len(set(calls))


@pytest.mark.parametrize("factory", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0"])
def test_an_inverted_residual_adds_its_input_where_the_shapes_agree(factory: str) -> None:
    model = small(factory)
    blocks = [module for module in model.modules() if isinstance(module, InvertedResidual)]
    assert {block.residual for block in blocks} == {True, False}
    for block in blocks:
        first = block.expand.conv if block.expand else block.depthwise
        x = torch.rand(2, first.in_channels, 4, 4)
        nn.init.zeros_(block.bn2.weight)
        out = block(x)
        agree = block.depthwise.stride == (1, 1) and first.in_channels == block.project.out_channels
        assert torch.equal(out, x) if agree else not out.any()


def test_a_pre_activated_block_adds_its_unchanged_input() -> None:
    block = models.cifar_preact_resnet(14).layer2[1]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 32, 8, 8)
    assert torch.equal(block(x.clone()), x)


@pytest.mark.parametrize("factory", models.__all__)
def test_the_graph_can_be_traced(factory: str) -> None:
    model, x = small(factory).eval(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("factory", models.__all__)
def test_one_step_of_training_has_finite_gradients(factory: str) -> None:
    model = small(factory)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("factory", models.__all__)
def test_weights_start_with_the_variance_that_decompositions_start_with(factory: str) -> None:
    torch.manual_seed(0)
    for module in small(factory).modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None or not module.bias.any()
            if module.weight.numel() > 5_000:
                assert module.weight.var().item() == pytest.approx(2 / module.weight[0].numel(), rel=0.1)
