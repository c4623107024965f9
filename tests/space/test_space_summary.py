"""The numbers of `space show` against the enumeration of small spaces."""

from bsconv_nas.cost.analytic import COLUMNS, CostModel
from bsconv_nas.space.summary import BINS, SAMPLES, summarise
from bsconv_nas.space.table import Population, Table


def test_a_summary_spans_the_space(table: Table, model: CostModel, everything: Population) -> None:
    summary = summarise(model)
    costs = model.costs(everything)
    assert summary.networks == len({a.key for a in table.architectures(everything)})
    assert (summary.dimensions, summary.fixed) == (table.dimensions, table.fixed)
    assert [column.name for column in summary.columns] == list(COLUMNS)
    for column in summary.columns:
        assert (column.least, column.most) == (costs[column.name].min(), costs[column.name].max())
        assert (len(column.counts), len(column.edges), sum(column.counts)) == (BINS, BINS + 1, SAMPLES)


def test_a_seed_decides_the_histograms(model: CostModel) -> None:
    assert summarise(model, seed=1) == summarise(model, seed=1)
