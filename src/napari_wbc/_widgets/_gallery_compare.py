"""Reference cells of a class, at the scale of the gallery."""

from __future__ import annotations

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QPainter, QPixmap
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_wbc.reference_cells import SOURCE, reference_cells

from ._thumbnails import to_image

_GAP = 4


class Reference(QWidget):
    """A strip of reference cells under a line that says what they are."""

    def __init__(self) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        self.title, self.strip = QLabel(), QLabel()
        for part in (self.title, self.strip):
            part.setToolTip(SOURCE)
            column.addWidget(part)
        self.hide()

    def show_class(self, name: str, side: int, width: int) -> None:
        """Show cells of a class, `side` px large, as many as the width holds."""
        crops = reference_cells(name)
        if not len(crops):
            self.title.setText(f"There are no reference cells of «{name}».")
            self.strip.clear()
            return
        self.title.setText(f"Reference: {name}, same scale (CC BY 4.0)")
        step = side + _GAP
        n = min(len(crops), max(1, width // step))
        strip = QPixmap(QSize(n * step, side))
        strip.fill(Qt.GlobalColor.transparent)
        painter = QPainter(strip)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        for k in range(n):
            painter.drawImage(strip.rect().adjusted(k * step, 0, (k - n + 1) * step - _GAP, 0), to_image(crops[k]))
        painter.end()
        self.strip.setPixmap(strip)
