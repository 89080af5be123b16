"""The files of a review: a folder of results, its log of decisions, and the lock that one reviewer holds."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .atomic import ExportError, new_file
from .decisions import Decided, Entry, Log, LogFile, read_log, replay
from .export import read_results
from .review import BEFORE_REVIEW, DECISIONS, LOCK

if TYPE_CHECKING:
    from filelock import BaseFileLock


class ReadOnlyError(ExportError):
    """A decision cannot be kept; the message says why."""


@dataclass(frozen=True)
class Kept:
    """A review as it was found.

    Parameters
    ----------
    decided : Decided
        The table with the decisions so far.
    labels : (H, W) integer array, optional
        The cells' ids in the picture; None for a whole slide.
    image : pathlib.Path, optional
        The picture, where it is known.
    folder : pathlib.Path, optional
        The folder of results.
    log : LogFile, optional
        Where decisions go.
    lock : filelock.BaseFileLock, optional
        What keeps others from deciding meanwhile.
    entries : list of mappings
        The decisions so far.
    notes : list of str
        What the user should know.
    run : mapping
        What ``run.json`` says of the results; empty where there is none.
    """

    decided: Decided
    labels: npt.NDArray[np.integer[Any]] | None = None
    image: Path | None = None
    folder: Path | None = None
    log: LogFile | None = None
    lock: BaseFileLock | None = None
    entries: Sequence[Entry] = ()
    notes: Sequence[str] = ()
    run: Mapping[str, Any] = field(default_factory=dict)


def read_kept(folder: Path, lock: BaseFileLock | None) -> Kept:
    """Read a folder of results with the decisions in it; with a lock, more can be written."""
    log = read_log(folder / DECISIONS)
    before = next((folder / name for name in BEFORE_REVIEW if (folder / name).is_file()), None)
    base = before if log.entries else None
    results = read_results(folder, decided=False, table=base)
    decided = replay(results.cells, log.entries, folder / DECISIONS)
    notes = []
    if log.torn:
        notes.append("the last decision was cut short, by a crash or a full disk; it is lost")
    if base is not None and sha256_of(table_in(folder)) not in (log.head.get("sha256"), decided.settings.get("saved")):
        notes.append(f"{DECISIONS} and the tables beside it differ; the review goes by {DECISIONS}")
    file = log_file(folder, log) if lock is not None else None
    run = log.head.get("run") or run_of(folder)
    return Kept(decided, results.labels, results.image, folder, file, lock, log.entries, notes, run)


def log_file(folder: Path, log: Log, run: Mapping[str, Any] | None = None) -> LogFile:
    """Return the log of a folder, to go on with; with the first decision the table of before is kept.

    ``run`` is what is known of the run that gave the results, where no ``run.json`` says it.
    """
    table = table_in(folder)
    read = sha256_of(table)

    def prepare() -> Entry:
        """Keep the table as it was before the first decision."""
        if sha256_of(table) != read:
            raise ReadOnlyError(f"{folder}: the results were replaced since they were opened; open them again")
        for name in BEFORE_REVIEW:
            (folder / name).unlink(missing_ok=True)
        with new_file(folder / f"cells.before_review{table.suffix}") as fresh:
            shutil.copyfile(table, fresh)
        return {"sha256": read} | ({"run": known} if (known := run_of(folder) or run) else {})

    return LogFile(folder / DECISIONS, log, prepare)


def run_of(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` says of the results in a folder: a later run, that is refused here, replaces it."""
    try:
        run = json.loads((folder.parent / "run.json").read_text("utf-8"), parse_constant=lambda _: None)
        inputs = [entry for entry in run["inputs"] if entry["result"] == folder.name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {**run, "inputs": inputs} if inputs else {}


def table_in(folder: Path) -> Path:
    """Return the table of a folder of results."""
    return next(folder / name for name in ("cells.csv", "cells.parquet") if (folder / name).is_file())


def sha256_of(path: Path) -> str:
    """Return the check sum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def locked(folder: Path) -> tuple[BaseFileLock | None, str]:
    """Lock a folder; return the lock, or None and why the folder can only be read."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None, f"{folder} is being reviewed in another window; here it can only be looked at"
    except OSError as error:
        return None, (
            f"{folder} cannot be written ({error.strerror or error}), so that no decision could be kept: copy it to "
            "where you may write, and open the copy"
        )
    return lock, ""
