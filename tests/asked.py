"""One set of choices for networks of many kinds: what touches nothing in a base is left out, as a refusal advises."""

from collections.abc import Mapping

from bsconv_nas.errors import SpaceError
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices
from bsconv_nas.space.graph import Graph


def asked_of(graph: Graph, given: Mapping[str, object]) -> dict[str, object]:
    """Return the choices that a base has a use for."""
    try:
        make_table(graph, Choices.model_validate(given))
    except SpaceError as refused:
        key = str(refused).partition(" = ")[0]
        if not str(refused).endswith(f": leave {key} out."):
            raise
        return asked_of(graph, {name: value for name, value in given.items() if name != key})
    return dict(given)
