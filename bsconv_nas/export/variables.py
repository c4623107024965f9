"""Variables of a written `forward`: which values share one, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from torch import fx

from bsconv_nas.export.expression import is_name, unique

__all__ = ["is_inlined", "is_size", "operator_name", "variables"]

INFIX = {
    **{"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@"},
    **{"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and_": "&", "or_": "|", "xor": "^"},
}
RESERVED = {"F", "OrderedDict", "math", "nn", "self", "torch"}
AXES = ("n", "c", "h", "w")

_Chain = list[fx.Node]  # the values that one variable holds, one after the other


def variables(nodes: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """Return the variable of each value of a graph that has one.

    A value takes over the variable of an operand that ends with it, as in `out = self.bn1(out)`.
    """
    written = [node for node in nodes if not is_inlined(node)]
    order = {node: position for position, node in enumerate(nodes)}
    last_use = {value: order[node] for node in written for value in _operands(node)}
    chains: list[_Chain] = []
    chain_of: dict[fx.Node, _Chain] = {}
    for node in written:
        if node.op != "output" and (node.users or node.op == "placeholder"):
            operands = [chain_of[value] for value in _operands(node)]
            ended = [c for c in operands if last_use[c[-1]] <= order[node] and not _is_unpacked(c[-1])]
            chain = _taken_over(node, operands, ended)
            if chain is None:
                chains.append(chain := [])
            chain.append(node)
            chain_of[node] = chain
    names = dict(zip(map(id, chains), _names(chains), strict=True))
    return {node: names[id(chain)] for node, chain in chain_of.items()}


def is_inlined(node: fx.Node) -> bool:
    """Whether the value stands in its user's statement: attributes and shapes always, items where used once."""
    if node.op == "get_attr" or is_size(node):
        return True
    item = node.target is getattr or operator_name(node) == "getitem" or node.target == "size"
    return item and len(node.users) <= 1


def is_size(node: object) -> bool:
    """Whether the value is a tensor's shape."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is getattr:
        return str(node.args[1]) == "shape"
    return node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs


def operator_name(node: fx.Node) -> str:
    """Return the name in Python's operator module, or nothing."""
    if node.op != "call_function" or getattr(node.target, "__module__", "") != "_operator":
        return ""
    return cast("str", getattr(node.target, "__name__", ""))


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the values in variables that the statement of `node` reads, those behind inlined ones included."""
    return [value for i in node.all_input_nodes for value in (_operands(i) if is_inlined(i) else [i])]


def _taken_over(node: fx.Node, operands: list[_Chain], ended: list[_Chain]) -> _Chain | None:
    """Return the chain that `node` continues, if any.

    A branch that only joins others keeps a name of its own, and so does what is unpacked or is no tensor.
    """
    if _is_unpacked(node) or operator_name(node) == "getitem":
        return None
    alone = len({id(chain) for chain in operands}) == 1
    if alone and _only_joins(node):
        return next((chain for chain in ended if len(chain) > 1), None)
    if alone or operator_name(node) in INFIX:
        return ended[0] if ended else None
    return next((chain for chain in ended if chain[0].op == "placeholder" or len(chain) > 1), None)


def _is_unpacked(node: fx.Node) -> bool:
    return bool(node.users) and all(operator_name(user) == "getitem" for user in node.users)


def _only_joins(node: fx.Node) -> bool:
    """Whether all users of the value read others too, as an addition or a concatenation does."""
    return all(len(set(_operands(user))) > 1 for user in node.users)


def _names(chains: list[_Chain]) -> list[str]:
    taken = set(RESERVED)
    return [unique(_name(chain, taken), taken) for chain in chains]


def _name(chain: _Chain, taken: set[str]) -> str:
    """Return `out` for the main path, else the name of the layer or function that makes the value."""
    first, last = chain[0], chain[-1]
    if first.op == "placeholder":
        return "x" if first.target == "input" else str(first.target)
    if operator_name(first) == "getitem" and is_size(first.args[0]) and first.args[1] in range(len(AXES)):
        return AXES[cast("int", first.args[1])]
    if len(chain) > 1 and "out" not in taken:
        return "out"
    name = re.sub(r"\W|^_+|_\d+$", "", last.name)
    return name if is_name(name) else "out"
