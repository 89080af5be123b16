"""The white cells of a whole slide: a coarse look for candidates, then full resolution around each of them.

A window of one size is read around every candidate and segmented by itself, with what was measured once for the whole
slide. A cell belongs to the candidate that is nearest to its centre: it is counted exactly once, and no window depends
on where tiles begin or how many threads work. Memory is bounded by a few windows and tiles, and by the table of cells.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from .appearance import Appearance, SegmentParameters, appearance
from .cells import Cells, measure
from .coarse import REASONS, Film, View, survey
from .crop import CropSize, crop_cells
from .geojson import Rings, outlines
from .segment import segment
from .slide import ImageError, Slide

if TYPE_CHECKING:
    from .classifier import Classifier

Polygons = Sequence[npt.NDArray[np.floating[Any]]]
_REACH_UM = 32.0
"""Half the side of the window around a candidate: the largest cell, and what its outline is told from."""

_LOOK_UM, _LOOKS = 90.0, 16
_MOST_PIXELS = 1600
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
class _Found:
    """A cell of a window: a row of the table, its outline, and how it lies to its candidate."""

    row: dict[str, Any]
    rings: Rings
    crop: npt.NDArray[np.uint8] | None
    apart: float
    probabilities: npt.NDArray[np.float32] | None = None
    unlikeness: float = float("nan")

    @property
    def centre(self) -> tuple[float, float]:
        return self.row["centroid-0"], self.row["centroid-1"]


@dataclass(frozen=True)
class Found:
    """The cells of a slide before they are a `Cells` table."""

    cells: Cells
    look: Appearance
    whole: Whole
    notes: tuple[str, ...]


Step = tuple[str, int, int, Cells | None]


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
    yield "measuring light and scale", 0, 0, None
    mpp = parameters.mpp
    looks: list[Appearance] = []
    if mpp is None:
        mpp, looks = _measured_scale(slide, parameters)
        if mpp is None:
            return _nothing(slide, parameters, classifier)
    view, box = View.of(slide, mpp), _box(within, slide, 60 / mpp)
    film: Film | None = None
    for step in survey(view, tile, box):
        if isinstance(step, Film):
            film = step
        else:
            yield "looking for white cells", *step, None
    assert film is not None  # noqa: S101 - the last step is the film
    known = replace(parameters, mpp=mpp)
    look = yield from _appearance(slide, film, known)
    if looks:
        look = replace(look, mpp_source="red cells", n_red_cells=sum(one.n_red_cells for one in looks))
    places, used = _places(film, look, everywhere), film.table(mpp)
    used["used"] = [everywhere or name == REASONS[0] for name in REASONS]
    if within is not None:
        places = places[_near(places, within, 20 / mpp)]
    job = _Job(slide, known, look, classifier.card.crop if classifier else None, places)
    found: list[_Found] = []
    yield "finding white cells", 0, len(places), None
    waiting: list[_Found] = []
    for done, cells in enumerate(_ahead(job, range(len(places))), start=1):
        found += cells
        waiting += [cell for cell in cells if cell.crop is not None]
        fresh = None
        while classifier is not None and (len(waiting) >= _BATCH or (waiting and done == len(places))):
            _classify(classifier, waiting[:_BATCH])
            fresh = _table(waiting[:_BATCH], slide.name, classifier, threshold)
            waiting = waiting[_BATCH:]
            yield "classifying", done, len(places), fresh
        if fresh is None:
            yield "finding white cells" if classifier is None else "classifying", done, len(places), None
    kept = _once(found, job, classifier)
    if within is not None:
        kept = [cell for cell, inside in zip(kept, _near(_centres(kept), within, 0.0), strict=True) if inside]
    slide.check_unchanged()
    cells_found = _table(kept, slide.name, classifier, threshold)
    rings = {k: cell.rings for k, cell in enumerate(kept, start=1)}
    return Found(cells_found, look, Whole(rings, film, used), _region_notes(used))


def _nothing(slide: Slide, parameters: SegmentParameters, classifier: Classifier | None) -> Found:
    """A slide without any film has no cells; one with something on it needs a scale."""
    image = slide.thumbnail(512)
    bright = np.median(image.reshape(-1, 3), axis=0)
    if (np.abs(image.astype(np.int16) - bright).max(axis=-1) > 24).mean() > 0.01:
        raise ImageError(
            f"{slide.path or slide.name}: the slide says no scale, and no red cells were found to measure it; "
            "give µm per pixel (--mpp, or Scale under Advanced)"
        )
    look = appearance(image, parameters)
    film = Film(np.empty((0, 2)), np.empty(0), np.full((1, 1), 1, np.uint8), float(max(slide.shape)), bright)
    table = film.table(float("nan")).assign(used=[name == REASONS[0] for name in REASONS])
    notes = ("nothing lies on this slide: it has one colour",)
    return Found(_table([], slide.name, classifier, 0.0), look, Whole({}, film, table), notes)


def _measured_scale(slide: Slide, parameters: SegmentParameters) -> tuple[float | None, list[Appearance]]:
    """µm per pixel from the red cells in windows all over the slide, and what was measured in these."""
    side = 800
    rows, columns = slide.shape
    looks = []
    for y in np.linspace(0, max(0, rows - side), 7).astype(int)[1:-1] if rows > side else [0]:
        for x in np.linspace(0, max(0, columns - side), 7).astype(int)[1:-1] if columns > side else [0]:
            window = slide.read((y, x, min(y + side, rows), min(x + side, columns)))
            look = appearance(window, parameters)
            if look.mpp_source == "red cells" and look.n_red_cells >= 6:
                looks.append(look)
    if not looks:
        return None, []
    looks.sort(key=lambda look: look.mpp)
    total = np.cumsum([look.n_red_cells for look in looks])
    return looks[int(np.searchsorted(total, total[-1] / 2))].mpp, looks


def _appearance(slide: Slide, film: Film, parameters: SegmentParameters) -> Generator[Step, None, Appearance]:
    """Light, stain and thresholds of the slide: medians over windows around the best candidates of the monolayer."""
    good = film.peaks[film.kind_at(film.peaks) == 0] if len(film.peaks) else film.peaks
    # Evenly from the best down to what has less than half of the dye of good ones: rare or many, they are white cells.
    scores = film.scores[film.kind_at(film.peaks) == 0] if len(film.peaks) else film.scores
    likely = good[scores > 0.4 * scores[min(_LOOKS, len(scores)) - 1]] if len(scores) else good
    chosen = likely[np.unique(np.linspace(0, max(0, len(likely) - 1), _LOOKS).astype(int))] if len(likely) else likely
    if not len(chosen):
        chosen = np.array([[n / 2 for n in slide.shape]])
    half = int(min(_LOOK_UM / 2 / (parameters.mpp or 1), _MOST_PIXELS / 2))
    looks = []
    for done, (y, x) in enumerate(np.rint(chosen).astype(int), start=1):
        top, left = max(0, y - half), max(0, x - half)
        window = slide.read((top, left, min(y + half, slide.shape[0]), min(x + half, slide.shape[1])))
        looks.append(appearance(window, parameters))
        yield "measuring light and stain", done, len(chosen), None
    nuclear = [look for look in looks if np.isfinite(look.nuclear)]
    reds = [look.red for look in looks if any(look.red)]
    r, g, b = (float(v) for v in np.median([look.background for look in looks], axis=0))
    return Appearance(
        (r, g, b),
        float(np.median([look.foreground for look in looks])),
        float(np.median([look.nuclear for look in nuclear])) if nuclear else float("inf"),
        float(np.median([look.darkest for look in nuclear])) if nuclear else 0.0,
        tuple(float(v) for v in np.median(reds, axis=0)) if reds else (0.0, 0.0, 0.0),
        float(parameters.mpp or np.nan),
        "given",
        int(sum(look.n_red_cells for look in looks)),
    )


def _places(film: Film, look: Appearance, everywhere: bool) -> npt.NDArray[np.float64]:
    """Candidates that are worth a look at full resolution, in the order in which tiles lie on disk."""
    if not len(film.peaks) or not np.isfinite(look.nuclear):
        return np.empty((0, 2))
    # The segmentation accepts no nucleus of less than 13 µm² or 1.3 × this level, and smoothing leaves 0.43 of it.
    kept = film.scores > 0.5 * look.nuclear
    if not everywhere:
        kept &= film.kind_at(film.peaks) == 0
    places = film.peaks[kept]
    block = places // 2048
    return places[np.lexsort((places[:, 1], places[:, 0], block[:, 1], block[:, 0]))]


class _Job:
    """What a thread does: read the window of a candidate, segment it, measure and crop its cells."""

    def __init__(
        self, slide: Slide, parameters: SegmentParameters, look: Appearance, crop: CropSize | None,
        places: npt.NDArray[np.float64],
    ) -> None:  # fmt: skip
        self.slide, self.parameters, self.look, self.size = slide, parameters, look, crop
        self.places, self.tree = places, cKDTree(places) if len(places) else None
        self.half = round(_REACH_UM / look.mpp)

    def __call__(self, k: int) -> list[_Found]:
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
            owner = self.tree.query(centre)[1] if self.tree is not None else k
            crop = self.crop(cell) if owner == k and self.size else None
            apart = float(np.hypot(*(self.places[k] - centre)))
            found.append(_Found(cell, shifted, crop, apart if owner == k else apart + 1e9))
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


def _ahead(job: Callable[[int], list[_Found]], order: range) -> Iterator[list[_Found]]:
    """Results in order, while threads work on the next ones; closing stops them."""
    workers = max(1, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, "windows")
    waiting: deque[Future[list[_Found]]] = deque()
    try:
        for k in order:
            waiting.append(pool.submit(job, k))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _classify(classifier: Classifier, cells: Sequence[_Found]) -> None:
    judged = classifier.judge(np.stack([cell.crop for cell in cells if cell.crop is not None]))
    for cell, row, unlikeness in zip(cells, *judged, strict=True):
        cell.probabilities, cell.unlikeness, cell.crop = row, float(unlikeness), None


def _once(found: list[_Found], job: _Job, classifier: Classifier | None) -> list[_Found]:
    """Each cell once, by row and column: of several views of one, that of the nearest candidate."""
    found = sorted(found, key=lambda cell: (cell.apart, cell.centre))
    if not found:
        return []
    centres = _centres(found)
    radius = np.sqrt(np.array([cell.row["area"] for cell in found]) / np.pi)
    near = cKDTree(centres).query_ball_point(centres, radius)
    taken = np.zeros(len(found), dtype=bool)
    kept = []
    for k, cell in enumerate(found):
        if taken[near[k]].any():
            continue
        taken[k] = True
        kept.append(cell)
    # Windows that disagree whose a cell is: nobody has classified it.
    late = [cell for cell in kept if classifier is not None and cell.probabilities is None]
    for start in range(0, len(late), _BATCH):
        part = late[start : start + _BATCH]
        for cell in part:
            cell.crop = job.crop(cell.row)
        if classifier is not None:
            _classify(classifier, part)
    return sorted(kept, key=lambda cell: cell.centre)


def _centres(found: Sequence[_Found]) -> npt.NDArray[np.float64]:
    return np.array([cell.centre for cell in found], dtype=np.float64).reshape(-1, 2)


def _table(found: Sequence[_Found], name: str, classifier: Classifier | None, threshold: float) -> Cells:
    if not found:
        return Cells.empty(classifier.card.classes if classifier else ())
    table = pd.DataFrame([cell.row for cell in found])
    table["label"], table["slide"] = np.arange(1, len(found) + 1), name
    cells = Cells(table)
    if classifier is None:
        return cells
    rows = np.stack([cell.probabilities for cell in found if cell.probabilities is not None])
    unlikeness = np.array([cell.unlikeness for cell in found])
    return cells.with_predictions(rows, classifier.card.classes, threshold, unlikeness, classifier.card.unlike_above)


def _box(within: Polygons | None, slide: Slide, margin: float) -> tuple[int, int, int, int] | None:
    if within is None:
        return None
    corners = np.concatenate([np.asarray(polygon, float).reshape(-1, 2) for polygon in within])
    top, left = np.maximum(corners.min(axis=0) - margin, 0)
    bottom, right = np.minimum(corners.max(axis=0) + margin, slide.shape)
    if bottom <= top or right <= left:
        raise ImageError("what was drawn lies outside the slide; draw on it")
    return int(top), int(left), int(np.ceil(bottom)), int(np.ceil(right))


def _near(places: npt.NDArray[np.float64], within: Polygons, margin: float) -> npt.NDArray[np.bool_]:
    """Which places lie in one of the polygons; with a margin, in the boxes around them."""
    from skimage.measure import points_in_poly

    inside = np.zeros(len(places), dtype=bool)
    for polygon in within:
        corners = np.asarray(polygon, float).reshape(-1, 2)
        near = ((places >= corners.min(axis=0) - margin) & (places <= corners.max(axis=0) + margin)).all(axis=1)
        if margin == 0 and near.any():
            near[near] = points_in_poly(places[near], corners)
        inside |= near
    return inside


def _region_notes(regions: pd.DataFrame) -> tuple[str, ...]:
    skipped = regions[~regions["used"] & (regions["share"] > 0) & (regions["region"] != "glass")]
    if not len(skipped):
        return ()
    parts = [f"{row['region']} {100 * row['share']:.1f} %" for row in skipped.to_dict("records")]
    return (f"left out: {', '.join(parts)} of the slide",)
