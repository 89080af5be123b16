"""A picture of a field to look at: outlines, names and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .cells import UNLIKE, Cells
from .class_names import UNIDENTIFIED
from .geojson import Rings
from .palette import colour
from .words import plural

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

LONGEST_SIDE = 4096
SHORTEST_SIDE = 720
# With more cells their colours must do; names would cover everything.
MAX_TAGS = 500
MIN_TAG = 12.0
_INK, _FAINT, _PAPER, _RULE = "#1c2430", "#667080", "#ffffff", "#dfe3e8"
Box = tuple[float, float, float, float]
Array = npt.NDArray[np.float64]


def annotated(image: npt.NDArray[np.uint8], cells: Cells, rings: Mapping[int, Rings]) -> Image.Image:
    """Draw the cells of a field with their classes, and the counts beside it.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        The field. A small one is enlarged, a very large one reduced.
    cells : Cells
        The cells, classified or not.
    rings : mapping of int to list of (m, 2) arrays
        Their outlines by id (`napari_wbc.geojson.outlines`).

    Returns
    -------
    PIL.Image.Image
        RGB, with a column for the counts on the right.
    """
    from PIL import Image

    field = marked(image, cells, rings)
    panel = _panel(cells, _unit(field), field.height)
    whole = Image.new("RGB", (field.width + panel.width, max(field.height, panel.height)), _PAPER)
    whole.paste(field, (0, 0))
    whole.paste(panel, (field.width, 0))
    return whole


def marked(image: npt.NDArray[np.uint8], cells: Cells, rings: Mapping[int, Rings]) -> Image.Image:
    """Draw the cells of a field with their classes; parameters as for `annotated`.

    Returns
    -------
    PIL.Image.Image
        RGB, the field alone.
    """
    from PIL import Image, ImageDraw

    height, width = image.shape[:2]
    factor = min(max(1.0, SHORTEST_SIDE / min(height, width)), LONGEST_SIDE / max(height, width))
    field = Image.fromarray(image)
    if factor != 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        field = field.resize(size, Image.Resampling.LANCZOS)
    _draw_cells(ImageDraw.Draw(field), cells, rings, factor, _unit(field), field.size)
    return field


def dotted(image: npt.NDArray[np.uint8], cells: Cells, step: float) -> Image.Image:
    """Draw a dot in the colour of its class for every cell: for many, or on a small picture of a whole slide.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        The small picture.
    cells : Cells
        The cells.
    step : float
        How many pixels of the cells' coordinates a pixel of `image` is wide.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image)
    draw, radius = ImageDraw.Draw(picture), max(3.0, max(picture.size) / 250)
    for (row, column), name in zip((cells.centroids + 0.5) / step, cells.table["class"], strict=True):
        box = (column - radius, row - radius, column + radius, row + radius)
        draw.ellipse(box, fill=colour(name), outline=_INK)
    return picture


def _unit(field: Image.Image) -> float:
    """Return the size of the type on a field."""
    return max(field.height, SHORTEST_SIDE / 2) / 48


def region_map(
    image: npt.NDArray[np.uint8], kinds: npt.NDArray[np.uint8], shape: tuple[int, int], step: float
) -> Image.Image:
    """Draw what the regions of a whole slide are over its thumbnail.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        The thumbnail.
    kinds : (rows, columns) uint8 array
        What each square is, an index into `napari_wbc.coarse.REASONS`.
    shape : (int, int)
        Rows and columns of the slide.
    step : float
        Side of a square, pixels of the slide.
    """
    from PIL import Image, ImageDraw

    from .coarse import REASONS
    from .palette import REGIONS

    rows, columns = (np.minimum((np.arange(n) + 0.5) * whole / n // step, len_ - 1).astype(int)
                     for n, whole, len_ in zip(image.shape[:2], shape, kinds.shape, strict=True))  # fmt: skip
    paint = np.array([list(bytes.fromhex(REGIONS[name].removeprefix("#"))) for name in REASONS], np.float32)
    picture = Image.fromarray((0.6 * image + 0.4 * paint[kinds[rows][:, columns]]).astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), typeface(max(12.0, picture.height / 40), bold=True)
    for k, name in enumerate(REASONS):
        y = (k + 0.7) * font.size * 1.4
        draw.rectangle((8, y - font.size / 2, 8 + font.size, y + font.size / 2), fill=REGIONS[name], outline=_INK)
        draw.text((16 + font.size, y), name, fill=_INK, font=font, anchor="lm", stroke_width=2, stroke_fill=_PAPER)
    return picture


def _draw_cells(
    draw: ImageDraw.ImageDraw, cells: Cells, rings: Mapping[int, Rings], factor: float, unit: float,
    size: tuple[int, int],
) -> None:  # fmt: skip
    line = max(2, round(unit / 7))
    said = cells.table["class"].where(~cells.unlike, f"{UNIDENTIFIED}: {UNLIKE}")
    rows = cells.table[["label", "class"]].assign(probability=cells.class_probabilities, said=said).to_dict("records")
    boxes = {}
    for row in rows:
        parts = [ring * factor for ring in rings.get(row["label"], [])]
        for ring in parts:
            points = [tuple(point) for point in np.concatenate([ring, ring[1:2]]).tolist()]
            # A dark edge keeps light colours visible on a light ground.
            draw.line(points, fill=_INK, width=line + 2)
            draw.line(points, fill=colour(row["class"]), width=line)
        if parts:
            corners = np.concatenate(parts)
            boxes[row["label"]] = (*corners.min(axis=0), *corners.max(axis=0))
    if not boxes or len(boxes) > MAX_TAGS:
        return
    typical = float(np.median([box[3] - box[1] for box in boxes.values()]))
    font = typeface(max(MIN_TAG, min(unit * 0.85, 0.3 * typical)), bold=True)
    # What a tag should not hide: other tags, and half as much other cells.
    obstacles = np.array([(*box, 0.5) for box in boxes.values()]).reshape(-1, 5)
    for row in rows:
        if row["class"] and row["label"] in boxes:
            tag = _tag(draw, row, boxes[row["label"]], obstacles, font, size)
            obstacles = np.concatenate([obstacles, [(*tag, 1.0)]])


def _tag(
    draw: ImageDraw.ImageDraw, row: Mapping[Any, Any], around: Box, obstacles: Array, font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> Box:  # fmt: skip
    """Write what is said of a cell, and its probability, where they hide least, above the cell by preference."""
    text = row["said"] if np.isnan(row["probability"]) else f"{row['said']} {row['probability']:.2f}"
    pad = gap = font.size * 0.3
    width, height = font.getlength(text) + 2 * pad, font.size * 1.4
    left, top, right, bottom = around
    centre, middle = (left + right - width) / 2, (top + bottom - height) / 2
    places = [
        (centre, top - height - gap),
        (centre, bottom + gap),
        (right + gap, middle),
        (left - width - gap, middle),
    ]
    x, y = min(places, key=lambda place: _hidden((*place, place[0] + width, place[1] + height), obstacles, size))
    x, y = min(max(x, 0), max(0, size[0] - width)), min(max(y, 0), max(0, size[1] - height))
    box = (x, y, x + width, y + height)
    fill = colour(row["class"])
    draw.rounded_rectangle(box, radius=pad, fill=fill)
    draw.text((x + pad, y + height / 2), text, fill=_ink_on(fill), font=font, anchor="lm")
    return box


def _hidden(box: Box, obstacles: Array, size: tuple[int, int]) -> float:
    """Area of a tag that would lie outside the picture or on an obstacle."""
    areas = np.concatenate([obstacles, [(0, 0, *size, -1.0)]])
    wide = np.minimum(box[2], areas[:, 2]) - np.maximum(box[0], areas[:, 0])
    high = np.minimum(box[3], areas[:, 3]) - np.maximum(box[1], areas[:, 1])
    return round(float((wide.clip(0) * high.clip(0) * areas[:, 4]).sum()), 3)


def _ink_on(fill: str) -> str:
    red, green, blue = bytes.fromhex(fill.removeprefix("#"))
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _PAPER


@dataclass(frozen=True)
class _Line:
    name: str
    n: str
    value: str = ""
    limits: str = ""


def _lines(cells: Cells) -> list[_Line]:
    from .count import differential

    counts = differential(cells)
    lines = []
    for row in counts.to_dict("records"):
        if row["unit"] == "n" or np.isnan(row["value"]):
            lines.append(_Line(row["class"], str(row["n"])))
        else:
            sign = " / 100" if row["unit"].startswith("per 100") else " %"
            limits = f"{row['low']:.1f} – {row['high']:.1f}"
            lines.append(_Line(row["class"], str(row["n"]), f"{row['value']:.1f}{sign}", limits))
    return lines


def _panel(cells: Cells, unit: float, height: int) -> Image.Image:
    """Draw the counts: name, n, share and limits, a line a class."""
    from PIL import Image, ImageDraw

    plain, bold, small = typeface(unit), typeface(unit * 1.25, bold=True), typeface(unit * 0.75)
    classified = bool((cells.table["class"] != "").any())
    lines = _lines(cells) if classified else []
    names = max([plain.getlength(line.name) for line in lines], default=0) + unit * 1.4
    columns = [unit + step for step in (0.0, names, names + 3.4 * unit, names + 8.6 * unit, names + 15.4 * unit)]
    foot = _foot(cells, classified)
    width = columns[-1] if lines else unit
    width = max(width, *(small.getlength(text) + 2 * unit for text in foot), unit * 14)
    step = unit * 1.75
    needed = unit * 5.4 + step * len(lines) + unit * 2 + unit * 1.2 * len(foot)
    panel = Image.new("RGB", (round(width), max(height, round(needed))), _PAPER)
    draw = ImageDraw.Draw(panel)
    y = unit * 1.8
    draw.text((unit, y), plural(len(cells), "cell"), fill=_INK, font=bold, anchor="lm")
    y += unit * 2
    if lines:
        heads = ((0, "class", "lm"), (2, "n", "rm"), (3, "share", "rm"), (4, "95 % limits", "rm"))
        for k, text, anchor in heads:
            x = columns[k] if anchor == "lm" else columns[k] - unit
            draw.text((x, y), text, fill=_FAINT, font=small, anchor=anchor)
        y += unit
        draw.line((unit, y, columns[-1] - unit, y), fill=_RULE, width=max(1, round(unit / 16)))
        y += unit * 1.1
    for line in lines:
        ink = _INK if line.n != "0" else _FAINT
        radius = unit * 0.38
        draw.ellipse((unit, y - radius, unit + 2 * radius, y + radius), fill=colour(line.name))
        draw.text((unit * 2.3, y), line.name, fill=ink, font=plain, anchor="lm")
        for k, text in ((2, line.n), (3, line.value), (4, line.limits)):
            draw.text((columns[k] - unit, y), text, fill=ink, font=plain, anchor="rm")
        y += step
    y += unit * 0.6
    for text in foot:
        draw.text((unit, y), text, fill=_FAINT, font=small, anchor="lm")
        y += unit * 1.2
    return panel


def _foot(cells: Cells, classified: bool) -> list[str]:
    mpp = cells.table["mpp"].dropna().unique()
    foot = ["Shares of the white cells that were given a class;", "exact 95 % limits (Clopper–Pearson)."]
    scale = [f"Scale {mpp[0]:.4g} µm per pixel."] if len(mpp) == 1 else []
    return [*(foot if classified else []), *scale, "Research use only."]


@cache
def typeface(size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the typeface of all pictures in a size in pixels."""
    # matplotlib ships a typeface with Greek and Cyrillic; Pillow's own knows Latin only.
    import matplotlib as mpl
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), max(9, round(size)))
