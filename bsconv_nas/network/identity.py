"""By what a base network is known again: what it computes, as text, and what it answers at given weights and images.

The code of a base belongs to its user. Where it was edited after a search, weights of the search would be loaded into
another network. Its answers decide whether it is the same one; the graph says what differs.
"""

from __future__ import annotations

import itertools
import math
import platform
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bsconv_nas.errors import first_line
from bsconv_nas.network.answers import answers
from bsconv_nas.network.build import instantiate
from bsconv_nas.network.graph_lines import graph_lines, state_lines
from bsconv_nas.space.base import Base
from bsconv_nas.space.trace_record import flop_counts
from bsconv_nas.space.trace_seed import seeded

__all__ = ["first_difference", "identity"]

TOLERANCE = 1e-4  # of the largest number that is compared
MOST_MACS = 2e10  # of an image; a larger base is known by its graph alone
MOST_WEIGHTS = 2**28  # parameters: 1 GiB
LAYER = re.compile(r"^(\S+): (\w+\(.*\)) of ", re.MULTILINE)  # a line that calls one
IDLE = re.compile(r"inplace=\w+")  # a setting that changes no answer
SETTING = re.compile(r"(\w+)=(\([^()]*\)|[^,()]+)")  # of a module or a call in a line of the graph


def identity(base: Base) -> dict[str, Any]:
    """Return by what a base is known again, as JSON values.

    `evaluation` and `training` hold a line per operation, `state` one per parameter and buffer, `answers` a few outputs
    at weights that are the same everywhere. `unchecked` says why there are no answers, if there are none. What the
    factory draws, it draws with one seed, and torch's generator is left as it was.

    Raises:
        SpaceError: the base cannot be made or traced.

    >>> found = identity(Base("bsconv_nas.network.models:cifar_resnet", {"depth": 8}))
    >>> found["evaluation"][-1], found["unchecked"]
    ('output(%31)', '')
    """
    with seeded(0):
        return _identity(base)


def _identity(base: Base) -> dict[str, Any]:
    module = instantiate(base).cpu()
    evaluation, training = (graph_lines(module, base.leaves, training) for training in (False, True))
    found = {
        "made_by": {"torch": torch.__version__, "machine": platform.machine()},
        "evaluation": evaluation,
        "training": training,
        "state": state_lines(module),
    }
    reason, answer = _too_large(module, base.input_size), None
    if not reason:
        try:
            answer = answers(module, base.input_size)
        except Exception as error:  # whatever the user's forward raises on a CPU
            reason = f"its forward fails at seeded weights ({first_line(error)})"
    if answer and not all(map(math.isfinite, _numbers(answer))):
        reason, answer = "its answers at seeded weights are not finite", None
    return {**found, "answers": answer, "unchecked": reason}


def _too_large(module: nn.Module, input_size: tuple[int, int, int]) -> str:
    """Return why a network's answers are not computed here, or ""."""
    weights = sum(weight.numel() for weight in module.parameters())
    if weights > MOST_WEIGHTS:
        return f"it has {weights:.2g} parameters, and answers are compared up to {MOST_WEIGHTS:.2g}"
    macs = _multiply_adds(module, input_size)
    if macs > MOST_MACS:
        return f"it has {macs:.2g} multiply-adds, and answers are compared up to {MOST_MACS:.2g}"
    return ""


def _multiply_adds(module: nn.Module, input_size: tuple[int, int, int]) -> float:
    """Return about how many multiply-adds the layers with kernels have for an image, without computing any."""
    try:
        flops = flop_counts(module, (1, *input_size))
    except Exception:  # a forward that makes tensors may refuse this device: a network like others then
        return 0.0
    return sum(flops.get("Global", {}).values()) / 2


def first_difference(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the first difference between two identities as half a sentence, or "" if they are one network's.

    Code that is written otherwise and answers alike is no difference. Without answers the graphs decide.

    >>> known = identity(Base("bsconv_nas.network.models:cifar_resnet", {"depth": 8}))
    >>> first_difference(known, identity(Base("bsconv_nas.network.models:cifar_resnet", {"depth": 14})))
    "'layer2.0.downsample.0: Conv2d(...) of %11' is now 'layer1.1.conv1: Conv2d(...) of %11' (operation 12)"
    """
    written = _written_difference(recorded, found)
    if certain := _state_difference(recorded, found) or _settings_difference(recorded, found):
        return written or certain
    if recorded["answers"] is None:
        return written
    if found["answers"] is None:
        return written or found["unchecked"]
    gaps = {part: _gap(was, found["answers"][part]) for part, was in recorded["answers"].items()}
    gaps["gradients"] = _common_gap(recorded["answers"]["gradients"], found["answers"]["gradients"])
    evaluation, training = max(gaps["small"], gaps["large"]), max(gaps["training"], gaps["buffers"], gaps["gradients"])
    if evaluation <= TOLERANCE and training <= TOLERANCE:
        return ""
    if evaluation <= TOLERANCE and not written and recorded["made_by"] != found["made_by"]:
        return ""  # another version of torch may draw dropout's masks otherwise
    if written:
        return written
    mode, gap = ("evaluation", evaluation) if evaluation > TOLERANCE else ("training", training)
    amount = f"differ by {gap:.1%} of the largest" if math.isfinite(gap) else "have another form"
    return f"at equal weights its answers in {mode} {amount}"


def _written_difference(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the first line in which two networks differ, as they are written."""
    for mode, addition in (("evaluation", ""), ("training", ", in training")):
        for index, (was, now) in enumerate(itertools.zip_longest(recorded[mode], found[mode])):
            if was != now:
                return f"{_change(was, now)} (operation {index}{addition})"
    return _state_difference(recorded, found, values=True)


def _state_difference(recorded: Mapping[str, Any], found: Mapping[str, Any], values: bool = False) -> str:
    """Return the first tensor that only one network has, or of another shape, or trained in one alone."""
    for name in (*recorded["state"], *found["state"]):
        was, now = recorded["state"].get(name, "absent"), found["state"].get(name, "absent")
        if not values:
            was, now = was.partition(" [")[0], now.partition(" [")[0]
        if was != now:
            return f"{name!r} was {was} and is {now}"
    return ""


def _settings_difference(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the first layer of one class and place whose settings changed; another torch may show others.

    Some say too little in a few answers, such as how an activation is approximated.
    """
    if recorded["made_by"] != found["made_by"]:
        return ""
    before, after = (dict(LAYER.findall("\n".join(known["evaluation"]))) for known in (recorded, found))
    for path in before.keys() & after.keys():
        was, now = (IDLE.sub("", lines[path]) for lines in (before, after))
        if was != now and was.partition("(")[0] == now.partition("(")[0]:
            return _change(f"{path}: {was}", f"{path}: {now}")
    return ""


def _change(was: str | None, now: str | None) -> str:
    """Return what changed from a line to another: one setting, where they agree in all else that stands before it."""
    if was is None or now is None:
        return f"{was!r} is absent" if now is None else f"{now!r} was absent"
    before, after = dict(SETTING.findall(was)), dict(SETTING.findall(now))
    changed = [name for name in before if name in after and before[name] != after[name]]
    if changed and SETTING.sub("", was) == SETTING.sub("", now):
        name = changed[0]
        return f"{name} of {was.partition('(')[0]!r} was {before[name]} and is {after[name]}"
    return f"{was!r} is now {now!r}"


def _gap(recorded: Any, found: Any) -> float:
    """Return the largest difference between numbers in the same places over the largest number; inf for other places.

    Buffers are compared one by one, as their sizes differ.
    """
    if isinstance(recorded, dict):
        if recorded.keys() != found.keys():
            return math.inf
        return max((_gap(values, found[name]) for name, values in recorded.items()), default=0.0)
    try:
        was, now = np.array(recorded, float), np.array(found, float)
    except ValueError:  # rows of several lengths
        return math.inf
    if was.shape != now.shape:
        return math.inf
    return float(np.abs(was - now).max(initial=0) / max(np.abs(was).max(initial=0), 1e-30))


def _common_gap(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Return the largest difference between numbers of the same names over the largest number; inf for other names."""
    if recorded.keys() != found.keys():
        return math.inf
    return _gap([*recorded.values()], [found[name] for name in recorded])


def _numbers(values: Any) -> Iterator[float]:
    """Yield all numbers in JSON values."""
    for part in values.values() if isinstance(values, dict) else values:
        yield from (_numbers(part) if isinstance(part, dict | list) else (part,))
