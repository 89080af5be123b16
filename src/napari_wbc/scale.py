"""The ruler in the picture: micrometres per pixel from the red cells.

A blood film carries no scale, but it is full of red cells, and a normal red cell is about
7.2 µm across. This module finds the red cells that lie free and roundish in a field and
measures them. It also holds what comes before any measurement: resampling and the optical
density relative to the smooth, bright background of the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage as ndi
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from skimage.filters import threshold_otsu

__all__ = [
    "RED_CELL_UM",
    "RED_HUE",
    "RedCells",
    "background",
    "foreground_level",
    "hue",
    "light",
    "optical_density",
    "red_cells",
    "resample",
]

Float = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

RED_CELL_UM = 7.2
"""Diameter of a normal red cell on a dried film, µm."""

RED_HUE = 0.62
"""Red cells have a `hue` below it in all the common stains, nuclei above it."""


@lru_cache(maxsize=64)
def _weights(n_in: int, n_out: int) -> Any:
    """Sparse (n_out, n_in) matrix of linear interpolation, widened to a triangle that spans
    one output pixel to either side when shrinking, so that nothing aliases.
    """
    step = n_in / n_out
    reach = max(step, 1.0)
    centre = (np.arange(n_out) + 0.5) * step - 0.5
    taps = np.arange(int(np.ceil(2 * reach)) + 1)
    column = np.floor(centre - reach).astype(int)[:, None] + 1 + taps
    weight = np.clip(1 - np.abs(column - centre[:, None]) / reach, 0, None)
    # Beyond the edge the edge pixel is repeated; equal entries are summed by the COO format.
    column = np.clip(column, 0, n_in - 1)
    weight /= weight.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(n_out), len(taps))
    entries = (weight.ravel().astype(np.float32), (rows, column.ravel()))
    return sparse.coo_matrix(entries, shape=(n_out, n_in)).tocsr()


def resample(image: npt.NDArray[Any], shape: tuple[int, int]) -> Float:
    """Resize by linear interpolation, with antialiasing where it shrinks.

    Parameters
    ----------
    image : array of shape (H, W) or (H, W, C), any real dtype
    shape : (rows, columns) wanted, each at least 1

    Returns
    -------
    float32 array of shape ``shape`` or ``shape + (C,)``, on the same value scale.
    """
    rows, columns = image.shape[:2]
    flat = image.reshape(rows, -1)
    if rows != shape[0]:
        flat = _weights(rows, shape[0]) @ flat.astype(np.float32)
    out: Float = np.ascontiguousarray(flat, dtype=np.float32).reshape((shape[0], *image.shape[1:]))
    if columns != shape[1]:
        turned = np.ascontiguousarray(np.swapaxes(out, 0, 1)).reshape(columns, -1)
        turned = (_weights(columns, shape[1]) @ turned).reshape((shape[1], shape[0], *image.shape[2:]))
        out = np.ascontiguousarray(np.swapaxes(turned, 0, 1))
    return out


def _surface(shape: tuple[int, int], rows: Any, columns: Any) -> Float:
    """Second-order polynomial terms at the given positions of a field, as (n, 6)."""
    y = (2 * np.asarray(rows, dtype=np.float32) / max(shape[0] - 1, 1) - 1).ravel()
    x = (2 * np.asarray(columns, dtype=np.float32) / max(shape[1] - 1, 1) - 1).ravel()
    terms: Float = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    return terms


def background(rgb: Float, start: npt.ArrayLike | None = None) -> Float:
    """Smooth bright background of a field: the light where no cell lies.

    A second-order surface in the logarithm of the light is fitted by iteratively reweighted
    least squares, whose weights fall off around the surface: a search for the mode. Cells lie
    below it, a hot spot of the condenser above it; neither pulls. The weights come from green,
    which every stained cell absorbs, so all channels see the same background pixels.

    Parameters
    ----------
    rgb : float32 array of shape (H, W, 3), 0 to 255
    start : (3,) colour of the background if known from the field or slide

    Returns
    -------
    float32 array of shape (6, 3), to be spread over an image by `light`.
    """
    shape = (rgb.shape[0], rgb.shape[1])
    stride = max(1, int(np.sqrt(shape[0] * shape[1] / 2500)))
    rows, columns = np.mgrid[0 : shape[0] : stride, 0 : shape[1] : stride]
    seen = np.log10(rgb[::stride, ::stride].reshape(-1, 3) + 1)
    terms = _surface(shape, rows, columns)
    level = np.percentile(seen[:, 1], 90) if start is None else np.log10(np.asarray(start)[1] + 1)
    fitted = np.full(len(seen), level, dtype=np.float32)
    # The flat term is free; slopes are held back, so that a large cell is not taken for shade.
    ridge = np.diag([1e-6, 0.03, 0.03, 0.08, 0.08, 0.08]).astype(np.float32) * len(seen)
    coefficients: Float = np.zeros((6, 3), dtype=np.float32)
    for width in (0.05, 0.05, 0.04, 0.03, 0.03, 0.025, 0.025, 0.025):
        residual = seen[:, 1] - fitted
        # Darker is stained, and a red cell is not much darker: the weight drops faster there.
        weight = np.exp(-0.5 * (residual / np.where(residual > 0, 2.5 * width, width)) ** 2) + 1e-6
        weighted = terms * weight[:, None]
        solved = np.linalg.solve(terms.T @ weighted + ridge * weight.mean(), weighted.T @ seen)
        coefficients = solved.astype(np.float32)
        fitted = terms @ coefficients[:, 1]
    return coefficients


def light(coefficients: Float, shape: tuple[int, int]) -> Float:
    """Background as `background` fitted it, over an image of any size of the same field.

    Returns
    -------
    float32 array of shape (H, W, 3), 1 to 256 (one is added, as in `optical_density`).
    """
    result: Float = np.power(np.float32(10), _log_light(coefficients, shape))
    return result


def _log_light(coefficients: Float, shape: tuple[int, int]) -> Float:
    """Decadic logarithm of the background, (H, W, 3); the terms of `_surface`, spread by broadcasting."""
    y = (2 * np.arange(shape[0], dtype=np.float32) / max(shape[0] - 1, 1) - 1)[:, None, None]
    x = (2 * np.arange(shape[1], dtype=np.float32) / max(shape[1] - 1, 1) - 1)[None, :, None]
    flat, by_x, by_y, by_xx, by_xy, by_yy = coefficients.astype(np.float32)
    surface = (flat + by_y * y + by_yy * y * y) + x * (by_x + by_xy * y) + by_xx * x * x
    result: Float = np.clip(surface, 0, np.float32(np.log10(256)))
    return result


def optical_density(rgb: Float, coefficients: Float) -> Float:
    """Decadic optical density of each channel relative to the background.

    Parameters
    ----------
    rgb : float32 array of shape (H, W, 3), 0 to 255
    coefficients : background as `background` returns it

    Returns
    -------
    float32 array of shape (H, W, 3); negative where brighter than the background.
    """
    density: Float = _log_light(coefficients, (rgb.shape[0], rgb.shape[1])) - np.log10(rgb + 1)
    return density


def even_density(rgb: npt.NDArray[np.uint8], light: npt.ArrayLike) -> Float:
    """Decadic optical density of each channel under a light that is the same all over, as a scanner has made it.

    Parameters
    ----------
    rgb : uint8 array of shape (H, W, 3)
    light : (3,) its colour, 0 to 255

    Returns
    -------
    float32 array of shape (H, W, 3); negative where brighter than the light.
    """
    levels = np.log10(np.asarray(light, np.float32) + 1) - np.log10(np.arange(256, dtype=np.float32) + 1)[:, None]
    return np.stack([levels[:, k][rgb[..., k]] for k in range(3)], axis=-1)


def hue(density: Float) -> Float:
    """Share of the green absorption that blue lacks: near 1 in nuclei, low in red cells.

    Parameters
    ----------
    density : array of shape (..., 3), optical density
    """
    result: Float = (1 - density[..., 2] / np.maximum(density[..., 1], 0.03)).astype(np.float32)
    return result


def foreground_level(density: Float) -> float:
    """Optical density that separates cells from empty background: 0.8 of Otsu's, within 0.04 to 0.12."""
    inside = np.clip(density, 0.0, 0.4)
    if float(np.ptp(inside)) < 0.02:
        return 0.05
    return float(np.clip(threshold_otsu(inside, nbins=128) * 0.8, 0.04, 0.12))


@dataclass(frozen=True)
class RedCells:
    """Red cells of a field.

    Attributes
    ----------
    diameter : median, in pixels; 0 if none was found.
    n : how many stand behind it.
    mask : boolean array of shape (H, W), the inner discs of these cells.
    """

    diameter: float
    n: int
    mask: Mask


def red_cells(density: Float, expected: float | None = None, above: float = 0.0) -> RedCells:
    """Find and measure the red cells of a field.

    Each point of an outline votes for a centre at distance r along its inward normal, for a
    range of r; where the votes agree lies a round cell (the circle transform with gradient
    direction: Kimme, Ballard and Sklansky, Commun. ACM 18:120-122, 1975). Half an outline is
    enough, so red cells that touch or overlap are measured too.

    Parameters
    ----------
    density : float32 array of shape (H, W, 3), optical density
    expected : diameter in pixels if the scale is known
    above : smaller diameters, in pixels, are passed over

    Returns
    -------
    the red cells; ``n`` is 0 where none can be measured.
    """
    nothing = RedCells(0.0, 0, np.zeros(density.shape[:2], dtype=bool))
    if min(density.shape[:2]) < 16:
        return nothing
    smooth = ndi.gaussian_filter(density[..., 1], 1.0)
    gradient = np.stack(np.gradient(smooth), axis=-1)
    steepness = np.linalg.norm(gradient, axis=-1)
    # Outlines are where the slope is steepest: the Laplacian changes sign there. Outlines that
    # run across another cell count as well, unlike those of a mask.
    inner = ndi.laplace(smooth) < 0
    outline = inner & ~ndi.binary_erosion(inner, border_value=1)
    outline &= steepness > max(0.3 * float(np.percentile(steepness, 95)), 0.004)
    points = np.argwhere(outline).astype(np.float32)
    if len(points) < 12:
        return nothing
    normals = gradient[outline] / steepness[outline][:, None]
    centres, radii = _circles(points, normals, smooth.shape)
    diameters = 2 * _refined(points, normals, centres, radii)
    red = _reddish(density, centres, diameters) & (diameters > above)
    return _typical(smooth.shape, centres[red], diameters[red], expected)


def _reddish(density: Float, centres: Float, diameters: Float) -> Mask:
    """Which circles hold a red cell: haemoglobin and eosin absorb blue as well as green."""
    angle = np.arange(8) * (np.pi / 4)
    spots = centres[:, None, :] + 0.3 * diameters[:, None, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    y, x = np.moveaxis(np.rint(spots).astype(int), -1, 0)
    inside = density[y.clip(0, density.shape[0] - 1), x.clip(0, density.shape[1] - 1)].mean(axis=1)
    result: Mask = hue(inside) < RED_HUE
    return result


def _circles(points: Float, normals: Float, shape: tuple[int, ...]) -> tuple[Float, Float]:
    """Centres (n, 2) and rough radii (n,) where at least a third of a circle's outline agrees."""
    h, w = shape
    best = np.zeros(shape, dtype=np.float32)
    radius = np.zeros(shape, dtype=np.float32)
    lines = [(np.ascontiguousarray(points[:, k]), np.ascontiguousarray(normals[:, k])) for k in (0, 1)]
    for r in np.geomspace(4, max(5, min(h, w) * 0.3), 20):
        # Half a pixel is added to round by cutting off.
        y, x = (along + np.float32(r) * across + np.float32(0.5) for along, across in lines)
        inside = (y >= 0) & (x >= 0) & (y < h) & (x < w)
        place = y[inside].astype(np.int64) * w + x[inside].astype(np.int64)
        votes = np.bincount(place, minlength=h * w).reshape(shape)
        size = max(3, int(0.3 * r) | 1)
        share = ndi.uniform_filter(votes.astype(np.float32), size) * (size * size / (2 * np.pi * r))
        np.putmask(radius, share > best, r)
        np.maximum(best, share, out=best)
    centres = np.argwhere((best > 0.35) & (best == ndi.maximum_filter(best, 9)))
    centres = centres[np.argsort(-best[tuple(centres.T)], kind="stable")]
    kept: list[int] = []
    radii = radius[tuple(centres.T)]
    crowded = cdist(centres, centres) < 0.6 * np.maximum(radii[:, None], radii)
    for i in range(len(centres)):
        if not crowded[i, kept].any():
            kept.append(i)
    return centres[kept].astype(np.float32), radii[kept]


def _refined(points: Float, normals: Float, centres: Float, radii: Float) -> Float:
    """Median distance from each centre to the outline points that face it, plus half a pixel
    because the outline runs through the outermost pixels inside.
    """
    refined = radii.copy()
    near = cKDTree(points).query_ball_point(centres, 1.5 * radii)
    of = np.repeat(np.arange(len(centres)), [len(n) for n in near])
    index = np.fromiter(chain.from_iterable(near), dtype=np.int64, count=len(of))
    to_centre = centres[of] - points[index]
    distance = np.sqrt((to_centre * to_centre).sum(axis=1)) + np.float32(1e-6)
    facing = (to_centre * normals[index]).sum(axis=1) > 0.95 * distance
    support = facing & (distance > 0.6 * radii[of])
    of, distance = of[support], distance[support]
    order = np.lexsort((distance, of))
    count = np.bincount(of, minlength=len(centres))
    for i, own in enumerate(np.split(distance[order], np.cumsum(count)[:-1])):
        if len(own) > 6:
            refined[i] = 0.5 * (own[(len(own) - 1) // 2] + own[len(own) // 2]) + 0.5
    return refined


def _typical(shape: tuple[int, ...], centres: Float, diameters: Float, expected: float | None) -> RedCells:
    """The circles around the most heavily populated diameter.

    Platelets and dirt are many but small: each circle weighs as much as its area.
    """
    mask = np.zeros(shape, dtype=bool)
    if len(diameters) == 0:
        return RedCells(0.0, 0, mask)
    middle = expected or _weighted_median(diameters, diameters**2)
    near = np.abs(np.log(diameters / middle)) < 0.25
    if not near.any():
        return RedCells(0.0, 0, mask)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for (cy, cx), d in zip(centres[near], diameters[near], strict=True):
        rows = slice(max(0, int(cy - d / 2)), int(cy + d / 2) + 1)
        columns = slice(max(0, int(cx - d / 2)), int(cx + d / 2) + 1)
        mask[rows, columns] |= (y[rows] - cy) ** 2 + (x[:, columns] - cx) ** 2 < (0.4 * d) ** 2
    return RedCells(float(np.median(diameters[near])), int(near.sum()), mask)


def _weighted_median(values: Float, weight: Float) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
