"""The review session of a layer of cells: of its run, or of the folder of results that it was read from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from napari.layers import Points

from napari_wbc.decisions import Decided
from napari_wbc.review_session import Kept, ReviewSession, checked_name

from ._layers import cells_of
from ._preferences import preference
from ._source import KEY

_said: list[str] = []


@dataclass(frozen=True)
class Changes:
    """What somebody changed in a layer before its review began."""

    features: pd.DataFrame
    data: npt.NDArray[np.float64]
    gone: npt.NDArray[np.int64]
    """Labels of removed cells."""
    named: dict[str, npt.NDArray[np.int64]]
    """Labels of cells by the class that they were given."""

    def __len__(self) -> int:
        return len(self.gone) + sum(map(len, self.named.values()))

    def decide(self, session: ReviewSession, reviewer: str) -> None:
        """Make decisions of them; raises ReadOnlyError, ExportError."""
        if len(self.gone):
            session.remove(self.gone, reviewer)
        for name, labels in self.named.items():
            session.decide(labels, name, reviewer)


def open_review(layer: Points) -> tuple[ReviewSession, Changes | None]:
    """Open the review of a layer, of its run or of the folder that it was read from; see what was changed before."""
    mark, shown = layer.metadata[KEY], cells_of(layer.features, layer.data)
    if "analysis" in mark:
        session, since = ReviewSession.of(mark["analysis"].value), mark["cells"]
    elif "folder" in mark:
        session, since = ReviewSession.open(mark["folder"]), mark["read"].value
    else:
        return ReviewSession(Kept(Decided(shown))), None
    before, now = since.table.set_index("label"), shown.table.set_index("label")
    there = pd.Index(session.cells.table["label"])
    gone = before.index.difference(now.index).intersection(there)
    common = before.index.intersection(now.index).intersection(there)
    names = now["class"][common]
    changed = names[(names != before["class"][common]) & (names != "")]
    named = {str(name): labels.to_numpy() for name, labels in changed.groupby(changed).groups.items()}
    changes = Changes(layer.features.copy(), np.array(layer.data), gone.to_numpy(), named)
    return session, changes if len(changes) else None


def user() -> str:
    """Return who reviews: who said so last in this program, else whom the preferences name; empty if nobody is known.

    An account's name is no person's: a laboratory's computer has one for all.
    """
    try:
        return checked_name(_said[-1] if _said else preference("reviewer"))
    except ValueError:
        return ""


def remember(name: str) -> None:
    """Take note of who reviews, for the pictures that are opened next."""
    _said[:] = [name]
