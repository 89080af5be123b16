"""The table of cells as CSV, Parquet and GeoJSON, and back, with nothing lost."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .atomic import ExportError, new_file
from .cells import COLUMNS, PROBABILITY_PREFIX, Cells, CellsError
from .geojson import Rings, from_geojson, outlines, to_geojson

MARK = "napari-wbc"
CELL_SUFFIXES = (".csv", ".parquet", ".geojson")
_NUMBER = r"-?(?:0|[1-9]\d*)"
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_FIRST = frozenset("'=+-@\t\r\n")
_REAL = rf"(?:{_NUMBER}(?:\.\d+)?(?:[eE][+-]?\d+)?|-?inf)"


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
    data = encode(cells, path.suffix.lower(), outlines(labels) if labels is not None else {})
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
    except UnicodeDecodeError as error:
        raise CellsError(f"{path}: not a table of cells: not UTF-8; save it as such, or write it again") from error
    except (ValueError, OverflowError) as error:
        remedy = (
            "" if isinstance(error, CellsError) and "; " in str(error) else "; correct it, or write the results again"
        )
        raise CellsError(f"{path}: not a table of cells: {error}{remedy}") from error
    return cells


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in CELL_SUFFIXES:
        raise ExportError(f"{path}: cells are kept in files that end in {', '.join(CELL_SUFFIXES)}")


def encode(cells: Cells, suffix: str, rings: Mapping[int, Rings], mark: str = "") -> bytes:
    """Return a table of cells as the bytes of a file; in Parquet `mark` is kept under `MARK`."""
    if suffix == ".csv":
        return to_csv(as_text(cells.table)).encode("utf-8")
    if suffix == ".geojson":
        return to_geojson(cells, rings).encode("utf-8")
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    try:
        table = pa.Table.from_pandas(cells.table.rename(columns=str), preserve_index=False)
    except (ValueError, TypeError) as error:  # pyarrow's errors are both
        raise ExportError(f"a column mixes types that Parquet cannot hold ({error}); make it text") from error
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, MARK: mark}), buffer)
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


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Tell a missing value from an empty text in the columns that are not of the schema."""
    table = table.rename(columns=str)
    for name in _extra(table.columns):
        table[name] = table[name].astype(object).where(table[name].notna(), "NaN")
    return table


def harmless(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose texts no spreadsheet takes for a formula: an apostrophe stands before those that it would.

    References
    ----------
    .. [1] OWASP, "CSV injection", owasp.org/www-community/attacks/CSV_Injection.
    """
    table = table.rename(columns=lambda name: _guarded(str(name)))
    texts = [name for name, dtype in table.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    # Through lists: `map` would make numbers of a mixed column floats.
    guarded = {str(name): pd.Series([_guarded(v) for v in table[name]], table.index, dtype=object) for name in texts}
    return table.assign(**guarded)


def to_csv(table: pd.DataFrame) -> str:
    """Return a table as CSV that comes back as it was and that is harmless to spreadsheets."""
    table = harmless(table)
    texts = [table[name] for name, dtype in table.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    # The csv module leaves a carriage return bare, and readers take it for the end of a line.
    bare = any("\r" in str(value) for values in (table.columns, *texts) for value in values)
    if bare:
        return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return table.to_csv(index=False, lineterminator="\n")


def _guarded(value: Any) -> Any:
    # The first letter rules most out without the expression.
    return f"'{value}" if isinstance(value, str) and value[:1] in _FIRST and _FORMULA.match(value) else value


def exact(text: str) -> str:
    """Return the text that `harmless` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _extra(columns: pd.Index) -> list[str]:
    return [name for name in columns if name not in COLUMNS and not name.startswith(PROBABILITY_PREFIX)]


def _cells_of_text(text: str) -> Cells:
    if ";" in text.partition("\n")[0] and "," not in text.partition("\n")[0]:
        raise CellsError("its columns are separated by semicolons; save it with commas and decimal points")
    if text and "\n" not in text and "\r" not in text:
        raise CellsError("its line of heads is cut short; write the file again")
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas.errors.ParserError and EmptyDataError
        raise CellsError(f"not CSV or cut short ({error}); write the file again") from error
    short = table.isna().any(axis=1)
    if short.any():
        raise CellsError(f"line {int(short.argmax()) + 2} is cut short; write the file again")
    table = table.rename(columns=exact).astype(object)
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
    return values.map(exact).astype(object) if dtype == "str" else values


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
    values = values.map(exact)
    return values.where(values != "NaN", None).infer_objects() if not whole else pd.Series(values.tolist())
