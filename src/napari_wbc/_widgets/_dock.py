"""What the docks share: a choice of layers, one button, progress, cancel and a line that says what is next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Layer
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QDockWidget,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_wbc.palette import use_palette

from ._preferences import preference
from ._source import CROPS, DENSITY, FRAMES, KEY, REGIONS, OfRun
from ._toast import toast

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_wbc.pipeline import Progress

# Messages of these say what to do; anything else is a fault of ours and leaves its traceback in the log.
EXPECTED = (ValueError, FileNotFoundError, PermissionError, MemoryError)
NEEDS_IMAGE = "Open a smear first: File ▸ Open Sample ▸ White blood cells, or drop a picture into the window."
READY = "Ready."

_log = logging.getLogger(__name__)


class LayerChoice(QComboBox):
    """Combo box of the viewer's layers of one kind; `layer` is the chosen one or None.

    Parameters
    ----------
    viewer : napari.Viewer
        Whose layers.
    kind : type or tuple of types
        Which layers are offered.
    nothing : str, optional
        First entry, for no layer.
    """

    chosen = Signal()

    def __init__(self, viewer: Viewer, kind: type | tuple[type, ...], nothing: str | None = None) -> None:
        super().__init__()
        self._viewer, self._kind, self._nothing = viewer, kind, nothing
        # A long file name must not widen the dock.
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(12)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed, viewer.layers.events.reordered):
            event.connect(self.refresh)
        if nothing is None:
            viewer.layers.selection.events.active.connect(self._follow_active)
        self.currentIndexChanged.connect(lambda _: self.chosen.emit())
        self.activated.connect(lambda _: self.uncover())
        self.refresh()
        self._follow_active()

    @property
    def layer(self) -> Layer | None:
        """The chosen layer."""
        layer: Layer | None = self.currentData()
        return layer

    def refresh(self) -> None:
        """Offer the layers that there are now and keep the choice."""
        if not isalive(self):
            return
        before = self.layer
        layers: list[Layer] = [layer for layer in self._viewer.layers if self._offers(layer)]
        self.blockSignals(True)
        self.clear()
        if self._nothing is not None:
            self.addItem(self._nothing, None)
        for layer in layers:
            self.addItem(layer.name, layer)
        self.blockSignals(False)
        if before in layers:
            self.choose(before)
        elif self._nothing is None and layers:
            self.choose(layers[-1])
        self.chosen.emit()

    def _offers(self, layer: Any) -> bool:
        # Crops and maps of ours are no smears.
        mark = getattr(layer, "metadata", {}).get(KEY, {})
        return isinstance(layer, self._kind) and mark.get("role") not in (CROPS, REGIONS, DENSITY, FRAMES)

    def choose(self, layer: Layer | None) -> None:
        """Choose a layer; nothing happens if it is not offered."""
        for index in range(self.count()):
            # Not `is`: napari hands plugins proxies of its layers.
            if self.itemData(index) == layer:
                self.setCurrentIndex(index)

    def showPopup(self) -> None:  # noqa: N802
        """Open the list, with the layers' names of now."""
        self.refresh()
        super().showPopup()

    def uncover(self) -> None:
        """Show the chosen picture of a run, if it is hidden, in place of the run's others."""
        layer = self.layer
        mine: OfRun | None = layer.metadata.get(OfRun.KEY) if layer is not None and not layer.visible else None
        if mine is None:
            return
        for other in self._viewer.layers:
            its: OfRun | None = other.metadata.get(OfRun.KEY)
            if its is not None and its.folder.parent == mine.folder.parent:
                other.visible = its.folder == mine.folder and its.shown

    def _follow_active(self) -> None:
        if isalive(self) and self._nothing is None:
            active = self._viewer.layers.selection.active
            if isinstance(active, self._kind):
                self.choose(active)


@dataclass(frozen=True)
class _Failure:
    error: Exception


def _guarded(make: Callable[[], Generator[Progress, None, Any]]) -> Generator[Progress, None, Any]:
    """Return errors instead of raising them: the worker takes a RuntimeError for its own deletion and drops it."""
    try:
        return (yield from make())
    except Exception as error:  # noqa: BLE001
        return _Failure(error)


def _quit(workers: list[Any]) -> None:
    for worker in workers:
        worker.quit()


class SharedPlace(QWidget):
    """A dock that shares one place of the window with the others of ours: below each other none of them has room.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        use_palette(preference("palette"))
        self.viewer = napari_viewer
        self._has_place = self._is_behind = False
        # As the window was before the dock made it higher.
        self._window_before = napari_viewer.window.geometry()[2:]

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """Share the tabs of the others, in front of them."""
        super().showEvent(event)
        dock, window = self._dock(), self.window()
        if dock is None or not isinstance(window, QMainWindow):
            return
        if self._has_place:
            if not event.spontaneous():  # chosen again, not the whole window that comes back
                QTimer.singleShot(0, partial(_bring_to_front, dock))
            return
        self._has_place = True
        dock.visibilityChanged.connect(self._on_visibility)
        area = window.dockWidgetArea(dock)
        for other in window.findChildren(QDockWidget):
            ours = other is not dock and other.isVisible() and other.findChild(SharedPlace) is not None
            if ours and not dock.isFloating() and window.dockWidgetArea(other) == area:
                window.tabifyDockWidget(other, dock)
                dock.raise_()
                if not window.isMaximized() and not window.isFullScreen():
                    QTimer.singleShot(0, partial(window.resize, *self._window_before))
                return

    def hideEvent(self, event: Any) -> None:  # noqa: N802
        """Come to the front instead: napari's menu hides a dock that is chosen there while it is behind another tab."""
        super().hideEvent(event)
        dock = self._dock()
        if self._is_behind and dock is not None and dock.isHidden():
            QTimer.singleShot(0, partial(_bring_to_front, dock))

    def _dock(self) -> QDockWidget | None:
        dock = self.parent()
        while dock is not None and not isinstance(dock, QDockWidget):
            dock = dock.parent()
        return dock

    def _on_visibility(self, seen: bool) -> None:
        dock = self._dock()
        self._is_behind = not seen and dock is not None and (self._is_behind or not dock.isHidden())


def _bring_to_front(dock: QDockWidget) -> None:
    window = dock.parent() if isalive(dock) else None
    # One that was taken out of the window meanwhile has no area.
    if isinstance(window, QMainWindow) and window.dockWidgetArea(dock) != Qt.DockWidgetArea.NoDockWidgetArea:
        dock.show()
        dock.raise_()


class ButtonDock(SharedPlace):
    """A form, one button, progress with *Cancel*, and a line that says what is next.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.

    Notes
    -----
    Subclasses fill `form` and `body`, and implement `is_running`, `start`, `cancel`, `leave` and `_say_next`.
    """

    verb = "Run"

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.form = QFormLayout()
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.run_button = QPushButton(self.verb)
        self.run_button.setMinimumHeight(40)
        self.run_button.setStyleSheet("font-size: 15px; font-weight: bold;")
        self.run_button.clicked.connect(self.start)
        self.progress = QProgressBar()
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.clicked.connect(self.cancel)
        self.status = QLabel(READY)
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        running = QHBoxLayout()
        running.addWidget(self.progress, 1)
        running.addWidget(self.cancel_button)
        self.body = QVBoxLayout(self)
        self.body.addLayout(self.form)
        self.body.addWidget(self.run_button)
        self.body.addLayout(running)
        self.body.addWidget(self.status)
        self._show_running(False)

    @property
    def is_running(self) -> bool:
        """Whether the button's work is being done."""
        raise NotImplementedError

    def start(self) -> None:
        """Run, unless something is missing; then say what."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Stop soon."""
        raise NotImplementedError

    def leave(self) -> None:
        """Stop what runs: the dock was taken out of the window."""
        raise NotImplementedError

    def event(self, event: QEvent | None) -> bool:
        """Stop what runs when the dock is taken out of the window."""
        if event is not None and event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.leave()
        return bool(super().event(event))

    def _fail(self, error: Exception) -> None:
        if isinstance(error, EXPECTED):
            message = str(error) or type(error).__name__
        else:
            _log.error("%s failed", self.verb, exc_info=error)
            message = f"{type(error).__name__}: {error} (the log has the details)"
        self.status.setText(message)
        toast(message, show_error)

    def _show_running(self, running: bool) -> None:
        self.progress.setRange(0, 0)
        self.progress.setVisible(running)
        self.cancel_button.setVisible(running)
        self.cancel_button.setEnabled(True)
        self.run_button.setEnabled(not running)

    def _say_next(self) -> None:
        raise NotImplementedError


class Dock(ButtonDock):
    """A dock that works on a picture: it runs one generator of `Progress` at a time in a worker.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.

    Notes
    -----
    Subclasses fill `form`, and implement `prepare`, which reads the controls
    on the GUI thread and returns a function for the worker, and `done`.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.image = LayerChoice(napari_viewer, Image)
        self.image.setToolTip("The RGB picture of the smear")
        self.form.addRow("Picture", self.image)
        self._workers: list[Any] = []
        self._said_of: Layer | None = None
        self.image.chosen.connect(self._say_next)
        # Bound methods of a dying widget are not called any more; a function of its list is.
        self.destroyed.connect(partial(_quit, self._workers))
        self._say_next()

    def prepare(self, image: Image) -> Callable[[], Generator[Progress, None, Any]]:
        """Read the controls; return what the worker runs."""
        raise NotImplementedError

    def done(self, result: Any, image: Image) -> str:
        """Show the result; return the line to show below the button."""
        raise NotImplementedError

    @property
    def is_running(self) -> bool:
        """Whether a worker is at it."""
        return bool(self._workers)

    def start(self) -> None:
        """Run, unless something is missing; then say what."""
        image = self.image.layer
        if self.is_running:
            return
        if image is None:
            self._say_next()
            return
        try:
            make = self.prepare(image)
        except EXPECTED as error:
            self._fail(error)
            return
        worker = create_worker(_guarded, make)
        worker.yielded.connect(self._on_progress)
        worker.returned.connect(partial(self._on_returned, image))
        worker.finished.connect(self._on_finished)
        self._workers.append(worker)
        self._show_running(True)
        self.status.setText("")
        worker.start()

    def cancel(self) -> None:
        """Stop at the next step."""
        _quit(self._workers)
        self.cancel_button.setEnabled(False)
        self.status.setText("Stopping after this step…")

    def leave(self) -> None:
        """Stop at the next step, without a word."""
        _quit(self._workers)

    def _on_progress(self, progress: Progress) -> None:
        self.progress.setRange(0, progress.total)
        self.progress.setValue(progress.done)
        count = f" {progress.done} of {progress.total}" if progress.total else ""
        self.progress.setFormat(f"{progress.stage}{count}")
        self.status.setText(f"{progress.stage.capitalize()}{count} …")

    def _on_returned(self, image: Image, result: Any) -> None:
        if not isalive(self):
            return
        if isinstance(result, _Failure):
            self._fail(result.error)
        elif image not in self.viewer.layers:
            self.status.setText("The picture was removed meanwhile; nothing was added.")
        else:
            try:
                self.status.setText(self.done(result, image))
            # An exception that leaves a slot ends the whole program.
            except Exception as error:  # noqa: BLE001
                self._fail(error)

    def _on_finished(self) -> None:
        stopped = self._workers and self._workers[0].abort_requested
        self._workers.clear()
        self._show_running(False)
        if stopped:
            self.status.setText("Cancelled.")

    def _say_next(self) -> None:
        image = self.image.layer
        # What was said of a picture stands until another is chosen, however many layers come and go.
        if not self.is_running and (image is None or image != self._said_of):
            self._said_of = image
            self.status.setText(NEEDS_IMAGE if image is None else READY)
