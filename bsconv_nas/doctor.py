"""What an installation needs to work, examined one thing at a time; nothing here changes anything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bsconv_nas.training.spec import ROOT_VARIABLE, SETS

__all__ = ["Finding", "examine"]

PYTHONS = ((3, 11), (3, 12))
BROWSERS = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome")
MISMATCH = "torchvision::"
FREE_BYTES = 2 * 2**30
TIMEOUT = 120.0  # seconds for a fresh import of torchvision on a slow disk
EXACT = 1e-4  # relative error of a gradient that is not damaged
DAMAGED = (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV)
# Lets glibc stop a process at the first damage to its heap.
HEAP_CHECK = {
    "LD_PRELOAD": " ".join(filter(None, ("libc_malloc_debug.so.0", os.environ.get("LD_PRELOAD")))),
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do where it is not `well`."""

    name: str
    found: str
    well: bool = True
    mend: str = ""


def examine() -> Iterator[Finding]:
    """Yield the findings, the quick ones first; what may break on import is tried in a process of its own."""
    yield Finding("python", platform.python_version(), sys.version_info[:2] in PYTHONS, "use Python 3.11 or 3.12")
    yield from _packages()
    yield from (_chrome(), _disk(), *_data())
    for probe in (_pair, _devices, _instructions, _strided_pointwise, _ray):
        yield probe()


def _packages() -> Iterator[Finding]:
    """Look for what the installation itself says it requires."""
    try:
        requirements = importlib.metadata.requires("bsconv_nas") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    names = {re.split(r"[^\w.-]", text)[0]: "extra" in text for text in ["bsconv_nas", *requirements]}
    for name in (name for name, optional in names.items() if not optional):
        version = _version(name)
        yield Finding(name, version or "missing", version is not None, "pip install -e . in the checkout")
    found = [f"{name} {version}" for name, optional in names.items() if optional and (version := _version(name))]
    yield Finding("extras", ", ".join(found) or "none")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(code: str) -> tuple[bool, str]:
    """Return whether a fresh interpreter runs `code`, and the last line that it printed."""
    done = _interpret(code)
    if done is None:
        return False, f"no answer in {TIMEOUT:.0f} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else ""


def _interpret(code: str, **variables: str) -> subprocess.CompletedProcess[str] | None:
    """Return how a fresh interpreter ran `code`, with additional environment variables; None if it did not end."""
    command, environment = [sys.executable, "-c", code], {**os.environ, **variables}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return None


def _pair() -> Finding:
    """Import both: a CPU-only torch beside an index torchvision fails with `operator torchvision::nms ...`."""
    well, said = _run("import torch, torchvision; print(torch.__version__, torchvision.__version__)")
    mismatch = "torch and torchvision must be a matching pair: reinstall both in one pip install from one package index"
    mend = mismatch if MISMATCH in said else "reinstall both in one pip install from one package index"
    return Finding("torch + torchvision", said, well, mend)


def _devices() -> Finding:
    code = (
        "import torch; names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())];"
        "print(f'{torch.get_num_threads()} CPU threads, ' + (', '.join(names) or 'no GPU'))"
    )
    well, said = _run(code)
    return Finding("devices", said, well, "torch does not import")


def _instructions() -> Finding:
    """Ask both libraries that compute on CPUs: torch's own kernels and oneDNN, which convolves."""
    code = (
        "import torch; torch.conv2d(torch.ones(64, 16, 8, 8), torch.ones(16, 16, 3, 3));"
        "print('\\ncapability:' + torch.backends.cpu.get_cpu_capability())"
    )
    done = _interpret(code, ONEDNN_VERBOSE="1")
    own, convolution = (re.search(f"{key}:(.*)", done.stdout if done else "") for key in ("capability", "cpu,isa"))
    if own is None:
        return Finding("CPU instructions", "unknown", False, "torch does not import")
    return Finding("CPU instructions", f"{own[1]}; convolutions: {convolution[1] if convolution else 'unknown'}")


def _strided_pointwise() -> Finding:
    """Compute, unguarded, what `bsconv_nas.training.guard` is there for: as this CPU does, and as many others do."""
    name, seen = "strided 1x1 convolutions", []
    for kind, variables in {"these instructions": {}, "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}.items():
        done = _interpret(
            "from bsconv_nas.training.guard import provoke; print('error', provoke())", **HEAP_CHECK, **variables
        )
        fault = _fault(done)
        if fault is None:
            said = (done.stderr.strip().splitlines() if done else []) or ["no word"]
            return Finding(name, f"could not be tried: {said[-1]}", False, "reinstall torch")
        seen.append(f"{fault} with {kind}")
    return Finding(name, f"{', '.join(seen)}; training avoids what oneDNN gets wrong (its issue 6035)")


def _fault(done: subprocess.CompletedProcess[str] | None) -> str | None:
    """Return what a run of `provoke` showed; None where it did not come to that."""
    if done is None:
        return "hang"
    if -done.returncode in DAMAGED:
        return f"damage memory ({signal.Signals(-done.returncode).name})"
    printed = re.search(r"^error (.+)$", done.stdout, re.MULTILINE)
    if printed is None:
        return None
    error = float(printed[1])
    return "no fault found" if error <= EXACT else f"wrong gradients (by {error:.0%} of the largest)"


def _ray() -> Finding:
    well, said = _run("import ray; from ray import tune; print(ray.__version__)")
    return Finding("ray tune", said, well, "pip install 'ray[tune]'")


def _chrome() -> Finding:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return Finding("chrome", Path(found).name if found else "none: needed only for pictures (extra images) and tests")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding("disk", f"{free / 2**30:.1f} GiB free here", free > FREE_BYTES, "free at least 2 GiB")


def _data() -> Iterator[Finding]:
    root = os.environ.get(ROOT_VARIABLE)
    if root is None:
        yield Finding("data root", f"{ROOT_VARIABLE} is not set: digits only, or data.root in the experiment")
        return
    there = [name for name, kind in SETS.items() if kind.folder and (Path(root) / kind.folder).is_dir()]
    yield Finding("data root", f"{root}: {', '.join(there) or 'no known set'}", bool(there), "unpack a data set there")
