"""The command line: thin commands over the API; every refusal is one line and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from bsconv_nas.errors import BsconvNasError, ExperimentError

if TYPE_CHECKING:
    from bsconv_nas.run import Run
    from bsconv_nas.search.experiment import Experiment

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
space_app = typer.Typer(help="Look at a search space.", no_args_is_help=True)
app.add_typer(space_app, name="space")
latency_app = typer.Typer(help="Measure latencies on this device.", no_args_is_help=True)
app.add_typer(latency_app, name="latency")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, such as search.seed=1; repeatable.")
]
Address = Annotated[str | None, typer.Option(metavar="ADDR", help="A running Ray cluster: auto or HOST:PORT.")]
Trials = Annotated[int | None, typer.Option(min=0, help="Networks to search in all, beside the baselines.")]
Roots = Annotated[
    list[str] | None, typer.Option("--set", metavar="data.root=DIR", help="Where the data lie on this machine.")
]
DEBUG = "--debug"
INTERRUPTED = 130  # 128 and the number of SIGINT


def main() -> None:
    """Run the command line; `--debug` anywhere shows the traceback of a refusal."""
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        sys.exit(app(args=arguments, prog_name="bsconv-nas", standalone_mode=False))
    except (BsconvNasError, typer.TyperException, ImportError, OSError) as error:
        if debug:
            raise
        if sentence := _sentence(error):  # without any, the help has been printed
            print(f"error: {sentence}", file=sys.stderr)  # not rich: a piped line must stay one line
        sys.exit(2)


def _sentence(error: Exception) -> str:
    """Return what the user can mend, in one line."""
    if isinstance(error, typer.TyperException):
        said = " ".join(error.format_message().split()).replace(". Did", ": did").rstrip(".?")
        return f"{said}; see {_help(error)}." if said else ""
    if isinstance(error, ImportError):
        return f"The installation must be whole, but: {error}; see bsconv-nas doctor."
    if isinstance(error, OSError):
        return f"{str(error.filename)!r} must be usable here, but: {error.strerror}."
    return " ".join(str(error).split())


def _help(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else "bsconv-nas --help"


@app.callback()
def options(debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of a refusal.")] = False) -> None:
    """Neural architecture search over convolution decompositions, inside a budget."""


def _data_root(overrides: list[str] | None) -> str | None:
    """Return the folder of `data.root=DIR`: of a run that exists, nothing else can change."""
    root = None
    for text in overrides or []:
        key, _, root = text.partition("=")
        if key.strip() != "data.root" or not root:
            raise ExperimentError(
                f"Of a run, only the place of its data may change, by data.root=DIR, but got {text!r}."
            )
    return root


def _console() -> Console:
    """Return a console that keeps tables whole where there is no terminal to fit them to."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _end(run: Run) -> None:
    """Leave as shells do after Ctrl-C if that ended a search or a retraining: no script shall go on from there."""
    end = run.record.last("finished", "interrupted", "retrained")
    if end is not None and end.what == "interrupted":
        sys.exit(INTERRUPTED)


def _warn_of_slowness(experiment: Experiment, trials: int | None) -> None:
    """Say before a search what its sampler will cost, beside what is printed for scripts to read."""
    from bsconv_nas.search.samplers import slowness

    search = experiment.search
    if said := slowness(search.sampler.name, search.baselines + (search.trials if trials is None else trials)):
        print(f"warning: {said}", file=sys.stderr)


def _say(said: str) -> None:
    """Say what is known before a search begins."""
    if said:
        print(said, flush=True)


def _note(said: str) -> None:
    """Say what a command goes on without, beside what is printed for scripts to read."""
    if said:
        print(f"note: {said}", file=sys.stderr)


@space_app.command("show")
def space_show(
    place: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="A file of search_spaces/ or a run folder.")],
    check: Annotated[
        bool, typer.Option("--check", help="Also build a few networks and compare them with this.")
    ] = False,
) -> None:
    """Print dimensions, what is fixed and why, the number of networks, and their costs."""
    from bsconv_nas.api import SearchSpace
    from bsconv_nas.run import load_run
    from bsconv_nas.show import print_summary
    from bsconv_nas.space.summary import summarise

    space = load_run(place).space if place.is_dir() else SearchSpace.load(place)
    print_summary(_console(), str(place), space.input_size, summarise(space.model))
    if check:
        print(space.check().sentence)


@latency_app.command("measure")
def latency_measure(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A file of search_spaces/.")],
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where networks run.")] = "cpu",
    backend: Annotated[Literal["eager", "compile", "onnxruntime"], typer.Option(help="By what they run.")] = "eager",
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one operation.")] = 1,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of weights and activations.")] = "fp32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Lay images out as NHWC.")] = False,
    max_minutes: Annotated[float | None, typer.Option(min=0.1, help="Interpolate what is not timed by then.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")] = Path("latency"),
) -> None:
    """Time every layer that networks of a space can have; the same command goes on with what was interrupted."""
    from bsconv_nas import latency
    from bsconv_nas.api import SearchSpace
    from bsconv_nas.cost.latency import Setting
    from bsconv_nas.show_latency import Timing, print_latencies

    setting = Setting(device, backend, batch, threads, precision, channels_last)
    asked = latency.plan(SearchSpace.load(space), space.stem, setting, out)
    with Timing(_console(), asked, max_minutes) as progress:
        found = latency.measure(asked, max_minutes, progress)
    print_latencies(_console(), found, asked.path)


@app.command()
def search(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="A file of experiments/.")],
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="A new run folder; else runs/<name>-<n>.")] = None,
    trials: Trials = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Search as an experiment file says; Ctrl-C once ends in good order."""
    from bsconv_nas import run as runs
    from bsconv_nas.search.experiment import Experiment
    from bsconv_nas.show import Progress, print_run

    asked = Experiment.load(experiment, overrides or [])
    _warn_of_slowness(asked, trials)
    if asked.asks_latency and asked.latency.table is None:
        print("warning: latencies are measured first, into latency/, unless they are there", file=sys.stderr)
    with Progress(_console(), asked) as progress:
        done = runs.search(asked, run, trials=trials, address=address, on_change=progress, say=_say)
    print_run(_console(), done)
    _end(done)


@app.command()
def calibrate(
    place: Annotated[Path, typer.Argument(metavar="EXPERIMENT|RUN", help="A file of experiments/, or what it led to.")],
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new run folder; else runs/<name>-calibration-<n>.")
    ] = None,
    networks: Annotated[int, typer.Option(min=8, help="How many to train in full, evenly over log MACs.")] = 24,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Train a few networks in full and say which epochs foretell the last, and what early stopping would save."""
    from bsconv_nas import calibrate as calibration
    from bsconv_nas.run import load_run
    from bsconv_nas.search.experiment import Experiment
    from bsconv_nas.show import Progress

    if place.is_dir():
        if run is not None or overrides:
            raise BsconvNasError(
                f"The run {str(place)!r} is read as it is, but --run or --set was given: leave it out."
            )
        calibration.print_calibration(_console(), load_run(place))
        return
    asked = Experiment.load(place, overrides or [])
    with Progress(_console(), calibration.planned(asked, networks)) as progress:
        done = calibration.calibrate(asked, run, networks=networks, address=address, on_change=progress)
    calibration.print_calibration(_console(), done)
    _end(done)


@app.command()
def resume(run: RunFolder, trials: Trials = None, roots: Roots = None, address: Address = None) -> None:
    """Go on with an interrupted search, or give a finished one more trials."""
    from bsconv_nas import run as runs
    from bsconv_nas.show import Progress, print_run

    found = runs.load_run(run)
    _warn_of_slowness(found.experiment, trials)
    _note(found.unchecked)
    with Progress(_console(), found.experiment) as progress:
        root = _data_root(roots)
        done = runs.resume(found, trials=trials, data_root=root, address=address, on_change=progress)
    print_run(_console(), done)
    _end(done)


@app.command()
def status(run: RunFolder) -> None:
    """Print how far a run is."""
    from bsconv_nas.run import load_run
    from bsconv_nas.show import print_status

    print_status(_console(), load_run(run))


@app.command()
def front(
    run: RunFolder,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the front of a run."""
    from bsconv_nas.run import load_run
    from bsconv_nas.search.status import front_text
    from bsconv_nas.show import print_front

    if csv and json:
        raise BsconvNasError(
            "A front is printed in one format, but --csv and --json were both given: keep one of them."
        )
    found = load_run(run)
    if csv or json:
        form: Literal["csv", "json"] = "csv" if csv else "json"
        print(front_text(found.front, form), end="")
    else:
        print_front(_console(), found)


@app.command()
def report(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Instead of report.html in the run folder.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the front, as a .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Write the offline HTML report."""
    from bsconv_nas.run import load_run

    found = load_run(run)
    if picture is not None:
        print(found.picture(picture))  # first: it may be refused
    print(found.report(out))


@app.command()
def retrain(
    run: RunFolder,
    members: Annotated[int | None, typer.Option(min=1, help="How many members of the front.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each network.")] = None,
    roots: Roots = None,
    address: Address = None,
) -> None:
    """Train front members and like uniform networks in full, test them once, and say what mixing gains."""
    from bsconv_nas import run as runs
    from bsconv_nas.show import Progress, print_verdict

    found = runs.load_run(run)
    _note(found.unchecked)
    with Progress(_console(), found.experiment, kind="retrain") as progress:
        root = _data_root(roots)
        done = runs.retrain(found, members=members, seeds=seeds, data_root=root, address=address, on_change=progress)
    print_verdict(_console(), done)
    _end(done)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    pick: Annotated[
        str, typer.Option(metavar="best|knee|KEY", help="Which network; a key by its first digits.")
    ] = "best",
) -> None:
    """Write a network as plain PyTorch source with weights and card, verified in a clean process."""
    from bsconv_nas.run import load_run

    found = load_run(run)
    _note(found.unchecked)
    print(found.export(out, pick))


@app.command()
def analyze(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A file of search_spaces/, package.module:factory, a run or an export."),
    ],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .safetensors, .pt or .pth file, for the first two.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR|FILE", help="A folder for kernels.html and kernels.csv, or one of the two.")
    ] = Path(),
) -> None:
    """Write how correlated a network's kernels are and what each decomposition keeps of them: a page and a CSV."""
    from bsconv_nas.analyze import analyze as written

    found = written(model, weights, out)
    _note(found.note)
    print(found.page, found.table, *filter(None, [found.omission]), sep="\n")


@app.command()
def doctor() -> None:
    """Report versions, devices, CPU kernels, Ray, Chrome, disk and data roots, and what is wrong with them."""
    from bsconv_nas.doctor import examine

    well = True
    for finding in examine():
        print(f"{'ok ' if finding.well else 'BAD'} {finding.name}: {finding.found}", flush=True)
        if not finding.well:
            well = False
            print(f"    {finding.mend}")
    sys.exit(0 if well else 1)
