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
from skimage.filters import threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import h_maxima
from skimage.segmentation import relabel_sequential, watershed

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
from .outline import Labels, Outline, Surroundings, grown, outlines, widths
from .scale import Float, Mask

__all__ = ["Appearance", "SegmentParameters", "Segmentation", "appearance", "segment"]


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
    """

    labels: Labels
    nuclei: Labels
    appearance: Appearance


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
    unit = max(look.mpp, parameters.working_mpp)
    nuclei = _nuclei(density, look, parameters, unit)
    nuclei, found = _cells(nuclei, density, look, parameters, unit)
    nuclei = _without_cytoplasm(nuclei, found, density, unit)
    labels, inner = _drawn(found, nuclei, rgb.shape[:2])
    return Segmentation(labels, inner, look)


def _nuclei(density: Float, look: Appearance, parameters: SegmentParameters, unit: float) -> Labels:
    """Nuclei, one number a cell, at working resolution (``unit`` µm per pixel)."""
    area = unit * unit
    dye = ndi.gaussian_filter(thiazine(density), 0.15 / unit)
    rough = ndi.binary_fill_holes(ndi.binary_opening(dye > look.nuclear, disc(0.5 / unit)))
    pieces, _ = ndi.label(rough, np.ones((3, 3)))
    refined = np.zeros(pieces.shape, dtype=np.int32)
    reach = int(np.ceil(1.5 / unit))
    for i, window in enumerate(ndi.find_objects(pieces), start=1):
        window = grown(window, reach, pieces.shape)
        piece = pieces[window] == i
        if piece.sum() * area < 2.0:
            continue
        near = ndi.binary_dilation(piece, iterations=reach) & ((pieces[window] == 0) | piece)
        refined[window][_half_way(dye[window], piece, near, 0.7 * look.nuclear)] = i
    refined = _split(_filled(refined, 2.0 / area), unit)
    joined = _joined(refined, density, look, 0.5 * parameters.max_lobe_gap / unit, unit)
    return _accepted(joined, density, look, 4.0 / area)


def _half_way(dye: Float, piece: Mask, near: Mask, least: float) -> Mask:
    """The nucleus within ``near``, cut half way between itself and what surrounds it.

    The threshold is iterated (Ridler and Calvard, IEEE Trans. SMC 8:630-632, 1978). Half way is
    meant between density and light: it is light that a lens blurs, but seen by a camera whose
    response is nearly logarithmic.
    """
    mask = piece
    for _ in range(4):
        inside = float(np.median(dye[mask]))
        around = near & ~ndi.binary_dilation(mask)
        outside = float(np.median(dye[around])) if around.any() else 0.0
        half = -2 * float(np.log10(0.5 * (10 ** (-inside / 2) + 10 ** (-outside / 2))))
        tighter = near & (dye > max(half, least))
        if not tighter.any() or np.array_equal(tighter, mask):
            break
        mask = tighter
    return mask


def _filled(pieces: Labels, largest: float) -> Labels:
    """Close holes of up to ``largest`` pixels: pale chromatin, not the gap in a ring."""
    holes, _ = ndi.label(pieces == 0)
    small = np.bincount(holes.ravel()) <= largest
    small[0] = False
    fill = small[holes]
    grown = ndi.grey_dilation(pieces, size=(3, 3))
    while (fill & (pieces == 0) & (grown > 0)).any():
        pieces = np.where(fill & (pieces == 0), grown, pieces)
        grown = ndi.grey_dilation(pieces, size=(3, 3))
    return pieces.astype(np.int32)


def _split(pieces: Labels, unit: float) -> Labels:
    """Part nuclei that run together at a neck, by watershed on the distance map.

    Lobes of one large nucleus may be parted too: `_cells` joins what shares a round body.
    """
    for region in regionprops(pieces):
        if region.area * unit * unit < _LARGEST_PAIR_UM2 / 2 or region.solidity > 0.92:
            continue
        depth = ndi.distance_transform_edt(np.pad(region.image, 1))[1:-1, 1:-1]
        peaks = h_maxima(depth, 0.35 * float(depth.max()))
        markers, n = ndi.label(peaks, np.ones((3, 3)))
        if n > 1:
            parts = watershed(-depth, markers, mask=region.image, watershed_line=True)
            pieces[region.slice][region.image & (parts == 0)] = 0
    return pieces


def _points(labels: Labels) -> list[npt.NDArray[np.int64]]:
    """Pixels (row, column) of each label from 1 on."""
    found = []
    for i, window in enumerate(ndi.find_objects(labels), start=1):
        corner = np.array([window[0].start, window[1].start])
        found.append(np.argwhere(labels[window] == i) + corner)
    return found


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
    gaps: dict[tuple[int, int], float] = {}
    for axis in (0, 1):
        a, b = np.moveaxis(zones, axis, 0)[:-1], np.moveaxis(zones, axis, 0)[1:]
        width = np.moveaxis(distance, axis, 0)[:-1] + np.moveaxis(distance, axis, 0)[1:]
        touching = (a != b) & (width < gap + 1) & np.moveaxis(within, axis, 0)[:-1]
        for i, j, d in zip(a[touching], b[touching], width[touching], strict=True):
            key = (min(i, j), max(i, j))
            gaps[key] = min(gaps.get(key, np.inf), float(d))
    owner = np.arange(n + 1)
    parts = dict(enumerate(_points(labels), start=1))
    for pair in sorted(gaps, key=gaps.__getitem__):
        i, j = int(owner[pair[0]]), int(owner[pair[1]])
        if i != j and _one_nucleus(parts[i] * unit, parts[j] * unit, unit * unit):
            owner[owner == j] = i
            parts[i] = np.concatenate([parts[i], parts.pop(j)])
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
    found = outlines(nuclei, density, around)
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
    seam = ndi.grey_closing(joined, size=(3, 3))
    low = ndi.minimum_filter(np.where(joined > 0, joined, joined.max() + 1), size=3)
    joined = np.where((joined == 0) & (low == ndi.maximum_filter(joined, size=3)), seam, joined)
    kept = [found[i - 1] for i in np.unique(joined) if i]
    merged = len(np.unique(owner)) < len(owner)
    joined = relabel_sequential(joined)[0].astype(np.int32)
    return joined, outlines(joined, density, around) if merged else kept


def _without_cytoplasm(nuclei: Labels, found: list[Outline], density: Float, unit: float) -> Labels:
    """Cut the nucleus anew where the cytoplasm is blue or full of granules.

    Such cytoplasm is bluer than the nuclear level, and the edge to the film is found instead of
    that to the nucleus. Within the cell Otsu's threshold parts the two, provided that they are
    two: the paler has a third to half of the dye, and most of the variance lies between them.
    """
    cells = np.zeros(nuclei.shape, dtype=np.int32)
    for i, outline in enumerate(found, start=1):
        outline.fill(cells, i, np.ones(2))
    cells = np.where(nuclei > 0, nuclei, cells)
    result = nuclei.copy()
    for i, window in enumerate(ndi.find_objects(cells), start=1):
        own = cells[window] == i
        dye = ndi.gaussian_filter(thiazine(density[window]), 0.15 / unit)
        inside = dye[own]
        if float(np.ptp(inside)) < 0.02:
            continue
        level = threshold_otsu(inside, nbins=64)
        high, low = inside[inside > level], inside[inside <= level]
        share = len(high) * len(low) / len(inside) ** 2
        apart = share * float(high.mean() - low.mean()) ** 2 / float(inside.var())
        pale = own & (dye <= level)
        if apart < 0.66 or not 0.34 < float(np.median(low)) / float(np.median(high)) < 0.55:
            continue
        result[window][pale & (nuclei[window] == i)] = 0
        pieces, _ = ndi.label(result[window] == i)
        crumbs = np.bincount(pieces.ravel()) * unit * unit < 2.0
        crumbs[0] = False
        result[window][crumbs[pieces]] = 0
    return _filled(result, 2.0 / (unit * unit))


def _neighbours(found: list[Outline], nuclei: Labels, gap: float) -> list[list[int]]:
    """Groups of cells whose outlines touch and whose nuclei are at most ``gap`` pixels apart."""
    n = len(found)
    near = np.zeros((n, n), dtype=bool)
    points = _points(nuclei)
    for i, j in combinations(range(n), 2):
        apart = float(np.linalg.norm(found[i].centre - found[j].centre))
        if apart > found[i].radii.max() + found[j].radii.max() + 4:
            continue
        if cdist(found[i].vertices, found[j].vertices).min() < 4:
            near[i, j] = cKDTree(points[i]).query(points[j], distance_upper_bound=gap)[0].min() < gap
    count, group = connected_components(near, directed=False)
    groups = [[int(i) + 1 for i in np.flatnonzero(group == k)] for k in range(count)]
    return [g for g in groups if len(g) > 1]


def _accepted(nuclei: Labels, density: Float, look: Appearance, smallest: float) -> Labels:
    """Drop what is smaller than ``smallest`` pixels, too pale, or of the hue of red cells;
    number the rest.
    """
    kept = np.zeros(nuclei.shape, dtype=np.int32)
    number = 0
    for region in regionprops(nuclei):
        own = nuclei[region.slice] == region.label
        inside = density[region.slice][own]
        # The upper quarter: the piece of an eosinophil may be mostly granules.
        dye = float(np.percentile(thiazine(inside), 75))
        hue = float(scale.hue(inside.mean(axis=0)))
        red = look.n_red_cells >= 3 and hue < float(scale.hue(np.asarray(look.red))) + 0.12
        if region.area < smallest or red or hue < _NEUTRAL_HUE or dye < 1.3 * look.nuclear:
            continue
        number += 1
        kept[region.slice][own] = number
    return kept


def _platelets(nuclei: Labels, density: Float, look: Appearance, parameters: SegmentParameters, unit: float) -> Mask:
    """Which labels (index) are too small or thin for a nucleus, or small and pale as platelets.

    A small nucleus is a ripe one and as dark as any; one that the border cuts may be larger.
    """
    smallest = parameters.min_nucleus_area
    result = np.zeros(int(nuclei.max()) + 1, dtype=bool)
    depth = ndi.distance_transform_edt(nuclei > 0) * unit
    for region in regionprops(nuclei):
        area = region.area * unit * unit
        top, left, bottom, right = region.bbox
        cut = top == 0 or left == 0 or bottom == nuclei.shape[0] or right == nuclei.shape[1]
        dye = thiazine(density[region.slice][nuclei[region.slice] == region.label])
        pale = not cut and area < 2 * smallest and float(np.median(dye)) < 0.65 * look.darkest
        # Stain that settled between the cells is pale all over, at any size.
        pale |= float(np.percentile(dye, 75)) < 0.45 * look.darkest
        # Dye that settled in threads and crumbs is nowhere as thick as a lobe.
        thin = depth[region.slice][nuclei[region.slice] == region.label].max() < _THINNEST_LOBE_UM / 2
        # Of a cell that the border cuts, half an ordinary nucleus must be seen: a sliver may
        # belong to anything.
        result[region.label] = area < (1.4 if cut else 1.0) * smallest or pale or thin
    return result


def _drawn(found: list[Outline], nuclei: Labels, shape: tuple[int, int]) -> tuple[Labels, Labels]:
    """Masks at full resolution: outlines are filled, nuclei resized as a soft map."""
    labels = np.zeros(shape, dtype=np.int32)
    scaling = np.array(shape) / nuclei.shape
    for i, outline in enumerate(found, start=1):
        outline.fill(labels, i, scaling)
    inside = scale.resample((nuclei > 0).astype(np.float32), shape) > 0.5
    return labels, np.where(inside, labels, 0).astype(np.int32)
