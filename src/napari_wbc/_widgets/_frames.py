"""Frames around the chosen cells in the picture: a point's own highlight is lost among stained cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ._layers import PLACE
from ._source import FRAMES, KEY

if TYPE_CHECKING:
    from napari.layers import Points
    from napari.viewer import Viewer

MOST = 300
"""Where more cells are chosen, frames would hide them."""
# Light within dark is seen on every stain, with any colour vision; and a square among round cells and outlines.
_INK, _LIGHT = "#000000", "#ffffff"
# Pixels of the canvas: a frame's least side, and its two lines together and the inner one alone.
_LEAST, _BOTH, _INNER = 34.0, 6.0, 3.0
_ROOM = 1.25


class Frames:
    """A square around each chosen cell.

    Parameters
    ----------
    viewer : napari.Viewer
    cells : napari.layers.Points
        The cells; frames lie in the same place of the world.
    """

    def __init__(self, viewer: Viewer, cells: Points) -> None:
        self._viewer, self._cells = viewer, cells
        self._layer: Points | None = None

    def show(self, centres: npt.NDArray[np.float64], sides: npt.NDArray[np.float64], zoom: float) -> None:
        """Frame cells, (n, 2) rows and columns with their sides in pixels of the picture, and no others."""
        if len(centres) > MOST:
            centres, sides = centres[:0], sides[:0]
        if self._layer is None or self._layer not in self._viewer.layers:
            if not len(centres):
                return
            self._layer = self._add()
        layer = self._layer
        # Dark ones first, the light ones over them.
        layer.data = np.repeat(centres, 2, axis=0)
        layer.size = np.repeat(sides * _ROOM, 2)
        layer.border_color = np.tile([_INK, _LIGHT], len(centres))
        layer.selected_data = set()
        self.follow(zoom)

    def follow(self, zoom: float) -> None:
        """Keep the lines as thick as they are on the screen."""
        layer = self._layer
        if layer is None or not len(layer.data):
            return
        seen = np.maximum(layer.size * abs(layer.scale[-1]) * zoom, _LEAST)
        layer.border_width = np.clip(np.tile([_BOTH, _INNER], len(seen) // 2) / seen, 0, 1)

    def remove(self) -> None:
        """Take the layer out of the viewer."""
        if self._layer is not None and self._layer in self._viewer.layers:
            self._viewer.layers.remove(self._layer)
        self._layer = None

    def _add(self) -> Points:
        layers = self._viewer.layers
        selected = set(layers.selection)
        place = {name: getattr(self._cells, name) for name in PLACE}
        layer = self._viewer.add_points(
            ndim=2, name="chosen cells", symbol="square", face_color="transparent", border_width_is_relative=True,
            canvas_size_limits=(_LEAST, 10_000), metadata={KEY: {"role": FRAMES}}, **place,
        )  # fmt: skip
        # Above the cells, below their names.
        layers.move(layers.index(layer), layers.index(self._cells) + 1)
        layers.selection = selected
        return layer
