"""Measurements of all regions of a label image at once.

A field has dozens of nuclei, a slide thousands: a call a region costs more than its pixels do. Here a region is a run
in a list of pixels, and every measurement is one pass over that list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Regions", "otsu", "quantile", "ranked_quantile", "side_by_side"]

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


def by_region(of: npt.NDArray[np.integer[Any]], n: int) -> Ints:
    """Order in which the pixels of a region follow each other, as they came."""
    # Numbers of 16 bits are sorted digit by digit, in a tenth of the time.
    return np.argsort(of.astype(np.uint16) if n < 1 << 16 else of, kind="stable")


def quantile(values: npt.NDArray[Any], of: npt.NDArray[np.integer[Any]], n: int, q: float = 0.5) -> npt.NDArray[Any]:
    """Quantile of the values of each region, by default the median.

    Parameters
    ----------
    values : (m,) array
    of : (m,) integer array, the region of each, from 0 on
    n : how many regions there are
    q : 0 to 1

    Returns
    -------
    (n,) array of the type of the values, NaN for a region without any.
    """
    return ranked_quantile(_ranked(values, of, n), np.bincount(of, minlength=n), q)


def _ranked(values: npt.NDArray[Any], of: npt.NDArray[np.integer[Any]], n: int) -> npt.NDArray[Any]:
    """Values region by region, in increasing order in each."""
    if values.dtype != np.float32:
        order = np.argsort(values)
        return values[order[by_region(of[order], n)]]
    # The bits of positive numbers are ordered as these are; one sort of whole numbers is far faster than two that move.
    bits = values.view(np.int32)
    bits = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    key = (of.astype(np.int64) << 32) + bits.astype(np.int64) + (1 << 31)
    key.sort()
    bits = ((key & 0xFFFFFFFF) - (1 << 31)).astype(np.int32)
    result: npt.NDArray[Any] = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).view(np.float32)
    return result


def ranked_quantile(values: npt.NDArray[Any], count: Ints, q: float = 0.5) -> npt.NDArray[Any]:
    """As `quantile`, of values that lie region by region, in increasing order in each, so many of each."""
    first = np.cumsum(count) - count
    place = np.maximum(count - 1, 0) * q
    low = place.astype(np.int64)
    share = (place - low).astype(values.dtype)
    result = np.full(len(count), np.nan, values.dtype)
    some = count > 0
    a = values[(first + low)[some]]
    b = values[(first + np.minimum(low + 1, count - 1))[some]]
    result[some] = a * (1 - share[some]) + b * share[some]
    return result


def otsu(values: npt.NDArray[Any], of: npt.NDArray[np.integer[Any]], n: int, bins: int) -> npt.NDArray[Any]:
    """Otsu's threshold of the values of each region, as `skimage.filters.threshold_otsu` finds it.

    Parameters
    ----------
    values, of, n : as for `quantile`
    bins : of the histogram of each region, from its lowest to its highest value

    Returns
    -------
    (n,) array of the type of the values; a region's own value where it has but one, NaN for one without any.
    """
    low, high = quantile(values, of, n, 0.0), quantile(values, of, n, 1.0)
    edges = np.linspace(low, high, bins + 1, axis=1, dtype=values.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = ((values - low[of]) * (bins / (high - low))[of]).astype(np.int64).clip(0, bins - 1)
        place -= values < edges[of, place]
        place += (values >= edges[of, place + 1]) & (place < bins - 1)
        count = np.bincount(of * bins + place, minlength=n * bins).reshape(n, bins).astype(np.float32)
        middle = (edges[:, :-1] + edges[:, 1:]) / 2
        total = count * middle
        below, above = count.cumsum(axis=1), count[:, ::-1].cumsum(axis=1)[:, ::-1]
        apart = total.cumsum(axis=1)[:, :-1] / below[:, :-1]
        apart -= (total[:, ::-1].cumsum(axis=1) / above[:, ::-1])[:, ::-1][:, 1:]
        variance = below[:, :-1] * above[:, 1:] * apart**2
    best = middle[np.arange(n), variance.argmax(axis=1)]
    return np.where(high > low, best, low)


def side_by_side(boxes: Ints, gap: int, most: int = 64) -> Iterator[tuple[Ints, Ints, tuple[int, int]]]:
    """Share windows out to sheets on which they lie in a row.

    Parameters
    ----------
    boxes : (n, 4) array, first row and column and one past the last of each window
    gap : columns that stay empty after each

    Yields
    ------
    which : indices of the windows of a sheet, which are of about the same height
    left : the column of the sheet in which each begins; they all begin in its first row
    shape : rows and columns of the sheet
    """
    height, width = (boxes[:, 2:] - boxes[:, :2]).T
    order = np.argsort(-height, kind="stable")
    start = 0
    while start < len(order):
        which = order[start : start + most]
        which = which[2 * height[which] >= height[which[0]]]
        end = np.cumsum(width[which] + gap)
        yield which, end - width[which] - gap, (int(height[which[0]]), int(end[-1]))
        start += len(which)


@dataclass(frozen=True)
class Regions:
    """Regions of a label image; arrays have an entry for each number from 0 to the highest, of which 0 is nothing.

    Attributes
    ----------
    labels : (H, W) integer array, 0 background
    """

    labels: npt.NDArray[np.integer[Any]]

    @cached_property
    def n(self) -> int:
        """One more than the highest number."""
        return int(self.labels.max(initial=0)) + 1

    @cached_property
    def at(self) -> Ints:
        """Where the pixels are in the flattened image, region by region and row by row in each."""
        flat = self.labels.ravel()
        place = np.flatnonzero(flat)
        return place[by_region(flat[place], self.n)]

    @cached_property
    def of(self) -> npt.NDArray[np.integer[Any]]:
        """The region of each pixel of `at`."""
        return self.labels.ravel()[self.at]

    @cached_property
    def count(self) -> Ints:
        """Pixels of each region."""
        return np.bincount(self.of, minlength=self.n)

    @cached_property
    def rows(self) -> Ints:
        """Row of each pixel of `at`."""
        rows: Ints = self.at // self.labels.shape[1]
        return rows

    @cached_property
    def columns(self) -> Ints:
        """Column of each pixel of `at`."""
        columns: Ints = self.at - self.rows * self.labels.shape[1]
        return columns

    def pixels(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values of an image at `at`, of each channel if it has several."""
        return image.reshape(self.labels.size, -1)[self.at] if image.ndim > 2 else image.ravel()[self.at]

    def sum(self, values: npt.NDArray[Any]) -> Reals:
        """Sum of one value a pixel of `at`."""
        return np.bincount(self.of, values, self.n).astype(np.float64)

    def mean(self, values: npt.NDArray[Any]) -> Reals:
        """Mean of one value a pixel of `at`; 0 for a number that no region has."""
        return self.sum(values) / np.maximum(self.count, 1)

    def quantile(self, values: npt.NDArray[Any], q: float = 0.5) -> npt.NDArray[Any]:
        """Quantile of one value a pixel of `at`."""
        return quantile(values, self.of, self.n, q)

    @cached_property
    def points(self) -> list[Ints]:
        """Row and column of the pixels of each, (m, 2)."""
        return np.split(np.stack([self.rows, self.columns], axis=1), np.cumsum(self.count)[:-1])

    @cached_property
    def centroids(self) -> Reals:
        """Mean row and column of each, (n, 2)."""
        return np.stack([self.mean(self.rows), self.mean(self.columns)], axis=1)

    @cached_property
    def boxes(self) -> Ints:
        """First row and column of each, and one past the last, (n, 4)."""
        boxes = np.zeros((self.n, 4), np.int64)
        some = np.flatnonzero(self.count)
        if len(some):
            first = (np.cumsum(self.count) - self.count)[some]
            for k, places in enumerate((self.rows, self.columns)):
                boxes[some, k] = np.minimum.reduceat(places, first)
                boxes[some, k + 2] = np.maximum.reduceat(places, first) + 1
        return boxes

    @cached_property
    def eccentricity(self) -> Reals:
        """Of the ellipse with the same second moments: 0 round, 1 a line."""
        y, x = (places - self.centroids[self.of, k] for k, places in enumerate((self.rows, self.columns)))
        yy, xx, yx = self.mean(y * y), self.mean(x * x), self.mean(y * x)
        half, apart = (yy + xx) / 2, np.hypot((yy - xx) / 2, yx)
        longer = half + apart
        squeezed = np.divide(half - apart, longer, out=np.ones(self.n), where=longer > 0)
        result: Reals = np.sqrt(1 - squeezed.clip(0, 1))
        return result

    @cached_property
    def solidity(self) -> Reals:
        """Pixels of each over those of its convex hull, which holds the middles of their sides; NaN for none."""
        if self.n == 1:
            return np.full(1, np.nan)
        right, left = _chain(self, 1), _chain(self, -1)
        height = self.boxes[:, 2] - self.boxes[:, 0]
        of = np.repeat(np.arange(self.n), height)
        row = np.arange(len(of)) - np.repeat(np.cumsum(height) - height, height) + self.boxes[of, 0]
        # Corners lie on whole numbers of half pixels: what is a hair's breadth off a whole number is one.
        wide = sum(np.floor((_along(chain, of, row) + 1e-7) / 2) for chain in (right, left)) + 1
        hull = np.bincount(of, wide, self.n)
        result: Reals = np.divide(self.count, hull, out=np.full(self.n, np.nan), where=self.count > 0)
        return result


_Chain = tuple[Ints, Ints, Ints]


def _chain(regions: Regions, side: int) -> _Chain:
    """Corners of the hulls on the right side (1) or the left (-1): region, row and column, in half pixels."""
    of, row = regions.of, regions.rows
    new = np.flatnonzero((np.diff(of) != 0) | (np.diff(row) != 0))
    edge = np.append(new, len(of) - 1) if side > 0 else np.append(0, new + 1)
    k, y, x = of[edge].astype(np.int64), 2 * row[edge], 2 * side * regions.columns[edge]
    # The middles of a pixel's sides: above, beside and below its centre.
    k, y, x = np.repeat(k, 3), (y[:, None] + [-1, 0, 1]).ravel(), (x[:, None] + [0, 1, 0]).ravel()
    twice = np.append((k[1:] == k[:-1]) & (y[1:] == y[:-1]), False)
    x[twice] = np.maximum(x[twice], x[1:][twice[:-1]])
    kept = ~np.append(False, twice[:-1])
    while not kept.all():
        k, y, x = k[kept], y[kept], x[kept]
        kept = np.ones(len(k), bool)
        inner = (k[2:] == k[1:-1]) & (k[:-2] == k[1:-1])
        kept[1:-1] = ~inner | ((x[1:-1] - x[:-2]) * (y[2:] - y[:-2]) > (x[2:] - x[:-2]) * (y[1:-1] - y[:-2]))
    return k, y, x


def _along(chain: _Chain, of: Ints, row: Ints) -> Reals:
    """Column of a side of the hulls at pixels' rows, in half pixels."""
    k, y, x = chain
    far = 4 * (int(np.abs(y).max(initial=0)) + 2)
    result: Reals = np.interp(of * far + 2 * row, k * far + y, x)
    return result
