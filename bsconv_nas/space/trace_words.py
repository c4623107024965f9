"""Our own words for what a line of a forward does that tracing cannot follow.

What a line does is read from the instruction at which it failed, not from what torch says of it.
"""

from __future__ import annotations

import ast
import dis
import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import torch

from bsconv_nas.errors import SpaceError

__all__ = [
    "QUESTION",
    "TORCH",
    "Line",
    "Place",
    "Untraceable",
    "is_foreign",
    "last_line",
    "line_at",
    "running_line",
    "running_place",
]

TORCH = str(Path(torch.__file__).parent) + os.sep
OWN = Path(__file__).parents[1]
ROOMS = (*(f"{OWN / room}{os.sep}" for room in ("space", "export", "training")), f"{OWN / 'check.py'}")  # no networks
STANDARD = sysconfig.get_path("stdlib") + os.sep
Place = tuple[CodeType, int, int]  # of a running instruction: its code, line and offset
LONGEST = 100  # characters of a line that are shown
SIZES = "write sizes other than the batch's as numbers"
BATCH = "let it not depend on the number of images"
BROADCAST = "leave an axis of 1 in the place of the images, as it is broadcast"
PARTS = "index its parts one by one, but compute for all images at once"
LENGTH = "write it as a number, or take shape[0] for the number of images"
UNKNOWN = "let it not depend on a tensor's size or value"
QUESTION = "take that question out"
ADVICE = (SIZES, BATCH, BROADCAST, PARTS, LENGTH, UNKNOWN)  # for sizes: values, or another whole module, may be behind
VALUES = "take out what depends on the values of tensors"
BATCH_SIZE = re.compile(r"\b(shape\[0\]|size\(0\))")
SIZE = re.compile(r"\.(shape|size\(|numel\()")
PROPERTY = re.compile(r"\.(device|dtype|is_cuda|requires_grad|ndim\b|dim\(\))")
LOOPS = ("GET_ITER", "FOR_ITER", "LIST_EXTEND", "SET_UPDATE", "UNPACK_SEQUENCE", "UNPACK_EX", "CALL_FUNCTION_EX")
# By the beginning of an instruction's name: what the line does, and a way out.
DEEDS = {
    ("POP_JUMP", "JUMP_IF", "UNARY_NOT", "TO_BOOL"): ("branches on a tensor's size or value", SIZES),
    ("CONTAINS_OP",): ("looks for a tensor's size or value in a collection", SIZES),
    LOOPS: ("loops over a tensor or its sizes, or unpacks them", PARTS),
    ("STORE_SUBSCR", "DELETE_SUBSCR"): (
        "writes into a part of a tensor",
        "join parts by torch.cat or multiply by a mask",
    ),
    ("RAISE_VARARGS",): ("raises, as it is handed no tensor with values while tracing", "take that check out"),
}
WALKING = ("zip", "enumerate", "list", "tuple", "map", "iter", "sorted", "reversed")
# By the functions that make tensors: the method by which another tensor makes one like it, wherever that one is.
MAKING = {
    "zeros": "new_zeros(...)",
    "ones": "new_ones(...)",
    "full": "new_full(...)",
    "tensor": "new_tensor(...)",
    "empty": "new_empty(...)",
    "rand": "new_empty(...).uniform_()",
    "randn": "new_empty(...).normal_()",
}
NUMBERS = ("int", "float", "bool", "complex", "round", "math.")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of code that failed: where it stands, its text, the instruction and the part of the text that ran."""

    where: str
    text: str
    instruction: str
    part: str

    def __str__(self) -> str:
        """Return the line as a sentence quotes it."""
        return f"its line {f'`{self.text}` ({self.where})' if self.text else f'at {self.where}'}"

    @property
    def is_check(self) -> bool:
        """Whether all that the line does is to assert."""
        return self.text.startswith("assert ")

    def deed(self) -> tuple[str, str]:
        """Return what the line does with a tensor that has no values yet, and the way out.

        >>> Line("net.py:7", "if x.sum() > 0:", "POP_JUMP_FORWARD_IF_FALSE", "x.sum() > 0").deed()
        ("branches on a tensor's size or value", "write sizes other than the batch's as numbers")
        """
        if self.is_check:
            return "checks a tensor's size or value", "take that check out"
        if self.instruction.startswith("CALL") and self.instruction not in LOOPS:
            return _call(self.part)
        if PROPERTY.search(self.part):
            return "asks for a tensor's device, type or number of axes", QUESTION
        unknown = ("needs what is known only when the network runs", UNKNOWN)
        does, instead = next((deed for names, deed in DEEDS.items() if self.instruction.startswith(names)), unknown)
        return does, _for_size(instead, self.part)


def _call(code: str) -> tuple[str, str]:
    """Return what a call does, by the name of what it calls, and the way out."""
    try:
        call = ast.parse(code.strip(), mode="eval").body
        callee = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    except SyntaxError:
        callee = ""
    known = "what is known only when the network runs"
    if callee in NUMBERS or callee.startswith("math."):
        return "makes a number of a tensor's size or value", _for_size(SIZES, code)
    if callee == "len":
        return "takes the length of a tensor, or of its parts or sizes", LENGTH
    if callee == "range":
        return "counts up to a tensor's size or value", _for_size(SIZES, code)
    if callee in WALKING:
        return DEEDS[LOOPS]
    if made := MAKING.get(callee.removeprefix("torch.")):
        return f"calls `{callee}` with {known}", f"let a tensor make it, as x.{made}"
    if callee.endswith(".expand"):
        return f"calls `{callee}` with {known}", BROADCAST
    return f"calls {f'`{callee}`' if callee else 'a function'} with {known}", _for_size(UNKNOWN, code)


def _for_size(way_out: str, code: str) -> str:
    """Return the way out of what depends on sizes, where code names them."""
    if BATCH_SIZE.search(code) and not SIZE.search(BATCH_SIZE.sub("", code)):
        return BATCH
    return SIZES if way_out == UNKNOWN and SIZE.search(code) else way_out


def last_line(error: BaseException) -> Line | None:
    """Return the innermost line outside torch, Python's library and what traces that an error went through.

    >>> try:
    ...     raise ValueError
    ... except ValueError as error:
    ...     last_line(error).instruction
    'RAISE_VARARGS'
    """
    found = [step for step in _steps(error) if not is_foreign(step.tb_frame.f_code.co_filename)]
    return line_at((found[-1].tb_frame.f_code, found[-1].tb_lineno, found[-1].tb_lasti)) if found else None


def running_line() -> Line | None:
    """Return the innermost line outside torch, Python's library and what traces that is running."""
    place = running_place()
    return None if place is None else line_at(place)


def running_place() -> Place | None:
    """Return where `running_line` is, without its text."""
    frame = next((f for f, _ in traceback.walk_stack(None) if not is_foreign(f.f_code.co_filename)), None)
    return None if frame is None else (frame.f_code, frame.f_lineno, frame.f_lasti)


def _steps(error: BaseException) -> list[TracebackType]:
    steps, step = [], error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    return steps


def is_foreign(file: str) -> bool:
    """Whether a file of code is torch's, Python's or of what traces, and none of a network's."""
    library = file.startswith(STANDARD) and "site-packages" not in file
    return library or file.startswith((TORCH, *ROOMS, "<frozen "))


def line_at(place: Place) -> Line:
    """Return the line at a place."""
    code, number, at = place
    text = linecache.getline(code.co_filename, number).partition("  #")[0].strip()
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()}..."
    instruction = next((i.opname for i in dis.get_instructions(code) if i.offset == at), "")
    return Line(f"{code.co_filename}:{number}", shown, instruction, _part(code, at))


def _part(code: CodeType, at: int) -> str:
    """Return the text of what an instruction computes, or "" where it is not known."""
    first, last, start, end = [*code.co_positions()][at // 2]
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [linecache.getline(code.co_filename, number).encode() for number in range(first, last + 1)]
    lines[-1] = lines[-1][:end]  # before the start is cut, which may be in the same line
    lines[0] = lines[0][start:]
    return b"".join(lines).decode(errors="replace")


class Untraceable(SpaceError):
    """A forward that torch.fx cannot follow.

    Args:
        network: the class of the network.
        mode: " in training" or "".
        path: the innermost module in which it failed, "" for the network.
        kind: the class of that module.
        error: what running the forward on what stands for tensors raised.
        needs_values: whether what the forward computes with is more than sizes.
        keeps: whether it runs on tensors without values, so that a module kept whole does too.

    Attributes:
        asked: of which values of the torch.fx graph lines had asked for the type before.
    """

    asked: Sequence[tuple[Any, Line]] = ()

    def __init__(
        self,
        network: str,
        mode: str,
        path: str,
        kind: str,
        error: Exception,
        needs_values: bool = False,
        keeps: bool = True,
    ) -> None:
        self.told = network, mode, path, kind, error
        inside = f"in {path!r} ({kind}) " if path else ""
        line = last_line(error)
        does, way_out = _told(error, line, needs_values)
        whole = path and keeps and way_out in ADVICE
        keep = f", or keep that module whole by base.leaves = [{path!r}]" if whole else ""
        super().__init__(
            f"The forward of {network!r} must be traceable by torch.fx{mode}, but {inside}{line or 'it'} {does}: "
            f"{way_out}{keep}."
        )

    def but(self, needs_values: bool, keeps: bool) -> Untraceable:
        """Return the same refusal, knowing more of the forward."""
        return Untraceable(*self.told, needs_values, keeps)


def _told(error: Exception, line: Line | None, needs_values: bool) -> tuple[str, str]:
    """Return what a line does that cannot be traced, and the way out."""
    if isinstance(error, NameError):  # by torch.fx, or the network could not even be called
        return "reads a module or weight that no attribute of the network holds", "hold it in an nn.ModuleList, say"
    does, way_out = line.deed() if line else ("needs what is known only when the network runs", UNKNOWN)
    return does, VALUES if needs_values and way_out in ADVICE else way_out
