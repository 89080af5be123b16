"""The differential as bars with their limits, painted in a millisecond: it follows every decision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from napari.utils.theme import get_theme
from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QFont, QFontMetricsF, QPainter, QPen
from qtpy.QtWidgets import QWidget

from napari_wbc.palette import colour

_ROW, _BAR, _PAD = 22, 15, 8
_TICKS = (0, 20, 40, 60, 80, 100)
_TITLE = "% of white cells, 95 % limits"


class Chart(QWidget):
    """Shares of the white cells with their 95 % limits.

    Parameters
    ----------
    theme : str
        Name of napari's theme.
    """

    def __init__(self, theme: str) -> None:
        super().__init__()
        self._white = pd.DataFrame(columns=["class", "value", "low", "high"])
        self.set_theme(theme)

    def set_theme(self, theme: str) -> None:
        """Take the colours of one of napari's themes."""
        colours = get_theme(theme)
        self._paper, self._ink = QColor(colours.background.as_hex()), QColor(colours.text.as_hex())
        self.update()

    def show_shares(self, white: pd.DataFrame) -> None:
        """Show rows of the differential (`napari_wbc.count.differential`) in per cent."""
        self._white = white
        letters = QFontMetricsF(self._font()).height()
        self.setFixedHeight(round(_PAD + _ROW * len(white) + 2 * letters + 3 * _PAD))
        self.update()

    def _font(self) -> QFont:
        font = QFont(self.font())
        font.setPointSizeF(max(7.0, font.pointSizeF() - 1))
        return font

    def paintEvent(self, _: Any) -> None:  # noqa: N802
        """Paint bars, limits, names and the axis."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), self._paper)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(self._font())
        letters = QFontMetricsF(painter.font())
        left = max((letters.horizontalAdvance(str(name)) for name in self._white["class"]), default=0) + 2 * _PAD
        span = max(1.0, self.width() - left - letters.horizontalAdvance("100") / 2 - _PAD)
        bottom = _PAD + _ROW * len(self._white)
        for k, row in enumerate(self._white.to_dict("records")):
            self._paint_row(painter, row, _PAD + _ROW * k, left, span)
        painter.setPen(QPen(self._ink, 1))
        painter.drawLine(QPointF(left, _PAD / 2), QPointF(left, bottom))
        painter.drawLine(QPointF(left, bottom), QPointF(left + span, bottom))
        for tick in _TICKS:
            x = left + span * tick / 100
            painter.drawLine(QPointF(x, bottom), QPointF(x, bottom + 3))
            place = QRectF(x - 30, bottom + 4, 60, letters.height())
            painter.drawText(place, Qt.AlignmentFlag.AlignHCenter, str(tick))
        place = QRectF(left, bottom + 4 + letters.height() + 2, span, letters.height())
        painter.drawText(place, Qt.AlignmentFlag.AlignHCenter, _TITLE)
        painter.end()

    def _paint_row(self, painter: QPainter, row: dict[Any, Any], top: float, left: float, span: float) -> None:
        painter.setPen(QPen(self._ink, 1))
        place = QRectF(0, top, left - _PAD, _ROW)
        painter.drawText(place, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, str(row["class"]))
        if not np.isfinite(row["value"]):
            return
        middle, (low, high, end) = top + _ROW / 2, (left + span * row[key] / 100 for key in ("low", "high", "value"))
        painter.fillRect(QRectF(left, middle - _BAR / 2, end - left, _BAR), QColor(colour(row["class"])))
        painter.setPen(QPen(self._ink, 1.2))
        painter.drawLine(QPointF(low, middle), QPointF(high, middle))
        for x in (low, high):
            painter.drawLine(QPointF(x, middle - 3), QPointF(x, middle + 3))
