"""Square crops around cells, all at one physical scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class CropSize:
    """What every crop shows.

    Parameters
    ----------
    side_um : float
        Side of the square, µm.
    pixels : int
        Side of the square, pixels.
    cells : float
        If above 0, the side is this many diameters of the cell itself, whatever the scale of the picture, and
        `side_um` is nominal; -1 shows the whole picture of a cell. Networks that were trained so lose the size of
        the cell as a sign.
    """

    side_um: float
    pixels: int
    cells: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.side_um < 1000 and 0 < self.pixels <= 4096 and (self.cells == -1 or 0 <= self.cells <= 20)):
            raise ValueError(f"a crop of {self.side_um} µm, {self.pixels} px and {self.cells} cells makes no sense")

    def scale_for(self, mpp: float, diameters: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Micrometres per pixel to crop each cell with; `diameters` of the cells in pixels of the picture."""
        if self.cells == 0:
            return np.full(len(diameters), mpp, np.float64)
        sides = (self.cells if self.cells > 0 else 1.3) * np.maximum(diameters, 1.0)
        return np.asarray(self.side_um / sides, np.float64)


def crop_cells(
    image: npt.NDArray[np.uint8],
    centroids: npt.NDArray[np.floating],
    mpp: float | npt.NDArray[np.floating],
    size: CropSize,
) -> npt.NDArray[np.uint8]:
    """Cut a square around each point and resample it to one physical scale.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        The field.
    centroids : (n, 2) float array
        Rows and columns of the centres, pixels.
    mpp : float or (n,) float array
        Micrometres per pixel of the field, or those to crop each cell with (`CropSize.scale_for`).
    size : CropSize
        Side of the crops in µm and pixels.

    Returns
    -------
    (n, pixels, pixels, 3) uint8 array
        Resampled with an antialiasing bicubic filter. What lies outside the
        picture is filled with the colour of the background.

    Raises
    ------
    ValueError
        If `mpp` is not a number between 0.001 and 1000.

    Notes
    -----
    A mirrored border would show a cut cell a second time; the network then
    sees two cells. Background is what a smear mostly shows around a cell.
    """
    crops = np.empty((len(centroids), size.pixels, size.pixels, 3), np.uint8)
    scales = np.broadcast_to(np.asarray(mpp, np.float64), len(centroids))
    for k, centroid in enumerate(centroids):
        crops[k] = _resample(image, centroid, float(scales[k]), size)
    return crops


def _resample(
    image: npt.NDArray[np.uint8],
    centroid: npt.NDArray[np.floating],
    mpp: float,
    size: CropSize,
) -> npt.NDArray[np.uint8]:
    """Resample the square around a point."""
    from PIL import Image

    if not 1e-3 <= mpp <= 1e3:
        raise ValueError(
            f"crops need the scale of the picture, not {mpp}; give the scale in µm per pixel (--mpp, or Scale under "
            "Advanced)"
        )
    side = size.side_um / mpp
    # skimage's centroids count pixel centres from 0; the box counts pixel edges.
    top, left = centroid[0] + 0.5 - side / 2, centroid[1] + 0.5 - side / 2
    # A margin gives the resampling filter its neighbours.
    margin = 3 * max(1.0, side / size.pixels)
    y0, x0 = int(np.floor(top - margin)), int(np.floor(left - margin))
    y1, x1 = int(np.ceil(top + side + margin)), int(np.ceil(left + side + margin))
    region = image[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
    if region.shape[:2] != (y1 - y0, x1 - x0):
        padded = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        padded[:] = background_colour(image)
        row, column = max(0, -y0), max(0, -x0)
        padded[row : row + region.shape[0], column : column + region.shape[1]] = region
        region = padded
    box = (left - x0, top - y0, left - x0 + side, top - y0 + side)
    return np.asarray(Image.fromarray(region).resize((size.pixels, size.pixels), Image.Resampling.BICUBIC, box=box))


def background_colour(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the colour of the empty background: the median of the brightest fifth, (3,) uint8."""
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 40_000)))
    pixels = image[::step, ::step].reshape(-1, 3)
    brightness = pixels.mean(axis=1)
    return np.asarray(np.median(pixels[brightness >= np.quantile(brightness, 0.8)], axis=0).astype(np.uint8))
