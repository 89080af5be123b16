"""Cells as labels of OME-NGFF 0.4: a small picture of the slide, and its cells at full resolution with colours.

Source of the layout: https://ngff.openmicroscopy.org/0.4/#label-md
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .geojson import Rings
from .palette import colour

if TYPE_CHECKING:
    import pandas as pd

    from .pipeline import Analysis

CHUNK = 1024
_COARSEST = 1024
_THUMBNAIL = 2048
_VERSION = "0.4"
_PROPERTIES = ("class", "probability", "unlikeness", "area_um2", "centroid-0", "centroid-1")


def write_ome_labels(analysis: Analysis, folder: Path) -> None:
    """Write the cells of an analysis as an OME-Zarr of version 0.4.

    Parameters
    ----------
    analysis : Analysis
        Of a field or of a whole slide.
    folder : pathlib.Path
        A new folder, ``….ome.zarr``. It is an image (the slide reduced to 2,048 pixels) with ``labels/cells``: int32 of
        the size of the slide, with coarser levels; only chunks that hold a cell are written.
    """
    import zarr

    slide, mpp = analysis.slide, float(analysis.appearance.mpp)
    root = zarr.open_group(str(folder), mode="w", zarr_format=2)
    image = slide.thumbnail(_THUMBNAIL)
    step = [n / m for n, m in zip(slide.shape, image.shape[:2], strict=True)]
    array = root.create_array(
        "0", shape=(3, *image.shape[:2]), chunks=(3, CHUNK, CHUNK), dtype="uint8", chunk_key_encoding=_KEYS
    )
    array[...] = np.moveaxis(image, -1, 0)
    root.attrs["multiscales"] = [_multiscale(slide.name, mpp, [step], channel=True)]
    labels = root.create_group("labels")
    labels.attrs["labels"] = ["cells"]
    group = labels.create_group("cells")
    levels = 1 + max(0, math.ceil(math.log2(max(slide.shape) / _COARSEST)))
    _write_levels(group, analysis, levels)
    group.attrs["multiscales"] = [_multiscale("cells", mpp, [[2.0**k] * 2 for k in range(levels)], channel=False)]
    rows = analysis.cells.table.to_dict("records")
    group.attrs["image-label"] = {
        "version": _VERSION,
        "colors": [{"label-value": row["label"], "rgba": _rgba(row["class"])} for row in rows],
        "properties": [{"label-value": row["label"], **_properties(row)} for row in rows],
        "source": {"image": "../../"},
    }


_KEYS = {"name": "v2", "separator": "/"}


def _multiscale(name: str, mpp: float, steps: list[list[float]], *, channel: bool) -> dict[str, Any]:
    known = math.isfinite(mpp)
    unit = {"unit": "micrometer"} if known else {}
    axes = [
        *([{"name": "c", "type": "channel"}] if channel else []),
        *({"name": a, "type": "space"} | unit for a in "yx"),
    ]
    ones = [1.0] * channel
    sets = []
    for k, step in enumerate(steps):
        size = mpp if known else 1.0
        changes: list[dict[str, Any]] = [{"type": "scale", "scale": [*ones, *(size * s for s in step)]}]
        if channel:  # a pixel of a reduced picture is the mean of a square; one of reduced labels is its first
            changes += [{"type": "translation", "translation": [0.0, *(size * (s - 1) / 2 for s in step)]}]
        sets.append({"path": str(k), "coordinateTransformations": changes})
    return {"version": _VERSION, "name": name, "axes": axes, "datasets": sets}


def _rgba(name: str) -> list[int]:
    return [*bytes.fromhex(colour(name).removeprefix("#")), 255]


def _properties(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _PROPERTIES if row[name] == row[name]}  # JSON has no NaN


def _write_levels(group: Any, analysis: Analysis, levels: int) -> None:
    rows, columns = analysis.slide.shape
    arrays = [
        group.create_array(
            str(k), shape=(-(-rows >> k), -(-columns >> k)), chunks=(CHUNK, CHUNK), dtype="int32", fill_value=0,
            chunk_key_encoding=_KEYS,
        )
        for k in range(levels)
    ]  # fmt: skip
    touched = set()
    for (row, column), part in _chunks(analysis):
        touched.add((row, column))
        arrays[0][row * CHUNK : row * CHUNK + len(part), column * CHUNK : column * CHUNK + part.shape[1]] = part
    for fine, coarse in pairwise(arrays):
        touched = {(row // 2, column // 2) for row, column in touched}
        for row, column in sorted(touched):
            y, x = row * CHUNK, column * CHUNK
            part = fine[2 * y : 2 * (y + CHUNK) : 2, 2 * x : 2 * (x + CHUNK) : 2]
            coarse[y : y + part.shape[0], x : x + part.shape[1]] = part


def _chunks(analysis: Analysis) -> Iterator[tuple[tuple[int, int], npt.NDArray[np.int32]]]:
    """Labels of the chunks that hold a cell, one at a time."""
    table = analysis.cells.table
    rows, columns = analysis.slide.shape
    here: dict[tuple[int, int], list[int]] = {}
    for k, box in enumerate(table[[f"bbox-{k}" for k in range(4)]].to_numpy()):
        for row in range(box[0] // CHUNK, (box[2] - 1) // CHUNK + 1):
            for column in range(box[1] // CHUNK, (box[3] - 1) // CHUNK + 1):
                here.setdefault((row, column), []).append(k)
    for (row, column), found in sorted(here.items()):
        y, x = row * CHUNK, column * CHUNK
        shape = (min(CHUNK, rows - y), min(CHUNK, columns - x))
        if analysis.labels is not None:
            yield (row, column), analysis.labels[y : y + shape[0], x : x + shape[1]].astype(np.int32)
        elif analysis.whole is not None:
            yield (row, column), _drawn(table.iloc[found], analysis.whole.rings, (y, x), shape)


def _drawn(
    table: pd.DataFrame, rings: Mapping[int, Rings], origin: tuple[int, int], shape: tuple[int, int]
) -> npt.NDArray[np.int32]:
    from skimage.draw import polygon

    part = np.zeros(shape, np.int32)
    for label in table["label"].tolist():
        for ring in rings.get(label, []):
            # Outlines count from the corner of the first pixel, and polygon from its centre.
            part[polygon(ring[:, 1] - 0.5 - origin[0], ring[:, 0] - 0.5 - origin[1], shape)] = label
    return part
