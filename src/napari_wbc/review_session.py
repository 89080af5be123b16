"""A review: the one table of cells that everything shows, and the decisions that change it.

A session takes decisions, writes each to the log beside the results before it counts, and tells whoever listens what
changed. It knows nothing of windows.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .atomic import ExportError
from .cells import Cells
from .class_names import BESIDE_MODEL, UNIDENTIFIED
from .counted import chosen, walk
from .decisions import Change, Decided, DecisionError, Entry, read_log
from .export import RESULT_FILES, write_folder, write_results
from .geojson import Rings, outlines, rings_in
from .record import record_of
from .reference import check_wbc
from .review import DECISIONS, checked_name
from .review_files import Kept, ReadOnlyError, locked, log_file, read_kept, sha256_of, table_in

if TYPE_CHECKING:
    from .pipeline import Analysis

__all__ = ["DEFAULTS", "Kept", "ReadOnlyError", "ReviewSession", "checked_name"]

Labels = Sequence[int] | npt.NDArray[np.integer[Any]]
Listener = Callable[[Change], None]
DEFAULTS: dict[str, Any] = {"target": None, "seed": 0, "wbc": None}
"""Settings of a review: white cells to count to (None: all), seed of their choice, white cells per µL."""


class ReviewSession:
    """Cells of one picture, under review.

    Parameters
    ----------
    kept : Kept
        The table with the decisions so far, and where they are kept.
    analysis : Analysis, optional
        Where the cells are from, if that is in memory.
    read_only : str
        Why no decision can be taken; empty if one can.

    Notes
    -----
    Use `open` for a folder of results and `of` for an analysis in memory.
    """

    def __init__(self, kept: Kept, *, analysis: Analysis | None = None, read_only: str = "") -> None:
        self._decided, self._labels, self.image = kept.decided, kept.labels, kept.image
        self._log, self._lock, self._entries = kept.log, kept.lock, list(kept.entries)
        self.folder, self.notes, self.analysis = kept.folder, list(kept.notes), analysis
        card = analysis.card if analysis is not None else None
        self.run: Mapping[str, Any] = kept.run
        """What ``run.json`` says of how the cells were found and classified; empty where nothing is known."""
        if analysis is not None and card is not None:
            self.run = {"model": {"name": card.name, "sha256": card.sha256}, "threshold": analysis.threshold}
        self.read_only = read_only
        """Why no decision can be taken; empty if one can."""
        self._listeners: list[Listener] = []
        self._order: tuple[int, npt.NDArray[np.intp]] | None = None
        self._classes: tuple[Cells, tuple[str, ...]] | None = None

    @classmethod
    def open(cls, folder: str | Path) -> ReviewSession:
        """Open a folder of results, with the decisions that are in it.

        Parameters
        ----------
        folder : str or pathlib.Path
            What `napari_wbc.export.write_results` wrote: of the command line, the dock or a batch.

        Raises
        ------
        ExportError, CellsError
            If there are no results, or files are damaged.

        Notes
        -----
        Where another session holds the folder, or it cannot be written, the session is read-only and says so in
        `read_only`. Tables of earlier versions get the columns of a review in memory; their files are kept as
        ``cells.before_review.*`` with the first decision.
        """
        folder = Path(folder).absolute()
        if not folder.is_dir():
            raise ExportError(f"{folder}: no such folder; choose a folder of results")
        lock, why = locked(folder)
        try:
            return cls(read_kept(folder, lock), read_only=why)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    @classmethod
    def of(cls, analysis: Analysis) -> ReviewSession:
        """Begin the review of an analysis in memory; `keep` writes it down."""
        return cls(Kept(Decided(analysis.cells), analysis.labels, analysis.slide.path), analysis=analysis)

    # ---- what there is

    @property
    def cells(self) -> Cells:
        """The one table, as it is now."""
        return self._decided.cells

    @property
    def before(self) -> Cells:
        """The table before the first decision."""
        return self._decided.before

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes to choose from: the model's, `BESIDE_MODEL`, and others that occur."""
        cells = self.cells
        if self._classes is None or self._classes[0] is not cells:
            others = sorted(set(cells.table["class"].unique()) - {""})
            self._classes = (cells, tuple(dict.fromkeys([*cells.classes, *BESIDE_MODEL, *others])))
        return self._classes[1]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the review, `DEFAULTS` where nothing was set."""
        return {**DEFAULTS, **self._decided.settings}

    @property
    def reviewed(self) -> npt.NDArray[np.bool_]:
        """Which cells somebody decided on."""
        return (self.cells.table["class_reviewed"] != "").to_numpy()

    @property
    def can_undo(self) -> bool:
        """Whether a decision can be taken back."""
        return bool(self._decided.undoable)

    @property
    def can_redo(self) -> bool:
        """Whether a decision that was taken back can be made again."""
        return bool(self._decided.redoable)

    @property
    def signed(self) -> Entry | None:
        """Who signed and when (``reviewer``, ``at``); None if nobody did since the last decision."""
        return self._decided.signed

    @property
    def is_final(self) -> bool:
        """Whether the counted cells hold no *unidentified* one and the review is signed."""
        names = self.cells.table["class"][self.counted]
        return self.signed is not None and not names.isin(["", UNIDENTIFIED]).any()

    @property
    def order(self) -> npt.NDArray[np.intp]:
        """Rows of the cells in the order in which they are counted; added cells come last."""
        seed, n = int(self.settings["seed"]), self._decided.n_before
        if self._order is None or self._order[0] != seed:
            self._order = (seed, walk(self.before.centroids, seed))
        there = self._decided.there
        every = np.append(self._order[1], np.arange(n, len(there)))
        rows = np.cumsum(there) - 1
        return np.asarray(rows[every[there[every]]])

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Which cells belong to the count, by the target and the seed of the settings."""
        return chosen(self.cells, self.order, self.settings["target"])

    @property
    def labels(self) -> npt.NDArray[np.integer[Any]] | None:
        """The label image of now: removed cells are gone from it and added ones are in it; None for a whole slide."""
        if self._labels is None:
            return None
        ids = self.cells.table["label"].to_numpy()
        labels = np.where(np.isin(self._labels, ids), self._labels, 0)
        for label, rings in self.added_outlines.items():
            from skimage.draw import polygon

            for ring in rings:
                inside = polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, labels.shape)
                if not (labels[inside] == label).any():  # else it is there, to the pixel
                    labels[inside] = np.where(labels[inside] == 0, label, labels[inside])
        return labels

    @property
    def added_outlines(self) -> dict[int, Rings]:
        """Outlines of cells that were added, or removed and brought back, as `geojson.outlines` gives them."""
        ids = set(self.cells.table["label"])
        found = self._decided.outlines.items()
        return {label: [np.asarray(ring, float) for ring in rings] for label, rings in found if label in ids}

    # ---- who listens

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call a function with every `Change`; returns the function that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    # ---- decisions

    def decide(self, labels: Labels, name: str, reviewer: str) -> Change:
        """Say what cells are.

        Parameters
        ----------
        labels : sequence of int
            The cells.
        name : str
            Their class; one of `classes`, or a new one.
        reviewer : str
            Who says so.

        Raises
        ------
        ReadOnlyError, ExportError
            If the decision cannot be kept; nothing changes then.
        ValueError
            If a name is empty, too long, or begins like a formula.
        """
        return self._take({"do": "class", "cells": _ids(labels), "class": checked_name(name), **_by(reviewer)})

    def accept(self, labels: Labels, reviewer: str) -> Change:
        """Say that the classes of cells are right."""
        return self._take({"do": "accept", "cells": _ids(labels), **_by(reviewer)})

    def add(self, cell: Cells, reviewer: str, outline: Rings | None = None) -> int:
        """Add a cell that was missed, and return its label.

        Parameters
        ----------
        cell : Cells
            One row (`napari_wbc.missed.cell_at`); it gets a label that no cell ever had.
        reviewer : str
            Who added it.
        outline : list of (m, 2) arrays, optional
            Its outline, as `napari_wbc.geojson.outlines` gives it.
        """
        label = self._decided.next_label
        if self._labels is not None:
            label = max(label, int(self._labels.max(initial=0)) + 1)
        row = cell.table.iloc[0].to_dict() | {"label": label, "slide": self._slide_name(cell)}
        plain = {str(name): _plain(value) for name, value in row.items()}
        rings = [np.round(ring, 2).tolist() for ring in outline or []]
        self._take({"do": "add", "cell": plain, "outline": rings, **_by(reviewer)})
        return label

    def remove(self, labels: Labels, reviewer: str) -> Change:
        """Remove cells from the table; `undo` brings them back."""
        return self._take({"do": "remove", "cells": _ids(labels), **_by(reviewer)})

    def undo(self) -> Change:
        """Take the last decision back that was not taken back yet."""
        return self._take({"do": "undo"})

    def redo(self) -> Change:
        """Make the last decision again that was taken back."""
        return self._take({"do": "redo"})

    def set(self, **values: Any) -> Change:
        """Change settings (`DEFAULTS`, and others such as a patient's id): text, numbers, truth or None.

        Raises
        ------
        ValueError
            If ``wbc`` is none that blood has.
        """
        check_wbc(values.get("wbc"))
        return self._take({"do": "set", "values": {name: _plain(value) for name, value in values.items()}})

    def sign(self, reviewer: str) -> Change:
        """Sign the review as it is now; a later decision voids the signature. It holds the SHA-256 of the history."""
        text = "\n".join(repr(sorted(entry.items())) for entry in self._entries)
        change = self._take({"do": "sign", "of": hashlib.sha256(text.encode()).hexdigest(), **_by(reviewer)})
        self.save()
        return change

    def _take(self, entry: Entry) -> Change:
        if self.read_only:
            raise ReadOnlyError(self.read_only)
        self._decided.check(entry)
        if self._log is not None:
            self._log.append(entry)
        self._entries.append({"n": len(self._entries) + 1, **entry})
        change = self._decided.apply(entry)
        self._tell(change)
        return change

    def _tell(self, change: Change) -> None:
        for listener in list(self._listeners):
            listener(change)

    def _slide_name(self, cell: Cells) -> str:
        table = self.before.table
        return str(table["slide"].iloc[0] if len(table) else cell.table["slide"].iloc[0])

    # ---- files

    def keep(self, folder: str | Path) -> Path:
        """Write the results of an analysis in memory and its decisions into a folder, where they go on.

        Raises
        ------
        ExportError
            If the folder cannot be written or holds other files, corrections or a review.
        """
        if self.analysis is None or self.folder is not None:
            raise ExportError("the review is kept in its folder already")
        path = write_results(self.analysis, folder, files=(*RESULT_FILES, "differential.csv"))
        self._lock, why = locked(path)
        if why:
            raise ReadOnlyError(why)
        self._log = log_file(path, read_log(path / DECISIONS), record_of(self.analysis, path.name))
        for entry in self._entries:
            self._log.append({key: value for key, value in entry.items() if key != "n"})
        self.folder = path
        self.save()
        self._tell(Change(np.empty(0, np.int64)))  # nothing of the table changed, but where it is
        return path

    def save(self) -> None:
        """Bring the tables and pictures of the folder up to the decisions; each file appears whole.

        The log has every decision already: this is for programs that read the tables.
        """
        folder = self.folder
        if folder is None or self.read_only or not self._entries:
            return
        known = (*RESULT_FILES, "differential.csv")
        files = [name for name in known if (folder / name).is_file()]
        rings, image, step = None, None, 1.0
        if self._labels is None and (folder / "cells.geojson").is_file():
            rings = rings_in((folder / "cells.geojson").read_text("utf-8")) | self.added_outlines
        self._keep_outlines(rings)
        if "annotated.png" in files:
            image, step = self._picture()
        with tempfile.TemporaryDirectory(prefix=".review", dir=folder.parent) as beside:
            fresh = write_folder(
                Path(beside) / "fresh", self.cells, self.labels, image=image, picture=self.image, files=files,
                corrected=True, rings=rings, step=step,
            )  # fmt: skip
            for path in fresh.iterdir():
                path.replace(folder / path.name)
        written = sha256_of(table_in(folder))
        if written != self._decided.settings.get("saved"):
            self.set(saved=written)  # so that a table that somebody edits later is known

    def _keep_outlines(self, rings: Mapping[int, Rings] | None) -> None:
        """Write the outlines of removed cells into the log, before the files lose them: `undo` brings them back."""
        lost = self._decided.lost
        if not len(lost):
            return
        if self._labels is not None:
            rings = outlines(np.where(np.isin(self._labels, lost), self._labels, 0))
        found = {
            str(label): [np.round(ring, 2).tolist() for ring in (rings or {})[label]]
            for label in lost.tolist() if label in (rings or {})
        }  # fmt: skip
        if found:
            self._take({"do": "outline", "outlines": found})

    def _picture(self) -> tuple[npt.NDArray[np.uint8] | None, float]:
        from .slide import ImageError, Slide

        try:
            slide = self.analysis.slide if self.analysis else Slide.open(self.image) if self.image else None
            if slide is None:
                return None, 1.0
            image = slide.thumbnail(2048) if slide.is_whole else slide.image
        except (ImageError, OSError):
            return None, 1.0
        return image, slide.shape[1] / image.shape[1]

    def close(self) -> None:
        """Let others review the folder; the session can then only be read."""
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.release()
        self._log = self._lock = None
        self.read_only = self.read_only or "this review was closed; open the folder again"
        self._listeners.clear()


def _by(reviewer: str) -> dict[str, str]:
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"reviewer": checked_name(reviewer), "at": at}


def _ids(labels: Labels) -> list[int]:
    ids = np.unique(np.asarray(labels, np.int64)).tolist()
    if not ids:
        raise DecisionError("no cell was chosen")
    return [int(label) for label in ids]


def _plain(value: Any) -> Any:
    """Return a value of a table as JSON has it; missing numbers are null."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
