"""In which order the gallery shows which cells, and where they lie. No Qt."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_wbc.class_names import BESIDE_MODEL, NOT_WHITE, SMUDGE, UNIDENTIFIED

if TYPE_CHECKING:
    from napari_wbc.review_session import ReviewSession

Rows = npt.NDArray[np.intp]
NO_CLASS = "not classified"
BY_PROBABILITY, BY_SIZE, BY_PLACE, BY_TIME = "probability", "size", "position", "time of review"
SORTS = (BY_PROBABILITY, BY_SIZE, BY_PLACE, BY_TIME)
ALL, UNREVIEWED, COUNTED = "all cells", "not reviewed yet", "of the count"
SHOWS = (ALL, UNREVIEWED, UNIDENTIFIED, COUNTED)
# Beside the first letter of each class: unusual ones are chosen so that they do not take those of the common.
_KEYS = {UNIDENTIFIED: "u", SMUDGE: "s", NOT_WHITE: "x", "erythroblast": "r", "platelet": "p"}

_OTHER_KEYS = "123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Shown:
    """What of the table is shown, and how it is sorted.

    Parameters
    ----------
    show : str
        One of `SHOWS`, or a class.
    low, high : float
        Probabilities from and to; cells without one are shown while the range is the whole.
    within : sequence of (n, 2) arrays or None
        Only cells inside these polygons, rows and columns of the picture.
    sort : str
        One of `SORTS`.
    descending : bool
        The largest first.
    """

    show: str = ALL
    low: float = 0.0
    high: float = 1.0
    within: Sequence[npt.NDArray[np.floating[Any]]] | None = None
    sort: str = BY_PROBABILITY
    descending: bool = False


@dataclass(frozen=True)
class Section:
    """Cells of one class: those at ``start`` to ``stop`` of the shown ones."""

    name: str
    start: int
    stop: int
    total: int
    """Cells of the class, shown or not."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Arrangement:
    """Rows of the table in the order in which they are shown, and their sections."""

    rows: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    sections: tuple[Section, ...] = ()


def arrange(session: ReviewSession, shown: Shown) -> Arrangement:
    """Choose, group and sort the cells of a review."""
    table, classes = session.cells.table, [*session.classes, ""]
    codes = pd.Categorical(table["class"], categories=classes).codes.astype(np.intp)
    totals = np.bincount(codes, minlength=len(classes))
    rows = np.flatnonzero(_kept(session, shown, codes, classes))
    key = _key(table, shown.sort)[rows]
    # Missing values last, whatever the direction; by place where nothing else tells.
    order = np.lexsort((rows, -key if shown.descending else key, np.isnan(key), codes[rows]))
    rows = rows[order]
    stops = np.searchsorted(codes[rows], np.arange(len(classes)), side="right")
    starts = np.concatenate([[0], stops[:-1]])
    sections = [
        Section(name or NO_CLASS, int(start), int(stop), int(total))
        for name, start, stop, total in zip(classes, starts, stops, totals, strict=True)
        if name or total
    ]
    if shown.show in session.classes and shown.show != UNIDENTIFIED:
        sections = [section for section in sections if section.name == shown.show]
    return Arrangement(rows, tuple(sections))


def _kept(session: ReviewSession, shown: Shown, codes: Rows, classes: Sequence[str]) -> npt.NDArray[np.bool_]:
    table = session.cells.table
    kept = np.ones(len(table), dtype=bool)
    if shown.show == UNREVIEWED:
        kept = ~session.reviewed
    elif shown.show == COUNTED:
        kept = session.counted
    elif shown.show != ALL:
        kept = codes == (classes.index(shown.show) if shown.show in classes else -1)
    if (shown.low, shown.high) != (0.0, 1.0):
        kept = kept & table["probability"].between(shown.low, shown.high).to_numpy()
    if shown.within is not None:
        from skimage.measure import points_in_poly

        centres = session.cells.centroids
        inside = np.zeros(len(table), dtype=bool)
        for polygon in shown.within:
            inside |= points_in_poly(centres, np.asarray(polygon, float))
        kept = kept & inside
    return kept


def _key(table: pd.DataFrame, sort: str) -> npt.NDArray[np.float64]:
    if sort == BY_PLACE:
        return np.lexsort((table["centroid-1"], table["centroid-0"])).argsort().astype(float)
    if sort == BY_TIME:
        times = table["reviewed_at"].to_numpy(object)
        _, ranks = np.unique(times.astype(str), return_inverse=True)
        return np.where(times == "", np.nan, ranks.astype(float))
    return table["probability" if sort == BY_PROBABILITY else "area"].to_numpy(float)


def letters(classes: Sequence[str], chosen: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give each class a letter to reclassify with.

    Parameters
    ----------
    classes : sequence of str
    chosen : mapping of str to str, optional
        Letters of the user's own, by class.

    Returns
    -------
    dict of str to str
        Letter by class: the user's, the usual one, its first free letter, or a digit; classes beyond 36 have none.
    """
    given = {name: key.lower() for name, key in (chosen or {}).items() if len(key) == 1 and name in classes}
    taken = {key: name for name, key in reversed(given.items())}
    for name in sorted(classes, key=lambda name: (name not in _KEYS, name in BESIDE_MODEL)):
        if name in taken.values():
            continue
        wanted = (
            _KEYS.get(name, "") + "".join(filter(str.isalpha, name.lower())) + "123456789abcdefghijklmnopqrstuvwxyz"
        )
        free = next((key for key in wanted if key not in taken), "")
        if free:
            taken[free] = name
    found = {name: key for key, name in taken.items()}
    return {name: found[name] for name in classes if name in found}


class Grid:
    """Where the cells of an arrangement lie on a sheet of a width.

    Parameters
    ----------
    sections : sequence of Section
    width : int
        Of the sheet, px.
    cell : int
        Side of a cell with its margin, px.
    heading : int
        Height of a heading, px.
    """

    def __init__(self, sections: Sequence[Section], width: int, cell: int, heading: int) -> None:
        self.sections, self.cell, self.heading = tuple(sections), cell, heading
        self.columns = max(1, width // cell)
        self.tops, top = [], 0
        for section in self.sections:
            self.tops.append(top)
            top += heading + -(-len(section) // self.columns) * cell
        self.height = top

    @property
    def spans(self) -> list[tuple[Section, int, int]]:
        """Each section with where it begins and ends."""
        return list(zip(self.sections, self.tops, [*self.tops[1:], self.height], strict=True)) if self.tops else []

    def box(self, place: int) -> tuple[int, int, int]:
        """Return left, top and side of the cell at a place of the order."""
        k = next(k for k, section in enumerate(self.sections) if section.start <= place < section.stop)
        row, column = divmod(place - self.sections[k].start, self.columns)
        return column * self.cell, self.tops[k] + self.heading + row * self.cell, self.cell

    def section_at(self, y: int) -> Section | None:
        """Return the section at a height of the sheet."""
        k = bisect_right(self.tops, y) - 1
        return self.sections[k] if k >= 0 and y < self.height else None

    def at(self, x: int, y: int) -> int | None:
        """Return the place of the cell under a point of the sheet, or None."""
        places = self.within(x, y, x, y)
        return places[0] if len(places) else None

    def within(self, left: int, top: int, right: int, bottom: int) -> list[int]:
        """Return the places of the cells that touch a rectangle of the sheet."""
        first, last = max(0, left // self.cell), min(self.columns - 1, right // self.cell)
        found: list[int] = []
        for k in range(max(0, bisect_right(self.tops, top) - 1), bisect_right(self.tops, bottom)):
            section, start = self.sections[k], self.tops[k] + self.heading
            rows = range(max(0, (top - start) // self.cell), (bottom - start) // self.cell + 1)
            for row in rows:
                begin = section.start + row * self.columns
                found.extend(range(begin + first, min(begin + last + 1, section.stop)))
        return found

    def beside(self, place: int, across: int, down: int) -> int:
        """Return the place that is reached by steps to the right and down, or the nearest one."""
        every = [section for section in self.sections if len(section)]
        if not every:
            return place
        n = every[-1].stop
        if across:
            return min(max(place + across, every[0].start), n - 1)
        k = next((k for k, section in enumerate(every) if section.start <= place < section.stop), 0)
        row, column = divmod(place - every[k].start, self.columns)
        rows = -(-len(every[k]) // self.columns)
        while down:
            step = 1 if down > 0 else -1
            row, down = row + step, down - step
            if not 0 <= row < rows:
                if not 0 <= k + step < len(every):
                    row -= step
                    break
                k += step
                rows = -(-len(every[k]) // self.columns)
                row = 0 if step > 0 else rows - 1
        return min(every[k].start + row * self.columns + column, every[k].stop - 1)
