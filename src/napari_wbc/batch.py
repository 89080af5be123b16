"""Many slides into one folder, each finished or not there at all; what is finished is not done again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .atomic import ExportError
from .batch_folder import BatchFolder, DiskError, check_same
from .batch_list import Listed
from .class_names import UNIDENTIFIED
from .count import differential_of
from .inputs import Input, fingerprint
from .pipeline import Analysis, Progress
from .record import open_input, why
from .slide import ImageError

if TYPE_CHECKING:
    import pandas as pd

    from .batch_made import Made
    from .classifier import Classifier
    from .record import Settings

STATES = ("waiting", "running", "done", "failed", "skipped")
_TABLES_EVERY = 30.0


@dataclass(frozen=True)
class Report:
    """How a slide of a batch fares.

    Parameters
    ----------
    slide : str
        Its name.
    state : str
        One of `STATES`; *skipped* is finished by an earlier start.
    stage : str
        What is being done, while it runs.
    done, total : int
        As in `napari_wbc.pipeline.Progress`.
    cells : int
        Cells classified so far.
    reason : str
        Why it failed.
    folder : str
        The name of its folder of results.
    """

    slide: str
    state: str
    stage: str = ""
    done: int = 0
    total: int = 0
    cells: int = 0
    reason: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Step:
    """What an engine says of a slide: how far it is, its analysis or what is to be kept of it, or why there is none."""

    item: Input
    what: Progress | Analysis | Made | Exception = field(repr=False)
    cells: int = 0


class Engine(Protocol):
    """Analyses slides: in this process (`InProcess`), or on a cluster (`napari_wbc.batch_cluster.Cluster`)."""

    def analyses(self, items: Iterable[Input], /) -> Iterator[Step]:
        """Take slides as there is room for them and say how they fare; the last step of each is no progress."""


class InProcess:
    """One slide after the other, in this process.

    Parameters
    ----------
    classifier : Classifier
    settings : Settings
    """

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        self.classifier, self.settings = classifier, settings

    def analyses(self, items: Iterable[Input]) -> Iterator[Step]:
        """As `Engine`."""
        for item in items:
            cells, steps = 0, open_input(item, self.classifier, self.settings)
            last: Analysis | Exception | None = None
            while last is None:
                try:
                    progress = next(steps)
                    cells += len(progress.cells or ())
                    yield Step(item, progress, cells)
                except StopIteration as stop:
                    last = stop.value
                # A slide that trips over a bug must not cost the results of the others.
                except Exception as error:  # noqa: BLE001
                    last = error
            yield Step(item, last, len(last.cells) if isinstance(last, Analysis) else 0)


@dataclass
class _Entry:
    """A slide of the run and what became of it."""

    listed: Listed
    state: str = "waiting"
    reason: str = ""
    record: dict[str, Any] | None = None
    before: dict[str, int] = field(default_factory=dict)
    since: float = 0.0

    def report(self) -> Report:
        cells = self.record["cells"] if self.record else 0
        item = self.listed.input
        return Report(item.slide, self.state, cells=cells, reason=self.reason, folder=item.folder)


class Batch:
    """A run over slides.

    Parameters
    ----------
    slides : sequence of Listed
        As `napari_wbc.batch_list.list_slides` gives them.
    folder : BatchFolder
        Held by this process.

    Attributes
    ----------
    unnamed : list of str
        Slides of an earlier start that are not named this time: their results stay, in no table and in no count.

    Raises
    ------
    ExportError
        If slides would get the names that others have in the folder.
    """

    def __init__(self, slides: Sequence[Listed], folder: BatchFolder) -> None:
        self.folder, self._start = folder, time.monotonic()
        records = folder.records()
        named = {record["path"]: record for record in records.values()}
        self._entries: dict[str, _Entry] = {}
        self._refused: list[_Entry] = []
        for listed in slides:
            earlier = named.get(str(listed.input.path.absolute()))
            if earlier:  # which slides are in a run changes their names; those of results stay
                listed = replace(listed, input=replace(listed.input, slide=earlier["slide"], folder=earlier["folder"]))
            entry = _entry(listed, records.get(listed.input.folder))
            if entry.state != "failed":
                records.pop(listed.input.folder, None)
            key = listed.input.folder or f"/{listed.input.path}"
            if key in self._entries:
                raise ExportError(f"{folder.path}: two slides would be called {key} in it; choose another folder")
            self._entries[key] = entry
        self.unnamed = sorted(record["slide"] for record in records.values())

    @property
    def states(self) -> Counter[str]:
        """How many slides are in which state."""
        return Counter(entry.state for entry in self._entries.values())

    @property
    def total(self) -> int:
        """How many slides there are."""
        return len(self._entries)

    @property
    def cells(self) -> int:
        """How many cells the finished slides have."""
        return sum(record["cells"] for record in self.finished)

    @property
    def finished(self) -> list[dict[str, Any]]:
        """What is known of the slides that are finished."""
        return [entry.record for entry in self._entries.values() if entry.record]

    @property
    def pooled(self) -> pd.DataFrame:
        """The differential of all finished slides together, as the model gave it."""
        n: Counter[str] = Counter(dict.fromkeys(self.folder.terms.card.classes, 0))
        for record in self.finished:
            n.update({name: row["n"] for name, row in record["counts"].items()})
        unidentified = n.pop(UNIDENTIFIED, 0)
        return differential_of({**n, UNIDENTIFIED: unidentified}, "all")

    @property
    def failures(self) -> list[tuple[Path, str]]:
        """The slides that failed, and why."""
        return [(e.listed.input.path, e.reason) for e in self._entries.values() if e.state == "failed"]

    def run(self, engine: Engine) -> Generator[Report, None, None]:
        """Do what is missing.

        Yields
        ------
        Report
            One a slide to begin with, then whenever something happens. Closing the generator stops; what is finished
            stays, and the same run later goes on with the rest.

        Raises
        ------
        DiskError
            If the disk is full or read-only.
        """
        classes = self.folder.terms.card.classes
        try:
            self.folder.count_only({key for key, entry in self._entries.items() if entry.state != "failed"})
            self._write(classes)
            yield from (entry.report() for entry in self._entries.values())
            written = time.monotonic()
            for step in engine.analyses(self._starting()):
                yield from self._newly_refused()
                yield self._take(step)
                if time.monotonic() - written > _TABLES_EVERY:
                    self._write(classes)
                    written = time.monotonic()
            yield from self._newly_refused()
        finally:
            for entry in self._entries.values():
                entry.state = "waiting" if entry.state == "running" else entry.state
            with suppress(DiskError):
                self._write(classes)

    def _write(self, classes: Sequence[str]) -> None:
        entries = [
            {"listed": e.listed, "state": e.state, "reason": e.reason, "record": e.record}
            for e in self._entries.values()
        ]
        self.folder.write_tables(entries, classes, time.monotonic() - self._start)

    def _starting(self) -> Iterator[Input]:
        """Slides that can be begun, as they are asked for."""
        for entry in self._entries.values():
            if entry.state != "waiting":
                continue
            item = entry.listed.input
            try:
                self.folder.results.prepare(item)
                entry.before = fingerprint(item.path)
            except FileNotFoundError:
                self._fail(entry, "the file was deleted or moved since the run began; put it back and run again")
                self._refused.append(entry)
            except (ValueError, OSError) as error:
                self._fail(entry, why(error, item))
                self._refused.append(entry)
            else:
                entry.state, entry.since = "running", time.monotonic()
                yield item

    def _newly_refused(self) -> Iterator[Report]:
        while self._refused:
            yield self._refused.pop(0).report()

    def _take(self, step: Step) -> Report:
        entry = self._entries[step.item.folder]
        if isinstance(step.what, Progress):
            what = step.what
            item = step.item
            return Report(item.slide, "running", what.stage, what.done, what.total, step.cells, "", item.folder)
        if isinstance(step.what, Exception):
            reason = why(step.what, step.item)
            try:
                check_same(step.item, entry.before)
            except ImageError as error:  # which explains whatever happened
                reason = str(error)
            self._fail(entry, reason)
        else:
            try:
                seconds = time.monotonic() - entry.since
                entry.record = self.folder.keep(entry.listed, step.what, entry.before, seconds)
                entry.state = "done"
            except DiskError:
                raise
            except Exception as error:  # noqa: BLE001 - a picture that cannot be drawn must not end the run
                self._fail(entry, why(error, step.item))
        return entry.report()

    def _fail(self, entry: _Entry, reason: str) -> None:
        entry.state, entry.record = "failed", None
        entry.reason = self.folder.failed(entry.listed, reason)


def _entry(listed: Listed, record: dict[str, Any] | None) -> _Entry:
    """Tell whether a slide is finished, is to be done, or cannot be."""
    item = listed.input
    if record is None:
        return _Entry(listed, "failed" if listed.missing else "waiting", listed.missing)
    if listed.missing:  # moved away after it was finished
        return _Entry(replace(listed, missing=""), "skipped", record=record)
    with suppress(OSError):
        if fingerprint(item.path) == {key: record[key] for key in ("bytes", "mtime_ns")}:
            return _Entry(listed, "skipped", record=record)
    if record["path"] == str(item.path.absolute()):
        return _Entry(listed)
    reason = f"the folder {item.folder} holds results of {record['path']}; rename the slide, or choose another folder"
    return _Entry(listed, "failed", reason)
