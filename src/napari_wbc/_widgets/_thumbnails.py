"""Pictures of single cells, cut out of the smear when they are seen, all at one scale."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from qtpy.QtCore import QObject, Signal
from qtpy.QtGui import QImage, QPixmap

from napari_wbc.crop import background_colour
from napari_wbc.pipeline import ASSUMED_CELL_UM

if TYPE_CHECKING:
    from napari_wbc.cells import Cells
    from napari_wbc.slide import Slide

SIDE_UM = 24.0
"""Side of the square that a thumbnail shows."""
_BYTES = 48 * 2**20
_BATCH, _THREADS = 4, 2


class Thumbnails(QObject):
    """Cut-out cells, decoded in threads as they are asked for; the oldest are forgotten.

    Parameters
    ----------
    slide : Slide
        The picture.
    parent : QObject, optional
    """

    ready = Signal()
    """Some that were asked for are there now."""
    _made = Signal(object)

    def __init__(self, slide: Slide, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._slide, self.pixels = slide, 0
        self._pool = ThreadPoolExecutor(_THREADS, "thumbnails")
        self._kept: OrderedDict[int, QPixmap] = OrderedDict()
        self._waiting: dict[int, Future[None]] = {}
        self._closed = False
        self._scaled: Cells | None = None
        self._mpp: npt.NDArray[np.float64] = np.empty(0)
        self._made.connect(self._keep)

    def set_pixels(self, pixels: int) -> None:
        """Choose the side of the thumbnails; others are forgotten."""
        if pixels != self.pixels:
            self.pixels = pixels
            self._kept.clear()
            self._drop()

    def get(self, label: int) -> QPixmap | None:
        """Return the thumbnail of a cell if it is there."""
        found = self._kept.get(label)
        if found is not None:
            self._kept.move_to_end(label)
        return found

    def forget(self) -> None:
        """Forget all; cells may lie elsewhere now."""
        self._kept.clear()
        self._drop()

    def want(self, cells: Cells, rows: Sequence[int]) -> None:
        """Ask for the thumbnails of cells, those that are seen; what was asked for before and is not seen any more is
        not decoded.
        """
        labels = cells.table["label"].to_numpy()[list(rows)]
        missing = [(int(k), row) for k, row in zip(labels, rows, strict=True) if int(k) not in self._kept]
        wanted = {self._waiting[label] for label, _ in missing if label in self._waiting}
        for label, future in list(self._waiting.items()):
            if future not in wanted and (future.cancelled() or future.cancel()):
                del self._waiting[label]
        fresh = [(label, row) for label, row in missing if label not in self._waiting]
        if not fresh or self._closed:
            return
        if self._scaled is not cells:
            self._scaled, self._mpp = cells, _scales(cells)
        centroids, mpp = cells.centroids, self._mpp
        for start in range(0, len(fresh), _BATCH):
            part = fresh[start : start + _BATCH]
            at = [row for _, row in part]
            ids = [label for label, _ in part]
            future = self._pool.submit(self._cut, ids, centroids[at], mpp[at], self.pixels)
            self._waiting.update(dict.fromkeys(ids, future))

    @cached_property
    def _paper(self) -> npt.NDArray[np.uint8]:
        """The colour of the empty film, for what lies beyond the picture."""
        return background_colour(self._slide.thumbnail(512))

    def _cut(self, labels: Sequence[int], centroids: npt.NDArray[Any], mpp: npt.NDArray[Any], pixels: int) -> None:
        """Cut cells out, in a thread."""
        try:
            images = [
                to_image(cut_out(self._slide, centre, float(scale), pixels, self._paper))
                for centre, scale in zip(centroids, mpp, strict=True)
            ]
        # A damaged tile of a slide, and whatever a library raises on it, is an empty square.
        except Exception:  # noqa: BLE001
            images = [QImage() for _ in labels]
        if not self._closed:
            self._made.emit((pixels, list(labels), images))

    def _keep(self, made: tuple[int, list[int], list[QImage]]) -> None:
        pixels, labels, images = made
        for label, image in zip(labels, images, strict=True):
            self._waiting.pop(label, None)
            if pixels == self.pixels:
                self._kept[label] = QPixmap.fromImage(image)
        most = max(256, _BYTES // (4 * max(1, pixels) ** 2))
        while len(self._kept) > most:
            self._kept.popitem(last=False)
        self.ready.emit()

    def _drop(self) -> None:
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    def close(self) -> None:
        """Stop decoding; waits for what is being read."""
        self._closed = True
        self._drop()
        self._pool.shutdown(wait=True, cancel_futures=True)


def cut_out(
    slide: Slide, centre: npt.NDArray[Any], mpp: float, pixels: int, paper: npt.ArrayLike = 255
) -> npt.NDArray[np.uint8]:
    """Return the square of `SIDE_UM` around a point, (pixels, pixels, 3); of the colour `paper` beyond the picture.

    It is made of the coarsest level that is not coarser than it: four times fewer pixels to decode a level.
    """
    side, steps = SIDE_UM / mpp, slide.downsamples
    level = max(k for k, step in enumerate(steps) if k == 0 or side >= step * pixels)
    size = side / steps[level]
    # Centres count pixel centres from 0; the box counts pixel edges.
    corner = (np.asarray(centre, float) + 0.5) / steps[level] - size / 2
    # A margin gives the resampling filter its neighbours.
    margin = 2 * max(1.0, size / pixels)
    first, last = np.floor(corner - margin).astype(int), np.ceil(corner + size + margin).astype(int)
    inside = np.clip([first, last], 0, slide.pixels.shapes[level])
    (top, left), (bottom, right) = inside.tolist()
    region = np.empty((*(last - first), 3), np.uint8)
    region[:] = paper
    part = tuple(slice(*edges) for edges in (inside - first).T)
    region[part] = slide.read((top, left, bottom, right), level)
    y, x = corner - first
    box = (x, y, x + size, y + size)
    return np.asarray(Image.fromarray(region).resize((pixels, pixels), Image.Resampling.BICUBIC, box=box))


def to_image(pixels: npt.NDArray[np.uint8]) -> QImage:
    """Return an (H, W, 3) picture as an image of Qt with pixels of its own."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels)
    return QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()


def _scales(cells: Cells) -> npt.NDArray[np.float64]:
    """µm per pixel of each cell; where it is unknown the cells are the ruler."""
    mpp = cells.table["mpp"].to_numpy(float)
    area = cells.table["area"].median()
    assumed = ASSUMED_CELL_UM / max(2 * np.sqrt(area / np.pi), 1.0) if np.isfinite(area) else 0.1
    return np.where(np.isfinite(mpp), mpp, assumed)
