"""Why a network could not be traced: its own forward fails on such images, or it does what tracing cannot follow."""

from __future__ import annotations

import contextlib
import copy
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from bsconv_nas.errors import SpaceError, first_line
from bsconv_nas.space.trace_words import QUESTION, Line, Place, Untraceable, last_line, line_at, running_line

__all__ = [
    "MixedTypes",
    "astray",
    "check_hooks",
    "check_shapes",
    "check_types",
    "copied",
    "explained",
    "misled",
    "raised",
    "without_batch",
]

Size = tuple[int, int, int]
# What is tried where a forward fails: the sizes of common data sets [pixels], for this long, on networks of so many
# parameters.
PIXELS = (28, 32, 64, 96, 128, 224, 256, 299)
CHANNELS = (1, 3, 4)
SECONDS = 20
LARGEST_TRIED = 300_000_000
OLD_NORMS = (WeightNorm, SpectralNorm)
TABLES = {"_parameters", "_buffers", "_modules"}
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)
TYPED = (nn.modules.conv._ConvNd, nn.Linear, nn.PReLU, *NORMS)  # they take values of their weights' type alone
SHORT_FLOATS = (torch.float16, torch.bfloat16)


class MixedTypes(Exception):
    """A layer meets values of another type than its weights, which the meta device lets pass."""


def check_shapes(module: nn.Module) -> None:
    """Refuse a base whose weights take their shapes from its first batch."""
    for path, tensor in module.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise SpaceError(
                f"The weights of a base must have shapes, but {path!r} of {type(module).__name__!r} is lazy: name its "
                "channels."
            )


def check_hooks(module: nn.Module) -> None:
    """Refuse a base with a hook whose closure holds a module of it: copies would call the hook of the original."""
    own = {*module.modules()}
    for path, inner in module.named_modules():
        for hook in (*inner._forward_hooks.values(), *inner._forward_pre_hooks.values()):
            if any(held in own for held in _modules_in_closure(hook)):
                raise SpaceError(
                    f"A base must be copied with its hooks, but one of {path!r} ({type(inner).__name__}) holds the "
                    "network in a closure, which copies share: let the forward keep what the hook keeps."
                )


def _modules_in_closure(function: object) -> Iterator[nn.Module]:
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a cell may be empty
            if isinstance(cell.cell_contents, nn.Module):
                yield cell.cell_contents


def check_types(path: str, layer: nn.Module, value: object) -> None:
    """Raise `MixedTypes` for values that a layer would refuse; norms with float32 weights take shorter floats too."""
    weight = layer._parameters.get("weight")  # one of a parametrization would be computed, and counted
    if not (isinstance(layer, TYPED) and isinstance(weight, Tensor) and isinstance(value, Tensor)):
        return
    taken = SHORT_FLOATS if isinstance(layer, NORMS) and weight.dtype == torch.float32 else ()
    if value.dtype not in (weight.dtype, *taken):
        raise MixedTypes(f"the {type(layer).__name__} {path!r} has {weight.dtype} weights and gets {value.dtype}")


def explained(
    module: nn.Module, meta: nn.Module, image: Tensor, training: bool, error: Exception, place: Place | None
) -> SpaceError:
    """Return why the trace of a network ended in `error`.

    Args:
        module: the network.
        meta: the same on the meta device.
        image: of shape (1, C, H, W), on the meta device; in training two are tried, as norms need more than one value.
        training: in which mode.
        error: a `SpaceError` where there is no graph, or what its run on the meta device raised.
        place: where the operation that failed there stands in the code, if it is known.
    """
    name = repr(type(module).__name__)
    if isinstance(error, MixedTypes):
        return SpaceError(
            f"The forward of {name} must give layers values of their weights' type, but {first_line(error)}: call the "
            "network's float(), and let its forward and its buffers keep to float32."
        )
    batch = torch.ones(1 + training, *image.shape[1:], dtype=image.dtype)
    real = _with_values(copied(module))
    if (wrong := _raised(real.train(training), batch)) is not None:
        return _fails(name, real, batch, training, wrong)
    try:
        bare, helped, several, last = (copy.deepcopy(meta).train(training) for _ in range(4))
    except Exception:  # the forward keeps what it computes, and the trace has left its own there
        return error if isinstance(error, SpaceError) else SpaceError(f"The forward of {name} must not keep tensors.")
    without_values = _raised(bare, image)
    with torch.device("meta"):  # so that what the forward makes is no obstacle
        needs_values = _raised(helped, image) is not None
    if isinstance(error, Untraceable):
        return error.but(needs_values, keeps=without_values is None)
    if isinstance(error, SpaceError):
        return error
    law = f"The forward of {name} must run on torch's meta device, where tensors have no values, but"
    if without_values is None:
        told = f"{line_at(place) if place else 'it'} fails there ({first_line(error)})"
        return SpaceError(
            f"The forward of {name} must be traceable by torch.fx, but {told}: let it ask for no value's type and "
            "attributes, and change nothing that it reads again."
        )
    if training and _raised(several, torch.cat([image, image])) is None:
        return SpaceError(
            f"The forward of {name} must compute for any number of images in training, but: "
            f"{raised(several, without_values)}; write no number of images down in it."
        )
    line = last_line(without_values) or "it"
    if not needs_values:
        return SpaceError(
            f"{law} {line} computes with a tensor that the forward makes, which is no buffer: make it in __init__ by "
            "register_buffer, or let a tensor make it, as x.new_tensor(...) or x.new_empty(...).normal_()."
        )
    if held := _held(module, last, image):
        return SpaceError(f"{law} {line} computes with {held!r}, which is no buffer: register it by register_buffer.")
    return SpaceError(f"{law} {line} needs values ({first_line(without_values)}): take out what depends on them.")


class _Types(fx.Interpreter):
    """Notes what the operations of a graph answer with."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.found: dict[fx.Node, type[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Return what a node computes."""
        result = super().run_node(n)
        self.found[n] = type(result)
        return result


def astray(meta: nn.Module, asked: Sequence[tuple[fx.Node, Line]], image: Tensor) -> Line | None:
    """Return the first line that asks for the type of what is no tensor, but passed for one while it was traced."""
    if not asked:
        return None
    types = _Types(meta, asked[0][0].graph)
    with contextlib.suppress(Exception), torch.no_grad():  # what fails is explained elsewhere
        types.run(image)
    return next((line for node, line in asked if not issubclass(types.found.get(node, Tensor), Tensor)), None)


def misled(module: nn.Module, line: Line) -> SpaceError:
    """Return the refusal of a forward with such a line."""
    return SpaceError(
        f"The forward of {type(module).__name__!r} must be traceable by torch.fx, but {line} asks for the type of what "
        f"is no tensor, and passes for one while it is traced: {QUESTION}."
    )


def copied(module: nn.Module, given: Mapping[int, object] | None = None) -> nn.Module:
    """Return a copy of a module, where `given` are the copies of some of its tensors by id.

    Raises:
        SpaceError: it cannot be copied, and why.
    """
    try:
        return copy.deepcopy(module, dict(given or {}))
    except Exception as error:  # whatever the user's module raises when it is copied
        raise _uncopied(module, given or {}) from error


def _uncopied(module: nn.Module, given: Mapping[int, object]) -> SpaceError:
    """Return why a network cannot be copied, where the copies of its weights and buffers are `given`."""
    for path, inner in module.named_modules():
        if any(isinstance(hook, OLD_NORMS) for hook in inner._forward_pre_hooks.values()):
            return SpaceError(
                f"A base must be copied by copy.deepcopy, but the weight of {path!r} ({type(inner).__name__}) is no "
                "parameter, as the older weight_norm or spectral_norm computes it: take that of "
                "torch.nn.utils.parametrizations."
            )
    name = type(module).__name__
    for path, inner in module.named_modules():
        for key, value in vars(inner).items():
            if key not in TABLES and not _copies(value, given):
                held = f"holds {f'{path}.{key}'.strip('.')!r}"
                if isinstance(value, Tensor):
                    return SpaceError(
                        f"A base must be copied by copy.deepcopy, but {name!r} {held}, which is computed from weights: "
                        "compute it in the forward."
                    )
                return SpaceError(
                    f"A base must be copied by copy.deepcopy, but {name!r} {held}, a {type(value).__name__} that has "
                    "no copy: hold locks, files and the like outside the network."
                )
    return SpaceError(f"A base must be copied by copy.deepcopy, but {name!r} cannot: let its __deepcopy__ return one.")


def _copies(value: object, given: Mapping[int, object]) -> bool:
    try:
        copy.deepcopy(value, dict(given))
    except Exception:  # whatever the user's object raises when it is copied
        return False
    return True


class _Axes(TorchFunctionMode):
    """Notes in a run with one image what first takes the axis of the batch away, and in which line."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: tuple[str, Line | None] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what a function computes."""
        answer = func(*args, **(kwargs or {}))
        read = args[0] if args else None
        if isinstance(answer, Tensor) and isinstance(read, Tensor) and not isinstance(read, nn.Parameter):
            fewer = read.shape[:1] == (1,) and answer.shape[:1] != (1,) and 0 < answer.ndim < read.ndim
            self.taken = self.taken or ((func.__name__, running_line()) if fewer else None)
        return answer


def without_batch(module: nn.Module, image: Tensor) -> str:
    """Return what takes the axis of the batch away where one image is handed over, and a way out, or ""."""
    with _Axes() as axes:
        _raised(copy.deepcopy(module), image)
    if axes.taken is None:
        return ""
    name, line = axes.taken
    way_out = "flatten(1), or squeeze((2, 3)) for the axes of the image" if name == "squeeze" else "flatten(1), say"
    return f"as {line or 'it'} takes the axis of the batch away by {name}: keep that axis, by {way_out}"


def _fails(name: str, module: nn.Module, batch: Tensor, training: bool, wrong: Exception) -> SpaceError:
    """Return the refusal of a forward that raised `wrong`; it advises another size only where one runs."""
    shape, given = f"{tuple(batch.shape)}{' in training' if training else ''}", (*batch.shape[1:],)
    assert len(given) == 3
    sentence = f"The forward of {name} must accept a batch of shape {shape}, but: {raised(module, wrong)}"
    if not training and _runs(module, given, batch=2):
        return SpaceError(f"{sentence}; it accepts two images: let it neither squeeze nor split the axis of the batch.")
    size = _size_that_runs(module, given, training)
    if size is None:
        return SpaceError(f"{sentence}; mend the forward.")
    own = "" if size[0] == batch.shape[1] else ", or the base's own arguments"
    return SpaceError(
        f"{sentence}; it accepts images of {size}: set base.input_size = {list(size)} (data.channels and "
        f"data.resolution in an experiment){own}."
    )


def _size_that_runs(module: nn.Module, given: Size, training: bool) -> Size | None:
    """Return a size of images that a network takes, in training too if it was asked for, or None if none is found.

    Large networks are not tried, and others for a while only.
    """
    if sum(p.numel() for p in module.parameters()) > LARGEST_TRIED:
        return None
    planes = [given[1:], *((n, n) for n in PIXELS)]
    sizes = [(given[0], *plane) for plane in planes]
    sizes += [(channels, *plane) for plane in planes for channels in CHANNELS]
    end = time.monotonic() + SECONDS
    tried = (size for size in dict.fromkeys(sizes) if size != given and time.monotonic() < end)
    return next((size for size in tried if all(_runs(module, size, 1 + t, t) for t in {False, training})), None)


def _runs(module: nn.Module, size: Size, batch: int = 1, training: bool = False) -> bool:
    """Whether a network answers images of a size, and in evaluation with logits."""
    answers: list[Any] = []
    failed = _raised(module.train(training), torch.ones(batch, *size), answers) is not None
    return not failed and (training or (getattr(answers[0], "ndim", 0) == 2 and len(answers[0]) == batch))


def _held(module: nn.Module, meta: nn.Module, image: Tensor) -> str:
    """Return the path of a tensor that is no buffer where such tensors are all that keeps `meta` from running."""
    paths = []
    for path, inner in module.named_modules():
        for name, value in vars(inner).items():
            if isinstance(value, Tensor) and not value.is_meta:
                paths.append(f"{path}.{name}".strip("."))
                setattr(meta.get_submodule(path), name, value.to("meta"))
    with torch.device("meta"):
        return paths[0] if paths and _raised(meta, image) is None else ""


def _raised(module: nn.Module, batch: Tensor, answers: list[object] | None = None) -> Exception | None:
    """Return what calling a module raises, or None if it runs; then its answer is added to `answers`."""
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), batch.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answer = module(batch.to(device))
    except Exception as error:  # whatever the user's forward raises
        return error
    if answers is not None:
        answers.append(answer)
    return None


def raised(module: nn.Module, error: Exception) -> str:
    """Return what an error says, with the layer and the line where it was raised; never nothing."""
    line = last_line(error)
    text = f"`{line.text}`" if line and line.text and not str(error).strip() else ""
    at = ", ".join(filter(None, [_innermost(module, error), text, line.where if line else ""]))
    return f"{first_line(error).replace('. ', '; ')}{f' ({at})' if at else ''}"


def _with_values(module: nn.Module) -> nn.Module:
    """Return a module on the meta device with zeros on the CPU, others as they are."""
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        module.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.zero_()
    return module


def _innermost(root: nn.Module, error: Exception) -> str:
    """Return the class and path of the innermost module in which an error was raised, or "" for the root itself."""
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    paths = {id(module): path for path, module in root.named_modules()}
    found = next((caller for caller in reversed(callers) if paths.get(id(caller))), None)
    return "" if found is None else f"in the {type(found).__name__} {paths[id(found)]!r}"
