"""Search-space files: a base network and the choices, in TOML; they hold no code."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from bsconv_nas.decompositions import DECOMPOSITIONS, parse_option
from bsconv_nas.errors import BsconvNasError, DecompositionError, SpaceError, suggest

__all__ = ["Base", "Choices", "Override", "SpaceFile", "load_space_file", "read_toml", "validate"]

M = TypeVar("M", bound=BaseModel)
Scope = Literal["network", "stage", "block", "layer"]
Depths = Literal["all", "fixed"] | tuple[int, ...]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _options(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    try:
        return value if value is None else tuple(dict.fromkeys(str(parse_option(text)) for text in value))
    except DecompositionError as error:
        raise ValueError(str(error)) from None


def _widths(value: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if value is not None and not all(0 < width <= 16 for width in value):
        raise ValueError("width multipliers must lie in (0, 16]")
    return value


def _depths(value: Depths | None) -> Depths | None:
    if isinstance(value, tuple) and not (value and all(depth >= 0 for depth in value)):
        raise ValueError("depths must be a list of whole numbers of at least 0, 'all' or 'fixed'")
    return value


class Base(_Model):
    """The network that a space starts from: `factory` is an importable `package.module:function`.

    The factory is called with `arguments`, and with `num_classes` and `in_channels` where its signature has them.
    """

    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    arguments: dict[str, JsonValue] = {}
    input_size: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = Field(10, ge=2)

    @field_validator("input_size")
    @classmethod
    def _positive(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(value) < 1:
            raise ValueError("input_size must be (channels, height, width), each at least 1")
        return value


class Override(_Model):
    """Other options for the places, width groups and stages whose path matches `pattern` (shell wildcards)."""

    pattern: str
    operators: tuple[str, ...] | None = Field(None, min_length=1)
    widths: tuple[float, ...] | None = Field(None, min_length=1)
    depths: Depths | None = None

    _check_operators = field_validator("operators")(_options)
    _check_widths = field_validator("widths")(_widths)
    _check_depths = field_validator("depths")(_depths)


class Choices(_Model):
    """What may vary: operators of each place, width multipliers, blocks kept in each stage.

    `scope` ties operators, `width_scope` ties width groups; `exempt` lists patterns of paths at which nothing varies.
    """

    operators: tuple[str, ...] = Field(tuple(DECOMPOSITIONS), min_length=1)
    widths: tuple[float, ...] = Field((0.5, 0.75, 1.0), min_length=1)
    divisor: int = Field(4, ge=1)
    depths: Depths = "all"
    scope: Scope = "layer"
    width_scope: Scope = "stage"
    stem: bool = False
    exempt: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()

    _check_operators = field_validator("operators")(_options)
    _check_widths = field_validator("widths")(_widths)
    _check_depths = field_validator("depths")(_depths)


class SpaceFile(_Model):
    """A file of `search_spaces/`."""

    base: Base
    choices: Choices = Choices()


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
    except tomllib.TOMLDecodeError as reason:
        raise error(f"{str(path)!r} must be valid TOML, but: {reason}.") from None


def validate(model: type[M], data: Any, where: str, error: type[BsconvNasError]) -> M:
    """Return `data` as `model`, or raise `error` with one sentence about the first thing that is wrong.

    Args:
        model: the pydantic model of a file.
        data: what was parsed from it.
        where: the file's name, for the message.
        error: the class to raise.
    """
    try:
        return model.model_validate(data)
    except ValidationError as reason:
        first = reason.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields(model, first["loc"][:-1])
            raise error(f"Unknown key {key!r} in {where!r}: {suggest(str(first['loc'][-1]), known)}.") from None
        law = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == "missing":
            raise error(f"{where!r} needs the key {key!r}: add it.") from None
        raise error(f"Key {key!r} in {where!r}: {law}, but got {first['input']!r}.") from None


def _fields(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Return the valid keys of the table at `loc` inside `model`."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is not None:
            inner = field.annotation
            arguments = [inner, *getattr(inner, "__args__", ())]
            model = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), model)
    return list(model.model_fields)
