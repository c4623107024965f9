"""The trained base that every candidate of a run starts from: checked when the run begins, kept in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bsconv_nas.search.experiment import Train
from bsconv_nas.space.base import Base

if TYPE_CHECKING:
    from torch import Tensor

    from bsconv_nas.api import SearchSpace

__all__ = ["keep_weights", "kept_base", "read_base"]

_FILE = "base.safetensors"


def read_base(train: Train, space: SearchSpace) -> dict[str, Tensor] | None:
    """Return the weights of the trained base that `[train]` names, or None where candidates start at random.

    Raises:
        RecordError: no such file, or weights of another network.
    """
    from bsconv_nas.network.build import instantiate
    from bsconv_nas.training.weight_file import load_weights, matching, read_weights

    if train.checkpoint is None:
        return None
    assert isinstance(space.base, Base)  # a file's space has one
    model = instantiate(space.base)
    load_weights(model, matching(read_weights(train.checkpoint), model.state_dict()), train.checkpoint)
    return dict(model.state_dict())


def keep_weights(folder: Path, weights: Mapping[str, Tensor] | None) -> None:
    """Put the trained base into a run folder, so that the run can go on without the file that it came from."""
    from safetensors.torch import save_file

    if weights is not None:
        save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, folder / _FILE)


def kept_base(folder: Path) -> dict[str, Tensor] | None:
    """Return the trained base of a run folder, or None if it has none."""
    from bsconv_nas.training.weight_file import read_weights

    return read_weights(folder / _FILE) if (folder / _FILE).is_file() else None
