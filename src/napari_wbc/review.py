"""Whether a folder of results holds what a reviewer decided; a model never overwrites that."""

from __future__ import annotations

import hashlib
import json
from copy import copy
from pathlib import Path
from typing import Any

import pandas as pd

from .atomic import ExportError
from .cells import Cells
from .tables import CELL_SUFFIXES, MARK, encode, read_cells
from .words import plural

DECISIONS = "decisions.jsonl"
BEFORE_REVIEW = ("cells.before_review.csv", "cells.before_review.parquet")
LOCK = ".review.lock"
REVIEW_FILES = (DECISIONS, *BEFORE_REVIEW, LOCK)
"""What a review leaves in a folder of results."""
_MAX_NAME = 80


class CorrectedError(ExportError):
    """A folder holds corrections that a model's results would replace."""


def mark_of(cells: Cells, *, corrected: bool) -> dict[str, Any]:
    """Return what is written beside the cells to recognise later what was changed."""
    return {"corrected": corrected, "cells": _digest(cells)}


def _digest(cells: Cells) -> str:
    table = cells.table
    if not table["class_reviewed"].any() and not table["reviewer"].any() and not table["reviewed_at"].any():
        # The sum of a table that nobody has reviewed is the one that earlier versions wrote.
        cells = copy(cells)
        cells.table = table.drop(columns=["class_model", "class_reviewed", "reviewer", "reviewed_at"])
    return hashlib.sha256(encode(cells, ".csv", {})).hexdigest()


def unseen(cells: Cells) -> str:
    """Say how many cells nobody decided on: ``16 of 18 cells that nobody looked at``; empty if there are none."""
    n = int((cells.table["class_reviewed"] == "").sum())
    return f"{n:,} of {plural(len(cells), 'cell')} that nobody looked at" if n else ""


def differs_from_model(cells: Cells) -> bool:
    """Whether somebody decided on a cell, or gave it another class than the model."""
    return bool((cells.table["class_reviewed"] != "").any())


def is_corrected(folder: str | Path) -> bool:
    """Whether a folder holds results that a reviewer corrected, or that cannot be told from such.

    Parameters
    ----------
    folder : str or pathlib.Path
        What `napari_wbc.export.write_results` wrote.

    Returns
    -------
    bool
        True if they were saved as corrected, if there is a log of decisions, if one of the tables was edited
        since, or if one is damaged or was written by another program: what
        cannot be read may be somebody's work.
    """
    folder = Path(folder)
    if (folder / DECISIONS).exists():
        return True
    tables = [folder / f"cells{suffix}" for suffix in CELL_SUFFIXES if (folder / f"cells{suffix}").is_file()]
    try:
        marks = [_mark_in(path) for path in (folder / "labels.tif", folder / "cells.parquet") if path.is_file()]
        if any(mark.get("corrected", True) for mark in marks):
            return True
        cells = [read_cells(path) for path in tables]
    except (ValueError, OSError):
        return True
    if not cells:
        return False
    if not marks:
        return any(map(differs_from_model, cells))
    # QuPath's format has types of its own for columns of the user's: there the classes are compared.
    exact = [found for path, found in zip(tables, cells, strict=True) if path.suffix != ".geojson"]
    digests = {mark.get("cells") for mark in marks} | {_digest(found) for found in exact}
    return len(digests) > 1 or any(not _classes(found).equals(_classes(cells[0])) for found in cells)


def check_uncorrected(folder: str | Path) -> None:
    """Raise CorrectedError if a folder holds what a reviewer corrected (`is_corrected`)."""
    if is_corrected(folder):
        raise CorrectedError(
            f"{folder}: holds results that were corrected; they are kept: choose another folder, or give them up with "
            "--overwrite (overwrite=True)"
        )


def check_not_reviewed(folder: str | Path) -> None:
    """Raise CorrectedError if a folder holds a log of decisions, which nothing but the review itself may touch."""
    if (Path(folder) / DECISIONS).exists():
        raise CorrectedError(
            f"{folder}: holds a review ({DECISIONS}); go on with it in the gallery, or save to another folder"
        )


def _classes(cells: Cells) -> pd.DataFrame:
    return cells.table[["slide", "label", "class"]]


def _mark_in(path: Path) -> dict[str, Any]:
    """Return the mark of a file of results; one that another program wrote has none, which is empty."""
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            text = (parquet.read_schema(path).metadata or {}).get(MARK.encode(), b"{}").decode()
        else:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                described: dict[str, Any] = (tiff.shaped_metadata or ({},))[0]
            text = described.get(MARK, "{}")
        mark = json.loads(text)
    # Both libraries raise whatever a broken file makes them raise.
    except Exception as error:
        raise ExportError(f"{path}: damaged or cut short ({error})") from error
    return mark if isinstance(mark, dict) else {}


def checked_name(name: str) -> str:
    """Return the name of a class or a reviewer without spaces around it.

    Raises
    ------
    ValueError
        If it is empty, too long, has control characters, or begins with a sign that spreadsheets take for a formula.
    """
    name = " ".join(name.split())
    if not name or len(name) > _MAX_NAME or not name.isprintable() or not name[0].isalnum():
        raise ValueError(
            f"{name[:_MAX_NAME]!r} is no name: begin with a letter or a digit, and take at most {_MAX_NAME} signs"
        )
    return name
