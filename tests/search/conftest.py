from pathlib import Path

import pytest

from bsconv_nas.search.experiment import Experiment
from bsconv_nas.space.graph import Graph
from bsconv_nas.space.table import Dimension, Table

EXPERIMENT = """
space = "spaces/tiny.toml"
data = {name = "digits", root = "../data"}
recipe = {epochs = 3, milestones = [0.5, 0.75]}
[search]
trials = 6
sampler = {name = "nsga2", population_size = 8}
objectives = [{name = "val_accuracy", direction = "max"}, {name = "macs", direction = "min"}]
[budget]
macs = "20M"
[retrain]
recipe = {epochs = 9}
"""


@pytest.fixture
def experiment_file(tmp_path: Path) -> Path:
    path = tmp_path / "experiments" / "tiny.toml"
    path.parent.mkdir()
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return Experiment.load(experiment_file)


@pytest.fixture
def table() -> Table:
    """A table of 2 x 3 networks: names and options, no graph behind them."""
    dimensions = (
        Dimension("conv.a", "conv", ("regular", "bsconv_u"), ()),
        Dimension("width.stage1", "width", (0.5, 0.75, 1.0), ()),
    )
    return Table(Graph((), (), (), (), (3, 8, 8), 10), dimensions)
