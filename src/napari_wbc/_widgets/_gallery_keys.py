"""Letters that the user bound to classes, kept from day to day. No Qt."""

from __future__ import annotations

import json
from pathlib import Path

from platformdirs import user_config_path

from napari_wbc.atomic import new_file


def keys_file() -> Path:
    """Return where the letters are kept."""
    return user_config_path("napari-wbc", appauthor=False) / "keys.json"


def load_keys() -> dict[str, str]:
    """Return the letter by class that the user chose; none where the file is damaged."""
    try:
        found = json.loads(keys_file().read_text("utf-8"))
        return {str(name): str(letter) for name, letter in found.items() if len(str(letter)) == 1}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def save_key(name: str, letter: str) -> dict[str, str]:
    """Bind a letter to a class and return all that are bound; a class that had it loses it.

    Raises
    ------
    ValueError
        If it is not one letter or digit.
    """
    letter = letter.strip().lower()
    if len(letter) != 1 or not letter.isalnum():
        raise ValueError(f"{letter!r} is no key: give one letter or digit")
    keys = {other: key for other, key in load_keys().items() if key != letter} | {name: letter}
    with new_file(keys_file()) as fresh:
        fresh.write_text(json.dumps(keys), "utf-8")
    return keys
