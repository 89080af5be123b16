"""Outlines of cells around their nuclei.

Cytoplasm is told by colour from the empty film and from red cells, both known for the field,
and from the ring close around the nucleus, known for the cell. The outline is the smooth closed
curve that encloses most of what looks like cytoplasm, found by dynamic programming on rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage as ndi
from skimage.measure import regionprops

from .scale import Float, Mask

__all__ = ["Outline", "Surroundings", "grown", "outlines", "widths"]

Labels = npt.NDArray[np.int32]
Points = npt.NDArray[np.float64]

_ANGLES = 64
_STEP = 4
"""Most pixels by which the radii of neighbouring rays differ."""


@dataclass(frozen=True)
class Outline:
    """A closed curve around a centre.

    Attributes
    ----------
    centre : (row, column), pixels.
    radii : (64,) distance from the centre at equal steps of angle from the +column axis
        towards the +row axis, pixels.
    """

    centre: Points
    radii: Points

    @property
    def vertices(self) -> Points:
        """The curve as (64, 2) points (row, column)."""
        angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
        result: Points = self.centre + self.radii[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        return result

    def crosses(self, shape: tuple[int, ...]) -> bool:
        """Whether the curve leaves an image of that shape."""
        return bool((self.vertices < 0).any() or (self.vertices > np.array(shape) - 1).any())

    def fill(self, labels: Labels, number: int, scaling: Points) -> None:
        """Give the free pixels inside the number, in an image ``scaling`` (2,) times as large."""
        low = np.floor((self.vertices.min(axis=0) + 0.5) * scaling).astype(int).clip(0, labels.shape)
        high = np.ceil((self.vertices.max(axis=0) + 0.5) * scaling + 1).astype(int).clip(0, labels.shape)
        window = labels[low[0] : high[0], low[1] : high[1]]
        y = ((np.arange(low[0], high[0]) + 0.5) / scaling[0] - 0.5 - self.centre[0])[:, None]
        x = ((np.arange(low[1], high[1]) + 0.5) / scaling[1] - 0.5 - self.centre[1])[None, :]
        turn = np.arctan2(y, x) * (_ANGLES / (2 * np.pi)) % _ANGLES
        limit = np.interp(turn, np.arange(_ANGLES + 1), np.append(self.radii, self.radii[0]))
        window[(y * y + x * x < limit * limit) & (window == 0)] = number


@dataclass(frozen=True)
class Surroundings:
    """What a field knows about itself that an outline needs.

    Attributes
    ----------
    foreground : optical density in green above which something lies on the glass.
    red : optical density (R, G, B) of the red cells; zeros if there are none.
    max_cytoplasm : widest cytoplasm, µm.
    unit : µm per pixel.
    """

    foreground: float
    red: tuple[float, ...]
    max_cytoplasm: float
    unit: float


def grown(window: tuple[slice, ...], by: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A window widened by so many pixels on every side, as far as the image goes."""
    return tuple(slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(window, shape, strict=True))


def widths(points: npt.NDArray[Any]) -> Points:
    """Extent of points (n, 2) along 12 directions."""
    angle = np.arange(12) * (np.pi / 12)
    result: Points = np.ptp(points @ np.stack([np.sin(angle), np.cos(angle)]), axis=0)
    return result


def outlines(nuclei: Labels, density: Float, around: Surroundings) -> list[Outline]:
    """Outline of each cell, in the order of the numbers.

    Parameters
    ----------
    nuclei : int32 array of shape (H, W), consecutive from 1
    density : float32 array of shape (H, W, 3), optical density
    around : see `Surroundings`

    Returns
    -------
    one outline a nucleus, in pixels of ``nuclei``.
    """
    if not nuclei.any():
        return []
    unit = around.unit
    smooth = ndi.gaussian_filter(density, (0.4 / unit, 0.4 / unit, 0))
    distance, nearest = ndi.distance_transform_edt(nuclei == 0, return_indices=True)
    zones = nuclei[tuple(nearest)]
    distance = (distance * unit).astype(np.float32)
    centres, gains = [], []
    for region in regionprops(nuclei):
        window = grown(region.slice, int(np.ceil(around.max_cytoplasm / unit)) + 1, nuclei.shape)
        own = zones[window] == region.label
        score = _likeness(smooth[window], distance[window], own, around, region)
        score[~own | (distance[window] > around.max_cytoplasm)] = -1
        score[nuclei[window] == region.label] = 3
        corner = np.array([window[0].start, window[1].start])
        centres.append(np.array(region.centroid))
        gains.append(_gains(score, centres[-1] - corner, unit))
    return [Outline(centre, radii) for centre, radii in zip(centres, _best_radii(gains, unit), strict=True)]


def _likeness(density: Float, distance: Float, own: Mask, around: Surroundings, nucleus: Any) -> Float:
    """How much each pixel looks like this cell's cytoplasm rather than red cell or empty film.

    1 is cytoplasm, -1 is not. The cytoplasm is what lies close around the nucleus, a region of scikit-image whose hull
    takes longer than all the rest: it is drawn only where it is asked for.
    """
    to_film: Float = np.linalg.norm(density, axis=-1)
    to_other = to_film
    if any(around.red):
        # Red cells differ in thickness: the nearest point on the ray of their hue.
        to_other = np.minimum(to_film, _off_ray(density, np.asarray(around.red), 0.75, 2.0))
    ring = own & (distance > 0.6) & (distance < 1.5)
    if ring.any():
        # Where a thin rim leaves red cells or empty film in the ring, the odd half is the rim.
        odd = ring & (to_other >= np.median(to_other[ring]))
        inner = np.median(density[odd], axis=0)
        apart = float(np.median(to_other[odd])) > max(0.03, 0.2 * float(np.linalg.norm(inner)))
        if not apart and _alone(to_film > 0.5 * around.foreground, own, distance, around.unit):
            to_other, apart = to_film, True
        if apart:
            to_inner = _off_ray(density, inner, 0.7, 1.5)
            score: Float = ((to_other - to_inner) / (to_other + to_inner + 0.02)).astype(np.float32)
            return score - np.float32(0.02) * distance
    # Cytoplasm that cannot be told apart: a narrow rim, but lobes lie in plenty of it.
    rim: Float = (1 - distance / (2.5 if nucleus.solidity < 0.88 else 0.4)).clip(-1, 1).astype(np.float32)
    rim[to_film < 0.5 * around.foreground] = -1
    return rim


def _alone(stained: Mask, own: Mask, distance: Float, unit: float) -> bool:
    """Whether empty film surrounds the body that the nucleus lies in: it touches no red cell."""
    bodies, _ = ndi.label(stained & own)
    inside = np.unique(bodies[distance == 0])
    area = np.isin(bodies, inside[inside > 0]).sum() * unit * unit
    return bool(area < 200)


def _off_ray(density: Float, colour: npt.NDArray[Any], least: float, most: float) -> Float:
    """Distance in colour from a dye whose amount may be ``least`` to ``most`` times the usual."""
    amount = np.clip(density @ colour / max(float(colour @ colour), 1e-6), least, most)
    result: Float = np.linalg.norm(density - amount[..., None] * colour, axis=-1)
    return result


def _gains(score: Float, centre: Points, unit: float) -> Points:
    """Score summed outwards along the rays from ``centre``, (64, as far as the farthest corner)."""
    angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    reach = int(np.hypot(*np.maximum(centre, np.array(score.shape) - centre))) + 2
    radius = np.arange(1, reach + 1, dtype=np.float32)
    rays = centre[:, None, None] + radius * np.stack([np.sin(angle), np.cos(angle)])[:, :, None]
    # Beyond the image nothing is known; a cell that the border cuts may go on a little.
    along = ndi.map_coordinates(score, rays, order=1, mode="constant", cval=-0.2)
    gain: Points = np.cumsum(along * radius, axis=1) * (unit * unit)
    return gain


def _best_radii(gains: Sequence[Points], unit: float) -> Points:
    """Radii (n, 64) of the outlines that enclose most score and stay smooth.

    Dynamic programming around the circle picks the radius of each ray, where a step between neighbours costs its
    square. All outlines go round at once; the shorter rays end in what nobody chooses.
    """
    n, reach = len(gains), max(gain.shape[1] for gain in gains)
    gain = np.full((_ANGLES, n, reach), -np.inf)
    for k, one in enumerate(gains):
        gain[:, k, : one.shape[1]] = one
    steps = range(-_STEP, _STEP + 1)
    cost = [2.4 * (step * unit) ** 2 for step in steps]
    best = np.full((n, reach + 2 * _STEP), -np.inf)  # beyond either end there is nothing
    best[:, _STEP:-_STEP] = gain[0]
    came = np.zeros((2 * _ANGLES, n, reach), dtype=np.int8)
    option, better = np.empty((n, reach)), np.empty((n, reach), bool)
    for i in range(1, 2 * _ANGLES):
        chosen = best[:, :reach] - cost[0]
        choice = came[i]
        choice[:] = -_STEP
        for step in steps[1:]:
            np.subtract(best[:, _STEP + step : _STEP + step + reach], cost[step + _STEP], out=option)
            np.greater(option, chosen, out=better)
            np.copyto(choice, step, where=better)
            np.maximum(chosen, option, out=chosen)
        np.add(chosen, gain[i % _ANGLES], out=best[:, _STEP:-_STEP])
    path = np.empty((2 * _ANGLES, n), dtype=int)
    path[-1] = best[:, _STEP:-_STEP].argmax(axis=1)
    every = np.arange(n)
    for i in range(2 * _ANGLES - 1, 0, -1):
        path[i - 1] = path[i] + came[i, every, path[i]]
    # Twice around, for the half turn at either end has only one neighbour to agree with.
    middle = np.roll(path[_ANGLES // 2 : 3 * _ANGLES // 2], _ANGLES // 2, axis=0).T
    result: Points = ndi.gaussian_filter1d(middle + 1.0, 1.0, axis=1, mode="wrap") + 0.5
    return result
