"""One offline HTML document: templates, figures inside them, and a file that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bsconv_nas.errors import RecordError
from bsconv_nas.report import quantities, theme

__all__ = ["destination", "figure_html", "render", "write_whole"]


def render(template: str, **values: Any) -> str:
    """Return a template of this folder as a document; every value but `Markup` is escaped."""
    return _environment().get_template(template).render(**values)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bsconv_nas", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown: tuple[Callable[..., str], ...] = (
        quantities.cost,
        quantities.duration,
        quantities.percent,
        quantities.points,
    )
    environment.filters |= {function.__name__: function for function in shown}
    return environment


def figure_html(name: str, figure: go.Figure) -> Markup:
    """Return a figure as HTML; Plotly writes `<`, `>` and `/` in its JSON as escapes, so no text can end the script."""
    height = f"{figure.layout.height}px"
    body = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config=theme.CONFIG,
        div_id=f"figure-{name}",
        default_height=height,
    )
    return Markup(body)


def destination(path: str | Path) -> Path:
    """Return the path of a file that is to be written, or refuse one whose folder is not there."""
    path = Path(path)
    if not path.parent.is_dir():
        raise RecordError(
            f"A report is written into an existing folder, but there is no {str(path.parent)!r}: make it."
        )
    return path


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write text (UTF-8) or bytes to `path`, whole or not at all, and return the path."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
