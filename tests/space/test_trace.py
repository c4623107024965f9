"""What tracing finds: nodes, width groups, droppable blocks, and the reason for everything that is fixed."""

import pytest
import torch
import torch.nn.functional as F
from odd_net import Net, conv
from odd_networks import ODD
from torch import Tensor, nn
from torchvision import models

from bsconv_nas.errors import SpaceError
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.graph import Graph
from bsconv_nas.space.table import Table
from bsconv_nas.space.trace import trace


def table_of(base: nn.Module, input_size: tuple[int, int, int], **choices: object) -> Table:
    return make_table(
        trace(base, input_size), Choices.model_validate({"width_scope": "layer", "divisor": 2, **choices})
    )


def groups(graph: Graph) -> dict[str, str]:
    """Name of each width group and why it is fixed."""
    return {group.name: group.reason for group in graph.groups}


def blocks(graph: Graph) -> list[tuple[str, str, int]]:
    return [(block.path, block.stage, block.position) for block in graph.blocks]


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_vary_is_fixed_and_named(name: str) -> None:
    table = table_of(ODD[name].factory(), ODD[name].input_size)
    fixed = {entry.name: entry.reason for entry in table.fixed}
    for place, reason in ODD[name].fixed.items():
        assert reason in fixed.get(place, "free"), f"{place}: {fixed}"
    assert not set(ODD[name].free) - set(table.names), table.names
    assert not set(table.names) & set(fixed)
    assert all(entry.reason for entry in table.fixed)


@pytest.mark.parametrize("name", ODD)
def test_every_convolution_is_a_dimension_or_named_as_fixed(name: str) -> None:
    base = ODD[name].factory()
    table = table_of(base, ODD[name].input_size)
    runs = {f"conv.{path}" for node in table.graph.nodes for path in node.parts[1:]}
    named = {*table.names, *runs, *(entry.name for entry in table.fixed)}
    wanted = {f"conv.{path}" for path, m in base.named_modules() if isinstance(m, nn.Conv2d)}
    assert wanted <= named
    assert {f"width.{group.name}" for group in table.graph.groups} <= named


def test_shared_weights_are_seen_on_any_device() -> None:
    tied = ODD["reparametrised"].factory()
    with torch.device("meta"):
        assert trace(tied, (3, 8, 8)) == trace(ODD["reparametrised"].factory(), (3, 8, 8))


def test_tracing_leaves_the_module_as_it_was() -> None:
    base = cifar_resnet(8).train()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    trace(base, (3, 16, 16))
    assert base.training
    assert all(value.device.type == "cpu" and value.equal(before[name]) for name, value in base.state_dict().items())


def test_a_cifar_resnet_has_one_trunk_a_stage_and_one_group_inside_each_block() -> None:
    graph = trace(cifar_resnet(20), (3, 32, 32))
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    trunks = {"conv1": 16, "layer2.0.downsample.0": 32, "layer3.0.downsample.0": 64}
    ends = {"x": "the image's channels", "fc": "the network's output"}
    assert groups(graph) == {**dict.fromkeys([*trunks, *inner], ""), **ends}
    assert {group.name: group.channels for group in graph.groups if group.name in trunks} == trunks


def test_a_cifar_resnet_can_drop_every_block_whose_shortcut_is_the_identity() -> None:
    assert blocks(trace(cifar_resnet(20), (3, 32, 32))) == [
        ("layer1.0", "layer1", 0),
        ("layer1.1", "layer1", 1),
        ("layer1.2", "layer1", 2),
        ("layer2.1", "layer2", 0),
        ("layer2.2", "layer2", 1),
        ("layer3.1", "layer3", 0),
        ("layer3.2", "layer3", 1),
    ]


def test_resnet50_has_its_bottlenecks_and_no_more() -> None:
    with torch.device("meta"):
        graph = trace(models.resnet50(), (3, 64, 64))
    stages = [block.stage for block in graph.blocks]
    assert {stage: stages.count(stage) for stage in stages} == {"layer1": 2, "layer2": 3, "layer3": 5, "layer4": 2}


def test_vgg_has_no_blocks_and_varies_its_hidden_linear_layers() -> None:
    with torch.device("meta"):
        graph = trace(models.vgg11_bn(), (3, 224, 224))
    assert graph.blocks == ()
    assert groups(graph)["classifier.0"] == groups(graph)["classifier.3"] == ""
    flat = next(node for node in graph.nodes if node.op == "flatten")
    assert (flat.features, graph.groups[flat.group].name) == (49, "features.25")


def test_one_sequential_may_hold_several_stages() -> None:
    with torch.device("meta"):
        graph = trace(models.mobilenet_v2(), (3, 32, 32))
    assert [(b.path, b.stage) for b in graph.blocks][:4] == [
        ("features.3", "features.3"),
        ("features.5", "features.5"),
        ("features.6", "features.5"),
        ("features.8", "features.8"),
    ]


class Outer(nn.Module):
    """A residual block around a sequential of residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Inner(), Inner())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class Scaled(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + 2 * x


class Tapped(Net):
    """The block's input is read once more behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Inner())

    def body(self, x: Tensor) -> Tensor:
        return self.blocks(x) * x


def sequential(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.Sequential(*modules), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def test_the_outermost_block_of_a_sequential_is_dropped() -> None:
    assert blocks(trace(sequential(Outer(), Inner()), (3, 8, 8))) == [("1.0", "1", 0), ("1.1", "1", 1)]


def test_another_module_between_blocks_ends_a_stage() -> None:
    found = blocks(trace(sequential(Inner(), nn.BatchNorm2d(8), Inner(), Inner()), (3, 8, 8)))
    assert found == [("1.0", "1.0", 0), ("1.2", "1.2", 0), ("1.3", "1.2", 1)]


@pytest.mark.parametrize("base", [sequential(Scaled()), Tapped()], ids=["input scaled", "input read again"])
def test_a_block_whose_input_does_not_reach_its_add_unchanged_stays(base: nn.Module) -> None:
    assert trace(base, (3, 8, 8)).blocks == ()


def test_resolution_and_activation_go_to_the_specs() -> None:
    base = nn.Sequential(conv(3, 4, 5, stride=2), nn.BatchNorm2d(4), nn.Hardswish(), conv(4, 4), nn.Sigmoid())
    graph = trace(nn.Sequential(base, nn.Flatten(), nn.Linear(64, 2)), (3, 8, 8))
    specs = [node.place.spec for node in graph.nodes if node.place is not None]
    assert [(spec.kernel, spec.stride, spec.activation) for spec in specs] == [
        ((5, 5), (2, 2), "hardswish"),
        ((3, 3), (1, 1), "relu"),
    ]


@pytest.mark.parametrize("name", ODD)
def test_a_table_survives_its_file(name: str) -> None:
    table = table_of(ODD[name].factory(), ODD[name].input_size)
    assert Table.from_json(table.to_json()) == table


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_forward_that_cannot_be_traced_is_refused_with_its_line() -> None:
    law = r"The forward of 'Branching' must be traceable by torch.fx, but its line `.*` \(.*test_trace.py:\d+\) b"
    with pytest.raises(SpaceError, match=law):
        trace(Branching(), (3, 8, 8))


@pytest.mark.parametrize(
    ("base", "size", "sentence"),
    [
        (
            cifar_resnet(8),
            (1, 8, 8),
            r"The forward of 'CifarResNet' must accept a batch of shape \(1, 1, 8, 8\), but: ",
        ),
        (
            nn.Sequential(nn.Linear(3, 2)),
            (3, 8, 8),
            r"accept a batch of shape \(1, 3, 8, 8\), but: .* \(in the Linear '0'\); mend the forward\.$",
        ),
        (conv(3, 2), (3, 8, 8), r"must return logits of shape \(N, classes\) .* but returned \(1, 2, 8, 8\): flatten"),
        (TwoOutputs(), (3, 8, 8), r"must return logits of shape \(N, classes\) .* but returned tuple: flatten"),
        ("resnet18", (3, 8, 8), r"A base must be a torch.nn.Module, but got 'str': return the network\."),
    ],
    ids=["channels", "shape", "no logits", "tuple", "no module"],
)
def test_what_is_no_classifier_at_this_size_is_refused(
    base: nn.Module, size: tuple[int, int, int], sentence: str
) -> None:
    with pytest.raises(SpaceError, match=sentence) as refused:
        trace(base, size)
    assert "\n" not in str(refused.value)


def test_a_module_that_reads_the_mode_is_kept_whole() -> None:
    graph = trace(ODD["leafy"].factory(), (3, 8, 8))
    assert [node.op for node in graph.nodes if node.path == "noisy"] == ["Noisy"]


def test_the_same_storage_is_one_tensor() -> None:
    graph = trace(
        nn.Sequential(conv(3, 4), nn.ReLU(inplace=True), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)), (3, 8, 8)
    )
    assert [node.alias for node in graph.nodes] == [None, None, 1, None, 3, None]
