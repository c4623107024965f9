"""Activations as functions, or as modules at several places, become modules; what cannot stays as it was."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from separable_networks import Functional, classifier, depthwise, functional, pointwise
from test_places import SIZE, table_of
from torch import Tensor, nn
from torchvision import models

from bsconv_nas.export.source import write_source
from bsconv_nas.network.build import seeded_build
from bsconv_nas.space.trace_activations import with_own_activations


def randomised(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network


@pytest.mark.parametrize("training", [False, True])
def test_what_is_computed_stays_and_so_do_the_keys(training: bool) -> None:
    base = randomised(functional()).train(training)
    network = with_own_activations(copy.deepcopy(base))
    x = torch.randn(4, *SIZE)
    assert torch.equal(copy.deepcopy(network)(x), copy.deepcopy(base)(x))
    assert list(network.state_dict()) == list(base.state_dict())
    assert [m.training for m in network.modules()] == [training] * len([*network.modules()])


def test_settings_and_names_follow_the_calls() -> None:
    block = with_own_activations(functional())[2]
    found = {
        name: repr(child) for name, child in block.named_children() if type(child).__module__.endswith("activation")
    }
    assert found == {
        "act": "SiLU()",
        "leaky_relu": "LeakyReLU(negative_slope=0.2)",
        "leaky_relu_1": "LeakyReLU(negative_slope=0.2)",
        "silu": "SiLU()",
        "relu6": "ReLU6()",
        "relu6_1": "ReLU6(inplace=True)",
        "relu": "ReLU()",
    }
    assert type(block).__name__ == "Functional"


def test_a_module_that_others_hold_too_becomes_an_own_one() -> None:
    act = nn.ReLU()
    network = with_own_activations(classifier(act, Functional(act), channels=8))
    assert network[1] is act is not network[2].act


def test_another_option_takes_the_inner_activation_away() -> None:
    """By hand: pointwise, depthwise, the host's norm and activation; the inner ones are gone."""
    base = functional()
    table = table_of(base)
    row = {**table.describe(table.base), "conv.2.dw1": "bsconv_u"}
    block = randomised(seeded_build(base, table, table.from_values(row), seed=0)).eval()[2]
    assert [type(m) for m in (block.norm1, block.pw1)] == [nn.Identity, nn.Identity]
    seen: list[Tensor] = []
    block.dw2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 8, 12, 10)
    block(x)
    pair = block.dw1.depthwise(block.dw1.pointwise(x))
    assert torch.equal(seen[0], F.leaky_relu(block.norm2(pair), 0.2))


def test_a_built_network_is_copied_saved_and_exported_as_any_other() -> None:
    base = functional()
    table = table_of(base)
    model = randomised(seeded_build(base, table, table.architectures(table.sizes[None] - 1)[0], seed=0)).eval()
    x = torch.randn(2, *SIZE)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    scope: dict[str, object] = {}
    source = write_source(model)
    exec(compile(source, "model.py", "exec"), scope)
    exported = scope["model"]()
    exported.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), loaded, exported.eval()):
        assert torch.equal(other(x), model(x))
    assert "class Functional(nn.Module)" in source


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dw, self.norm, self.pw = depthwise(8), nn.BatchNorm2d(8), pointwise(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw(F.relu(self.norm(self.dw(x))))


class ReadsMode(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class ReadsModeInAMethod(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(super().forward(x))

    def tail(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class ReadsTheModeOfAChild(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.norm.training)


# As of code without a file: nobody can read the text of its forward.
WithoutSource = type("WithoutSource", (Pair,), {})
exec("def forward(self, x):\n    return F.dropout(Pair.forward(self, x), 0.5, self.training)", globals(), found := {})
WithoutSource.forward = found["forward"]


class HasAnotherArgument(Pair):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = super().forward(x)
        return x if skip is None else x + skip


class HasUnreadWeights(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8, 8)


class Branches(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class HasPenalty(Pair):
    def penalty(self) -> Tensor:
        return self.pw.weight.square().sum()


class Nested(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(super().forward(x))


class HasVariableSlope(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.pw(F.leaky_relu(self.norm(self.dw(x)), x.shape[1] / 100))


@pytest.mark.parametrize(
    "kind",
    [
        ReadsMode,
        ReadsModeInAMethod,
        ReadsTheModeOfAChild,
        WithoutSource,
        HasAnotherArgument,
        Branches,
        HasVariableSlope,
    ],
)
def test_a_forward_that_its_own_trace_would_change_stays(kind: type[nn.Module]) -> None:
    network = classifier(kind(), channels=8)
    assert type(with_own_activations(network)[1]) is kind


@pytest.mark.parametrize("kind", [HasUnreadWeights, HasPenalty])
def test_a_rewritten_module_keeps_what_its_forward_does_not_read(kind: type[nn.Module]) -> None:
    pair = randomised(kind()).eval()
    network = with_own_activations(copy.deepcopy(pair))
    assert isinstance(network, kind)
    assert "relu" in dict(network.named_children())
    assert network.state_dict().keys() == pair.state_dict().keys()
    assert not isinstance(pair, HasPenalty) or torch.equal(network.penalty(), pair.penalty())


class Strided(Pair):
    """A pair with an attribute and a method that others read."""

    def __init__(self) -> None:
        super().__init__()
        self.stride = 1

    def run(self, x: Tensor) -> Tensor:
        return self(x)


class ReadsItsPairs(nn.Module):
    """A network whose forward reads an attribute of its pairs and calls a method, and that has both itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pairs = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList([Strided(), Strided()])
        self.dw, self.pw, self.head, self.num_features = depthwise(8), pointwise(8, 8), nn.Linear(8, 5), 8

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for pair in self.pairs:
            x = x + pair(x) if pair.stride == 1 else pair.run(x)
        return self.pw(F.relu(self.dw(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_attributes_methods_and_the_class_of_a_rewritten_module_stay() -> None:
    base = ReadsItsPairs()
    table = table_of(base)
    assert {"conv.pairs.0.dw", "conv.dw"} <= set(table.names)
    model = copy.deepcopy(seeded_build(base, table, table.base, seed=0)).eval()
    assert isinstance(model, ReadsItsPairs)
    assert isinstance(model.pairs[1], Strided)
    assert (model.num_features, model.pairs[0].stride) == (8, 1)
    x = torch.randn(2, *SIZE)
    assert torch.equal(model.head(model.features(x)), model(x))
    assert "relu" in dict(model.named_children())


def test_what_stands_inside_a_rewritten_module_is_rewritten_too() -> None:
    network = with_own_activations(Nested())
    assert [type(m) for m in (network.relu, network.inner.relu)] == [nn.ReLU, nn.ReLU]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_a_forward_with_hooks_stays(register: str) -> None:
    pair = Pair()
    getattr(pair, register)(lambda *_: None)
    assert type(with_own_activations(classifier(pair, channels=8))[1]) is Pair


class ActsInPlace(Pair):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.dw(x))
        F.relu(x, inplace=True)
        return self.pw(x)


def test_an_activation_in_place_changes_what_it_did() -> None:
    pair = randomised(ActsInPlace()).eval()
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(with_own_activations(copy.deepcopy(pair))(x), pair(x))


def test_why_such_a_pair_is_none_is_said() -> None:
    reasons = {entry.name: entry.reason for entry in table_of(classifier(HasAnotherArgument(), channels=8)).fixed}
    assert reasons["conv.1.dw"].endswith(
        "before 1.pw stands 1.norm (BatchNorm2d), the function relu, but a pair holds a batch norm and an activation "
        "at most, as modules"
    )


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "shufflenet_v2_x0_5"])
def test_what_needs_nothing_is_left_alone(name: str) -> None:
    with torch.device("meta"):
        network = getattr(models, name)()
    kinds = [type(m) for m in network.modules()]
    assert [type(m) for m in with_own_activations(network).modules()] == kinds
