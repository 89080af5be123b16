"""The list of models in docks; a model that was just trained is in it at once."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QApplication, QComboBox, QFileDialog

from napari_wbc.models import DEFAULT_MODEL, available_models

from ._preferences import preference

BROWSE = "Browse…"


class ModelChoice(QComboBox):
    """Combo box of the models that there are, and of cards that the user looked up; data are the cards' paths."""

    chosen = Signal()

    def __init__(self) -> None:
        super().__init__()
        # A long name must not widen the dock.
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(12)
        self._browsed: dict[str, Path] = {}
        self._before: str | None = None
        preferred = preference("model")
        if preferred.endswith(".json") and Path(preferred).is_file():
            self._browsed[Path(preferred).stem] = Path(preferred)
            preferred = Path(preferred).stem
        self.refresh()
        self.choose(preferred if self.findText(preferred) >= 0 else DEFAULT_MODEL)
        self.activated.connect(self._on_activated)

    def refresh(self) -> None:
        """Offer the models that there are now and keep the choice."""
        before = self.currentData()
        self.blockSignals(True)
        self.clear()
        for name, card in (self._browsed | available_models()).items():
            self.addItem(name, str(card))
        self.addItem(BROWSE, None)
        self.blockSignals(False)
        index = self.findData(before) if before is not None else -1
        self.setCurrentIndex(self.findText(DEFAULT_MODEL) if index < 0 else index)

    def choose(self, name: str) -> None:
        """Choose a model by its name."""
        self.setCurrentText(name)
        self._before = self.currentData()
        self.chosen.emit()

    def showPopup(self) -> None:  # noqa: N802
        """Open the list, with models that came meanwhile."""
        self.refresh()
        super().showPopup()

    def _on_activated(self, index: int) -> None:
        if self.itemData(index) is not None:
            self.choose(self.itemText(index))
            return
        path, _ = QFileDialog.getOpenFileName(self, "Model card", "", "Model card (*.json)")
        if path:
            self._browsed[Path(path).stem] = Path(path)
            self.refresh()
        self.setCurrentIndex(max(0, self.findData(path or self._before)))
        self._before = self.currentData()
        self.chosen.emit()


def refresh_models() -> None:
    """Offer the models that there are now in every open dock."""
    for widget in QApplication.allWidgets():
        if isinstance(widget, ModelChoice):
            widget.refresh()
