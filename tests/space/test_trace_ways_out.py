"""A way out that a refusal names is one: the forward is mended as it says, and traced."""

from typing import Any

import pytest
import torch
from spoiled import SIZE, Trunk, good, refusal, spoiled
from torch import Tensor, nn

import bsconv_nas as nas
from bsconv_nas.space.trace import trace


def masked(self: Trunk, x: Tensor) -> Any:
    return good(self, x * (torch.rand(x.shape[0], 1, 1, 1) > 0.2) if self.training else x)


def masked_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, x * (x.new_empty(x.shape[0], 1, 1, 1).uniform_() > 0.2) if self.training else x)


def noisy(self: Trunk, x: Tensor) -> Any:
    return good(self, x + torch.randn(x.size(0), 1, 1, 1))


def noisy_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, x + x.new_empty(x.size(0), 1, 1, 1).normal_())


def noisy_in_training(self: Trunk, x: Tensor) -> Any:
    return good(self, x + torch.randn(1, 1, 1, 1) if self.training else x)


def padded(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([x, torch.full((x.shape[0], 3, 1, 32), 0.5)], 2))


def counted(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([x, torch.zeros(x.shape[0], 3, 1, 32)], 2))


def padded_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, torch.cat([x, x.new_full((x.shape[0], 3, 1, 32), 0.5)], 2))


def shifted(self: Trunk, x: Tensor) -> Any:
    return good(self, x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))


def shifted_by_itself(self: Trunk, x: Tensor) -> Any:
    return good(self, x - x.new_tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))


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
            noisy_by_itself,
        ),
        (counted, "let a tensor make it, as x.new_zeros(...).", padded_by_itself),
        (padded, "or let a tensor make it, as x.new_tensor(...) or x.new_empty(...).normal_().", padded_by_itself),
        (shifted, "let a tensor make it, as x.new_tensor(...) or x.new_empty(...).normal_().", shifted_by_itself),
        (measured, "takes the length of a tensor: take its shape[0].", measured_by_shape),
    ],
)
def test_a_forward_that_is_mended_as_told_becomes_a_space(forward: Any, way_out: str, mended: Any) -> None:
    assert refusal(spoiled(forward)).endswith(way_out)
    nas.SearchSpace.from_module(spoiled(mended), input_size=SIZE, operators=["regular", "dsc"]).check()


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
    nas.SearchSpace.from_module(Returning(), input_size=SIZE, operators=["regular", "dsc"]).check()


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


ASKS = "asks for the type of a value, which none has while it is traced: take that check out."


def test_a_line_that_asks_for_a_type_is_named_where_it_leads_astray() -> None:
    said = refusal(Asking())
    assert said.startswith(
        "The forward of 'Asking' must be traceable by torch.fx, but its line `if isinstance(y, tuple):` ("
    )
    assert said.endswith(ASKS)
    assert trace(Indexing(), SIZE).num_classes == 10


def checked(self: Trunk, x: Tensor) -> Any:
    if not isinstance(x, Tensor):
        raise TypeError(f"no {type(x)}")
    return good(self, x)


@pytest.mark.parametrize(
    ("network", "deed"), [(Looping(), "loops over a tensor or its sizes"), (spoiled(checked), "raises, as")]
)
def test_a_line_that_asks_for_a_type_is_named_beside_the_one_that_it_leads_to(network: Trunk, deed: str) -> None:
    said = refusal(network)
    assert said.index(deed) < said.index("; before that, its line `") < said.index("isinstance", said.index("; before"))
    assert said.endswith(ASKS)
