"""Tables of measured latencies: how they were measured, as readable text, and what they predict; without torch.

A log has a line for each network that was timed, unit by unit, some also as wholes. A table is what it adds up to: the
latency of every unit, and a correction that is linear in the units, so that a network's prediction stays a sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from bsconv_nas.cost.analytic import CostModel, NodeLatency
from bsconv_nas.cost.latency_units import kind_of, node_units, reachable
from bsconv_nas.errors import LatencyError
from bsconv_nas.space.table import At, Table

__all__ = ["Correction", "LatencyTable", "Setting", "Unit", "cost_model", "predictor"]

FORMAT = 1
TESTED = {("cpu", "eager", "fp32"), ("cpu", "eager", "bf16")}
LISTED = 3  # missing units that an error names


@dataclass(frozen=True, slots=True)
class Setting:
    """How networks are run: where, by what, how many images at once, on how many threads, in which precision.

    Raises:
        LatencyError: a pair that nobody has tested.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["eager", "compile", "onnxruntime"] = "eager"
    batch: int = 1
    threads: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not tested: a wrong latency looks like a right one."""
        if (self.device, self.backend, self.precision) not in TESTED:
            known = ", ".join(" ".join(row) for row in sorted(TESTED))
            raise LatencyError(
                f"Device, backend and precision must be tested together, and {self.device} {self.backend} "
                f"{self.precision} is not: take one of {known}."
            )

    @property
    def clock(self) -> str:
        """What times are taken with: on one thread its CPU time, which other processes hardly move, else the wall's."""
        return "thread" if self.device == "cpu" and self.threads == 1 and self.backend == "eager" else "wall"

    @property
    def name(self) -> str:
        """The setting as a part of a file's name."""
        parts = self.backend, self.precision, f"batch{self.batch}", f"threads{self.threads}"
        return "-".join([*parts, *(["channels-last"] if self.channels_last else [])])


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's latency [us]: median, 90th percentile, and by what part medians differ between networks.

    `networks` is how many it was timed in; 0 marks an interpolated one.
    """

    p50_us: float
    p90_us: float
    spread: float
    networks: int


@dataclass(frozen=True, slots=True)
class Correction:
    """What a prediction adds: a factor and a constant [us] for units of each kind, and a constant for a network [us].

    `networks` is how many whole networks it was fitted to, `spread` the median of their repeats' relative spreads.
    """

    kinds: Mapping[str, tuple[float, float]]
    constant_us: float = 0.0
    networks: int = 0
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """A table file: the space and environment that it was measured in, its units and the correction."""

    space: str
    environment: Mapping[str, str]
    setting: Setting
    units: Mapping[str, Unit]
    correction: Correction

    def latency_us(self, key: str) -> float:
        """Return the corrected latency of a unit [us]; never negative."""
        factor, constant = self.correction.kinds.get(kind_of(key), (1.0, 0.0))
        return max(0.0, factor * self.units[key].p50_us + constant)

    def plain_us(self, keys: Iterable[str]) -> float:
        """Return the sum of some units' latencies as they were measured [us]."""
        return sum(self.units[key].p50_us for key in keys)

    def save(self, path: Path) -> None:
        """Write the table as readable text: one line a unit."""
        head = {
            "format": FORMAT,
            "space": self.space,
            "environment": dict(self.environment),
            "setting": asdict(self.setting),
            "correction": asdict(self.correction),
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(asdict(unit))}" for key, unit in sorted(self.units.items())]
        text = json.dumps(head, indent=1)[:-2] + ',\n "units": {\n' + ",\n".join(lines) + "\n }\n}\n"
        draft = path.with_suffix(".tmp")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Return the table of a file.

        Raises:
            LatencyError: no such file, no table, or a time that is none.
        """
        path = Path(path)
        if not path.is_file():
            raise LatencyError(
                f"No latency table {str(path)!r}: check the path, or measure it by bsconv-nas latency measure."
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise LatencyError(
                    f"Latency table {str(path)!r} must be of format {FORMAT}, but is of {data['format']!r}: measure it "
                    "anew."
                )
            kinds = {kind: (float(a), float(b)) for kind, (a, b) in data["correction"]["kinds"].items()}
            table = cls(
                str(data["space"]),
                {str(key): str(value) for key, value in data["environment"].items()},
                Setting(**data["setting"]),
                {key: Unit(**row) for key, row in data["units"].items()},
                Correction(**{**data["correction"], "kinds": kinds}),
            )
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise LatencyError(
                f"Latency table {str(path)!r} must be what bsconv-nas latency measure writes, but: {error}."
            ) from None
        table._check_times(str(path))
        return table

    def _check_times(self, where: str) -> None:
        for key, unit in self.units.items():
            for field in fields(unit)[:2]:
                value = getattr(unit, field.name)
                if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                    raise LatencyError(
                        f"Times in latency table {where!r} must be positive numbers, but {field.name} of {key!r} is "
                        f"{value!r}: measure it anew."
                    )

    def check(self, asked: Mapping[str, object], where: str) -> None:
        """Refuse a table that was measured otherwise than asked.

        Args:
            asked: fields of `Setting`, or `processor`, the device's name.
            where: what the table is called.

        Raises:
            LatencyError: says what differs.
        """
        own = {**asdict(self.setting), "processor": self.environment.get("device", "")}
        for key, value in asked.items():
            if own[key] != value:
                raise LatencyError(
                    f"Latency table {where!r} must be measured with latency.{key} = {value!r}, but was with "
                    f"{own[key]!r}: take another table, or leave that key out."
                )


def predictor(latencies: LatencyTable, table: Table) -> NodeLatency:
    """Return the predicted latency of each node of a space [ns]; a network's is the sum over its nodes.

    Raises:
        LatencyError: the table lacks units of the space.
    """
    known = latencies.units.keys()
    if missing := [key for key in reachable(table) if key not in known]:
        shown = ", ".join(map(repr, missing[:LISTED])) + (" ..." if len(missing) > LISTED else "")
        size = "x".join(map(str, table.graph.input_size))
        raise LatencyError(
            f"The latency table was measured for space {latencies.space!r} and lacks {len(missing)} units that "
            f"networks of this space (images of {size}) can have, {shown}: measure them by bsconv-nas latency measure "
            "SPACE."
        )
    nanoseconds = {key: round(1000 * latencies.latency_us(key)) for key in known}
    constant = round(1000 * latencies.correction.constant_us)
    first = next(i for i, node in enumerate(table.graph.nodes) if node.op == "placeholder")

    def latency(index: int, at: At) -> int:
        own = constant if index == first else 0
        return own + sum(nanoseconds[key] for key in node_units(table, index, at))

    return latency


def cost_model(table: Table, latencies: LatencyTable | None = None) -> CostModel:
    """Return the costs of a space, predicted latencies among them where there is a table of measured ones."""
    return CostModel(table, None if latencies is None else predictor(latencies, table))
