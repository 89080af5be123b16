"""Which pictures a command line means, and what their results are called."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from .atomic import safe_name
from .slide import IMAGE_SUFFIXES, SLIDE_SUFFIXES
from .slide_formats import is_zarr

# Written by a run into its folder, so no picture's folder may be called so.
RUN_FILES = ("run.json", "differential.csv", "summary.csv", "cells.parquet")
OUR_PICTURES = ("labels.tif", "annotated.png", "regions.png", "density.png", "thumbnail.png", "cells.ome.zarr")


@dataclass(frozen=True)
class Input:
    """A picture to work on.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    slide : str
        Its name in tables, different for every picture of a run.
    folder : str
        The name of its folder of results, different for every picture of a run.
    """

    path: Path
    slide: str
    folder: str


def find_images(arguments: Iterable[str | Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the pictures that are meant.

    Parameters
    ----------
    arguments : iterable of str or pathlib.Path
        Files, folders (searched with all folders in them) and patterns such
        as ``slides/*.png`` or ``**/*.tif``.

    Returns
    -------
    images : list of pathlib.Path
        In the order of the arguments, sorted within each; no file twice.
        Results and crops of an earlier run are left out, unless a file or
        the folder of the crops is named itself.
    missing : list of (pathlib.Path, str)
        Arguments that mean no picture, each with the reason.
    """
    images: dict[Path, Path] = {}
    missing = []
    for argument in map(Path, arguments):
        try:
            found, reason = _expand(argument)
        except (OSError, ValueError):  # too long, or with a zero in it
            found, reason = [], "no file can have this name; check the spelling"
        if not found:
            missing.append((argument, reason))
        for path in found:
            images.setdefault(path.resolve(), path)
    return list(images.values()), missing


def fingerprint(path: Path) -> dict[str, int]:
    """Return size and time of a slide on disk; those of a slide of many files are taken together.

    Raises
    ------
    OSError
        If it is not there.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    elif path.suffix.lower() == ".mrxs":
        files += [file for file in path.with_suffix("").rglob("*") if file.is_file()]
    found = [file.stat() for file in files]
    return {"bytes": sum(one.st_size for one in found), "mtime_ns": max((one.st_mtime_ns for one in found), default=0)}


def _expand(path: Path) -> tuple[list[Path], str]:
    if path.is_file() or is_zarr(path):
        return [path], ""
    if path.is_dir():
        return _within(path), f"the folder holds no picture ({', '.join(IMAGE_SUFFIXES)})"
    if glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - relative and absolute
        fixed = takewhile(lambda part: not glob.has_magic(part), path.parts)
        files = [match for match in matches if _is_image(match)]
        found = _without_crops(files, Path(*fixed)) + [
            f for match in matches if match.is_dir() and not is_zarr(match) for f in _within(match)
        ]
        return sorted(set(found)), "no picture matches the pattern"
    return [], "no such file or folder; check the spelling"


def _within(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if _is_image(path))
    slides = {path for path in found if path.is_dir()}
    # The files of an OME-Zarr and the parts of a MIRAX slide are no slides of their own.
    parts = slides | {path.with_suffix("") for path in found if path.suffix.lower() == ".mrxs"}
    return _without_crops([path for path in found if not parts & set(path.parents)], folder)


def _without_crops(files: Iterable[Path], root: Path) -> list[Path]:
    """Drop crops that lie below the folder that the user named."""
    from .crop_folder import holds_crops

    known = {root: False}

    def among_crops(folder: Path) -> bool:
        if folder not in known:
            known[folder] = holds_crops(folder) or (folder != folder.parent and among_crops(folder.parent))
        return known[folder]

    return [file for file in files if not among_crops(file.parent)]


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith(".") or not (is_zarr(path) if suffix == ".zarr" else path.is_file()):
        return False
    if suffix not in (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES):
        return False
    tables = (path.parent / "cells.csv", path.parent / "cells.parquet")
    ours = path.name in OUR_PICTURES and any(table.is_file() for table in tables)
    return not ours and not path.parent.name.endswith(".partial")


def name_inputs(images: Iterable[Path]) -> list[Input]:
    """Give every picture a name and a folder that no other has.

    Parameters
    ----------
    images : iterable of pathlib.Path
        Different files.

    Returns
    -------
    list of Input
        A folder is called by the picture's stem. Where stems collide it is
        called by the path from the folder that all pictures share, and
        where these collide too the suffix is kept.
    """
    images = list(images)
    if not images:
        return []
    absolute = [path.absolute() for path in images]
    try:
        root = Path(os.path.commonpath([path.parent for path in absolute]))
    except ValueError:  # several drives of Windows
        root = Path()
    relative = [Path(*path.relative_to(root).parts) if path.is_relative_to(root) else path for path in absolute]
    stems = Counter(safe_name(path.stem).casefold() for path in images)
    names = Counter(path.name for path in images)
    longer = Counter(_joined(path.with_suffix("")).casefold() for path in relative)
    taken = set(RUN_FILES)
    inputs = []
    for path, short in zip(images, relative, strict=True):
        folder = safe_name(path.stem)
        if stems[folder.casefold()] > 1:
            folder = _joined(short.with_suffix(""))
            if longer[folder.casefold()] > 1:
                folder = _joined(short)
        base, n = folder, 1
        while folder.casefold() in taken:
            n += 1
            folder = f"{base}_{n}"
        taken.add(folder.casefold())
        inputs.append(Input(path, printable(path.name if names[path.name] == 1 else short.as_posix()), folder))
    return inputs


def _joined(path: Path) -> str:
    return safe_name("_".join(part for part in path.parts if part not in (path.anchor, "..")))


def printable(text: str | Path) -> str:
    """Replace what a terminal would obey and a text file cannot hold."""
    return "".join(character if character.isprintable() else "\ufffd" for character in str(text))
