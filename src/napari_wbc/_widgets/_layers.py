"""Cells as napari layers, and back. No Qt; napari for its types only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_wbc.cells import COLUMNS, Cells
from napari_wbc.class_names import BESIDE_MODEL, UNIDENTIFIED
from napari_wbc.palette import COLOURS, colour

from ._panel import COUNTS, INK, MAX_NAMES, NAMES, counts_panel, name_plates
from ._slide_layers import show_maps
from ._source import KEY as KEY  # the reader marks its layers with it too
from ._source import file_of

if TYPE_CHECKING:
    from napari.layers import Labels, Layer
    from napari.viewer import Viewer

    from napari_wbc.pipeline import Analysis

LayerTuple = tuple[Any, dict[str, Any], str]


class Shared:
    """Something in the metadata of a layer that copies of the layer share."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, _: dict[int, Any]) -> Shared:
        return self


PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")
CELLS, LABELS = "cells", "cells labels"
CORRECTED = "corrected cells"
MANY = 5_000
"""More points than this overlap where all of them are seen, and are drawn smaller there."""
_TYPICAL_DIAMETER = 60.0
_MOST_COLOURED = 2**16


def layers_of(
    cells: Cells,
    labels: npt.NDArray[np.integer[Any]] | None,
    name: str = "",
    scale: Sequence[float] | None = None,
    extent: Sequence[int] | None = None,
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
    extent : two ints, optional
        Rows and columns of the picture; those of the labels, or where the cells are, if not given.

    Returns
    -------
    list of (data, attributes, layer type)
        Labels named ``cells labels``, points named ``cells`` whose features
        are the whole table, and, for classified cells, shapes named ``names``
        that show the classes beside the cells and shapes named ``counts``
        that show the differential below the field.
    """
    scale = [1.0, 1.0] if scale is None else [float(step) for step in scale]
    layers: list[LayerTuple] = []
    if labels is not None:
        layers.append((labels, _labels_attributes(cells), "labels"))
    layers.append((cells.centroids, _points_attributes(cells), "points"))
    if cells.classes:
        extent = extent or (labels.shape if labels is not None else _extent(cells))
        layers.extend((*draw(cells, extent, scale), "shapes") for draw in (name_plates, counts_panel))
        layers[-2][1]["visible"] = labels is not None  # on a whole slide they are too small to read, and in the way
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


def cells_at(points: npt.NDArray[np.float64], slide: str, mpp: float) -> Cells:
    """Return cells without class and measurements at points of the user's own, (n, 2) rows and columns."""
    table = pd.DataFrame({"slide": slide, "label": np.arange(1, len(points) + 1), "mpp": mpp})
    corners = np.floor(points).astype(np.int64)
    for axis in (0, 1):
        table[f"centroid-{axis}"] = points[:, axis]
        table[f"bbox-{axis}"], table[f"bbox-{axis + 2}"] = corners[:, axis], corners[:, axis] + 1
    table["class"], table["at_border"] = "", False
    return Cells(table.reindex(columns=list(COLUMNS)))


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
    said = [name for name in ("reason", "class_model", "class_reviewed", "reviewer", "reviewed_at") if name in table]
    table.loc[added, said] = ""
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
        By role: ``cells``, ``cells labels``, ``names`` and ``counts``.

    Notes
    -----
    Cells that the user corrected since the last run are never overwritten:
    that layer is kept as it is and a new one is made.
    """
    selected = set(viewer.layers.selection)
    transform = _transform(image_layer)
    shown = {}
    extent = analysis.slide.shape
    for data, attributes, kind in layers_of(analysis.cells, analysis.labels, "", transform["scale"], extent):
        role = attributes["name"]
        attributes.update(transform)
        attributes["metadata"][KEY].update(image=image_layer.unique_id, cells=analysis.cells, analysis=Shared(analysis))
        if analysis.slide.path is not None:
            attributes["metadata"][KEY]["picture"] = str(analysis.slide.path)
        layer = find_layer(viewer, image_layer, role)
        if layer is not None and role == CELLS and is_edited(layer):
            layer.metadata[KEY]["role"] = CORRECTED
            layer.name, layer.visible, layer = CORRECTED, False, None
        if layer is not None:
            _update(layer, data, attributes)
        else:
            layer = getattr(viewer, f"add_{kind}")(data, **attributes)
            if role == LABELS:
                draw_outlines(layer, extent)
        shown[role] = layer
    if analysis.whole is not None:
        show_maps(viewer, analysis, image_layer, transform)
    if selected:
        viewer.layers.selection.clear()
        viewer.layers.selection.update(selected)
    return shown


def draw_outlines(labels: Labels, extent: Sequence[int]) -> None:
    """Show cells as outlines, which hide nothing of them."""
    labels.contour = max(2, round(max(extent) / 350))


def find_layer(viewer: Viewer, image_layer: Layer, role: str) -> Layer | None:
    """Return the layer that an earlier run made for this picture, or that was read from its results, or None."""
    path = file_of(image_layer)
    for layer in viewer.layers:
        mark = layer.metadata.get(KEY, {})
        same = mark["image"] == image_layer.unique_id if "image" in mark else path and mark.get("picture") == str(path)
        if same and mark.get("role") == role:
            return layer
    return None


def is_edited(layer: Layer) -> bool:
    """Whether the user changed cells since the run that made the points layer."""
    # What was read from files may hold corrections of long ago.
    before = layer.metadata[KEY].get("cells")
    return before is None or "waiting" in layer.metadata[KEY] or bool(cells_of(layer.features, layer.data) != before)


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
    for name in ("face_color_cycle", "face_color", "edge_width", "size", "colormap", *PLACE):
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
    same = name in PLACE and np.array_equal(
        getattr(before, "affine_matrix", before), getattr(value, "affine_matrix", value)
    )
    if not same:
        setattr(target, name, value)


def show_corrections(shown: Mapping[str, Layer], cells: Cells, extent: Sequence[int]) -> None:
    """Let outlines, names and counts follow cells that the user corrected.

    Parameters
    ----------
    shown : mapping of str to layer
        Layers by role; those that are not in it are left out.
    cells : Cells
        The corrected cells.
    extent : rows and columns of the field
    """
    labels = shown.get(LABELS)
    if labels is not None and "index" in labels.features:
        attributes = _labels_attributes(cells)
        if attributes["colormap"] is not None:
            # Cells that the user deleted lose their outline.
            gone = set(labels.features["index"]) - set(attributes["features"]["index"])
            attributes["colormap"].update(dict.fromkeys(map(int, gone), "transparent"))
            labels.colormap = attributes["colormap"]
            kept = labels.features[labels.features["index"].isin(gone)]
            labels.features = pd.concat([attributes["features"], kept], ignore_index=True)
    for role, draw in ((NAMES, name_plates), (COUNTS, counts_panel)):
        layer = shown.get(role)
        if layer is not None and (role != NAMES or len(cells) <= MAX_NAMES or len(layer.data)):
            data, attributes = draw(cells, extent, layer.scale)
            _update(layer, data, attributes | {"metadata": layer.metadata})


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
        names = dict.fromkeys([*cells.classes, *BESIDE_MODEL, *features["class"]])
        features["class"] = pd.Categorical(features["class"], categories=list(names))
    diameter = _diameter(cells)
    attributes: dict[str, Any] = {
        "name": CELLS,
        "features": features,
        "size": 0.16 * diameter,
        "canvas_size_limits": (7, 16) if len(cells) <= MANY else (4, 16),
        "border_color": "white",
        "border_width": 0.15 if len(cells) <= MANY else 0.0,
        "face_color": "#ffffff",
        "opacity": 1.0,
    }
    if cells.classes and len(cells):
        attributes["face_color"] = "class"
        attributes["face_color_cycle"] = _colours(cells)
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
