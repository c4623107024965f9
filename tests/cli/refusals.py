"""What is wrong with a command's input, and the one sentence that must say so."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(sys.executable).with_name("bsconv-nas")
SEARCH = "search experiments/tiny.toml"
FILE = "experiments/tiny.toml"
SPACE_FILE = "spaces/resnet8.toml"


@dataclass(frozen=True)
class Done:
    """What a command left: exit code and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Row:
    """A command, what is wrong with its input, and the sentence that must say so; `...` stands for any text."""

    command: str
    input: Callable[[], None]
    sentence: str
    process: bool = False

    @property
    def id(self) -> str:
        return re.sub(r"\W+", "-", self.sentence)[:50]


def nothing() -> None:
    """The input is what lies there."""


def write(name: str, text: str) -> Callable[[], None]:
    def change() -> None:
        Path(name).write_text(text)

    return change


def edit(name: str, old: str, new: str) -> Callable[[], None]:
    def change() -> None:
        text = Path(name).read_text()
        assert old in text
        Path(name).write_text(text.replace(old, new))

    return change


def base(factory: str) -> Callable[[], None]:
    return write("spaces/resnet8.toml", f'[base]\nfactory = "{factory}"\n')


def choose(text: str) -> Callable[[], None]:
    return edit("spaces/resnet8.toml", "widths = [0.5, 1.0]", text)


def event(text: str) -> Callable[[], None]:
    def append() -> None:
        with Path("runs/tiny/trials.jsonl").open("a") as file:
            file.write(text + "\n")

    return append


def expect_sentence(stderr: str, pattern: str = "...") -> None:
    """Require one line `error: ...` on stderr, one sentence that ends in one full stop and fits `pattern`."""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith(".\n")
    assert not stderr.endswith("..\n")
    assert not re.search(r"[.!?] [A-Z]", stderr), "several sentences"
    assert "Traceback" not in stderr
    expected = ".*".join(map(re.escape, pattern.split("...")))
    assert re.fullmatch(expected, stderr.removeprefix("error: ").rstrip("\n")), stderr


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return all files and folders below `folder` but Python's own."""
    paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def check_refused(row: Row, place: Path, run: Callable[[str], Done]) -> None:
    """Require that a command refuses its input by the row's sentence and leaves everything as it was."""
    row.input()
    before = listing(place)
    done = run(row.command)
    expect_sentence(done.err, row.sentence)
    assert (done.code, done.out) == (2, "")
    assert listing(place) == before
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def real_command(command: str) -> Done:
    """Run a command line in a process of its own."""
    done = subprocess.run([SCRIPT, *command.split()], capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)
