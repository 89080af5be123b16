"""The pictures of a report: cells of each class at one scale, and the slide or fields with the cells marked."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .cells import Cells
from .crop import CropSize
from .picture import MAX_TAGS, dotted, marked
from .slide import ImageError
from .whole import crop_slide
from .words import plural

if TYPE_CHECKING:
    from PIL import Image

    from .case import Case, Picture

SIZE = CropSize(24.0, 112)
"""Of the cells in a report."""

MOST_FIELDS = 6
_LONGEST = 1400
MOST, LEAST, ALL = "most certain", "least certain", "all"


@dataclass(frozen=True)
class Shown:
    """One cell of the gallery.

    Parameters
    ----------
    row : mapping
        Its row of the table of cells.
    uri : str
        Its picture.
    unlike : bool
        Whether it is unidentified because it is unlike the cells that the model knows.
    """

    row: Any
    uri: str
    unlike: bool


@dataclass(frozen=True)
class Group:
    """Cells of a class: ``most certain``, ``least certain``, or ``all`` if they are few."""

    name: str
    kind: str
    cells: tuple[Shown, ...]


def data_uri(picture: Image.Image, quality: int = 86) -> str:
    """Return a picture as a JPEG inside an address."""
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def chosen(cells: Cells, per_class: int) -> list[tuple[str, str, npt.NDArray[np.int64]]]:
    """Choose the cells of each class to show.

    Returns
    -------
    list of (class, kind, rows)
        Classes in the order of the model, then others; rows by falling probability of the likeliest class. Of more
        than `per_class` cells the most and the least certain are shown, half of each.
    """
    table = cells.table
    here = [name for name in table["class"].unique() if name]
    groups = []
    for name in [*(c for c in cells.classes if c in here), *sorted(set(here) - set(cells.classes))]:
        own = table[table["class"] == name].sort_values("probability", ascending=False, kind="stable")
        rows = own.index.to_numpy(np.int64)
        if len(rows) <= per_class:
            groups.append((name, ALL, rows))
        else:
            first = math.ceil(per_class / 2)
            groups += [(name, MOST, rows[:first]), (name, LEAST, rows[len(rows) - (per_class - first) :])]
    return groups


def gallery(case: Case, per_class: int) -> tuple[list[Group], list[str]]:
    """Cut out the cells to show.

    Parameters
    ----------
    case : Case
        The results.
    per_class : int
        How many cells of each class.

    Returns
    -------
    groups : list of Group
        Without cells whose picture or scale is missing.
    notes : list of str
        What is missing, and what to do.
    """
    groups = [group for group in chosen(case.cells, per_class) if len(group[2])]
    rows = np.unique(np.concatenate([group[2] for group in groups])) if groups else np.empty(0, np.int64)
    crops, notes = _crops(case, rows)
    found, unlike = [], case.cells.unlike.to_numpy()
    for name, kind, own in groups:
        records = case.cells.table.loc[own].to_dict("records")
        cells = [
            Shown(row, crops[k], bool(unlike[k])) for k, row in zip(own.tolist(), records, strict=True) if k in crops
        ]
        found.append(Group(name, kind, tuple(cells)))
    return found, notes


def _crops(case: Case, rows: npt.NDArray[np.int64]) -> tuple[dict[int, str], list[str]]:
    from PIL import Image

    found: dict[int, str] = {}
    notes = []
    mpp = case.cells.table["mpp"].to_numpy()
    if unscaled := int((~np.isfinite(mpp[rows])).sum()):
        notes.append(f"not shown, without a scale: {plural(unscaled, 'cell')}")
    rows = rows[np.isfinite(mpp[rows])]
    for number in np.unique(case.of[rows]):
        own = rows[case.of[rows] == number]
        try:
            crops = crop_slide(case.pictures[number].slide, case.cells.centroids[own], mpp[own], SIZE)
        except (ImageError, ValueError, OSError) as error:
            notes.append(str(error))
            continue
        found |= {int(k): data_uri(Image.fromarray(crop)) for k, crop in zip(own, crops, strict=True)}
    return found, notes


def overviews(case: Case) -> tuple[list[tuple[str, str]], list[str]]:
    """Draw the slide or the fields with the cells marked.

    Returns
    -------
    pictures : list of (str, str)
        Name and address; of a run those `MOST_FIELDS` with the most cells.
    notes : list of str
        Which are missing, and what to do.
    """
    most = sorted(case.pictures, key=lambda picture: -len(picture.cells))[:MOST_FIELDS]
    shown, notes = [], []
    for picture in (p for p in case.pictures if p in most):
        try:
            shown.append(
                (picture.name, data_uri(_overview(picture, _LONGEST if len(most) == 1 else _LONGEST // 2), 82))
            )
        except (ImageError, OSError) as error:
            notes.append(str(error))
    return shown, notes


def _overview(picture: Picture, longest: int) -> Image.Image:
    from PIL import Image

    slide = picture.slide
    if slide.is_whole or len(picture.cells) > MAX_TAGS:
        small = slide.thumbnail(longest)
        return dotted(small, picture.cells, slide.shape[1] / small.shape[1])
    drawn = marked(slide.image, picture.cells, picture.rings)
    drawn.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return drawn


@dataclass(frozen=True)
class Pictures:
    """The pictures of a report.

    Parameters
    ----------
    overviews : list of (str, str)
        Slide or fields with the cells marked: name and address.
    groups : list of Group
        The gallery.
    missing : list of str
        What is missing, and what to do.
    """

    overviews: list[tuple[str, str]] = field(repr=False)
    groups: list[Group] = field(repr=False)
    missing: list[str]


def draw_pictures(case: Case, per_class: int) -> Pictures:
    """Draw overview and gallery; parameters as for `gallery`."""
    shown, notes = overviews(case)
    groups, more = gallery(case, per_class)
    return Pictures(shown, groups, list(dict.fromkeys([*notes, *more])))


def regions(case: Case) -> Sequence[dict[str, Any]]:
    """Return what the regions of the case's whole slides are (``regions.csv``), a row a kind of each slide."""
    rows: list[dict[str, Any]] = []
    for picture in case.pictures:
        path = picture.folder / "regions.csv"
        own = picture.facts.get("regions", [])
        if not own and picture.held is None and path.is_file():
            try:
                table = pd.read_csv(path)
                own = table[["region", "area_mm2", "share", "candidates", "used"]].to_dict("records")
            except (OSError, ValueError, KeyError):
                continue  # the report says nothing of regions that cannot be read
        rows += [{"slide": picture.name, **row} for row in own]
    return rows
