"""What the commands print, and what they need not import."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from refusals import SCRIPT, SEARCH, Done

import bsconv_nas as nas

QUICK = [
    "--help",
    "search --help",
    "search none.toml",
    f"{SEARCH} --set search.seed",
    f"{SEARCH} --set search.sampler=tpa",
    f"{SEARCH} --set data.name=cifar10",
    f"{SEARCH} --set space=none.toml",
    f"{SEARCH} --address 127.0.0.1:1",
    f"{SEARCH} --run runs/tiny",
    "report runs/tiny --picture front.gif",
    "status runs/none",
    "resume runs/tiny --set search.seed=1",
    "resume runs/tiny --trials 1",
]
READING = ["status runs/tiny", "front runs/tiny", "front runs/tiny --csv", "report runs/tiny", "space show runs/tiny"]


@pytest.mark.parametrize("commands", [QUICK, READING], ids=["refusals", "reading"])
def test_neither_torch_nor_ray_is_imported(commands: list[str], place: Path) -> None:
    code = """
import sys, time
from bsconv_nas import cli
for command in sys.argv[1:]:
    sys.argv = ["bsconv-nas", *command.split()]
    start = time.perf_counter()
    try:
        cli.main()
    except SystemExit as end:
        loaded = sorted({"torch", "torchvision", "ray"} & set(sys.modules))
        print(f"TOLD {end.code or 0} {loaded} {command} {time.perf_counter() - start:.2f} s")
"""
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    told = [line.split(maxsplit=3) for line in done.stdout.splitlines() if line.startswith("TOLD")]
    print(*(line[3] for line in told), sep="\n")
    assert [line[2] for line in told] == ["[]"] * len(commands)
    assert [line[1] for line in told] == (
        ["0"] * len(READING) if commands is READING else ["0", "0", *"2" * (len(QUICK) - 2)]
    )


@pytest.mark.parametrize(("trials", "sampler", "warned"), [(299, "gp", True), (298, "gp", False), (9000, "tpe", False)])
def test_a_sampler_that_becomes_slow_is_warned_of_once(
    trials: int, sampler: str, warned: bool, place: Path, bsconv_nas: Callable[[str], Done]
) -> None:
    """With two baselines; the search itself is refused, as something lies in its folder."""
    done = bsconv_nas(f"search experiments/tiny.toml --run runs/tiny --trials {trials} --set search.sampler={sampler}")
    *before, refusal = done.err.splitlines()
    assert refusal.startswith("error: A run folder must be new or empty")
    assert before == warned * [
        "warning: search.sampler 'gp' takes many seconds a proposal above 300 finished trials, but 301 trials are "
        "planned: plan fewer, or take 'additive' or 'tpe'."
    ]


def test_help_names_the_commands() -> None:
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    for command in ("search", "resume", "status", "front", "report", "retrain", "export", "doctor", "space"):
        assert command in done.stdout


def test_status_says_how_far_a_run_is(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    out = bsconv_nas("status runs/tiny").out
    assert out.startswith("tiny: finished, 6 trials planned, macs <= 400 K\n")
    assert re.search(r"baseline +complete +2", out)
    assert re.search(r"search +complete +4", out)
    best = nas.load_run("runs/tiny").trials["val_accuracy"].max()
    assert f"best {best:.2%} at " in out
    assert re.search(r"; (\d+ min )?\d+ s of training in (\d+ min )?\d+ s of searching\n", out)
    assert "resume" not in out


def test_status_of_an_interrupted_run_says_how_to_go_on(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    lines = Path("runs/tiny/trials.jsonl").read_text().splitlines(keepends=True)
    last = next(i for i, line in enumerate(lines) if '"finished"' in line)
    Path("runs/tiny/trials.jsonl").write_text("".join(lines[: last - 1]))
    out = bsconv_nas("status runs/tiny").out
    assert "tiny: not finished, 6 trials planned" in out
    assert re.search(r"search +running +1", out)
    assert "bsconv-nas resume runs/tiny" in out


def test_front_prints_each_member(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    front = nas.load_run("runs/tiny").front
    out = bsconv_nas("front runs/tiny").out
    for row in front.itertuples():
        assert re.search(rf"{row.key} +{row.kind} +{row.val_accuracy:.2%}", out)
    found = pd.read_csv(StringIO(bsconv_nas("front runs/tiny --csv").out))
    pd.testing.assert_frame_equal(found, front.reset_index(drop=True), check_dtype=False)
    rows = json.loads(bsconv_nas("front runs/tiny --json").out)
    assert [row["key"] for row in rows] == front["key"].tolist()
    assert [row["val_accuracy"] for row in rows] == pytest.approx(front["val_accuracy"].tolist())


@pytest.mark.parametrize("what", ["spaces/resnet8.toml", "runs/tiny"])
def test_space_show_prints_what_varies_what_is_fixed_and_costs(
    what: str, place: Path, bsconv_nas: Callable[[str], Done]
) -> None:
    out = bsconv_nas(f"space show {what}").out
    run = nas.load_run("runs/tiny")
    assert re.search(rf"^{what}: [\d,]+ distinct networks for images of 1x8x8$", out, re.MULTILINE)
    assert all(name in out for name in run.space.table.names)
    assert re.search(r"conv.conv1 +stem", out)
    assert re.search(r"conv.layer2.0.downsample.0 +1x1 kernel", out)
    assert "macs: from 22,400 (22.4 K) to " in out
    assert all(f"{column}: from " in out for column in ("params", "memory"))


def test_report_prints_its_path(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    assert bsconv_nas("report runs/tiny").out == "runs/tiny/report.html\n"
    (place / "pages").mkdir()
    assert bsconv_nas("report runs/tiny --out pages/a.html").out == "pages/a.html\n"
    assert Path("pages/a.html").read_bytes() == Path("runs/tiny/report.html").read_bytes()


@pytest.mark.browser
@pytest.mark.parametrize(("name", "begin"), [("a.svg", b"<svg"), ("b.PNG", b"\x89PNG"), ("c.pdf", b"%PDF")])
def test_report_draws_the_front(name: str, begin: bytes, place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    (place / "pictures").mkdir()
    done = bsconv_nas(f"report runs/tiny --picture pictures/{name}")
    assert (done.out, done.err) == (f"pictures/{name}\nruns/tiny/report.html\n", "")
    assert [path.name for path in (place / "pictures").iterdir()] == [name]
    assert (place / "pictures" / name).read_bytes().startswith(begin)


def test_export_prints_its_folder(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    key = nas.load_run("runs/tiny").front["key"].iloc[0]
    assert bsconv_nas(f"export runs/tiny --out out --pick {key[:8]}").out == f"{place / 'out'}\n"
    assert json.loads(Path("out/card.json").read_text())["key"] == key


@pytest.mark.slow
def test_a_search_from_the_command_line_when_piped(place: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [SCRIPT, *f"{SEARCH} --trials 3 --set search.seed=5".split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines.pop(0).startswith("Checked ")
    assert lines[0] == "0/5 no result yet, front of 0"
    look = r"(\d)/5 best \d+\.\d+% at [\d.]+ K MACs, front of \d+(; front: .* MACs)?.*"
    looks = [found for line in lines if (found := re.fullmatch(look, line))]
    assert looks[-1][1] == "5"
    assert any(found[2] for found in looks), "the front is told where it moves"
    assert lines[-2:] == ["run folder: runs/tiny-1", "next: bsconv-nas report runs/tiny-1"]
    assert "\x1b" not in done.stdout
    run = nas.load_run("runs/tiny-1")
    assert run.experiment.search.seed == 5
    assert run.experiment.search.trials == 3


def test_a_space_without_operators_says_so_first(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    """Here of the one that is shown, and of a search that is refused behind that for its budget."""
    text = Path("spaces/resnet8.toml").read_text()
    Path("spaces/resnet8.toml").write_text(text + 'operators = ["regular"]')
    said = "No operator varies in this space: every convolution that may vary has one option, such as conv."
    assert bsconv_nas("space show spaces/resnet8.toml").out.startswith(said)
    done = bsconv_nas("search experiments/tiny.toml --run runs/new --set budget.macs=1")
    assert done.out.startswith(said)
    assert done.err.startswith("error: ")


def test_a_space_with_operators_says_nothing_first(place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    (error,) = bsconv_nas("search experiments/tiny.toml --run runs/new --set budget.macs=1").err.splitlines()
    assert error.startswith("error: ")
