"""The choice of labelled cells, and what there is of each class: told by ``napari-wbc dataset`` in its own process."""

from __future__ import annotations

from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QLineEdit, QMenu, QPushButton, QWidget

from napari_wbc.palette import colour

from ._child import Child

# The table of more classes would push the button out of the window.
MOST_ROWS = 12
PARTS = {"train": "training", "val": "validation", "test": "test"}
NOTES = ("Note: ", "Left out: ")


class Labelled(QObject):
    """A row to choose a folder or a CSV file in, and a summary of what it holds.

    Parameters
    ----------
    parent : QWidget
        The dock.
    """

    changed = Signal()
    failed = Signal(str)

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.edit = QLineEdit()
        self.edit.setPlaceholderText("a folder with one folder a class, or a CSV")
        self.edit.setToolTip("Labelled cells in any of the forms that the documentation on training names")
        self.edit.editingFinished.connect(self._on_edited)
        menu = QMenu(parent)
        menu.addAction("Folder…", self._browse_folder)
        menu.addAction("CSV file…", self._browse_file)
        browse = QPushButton("Choose…")
        browse.setMenu(menu)
        self.row = QWidget()
        row = QHBoxLayout(self.row)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.edit, 1)
        row.addWidget(browse)
        self.summary = QLabel()
        self.summary.setWordWrap(True)
        self.summary.setTextFormat(Qt.TextFormat.RichText)
        self.summary.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.summary.hide()
        self.child = Child(self)
        self.child.progressed.connect(self._on_progress)
        self.child.ended.connect(self._on_ended)
        self.notes: list[str] = []
        self._path: Path | None = None
        self._again = False
        self._place: TemporaryDirectory[str] | None = None

    @property
    def path(self) -> Path | None:
        """What is chosen."""
        return self._path

    def choose(self, path: str | Path) -> None:
        """Choose a folder or file, and look at what it holds."""
        text = str(path).strip()
        chosen = Path(text).expanduser().absolute() if text else None
        self.edit.setText(shown(chosen) if chosen else "")
        if chosen == self._path:
            return
        self._path, self.notes = chosen, []
        self.summary.hide()
        self.changed.emit()
        self._look()

    def stop(self) -> None:
        """Look no longer."""
        self._again = False
        self.child.stop()

    def show_split(self, folder: Path, output: str | None = None, *, brief: bool = False) -> None:
        """Show how many cells of each class a split puts where.

        Parameters
        ----------
        folder : pathlib.Path
            Holds ``split.csv``.
        output : str, optional
            What the command printed: its notes stand below the table. The earlier ones if not given.
        brief : bool
            Whether the classes have no row each but stand in the tool tip: curves need the room.
        """
        if output is not None:
            self.notes = notes_in(output)
        split = pd.read_csv(folder / "split.csv", dtype=str, keep_default_na=False)
        counts = pd.crosstab(split["class"], split["split"])
        parts = [part for part in PARTS if part in counts]
        numbers = [f"{int(counts[part].sum())} " * brief + PARTS[part] for part in parts]
        heads = "".join(f'<td align="right">&nbsp;&nbsp;&nbsp;{text}</td>' for text in numbers)
        rows = [f"<tr><td>{len(counts)} classes, {len(split)} cells</td>{heads}</tr>"]
        for name, row in counts.head(MOST_ROWS).iterrows():
            cells = "".join(f'<td align="right">{row[part]}</td>' for part in parts)
            swatch = f'<span style="color: {colour(str(name))}">■</span>'
            rows.append(f"<tr><td>{swatch} {escape(str(name))}</td>{cells}</tr>")
        more = [f"and {len(counts) - MOST_ROWS} more classes"] if len(counts) > MOST_ROWS else []
        lines = "".join(f'<p style="margin: 3px 0px 0px">{escape(line)}.</p>' for line in (*more, *self.notes))
        table = "<table width='100%' cellspacing='1'>{}</table>"
        self.summary.setText(table.format("".join(rows[:1] if brief else rows)) + lines)
        self.summary.setToolTip(table.format("".join(rows)) if brief else "")
        self.summary.show()

    def _look(self) -> None:
        if self.child.is_running:
            self._again = True
            self.child.stop()
        elif self._path is not None:
            self._place = TemporaryDirectory(prefix="napari-wbc-")
            self._say("Looking at the cells …")
            self.child.start("dataset", str(self._path), "--output", self._place.name)

    def _on_progress(self, _: str, done: int, total: int) -> None:
        self._say(f"Looking at the cells: {done} of {total} …")

    def _on_ended(self, output: str, why: str) -> None:
        place, self._place = self._place, None
        if self._again:
            self._again = False
            self._look()
        elif place is not None and output:
            try:
                self.show_split(Path(place.name), output)
            except (OSError, ValueError) as error:  # what leaves a slot ends the whole program
                self.failed.emit(str(error))
        else:
            self.summary.hide()
            if why:
                self.failed.emit(why)

    def _say(self, text: str) -> None:
        self.summary.setText(escape(text))
        self.summary.show()

    def _on_edited(self) -> None:
        self.choose(self.edit.text())

    def _browse_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self.row, "Labelled cells: a folder with one folder a class")
        if path:
            self.choose(path)

    def _browse_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.row, "Labelled cells: a table", "", "Table (*.csv)")
        if path:
            self.choose(path)


def notes_in(output: str) -> list[str]:
    """Return the notes among what a command printed, each with a capital letter."""
    lines = [line.removeprefix(NOTES[0]) for line in output.splitlines() if line.startswith(NOTES)]
    return [line[:1].upper() + line[1:] for line in lines]


def shown(path: Path) -> str:
    """Return a path as short as it can be read back: below the home folder with ~."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)
