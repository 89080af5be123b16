"""How the gallery looks: a cell, a heading."""

from __future__ import annotations

from qtpy.QtCore import QPoint, QRect, QRectF, Qt
from qtpy.QtGui import QColor, QFont, QPainter, QPen, QPixmap

from napari_wbc.palette import colour

HEADING = 30
"""Height of a heading, px."""
_LEFT = 6


class Colours:
    """Colours of napari's theme, as CSS names them.

    Parameters
    ----------
    ink, paper, faint, mark : str
        Of text, behind everything, of a cell without a picture, of what is selected.
    """

    def __init__(self, ink: str, paper: str, faint: str, mark: str) -> None:
        self.ink, self.paper, self.faint, self.mark = (QColor(name) for name in (ink, paper, faint, mark))


def draw_cell(
    painter: QPainter, box: QRect, picture: QPixmap | None, colours: Colours, *,
    decided: bool, selected: bool, current: bool,
) -> None:  # fmt: skip
    """Draw a cell with what is known of it."""
    if picture is not None and not picture.isNull():
        painter.drawPixmap(box, picture)
    else:
        painter.fillRect(box, colours.faint)
    if decided:
        _draw_tick(painter, box)
    if selected:
        painter.setPen(QPen(colours.mark, 3))
        painter.drawRect(box.adjusted(1, 1, -2, -2))
    if current:
        painter.setPen(QPen(colours.ink, 1, Qt.PenStyle.DotLine))
        painter.drawRect(box.adjusted(-2, -2, 1, 1))


def _draw_tick(painter: QPainter, box: QRect) -> None:
    """Draw the sign of a cell that somebody decided on."""
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    d = max(11, box.width() // 6)
    disc = QRectF(box.right() - d - 2, box.bottom() - d - 2, d, d)
    painter.setBrush(QColor("#ffffff"))
    painter.setPen(QPen(QColor("#202020"), 1))
    painter.drawEllipse(disc)
    painter.setPen(QPen(QColor("#1a7f37"), max(1.6, d / 7)))
    x, y = disc.left(), disc.top()
    painter.drawPolyline([
        QPoint(round(x + 0.25 * d), round(y + 0.52 * d)), QPoint(round(x + 0.44 * d), round(y + 0.72 * d)),
        QPoint(round(x + 0.76 * d), round(y + 0.32 * d)),
    ])  # fmt: skip
    painter.restore()


def draw_heading(
    painter: QPainter, line: QRect, name: str, title: str, letter: str, colours: Colours, *, is_target: bool
) -> None:
    """Draw the heading of a class with its key; cells are dragged to it if it is the target."""
    painter.fillRect(line, colours.mark if is_target else colours.paper)
    painter.fillRect(QRect(_LEFT, line.top() + 9, 12, 12), QColor(colour(name)))
    painter.setPen(colours.ink)
    usual = painter.font()
    bold = QFont(usual)
    bold.setBold(True)
    painter.setFont(bold)
    painter.drawText(line.adjusted(26, 0, -90, 0), Qt.AlignmentFlag.AlignVCenter, title)
    painter.setFont(usual)
    if letter:
        place = Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight
        painter.drawText(line.adjusted(0, 0, -_LEFT, 0), place, f"key {letter.upper()}")
