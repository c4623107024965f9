"""What the refusals of networks say: the line, its deed in our own words, and a way out that is one."""

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from bare_asserts import five_channels, only_224, three_channels
from spoiled import SIZE, Trunk, good, refusal, spoiled
from torch import Tensor, nn
from torch.nn import functional as F

from bsconv_nas.errors import SpaceError
from bsconv_nas.space.trace import trace
from bsconv_nas.space.trace_words import TORCH


def branch_on_values(self: Trunk, x: Tensor) -> Any:
    return good(self, x) if x.mean() > 0 else good(self, -x)


def branch_on_sizes(self: Trunk, x: Tensor) -> Any:
    if x.shape[2] > 16:
        x = x[:, :, ::2]
    return good(self, x)


def while_on_sizes(self: Trunk, x: Tensor) -> Any:
    while x.size(2) > 16:
        x = x[:, :, ::2]
    return good(self, x)


def walk(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([part * 2 for part in x.chunk(3, 1)], 1))


def numbered(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([part * i for i, part in enumerate(x.chunk(3, 1))], 1))


def star(self: Trunk, x: Tensor) -> Any:
    return good(self, x.reshape(1, *x.shape[1:]))


def to_int(self: Trunk, x: Tensor) -> Any:
    kept = int(x.size(1) * 1.0)
    return good(self, x.reshape(x.size(0), kept, 32, 32))


def length(self: Trunk, x: Tensor) -> Any:
    return good(self, x.reshape(len(x), 3, 32, 32))


def count(self: Trunk, x: Tensor) -> Any:
    for i in range(x.size(1)):
        x = x + i
    return good(self, x)


def largest(self: Trunk, x: Tensor) -> Any:
    return good(self, x * max(x.size(1), 3))


def member(self: Trunk, x: Tensor) -> Any:
    return good(self, x * (1.0 if x.size(1) in (3, 4) else 2.0))


def lookup(self: Trunk, x: Tensor) -> Any:
    return good(self, x * {3: 1.0}[x.size(1)])


def on_device(self: Trunk, x: Tensor) -> Any:
    return good(self, x if x.device.type == "cpu" else x * 1.0)


def on_axes(self: Trunk, x: Tensor) -> Any:
    return good(self, x if x.ndim == 4 else x[None])


def on_batch(self: Trunk, x: Tensor) -> Any:
    return good(self, x if x.shape[0] > 1 else x * 1.0)


def counted(self: Trunk, x: Tensor) -> Any:
    return good(self, sum(x for _ in range(x.shape[0])))


def write(self: Trunk, x: Tensor) -> Any:
    x = x.clone()
    x[:, 0] = 0
    return good(self, x)


def zeros(self: Trunk, x: Tensor) -> Any:
    return good(self, x + torch.zeros(x.size(0), 3, 32, 32))


def to_numpy(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.from_numpy(x.numpy()))


PARTS = "index its parts one by one, but compute for all images at once"
UNKNOWN = "let it not depend on a tensor's size or value"
SIZES, VALUES = "write sizes other than the batch's as numbers", "take out what depends on the values of tensors"
FOLLOWED = [
    (branch_on_values, "return good(self, x) if x.mean() > 0 else good(self, -x)", "branches on", VALUES),
    (branch_on_sizes, "if x.shape[2] > 16:", "branches on", SIZES),
    (while_on_sizes, "while x.size(2) > 16:", "branches on", SIZES),
    (walk, "for part in x.chunk(3, 1)", "loops over a tensor or its sizes", PARTS),
    (numbered, "enumerate(x.chunk(3, 1))", "loops over a tensor or its sizes", PARTS),
    (star, "x.reshape(1, *x.shape[1:])", "loops over a tensor or its sizes", PARTS),
    (to_int, "kept = int(x.size(1) * 1.0)", "makes a number of a tensor's size or value", SIZES),
    (length, "len(x)", "takes the length of a tensor", "write it as a number, or take shape[0]"),
    (count, "for i in range(x.size(1)):", "counts up to", SIZES),
    (largest, "max(x.size(1), 3)", "calls `max` with what is known only when the network runs", SIZES),
    (member, "x.size(1) in (3, 4)", "looks for a tensor's size or value", SIZES),
    (lookup, "{3: 1.0}[x.size(1)]", "needs what is known only when the network runs", SIZES),
    (
        on_device,
        'x.device.type == "cpu"',
        "asks for a tensor's device, type or number of axes",
        "take that question out",
    ),
    (on_axes, "x.ndim == 4", "asks for a tensor's device, type or number of axes", "take that question out"),
    (on_batch, "x.shape[0] > 1", "branches on", "let it not depend on the number of images"),
    (counted, "range(x.shape[0])", "counts up to", "let it not depend on the number of images"),
    (write, "x[:, 0] = 0", "writes into a part of a tensor", "join parts by torch.cat or multiply by a mask"),
    (three_channels, "assert x.shape[1] == 3", "checks a tensor's size or value", "take that check out"),
    (zeros, "torch.zeros(x.size(0), 3, 32, 32)", "calls `torch.zeros` with", "let a tensor make it, as x.new_zeros("),
    (to_numpy, "torch.from_numpy(x.numpy())", "calls `torch.from_numpy` with", VALUES),
]


@pytest.mark.parametrize(("forward", "shown", "deed", "way_out"), FOLLOWED, ids=lambda v: getattr(v, "__name__", ""))
def test_a_line_that_cannot_be_followed_is_shown_and_named(forward: Any, shown: str, deed: str, way_out: str) -> None:
    network = spoiled(forward).eval()
    assert network(torch.ones(1, *SIZE)).shape == (1, 10)
    said = refusal(network)
    found = re.fullmatch(r"The forward of 'Spoiled' must be traceable by torch\.fx, but its (.*)\.", said)
    assert found, said
    line, does = re.fullmatch(rf"line `(.*)` \({re.escape(forward.__code__.co_filename)}:\d+\) (.*)", found[1]).groups()  # type: ignore[union-attr]
    assert shown in line
    assert does.startswith(deed)
    assert way_out in does.partition(": ")[2]
    assert "base.leaves" not in does, "the network itself cannot be kept whole"


@pytest.mark.parametrize(
    ("advised", "spoils"),
    [(lambda self, x: good(self, x.reshape(1, 3, 32, 32)), star), (lambda self, x: good(self, x[:, :, ::2]), write)],
)
def test_with_sizes_as_numbers_it_is_traced(
    advised: Callable[[Trunk, Tensor], Any], spoils: Callable[[Trunk, Tensor], Any]
) -> None:
    refusal(spoiled(spoils))
    assert trace(spoiled(advised), SIZE).num_classes == 10


class Halving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 16:
            x = x[:, :, ::2]
        return x


class Signed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


def test_a_module_that_cannot_be_followed_may_be_kept_whole() -> None:
    network = nn.Sequential(Halving(), Trunk())
    said = refusal(network)
    assert "but in '0' (Halving) its line `if x.shape[2] > 16:`" in said
    assert said.endswith(f": {SIZES}, or keep that module whole by base.leaves = ['0'].")
    assert trace(network, SIZE, leaves=["0"]).num_classes == 10


def test_a_module_that_needs_values_is_not_told_to_be_kept_whole() -> None:
    network = nn.Sequential(Signed(), Trunk())
    said = refusal(network)
    assert "in '0' (Signed) its line `return x if x.mean() > 0 else -x`" in said
    assert said.endswith(f": {VALUES}.")
    with pytest.raises(SpaceError):
        trace(network, SIZE, leaves=["0"])


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(x.size(0), 3, 32, 32)


def test_a_module_that_makes_tensors_of_its_own_is_not_told_to_be_kept_whole() -> None:
    network = nn.Sequential(Padded(), Trunk())
    assert refusal(network).endswith(": let a tensor make it, as x.new_zeros(...).")
    with pytest.raises(SpaceError):
        trace(network, SIZE, leaves=["0"])


class Unheld(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.extra = [nn.Conv2d(3, 3, 1)]

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.extra[0](x))


def test_a_layer_that_no_attribute_holds_is_said_to_be_so() -> None:
    said = refusal(Unheld())
    assert "self.extra[0](x)" in said
    assert "module or weight that no attribute of the network holds: hold it in an nn.ModuleList" in said
    network = Unheld()
    network.extra = nn.ModuleList(network.extra)  # type: ignore[assignment]  # as the sentence advises
    assert trace(network, SIZE).num_classes == 10


def not_there(self: Trunk, x: Tensor) -> Any:
    raise NotImplementedError


def wordless(self: Trunk, x: Tensor) -> Any:
    raise ValueError("")


def late(self: Trunk, x: Tensor) -> Any:
    raise ValueError("\n\n  the second line.\nmore")


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (five_channels, "AssertionError (`assert x.shape[1] == 5`, "),
        (not_there, "NotImplementedError (`raise NotImplementedError`, "),
        (wordless, 'ValueError (`raise ValueError("")`, '),
        (late, "the second line ("),
    ],
)
def test_no_refusal_is_empty_behind_its_colon(forward: Any, told: str) -> None:
    said = refusal(spoiled(forward))
    assert f"must accept a batch of shape (1, 3, 32, 32), but: {told}{forward.__code__.co_filename}:" in said
    assert said.endswith("; mend the forward.")
    assert "input_size" not in said


def only_in_training(self: Trunk, x: Tensor) -> Any:
    return good(self, x.reshape(-1, 3, 64, 64) if self.training else x)


def large() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 1, 3, 8, 1), nn.Flatten(), nn.Linear(28 * 28, 10))


def digits() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))


def unflattened() -> nn.Module:
    """Takes 64 pixels, but answers with a map: no logits."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(64, 10))


class OneImage(Trunk):
    """Runs on one image of 224 pixels, as the number of images is written down."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.maps(x).view(64, -1))


def test_logits_of_other_images_are_refused() -> None:
    assert refusal(OneImage(98)).endswith(
        "but returned (64, 10): flatten and classify each image, or wrap the network."
    )


@pytest.mark.parametrize(
    ("network", "advised"),
    [
        (lambda: OneImage(6050), None),
        (large, (3, 224, 224)),
        (lambda: spoiled(only_in_training), (3, 64, 64)),
        (digits, (1, 28, 28)),
        (unflattened, None),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4096, 10)), (4, 32, 32)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)), None),
    ],
)
def test_a_size_is_advised_where_it_is_the_cause(
    network: Callable[[], nn.Module], advised: tuple[int, int, int] | None
) -> None:
    said = refusal(network())
    if advised is None:
        assert said.endswith("; mend the forward.")
        assert "input_size" not in said
    else:
        assert f"; it accepts images of {advised}: set base.input_size = {list(advised)}" in said
        assert ("the base's own arguments" in said) == (advised[0] != 3)
        assert trace(network(), advised).num_classes == 10


def test_a_check_of_the_size_is_met_by_the_size_that_is_advised() -> None:
    said = refusal(spoiled(only_224))
    assert "AssertionError (`assert x.shape[-1] == 224`, " in said
    assert "; it accepts images of (3, 224, 224): set base.input_size = [3, 224, 224]" in said
    assert spoiled(only_224)(torch.ones(1, 3, 224, 224)).shape == (1, 10)


class Holding(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.full((3, 1, 1), 0.5)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x - self.mean)


def constant(self: Trunk, x: Tensor) -> Any:
    y = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    return good(self, x - y)


def test_a_tensor_that_is_no_buffer_is_named() -> None:
    held, made = refusal(Holding()), refusal(spoiled(constant))
    assert "line `return super().forward(x - self.mean)`" in held
    assert held.endswith(" computes with 'mean', which is no buffer: register it by register_buffer.")
    assert "line `return good(self, x - y)`" in made
    assert made.endswith(
        "a tensor that the forward makes, which is no buffer: make it in __init__ by register_buffer, or let a tensor "
        "make it, as x.new_tensor(...) or x.new_empty(...).normal_()."
    )
    network = Holding()
    mean = vars(network).pop("mean")
    network.register_buffer("mean", mean)  # as the sentence advises
    assert trace(network, SIZE).num_classes == 10


def older_norm() -> Trunk:
    network = Trunk()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(network.b)
    return network


def test_an_older_weight_norm_is_named_with_its_module() -> None:
    said = refusal(older_norm())
    assert "the weight of 'b' (Conv2d) is no parameter" in said
    assert said.endswith("take that of torch.nn.utils.parametrizations.")
    network = Trunk()
    nn.utils.parametrizations.weight_norm(network.b)
    assert trace(network, SIZE).num_classes == 10


def pooled(self: Trunk, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(self.maps(x), 1)


def squeeze(self: Trunk, x: Tensor) -> Any:
    return self.head(pooled(self, x).squeeze())


def squeeze_and_fail(self: Trunk, x: Tensor) -> Any:
    return self.head(pooled(self, x).squeeze().flatten(1))


def flat(self: Trunk, x: Tensor) -> Any:
    return self.head(pooled(self, x).view(-1))


def test_what_takes_the_axis_of_the_batch_is_named() -> None:
    said = refusal(spoiled(squeeze))
    assert "but returned (10,), as its line `return self.head(pooled(self, x).squeeze())`" in said
    assert said.endswith(
        " takes the axis of the batch away by squeeze: keep that axis, by flatten(1), or squeeze((2, 3)) for the "
        "axes of the image."
    )
    assert " away by view: keep that axis, by flatten(1), say." in refusal(spoiled(flat))
    assert "; it accepts two images: let it neither squeeze nor split the axis of the batch." in refusal(
        spoiled(squeeze_and_fail)
    )
    for way_out in (lambda y: y.flatten(1), lambda y: y.squeeze((2, 3))):
        network = spoiled(lambda self, x, way_out=way_out: self.head(way_out(pooled(self, x))))  # type: ignore[misc]
        assert trace(network, SIZE).num_classes == 10


def columns() -> Iterator[tuple[str, nn.Module]]:
    yield from {"class": nn.Conv2d(3, 8, 3), "lambda": nn.Conv2d(8, 8, 3), "it's": nn.Conv2d(8, 8, 3)}.items()


class Keywords(nn.Module):
    """Children of which torch.fx could write no code."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleDict(dict(columns())), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks.values():
            x = F.relu(block(x))
        return self.head(x.mean((2, 3)))


def test_children_may_have_any_name() -> None:
    paths = {node.path for node in trace(Keywords(), SIZE).nodes}
    assert {"blocks.class", "blocks.lambda", "blocks.it's"} <= paths


class Separable(nn.Module):
    """As `Keywords`, with a depthwise convolution, whose activation becomes a module where names allow it."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
        self.blocks = nn.ModuleDict({first: nn.Conv2d(8, 8, 3, groups=8), "it's": nn.Conv2d(8, 8, 1)})

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks.values():
            x = F.relu(block(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(("first", "relus"), [("first", 1), ("class", 0)])
def test_activations_of_children_with_any_name(first: str, relus: int) -> None:
    graph = trace(Separable(first), SIZE)
    assert sum(node.op == "ReLU" for node in graph.nodes) == relus


def test_what_is_called_like_torch_is_not_torch() -> None:
    assert torch.nn.__file__.startswith(TORCH)
    assert not torchvision.__file__.startswith(TORCH)
