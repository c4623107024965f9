"""Small spaces that can be enumerated, and how to draw from them."""

from collections.abc import Callable

import numpy as np
import torch
from odd_networks import Concatenated, PreActivated
from separable_networks import inverted, separable
from torch import nn

from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.table import Population, Table
from bsconv_nas.space.trace import trace


def tiny_resnet() -> nn.Module:
    return cifar_resnet(8, width=8)


def small_resnet() -> nn.Module:
    return cifar_resnet(14, width=4)


# p = 1/4 and 1/2 are one option at 8 channels and less; 9 and 16 blueprints of a 3x3 kernel are one as well.
S, U = ("regular", "bsconv_s:p=1/4", "bsconv_s:p=1/2"), ("bsconv_u", "bsconv_u:r=16", "bsconv_u:r=9")
SMALL: dict[str, tuple[Callable[[], nn.Module], dict[str, object]]] = {
    "layer": (tiny_resnet, {"operators": S, "widths": (0.5, 1.0), "width_scope": "network"}),
    "stage": (small_resnet, {"operators": (*U, "dsc"), "widths": (0.5, 1.0), "scope": "stage", "divisor": 2}),
    "block": (tiny_resnet, {"operators": S, "widths": (0.5, 1.0), "scope": "block"}),
    "network": (small_resnet, {"operators": S, "widths": (0.5, 2.0), "scope": "network", "width_scope": "block"}),
    "free widths": (tiny_resnet, {"operators": S, "widths": (0.5, 1, 2), "scope": "network", "width_scope": "layer"}),
    "one width": (small_resnet, {"operators": S, "widths": (0.5, 1.0), "scope": "stage", "width_scope": "network"}),
    "pre-activation": (PreActivated, {"operators": (*S, "dsc"), "widths": (0.5, 1.0, 3.0), "scope": "stage"}),
    "no depth": (Concatenated, {"operators": (*S, "bsconv_u"), "widths": (0.5, 0.6, 1.0), "width_scope": "layer"}),
    "pairs": (
        separable,
        {"operators": ("dsc", "regular", *U[:2]), "widths": (0.5, 1.0), "kernels": (3, 1), "width_scope": "network"},
    ),
    "forms": (
        inverted,
        {"expansions": (1, 2, 3), "widths": (0.5, 1.0), "width_scope": "stage", "scope": "stage", "kernels": (3, 5)},
    ),
    "overrides": (
        tiny_resnet,
        {
            "operators": ("regular",),
            "widths": (0.5,),
            "depths": "fixed",
            "overrides": [
                {"pattern": "layer1*", "depths": [0, 1], "operators": S},
                {"pattern": "layer3.*", "widths": [1, 2], "operators": U},
            ],
        },
    ),
}


def traced(factory: Callable[[], nn.Module], size: int = 8, **choices: object) -> Table:
    with torch.device("meta"):
        base = factory()
    return make_table(trace(base, (3, size, size)), Choices.model_validate(choices))


def drawn(table: Table, n: int, seed: int = 0) -> Population:
    return np.random.default_rng(seed).integers(0, table.sizes, size=(n, len(table.sizes)))
