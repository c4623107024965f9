import pytest
import torch
from torch import nn

from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.network.reference import fvcore_macs


def test_a_multiply_add_counts_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    conv, pool, linear = 3 * 8 * 9 * 16 * 16, 8 * 16 * 16, 8 * 10
    assert fvcore_macs(network, (3, 16, 16)) == conv + pool + linear


def test_it_lies_a_little_above_ours() -> None:
    macs = 40_813_184  # ResNet-20 of He et al. at 32x32
    assert macs < fvcore_macs(cifar_resnet(20), (3, 32, 32)) < 1.05 * macs


def test_the_network_stays_as_it_was() -> None:
    network = cifar_resnet(8)
    network.bn1.eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fvcore_macs(network, (3, 8, 8))
    assert network.training
    assert not network.bn1.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_an_operation_that_fvcore_does_not_know_is_left_out_quietly(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GELU(), nn.Hardtanh())
    assert fvcore_macs(network, (1, 8, 8)) == 4 * 64
    assert caplog.text == ""
    assert capsys.readouterr() == ("", "")
