import os
import signal
import tempfile
from pathlib import Path

import pytest

from bsconv_nas.errors import SearchError
from bsconv_nas.search import cluster
from bsconv_nas.search.cluster import connected
from bsconv_nas.search.experiment import Resources


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("somewhere", "--address must be 'auto' or HOST:PORT, such as 10.0.0.1:6379, but got 'somewhere'"),
        ("127.0.0.1:1", "must answer at --address '127.0.0.1:1', but: Connection refused; check host and port"),
        ("auto", "must answer at --address '127.0.0.1:2', but: Connection refused; check host and port"),
    ],
)
def test_a_cluster_that_is_not_there_is_refused(
    address: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    before = dict(os.environ)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SearchError, match=said), connected(Resources(), 0, address):
        pytest.fail("connected to nothing")
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before


def test_a_ctrl_c_while_ray_is_shut_down_is_heard_once_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shut = []

    def shutdown() -> None:
        signal.raise_signal(signal.SIGINT)
        shut.append("whole")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_start", lambda *arguments: None)
    monkeypatch.setattr(cluster.ray, "shutdown", shutdown)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a Ray of this process has left
    try:
        with pytest.raises(KeyboardInterrupt), connected(Resources(), 0):
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert shut == ["whole"]
