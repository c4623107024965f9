"""The number of distinct networks against their enumeration."""

from small_spaces import S, traced

from bsconv_nas.network.models import cifar_resnet
from bsconv_nas.space.counting import count_networks
from bsconv_nas.space.table import Population, Table


def test_the_count_is_that_of_an_enumeration(table: Table, everything: Population) -> None:
    assert count_networks(table) == len({a.key for a in table.architectures(everything)})


def test_small_spaces_have_doubles_to_count_once(everything: Population, table: Table, name: str) -> None:
    assert count_networks(table) < len(everything) or name in ("no depth",)


def test_a_huge_space_is_counted_exactly() -> None:
    """56 layers of independent choices, and all of them tied to one."""
    free = traced(lambda: cifar_resnet(56), operators=S, widths=[1.0], depths="fixed")
    assert count_networks(free) == 3**54
    tied = traced(lambda: cifar_resnet(56), operators=S, widths=[1.0, 2.0], scope="network", width_scope="layer")
    assert count_networks(tied) > 2**30
