"""The weights to keep of a training's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["kept_weights"]


def kept_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict that validation accuracy was measured with: the EMA's if there is one, else the model's.

    Args:
        tensors: as `Trainer.state` returns them.
    """
    averaged = "ema.module."
    prefix = averaged if any(name.startswith(averaged) for name in tensors) else "model."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
