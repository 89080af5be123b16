"""Outlines of cells around their nuclei.

Cytoplasm is told by colour from the empty film and from red cells, both known for the field,
and from the ring close around the nucleus, known for the cell. The outline is the smooth closed
curve that encloses most of what looks like cytoplasm, found by dynamic programming on rays.
"""

from __future__ import annotations

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
    found = []
    for region in regionprops(nuclei):
        window = grown(region.slice, int(np.ceil(around.max_cytoplasm / unit)) + 1, nuclei.shape)
        own = zones[window] == region.label
        score = _likeness(smooth[window], distance[window], own, around, region.solidity < 0.88)
        score[~own | (distance[window] > around.max_cytoplasm)] = -1
        score[nuclei[window] == region.label] = 3
        corner = np.array([window[0].start, window[1].start])
        centre = np.array(region.centroid)
        found.append(Outline(centre, _best_radii(score, centre - corner, unit)))
    return found


def _likeness(density: Float, distance: Float, own: Mask, around: Surroundings, lobed: bool) -> Float:
    """How much each pixel looks like this cell's cytoplasm rather than red cell or empty film.

    1 is cytoplasm, -1 is not. The cytoplasm is what lies close around the nucleus.
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
    rim: Float = (1 - distance / (2.5 if lobed else 0.4)).clip(-1, 1).astype(np.float32)
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


def _best_radii(score: Float, centre: Points, unit: float) -> Points:
    """Radii (64,) of the outline around ``centre`` that encloses most score and stays smooth.

    The score is summed outwards along rays; dynamic programming around the circle picks the
    radius of each ray, where a step between neighbours costs its square.
    """
    angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    # As far as the farthest corner.
    reach = int(np.hypot(*np.maximum(centre, np.array(score.shape) - centre))) + 2
    radius = np.arange(1, reach + 1, dtype=np.float32)
    rays = centre[:, None, None] + radius * np.stack([np.sin(angle), np.cos(angle)])[:, :, None]
    # Beyond the image nothing is known; a cell that the border cuts may go on a little.
    along = ndi.map_coordinates(score, rays, order=1, mode="constant", cval=-0.2)
    gain = np.cumsum(along * radius, axis=1) * (unit * unit)
    steps = np.arange(-4, 5)
    cost = 2.4 * (steps * unit) ** 2
    best = gain[0]
    came = np.zeros((2 * _ANGLES, reach), dtype=int)
    index = np.clip(np.arange(reach) + steps[:, None], 0, reach - 1)
    for i in range(1, 2 * _ANGLES):
        options = best[index] - cost[:, None]
        choice = options.argmax(axis=0)
        came[i] = index[choice, np.arange(reach)]
        best = options[choice, np.arange(reach)] + gain[i % _ANGLES]
    path = np.empty(2 * _ANGLES, dtype=int)
    path[-1] = best.argmax()
    for i in range(2 * _ANGLES - 1, 0, -1):
        path[i - 1] = came[i, path[i]]
    # Twice around, for the half turn at either end has only one neighbour to agree with.
    middle = np.roll(path[_ANGLES // 2 : 3 * _ANGLES // 2], _ANGLES // 2)
    result: Points = ndi.gaussian_filter1d(radius[middle].astype(float), 1.0, mode="wrap") + 0.5
    return result
