"""The coarse look at a whole slide: where white cells may be, and which parts of the film are no use.

Everything is asked at 1 to 1.5 µm per pixel, tile by tile. Each answer depends on the pixels around a place alone,
never on where tiles begin: the same slide gives the same candidates and the same map whatever the size of the tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage as ndi
from scipy.spatial import cKDTree

from . import scale
from .ahead import ahead
from .appearance import thiazine
from .pyramid import averaged
from .scale import Float
from .slide import Slide

COARSEST_UM, WANTED_UM = 1.5, 1.25
BLOCK = 48
"""Side of the squares that are judged as a whole, coarse pixels: about 60 µm."""

REASONS = ("monolayer", "glass", "feathered edge", "thick part", "out of focus", "pen")
"""What a part of the slide is; cells are looked for in the first unless the user wants them everywhere."""

_SMOOTH_UM = 1.9
_APART_UM = 7.0
"""Peaks closer than this are lobes of one nucleus."""

_HALO = 24
_FAINTEST = 0.04
_PEN_SHARE, _GLASS, _EDGE, _THICK = 0.15, 0.015, 0.08, 0.88
_BLUR = 0.55
_SAMPLES, _SAMPLE_SIDE = 5, 192


@dataclass(frozen=True)
class View:
    """A slide at 1 to 1.5 µm per pixel: a level of it, reduced by a whole factor.

    Parameters
    ----------
    slide : Slide
    level, factor : int
        The level, and how many of its pixels a coarse pixel is wide.
    step : float
        How many pixels of level 0 a coarse pixel is wide.
    mpp : float
        µm per coarse pixel.
    """

    slide: Slide
    level: int
    factor: int
    step: float
    mpp: float

    @classmethod
    def of(cls, slide: Slide, mpp: float) -> View:
        """Choose the coarsest level that is fine enough."""
        fine = [k for k, down in enumerate(slide.downsamples) if mpp * down <= COARSEST_UM] or [0]
        down = slide.downsamples[fine[-1]]
        factor = max(1, int(WANTED_UM / (mpp * down)))
        return cls(slide, fine[-1], factor, down * factor, mpp * down * factor)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns in coarse pixels."""
        rows, columns = self.slide.pixels.shapes[self.level]
        return -(-rows // self.factor), -(-columns // self.factor)

    def read(self, top: int, left: int, bottom: int, right: int) -> npt.NDArray[np.uint8]:
        """Read a part that lies inside, coarse pixels."""
        rows, columns = self.slide.pixels.shapes[self.level]
        edges = [edge * self.factor for edge in (top, left, bottom, right)]
        return averaged(
            self.slide.read((edges[0], edges[1], min(edges[2], rows), min(edges[3], columns)), self.level), self.factor
        )


@dataclass(frozen=True)
class Film:
    """What the coarse look found.

    Parameters
    ----------
    peaks : (n, 2) float array
        Rows and columns in level 0 where a white cell may be, best first.
    scores : (n,) float array
        How much nuclear dye there is.
    kinds : (rows, columns) uint8 array
        What each square of the slide is, an index into `REASONS`.
    step : float
        Side of a square, pixels of level 0.
    light : (3,) float array
        Colour of the empty film.
    """

    peaks: npt.NDArray[np.float64] = field(repr=False)
    scores: npt.NDArray[np.float64] = field(repr=False)
    kinds: npt.NDArray[np.uint8] = field(repr=False)
    step: float
    light: npt.NDArray[np.float64]

    def kind_at(self, places: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Return what the squares are that these places (level 0) lie in."""
        index = np.clip((places // self.step).astype(int), 0, np.array(self.kinds.shape) - 1)
        return np.asarray(self.kinds[index[:, 0], index[:, 1]], np.uint8)

    def table(self, mpp: float) -> pd.DataFrame:
        """Return a row for each kind: area in mm², share of the slide, candidates in it, whether it is used."""
        squares = np.bincount(self.kinds.ravel(), minlength=len(REASONS))
        found = np.bincount(self.kind_at(self.peaks), minlength=len(REASONS))
        return pd.DataFrame(
            {
                "region": REASONS,
                "area_mm2": np.round(squares * (self.step * mpp / 1000) ** 2, 4),
                "share": np.round(squares / max(1, squares.sum()), 4),
                "candidates": found,
            }
        )


def survey(
    view: View, tile: int = 512, window: tuple[int, int, int, int] | None = None
) -> Iterator[tuple[int, int] | Film]:
    """Look at a slide tile by tile.

    Parameters
    ----------
    view : View
    tile : int
        Side of the tiles, coarse pixels; whole squares are taken.
    window : (int, int, int, int), optional
        Top, left, bottom, right in level 0: only what lies there is read.

    Yields
    ------
    (done, total) : how many tiles, and last of all the Film.
    """
    light, level = _light(view, window)
    rows, columns = view.shape
    blocks = (-(-rows // BLOCK), -(-columns // BLOCK))
    measured = np.full((5, *blocks), np.nan, np.float32)
    found: list[npt.NDArray[np.float64]] = [np.empty((0, 3))]
    side = max(1, round(tile / BLOCK)) * BLOCK
    places = [(y, x) for y in range(0, rows, side) for x in range(0, columns, side) if _meets(view, y, x, side, window)]

    def seen(place: tuple[int, int]) -> tuple[npt.NDArray[np.float64], Float]:
        y, x = place
        first = (max(0, y - _HALO), max(0, x - _HALO))
        ends = (min(y + side + _HALO, rows), min(x + side + _HALO, columns))
        density = _density(view.read(*first, *ends), light)
        own = (
            slice(y - first[0], min(y + side, rows) - first[0]),
            slice(x - first[1], min(x + side, columns) - first[1]),
        )
        return _peaks(density, own, view.mpp) + np.array([y, x, 0]), _measured(density, own, level)

    for done, ((y, x), (peaks, squares)) in enumerate(ahead(seen, places), start=1):
        found.append(peaks)
        top, left = y // BLOCK, x // BLOCK
        measured[:, top : top + squares.shape[1], left : left + squares.shape[2]] = squares
        yield done, len(places)
    peaks = np.concatenate(found)
    order = np.lexsort((peaks[:, 1], peaks[:, 0], -peaks[:, 2]))
    peaks = peaks[order][_kept(peaks[order], _APART_UM / view.mpp)]
    yield Film((peaks[:, :2] + 0.5) * view.step - 0.5, peaks[:, 2], _kinds(measured), BLOCK * view.step, light)


def _meets(view: View, y: int, x: int, side: int, window: tuple[int, int, int, int] | None) -> bool:
    if window is None:
        return True
    top, left, bottom, right = (edge / view.step for edge in window)
    return y < bottom and x < right and y + side > top and x + side > left


def _light(view: View, window: tuple[int, int, int, int] | None) -> tuple[npt.NDArray[np.float64], float]:
    """Colour of the empty film, and the density in green above which something lies on it, from a few windows."""
    rows, columns = view.shape
    edges = [0, 0, rows, columns]
    if window is not None:
        edges = [int(np.clip(e / view.step, 0, n)) for e, n in zip(window, (rows, columns) * 2, strict=True)]
    top, left, bottom, right = edges
    seen = []
    for y in np.linspace(top, max(top, bottom - _SAMPLE_SIDE), _SAMPLES).astype(int):
        for x in np.linspace(left, max(left, right - _SAMPLE_SIDE), _SAMPLES).astype(int):
            part = view.read(y, x, min(y + _SAMPLE_SIDE, rows), min(x + _SAMPLE_SIDE, columns))
            seen.append(part.reshape(-1, 3))
    pixels = np.concatenate(seen)
    green = np.bincount(pixels[:, 1], minlength=256)[:256].astype(float)
    # The brightest colour that is common: the film between the cells.
    smooth = ndi.gaussian_filter1d(green, 2.0)
    common = np.flatnonzero(smooth > 0.25 * smooth.max())[-1]
    peak = max(0, common - 8) + int(smooth[max(0, common - 8) : common + 1].argmax())
    near = np.abs(pixels[:, 1].astype(int) - peak) <= 2
    light = np.median(pixels[near], axis=0).astype(np.float64)
    density = np.log10((light[1] + 1) / (pixels[:, 1].astype(np.float32) + 1))
    return light, scale.foreground_level(density)


def _density(rgb: npt.NDArray[np.uint8], light: npt.NDArray[np.float64]) -> Float:
    table = np.log10((light[None] + 1) / (np.arange(256)[:, None] + 1)).astype(np.float32)
    return np.stack([table[rgb[..., k], k] for k in range(3)], axis=-1)


def _peaks(density: Float, own: tuple[slice, slice], mpp: float) -> npt.NDArray[np.float64]:
    """Local maxima of the nuclear dye, (n, 3) rows, columns, dye, counted from the first pixel of `own`."""
    dye = ndi.gaussian_filter(thiazine(density).clip(0, 1), _SMOOTH_UM / mpp, truncate=4.0)
    reach = 2 * int(3.0 / mpp) + 1
    best = (dye == ndi.maximum_filter(dye, reach)) & (dye > _FAINTEST)
    places = np.argwhere(best[own])
    return np.column_stack([places, dye[own][best[own]]]).astype(np.float64)


def _kept(peaks: npt.NDArray[np.float64], apart: float) -> npt.NDArray[np.bool_]:
    """Which peaks, best first, have no better one near that is kept itself."""
    kept = np.ones(len(peaks), dtype=bool)
    if len(peaks) < 2:
        return kept
    pairs = cKDTree(peaks[:, :2]).query_pairs(apart, output_type="ndarray")
    pairs = np.sort(pairs, axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    for start in range(0, len(pairs), 4096):  # numbers of Python take much more memory than those of an array
        for better, worse in pairs[start : start + 4096].tolist():
            if kept[better]:
                kept[worse] = False
    return kept


def _measured(density: Float, own: tuple[slice, slice], level: float) -> Float:
    """Of each square: share that is covered, density of what covers it, share of pen, sharpness, density of all."""
    red, green, blue = (density[..., k] for k in range(3))
    covered = green > level
    # Stain takes most of the green and little of the blue; ink takes most of the red, or of everything.
    pen = (red > 0.25) & ((red > 1.15 * green) | (np.minimum(red, blue) > 0.75))
    edges = np.abs(ndi.laplace(green))
    layers = (covered, green * covered, pen, edges, green, green * green)
    cover, dense, ink, edge, mean, square = (_means(layer[own].astype(np.float32)) for layer in layers)
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    return np.stack([cover, dense / np.maximum(cover, 1e-3), ink, edge / np.maximum(deviation, 0.02), mean])


def _means(values: Float) -> Float:
    rows, columns = (np.arange(0, n, BLOCK) for n in values.shape)
    total = np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.float64), columns, axis=1)
    size = np.outer(np.diff([*rows, values.shape[0]]), np.diff([*columns, values.shape[1]]))
    return np.asarray(total / size, np.float32)


def _kinds(measured: Float) -> npt.NDArray[np.uint8]:
    seen = ~np.isnan(measured[0])
    cover, dense, ink, sharp, mean = np.nan_to_num(measured)
    # A white cell or a hole between red cells makes no region: neighbours have a say.
    weight = ndi.uniform_filter(seen.astype(np.float32), 3, mode="constant")
    around = ndi.uniform_filter(cover, 3, mode="constant") / np.maximum(weight, 1e-6)
    kinds = np.zeros(cover.shape, np.uint8)
    film = seen & (around >= _EDGE) & (around < _THICK) & (ink < _PEN_SHARE)
    usual = float(np.median(dense[film])) if film.any() else 0.0
    kinds[around < _EDGE] = REASONS.index("feathered edge")
    kinds[around < _GLASS] = REASONS.index("glass")
    heavy = ndi.uniform_filter(dense * cover, 3, mode="constant") / np.maximum(
        ndi.uniform_filter(cover, 3, mode="constant"), 1e-6
    )
    kinds[(around >= _THICK) | ((around > 0.5) & (heavy > 1.6 * usual))] = REASONS.index("thick part")
    good = kinds == 0
    if good.any():
        soft = ndi.median_filter(sharp, 3) < _BLUR * float(np.median(sharp[good & seen]))
        # Blur spreads what lies there too thin to cover anything; its density stays.
        there = good | (ndi.median_filter(mean, 3) > 0.5 * float(np.median(mean[good & seen])))
        kinds[there & soft & (kinds != REASONS.index("thick part"))] = REASONS.index("out of focus")
    kinds[ndi.binary_dilation(ink > _PEN_SHARE)] = REASONS.index("pen")
    kinds[~seen] = REASONS.index("glass")
    return kinds
