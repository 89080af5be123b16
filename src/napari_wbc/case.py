"""What a report or an export is about: the results of one picture, or of all pictures of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .atomic import ExportError, safe_name
from .cells import Cells, CellsError
from .decisions import decided_in, read_log
from .export import read_results
from .geojson import Rings, outlines, rings_in
from .inputs import RUN_FILES
from .record import FORMAT, record_of
from .review import DECISIONS
from .review_session import Kept, ReviewSession
from .slide import ImageError, Slide
from .slide_formats import is_zarr

if TYPE_CHECKING:
    from .pipeline import Analysis

_TABLES = ("cells.csv", "cells.parquet")


@dataclass(frozen=True)
class Picture:
    """One picture with its results.

    Parameters
    ----------
    folder : pathlib.Path
        Its folder of results.
    cells : Cells
        Its cells.
    shape : (int, int) or None
        Rows and columns of the picture that was analysed, where the results tell.
    sought : pathlib.Path or None
        Where the picture was when it was analysed.
    path : pathlib.Path or None
        Where it is; None if it is not found.
    facts : mapping
        What ``run.json`` says of it; empty without one.
    session : ReviewSession or None
        Its review; None if nobody has decided anything.
    held : Slide or None
        The picture, if it is in memory.
    held_rings : mapping or None
        Outlines of its cells by label, if they are in memory.
    """

    folder: Path
    cells: Cells = field(repr=False)
    shape: tuple[int, int] | None
    sought: Path | None
    path: Path | None
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    session: ReviewSession | None = field(default=None, repr=False)
    held: Slide | None = field(default=None, repr=False)
    held_rings: Mapping[int, Rings] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What it is called in tables."""
        named = self.cells.table["slide"].unique()
        return str(named[0] if len(named) else self.facts.get("slide") or self.folder.name)

    @cached_property
    def slide(self) -> Slide:
        """The picture itself.

        Raises
        ------
        ImageError
            If it is not found, cannot be read, or is another one than was analysed; the message says what to do.
        """
        if self.held is not None:
            return self.held
        if self.path is None:
            where = f"it was sought at {self.sought}" if self.sought else "the results do not say where it was"
            raise ImageError(f"{self.name}: the picture is not found; {where}: say with --image where it is")
        slide = Slide.open(self.path)
        if self.shape is not None and slide.shape != self.shape:
            raise ImageError(
                f"{self.path}: is not the picture that was analysed: {slide.shape[1]} × {slide.shape[0]} pixels, not "
                f"{self.shape[1]} × {self.shape[0]}; say with --image where it is"
            )
        return slide

    @cached_property
    def rings(self) -> dict[int, Rings]:
        """Outlines of its cells by label; those of cells without one are missing."""
        if self.held_rings is not None:
            return dict(self.held_rings)
        labels = read_results(self.folder, decided=False).labels
        try:
            found = (
                outlines(labels) if labels is not None else rings_in((self.folder / "cells.geojson").read_text("utf-8"))
            )
        except (OSError, CellsError):
            found = {}
        return found | (self.session.added_outlines if self.session else {})


@dataclass(frozen=True)
class Case:
    """Pictures with their results.

    Parameters
    ----------
    folder : pathlib.Path
        Of the results of a picture, or of a run.
    pictures : tuple of Picture
        One or more.
    run : mapping
        ``run.json``; empty without one.
    """

    folder: Path
    pictures: tuple[Picture, ...]
    run: Mapping[str, Any] = field(repr=False)

    @cached_property
    def cells(self) -> Cells:
        """The cells of all pictures."""
        tables = [picture.cells.table for picture in self.pictures if len(picture.cells)]
        try:
            return Cells(pd.concat(tables, ignore_index=True)) if tables else self.pictures[0].cells
        except CellsError as error:
            raise ExportError(f"{self.folder}: its pictures do not go together: {error}") from error

    @cached_property
    def of(self) -> npt.NDArray[np.int64]:
        """(n,) number of the picture that each of the cells is in."""
        return np.repeat(np.arange(len(self.pictures)), [len(picture.cells) for picture in self.pictures])

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients of its pictures, where the list of the batch names them."""
        named = (str(picture.facts.get("about", {}).get("patient", "")) for picture in self.pictures)
        return tuple(dict.fromkeys(name for name in named if name))

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """Pictures of the run without results, and why."""
        inputs = self.run.get("inputs", [])
        return tuple((str(e.get("slide", "")), str(e.get("error", ""))) for e in inputs if e.get("state") == "failed")


def check_outside(case: Case, path: Path) -> None:
    """Raise ExportError if a file would lie among the results: a run keeps no folder with files of others."""
    place = path.absolute().parent.resolve()
    if place in [picture.folder.absolute().resolve() for picture in case.pictures if picture.held is None]:
        raise ExportError(f"{path}: lies in a folder of results, which holds nothing else; choose another place")
    if path.name in RUN_FILES and (path.parent / "run.json").is_file():
        raise ExportError(f"{path}: is a file of the run; choose another name")


def read_case(folder: str | Path, image: str | Path | None = None) -> Case:
    """Read the results of a picture or of a run.

    Parameters
    ----------
    folder : str or pathlib.Path
        What `napari_wbc.export.write_results` or ``napari-wbc annotate`` wrote.
    image : str or pathlib.Path, optional
        Where the picture is now, if it was moved: the file, or the folder in which it lies under its name.

    Raises
    ------
    ExportError, CellsError
        If there are no results, or they are damaged; the message says what to do.
    """
    folder = Path(folder)
    image = Path(image) if image is not None else None
    if image is not None and not image.exists():
        raise ExportError(f"{image}: no such file or folder; --image says where the picture is now")
    if not folder.is_dir():
        raise ExportError(f"{folder}: no such folder; give a folder of results that `napari-wbc annotate` wrote")
    alone = any((folder / name).is_file() for name in _TABLES)
    run = _read_run(folder.parent / "run.json" if alone else folder / "run.json")
    entries = {entry["result"]: entry for entry in run.get("inputs", []) if entry.get("result")}
    if alone:
        if folder.name not in entries:  # the run that the review is of, if there is one
            path = folder / DECISIONS
            run = _checked(read_log(path).head.get("run", {}), path)
        entries = {folder.name: next((e for e in run.get("inputs", []) if e.get("result") == folder.name), {})}
    if not entries:
        raise ExportError(
            f"{folder}: no results; give a folder with cells.csv, or the folder of a run with its run.json, that "
            "`napari-wbc annotate` wrote"
        )
    if len(entries) > 1 and image is not None and image.is_file():
        raise ExportError(f"{image}: {folder} holds results of {len(entries)} pictures; give --image their folder")
    root = folder.parent if alone else folder
    pictures = tuple(_read_picture(root / name, entry, image) for name, entry in entries.items())
    return Case(folder, pictures, run)


def case_of(
    slide: Slide,
    cells: Cells,
    labels: npt.NDArray[np.integer[Any]] | None = None,
    *,
    analysis: Analysis | None = None,
    session: ReviewSession | None = None,
) -> Case:
    """Return the case of a picture that is open.

    Parameters
    ----------
    slide : Slide
        The picture.
    cells : Cells
        Its cells, corrected or not.
    labels : (H, W) integer array, optional
        The cells' ids, for their outlines.
    analysis : Analysis, optional
        Where the cells are from, which says how they were found and classified.
    session : ReviewSession, optional
        Their review.
    """
    facts: Mapping[str, Any] = {"slide": slide.name, "notes": list(slide.notes)}
    run: Mapping[str, Any] = {}
    folder = session.folder if session is not None else None
    if analysis is None and folder is not None:
        kept = read_case(folder)
        facts, run = kept.pictures[0].facts, kept.run
    rings: dict[int, Rings] = outlines(labels) if labels is not None else {}
    if analysis is not None:
        rings = rings or (dict(analysis.whole.rings) if analysis.whole else {})
        run = record_of(analysis, folder.name if folder is not None else "")
        facts = run["inputs"][0]
    rings |= session.added_outlines if session else {}
    where = folder or Path(slide.name)
    return Case(where, (Picture(where, cells, slide.shape, slide.path, slide.path, facts, session, slide, rings),), run)


def _read_run(path: Path) -> Mapping[str, Any]:
    try:
        return _checked(json.loads(path.read_text("utf-8")) if path.is_file() else {}, path)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _checked(run: Any, path: Path) -> Mapping[str, Any]:
    if run == {}:
        return {}
    try:
        names = [entry["result"] for entry in run["inputs"] if entry["result"]]
        if run["format"] != FORMAT or any(name != safe_name(name) for name in names):
            raise ValueError("not the record of a run")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    return dict(run)


def _damaged(path: Path, error: Exception) -> ExportError:
    return ExportError(f"{path}: damaged or cut short ({error}); give the folder of one picture, or delete it")


def _read_picture(folder: Path, facts: Mapping[str, Any], image: Path | None) -> Picture:
    results, decided = read_results(folder, decided=False), decided_in(folder)
    session = None if decided is None else ReviewSession(Kept(decided), read_only="it is looked at, not reviewed")
    shape: tuple[int, int] | None = None
    if results.labels is not None:
        shape = (results.labels.shape[0], results.labels.shape[1])
    else:
        note = json.loads((folder / "slide.json").read_text("utf-8")).get("shape")
        shape = (int(note[0]), int(note[1])) if isinstance(note, list) and len(note) == 2 else None
    cells = results.cells if session is None else session.cells
    moved = session.settings.get("picture") if session is not None and image is None else None
    path = _where(folder, results.sought, Path(str(moved)) if moved and Path(str(moved)).exists() else image)
    return Picture(folder, cells, shape, results.sought, path, facts, session)


def _where(folder: Path, sought: Path | None, image: Path | None) -> Path | None:
    """Return where a picture is: where the user says, where it was, or beside its results, with which it moved."""
    if image is not None and (sought is None or not (image / sought.name).exists()):
        return image if image.is_file() or is_zarr(image) else None
    if sought is None:
        return None
    places = [image] if image is not None else [sought.parent, folder.parent, folder.parent.parent, folder]
    return next((place / sought.name for place in places if (place / sought.name).exists()), None)
