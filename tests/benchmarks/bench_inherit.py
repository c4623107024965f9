"""What a trained ResNet-20 keeps of its CIFAR-10 accuracy under each option, without training.

    python tests/benchmarks/bench_inherit.py DATA_ROOT

Weights and their record lie in reports/cifar10_resnet20. The projection reads no image; the statistics of the norms are
taken anew on 2,048 images of the train part, augmented as in the training. Accuracies are of the report part, 5,000
images that decided nothing.
"""

import itertools
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import bsconv_nas as nas
from bsconv_nas.network.inherit import inherit
from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.training.augment import Augment
from bsconv_nas.training.data import DataSpec, load
from bsconv_nas.training.loop import evaluate

WEIGHTS = Path(__file__).parents[2] / "reports" / "cifar10_resnet20" / "weights.safetensors"
OPERATORS = (
    *(f"bsconv_u:r={r}" for r in (2, 3, 4, 6, 9)),
    *("bsconv_u", "bsconv_s", "bsconv_s:inner=none", "bsconv_s:inner=none,p=1/2", "dsc:inner=none"),
)
BATCHES, BATCH = 16, 128


def main(data_root: str) -> None:
    """Print a line an option: multiply-adds, accuracy with the norms' old statistics, and with new ones."""
    operators = ["regular", *OPERATORS]
    space = nas.SearchSpace.from_module(
        cifar_resnet, operators=operators, widths=[1.0], depths="fixed", scope="network"
    )
    dataset = load(DataSpec("cifar10", root=data_root))
    base = cifar_resnet()
    base.load_state_dict(load_file(WEIGHTS))
    whole = evaluate(base, dataset, "report")[1]
    print(f"{'option':<28}{'MACs':>12}{'old norms':>11}{'new norms':>11}{'kept':>8}")
    print(f"{'regular (the trained base)':<28}{space.cost(space.table.base).macs:>12,}{whole:>11.2%}{'':>11}{1:>8.1%}")
    generator = torch.Generator().manual_seed(0)
    batches = dataset.loader("train").batches(BATCH, generator, Augment(flip=True, crop=4, cutout=0))
    images = [batch for batch, _ in itertools.islice(batches, BATCHES)]
    for operator in space.table.dimensions[-1].options[1:]:
        architecture = space.table.from_values({**space.describe(space.table.base), "conv.network": operator})
        heirs = inherit(base, space.table, architecture), inherit(base, space.table, architecture, images)
        old, new = (evaluate(heir, dataset, "report")[1] for heir in heirs)
        macs = space.cost(architecture).macs
        print(f"{operator:<28}{macs:>12,}{old:>11.2%}{new:>11.2%}{new / whole:>8.1%}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
