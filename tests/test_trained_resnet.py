"""The committed ResNet-20: its weights are those of its card, and what they keep under fewer blueprints."""

import hashlib
import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import bsconv_nas as nas
from bsconv_nas.network.analysis import analyze_kernels
from bsconv_nas.network.inherit import inherit
from bsconv_nas.network.models import cifar_resnet

FOLDER = Path(__file__).parents[1] / "reports" / "cifar10_resnet20"
CARD = json.loads((FOLDER / "card.json").read_text())


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    base = cifar_resnet()
    base.load_state_dict(load_file(FOLDER / "weights.safetensors"))
    return base.eval()


@pytest.fixture(scope="module")
def tiles() -> Tensor:
    """Photographs in tiles of 32 x 32 pixels at half size, normalised as the card says: (N, 3, 32, 32)."""
    photographs = [
        torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in load_sample_images().images
    ]
    small = [nn.functional.avg_pool2d(photograph, 2) for photograph in photographs]
    cut = [image.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4).flatten(0, 1) for image in small]
    mean, std = (torch.tensor(CARD["input"][name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    return (torch.cat(cut) - mean) / std


def test_the_weights_are_those_of_the_card() -> None:
    found = {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in CARD["files"]}
    assert found == CARD["files"]
    assert (CARD["data"]["name"], CARD["params"], CARD["weights"]["epochs"]) == ("cifar10", 272_480, 15)


def test_its_kernels_are_correlated_beyond_chance(trained: nn.Module) -> None:
    layers = [layer for layer in analyze_kernels(trained, ("bsconv_u",)) if layer.c_in > 3]
    assert len(layers) == 18
    assert all(fmean(layer.intra) > 1.2 * layer.intra_null for layer in layers)
    assert all(layer.energy["bsconv_u"] > 1.2 * layer.energy_null["bsconv_u"] for layer in layers)


def test_the_more_blueprints_the_more_often_the_answer_is_the_trained_network_s(
    trained: nn.Module, tiles: Tensor
) -> None:
    """Photographs that it never saw stand in for CIFAR-10, whose images may not be copied here."""
    operators = ["bsconv_u", "bsconv_u:r=4", "bsconv_u:r=9"]
    choices = {"operators": ["regular", *operators], "widths": [1.0], "depths": "fixed", "scope": "network"}
    space = nas.SearchSpace.from_module(cifar_resnet, **choices)
    with torch.no_grad():
        answers = trained(tiles).argmax(1)
        same = []
        for operator in operators:
            values = {**space.describe(space.table.base), "conv.network": operator}
            heir = inherit(trained, space.table, space.table.from_values(values)).eval()
            same.append(float((heir(tiles).argmax(1) == answers).float().mean()))
    assert len(answers.unique()) >= 5
    assert same == sorted(same)
    assert same[1] > 0.6 > 2 * same[0]
    assert same[2] > 0.99
