"""The folder of results of one picture: table, labels, outlines for QuPath, annotated picture, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .atomic import DEBRIS, ExportError, check_replaceable, new_folder, safe_name
from .cells import Cells
from .crop_folder import write_crops
from .decisions import decided_in
from .geojson import Rings, outlines
from .review import REVIEW_FILES, check_not_reviewed, check_uncorrected, differs_from_model, mark_of
from .tables import MARK, encode, read_cells, to_csv, write_cells

if TYPE_CHECKING:
    from .pipeline import Analysis
    from .slide import Slide
    from .whole import Whole

__all__ = [
    "ExportError", "Results", "read_cells", "read_results", "safe_name", "write_cells", "write_crops",
    "write_folder", "write_results",
]  # fmt: skip

RESULT_FILES = ("cells.csv", "cells.parquet", "cells.geojson", "labels.tif", "annotated.png")
SLIDE_FILES = ("regions.csv", "regions.png", "slide.json")
"""What a whole slide has besides; it has no ``labels.tif``."""
BATCH_FILES = ("thumbnail.png", "density.png")
BATCH_FOLDER = "cells.ome.zarr"
"""What a batch adds."""

_CREATOR = "napari-wbc"
_THUMBNAIL = 2048


@dataclass(frozen=True)
class Results:
    """Results of one field, read from their folder.

    Parameters
    ----------
    cells : Cells
        A row a cell.
    labels : (H, W) integer array or None
        The cells' ids, 0 for background; None for a whole slide.
    image : pathlib.Path or None
        The picture that was analysed, where it still exists.
    sought : pathlib.Path or None
        Where it was when it was analysed.
    """

    cells: Cells
    labels: npt.NDArray[np.integer[Any]] | None = field(repr=False)
    image: Path | None = None
    sought: Path | None = None


def write_results(
    analysis: Analysis,
    folder: str | Path,
    *,
    files: Collection[str] = RESULT_FILES,
    corrected: bool = False,
    overwrite: bool = False,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Write the results of a field into a folder.

    Parameters
    ----------
    analysis : Analysis
        What `napari_wbc.pipeline.analyse` returned.
    folder : str or pathlib.Path
        Where to. It appears whole or not at all; earlier results in it are
        replaced, other files are never touched.
    files : collection of str
        Which of `RESULT_FILES` to write, and ``differential.csv`` if it is named.
    corrected : bool
        Whether a reviewer changed the cells. Where a class is not the one
        that the model gave they count as corrected anyway.
    overwrite : bool
        Whether the model's results may replace corrected ones.
    also : callable, optional
        Writes more files into the folder before it takes its place.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ExportError
        If the folder cannot be written, holds other files, or holds
        corrected results and these are not.
    """
    corrected = corrected or differs_from_model(analysis.cells)
    if analysis.whole is not None:
        return _write_slide(
            analysis, analysis.whole, Path(folder), files, corrected=corrected, overwrite=overwrite, also=also
        )
    return write_folder(
        folder,
        analysis.cells,
        analysis.labels,
        image=analysis.slide.image,
        picture=analysis.slide.path,
        files=files,
        corrected=corrected,
        overwrite=overwrite,
        also=also,
    )


def place_results(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files that `write_results` wrote elsewhere, by their paths in the folder; it raises as that does."""
    check_folder(folder, overwrite=False)
    check_not_reviewed(folder)
    with new_folder(folder, _foreign) as fresh:
        for name, data in files.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def write_folder(
    folder: str | Path,
    cells: Cells,
    labels: npt.NDArray[np.integer[Any]] | None,
    *,
    image: npt.NDArray[np.uint8] | None = None,
    picture: Path | None = None,
    files: Collection[str] = RESULT_FILES,
    corrected: bool = False,
    overwrite: bool = False,
    rings: Mapping[int, Rings] | None = None,
    step: float = 1.0,
    more: Mapping[str, bytes] | None = None,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Write cells and labels into a folder as `write_results` does.

    Parameters
    ----------
    folder : str or pathlib.Path
        Where to; earlier results in it are replaced as a whole.
    cells : Cells
        The cells, corrected or not.
    labels : (H, W) integer array or None
        The cells' ids; without them no ``labels.tif``, and boxes for outlines.
    image : (H, W, 3) uint8 array, optional
        The field; without it no ``annotated.png``.
    picture : pathlib.Path, optional
        The field's file, noted in ``labels.tif``.
    files : collection of str
        Which of `RESULT_FILES` to write, and ``differential.csv`` if it is named.
    corrected, overwrite : bool
        As for `write_results`; without the threshold, *unidentified* is
        taken for the model's word.
    rings : mapping of int to list of (m, 2) arrays, optional
        Outlines of the cells, where there are no labels.
    step : float
        How many pixels of the cells' coordinates a pixel of `image` is wide.
    more : mapping of str to bytes, optional
        Further files of a whole slide.
    also : callable, optional
        As for `write_results`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ExportError
        If the folder cannot be written, holds other files, or holds
        corrected results and these are not.
    """
    from .count import differential

    folder = Path(folder)
    corrected = corrected or differs_from_model(cells)
    check_folder(folder, overwrite=corrected or overwrite)
    if not overwrite:
        check_not_reviewed(folder)
    mark = json.dumps(mark_of(cells, corrected=corrected))
    if rings is None:
        rings = outlines(labels) if labels is not None and {"cells.geojson", "annotated.png"} & set(files) else {}
    with new_folder(folder, _foreign) as fresh:
        for name in [name for name in files if name.startswith("cells.")]:
            (fresh / name).write_bytes(encode(cells, Path(name).suffix, rings, mark))
        for name, data in (more or {}).items():
            (fresh / name).write_bytes(data)
        if labels is not None and "labels.tif" in files:
            mpp = float(cells.table["mpp"].iloc[0]) if len(cells) else float("nan")
            _write_labels(fresh / "labels.tif", labels, mpp, picture, mark)
        if image is not None and "annotated.png" in files:
            from .picture import annotated

            reduced = {k: [ring / step for ring in own] for k, own in rings.items()} if step != 1 else rings
            annotated(image, cells, reduced).save(fresh / "annotated.png", compress_level=2)
        if "differential.csv" in files:
            slides = list(dict.fromkeys(cells.table["slide"])) or [""]
            blocks = [differential(Cells(cells.table[cells.table["slide"] == name]), name) for name in slides]
            (fresh / "differential.csv").write_text(to_csv(pd.concat(blocks)), encoding="utf-8", newline="\n")
        if also is not None:
            also(fresh)
    return folder


def _write_slide(
    analysis: Analysis, whole: Whole, folder: Path, files: Collection[str], *, corrected: bool, overwrite: bool,
    also: Callable[[Path], None] | None,
) -> Path:  # fmt: skip
    """Write the results of a whole slide: no label image, but what its regions are, as a table and a small map."""
    from io import BytesIO

    from .picture import region_map
    from .pyramid import averaged

    slide = analysis.slide
    more: dict[str, bytes] = {}
    image = slide.thumbnail(_THUMBNAIL)
    if "annotated.png" in files:
        picture = BytesIO()
        region_map(averaged(image, 2), whole.film.kinds, slide.shape, whole.film.step).save(
            picture, "PNG", compress_level=2
        )
        more["regions.png"] = picture.getvalue()
    more |= slide_note(slide) | {"regions.csv": to_csv(whole.regions).encode()}
    return write_folder(
        folder, analysis.cells, None, image=image, picture=slide.path, files=files, corrected=corrected,
        overwrite=overwrite, rings=whole.rings, step=slide.shape[1] / image.shape[1], more=more, also=also,
    )  # fmt: skip


def slide_note(slide: Slide) -> dict[str, bytes]:
    """Return ``slide.json``, which says which slide the results of a folder are of."""
    note = {"slide": str(slide.path.absolute()) if slide.path else None, "shape": list(slide.shape)}
    return {"slide.json": (json.dumps(note) + "\n").encode()}


def check_folder(folder: str | Path, *, overwrite: bool) -> None:
    """Raise ExportError if results may not be written into a folder, before work is lost on it.

    Parameters
    ----------
    folder : str or pathlib.Path
        Where results shall go.
    overwrite : bool
        Whether corrected results may be replaced.
    """
    check_replaceable(folder, _foreign)
    if not overwrite:
        check_uncorrected(folder)


def _foreign(folder: Path) -> list[str]:
    ours = {*RESULT_FILES, *SLIDE_FILES, *BATCH_FILES, *REVIEW_FILES, "differential.csv", *DEBRIS}
    found = (path for path in folder.iterdir() if path.name != BATCH_FOLDER)
    return [path.name for path in found if path.name not in ours or not path.is_file()]


def read_results(folder: str | Path, *, decided: bool = True, table: Path | None = None) -> Results:
    """Read the results of a field.

    Parameters
    ----------
    folder : str or pathlib.Path
        What `write_results` wrote. The cells are taken from ``cells.csv``,
        which people edit, or from ``cells.parquet`` if there is none; where
        there was a review, they are those of its log of decisions.
    decided : bool
        False for the tables as they are, whatever the log says.
    table : pathlib.Path, optional
        The file of the cells, if it is another.

    Raises
    ------
    ExportError, CellsError
        If files are missing or damaged; the message names the file.
    """
    folder = Path(folder)
    tables = [folder / name for name in ("cells.csv", "cells.parquet") if (folder / name).is_file()]
    table = table or next(iter(tables), None)
    if table is not None and (folder / "slide.json").is_file():
        sought = _read_note(folder / "slide.json")
        image = sought if sought is not None and sought.exists() else None
        return Results(_cells_in(folder, table, decided), None, image, sought)
    if table is None or not (folder / "labels.tif").is_file():
        raise ExportError(f"{folder}: no results; a folder with cells.csv (or cells.parquet) and labels.tif is needed")
    cells = _cells_in(folder, table, decided)
    labels, sought = _read_labels(folder / "labels.tif")
    return Results(cells, labels, sought if sought is not None and sought.is_file() else None, sought)


def _cells_in(folder: Path, table: Path, decided: bool) -> Cells:
    reviewed = decided_in(folder) if decided else None
    return read_cells(table) if reviewed is None else reviewed.cells


def _read_note(path: Path) -> Path | None:
    try:
        name = json.loads(path.read_text("utf-8"))["slide"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"{path}: damaged or cut short ({error}); write the results again") from error
    return Path(name) if isinstance(name, str) else None


def _write_labels(
    path: Path, labels: npt.NDArray[np.integer[Any]], mpp: float, picture: Path | None, mark: str
) -> None:
    import tifffile

    highest = int(labels.max(initial=0))
    dtype = next(dtype for dtype in (np.uint16, np.uint32, np.uint64) if highest <= np.iinfo(dtype).max)
    tags: dict[str, Any] = {}
    if np.isfinite(mpp):
        tags = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    metadata = {"creator": _CREATOR, "picture": str(picture.absolute()) if picture else None, MARK: mark}
    tifffile.imwrite(path, labels.astype(dtype), compression="zlib", metadata=metadata, **tags)


def _read_labels(path: Path) -> tuple[npt.NDArray[np.integer[Any]], Path | None]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            labels = tiff.asarray()
            metadata: dict[str, Any] = (tiff.shaped_metadata or ({},))[0]
    # tifffile raises whatever a broken file makes it raise.
    except Exception as error:
        raise ExportError(f"{path}: not a TIFF, damaged or cut short ({error}); write the results again") from error
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ExportError(
            f"{path}: not a label image but {labels.dtype} of shape {labels.shape}; write the results again"
        )
    picture = metadata.get("picture")
    return labels, Path(picture) if isinstance(picture, str) and metadata.get("creator") == _CREATOR else None
