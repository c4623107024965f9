"""Weights from a file into a network: safetensors, or torch's own format without running what it may hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsconv_nas.errors import RecordError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_weights", "matching", "read_weights"]

SUFFIXES = (".safetensors", ".pt", ".pth")
ENTRIES = ("state_dict", "model_state_dict", "model")  # under which training scripts keep the state dict
# Prefixes of DistributedDataParallel and torch.compile, also one around the other.
WRAPPERS = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors`, `.pt` or `.pth` file by name, on the CPU.

    Raises:
        RecordError: no such file, another kind of file, or one that holds more than tensors or is damaged.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise RecordError(f"Weights must lie in a {', '.join(SUFFIXES)} file, but got {str(path)!r}: convert it.")
    if not path.is_file():
        raise RecordError(f"No file {str(path)!r}: check the path of the weights.")
    return _read(path)


def _read(path: Path) -> dict[str, Tensor]:
    import torch  # here: what is no file is refused at once
    from safetensors.torch import load_file

    try:
        return (
            load_file(path) if path.suffix == SUFFIXES[0] else _state_dict(torch.load(path, "cpu", weights_only=True))
        )
    except Exception:  # the readers raise whatever a damaged file leads them to
        raise RecordError(
            f"{str(path)!r} must hold a state dict and nothing but tensors, but holds something else or is damaged: "
            "save model.state_dict() there."
        ) from None


def _state_dict(held: Any) -> dict[str, Tensor]:
    """Return the state dict that torch's file is, or has in a usual entry."""
    import torch

    for entry in ENTRIES:
        if isinstance(held, Mapping) and isinstance(held.get(entry), Mapping):
            held = held[entry]
    named = isinstance(held, Mapping) and all(isinstance(name, str) for name in held)
    if not named or not all(isinstance(tensor, torch.Tensor) for tensor in held.values()):
        raise ValueError("no state dict")
    return dict(held)


def matching(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return `tensors` under the names of the bare network: a checkpoint of ours or a wrapper has prefixes before them.

    Args:
        tensors: from a file.
        names: of the network's state dict.
    """
    from bsconv_nas.training.weights import kept_weights

    stripped = ({n.removeprefix(prefix): t for n, t in tensors.items()} for prefix in WRAPPERS)
    forms = (dict(tensors), kept_weights(tensors), *stripped)
    return max(forms, key=lambda form: len(form.keys() & set(names)))


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a whole state dict into `model`.

    Args:
        model: the network.
        tensors: as `matching` returns them.
        where: the file's name, for the message.

    Raises:
        RecordError: it belongs to another network: the first name that is missing or unexpected, or of another shape.
    """
    own = model.state_dict()
    if odd := next((name for name, value in own.items() if not hasattr(value, "shape")), None):
        raise RecordError(
            f"What {type(model).__name__!r} saves must be tensors alone, but {odd!r} is {type(own[odd]).__name__}: "
            "take its get_extra_state out."
        )
    for name, tensor in tensors.items():
        if flaw := _flaw(tensor):
            raise RecordError(
                f"Weights in {where!r} must be dense tensors with values, but {name!r} is {flaw}: save the plain "
                "weights."
            )
    if broken := next((n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None):
        raise RecordError(f"Weights in {where!r} must be finite, but {broken!r} is not: take another checkpoint.")
    if wrong := _first_difference(own, tensors):
        kind, advice = type(model).__name__, _other_classes(own, tensors) or "name the network they were trained in"
        raise RecordError(f"Weights in {where!r} must be those of this {kind!r}, but {wrong}: {advice}.")
    model.load_state_dict(dict(tensors))


def _flaw(tensor: Tensor) -> str:
    """Return what keeps a tensor from being copied into a weight, or "" if nothing does."""
    import torch

    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    return "on the meta device" if tensor.is_meta else ""


def _first_difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    for name, tensor in own.items():
        counts = name.endswith("num_batches_tracked")
        if name not in given and not counts:  # older files lack these counters
            return f"{name!r} is missing there"
        if name in given and given[name].shape != tensor.shape:
            return f"{name!r} has shape {tuple(given[name].shape)} there and {tuple(tensor.shape)} here"
        if name in given and given[name].is_floating_point() != tensor.is_floating_point() and not counts:
            return f"{name!r} is {given[name].dtype} there and {tensor.dtype} here"
    return next((f"{name!r} is unexpected there" for name in given if name not in own), "")


def _other_classes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Return what to do where nothing but the classifier's outputs differ, or ""."""
    differ = [(own[n], given[n]) for n in own.keys() & given.keys() if own[n].shape != given[n].shape]
    sizes = {(len(a), len(b)) for a, b in differ if a.dim() and b.dim() and a.shape[1:] == b.shape[1:]}
    if own.keys() != given.keys() or len(sizes) != 1 or not 1 <= len(differ) <= 2:
        return ""
    ((here, there),) = sizes
    return f"they are for {there} classes and the network has {here}: set its classes to {there}, or take others"
