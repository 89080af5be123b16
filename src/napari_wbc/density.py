"""How many cells lie where on a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .cells import Cells

if TYPE_CHECKING:
    from PIL import Image

SQUARE_UM = 250.0


def density(
    cells: Cells, shape: tuple[int, int], mpp: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Count cells in rectangles of about 250 by 250 µm, a whole number of which covers the slide.

    Parameters
    ----------
    cells : Cells
    shape : (int, int)
        Rows and columns of the slide.
    mpp : float
        µm per pixel; where it is NaN the longer side has 50 squares, and nothing can be said per mm².

    Returns
    -------
    (rows, columns) float32 array
        Cells per mm² of each rectangle; NaN without a scale.
    (2,) float64 array
        Height and width of a rectangle, pixels.
    """
    side = SQUARE_UM / mpp if np.isfinite(mpp) else max(shape) / 50
    edges = [np.linspace(0, n, max(1, round(n / side)) + 1) for n in shape]
    counts = np.histogram2d(cells.table["centroid-0"], cells.table["centroid-1"], bins=edges)[0]
    steps = np.array([edge[1] for edge in edges])
    return np.asarray(counts / (steps * mpp / 1000).prod(), np.float32), steps


def density_map(image: npt.NDArray[np.uint8], per_mm2: npt.NDArray[np.float32]) -> Image.Image:
    """Lay the density of cells over the thumbnail of a slide.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        The thumbnail.
    per_mm2 : (rows, columns) float32 array
        As `density` gives it.
    """
    import matplotlib as mpl
    from PIL import Image, ImageDraw

    from .picture import typeface

    highest = float(np.nan_to_num(per_mm2).max(initial=0))
    share = np.nan_to_num(per_mm2) / max(highest, 1e-9)
    rows, columns = (np.arange(n) * m // n for n, m in zip(image.shape[:2], per_mm2.shape, strict=True))
    paint = mpl.colormaps["magma"](share[rows][:, columns])[..., :3] * 255
    weight = np.where(share[rows][:, columns] > 0, 0.6, 0.0)[..., None]
    picture = Image.fromarray(((1 - weight) * image + weight * paint).astype(np.uint8))
    font = typeface(max(12.0, picture.height / 40), bold=True)
    text = f"brightest: {highest:.0f} cells per mm²; a square is about {SQUARE_UM:g} µm"
    ImageDraw.Draw(picture).text((8, 8), text, fill="#1c2430", font=font, stroke_width=2, stroke_fill="#ffffff")
    return picture
