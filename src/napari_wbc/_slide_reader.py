"""Whole slides into napari: a lazy multiscale layer in µm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .pyramid import RGB, Pixels
from .slide import SLIDE_SUFFIXES, ImageError, Slide
from .slide_formats import TIFF_SUFFIXES

LayerTuple = tuple[Any, dict[str, Any], str]
_CHUNK = 1024


def get_reader(path: Any) -> Callable[[Any], list[LayerTuple]] | None:
    """Return a reader for whole slides, None for everything else.

    Parameters
    ----------
    path : str or list of str
        A scanner's file, a TIFF or OME-TIFF with levels, or an OME-Zarr of a colour picture.

    Returns
    -------
    callable or None
        Takes the path, returns layer data tuples.
    """
    if not isinstance(path, str | Path) or Path(path).suffix.lower() not in (*TIFF_SUFFIXES, *SLIDE_SUFFIXES):
        return None
    try:
        if not Slide.open(path).is_whole:
            return None
    except (ImageError, OSError):
        # What can be nothing but a slide is told why it does not open; a TIFF may be for other readers.
        return read_slide if Path(path).suffix.lower() in SLIDE_SUFFIXES and not Path(path).is_dir() else None
    return read_slide


def read_slide(path: Any) -> list[LayerTuple]:
    """Open a slide as one image layer; only what is looked at is decoded.

    Parameters
    ----------
    path : str or pathlib.Path

    Returns
    -------
    list of (data, attributes, "image")
        The levels as dask arrays. The thumbnail is in the metadata; the label and the macro image, which may show a
        patient's name, are nowhere (`napari_wbc.Slide.associated_image`).
    """
    slide = Slide.open(Path(path))
    attributes: dict[str, Any] = {"name": slide.name, "rgb": True, "multiscale": True}
    if slide.mpp is not None:
        attributes |= {"scale": (slide.mpp, slide.mpp), "units": ("micrometer", "micrometer")}
    attributes["metadata"] = {
        "path": str(path),
        "thumbnail": slide.thumbnail(512),
        "properties": dict(slide.pixels.properties),
        "notes": list(slide.notes),
    }
    return [(levels_of(slide), attributes, "image")]


def levels_of(slide: Slide) -> list[Any]:
    """Return the levels of a slide as lazy dask arrays, (H, W, 3) uint8."""
    import dask.array as da

    levels = []
    for k, (rows, columns) in enumerate(slide.pixels.shapes):
        side = max(slide.pixels.tile, _CHUNK // slide.pixels.tile * slide.pixels.tile)
        chunks = da.core.normalize_chunks((side, side, 3), (rows, columns, 3), dtype=np.uint8)
        read = partial(_chunk, pixels=slide.pixels, level=k)
        levels.append(da.map_blocks(read, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)))
    return levels


def _chunk(block_info: Any, *, pixels: Pixels, level: int) -> RGB:
    (top, bottom), (left, right), _ = block_info[None]["array-location"]
    return pixels.read(level, top, left, bottom, right)
