"""Two readers of the same smear: who said what, Cohen's kappa, and whether their counts differ by more than chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from .cells import Cells
from .class_names import UNIDENTIFIED
from .count import CONFIDENCE, group_of

COLUMNS = ("class", "n_1", "of_1", "share_1", "n_2", "of_2", "share_2", "difference", "low", "high", "within")


@dataclass(frozen=True)
class Agreement:
    """How two readers agree.

    Parameters
    ----------
    names : (str, str)
        What the readers are called.
    matrix : pandas.DataFrame
        Cells that both named: a row a class of the first, a column a class of the second.
    kappa : float
        Cohen's kappa of the cells that both gave a class; NaN where it is not defined.
    shares : pandas.DataFrame
        A row a white class, columns `COLUMNS`: counts and shares (%) of both, their difference, the exact 95 % limits
        of a difference by chance, and whether it lies within.
    """

    names: tuple[str, str]
    matrix: pd.DataFrame
    kappa: float
    shares: pd.DataFrame

    @property
    def common(self) -> int:
        """Cells that both gave a class."""
        return int(_decided(self.matrix).sum())

    @property
    def same(self) -> int:
        """Cells that both gave the same class."""
        return int(np.trace(_decided(self.matrix)))

    @property
    def unidentified(self) -> int:
        """Cells that one of them, or both, left unidentified: no class that another could agree with."""
        return int(self.matrix.to_numpy().sum()) - self.common


def compare(first: Cells, second: Cells, names: tuple[str, str] = ("first", "second")) -> Agreement:
    """Compare what two readers said of one smear.

    Parameters
    ----------
    first, second : Cells
        Their tables: two reviews, a review and the model (`by_model`), or two runs. Cells are paired by slide and
        label; those that only one reader has are in the shares and not in the matrix.
    names : (str, str)
        What the readers are called.

    Returns
    -------
    Agreement

    References
    ----------
    .. [1] Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement
           20:37-46, 1960.
    .. [2] Rümke, "The statistically expected variability in differential leukocyte counting", in Differential
           Leukocyte Counting, College of American Pathologists, 1977; used by CLSI H20-A2, 2007.
    """
    one, two = (_named(cells) for cells in (first, second))
    classes = list(dict.fromkeys([*first.classes, *second.classes, *sorted({*one["class"], *two["class"]})]))
    pairs = one.merge(two, on=["slide", "label"], suffixes=("_1", "_2"))
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, tuple(pd.Categorical(pairs[name], classes).codes for name in ("class_1", "class_2")), 1)
    matrix = pd.DataFrame(counts, classes, classes)
    white = [name for name in classes if group_of(name) == "white"]
    n_1, n_2 = (table["class"].value_counts().reindex(white, fill_value=0).to_numpy(np.int64) for table in (one, two))
    return Agreement(names, matrix, kappa(_decided(matrix)), _shares(white, n_1, n_2))


def by_model(cells: Cells) -> Cells:
    """Return the cells as the model named them, without what people added or decided."""
    table = cells.table[cells.table["class_model"] != ""]
    nothing = dict.fromkeys(("class_reviewed", "reviewer", "reviewed_at"), "")
    return Cells(table.assign(**{"class": table["class_model"]}, **nothing))


def _named(cells: Cells) -> pd.DataFrame:
    table = cells.table[["slide", "label", "class"]]
    return table[table["class"] != ""]


def _decided(matrix: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return the counts of a matrix without those that are *unidentified*."""
    named = matrix.index != UNIDENTIFIED
    return matrix.to_numpy()[np.ix_(named, named)]


def kappa(matrix: npt.NDArray[np.integer]) -> float:
    """Return Cohen's kappa of a square matrix of counts.

    NaN where it says nothing: without a cell, and where a reader used one class alone, for which it would be 0 or
    undefined whatever the other said.
    """
    n = matrix.sum()
    if min(np.count_nonzero(matrix.sum(axis=axis)) for axis in (0, 1)) < 2:
        return float("nan")
    observed = np.trace(matrix) / n
    chance = float((matrix.sum(axis=0) / n) @ (matrix.sum(axis=1) / n))
    return float((observed - chance) / (1 - chance))


def difference_limits(n_1: int, of_1: int, n_2: int, of_2: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Limits of the difference of two shares that chance alone explains.

    Parameters
    ----------
    n_1, of_1, n_2, of_2 : int
        `n_1` of a class among `of_1` cells of the first count, and so on.
    confidence : float
        Coverage, at least this.

    Returns
    -------
    low, high : float
        Of ``n_1 / of_1 - n_2 / of_2``, -1 to 1; (-1, 1) where a count is empty.

    Notes
    -----
    If both counts come from one blood, each is binomial with the same share. Given their sum, the cells of the class
    in the first count are hypergeometric, whatever that share is: the limits are quantiles of it (Fisher's exact
    comparison of two binomials). They hold for small counts, where 1.96 standard errors of the difference do not.
    """
    if not (of_1 and of_2):
        return -1.0, 1.0
    from scipy.special import gammaln

    total = n_1 + n_2
    k = np.arange(max(0, total - of_2), min(of_1, total) + 1)

    def log_choose(n: int, k: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))

    log_p = log_choose(of_1, k) + log_choose(of_2, total - k)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    tail = (1 - confidence) / 2
    # Counts outside have a probability of less than a tail on either side.
    low, high = k[np.cumsum(p) >= tail][0], k[np.cumsum(p[::-1])[::-1] >= tail][-1]
    return float(low / of_1 - (total - low) / of_2), float(high / of_1 - (total - high) / of_2)


def _shares(names: list[str], n_1: npt.NDArray[np.integer], n_2: npt.NDArray[np.integer]) -> pd.DataFrame:
    of_1, of_2 = int(n_1.sum()), int(n_2.sum())
    rows = []
    for name, a, b in zip(names, n_1.tolist(), n_2.tolist(), strict=True):
        share_1, share_2 = (n / of if of else float("nan") for n, of in ((a, of_1), (b, of_2)))
        low, high = difference_limits(a, of_1, b, of_2)
        difference = share_1 - share_2
        within = not (difference < low - 1e-12 or difference > high + 1e-12)
        rows.append((name, a, of_1, share_1, b, of_2, share_2, difference, low, high, within))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    percent = ["share_1", "share_2", "difference", "low", "high"]
    table[percent] = (table[percent].astype("float64") * 100).round(4)
    return table
