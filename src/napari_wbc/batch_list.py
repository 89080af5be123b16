"""Which slides a batch means: files, folders, patterns, and lists in CSV with patients and groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pandas as pd

from .inputs import Input, find_images, name_inputs, printable

SUMMARY = ("slide", "patient", "group", "state", "reason", "cells", "mpp", "mpp_source", "notes")
"""Columns of ``summary.csv`` before those of the classes; other columns of a list stand after *group*."""


class ListError(ValueError):
    """A list of slides cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Listed:
    """A slide of a batch.

    Parameters
    ----------
    input : Input
        Its file, its name in tables and that of its folder; a slide that is not there has no folder.
    about : mapping of str to str
        What the list says of it: ``patient``, ``group``, and its other columns.
    missing : str
        Why it cannot be read, if it is not there.
    """

    input: Input
    about: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def list_slides(arguments: Iterable[str | Path]) -> tuple[list[Listed], list[str]]:
    """Return the slides that are meant, each once.

    Parameters
    ----------
    arguments : iterable of str or pathlib.Path
        As for `napari_wbc.inputs.find_images`; a file that ends in ``.csv`` is a list with a column ``slide``, whose
        paths may be relative to the list.

    Returns
    -------
    slides : list of Listed
        In the order of the arguments.
    notes : list of str
        Slides that are named twice.

    Raises
    ------
    ListError
        If a list is no table with a column ``slide``.
    """
    known: dict[Path, tuple[Path, Mapping[str, str], str]] = {}
    notes = []
    for argument, about in _expanded(arguments):
        found, missing = find_images([argument])
        for path, reason in [*((path, "") for path in found), *missing]:
            where = path.resolve()
            if where in known:
                notes.append(f"{path} is named twice and done once")
                if about and not known[where][1]:
                    known[where] = (known[where][0], about, known[where][2])
                elif about and dict(about) != dict(known[where][1]):
                    notes[-1] += ", with what the first line says of it"
            else:
                known[where] = (path, about, reason)
    there = [path for path, _, reason in known.values() if not reason]
    named = {item.path: item for item in name_inputs(there)}
    slides = []
    for path, about, reason in known.values():
        slides.append(Listed(named.get(path, Input(path, printable(path), "")), about, reason))
    return slides, notes


def _expanded(arguments: Iterable[str | Path]) -> Iterator[tuple[Path, Mapping[str, str]]]:
    for argument in map(Path, arguments):
        if argument.suffix.lower() == ".csv":
            yield from _read_list(argument)
        else:
            yield argument, {}


def _read_list(path: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ListError(f"{path}: no such file; check the spelling") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"{path}: cannot be read ({error}); save it as CSV in UTF-8") from error
    separator = ";" if ";" in text.partition("\n")[0] else ","
    try:
        table = pd.read_csv(StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except ValueError as error:  # pandas.errors.ParserError and EmptyDataError
        raise ListError(f"{path}: not CSV ({error}); a line of heads and a line a slide are needed") from error
    table = table.rename(columns=lambda name: str(name).strip()).fillna("")
    if "slide" not in table.columns:
        raise ListError(f"{path}: no column 'slide'; its columns are {', '.join(map(printable, table.columns))}")
    if table.columns.duplicated().any():
        raise ListError(f"{path}: two columns have the same name; rename one")
    if taken := [name for name in table.columns if name in SUMMARY[3:]]:
        raise ListError(f"{path}: the column {taken[0]!r} is one of summary.csv itself; rename it")
    for row in table.to_dict("records"):
        slide = row["slide"].strip().replace("\0", "\N{REPLACEMENT CHARACTER}")
        if slide:
            about = {str(name): printable(value.strip()) for name, value in row.items() if name != "slide"}
            yield path.parent / slide, about
