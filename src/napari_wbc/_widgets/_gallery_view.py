"""A sheet of small pictures of cells under headings of their classes: seen, selected, dragged, by mouse and by keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QMimeData, QPoint, QRect, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QDrag, QPainter, QPen, QPixmap
from qtpy.QtWidgets import QAbstractScrollArea, QApplication, QWidget

from napari_wbc.cells import Cells

from ._gallery_order import NO_CLASS, Arrangement, Grid, Section
from ._gallery_paint import HEADING, Colours, draw_cell, draw_heading
from ._thumbnails import Thumbnails

if TYPE_CHECKING:
    from qtpy.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent, QKeyEvent, QMouseEvent, QPaintEvent, QWheelEvent

MIME = "application/x-napari-wbc-cells"
SMALLEST, LARGEST = 40, 192
_GAP = 6
_SOON_MS = 15
_STEPS = {
    Qt.Key.Key_Left: (-1, 0), Qt.Key.Key_Right: (1, 0), Qt.Key.Key_Up: (0, -1), Qt.Key.Key_Down: (0, 1),
}  # fmt: skip


class GalleryView(QAbstractScrollArea):
    """Cells of a table, grouped by class; it knows nothing of reviews and layers."""

    selection_changed = Signal()
    opened = Signal(int)
    """Label of a cell that was clicked or reached by keys."""
    typed = Signal(str)
    """A letter or another sign, for whoever knows what it means."""
    dropped = Signal(str)
    """The selected cells were dropped on this class."""
    asked = Signal(QPoint)
    """Somebody wants the menu here (global)."""
    zoomed = Signal(int)
    """Side of the cells, px, after Ctrl and the wheel."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.cells, self.arrangement = Cells.empty(), Arrangement()
        self.thumbnails: Thumbnails | None = None
        self.letters: Mapping[str, str] = {}
        self.hide_classes = False
        self.side = 80
        self.current: int | None = None
        """Label of the cell that keys move from."""
        self.selected: set[int] = set()
        """Labels."""
        self._labels: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._decided: npt.NDArray[Any] = np.empty(0, bool)
        self._grid = Grid((), 1, 1, HEADING)
        self._anchor: int | None = None
        self._press: QPoint | None = None
        self._band: QRect | None = None
        self._target: str | None = None
        self.colours = Colours("#eee", "#222", "#555", "#4af")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAcceptDrops(True)
        self.viewport().setAcceptDrops(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
        self.setMinimumHeight(160)
        self.verticalScrollBar().valueChanged.connect(lambda _: self.viewport().update())
        # Pictures are asked for a few times a second while it scrolls: those that flew past need not be decoded.
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_SOON_MS)
        self._soon.timeout.connect(self._want)
        self._last_top = 0

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room for a few rows."""
        return QSize(420, 520)

    # ---- what is shown

    def show_cells(self, cells: Cells, arrangement: Arrangement, letters: Mapping[str, str]) -> None:
        """Show cells in an order; what is selected and still there stays selected."""
        self.cells, self.arrangement, self.letters = cells, arrangement, letters
        self._labels = cells.table["label"].to_numpy(np.int64)[arrangement.rows]
        self._decided = (cells.table["class_reviewed"] != "").to_numpy()[arrangement.rows]
        if self.selected:
            self.selected &= set(self._labels.tolist())
        self._layout()

    def set_thumbnails(self, thumbnails: Thumbnails | None) -> None:
        """Take pictures from here."""
        self.thumbnails = thumbnails
        if thumbnails is not None:
            thumbnails.set_pixels(self._pixels())
            thumbnails.ready.connect(self.viewport().update)
        self.viewport().update()

    def set_colours(self, colours: Colours) -> None:
        """Take the colours of napari's theme."""
        self.colours = colours
        self.viewport().update()

    def set_side(self, side: int) -> None:
        """Choose how large cells are, px."""
        side = int(np.clip(side, SMALLEST, LARGEST))
        if side == self.side:
            return
        seen = self._seen()
        self.side = side
        if self.thumbnails is not None:
            self.thumbnails.set_pixels(self._pixels())
        self._layout()
        if seen:
            self.verticalScrollBar().setValue(self._grid.box(seen[0])[1])

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Labels of the shown cells in their order."""
        return self._labels

    def place_of(self, label: int | None) -> int | None:
        """Return the place of a cell in the order, or None if it is not shown."""
        found = np.flatnonzero(self._labels == label) if label is not None else np.empty(0)
        return int(found[0]) if len(found) else None

    def rectangle(self, label: int) -> QRect:
        """Return where a cell is in the viewport."""
        place = self.place_of(label)
        return self._rectangle(place) if place is not None else QRect()

    def heading(self, name: str) -> QRect:
        """Return where the heading of a class is in the viewport."""
        for section, top in zip(self._grid.sections, self._grid.tops, strict=True):
            if section.name == name:
                return QRect(0, top - self.verticalScrollBar().value(), self.viewport().width(), HEADING)
        return QRect()

    def scroll_to(self, name: str) -> None:
        """Bring the heading of a class to the top."""
        bar = self.verticalScrollBar()
        bar.setValue(bar.value() + self.heading(name).top())

    def _pixels(self) -> int:
        return round(self.side * float(self.devicePixelRatioF()))

    def _layout(self) -> None:
        self._grid = Grid(self.arrangement.sections, self.viewport().width() - _GAP, self.side + _GAP, HEADING)
        bar = self.verticalScrollBar()
        bar.setPageStep(self.viewport().height())
        bar.setSingleStep(self.side + _GAP)
        bar.setRange(0, max(0, self._grid.height + _GAP - self.viewport().height()))
        self.viewport().update()

    def _seen(self) -> list[int]:
        """Places of the cells that are seen."""
        top = self.verticalScrollBar().value()
        return self._grid.within(0, top, self.viewport().width(), top + self.viewport().height())

    @property
    def seen(self) -> npt.NDArray[np.int64]:
        """Labels of the cells that are seen."""
        return self._labels[self._seen()]

    def _rectangle(self, place: int) -> QRect:
        left, top, _ = self._grid.box(place)
        return QRect(left + _GAP, top - self.verticalScrollBar().value() + _GAP // 2, self.side, self.side)

    def resizeEvent(self, _: Any) -> None:  # noqa: N802
        """Fill the width."""
        self._layout()

    # ---- painting

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Draw what is seen."""
        painter = QPainter(self.viewport())
        painter.fillRect(event.rect(), self.colours.paper)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        there = [self._draw_cell(painter, place) for place in self._seen()]
        self._draw_headings(painter)
        if self._band is not None:
            painter.setPen(QPen(self.colours.mark, 1))
            painter.drawRect(self._band)
        painter.end()
        if (not all(there) or self.verticalScrollBar().value() != self._last_top) and not self._soon.isActive():
            self._soon.start()

    def _draw_cell(self, painter: QPainter, place: int) -> bool:
        label = int(self._labels[place])
        pixmap = self.thumbnails.get(label) if self.thumbnails is not None else None
        draw_cell(
            painter, self._rectangle(place), pixmap, self.colours,
            decided=bool(self._decided[place]) and not self.hide_classes, selected=label in self.selected,
            current=label == self.current,
        )  # fmt: skip
        return pixmap is not None or self.thumbnails is None

    def _draw_headings(self, painter: QPainter) -> None:
        top, width = self.verticalScrollBar().value(), self.viewport().width()
        for section, at, end in self._grid.spans:
            if end < top or at > top + self.viewport().height():
                continue
            # The heading of the class that is seen stays at the top.
            line = QRect(0, max(at - top, min(0, end - top - HEADING)), width, HEADING)
            letter, is_target = self.letters.get(section.name, ""), section.name == self._target
            draw_heading(painter, line, section.name, self._title(section), letter, self.colours, is_target=is_target)

    def _title(self, section: Section) -> str:
        if self.hide_classes:
            return "which class?"
        count = f"{section.total:,}" if len(section) == section.total else f"{len(section):,} of {section.total:,}"
        return f"{section.name}  {count}"

    def _want(self) -> None:
        """Ask for the pictures that are seen, and for those of the next screen in the direction of scrolling."""
        if self.thumbnails is None:
            return
        top, height = self.verticalScrollBar().value(), self.viewport().height()
        ahead = top - height if top < self._last_top else top + height
        self._last_top = top
        places = [
            place for start in (top, ahead) for place in self._grid.within(0, start, self.width(), start + height)
        ]
        self.thumbnails.want(self.cells, [int(self.arrangement.rows[place]) for place in dict.fromkeys(places)])

    # ---- selection

    def select(self, labels: set[int], current: int | None = None) -> None:
        """Select these cells, and no others; tells nobody."""
        self.selected = set(labels)
        if current is None and self.current not in labels and labels:
            shown = self._labels[np.isin(self._labels, list(labels))]
            current = int(shown[0]) if len(shown) else None
        if current is not None:
            self.current = current
        self.viewport().update()

    def reach(self, label: int, *, extend: bool = False) -> None:
        """Make a cell the current one, select it (or all from the last one on), show it and say so."""
        place = self.place_of(label)
        if place is None:
            return
        if extend and (start := self.place_of(self._anchor)) is not None:
            low, high = sorted((start, place))
            self.selected = set(self._labels[low : high + 1].tolist())
        else:
            self.selected, self._anchor = {label}, label
        self.current = label
        self.ensure_seen(label)
        self.selection_changed.emit()
        self.opened.emit(label)

    def ensure_seen(self, label: int) -> None:
        """Scroll until a cell is seen."""
        if self.place_of(label) is None:
            return
        box, bar = self.rectangle(label), self.verticalScrollBar()
        if box.top() < HEADING:
            bar.setValue(bar.value() + box.top() - HEADING - _GAP)
        elif box.bottom() > self.viewport().height():
            bar.setValue(bar.value() + box.bottom() - self.viewport().height() + _GAP)
        self.viewport().update()

    def _section_under(self, point: QPoint) -> Section | None:
        return self._grid.section_at(point.y() + self.verticalScrollBar().value())

    def _label_under(self, point: QPoint) -> int | None:
        section = self._section_under(point)
        if section is None or self.heading(section.name).contains(point):
            return None
        place = self._grid.at(point.x() - _GAP // 2, point.y() + self.verticalScrollBar().value())
        return int(self._labels[place]) if place is not None else None

    # ---- mouse

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Begin to click, drag or draw a rectangle."""
        point = event.position().toPoint()
        label, section = self._label_under(point), self._section_under(point)
        self._press = point
        more = event.modifiers() & (Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
        if event.button() == Qt.MouseButton.RightButton:
            if label is not None and label not in self.selected:
                self.reach(label)
            self.asked.emit(self.viewport().mapToGlobal(point))
        elif label is None:
            if section is not None and self.heading(section.name).contains(point):
                # A click on the heading selects the class.
                self.selected = set(self._labels[section.start : section.stop].tolist())
                self.selection_changed.emit()
                self._press = None
            elif not more:
                self.selected = set()
                self.selection_changed.emit()
        elif event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            self.selected ^= {label}
            self.current = self._anchor = label
            self.selection_changed.emit()
        elif event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.reach(label, extend=True)
        elif label not in self.selected:
            self.reach(label)
        self.viewport().update()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Drag the selected cells, or draw a rectangle around cells."""
        if self._press is None or not event.buttons() & Qt.MouseButton.LeftButton:
            return
        point = event.position().toPoint()
        if (point - self._press).manhattanLength() < QApplication.startDragDistance():
            return
        if self._band is None and self._label_under(self._press) in self.selected:
            self._press = None
            self._drag()
            return
        self._band = QRect(self._press, point).normalized()
        top = self.verticalScrollBar().value()
        places = self._grid.within(
            self._band.left() - _GAP, self._band.top() + top, self._band.right() - _GAP, self._band.bottom() + top
        )
        self.selected = {int(self._labels[place]) for place in places}
        self.viewport().update()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """End a click or a rectangle."""
        if self._band is not None:
            self.selection_changed.emit()
        elif self._press is not None and not event.modifiers() and event.button() == Qt.MouseButton.LeftButton:
            label = self._label_under(self._press)
            if label is not None and len(self.selected) > 1:
                self.reach(label)
        self._band = self._press = None
        self.viewport().update()

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Scroll; with Ctrl, zoom."""
        if event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            self.set_side(self.side + (8 if event.angleDelta().y() > 0 else -8))
            self.zoomed.emit(self.side)
        else:
            super().wheelEvent(event)

    # ---- drag and drop

    def _drag(self) -> None:
        drag, data = QDrag(self), QMimeData()
        data.setData(MIME, b"")
        drag.setMimeData(data)
        picture = self.thumbnails.get(next(iter(self.selected))) if self.thumbnails and self.selected else None
        drag.setPixmap(picture if picture is not None else QPixmap(self.side, self.side))
        drag.exec(Qt.DropAction.MoveAction)
        self._target = None
        self.viewport().update()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """Take cells."""
        if event.mimeData().hasFormat(MIME):
            event.acceptProposedAction()

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:  # noqa: N802
        """Show which class they would get, and scroll at the edges."""
        point, bar = event.position().toPoint(), self.verticalScrollBar()
        if point.y() < 24 or point.y() > self.viewport().height() - 24:
            bar.setValue(bar.value() + (-24 if point.y() < 24 else 24))
        section = self._section_under(point)
        self._target = section.name if section is not None and section.name != NO_CLASS else None
        if self._target:
            event.acceptProposedAction()
        else:
            event.ignore()
        self.viewport().update()

    def dragLeaveEvent(self, _: Any) -> None:  # noqa: N802
        """Forget the class."""
        self._target = None
        self.viewport().update()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """Say on which class the cells were dropped."""
        section = self._section_under(event.position().toPoint())
        self._target = None
        if section is not None and section.name != NO_CLASS and event.mimeData().hasFormat(MIME):
            event.acceptProposedAction()
            self.dropped.emit(section.name)

    # ---- keys

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Move with arrows, zoom with + and -, and pass the rest on."""
        key, text = Qt.Key(event.key()), event.text()
        control = event.modifiers() & Qt.KeyboardModifier.ControlModifier
        if key in _STEPS or key in (Qt.Key.Key_Home, Qt.Key.Key_End):
            self._move(key, extend=bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier))
        elif key in (Qt.Key.Key_PageUp, Qt.Key.Key_PageDown):
            rows = max(1, self.viewport().height() // (self.side + _GAP) - 1)
            self._move(Qt.Key.Key_Down if key == Qt.Key.Key_PageDown else Qt.Key.Key_Up, extend=False, times=rows)
        elif control and key == Qt.Key.Key_A:
            self.selected = set(self._labels.tolist())
            self.selection_changed.emit()
        elif text in ("+", "-"):
            self.set_side(self.side + (8 if text == "+" else -8))
            self.zoomed.emit(self.side)
        elif key == Qt.Key.Key_Escape:
            self.selected = set()
            self.selection_changed.emit()
        elif key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.typed.emit("\r")
        elif key in (Qt.Key.Key_Delete, Qt.Key.Key_Backspace):
            self.typed.emit("\x7f")
        elif text and not control and text.isprintable():
            self.typed.emit(text)
        else:
            super().keyPressEvent(event)
            return
        self.viewport().update()

    def _move(self, key: Qt.Key, *, extend: bool, times: int = 1) -> None:
        if not len(self._labels):
            return
        place = self.place_of(self.current)
        if key in (Qt.Key.Key_Home, Qt.Key.Key_End):
            place = 0 if key == Qt.Key.Key_Home else len(self._labels) - 1
        elif place is None:
            place = next(iter(self._seen()), 0)
        else:
            across, down = _STEPS[key]
            place = self._grid.beside(place, across * times, down * times)
        self.reach(int(self._labels[place]), extend=extend)
