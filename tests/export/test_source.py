import ast
import subprocess
import sys

import pytest
import torch
import torchvision.models as zoo_of_torchvision
from export_networks import Concatenation, Dropping, Penalised, Tensors, disturbed, mixed, zoo
from separable_networks import functional, separable
from torch import fx, nn

import bsconv_nas as nas
from bsconv_nas.errors import ExportError
from bsconv_nas.export.probe import images, spread
from bsconv_nas.export.source import write_source
from bsconv_nas.export.verify import save_state, verify
from bsconv_nas.network.models.cifar_resnet import cifar_resnet


def rebuilt(source, network):
    """Return the network that the source builds, with the weights of `network`."""
    namespace = {}
    exec(compile(source, "model.py", "exec"), namespace)  # executing the exported file is what is tested
    model = namespace["model"]()
    model.load_state_dict(network.state_dict())
    return model.train(network.training)


def vgg11_bn():
    """Return torchvision's network with its classifier of 120 M weights cut to one layer."""
    with torch.device("meta"):
        network = zoo_of_torchvision.vgg11_bn()
    network.classifier = nn.Linear(512 * 7 * 7, 10)
    network.to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


NETWORKS = {
    "zoo": (zoo, (3, 8, 8)),
    "mixed20": (lambda: mixed(20, 0), (3, 32, 32)),
    "mixed56": (lambda: mixed(56, 1), (3, 16, 16)),
    "cifar_resnet110": (lambda: cifar_resnet(110), (3, 16, 16)),
    "digits": (lambda: cifar_resnet(8, in_channels=1), (1, 8, 8)),
    "resnet18": (lambda: zoo_of_torchvision.resnet18(num_classes=10), (3, 32, 32)),
    "resnet50": (lambda: zoo_of_torchvision.resnet50(num_classes=10), (3, 32, 32)),
    "mobilenet_v2": (lambda: zoo_of_torchvision.mobilenet_v2(num_classes=10), (3, 32, 32)),
    "mobilenet_v3_small": (lambda: zoo_of_torchvision.mobilenet_v3_small(num_classes=10), (3, 32, 32)),
    "shufflenet": (lambda: zoo_of_torchvision.shufflenet_v2_x0_5(num_classes=10), (3, 32, 32)),
    "convnext": (lambda: zoo_of_torchvision.convnext_tiny(num_classes=10), (3, 32, 32)),
    "vgg11_bn": (vgg11_bn, (3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_source_rebuilds_the_network(name, tmp_path):
    factory, input_size = NETWORKS[name]
    network = disturbed(factory(), input_size)
    source = write_source(network, "A title", input_size)
    model = rebuilt(source, network)
    x = images(input_size, torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, answer = network(x), model(x)
    assert spread(expected) > 0.1
    torch.testing.assert_close(answer, expected, rtol=0, atol=0)
    assert list(model.state_dict()) == list(network.state_dict())
    assert source == write_source(network, "A title", input_size)
    check_form(source, tmp_path)


def check_form(source, tmp_path):
    """Assert that the file is what ruff would make of it, and imports nothing but torch."""
    path = tmp_path / "model.py"
    path.write_text(source)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--check", "--diff"], ["check", "--select", "E,F,W,I"]):
        done = subprocess.run(
            [*ruff, *command, "--isolated", "--no-cache", "--line-length", "100", path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module for node in imported if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names | modules} <= {"torch", "math", "collections"}


def test_equal_blocks_share_a_class_and_a_function():
    source = write_source(cifar_resnet(110))
    classes = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert classes == ["BasicBlock", "BasicBlockWithDownsample", "CifarResNet"]
    assert functions == ["basic_block", "downsample", "basic_block_with_downsample", "model"]
    assert "        layer1=nn.Sequential(*(basic_block(16) for _ in range(18))),\n" in source
    assert len(source.splitlines()) < 130


def test_a_forward_reads_as_written_by_hand():
    source = write_source(cifar_resnet(8))
    block = source[source.index("class BasicBlock(") : source.index("class BasicBlockWithDownsample")]
    assert block.rstrip().endswith(
        """\
    def forward(self, x):
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = out + x
        return self.relu(out)"""
    )


def test_slices_and_chunks_read_as_written_by_hand():
    source = write_source(Concatenation(8))
    assert source[source.index("    def forward") : source.index("\n\n\ndef model")] == (
        """\
    def forward(self, x):
        floordiv = x.shape[1] // 2
        wide = self.wide(x)
        x = self.narrow(x[:, :floordiv])
        x = torch.cat([wide, x], dim=1)
        chunk = x.chunk(2, dim=1)
        out = torch.sigmoid(chunk[1])
        out = chunk[0] * out
        return F.max_pool2d(out, 2)"""
    )
    assert "training mode" not in source


def test_arguments_equal_to_the_defaults_are_left_out():
    source = write_source(
        nn.Sequential(Penalised(3, 8, (3, 3), (1, 1), (1, 1), bias=False), nn.BatchNorm2d(8, affine=False))
    )
    assert "return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, affine=False))" in source


def test_dropped_blocks_at_the_end_of_a_stage_leave_no_trace():
    network = cifar_resnet(20)
    network.layer3[1] = network.layer3[2] = nn.Identity()
    source = write_source(network)
    assert "Identity" not in source
    assert list(rebuilt(source, network).state_dict()) == list(network.state_dict())


class Idle(nn.Module):
    """Identities at every kind of place: alone, in sequences, in lists that the forward walks, by name."""

    def __init__(self):
        super().__init__()
        self.norm, self.shortcut = nn.Identity(), nn.Sequential(nn.Identity(), nn.Sequential())
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.Identity(), nn.BatchNorm2d(4), nn.Identity())
        self.walked = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.Identity(), nn.PReLU()), nn.Identity())
        self.steps = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Identity(), nn.Conv2d(4, 4, 1), nn.Identity()])
        self.named = nn.ModuleDict({"drop": nn.Identity(), "act": nn.PReLU(4)})

    def forward(self, x):
        x = self.norm(self.body(x))
        x = self.walked[2](self.walked[1][1](self.walked[1][0](self.walked[0](x))))
        for step in self.steps:
            x = step(x)
        return self.named["act"](self.named["drop"](x)) + self.shortcut(input=x)


def test_identities_are_left_out_of_constructors_and_forwards(tmp_path):
    network = disturbed(Idle(), (3, 8, 8))
    source = write_source(network, "A title", (3, 8, 8))
    model, x = rebuilt(source, network), images((3, 8, 8), torch.Generator().manual_seed(1))
    assert list(model.state_dict()) == list(network.state_dict())
    with torch.no_grad():
        for mode in (True, False):
            torch.testing.assert_close(model.train(mode)(x), network.train(mode)(x), rtol=0, atol=0)
    assert source.count("nn.Identity()") == 2  # the ones in the middle of what is walked by position
    assert not any(name in source for name in ("self.norm", "self.shortcut", "drop", "steps[1]", "walked[1][0]"))
    check_form(source, tmp_path)


@pytest.mark.parametrize("factory", [separable, functional])
def test_what_an_option_has_replaced_leaves_no_identities(factory, tmp_path):
    space = nas.SearchSpace.from_module(factory, (3, 12, 12), 5, operators=["dsc", "bsconv_u"])
    chosen = {name: "bsconv_u" for name in space.table.names if name.startswith("conv.")}
    values = {**space.describe(space.table.base), **chosen}
    network = disturbed(space.build(space.table.from_values(values)), (3, 12, 12))
    assert any(isinstance(module, nn.Identity) for module in network.modules())
    (tmp_path / "model.py").write_text(source := write_source(network, "A title", (3, 12, 12)))
    save_state(network.state_dict(), tmp_path / "weights.safetensors")
    assert "Identity" not in source
    assert list(rebuilt(source, network).state_dict()) == list(network.state_dict())
    assert verify(tmp_path, network, (3, 12, 12)) == 0
    check_form(source, tmp_path)


class Pyramid(nn.Module):
    """Walks through the parts of a child's answer."""

    def __init__(self, answer=lambda a, b: (a, b)):
        super().__init__()
        self.encoder, self.sides = Encoder(answer), nn.ModuleList([nn.Conv2d(4, 6, 1), nn.Conv2d(5, 6, 1)])

    def forward(self, x):
        return sum(side(part).mean((2, 3)) for side, part in zip(self.sides, self.encoder(x), strict=True))


class Encoder(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.a, self.b, self.answer = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), answer

    def forward(self, x):
        x = self.a(x)
        return self.answer(x, self.b(x))


def test_the_parts_of_an_answer_may_be_walked_through(tmp_path):
    network = disturbed(Pyramid(), (3, 8, 8))
    source = write_source(network, "A title", (3, 8, 8))
    model, x = rebuilt(source, network), images((3, 8, 8), torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.eval()(x), network.eval()(x), rtol=0, atol=0)
    check_form(source, tmp_path)


def test_functional_dropout_keeps_acting_in_training_only():
    source = write_source(Dropping())
    assert "F.dropout(x, p=0.4, training=self.training)" in source
    model, x = rebuilt(source, Dropping().eval()), torch.ones(1000)
    assert torch.equal(model(x), x)
    assert model.train()(x).eq(0).float().mean() == pytest.approx(0.4, abs=0.1)


def test_stochastic_depth_drops_whole_images_in_training():
    stochastic_depth = zoo_of_torchvision.efficientnet_b0().features[2][1].stochastic_depth
    stochastic_depth.p = 0.5
    model = rebuilt(write_source(stochastic_depth), stochastic_depth)
    x = torch.ones(1000, 2, 1, 1)
    kept = model(x).flatten(1)
    assert {(0.0, 0.0), (2.0, 2.0)} == {tuple(row) for row in kept.tolist()}
    assert torch.equal(model.eval()(x), x)


def test_a_module_that_trains_another_way_is_written_as_evaluated():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) if self.training else 2 * x

    source = write_source(Noisy())
    assert "acts differently in training mode" in source
    assert "return 2 * x" in source


def test_bare_tensors_keep_their_kinds():
    network = Tensors(4)
    model = rebuilt(write_source(network), network)
    assert dict(model.named_parameters()).keys() == dict(network.named_parameters()).keys()
    assert model.steps.dtype == torch.int64
    assert model.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(model.weights, network.weights)


class Asking(nn.Module):
    """Asks of its own values whether they are tensors, which they are."""

    def forward(self, x):
        y = x * 2
        return y + 1 if isinstance(y, torch.Tensor) else y


class Joining(nn.Module):
    """Takes a list of tensors, as the layers of a DenseNet."""

    def forward(self, parts):
        return torch.cat([parts] if isinstance(parts, torch.Tensor) else parts, 1)


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.join, self.ask = nn.Conv2d(3, 4, 1), Joining(), Asking()

    def forward(self, x):
        return self.ask(self.join([x, self.first(x)]))


def test_what_asks_for_types_becomes_source_that_answers_alike():
    network = Growing().eval()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(rebuilt(write_source(network), network)(x), network(x))


def undecorated(function):
    def wrapper(self, x):
        return function(self, x)

    return wrapper


class Wrapped(nn.Module):
    """Its forward has another name."""

    @undecorated
    def forward(self, x):
        return x * 2


def test_a_forward_may_be_wrapped_by_a_function_of_another_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Wrapped()).eval()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(rebuilt(write_source(network), network)(x), network(x))


class Silent(nn.Module):
    """Its train returns nothing, as that of many a hand-written block."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()

    def forward(self, x):
        return self.norm(x)


def test_a_block_whose_train_returns_nothing_becomes_source():
    assert "class Silent(nn.Module)" in write_source(nn.Sequential(nn.Conv2d(3, 4, 1), Silent()))


def test_writing_leaves_the_network_as_it_is():
    network = nn.Sequential(Tensors(4), Dropping()).train()
    before = {**vars(network[0])}
    write_source(network)
    assert network.training
    assert all(module.training for module in network.modules())
    assert vars(network[0]).keys() == before.keys()


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@fx.wrap
def twice(x):
    return 2 * x


class Foreign(nn.Module):
    def forward(self, x):
        return twice(x)


class Optional(nn.Module):
    def forward(self, x, scale=1.0):
        return x * scale


class Caller(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Optional()

    def forward(self, x):
        return self.inner(x, 2.0)


class Gathering(nn.Module):
    def forward(self, *parts):
        return sum(parts)


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.rand(65), persistent=False)

    def forward(self, x):
        return x * self.table


def hooked():
    network = nn.Sequential(nn.ReLU())
    network[0].register_forward_hook(lambda module, args, output: output + 1)
    return network


def tied():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    return network


def parametrised():
    return nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)))


def within(module):
    return lambda: nn.Sequential(nn.ReLU(), nn.Sequential(module()))


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (
            within(Branching),
            r"traceable by torch.fx .* but that of '1.0' \(Branching\) is not, as its line "
            r"`.*` \(.*test_source.*\) branches on .*: take out",
        ),
        (
            within(lambda: Pyramid(lambda a, b: b)),
            r"but that of '1.0' \(Pyramid\) is not, as its line `.*` \(.*\) loops over .*: take out",
        ),
        (within(Foreign), r"'1.0' \(Foreign\) calls test_source.twice: use torch operations"),
        (within(Caller), r"called with its 1 required arguments .* but '1.0.inner' gets 2: make the others"),
        (within(Gathering), r"name all that it takes .* but that of 'Gathering' takes \*args: name its arguments"),
        (within(Large), r"at most 64 values .* but '1.0.table' has 65: register it as a persistent buffer"),
        (hooked, r"no forward hooks, but '0' has: remove them"),
        (tied, r"must not be shared .* but '0.weight' and '1.weight' are one: give each"),
        (parametrised, r"'0' is no plain nn.Linear: undo what was changed since"),
        (lambda: nn.Linear(3, 3).half(), r"must be float32 .* but 'weight' is torch.float16: call float\(\)"),
    ],
)
def test_what_no_source_can_say_is_refused(factory, sentence):
    with pytest.raises(ExportError, match=sentence):
        write_source(factory())


class OddNames(nn.Module):
    """Children whose names no code can write as attributes, beside one that is called as an argument might be."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({"lambda": nn.Conv2d(8, 8, 3), "it's": nn.Conv2d(8, 8, 3)})
        for name in ("class", "it's", "it is", 'q"\\'):
            self.add_module(name, nn.Conv2d(3 if name == "class" else 8, 8, 3))
        self.child_class, self.head = nn.ReLU(), nn.Linear(8, 10)

    def forward(self, x):
        for name in ("class", "it's", "it is", 'q"\\'):
            x = self.child_class(getattr(self, name)(x))
        for block in self.blocks.values():
            x = block(x)
        return self.head(x.mean((2, 3)))


def test_children_may_have_any_name():
    space = nas.SearchSpace.from_module(OddNames(), (3, 32, 32))
    assert {"conv.it's", "conv.blocks.lambda", "conv.blocks.it's"} <= set(space.table.names)
    for architecture in space.sample(3):
        network = disturbed(space.build(architecture), (3, 32, 32)).eval()
        x = images((3, 32, 32), torch.Generator().manual_seed(1))
        with torch.no_grad():
            answer = rebuilt(write_source(network), network)(x)
            torch.testing.assert_close(answer, network(x), rtol=0, atol=0)
