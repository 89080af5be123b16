"""Cells as COCO instances: https://cocodataset.org/#format-data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .atomic import new_file
from .count import group_of
from .geojson import Rings

if TYPE_CHECKING:
    from .case import Case, Picture

UNCLASSIFIED = "unclassified"


def to_coco(case: Case) -> tuple[dict[str, Any], int]:
    """Return the cells of pictures as a COCO data set.

    Parameters
    ----------
    case : Case
        The results; the class of a cell is the one that counts, a reviewer's where somebody decided.

    Returns
    -------
    data : dict
        ``info``, ``images``, ``categories`` (each with its group as supercategory) and ``annotations`` with polygons,
        (x, y) in pixels from the corner of the first one. What COCO has no place for is in ``attributes``.
    left_out : int
        Cells without outline and without box, which COCO cannot hold: points that were added by hand.
    """
    from .record import versions

    table = case.cells.table
    here = set(table["class"])
    names = [
        *case.cells.classes,
        *sorted(here - set(case.cells.classes) - {""}),
        *([UNCLASSIFIED] if "" in here else []),
    ]
    number = {name: k for k, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in case.pictures:
        height, width = picture.shape or picture.slide.shape
        file = (picture.path or picture.sought or Path(picture.name)).name
        images.append({"id": len(images) + 1, "file_name": file, "width": width, "height": height})
        for row in picture.cells.table.to_dict("records"):
            place = _place(row, picture)
            if place:
                ids = {"id": len(annotations) + 1, "image_id": len(images)}
                kind = {"category_id": number[row["class"] or UNCLASSIFIED], "iscrowd": 0}
                annotations.append(ids | kind | place | {"attributes": _attributes(row)})
    data = {
        "info": {"description": "White cells, by napari-wbc. Research use only.", "version": versions()["napari-wbc"]},
        "licenses": [],
        "images": images,
        "categories": [{"id": k, "name": name, "supercategory": _supercategory(name)} for name, k in number.items()],
        "annotations": annotations,
    }
    return data, len(table) - len(annotations)


def write_coco(case: Case, path: str | Path) -> int:
    """Write `to_coco` to a file and return how many cells it cannot hold.

    Raises
    ------
    ExportError
        If the file cannot be written.
    """
    data, left_out = to_coco(case)
    with new_file(path) as fresh:
        fresh.write_text(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return left_out


def _supercategory(name: str) -> str:
    group = "unidentified" if name == UNCLASSIFIED else group_of(name)
    return {"white": "white cell"}.get(group, group)


def _place(row: Any, picture: Picture) -> dict[str, Any] | None:
    """Return polygons, box and area of a cell; None of a mere point."""
    rings: Rings = picture.rings.get(row["label"], []) if len(picture.cells) else []
    top, left, bottom, right = (float(row[f"bbox-{k}"]) for k in range(4))
    if not rings:
        if bottom <= top or right <= left:
            return None
        rings = [np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])]
    corners = np.concatenate(rings)
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    area = row["area"] if np.isfinite(row["area"]) and row["area"] > 0 else (x1 - x0) * (y1 - y0)
    polygons = [np.round(ring[:-1], 2).ravel().tolist() for ring in rings]  # COCO's rings are not closed
    return {"segmentation": polygons, "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)], "area": float(area)}


def _attributes(row: Any) -> dict[str, Any]:
    kept = {
        name: row[name] for name in ("label", "class_model", "class_reviewed", "reviewer", "reviewed_at") if row[name]
    }
    return kept | ({"probability": row["probability"]} if np.isfinite(row["probability"]) else {})
