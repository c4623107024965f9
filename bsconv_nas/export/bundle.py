"""The exported folder: model.py, weights.safetensors and card.json, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bsconv_nas.errors import ExportError
from bsconv_nas.export.source import write_source
from bsconv_nas.export.verify import MODEL_FILE, WEIGHTS_FILE, save_state, verify

__all__ = ["CARD_FILE", "FORMAT", "write"]

CARD_FILE = "card.json"
FORMAT = "bsconv_nas export"
FORMAT_VERSION = 1
FACTS = {"files", "format", "format_version", "input_size", "torch", "verified"}
# What using an export leaves in its folder.
BY_PRODUCTS = {"__pycache__"}


def write(model: nn.Module, out: Path, card: Mapping[str, Any], input_size: Sequence[int]) -> Path:
    """Write `model` as plain PyTorch into the folder `out` and return it; an earlier export there is replaced.

    The folder is made beside `out`, verified there in a clean process, and renamed.

    Args:
        model: the network with its trained weights; it is not changed.
        out: the folder; it must not exist, be empty, or hold an earlier export.
        card: what card.json says beside `FACTS` (`files` holds sha256 sums); a `title` heads model.py too.
        input_size: (C, H, W).

    Raises:
        ExportError: a network that cannot be written or answers otherwise, or a folder with other things in it.
    """
    out = Path(out).absolute()
    _check_card(card)
    _check_leaves(card)
    _check_replaceable(out)
    preparation = str(card.get("input", {}).get("preparation", ""))
    source = write_source(model, str(card.get("title", "")), input_size, preparation)
    with _whole(out) as folder:
        (folder / MODEL_FILE).write_text(source, encoding="utf-8")
        save_state(model.state_dict(), folder / WEIGHTS_FILE)
        difference = verify(folder, model, input_size)
        facts = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "input_size": list(input_size),
            "files": {path.name: _sha256(path) for path in folder.iterdir()},
            "torch": torch.__version__,
            "verified": {"largest_relative_difference": difference},
        }
        (folder / CARD_FILE).write_text(_json({**card, **facts}), encoding="utf-8")
    return out


def _check_leaves(card: Mapping[str, Any]) -> None:
    """Refuse a base with modules that tracing could not look into: their code cannot be written out."""
    if leaves := card.get("base", {}).get("leaves"):
        raise ExportError(
            f"An export writes the code of every module, but base.leaves keeps {leaves[0]!r} whole: use Run.model, "
            "which returns the trained network itself, or a base that torch.fx can trace."
        )


def _check_card(card: Mapping[str, Any]) -> None:
    if taken := sorted(card.keys() & FACTS):
        shown = f"{taken[0]!r} is written by the export, but was given as {card[taken[0]]!r}"
        raise ExportError(f"A card's {shown}: rename it.")
    try:
        _json(card)
    except (TypeError, ValueError) as error:
        raise ExportError(f"A card must hold what JSON can (text, numbers, lists, tables), but: {error}.") from None


def _json(card: Mapping[str, Any]) -> str:
    return json.dumps(card, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_replaceable(out: Path) -> None:
    """Refuse what is neither absent, empty nor an export with nothing added."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"An export must go into a folder, but {out} is a file: choose another name.")
    present = {path.name for path in out.iterdir()} - BY_PRODUCTS
    foreign = sorted(present - _exported_files(out))
    if foreign:
        raise ExportError(
            f"An export must go into a new folder or replace an earlier export, but {out} holds {foreign[0]!r}: "
            "choose another folder or move it away."
        )


def _exported_files(out: Path) -> set[str]:
    """Return the names of the files of the export in `out`, or nothing if it is none of ours."""
    try:
        card = json.loads((out / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    ours = isinstance(card, dict) and card.get("format") == FORMAT
    return {CARD_FILE, *card.get("files", {})} if ours else set()


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `out` that takes its place in the end, or vanishes with whatever interrupts it."""
    if not out.parent.is_dir():
        raise ExportError(
            f"An export is written into an existing folder, but there is no {str(out.parent)!r}: make it."
        )
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    folder, replaced = (out.with_name(f".{out.name}-{token}-{role}") for role in ("new", "old"))
    try:
        folder.mkdir()
        yield folder
        if out.exists():
            out.rename(replaced)
        folder.rename(out)
    finally:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
