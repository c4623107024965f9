"""From a network by name to its kernel analysis on disk: find it, load its weights, analyse, write page and CSV.

Torch and pandas are imported by the functions that need them, so that what is no network is refused at once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsconv_nas.decompositions import DECOMPOSITIONS, Option, parse_option
from bsconv_nas.errors import RecordError, SpaceError
from bsconv_nas.report.document import destination
from bsconv_nas.space.base import FACTORY, Base
from bsconv_nas.space.files import load_space_file
from bsconv_nas.training.weight_file import load_weights, matching, read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["OPTIONS", "Subject", "Written", "analyze", "find"]

# What is judged where no search space says what may stand there.
OPTIONS = ("regular", "dsc", "bsconv_u", "bsconv_u:r=2", "bsconv_u:r=4", "bsconv_s", "bsconv_s:p=1/2")
NAME = "kernels"  # of the files in a folder
PAGE, TABLE = ".html", ".csv"
CARD, SOURCE, WEIGHTS = "card.json", "model.py", "weights.safetensors"  # in an exported folder


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to analyse: its name, itself, the options to judge, and where its weights come from, if anywhere.

    `note` says what of a run could not be checked.
    """

    name: str
    network: nn.Module
    options: tuple[str, ...] = OPTIONS
    weights: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """The two files of an analysis, and sentences about the convolutions that it leaves out and about its subject."""

    page: Path
    table: Path
    omission: str
    note: str = ""


def analyze(model: str, weights: str | Path | None = None, out: str | Path = ".") -> Written:
    """Write the kernel analysis of a network as an offline page and a CSV file; return where they are.

    Args:
        model: a file of `search_spaces/` (its base), `package.module:factory`, a run folder (its best network) or an
            exported folder.
        weights: a `.safetensors`, `.pt` or `.pth` file for the first two; without it they are analysed as made.
        out: an existing folder, for `kernels.html` and `kernels.csv`, or the path of one of the two files.

    Raises:
        SpaceError: nothing of that name, a base that cannot be made, or a network without kernels to analyse.
        RecordError: weights that cannot be read or are another network's, a run without any, or no such folder.

    >>> analyze("torchvision.models:resnet18", "resnet18.pth", "analysis").table
    PosixPath('analysis/kernels.csv')
    """
    page, table = _places(Path(out))
    subject = find(model, weights)
    from bsconv_nas.network.analysis import analyze_kernels, left_out
    from bsconv_nas.report import kernels, kernels_page

    layers, others = analyze_kernels(subject.network, subject.options), left_out(subject.network)
    page, table = kernels_page.write(layers, subject.name, subject.weights, page, table, others)
    return Written(page, table, kernels.omission(others), subject.note)


def _places(out: Path) -> tuple[Path, Path]:
    stem = out / NAME if out.is_dir() else out
    if stem is out and out.suffix not in (PAGE, TABLE):
        raise RecordError(
            f"--out must be an existing folder or end in {PAGE} or {TABLE}, but got {str(out)!r}: make the folder or "
            "name a file."
        )
    return destination(stem.with_suffix(PAGE)), destination(stem.with_suffix(TABLE))


def find(model: str, weights: str | Path | None = None) -> Subject:
    """Return the network that `model` names, as `analyze` describes it, with its weights."""
    place = Path(model)
    if place.is_dir():
        if weights is not None:
            raise RecordError(
                f"A run or an exported folder has its own weights, but --weights {str(weights)!r} was given with "
                f"{model!r}: leave it out, or name the network by its factory."
            )
        return _exported(place) if (place / CARD).is_file() else _picked(place)
    if place.suffix == ".toml":
        file = load_space_file(place)
        operators = [file.choices.operators, *(override.operators or () for override in file.choices.overrides)]
        return _made(place.name, file.base, weights, _judged(text for row in operators for text in row))
    if FACTORY.fullmatch(model):
        return _made(model, Base(model), weights, OPTIONS)
    raise SpaceError(
        "MODEL must be a search-space file, package.module:factory, a run folder or an exported folder, but got "
        f"{model!r}: check the path."
    )


def _judged(operators: Iterable[Any]) -> tuple[str, ...]:
    """Return the decompositions among a space's options, once each: what stands inside them changes no projection."""
    parsed = (parse_option(text) for text in map(str, operators) if text.partition(":")[0] in DECOMPOSITIONS)
    return tuple(dict.fromkeys(str(_bare(option)) for option in parsed)) or OPTIONS


def _bare(option: Option) -> Option:
    """Return the option with the default norm, activation and penalty."""
    defaults = DECOMPOSITIONS[option.name].defaults
    kept = ((key, defaults[key] if key in ("inner", "ortho") else value) for key, value in option.params)
    return Option(option.name, tuple(kept))


def _made(name: str, base: Base, weights: str | Path | None, options: tuple[str, ...]) -> Subject:
    """Return the base network: with the weights of a file, else as it is made."""
    if weights is None:
        return Subject(name, _instantiate(base), options)
    tensors = read_weights(weights)
    network = _instantiate(base)
    tensors = matching(tensors, network.state_dict().keys())
    network = _instantiate(_sized(base, network, tensors))
    load_weights(network, tensors, str(weights))
    return Subject(name, network, options, Path(weights).name)


def _instantiate(base: Base) -> nn.Module:
    """Return the base network; what it draws, it draws with one seed, and torch's generator is left as it was."""
    import torch

    from bsconv_nas.network.build import instantiate

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return instantiate(base)


def _sized(base: Base, network: nn.Module, tensors: dict[str, Tensor]) -> Base:
    """Return the base with as many input channels and classes as the weights have, which the analysis does not fix."""
    channels, classes = base.input_size[0], base.num_classes
    for name, own in network.state_dict().items():
        given = tensors.get(name)
        if given is None or given.shape == own.shape or given.ndim != own.ndim:
            continue
        if given.ndim == 4 and own.shape[1] == base.input_size[0] != given.shape[1]:
            channels = given.shape[1]
        elif own.shape[0] == base.num_classes:
            classes = given.shape[0]
        elif own.shape[0] == base.input_size[0]:  # a depthwise stem
            channels = given.shape[0]
    return dataclasses.replace(base, input_size=(channels, *base.input_size[1:]), num_classes=classes)


def _picked(run: Path) -> Subject:
    """Return the best network of a run."""
    from bsconv_nas.run import load_run

    found = load_run(run)
    options = _judged(option for dimension in found.space.table.dimensions for option in dimension.options)
    key = found.architecture(found.pick()).key
    name, source = f"{found.store.name}: {key}", f"the run's best network, {key}"
    return Subject(name, found.model(), options, source, found.unchecked)


def _exported(folder: Path) -> Subject:
    """Return the network of an exported folder, by its own source."""
    found = importlib.util.spec_from_file_location("exported_model", folder / SOURCE)
    assert found is not None  # a file that ends in .py has a loader
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        network: nn.Module = module.model()
    except Exception as error:  # whatever a file that was written to raises
        raise RecordError(
            f"{str(folder / SOURCE)!r} must make its network by model(), but: {str(error) or type(error).__name__}; "
            "export again."
        ) from None
    load_weights(network, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
    return Subject(folder.resolve().name, network, weights=f"{folder.name}/{WEIGHTS}")
