"""An estimate of the platelets: small azure bodies between the red cells, per oil-immersion field and per µL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage as ndi
from skimage.measure import regionprops

from . import scale
from .appearance import SegmentParameters, appearance_and_density, thiazine
from .counted import walk
from .scale import Float

if TYPE_CHECKING:
    from .cells import Cells
    from .slide import Slide

FIELD_MM2 = math.pi * 0.11**2
"""Area of the oil-immersion field of 0.22 mm that `PER_UL` belongs to."""
PER_UL = 9_400
"""Platelets per µL for one platelet a field: Sahu, Mohanty and Adhya, Cureus 14(8):e28327, 2022."""
MOST_MPP = 0.3
"""Where pixels are larger, µm, a platelet is too few of them."""
_WINDOWS, _WINDOW_UM = 10, 195.0
_AREA_UM2 = (1.5, 16.0)
_DYE, _HUE, _SOLIDITY, _LONGEST, _ON_RED = 0.4, 0.75, 0.7, 2.5, 0.4


@dataclass(frozen=True)
class Platelets:
    """Platelets that were counted.

    Parameters
    ----------
    n : int
        How many.
    area_mm2 : float
        On how much of the film.
    parts : int
        How many pictures, or windows of a slide, that is.
    """

    n: int
    area_mm2: float
    parts: int = 1

    @property
    def per_field(self) -> float:
        """Platelets in an oil-immersion field of `FIELD_MM2`."""
        return self.n / self.area_mm2 * FIELD_MM2

    @property
    def per_ul(self) -> float:
        """Platelets per µL, an estimate."""
        return PER_UL * self.per_field

    @property
    def limits(self) -> tuple[float, float]:
        """95 % limits of `per_ul` by the chance of the count alone: exact, of a Poisson count."""
        from scipy.special import gammaincinv

        low = float(gammaincinv(self.n, 0.025)) if self.n else 0.0
        each = PER_UL * FIELD_MM2 / self.area_mm2
        return each * low, each * float(gammaincinv(self.n + 1, 0.975))

    @property
    def line(self) -> str:
        """What a dock and a report say."""
        low, high = (round(value, -3) for value in self.limits)
        return (
            f"Platelets: {self.per_field:.1f} per oil-immersion field of 0.22 mm, about {round(self.per_ul, -3):,.0f} "
            f"per µL ({low:,.0f} – {high:,.0f} by chance alone). An estimate: {self.n} on {self.area_mm2:.3g} mm²."
        )

    def to_dict(self) -> dict[str, float | int | str]:
        """Return all of it by name."""
        low, high = self.limits
        return {
            "n": self.n, "area_mm2": self.area_mm2, "parts": self.parts, "per_field": self.per_field,
            "per_ul": self.per_ul, "per_ul_low": low, "per_ul_high": high, "line": self.line,
        }  # fmt: skip


def pooled(found: Iterable[Platelets | None]) -> Platelets | None:
    """Return the platelets of several pictures together; None if none of them was counted."""
    kept = [one for one in found if one is not None]
    if not kept:
        return None
    return Platelets(sum(p.n for p in kept), sum(p.area_mm2 for p in kept), sum(p.parts for p in kept))


@dataclass(frozen=True)
class Film:
    """What was looked at for platelets, and the small azure bodies there.

    Parameters
    ----------
    windows : list of (top, left, bottom, right)
        Parts of the picture, pixels.
    bodies : list of (n, 2) arrays
        Centres of the bodies in each of them, rows and columns of the picture.
    mpp : float
        Micrometres per pixel.
    """

    windows: Sequence[tuple[int, int, int, int]]
    bodies: Sequence[npt.NDArray[np.float64]]
    mpp: float

    def count(self, cells: Cells) -> Platelets:
        """Count the bodies outside the boxes of cells, and the cells whose class is platelet."""
        boxes = cells.table[[f"bbox-{k}" for k in range(4)]].to_numpy(float)
        is_one, centres = (cells.table["class"] == "platelet").to_numpy(), cells.centroids
        n, area = 0, 0.0
        for (top, left, bottom, right), points in zip(self.windows, self.bodies, strict=True):
            near = boxes[(boxes[:, :2] < (bottom, right)).all(axis=1) & (boxes[:, 2:] > (top, left)).all(axis=1)]
            within = (near[None, :, :2] <= points[:, None]) & (points[:, None] <= near[None, :, 2:])
            free = ~np.any(np.all(within, axis=2), axis=1)
            inside = ((centres >= (top, left)) & (centres < (bottom, right))).all(axis=1)
            n += int(free.sum() + (inside & is_one).sum())
            area += (bottom - top) * (right - left) * self.mpp**2 / 1e6
        return Platelets(n, area, len(self.windows))


def looks(slide: Slide, cells: Cells) -> Iterator[Film]:
    """Look for platelets: on a field everywhere, on a whole slide in windows around cells that do not overlap.

    Parameters
    ----------
    slide : Slide
        The picture.
    cells : Cells
        Its cells, as the model found them: they say where windows lie, and the scale.

    Yields
    ------
    Film
        After each window what was seen so far; nothing where there are no cells, or the scale is unknown or coarser
        than `MOST_MPP`.

    Raises
    ------
    ImageError
        If the picture cannot be read.
    """
    mpp = float(cells.table["mpp"].median()) if len(cells) else math.nan
    if not 0 < mpp <= MOST_MPP:
        return
    shape = np.array(slide.shape)
    windows, level, step = [(0, 0, *slide.shape)], 0, 1.0
    if slide.is_whole:
        side = round(_WINDOW_UM / mpp)
        centres = cells.centroids[walk(cells.centroids)]
        first = np.clip(np.round(centres - side / 2), 0, np.maximum(shape - side, 0)).astype(int)
        corners = _apart(first, side)
        windows = [(*corner, *np.minimum(np.array(corner) + side, shape).tolist()) for corner in corners.tolist()]
        level, step = slide.level_for(SegmentParameters().working_mpp / mpp)
    bodies: list[npt.NDArray[np.float64]] = []
    for k, window in enumerate(windows, start=1):
        top, left, bottom, right = (round(edge / step) for edge in window)
        found = platelets_in(slide.read((top, left, bottom, right), level), mpp * step)
        bodies.append((found + (0.5 + np.array([top, left]))) * step - 0.5)
        yield Film(windows[:k], list(bodies), mpp)


def _apart(corners: npt.NDArray[np.int_], side: int) -> npt.NDArray[np.int_]:
    """Return corners of at most `_WINDOWS` squares that do not overlap, else bodies would count twice; in order."""
    kept = corners[:0]
    while len(corners) and len(kept) < _WINDOWS:
        kept = np.concatenate([kept, corners[:1]])
        corners = corners[(np.abs(corners - corners[0]) >= side).any(axis=1)]
    return kept


def film_of(slide: Slide, cells: Cells) -> Film | None:
    """Return all that `looks` sees; None if that is nothing."""
    seen = list(looks(slide, cells))
    return seen[-1] if seen else None


def platelets_in(rgb: npt.NDArray[np.uint8], mpp: float) -> npt.NDArray[np.float64]:
    """Find small azure bodies on empty film.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 array
        A field.
    mpp : float
        Micrometres per pixel.

    Returns
    -------
    (n, 2) float array
        Their centres, rows and columns. White cells are not told apart from them but for their size.

    Notes
    -----
    A body of 1.5 to 16 µm² (1.4 to 4.5 µm across), compact, whose dye (`napari_wbc.appearance.thiazine`) lies two
    fifths of the way or more from that of the red cells to that of a nucleus, and which absorbs little blue. What lies
    on a red cell is mostly a flaw of it that refracts light: around a platelet at most 40 % is red cell.
    """
    parameters = SegmentParameters(mpp=mpp)
    look, density = appearance_and_density(rgb, parameters)
    unit = max(mpp, parameters.working_mpp)
    density = ndi.gaussian_filter(density, (0.3 / unit, 0.3 / unit, 0))
    dye = thiazine(density)
    red = np.asarray(look.red)
    base = max(float(thiazine(red)), 0.0) if look.n_red_cells else 0.0
    level = base + (_DYE * (look.nuclear - base) if np.isfinite(look.nuclear) else 0.1)
    red_green = max(float(red[1]), 0.05) if look.n_red_cells else 0.15
    bodies, _ = ndi.label(ndi.binary_fill_holes(ndi.binary_opening(dye > level, np.ones((3, 3)))), np.ones((3, 3)))
    found = [
        region.centroid for region in regionprops(bodies)
        if _AREA_UM2[0] <= region.area * unit**2 <= _AREA_UM2[1] and region.solidity >= _SOLIDITY
        and region.axis_major_length <= _LONGEST * max(region.axis_minor_length, 0.1)
        and _on_film(bodies, region.label, region.bbox, density, 0.5 * red_green, unit)
    ]  # fmt: skip
    factor = np.array(rgb.shape[:2]) / bodies.shape
    return np.asarray((np.array(found, float).reshape(-1, 2) + 0.5) * factor - 0.5)


def _on_film(
    bodies: npt.NDArray[np.int32], label: int, box: tuple[int, ...], density: Float, red: float, unit: float
) -> bool:
    """Whether a body is azure and what surrounds it is mostly no red cell, whose density in green is above `red`."""
    reach = int(np.ceil(2 / unit))
    top, left = max(0, box[0] - reach), max(0, box[1] - reach)
    window = (slice(top, box[2] + reach), slice(left, box[3] + reach))
    own = bodies[window] == label
    away = ndi.distance_transform_edt(~own) * unit
    around = density[window][(away > 0.8) & (away < 1.8)]
    azure = float(np.median(scale.hue(density[window][own]))) >= _HUE
    return azure and len(around) > 0 and float((around[:, 1] > red).mean()) <= _ON_RED
