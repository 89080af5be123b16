"""Cells as GeoJSON that QuPath opens as detections, and back."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .cells import COLUMNS, Cells, CellsError
from .palette import colour

Rings = Sequence[npt.NDArray[np.floating[Any]]]
_KEY = "napari-wbc"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/napari-wbc/napari-wbc")


def outlines(labels: npt.NDArray[np.integer[Any]]) -> dict[int, Rings]:
    """Trace the outer outline of every labelled cell.

    Parameters
    ----------
    labels : (H, W) integer array
        0 is background.

    Returns
    -------
    dict of int to list of (m, 2) float arrays
        For each id one closed ring a connected part, (x, y) in pixels with
        the origin in the corner of the first pixel, as QuPath counts.
    """
    from scipy.ndimage import find_objects
    from skimage.measure import find_contours

    ids: npt.NDArray[Any] | range = range(int(labels.max(initial=0)) + 1)
    compact = labels
    if len(ids) > 1_000_000:  # find_objects returns a box for every number up to the highest
        ids, compact = np.unique(np.append(labels, 0), return_inverse=True)
        compact = compact[:-1].reshape(labels.shape)
    found: dict[int, Rings] = {}
    for k, box in enumerate(find_objects(compact), start=1):
        if box is None:
            continue
        mask = np.pad(compact[box] == k, 1).astype(np.uint8)
        origin = np.array([box[1].start, box[0].start]) - 0.5
        rings = [_corners(ring[:, ::-1]) + origin for ring in find_contours(mask, 0.5)]
        # Holes wind the other way round.
        found[int(ids[k])] = sorted((ring for ring in rings if _area(ring) > 0), key=_area, reverse=True)
    return found


def _corners(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Drop the points inside straight stretches of a closed ring."""
    after = np.diff(ring, axis=0)
    before = np.roll(after, 1, axis=0)
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = ring[:-1][turns]
    return np.concatenate([kept, kept[:1]])


def _area(ring: npt.NDArray[np.floating[Any]]) -> float:
    """Return the area of a closed ring, negative if it winds around a hole (the shoelace formula)."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def to_geojson(cells: Cells, rings: Mapping[int, Rings] | None = None) -> str:
    """Return cells as a FeatureCollection for QuPath.

    Parameters
    ----------
    cells : Cells
        One feature a row.
    rings : mapping of int to list of (m, 2) arrays, optional
        Outlines by id (`outlines`). A cell without one gets its bounding
        box, and where that is empty its centre.

    Returns
    -------
    str
        JSON; coordinates are (x, y) in pixels as in `outlines`.

    Notes
    -----
    Numbers are in ``measurements``, the class in ``classification``, what is
    neither in ``cell``: nothing of the table is lost.
    """
    table = cells.table
    features = [_feature(row, (rings or {}).get(int(row["label"]))) for row in table.to_dict("records")]
    types = {str(name): str(dtype) for name, dtype in table.dtypes.items()}
    collection = {"type": "FeatureCollection", _KEY: {"columns": types}, "features": features}
    return json.dumps(collection, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _feature(row: Mapping[Any, Any], rings: Rings | None) -> dict[str, Any]:
    numbers: dict[str, float] = {}
    others: dict[str, Any] = {}
    for key, value in row.items():
        name = str(key)
        value = value.item() if isinstance(value, np.generic) else value
        if name == "class":
            continue
        if isinstance(value, bool | str):
            others[name] = value
        elif isinstance(value, int | float) and math.isfinite(value):
            numbers[name] = value
        elif not pd.isna(value):  # infinity, dates
            others[name] = str(value)
    properties: dict[str, Any] = {"objectType": "detection", "name": f"{row['slide']} {row['label']}".strip()}
    if row["class"]:
        hexadecimal = colour(row["class"]).removeprefix("#")
        properties["classification"] = {"name": row["class"], "color": list(bytes.fromhex(hexadecimal))}
    properties |= {"measurements": numbers, "cell": others}
    identity = str(uuid.uuid5(_NAMESPACE, f"{row['slide']}\n{row['label']}"))
    return {"type": "Feature", "id": identity, "geometry": _geometry(row, rings), "properties": properties}


def _geometry(row: Mapping[Any, Any], rings: Rings | None) -> dict[str, Any]:
    if rings:
        parts = [[np.round(ring.astype(np.float64), 2).tolist()] for ring in rings]
        if len(parts) == 1:
            return {"type": "Polygon", "coordinates": parts[0]}
        return {"type": "MultiPolygon", "coordinates": parts}
    top, left, bottom, right = (int(row[f"bbox-{k}"]) for k in range(4))
    if bottom > top and right > left:
        box = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        return {"type": "Polygon", "coordinates": [box]}
    return {"type": "Point", "coordinates": [row["centroid-1"] + 0.5, row["centroid-0"] + 0.5]}


def from_geojson(text: str) -> Cells:
    """Rebuild the table of cells from `to_geojson`.

    Raises
    ------
    CellsError
        If the text is not GeoJSON of this package.
    """
    try:
        collection = json.loads(text)
        types = collection[_KEY]["columns"]
        rows = [_row(feature["properties"]) for feature in collection["features"]]
        columns = {name: _column([row.get(name) for row in rows], name, dtype) for name, dtype in types.items()}
    except (ValueError, RecursionError) as error:
        raise CellsError(f"not JSON or cut short ({error}); write the file again") from error
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CellsError(f"not GeoJSON that napari-wbc wrote ({error}); read its CSV or Parquet table") from error
    return Cells(pd.DataFrame(columns))


def _row(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **properties["measurements"],
        **properties["cell"],
        "class": properties.get("classification", {}).get("name", ""),
    }


def _column(values: Sequence[Any], name: str, dtype: str) -> pd.Series:
    if name in COLUMNS and COLUMNS[name].dtype == "str":
        return pd.Series(values, dtype=object)
    if dtype == "bool" and not all(isinstance(value, bool) for value in values):
        raise TypeError(f"{name} must be true or false")
    if _is_number(dtype):
        return pd.Series([float("nan") if value is None else value for value in values], dtype=np.dtype(dtype))
    return pd.Series(values, dtype=dtype if dtype in ("bool", "object", "str") else None)


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "iuf"
    except TypeError:  # a type of pandas
        return False


def rings_in(text: str) -> dict[int, Rings]:
    """Return the outlines by id of GeoJSON that `to_geojson` wrote, as `outlines` gives them.

    Raises
    ------
    CellsError
        If the text is not GeoJSON of this package.
    """
    try:
        found: dict[int, Rings] = {}
        for feature in json.loads(text)["features"]:
            shape = feature["geometry"]
            parts = {"Polygon": [shape["coordinates"]], "MultiPolygon": shape["coordinates"]}.get(shape["type"], [])
            label = int(feature["properties"]["measurements"]["label"])
            found[label] = [np.asarray(part[0], dtype=np.float64) for part in parts]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CellsError(f"not GeoJSON that napari-wbc wrote ({error}); write the file again") from error
    return found
