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
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage as ndi

from .regions import Regions, quantile
from .scale import Float, Mask

__all__ = ["Outline", "Outliner", "Surroundings", "filled", "grown", "widths"]

Labels = npt.NDArray[np.int32]
Points = npt.NDArray[np.float64]

_ANGLES = 64
_STEP = 4
"""Most pixels by which the radii of neighbouring rays differ."""

_AT_ONCE = 64
"""Outlines that are drawn at once; more would fill the memory."""

_RING_UM = (0.6, 1.5)
"""What lies so far around a nucleus is its cytoplasm, µm."""


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

    def out_of(self, shape: tuple[int, ...]) -> Outline:
        """The curve, drawn out of an image of that shape where it ends less than a pixel before the edge.

        Outlines are known to a pixel, and beyond the edge there is nothing that they could end at.
        """
        angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
        radii = self.radii.copy()
        for ends, way, centre, size in zip(
            self.vertices.T, (np.sin(angle), np.cos(angle)), self.centre, shape, strict=True
        ):
            for near, edge in ((ends < 0.5, -1.0), (ends > size - 1.5, float(size))):
                out = near & ((edge - centre) * way > 0.25 * abs(edge - centre))  # not along the edge
                radii[out] = np.maximum(radii[out], (edge - centre) / way[out])
        return Outline(self.centre, radii)


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


def filled(labels: Labels, found: Sequence[Outline], scaling: Points) -> None:
    """Give the free pixels inside each outline its number, from 1 on, in an image ``scaling`` (2,) times as large."""
    shape = np.array(labels.shape)
    for number, outline in enumerate(found, start=1):
        vertices = outline.vertices
        low = np.floor((vertices.min(axis=0) + 0.5) * scaling).astype(int).clip(0, shape)
        high = np.ceil((vertices.max(axis=0) + 0.5) * scaling + 1).astype(int).clip(0, shape)
        window = labels[low[0] : high[0], low[1] : high[1]]
        y = ((np.arange(low[0], high[0]) + 0.5) / scaling[0] - 0.5 - outline.centre[0])[:, None]
        x = ((np.arange(low[1], high[1]) + 0.5) / scaling[1] - 0.5 - outline.centre[1])[None, :]
        far = y * y + x * x
        inside = far < outline.radii.min() ** 2
        # Between the shortest and the longest radius the angle decides.
        rows, columns = np.nonzero((far < outline.radii.max() ** 2) & ~inside)
        turn = np.arctan2(y[rows, 0], x[0, columns]) * (_ANGLES / (2 * np.pi)) % _ANGLES
        limit = np.interp(turn, np.arange(_ANGLES + 1), np.append(outline.radii, outline.radii[0]))
        inside[rows, columns] = far[rows, columns] < limit * limit
        window[inside & (window == 0)] = number


def grown(window: tuple[slice, ...], by: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A window widened by so many pixels on every side, as far as the image goes."""
    return tuple(slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(window, shape, strict=True))


def widths(points: npt.NDArray[Any]) -> Points:
    """Extent of points (n, 2) along 12 directions."""
    angle = np.arange(12) * (np.pi / 12)
    result: Points = np.ptp(points @ np.stack([np.sin(angle), np.cos(angle)]), axis=0)
    return result


class Outliner:
    """Draws the outlines of the cells of an image around their nuclei.

    Parameters
    ----------
    density : float32 array of shape (H, W, 3), optical density
    around : see `Surroundings`
    """

    def __init__(self, density: Float, around: Surroundings) -> None:
        self.around = around
        self._smooth = [ndi.gaussian_filter(density[..., k], 0.4 / around.unit) for k in range(3)]

    def __call__(self, nuclei: Labels, wanted: Mask | None = None) -> dict[int, Outline]:
        """Outlines by number, in pixels of ``nuclei``.

        Parameters
        ----------
        nuclei : int32 array of shape (H, W)
        wanted : which numbers; all if None
        """
        around = self.around
        regions = Regions(nuclei if wanted is None else np.where(wanted[nuclei], nuclei, 0))
        if regions.n == 1:
            return {}
        nearest = ndi.distance_transform_edt(nuclei == 0, return_distances=False, return_indices=True)
        zones = regions.labels.ravel()[nearest[0] * nuclei.shape[1] + nearest[1]]
        away = nearest[0] - np.arange(nuclei.shape[0], dtype=np.int32)[:, None]
        aside = nearest[1] - np.arange(nuclei.shape[1], dtype=np.int32)
        square = away * away + aside * aside
        near = (square <= (max(around.max_cytoplasm, _RING_UM[1]) / around.unit) ** 2) & (zones > 0)
        distance = np.sqrt(square[near], dtype=np.float32) * np.float32(around.unit)
        score = np.full(nuclei.shape, -1, np.float32)
        score[near] = np.where(
            distance > around.max_cytoplasm, np.float32(-1), self._likeness(regions, zones, distance, near)
        )
        score[nuclei > 0] = 3
        found: dict[int, Outline] = {}
        for numbers in np.split(np.flatnonzero(regions.count), range(_AT_ONCE, regions.n, _AT_ONCE)):
            gains = []
            for k in numbers:
                window = self._window(regions, k)
                own = np.where(zones[window] == k, score[window], np.float32(-1))
                gains.append(_gains(own, regions.centroids[k] - [side.start for side in window], around.unit))
            radii = _best_radii(gains, around.unit) if gains else ()
            outlines = (Outline(regions.centroids[k], one) for k, one in zip(numbers, radii, strict=True))
            found |= {int(k): one.out_of(nuclei.shape) for k, one in zip(numbers, outlines, strict=True)}
        return found

    def _window(self, regions: Regions, number: int) -> tuple[slice, ...]:
        """What an outline may reach around a nucleus."""
        top, left, bottom, right = regions.boxes[number]
        reach = int(np.ceil(self.around.max_cytoplasm / self.around.unit)) + 1
        return grown((slice(top, bottom), slice(left, right)), reach, regions.labels.shape)

    def _likeness(self, regions: Regions, zones: Labels, distance: Float, near: Mask) -> Float:
        """How much pixels look like their cell's cytoplasm rather than red cell or empty film.

        1 is cytoplasm, -1 is not. The cytoplasm is what lies close around the nucleus.
        """
        around, n = self.around, regions.n
        zone = zones[near]
        density = [channel[near] for channel in self._smooth]
        to_film = _length(density)
        to_other: Float = to_film
        if any(around.red):
            # Red cells differ in thickness: the nearest point on the ray of their hue.
            to_other = np.minimum(to_film, _off_ray(density, np.asarray(around.red)[:, None], 0.75, 2.0))
        ring = np.flatnonzero((distance > _RING_UM[0]) & (distance < _RING_UM[1]))
        of = zone[ring]
        # Where a thin rim leaves red cells or empty film in the ring, the odd half is the rim.
        odd = ring[to_other[ring] >= quantile(to_other[ring], of, n)[of]]
        of = zone[odd]
        inner = np.stack([quantile(channel[odd], of, n) for channel in density])
        far = quantile(to_other[odd], of, n)
        with np.errstate(invalid="ignore"):  # a nucleus without a ring has no colour of its own
            apart = far > np.maximum(0.03, 0.2 * _length(list(inner)))
        stained = to_film > 0.5 * around.foreground
        for k in np.flatnonzero(np.isfinite(far) & ~apart):
            if self._alone(zones, regions, int(k)):
                apart[k] = True
                to_other = np.where(zone == k, to_film, to_other)
        to_inner = _off_ray(density, inner[:, zone], 0.7, 1.5)
        score: Float = ((to_other - to_inner) / (to_other + to_inner + 0.02)).astype(np.float32)
        score -= np.float32(0.02) * distance
        if not apart[zone].all():
            # Cytoplasm that cannot be told apart: a narrow rim, but lobes lie in plenty of it.
            with np.errstate(invalid="ignore"):
                widest = np.where(regions.solidity < 0.88, np.float32(2.5), np.float32(0.4))
            rim = (1 - distance / widest[zone]).clip(-1, 1)
            rim[~stained] = -1
            score = np.where(apart[zone], score, rim)
        return score

    def _alone(self, zones: Labels, regions: Regions, number: int) -> bool:
        """Whether empty film surrounds the body that the nucleus lies in: it touches no red cell."""
        around = self.around
        window = self._window(regions, number)
        density = [channel[window] for channel in self._smooth]
        own = zones[window] == number
        bodies, _ = ndi.label((_length(density) > 0.5 * around.foreground) & own)
        inside = np.unique(bodies[regions.labels[window] == number])
        area = np.isin(bodies, inside[inside > 0]).sum() * around.unit * around.unit
        return bool(area < 200)


def _length(vector: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Length of vectors of three parts."""
    a, b, c = vector
    result: npt.NDArray[Any] = np.sqrt(a * a + b * b + c * c)
    return result


def _off_ray(density: Sequence[Float], colour: npt.NDArray[Any], least: float, most: float) -> Float:
    """Distance in colour from a dye, (3, 1) or (3, n), whose amount may be ``least`` to ``most`` times the usual."""
    along = sum(channel * part for channel, part in zip(density, colour, strict=True))
    amount = np.clip(along / np.maximum((colour * colour).sum(axis=0), 1e-6), least, most)
    return _length([channel - amount * part for channel, part in zip(density, colour, strict=True)])


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
    cost = (2.4 * (np.arange(-_STEP, _STEP + 1) * unit) ** 2)[:, None, None]
    best = np.full((2 * _ANGLES, n, reach + 2 * _STEP), -np.inf)  # beyond either end there is nothing
    best[0, :, _STEP:-_STEP] = gain[0]
    came = sliding_window_view(best, reach, axis=2).transpose(0, 2, 1, 3)  # by step: where a radius may come from
    option = np.empty(came.shape[1:])
    for i in range(1, 2 * _ANGLES):
        np.subtract(came[i - 1], cost, out=option)
        np.add(option.max(axis=0), gain[i % _ANGLES], out=best[i, :, _STEP:-_STEP])
    path = np.empty((2 * _ANGLES, n), dtype=int)
    path[-1] = best[-1, :, _STEP:-_STEP].argmax(axis=1)
    every = np.arange(n)
    for i in range(2 * _ANGLES - 1, 0, -1):
        path[i - 1] = path[i] + (came[i - 1, :, every, path[i]] - cost[:, 0, 0]).argmax(axis=1) - _STEP
    # Twice around, for the half turn at either end has only one neighbour to agree with.
    middle = np.roll(path[_ANGLES // 2 : 3 * _ANGLES // 2], _ANGLES // 2, axis=0).T
    result: Points = ndi.gaussian_filter1d(middle + 1.0, 1.0, axis=1, mode="wrap") + 0.5
    return result
