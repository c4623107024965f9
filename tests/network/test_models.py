"""The CIFAR ResNets: parity with the reference package, and what a space needs of them."""

import bsconv.pytorch
import pytest
import torch
from torch import nn

from bsconv_nas.errors import SpaceError
from bsconv_nas.network import models
from bsconv_nas.network.models import cifar_resnet


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_factory_is_named() -> None:
    assert models.__all__ == sorted(models.__all__)
    for name in models.__all__:
        assert isinstance(getattr(models, name)(), nn.Module)


def test_resnet_20_has_the_parameters_of_the_specification() -> None:
    assert parameters(cifar_resnet(20, num_classes=10)) == 272_480


def test_logits_are_those_of_the_reference_package() -> None:
    torch.manual_seed(0)
    theirs, ours = bsconv.pytorch.get_model("cifar_resnet20", num_classes=10).double(), cifar_resnet(20).double()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) / 10)
    mine = ours.state_dict()
    ours.load_state_dict(
        {name: value.reshape(mine[name].shape) for name, value in zip(mine, theirs.state_dict().values(), strict=True)}
    )
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for mode in (False, True):
            torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x), rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (32, 32)])
def test_any_image_of_at_least_8_pixels_is_classified(size: tuple[int, int]) -> None:
    model = cifar_resnet(8, in_channels=1, num_classes=7, width=4)
    assert model(torch.randn(2, 1, *size)).shape == (2, 7)


def test_width_is_that_of_the_first_stage_and_doubles() -> None:
    model = cifar_resnet(14, width=12)
    widths = [block.conv2.out_channels for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    assert widths == [12, 12, 24, 24, 48, 48]


@pytest.mark.parametrize(
    ("depth", "near"),
    [(19, 20), (18, 20), (22, 20), (23, 26), (2, 8), (0, 8)],
)
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int, near: int) -> None:
    with pytest.raises(SpaceError) as error:
        cifar_resnet(depth)
    assert str(error.value) == f"The depth of a cifar_resnet must be 6n + 2 with n >= 1, but got {depth}: take {near}."


@pytest.mark.parametrize("name", ["in_channels", "num_classes", "width"])
def test_a_size_below_1_is_refused(name: str) -> None:
    with pytest.raises(SpaceError, match=f"The {name} of a cifar_resnet must be at least 1, but got 0"):
        cifar_resnet(8, **{name: 0})


def test_the_graph_can_be_traced() -> None:
    model, x = cifar_resnet(20).eval(), torch.randn(2, 3, 16, 16)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))


def test_every_block_but_a_stages_first_adds_its_unchanged_input() -> None:
    model = cifar_resnet(20)
    for stage in (model.layer1, model.layer2, model.layer3):
        assert isinstance(stage, nn.Sequential)
        for block in list(stage)[1:]:
            nn.init.zeros_(block.bn2.weight)
            x = torch.rand(2, block.conv1.in_channels, 8, 8)
            assert torch.equal(block(x), x)


def test_weights_start_with_the_variance_that_decompositions_start_with() -> None:
    torch.manual_seed(0)
    for module in cifar_resnet(20, width=64).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            assert module.weight.var().item() == pytest.approx(2 / module.weight[0].numel(), rel=0.1)


def test_one_step_of_training_has_finite_gradients() -> None:
    model = cifar_resnet(20)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
