import os
import tempfile
from pathlib import Path

import pytest

from bsconv_nas.errors import SearchError
from bsconv_nas.search.cluster import connected
from bsconv_nas.search.experiment import Resources


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("somewhere", "--address must be 'auto' or HOST:PORT, such as 10.0.0.1:6379, but got 'somewhere'"),
        ("ray://head:10001x", "--address must be 'auto' or HOST:PORT"),
        ("127.0.0.1:1", "must answer at --address '127.0.0.1:1', but: Connection refused; check host and port"),
        # Ray looks for 20 seconds.
        pytest.param("auto", "must run at --address 'auto', but there is none", marks=pytest.mark.slow),
    ],
)
def test_a_cluster_that_is_not_there_is_refused(address: str, said: str, tmp_path: Path) -> None:
    before = dict(os.environ)
    tempfile.tempdir = str(tmp_path)
    try:
        with pytest.raises(SearchError, match=said), connected(Resources(), 0, address):
            pytest.fail("connected to nothing")
    finally:
        tempfile.tempdir = None
    assert list(tmp_path.iterdir()) == []
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_")} == {
        name: value for name, value in before.items() if name.startswith("RAY_")
    }
