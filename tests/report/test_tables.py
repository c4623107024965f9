import pytest

from bsconv_nas.report.tables import baselines_table, front_table


@pytest.fixture
def rows(writer, network):
    writer.trial("baseline", network("bsconv_u", depth_layer2=1), 0.70)
    writer.trial("baseline", network("bsconv_s"), 0.50, state="failed", epochs=2)
    writer.trial("search", network("bsconv_u", depth_layer1=1), 0.60)
    writer.trial("search", network("bsconv_u", conv_layer1_0_conv1="regular", conv_layer1_0_conv2="dsc"), 0.72)
    key = network("bsconv_u", depth_layer2=1).key
    view = writer.view(fvcore={key: {"macs": 123}})
    return front_table(view), baselines_table(view)


def test_the_front_is_cheapest_first(rows):
    front, _ = rows
    assert [row.number for row in front] == [2, 0, 3]
    assert [row.costs["macs"] for row in front] == sorted(row.costs["macs"] for row in front)


def test_a_gap_is_the_searched_minus_the_uniform_network_that_costs_no_more(rows):
    front, baselines = rows
    assert [row.gap for row in front] == [None, pytest.approx(-0.10), pytest.approx(0.02)]
    assert {row.number: row.gap for row in baselines} == {0: pytest.approx(-0.10), 1: None}


def test_a_row_describes_its_network(rows):
    row = rows[0][2]
    assert row.layers == {"regular": 1, "dsc": 1, "bsconv_u": 16}
    assert row.families == {"regular": 1, "dsc": 1, "bsconv_u": 16}
    assert (row.widths, row.depths) == (("16", "32", "64"), ("3", "2", "2"))
    assert (row.epochs, row.seconds, row.state, row.fvcore) == (6, 6.0, "complete", None)


def test_fvcores_count_stands_with_its_network(rows):
    assert [row.fvcore for row in rows[0]] == [None, 123, None]


def test_failed_baselines_stay_in_their_table(rows):
    assert {row.number: row.state for row in rows[1]} == {0: "complete", 1: "failed"}
