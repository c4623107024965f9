"""The search space as its user sees it: a base network and the table of what may vary in it.

Torch is imported by the functions that need it, so that reading a recorded table does not.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bsconv_nas.cost.analytic import LATENCY, CostModel, Costs
from bsconv_nas.cost.budget import Budget
from bsconv_nas.cost.latency import LatencyTable, cost_model
from bsconv_nas.errors import LatencyError, SpaceError, first_line
from bsconv_nas.space.base import Base
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices, load_space_file, validate
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture, Table

if TYPE_CHECKING:
    from torch import nn

    from bsconv_nas.check import Check

__all__ = ["SearchSpace"]

Size = tuple[int, int, int]


@dataclass(frozen=True)
class SearchSpace:
    """A base network and the table of what may vary in it.

    `base` is a reference that any process can instantiate, or the module itself where there is no importable factory.
    With `latencies`, measured on a device, networks have a predicted latency as a cost more.

    >>> space = SearchSpace.load("search_spaces/cifar_resnet.toml")
    >>> model = space.build(space.sample(1, budget=Budget(macs="20M"))[0])
    """

    base: Base | nn.Module
    table: Table
    latencies: LatencyTable | None = None

    @classmethod
    def load(cls, path: str | Path, input_size: Size | None = None, num_classes: int | None = None) -> SearchSpace:
        """Return the space of a file in `search_spaces/`.

        Args:
            path: the TOML file.
            input_size: (C, H, W) of the images [pixels], instead of the file's.
            num_classes: number of classes, instead of the file's.

        Raises:
            SpaceError: a malformed file, a base that cannot be imported or traced, a pattern that matches nothing.
        """
        file = load_space_file(path)
        asked: dict[str, Any] = {"input_size": input_size, "num_classes": num_classes}
        base = replace(file.base, **{key: value for key, value in asked.items() if value is not None})
        return cls._traced(base, file.choices)

    @classmethod
    def from_module(
        cls,
        factory_or_module: Callable[..., nn.Module] | nn.Module,
        input_size: Size = (3, 32, 32),
        num_classes: int | None = None,
        leaves: Sequence[str] = (),
        **choices: Any,
    ) -> SearchSpace:
        """Return a space over a network that is at hand.

        Args:
            factory_or_module: a module, or a function or class without required arguments that returns one. Only what
                can be imported by name can be searched on other processes; a module can be sampled, costed and built.
            input_size: (C, H, W) of the images [pixels].
            num_classes: passed to a factory that takes it.
            leaves: patterns of paths of modules that are kept whole, as tracing cannot look into them.
            **choices: fields of `bsconv_nas.space.files.Choices`: operators, widths, divisor, depths, scope, ...

        Raises:
            SpaceError: an unknown choice, or a network that cannot be traced at this size.

        >>> from torchvision.models import resnet18
        >>> SearchSpace.from_module(resnet18, operators=["regular", "bsconv_u"]).num_classes
        10
        """
        parsed = validate(Choices, choices, "from_module", SpaceError)
        base = _reference(factory_or_module, input_size, num_classes)
        base = replace(base, leaves=tuple(leaves)) if isinstance(base, Base) else base
        space = cls._traced(base, parsed, input_size, leaves)
        if num_classes not in (None, space.num_classes):
            raise SpaceError(
                f"The base must end in {num_classes} classes, but ends in {space.num_classes}: "
                "leave num_classes out, or give the network another classifier."
            )
        return space

    @classmethod
    def _traced(
        cls, base: Base | nn.Module, choices: Choices, input_size: Size | None = None, leaves: Sequence[str] = ()
    ) -> SearchSpace:
        import torch

        from bsconv_nas.network.build import instantiate
        from bsconv_nas.space.trace import trace

        if not isinstance(base, Base):
            return cls(base, make_table(trace(base, input_size or (3, 32, 32), leaves), choices))
        try:
            with torch.device("meta"):
                module = instantiate(base)
            graph = trace(module, base.input_size, base.leaves)
        except SpaceError:  # some networks need values, when they are made or in what they hold; others fail alike
            graph = trace(instantiate(base), base.input_size, base.leaves)
        if graph.num_classes != base.num_classes:
            raise SpaceError(
                f"The base must end in {base.num_classes} classes, but {base.factory!r} ends in {graph.num_classes}: "
                "let the factory take num_classes, or set it in base.arguments."
            )
        return cls(base, make_table(graph, choices))

    @property
    def input_size(self) -> Size:
        """Images that the networks take: (C, H, W) [pixels]."""
        return self.table.graph.input_size

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.table.graph.num_classes

    @cached_property
    def model(self) -> CostModel:
        """The cost model of the table."""
        return cost_model(self.table, self.latencies)

    def with_latencies(self, latencies: LatencyTable | None) -> SearchSpace:
        """Return the space with predicted latencies among its costs, or without them.

        Raises:
            LatencyError: the table lacks units of this space.
        """
        space = replace(self, latencies=latencies)
        if latencies is not None:
            _ = space.model  # a table that does not fit is refused here
        return space

    def feasible(self, budget: Budget | None = None) -> FeasibleSet:
        """Return the networks that keep `budget`; all of them without one.

        Raises:
            LatencyError: the budget bounds the latency, and the space has no table of measured ones.
        """
        if budget is not None and LATENCY in budget.bounds and self.latencies is None:
            raise LatencyError(
                f"A budget of {budget} needs measured latencies: give the space some by "
                "with_latencies(LatencyTable.load(FILE))."
            )
        return FeasibleSet(self.model, budget or Budget())

    def sample(self, n: int, budget: Budget | None = None, seed: int = 0) -> list[Architecture]:
        """Return `n` distinct random networks inside `budget`; fewer if there are no more.

        Raises:
            BudgetError: no network of the space meets the budget.
        """
        feasible = self.feasible(budget)
        feasible.check()
        return feasible.sample(n, np.random.default_rng(seed))

    def cost(self, architecture: Architecture) -> Costs:
        """Return MACs, parameters, memory [bytes] and predicted latency of one network, without building it."""
        return self.model.cost(self._own(architecture))

    def costs(self, architectures: Sequence[Architecture]) -> dict[str, npt.NDArray[np.int64]]:
        """Return the cost columns of many networks, each of shape (n,)."""
        rows = np.array([self._own(a).indices for a in architectures], dtype=np.int64).reshape(
            -1, len(self.table.sizes)
        )
        return self.model.costs(rows)

    def build(self, architecture: Architecture, seed: int | None = None) -> nn.Module:
        """Return the network as a plain module, freshly initialised: (N, C, H, W) -> (N, classes).

        Args:
            architecture: one of this space.
            seed: of the initialisation; torch's global generator without one.
        """
        from bsconv_nas.network.build import build, seeded_build

        self._own(architecture)
        if seed is None:
            return build(self.base, self.table, architecture)
        return seeded_build(self.base, self.table, architecture, seed)

    def describe(self, architecture: Architecture) -> dict[str, str | float | int]:
        """Return the chosen option of each dimension by name."""
        return self.table.describe(self._own(architecture))

    def check(self, seed: int = 0) -> Check:
        """Prove on a few networks that what is counted, built, trained and exported is one thing.

        Args:
            seed: of the choice of networks and their weights.

        Raises:
            SpaceError: the first difference, with the module and the line.
        """
        from bsconv_nas.check import check

        return check(self, seed)

    def _own(self, architecture: Architecture) -> Architecture:
        """Return `architecture`, or refuse one that belongs to another space."""
        if self.table.architecture(architecture.indices).key != architecture.key:
            raise SpaceError(
                f"An architecture must be one of this space, but {architecture.key!r} has another key here: "
                "use the space that it was sampled from."
            )
        return architecture

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain JSON values.

        Raises:
            SpaceError: the base is a module without an importable factory.
        """
        if not isinstance(self.base, Base):
            raise SpaceError(
                "A space that leaves this process needs an importable base, but it was made from a module object: "
                "pass a function that can be imported as package.module:function."
            )
        return {"base": asdict(self.base), "table": self.table.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSpace:
        """Return the space that `to_json` wrote; nothing is traced."""
        return cls(validate(Base, data["base"], "space.json", SpaceError), Table.from_json(data["table"]))


def _reference(source: Callable[..., nn.Module] | nn.Module, input_size: Size, classes: int | None) -> Base | nn.Module:
    """Return an importable reference to a factory, or the module that it or `source` is."""
    from torch import nn

    if isinstance(source, nn.Module):
        return source
    if not callable(source):
        raise SpaceError(f"A base must be a module or a function that returns one, but got {type(source).__name__!r}.")
    name = f"{source.__module__}:{getattr(source, '__qualname__', '')}"
    if source.__module__ != "__main__" and "<" not in name and _resolves(name, source):
        return Base(factory=name, input_size=input_size, num_classes=classes or 10)
    try:
        return source(num_classes=classes) if classes is not None and _takes_classes(source) else source()
    except Exception as error:  # whatever the user's factory raises
        raise SpaceError(
            f"Factory {name!r} must be callable without arguments, but: {first_line(error)}; wrap it in a function "
            "that is."
        ) from None


def _takes_classes(source: Callable[..., Any]) -> bool:
    parameters = inspect.signature(source).parameters
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _resolves(name: str, source: object) -> bool:
    path, _, attributes = name.partition(":")
    found: Any = importlib.import_module(path)
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
    return found is source
