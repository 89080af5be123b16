"""Cells that were missed: segmented and classified where somebody clicked, by the model of the other cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from napari.qt.threading import create_worker
from qtpy.QtWidgets import QApplication

from ._models import ModelChoice

if TYPE_CHECKING:
    from napari_wbc.cells import Cells
    from napari_wbc.geojson import Rings
    from napari_wbc.review_session import ReviewSession
    from napari_wbc.slide import Slide

    Found = list[tuple[Cells, Rings]]


def find_cells(
    slide: Slide,
    points: npt.NDArray[np.float64],
    session: ReviewSession,
    tell: Callable[[Found], None],
    warn: Callable[[str], None],
) -> None:
    """Find and judge what lies at points, rows and columns of the picture, in a thread, and tell it."""
    worker = create_worker(_cells_at, slide, points, session, _card(session, warn))
    worker.returned.connect(tell)
    worker.errored.connect(lambda error: warn(str(error)))
    worker.start()


def _card(session: ReviewSession, warn: Callable[[str], None]) -> Path | None:
    """Return the card of the model that classified the cells; None where it is not here or they have no classes.

    Folders that napari saved alone do not say which it was: then it is the default one, if it has the same classes.
    """
    from napari_wbc.classifier import ModelCard
    from napari_wbc.models import find_model
    from napari_wbc.report_model import card_of

    classes, used = session.cells.classes, session.run.get("model")
    if not classes:
        return None
    boxes = [box for box in QApplication.allWidgets() if isinstance(box, ModelChoice)]
    looked_up = [Path(box.itemData(k)) for box in boxes for k in range(box.count()) if box.itemData(k)]
    found = card_of(session.run, looked_up)
    if found is not None:
        return found[0]
    default = find_model()
    if not used and ModelCard.from_json(default.read_text("utf-8")).classes == classes:
        return default
    name = used["name"] if used else "of these cells, which their folder does not name,"
    warn(f"the model {name} is not installed here: added cells have no class until you give them one")
    return None


def _cells_at(slide: Slide, points: npt.NDArray[np.float64], session: ReviewSession, card: Path | None) -> Found:
    from napari_wbc.missed import cell_at

    from ._classify import load_model

    classifier = load_model(card) if card is not None else None
    mpp = float(session.before.table["mpp"].median())
    look = session.analysis.appearance if session.analysis is not None else None
    threshold = session.run.get("threshold")
    return [cell_at(slide, point, mpp, classifier, threshold, look) for point in points]
