"""The orthonormality penalty of BSConv-S: its value, where it stands, and what it survives."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bsconv_nas.decompositions import ConvSpec, plan
from bsconv_nas.network.layers import OrthonormalConv2d, layer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def orthonormal(c_in: int = 16, c_out: int = 4) -> OrthonormalConv2d:
    conv = OrthonormalConv2d(c_in, c_out, 1, bias=False)
    nn.init.normal_(conv.weight)
    return conv


def test_penalty_is_a_tenth_of_the_frobenius_distance_to_orthonormal_rows() -> None:
    conv = orthonormal(2, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 1.0]])[..., None, None])
    # W W^T - I = [[3, 2], [2, 1]], of norm sqrt(9 + 4 + 4 + 1)
    assert conv.penalty().item() == pytest.approx(0.1 * math.sqrt(18))


def test_penalty_and_its_gradient_vanish_at_orthonormal_rows() -> None:
    conv = orthonormal()
    with torch.no_grad():
        conv.weight.copy_(torch.eye(4, 16)[..., None, None])
    penalty = conv.penalty()
    penalty.backward()
    assert penalty.item() == 0
    assert conv.weight.grad is not None
    assert torch.equal(conv.weight.grad, torch.zeros_like(conv.weight))


def test_bsconv_s_starts_with_orthonormal_rows_and_has_one_penalty() -> None:
    module = layer(plan(ConvSpec(64, 32, (3, 3)), "bsconv_s"))
    penalties = {name: m.penalty().item() for name, m in module.named_modules() if hasattr(m, "penalty")}
    assert penalties == {"reduce": pytest.approx(0, abs=1e-5)}


@pytest.mark.parametrize("option", ["regular", "dsc", "bsconv_u", "bsconv_s:ortho=0"])
def test_other_options_have_no_penalty(option: str) -> None:
    assert not any(hasattr(m, "penalty") for m in layer(plan(ConvSpec(16, 24, (3, 3)), option)).modules())


def test_a_deep_copy_reads_its_own_weights() -> None:
    conv = orthonormal()
    twin, before = copy.deepcopy(conv), conv.penalty().item()
    assert twin.penalty().item() == before
    with torch.no_grad():
        twin.weight.zero_()
    assert twin.penalty().item() == pytest.approx(0.1 * 2)  # ||-I||_F of 4 rows
    assert conv.penalty().item() == before


def test_an_ema_copy_has_the_penalty_of_the_averaged_weights() -> None:
    model = nn.Sequential(orthonormal())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    with torch.no_grad():
        model[0].weight.zero_()
    average.update_parameters(model)
    penalties = [m.penalty().item() for m in average.modules() if isinstance(m, OrthonormalConv2d)]
    rows = average.module[0].weight.flatten(1)
    assert penalties == [pytest.approx(0.1 * (rows @ rows.T - torch.eye(4)).norm().item())]
    assert penalties[0] != pytest.approx(model[0].penalty().item())


def test_penalty_keeps_full_precision_under_autocast() -> None:
    conv = orthonormal()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = conv.penalty()
    assert penalty.dtype == torch.float32
    assert penalty.item() == conv.penalty().item()


def test_the_summary_shows_the_penalty() -> None:
    summary = repr(layer(plan(ConvSpec(64, 32, (3, 3)), "bsconv_s")))
    assert "(reduce): OrthonormalConv2d(64, 16, kernel_size=(1, 1), stride=(1, 1), bias=False, penalty=0.1" in summary
