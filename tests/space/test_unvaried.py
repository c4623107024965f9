"""Why nothing varies, or no operator: the sentence names layers, and its way out is one."""

from collections.abc import Callable

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from bsconv_nas.errors import SpaceError
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.table import Table
from bsconv_nas.space.trace import trace
from bsconv_nas.space.unvaried import why_no_operator


def table_of(base: nn.Module, **choices: object) -> Table:
    return make_table(trace(base, (3, 16, 16)), Choices.model_validate(choices))


def said(table: Table) -> str:
    return why_no_operator(table.fixed, table.dimensions)


class Reading(nn.Module):
    """The forward reads how many channels a layer has."""

    def __init__(self, flat: Callable[["Reading", Tensor], Tensor]) -> None:
        super().__init__()
        self.c1, self.c2, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.c2(F.relu(self.c1(x)))), 1)
        logits: Tensor = self.head(self.flat(self, x))
        return logits


def test_an_attribute_that_fixes_all_is_named_with_its_layer() -> None:
    with pytest.raises(SpaceError) as refused:
        table_of(Reading(lambda self, x: x.view(-1, self.c2.out_channels)))
    assert str(refused.value) == (
        "A search space must leave something to choose, but all of this base is fixed, such as conv.c2 (its "
        "out_channels is read by the forward), conv.c1 (stem), width.x (the image's channels): let the forward do "
        "without c2.out_channels, such as by flatten(1) or a number."
    )
    assert table_of(Reading(lambda self, x: x.flatten(1))).names, "as the sentence advises"
    assert table_of(Reading(lambda self, x: x.view(-1, 8))).names


def test_a_stem_that_fixes_all_may_vary() -> None:
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8 * 196, 10))
    with pytest.raises(SpaceError, match=r"such as conv\.0 \(stem\), .*: set stem = true, or give the network other"):
        table_of(base)
    assert table_of(base, stem=True).names == ("conv.0",)


@pytest.mark.parametrize(
    ("layer", "choices", "sentence"),
    [
        (nn.Conv2d(8, 8, 3), {}, ""),
        (
            nn.Conv2d(8, 8, 3),
            {"operators": ["regular"]},
            "No operator varies in this space: every convolution that may vary has one option, such as conv.1.",
        ),
        (
            nn.ReLU(),
            {},
            "No operator varies in this space: 1 of 1 fixed convolutions stays as it is for this reason: stem "
            "(conv.0).",
        ),
        (
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)),
            {},
            "No operator varies in this space: 2 of 3 fixed convolutions stay as they are for this reason: 1x1 kernel "
            "(conv.1.0).",
        ),
    ],
)
def test_that_no_operator_varies_is_said_with_the_main_reason(
    layer: nn.Module, choices: dict[str, object], sentence: str
) -> None:
    base = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    assert said(table_of(base, **choices)) == sentence


def test_a_network_of_linear_layers_has_no_convolution() -> None:
    base = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 10))
    assert said(table_of(base)) == "No operator varies in this space: the base has no convolution."
