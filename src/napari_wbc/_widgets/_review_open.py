"""The review session of a layer of cells: of its run, or of the folder of results that it was read from."""

from __future__ import annotations

import numpy as np
import pandas as pd
from napari.layers import Points

from napari_wbc.cells import Cells
from napari_wbc.decisions import Decided
from napari_wbc.review_session import Kept, ReadOnlyError, ReviewSession, checked_name

from ._layers import cells_of
from ._preferences import preference
from ._source import KEY

UNNAMED = "not named"
"""Beside decisions that were made in a layer before anybody was asked."""
_said: list[str] = []


def session_of(layer: Points) -> ReviewSession:
    """Open the review of a layer: of its run, or of the folder that it was read from."""
    mark, shown = layer.metadata[KEY], cells_of(layer.features, layer.data)
    if "analysis" in mark:
        session, since = ReviewSession.of(mark["analysis"].value), mark["cells"]
    elif "folder" in mark:
        session, since = ReviewSession.open(mark["folder"]), mark["read"].value
    else:
        return ReviewSession(Kept(Decided(shown)))
    try:
        _decide_what_differs(session, shown, since, user() or UNNAMED)
    except ReadOnlyError:
        session.notes.append("what was changed in the layer is not kept")
    return session


def _decide_what_differs(session: ReviewSession, shown: Cells, since: Cells, reviewer: str) -> None:
    """Make decisions of what somebody changed in a layer."""
    before, now = since.table.set_index("label"), shown.table.set_index("label")
    there = pd.Index(session.cells.table["label"])
    gone = before.index.difference(now.index).intersection(there)
    if len(gone):
        session.remove(gone.to_numpy(), reviewer)
    common = before.index.intersection(now.index).intersection(there)
    names = now["class"][common]
    changed = names[(names != before["class"][common]) & (names != "")]
    for name, labels in changed.groupby(changed).groups.items():
        session.decide(np.asarray(labels), str(name), reviewer)


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
