"""The doctor, on this installation and on broken ones."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from bsconv_nas import doctor
from bsconv_nas.doctor import Finding, examine

SCRIPT = Path(sys.executable).with_name("bsconv-nas")


def found(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the doctor asks fresh interpreters; they answer at once that all is well."""
    codes: list[str] = []
    monkeypatch.setattr(doctor, "_run", lambda code: (codes.append(code) is None, "fine"))
    monkeypatch.setattr(
        doctor, "_interpret", lambda code, **_: CompletedProcess(code, 0, "capability:none\nerror 0\n", "")
    )
    return codes


def test_this_installation_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BSCONV_NAS_DATA", raising=False)
    findings = list(examine())
    assert [finding for finding in findings if not finding.well and finding.name != "disk"] == []
    version = importlib.metadata.version
    assert found(findings, "torch").found == version("torch")
    assert found(findings, "optuna").found == version("optuna")
    pair = found(findings, "torch + torchvision").found.split()
    assert [text.partition("+")[0] for text in pair] == [version("torch"), version("torchvision")]
    assert found(findings, "ray tune").found == version("ray")
    assert "CPU threads" in found(findings, "devices").found
    assert found(findings, "CPU instructions").found.startswith(f"{torch.backends.cpu.get_cpu_capability()}; convolut")
    assert found(findings, "disk").found.endswith("GiB free here")
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {"python", "extras", "chrome", "data root", "pydantic", "jinja2"} <= set(names)


def test_a_broken_pair_is_recognised(tmp_path: Path) -> None:
    """A CPU-only torch beside an index torchvision fails with this error when torchvision is imported."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([SCRIPT, "doctor"], capture_output=True, text=True, check=False, env=environment)
    lines = done.stdout.splitlines()
    bad = next(i for i, line in enumerate(lines) if line.startswith("BAD"))
    assert lines[bad : bad + 2] == [
        "BAD torch + torchvision: RuntimeError: operator torchvision::nms does not exist",
        "    torch and torchvision must be a matching pair: reinstall both in one pip install from one package index",
    ]
    assert sum(line.startswith("BAD") for line in lines) == 1
    assert (done.returncode, done.stderr) == (1, "")


def test_a_missing_package_is_named(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_moocore(package: str) -> str:
        if package == "moocore":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without_moocore)
    bad = [finding for finding in examine() if not finding.well]
    assert bad == [Finding("moocore", "missing", False, "pip install -e . in the checkout")]


def test_the_doctor_comes_where_nothing_is_installed() -> None:
    """It imports nothing that a broken installation may lack."""
    code = """
import sys
for name in ("torch", "ray", "optuna", "pandas", "numpy", "pydantic", "plotly", "moocore", "sklearn"):
    sys.modules[name] = None
from bsconv_nas.doctor import examine
from bsconv_nas import cli
print(next(iter(examine())).name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "python\n"


def test_data_roots(asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BSCONV_NAS_DATA", str(tmp_path))
    root = found(list(examine()), "data root")
    assert root == Finding("data root", f"{tmp_path}: no known set", False, "unpack a data set there")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "FashionMNIST/raw").mkdir(parents=True)
    root = found(list(examine()), "data root")
    assert (root.found, root.well) == (f"{tmp_path}: cifar10, fashion_mnist", True)
    monkeypatch.delenv("BSCONV_NAS_DATA")
    assert found(list(examine()), "data root").well


def test_python_disk_and_chrome(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    monkeypatch.setattr(doctor, "FREE_BYTES", 2**70)
    monkeypatch.setenv("PATH", "")
    findings = list(examine())
    assert [finding.name for finding in findings if not finding.well] == ["python", "disk"]
    assert found(findings, "chrome").found.startswith("none: needed only for pictures")


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (CompletedProcess("", 0, "onednn_verbose\nerror 1e-7\n", ""), "no fault found"),
        (CompletedProcess("", 0, "error 0.47\n", ""), "wrong gradients (by 47% of the largest)"),
        (CompletedProcess("", 0, "error nan\n", ""), "wrong gradients (by nan% of the largest)"),
        (CompletedProcess("", -6, "", "free(): invalid pointer"), "damage memory (SIGABRT)"),
        (None, "hang"),
    ],
)
def test_kernels_that_cannot_train_are_named(
    done: CompletedProcess[str] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has to be mended: no training of ours calls them."""
    answers = [done, CompletedProcess("", 0, "error 0\n", "")]
    monkeypatch.setattr(doctor, "_interpret", lambda code, **_: answers.pop(0))
    assert doctor._strided_pointwise() == Finding(
        "strided 1x1 convolutions",
        f"{said} with these instructions, no fault found with AVX2; "
        "training avoids what oneDNN gets wrong (its issue 6035)",
    )


@pytest.mark.parametrize("code", [1, -9, -40, 0])
def test_kernels_that_could_not_be_tried_are_not_called_well(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_interpret", lambda *_, **__: CompletedProcess("", code, "", "ImportError: no\n"))
    finding = doctor._strided_pointwise()
    assert (finding.found, finding.well) == ("could not be tried: ImportError: no", False)


def test_the_instructions_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    finding = doctor._instructions()
    assert finding.found.startswith(("DEFAULT; convolutions: ", "NO AVX; convolutions: "))
    assert "AVX" not in finding.found.partition(";")[2]


def test_what_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT", 0.1)
    assert doctor._run("import time; time.sleep(60)") == (False, "no answer in 0 s")
    monkeypatch.setattr(doctor, "TIMEOUT", 30.0)
    assert doctor._run("print(1); print(2)") == (True, "2")
    assert doctor._run("raise ValueError('no')") == (False, "ValueError: no")
