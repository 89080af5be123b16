"""The dock that shows all cells side by side by class, to be corrected by hand in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.theme import get_theme
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QCursor, QKeySequence
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QMenu,
    QPushButton,
    QShortcut,
    QSlider,
)

from napari_wbc.cells import Cells
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.quiz import Quiz

from ._dock import EXPECTED
from ._gallery_compare import Reference
from ._gallery_filters import Filters
from ._gallery_keys import load_keys, save_key
from ._gallery_menu import class_menu
from ._gallery_order import COUNTED, NO_CLASS, Arrangement, Section, arrange, letters
from ._gallery_paint import Colours
from ._gallery_score import Score
from ._gallery_view import LARGEST, SMALLEST, GalleryView
from ._review_dock import NEEDS_CELLS, ReviewDock
from ._source import KEY
from ._thumbnails import Thumbnails

if TYPE_CHECKING:
    from napari.viewer import Viewer

HELP = (
    "Letter: class of the selected cells · Space: accept and go on · .: next one not reviewed · Enter: show in the "
    "picture · arrows: move · + and −: size · Delete: remove · Ctrl+Z, Ctrl+Shift+Z: undo, redo"
)


class GalleryWidget(ReviewDock):
    """Cells side by side by class.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.setMinimumWidth(400)
        self.thumbnails: Thumbnails | None = None
        self._keys = load_keys()
        self._letters: dict[str, str] = {}
        self.quiz: Quiz | None = None
        self.score: Score | None = None
        self._hidden: list[Any] = []
        self.filters = Filters(self.form)
        self.filters.changed.connect(self.arrange)
        self.picture_button = QPushButton("Find picture…")
        self.picture_button.setToolTip("The picture is not where it was when the results were written")
        self.picture_button.clicked.connect(lambda: self.find_picture())
        self.body.addWidget(self.picture_button)
        self.reference = Reference()
        self.body.addWidget(self.reference)
        self.view = GalleryView()
        self.view.selection_changed.connect(self._on_selected)
        self.view.opened.connect(self._on_opened)
        self.view.typed.connect(self._on_typed)
        self.view.dropped.connect(self.decide)
        self.view.asked.connect(self._on_menu)
        self.view.zoomed.connect(lambda side: self.size_slider.setValue(side))
        self.body.addWidget(self.view, 1)
        self._add_buttons()
        self.body.addWidget(self.status)
        for keys, act in ((QKeySequence("Ctrl+Z"), self.undo), (QKeySequence("Ctrl+Shift+Z"), self.redo)):
            shortcut = QShortcut(keys, self)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(act)
        self.show_theme()
        self.choice.chosen.connect(self.adopt)
        self.adopt()

    # ---- building

    def _add_buttons(self) -> None:
        self.undo_button, self.redo_button = QPushButton("Undo"), QPushButton("Redo")
        self.accept_button, self.next_button = QPushButton("Accept"), QPushButton("Next")
        self.add_button, self.compare_button = QPushButton("Add missed"), QPushButton("Compare")
        self.quiz_button = QPushButton("Quiz")
        self.quiz_button.setCheckable(True)
        self.quiz_button.setToolTip("Name reviewed cells whose classes are hidden, by key; for students")
        self.quiz_button.toggled.connect(self._on_quiz)
        for button, tip, act in (
            (self.undo_button, "Take the last decision back (Ctrl+Z)", self.undo),
            (self.redo_button, "Make it again (Ctrl+Shift+Z)", self.redo),
            (self.accept_button, "The classes of the selected cells are right (Space)", self.accept),
            (self.next_button, "Go to the next cell that was not reviewed (.)", self.next_unreviewed),
        ):
            button.setToolTip(tip)
            button.clicked.connect(act)
        self.add_button.setCheckable(True)
        self.add_button.setToolTip("Click in the picture on a cell that was missed: it is outlined and classified")
        self.add_button.toggled.connect(self._on_add)
        self.compare_button.setCheckable(True)
        self.compare_button.setToolTip("Show reference cells of the class, at the same scale")
        self.compare_button.toggled.connect(self._on_compare)
        self.size_slider = QSlider(Qt.Orientation.Horizontal)
        self.size_slider.setRange(SMALLEST, LARGEST)
        self.size_slider.setValue(self.view.side)
        self.size_slider.setToolTip("Size of the cells (Ctrl and wheel, + and −)")
        self.size_slider.valueChanged.connect(self._on_size)
        for buttons in (
            (self.accept_button, self.next_button, self.undo_button, self.redo_button),
            (self.add_button, self.compare_button, self.quiz_button, self.size_slider),
        ):
            row = QHBoxLayout()
            for button in buttons:
                row.addWidget(button, 1)
            self.body.addLayout(row)

    # ---- what is shown

    def show_review(self) -> None:
        """Show another review, or none."""
        if self.thumbnails is not None:
            self.thumbnails.close()
        self.thumbnails = None
        self.quiz_button.setChecked(False)
        self.view.selected, self.view.current = set(), None
        slide = None
        if self.review is not None:
            self.review.picked.connect(self._on_picked)
            self.review.added.connect(self.view.reach)
            try:
                slide = self.review.slide
            except (*EXPECTED, OSError) as error:
                self._say(str(error))
        if slide is not None:
            self.thumbnails = Thumbnails(slide, self)
        self.view.set_thumbnails(self.thumbnails)
        self.picture_button.setVisible(self.review is not None and slide is None)
        for button in (
            self.accept_button, self.next_button, self.add_button, self.compare_button, self.quiz_button,
        ):  # fmt: skip
            button.setEnabled(self.review is not None)
        self.arrange()

    def show_change(self, change: Any) -> None:
        """Show what a decision changed."""
        if change.structure and self.thumbnails is not None and len(change.labels) > len(self.view.labels):
            self.thumbnails.forget()
        if len(change.labels) or self.filters.show == COUNTED:
            self.arrange()
        self.show_state()

    def show_theme(self) -> None:
        """Take the colours of napari's theme."""
        theme = get_theme(self.viewer.theme)
        names = ("text", "background", "foreground", "current")
        self.view.set_colours(Colours(*(getattr(theme, name).as_hex() for name in names)))

    def arrange(self) -> None:
        """Group, sort and show the cells as the controls say."""
        self.filters.offer(self.review.session.classes if self.review is not None else ())
        if self.review is None:
            self.view.show_cells(Cells.empty(), Arrangement(), {})
            self.show_state()
            return
        try:
            shown = self.filters.shown(self.viewer, self.review.image)
        except (*EXPECTED, OSError) as error:
            self.filters.inside.setChecked(False)
            self.warn(str(error))
            return
        session = self.review.session
        self._letters = letters(session.classes, self._keys)
        arrangement = arrange(session, shown)
        if self.quiz is not None:
            rows = self.review.rows_of(self.quiz.open)
            arrangement = Arrangement(rows, (Section("", 0, len(rows), len(rows)),))
        self.view.show_cells(session.cells, arrangement, self._letters)
        self.show_state()

    def show_state(self) -> None:
        """Say how far the review is."""
        if self.review is None:
            self.status.setText(NEEDS_CELLS)
            self.status.setToolTip("")
            return
        session = self.review.session
        n, done = len(session.cells), int(session.reviewed.sum())
        unsure = int((session.cells.table["class"] == UNIDENTIFIED).sum())
        shown = "" if len(self.view.labels) == n else f" · {len(self.view.labels):,} shown"
        chosen = f" · {len(self.view.selected):,} selected" if self.view.selected else ""
        unsaved = f" · {self.review.unsaved}" if self.review.unsaved else ""
        self.status.setText(f"{done:,} of {n:,} reviewed · {unsure:,} unidentified{shown}{chosen}{unsaved}")
        self.status.setToolTip(HELP)
        self.undo_button.setEnabled(session.can_undo and not session.read_only)
        self.redo_button.setEnabled(session.can_redo and not session.read_only)

    # ---- decisions

    def decide(self, name: str) -> None:
        """Give the selected cells a class, and go on to the cell after them."""
        if self.quiz is None and self.review is not None and self.view.selected:
            after = self._after()
            if self.review.decide(sorted(self.view.selected), name):
                self._go_on(after)

    def accept(self) -> None:
        """Accept the classes of the selected cells, and go on to the next one that was not reviewed."""
        if self.review is not None and self.view.selected:
            after = self._next_open(self.view.selected)
            if self.review.accept(sorted(self.view.selected)):
                self._to_open(after)

    def remove(self) -> None:
        """Take the selected cells out of the table."""
        if self.review is not None and self.view.selected:
            after = self._after()
            if self.review.remove(sorted(self.view.selected)):
                self._go_on(after)

    def undo(self) -> None:
        """Take the last decision back."""
        if self.review is not None:
            self.review.undo()

    def redo(self) -> None:
        """Make it again."""
        if self.review is not None:
            self.review.redo()

    def next_unreviewed(self) -> None:
        """Go to the next shown cell that was not reviewed."""
        if self.review is not None:
            self._to_open(self._next_open(set()))

    def _last_place(self) -> int:
        places = np.flatnonzero(np.isin(self.view.labels, list(self.view.selected)))
        return int(places[-1]) if len(places) else -1

    def _after(self) -> int | None:
        """Return the cell after the selected ones, which takes their place."""
        labels = self.view.labels
        rest = np.flatnonzero(~np.isin(labels, list(self.view.selected)))
        later = rest[rest > self._last_place()]
        return int(labels[later[0] if len(later) else rest[-1]]) if len(rest) else None

    def _go_on(self, label: int | None) -> None:
        if label is not None and self.view.place_of(label) is not None:
            self.view.reach(label)

    def _next_open(self, but: set[int]) -> int | None:
        """Return the next shown cell after the selected ones that was not reviewed and is none of these."""
        assert self.review is not None  # noqa: S101
        session, labels = self.review.session, self.view.labels
        closed = [*session.cells.table["label"].to_numpy()[session.reviewed], *but]
        waiting = np.flatnonzero(~np.isin(labels, closed))
        later = waiting[waiting > self._last_place()]
        return int(labels[later[0] if len(later) else waiting[0]]) if len(waiting) else None

    def _to_open(self, label: int | None) -> None:
        if label is None:
            self.status.setText("All shown cells are reviewed.")
        else:
            self._go_on(label)

    # ---- what the user does

    def _on_typed(self, sign: str) -> None:
        if self.review is None:
            return
        named = {letter: name for name, letter in self._letters.items()}
        if self.quiz is not None:
            label = self.view.current
            if sign.lower() in named and label is not None and label in self.quiz.open:
                self._answer(self.quiz, label, named[sign.lower()])
        elif sign.lower() in named:
            self.decide(named[sign.lower()])
        elif sign == " ":
            self.accept()
        elif sign == ".":
            self.next_unreviewed()
        elif sign == "\x7f":
            self.remove()
        elif sign == "\r" and self.view.current is not None:
            self.review.fly_to(self.view.current)

    def _on_quiz(self, on: bool) -> None:
        """Hide the classes and ask for them, or show them again."""
        if self.review is None:
            return
        try:
            self.quiz = Quiz(self.review.session.cells) if on else None
        except ValueError as error:
            self.quiz_button.setChecked(False)
            self.warn(str(error))
            return
        if on:
            # Outlines and names tell the class.
            self._hidden = [layer for layer in self.viewer.layers if KEY in layer.metadata and layer.visible]
        for layer in self._hidden:
            layer.visible = not on
        self.view.hide_classes = on
        for button in (self.accept_button, self.next_button, self.undo_button, self.redo_button, self.add_button):
            button.setEnabled(not on)
        self.arrange()
        if self.quiz is not None:
            self.view.reach(self.quiz.open[0])
            self.status.setText(f"{len(self.quiz.open)} cells: name each with its key.")

    def _answer(self, quiz: Quiz, label: int, name: str) -> None:
        right = quiz.answer(label, name)
        if quiz.open:
            self.arrange()
            self.view.reach(quiz.open[0])
        else:
            self.quiz_button.setChecked(False)
            self.score = Score(quiz, self)
            self.score.show()
        score, asked = quiz.score
        self.status.setText(f"{'Right' if right else 'Wrong'}. {score} of {asked} right.")

    def _on_selected(self) -> None:
        if self.quiz is None and self.review is not None:
            self.review.select(sorted(self.view.selected))
        self.show_state()
        self._show_reference()

    def _on_opened(self, label: int) -> None:
        if self.quiz is None and self.review is not None and len(self.view.selected) == 1:
            self.review.fly_to(label)

    def _on_picked(self) -> None:
        """Show what was selected in the picture."""
        if self.review is not None:
            self.view.select(set(self.review.selected.tolist()))
            if len(self.review.selected):
                self.view.ensure_seen(int(self.review.selected[0]))
            self.show_state()
            self._show_reference()

    def _on_menu(self, point: QPoint) -> None:
        if self.quiz is None and self.review is not None:
            menu = self.menu()
            menu.exec(point if not point.isNull() else QCursor.pos())

    def menu(self) -> QMenu:
        """Return the context menu."""
        classes = self.review.session.classes if self.review is not None else ()
        menu = class_menu(self, classes, self._letters, self.decide, self.set_key, some=bool(self.view.selected))
        menu.addSeparator()
        menu.addAction("Accept\tSpace", self.accept).setEnabled(bool(self.view.selected))
        menu.addAction("Remove from the table\tDel", self.remove).setEnabled(bool(self.view.selected))
        return menu

    def set_key(self, name: str, letter: str) -> None:
        """Bind a letter to a class, now and later."""
        try:
            self._keys = save_key(name, letter)
        except (ValueError, OSError) as error:
            self.warn(str(error))
            return
        self.arrange()

    def _on_size(self, side: int) -> None:
        self.view.set_side(side)
        self._show_reference()

    def _on_add(self, on: bool) -> None:
        if self.review is None:
            return
        if on and self.review.session.read_only:
            self.add_button.setChecked(False)
            self.warn(self.review.session.read_only)
            return
        # napari's own tool for points: what it adds is segmented and classified.
        self.review.layer.mode = "add" if on else "pan_zoom"
        if on:
            self.viewer.layers.selection.active = self.review.layer
            self.status.setText("Click on missed cells in the picture; click «Add missed» again when you are done.")

    def _on_compare(self, on: bool) -> None:
        self.reference.setVisible(on)
        self._show_reference()

    def _show_reference(self) -> None:
        if not self.compare_button.isChecked() or self.review is None:
            return
        rows = self.review.rows_of([self.view.current] if self.view.current is not None else [])
        shown = self.filters.show
        name = self.review.session.cells.table["class"].iloc[rows[0]] if len(rows) else ""
        name = shown if shown in self.review.session.classes else name or NO_CLASS
        self.reference.show_class(name, self.view.side, self.view.viewport().width())

    def find_picture(self, path: str | Path | None = None) -> None:
        """Take the picture from where it was moved to; asks for it if none is given."""
        path = path or QFileDialog.getOpenFileName(self, "Picture of these cells")[0]
        if path and self.review is not None:
            try:
                self.review.find_picture(Path(path))
            except (*EXPECTED, OSError) as error:
                self.warn(str(error))
                return
            self.show_review()

    def leave(self) -> None:
        """Stop decoding."""
        if self.thumbnails is not None:
            self.thumbnails.close()
            self.thumbnails = None
            self.view.set_thumbnails(None)
