"""Checkpoints: safetensors and JSON, on any storage that `pyarrow.fs` takes; no pickle.

A checkpoint is a folder with one weights file named by its digest, and `checkpoint.json` that names it. The JSON is
moved into place last, so a reader sees the old checkpoint or the new one, whenever the writer dies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from bsconv_nas.errors import RecordError
from bsconv_nas.search.storage import is_file, locate, read, write

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["has_checkpoint", "load_checkpoint", "prune_checkpoints", "save_checkpoint"]

_INDEX = "checkpoint.json"


def save_checkpoint(folder: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `folder` at once.

    Args:
        folder: a path, or a URI such as `s3://bucket/run/checkpoints/7`.
        tensors: on any device and in any memory format; they are copied.
        meta: JSON values.
    """
    import torch
    from safetensors.torch import save

    layout = torch.contiguous_format
    data = save({key: value.detach().to("cpu", copy=True, memory_format=layout) for key, value in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    weights = f"{digest[:16]}.safetensors"
    system, place = locate(folder)
    system.create_dir(place)
    write(system, f"{place}/{weights}", data)
    index = json.dumps({"weights": weights, "sha256": digest, "meta": dict(meta)}, indent=1).encode()
    write(system, f"{place}/{_INDEX}.part", index)
    system.move(f"{place}/{_INDEX}.part", f"{place}/{_INDEX}")
    for info in system.get_file_info(fs.FileSelector(place)):
        if info.base_name not in (weights, _INDEX):
            system.delete_file(info.path)


def load_checkpoint(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the meta data of the checkpoint in `folder`.

    Raises:
        RecordError: none is there, or it is damaged.
    """
    from safetensors.torch import load

    system, place = locate(folder)
    try:
        index = json.loads(_read(system, f"{place}/{_INDEX}"))
        data = _read(system, f"{place}/{index['weights']}")
        meta = dict(index["meta"])
        whole = hashlib.sha256(data).hexdigest() == index["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{_INDEX!r} in {str(folder)!r} must be what this version writes, but: {error}.") from None
    if not whole:
        raise RecordError(f"{index['weights']!r} in {str(folder)!r} must have the digest of its index: it is damaged.")
    return load(data), meta


def has_checkpoint(folder: str | Path) -> bool:
    """Return whether a whole checkpoint lies in `folder`."""
    system, place = locate(folder)
    return is_file(system, f"{place}/{_INDEX}")


def prune_checkpoints(folder: str | Path, keep: Collection[str]) -> None:
    """Delete the checkpoints in `folder`, one folder each, but those named in `keep`."""
    system, place = locate(folder)
    for info in system.get_file_info(fs.FileSelector(place, allow_not_found=True)):
        if info.type == fs.FileType.Directory and info.base_name not in keep:
            system.delete_dir(info.path)


def _read(system: fs.FileSystem, path: str) -> bytes:
    if not is_file(system, path):
        place, _, name = path.rpartition("/")
        raise RecordError(f"A checkpoint must lie in {place!r}, but {name!r} is missing there.")
    return read(system, path)
