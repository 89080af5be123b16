"""What the user prefers: napari's *Preferences ▸ White blood cells*, or a file where napari has no such page. No Qt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

DEFAULTS: dict[str, Any] = {"model": "", "threshold": 0.0, "reviewer": "", "palette": "Okabe and Ito"}
"""Those of the manifest: empty and 0 leave it to the model and the computer."""


def preferences_file() -> Path:
    """Return where preferences are kept for a napari without settings of plugins (before 0.9): JSON, as `DEFAULTS`."""
    return user_config_path("napari-wbc", appauthor=False) / "preferences.json"


def preference(name: str) -> Any:
    """Return what the user prefers; the default where nothing, or nothing of the right type, is set.

    Parameters
    ----------
    name : str
        A key of `DEFAULTS`.
    """
    default = DEFAULTS[name]
    try:
        from napari.settings import get_plugin_settings

        told = getattr(get_plugin_settings("napari-wbc").preferences, name)
    except (ImportError, KeyError, AttributeError):
        try:
            told = json.loads(preferences_file().read_text("utf-8"))[name]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return default
    if isinstance(default, float) and isinstance(told, int | float) and 0 <= told <= 1:
        return float(told)
    return told.strip() if isinstance(told, str) and isinstance(default, str) else default
