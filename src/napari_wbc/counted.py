"""Which cells are counted: all, or a target of 100, 200 or 400 white cells, taken evenly over the smear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .class_names import UNIDENTIFIED
from .count import group_of

TARGETS = (100, 200, 400)
_GOLDEN = (5**0.5 - 1) / 2


def walk(centroids: npt.NDArray[np.floating], seed: int = 0) -> npt.NDArray[np.intp]:
    """Order in which cells are counted: at every number the cells so far lie evenly over the smear.

    Parameters
    ----------
    centroids : (n, 2) float array
        Rows and columns of the cells.
    seed : int
        Where it starts.

    Returns
    -------
    (n,) int array
        Indices of the cells, the first to be counted first. It depends on the places of the cells and the seed, not
        on their classes.

    Notes
    -----
    The cells stand in line along a meander, to and fro through bands of the smear, and those are taken whose
    place times the golden ratio has the smallest fraction. The first k of them have at most three different gaps
    along the line for every k (the three-distance theorem): a systematic sample that can be made longer.
    """
    n = len(centroids)
    if not n:
        return np.empty(0, np.intp)
    low, extent = centroids.min(axis=0), np.ptp(centroids, axis=0)
    # Bands as high as the cells are apart.
    bands = max(1, round(np.sqrt(n * max(extent[0], 1.0) / max(extent[1], 1.0))))
    band = np.minimum((centroids[:, 0] - low[0]) * bands // max(extent[0], 1.0), bands - 1)
    along = np.where(band % 2, -1, 1) * centroids[:, 1]
    line = np.lexsort((centroids[:, 0], along, band))
    start = np.random.default_rng(seed).random()
    return np.asarray(line[np.argsort((start + np.arange(n) * _GOLDEN) % 1.0, kind="stable")])


def chosen(cells: Cells, order: npt.NDArray[np.intp], target: int | None) -> npt.NDArray[np.bool_]:
    """Cells that belong to a count.

    Parameters
    ----------
    cells : Cells
        Of one slide.
    order : (n,) int array
        Their order (`walk`).
    target : int or None
        White cells to count; None for all cells.

    Returns
    -------
    (n,) bool array
        The first cells of the order with as many white cells as the target, and what else was met on the way:
        erythroblasts, smudge cells and platelets are counted beside. A cell that is unidentified, or has no class
        yet, takes the place of a white cell until somebody decides; fewer where the smear has no more.
    """
    mask = np.ones(len(cells), dtype=bool)
    if target is None or not len(cells):
        return mask
    names = cells.table["class"].to_numpy(dtype=object)
    counts = {name: name in ("", UNIDENTIFIED) or group_of(name) == "white" for name in set(names)}
    white = np.array([counts[name] for name in names], dtype=bool)[order]
    # Nothing after the last white cell that is wanted.
    mask[order[np.cumsum(white) - white >= target]] = False
    return mask


def sampling_line(target: int | None, seed: int) -> str:
    """Say how the cells of a count were chosen."""
    if target is None:
        return "All cells were counted."
    return (
        f"Counted to {target} white cells, taken systematically along a meander over the part of the smear that was "
        f"analysed (seed {seed})."
    )
