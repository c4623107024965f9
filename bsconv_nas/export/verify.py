"""Does an exported folder answer like the network it came from? Asked in a process that cannot import this package."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bsconv_nas.errors import ExportError
from bsconv_nas.export import clean_process
from bsconv_nas.export.probe import disturb, images, spread

__all__ = ["MODEL_FILE", "WEIGHTS_FILE", "save_state", "verify"]

MODEL_FILE = "model.py"
WEIGHTS_FILE = "weights.safetensors"
TOLERANCE = 1e-5
LEAST_SPREAD = 0.1
SEED = 0


def verify(folder: Path, model: nn.Module, input_size: Sequence[int]) -> float:
    """Return the largest relative difference max|a - b| / max|b| between an exported folder's outputs and `model`'s.

    Both answer to the same random images in evaluation mode, once with the exported weights and once with random ones.
    The answers of the random weights must differ between images: see `bsconv_nas.export.probe`.

    Args:
        folder: holds model.py and weights.safetensors.
        model: the network that was exported; it is not changed.
        input_size: (C, H, W).

    Raises:
        ExportError: other weights, an exported file that fails, or a difference above 1e-5.
    """
    original = copy.deepcopy(model).cpu().eval()
    _check_weights(folder, original)
    generator = torch.Generator().manual_seed(SEED)
    x = images(input_size, generator)
    expected, states = {"exported": _answer(original, x)}, {"exported": copy.deepcopy(original.state_dict())}
    disturb(original, x, generator)
    expected["random"], states["random"] = _answer(original, x), original.state_dict()
    _check_spread(expected["random"])
    answers = _ask(folder, x, states)
    return max(_difference(answers[state], expected[state], folder) for state in expected)


def save_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict; each tensor is copied to memory of its own, as safetensors wants it."""
    save_file({key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}, path)


def _check_weights(folder: Path, model: nn.Module) -> None:
    """Refuse a weights file that does not hold the model's state, to the bit."""
    path = folder / WEIGHTS_FILE
    try:
        held = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"An exported folder must hold readable weights, but {path}: {error}; export again."
        ) from None
    state = model.state_dict()
    if odd := sorted(held.keys() ^ state.keys()):
        raise ExportError(f"{path} must hold the network's state, but only one of them has {odd[0]!r}: export again.")
    for name, value in state.items():
        if held[name].dtype != value.dtype or not torch.equal(held[name], value):
            raise ExportError(f"{path} must hold the network's state, but differs in {name!r}: export again.")


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        answer = model(x)
    if not isinstance(answer, Tensor):
        raise ExportError(
            f"An exported network must return one tensor, but {type(model).__name__} returned "
            f"{type(answer).__name__}: wrap it in a module that picks one."
        )
    return answer


def _check_spread(answer: Tensor) -> None:
    found = spread(answer)
    if not found > LEAST_SPREAD:
        raise ExportError(
            f"Outputs must differ between images by more than {LEAST_SPREAD} of their size to verify an export, but "
            f"those of random weights differ by {found:.2g}: does the network look at its input?"
        )


def _ask(folder: Path, x: Tensor, states: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the answers of the folder's model.py with each state, from a clean process."""
    if not (folder / MODEL_FILE).is_file():
        raise ExportError(f"An exported folder must hold {MODEL_FILE}, but {folder} does not: export again.")
    with tempfile.TemporaryDirectory(prefix="bsconv_nas-verify-") as name:
        place = Path(name)
        shutil.copy(folder / MODEL_FILE, place)
        save_file({"x": x, "threads": torch.tensor(torch.get_num_threads())}, place / "questions.safetensors")
        (place / "states").mkdir()
        for state, tensors in states.items():
            save_state(tensors, place / "states" / f"{state}.safetensors")
        command = [sys.executable, "-I", str(clean_process.__file__)]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].strip().rstrip(".")
            raise ExportError(f"{folder / MODEL_FILE} must run where only torch is, but: {reason}; export again.")
        return load_file(place / "answers.safetensors")


def _difference(answer: Tensor, expected: Tensor, folder: Path) -> float:
    if answer.shape != expected.shape:
        shapes = f"{tuple(answer.shape)} instead of {tuple(expected.shape)}"
        raise ExportError(f"{folder / MODEL_FILE} must answer like the network, but returns {shapes}: export again.")
    size = expected.abs().max().item()
    difference = (answer - expected).abs().max().item() / (size or 1.0)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"{folder / MODEL_FILE} must answer like the network within {TOLERANCE:.0e}, but differs by "
            f"{difference:.2g} of the largest output: export again."
        )
    return difference
