"""The folder of a batch: who holds it, which slides are finished in it, and the tables over all of them."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from .atomic import ExportError, check_writable, new_file
from .batch_list import SUMMARY, Listed
from .batch_made import Made
from .export import place_results
from .inputs import Input, fingerprint, printable
from .keep import ResultFolders
from .record import FORMAT, Settings, differences, now, versions
from .slide import ImageError
from .tables import to_csv

if TYPE_CHECKING:
    from .classifier import ModelCard
    from .pipeline import Analysis

_STATES, _LOCK, _HOLDER, _DATASET = ".states", ".lock", ".holder.json", "cells.parquet"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class DiskError(ExportError):
    """The disk takes nothing any more: going on with other slides is of no use."""


@dataclass(frozen=True)
class Terms:
    """What a run does with each slide; a folder holds results of one kind only.

    Parameters
    ----------
    settings : Settings
        What the user chose.
    card : ModelCard
        The model.
    device : str or None
        Where it runs, as the user gave it.
    ome_labels : bool
        Whether cells are written as OME-NGFF labels, too.
    """

    settings: Settings
    card: ModelCard
    device: str | None = None
    ome_labels: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return what must be equal for a run to go on."""
        from .segment import SegmentParameters

        segmentation = asdict(SegmentParameters(mpp=self.settings.mpp))
        return {
            "model": {"name": self.card.name, "sha256": self.card.sha256},
            "parameters": {
                **asdict(self.settings), "device": self.device, "ome_labels": self.ome_labels,
                "segmentation": segmentation,
            },
        }  # fmt: skip


class BatchFolder:
    """The folder of a batch; `held` opens it.

    Parameters
    ----------
    path : pathlib.Path
        The folder.
    terms : Terms
        What the run does.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        self.path, self.terms = path.absolute(), terms
        self.results = ResultFolders(self.path)
        self.started = now().isoformat(timespec="seconds")

    @contextmanager
    def held(self) -> Generator[BatchFolder, None, None]:
        """Hold the folder against other runs; the system lets go of it even if this process is killed.

        Raises
        ------
        ExportError
            If it cannot be written, another run holds it, or it holds a run of other parameters.
        """
        from filelock import FileLock, Timeout

        check_writable(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ExportError(f"{self.path}: {_holder(self.path)}; wait for it, or choose another folder") from error
        except OSError as error:
            raise ExportError(f"{self.path}: cannot be locked ({error.strerror}); choose another folder") from error
        try:
            self._check_terms()
            with new_file(self.path / _HOLDER) as fresh:
                fresh.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": self.started}))
            self._sweep()
            yield self
        finally:
            with suppress(OSError):
                (self.path / _HOLDER).unlink(missing_ok=True)
            lock.release()

    def _check_terms(self) -> None:
        """A folder holds one run: what went on under other terms cannot be told apart later."""
        earlier = self.path / "run.json"
        if not earlier.exists():
            return
        try:
            told = json.loads(earlier.read_text(encoding="utf-8"))
            same_kind = told["format"] == FORMAT and told["command"] == "batch"
            before = {**{key: told[key] for key in ("model", "parameters")}, _VERSION: told["versions"][_VERSION]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExportError(f"{earlier}: not the record of a batch ({error}); choose another folder") from error
        if not same_kind:
            raise ExportError(f"{self.path}: holds a run of {printable(str(told['command']))}; choose another folder")
        wanted = {**json.loads(json.dumps(self.terms.to_dict())), _VERSION: versions()[_VERSION]}
        if differ := differences(before, wanted):
            raise ExportError(
                f"{self.path}: holds a run of other parameters ({differ}); give the same, or choose another folder"
            )

    def _sweep(self) -> None:
        """Remove what a killed run was writing; nobody else writes here now."""
        for left in [*self.path.glob(".*.partial"), *self.path.glob(f"{_DATASET}/*/.*.partial")]:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def records(self) -> dict[str, dict[str, Any]]:
        """Return what is known of each finished slide by the name of its folder."""
        found = {}
        for path in sorted((self.path / _STATES).glob("*.json")):
            with suppress(ValueError, OSError):
                record = json.loads(path.read_text(encoding="utf-8"))
                parts = self._part(record["slide"]), self._aside(record["folder"])
                if (self.path / record["folder"]).is_dir() and any(part.is_file() for part in parts):
                    found[str(record["folder"])] = record
        return found

    def count_only(self, folders: Collection[str]) -> None:
        """Take the cells of all other finished slides out of ``cells.parquet``, and those of these in again.

        Raises
        ------
        ExportError
            If a file cannot be moved.
        """
        for name, record in self.records().items():
            source, target = self._part(record["slide"]), self._aside(name)
            if name in folders:
                source, target = target, source
            if source.is_file():
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source.replace(target)
                except OSError as error:
                    raise ExportError(f"{source}: cannot be moved ({error.strerror}); close what reads it") from error
                _remove_empty(source)

    def _part(self, slide: str) -> Path:
        return self.path / _DATASET / f"slide={quoted(slide)}" / "cells.parquet"

    def _aside(self, folder: str) -> Path:
        """Where the part of a slide waits that this run does not name."""
        return self.path / _STATES / f"{folder}.parquet"

    def keep(self, listed: Listed, what: Analysis | Made, before: Mapping[str, int], seconds: float) -> dict[str, Any]:
        """Write all that is kept of a slide, last of all that it is finished, and return the record.

        Raises
        ------
        ImageError
            If the slide was deleted or replaced since `before`.
        DiskError
            If the disk is full or became read-only.
        ExportError
            If its folder holds corrected results or other files.
        """
        item = listed.input
        check_same(item, before)
        with _disk_errors():
            made = what if isinstance(what, Made) else Made.of(what, self.terms.ome_labels)
            record = {
                "folder": item.folder, "slide": item.slide, "path": str(item.path.absolute()), **before,
                "about": dict(listed.about), "seconds": round(seconds, 3), **made.facts,
            }  # fmt: skip
            place_results(made.files, self.path / item.folder)
            with new_file(self._part(item.slide)) as fresh:
                fresh.write_bytes(made.part)
            with new_file(self.path / _STATES / f"{item.folder}.json") as fresh:
                fresh.write_text(json.dumps(record) + "\n", encoding="utf-8")
        found: dict[str, Any] = json.loads(json.dumps(record))  # as a later start reads it
        return found

    def failed(self, listed: Listed, reason: str) -> str:
        """Remove earlier results of a slide that failed, unless they were corrected; return what to say."""
        item = listed.input
        if not item.folder:
            return reason
        with suppress(OSError):
            (self.path / _STATES / f"{item.folder}.json").unlink(missing_ok=True)
            part = self._part(item.slide)
            part.unlink(missing_ok=True)
            _remove_empty(part)
        return self.results.clear(item, reason)

    def write_tables(self, entries: Sequence[Mapping[str, Any]], classes: Sequence[str], seconds: float) -> None:
        """Write ``run.json`` and ``summary.csv``.

        Parameters
        ----------
        entries : sequence of mappings
            A slide each: ``listed``, ``state``, ``reason`` and, once it is finished, ``record``.
        classes : sequence of str
            Of the model.
        seconds : float
            Since the run began.
        """
        head = {
            "format": FORMAT, "command": "batch", "started": self.started, "seconds": round(seconds, 3),
            "versions": versions(), **self.terms.to_dict(), "inputs": [_entry(entry) for entry in entries],
        }  # fmt: skip
        with _disk_errors():
            with new_file(self.path / "run.json") as fresh:
                fresh.write_text(json.dumps(head, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            with new_file(self.path / "summary.csv") as fresh:
                fresh.write_text(to_csv(_summary(entries, classes)), encoding="utf-8", newline="\n")


_VERSION = "napari-wbc"


def check_same(item: Input, before: Mapping[str, int]) -> None:
    """Raise ImageError if a slide is not the one any more that it was."""
    try:
        same = fingerprint(item.path) == before
    except OSError as error:
        raise ImageError("the file was deleted or moved while it was read; put it back and run again") from error
    if not same:
        raise ImageError("the file was replaced or written to while it was read; run again when it is complete")


def quoted(slide: str) -> str:
    """Return the name of a slide as part of a path, as pyarrow reads it back."""
    return re.sub(r'[%/\\<>:"|?*=\x00-\x1f]|[. ]$', lambda found: f"%{ord(found[0]):02X}", slide)


def _remove_empty(part: Path) -> None:
    """Remove the folders of a part that is no longer there, where they hold nothing else."""
    with suppress(OSError):
        part.parent.rmdir()
        part.parent.parent.rmdir()


@contextmanager
def _disk_errors() -> Generator[None, None, None]:
    try:
        yield
    except ExportError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK:
            raise DiskError(str(error)) from error
        raise


def _holder(path: Path) -> str:
    try:
        told = json.loads((path / _HOLDER).read_text(encoding="utf-8"))
        return f"held by process {int(told['pid'])} on {printable(told['host'])} since {printable(told['since'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "held by another run"


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    listed, record = entry["listed"], entry.get("record") or {}
    mpp = record.get("mpp", math.nan)
    return {
        "path": str(listed.input.path.absolute()), "slide": listed.input.slide, "about": dict(listed.about),
        "result": listed.input.folder if record else None, "state": entry["state"],
        "error": printable(entry["reason"]) or None, "bytes": record.get("bytes"),
        "mtime_ns": record.get("mtime_ns"), "seconds": record.get("seconds"), "cells": record.get("cells"),
        "mpp": mpp if math.isfinite(mpp) else None, "mpp_source": record.get("mpp_source"),
        "notes": record.get("notes", []),
    }  # fmt: skip


def _summary(entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> pd.DataFrame:
    """A row a slide. Slides that an earlier start finished are done like all others."""
    others = dict.fromkeys(name for entry in entries for name in entry["listed"].about if name not in SUMMARY)
    counted = [(entry.get("record") or {}).get("counts", {}) for entry in entries]
    names = dict.fromkeys([*classes, *(name for counts in counted for name in counts)])
    rows = []
    for entry, counts in zip(entries, counted, strict=True):
        listed, record = entry["listed"], entry.get("record") or {}
        about = {name: listed.about.get(name, "") for name in ("patient", "group", *others)}
        state = "done" if entry["state"] == "skipped" else entry["state"]
        row = {"slide": listed.input.slide, **about, "state": state, "reason": printable(entry["reason"])}
        row |= {key: record.get(key, "") for key in ("cells", "mpp", "mpp_source")}
        row["notes"] = "; ".join(record.get("notes", ()))
        for name in names:
            row |= {f"{key}_{name}": counts.get(name, {}).get(of, "") for key, of in _COUNTS.items()}
        rows.append(row)
    columns = [
        "slide",
        "patient",
        "group",
        *others,
        *SUMMARY[3:],
        *(f"{key}_{name}" for name in names for key in _COUNTS),
    ]
    return pd.DataFrame(rows, columns=columns, dtype=object)


_COUNTS = {"n": "n", "share": "value", "low": "low", "high": "high"}
