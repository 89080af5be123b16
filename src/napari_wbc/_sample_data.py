"""Smear fields that come with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "sample_data"


@dataclass(frozen=True)
class Sample:
    """A picture that comes with the package.

    Parameters
    ----------
    key, title : str
        Short name, and the name in napari's menu.
    path : pathlib.Path
        The picture.
    source, licence : str
        Where it is from, and under which licence.
    """

    key: str
    title: str
    path: Path
    source: str
    licence: str


@cache
def samples() -> tuple[Sample, ...]:
    """Return the pictures that come with the package."""
    entries = json.loads((_FOLDER / "samples.json").read_text(encoding="utf-8"))
    return tuple(
        Sample(entry["key"], entry["title"], _FOLDER / entry["file"], entry["source"], entry["licence"])
        for entry in entries
    )


def _open(key: str) -> list[tuple[Any, dict[str, Any], str]]:
    from .slide import Slide

    sample = next(sample for sample in samples() if sample.key == key)
    metadata = {"source": sample.source, "licence": sample.licence, "path": str(sample.path)}
    return [(Slide.open(sample.path).image, {"name": sample.path.name, "metadata": metadata, "rgb": True}, "image")]


def __getattr__(name: str) -> Any:
    # The manifest names one function a sample: open_<key>.
    if name.startswith("open_") and name.removeprefix("open_") in {sample.key for sample in samples()}:
        return partial(_open, name.removeprefix("open_"))
    raise AttributeError(name)
