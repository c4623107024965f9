"""Why nothing varies in a base, or no operator, or not what was asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from bsconv_nas.errors import SpaceError
from bsconv_nas.space.files import Choices
from bsconv_nas.space.graph import Fixed
from bsconv_nas.space.table import Dimension

__all__ = ["check_asked", "why_no_operator", "why_nothing"]

# By the choice: the first part of its dimensions' names, and what it needs of a base.
NEEDS = {
    "kernels": ("kernel", "convolutions that may vary with a square, odd kernel and even padding"),
    "expansions": ("expand", "inverted residuals that expand channels of their own"),
    "blocks": ("block", "inverted residuals that may vary"),
    "widths": ("width", "widths that may vary"),
}
HELD = re.compile(r"it is also held in (\S+), .*")
READ = re.compile(r"its (\w+) is read by the forward")


def check_asked(choices: Choices, dimensions: Sequence[Dimension]) -> None:
    """Refuse what was asked for everywhere and is nowhere; a default asks for nothing, nor does a width of 1.

    Raises:
        SpaceError: a choice that was declared and touches nothing.

    >>> check_asked(Choices(expansions=(3, 6)), ())
    Traceback (most recent call last):
    bsconv_nas.errors.SpaceError: expansions = [3.0, 6.0] needs inverted residuals that expand channels of their own, \
but this base has none: leave expansions out.
    """
    found = {dimension.name.partition(".")[0] for dimension in dimensions}
    for key, (kind, needed) in NEEDS.items():
        asked = getattr(choices, key) if key in choices.model_fields_set else None
        if asked and asked != (1,) and kind not in found:
            raise SpaceError(f"{key} = {list(asked)} needs {needed}, but this base has none: leave {key} out.")


def why_nothing(fixed: Sequence[Fixed], dimensions: Sequence[Dimension]) -> str:
    """Return why a space has nothing to choose, and a way out, as the second half of a sentence.

    >>> why_nothing([Fixed("conv.c", "its out_channels is read by the forward")], ())
    'all of this base is fixed, such as conv.c (its out_channels is read by the forward): let the forward do without \
c.out_channels, such as by flatten(1) or a number'
    """
    if dimensions:
        return "every dimension has one option: add some"
    return f"all of this base is fixed{_such_as(fixed)}: {_way_out(fixed)}"


def why_no_operator(fixed: Sequence[Fixed], dimensions: Sequence[Dimension]) -> str:
    """Return that no convolution has a choice of operators, and the main reason, or "" if one has.

    >>> why_no_operator([Fixed("conv.c", "stem")], ())
    'No operator varies in this space: 1 of 1 fixed convolutions stays as it is for this reason: stem (conv.c).'
    """
    operators = [dimension for dimension in dimensions if dimension.kind == "conv"]
    if any(len(dimension.options) > 1 for dimension in operators):
        return ""
    law = "No operator varies in this space"
    if operators:
        return f"{law}: every convolution that may vary has one option, such as {operators[0].name}."
    reasons = Counter(entry.reason for entry in fixed if entry.name.startswith("conv."))
    if not reasons:
        return f"{law}: the base has no convolution."
    ((reason, count),) = reasons.most_common(1)
    example = next(entry.name for entry in fixed if entry.reason == reason)
    stay = "stays as it is" if count == 1 else "stay as they are"
    return f"{law}: {count} of {reasons.total()} fixed convolutions {stay} for this reason: {reason} ({example})."


def _such_as(fixed: Sequence[Fixed]) -> str:
    """Return an example of each of three reasons, those of convolutions first and then the commonest."""
    examples = {entry.reason: entry.name for entry in reversed(fixed)}
    counted = Counter(entry.reason for entry in fixed)
    reasons = sorted(counted, key=lambda reason: (not examples[reason].startswith("conv."), -counted[reason]))
    shown = [f"{examples[reason]} ({reason})" for reason in reasons[:3]]
    return f", such as {', '.join(shown)}" if shown else ""


def _way_out(fixed: Sequence[Fixed]) -> str:
    for entry in fixed:
        if held := HELD.fullmatch(entry.reason):
            return f"let {held[1]} be a torch.nn.ModuleList or ModuleDict that alone holds them"
        if read := READ.fullmatch(entry.reason):
            layer = entry.name.removeprefix("conv.")
            return f"let the forward do without {layer}.{read[1]}, such as by flatten(1) or a number"
    if any(entry.reason == "stem" for entry in fixed):
        return "set stem = true, or give the network other layers"
    return "take another base, or give the network other layers"
