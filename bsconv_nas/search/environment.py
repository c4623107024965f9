"""Where a run took place: versions, device and commit; no host names and no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import bsconv_nas

__all__ = ["environment"]

_PACKAGES = ("bsconv_nas", "torch", "torchvision", "ray", "optuna", "numpy")


def environment() -> dict[str, Any]:
    """Return the environment of this process as JSON values; torch is asked for its device only if it is loaded."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": _commit(Path(bsconv_nas.__file__).parents[1]),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return _processor()


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model, which `platform.processor` leaves empty on most Linux systems."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit(root: Path) -> str | None:
    """Return the commit of the checkout in `root`, `-dirty` behind it if it was changed; None for an installation."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
