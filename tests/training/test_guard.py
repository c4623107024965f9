"""The guard against the kernel that damages memory: under the instructions that show it, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bsconv_nas.doctor import HEAP_CHECK
from bsconv_nas.training.data import DataSpec, load
from bsconv_nas.training.guard import StridedPointwiseGuard
from bsconv_nas.training.loop import train
from bsconv_nas.training.recipe import Recipe

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
NETWORKS = [
    "plain",
    "strided along one axis",
    "permuting",
    "arriving in channels last",
    "functional",
    "checkpointed",
    "checkpointed, reentrant",
]


def check_guarded(*arguments: str, **variables: str) -> None:
    """Run guarded.py; glibc ends it at the first damage to its heap."""
    command = [sys.executable, "-X", "faulthandler", Path(__file__).with_name("guarded.py"), *arguments]
    environment = {**os.environ, **HEAP_CHECK, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    assert float(done.stdout) <= 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_exact_and_damages_nothing_under_avx2(name: str) -> None:
    check_guarded("networks", name, **AVX2)


def test_training_is_exact_and_damages_nothing_here() -> None:
    check_guarded("networks", *NETWORKS)


@pytest.mark.parametrize("variables", [AVX2, {}], ids=["avx2", "here"])
def test_every_decomposition_trains_exactly_with_few_channels(variables: dict[str, str]) -> None:
    """Strides of 1 to 3, 1 to 17 channels, kernels of 1x1 and 3x3, both layouts."""
    check_guarded("decompositions", **variables)


@pytest.mark.parametrize("variables", [AVX2, {}], ids=["avx2", "here"])
def test_large_images_train_exactly(variables: dict[str, str]) -> None:
    """Where processors with AVX-512 damage memory."""
    check_guarded("large", **variables)


@pytest.mark.parametrize("stride", [1, 2, (3,), (1, 2), [2, 3]])
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "valid"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [(3,), ()])
def test_the_safe_form_equals_the_layer(
    stride: int | tuple[int, ...], padding: int | str, groups: int, batch: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    images, weight, bias = torch.randn(*batch, 6, 8, 9), torch.randn(4, 6 // groups, 1, 1), torch.randn(4)
    arguments = {"bias": bias, "stride": stride, "padding": padding, "dilation": 2, "groups": groups}
    with StridedPointwiseGuard():
        found = functional.conv2d(images, weight, **arguments)
    torch.testing.assert_close(found, functional.conv2d(images, weight, **arguments))


@pytest.mark.parametrize(
    ("stride", "padding"),
    [(2, "same"), (2, "full"), (2, -1), (2, (0, -1)), (2, (1, 1, 1)), (0, 0), (-1, 0), ((1, 2, 3), 0)],
)
def test_what_torch_refuses_stays_refused(stride: Any, padding: Any) -> None:
    with StridedPointwiseGuard(), pytest.raises((RuntimeError, TypeError, ValueError)):
        torch.conv2d(torch.ones(1, 4, 8, 8), torch.ones(4, 4, 1, 1), stride=stride, padding=padding)


class Strides(TorchFunctionMode):
    """Notes the stride of every convolution that reaches torch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            self.seen.append(args[3])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layer", "device", "is_rewritten"),
    [
        (nn.Conv2d(1, 8, 1, 2), "cpu", True),
        (nn.Conv2d(15, 8, 1, (1, 2)), "cpu", True),
        (nn.Conv2d(32, 8, 1, 2, groups=4), "cpu", True),
        (nn.Conv2d(16, 8, 1, 2), "cpu", False),
        (nn.Conv2d(4, 8, 1), "cpu", False),
        (nn.Conv2d(4, 8, (1, 3), 2), "cpu", False),
        (nn.Conv2d(4, 8, 1, 2), "meta", False),
    ],
)
def test_only_what_is_unsafe_is_rewritten(layer: nn.Conv2d, device: str, is_rewritten: bool) -> None:
    images = torch.ones(2, layer.in_channels, 8, 8, device=device)
    with Strides() as strides, StridedPointwiseGuard():
        layer.to(device)(images)
    assert strides.seen == [1 if is_rewritten else layer.stride]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of create_graph
def test_a_backward_pass_under_the_guard_is_torchs_own() -> None:
    """Kept or not, for second derivatives, with a gradient or inputs; what torch refuses is refused."""
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    with StridedPointwiseGuard():
        loss = (x**3).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert x.grad == 54.0  # the sum of both
        with pytest.raises(RuntimeError):
            loss.backward()
        x.grad = None
        (x**3).sum().backward(create_graph=True)
        (second,) = torch.autograd.grad(x.grad, x)
        assert second == 18.0
        x.grad = None
        (x * torch.ones(2)).backward(torch.tensor([1.0, 2.0], dtype=torch.float64), inputs=[x])
        assert x.grad == 3.0
        for wrong in (torch.ones(2, requires_grad=True), torch.ones(()), x * 1j):
            with pytest.raises(RuntimeError):
                wrong.backward()


def test_the_trained_network_is_left_plain() -> None:
    """No hook, wrapper or other stride stays in it for an export to find."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 1, 2), nn.Flatten(), nn.Linear(64, 10))
    names = sorted(vars(network[0]))
    list(train(network, load(DataSpec(limit=300)), Recipe(epochs=1), seed=0))
    assert type(network[0]) is nn.Conv2d
    assert (sorted(vars(network[0])), network[0].stride) == (names, (2, 2))
    assert not network[0]._forward_hooks
    assert not network[0]._forward_pre_hooks
