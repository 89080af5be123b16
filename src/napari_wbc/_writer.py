"""Layers of cells, corrected or not, to the files that the command line writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .export import RESULT_FILES, ExportError, slide_note, write_cells, write_folder
from .tables import MARK

FullLayerData = tuple[Any, Mapping[str, Any], str]


def write_layers(path: str, layer_data: Sequence[FullLayerData]) -> list[str]:
    """Write a points layer of cells, and their labels, into a folder.

    Parameters
    ----------
    path : str
        The folder. Earlier results in it are replaced as a whole, so that
        nothing of them, such as the annotated picture, is left to contradict
        the cells; the picture is drawn again where the field is at hand.
    layer_data : sequence of (data, attributes, layer type)
        One points layer; labels and the picture if there are any.

    Returns
    -------
    list of str
        The files written.

    Raises
    ------
    ExportError, CellsError
        If there are no cells, or the folder cannot be written.
    """
    from ._widgets._layers import cells_of

    points = next((layer for layer in layer_data if layer[2] == "points"), None)
    if points is None:
        raise ExportError(f"{path}: there are no cells to write; select the points layer of the cells")
    cells = cells_of(points[1]["features"], points[0])
    labels = next((_labels(data, path) for data, _, kind in layer_data if kind == "labels"), None)
    if labels is not None and _is_ours(points[1]):
        # A cell that the user deleted is gone from the labels too.
        labels = np.where(np.isin(labels, cells.table["label"].to_numpy()), labels, 0)
    picture = next((found for _, attributes, _ in layer_data if (found := _picture_of(attributes))), None)
    image = _image(layer_data, picture, labels)
    files = (*RESULT_FILES, "differential.csv")
    # What somebody saved is a reviewer's: no later run may replace it unasked.
    more = _note(picture) if labels is None else None
    folder = write_folder(path, cells, labels, image=image, picture=picture, files=files, corrected=True, more=more)
    return [str(file) for file in sorted(folder.iterdir())]


def write_points(path: str, data: Any, meta: Mapping[str, Any]) -> list[str]:
    """Write a points layer of cells as one table: CSV, Parquet or GeoJSON by the suffix.

    Parameters
    ----------
    path : str
        The file.
    data : (n, 2) array
        Points of the layer.
    meta : mapping
        The layer's attributes; its features are the table of cells.

    Returns
    -------
    list of str
        The file written.
    """
    from ._widgets._layers import cells_of

    return [str(write_cells(cells_of(meta["features"], data), path))]


def _labels(data: Any, path: str) -> npt.NDArray[np.integer[Any]]:
    labels = np.asarray(data)
    if labels.ndim != 2:
        raise ExportError(f"{path}: labels of shape {labels.shape} are not one field; select the labels of the cells")
    return labels


def _is_ours(attributes: Mapping[str, Any]) -> bool:
    return isinstance((attributes.get("metadata") or {}).get(MARK), Mapping)


def _picture_of(attributes: Mapping[str, Any]) -> Path | None:
    metadata = attributes.get("metadata") or {}
    own = metadata.get(MARK)
    found = own.get("picture") if isinstance(own, Mapping) else metadata.get("path")
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def _note(picture: Path | None) -> dict[str, bytes] | None:
    """Say which slide the cells are of, where it is a whole one."""
    from .slide import ImageError, Slide

    try:
        slide = Slide.open(picture) if picture else None
    except (ImageError, OSError):
        return None
    return slide_note(slide) if slide is not None and slide.is_whole else None


def _image(
    layer_data: Sequence[FullLayerData], picture: Path | None, labels: npt.NDArray[np.integer[Any]] | None
) -> npt.NDArray[np.uint8] | None:
    """Return the field to draw on, if the labels were drawn on it."""
    from .slide import ImageError, Slide

    if labels is None:
        return None
    pictures = [np.asarray(data) for data, _, kind in layer_data if kind == "image"]
    sources: list[Any] = [*pictures, *([picture] if picture else [])]
    for source in sources:
        try:
            image = Slide.open(source).image if isinstance(source, Path) else Slide.from_array(source).image
        except (ImageError, OSError):
            continue
        if image.shape[:2] == labels.shape:
            return image
    return None
