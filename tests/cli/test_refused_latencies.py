"""What the command line refuses of tables of latencies and of the measuring of them: a row each."""

from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import FILE, SEARCH, Done, Row, check_refused, nothing, real_command, write

LATENCIES = """{"format": 1, "space": "other", "environment": {"device": "AMD EPYC"}, "setting": {"threads": 1},
"correction": {"kinds": {}}, "units": {"relu 1@1x1": {"p50_us": 2.5, "p90_us": 3.0, "spread": 0.0, "networks": 2}}}"""
TABLE = [
    Row(
        f"{SEARCH} --set latency.table=none.json",
        nothing,
        "No latency table '.../none.json': check the path, or measure it by bsconv-nas latency measure.",
    ),
    Row(
        f"{SEARCH} --set latency.table=mine.py",
        nothing,
        "Latency table '.../mine.py' must be what bsconv-nas latency measure writes, but: Expecting value: line 2 "
        "column 1 (char 1).",
    ),
    Row(
        f"{SEARCH} --set latency.table=t.json --set latency.precision=bf16",
        write("t.json", LATENCIES),
        "Latency table '.../t.json' must be measured with latency.precision = 'bf16', but was with 'fp32': take "
        "another table, or leave that key out.",
    ),
    Row(
        f"{SEARCH} --set latency.table=t.json --set latency.processor=Cortex-A76",
        write("t.json", LATENCIES),
        "Latency table '.../t.json' must be measured with latency.processor = 'Cortex-A76', but was with 'AMD EPYC'"
        ": ...",
    ),
    Row(
        f"{SEARCH} --set latency.table=t.json --set budget.latency_ms=3",
        write("t.json", LATENCIES),
        "The latency table was measured for space 'other' and lacks ... units that networks of this space (images of "
        "1x8x8) can have, 'batchnorm2d 1@8x8', ... ...: measure them by bsconv-nas latency measure SPACE.",
    ),
    Row(
        f"{SEARCH} --set latency.table=t.json",
        write("t.json", LATENCIES.replace("2.5,", "-2.5,")),
        "Times in latency table '.../t.json' must be positive numbers, but p50_us of 'relu 1@1x1' is -2.5: measure it "
        "anew.",
    ),
    Row(
        f"{SEARCH} --set latency.thread=4",
        nothing,
        f"Unknown key 'latency.thread' in '{FILE} --set latency.thread=4': valid are ...; did you mean 'threads'.",
    ),
    Row(
        "latency measure spaces/resnet8.toml --device cuda",
        nothing,
        "Device, backend and precision must be tested together, and cuda eager fp32 is not: take one of cpu eager "
        "bf16, cpu eager fp32.",
        True,
    ),
    Row(
        "latency measure spaces/resnet8.toml --device tpu",
        nothing,
        "Invalid value for '--device': ...'tpu' is not one of 'cpu', 'cuda'; see bsconv-nas latency measure --help.",
    ),
    Row("latency measure none.toml", nothing, "No file 'none.toml': check the path, relative to ..."),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_bad_input_is_refused(row: Row, place: Path, bsconv_nas: Callable[[str], Done]) -> None:
    check_refused(row, place, bsconv_nas)


@pytest.mark.parametrize("row", [row for row in TABLE if row.process], ids=lambda row: row.command.split()[0])
def test_bad_input_is_refused_by_the_real_command(row: Row, place: Path) -> None:
    check_refused(row, place, real_command)
