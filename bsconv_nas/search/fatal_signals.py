"""Which signal a fault of its own killed a worker with: Ray tells of the death, not of the signal."""

from __future__ import annotations

import contextlib
import faulthandler
import re
from pathlib import Path
from typing import IO

__all__ = ["FatalSignals", "fatal_signal"]

FILE = "fatal_signal.txt"
# How CPython's faulthandler calls them.
NAMES = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
    "Floating": "SIGFPE",  # with a hyphen or without, by version
}


class FatalSignals:
    """Lets this process write, with its last breath, which signal ended it, and where in the Python code."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def write_into(self, folder: str | Path) -> None:
        """Write into `folder` from now on, and no longer into the one before."""
        file = (Path(folder) / FILE).open("w")
        faulthandler.enable(file, all_threads=False)
        if self._file is not None:
            self._file.close()
        self._file = file


def fatal_signal(folder: str | Path) -> str:
    """Return the signal and the line of code with which a process that wrote into `folder` died.

    It is empty if there is none: no process can catch SIGKILL, and a file of another machine is not seen.

    >>> fatal_signal("/nowhere")
    ''
    """
    text = ""
    with contextlib.suppress(OSError):
        text = (Path(folder) / FILE).read_text(errors="replace")
    name = next((name for words, name in NAMES.items() if f": {words}" in text.partition("\n")[0]), "")
    frame = re.search(r'^  File "(?:.*[/\\])?(.+)", line (\d+) in (.+)$', text, re.MULTILINE)
    return f"{name} in {frame[3]} ({frame[1]}, line {frame[2]})" if name and frame else name
