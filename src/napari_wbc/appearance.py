"""What is estimated once for a field or slide: background, stain levels and scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage as ndi

from . import scale
from .scale import Float, Mask

__all__ = [
    "Appearance",
    "SegmentParameters",
    "appearance",
    "appearance_and_density",
    "checked",
    "density_of",
    "disc",
    "reduced",
    "shrunk",
    "thiazine",
]

Source = Literal["given", "red cells", "white cells", "unknown"]

_TYPICAL_NUCLEUS_UM2 = 55.0
"""Area of an average white cell nucleus on a film, µm²: the ruler when no red cell is seen."""


_FEW_RED_CELLS = 6
"""So few red cells are doubted: their mean is taken with an ordinary nucleus."""

_LARGEST_NUCLEUS_UM2 = 220.0
"""No nucleus is larger, µm²: red cells that say so were none."""

_WINDOW = 400
"""Half the side of a window in which red cells are measured, pixels."""
_COARSE_PIXELS = 50_000
"""Size to which a field is reduced for finding background and scale."""


@dataclass(frozen=True)
class SegmentParameters:
    """How white cells are looked for. Lengths in µm, areas in µm².

    Attributes
    ----------
    mpp : µm per pixel; None measures it from the red cells.
    working_mpp : µm per pixel at which the image is analysed; finer images are reduced to it.
    min_nucleus_area : smallest nucleus of a cell, µm²; platelets are smaller.
    max_lobe_gap : widest gap between two lobes of one nucleus, µm.
    max_cytoplasm : widest cytoplasm around a nucleus, µm.
    sensitivity : 1 is neutral; above it paler nuclei are accepted, below it only darker ones.
    """

    mpp: float | None = None
    working_mpp: float = 0.25
    min_nucleus_area: float = 13.0
    max_lobe_gap: float = 5.0
    max_cytoplasm: float = 8.0
    sensitivity: float = 1.0

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0 < self.mpp <= 5:
            raise ValueError(
                f"mpp is {self.mpp}, but must be above 0 and at most 5 µm per pixel; "
                "give the scale of the image, or None to measure it from the red cells"
            )
        for name in ("working_mpp", "sensitivity"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be a number above 0")
        for name in ("min_nucleus_area", "max_lobe_gap", "max_cytoplasm"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be a number from 0 up")


_DEFAULT = SegmentParameters()


@dataclass(frozen=True)
class Appearance:
    """What is estimated once for a field or slide and holds for all its tiles.

    Attributes
    ----------
    background : RGB of the empty film, 0 to 255.
    foreground : optical density in green above which something lies on the glass.
    nuclear : thiazine density (`napari_wbc.appearance.thiazine`) above which a pixel may be nucleus;
        infinite when the field shows no nucleus.
    darkest : thiazine density of the darkest nuclei.
    red : optical density (R, G, B) of the red cells; zeros if there are none.
    mpp : µm per pixel; NaN if unknown.
    mpp_source : where mpp is from: ``given``, ``red cells``, ``white cells`` or ``unknown``.
    n_red_cells : number of red cells measured.
    """

    background: tuple[float, float, float]
    foreground: float
    nuclear: float
    darkest: float
    red: tuple[float, ...]
    mpp: float
    mpp_source: Source
    n_red_cells: int


def checked(rgb: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The array itself if it is an RGB image; ValueError if not."""
    shape: tuple[int, ...] = getattr(rgb, "shape", ())
    dtype = getattr(rgb, "dtype", type(rgb).__name__)
    if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8 or 0 in shape:
        raise ValueError(f"expected an RGB image of shape (H, W, 3) and dtype uint8 with a pixel, got {shape} {dtype}")
    return rgb


def thiazine(density: Float) -> Float:
    """Nuclear dye: azure bound to DNA absorbs red and green, haemoglobin green and blue."""
    result: Float = 0.5 * density[..., 0] + density[..., 1] - density[..., 2]
    return result


def reduced(rgb: npt.NDArray[np.uint8], factor: float) -> Float:
    """The image at ``factor`` times its size, float32, at least 1 x 1."""
    shape = (max(1, round(rgb.shape[0] * factor)), max(1, round(rgb.shape[1] * factor)))
    return scale.resample(rgb, shape)


def shrunk(rgb: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    """As `reduced`, rounded to uint8."""
    rows, columns = (max(1, round(side * factor)) for side in rgb.shape[:2])
    return np.asarray(Image.fromarray(rgb).resize((columns, rows), Image.Resampling.BILINEAR))


def disc(radius: float) -> Mask:
    """Footprint of a disc of that radius in pixels."""
    r = int(radius)
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    result: Mask = x * x + y * y <= radius * radius
    return result


def density_of(rgb: Float, start: npt.ArrayLike | None = None) -> tuple[Float, Float]:
    """Optical density and background (coefficients) of an image."""
    light = scale.background(rgb, start)
    return scale.optical_density(rgb, light), light


@dataclass(frozen=True)
class _Red:
    """Red cells of a field: how large (µm per pixel or NaN), how many, how stained."""

    mpp: float
    n: int
    density: tuple[float, ...]
    dye: float
    most_dye: float


_NO_RED = _Red(float("nan"), 0, (0.0, 0.0, 0.0), 0.0, 0.0)


def _red(density: Float, factor: float, mpp: float | None, above: float = 0.0) -> _Red:
    """Measure the red cells in an image reduced by ``factor``."""
    found = scale.red_cells(density, mpp and scale.RED_CELL_UM / mpp * factor, above)
    if found.n == 0:
        return _NO_RED
    dye = ndi.gaussian_filter(thiazine(density), 0.7)
    usual, most = np.percentile(dye[found.mask], [50, 90])
    inside = density[found.mask & (density[..., 1] > 0.04)]
    colour = tuple(float(v) for v in np.median(inside, axis=0)) if len(inside) else _NO_RED.density
    return _Red(scale.RED_CELL_UM / found.diameter * factor, found.n, colour, float(usual), float(most))


def _nuclear_level(
    density: Float, foreground: float, red: _Red, plateau: float, sensitivity: float
) -> tuple[float, float]:
    """Thiazine density that separates nuclei from the rest, infinite if there is no nucleus,
    and that of the darkest nuclei.

    ``plateau`` is the radius in pixels of the smallest lobe.
    """
    dye = ndi.gaussian_filter(thiazine(density), 0.7)
    if min(dye.shape) <= 2 * plateau:
        return float("inf"), 0.0
    # A grey opening leaves the highest density that a whole lobe reaches, not specks of dirt.
    opened = np.sort(ndi.grey_opening(dye, size=(2 * int(0.9 * plateau) + 1,) * 2).ravel())
    high = float(opened[-min(int(4 * np.pi * plateau**2) + 1, len(opened))])
    if red.n:
        low = max(red.dye, 0.03)
    else:
        stained = dye[(density[..., 1] > foreground) & (dye < high / 2)]
        low = max(float(np.median(stained)), 0.03) if len(stained) else 0.03
    if high < max(0.1, 1.8 * low, 1.4 * red.most_dye):
        return float("inf"), high
    return max(float(np.sqrt(low * high)), 1.1 * red.most_dye) / sensitivity, high


def _largest_nucleus(density: Float, foreground: float, red: _Red, sensitivity: float) -> tuple[float, float]:
    """Area of the largest nucleus in pixels, without a scale: of lobes near each other, and of
    lobes in one body. Zeros if there is no nucleus.
    """
    level, _ = _nuclear_level(density, foreground, red, 2.0, sensitivity)
    if not np.isfinite(level):
        return 0.0, 0.0
    nuclear = ndi.binary_opening(ndi.gaussian_filter(thiazine(density), 1.0) > level, disc(1.5))
    nuclear &= scale.hue(ndi.uniform_filter(density, (5, 5, 1))) > scale.RED_HUE
    if not nuclear.any():
        return 0.0, 0.0
    bodies, n = ndi.label(density[..., 1] > foreground)
    dense = np.bincount(bodies.ravel()) < 8 * np.bincount(bodies[nuclear], minlength=n + 1)
    reach = max(1, int(0.02 * min(nuclear.shape)))
    near = ndi.binary_dilation(nuclear, iterations=reach)
    groups = (ndi.label(near)[0], ndi.label(near | (dense[bodies] & (bodies > 0)))[0])
    by_gap, by_body = (float(np.bincount(labels[nuclear])[1:].max()) for labels in groups)
    return by_gap, by_body


def _scale(density: Float, foreground: float, factor: float, sensitivity: float) -> tuple[float, Source, _Red]:
    """µm per pixel of the full image and what says so, from an image reduced by ``factor``."""
    near, area = (v / factor**2 for v in _largest_nucleus(density, foreground, _NO_RED, sensitivity))
    above = 0.0
    for _ in range(2):
        red = _red(density, factor, None, above)
        nucleus = near * red.mpp**2
        fits = red.n >= 30 or (red.n >= 3 and _fits(density, foreground, red.mpp / factor))
        # A body may hold the nuclei of two touching cells, lobes side by side are one nucleus.
        if fits and nucleus < _LARGEST_NUCLEUS_UM2 and area * red.mpp**2 < 1.5 * _LARGEST_NUCLEUS_UM2:
            return _with_nucleus(red, near), "red cells", red
        # One or two red cells count if the largest nucleus has an ordinary size by them.
        if 25 < area * red.mpp**2 < 140 and _largest_nucleus(density, foreground, red, sensitivity)[0]:
            return red.mpp, "red cells", red
        if not red.n:
            break
        # Small round things outnumber the red cells: look for larger ones.
        above = 1.4 * scale.RED_CELL_UM / red.mpp * factor
    if area:
        return float(np.sqrt(_TYPICAL_NUCLEUS_UM2 / area)), "white cells", _NO_RED
    return float("nan"), "unknown", _NO_RED


def _with_nucleus(red: _Red, nucleus: float) -> float:
    """µm per pixel by the red cells; by less than six, their mean with an ordinary nucleus that counts as one."""
    if red.n >= _FEW_RED_CELLS or not 25 < nucleus * red.mpp**2 < 140:
        return red.mpp
    by_nucleus = np.sqrt(_TYPICAL_NUCLEUS_UM2 / nucleus)
    return float(np.exp((red.n * np.log(red.mpp) + np.log(by_nucleus)) / (red.n + 1)))


def _closer(rgb: npt.NDArray[np.uint8], foreground: float, sensitivity: float) -> tuple[float, Source, _Red] | None:
    """Scale of a large picture from nine windows of it: the median of their red cells, None without any."""
    views = []
    for h in np.array_split(np.arange(rgb.shape[0]), 3):
        for w in np.array_split(np.arange(rgb.shape[1]), 3):
            rows, columns = (slice(max(0, len(v) // 2 - _WINDOW) + v[0], len(v) // 2 + _WINDOW + v[0]) for v in (h, w))
            window = rgb[rows, columns]
            factor = min(1.0, float(np.sqrt(_COARSE_PIXELS / window[..., 0].size)))
            view = _scale(density_of(reduced(window, factor))[0], foreground, factor, sensitivity)
            if view[1] == "red cells":
                views.append(view)
    if not views:
        return None
    views.sort(key=lambda view: view[0])
    total = np.cumsum([view[2].n for view in views])
    mpp, source, red = views[int(np.searchsorted(total, total[-1] / 2))]
    return mpp, source, replace(red, n=int(total[-1]))


def _fits(density: Float, foreground: float, unit: float) -> bool:
    """Whether what lies on the glass is not much thicker than a cell may be."""
    return bool(ndi.distance_transform_edt(density[..., 1] > foreground).max() * unit < 20)


def _is_picture(dye: Float) -> bool:
    """Whether neighbouring pixels agree: what is seen is no mere noise."""
    dye = dye - dye.mean()
    across = float((dye[:, 1:] * dye[:, :-1]).sum() + (dye[1:] * dye[:-1]).sum())
    return min(dye.shape) > 2 and across > 1.2 * float((dye * dye).sum())


def _reddest(density: Float, level: float, foreground: float, unit: float) -> tuple[float, ...]:
    """Colour of what is red far from nuclei, where no red cell can be measured; else zeros."""
    nuclear = ndi.binary_opening(thiazine(density) > level, disc(0.5 / unit))
    stained = density[..., 1] > foreground
    bodies, n = ndi.label(stained)
    apart = np.bincount(bodies[nuclear], minlength=n + 1) == 0
    far = stained & apart[bodies] & (scale.hue(density) < scale.RED_HUE)
    if nuclear.any():
        far &= ndi.distance_transform_edt(~nuclear) * unit > 3
    if far.sum() * unit * unit < 20:
        return _NO_RED.density
    return tuple(float(v) for v in np.median(density[far], axis=0))


def appearance(rgb: npt.NDArray[np.uint8], parameters: SegmentParameters = _DEFAULT) -> Appearance:
    """Estimate background, thresholds and scale of a field.

    Parameters
    ----------
    rgb : uint8 array of shape (H, W, 3)
    parameters : see `SegmentParameters`

    Returns
    -------
    background, levels and scale of the field.

    Raises
    ------
    ValueError
        If ``rgb`` is not a (H, W, 3) uint8 array with at least one pixel.
    """
    return appearance_and_density(checked(rgb), parameters)[0]


def appearance_and_density(rgb: npt.NDArray[np.uint8], parameters: SegmentParameters) -> tuple[Appearance, Float]:
    """Appearance, and the optical density at working resolution."""
    factor = min(1.0, float(np.sqrt(_COARSE_PIXELS / rgb[..., 0].size)))
    density, light = density_of(reduced(rgb, factor))
    foreground = scale.foreground_level(ndi.gaussian_filter(density[..., 1], 0.7))
    if parameters.mpp is None:
        mpp, source, red = _scale(density, foreground, factor, parameters.sensitivity)
        # In a large picture small cells vanish at this resolution, and clumps look like cells.
        if rgb[..., 0].size > 20 * _COARSE_PIXELS:
            mpp, source, red = _closer(rgb, foreground, parameters.sensitivity) or (mpp, source, red)
    else:
        mpp, source, red = parameters.mpp, "given", _red(density, factor, parameters.mpp)
    level, darkest, colour = float("inf"), 0.0, red.density
    if not _is_picture(thiazine(density)):
        mpp, source, red = (mpp, "given", _NO_RED) if parameters.mpp else (float("nan"), "unknown", _NO_RED)
    elif np.isfinite(mpp):
        factor = min(mpp / parameters.working_mpp, 1.0)
        small = reduced(rgb, factor)
        density = scale.optical_density(small, light)
        level, darkest = _nuclear_level(density, foreground, red, factor / mpp, parameters.sensitivity)
        if not red.n:
            colour = _reddest(density, level, foreground, mpp / factor)
    r, g, b = (float(v) - 1 for v in np.median(scale.light(light, (16, 16)), axis=(0, 1)))
    return Appearance((r, g, b), foreground, level, darkest, colour, mpp, source, red.n), density
