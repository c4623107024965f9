"""The table of latencies of a space on this device: plan, run processes that time networks, fit, write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bsconv_nas.api import SearchSpace
from bsconv_nas.cost.latency import LatencyTable, Setting
from bsconv_nas.cost.latency_cover import Visit, visits
from bsconv_nas.cost.latency_fit import correction, unit_latencies
from bsconv_nas.cost.latency_units import reachable
from bsconv_nas.errors import LatencyError
from bsconv_nas.search.environment import environment
from bsconv_nas.space.base import Base

__all__ = ["Plan", "here", "measure", "plan"]

CONTEXTS = 2  # networks in which each unit is timed
WHOLES = 60  # networks that are timed as wholes too; the correction is fitted to them
A_PROCESS = 24  # networks, after which a fresh process goes on
BUILDING = 0.5  # seconds to build and trace one
SPREAD, PASSES = 0.01, 24  # standard error at which passes end, and the most of them


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and where it is written: `log` grows by a line a network, `path` is made of it."""

    space: SearchSpace
    name: str
    setting: Setting
    path: Path

    @property
    def log(self) -> Path:
        """The lines of the networks timed so far."""
        return self.path.with_suffix(".jsonl")

    @property
    def units(self) -> list[str]:
        """The units that networks of the space can have."""
        return sorted(reachable(self.space.table))

    def seconds(self, networks: int) -> float:
        """Return about how long so many networks take [s]: as long as the base, which is run to know."""
        from bsconv_nas.cost.latency_measure import seconds

        once = seconds(self.space.build(self.space.table.base, 0), self.space.input_size, self.setting)
        return networks * (BUILDING + PASSES * (1 + WHOLES / max(WHOLES, networks)) * once)

    def lines(self) -> list[dict[str, Any]]:
        """Return the networks timed so far; a killed process leaves at most a torn last line, which is cut off."""
        if not self.log.is_file():
            return []
        text = self.log.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.log.write_text(whole, encoding="utf-8")
        return [json.loads(line) for line in whole.splitlines()]

    def left(self) -> list[Visit]:
        """Return the networks that are still to be timed."""
        lines, cells = self.lines(), reachable(self.space.table)
        timed = Counter(key for line in lines for key in line["units"])
        missing = Counter({key: CONTEXTS - timed[key] for key in cells if timed[key] < CONTEXTS})
        wholes = max(0, WHOLES - sum("whole" in line for line in lines))
        return list(visits(self.space.table, cells, missing, wholes, np.random.default_rng(len(lines))))


def here() -> dict[str, str]:
    """Return what a table's latencies hold for: the device and the versions of what ran on it; no host name."""
    found = environment()
    return {"device": found["device"], "system": found["system"], "torch": str(found["versions"]["torch"])}


def plan(space: SearchSpace, name: str, setting: Setting, out: Path = Path("latency")) -> Plan:
    """Return what is to be measured for a space called `name`; the table's file is named by its whole environment."""
    size = "x".join(map(str, space.input_size))
    parts = name, size, *(here()[key] for key in ("device", "torch"))
    stem = "-".join(re.sub(r"[^a-z0-9.]+", "_", part.lower()).strip("_") for part in parts)
    return Plan(space, name, setting, out / f"{stem}-{setting.name}.json")


def measure(
    asked: Plan, minutes: float | None = None, on_change: Callable[[int, int, float], None] = lambda *_: None
) -> LatencyTable:
    """Time networks until every unit of the space is known, write the table and return it.

    Args:
        asked: what and where.
        minutes: after so many the rest is interpolated.
        on_change: called after each network with how many are done, how many there are, and the time left [s].

    Raises:
        LatencyError: a network cannot be timed.
    """
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    asked.path.parent.mkdir(parents=True, exist_ok=True)
    left = asked.left()
    done, begin = 0, time.monotonic()
    on_change(0, len(left), 0.0)
    with asked.log.open("a", encoding="utf-8") as log:
        for line in _timed(asked, left):
            log.write(json.dumps(line) + "\n")
            log.flush()
            done += 1
            on_change(done, len(left), (time.monotonic() - begin) / done * (len(left) - done))
            if time.monotonic() > end:
                break
    table = fitted(asked)
    table.save(asked.path)
    return table


def fitted(asked: Plan) -> LatencyTable:
    """Return the table that the networks timed so far make."""
    lines = asked.lines()
    units = unit_latencies(lines, asked.units)
    return LatencyTable(asked.name, here(), asked.setting, units, correction(lines, units))


def _timed(asked: Plan, left: Sequence[Visit]) -> Iterator[dict[str, Any]]:
    """Yield a line for each network, timed in processes that a few networks share."""
    assert isinstance(asked.space.base, Base)  # a file names one
    task = {
        "base": asdict(asked.space.base),
        "table": asked.space.table.to_json(),
        "setting": asdict(asked.setting),
        "units": asked.units,
        "spread": SPREAD,
        "passes": PASSES,
    }
    for first in range(0, len(left), A_PROCESS):
        yield from _process({**task, "visits": left[first : first + A_PROCESS]})


def _process(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "bsconv_nas.cost.latency_measure"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(task))
            process.stdin.close()
            for text in process.stdout:
                line = json.loads(text)
                if "error" in line:
                    raise LatencyError(f"A network of the space must be timed here, but: {line['error']}.")
                yield line
        finally:
            process.kill()
    if process.returncode != 0:
        raise LatencyError("A process that times networks must not be killed, but was: run the command again.")
