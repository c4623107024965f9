"""Search-space files: a base network and the choices, in TOML; they hold no code."""

from __future__ import annotations

import contextlib
import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from bsconv_nas.decompositions import DECOMPOSITIONS, parse_option
from bsconv_nas.errors import BsconvNasError, DecompositionError, SpaceError, suggest
from bsconv_nas.space.base import Base
from bsconv_nas.space.places import FORMS

__all__ = ["Choices", "Override", "SpaceFile", "load_space_file", "read_toml", "validate"]

M = TypeVar("M")
# What pydantic's types of error mean to the writer of a file; {names} are of the error's context.
_LAWS = {
    **dict.fromkeys(("tuple_type", "list_type"), "it must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "dataclass_type", "mapping_type"), "it must be a table"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "it must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "it must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false"),
    **dict.fromkeys(("too_short", "string_too_short"), "it must not be empty"),
    "string_type": "it must be text",
    "literal_error": "it must be one of {expected}",
    "greater_than_equal": "it must be at least {ge}",
    "greater_than": "it must be greater than {gt}",
    "missing": "it needs one more value",
}
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
Scope = Literal["network", "stage", "block", "layer"]
Depths = Literal["all", "fixed"] | tuple[int, ...]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _options(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    try:
        return value if value is None else tuple(dict.fromkeys(str(parse_option(text)) for text in value))
    except DecompositionError as error:
        raise ValueError(str(error)) from None


def _forms(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for form in value or ():
        if form not in FORMS:
            raise ValueError(f"unknown form of an inverted residual {form!r}: {suggest(form, FORMS)}")
    return value if value is None else tuple(dict.fromkeys(value))


def _kernels(value: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if value is not None and not all(1 <= size <= 31 and size % 2 for size in value):
        raise ValueError("kernel sizes must be odd and lie in 1 to 31")
    return value if value is None else tuple(dict.fromkeys(value))


def _widths(value: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if value is not None and not all(0 < width <= 16 for width in value):
        raise ValueError("multipliers must lie in (0, 16]")
    return value


def _depths(value: object) -> object:
    if value in (None, "all", "fixed"):
        return value
    if isinstance(value, list | tuple) and value and all(type(depth) is int and depth >= 0 for depth in value):
        return value
    raise ValueError("depths must be a list of whole numbers of at least 0, 'all' or 'fixed'")


class Override(_Model):
    """Other options for the places, width groups and stages whose path matches `pattern` (shell wildcards).

    A width group has the paths of all layers that write it.
    """

    pattern: str
    operators: tuple[str, ...] | None = Field(None, min_length=1)
    blocks: tuple[str, ...] | None = Field(None, min_length=1)
    kernels: tuple[StrictInt, ...] | None = Field(None, min_length=1)
    expansions: tuple[StrictFloat, ...] | None = Field(None, min_length=1)
    widths: tuple[StrictFloat, ...] | None = Field(None, min_length=1)
    depths: Depths | None = None

    _check_operators = field_validator("operators")(_options)
    _check_blocks = field_validator("blocks")(_forms)
    _check_kernels = field_validator("kernels")(_kernels)
    _check_widths = field_validator("widths", "expansions")(_widths)
    _check_depths = field_validator("depths", mode="before")(_depths)

    @model_validator(mode="after")
    def _check_purpose(self) -> Override:
        if self.model_fields_set <= {"pattern"}:
            raise ValueError("an override must say something of its pattern, such as its operators or widths")
        return self


class Choices(_Model):
    """What may vary: operators of each place, width multipliers, blocks kept in each stage.

    `blocks` are the forms of inverted residuals. `kernels` [pixels] and `expansions` (hidden channels over channels in)
    keep the base's where they are not given. `scope` ties operators, forms and kernels, `width_scope` ties width groups
    and expansions: `block` means the inverted residual or the element of the sequential around a layer, or else its
    parent module. `exempt` lists patterns of paths at which nothing varies.
    """

    operators: tuple[str, ...] = Field(tuple(DECOMPOSITIONS), min_length=1)
    blocks: tuple[str, ...] = Field(FORMS, min_length=1)
    kernels: tuple[StrictInt, ...] | None = Field(None, min_length=1)
    expansions: tuple[StrictFloat, ...] | None = Field(None, min_length=1)
    widths: tuple[StrictFloat, ...] = Field((0.5, 0.75, 1.0), min_length=1)
    divisor: StrictInt = Field(4, ge=1)
    depths: Depths = "all"
    scope: Scope = "layer"
    width_scope: Scope = "stage"
    stem: StrictBool = False
    exempt: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()

    _check_operators = field_validator("operators")(_options)
    _check_blocks = field_validator("blocks")(_forms)
    _check_kernels = field_validator("kernels")(_kernels)
    _check_widths = field_validator("widths", "expansions")(_widths)
    _check_depths = field_validator("depths", mode="before")(_depths)


class SpaceFile(_Model):
    """A file of `search_spaces/`."""

    base: Base
    choices: Choices = Choices()

    @field_validator("base", mode="wrap")
    @classmethod
    def _as_written(cls, table: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        with contextlib.suppress(SpaceError):
            handler(table)
        if isinstance(table, Mapping):
            Base(**table)  # its own laws on what is written: pydantic takes `true` and "1" for 1
        return handler(table)


def load_space_file(path: str | Path) -> SpaceFile:
    """Return the validated contents of a search-space file.

    Raises:
        SpaceError: no such file, malformed TOML, an unknown key or a value outside its law.
    """
    return validate(SpaceFile, read_toml(path, SpaceError), str(path), SpaceError)


def read_toml(path: str | Path, error: type[BsconvNasError]) -> dict[str, Any]:
    """Return the parsed TOML file, or raise `error` with the place of what is wrong."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"No file {str(path)!r}: check the path, relative to {Path.cwd().name!r}.") from None
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"{str(path)!r} must be a readable UTF-8 text file, but: {reason}.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as reason:
        raise error(f"{str(path)!r} must be valid TOML, but: {reason}.") from None


def validate(model: type[M], data: Any, where: str, error: type[BsconvNasError]) -> M:
    """Return `data` as `model`, or raise `error` with one sentence about the first thing that is wrong.

    Args:
        model: the pydantic model of a file, or a dataclass.
        data: what was parsed from it.
        where: the file's name, for the message.
        error: the class to raise.
    """
    try:
        return TypeAdapter(model).validate_python(data)
    except BsconvNasError as reason:
        raise error(f"In {where!r}: {reason}") from None
    except ValidationError as reason:
        unknown_first = sorted(reason.errors(), key=lambda details: details["type"] not in UNKNOWN)
        raise error(_sentence(model, unknown_first[0], where)) from None


def _sentence(model: type, details: ErrorDetails, where: str) -> str:
    """Return what is wrong, with the key, the file and the way out."""
    *parents, last = details["loc"] or ("",)
    key = ".".join(str(part) for part in (*parents, last))
    if details["type"] in UNKNOWN:
        return f"Unknown key {key!r} in {where!r}: {suggest(str(last), _fields(model, parents))}."
    if details["type"] == "missing" and isinstance(last, str):
        return f"{where!r} needs the key {key!r}: add it."
    law = details["msg"].removeprefix("Value error, ").rstrip(".")
    if details["type"] in _LAWS:
        law = _LAWS[details["type"]].format(**details.get("ctx", {}))
    whole = "but got" in law or "did you mean" in law or "valid are" in law  # the law's own sentence names the value
    return f"Key {key!r} in {where!r}: {law}" + ("." if whole else f", but got {details['input']!r}.")


def _fields(model: Any, loc: Sequence[str | int]) -> list[str]:
    """Return the valid keys of the table at `loc` inside `model`."""
    for part in loc:
        if isinstance(part, str):
            annotation = _annotations(model)[part]
            model = next((a for a in (annotation, *get_args(annotation)) if _annotations(a)), annotation)
    return list(_annotations(model))


def _annotations(model: Any) -> dict[str, Any]:
    """Return the type of each field of a pydantic model or a dataclass; of anything else none."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(model)} if dataclasses.is_dataclass(model) else {}
