"""Reference ranges of adults for the differential, absolute counts and what lies outside."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

SHIPPED = Path(__file__).parent / "reference_ranges.toml"
MIN_WBC, MAX_WBC = 100.0, 2_000_000.0
"""White cells per µL: less was meant as 10⁹/L, and no blood has more."""


class RangesError(ValueError):
    """A table of reference ranges cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Ranges:
    """Reference ranges.

    Parameters
    ----------
    source : str
        Where they are from, to be printed beside them.
    percent : mapping of str to (float, float)
        Class to the lowest and highest share that is usual, % of white cells.
    per_ul : mapping of str to (float, float)
        The same in cells per µL.
    """

    source: str
    percent: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    per_ul: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def load_ranges(path: str | Path | None = None) -> Ranges:
    """Read reference ranges.

    Parameters
    ----------
    path : str or pathlib.Path, optional
        A TOML file: ``source`` and a table ``[ranges."<class>"]`` a class with ``percent`` or ``per_ul``, a low and
        a high number each. `SHIPPED` if not given.

    Raises
    ------
    RangesError
        If the file cannot be read or says something else.
    """
    path = SHIPPED if path is None else Path(path)
    try:
        given = tomllib.loads(path.read_text("utf-8-sig"))
        rows = given["ranges"]
        found = {unit: {name: _pair(row[unit]) for name, row in rows.items() if unit in row}
                 for unit in ("percent", "per_ul")}  # fmt: skip
        return Ranges(str(given["source"]), found["percent"], found["per_ul"])
    except OSError as error:
        raise RangesError(f"{path}: cannot be read: {error.strerror or error}; give a TOML file of ranges") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RangesError(f"{path}: not a table of reference ranges ({error}); copy {SHIPPED} and edit it") from error


def _pair(values: object) -> tuple[float, float]:
    if not isinstance(values, list) or len(values) != 2 or not all(isinstance(v, int | float) for v in values):
        raise ValueError(f"a range is two numbers, low and high, not {values!r}")
    low, high = float(values[0]), float(values[1])
    if not 0 <= low <= high:
        raise ValueError(f"{low:g} to {high:g} is no range")
    return low, high


def parse_wbc(text: str) -> float | None:
    """Return the WBC per µL that a user entered; None for nothing.

    Raises
    ------
    ValueError
        If it is no number, has a comma (which means thousands to some and decimals to others), or no blood has it.
    """
    text = text.strip()
    if "," in text:
        raise ValueError(f"WBC per µL is {text!r}: write 6400, without a comma")
    try:
        wbc = float(text) if text else None
    except ValueError:
        raise ValueError(f"WBC per µL is {text!r}, but must be a number, such as 6400") from None
    check_wbc(wbc)
    return wbc


def check_wbc(wbc: float | None) -> None:
    """Raise ValueError if a WBC is not from `MIN_WBC` to `MAX_WBC` per µL; None, for an unknown one, is right."""
    if wbc is None or MIN_WBC <= wbc <= MAX_WBC:
        return
    if 0 < wbc < MIN_WBC:
        raise ValueError(f"WBC is per µL: for {wbc:g} × 10⁹/L enter {1000 * wbc:g}")
    raise ValueError(f"WBC is {wbc:g} per µL, but must be from {MIN_WBC:.0f} to {MAX_WBC:.0f} (6.4 × 10⁹/L is 6400)")


def with_ranges(counts: pd.DataFrame, ranges: Ranges, wbc: float | None = None) -> pd.DataFrame:
    """Set reference ranges, flags and absolute counts beside a differential.

    Parameters
    ----------
    counts : pandas.DataFrame
        What `napari_wbc.count.differential` returned.
    ranges : Ranges
        Of the laboratory, or those that are shipped.
    wbc : float, optional
        White cells per µL, as an analyser counted them (corrected for erythroblasts).

    Returns
    -------
    pandas.DataFrame
        The rows with the further columns ``reference_low`` and ``reference_high`` (% of white cells), ``flag``
        (``high``, ``low`` or empty, of the share), ``per_ul``, ``per_ul_low`` and ``per_ul_high`` (the count and its
        95 % limits; the limits are those of the share, the WBC is taken for exact), ``per_ul_reference_low``,
        ``per_ul_reference_high`` and ``per_ul_flag``. NaN and empty where there is nothing to say.

    Raises
    ------
    ValueError
        If `wbc` is none that blood has (`check_wbc`).
    """
    check_wbc(wbc)
    table = counts.copy()
    white = (table["group"] == "white").to_numpy()
    share = table["value"].where(white)
    _beside(table, share, ranges.percent, "reference_low", "reference_high", "flag")
    each = np.nan if wbc is None else wbc / 100
    # Erythroblasts are per 100 white cells: the same factor.
    absolute = white | (table["group"] == "erythroblast").to_numpy()
    for name, source in (("per_ul", "value"), ("per_ul_low", "low"), ("per_ul_high", "high")):
        table[name] = (table[source].where(absolute) * each).round(1)
    shown = ranges.per_ul if wbc is not None else {}
    _beside(table, table["per_ul"], shown, "per_ul_reference_low", "per_ul_reference_high", "per_ul_flag")
    return table


def flag_sign(flag: str, low: float, high: float, range_low: float, range_high: float) -> str:
    """Return the sign of a value outside its range: filled if its limits `low` and `high` are outside, too, else open.

    Parameters
    ----------
    flag : str
        ``high``, ``low`` or empty, as `with_ranges` gives it.
    low, high : float
        95 % limits of the value.
    range_low, range_high : float
        The reference range.
    """
    if flag == "high":
        return "▲" if low > range_high else "△"
    if flag == "low":
        return "▼" if high < range_low else "▽"
    return ""


def _beside(
    table: pd.DataFrame, values: pd.Series, ranges: Mapping[str, tuple[float, float]], low: str, high: str, flag: str
) -> None:
    pairs = [ranges.get(name, (np.nan, np.nan)) for name in table["class"]]
    table[low], table[high] = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    table[[low, high]] = table[[low, high]].astype("float64")
    table[flag] = np.where(values > table[high], "high", np.where(values < table[low], "low", ""))
