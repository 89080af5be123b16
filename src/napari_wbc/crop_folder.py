"""Crops on disk: a folder a class, as torchvision's ImageFolder reads them, with a table of the cells."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .atomic import DEBRIS, ExportError, check_replaceable, new_folder, safe_name
from .cells import Cells
from .tables import as_text, exact, to_csv

MPP_TEXT = "napari-wbc:mpp"
TABLE = "crops.csv"
UNCLASSIFIED = "unclassified"


def write_crops(
    crops: npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]],
    cells: Cells,
    folder: str | Path,
    *,
    mpp: float | None = None,
) -> Path:
    """Write crops as ``<class>/<slide>_<label>.png`` with a table, ``crops.csv``.

    Parameters
    ----------
    crops : (n, S, S, 3) uint8 array
        One crop a cell (`napari_wbc.crop.crop_cells`).
    cells : Cells
        The cells, in the same order; those without a class go to *unclassified*.
    folder : str or pathlib.Path
        Where to: new, empty, or with crops that this function wrote and
        nobody changed, which are replaced. It appears whole or not at all.
    mpp : float, optional
        Micrometres per pixel of the crops, written into each PNG (its pHYs
        tag, and exactly in the text ``napari-wbc:mpp``).

    Raises
    ------
    ExportError
        If the folder cannot be written, or holds other files or crops that
        were moved, added or removed since.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    folder = Path(folder)
    if len(crops) != len(cells):
        raise ExportError(f"{len(cells)} cells need as many crops, not {len(crops)}")
    files = _crop_files(cells)
    table = cells.table.copy()
    table.insert(0, "file", files)
    info = PngInfo()
    tags: dict[str, Any] = {"pnginfo": info}
    if mpp is not None:
        info.add_text(MPP_TEXT, repr(float(mpp)))
        tags["dpi"] = (25400 / mpp, 25400 / mpp)
    with new_folder(folder, _foreign) as fresh:
        for crop, name in zip(crops, files, strict=True):
            (fresh / name).parent.mkdir(exist_ok=True)
            Image.fromarray(crop).save(fresh / name, **tags)
        (fresh / TABLE).write_text(to_csv(as_text(table)), encoding="utf-8", newline="\n")
    return folder


def _crop_files(cells: Cells) -> list[str]:
    files: list[str] = []
    taken: set[str] = set()
    for slide, label, name in cells.table[["slide", "label", "class"]].itertuples(index=False):
        stem = safe_name(str(Path(slide).with_suffix("")) if slide else "cell")[:60]
        base = f"{_class_folder(name)}/{stem}_{label}"
        file, n = base, 1
        while file.casefold() in taken:  # slides a.png and a.jpg, or B and b on a file system that ignores case
            n += 1
            file = f"{base}_{n}"
        taken.add(file.casefold())
        files.append(file + ".png")
    return files


def check_crop_folder(folder: str | Path) -> None:
    """Raise ExportError if crops may not be written into a folder, before work is lost on it."""
    check_replaceable(folder, _foreign)


def holds_crops(folder: Path) -> bool:
    """Whether a folder holds crops that `write_crops` wrote, changed since or not."""
    try:
        with (folder / TABLE).open("rb") as stream:
            return stream.readline(10_000).removeprefix(b"\xef\xbb\xbf").startswith(b"file,slide,label,centroid-0,")
    except OSError:
        return False


def _foreign(folder: Path) -> list[str]:
    """Return what is in a folder and not as `write_crops` left it: a crop that was moved to another class is not."""
    listed = _listed(folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name not in DEBRIS}
    if listed is None:
        return sorted(there)
    expected = listed | {TABLE} | {file.partition("/")[0] for file in listed}
    return sorted(there ^ expected)


def _listed(folder: Path) -> set[str] | None:
    """Return the crops of a folder's table; None where it is not ours, or was edited."""
    if not holds_crops(folder):
        return None
    try:
        with (folder / TABLE).open(encoding="utf-8-sig", newline="") as stream:
            rows = [(exact(row["file"]), exact(row["class"])) for row in csv.DictReader(stream)]
    except (ValueError, KeyError, AttributeError, csv.Error):  # a row that is cut short holds None
        return None
    as_written = all(file and file.partition("/")[0] == _class_folder(name or "") for file, name in rows)
    return {file for file, _ in rows} if as_written else None


def _class_folder(name: str) -> str:
    return safe_name(name) if name else UNCLASSIFIED
