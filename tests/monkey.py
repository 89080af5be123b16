"""A seeded ape at a dock: random clicks and keys on all that can be clicked, dialogs answered at random."""

from __future__ import annotations

import random
import time
from pathlib import Path

from napari.utils.notifications import ErrorNotification, notification_manager
from qtpy.QtCore import QPoint, Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QDialog,
    QFileDialog,
    QLineEdit,
    QWidget,
)

DOCKS = (
    "Classify white cells", "Gallery of cells", "Differential", "Segment cells", "Crop cells", "Train classifier",
    "Batch annotate",
)  # fmt: skip
_TARGETS = (QAbstractButton, QComboBox, QAbstractSpinBox, QLineEdit, QAbstractItemView, QAbstractSlider)
_KEYS = (
    Qt.Key.Key_Space, Qt.Key.Key_Return, Qt.Key.Key_Escape, Qt.Key.Key_Tab, Qt.Key.Key_Delete, Qt.Key.Key_Backspace,
    Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_Left, Qt.Key.Key_Right, Qt.Key.Key_PageDown, Qt.Key.Key_End,
    Qt.Key.Key_N, Qt.Key.Key_L, Qt.Key.Key_M, Qt.Key.Key_1, Qt.Key.Key_9, Qt.Key.Key_Minus, Qt.Key.Key_Z,
)  # fmt: skip
_ASKED = ("getExistingDirectory", "getOpenFileName", "getSaveFileName")
_PRESSED = (Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier)
_TEXTS = ("", "0", "-1", "1e9", "abc", "../x", "\u202eé", "=1+1", "a" * 300)


class Ape:
    """Clicks at random, always the same for a seed.

    Parameters
    ----------
    seed : int or str
    folder : pathlib.Path
        What dialogs answer with, and where outputs go.
    """

    def __init__(self, seed: int | str, folder: Path) -> None:
        self.chance, self.folder = random.Random(seed), folder
        self.done: list[str] = []
        self._timer = QTimer()
        self._timer.timeout.connect(self._answer)

    def __enter__(self) -> Ape:
        def pick(name: str) -> str:
            return str(self.chance.choice(("", self.folder / name)))

        self._before = {name: getattr(QFileDialog, name) for name in _ASKED}
        QFileDialog.getExistingDirectory = lambda *_, **__: pick("out")
        QFileDialog.getOpenFileName = lambda *_, **__: (pick("no.json"), "")
        QFileDialog.getSaveFileName = lambda *_, **__: (pick("saved.html"), "")
        self._timer.start(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.stop()
        for name, function in self._before.items():
            setattr(QFileDialog, name, staticmethod(function))

    def _answer(self) -> None:
        """Close what stands in the way: a menu, a list that is open, a dialog."""
        popup, modal = QApplication.activePopupWidget(), QApplication.activeModalWidget()
        if popup is not None:
            QTest.keyClick(popup, self.chance.choice((Qt.Key.Key_Escape, Qt.Key.Key_Down, Qt.Key.Key_Return)))
            popup = QApplication.activePopupWidget()
            if popup is not None and self.chance.random() < 0.5:
                popup.close()
        elif isinstance(modal, QDialog) and not isinstance(modal, QFileDialog):  # its accept is protected
            self.chance.choice((modal.accept, modal.reject))()
        elif modal is not None:
            modal.close()

    def play(self, dock: QWidget, times: int) -> None:
        """Click and type `times` times."""
        for _ in range(times):
            there = (w for w in dock.findChildren(QWidget) if isinstance(w, _TARGETS))
            found = [w for w in there if w.isVisible() and w.isEnabled()]
            if not found:
                return
            self._do(self.chance.choice(found))
            QApplication.processEvents()
            time.sleep(0.002)

    def _do(self, target: QWidget) -> None:
        kind = self.chance.random()
        text = getattr(target, "text", lambda: "")() or target.objectName()
        self.done.append(f"{type(target).__name__} {text} {kind:.2f}")
        if kind < 0.6:
            inside = target.viewport() if hasattr(target, "viewport") else target
            place = QPoint(*(self.chance.randrange(max(1, n)) for n in (inside.width(), inside.height())))
            keys = self.chance.choices(_PRESSED, (3, 1, 1))[0]
            click = QTest.mouseDClick if self.chance.random() < 0.1 else QTest.mouseClick
            click(inside, Qt.MouseButton.LeftButton, keys, place)
        elif kind < 0.75 and isinstance(target, QLineEdit | QAbstractSpinBox):
            target.setFocus()
            text = self.chance.choice(_TEXTS)
            if isinstance(target, QLineEdit):  # QTest types ASCII only
                target.insert(text)
            else:
                QTest.keyClicks(target, text if text.isascii() else "")
            QTest.keyClick(target, Qt.Key.Key_Return)
        else:
            QTest.keyClick(target, self.chance.choice(_KEYS))


def tracebacks() -> list[str]:
    """What went wrong unforeseen since napari's messages were cleared."""
    return [record.message for record in notification_manager.records if isinstance(record, ErrorNotification)]
