"""napari shows one line of a message, for four seconds: it has to say most of it; the dock's line says all."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import Any

from napari.utils.notifications import show_warning

SEEN = 40
"""Letters that fit into the line, with room for wide ones."""
# The folders of a path, which has the file's name behind them.
_FOLDERS = re.compile(r"(?<!\S)(?:[A-Za-z]:)?[\\/](?=\S)(?:[^\\/:;\n]+[\\/])+")


def toast(message: str, show: Callable[..., Any] = show_warning) -> None:
    """Show a message in napari: paths without their folders, and a first line that shows whether there is more."""
    first, *rest = textwrap.wrap(_FOLDERS.sub("", message), SEEN)
    show("\n".join([f"{first} …", " ".join(rest)]) if rest else first)
