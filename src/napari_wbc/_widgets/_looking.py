"""Looks for platelets in a thread, while the picture is reviewed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, Signal

from ._dock import EXPECTED

if TYPE_CHECKING:
    from napari_wbc.cells import Cells
    from napari_wbc.slide import Slide


class Looking(QObject):
    """A look for platelets.

    Parameters
    ----------
    slide : Slide
        The picture.
    cells : Cells
        Its cells as the model found them.
    """

    seen = Signal(object)
    """A `napari_wbc.platelets.Film`: what was seen so far."""

    def __init__(self, slide: Slide, cells: Cells) -> None:
        super().__init__()
        self._closed = False
        self._pool = ThreadPoolExecutor(1, "platelets")
        self._pool.submit(self._look, slide, cells)

    def _look(self, slide: Slide, cells: Cells) -> None:
        from napari_wbc.platelets import looks

        try:
            for film in looks(slide, cells):
                if self._closed:
                    return
                self.seen.emit(film)
        except (*EXPECTED, OSError):
            return  # the gallery says what is wrong with the picture

    def close(self) -> None:
        """Stop; waits for the window that is being looked at."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
