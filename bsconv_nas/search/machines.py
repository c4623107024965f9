"""What a search needs of the machines, looked at before anything slow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bsconv_nas.errors import SearchError
from bsconv_nas.search.address import check_address
from bsconv_nas.search.experiment import Resources

__all__ = ["device", "joined"]


@contextlib.contextmanager
def joined(resources: Resources, address: str | None) -> Iterator[None]:
    """Be connected to the cluster at `address`, if one is named: what is wrong with it shows before anything slow.

    Raises:
        SearchError: no cluster answers there, or it cannot run a trial.
    """
    if address is None:
        yield
        return
    check_address(address)
    from bsconv_nas.search.cluster import concurrency, connected

    with connected(resources, 0, address):
        concurrency(resources)
        yield


def device(resources: Resources, address: str | None) -> str:
    """Return where trials are trained: `cuda` or `cpu`.

    Args:
        resources: of each trial.
        address: of the cluster that is joined; None is this machine, which must have what a trial asks for.

    Raises:
        SearchError: a trial asks for more GPUs than this machine has.
    """
    there, asked = _gpus(address), resources.gpus_per_trial
    if asked == "auto":
        return "cuda" if there else "cpu"
    if address is None and asked > there:
        raise SearchError(
            f"A trial needs {asked:g} GPU (resources.gpus_per_trial), but this machine has {there:g}: ask for less or "
            "name a cluster by --address."
        )
    return "cuda" if asked else "cpu"


def _gpus(address: str | None) -> float:
    if address is None:
        import torch

        return torch.cuda.device_count()
    from bsconv_nas.search.cluster import living_nodes

    return float(sum(node["Resources"].get("GPU", 0) for node in living_nodes()))
