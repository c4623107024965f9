"""A process that dies of a signal leaves behind which one, and where it was."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bsconv_nas.search.fatal_signals import fatal_signal

DYING = """
import os, signal, sys
from bsconv_nas.search.fatal_signals import FatalSignals

def convolve():
    os.kill(os.getpid(), int(sys.argv[1]))

signals = FatalSignals()
for folder in sys.argv[2:]:
    signals.write_into(folder)
convolve()
"""


def die(number: int, *folders: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, str(int(number)), *map(str, folders)], stderr=subprocess.PIPE)
    assert done.returncode == -number


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE], ids=lambda n: n.name
)
def test_a_fault_of_its_own_is_named_with_its_place(number: signal.Signals, tmp_path: Path) -> None:
    die(number, tmp_path)
    assert fatal_signal(tmp_path) == f"{number.name} in convolve (<string>, line 6)"


def test_only_the_last_folder_is_written_into(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    die(signal.SIGABRT, *folders)
    assert [bool(fatal_signal(folder)) for folder in folders] == [False, True]


def test_a_kill_from_outside_leaves_nothing(tmp_path: Path) -> None:
    die(signal.SIGKILL, tmp_path)
    assert fatal_signal(tmp_path) == ""
