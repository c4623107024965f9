"""Options and marks that hold for the whole suite."""

from __future__ import annotations

import pytest


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
    if report.skipped and item.config.getoption("--strict-tools"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skips, which --strict-tools forbids: {report.longrepr}"
    return report
