"""What the docks of a review share: which cells, who reviews, what is wrong, and one place in the window."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Points
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import (
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
)

from ._dock import EXPECTED, LayerChoice, SharedPlace
from ._layers import CELLS
from ._review import Review, begin
from ._source import KEY
from ._toast import toast

if TYPE_CHECKING:
    from napari.viewer import Viewer

NEEDS_CELLS = "Classify a smear first, or open a folder of results."


class CellsChoice(LayerChoice):
    """Combo box of the layers of cells."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer, Points)
        self.setToolTip("The cells to review: of a run, or of results that were opened")

    def _offers(self, layer: Any) -> bool:
        return isinstance(layer, Points) and layer.metadata.get(KEY, {}).get("role") == CELLS


class _Held:
    """The review that a dock needs."""

    def __init__(self) -> None:
        self._review: Review | None = None

    def take(self, review: Review) -> None:
        """Need a review."""
        self._review = review
        review.use(self)

    def leave(self, *_: object) -> None:
        """Need it no more."""
        if self._review is not None:
            review, self._review = self._review, None
            review.leave(self)


class ReviewDock(SharedPlace):
    """A dock that shows the review of a layer of cells; several docks share one.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.

    Notes
    -----
    Subclasses fill `body`, put `status` into it, call `adopt` when they are built, and implement `show_review`,
    `show_change`, `show_state` and `show_theme`.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.review: Review | None = None
        # Bound methods of a dying widget are not called any more; when the window closes, this leaves for it.
        self._held = _Held()
        self.destroyed.connect(partial(_Held.leave, self._held))
        self.choice = CellsChoice(napari_viewer)
        self.open_button = QPushButton("Open results…")
        self.open_button.setToolTip("Open a folder of results, to review it")
        self.open_button.clicked.connect(lambda: self.open_results())
        self.reviewer = QLineEdit()
        self.reviewer.setToolTip("Your name: it is written beside every decision")
        self.reviewer.setPlaceholderText("your name")
        self.reviewer.editingFinished.connect(self._on_reviewer)
        self.banner = QLabel()
        self.banner.setWordWrap(True)
        self.banner.setTextFormat(Qt.TextFormat.PlainText)
        self.banner.setStyleSheet("background: #7a4a00; color: white; padding: 4px; border-radius: 3px;")
        self.banner.hide()
        top = QHBoxLayout()
        top.addWidget(self.choice, 1)
        top.addWidget(self.open_button)
        self.form = QFormLayout()
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.form.addRow("Cells", top)
        self.form.addRow("Reviewer", self.reviewer)
        self.status = QLabel(NEEDS_CELLS)
        self.status.setWordWrap(True)
        self.body = QVBoxLayout(self)
        self.body.addLayout(self.form)
        self.body.addWidget(self.banner)
        napari_viewer.events.theme.connect(self._on_theme)

    def show_review(self) -> None:
        """Show another review, or none."""
        raise NotImplementedError

    def show_change(self, change: Any) -> None:
        """Show what a decision changed."""
        raise NotImplementedError

    def show_theme(self) -> None:
        """Take the colours of napari's theme."""
        raise NotImplementedError

    def show_state(self) -> None:
        """Say in the dock's line how far the review is."""
        raise NotImplementedError

    def warn(self, message: str) -> None:
        """Say what cannot be done, in napari and in the dock's line."""
        toast(message)
        self.status.setText(message)

    def open_results(self, folder: str | Path | None = None) -> None:
        """Open a folder of results; asks for it if none is given."""
        folder = folder or QFileDialog.getExistingDirectory(self, "Folder of results")
        if folder:
            try:
                self.viewer.open(str(folder), plugin="napari-wbc")
                self.viewer.reset_view()  # the counts stand below the picture, and other layers may be elsewhere
            except (*EXPECTED, OSError) as error:
                self.warn(str(error))

    def adopt(self) -> None:
        """Show the review of the chosen layer."""
        if not isalive(self):
            return
        layer = self.choice.layer
        if self.review is not None and layer is not None and self.review.layer == layer:
            return
        self._drop()
        if layer is not None:
            try:
                self.review = begin(self.viewer, layer)
            except (*EXPECTED, OSError) as error:
                self._say(str(error))
                self.show_review()
                return
            self._held.take(self.review)
            self.review.changed.connect(self.show_change)
            self.review.replaced.connect(self._on_replaced)
            self.review.named.connect(self._show_reviewer)
            self.review.named.connect(self.show_state)
            self.review.unnamed.connect(self._ask_name)
            self.review.warned.connect(self.status.setText)
            self._show_reviewer()
        self.reviewer.setEnabled(self.review is not None)
        self.show_review()

    def _say(self, text: str) -> None:
        self.banner.setText(text)
        self.banner.setVisible(bool(text))

    def _drop(self) -> None:
        if self.review is not None:
            review, self.review = self.review, None
            review.changed.disconnect(self.show_change)
            review.replaced.disconnect(self._on_replaced)
            review.named.disconnect(self._show_reviewer)
            review.named.disconnect(self.show_state)
            review.unnamed.disconnect(self._ask_name)
            review.warned.disconnect(self.status.setText)
            self._held.leave()
        self._say("")

    def _on_replaced(self) -> None:
        self._drop()
        self.show_review()
        self.choice.refresh()
        self.adopt()

    def _on_reviewer(self) -> None:
        if self.review is None or self.reviewer.text() == self.review.reviewer:
            return
        try:
            self.review.set_reviewer(self.reviewer.text())
        except ValueError as error:
            self._show_reviewer()
            self.warn(str(error))

    def _show_reviewer(self) -> None:
        if self.review is not None:
            self.reviewer.setText(self.review.reviewer)
            self.reviewer.setStyleSheet("")
            self._say("\n".join(self.review.notes))

    def _ask_name(self) -> None:
        self.reviewer.setStyleSheet("border: 2px solid #ffa94d;")
        if self.isVisible():
            self.reviewer.setFocus()

    def _on_theme(self) -> None:
        if isalive(self):
            self.show_theme()

    def event(self, event: QEvent | None) -> bool:
        """End the review when the dock is taken out of the window."""
        if event is not None and event.type() == QEvent.Type.ParentChange:
            if self.parent() is None:
                self._drop()
                self.leave()
            elif self.review is None:
                self.adopt()
        return bool(super().event(event))

    def leave(self) -> None:
        """Stop what the dock does in the background."""
