"""What the command line refuses of run folders, exports and reports, a row each, and of whole installations."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import (
    SEARCH,
    Done,
    Row,
    check_refused,
    edit,
    event,
    expect_sentence,
    listing,
    nothing,
    real_command,
    write,
)

import bsconv_nas as nas
from bsconv_nas import cli
from bsconv_nas.errors import SpaceError

TABLE = [
    # run folders
    Row("status runs/nothing", nothing, "No run folder 'runs/nothing': check the path."),
    Row(
        "status spaces",
        nothing,
        "A run folder must hold 'experiment.json', but 'spaces' does not: it is no run or damaged.",
    ),
    Row(
        f"{SEARCH} --run runs/tiny",
        nothing,
        "A run folder must be new or empty, but 'runs/tiny' holds a run: choose another --run.",
    ),
    Row(
        f"{SEARCH} --run runs/tiny --set space=none.toml",  # first what is known first
        nothing,
        "A run folder must be new or empty, but 'runs/tiny' holds a run: choose another --run.",
    ),
    Row(
        f"{SEARCH} --run mine.py/new --set space=none.toml",
        nothing,
        "Folder '.../mine.py' must take a new run, but: Not a directory.",
    ),
    Row(
        f"{SEARCH} --run spaces",
        nothing,
        "A run folder must be new or empty, but 'spaces' holds 'resnet8.toml': choose another --run.",
    ),
    Row(
        "front runs/tiny",
        lambda: Path("runs/tiny/space.json").unlink(),
        "A run folder must hold 'space.json', but 'runs/tiny' does not: it is no run or damaged.",
    ),
    Row(
        "space show runs/tiny",
        write("runs/tiny/space.json", '{"base": '),
        "'runs/tiny/space.json' must be a JSON file, but: Expecting value: line 1 column 10 (char 9).",
    ),
    Row(
        "report runs/tiny",
        edit("runs/tiny/space.json", '"dimensions"', '"dimension"'),
        "'space.json' in run folder 'runs/tiny' must be what this version writes, but: 'dimensions'.",
    ),
    Row(
        "report runs/tiny",
        edit("runs/tiny/experiment.json", '"budget"', '"budgets"'),
        "In run folder 'runs/tiny': Unknown key 'budgets' in 'experiment.json': valid are ...; did you mean 'budget'.",
    ),
    Row(
        "status runs/tiny",
        event('{"schema":1,'),
        "Line ... of 'runs/tiny/trials.jsonl' is damaged: an event must be a JSON object, but: Expecting property name "
        "enclosed in double quotes: line 1 column 13 (char 12).",
    ),
    Row(
        "status runs/tiny",
        event('{"schema":2,"event":"note","what":"finished","detail":{},"time":1.0}'),
        "Line ... of 'runs/tiny/trials.jsonl' is damaged: An event must have schema 1, but got 2: read it with the "
        "version it names.",
        True,
    ),
    Row(
        "front runs/tiny",
        edit("runs/tiny/trials.jsonl", '"indices":[', '"indices":[9,'),
        "Trial 0 in run folder 'runs/tiny' must be a network of its 'space.json', but: An architecture of this space "
        "has ... indices below [...], but got [9, ...]: the folder is damaged.",
    ),
    Row(
        "front runs/tiny",
        edit("runs/tiny/trials.jsonl", '"params":', '"parms":'),
        "Trial 0 in run folder 'runs/tiny' must be a network of its 'space.json', but: it has no params: the folder is "
        "damaged.",
    ),
    Row(
        "resume runs/tiny",
        edit("runs/tiny/environment.json", '"fingerprint": "', '"fingerprint": "0'),
        "The data of run 'tiny' must be those it was searched with (0...), but 'digits' here has fingerprint ...: "
        "point data.root to them.",
    ),
    Row(
        "resume runs/tiny --trials 1",
        nothing,
        "--trials must be at least the 4 that were begun, but got 1.",
    ),
    Row(
        "resume runs/tiny --set search.seed=1",
        nothing,
        "Of a run, only the place of its data may change, by data.root=DIR, but got 'search.seed=1'.",
    ),
    Row(
        "retrain runs/tiny",
        write("runs/tiny/trials.jsonl", ""),
        "A run is retrained once a trial is complete, but this one has none: search on.",
    ),
    # exports and reports
    Row(
        "export runs/tiny --out new",
        write("runs/tiny/trials.jsonl", ""),
        "A network can be picked once a trial is complete, but this run has none: search on.",
    ),
    Row(
        "export runs/tiny --out new --pick zz",
        nothing,
        "A pick must be 'best', 'knee' or the first digits of one key, but 'zz' fits none; valid are ...",
    ),
    Row(
        "export runs/tiny --out new --pick=",
        nothing,
        "A pick must be 'best', 'knee' or the first digits of one key, but '' fits 6: ...",
    ),
    Row(
        "export runs/tiny --out spaces",
        nothing,
        "An export must go into a new folder or replace an earlier export, but .../spaces holds 'resnet8.toml': choose "
        "another folder or move it away.",
    ),
    Row("export runs/tiny --out mine.py", nothing, "An export must go into a folder, but .../mine.py is a file: ..."),
    Row(
        "report runs/tiny --out mine.py/r.html",
        nothing,
        "A report is written into an existing folder, but there is no 'mine.py': make it.",
    ),
    Row(
        "report runs/tiny --picture front.gif",
        nothing,
        "A picture must end in one of .pdf, .png, .svg, but got 'front.gif'.",
    ),
    Row(
        "report runs/tiny --picture pictures/front.svg",
        nothing,
        "A report is written into an existing folder, but there is no 'pictures': make it.",
    ),
    Row(
        "report runs/tiny --picture front.svg",
        write("runs/tiny/trials.jsonl", ""),
        "A picture of the front needs a trial, but run 'tiny' has none yet.",
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_bad_input_is_refused(row: Row, place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    check_refused(row, place, bsconv_nas)


@pytest.mark.parametrize("row", [row for row in TABLE if row.process], ids=lambda row: row.command.split()[0])
def test_bad_input_is_refused_by_the_real_command(row: Row, place: Path) -> None:
    check_refused(row, place, real_command)


SAID = "error: Bounds must rise.\n"


@pytest.mark.parametrize(
    "stderr",
    [
        "",
        "Bounds must rise.\n",
        "error: Bounds must rise\n",
        "error: Bounds must rise..\n",
        "error: Bounds must rise.\nBut fall.\n",
        "error: Bounds must rise. But they fall.\n",
        "error: Bounds must not rise.\n",
        'Traceback (most recent call last):\n  File "cli.py"\nerror: Bounds must rise.\n',
    ],
)
def test_expect_sentence_can_fail(stderr: str) -> None:
    expect_sentence(SAID, "Bounds must ...")
    with pytest.raises(AssertionError):
        expect_sentence(stderr, "Bounds must rise.")


@pytest.mark.parametrize(
    "done", [Done(1, "", SAID), Done(2, "out\n", SAID), Done(2, "", "error: Bounds must fall.\n"), Done(0, "", "")]
)
def test_check_refused_can_fail(done: Done, tmp_path: Path) -> None:
    row = Row("any", nothing, "Bounds must rise.")

    def leaving(command: str) -> Done:
        (tmp_path / command).mkdir()
        return Done(2, "", SAID)

    check_refused(row, tmp_path, lambda command: Done(2, "", SAID))
    for run in (lambda command: done, leaving):
        with pytest.raises(AssertionError):
            check_refused(row, tmp_path, run)


def test_a_second_driver_is_refused(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    before = listing(place)
    with nas.load_run("runs/tiny").store.lock():
        for command in ("resume runs/tiny --trials 9", "retrain runs/tiny"):
            done = bsconv_nas(command)
            expect_sentence(
                done.err, "A run must have one driver, but another process is driving 'runs/tiny': wait for its end."
            )
            assert done.code == 2
    assert listing(place) == before


def test_debug_shows_the_traceback(bsconv_nas: Callable[[str], Done], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("--debug space show none.toml", "space show none.toml --debug"):
        monkeypatch.setattr(sys, "argv", ["bsconv-nas", *command.split()])
        with pytest.raises(SpaceError, match=r"No file 'none.toml'"):
            cli.main()
    assert "--debug" in bsconv_nas("--help").out


def test_a_broken_installation_is_one_line(
    place: Path, bsconv_nas: Callable[[str], Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("bsconv_nas.search.")]:
        monkeypatch.delitem(sys.modules, name)
    done = bsconv_nas(SEARCH)
    expect_sentence(done.err, "The installation must be whole, but: ...optuna...; see bsconv-nas doctor.")
    assert done.code == 2


MISSING = {
    "kaleido": "import sys; sys.modules['kaleido'] = None",
    "Chrome": "import os; os.environ.update(PATH='', BROWSER_PATH='/nowhere/chrome')",
}


@pytest.mark.parametrize("missing", MISSING)
def test_a_report_without_what_draws_pictures_is_refused_whole(missing: str, place: Path) -> None:
    before = listing(place)
    code = f"{MISSING[missing]}\nfrom bsconv_nas import cli\ncli.main()"
    command = [sys.executable, "-c", code, "report", "runs/tiny", "--picture", "front.svg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expect_sentence(done.stderr, "A picture of the front needs kaleido and a Chrome or Chromium: pip install ....")
    assert (done.returncode, done.stdout) == (2, "")
    assert listing(place) == before
