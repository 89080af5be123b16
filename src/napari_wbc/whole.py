"""The white cells of a whole slide: a coarse look for candidates, then full resolution around each of them.

A window of one size is read around every candidate and segmented by itself, with what was measured once for the whole
slide. A cell belongs to the candidate that is nearest to its centre: it is counted exactly once, and no window depends
on where tiles begin or how many threads work. Memory is bounded by a few windows and tiles, and by the table of cells.

`find` strings three steps together: a plan of the slide (`napari_wbc.plan`), its parts (`examine`), and what they found
put together (`once`, `judge`, `assemble`). A cluster runs the same steps, the parts wherever there is room.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from .appearance import Appearance, SegmentParameters
from .cells import Cells, measure
from .coarse import Film
from .crop import CropSize, crop_cells
from .geojson import Rings, outlines
from .plan import Plan, Polygons, Step, make_plan, near
from .segment import segment
from .slide import Slide

if TYPE_CHECKING:
    from .classifier import Classifier, ModelCard

_REACH_UM = 32.0
"""Half the side of the window around a candidate: the largest cell, and what its outline is told from."""

_BATCH = 64


@dataclass(frozen=True)
class Whole:
    """What is known of a whole slide besides its cells.

    Parameters
    ----------
    rings : dict of int to list of (m, 2) arrays
        Outlines of the cells by label, as `napari_wbc.geojson.outlines` gives them.
    film : Film
        The coarse look: which parts of the slide are what.
    regions : pandas.DataFrame
        A row for each kind of region: area, share, candidates, whether it was used.
    """

    rings: dict[int, Rings] = field(repr=False)
    film: Film
    regions: pd.DataFrame


@dataclass
class Sighting:
    """A cell of a window: a row of the table, its outline, and how it lies to its candidate."""

    row: dict[str, Any]
    rings: Rings
    crop: npt.NDArray[np.uint8] | None
    apart: float
    probabilities: npt.NDArray[np.float32] | None = None
    unlikeness: float = float("nan")

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column in level 0."""
        return self.row["centroid-0"], self.row["centroid-1"]


@dataclass(frozen=True)
class Found:
    """The cells of a slide before they are an analysis."""

    cells: Cells
    look: Appearance
    whole: Whole
    notes: tuple[str, ...]


def find(
    slide: Slide,
    classifier: Classifier | None,
    parameters: SegmentParameters,
    threshold: float,
    *,
    within: Polygons | None = None,
    everywhere: bool = False,
    tile: int = 512,
) -> Generator[Step, None, Found]:
    """Find and classify the white cells of a whole slide; see `napari_wbc.pipeline.analyse`.

    Yields
    ------
    (stage, done, total, cells) : the cells that were classified since the last step, or None.
    """
    plan = yield from make_plan(slide, parameters, within=within, everywhere=everywhere, tile=tile)
    seen = yield from examine(slide, plan, plan.parts, classifier, threshold)
    kept, late = once(seen, classifier is not None)
    if classifier is not None:
        judge(slide, plan, late, classifier)
    slide.check_unchanged()
    return assemble(slide, plan, kept, classifier.card if classifier else None, threshold)


def examine(
    slide: Slide, plan: Plan, parts: Sequence[range], classifier: Classifier | None, threshold: float = 0.0
) -> Generator[Step, None, list[Sighting]]:
    """Look at parts of a slide in full resolution.

    Parameters
    ----------
    slide : Slide
    plan : Plan
        Of this slide.
    parts : sequence of range
        Some or all of `plan.parts`.
    classifier : Classifier or None
        None finds and measures only.
    threshold : float
        Of the cells that are yielded.

    Yields
    ------
    (stage, done, total, cells) : as `find`.

    Returns
    -------
    list of Sighting
        Cells, some of them seen from several candidates.
    """
    stage, total = "finding white cells", sum(map(len, parts))
    yield stage, 0, total, None
    if not total:
        return []
    stage = stage if classifier is None else "classifying"
    windows = _ahead(_Job(slide, plan, classifier.card.crop if classifier else None), chain(*parts))
    seen: list[Sighting] = []
    waiting: list[Sighting] = []
    done = 0
    for part in parts:
        for k, cells in zip(part, windows, strict=False):
            done += 1
            seen += cells
            waiting += [cell for cell in cells if cell.crop is not None]
            fresh = None
            # A batch ends where a part ends: the network sees the same at once wherever parts are worked on.
            while classifier is not None and (len(waiting) >= _BATCH or (waiting and k == part[-1])):
                _classify(classifier, waiting[:_BATCH])
                fresh = _table(waiting[:_BATCH], slide.name, classifier.card, threshold)
                waiting = waiting[_BATCH:]
            yield stage, done, total, fresh
    return seen


def once(seen: Sequence[Sighting], classified: bool) -> tuple[list[Sighting], list[Sighting]]:
    """Take each cell once: of several views of one, that of the nearest candidate.

    Parameters
    ----------
    seen : sequence of Sighting
        Of all parts of a slide, in their order.
    classified : bool
        Whether there is a network.

    Returns
    -------
    kept : list of Sighting
        By row and column.
    late : list of Sighting
        Those of them that nobody has classified, because windows disagree whose they are.
    """
    found = sorted(seen, key=lambda cell: (cell.apart, cell.centre))
    if not found:
        return [], []
    radius = np.sqrt(np.array([cell.row["area"] for cell in found]) / np.pi)
    centres = _centres(found)
    # Two are one cell if the centre of either lies in the other: a window may see more of a cell, or two as one.
    around = [set(near_by) for near_by in cKDTree(centres).query_ball_point(centres, radius)]
    for k, near_by in enumerate([*map(tuple, around)]):
        for j in near_by:
            around[j].add(k)
    taken = np.zeros(len(found), dtype=bool)
    kept = []
    for k, cell in enumerate(found):
        if taken[list(around[k])].any():
            continue
        taken[k] = True
        kept.append(cell)
    kept.sort(key=lambda cell: cell.centre)
    return kept, [cell for cell in kept if classified and cell.probabilities is None]


def judge(slide: Slide, plan: Plan, cells: Sequence[Sighting], classifier: Classifier) -> None:
    """Classify the cells that `once` calls late, in place."""
    job = _Job(slide, plan, classifier.card.crop) if cells else None
    for start in range(0, len(cells), _BATCH):
        part = cells[start : start + _BATCH]
        for cell in part:
            cell.crop = job.crop(cell.row) if job else None
        _classify(classifier, part)


def assemble(slide: Slide, plan: Plan, kept: Sequence[Sighting], card: ModelCard | None, threshold: float) -> Found:
    """Make the table of a slide out of its cells, each of which is there once."""
    if plan.within is not None:
        inside = near(_centres(kept), plan.within, 0.0)
        kept = [cell for cell, is_inside in zip(kept, inside, strict=True) if is_inside]
    cells = _table(kept, slide.name, card, threshold)
    rings = {k: cell.rings for k, cell in enumerate(kept, start=1)}
    regions = plan.regions.assign(cells=np.bincount(plan.film.kind_at(cells.centroids), minlength=len(plan.regions)))
    return Found(cells, plan.look, Whole(rings, plan.film, regions), plan.notes)


class _Job:
    """What a thread does: read the window of a candidate, segment it, measure and crop its cells."""

    def __init__(self, slide: Slide, plan: Plan, crop: CropSize | None) -> None:
        self.slide, self.parameters, self.look, self.size = slide, plan.parameters, plan.look, crop
        self.places, self.tree = plan.places, cKDTree(plan.places)
        self.half = round(_REACH_UM / plan.look.mpp)

    def __call__(self, k: int) -> list[Sighting]:
        rows, columns = self.slide.shape
        y, x = (int(v) for v in np.rint(self.places[k]))
        top, left = max(0, y - self.half), max(0, x - self.half)
        bottom, right = min(rows, y + self.half), min(columns, x + self.half)
        image = self.slide.read((top, left, bottom, right))
        seen = segment(image, self.parameters, self.look)
        if not seen.labels.any():
            return []
        table = measure(seen.labels, seen.nuclei, slide=self.slide.name, mpp=self.look.mpp).table
        # A cell that the window cuts is whole in the window of another candidate.
        cut = (
            ((table["bbox-0"] == 0) & (top > 0)) | ((table["bbox-1"] == 0) & (left > 0))
            | ((table["bbox-2"] == bottom - top) & (bottom < rows))
            | ((table["bbox-3"] == right - left) & (right < columns))
        )  # fmt: skip
        rings = outlines(np.where(np.isin(seen.labels, table["label"][~cut]), seen.labels, 0))
        found = []
        for row in table[~cut].to_dict("records"):
            cell = {str(name): value for name, value in row.items()}
            for axis, start in enumerate((top, left)):
                cell[f"centroid-{axis}"] = round(cell[f"centroid-{axis}"] + start, 4)
                cell[f"bbox-{axis}"] += start
                cell[f"bbox-{axis + 2}"] += start
            shifted = [ring + np.array([left, top]) for ring in rings[cell["label"]]]
            centre = (cell["centroid-0"], cell["centroid-1"])
            owner = self.tree.query(centre)[1]
            crop = self.crop(cell) if owner == k and self.size else None
            apart = float(np.hypot(*(self.places[k] - centre)))
            found.append(Sighting(cell, shifted, crop, apart if owner == k else apart + 1e9))
        return found

    def crop(self, cell: dict[str, Any]) -> npt.NDArray[np.uint8]:
        """Cut a cell out of the slide as the network wants it."""
        assert self.size is not None  # noqa: S101
        wide = max(cell["bbox-2"] - cell["bbox-0"], cell["bbox-3"] - cell["bbox-1"])
        mpp = self.size.scale_for(self.look.mpp, np.array([wide], float))
        centre = np.array([[cell["centroid-0"], cell["centroid-1"]]], np.float64)
        crops = crop_slide(self.slide, centre, mpp, self.size)
        return np.asarray(crops[0], np.uint8)


def crop_slide(
    slide: Slide, centroids: npt.NDArray[np.floating], mpp: float | npt.NDArray[np.floating], size: CropSize
) -> npt.NDArray[np.uint8]:
    """Do what `napari_wbc.crop.crop_cells` does for a slide of any size: only the parts around the points are read."""
    if not slide.is_whole:
        return crop_cells(slide.image, centroids, mpp, size)
    scales = np.broadcast_to(np.asarray(mpp, np.float64), len(centroids))
    crops = np.empty((len(centroids), size.pixels, size.pixels, 3), np.uint8)
    for k, centre in enumerate(np.asarray(centroids, np.float64)):
        reach = int(size.side_um / scales[k] * (0.5 + 3 / size.pixels)) + 6
        first = np.maximum(np.floor(centre).astype(int) - reach, 0)
        last = np.minimum(np.ceil(centre).astype(int) + reach, slide.shape)
        region = slide.read((int(first[0]), int(first[1]), int(last[0]), int(last[1])))
        crops[k] = crop_cells(region, (centre - first)[None], scales[k : k + 1], size)[0]
    return crops


def _ahead(job: Callable[[int], list[Sighting]], order: Iterable[int]) -> Iterator[list[Sighting]]:
    """Results in order, while threads work on the next ones; closing stops them."""
    # Where several processes share a machine, each is told so in this variable.
    told = os.environ.get("OMP_NUM_THREADS", "")
    workers = max(1, int(told) if told.isdecimal() else os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, "windows")
    waiting: deque[Future[list[Sighting]]] = deque()
    try:
        for k in order:
            waiting.append(pool.submit(job, k))
            if len(waiting) > max(3 * workers, _BATCH):  # there is work for the threads while the network has its batch
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _classify(classifier: Classifier, cells: Sequence[Sighting]) -> None:
    judged = classifier.judge(np.stack([cell.crop for cell in cells if cell.crop is not None]))
    for cell, row, unlikeness in zip(cells, *judged, strict=True):
        cell.probabilities, cell.unlikeness, cell.crop = row, float(unlikeness), None


def _centres(found: Sequence[Sighting]) -> npt.NDArray[np.float64]:
    return np.array([cell.centre for cell in found], dtype=np.float64).reshape(-1, 2)


def _table(found: Sequence[Sighting], name: str, card: ModelCard | None, threshold: float) -> Cells:
    if not found:
        return Cells.empty(card.classes if card else ())
    table = pd.DataFrame([cell.row for cell in found])
    table["label"], table["slide"] = np.arange(1, len(found) + 1), name
    cells = Cells(table)
    if card is None:
        return cells
    rows = np.stack([cell.probabilities for cell in found if cell.probabilities is not None])
    unlikeness = np.array([cell.unlikeness for cell in found])
    return cells.with_predictions(rows, card.classes, threshold, unlikeness, card.unlike_above)
