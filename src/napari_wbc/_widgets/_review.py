"""One review of one layer of cells: whatever changes, in the session or in a layer, all of them show it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd
from napari.layers import Image, Points
from napari.utils.colormaps.standardize_color import transform_color
from napari.utils.notifications import show_error
from qtpy.compat import isalive
from qtpy.QtCore import QObject, QTimer, Signal

from napari_wbc.cells import REVIEW_COLUMNS, Cells
from napari_wbc.decisions import Change
from napari_wbc.palette import colour
from napari_wbc.review_session import ReviewSession, checked_name
from napari_wbc.words import sentence

from ._frames import Frames
from ._layers import CELLS, LABELS, MANY, find_layer, show_corrections
from ._panel import COUNTS, NAMES
from ._review_open import Changes, open_review, remember, user
from ._source import KEY, slide_of
from ._toast import toast

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

    from napari_wbc.geojson import Rings
    from napari_wbc.slide import Slide

# napari tells nobody of edits in its table of features: somebody has to look.
_LOOK_MS = 40
_SLOW_MS = 60
NEEDS_NAME = "Enter your name as Reviewer first."
NOT_SAVED = "not saved yet: Save results… in Classify white cells"
NOT_KEPT = "not saved: a table alone keeps no decisions; open its folder of results"
# What one sees around a cell that was chosen, µm.
_SEEN_UM = 60.0

_open: WeakValueDictionary[str, Review] = WeakValueDictionary()


def review_of(layer: Layer) -> Review | None:
    """Return the review of a layer of cells, or None."""
    return _open.get(str(layer.unique_id))


def begin(viewer: Viewer, layer: Points) -> Review:
    """Return the review of a layer of cells; begin it if there is none.

    Raises
    ------
    ExportError, CellsError
        If the layer's folder of results, or its features, cannot be used.
    """
    found = review_of(layer)
    if found is None:
        found = Review(viewer, layer, *open_review(layer))
        _open[str(layer.unique_id)] = found
    return found


class Review(QObject):
    """Keeps a session and the layers of its picture alike.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : napari.layers.Points
        The cells.
    session : ReviewSession
        Their review.
    waiting : Changes, optional
        What was changed in the layer before: decisions of whom it is to be said.
    """

    changed = Signal(object)
    """A `Change`: the table is another now."""
    added = Signal(int)
    """A cell that was missed is in the table now: its label."""
    picked = Signal()
    """Other cells are selected in the layer."""
    named = Signal()
    """Somebody else reviews."""
    unnamed = Signal()
    """A decision was not taken, since nobody knows whose it is."""
    warned = Signal(str)
    """Something cannot be done: why."""
    replaced = Signal()
    """The layer holds other cells: a new run, or it is gone. This review is over."""

    def __init__(self, viewer: Viewer, layer: Points, session: ReviewSession, waiting: Changes | None) -> None:
        super().__init__()
        self.viewer, self.layer, self.session, self._waiting = viewer, layer, session, waiting
        self.reviewer = user()
        """Who decides; empty as long as nobody said so."""
        self._users: set[object] = set()
        self._source = layer.metadata[KEY].get("cells")
        self._slide: Slide | None = None
        self._codes: npt.NDArray[Any] = np.empty(0)
        self._labels: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self.selected: npt.NDArray[np.int64] = np.empty(0, np.int64)
        """Labels of the selected cells."""
        self._outlined: set[int] = set()
        self._camera = getattr(viewer, "scene", viewer).camera  # napari 0.9 moved it
        self._frames = Frames(viewer, layer)
        if self.reviewer:
            self._take_waiting()
        elif waiting is not None:
            layer.metadata[KEY]["waiting"] = True  # so that a new run takes it for corrected
        session.subscribe(self._on_change)
        self._show_all()
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self._look)
        self._timer.start()
        # Outlines, names and the counts of many cells take longer than the rest: once after a burst of decisions.
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(_SLOW_MS)
        self._later.timeout.connect(self.show_rest)
        self.show_rest()
        self._camera.events.zoom.connect(self._smooth)
        self._smooth()

    # ---- who uses it

    def use(self, who: object) -> None:
        """Keep the review while somebody needs it."""
        self._users.add(who)

    def leave(self, who: object) -> None:
        """End the review when nobody needs it any more."""
        self._users.discard(who)
        if not self._users:
            self.end()

    def end(self) -> None:
        """Bring the files up to date and let others review."""
        if isalive(self):  # else Qt went first, as when a program is left by an error
            self._timer.stop()
            self._later.stop()
            self._camera.events.zoom.disconnect(self._smooth)
            self._frames.remove()
            if (waiting := self._forget_waiting()) is not None and self.layer in self.viewer.layers:
                self._show(waiting.data, waiting.features)
        _open.pop(str(self.layer.unique_id), None)
        try:
            self.session.save()
        except (ValueError, OSError) as error:
            toast(str(error), show_error)
        self.session.close()

    # ---- what there is

    @property
    def image(self) -> Image | None:
        """The layer of the picture."""
        mark = self.layer.metadata[KEY]
        for layer in self.viewer.layers:
            if isinstance(layer, Image) and KEY not in layer.metadata and (
                layer.unique_id == mark.get("image") or (
                    "image" not in mark and find_layer(self.viewer, layer, CELLS) == self.layer)
            ):  # fmt: skip
                return layer
        return None

    @property
    def slide(self) -> Slide | None:
        """The picture, or None where it is not found; raises ImageError where it cannot be used."""
        if self._slide is None:
            from napari_wbc.slide import Slide

            path = self.session.settings.get("picture") or self.session.image
            if self.session.analysis is not None:
                self._slide = self.session.analysis.slide
            elif self.image is not None:
                self._slide = slide_of(self.image)
            elif path is not None and Path(path).exists():
                self._slide = Slide.open(path)
        return self._slide

    def find_picture(self, path: Path) -> None:
        """Take the picture from where it was moved to; raises ImageError if it is not this one."""
        from napari_wbc.slide import ImageError, Slide

        slide, labels = Slide.open(path), self.session.labels
        table = self.session.cells.table
        far = table[["bbox-2", "bbox-3"]].max().to_numpy() if len(table) else np.zeros(2)
        if (labels is not None and labels.shape != slide.shape) or (far > slide.shape).any():
            raise ImageError(f"{path}: another picture: it has {slide.shape[1]} × {slide.shape[0]} pixels")
        self._slide = slide
        if not self.session.read_only:
            self.session.set(picture=str(path.absolute()))

    def rows_of(self, labels: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """Rows of the table, and points of the layer, of cells that are there."""
        rows = pd.Index(self._labels).get_indexer(pd.Index(np.asarray(labels, np.int64)))
        return np.asarray(rows[rows >= 0])

    # ---- decisions, with a message where they cannot be kept

    def set_reviewer(self, name: str) -> None:
        """Take the name of who decides from now on; raises ValueError if it is none."""
        self.reviewer = checked_name(name)
        remember(self.reviewer)
        self._take_waiting()
        self.named.emit()

    def _take_waiting(self) -> None:
        """Make decisions of what was changed in the layer before."""
        waiting = self._forget_waiting()
        if waiting is None:
            return
        try:
            waiting.decide(self.session, self.reviewer)
        except (ValueError, OSError) as error:
            self.session.notes.append(f"what was changed in the layer is not kept: {error}")

    def _forget_waiting(self) -> Changes | None:
        waiting, self._waiting = self._waiting, None
        self.layer.metadata[KEY].pop("waiting", None)
        return waiting

    @property
    def waits(self) -> str:
        """Says that what was changed in the layer before is no decision yet; empty if nothing was, or if it is."""
        if self._waiting is None:
            return ""
        n = len(self._waiting)
        what = "One cell that you changed waits" if n == 1 else f"{n} cells that you changed wait"
        return f"{what} for your name: enter it as Reviewer."

    @property
    def notes(self) -> list[str]:
        """What is to be known of this review."""
        return [*filter(None, [self.session.read_only, self.waits]), *self.session.notes]

    def warn(self, message: str) -> None:
        """Say what cannot be done, in napari and in the lines of the docks."""
        toast(message)
        self.warned.emit(message)

    def act(self, what: Callable[..., Any], *args: Any) -> bool:
        """Do something with the session; says why if it cannot be done, and shows what is true then."""
        try:
            what(*args)
        except (ValueError, OSError) as error:
            self._show_all()
            self.warn(str(error))
            return False
        return True

    def act_by(self, what: Callable[..., Any], **args: Any) -> bool:
        """Do something with the session in the reviewer's name; without one nothing is done, and it is asked for."""
        if not self.reviewer:
            self._show_all()
            self.warn(NEEDS_NAME)
            self.unnamed.emit()
            return False
        return self.act(partial(what, reviewer=self.reviewer, **args))

    def decide(self, labels: npt.ArrayLike, name: str) -> bool:
        """Say what cells are."""
        return self.act_by(self.session.decide, labels=np.asarray(labels), name=name)

    def accept(self, labels: npt.ArrayLike) -> bool:
        """Say that the classes of cells are right."""
        return self.act_by(self.session.accept, labels=np.asarray(labels))

    def remove(self, labels: npt.ArrayLike) -> bool:
        """Take cells out of the table."""
        return self.act_by(self.session.remove, labels=np.asarray(labels))

    @property
    def unsaved(self) -> str:
        """Says that decisions are in memory only, and what to do; empty if each is on the disk at once."""
        if self.session.folder is not None:
            return ""
        return NOT_KEPT if self.session.analysis is None else NOT_SAVED

    def sign(self) -> bool:
        """Sign the review; what is in memory only cannot be signed."""
        if self.unsaved:
            self.warn(sentence(self.unsaved))
            return False
        return self.act_by(self.session.sign)

    def undo(self) -> bool:
        """Take the last decision back."""
        return self.session.can_undo and self.act(self.session.undo)

    def redo(self) -> bool:
        """Make it again."""
        return self.session.can_redo and self.act(self.session.redo)

    def add_at(self, points: npt.NDArray[np.float64]) -> None:
        """Segment and classify what lies at points (rows and columns of the picture), and add it; in a thread."""
        from ._review_missed import find_cells

        if self.session.read_only or self.slide is None:
            self.warn(self.session.read_only or "Find the picture before you add cells.")
            return
        find_cells(self.slide, points, self.session, self._on_found, self.warn)

    def _on_found(self, found: list[tuple[Cells, Rings]]) -> None:
        if not isalive(self):
            return
        for cell, outline in found:
            if self.act_by(self.session.add, cell=cell, outline=outline):
                self.added.emit(int(self.session.cells.table["label"].max()))

    # ---- layers follow the session

    def _on_change(self, change: Change) -> None:
        if change.structure:
            self._show_all()
        elif len(change.labels):
            self._show_classes(self.rows_of(change.labels))
        if len(change.labels):
            self._later.start()
        self.changed.emit(change)

    def _show_all(self) -> None:
        """Give the layer all cells of the session."""
        cells = self.session.cells
        table, layer = cells.table, self.layer
        self._labels = table["label"].to_numpy(np.int64, copy=True)
        features = table.assign(**{"class": self._categories(table["class"])})
        kept = self.selected
        self._show(cells.centroids, features)
        self._remember()
        self.select(kept)
        layer.events.features()

    def _show(self, data: npt.NDArray[np.float64], features: pd.DataFrame) -> None:
        layer = self.layer
        with layer.events.data.blocker(), layer.events.features.blocker():
            layer.selected_data = set()
            if not np.array_equal(layer.data, data.astype(layer.data.dtype)):
                layer.data = data
            layer.features = features
        layer.face_color = _faces(features["class"].astype(object))

    def _show_classes(self, rows: npt.NDArray[np.intp]) -> None:
        """Give the layer the classes of the session; `rows` are those that changed."""
        table, layer = self.session.cells.table, self.layer
        features = layer.features
        for name in REVIEW_COLUMNS[1:]:
            features[name] = table[name]
        features["class"] = self._categories(table["class"])
        faces = layer.face_color
        faces[rows] = _faces(table["class"].iloc[rows])
        layer.face_color = faces
        self._remember()
        layer.events.features()

    def _categories(self, names: pd.Series) -> pd.Categorical:
        """Categories give napari's table of features a list to choose from."""
        extra = [""] if (names == "").any() else []
        return pd.Categorical(names, categories=[*self.session.classes, *extra])

    def _remember(self) -> None:
        self._codes = self._codes_now()

    def _codes_now(self) -> npt.NDArray[Any]:
        column = self.layer.features["class"]
        is_category = isinstance(column.dtype, pd.CategoricalDtype)
        return np.array(column.cat.codes if is_category else column)  # a copy: pandas 2 gives what later edits change

    def show_rest(self) -> None:
        """Let outlines, names and the panel of counts follow."""
        image = self.image
        if image is None:
            return
        found = {role: find_layer(self.viewer, image, role) for role in (LABELS, NAMES, COUNTS)}
        shown = {role: layer for role, layer in found.items() if layer is not None}
        labels, added = shown.get(LABELS), set(self.session.added_outlines)
        if labels is not None and added != self._outlined:
            labels.data = self.session.labels
            self._outlined = added
        finest = image.data[0] if image.multiscale else image.data
        show_corrections(shown, self.session.cells, finest.shape[:2])

    def _smooth(self, _: object = None) -> None:
        """Smooth the edges of the points, not of thousands of tiny ones: a processor takes long for them."""
        self._frames.follow(self._camera.zoom)
        layer = self.layer
        if len(layer.data):
            pixels = float(np.median(layer.size)) * abs(layer.scale[-1]) * self._camera.zoom
            wanted = 0 if len(layer.data) > MANY and pixels < layer.canvas_size_limits[0] else 1
            if layer.antialiasing != wanted:
                layer.antialiasing = wanted

    # ---- the session follows the layers

    def _look(self) -> None:
        """See what somebody changed in the layer: classes in its table, cells, the selection, or everything."""
        layer = self.layer
        if layer not in self.viewer.layers or layer.metadata[KEY].get("cells") is not self._source or (
            layer.metadata[KEY].get("role") != CELLS
        ):  # fmt: skip
            self._timer.stop()
            self.end()
            self.replaced.emit()
            return
        features = layer.features
        if len(features) != len(self._labels) or not np.array_equal(features["label"], self._labels):
            self._take_cells()
        elif not np.array_equal(self._codes_now(), self._codes):
            self.act_by(self._take_classes)
        self._look_at_selection()

    def _take_classes(self, reviewer: str) -> None:
        """Take over classes that were changed in the layer's features."""
        names = self.layer.features["class"].astype(object).to_numpy()
        changed = (names != self.session.cells.table["class"].to_numpy()) & (names != "") & ~pd.isna(names)
        for name, labels in pd.Series(self._labels[changed]).groupby(names[changed]):
            self.session.decide(labels.to_numpy(), str(name), reviewer)
        self._show_classes(np.flatnonzero(changed))

    def _take_cells(self) -> None:
        """Take over that points were deleted or added; what lies at an added one is segmented and classified."""
        layer = self.layer
        there = layer.features["label"].to_numpy(np.int64)
        gone = np.setdiff1d(self._labels, there)
        # napari gives an added point the features of another.
        first = ~pd.Series(there).duplicated().to_numpy() & np.isin(there, self._labels)
        added = np.asarray(layer.data)[~first, -2:]
        if len(gone) and not self.remove(gone):
            return
        self._show_all()
        if len(added):
            self.add_at(added)

    # ---- selection

    def _look_at_selection(self) -> None:
        now = np.fromiter(self.layer.selected_data, np.intp, len(self.layer.selected_data))
        now = np.sort(now[now < len(self._labels)])
        labels = self._labels[now]
        if not np.array_equal(labels, np.sort(self.selected)):
            self.selected = labels
            self._frame(now)
            self.picked.emit()

    def select(self, labels: npt.ArrayLike) -> None:
        """Select cells in the layer."""
        rows = self.rows_of(labels)
        self.selected = self._labels[rows]
        self.layer.selected_data = set(rows.tolist())
        self._frame(rows)

    def _frame(self, rows: npt.NDArray[np.intp]) -> None:
        """Frame cells in the picture."""
        box = self.session.cells.table.iloc[rows][["bbox-0", "bbox-1", "bbox-2", "bbox-3"]].to_numpy(float)
        sides = (box[:, 2:] - box[:, :2]).max(axis=1, initial=0)
        self._frames.show(self.session.cells.centroids[rows], sides, self._camera.zoom)

    def fly_to(self, label: int) -> None:
        """Show a cell in the middle of the canvas, highlighted."""
        (row,) = self.rows_of([label])
        place = self.layer.data_to_world(self.session.cells.centroids[row])
        mpp = float(self.session.cells.table["mpp"].iloc[row])
        camera = self._camera
        camera.center = (*camera.center[:-2], *place[-2:])
        seen = _SEEN_UM / mpp * self.layer.scale[-1] if np.isfinite(mpp) else 600 * self.layer.scale[-1]
        canvas = min(self.viewer.window.geometry()[2:]) / 2
        camera.zoom = max(camera.zoom, canvas / seen)
        if self.viewer.layers.selection.active != self.layer:
            self.viewer.layers.selection.active = self.layer
        self.select([label])


def _faces(names: pd.Series) -> npt.NDArray[np.float32]:
    codes, classes = pd.factorize(names)
    colours = [colour(name) if name else "white" for name in classes] or ["white"]
    return np.asarray(transform_color(colours))[codes]
