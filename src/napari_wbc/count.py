"""The differential count, with exact confidence limits.

Percentages are over the white cells that were given a class. Erythroblasts
are reported per 100 white cells, platelets as a number only, and cells that
were left unidentified stand apart: none of them is folded into a class.
Smudge cells are counted beside the white cells, per 100 of them, as is
customary; what is not a white cell counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from .cells import Cells
from .class_names import NOT_WHITE, SMUDGE, UNIDENTIFIED

# Classes that are no white cells; every other name counts as one.
GROUPS: Mapping[str, str] = {
    "erythroblast": "erythroblast",
    "platelet": "platelet",
    UNIDENTIFIED: "unidentified",
    SMUDGE: "smudge",
    NOT_WHITE: "other",
}
UNITS: Mapping[str, str] = {
    "white": "% of white cells",
    "erythroblast": "per 100 white cells",
    "smudge": "per 100 white cells",
    "platelet": "n",
    "unidentified": "% of white cells and unidentified",
    "other": "n",
}
COLUMNS = ("slide", "class", "group", "n", "of", "value", "low", "high", "unit")
CONFIDENCE = 0.95
FEW_WHITE = 10
"""Beside fewer white cells a ratio per 100 of them says nothing: none of 9 may be up to 51 per 100, none of 1 3900."""


def clopper_pearson(n: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact two-sided confidence limits of a share.

    Parameters
    ----------
    n, of : int
        `n` counted among `of`.
    confidence : float
        Coverage, at least this.

    Returns
    -------
    low, high : float
        Limits of the share, 0 to 1; (0, 1) when nothing was counted.

    References
    ----------
    .. [1] Clopper and Pearson, "The use of confidence or fiducial limits
           illustrated in the case of the binomial", Biometrika 26:404-413, 1934.
    """
    # scipy.stats has the same and takes seconds to import.
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(n, of - n + 1, tail)) if n > 0 else 0.0
    high = float(betaincinv(n + 1, of - n, 1 - tail)) if n < of else 1.0
    return low, high


def differential(cells: Cells, slide: str = "") -> pd.DataFrame:
    """Count the classes of classified cells.

    Parameters
    ----------
    cells : Cells
        Cells of one slide, classified.
    slide : str
        Name written into the first column.

    Returns
    -------
    pandas.DataFrame
        One row a class, in the order of the model's classes, then further
        classes of the table, then *unidentified*; columns `COLUMNS`.
        ``value``, ``low`` and ``high`` are in the row's ``unit``; the limits
        are exact 95 % limits (`clopper_pearson`) and NaN for plain numbers.
        Those of erythroblasts and smudge cells per 100 white cells come from the
        binomial of them among both, the ratio of two Poisson counts; beside less
        than `FEW_WHITE` white cells there is no ratio, and ``value`` is NaN, too.
    """
    counts = cells.table["class"].value_counts()
    names = list(dict.fromkeys([*cells.classes, *sorted(counts.index.difference(["", UNIDENTIFIED]))]))
    return differential_of({name: int(counts.get(name, 0)) for name in [*names, UNIDENTIFIED]}, slide)


def differential_of(n: Mapping[str, int], slide: str = "") -> pd.DataFrame:
    """Return what `differential` does, from how many cells each class has; *unidentified* stands last."""
    white = sum(count for name, count in n.items() if group_of(name) == "white")
    rows = []
    for name, count in n.items():
        group = group_of(name)
        of, value, low, high = _row(group, count, white)
        rows.append((slide, name, group, count, of, value, low, high, UNITS[group]))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table[["value", "low", "high"]] = table[["value", "low", "high"]].round(4)
    return table.astype({"n": "int64", "of": "int64", "value": "float64", "low": "float64", "high": "float64"})


def group_of(name: str) -> str:
    """Return the group of a class: white, erythroblast, smudge, platelet, unidentified or other."""
    return GROUPS.get(name, "white")


def _row(group: str, n: int, white: int) -> tuple[int, float, float, float]:
    nothing = (float("nan"),) * 3
    if group == "white":
        low, high = clopper_pearson(n, white)
        return white, *((100 * n / white, 100 * low, 100 * high) if white else nothing)
    if group in ("erythroblast", "smudge"):
        low, high = clopper_pearson(n, n + white)
        if white < FEW_WHITE:
            return white, *nothing
        return white, 100 * n / white, 100 * low / (1 - low), 100 * high / (1 - high)
    if group == "unidentified":
        low, high = clopper_pearson(n, n + white)
        return n + white, *((100 * n / (n + white), 100 * low, 100 * high) if n + white else nothing)
    return n, float(n), float("nan"), float("nan")
