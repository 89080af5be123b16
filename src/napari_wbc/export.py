"""Results on disk, and back: tables, labels, outlines for QuPath, annotated pictures, crops by class."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .atomic import ExportError, new_file, new_folder, safe_name
from .cells import COLUMNS, PROBABILITY_PREFIX, Cells, CellsError
from .geojson import Rings, from_geojson, outlines, to_geojson

if TYPE_CHECKING:
    from .pipeline import Analysis

__all__ = [
    "ExportError", "Results", "read_cells", "read_results", "safe_name", "write_cells", "write_crops",
    "write_folder", "write_results",
]  # fmt: skip

RESULT_FILES = ("cells.csv", "cells.parquet", "cells.geojson", "labels.tif", "annotated.png")
CELL_SUFFIXES = (".csv", ".parquet", ".geojson")
MPP_TEXT = "napari-wbc:mpp"
UNCLASSIFIED = "unclassified"
_CREATOR = "napari-wbc"
_NUMBER = r"-?(?:0|[1-9]\d*)"
_REAL = rf"(?:{_NUMBER}(?:\.\d+)?(?:[eE][+-]?\d+)?|-?inf)"


@dataclass(frozen=True)
class Results:
    """Results of one field, read from their folder.

    Parameters
    ----------
    cells : Cells
        A row a cell.
    labels : (H, W) integer array
        The cells' ids, 0 for background.
    image : pathlib.Path or None
        The picture that was analysed, where it still exists.
    """

    cells: Cells
    labels: npt.NDArray[np.integer[Any]] = field(repr=False)
    image: Path | None = None


def write_results(analysis: Analysis, folder: str | Path, *, files: Collection[str] = RESULT_FILES) -> Path:
    """Write the results of a field into a folder.

    Parameters
    ----------
    analysis : Analysis
        What `napari_wbc.pipeline.analyse` returned.
    folder : str or pathlib.Path
        Where to. It appears whole or not at all; earlier results in it are
        replaced, other files are never touched.
    files : collection of str
        Which of `RESULT_FILES` to write.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ExportError
        If the folder cannot be written or holds other files.
    """
    return write_folder(
        folder, analysis.cells, analysis.labels, image=analysis.slide.image, picture=analysis.slide.path, files=files
    )


def write_folder(
    folder: str | Path,
    cells: Cells,
    labels: npt.NDArray[np.integer[Any]] | None,
    *,
    image: npt.NDArray[np.uint8] | None = None,
    picture: Path | None = None,
    files: Collection[str] = RESULT_FILES,
) -> Path:
    """Write cells and labels into a folder as `write_results` does; without `image` no annotated picture.

    ``differential.csv`` is written too if `files` names it.
    """
    from .count import differential

    folder = Path(folder)
    rings = outlines(labels) if labels is not None and {"cells.geojson", "annotated.png"} & set(files) else {}
    with new_folder(folder, lambda path: path.is_file() and path.name in {*RESULT_FILES, "differential.csv"}) as fresh:
        for name in [name for name in files if name.startswith("cells.")]:
            (fresh / name).write_bytes(_encode(cells, Path(name).suffix, rings))
        if labels is not None and "labels.tif" in files:
            mpp = float(cells.table["mpp"].iloc[0]) if len(cells) else float("nan")
            _write_labels(fresh / "labels.tif", labels, mpp, picture)
        if image is not None and "annotated.png" in files:
            from .picture import annotated

            annotated(image, cells, rings).save(fresh / "annotated.png", compress_level=4)
        if "differential.csv" in files:
            slides = list(dict.fromkeys(cells.table["slide"])) or [""]
            blocks = [differential(Cells(cells.table[cells.table["slide"] == name]), name) for name in slides]
            pd.concat(blocks).to_csv(fresh / "differential.csv", index=False)
    return folder


def read_results(folder: str | Path) -> Results:
    """Read the results of a field.

    Parameters
    ----------
    folder : str or pathlib.Path
        What `write_results` wrote. The cells are taken from ``cells.csv``,
        which people edit, or from ``cells.parquet`` if there is none.

    Raises
    ------
    ExportError, CellsError
        If files are missing or damaged; the message names the file.
    """
    folder = Path(folder)
    table = next((folder / name for name in ("cells.csv", "cells.parquet") if (folder / name).is_file()), None)
    if table is None or not (folder / "labels.tif").is_file():
        raise ExportError(f"{folder}: no results; a folder with cells.csv (or cells.parquet) and labels.tif is needed")
    cells = read_cells(table)
    labels, picture = _read_labels(folder / "labels.tif")
    return Results(cells, labels, picture)


def write_cells(cells: Cells, path: str | Path, labels: npt.NDArray[np.integer[Any]] | None = None) -> Path:
    """Write a table of cells as CSV, Parquet or GeoJSON, by the suffix.

    Parameters
    ----------
    cells : Cells
        The table; columns of the user's own are written too.
    path : str or pathlib.Path
        Ends in ``.csv``, ``.parquet`` or ``.geojson``.
    labels : (H, W) integer array, optional
        For the outlines in GeoJSON; bounding boxes without it.

    Raises
    ------
    ExportError
        For another suffix, or if the file cannot be written.

    Notes
    -----
    CSV carries no types: text of the user's own that reads as a number comes
    back as one, dates and categories come back as text. Parquet keeps them.
    """
    path = Path(path)
    _check_suffix(path)
    data = _encode(cells, path.suffix.lower(), outlines(labels) if labels is not None else {})
    with new_file(path) as fresh:
        fresh.write_bytes(data)
    return path


def read_cells(path: str | Path) -> Cells:
    """Read a table of cells that `write_cells` or `write_results` wrote.

    Raises
    ------
    CellsError
        If the file is damaged or holds something else; the message names it.
    ExportError
        If the file cannot be read or has another suffix.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror or error}; give a file of cells") from error
    try:
        cells = _decode(data, path.suffix.lower())
        if not np.isfinite(cells.centroids).all():
            raise CellsError("centroid-0 and centroid-1 must be numbers")
    except (ValueError, OverflowError) as error:
        raise CellsError(f"{path}: not a table of cells: {error}") from error
    return cells


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
        Where to; appears whole or not at all and replaces earlier crops.
    mpp : float, optional
        Micrometres per pixel of the crops, written into each PNG (its pHYs
        tag, and exactly in the text ``napari-wbc:mpp``).

    Raises
    ------
    ExportError
        If the folder cannot be written or holds other files.
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
    with new_folder(folder, _is_crops) as fresh:
        for crop, name in zip(crops, files, strict=True):
            (fresh / name).parent.mkdir(exist_ok=True)
            Image.fromarray(crop).save(fresh / name, **tags)
        _as_text(table).to_csv(fresh / "crops.csv", index=False)
    return folder


def _crop_files(cells: Cells) -> list[str]:
    files: list[str] = []
    taken: set[str] = set()
    for slide, label, name in cells.table[["slide", "label", "class"]].itertuples(index=False):
        stem = safe_name(str(Path(slide).with_suffix("")) if slide else "cell")[:60]
        base = f"{safe_name(name) if name else UNCLASSIFIED}/{stem}_{label}"
        file, n = base, 1
        while file.casefold() in taken:  # slides a.png and a.jpg, or B and b on a file system that ignores case
            n += 1
            file = f"{base}_{n}"
        taken.add(file.casefold())
        files.append(file + ".png")
    return files


def _is_crops(path: Path) -> bool:
    return path.name == "crops.csv" or (path.is_dir() and all(p.suffix == ".png" for p in path.iterdir()))


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in CELL_SUFFIXES:
        raise ExportError(f"{path}: cells are kept in files that end in {', '.join(CELL_SUFFIXES)}")


def _encode(cells: Cells, suffix: str, rings: dict[int, Rings]) -> bytes:
    if suffix == ".csv":
        return _as_text(cells.table).to_csv(index=False).encode("utf-8")
    if suffix == ".geojson":
        return to_geojson(cells, rings).encode("utf-8")
    buffer = io.BytesIO()
    table = cells.table.rename(columns=str)
    try:
        table.to_parquet(buffer, index=False)
    except (ValueError, TypeError) as error:  # pyarrow's errors are both
        raise ExportError(f"a column mixes types that Parquet cannot hold ({error}); make it text") from error
    return buffer.getvalue()


def _decode(data: bytes, suffix: str) -> Cells:
    if suffix == ".geojson":
        return from_geojson(data.decode("utf-8"))
    if suffix == ".csv":
        return _cells_of_text(data.decode("utf-8-sig"))
    try:
        return Cells(pd.read_parquet(io.BytesIO(data)))
    except CellsError:
        raise
    # pyarrow raises whatever a broken file makes it raise.
    except Exception as error:
        raise CellsError(f"not Parquet or cut short ({error}); write the file again") from error


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Tell a missing value from an empty text in the columns that are not of the schema."""
    table = table.rename(columns=str)
    for name in _extra(table.columns):
        table[name] = table[name].astype(object).where(table[name].notna(), "NaN")
    return table


def _extra(columns: pd.Index) -> list[str]:
    return [name for name in columns if name not in COLUMNS and not name.startswith(PROBABILITY_PREFIX)]


def _cells_of_text(text: str) -> Cells:
    if ";" in text.partition("\n")[0] and "," not in text.partition("\n")[0]:
        raise CellsError("its columns are separated by semicolons; save it with commas and decimal points")
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas.errors.ParserError and EmptyDataError
        raise CellsError(f"not CSV or cut short ({error}); write the file again") from error
    short = table.isna().any(axis=1)
    if short.any():
        raise CellsError(f"line {int(short.argmax()) + 2} is cut short; write the file again")
    table = table.astype(object)
    for name in table.columns:
        if name in COLUMNS or name.startswith(PROBABILITY_PREFIX):
            dtype = COLUMNS[name].dtype if name in COLUMNS else "float64"
            table[name] = _read_column(table[name], name, dtype)
        else:
            table[name] = _guess(table[name])
    return Cells(table)


def _read_column(values: pd.Series, name: str, dtype: str) -> pd.Series:
    if dtype == "bool":
        known = values.str.casefold().map({"true": True, "false": False})
        if known.isna().any():
            raise CellsError(f"column {name} must hold True or False")
        return known.astype(bool)
    if dtype == "float64":
        return values.replace("", "nan").astype(np.float64)
    return values


def _guess(values: pd.Series) -> pd.Series:
    """Give a column of text the type that writes exactly this text."""
    known = values[~values.isin(["", "NaN"])]
    whole = len(known) == len(values)
    if len(known) and known.isin(["True", "False"]).all():
        flags = values.map({"True": True, "False": False, "NaN": np.nan})
        return flags.astype(bool) if whole else flags
    if len(known) and whole and known.str.fullmatch(_NUMBER).all() and known.str.len().max() < 19:
        return values.astype(np.int64)
    if (len(known) and known.str.fullmatch(_REAL).all()) or (len(values) and values.eq("NaN").all()):
        return values.replace("", "nan").astype(np.float64)
    return values.where(values != "NaN", None).infer_objects() if not whole else pd.Series(values.tolist())


def _write_labels(path: Path, labels: npt.NDArray[np.integer[Any]], mpp: float, picture: Path | None) -> None:
    import tifffile

    highest = int(labels.max(initial=0))
    dtype = next(dtype for dtype in (np.uint16, np.uint32, np.uint64) if highest <= np.iinfo(dtype).max)
    tags: dict[str, Any] = {}
    if np.isfinite(mpp):
        tags = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    metadata = {"creator": _CREATOR, "picture": str(picture.absolute()) if picture else None}
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
        raise ExportError(f"{path}: not a label image but {labels.dtype} of shape {labels.shape}")
    picture = metadata.get("picture")
    found = Path(picture) if isinstance(picture, str) and metadata.get("creator") == _CREATOR else None
    return labels, found if found is not None and found.is_file() else None
