"""A way out that a refusal names is one: the forward is mended as it says, and traced."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from spoiled import SIZE, Trunk, good, refusal, spoiled
from torch import Tensor, nn
from torch.nn import functional as F

import bsconv_nas as nas
from bsconv_nas.check import Check
from bsconv_nas.space.trace import trace


def proved(network: nn.Module) -> Check:
    """Return the check of the space of a network, which has found no difference."""
    space = nas.SearchSpace.from_module(network, input_size=SIZE, operators=["regular", "dsc"], widths=[0.5, 1.0])
    found = space.check()
    assert len(found.networks) > 2
    return found


def masked(self: Trunk, x: Tensor) -> Any:
    return good(self, x * (torch.rand(x.shape[0], 1, 1, 1) > 0.2) if self.training else x)


def masked_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, x * (x.new_empty(x.shape[0], 1, 1, 1).uniform_() > 0.2) if self.training else x)


def noisy(self: Trunk, x: Tensor) -> Any:
    return good(self, x + torch.randn(x.size(0), 1, 1, 1))


def noisy_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, x + x.new_empty(x.size(0), 1, 1, 1).normal_())


def noisy_in_training_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, x + x.new_empty(1, 1, 1, 1).normal_() if self.training else x)


def noisy_in_training(self: Trunk, x: Tensor) -> Any:
    return good(self, x + torch.randn(1, 1, 1, 1) if self.training else x)


def padded(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([x, torch.full((x.shape[0], 3, 1, 32), 0.5)], 2))


def counted(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([x, torch.zeros(x.shape[0], 3, 1, 32)], 2))


def counted_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([x, x.new_zeros(x.shape[0], 3, 1, 32)], 2))


def padded_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([x, x.new_full((x.shape[0], 3, 1, 32), 0.5)], 2))


def shifted(self: Trunk, x: Tensor) -> Any:
    return good(self, x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))


def shifted_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, x - x.new_tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))


def lifted(self: Trunk, x: Tensor) -> Any:
    return good(self, x + torch.ones(1, 3, 1, 1).expand(x.shape[0], -1, -1, -1).to(x))


def lifted_by_broadcast(self: Trunk, x: Tensor) -> Any:
    return good(self, x + x.new_ones(1, 3, 1, 1))


def measured(self: Trunk, x: Tensor) -> Any:
    return good(self, x.reshape(len(x), 3, 32, 32))


def measured_by_shape(self: Trunk, x: Tensor) -> Any:
    return good(self, x.reshape(x.shape[0], 3, 32, 32))


@pytest.mark.parametrize(
    ("forward", "way_out", "mended"),
    [
        (masked, "let a tensor make it, as x.new_empty(...).uniform_().", masked_by_itself),
        (noisy, "let a tensor make it, as x.new_empty(...).normal_().", noisy_by_itself),
        (
            noisy_in_training,
            "or let a tensor make it, as x.new_tensor(...) or x.new_empty(...).normal_().",
            noisy_in_training_by_itself,
        ),
        (counted, "let a tensor make it, as x.new_zeros(...).", counted_by_itself),
        (padded, "or let a tensor make it, as x.new_tensor(...) or x.new_empty(...).normal_().", padded_by_itself),
        (shifted, "let a tensor make it, as x.new_tensor(...) or x.new_empty(...).normal_().", shifted_by_itself),
        (lifted, "leave an axis of 1 in the place of the images, as it is broadcast.", lifted_by_broadcast),
        (measured, "write it as a number, or take shape[0] for the number of images.", measured_by_shape),
    ],
)
def test_a_forward_that_is_mended_as_told_becomes_a_space(forward: Any, way_out: str, mended: Any) -> None:
    assert refusal(spoiled(forward)).endswith(way_out)
    proved(spoiled(mended))


class Silent(Trunk):
    """Keeps a layer from training, and forgets what train returns."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.b.eval()


class Returning(Silent):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        return self


def test_a_base_whose_train_returns_nothing_is_told_what_to_return() -> None:
    assert refusal(Silent()).endswith("but that of 'Silent' does not: end it by `return self`.")
    assert proved(Returning()).unchecked == ()


class Reading(Trunk):
    """A recurrent layer reads columns and answers with a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def read(self, x: Tensor) -> Any:
        return self.rnn(self.maps(x).mean(2).transpose(1, 2))


class Asking(Reading):
    def forward(self, x: Tensor) -> Any:
        y = self.read(x)
        if isinstance(y, tuple):
            y = y[0]
        return self.head(y.mean(1))


class Looping(Reading):
    def forward(self, x: Tensor) -> Any:
        y = self.read(x)
        y = y[0] if isinstance(y, tuple) else sum(part for part in y)
        return self.head(y.mean(1))


class Indexing(Reading):
    def forward(self, x: Tensor) -> Any:
        return self.head(self.read(x)[0].mean(1))


ASKS = "asks for the type of what is no tensor, and passes for one while it is traced: take that question out."


@pytest.mark.parametrize(("network", "line"), [(Asking(), "if isinstance(y, tuple):"), (Looping(), "y = y[0] if isin")])
def test_a_line_that_asks_for_the_type_of_what_is_no_tensor_is_named(network: Trunk, line: str) -> None:
    said = refusal(network)
    assert said.startswith(
        f"The forward of '{type(network).__name__}' must be traceable by torch.fx, but its line `{line}"
    )
    assert said.endswith(ASKS)
    assert trace(Indexing(), SIZE).num_classes == 10


def checked(self: Trunk, x: Tensor) -> Any:
    assert isinstance(x, Tensor)
    if not torch.is_tensor(x):
        raise TypeError(f"no {type(x)}")
    x = self.maps(x)
    y = F.relu(x) if isinstance(x, Tensor) else x
    return self.head(y.mean((2, 3)))


def test_a_tensor_is_one_while_it_is_traced() -> None:
    assert proved(spoiled(checked)).unchecked == ()


def checked_and_looping(self: Trunk, x: Tensor) -> Any:
    if isinstance(x, list | tuple):
        x = torch.cat(x)
    return good(self, torch.stack([part * 2 for part in x]))


def test_a_question_that_is_answered_right_is_not_blamed() -> None:
    said = refusal(spoiled(checked_and_looping))
    assert "isinstance" not in said
    assert said.endswith(": index its parts one by one, but compute for all images at once.")


def unwrapped(self: Trunk, x: Tensor) -> Any:
    y = self.maps(x)
    if hasattr(y, "logits"):
        y = y.logits
    return self.head(y.mean((2, 3)))


def test_an_operation_that_fails_only_in_the_trace_is_named_by_its_line() -> None:
    said = refusal(spoiled(unwrapped))
    assert "but its line `return self.head(y.mean((2, 3)))` (" in said
    assert "has no attribute 'logits'): let it ask for no value's type and attributes" in said


class Positioned(Trunk):
    """A buffer is repeated for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("position", torch.randn(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return good(self, x + self.position.expand(x.shape[0], -1, -1, -1))


def test_a_buffer_is_expanded_to_the_number_of_images() -> None:
    assert proved(Positioned()).unchecked == ()


def two_images(self: Trunk, x: Tensor) -> Any:
    return good(self, x.view(2, 3, 32, 32) if self.training else x)


def test_a_number_of_images_in_training_is_named() -> None:
    said = refusal(spoiled(two_images))
    assert said.startswith("The forward of 'Spoiled' must compute for any number of images in training, but: ")
    assert said.endswith("; write no number of images down in it.")


def listening(network: Trunk, hook: Any) -> Trunk:
    network.b.register_forward_hook(hook)
    return network


def test_a_hook_whose_closure_holds_the_network_is_named() -> None:
    network = Trunk()
    said = refusal(listening(network, lambda layer, given, answer: setattr(network, "last", answer)))
    assert said == (
        "A base must be copied with its hooks, but one of 'b' (Conv2d) holds the network in a closure, which copies "
        "share: let the forward keep what the hook keeps."
    )
    other, network = Trunk(), Trunk()
    assert trace(listening(network, lambda layer, given, answer: other.train() and None), SIZE).num_classes == 10


def test_a_forward_that_an_object_was_given_is_refused() -> None:
    network = Trunk()
    network.b.forward = network.a.forward  # type: ignore[method-assign]
    assert refusal(network).startswith(
        "A base must compute by the forward of its class, but 'b' has been given another"
    )


class Choosing(nn.Module):
    """Chooses one of its own methods, as blocks of timm do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.forward = self.twice  # type: ignore[method-assign]

    def twice(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.conv(x))))


def test_a_block_may_choose_its_forward_among_its_methods() -> None:
    network = Trunk()
    network.b = nn.Sequential(network.b, Choosing())  # type: ignore[assignment]
    assert proved(network).unchecked == ()
    assert {node.path for node in trace(network, SIZE).nodes if node.place} >= {"b.1.conv"}


class Doubled(nn.Conv2d):
    """A convolution that chose what is none."""

    def __init__(self) -> None:
        super().__init__(8, 8, 3, padding=1)
        self.forward = self.twice  # type: ignore[method-assign]

    def twice(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, nn.Conv2d.forward(self, x))


class Dropping(nn.Module):
    """Chose a forward that learns more in training than its class's forward shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.forward = self.both  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def both(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.other(x) if self.training else self.conv(x)


@pytest.mark.parametrize(
    ("block", "fixed"),
    [
        (Doubled, {"b.1": "has a forward of its own"}),
        (
            Dropping,
            dict.fromkeys(
                ("b.1.conv", "b.1.other"),
                "inside b.1, which is kept whole, as it computes something else in training",
            ),
        ),
    ],
)
def test_what_a_chosen_forward_computes_is_what_is_counted(block: type[nn.Module], fixed: dict[str, str]) -> None:
    network = Trunk()
    network.b = nn.Sequential(network.b, block())  # type: ignore[assignment]
    named = {entry.name.removeprefix("conv."): entry.reason for entry in trace(network, SIZE).fixed}
    assert fixed.items() <= named.items()
    proved(network)


def early_hooks() -> Iterator[Callable[..., None]]:
    def hook(*call: Any) -> None:
        with contextlib.suppress(NameError):
            seen.append(call)

    yield hook
    seen: list[Any] = []


def test_a_hook_whose_closure_is_not_filled_yet_is_no_obstacle() -> None:
    hooks = early_hooks()
    hook = next(hooks)
    with pytest.raises(ValueError, match="empty"):
        _ = hook.__closure__[0].cell_contents  # type: ignore[index]
    assert trace(listening(Trunk(), hook), SIZE).num_classes == 10
