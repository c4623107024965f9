"""Budgets: units, bands, FLOPs, and the sentences that refuse the rest."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsconv_nas.cost.budget import Budget, format_quantity, parse_quantity
from bsconv_nas.errors import BudgetError

COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
BYTES = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@given(st.decimals(0, 10**6, places=3), st.sampled_from(sorted(COUNTS)), st.sampled_from(["", " "]))
def test_units_of_counts_are_powers_of_1000(number: object, unit: str, space: str) -> None:
    assert parse_quantity(f"{number}{space}{unit}", "macs") == int(Fraction(str(number)) * COUNTS[unit])


@given(st.decimals(0, 10**6, places=3), st.sampled_from(sorted(BYTES)))
def test_units_of_memory_are_powers_of_1024(number: object, unit: str) -> None:
    assert parse_quantity(f"{number}{unit.lower()}", "memory") == int(Fraction(str(number)) * BYTES[unit])


@pytest.mark.parametrize(
    "value", [40_000_000, 4e7, "40M", "40 m", "40_000K", "4e7", "4e+7", "0.04G", np.int64(40_000_000)]
)
def test_one_bound_has_many_spellings(value: object) -> None:
    assert Budget(macs=value).bounds == {"macs": (0, 40_000_000)}
    assert parse_quantity(1e20, "macs") == 10**20


def test_flops_are_twice_the_macs_and_echoed_as_such() -> None:
    budget = Budget(flops="80M", params="1M")
    assert budget.bounds == Budget(macs="40M", params="1M").bounds
    assert str(budget) == "flops <= 80 M (2 x macs) and params <= 1 M"
    assert budget.to_json() == {"flops": [0, 80_000_000], "params": [0, 1_000_000]}
    assert str(Budget.from_json(budget.to_json())) == str(budget)
    assert Budget(flops=[3, 5]).bounds == {"macs": (2, 2)}


@pytest.mark.parametrize("value", [3, 3.0, "3 ms", "3000us", "0.003 s"])
def test_latencies_are_given_in_milliseconds_and_held_in_nanoseconds(value: object) -> None:
    budget = Budget(latency_ms=value, macs="1M")
    assert budget.bounds == {"latency_ns": (0, 3_000_000), "macs": (0, 10**6)}
    assert str(budget) == "latency <= 3 ms and macs <= 1 M"
    assert budget.to_json() == {"latency_ms": [0, 3.0], "macs": [0, 10**6]}
    assert budget.without("latency_ns") == Budget(macs="1M")
    assert budget.without("macs") == Budget(latency_ms=[0, 3])


def test_a_band_has_two_ends_and_both_belong_to_it() -> None:
    budget = Budget(macs=["1K", "2K"], memory="1KiB")
    assert budget.bounds == {"macs": (1000, 2000), "memory": (0, 1024)}
    costs = {"macs": np.array([999, 1000, 2000, 2001, 1500]), "memory": np.array([0, 1024, 0, 0, 1025])}
    assert budget.feasible(costs).tolist() == [False, True, True, False, False]


def test_violations_are_relative_to_the_bounds_and_add_up() -> None:
    budget = Budget(macs=[1000, 2000], memory=1024)
    costs = {"macs": np.array([500, 3000, 1500, 4000]), "memory": np.array([0, 0, 2048, 1536])}
    assert budget.violations(costs).tolist() == [0.5, 0.5, 1.0, 1.5]


def test_no_bound_is_kept_by_all() -> None:
    assert Budget().feasible({"macs": np.array([1, 10**15])}).all()
    assert (str(Budget()), Budget().to_json()) == ("no bound", {})


@given(
    st.dictionaries(
        st.sampled_from(["macs", "params", "memory", "latency_ms"]),
        st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)).map(sorted),
    )
)
def test_a_budget_survives_json(columns: dict[str, list[int]]) -> None:
    budget = Budget(**columns)
    assert Budget.from_json(budget.to_json()) == budget


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"mac": "1M"},
            r"Unknown budget 'mac': valid are 'flops', 'latency_ms', 'macs', 'memory', 'params'; did you mean 'macs'",
        ),
        ({"latency_ms": "3 m"}, r"Budget 'latency_ms' must be .* with a unit of us, ms, s, but got '3 m'\."),
        ({"latency_ns": 3}, r"Unknown budget 'latency_ns': valid are .*; did you mean 'latency_ms'"),
        ({"macs": "40 MB"}, r"Budget 'macs' must be a number of at least 0 with a unit of K, M, G, but got '40 MB'\."),
        ({"memory": "2M"}, r"Budget 'memory' must be .* with a unit of B, KiB, MiB, GiB, but got '2M'\."),
        ({"macs": -1}, r"at least 0 .*but got -1\."),
        ({"macs": True}, r"but got True\."),
        ({"macs": None}, r"but got None\."),
        ({"macs": float("nan")}, r"but got nan\."),
        ({"macs": "much"}, r"but got 'much'\."),
        ({"macs": ["1M"]}, r"A band of 'macs' must be \[low, high\], but got \['1M'\]\."),
        ({"macs": ["2M", "1M"]}, r"A band of 'macs' must have low <= high, but got \['2M', '1M'\]\."),
        ({"macs": "1M", "flops": "2M"}, r"must bound MACs once, but got both 'macs' and 'flops': keep one of them\."),
    ],
)
def test_a_malformed_budget_gets_one_sentence(columns: dict[str, object], sentence: str) -> None:
    with pytest.raises(BudgetError, match=sentence):
        Budget(**columns)


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (0, "macs", "0"),
        (999, "params", "999"),
        (1000, "params", "1 K"),
        (40_813_184, "macs", "40.8 M"),
        (999_999, "macs", "1e+03 K"),
        (5.2e12, "macs", "5,200 G"),
        (100, "memory", "100 B"),
        (2_712_345, "latency_ns", "2.71 ms"),
        (999, "latency_ns", "999 ns"),
        (12_500_000_000, "latency_ns", "12.5 s"),
        (65_536, "memory", "64 KiB"),
        (1.5 * 2**20, "memory", "1.5 MiB"),
    ],
)
def test_quantities_are_shown_with_their_unit(value: float, column: str, text: str) -> None:
    assert format_quantity(value, column) == text
