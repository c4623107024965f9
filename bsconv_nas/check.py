"""Are counted, built, trained and exported networks of a space one thing? Asked of a few of them, before a search."""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bsconv_nas.errors import ExportError, SpaceError, described
from bsconv_nas.export.probe import disturb, images
from bsconv_nas.export.source import write_source
from bsconv_nas.network.build import instantiate
from bsconv_nas.space.base import Base
from bsconv_nas.space.extremes import extremes
from bsconv_nas.space.table import Architecture
from bsconv_nas.space.trace_failures import copied, raised
from bsconv_nas.space.trace_record import flop_counts, multiply_adds
from bsconv_nas.space.trace_seed import seeded
from bsconv_nas.training.guard import StridedPointwiseGuard

if TYPE_CHECKING:
    from bsconv_nas.api import SearchSpace

__all__ = ["Check", "check"]

BATCH = 5  # images: no layer has so many of anything, so an extent of the batch in the code stands out
PAIR = 2  # images to which the base answers, whatever its size
FEW = 2  # networks that differ from the base wherever they can
DRAWN = 3  # networks at random
IDLE = 20  # training passes in which nothing learns that had not learnt before: what they left out, all do
TOLERANCE = 1e-5
# Networks of more multiply-adds an image, or parameters, run on the meta device: without values, in no time.
REAL = {"macs": 2 * 10**9, "params": 2 * 10**7}
LARGE = f"networks of more than {REAL['macs']:,} multiply-adds or {REAL['params']:,} parameters"
UNREAD = "its values are not read by the forward"


@dataclass(frozen=True)
class Check:
    """What was compared: the keys of the networks, the time that it took [s], and what could not be compared."""

    networks: tuple[str, ...]
    seconds: float
    torch: str
    unchecked: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What a user is told."""
        left = f"; not compared: {'; '.join(self.unchecked)}" if self.unchecked else ""
        return (
            f"Checked {len(self.networks)} networks in {self.seconds:.1f} s: what is counted, built, trained and "
            f"exported agrees{left}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON values, for the run's folder."""
        return asdict(self)


def check(space: SearchSpace, seed: int = 0) -> Check:
    """Build and run a few networks of a space and compare them with its table.

    They are the base, the cheapest, the costliest, some that differ from the base wherever they can, and some drawn at
    random. Each runs on 5 images, in training and in evaluation. Compared are multiply-adds with torch's own counter
    and parameters with `numel`, to the integer; the form of the output; that all that shall be trained gets a gradient;
    that the network of the table's base answers like the base; and that the exported source does like the network.

    Raises:
        SpaceError: the first difference.

    >>> import bsconv_nas as nas
    >>> from bsconv_nas.network.models import cifar_resnet
    >>> space = nas.SearchSpace.from_module(cifar_resnet, operators=["regular", "dsc"])
    >>> check(space).networks[0] == space.table.base.key
    True
    """
    _ = space.model  # the search's own need, not this one's
    start = time.perf_counter()
    networks = _networks(space, np.random.default_rng(seed))
    unchecked: dict[str, None] = {}  # in order, once
    with _aside(seed):
        for architecture in networks:
            unchecked |= dict.fromkeys(_Network(space, architecture).compare())
        unchecked |= dict.fromkeys(_compare_base(space))
    for fixed in space.table.graph.fixed:
        if fixed.reason.endswith("are not counted"):
            unchecked[f"{fixed.reason} ({fixed.name})"] = None
    keys = tuple(architecture.key for architecture in networks)
    return Check(keys, time.perf_counter() - start, torch.__version__, tuple(unchecked))


@contextmanager
def _aside(seed: int) -> Iterator[None]:
    """Leave this process's generators, threads and warnings as they are: networks warn when they are trained.

    One thread is enough for five images, and as fast on a machine that has other work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with seeded(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def _networks(space: SearchSpace, rng: np.random.Generator) -> list[Architecture]:
    """Return the networks to compare, each once; one keeps the base's depth, lest its last blocks be never there."""
    table = space.table
    base, sizes = np.array(table.base.indices, dtype=np.int64), table.sizes
    choices = np.maximum(sizes - 1, 1)
    shifts = rng.integers(choices)
    others = np.array([(base + 1 + (shifts + turn) % choices) % sizes for turn in range(FEW)])
    is_depth = [dimension.kind == "depth" for dimension in table.dimensions]
    others[0, is_depth] = base[is_depth]
    ends = [row for rows in extremes(space.model) for row in rows[:1]]  # by multiply-adds
    rows = np.array([base, *ends, *others, *rng.integers(sizes, size=(DRAWN, len(sizes)))])
    return list({a.key: a for a in table.architectures(rows)}.values())


class _Network:
    """One network of a space, and what it must agree with."""

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        self._space, self._architecture = space, architecture
        self._costs = space.cost(architecture)
        self._is_base = architecture == space.table.base
        self._name = f"Network {architecture.key} of this space"
        self._is_small = all(getattr(self._costs, column) <= most for column, most in REAL.items())
        self.model = space.build(architecture).cpu() if self._is_small else _without_values(space, architecture)

    def compare(self) -> Iterator[str]:
        """Refuse the first difference, and yield what could not be compared.

        Each run has a copy of its own: a forward may keep what it computes.
        """
        self._compare_parameters()
        self._run(self._copy().eval())
        self._compare_macs()
        yield from self._run_training()
        yield from self._compare_export()

    def _copy(self) -> nn.Module:
        return copied(self.model)

    def _row(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(self._architecture.indices, dtype=np.int64)

    def _compare_parameters(self) -> None:
        built = sum(parameter.numel() for parameter in self.model.parameters())
        if built != self._costs.params:
            raise SpaceError(
                f"{self._name} must have the {self._costs.params:,} parameters that the table counts, but is built "
                f"with {built:,}{self._where('params', self._parameters_at)}."
            )

    def _parameters_at(self, path: str) -> int:
        return sum(parameter.numel() for parameter in self.model.get_submodule(path).parameters())

    def _compare_macs(self) -> None:
        """Refuse another count; what is computed once for a batch, and is less than that, is counted for one image."""
        for batch in (BATCH, 1):
            flops = flop_counts(self.model, (batch, *self._space.input_size))
            done = multiply_adds(flops.get("Global", {}))
            if done == batch * self._costs.macs:
                return
            if done > batch * self._costs.macs:
                break
        name = type(self.model).__name__
        where = self._where("macs", lambda path: multiply_adds(flops.get(f"{name}.{path}", {})) // batch)
        raise SpaceError(
            f"{self._name} must do the {self._costs.macs:,} multiply-adds an image that the table counts, but does "
            f"{done // batch:,}{where}."
        )

    def _where(self, column: str, found: Callable[[str], int]) -> str:
        """Return at which layer the table and the network differ first, if one layer's own does, and a way out."""
        counted: Counter[str] = Counter()
        for path, value in self._space.model.shares(column, self._row()):
            counted[path] += value
        nodes = self._space.table.graph.nodes
        parts = {node.path: node.parts or (node.path,) for node in nodes if node.path and not node.shared}
        for path, places in parts.items():
            if path in counted and all(self._has(place) for place in places if place):
                built = sum(found(place) for place in places if place)
                if built != counted[path]:
                    return f" ({path!r} has {built:,} instead of {counted[path]:,}): {self._way_to_count(path)}"
        return f": {self._way_to_count('')}"

    def _way_to_count(self, path: str) -> str:
        owner = _owner(self.model, path)
        whole = f", or keep it whole by base.leaves = [{owner!r}]" if owner else ""
        own, others = "its layers whatever type and attributes values have", "the same layers in every network"
        return f"let {_line(self.model, path)} call {own if self._is_base else others}{whole}"

    def _has(self, path: str) -> bool:
        return any(path == name for name, _ in self.model.named_modules(remove_duplicate=False))

    def _run(self, model: nn.Module) -> Tensor:
        """Return a network's answer to a batch; refuse one that has none, or none of its form."""
        mode = "training" if model.training else "evaluation"
        device = "cpu" if self._is_small else "meta"
        try:
            with torch.set_grad_enabled(model.training):
                answer: Tensor = model(torch.randn(BATCH, *self._space.input_size, device=device))
        except Exception as error:  # whatever the user's forward raises
            raise SpaceError(
                f"{self._name} must run in {mode} on {BATCH} images as the base does on one, but: "
                f"{raised(model, error)}; {self._way_to_run()}."
            ) from None
        self._check_form(answer, mode)
        return answer

    def _way_to_run(self) -> str:
        """Return what helps a network that does not run: the base does, on one image."""
        if self._is_base:
            return "let it compute for any number of images as for one"
        return "call layers by the attributes that hold them, and write no number of channels down in the forward"

    def _check_form(self, answer: Any, mode: str) -> None:
        expected = (BATCH, self._space.num_classes)
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        if found != expected:
            raise SpaceError(
                f"{self._name} must answer {BATCH} images with logits of shape {expected} in {mode}, but returned "
                f"{found}: see {_line(self.model)}, and let it return the logits of each image in the first axis."
            )

    def _run_training(self) -> Iterator[str]:
        """Refuse a parameter that would not be trained; yield why it cannot be told."""
        model = self._copy().train()
        left, idle = ["all of it"], 0
        while left and idle < IDLE:
            try:
                with StridedPointwiseGuard():
                    self._learn(model)
            except SpaceError:
                if self._is_small:
                    raise
                yield f"the training of {LARGE}, which needs values"
                return
            before, left = left, self._unlearned(model)
            idle = idle + 1 if left == before else 0
        if left:
            path = left[0].rpartition(".")[0]
            kind = type(model.get_submodule(path)).__name__
            raise SpaceError(
                f"{self._name} must be trained whole, but {left[0]!r} ({kind}) gets no gradient in {IDLE} passes: see "
                f"{_line(self.model, path)}; let the answer in training depend on it, by the attribute that holds it, "
                "or let its parameters have requires_grad = False."
            )

    def _unlearned(self, model: nn.Module) -> list[str]:
        """Return the parameters that shall be trained and have no gradient yet."""
        unread = {fixed.name for fixed in self._space.table.graph.fixed if fixed.reason == UNREAD}
        named = model.named_parameters()
        return [name for name, p in named if p.requires_grad and p.grad is None and name not in unread]

    def _learn(self, model: nn.Module) -> None:
        answer = self._run(model)
        if not answer.requires_grad:
            raise SpaceError(f"{self._name} must have something to train, but all is frozen: see {_line(model)}.")
        try:
            (answer * torch.randn_like(answer)).sum().backward()
        except Exception as error:  # such as a value that was overwritten
            raise SpaceError(
                f"{self._name} must be trainable, but its backward pass fails: {raised(model, error)}; see "
                f"{_line(self.model)}, and overwrite nothing that it needs."
            ) from None

    def _compare_export(self) -> Iterator[str]:
        """Refuse an exported source that answers otherwise; yield why there is none."""
        if not self._is_small:
            yield f"the exported source of {LARGE}"
            return
        try:
            exported = _loaded(write_source(self._copy(), "", self._space.input_size))
        except ExportError as error:
            yield f"the exported source ({str(error).rstrip('.')})"
            return
        except Exception as error:  # of code that was never seen before
            yield f"the exported source ({described(error)})"
            return
        way_out = (
            "let the forward keep to operations on tensors, without contexts such as torch.autocast or asking for types"
        )
        law = f"{self._name} must answer as its exported source does"
        yield from _compare_answers(exported, self._copy(), self._space.input_size, law, way_out)


def _without_values(space: SearchSpace, architecture: Architecture) -> nn.Module:
    """Return a network on the meta device, made there unless its factory computes with weights."""
    try:
        with torch.device("meta"):
            return space.build(architecture)
    except Exception:  # whatever the user's factory raises
        return space.build(architecture).to("meta")


def _compare_base(space: SearchSpace) -> Iterator[str]:
    """Refuse a base that answers otherwise once it is built from the table; yield why it cannot be compared."""
    base = instantiate(space.base) if isinstance(space.base, Base) else copied(space.base)
    built = space.build(space.table.base)
    state, own = base.state_dict(), built.state_dict()
    if {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in own.items()}:
        yield "the base's answers, as it is none of the space's networks"
        return
    law, way_out = "The base must answer as its build from the table does", "draw nothing at construction but weights"
    yield from _compare_answers(built.cpu(), base.cpu(), space.input_size, law, f"{way_out} and persistent buffers")


def _compare_answers(
    other: nn.Module, model: nn.Module, size: tuple[int, int, int], law: str, way_out: str
) -> Iterator[str]:
    """Refuse what answers unlike a network that has the same weights, random ones; yield why that cannot be told."""
    generator = torch.Generator().manual_seed(0)
    x = images(size, generator)[:PAIR]
    try:
        disturb(model, x, generator)
        expected = [_answer(model, x) for _ in range(2)]
        other.load_state_dict(model.state_dict())
        found = _answer(other, x)
    except Exception as error:  # whatever the user's forward raises, or the source's
        raise SpaceError(f"{law}, but one fails: {raised(model, error)}; see {_line(model)} and {way_out}.") from None
    if not torch.equal(*expected):  # values that are not finite are not equal either
        yield f"answers, as those of {_line(model)} are not the same twice, or not finite, at random weights"
        return
    difference = float((found - expected[0]).abs().max() / expected[0].abs().max().clamp_min(1e-30))
    if not difference <= TOLERANCE:
        raise SpaceError(
            f"{law} within {TOLERANCE:.0e}, but differs by {difference:.2g} of the largest output: see {_line(model)}, "
            f"and {way_out}."
        )


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model.eval()(x)
        return answer


def _loaded(source: str) -> nn.Module:
    """Return the network of an exported source, read as its users do."""
    with tempfile.TemporaryDirectory(prefix="bsconv_nas-check-") as folder:
        file = Path(folder) / "model.py"
        file.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("exported_model", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model: nn.Module = module.model()
        return model


def _line(root: nn.Module, path: str = "") -> str:
    """Return `file:line` of the innermost forward around a path that is not torch's own."""
    kind = type(root.get_submodule(_owner(root, path)))
    code = getattr(kind.forward, "__code__", None)
    return kind.__name__ if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _owner(root: nn.Module, path: str) -> str:
    """Return the path of the module whose forward `_line` names, "" for the network."""
    while path:
        kind = type(root.get_submodule(path))
        if hasattr(kind.forward, "__code__") and not kind.__module__.startswith(("torch.", "bsconv_nas.")):
            break
        path = path.rpartition(".")[0]
    return path
