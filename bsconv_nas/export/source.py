"""A network as readable Python that imports nothing but torch.

Layers of torch.nn become constructor calls. Every other module class is traced on its own and becomes a class that
takes its children as arguments; modules with one class name, one forward and the same children share it. Repeated parts
become functions of the numbers in which they differ. Identities are left out. The state-dict keys are those of the
network.
"""

from __future__ import annotations

import copy
import itertools
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bsconv_nas.errors import ExportError
from bsconv_nas.export.classes import module_class, name_classes
from bsconv_nas.export.expression import WIDTH, Argument, Call, Items, Literal, is_name, render
from bsconv_nas.export.layers import empty, is_idle, layer, torch_class
from bsconv_nas.export.repeats import Function, skeleton, unify

__all__ = ["write_source"]

RESERVED = {"F", "OrderedDict", "math", "model", "nn", "torch"}
STANDARD_IMPORTS = {"from collections import OrderedDict": "OrderedDict", "import math": "math."}
TORCH_IMPORTS = {"import torch": "torch.", "import torch.nn.functional as F": "F.", "from torch import nn": "nn."}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList)
LONGEST_JOINED_NAME = 4
USAGE = """\
{title}

    import safetensors.torch
    from model import model

    network = model()
    network.load_state_dict(safetensors.torch.load_file("weights.safetensors"))
    network.eval()
"""


def write_source(
    model: nn.Module, title: str = "", input_size: Sequence[int] | None = None, preparation: str = ""
) -> str:
    """Return the source of a Python file whose `model()` builds the network without its weights.

    Args:
        model: the network; it is not changed.
        title: the first line of the file's docstring.
        input_size: (C, H, W), named in the docstring.
        preparation: what has to be done to an image first, a sentence for the docstring.

    Raises:
        ExportError: a module that cannot be written in torch alone, with its path and what to do.
    """
    _check_tensors(model)
    title = title or f"{type(model).__name__}, a network of plain torch layers."
    title = textwrap.fill(title.replace("\\", "/").replace('"', "'"), WIDTH - len('"""'))
    shape = "" if input_size is None else f"It takes images of shape (N, {', '.join(map(str, input_size))})."
    takes = textwrap.fill(f"{shape} {preparation}".strip(), WIDTH)
    takes = f"\n{takes}\n" if takes else ""
    code = "\n\n\n".join("\n".join(lines) for lines in _Writer(copy.deepcopy(model).cpu().eval()).definitions())
    return f'"""{USAGE.format(title=title)}{takes}"""\n\n{_imports(code)}\n\n\n{code}\n'


def _imports(code: str) -> str:
    blocks = [
        [line for line, use in block.items() if re.search(rf"(?<![\w.]){re.escape(use)}", code)]
        for block in (STANDARD_IMPORTS, TORCH_IMPORTS)
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _check_tensors(model: nn.Module) -> None:
    """Refuse what a file of float32 tensors, each under one name, cannot hold, and hooks, which are no code."""
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first := seen.get(id(tensor)):
            raise ExportError(
                f"Tensors must not be shared in an exported network, but {first!r} and {name!r} are one: "
                "give each module its own."
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(
                f"Weights must be float32 in an export, but {name!r} is {tensor.dtype}: call float() first."
            )
        seen[id(tensor)] = name
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ExportError(f"An exported network must have no forward hooks, but {path!r} has: remove them first.")


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A module at its path; the children of a torch.nn layer are its own business."""

    path: str
    module: nn.Module
    torch_class: type[nn.Module] | None
    children: dict[str, _Part]

    @property
    def height(self) -> int:
        """Levels below the part."""
        return max((1 + child.height for child in self.children.values()), default=0)

    def walk(self) -> Iterator[_Part]:
        """Yield the part and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()


def _part(path: str, module: nn.Module) -> _Part:
    cls = torch_class(module)
    inside = module._modules.items() if cls in (None, *CONTAINERS) else ()
    children = {name: _part(f"{path}.{name}".strip("."), child) for name, child in inside if child is not None}
    if cls in (None, nn.ModuleDict):  # what they call is skipped in the forward
        children = {name: child for name, child in children.items() if not is_idle(child.module)}
    return _Part(path, module, cls, children)


class _Writer:
    """Writes the module tree from the leaves up, so that what repeats on one level is a function on the next."""

    def __init__(self, model: nn.Module) -> None:
        self.root = _part("", model)
        parts = sorted(self.root.walk(), key=lambda part: part.height)
        self.levels = [list(level) for _, level in itertools.groupby(parts, key=lambda part: part.height)]
        own = [part for part in parts if part.torch_class is None]
        self.classes = {part.path: module_class(part.module, tuple(part.children), part.path) for part in own}
        self.indexed = {
            f"{path}.{outer}".strip(".")
            for path, cls in self.classes.items()
            for target in cls.reached
            for outer in itertools.accumulate(target.split(".")[:-1], "{}.{}".format)
        }
        self.taken = set(RESERVED)
        self.names = name_classes(self.classes.values(), self.taken)
        self.functions: list[Function] = []
        self.calls: dict[str, Call] = {}

    def definitions(self) -> list[list[str]]:
        """Return the lines of each class, of each function and finally of `model`."""
        for level in self.levels:
            self.calls |= {part.path: self._call(part) for part in level}
            self._replace_repeats(level)
        docstring = '    """Return the network with fresh weights."""'
        model = ["def model() -> nn.Module:", docstring, *render(self.calls[""], 1, "return ")]
        classes = dict.fromkeys(self.classes.values())
        return [*(cls.lines(self.names[cls]) for cls in classes), *(f.lines() for f in self.functions), model]

    def _call(self, part: _Part) -> Call:
        children = {name: self.calls[child.path] for name, child in self._needed(part).items()}
        if part.torch_class is None:
            cls = self.classes[part.path]
            return cls.call(self.names[cls], part.module, children.values(), part.path)
        if part.torch_class in CONTAINERS:
            return _container(part.torch_class, part.module, children)
        return layer(part.module, part.torch_class, part.path)

    def _needed(self, part: _Part) -> dict[str, _Part]:
        """Return the children without idle ones; where they go by their position, without those behind the last."""
        if part.torch_class not in (nn.Sequential, nn.ModuleList):
            return part.children
        busy = [i for i, child in enumerate(part.children.values()) if not is_idle(child.module)]
        by_position = part.torch_class is nn.ModuleList or part.path in self.indexed
        kept = range(max(busy, default=-1) + 1) if by_position else busy
        return {name: child for i, (name, child) in enumerate(part.children.items()) if i in kept}

    def _class_name(self, part: _Part) -> str:
        own = self.classes.get(part.path)
        return self.names[own] if own else type(part.module).__name__

    def _replace_repeats(self, level: list[_Part]) -> None:
        """Replace calls that differ only in numbers by calls of one function."""
        alike: dict[object, list[_Part]] = defaultdict(list)
        for part in level:
            if part.torch_class in (None, nn.Sequential) and part is not self.root:
                alike[type(part.module), skeleton(self.calls[part.path])].append(part)
        for parts in alike.values():
            name = _function_name(parts, self._class_name(parts[0]))
            unified = name and unify([self.calls[part.path] for part in parts], name, self.taken)
            if unified:
                self.functions.append(unified[0])
                self.calls |= zip((part.path for part in parts), unified[1], strict=True)


def _container(cls: type[nn.Module], module: nn.Module, children: dict[str, Call]) -> Call:
    """Return the call of a container: numbered children are arguments or a list, named ones an OrderedDict."""
    arguments = tuple(Argument("", call, positional=True) for call in children.values())
    if isinstance(module, nn.ParameterList):
        arguments = (Argument("", Items(tuple(map(empty, module))), positional=True),)
    elif isinstance(module, nn.ModuleList):
        arguments = (Argument("", Items(tuple(children.values())), positional=True),)
    elif isinstance(module, nn.ModuleDict) or list(children) != [str(i) for i in range(len(children))]:
        arguments = (Argument("", _ordered_dict(children), positional=True),)
    return Call(f"nn.{cls.__name__}", arguments)


def _ordered_dict(children: dict[str, Call]) -> Call:
    if all(map(is_name, children)):
        return Call("OrderedDict", tuple(Argument(name, call) for name, call in children.items()))
    pairs = tuple(Items((Literal(name), call), "()") for name, call in children.items())
    return Call("OrderedDict", (Argument("", Items(pairs), positional=True),))


def _function_name(parts: list[_Part], class_name: str) -> str:
    """Return what to call the function that builds `parts`, or nothing where no name fits them all.

    That is the class's name; for a bare nn.Sequential its named children, its own name in all places, or its layers.
    """
    first = parts[0]
    if class_name != "Sequential":
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name.strip("_")).lower()
    places = {part.path.rpartition(".")[2] for part in parts}
    if all(map(is_name, first.children)):
        return _joined(list(first.children))
    if len(places) == 1 and is_name(place := places.pop()):
        return place
    busy = (child.module for child in first.children.values() if not is_idle(child.module))
    layers = [type(module).__name__.lower().removesuffix("2d") for module in busy]
    return "" if any(child.children for child in first.children.values()) else _joined(layers)


def _joined(names: list[str]) -> str:
    return "_".join(names) if len(names) <= LONGEST_JOINED_NAME else f"{names[0]}_to_{names[-1]}"
