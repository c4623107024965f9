"""Module classes of an exported file: `__init__` takes the children and tensors, `forward` is the traced one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bsconv_nas.errors import ExportError
from bsconv_nas.export.expression import Argument, Call, Literal, is_name, literal, signature, unique
from bsconv_nas.export.forward import forward
from bsconv_nas.export.layers import constant, empty

__all__ = ["ModuleClass", "module_class", "name_classes"]

REGISTER = {
    "number": "self.{0} = {0}",
    "parameter": "self.{0} = nn.Parameter({0})",
    "buffer": 'self.register_buffer("{0}", {0})',
    "constant": 'self.register_buffer("{0}", {0}, persistent=False)',
}
EVALUATION_ONLY = '    """The forward of evaluation: the original acts differently in training mode."""'
# torchvision's StochasticDepth (Huang et al., arXiv 1603.09382), whose forward is no torch function.
STOCHASTIC_DEPTH = """\
if not self.training or self.p == 0.0:
    return x
rows = x.shape[0] if self.mode == "row" else 1
kept = torch.rand([rows] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device) >= self.p
return x * kept / max(1.0 - self.p, 1e-12)"""


@dataclass(frozen=True, slots=True)
class ModuleClass:
    """A class of the exported file: modules with equal ones share it.

    `held` maps the other constructor arguments to how they are kept; `reached` are paths read inside the children.
    """

    base: str
    children: tuple[str, ...]
    held: tuple[tuple[str, str], ...]
    params: tuple[str, ...] | None
    body: tuple[str, ...] = ()
    reached: tuple[str, ...] = ()
    evaluation_only: bool = False

    def lines(self, name: str) -> list[str]:
        """Return the lines of the definition under `name`."""
        docstring = [EVALUATION_ONLY, ""] if self.evaluation_only else []
        body = [*self._init(), *self._forward()] or ["    pass"]
        return [f"class {name}(nn.Module):", *docstring, *body]

    def call(self, name: str, module: nn.Module, children: Iterable[Call], path: str) -> Call:
        """Return the constructor call that rebuilds `module`, whose children are `children`."""
        given = [Argument(param, call) for param, call in zip(self._params(), children, strict=True)]
        kept = [Argument(key, _value(getattr(module, key), kind, f"{path}.{key}")) for key, kind in self.held]
        return Call(name, (*given, *kept))

    def _params(self) -> list[str]:
        """Return the constructor arguments of the children: their names, or what is made of one that is no name."""
        taken = {"self", *(key for key, _ in self.held), *filter(is_name, self.children)}
        made = (re.sub(r"\W", "_", f"child_{child}") for child in self.children)
        return [
            child if is_name(child) else unique(name, taken) for child, name in zip(self.children, made, strict=True)
        ]

    def _init(self) -> Iterator[str]:
        if not self.children and not self.held:
            return
        params = ["self", *self._params(), *(key for key, _ in self.held)]
        yield from signature("def __init__", params, ":", 1)
        yield "        super().__init__()"
        for child, param in zip(self.children, self._params(), strict=True):
            plain = f"self.{child} = {param}"
            yield f"        {plain if is_name(child) else f'self.add_module({literal(child)}, {param})'}"
        for key, kind in self.held:
            yield f"        {REGISTER[kind].format(key)}"

    def _forward(self) -> Iterator[str]:
        if self.params is not None:
            yield from [""] if self.children or self.held else []
            yield from signature("def forward", ["self", *self.params], ":", 1)
            yield from (f"        {line}" for line in self.body)


def module_class(module: nn.Module, children: tuple[str, ...], path: str) -> ModuleClass:
    """Return the class that `module` needs.

    Raises:
        ExportError: its forward cannot be written in torch alone.
    """
    base = type(module).__name__.strip("_")
    if type(module).__module__ == "torchvision.ops.stochastic_depth":
        numbers = (("p", "number"), ("mode", "number"))
        return ModuleClass(base, (), numbers, ("x",), tuple(STOCHASTIC_DEPTH.splitlines()))
    tensors = [(name, "parameter") for name, value in module._parameters.items() if value is not None]
    transient = module._non_persistent_buffers_set
    for name, value in module._buffers.items():
        if value is not None:
            tensors.append((name, "constant" if name in transient else "buffer"))
    if getattr(module.forward, "__func__", None) is nn.Module.forward:
        return ModuleClass(base, children, tuple(tensors), None)
    written = forward(module, path)
    for name in written.constants:
        if "." in name:
            raise ExportError(
                f"A module must read no plain tensors of its children to become source, but {path!r} reads {name!r}: "
                "register it as a buffer."
            )
        tensors.append((name, "constant"))
    return ModuleClass(
        base, children, tuple(tensors), written.params, written.lines, written.reached, written.evaluation_only
    )


def name_classes(classes: Iterable[ModuleClass], taken: set[str]) -> dict[ModuleClass, str]:
    """Return a name for each distinct class: the one with the fewest children keeps the original's name.

    A variant with one more child is named after it, such as BasicBlockWithDownsample; others are numbered.
    """
    plainest: dict[str, ModuleClass] = {}
    names = {}
    for cls in sorted(dict.fromkeys(classes), key=lambda cls: len(cls.children)):
        first = plainest.setdefault(cls.base, cls)
        extra = [child for child in cls.children if child not in first.children]
        suffix = "With" + extra[0].title().replace("_", "") if len(extra) == 1 and is_name(extra[0]) else ""
        names[cls] = unique(cls.base + suffix, taken, "")
    return names


def _value(value: object, kind: str, path: str) -> Call | Literal:
    if not isinstance(value, torch.Tensor):
        return Literal(value)
    return constant(value, path) if kind == "constant" else empty(value)
