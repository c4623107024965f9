"""Built networks: plain modules that do what the base does, initialised by one rule, trained in one step."""

import copy
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from odd_net import CLASSES
from odd_networks import ODD
from torch import Tensor, nn
from torchvision import models

from bsconv_nas.errors import SpaceError
from bsconv_nas.network.build import build, instantiate, seeded_build
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.base import Base
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.table import Architecture, Table
from bsconv_nas.space.trace import trace

OPERATORS = ("regular", "dsc", "bsconv_u:r=2", "bsconv_s:p=1/2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table_of(base: nn.Module, size: tuple[int, int, int] = (3, 16, 16), **choices: object) -> Table:
    given = {"operators": OPERATORS, "widths": (0.5, 1.0, 1.5), "divisor": 2, "width_scope": "layer", **choices}
    return make_table(trace(base, size), Choices.model_validate(given))


def random_networks(table: Table, n: int, seed: int = 0) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    return table.architectures(rng.integers(0, table.sizes, size=(n, len(table.sizes))))


def full_size(table: Table, **other: object) -> Architecture:
    """The base's own network: its operators and kernels, width 1, all blocks."""
    return table.from_values({**table.describe(table.base), **other})  # type: ignore[arg-type]


def step(module: nn.Module, size: tuple[int, int, int]) -> Tensor:
    """The loss of one training step; the gradients stay."""
    torch.manual_seed(0)
    loss = F.cross_entropy(module(torch.randn(4, *size)), torch.tensor([0, 1, 2, 1]))
    loss.backward()
    return loss


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_train_in_every_shape(name: str) -> None:
    base, size = ODD[name].factory(), ODD[name].input_size
    table = table_of(base, size)
    for architecture in random_networks(table, 2):
        module = seeded_build(base, table, architecture, seed=0)
        assert module.training
        assert module(torch.zeros(2, *size)).shape == (2, CLASSES)
        assert torch.isfinite(step(module, size))
        used = [p for path, p in module.named_parameters() if not path.startswith(("aux", "never", "blocks.1.spare"))]
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in used)


@pytest.mark.parametrize("factory", [lambda: cifar_resnet(14), models.resnet18], ids=["cifar_resnet14", "resnet18"])
def test_residual_networks_train_in_every_shape(factory: Callable[[], nn.Module]) -> None:
    base = factory()
    table = table_of(base, (3, 16, 16))
    for architecture in random_networks(table, 2):
        module = seeded_build(base, table, architecture, seed=0)
        assert torch.isfinite(step(module, (3, 16, 16)))
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize(
    "factory",
    [lambda: cifar_resnet(20), models.resnet18, models.resnet50, models.vgg11_bn],
    ids=["cifar_resnet20", "resnet18", "resnet50", "vgg11_bn"],
)
def test_the_full_size_regular_network_is_the_base(factory: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        base = factory()
        table = table_of(base, (3, 224, 224), stem=True)
        module = build(base, table, full_size(table))
    assert repr(module) == repr(base)
    shapes = {name: value.shape for name, value in base.state_dict().items()}
    assert {name: value.shape for name, value in module.state_dict().items()} == shapes


@pytest.mark.parametrize("name", sorted(set(ODD) - {"reparametrised"}))
def test_the_full_size_regular_network_with_the_base_s_weights_computes_what_the_base_does(name: str) -> None:
    base, size = ODD[name].factory().eval(), ODD[name].input_size
    table = table_of(base, size)
    module = seeded_build(base, table, full_size(table), seed=0).eval()
    module.load_state_dict(base.state_dict())
    x = torch.randn(2, *size)
    assert torch.equal(module(x), base(x))


def test_a_built_network_is_made_of_torch_layers() -> None:
    table = table_of(cifar_resnet(14))
    module = seeded_build(cifar_resnet(14), table, random_networks(table, 1)[0], seed=0)
    assert {type(m).__module__.partition(".")[0] for m in module.modules() if not list(m.children())} == {
        "torch",
        "bsconv_nas",
    }
    ours = {type(m).__name__ for m in module.modules() if type(m).__module__.startswith("bsconv_nas")}
    assert ours <= {"CifarResNet", "BasicBlock", "OrthonormalConv2d"}


def test_a_module_that_is_passed_stays_as_it_is() -> None:
    base = cifar_resnet(8).eval()
    before = copy.deepcopy(base.state_dict())
    table = table_of(base)
    module = seeded_build(base, table, random_networks(table, 1)[0], seed=0)
    step(module, (3, 16, 16))
    assert (base.training, module.training) == (False, True)
    assert all(value.equal(before[name]) for name, value in base.state_dict().items())
    assert not {id(p) for p in base.parameters()} & {id(p) for p in module.parameters()}


def test_the_seed_decides_the_weights_and_leaves_the_generator() -> None:
    reference = Base("bsconv_nas.network.models:cifar_resnet", {"depth": 8})
    table = table_of(cifar_resnet(8))
    architecture = random_networks(table, 1)[0]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (seeded_build(reference, table, architecture, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(value.equal(second[name]) for name, value in first.items())
    assert not all(value.equal(third[name]) for name, value in first.items())


def test_what_the_search_changes_is_initialised_by_one_rule() -> None:
    """Var(w) = 2 / fan_in for a convolution of any kind, depthwise ones of the base included."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.dw = nn.Conv2d(3, 512, 3), nn.Conv2d(512, 512, 5, groups=512)
            self.pw, self.head = nn.Conv2d(512, 256, 1), nn.Linear(256, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pw(torch.abs(self.dw(F.relu(self.stem(x))))).mean((2, 3)))

    base = Wide()
    table = table_of(base, operators=["regular"], widths=[0.5, 1.0])
    half = table.from_values({d.name: d.options[0] for d in table.dimensions})
    module = seeded_build(base, table, half, seed=0)
    for name in ("stem", "dw", "pw"):
        conv = module.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        assert conv.weight.var().item() * conv.weight[0].numel() == pytest.approx(2, rel=0.1), name
        assert conv.bias is not None
        assert not conv.bias.any()


def test_options_of_the_base_s_layers_stay() -> None:
    base = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=(0, 2), dilation=2, padding_mode="circular"),
        nn.BatchNorm2d(8, eps=0.1, momentum=0.3),
        nn.LeakyReLU(0.3, inplace=True),
        nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.PReLU(8, init=0.7),
        nn.Dropout(0.4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6, bias=False),
        nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, 2),
    )
    table = table_of(base, stem=True)
    values = {d.name: (1.5 if d.kind == "width" else "regular") for d in table.dimensions}
    module = seeded_build(base, table, table.from_values(values), seed=0)
    wide = repr(base).replace("(3, 8,", "(3, 12,").replace("(8, 8,", "(12, 12,").replace("groups=8", "groups=12")
    wide = wide.replace("(8, eps", "(12, eps").replace("parameters=8", "parameters=12").replace("res=8", "res=12")
    assert repr(module) == wide.replace("features=6", "features=10").replace("(6, eps", "(10, eps")
    assert torch.equal(module.get_parameter("5.weight"), torch.full((12,), 0.7))


def test_blocks_that_start_as_the_identity_stay_so() -> None:
    base = models.resnet18(zero_init_residual=True)
    table = table_of(base, (3, 32, 32))
    module = seeded_build(base, table, full_size(table, **{"width.layer2.0.conv1": 0.5}), seed=0)
    assert not module.get_parameter("layer1.0.bn2.weight").any()
    assert module.get_parameter("layer1.0.bn1.weight").all()


def test_a_dropped_block_is_the_identity_and_the_first_ones_stay() -> None:
    base = cifar_resnet(20)
    table = table_of(base)
    module = seeded_build(base, table, full_size(table, **{"depth.layer1": 1, "depth.layer3": 0}), seed=0)
    kinds = {
        path: type(module.get_submodule(path)).__name__ for path in ("layer1.0", "layer1.1", "layer1.2", "layer3.0")
    }
    assert kinds == dict(zip(kinds, ("BasicBlock", "Identity", "Identity", "BasicBlock"), strict=True))
    x = torch.randn(2, 16, 8, 8)
    assert module.get_submodule("layer1.2")(x) is x


def test_a_layer_with_two_owners_stays_one() -> None:
    base = ODD["shared"].factory()
    table = table_of(base, (3, 8, 8))
    module = seeded_build(base, table, full_size(table, **{"width.left.0": 1.5}), seed=0)
    assert module.get_submodule("left.1") is module.get_submodule("right.1")


def test_a_bare_parameter_keeps_its_pattern() -> None:
    base = ODD["bare"].factory()
    table = table_of(base, (3, 8, 8))
    module = seeded_build(base, table, full_size(table, **{"width.a": 1.5}), seed=0)
    assert module.get_parameter("bias").flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    assert torch.equal(module.get_parameter("scale"), torch.full((12, 1, 1), 0.5))


def test_what_replaces_a_layer_has_its_type() -> None:
    base = cifar_resnet(8)
    table = table_of(base)
    module = seeded_build(base.double(), table, random_networks(table, 1)[0], seed=0)
    assert {p.dtype for p in module.parameters()} == {torch.float64}


def no_module() -> int:
    return 3


def fails(depth: int = 3) -> nn.Module:
    raise ValueError(f"no depth {depth}\nand more")


def takes_channels(in_chans: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))


def leaves() -> nn.Module:
    sys.exit(3)


def takes_anything(**options: object) -> nn.Module:
    assert options == {"num_classes": 4, "width": 3}
    return nn.Identity()


def test_a_factory_is_told_what_it_takes() -> None:
    module = instantiate(Base("test_build:takes_channels", input_size=(5, 8, 8), num_classes=7))
    assert module(torch.zeros(1, 5, 8, 8)).shape == (1, 7)
    instantiate(Base("test_build:takes_anything", {"width": 3}, num_classes=4))


def test_arguments_of_the_file_win() -> None:
    reference = Base("test_build:takes_channels", {"num_classes": 3}, num_classes=7)
    assert instantiate(reference)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (
            Base("torchvision.model:resnet18"),
            r"Module 'torchvision\.model' of base\.factory .* must be importable, but: ",
        ),
        (Base("torchvision.models:resnet81"), r"has no 'resnet81' .*valid are .*'resnet18'.*; did you mean 'resnet18'"),
        (Base("test_build:CLASSES.real.x"), r"'test_build' has no 'x'"),
        (
            Base("test_build:no_module"),
            r"Factory 'test_build:no_module' must return a torch\.nn\.Module, but returned 'int'",
        ),
        (
            Base("test_build:fails", {"depth": 4}),
            r"Factory .* must accept \(depth=4\), but: no depth 4; see base\.arguments",
        ),
        (Base("torchvision.models:resnet18", {"colour": 1}), r"must accept \(.*colour=1\), but: .*unexpected keyword"),
        (Base("test_build:leaves"), r"must accept \(\), but: it exits \(3\); see base\.arguments"),
        (Base("test_build:CLASSES"), r"Factory 'test_build:CLASSES' must be a function or a class, but is 'int'"),
    ],
    ids=["module", "function", "attribute", "no module", "fails", "arguments", "exit", "no function"],
)
def test_a_base_that_cannot_be_made_is_refused(base: Base, sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence) as refused:
        instantiate(base)
    assert "\n" not in str(refused.value)


def test_a_frozen_layer_stays_frozen() -> None:
    base = cifar_resnet(8)
    base.conv1.requires_grad_(False)
    base.bn1.requires_grad_(False)
    table = table_of(base)
    network = build(base, table, table.base)
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
    ]
