import math

import pytest

from bsconv_nas.report.quantities import MISSING, cost, duration, magnitude, octave_ticks, percent, points


def test_costs_have_their_columns_unit():
    assert [cost(40_813_184, "macs"), cost(1536 * 1024, "memory"), cost(math.nan, "params")] == [
        "40.8 M",
        "1.5 MiB",
        MISSING,
    ]


def test_accuracies_have_two_digits_and_differences_a_sign():
    assert [percent(0.93214), percent(math.nan)] == ["93.21 %", MISSING]
    assert [points(0.0031), points(-0.0031), points(math.nan)] == ["+0.31", "\N{MINUS SIGN}0.31", MISSING]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (59, "59 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (3905, "1 h 5 min"), (math.inf, MISSING)],
)
def test_duration(seconds: float, text: str):
    assert duration(seconds) == text


def test_magnitude_is_exact_below_a_million():
    assert [magnitude(999_999), magnitude(2 * 10**13)] == ["999,999", "about 10¹³"]


def test_ticks_stand_whole_octaves_from_the_anchor():
    assert octave_ticks(2.4e6, 41e6, anchor=40e6) == [2.5e6, 5e6, 10e6, 20e6, 40e6]


@pytest.mark.parametrize("ratio", [1.05, 1.3, 2, 10, 1e4, 1e9])
def test_any_range_has_some_ticks_inside_it(ratio: float):
    ticks = octave_ticks(1e6, 1e6 * ratio, anchor=3e6)
    assert 3 <= len(ticks) <= 8
    assert all(1e6 * (1 - 1e-6) <= tick <= 1e6 * ratio * (1 + 1e-6) for tick in ticks)
