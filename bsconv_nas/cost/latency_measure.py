"""The torch half of latency tables: times networks unit by unit, and as wholes, in a process of its own.

Units are timed inside networks that run, so that each finds the caches as its neighbours leave them and its own weights
cold. Run as a module it reads a task from standard input and writes a JSON line for each network; it needs nothing but
PyTorch.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from bsconv_nas.cost.latency import Setting
from bsconv_nas.cost.latency_units import conv_key, linear_key, network_units, operation_key
from bsconv_nas.decompositions import Conv
from bsconv_nas.errors import first_line
from bsconv_nas.network.build import seeded_build
from bsconv_nas.space.base import Base
from bsconv_nas.space.table import Table
from bsconv_nas.space.trace_record import label
from bsconv_nas.space.trace_symbolic import symbolic_graph

__all__ = ["Stopwatch", "main", "seconds", "timed"]

WARM_UP = 3
FEWEST, BLOCK = 8, 4  # passes, and after how many more the spread is looked at
QUANTILES = 0.2, 0.5, 0.9
REFERENCES = 4  # runs of the reference network beside each network
CLOCKS: dict[str, Callable[[], int]] = {"thread": time.thread_time_ns, "wall": time.perf_counter_ns}
NANOSECONDS = list[int]


class Stopwatch(fx.Interpreter):
    """Runs a traced network and notes how long each call takes.

    Attributes:
        times: of the last run, by node, as far as it writes a tensor [ns].
        keys: what each such node may be called as a unit, most telling first; of the last run.
    """

    def __init__(self, module: nn.Module, clock: Callable[[], int], leaves: tuple[str, ...] = ()) -> None:
        graph = symbolic_graph(module, leaves).graph
        super().__init__(module, graph=graph)
        self.times: dict[str, int] = {}
        self.keys: dict[str, list[str]] = {}
        self.labels = False  # whether a run notes the keys
        self._clock, self._now = clock, 0
        self._split: dict[fx.Node, tuple[int, ...] | None] = {}  # what nodes that give several tensors read

    def run_node(self, n: fx.Node) -> Any:
        """Return what a node computes."""
        reads = self._reads(n)
        result = super().run_node(n)
        if isinstance(result, tuple | list):
            self._split[n] = reads
        elif n.op.startswith("call_") and isinstance(result, Tensor):
            self.times[n.name] = self._now
            if self.labels and reads:
                self.keys[n.name] = self._keys(n, reads, tuple(result.shape[1:]))
        return result

    def _reads(self, n: fx.Node) -> tuple[int, ...] | None:
        """Return the shape of the first tensor that a node reads, without its batch; for a part, of what was split."""
        source = next(iter(n.all_input_nodes), None)
        if source is None:
            return None
        value = self.env[source]
        if not isinstance(value, Tensor):
            return self._split.get(source)
        has_batch = source.op != "get_attr" or (value.dim() > 1 and len(value) == 1)
        return tuple(value.shape[1:] if has_batch else value.shape)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a layer computes, timed."""
        return self._timed(self.fetch_attr(target), args, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a function computes, timed."""
        return self._timed(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a method computes, timed."""
        return self._timed(getattr(args[0], target), args[1:], kwargs)

    def _timed(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        begin = self._clock()
        result = call(*args, **kwargs)
        self._now = self._clock() - begin
        return result

    def _keys(self, n: fx.Node, reads: tuple[int, ...], writes: tuple[int, ...]) -> list[str]:
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, nn.Identity):
            return []  # what stands for a dropped block
        name = label(self.module, n) if module is None else type(module).__name__
        general = operation_key("Conv2d" if isinstance(module, nn.Conv2d) else name, reads, writes)
        if isinstance(module, nn.Conv2d):
            return [conv_key(_conv(module), reads[1:]), general]
        return [linear_key(reads[0], writes[0]), general] if isinstance(module, nn.Linear) else [general]


def _conv(module: nn.Conv2d) -> Conv:
    pairs = [(int(a), int(b)) for a, b in (module.kernel_size, module.stride, module.dilation)]
    padding = module.padding if isinstance(module.padding, str) else (int(module.padding[0]), int(module.padding[1]))
    return Conv(
        "",
        module.in_channels,
        module.out_channels,
        pairs[0],
        pairs[1],
        padding,
        pairs[2],
        module.groups,
        module.bias is not None,
        module.padding_mode,
    )


def timed(watch: Stopwatch, units: set[str], image: Tensor) -> dict[str, list[str]]:
    """Return the nodes of each unit of a traced network, after a first run.

    Raises:
        ValueError: the network has a unit that is not among `units`.
    """
    watch.labels, watch.keys = True, {}
    watch.run(image)
    watch.labels = False
    found: dict[str, list[str]] = {}
    for node, keys in watch.keys.items():
        key = next((key for key in keys if key in units), None)
        if key is not None:
            found.setdefault(key, []).append(node)
        elif keys:
            raise ValueError(f"the operation {keys[0]!r} of a built network is no unit of its space")
    return found


class Bench:
    """Times networks of one space under one setting; `task` is as `main` reads it.

    Attributes:
        reference: the network that drift is told by.
    """

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.setting = Setting(**task["setting"])
        self.base, self.table = Base(**_base(task["base"])), Table.from_json(task["table"])
        self.units, self.spread, self.most = set(task["units"]), float(task["spread"]), int(task["passes"])
        self.clock = CLOCKS[self.setting.clock]
        torch.set_num_threads(self.setting.threads)
        self.image = self._laid_out(torch.randn(self.setting.batch, *self.table.graph.input_size))
        self.reference = self.network(self.table.base.indices)
        self.overhead = min(-self.clock() + self.clock() for _ in range(100))
        for _ in range(WARM_UP):
            self.reference(self.image)

    def _laid_out(self, value: Any) -> Any:
        value = value.to(torch.bfloat16) if self.setting.precision == "bf16" else value
        return value.to(memory_format=torch.channels_last) if self.setting.channels_last else value

    def network(self, indices: tuple[int, ...]) -> nn.Module:
        """Return a network of the space as it is timed."""
        module: nn.Module = self._laid_out(seeded_build(self.base, self.table, self.table.architecture(indices), 0))
        return module.eval()

    def run(self, network: nn.Module) -> tuple[int, int]:
        """Return the time of one run by the setting's clock and by the wall's [ns]."""
        begin, wall = self.clock(), time.perf_counter_ns()
        network(self.image)
        return self.clock() - begin - self.overhead, time.perf_counter_ns() - wall

    def line(self, indices: tuple[int, ...], is_whole: bool) -> dict[str, Any]:
        """Return what is known about one network, times in microseconds.

        Units map to 20th percentile, median, 90th percentile, number of times, and how often the network has them.
        """
        network = self.network(indices)
        watch = Stopwatch(network, self.clock, self.base.leaves)
        nodes = timed(watch, self.units, self.image)
        if nodes.keys() != set(network_units(self.table, indices)):
            strange = sorted(nodes.keys() ^ set(network_units(self.table, indices)))
            raise ValueError(f"a built network and its space disagree about the unit {strange[0]!r}")
        for _ in range(WARM_UP):
            network(self.image)
        passes, wholes, references = self._passes(network, watch, is_whole)
        times = {
            key: sorted(one[node] - self.overhead for one in passes for node in found) for key, found in nodes.items()
        }
        units = {key: [*(_us(_at(t, q)) for q in QUANTILES), len(t), len(nodes[key])] for key, t in times.items()}
        out = {"network": list(indices), "reference_us": _us(statistics.median(references)), "units": units}
        return out | ({"whole": _summary(wholes)} if is_whole else {})

    def _passes(
        self, network: nn.Module, watch: Stopwatch, is_whole: bool
    ) -> tuple[list[dict[str, int]], list[tuple[int, int]], NANOSECONDS]:
        """Return the times of nodes, of the whole and of the reference network, taken in turn until they agree."""
        passes: list[dict[str, int]] = []
        wholes: list[tuple[int, int]] = []
        references: NANOSECONDS = []
        while len(passes) < FEWEST or (len(passes) < self.most and not self._agree(passes, wholes)):
            for _ in range(BLOCK):
                watch.times = {}
                watch.run(self.image)
                passes.append(watch.times)
                if is_whole:
                    wholes.append(self.run(network))
            if len(references) < REFERENCES:
                references += [self.run(self.reference)[0] for _ in range(2)][1:]
        return passes, wholes, references

    def _agree(self, passes: list[dict[str, int]], wholes: list[tuple[int, int]]) -> bool:
        """Whether the standard errors of the medians are below the asked spread."""
        sums = [float(sum(one.values())) for one in passes]
        return all(
            1.25 * _spread(sorted(times)) / len(times) ** 0.5 < self.spread
            for times in (sums, [float(own) for own, _ in wholes])
            if times
        )


def seconds(network: nn.Module, input_size: tuple[int, int, int], setting: Setting) -> float:
    """Return about how long one run of a network takes [s]."""
    image, threads = torch.zeros(setting.batch, *input_size), torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    with torch.inference_mode():
        network.eval()(image)
        begin = time.perf_counter()
        network(image)
    torch.set_num_threads(threads)
    return time.perf_counter() - begin


def _summary(wholes: list[tuple[int, int]]) -> dict[str, float]:
    own, wall = (sorted(times) for times in zip(*wholes, strict=True))
    out = {f"p{p}_us": _us(_at(own, p / 100)) for p in (20, 50, 90)}
    return {**out, "wall_us": _us(_at(wall, 0.5)), "spread": round(_spread(own), 4)}


def _spread(times: Any) -> float:
    """Return half the interquartile range of sorted times over their median."""
    return float((_at(times, 0.75) - _at(times, 0.25)) / 2 / max(_at(times, 0.5), 1))


def _at(times: Any, share: float) -> float:
    """Return a quantile of sorted times, by linear interpolation."""
    place = share * (len(times) - 1)
    low = int(place)
    high = min(low + 1, len(times) - 1)
    return float(times[low] + (place - low) * (times[high] - times[low]))


def _us(nanoseconds: float) -> float:
    return round(max(nanoseconds, 1) / 1000, 3)


def _base(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def lines(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `Bench.line` for each visit of a task."""
    with torch.inference_mode():
        bench = Bench(task)
        for indices, is_whole in task["visits"]:
            gc.collect()
            gc.disable()
            try:
                line = bench.line(tuple(indices), is_whole)
            finally:
                gc.enable()
            yield line


def main() -> None:
    """Answer the task on standard input."""
    try:
        for line in lines(json.load(sys.stdin)):
            print(json.dumps(line), flush=True)
    except Exception as error:  # whatever the user's network raises
        print(json.dumps({"error": first_line(error)}), flush=True)


if __name__ == "__main__":
    main()
