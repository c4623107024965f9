"""From a module to its graph: one trace with torch.fx on the meta device.

This file and its neighbours `trace_*` are the only ones of the room that import torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn

from bsconv_nas.errors import SpaceError, suggest
from bsconv_nas.space.base import LARGEST
from bsconv_nas.space.graph import Block, Fixed, Graph, Group, Node
from bsconv_nas.space.places import Place
from bsconv_nas.space.trace_activations import with_own_activations
from bsconv_nas.space.trace_blocks import droppable_blocks, element, module_paths
from bsconv_nas.space.trace_failures import astray, check_hooks, check_shapes, copied, explained, misled, without_batch
from bsconv_nas.space.trace_places import fused
from bsconv_nas.space.trace_record import Recorder, label
from bsconv_nas.space.trace_rules import ACTIVATIONS, NORMS
from bsconv_nas.space.trace_symbolic import acts_as, frozen, reads_training, symbolic_graph
from bsconv_nas.space.trace_values import Variables

__all__ = ["trace"]

# By the names of their classes, what to take instead.
WRAPPERS = {
    "ScriptModule": "the module that it was made of",
    "OptimizedModule": "the module before torch.compile",
    "DataParallel": "its .module",
    "DistributedDataParallel": "its .module",
}


def trace(module: nn.Module, input_size: tuple[int, int, int], leaves: Sequence[str] = ()) -> Graph:
    """Return the graph of `module` for images of `input_size` (C, H, W), in eval mode, batch 1.

    Modules whose path matches one of `leaves` (shell wildcards) are kept whole.

    Raises:
        SpaceError: the module cannot be traced, or its forward fails at this size.

    >>> graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10)), (3, 8, 8))
    >>> [group.reason for group in graph.groups]
    ["the image's channels", '', "the network's output"]
    """
    if not isinstance(module, nn.Module):
        raise SpaceError(f"A base must be a torch.nn.Module, but got {type(module).__name__!r}: return the network.")
    if not (len(input_size) == 3 and all(type(n) is int and 1 <= n <= LARGEST for n in input_size)):
        raise SpaceError(
            f"input_size must be (channels, height, width), each from 1 to {LARGEST}, but got {input_size!r}."
        )
    _check_plain(module)
    check_shapes(module)
    check_hooks(module)
    _check_type(module)
    meta = with_own_activations(_in_evaluation(_without_values(module)))
    _check_leaves(meta, leaves)
    image = torch.empty(1, *input_size, dtype=torch.float32, device="meta")
    recorder, result = _recorded(module, meta, leaves, image)
    if not isinstance(result, torch.Tensor) or result.dim() != 2 or len(result) != 1:
        taken = without_batch(meta, image) if isinstance(result, torch.Tensor) and result.dim() < 2 else ""
        raise SpaceError(
            f"The forward of {type(module).__name__!r} must return logits of shape (N, classes) for a batch of shape "
            f"{tuple(image.shape)}, but returned {_shape_or_type(result)}"
            f"{f', {taken}' if taken else ': flatten and classify each image, or wrap the network'}."
        )
    if recorder.unread or reads_training(module):  # training may compute something else
        training, answer = _recorded(module, meta, leaves, image, recorder)
        _check_training(module, answer, result.shape)
        training.fix_what_is_new(recorder)
        recorder.read_in_training = recorder.unread.keys() - training.unread.keys()
    return _assemble(meta, recorder, input_size, int(result.shape[1]))


def _check_training(module: nn.Module, answer: Any, shape: torch.Size) -> None:
    """Refuse a forward that answers in training with anything but logits, auxiliary ones included."""
    if getattr(answer, "shape", None) == shape:
        return
    raise SpaceError(
        f"The forward of {type(module).__name__!r} must return logits of shape {tuple(shape)} in training too, but "
        f"returned {_shape_or_type(answer)}: {_other_answer(module, answer)}."
    )


def _other_answer(module: nn.Module, answer: Any) -> str:
    """Return what helps where a forward answers otherwise in training."""
    alone = "wrap the network so that it returns its logits alone"
    if not isinstance(answer, torch.Tensor):
        switch = next((name for name, value in vars(module).items() if "aux" in name and value is True), "")
        asked = f"base.arguments = {{ {switch} = false }}" if switch else "the base's own argument for that"
        return f"turn auxiliary outputs off by {asked}, or {alone}"
    return f"let it answer there as in evaluation, by one row of logits for each image, or {alone}"


def _recorded(
    module: nn.Module, meta: nn.Module, leaves: Sequence[str], image: torch.Tensor, other: Recorder | None = None
) -> tuple[Recorder, Any]:
    """Return the record of what `module` does with an image, and its answer; in training with that of evaluation.

    Raises:
        SpaceError: its forward fails even when it is simply called, cannot be traced, or needs values.
    """
    training, traced, recorder = other is not None, None, None
    try:
        traced = symbolic_graph(meta, leaves, training)
        recorder = Recorder(meta, traced.graph, traced.uses, other)
        with torch.no_grad(), frozen(meta):
            answer = recorder.run(image)
    except Exception as error:  # whatever the user's forward raises
        asked = traced.asked if traced else getattr(error, "asked", ())
        place = traced.places.get(recorder.running) if traced and recorder and recorder.running else None
        if line := astray(meta, asked, image):
            raise misled(module, line) from None
        raise explained(module, meta, image, training, error, place) from None
    if line := astray(meta, traced.asked, image):
        raise misled(module, line)
    return recorder, answer


def _check_plain(module: nn.Module) -> None:
    """Refuse what is around or instead of a module and hides its layers, or its forward."""
    for path, inner in module.named_modules():
        wrapper = next((cls.__name__ for cls in type(inner).__mro__ if cls.__name__ in WRAPPERS), None)
        if wrapper is not None:
            raise SpaceError(
                f"A base must show its layers, but {repr(path) if path else 'it'} is a {wrapper}: hand over "
                f"{WRAPPERS[wrapper]}."
            )
        given = vars(inner).get("forward")  # of an object; one of its own methods is copied with it
        if given is not None and (not path or getattr(given, "__self__", None) is not inner):
            raise SpaceError(
                f"A base must compute by the forward of its class, but {path or type(module).__name__!r} has been "
                "given another: write that as the forward of a class."
            )


def _check_type(module: nn.Module) -> None:
    """Refuse a base whose weights are all of another type than the images and the trainer have."""
    types = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if types and torch.float32 not in types:
        raise SpaceError(
            f"A base must have float32 weights, but those of {type(module).__name__!r} are {min(map(str, types))}: "
            "call its float()."
        )


def _in_evaluation(module: nn.Module) -> nn.Module:
    """Return a copy of the base in evaluation; refuse a base that could not be handed on in a mode."""
    if module.eval() is not module:
        raise SpaceError(
            f"The train of a base must return the base, as nn.Module's does, but that of {type(module).__name__!r} "
            "does not: end it by `return self`."
        )
    return module


def _without_values(module: nn.Module) -> nn.Module:
    """Return a copy on the meta device; weights that modules share stay shared."""
    empty: dict[int, Any] = {id(b): b.to("meta") for b in module.buffers()}
    empty |= {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    return copied(module, empty)


def _shape_or_type(result: Any) -> str:
    name = type(result).__name__.removeprefix("immutable_")  # as torch.fx calls its own lists and tables
    return str(tuple(result.shape)) if isinstance(result, torch.Tensor) else name


def _check_leaves(module: nn.Module, leaves: Sequence[str]) -> None:
    paths = [path for path, _ in module.named_modules() if path]
    for pattern in leaves:
        if not fnmatch.filter(paths, pattern):
            near = difflib.get_close_matches(pattern, paths, n=5, cutoff=0.0)
            raise SpaceError(
                f"base.leaves must match paths of modules, but {pattern!r} matches none: {suggest(pattern, near)}."
            )


def _assemble(module: nn.Module, recorder: Recorder, input_size: tuple[int, int, int], classes: int) -> Graph:
    variables, values = recorder.variables, recorder.values
    roots = sorted({variables.root(value.variable) for value in values.values()})
    blocks, kept = droppable_blocks(module, values, variables, recorder.uses)
    traced = [_node(module, recorder, n, roots, blocks) for n in values]
    unread = _count_unread(module, recorder, traced, blocks)
    resolutions = _resolutions(module, recorder)
    groups = tuple(_group(traced, blocks, variables, root, i, resolutions) for i, root in enumerate(roots))
    activations = {kind.__name__: name for kind, name in ACTIVATIONS.items() if isinstance(kind, type)}
    nodes = fused(traced, activations, _norms(module, values))
    widths = [Fixed(f"width.{group.name}", group.reason) for group in groups if group.reason]
    fixed = (*recorder.fixed, *kept, *_uncalled(module, recorder), *unread, *widths)
    return Graph(tuple(nodes), groups, tuple(blocks), fixed, input_size, classes)


def _norms(root: nn.Module, values: Iterable[fx.Node]) -> dict[str, str]:
    """Return the activation inside each batch norm by its path, "" for none; norms with anything else are left out."""
    found = {}
    for n in values:
        module = root.get_submodule(str(n.target)) if n.op == "call_module" else None
        if module is not None and acts_as(module) is nn.BatchNorm2d:
            inside = [type(child) for child in module.children() if not isinstance(child, nn.Identity)]
            if not inside or (len(inside) == 1 and inside[0] in ACTIVATIONS):
                found[str(n.target)] = ACTIVATIONS[inside[0]] if inside else ""
    return found


def _node(module: nn.Module, recorder: Recorder, n: fx.Node, roots: list[int], blocks: list[Block]) -> Node:
    value, fields = recorder.values[n], dict(recorder.fields[n])
    if place := fields.get("place"):
        spec = dataclasses.replace(place.spec, activation=_activation_behind(module, n))
        fields |= {"place": Place(place.role, spec, biases=(spec.bias,)), "parts": (str(n.target),)}
    paths = module_paths(n)
    return Node(
        name=n.name,
        op=n.op if n.op in ("placeholder", "get_attr") else _kind(module, n),
        path=str(n.target) if n.op in ("call_module", "get_attr") else "",
        shape=value.shape,
        group=roots.index(recorder.variables.root(value.variable)),
        features=value.features,
        block=next((i for i, b in enumerate(blocks) if b.path in paths), None),
        element=element(module, n),
        **fields,
    )


def _kind(module: nn.Module, n: fx.Node) -> str:
    return type(module.get_submodule(str(n.target))).__name__ if n.op == "call_module" else label(module, n)


def _count_unread(module: nn.Module, recorder: Recorder, nodes: list[Node], blocks: list[Block]) -> list[Fixed]:
    """Add the parameters that no call reads to a node of the block that holds them, and name them."""
    for path in recorder.unread.values():
        block = next((i for i, b in enumerate(blocks) if path.startswith(f"{b.path}.")), None)
        at = next(i for i, node in enumerate(nodes) if node.block == block)
        nodes[at] = dataclasses.replace(nodes[at], params=nodes[at].params + module.get_parameter(path).numel())
    reasons = {True: "its values are read in training alone", False: "its values are not read by the forward"}
    return [Fixed(path, reasons[key in recorder.read_in_training]) for key, path in recorder.unread.items()]


def _uncalled(module: nn.Module, recorder: Recorder) -> list[Fixed]:
    """Name the convolutions that the trace did not come by, and why."""
    called = {str(n.target) for n in recorder.graph.nodes if n.op == "call_module"}
    found = []
    for path, child in module.named_modules():
        if isinstance(child, nn.Conv2d) and path not in called:
            leaf = next((outer for outer in called if outer and path.startswith(f"{outer}.")), None)
            found.append(Fixed(f"conv.{path}", _whole(module, leaf) if leaf else "is not called"))
    return found


def _whole(root: nn.Module, leaf: str) -> str:
    why = ", as it computes something else in training" if reads_training(root.get_submodule(leaf)) else ""
    return f"inside {leaf}, which is kept whole{why}"


def _activation_behind(root: nn.Module, n: fx.Node) -> str:
    """Return the activation that the host applies behind a convolution, through or in its norm, or else relu."""
    for user in list(n.users)[:1]:
        module = root.get_submodule(str(user.target)) if user.op == "call_module" else None
        if module is not None and acts_as(module) in NORMS:
            inside = (ACTIVATIONS[type(child)] for child in module.children() if type(child) in ACTIVATIONS)
            return next(inside, None) or _activation_behind(root, user)
        return ACTIVATIONS.get(user.target if module is None else type(module), "relu")
    return "relu"


def _resolutions(module: nn.Module, recorder: Recorder) -> list[tuple[int, ...]]:
    """Return for each node the resolution at which the element of the sequential around it ends: its stage's."""
    homes = [element(module, n) or n.name for n in recorder.values]
    ends = {home: value.shape[1:] for home, value in zip(homes, recorder.values.values(), strict=True)}
    return [ends[home] for home in homes]


def _group(
    nodes: Sequence[Node],
    blocks: Sequence[Block],
    variables: Variables,
    root: int,
    index: int,
    resolutions: Sequence[tuple[int, ...]],
) -> Group:
    """Name a group by the first layer that writes it; it lives in a block if all that touches it does."""
    touching = [i for i, node in enumerate(nodes) if node.group == index]
    writers = [i for i in touching if nodes[i].is_layer] or touching
    return Group(
        name=nodes[writers[0]].path or nodes[writers[0]].name,
        channels=variables.channels[root],
        resolution=resolutions[writers[-1]],
        reason=variables.reason[root],
        block=_home([nodes[i].block for i in touching], blocks),
    )


def _home(inside: Sequence[int | None], blocks: Sequence[Block]) -> int | None:
    """Return the block that is dropped last of those inside, if all are dropped with one stage."""
    known = {i for i in inside if i is not None}
    if None in inside or len({blocks[i].stage for i in known}) != 1:
        return None
    return min(known, key=lambda i: blocks[i].position)
