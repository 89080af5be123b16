"""White blood cells and their nuclei in an RGB field of a stained blood film.

The chain: background, optical density and scale of the field (`appearance`), nuclei by their
thiazine dye, lobes joined to cells, cytoplasm around them (`outline`). No learning, no scale
needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import ndimage as ndi
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from . import scale
from .appearance import (
    Appearance,
    SegmentParameters,
    appearance,
    appearance_and_density,
    checked,
    density_of,
    disc,
    reduced,
    thiazine,
)
from .outline import Labels, Outline, Outliner, Surroundings, filled, widths
from .regions import Regions, otsu, quantile, ranked_quantile, side_by_side
from .scale import Float, Mask

__all__ = ["Appearance", "SegmentParameters", "Segmentation", "appearance", "outlined", "segment"]


_DEFAULT = SegmentParameters()
_NEUTRAL_HUE = 0.35
"""Dirt and pointers are grey: below this `scale.hue` nothing is a nucleus."""

_LARGEST_PAIR_UM2 = 150.0
"""Lobes of one nucleus are together no larger, µm²."""

_THINNEST_LOBE_UM = 2.4
"""The widest lobe of a nucleus is never narrower, µm."""


@dataclass(frozen=True)
class Segmentation:
    """Labels of white cells.

    Attributes
    ----------
    labels : int32 array of shape (H, W), 0 background, 1 to n the cells with their cytoplasm.
    nuclei : int32 array of shape (H, W), the nuclei under the same numbers.
    appearance : what was estimated from the field or given.
    outlines : the curves that were filled, in pixels of the working resolution, in the order of the numbers.
    """

    labels: Labels
    nuclei: Labels
    appearance: Appearance
    outlines: tuple[Outline, ...] = ()


def segment(
    rgb: npt.NDArray[np.uint8],
    parameters: SegmentParameters = _DEFAULT,
    appearance: Appearance | None = None,
) -> Segmentation:
    """Find the white cells of a field.

    Parameters
    ----------
    rgb : uint8 array of shape (H, W, 3)
    parameters : see `SegmentParameters`
    appearance : of the field or slide; estimated from ``rgb`` if None

    Returns
    -------
    the cells and their nuclei; none where the scale is unknown or the field shows no nucleus.

    Raises
    ------
    ValueError
        If ``rgb`` is not a (H, W, 3) uint8 array with at least one pixel.
    """
    rgb = checked(rgb)
    if appearance is None:
        look, density = appearance_and_density(rgb, parameters)
        known = np.isfinite(look.mpp) and np.isfinite(look.nuclear)
    else:
        look = appearance
        known = np.isfinite(look.mpp) and np.isfinite(look.nuclear)
        if known:
            density, _ = density_of(reduced(rgb, min(look.mpp / parameters.working_mpp, 1.0)), look.background)
    if not known:
        empty = np.zeros(rgb.shape[:2], dtype=np.int32)
        return Segmentation(empty, empty.copy(), look)
    return outlined(density, look, parameters, rgb.shape[:2])


def outlined(density: Float, look: Appearance, parameters: SegmentParameters, shape: tuple[int, int]) -> Segmentation:
    """Find the white cells in what is known of a picture.

    Parameters
    ----------
    density : float32 array of shape (h, w, 3), optical density at working resolution
    look : with a scale, that of the picture, and a nuclear level
    parameters : see `SegmentParameters`
    shape : rows and columns of the picture
    """
    unit = max(look.mpp, parameters.working_mpp)
    nuclei = _nuclei(density, look, parameters, unit)
    nuclei, found = _cells(nuclei, density, look, parameters, unit)
    nuclei, cells = _without_cytoplasm(nuclei, found, density, unit)
    labels, inner = _drawn(found, nuclei, cells, shape)
    return Segmentation(labels, inner, look, tuple(found))


def _nuclei(density: Float, look: Appearance, parameters: SegmentParameters, unit: float) -> Labels:
    """Nuclei, one number a cell, at working resolution (``unit`` µm per pixel)."""
    area = unit * unit
    dye = ndi.gaussian_filter(thiazine(density), 0.15 / unit)
    rough = _without_holes(ndi.binary_opening(dye > look.nuclear, disc(0.5 / unit)))
    pieces, _ = ndi.label(rough, np.ones((3, 3)))
    refined = _half_way(dye, pieces, 0.7 * look.nuclear, unit)
    refined = _split(_filled(refined, 2.0 / area), unit)
    joined = _joined(refined, density, look, 0.5 * parameters.max_lobe_gap / unit, unit)
    return _accepted(joined, density, look, 4.0 / area)


def _without_holes(mask: Mask) -> Mask:
    """What `scipy.ndimage.binary_fill_holes` returns, in a quarter of its time."""
    ground, n = ndi.label(~mask)
    outside = np.zeros(n + 1, bool)
    for side in (ground[0], ground[-1], ground[:, 0], ground[:, -1]):
        outside[side] = True
    result: Mask = mask | ~outside[ground]
    return result


def _half_way(dye: Float, pieces: Labels, least: float, unit: float) -> Labels:
    """Each piece of at least 2 µm², cut half way between itself and what surrounds it.

    The threshold is iterated (Ridler and Calvard, IEEE Trans. SMC 8:630-632, 1978). Half way is
    meant between density and light: it is light that a lens blurs, but seen by a camera whose
    response is nearly logarithmic.
    """
    regions = Regions(pieces)
    numbers = np.flatnonzero(regions.count * unit * unit >= 2.0)
    numbers = numbers[numbers > 0]
    reach = int(np.ceil(1.5 / unit))
    boxes = regions.boxes[numbers] + np.array([-reach, -reach, reach, reach])
    boxes = boxes.clip(0, np.tile(pieces.shape, 2))
    result = np.zeros(pieces.size, dtype=np.int32)
    for which, left, shape in side_by_side(boxes, reach):
        mask, free = np.zeros(shape, bool), np.zeros(shape, bool)
        level, place = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
        owner = np.zeros(shape[1], np.int64)
        for k, (first, x) in enumerate(zip(boxes[which], left, strict=True)):
            window = slice(first[0], first[2]), slice(first[1], first[3])
            there = slice(0, first[2] - first[0]), slice(x, x + first[3] - first[1])
            own = pieces[window]
            mask[there] = own == numbers[which[k]]
            free[there] = (own == 0) | mask[there]
            level[there] = dye[window]
            place[there] = np.arange(first[0], first[2])[:, None] * pieces.shape[1] + np.arange(first[1], first[3])
            owner[there[1]] = k
        near = ndi.binary_dilation(mask, iterations=reach) & free
        mask = _tightened(level, mask, near, owner, least)
        number = np.where(mask, numbers[which][owner], 0)
        order = np.argsort(number[mask], kind="stable")  # of two that want a pixel the later has it
        taken, number = place[mask][order], number[mask][order]
        result[taken] = np.maximum(result[taken], number)
    return result.reshape(pieces.shape)


def _tightened(dye: Float, mask: Mask, near: Mask, owner: npt.NDArray[np.int64], least: float) -> Mask:
    """The pieces of a sheet, of which each has its columns (``owner``), within ``near``."""
    n = int(owner.max()) + 1
    of = np.broadcast_to(owner, mask.shape)[near]
    values = dye[near]
    order = np.argsort(values)
    order = order[np.argsort(of[order].astype(np.uint16), kind="stable")]
    of, values = of[order], values[order]
    place = np.flatnonzero(near)[order]
    own = mask.ravel()[place]
    for _ in range(4):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        around = ~grown.ravel()[place]
        inside, outside = (ranked_quantile(values[few], np.bincount(of[few], minlength=n)) for few in (own, around))
        outside = np.where(np.isfinite(outside), outside, 0)
        light = (np.power(10, -one.astype(np.float64) / 2) for one in (inside, outside))
        half = np.maximum(-2 * np.log10(0.5 * sum(light)), least).astype(np.float32)
        tighter = values > half[of]
        tighter |= own & (np.bincount(of, tighter, n) == 0)[of]
        if np.array_equal(tighter, own):
            break
        own = tighter
        mask.ravel()[place] = own
    return mask


def _filled(pieces: Labels, largest: float) -> Labels:
    """Close holes of up to ``largest`` pixels: pale chromatin, not the gap in a ring."""
    holes, _ = ndi.label(pieces == 0)
    small = np.bincount(holes.ravel()) <= largest
    small[0] = False
    fill = small[holes]
    while fill.any():
        grown = ndi.grey_dilation(pieces, size=(3, 3))
        reached = fill & (grown > 0)
        if not reached.any():
            break
        pieces = np.where(reached, grown, pieces)
        fill &= ~reached
    return pieces.astype(np.int32)


def _split(pieces: Labels, unit: float) -> Labels:
    """Part nuclei that run together at a neck, by watershed on the distance map.

    Lobes of one large nucleus may be parted too: `_cells` joins what shares a round body.
    """
    area = np.bincount(pieces.ravel())
    large = area * unit * unit >= _LARGEST_PAIR_UM2 / 2
    large[0] = False
    if not large.any():
        return pieces
    regions = Regions(np.where(large[pieces], pieces, 0))
    with np.errstate(invalid="ignore"):
        dented = np.flatnonzero(regions.solidity <= 0.92)
    for which, left, (height, width) in side_by_side(regions.boxes[dented], 1):
        at = [regions.points[k] - regions.boxes[k, :2] + (1, x + 1) for k, x in zip(dented[which], left, strict=True)]
        rows, columns = np.concatenate(at).T
        own = np.zeros((height + 2, width + 1), bool)
        own[rows, columns] = True
        depth = ndi.distance_transform_edt(own)
        size = np.array([len(one) for one in at])
        first = np.cumsum(size) - size
        depth[rows, columns] /= np.repeat(np.maximum.reduceat(depth[rows, columns], first), size)
        markers, n = ndi.label(h_maxima(depth, 0.35), np.ones((3, 3)))
        found = markers[rows, columns]
        several = np.maximum.reduceat(found, first) > np.minimum.reduceat(np.where(found, found, n + 1), first)
        if several.any():
            of = np.repeat(several, size)
            own[rows[~of], columns[~of]] = False
            parts = watershed(-depth, markers, mask=own, watershed_line=True)
            row, column = np.concatenate([regions.points[k] for k in dented[which]])[of].T
            seam = parts[rows[of], columns[of]] == 0
            pieces[row[seam], column[seam]] = 0
    return pieces


def _joined(pieces: Labels, density: Float, look: Appearance, gap: float, unit: float) -> Labels:
    """Give the lobes of one nucleus one number. ``gap`` and ``unit`` as in `_nuclei`."""
    mask = pieces > 0
    labels, n = ndi.label(mask)
    if n < 2:
        return np.asarray(labels, dtype=np.int32)
    distance, nearest = ndi.distance_transform_edt(~mask, return_indices=True)
    zones = labels[tuple(nearest)]
    # Lobes are joined by cytoplasm: film or red cells between nuclei keep them apart.
    green = ndi.gaussian_filter(density[..., 1], 0.3 / unit)
    within = green > 0.5 * look.foreground
    pairs, gaps = [], []
    for axis in (0, 1):
        a, b = np.moveaxis(zones, axis, 0)[:-1], np.moveaxis(zones, axis, 0)[1:]
        width = np.moveaxis(distance, axis, 0)[:-1] + np.moveaxis(distance, axis, 0)[1:]
        touching = (a != b) & (width < gap + 1) & np.moveaxis(within, axis, 0)[:-1]
        i, j = a[touching].astype(np.int64), b[touching].astype(np.int64)
        pairs.append(np.minimum(i, j) * (n + 1) + np.maximum(i, j))
        gaps.append(width[touching])
    pair, gap_of = np.concatenate(pairs), np.concatenate(gaps)
    owner = np.arange(n + 1)
    if not len(pair):
        return np.asarray(labels, dtype=np.int32)
    parts = Regions(labels).points
    pairs_met, first, of = np.unique(pair, return_index=True, return_inverse=True)
    narrowest = np.full(len(first), np.inf)
    np.minimum.at(narrowest, of, gap_of)
    for one, two in (divmod(int(p), n + 1) for p in pairs_met[np.lexsort((first, narrowest))]):
        i, j = int(owner[one]), int(owner[two])
        if i != j and _one_nucleus(parts[i] * unit, parts[j] * unit, unit * unit):
            owner[owner == j] = i
            parts[i] = np.concatenate([parts[i], parts[j]])
    return np.asarray(owner[labels], dtype=np.int32)


def _one_nucleus(first: Float, second: Float, pixel: float) -> bool:
    """Whether two pieces (points in µm) are surely lobes of one nucleus: one is small, or both
    fit in one. ``pixel`` is the area of a point, µm².
    """
    length = widths(np.concatenate([first, second])).max()
    return bool(length < 9 or (length < 14 and min(len(first), len(second)) * pixel < 20))


def _cells(
    nuclei: Labels, density: Float, look: Appearance, parameters: SegmentParameters, unit: float
) -> tuple[Labels, list[Outline]]:
    """Join nuclei that share one roundish body, then outline each cell."""
    around = Surroundings(look.foreground, look.red, parameters.max_cytoplasm, unit)
    draw = Outliner(density, around)
    found = list(draw(nuclei).values())
    owner = np.arange(len(found) + 1)
    areas = np.bincount(nuclei.ravel(), minlength=len(owner)) * unit * unit
    # A scale guessed from a single lobe is too coarse.
    slack = 1.5 if look.mpp_source == "white cells" else 1.0
    for group in _neighbours(found, nuclei, slack * parameters.max_lobe_gap / unit):
        for members in [group] if len(group) == 2 else [group, *combinations(group, 2)]:
            together = sorted({int(owner[i]) for i in members})
            everyone = [i for i in range(1, len(owner)) if owner[i] in together]
            width = widths(np.concatenate([found[i - 1].vertices for i in everyone])) * unit
            # Two cells side by side are about twice as long as wide, whatever the scale; one
            # that the border cuts may be so too, but is shorter than a whole one.
            limits = [(24, 1.5)]
            if areas[everyone].sum() > _LARGEST_PAIR_UM2:
                limits = [(22, 1.4)]
            elif any(found[i - 1].crosses(nuclei.shape) for i in everyone):
                limits.append((21, 2.2))
            round_one = any(width.max() < min(a * slack, b * width.min()) for a, b in limits)
            if len(together) > 1 and round_one:
                owner[everyone] = together[0]
    joined = owner[nuclei].astype(np.int32)
    joined[_platelets(joined, density, look, parameters, unit)[joined]] = 0
    # The seam where a nucleus was parted and joined again.
    high = ndi.maximum_filter(joined, size=3)
    seam = ndi.minimum_filter(high, size=3)
    low = ndi.minimum_filter(np.where(joined > 0, joined, joined.max() + 1), size=3)
    joined = np.where((joined == 0) & (low == high), seam, joined)
    drawn = dict(enumerate(found, start=1)) | draw(joined, np.bincount(owner) > 1)
    numbers = np.unique(joined)
    place = np.zeros(len(owner), np.int32)
    place[numbers] = np.arange(len(numbers))
    return place[joined], [drawn[i] for i in numbers if i]


def _without_cytoplasm(nuclei: Labels, found: list[Outline], density: Float, unit: float) -> tuple[Labels, Labels]:
    """Cut the nucleus anew where the cytoplasm is blue or full of granules. Nuclei, and the cells that were filled.

    Such cytoplasm is bluer than the nuclear level, and the edge to the film is found instead of
    that to the nucleus. Within the cell Otsu's threshold parts the two, provided that they are
    two: the paler has a third to half of the dye, and most of the variance lies between them.
    """
    cells = np.zeros(nuclei.shape, dtype=np.int32)
    filled(cells, found, np.ones(2))
    regions = Regions(np.where(nuclei > 0, nuclei, cells))
    if regions.n < 2:
        return nuclei, cells
    of, n = regions.of, regions.n
    dye = _blurred(thiazine(density), regions, 0.15 / unit)
    level = otsu(dye, of, n, 64)
    low = dye <= level[of]
    share = regions.sum(low) / np.maximum(regions.count, 1)
    half = [np.bincount(of[few], dye[few], n) / np.maximum(np.bincount(of[few], minlength=n), 1) for few in (~low, low)]
    variance = np.maximum(regions.mean((dye - regions.mean(dye)[of]) ** 2), 1e-12)
    apart = share * (1 - share) * (half[0] - half[1]) ** 2 / variance
    with np.errstate(divide="ignore", invalid="ignore"):
        pale = quantile(dye[low], of[low], n) / quantile(dye[~low], of[~low], n)
    two = (np.ptp(np.stack([quantile(dye, of, n, q) for q in (0.0, 1.0)]), axis=0) >= 0.02) & (apart >= 0.66)
    two &= (pale > 0.34) & (pale < 0.55)
    if not two.any():
        return _filled(nuclei.copy(), 2.0 / (unit * unit)), cells
    result = nuclei.copy()
    blue = regions.at[low & two[of]]
    result.ravel()[blue] = 0
    for i in np.flatnonzero(two):
        top, left, bottom, right = regions.boxes[i]
        window = result[top:bottom, left:right]
        pieces, _ = ndi.label(window == i)
        crumbs = np.bincount(pieces.ravel()) * unit * unit < 2.0
        crumbs[0] = False
        window[crumbs[pieces]] = 0
    return _filled(result, 2.0 / (unit * unit)), cells


def _blurred(image: Float, regions: Regions, sigma: float) -> Float:
    """Values of the pixels of regions, each blurred within its own box."""
    reach = int(4.0 * sigma + 0.5)
    found = np.zeros(len(regions.at), np.float32)
    numbers = np.flatnonzero(regions.count)
    boxes = regions.boxes[numbers]
    first = np.cumsum(regions.count) - regions.count
    for which, left, (height, width) in side_by_side(boxes, 2 * reach):
        sheet = np.zeros((height + 2 * reach, width), np.float32)
        for (top, start, bottom, end), x in zip(boxes[which], left, strict=True):
            part = np.pad(image[top:bottom, start:end], reach, mode="symmetric")
            sheet[: part.shape[0], x : x + part.shape[1]] = part
        sheet = ndi.gaussian_filter(sheet, sigma)
        for k, x in zip(which, left, strict=True):
            number = numbers[k]
            own = slice(first[number], first[number] + regions.count[number])
            found[own] = sheet[regions.rows[own] - boxes[k, 0] + reach, regions.columns[own] - boxes[k, 1] + reach + x]
    return found


def _neighbours(found: list[Outline], nuclei: Labels, gap: float) -> list[list[int]]:
    """Groups of cells whose outlines touch and whose nuclei are at most ``gap`` pixels apart."""
    n = len(found)
    near = np.zeros((n, n), dtype=bool)
    if n < 2:
        return []
    centre, most = np.array([one.centre for one in found]), np.array([one.radii.max() for one in found])
    close = cKDTree(centre).query_pairs(2 * most.max() + 4, output_type="ndarray")
    i, j = close.T
    close = close[np.linalg.norm(centre[i] - centre[j], axis=1) <= most[i] + most[j] + 4]
    points = Regions(nuclei).points[1:] if len(close) else []
    for i, j in close:
        if cdist(found[i].vertices, found[j].vertices).min() < 4:
            near[i, j] = cKDTree(points[i]).query(points[j], distance_upper_bound=gap)[0].min() < gap
    count, group = connected_components(near, directed=False)
    groups = [[int(i) + 1 for i in np.flatnonzero(group == k)] for k in range(count)]
    return [g for g in groups if len(g) > 1]


def _accepted(nuclei: Labels, density: Float, look: Appearance, smallest: float) -> Labels:
    """Drop what is smaller than ``smallest`` pixels, too pale, or of the hue of red cells;
    number the rest.
    """
    regions = Regions(nuclei)
    inside = regions.pixels(density)
    # The upper quarter: the piece of an eosinophil may be mostly granules.
    dye = regions.quantile(thiazine(inside), 0.75).astype(np.float64)
    hue = scale.hue(np.stack([regions.mean(inside[:, k]) for k in range(3)], axis=-1)).astype(np.float64)
    kept = (regions.count >= max(smallest, 1)) & (hue >= _NEUTRAL_HUE)
    kept &= np.nan_to_num(dye) >= 1.3 * look.nuclear
    if look.n_red_cells >= 3:
        kept &= hue >= float(scale.hue(np.asarray(look.red))) + 0.12
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[nuclei]


def _platelets(nuclei: Labels, density: Float, look: Appearance, parameters: SegmentParameters, unit: float) -> Mask:
    """Which labels (index) are too small or thin for a nucleus, or small and pale as platelets.

    A small nucleus is a ripe one and as dark as any; one that the border cuts may be larger.
    """
    smallest = parameters.min_nucleus_area
    regions = Regions(nuclei)
    area = regions.count * unit * unit
    ends = np.array(nuclei.shape)
    cut = (regions.boxes[:, :2] == 0).any(axis=1) | (regions.boxes[:, 2:] == ends).any(axis=1)
    dye = thiazine(regions.pixels(density))
    median, upper = (np.nan_to_num(regions.quantile(dye, q).astype(np.float64)) for q in (0.5, 0.75))
    pale = ~cut & (area < 2 * smallest) & (median < 0.65 * look.darkest)
    # Stain that settled between the cells is pale all over, at any size.
    pale |= upper < 0.45 * look.darkest
    # Dye that settled in threads and crumbs is nowhere as thick as a lobe.
    reach = int(_THINNEST_LOBE_UM / 2 / unit)
    across = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) * unit < _THINNEST_LOBE_UM / 2
    thin = regions.sum(regions.pixels(ndi.binary_erosion(nuclei > 0, across, border_value=1))) == 0
    # Of a cell that the border cuts, half an ordinary nucleus must be seen: a sliver may
    # belong to anything.
    result: Mask = (area < np.where(cut, 1.4, 1.0) * smallest) | pale | thin
    result &= regions.count > 0
    return result


def _drawn(found: list[Outline], nuclei: Labels, cells: Labels, shape: tuple[int, int]) -> tuple[Labels, Labels]:
    """Masks at full resolution: outlines are filled, nuclei resized as a soft map."""
    if nuclei.shape == shape:
        return cells, np.where(nuclei > 0, cells, 0)
    labels = np.zeros(shape, dtype=np.int32)
    filled(labels, found, np.array(shape) / nuclei.shape)
    inside = scale.resample((nuclei > 0).astype(np.float32), shape) > 0.5
    return labels, np.where(inside, labels, 0).astype(np.int32)
