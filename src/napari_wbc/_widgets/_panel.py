"""The counts as a panel below the picture, and the cells' names beside them: text on plates. No Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_wbc.cells import UNLIKE, Cells
from napari_wbc.count import differential
from napari_wbc.palette import colour

Array = npt.NDArray[np.float64]
# (top, left, bottom, right), px of the picture.
Box = tuple[float, float, float, float]
Layer = tuple[list[Array], dict[str, Any]]

COUNTS, NAMES = "counts", "names"
INK, PAPER, CLEAR = "#101018", "#f4f4f8", "#ffffff00"
# Plates of more cells take long to draw, and hide what they name.
MAX_NAMES = 300
# Names that are too long to stand beside a cell.
SHORT = {"immature granulocyte": "imm. granulocyte"}
# napari's size of a text in points of 1/72 inch, twice, on a screen of 96 dots an inch; where a system has fewer
# dots to the inch, letters are smaller than their plates.
_SIZE_OF_EM = (72 / 96) ** 2


@dataclass
class _Plates:
    """Rectangles with colours, each with a text or none; what a shapes layer shows."""

    boxes: list[Array] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    faces: list[str] = field(default_factory=list)
    inks: list[str] = field(default_factory=list)

    def add(self, box: Box, text: str = "", face: str = CLEAR, ink: str = INK) -> None:
        """Add a plate."""
        top, left, bottom, right = box
        self.boxes.append(np.array([(top, left), (top, right), (bottom, right), (bottom, left)]))
        self.texts.append(text)
        self.faces.append(face)
        self.inks.append(ink)

    def layer(self, name: str, em: float, scale: Sequence[float], **text: Any) -> Layer:
        """Return data and attributes of the layer; its texts grow and shrink with the picture."""
        size = _SIZE_OF_EM * em * abs(float(scale[-1]))
        text = {"string": "{text}", "color": {"feature": "ink"}, "size": size, "scaling": True, **text}
        return self.boxes, {
            "name": name,
            "shape_type": "rectangle",
            "features": pd.DataFrame({"text": self.texts, "ink": self.inks}, dtype=object),
            "face_color": self.faces or PAPER,
            "edge_color": CLEAR,
            "edge_width": 0,
            "text": text,
            "opacity": 1.0,
        }


def counts_panel(cells: Cells, extent: Sequence[int], scale: Sequence[float]) -> Layer:
    """Lay the counts out as a panel below the picture, where it hides nothing.

    Parameters
    ----------
    cells : Cells
        Classified cells of one field.
    extent : rows and columns of the field
    scale : two floats
        World units per pixel.

    Returns
    -------
    data, attributes
        Of a shapes layer in the picture's own coordinates: panel and text
        keep together, and to the picture, at every zoom.
    """
    counts = differential(cells)
    counts = counts[counts["n"] > 0]
    em = min(extent[0] / 30, extent[1] / 44)
    row = 1.75 * em
    white = int(counts.loc[counts["group"] == "white", "n"].sum())
    of = f" of {len(cells)} cells" if white != len(cells) else ""
    title = f"{white} white cell{'' if white == 1 else 's'}{of}, exact 95 % limits"
    lines = [(str(entry["class"]), str(entry["n"]), value_text(entry)) for _, entry in counts.iterrows()]
    widths = [max((text_width(line[k], em) for line in lines), default=0.0) for k in range(3)]
    gap, pad = 1.5 * em, 0.9 * em
    starts = np.cumsum([1.7 * pad + em, widths[0] + gap, widths[1] + gap]).tolist()
    width = max(starts[2] + widths[2], pad + text_width(title, em)) + pad
    top, plates = extent[0] + 0.02 * max(extent), _Plates()
    plates.add((top, 0, top + row * (len(lines) + 1) + pad, width), face=PAPER)

    def write(line: int, start: float, text: str) -> None:
        above = top + pad / 2 + row * line
        plates.add((above, start, above + row, start + text_width(text, em)), text)

    write(0, pad, title)
    for k, (name, n, value) in enumerate(lines, start=1):
        above = top + pad / 2 + row * k + (row - em) / 2
        plates.add((above, pad, above + em, pad + em), face=colour(name))
        write(k, starts[0], name)
        write(k, starts[1] + widths[1] - text_width(n, em), n)
        write(k, starts[2], value)
    # napari writes above the upper left corner; a line down is inside.
    return plates.layer(COUNTS, em, scale, anchor="upper_left", translation=np.array([1.45 * em, 0.0]))


def name_plates(cells: Cells, extent: Sequence[int], scale: Sequence[float]) -> Layer:
    """Write each cell's class and probability on a plate of its colour beside it.

    Plates stand inside the picture, above their cells unless another name or
    cell is there. None with more than `MAX_NAMES` cells.

    Parameters, returns
    -------------------
    See `counts_panel`.
    """
    plates, table, shares, unlike = _Plates(), cells.table, cells.class_probabilities, cells.unlike.to_numpy()
    boxes = table[["bbox-0", "bbox-1", "bbox-2", "bbox-3"]].to_numpy(dtype=float)
    named = (table["class"] != "").to_numpy()
    em = min(extent[0] / 36, extent[1] / 52)
    if not named.any() or len(table) > MAX_NAMES:
        return plates.layer(NAMES, em, scale, anchor="center")
    em = min(em, 0.3 * float(np.median(boxes[:, 2] - boxes[:, 0])) if len(boxes) else em)
    # A name should hide neither names nor, half as bad, other cells.
    obstacles = np.column_stack([boxes, np.full(len(boxes), 0.5)])
    for k in np.flatnonzero(named):
        name, p = str(table["class"].iloc[k]), shares.iloc[k]
        text = SHORT.get(name, name) + (f" {p:.0%}" if np.isfinite(p) else f": {UNLIKE}" if unlike[k] else "")
        place = _place(boxes[k], (1.5 * em, text_width(text, em) + 0.8 * em), 0.25 * em, obstacles, extent)
        obstacles = np.vstack([obstacles, (*place, 1.0)])
        plates.add(place, text, face=colour(name), ink=ink_on(colour(name)))
    return plates.layer(NAMES, em, scale, anchor="center")


def _place(around: Array, size: tuple[float, float], gap: float, obstacles: Array, extent: Sequence[int]) -> Box:
    """Return the box of this size, next to another and inside the picture, that hides least."""
    (top, left, bottom, right), (height, width) = around, size
    middle = (left + right - width) / 2
    places = [
        (row, column)
        for row in (top - height - gap, bottom + gap)
        for column in (middle, left, right - width, left - width / 2, right - width / 2)
    ]
    places += [((top + bottom - height) / 2, column) for column in (right + gap, left - width - gap)]
    most = np.maximum([extent[0] - height, extent[1] - width], 0.0)
    corners = np.clip(places, 0.0, most)
    moved = np.abs(corners - places).sum(axis=1)
    ends = corners + size
    inside = np.minimum(ends[:, None], obstacles[:, 2:4]) - np.maximum(corners[:, None], obstacles[:, :2])
    hidden = (inside.clip(0).prod(axis=2) * obstacles[:, 4]).sum(axis=1) / (height * width)
    best = int(np.argmin(np.round(hidden, 3) + 1e-3 * moved / width + 1e-4 * np.arange(len(places))))
    return (*corners[best].tolist(), *ends[best].tolist())


# Widths of letters in a typeface without serifs, in em; enough to let columns begin at one line.
_NARROW, _WIDE = "iljtfr.,() '|-–", "mwMW%"


def text_width(text: str, em: float) -> float:
    """Return about how wide a text is."""
    widths = [0.36 if letter in _NARROW else 0.93 if letter in _WIDE else 0.61 for letter in text]
    return em * sum(widths)


def ink_on(face: str) -> str:
    """Return the colour of text, dark or white, that reads better on a plate of this colour."""
    light = [(value / 255) ** 2.2 for value in bytes.fromhex(face.removeprefix("#"))]
    luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
    # Contrast after WCAG 2: white against it, it against the ink.
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.056 else INK


def value_text(row: pd.Series) -> str:
    """Write a row of the differential as text: ``66.7 % (41.0–86.7)``; empty for plain numbers."""
    if not np.isfinite(row["value"]) or not np.isfinite(row["low"]):
        return ""
    unit = " %" if str(row["unit"]).startswith("%") else " / 100"
    return f"{row['value']:.1f}{unit} ({row['low']:.1f}–{row['high']:.1f})"
