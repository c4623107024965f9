"""Options and marks that hold for the whole suite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is not a slow test, and what fails today has to fail tomorrow; --hypothesis-profile=default explores.
settings.register_profile("any machine", deadline=None, derandomize=True)
settings.load_profile("any machine")

SPACE = """
[base]
factory = "bsconv_nas.network.models:cifar_resnet"
arguments = { depth = 8 }
input_size = [1, 8, 8]

[choices]
widths = [0.5, 1.0]
"""
EXPERIMENT = """
space = "../spaces/resnet8.toml"

[data]
name = "digits"
root = "../data"
limit = 300

[recipe]
epochs = 2
batch_size = 32
ema = 0.9

[search]
sampler = "random"
trials = 4
baselines = 2
objectives = [{ name = "val_accuracy", direction = "max" }, { name = "macs", direction = "min" }]

[budget]
macs = "400K"

[resources]
workers = 2

[retrain]
seeds = 2
members = 1
recipe = { epochs = 3 }
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with an experiment in `experiments/`, its space in `spaces/` and one small real run on digits.

    The run lies in `runs/tiny`: 2 baselines and 4 searched networks. Tests read it; who changes it takes `own_project`.
    """
    import bsconv_nas as nas

    project = tmp_path_factory.mktemp("project")
    for name, text in {"spaces/resnet8.toml": SPACE, "experiments/tiny.toml": EXPERIMENT}.items():
        (project / name).parent.mkdir()
        (project / name).write_text(text)
    run = nas.search(nas.Experiment.load(project / "experiments/tiny.toml"), project / "runs/tiny")
    assert not {number: trial.cause for number, trial in run.record.trials.items() if trial.state == "failed"}
    return project


@pytest.fixture
def own_project(project: Path, tmp_path: Path) -> Path:
    """A copy of `project` at another place."""
    return shutil.copytree(project, tmp_path / "elsewhere")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-tools", action="store_true", help="fail instead of skipping where a tool is missing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave GPU tests out where there is no GPU: a device is no tool that could be installed."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return _strict(item, report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _strict(collector, report)


def _strict(node, report):
    """Fail what skips under --strict-tools, be it a test or a whole file."""
    if report.skipped and not hasattr(report, "wasxfail") and node.config.getoption("--strict-tools"):
        report.outcome = "failed"
        report.longrepr = f"{node.nodeid} skips, which --strict-tools forbids: {report.longrepr}"
    return report
