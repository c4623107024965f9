"""A network that fails by its own fault is told apart from one that tracing cannot follow."""

import re
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from bsconv_nas.errors import SpaceError
from bsconv_nas.space.trace import trace
from bsconv_nas.space.trace_failures import MixedTypes, check_types

SIZE = (3, 8, 8)


class Plain(nn.Module):
    """What the others spoil."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Linear(4, 2)

    def good(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(self.conv(x)).mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.good(x)


class Attribute(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.good(self.convolution(x))


class Name(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.good(images)  # noqa: F821 - the mistake that is meant


class Shape(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.good(self.inner(x))


class Missing(Plain):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.good(x) * mask


class Training(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.good(x + self.noise) if self.training else self.good(x)


class Keyed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gains: dict[str, float] = {}
        return x * gains["blue"] if x.shape[1] else x


class Holding(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Keyed())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (Attribute, r"\(1, 3, 8, 8\), but: 'Attribute' object has no attribute 'convolution' \([^ ]*:\d+\)"),
        (Name, r"\(1, 3, 8, 8\), but: name 'images' is not defined \([^ ]*:\d+\)"),
        (Shape, r"\(1, 3, 8, 8\), but: .* got 3 channels instead \(in the Conv2d 'inner.0', [^ ]*:\d+\)"),
        (Missing, r"\(1, 3, 8, 8\), but: .* missing 1 required positional argument: 'mask'"),
        (Training, r"\(2, 3, 8, 8\) in training, but: .* no attribute 'noise' \([^ ]*:\d+\)"),
        (Holding, r"\(1, 3, 8, 8\), but: KeyError 'blue' \(in the Keyed 'inner.0', [^ ]*:\d+\)"),
    ],
)
def test_a_forward_that_fails_when_called_is_said_to_fail(base: type[Plain], sentence: str, device: str) -> None:
    with torch.device(device):
        network = base()
    law = rf"^The forward of '{base.__name__}' must accept a batch of shape {sentence}; mend the forward\.$"
    with pytest.raises(SpaceError, match=law) as refused:
        trace(network, SIZE)
    assert "\n" not in str(refused.value)
    assert network.training


@pytest.mark.parametrize("base", [Attribute, Shape, Holding])
def test_the_line_is_that_of_the_user(base: type[Plain]) -> None:
    failing = Keyed if base is Holding else base
    code = failing.forward.__code__
    with pytest.raises(SpaceError) as refused:
        trace(base(), SIZE)
    line = int(str(refused.value).partition(f"{code.co_filename}:")[2].partition(")")[0])
    assert line in {at for _, _, at in code.co_lines()}


class Halved(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.inner.half()


class DoubleHead(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.head.double()


class DoubleNorm(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.BatchNorm2d(4).double())


class DoubleMean(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.good(x - self.mean)


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (Halved, "the Conv2d 'inner.0' has torch.float16 weights and gets torch.float32"),
        (DoubleHead, "the Linear 'head' has torch.float64 weights and gets torch.float32"),
        (DoubleNorm, "the BatchNorm2d 'inner.0' has torch.float64 weights and gets torch.float32"),
        (DoubleMean, "the Conv2d 'conv' has torch.float32 weights and gets torch.float64"),
    ],
)
def test_values_of_another_type_than_the_weights_are_refused(base: type[Plain], sentence: str) -> None:
    with pytest.raises(RuntimeError):
        base().eval()(torch.zeros(1, *SIZE))
    with pytest.raises(SpaceError) as refused:
        trace(base(), SIZE)
    assert str(refused.value) == (
        f"The forward of '{base.__name__}' must give layers values of their weights' type, but {sentence}: call the "
        "network's float(), and let its forward and its buffers keep to float32."
    )
    trace(base().float(), SIZE)  # as the sentence advises


@pytest.mark.parametrize("name", ["double", "half", "bfloat16"])
def test_a_network_of_another_type_is_told_to_become_float(name: str) -> None:
    network = getattr(Plain(), name)()
    law = rf"^A base must have float32 weights, but those of 'Plain' are torch\.{TYPES[name]}: call its float\(\)\.$"
    with pytest.raises(SpaceError, match=law):
        trace(network, SIZE)
    trace(network.float(), SIZE)


def test_images_are_float32_whatever_torch_makes_by_default() -> None:
    network = Plain()
    expected = trace(network, SIZE)
    torch.set_default_dtype(torch.float64)
    try:
        found = trace(network, SIZE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


TYPES = {"double": "float64", "half": "float16", "bfloat16": "bfloat16"}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Conv2d(4, 4, 1),
    lambda: nn.Linear(4, 4),
    lambda: nn.PReLU(4),
    lambda: nn.BatchNorm2d(4),
    lambda: nn.InstanceNorm2d(4, affine=True),
    lambda: nn.GroupNorm(2, 4),
    lambda: nn.LayerNorm(4),
    lambda: nn.ReLU(),
)


@pytest.mark.parametrize("values", DTYPES)
@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer()).__name__)
def test_a_layer_takes_what_torch_lets_it(
    layer: Callable[[], nn.Module], weights: torch.dtype, values: torch.dtype
) -> None:
    module, x = layer().to(weights).eval(), torch.zeros(2, 4, 4, 4, dtype=values)
    refused = raised(lambda: module(x))
    assert raised(lambda: check_types("", module, x)) == refused


def raised(call: Callable[[], object]) -> bool:
    try:
        call()
    except (RuntimeError, MixedTypes):
        return True
    return False


class Answering(Plain):
    """Answers in another way in training."""

    def __init__(self, answer: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        features = self.inner(self.conv(x)).mean((2, 3))
        logits = self.head(features)
        return self.answer(logits, features) if self.training else logits


ALIKE = "let it answer there as in evaluation, by one row of logits for each image, or wrap"
AUXILIARY = "turn auxiliary outputs off by the base's own argument for that, or wrap the network"


@pytest.mark.parametrize(
    ("answer", "returned", "way_out"),
    [
        (lambda logits, features: {"logits": logits}, "dict", AUXILIARY),
        (lambda logits, features: (logits, logits), "tuple", AUXILIARY),
        (lambda logits, features: [logits, None], "list", AUXILIARY),
        (lambda logits, features: features, r"\(1, 4\)", ALIKE),
        (lambda logits, features: logits.repeat(5, 1), r"\(5, 2\)", ALIKE),
    ],
)
def test_a_forward_that_answers_otherwise_in_training_is_refused(
    answer: Callable[[Tensor, Tensor], object], returned: str, way_out: str
) -> None:
    law = (
        r"^The forward of 'Answering' must return logits of shape \(1, 2\) in training too, but returned "
        rf"{returned}: {way_out}"
    )
    with pytest.raises(SpaceError, match=law):
        trace(Answering(answer), SIZE)


def test_auxiliary_outputs_are_refused_by_the_name_of_the_argument_that_turns_them_off() -> None:
    with pytest.raises(SpaceError, match=r"turn auxiliary outputs off by base.arguments = \{ aux_logits = false \}"):
        trace(models.googlenet(num_classes=2, init_weights=False), (3, 64, 64))
    assert trace(models.googlenet(num_classes=2, init_weights=False, aux_logits=False), (3, 64, 64)).num_classes == 2


def test_logits_may_be_computed_otherwise_in_training() -> None:
    assert trace(Answering(lambda logits, features: 2 * logits), SIZE).num_classes == 2


class Features(Plain):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": self.good(x)}


class Walking(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.good(x.reshape(1, *x.shape[1:]))


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (Features, r"must return logits of shape \(N, classes\) for a batch of .*, but returned dict: flatten"),
        (Walking, r"must be traceable by torch\.fx, but its line `return .*` \([^ ]*:\d+\) loops over a tensor or its"),
    ],
)
def test_a_refusal_is_one_sentence(base: type[Plain], sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence) as refused:
        trace(base(), SIZE)
    assert not re.search(r"[.!?] [A-Z]|\n", str(refused.value))


class Measuring(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.good(x / x.max().item())


def test_a_forward_that_needs_values_is_said_to_run_but_not_without_them() -> None:
    law = (
        r"^The forward of 'Measuring' must run on torch's meta device, where tensors have no values, but its "
        r"line `return .*\.item\(\)\)` \(.*test_trace_failures\.py:\d+\) needs values \(.*\): take out what depends on"
    )
    with pytest.raises(SpaceError, match=law):
        trace(Measuring(), SIZE)


def test_what_is_tried_leaves_no_trace() -> None:
    class Counting(Plain):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.good(x) if x.mean() > 0 else self.good(-x)

    network, state = Counting(), torch.get_rng_state()
    with pytest.raises(SpaceError, match=r"must be traceable by torch\.fx"):
        trace(network, SIZE)
    assert "calls" not in vars(network)
    assert torch.equal(torch.get_rng_state(), state)


class Locked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Computed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = 2 * self.head.weight


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (Locked, r"must be copied by copy\.deepcopy, but 'Locked' holds 'lock', a lock that has no copy: hold locks"),
        (
            Computed,
            r"must be copied by copy\.deepcopy, but 'Computed' holds 'scaled', which is computed from weights: c",
        ),
        pytest.param(
            lazy,
            r"weights of a base must have shapes, but '0\.weight' of 'Sequential' is lazy: name its channels",
            marks=pytest.mark.filterwarnings("ignore:Lazy modules"),
        ),
    ],
)
def test_what_cannot_be_copied_is_refused(base: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence):
        trace(base(), SIZE)


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        (torch.jit.script, r"but 'inner' is a ScriptModule: hand over the module that it was made of"),
        (torch.compile, r"but 'inner' is a OptimizedModule: hand over the module before torch\.compile"),
        (nn.DataParallel, r"but 'inner' is a DataParallel: hand over its \.module"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_what_hides_its_layers_is_refused(wrap: Callable[[nn.Module], nn.Module], sentence: str) -> None:
    network = Plain()
    network.inner = wrap(network.inner)  # type: ignore[assignment]
    with pytest.raises(SpaceError, match=rf"^A base must show its layers, {sentence}"):
        trace(network, SIZE)
    with pytest.raises(SpaceError, match=r"^A base must show its layers, but it is a "):
        trace(wrap(Plain()), SIZE)
