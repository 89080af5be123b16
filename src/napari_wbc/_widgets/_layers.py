"""Cells as napari layers, and back. No Qt; napari for its types only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_wbc.cells import UNIDENTIFIED, Cells
from napari_wbc.count import differential
from napari_wbc.palette import COLOURS, colour

from ._source import KEY as KEY  # the reader marks its layers with it too

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

    from napari_wbc.pipeline import Analysis

LayerTuple = tuple[Any, dict[str, Any], str]

_PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")
CELLS, LABELS, COUNTS = "cells", "cells labels", "counts"
# Text of 50,000 points takes seconds to draw.
MAX_TEXTS = 500
_TYPICAL_DIAMETER = 60.0
_MOST_COLOURED = 2**16
# Dark on the bright film.
INK = "#101018"


def layers_of(
    cells: Cells,
    labels: npt.NDArray[np.integer[Any]] | None,
    name: str = "",
    scale: Sequence[float] | None = None,
) -> list[LayerTuple]:
    """Return the layers that show the cells of a field.

    Parameters
    ----------
    cells : Cells
        Classified or only segmented.
    labels : (H, W) integer array, optional
        The cells' ids; without it there is no labels layer.
    name : str
        Put in front of the layers' names.
    scale : two floats, optional
        World units per pixel.

    Returns
    -------
    list of (data, attributes, layer type)
        Labels named ``cells labels``, points named ``cells`` whose features
        are the whole table, and, for classified cells, shapes named
        ``counts`` that show the differential in the field's corner.
    """
    scale = [1.0, 1.0] if scale is None else [float(step) for step in scale]
    layers: list[LayerTuple] = []
    if labels is not None:
        layers.append((labels, _labels_attributes(cells), "labels"))
    layers.append((cells.centroids, _points_attributes(cells), "points"))
    if cells.classes:
        extent = labels.shape if labels is not None else _extent(cells)
        rectangles, attributes = _counts_table(cells, extent, scale)
        layers.append((rectangles, attributes, "shapes"))
    for _, attributes, _ in layers:
        attributes["scale"] = scale
        attributes["metadata"] = {KEY: {"role": attributes["name"]}}
        attributes["name"] = f"{name} {attributes['name']}".strip()
    return layers


def cells_of(features: pd.DataFrame | Mapping[str, Any], data: npt.ArrayLike) -> Cells:
    """Rebuild the cells from a points layer, with what the user changed.

    Parameters
    ----------
    features : pandas.DataFrame or mapping
        The layer's features.
    data : (n, 2) float array
        The layer's points. A point that was moved within its cell moves the
        centre; one that was added, or moved elsewhere, is a cell with a free
        label and no measurements.

    Returns
    -------
    Cells
    """
    table = pd.DataFrame(features).reset_index(drop=True)
    if "class" in table:
        table["class"] = table["class"].astype(object)
    points = np.asarray(data, dtype=np.float64).reshape(len(table), np.shape(data)[-1])[:, -2:]
    for axis, column in enumerate(["centroid-0", "centroid-1"]):
        if column in table:
            # The layer keeps single precision; only a move by the user is news.
            moved = ~np.isclose(points[:, axis], table[column].astype(float), rtol=1e-6, atol=1e-2)
            table.loc[moved, column] = points[moved, axis]
    if {"slide", "label", "bbox-3"} <= set(table.columns):
        table = _number_added(table, points)
    return Cells(table)


def _number_added(table: pd.DataFrame, points: npt.NDArray[np.float64]) -> pd.DataFrame:
    """Give added points, which napari fills with another cell's values, labels of their own."""
    table = table.fillna({"label": 0, "at_border": False})
    first, last = (table[[f"bbox-{k}", f"bbox-{k + 1}"]].to_numpy(dtype=float) for k in (0, 2))
    # A point that is outside its cell is another cell.
    outside = ~((first - 1 <= points) & (points <= last)).all(axis=1)
    added = outside | (table.duplicated(["slide", "label"]) | (table["label"] <= 0)).to_numpy()
    if not added.any():
        return table
    table.loc[added, "label"] = max(table["label"].max(), 0) + 1 + np.arange(added.sum())
    measured = [name for name in table if str(name).startswith(("p_", "area", "nucleus_area"))]
    table.loc[added, [*measured, "probability", "eccentricity", "solidity"]] = np.nan
    for axis in (0, 1):
        corner = np.floor(points[added, axis]).astype(np.int64)
        table.loc[added, f"bbox-{axis}"], table.loc[added, f"bbox-{axis + 2}"] = corner, corner + 1
    return table


def update_layers(viewer: Viewer, analysis: Analysis, image_layer: Layer) -> dict[str, Layer]:
    """Show an analysis over its picture; layers of an earlier run are updated in place.

    Parameters
    ----------
    viewer : napari.Viewer
        Where to.
    analysis : Analysis
        What to show.
    image_layer : napari.layers.Image
        The picture; the new layers take its place in the world and its units.

    Returns
    -------
    dict of str to layer
        By role: ``cells``, ``cells labels`` and ``counts``.

    Notes
    -----
    Cells that the user corrected since the last run are never overwritten:
    that layer is kept as it is and a new one is made.
    """
    selected = set(viewer.layers.selection)
    transform = _transform(image_layer)
    shown = {}
    for data, attributes, kind in layers_of(analysis.cells, analysis.labels, scale=transform["scale"]):
        role = attributes["name"]
        attributes.update(transform)
        attributes["metadata"][KEY].update(image=image_layer.unique_id, cells=analysis.cells)
        if analysis.slide.path is not None:
            attributes["metadata"][KEY]["picture"] = str(analysis.slide.path)
        layer = find_layer(viewer, image_layer, role)
        if layer is not None and role == CELLS and is_edited(layer):
            layer.metadata[KEY]["role"] = "corrected cells"
            layer.name, layer.visible, layer = "corrected cells", False, None
        if layer is not None:
            _update(layer, data, attributes)
        else:
            layer = getattr(viewer, f"add_{kind}")(data, **attributes)
            if role == LABELS:
                layer.contour = max(2, round(max(analysis.labels.shape) / 350))
        shown[role] = layer
    if selected:
        viewer.layers.selection.clear()
        viewer.layers.selection.update(selected)
    return shown


def find_layer(viewer: Viewer, image_layer: Layer, role: str) -> Layer | None:
    """Return the layer that an earlier run made for this picture, or None."""
    for layer in viewer.layers:
        mark = layer.metadata.get(KEY, {})
        if mark.get("role") == role and mark.get("image") == image_layer.unique_id:
            return layer
    return None


def is_edited(layer: Layer) -> bool:
    """Whether the user changed cells since the run that made the points layer."""
    cells = layer.metadata[KEY]["cells"]
    return bool(cells_of(layer.features, layer.data) != cells)


def _update(layer: Layer, data: Any, attributes: dict[str, Any]) -> None:
    """Give a layer new data and leave alone what the user chose: visibility, opacity, order, name."""
    if hasattr(layer, "selected_data"):
        layer.selected_data = set()
    if attributes.get("colormap", "") is None:
        from napari.utils.colormaps import label_colormap

        # Before the data: colours of single labels may not take these.
        layer.colormap = label_colormap()
        attributes = {name: value for name, value in attributes.items() if name != "colormap"}
    layer.data = data
    layer.features = attributes["features"]
    for name in ("face_color_cycle", "face_color", "edge_width", "size", "colormap", *_PLACE):
        if name in attributes:
            _set(layer, name, attributes[name])
    for name, value in attributes.get("text", {}).items():
        if name in ("string", "color", "size", "translation"):
            _set(layer.text, name, value)
    if "text" in attributes:
        layer.text.refresh(layer.features)
    layer.metadata[KEY].update(attributes["metadata"][KEY])


def _set(target: Any, name: str, value: Any) -> None:
    """Set what differs: each setting draws the layer again, and outlines of a large field take half a second."""
    before = getattr(target, name)
    same = name in _PLACE and np.array_equal(
        getattr(before, "affine_matrix", before), getattr(value, "affine_matrix", value)
    )
    if not same:
        setattr(target, name, value)


def show_counts(layer: Layer, cells: Cells, extent: Sequence[int]) -> None:
    """Update a layer of counts from corrected cells of a field of (rows, columns)."""
    rectangles, attributes = _counts_table(cells, extent, layer.scale)
    _update(layer, rectangles, attributes | {"metadata": layer.metadata})


def _transform(image_layer: Layer) -> dict[str, Any]:
    place = {name: getattr(image_layer, name)[-2:] for name in ("scale", "translate", "units")}
    if image_layer.ndim == 2:
        place.update({name: getattr(image_layer, name) for name in ("rotate", "shear", "affine")})
    return place


def _diameter(cells: Cells) -> float:
    """Diameter of a typical cell of the field, px."""
    if not len(cells):
        return _TYPICAL_DIAMETER
    diameter = float(2 * np.sqrt(cells.table["area"].median() / np.pi))
    return diameter if np.isfinite(diameter) else _TYPICAL_DIAMETER


def _colours(cells: Cells) -> dict[str, str]:
    names = [*COLOURS, *cells.classes, *cells.table["class"].unique()]
    return {name: colour(name) for name in names if name}


def _points_attributes(cells: Cells) -> dict[str, Any]:
    features = cells.table.copy()
    if cells.classes:
        # Categories give the features table of napari a drop-down list to correct a class with.
        names = dict.fromkeys([*cells.classes, UNIDENTIFIED, *features["class"]])
        features["class"] = pd.Categorical(features["class"], categories=list(names))
    diameter = _diameter(cells)
    attributes: dict[str, Any] = {
        "name": CELLS,
        "features": features,
        "size": 0.16 * diameter,
        "canvas_size_limits": (7, 16),
        "border_color": "white",
        "border_width": 0.15,
        "face_color": "#ffffff",
        "opacity": 1.0,
    }
    if cells.classes and len(cells):
        attributes["face_color"] = "class"
        attributes["face_color_cycle"] = _colours(cells)
    texts = bool(cells.classes) and len(cells) <= MAX_TEXTS
    attributes["text"] = {
        "string": "{class} {probability:.0%}" if texts else {"constant": ""},
        "color": INK,
        "size": 8,
        "anchor": "center",
        "translation": np.array([-0.72 * diameter, 0.0]),
    }
    return attributes


def _labels_attributes(cells: Cells) -> dict[str, Any]:
    features = cells.table.copy()
    features.insert(0, "index", features["label"])
    attributes: dict[str, Any] = {"name": LABELS, "features": features, "colormap": None, "opacity": 0.9}
    # Beyond this napari colours single labels only with numba's help; its own colours do for any label.
    if features["label"].max() > _MOST_COLOURED and find_spec("numba") is None:
        return attributes
    colours: dict[int | None, str] = {None: COLOURS[UNIDENTIFIED], 0: "transparent"}
    for label, name in zip(features["label"], features["class"], strict=True):
        colours[int(label)] = colour(name) if name else INK
    return attributes | {"colormap": colours}


def _extent(cells: Cells) -> tuple[int, int]:
    corner = cells.table[["bbox-2", "bbox-3"]].max()
    return (int(corner.iloc[0]), int(corner.iloc[1])) if len(cells) else (512, 512)


def _counts_table(
    cells: Cells, extent: Sequence[int], scale: Sequence[float]
) -> tuple[list[npt.NDArray[np.float64]], dict[str, Any]]:
    """Lay the counts out as a panel in the corner: rectangles, some of them with a text.

    Both are in the picture's own coordinates, so that they keep together at every zoom.
    """
    counts = differential(cells)
    counts = counts[counts["n"] > 0]
    line = min(extent[0] / 38, extent[1] / 50)
    size = np.array([1.3 * len(counts) + 1.8, 23.0])
    corner = _free_corner(cells, extent, (size + 0.8) * line) / line + 0.4
    rectangles: list[npt.NDArray[np.float64]] = []
    texts: list[str] = []
    faces: list[str] = []

    def add(top: float, left: float, height: float, width: float, text: str = "", face: str = "#ffffff00") -> None:
        box = [(top, left), (top, left + width), (top + height, left + width), (top + height, left)]
        rectangles.append(line * (np.array(box) + corner))
        texts.append(text)
        faces.append(face)

    add(0, 0, size[0], size[1], face="#ffffffe0")
    white = int(counts.loc[counts["group"] == "white", "n"].sum())
    add(0.4, 0.5, 1, 10, f"{white} white cell{'' if white == 1 else 's'}, exact 95 % limits")
    for row, (_, entry) in enumerate(counts.iterrows(), start=1):
        top = 0.4 + 1.3 * row
        add(top + 0.1, 0.6, 0.8, 0.8, face=colour(entry["class"]))
        add(top, 1.8, 1, 7, entry["class"])
        add(top, 11.9, 1, 2, str(entry["n"]))
        add(top, 13.7, 1, 7, value_text(entry))
    text: dict[str, Any] = {"string": "{text}", "color": INK, "scaling": True, "anchor": "upper_left"}
    # napari writes above the upper left corner; one line down is inside.
    text.update(size=0.5 * line * scale[-1], translation=np.array([line, 0.0]))
    return rectangles, {
        "name": COUNTS,
        "shape_type": "rectangle",
        "features": pd.DataFrame({"text": texts}),
        "face_color": faces,
        "edge_color": "#ffffff00",
        "edge_width": 0,
        "text": text,
        "opacity": 1.0,
    }


def _free_corner(cells: Cells, extent: Sequence[int], size: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the upper left of the panel in that corner of the field where it hides the fewest cells."""
    first, last = (cells.table[[f"bbox-{k}", f"bbox-{k + 1}"]].to_numpy() for k in (0, 2))
    room = np.maximum(np.asarray(extent, dtype=float) - size, 0.0)
    corners = [np.array([row, column]) for row in (0.0, room[0]) for column in (0.0, room[1])]
    hidden = [int(((first < corner + size) & (last > corner)).all(axis=1).sum()) for corner in corners]
    return corners[int(np.argmin(hidden))]


def value_text(row: pd.Series) -> str:
    """Write a row of the differential as text: ``66.7 % (41.0–86.7)``; empty for plain numbers."""
    if not np.isfinite(row["value"]) or not np.isfinite(row["low"]):
        return ""
    unit = " %" if str(row["unit"]).startswith("%") else " / 100"
    high = f"{row['high']:.1f}" if np.isfinite(row["high"]) else "∞"
    return f"{row['value']:.1f}{unit} ({row['low']:.1f}–{high})"
