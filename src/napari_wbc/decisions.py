"""What people decided on cells, one after the other: the table under decisions, and the log that is never rewritten.

A log is JSON Lines: a head, then a line a decision. The table as it was before the first one, and the log, give the
table of now, always the same; undo and redo are lines like any other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .atomic import ExportError
from .cells import REVIEW_COLUMNS, Cells, CellsError
from .review import BEFORE_REVIEW, DECISIONS
from .tables import read_cells

FORMAT, VERSION = "napari-wbc decisions", 1
Entry = Mapping[str, Any]
Ids = npt.NDArray[np.int64]


class DecisionError(ExportError):
    """A decision or a log of decisions cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Change:
    """What a decision changed.

    Parameters
    ----------
    labels : (n,) int64 array
        The cells whose class or review changed, or that came or went.
    structure : bool
        Whether cells came or went, so that rows are not where they were.
    """

    labels: Ids
    structure: bool = False


@dataclass(frozen=True)
class _Before:
    """How to take a decision back: the rows, whether they were there, and their review columns."""

    rows: npt.NDArray[np.intp]
    there: npt.NDArray[np.bool_]
    columns: tuple[npt.NDArray[np.object_], ...]


class Decided:
    """A table of cells under decisions.

    Parameters
    ----------
    cells : Cells
        Of one slide, as they were before the first decision.

    Raises
    ------
    DecisionError
        If two cells have the same label: a table of several slides.
    """

    def __init__(self, cells: Cells) -> None:
        # Every cell that ever was: rows never move, and one that comes back is where it was.
        self._every = cells
        self._there = np.ones(len(cells), dtype=bool)
        self._columns = [cells.table[name].to_numpy(dtype=object, copy=True) for name in REVIEW_COLUMNS]
        self._row = {int(label): row for row, label in enumerate(cells.table["label"])}
        if len(self._row) < len(cells):
            raise DecisionError("the table has cells of several slides; review the results of one after the other")
        self.n_before = len(cells)
        self.outlines: dict[int, list[list[list[float]]]] = {}
        """Of cells that were added, and of removed ones that the files have lost, rings of (x, y)."""
        self.settings: dict[str, Any] = {}
        self.signed: Entry | None = None
        self._done: list[tuple[Entry, _Before]] = []
        self._undone: list[Entry] = []
        self._cells: Cells | None = None

    @property
    def cells(self) -> Cells:
        """The cells of now."""
        if self._cells is None:
            cells = self._every.with_review(**dict(zip(REVIEW_COLUMNS, self._columns, strict=True)))
            self._cells = cells if self._there.all() else cells.where(self._there)
        return self._cells

    @property
    def before(self) -> Cells:
        """The cells as they were before the first decision."""
        first = np.arange(len(self._every)) < self.n_before
        return self._every if first.all() else self._every.where(first)

    @property
    def next_label(self) -> int:
        """A label that no cell ever had."""
        return max(self._row, default=0) + 1

    @property
    def there(self) -> npt.NDArray[np.bool_]:
        """Which of all cells that ever were, first those of the beginning, are there now."""
        return self._there.copy()

    @property
    def lost(self) -> Ids:
        """Cells that were removed and whose outlines nothing but the files has."""
        gone = self._every.table["label"].to_numpy(np.int64)[~self._there]
        return gone[~np.isin(gone, list(self.outlines))]

    @property
    def undoable(self) -> int:
        """How many decisions can be taken back."""
        return len(self._done)

    @property
    def redoable(self) -> int:
        """How many decisions that were taken back can be made again."""
        return len(self._undone)

    def check(self, entry: Entry) -> None:
        """Raise DecisionError if an entry cannot be applied now."""
        do = entry.get("do")
        if do in ("undo", "redo") and not (self._done if do == "undo" else self._undone):
            raise DecisionError(f"there is nothing to {do}")
        if do in ("class", "accept", "remove"):
            rows = self._rows(entry["cells"])
            if not self._there[rows].all():
                raise DecisionError("a cell was removed meanwhile; undo its removal first")
        elif do == "add":
            if int(entry["cell"]["label"]) in self._row:
                raise DecisionError(f"there is already a cell {entry['cell']['label']}")
            _row_of(entry["cell"], self._every)
        elif do not in ("undo", "redo", "sign", "set", "outline"):
            raise DecisionError(f"{do!r} is nothing that this version knows; update napari-wbc")

    def apply(self, entry: Entry) -> Change:
        """Let an entry change the table; see `check` for what raises."""
        self.check(entry)
        do = entry["do"]
        if do == "set":
            self.settings.update(entry["values"])
            return Change(np.empty(0, np.int64))
        if do == "outline":
            self.outlines |= {int(label): rings for label, rings in entry["outlines"].items()}
            return Change(np.empty(0, np.int64))
        if do == "sign":
            self.signed = entry
            return Change(np.empty(0, np.int64))
        self.signed = None
        self._cells = None
        if do == "undo":
            last, before = self._done.pop()
            self._undone.append(last)
            return self._restore(before)
        if do == "redo":
            entry = self._undone.pop()
        else:
            self._undone.clear()
        return self._do(entry)

    def _do(self, entry: Entry) -> Change:
        do = entry["do"]
        if do == "add":
            label = int(entry["cell"]["label"])
            if label not in self._row:
                self._append(entry)
            rows = self._rows([label])
        else:
            rows = self._rows(entry["cells"])
        before = _Before(rows, self._there[rows], tuple(column[rows] for column in self._columns))
        self._done.append((entry, before))
        if do == "add":
            before.there[:] = False
            self._there[rows] = True
        elif do == "remove":
            self._there[rows] = False
        else:
            classes, reviewed, reviewer, at = self._columns
            if do == "class":
                classes[rows] = entry["class"]
            reviewed[rows] = classes[rows]
            reviewer[rows], at[rows] = entry["reviewer"], entry["at"]
        return Change(self._labels(rows), do in ("add", "remove"))

    def _restore(self, before: _Before) -> Change:
        moved = bool((self._there[before.rows] != before.there).any())
        self._there[before.rows] = before.there
        for column, values in zip(self._columns, before.columns, strict=True):
            column[before.rows] = values
        return Change(self._labels(before.rows), moved)

    def _append(self, entry: Entry) -> None:
        row = _row_of(entry["cell"], self._every)
        label = int(entry["cell"]["label"])
        self._every = Cells(pd.concat([self._every.table, row.table], ignore_index=True) if self._row else row.table)
        self._there = np.append(self._there, False)
        self._columns = [np.append(column, row.table[name].to_numpy(dtype=object))
                         for column, name in zip(self._columns, REVIEW_COLUMNS, strict=True)]  # fmt: skip
        self._row[label] = len(self._row)
        if entry.get("outline"):
            self.outlines[label] = entry["outline"]

    def _rows(self, labels: Sequence[int]) -> npt.NDArray[np.intp]:
        try:
            return np.fromiter((self._row[label] for label in labels), np.intp, len(labels))
        except KeyError as error:
            raise DecisionError(f"there is no cell {error.args[0]} in this table") from error

    def _labels(self, rows: npt.NDArray[np.intp]) -> Ids:
        return self._every.table["label"].to_numpy(np.int64)[rows]


def _row_of(cell: Mapping[str, Any], like: Cells) -> Cells:
    """Return a cell of a log as a table of one row with the columns of another."""
    try:
        return Cells(pd.DataFrame([dict(cell)]).reindex(columns=like.table.columns))
    except (CellsError, ValueError, TypeError) as error:
        raise DecisionError(f"a cell to add is damaged: {error}") from error


@dataclass
class Log:
    """A log of decisions, as it was read.

    Parameters
    ----------
    entries : list of mappings
        All lines but the head.
    size : int
        Bytes that are whole lines; what follows is torn.
    torn : bool
        Whether the last line was cut short.
    head : mapping
        The first line; empty where there is no log.
    """

    entries: list[Entry] = field(default_factory=list)
    size: int = 0
    torn: bool = False
    head: Entry = field(default_factory=dict)


def read_log(path: Path) -> Log:
    """Read a log; the last line may be cut short, as a crash while it was written leaves it.

    Raises
    ------
    DecisionError
        If it is no log, of a later version, or damaged before its last line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Log()
    except OSError as error:
        raise DecisionError(f"{path}: cannot be read: {error.strerror or error}") from error
    log, start = Log(), 0
    while start < len(data):
        end = data.find(b"\n", start)
        line = data[start:] if end < 0 else data[start:end]
        entry = None if end < 0 else _parsed(line)
        if entry is None:
            # A crash leaves a line without its end, or with blocks that were not written, and nothing after it.
            if end >= 0 and data[end + 1 :].strip(b"\0\n"):
                raise _damaged(path, len(log.entries) + 2)
            log.torn = True
            break
        if not log.head:
            _check_head(path, entry)
            log.head = entry
        else:
            if entry.get("n") != len(log.entries) + 1:
                raise _damaged(path, len(log.entries) + 2)
            log.entries.append(entry)
        start = end + 1
        log.size = start
    return log


def _parsed(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _check_head(path: Path, head: Entry) -> None:
    if head.get("format") != FORMAT:
        raise DecisionError(f"{path}: not a log of decisions; move it away")
    if head.get("version") != VERSION:
        raise DecisionError(f"{path}: written by a later version; update napari-wbc")


def _damaged(path: Path, line: int) -> DecisionError:
    return DecisionError(
        f"{path}: damaged in line {line}; take the file from a backup, or move it and {BEFORE_REVIEW[0]} away to "
        "begin the review anew"
    )


def replay(cells: Cells, entries: Sequence[Entry], path: Path) -> Decided:
    """Return the table after all entries of a log.

    Raises
    ------
    DecisionError
        If an entry does not fit the table; the message names its line.
    """
    decided = Decided(cells)
    for number, entry in enumerate(entries, start=2):
        try:
            decided.apply(entry)
        except (DecisionError, KeyError, TypeError, ValueError) as error:
            raise DecisionError(f"{path}: line {number} does not fit the table ({error}); {_ADVICE}") from error
    return decided


_ADVICE = "the files of the folder do not belong together, take them from a backup"


def decided_in(folder: Path) -> Decided | None:
    """Return the reviewed table of a folder of results, or None if nobody has decided anything there."""
    path = folder / DECISIONS
    if not path.is_file():
        return None
    log = read_log(path)
    before = next((folder / name for name in BEFORE_REVIEW if (folder / name).is_file()), None)
    if before is None:
        if log.entries:
            raise DecisionError(f"{folder}: {BEFORE_REVIEW[0]} is missing, which {DECISIONS} needs; {_ADVICE}")
        return None
    return replay(read_cells(before), log.entries, path)


class LogFile:
    """A log that decisions are appended to, each on the disk before it counts.

    Parameters
    ----------
    path : pathlib.Path
        The file; its torn end, if any, is cut off.
    log : Log
        What `read_log` found in it.
    prepare : callable
        Called before the file is made; returns the head.
    """

    def __init__(self, path: Path, log: Log, prepare: Callable[[], Entry]) -> None:
        self._path, self._prepare, self._n, self._size = path, prepare, len(log.entries), log.size
        self._file: int | None = None
        if log.torn:
            os.truncate(path, log.size)

    def append(self, entry: Entry) -> None:
        """Write an entry; raises ExportError if the disk did not take it, and leaves no part of it."""
        try:
            if self._file is None:
                head = b"" if self._size else _line({"format": FORMAT, "version": VERSION, **self._prepare()})
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
                self._file = os.open(self._path, flags, 0o666)
                self._write(head)
            self._write(_line({"n": self._n + 1, **entry}))
        except OSError as error:
            raise ExportError(
                f"{self._path}: the decision cannot be written: {error.strerror or error}; nothing was changed"
            ) from error
        self._n += 1

    def _write(self, data: bytes) -> None:
        assert self._file is not None  # noqa: S101
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _line(entry: Entry) -> bytes:
    return (json.dumps(entry, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n").encode()
