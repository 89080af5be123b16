"""The white cells of a whole slide: a coarse look for candidates, outlines around each, crops in full resolution.

A window is read around every candidate and segmented, with what was measured once for the whole slide. A cell belongs
to the candidate that is nearest to its centre: it is counted exactly once, and no window depends on where tiles begin
or on how many threads work. Memory is bounded by a few windows and tiles, and by the table of cells.

`find` strings three steps together: a plan of the slide (`napari_wbc.plan`), its parts (`examine`), and what they found
put together (`once`, `judge`, `assemble`). A cluster runs the same steps, the parts wherever there is room.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from .ahead import ahead
from .appearance import Appearance, SegmentParameters, shrunk
from .cells import Cells, measured
from .coarse import Film
from .crop import CropSize, crop_cells
from .geojson import Rings
from .outline import Outline
from .plan import Plan, Polygons, Step, make_plan, near
from .scale import even_density
from .segment import outlined
from .slide import Slide

if TYPE_CHECKING:
    from .classifier import Classifier, ModelCard

Indices = npt.NDArray[np.integer[Any]]

_REACH_UM, _FAR_UM = 17.0, 32.0
"""Half the side of the window around a candidate: a large cell and what its outline is told from, or the largest."""

_FILM_UM = 6.0
"""Between two windows of a sheet: wider than any gap between the lobes of a nucleus."""

_SHEET = 24
_BATCH = 64
_EIGHTHS = 8
_OTHERS = 1e9
"""Added to the distance of a cell that belongs to another candidate."""


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


@dataclass(slots=True)
class Sighting:
    """A cell of a window: a row of the table, its outline, and how it lies to its candidate.

    A slide has tens of thousands of them while it is worked on. As numbers in small blocks each takes half a kilobyte,
    and none of them lies between the large blocks of what is being outlined, where free memory could not be used again.

    Attributes
    ----------
    columns : names and types of the table's columns
    row : their values
    curve : the outline, int16 (m, 2): x and y from the first corner of the cell's box, in eighths of a pixel of level 0
    crop : what the network is to see; None before and after
    apart : pixels from the candidate, and `_OTHERS` more where it is nearer to another
    probabilities : float32, by class; empty before it is classified
    unlikeness : see `napari_wbc.unlikeness`
    """

    columns: np.dtype[Any]
    row: bytes
    curve: bytes
    crop: npt.NDArray[np.uint8] | None
    apart: float
    probabilities: bytes = b""
    unlikeness: float = float("nan")

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column in level 0."""
        return self["centroid-0"], self["centroid-1"]

    def __getitem__(self, column: str) -> Any:
        return np.frombuffer(self.row, self.columns)[column].item()

    @property
    def rings(self) -> Rings:
        """The outline as `napari_wbc.geojson.outlines` gives it."""
        corner = np.array([self["bbox-1"], self["bbox-0"]], np.float32)
        # Single precision is a hundredth of a pixel, and of all that is kept of a cell outlines take most memory.
        return [corner + np.frombuffer(self.curve, np.int16).reshape(-1, 2).astype(np.float32) / _EIGHTHS]


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
    """Outline and classify the cells of parts of a slide.

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
    groups = [part[k : k + _SHEET] for part in parts for k in range(0, len(part), _SHEET)]
    ends = {part[-1] for part in parts}
    seen: list[Sighting] = []
    waiting: list[Sighting] = []
    done = 0
    for group, cells in ahead(_Job(slide, plan, classifier.card.crop if classifier else None), groups):
        done += len(group)
        seen += cells
        waiting += [cell for cell in cells if cell.crop is not None]
        fresh = None
        # A batch ends where a part ends: the network sees the same at once wherever parts are worked on.
        if classifier is not None and waiting and group[-1] in ends:
            _classify(classifier, waiting)
            fresh, waiting = _table(waiting, slide.name, classifier.card, threshold), []
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
    radius = np.sqrt(_rows(found)["area"] / np.pi)
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
    return kept, [cell for cell in kept if classified and not cell.probabilities]


def judge(slide: Slide, plan: Plan, cells: Sequence[Sighting], classifier: Classifier) -> None:
    """Classify the cells that `once` calls late, in place."""
    job = _Job(slide, plan, classifier.card.crop) if cells else None
    for start in range(0, len(cells), _BATCH):
        part = cells[start : start + _BATCH]
        for cell in part:
            cell.crop = job.crop(cell) if job else None
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
    """What a thread does: read the windows of some candidates, segment them, measure and crop their cells.

    The windows lie side by side on one sheet, with film between them, which is segmented as a field is: what a field
    costs whatever its size is paid once. Which candidates share a sheet is fixed by the slide.
    """

    def __init__(self, slide: Slide, plan: Plan, crop: CropSize | None) -> None:
        self.slide, self.look, self.size = slide, plan.look, crop
        self.places, self.tree = plan.places, cKDTree(plan.places)
        self.parameters = plan.parameters
        self.level, self.down = slide.level_for(self.parameters.working_mpp / plan.look.mpp)
        self.mpp = plan.look.mpp * self.down

    def __call__(self, group: Sequence[int]) -> list[Sighting]:
        found = []
        for k, (cells, is_cut) in zip(group, self._look(group, _REACH_UM), strict=True):
            # Of the largest cells a window of the usual size shows a part only.
            found += self._look([k], _FAR_UM)[0][0] if is_cut else cells
        for cell in found:
            if cell.apart < _OTHERS and self.size:
                cell.crop = self.crop(cell)
        return found

    def _look(self, group: Sequence[int], reach_um: float) -> list[tuple[list[Sighting], bool]]:
        """Return the cells in the window of each candidate, and whether the window cuts one of its own."""
        columns, pitch, sheet, shifts, edges, beyond = self._sheet(group, round(reach_um / self.mpp))
        factor = np.array(beyond.shape) / sheet.shape[:2]
        image = shrunk(sheet, min(1.0, self.mpp / self.parameters.working_mpp))
        unit = self.mpp / math.sqrt(factor.prod())
        density = even_density(image, self.look.background)
        seen = outlined(density, replace(self.look, mpp=unit), self.parameters, beyond.shape)
        seen.labels[beyond] = 0  # where the slide ends, the outline of a cell may reach into the film
        there = np.bincount(seen.labels.ravel(), minlength=len(seen.outlines) + 1)[1:] > 0
        found: list[list[Sighting]] = [[] for _ in group]
        is_cut = np.zeros(len(group), bool)
        if not there.any():
            return list(zip(found, is_cut.tolist(), strict=True))
        labels = np.append(0, np.where(there, np.cumsum(there), 0)).astype(np.int32)[seen.labels]
        about = measured(labels, np.where(seen.nuclei > 0, labels, 0), self.look.mpp)
        boxes = np.stack([about[f"bbox-{k}"] for k in range(4)], axis=1)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2 / factor
        window = (middle[:, 0] // pitch).astype(int) * columns + (middle[:, 1] // pitch).astype(int)
        own = np.asarray(group)[window]
        cut = np.hstack([boxes[:, :2] <= edges[window, :2], boxes[:, 2:] >= edges[window, 2:]]).max(axis=1)
        mine = self.tree.query((middle + shifts[window]) * self.down)[1] == own
        is_cut[window[cut & mine]] = True
        apart = self._placed(about, factor, shifts[window], own)
        outlines = [one for one, is_there in zip(seen.outlines, there, strict=True) if is_there]
        rows = np.empty(len(window), [(name, values.dtype) for name, values in about.items() if name != "label"])
        for name in rows.dtype.names or ():
            rows[name] = about[name]
        for k in np.flatnonzero(~cut):
            corner = (rows["bbox-0"][k], rows["bbox-1"][k])
            curve = self._curve(outlines[k], factor, shifts[window[k]], corner)
            found[window[k]].append(Sighting(rows.dtype, rows[k].tobytes(), curve, None, float(apart[k])))
        return list(zip(found, is_cut.tolist(), strict=True))

    def _sheet(self, group: Sequence[int], half: int) -> tuple[int, int, Any, Indices, Indices, Any]:
        """Lay the windows of candidates side by side.

        Returns
        -------
        columns : windows in a row
        pitch : pixels from one window to the next
        sheet : uint8 array of shape (H, W, 3)
        shifts : (n, 2), what leads from a window's place on the sheet to its place on the slide's level
        edges : (n, 4), where a window ends on the sheet reduced to working resolution; nowhere where the slide ends
        beyond : boolean array of that reduced sheet, what belongs to no window
        """
        pitch, columns = 2 * half + round(_FILM_UM / self.mpp), math.ceil(math.sqrt(len(group)))
        sheet = np.empty((pitch * -(-len(group) // columns), pitch * columns, 3), np.uint8)
        sheet[:] = np.rint(self.look.background)
        size = np.array(sheet.shape[:2])
        reduced = np.maximum(1, np.rint(size * min(1.0, self.mpp / self.parameters.working_mpp))).astype(int)
        beyond = np.ones(tuple(reduced), bool)
        shifts = np.empty((len(group), 2), np.int64)
        edges = np.empty((len(group), 4), np.int64)
        for i, k in enumerate(group):
            y, x = pitch * (i // columns), pitch * (i % columns)
            top, left, bottom, right = window = self._window(k, half)
            sheet[y : y + bottom - top, x : x + right - left] = self.slide.read(window, self.level)
            ends = np.array([y, x, y + bottom - top, x + right - left])
            ends = np.rint(ends * np.tile(reduced / size, 2)).astype(int)
            beyond[ends[0] : ends[2], ends[1] : ends[3]] = False
            shifts[i] = top - y, left - x
            rest = (top > 0, left > 0, *np.less((bottom, right), self.slide.pixels.shapes[self.level]))
            edges[i] = np.where(rest, ends, (-1, -1, *(reduced + 1)))
        return columns, pitch, sheet, shifts, edges, beyond

    def _window(self, k: int, half: int) -> tuple[int, int, int, int]:
        rows, columns = self.slide.pixels.shapes[self.level]
        y, x = (int(v) for v in np.rint(self.places[k] / self.down))
        return max(0, y - half), max(0, x - half), min(rows, y + half), min(columns, x + half)

    def _placed(
        self, about: dict[str, Any], factor: npt.NDArray[np.float64], shift: npt.NDArray[np.int64], own: Indices
    ) -> npt.NDArray[np.float64]:
        """Bring the columns of a reduced sheet to their place in level 0; return how far cells are from candidates."""
        for axis, size in enumerate(self.slide.shape):
            middle = (about[f"centroid-{axis}"] + 0.5) / factor[axis] + shift[:, axis]
            about[f"centroid-{axis}"] = (middle * self.down - 0.5).round(4)
            for name in (f"bbox-{axis}", f"bbox-{axis + 2}"):
                edge = np.rint((about[name] / factor[axis] + shift[:, axis]) * self.down)
                about[name] = edge.clip(0, size).astype(np.int64)
        pixel = self.down / factor
        for name in ("area", "nucleus_area"):
            about[name] = (about[name] * pixel.prod()).round(2)
            about[f"{name}_um2"] = (about[name] * self.look.mpp**2).round(3)
        low, high = (np.stack([about[f"bbox-{k}"] for k in some], axis=1) for some in ((0, 1), (2, 3)))
        about["at_border"] = np.hstack([low <= pixel, high >= self.slide.shape - pixel]).max(axis=1)
        centres = np.stack([about["centroid-0"], about["centroid-1"]], axis=1)
        apart = np.linalg.norm(self.places[own] - centres, axis=1)
        result: npt.NDArray[np.float64] = np.where(self.tree.query(centres)[1] == own, apart, apart + _OTHERS)
        return result

    def _curve(
        self, outline: Outline, factor: npt.NDArray[np.float64], shift: npt.NDArray[np.int64], corner: tuple[int, int]
    ) -> bytes:
        """An outline of a reduced sheet as `Sighting` keeps it."""
        ring = (((outline.vertices + 0.5) / factor + shift) * self.down).clip(0, self.slide.shape) - corner
        eighths: npt.NDArray[np.int16] = np.rint(np.concatenate([ring, ring[:1]])[:, ::-1] * _EIGHTHS).astype(np.int16)
        return eighths.tobytes()

    def crop(self, cell: Sighting) -> npt.NDArray[np.uint8]:
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


def _classify(classifier: Classifier, cells: Sequence[Sighting]) -> None:
    judged = classifier.judge(np.stack([cell.crop for cell in cells if cell.crop is not None]))
    for cell, row, unlikeness in zip(cells, *judged, strict=True):
        cell.probabilities, cell.unlikeness, cell.crop = row.tobytes(), float(unlikeness), None


def _rows(found: Sequence[Sighting]) -> npt.NDArray[Any]:
    return np.frombuffer(b"".join(cell.row for cell in found), found[0].columns)


def _centres(found: Sequence[Sighting]) -> npt.NDArray[np.float64]:
    if not found:
        return np.empty((0, 2))
    rows = _rows(found)
    return np.stack([rows["centroid-0"], rows["centroid-1"]], axis=1)


def _table(found: Sequence[Sighting], name: str, card: ModelCard | None, threshold: float) -> Cells:
    if not found:
        return Cells.empty(card.classes if card else ())
    table = pd.DataFrame(_rows(found))
    table["label"], table["slide"], table["probability"] = np.arange(1, len(found) + 1), name, np.nan
    table["class"] = table["class_model"] = ""
    cells = Cells(table)
    if card is None:
        return cells
    rows = np.frombuffer(b"".join(cell.probabilities for cell in found), np.float32).reshape(len(found), -1)
    unlikeness = np.array([cell.unlikeness for cell in found])
    return cells.with_predictions(rows, card.classes, threshold, unlikeness, card.unlike_above)
