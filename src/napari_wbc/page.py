"""Pages to read, of templates in which everything is escaped; and values as JSON knows them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .words import tenths

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"css": css_text, "tenths": tenths}
    return made


def render(template: str, **values: Any) -> str:
    """Fill a template of the package; every value is escaped."""
    return _environment().get_template(template).render(**values)


def css_text(text: str) -> str:
    """Return a text as a string of CSS: what is neither a letter nor a digit as its number, so nothing can end it."""
    from markupsafe import Markup

    safe = "".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):06x}" for c in text if c != "\0")
    return Markup(f'"{safe}"')  # noqa: S704 - of letters, digits and backslashes only


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | bool | np.bool_) or value is None:
        return bool(value) if isinstance(value, np.bool_) else value
    number = float(value)
    if not np.isfinite(number):
        return None
    return int(number) if number.is_integer() and not isinstance(value, float) else number
