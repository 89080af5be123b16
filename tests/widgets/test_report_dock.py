"""The button *Report…*: what is on the screen is what the report says."""

from __future__ import annotations

import json

import pytest

from napari_wbc.count import differential
from napari_wbc.report import Asked

TIMEOUT = 600_000


def test_the_report_says_what_the_dock_shows(viewer, dock, press, sample, qtbot, tmp_path):
    viewer.open(sample("nine_fields"), plugin="napari")
    widget = dock()
    assert widget.report(tmp_path / "x.html") is None  # nothing to report yet
    press(widget)
    layer = viewer.layers["cells"]
    features = layer.features.copy()
    features.loc[features["class"] == "unidentified", "class"] = "lymphocyte"
    layer.features = features
    for name in ("x.html", "x.json"):
        widget.report(tmp_path / name, Asked(patient_id="P 1"))
        qtbot.waitUntil(lambda name=name: f"{name}: not signed." in widget.status.text(), timeout=TIMEOUT)
    told = json.loads((tmp_path / "x.json").read_text("utf-8"))
    counts = differential(widget._corrected())
    assert [row["n"] for row in told["differential"]] == counts["n"].tolist()
    assert told["model"]["name"] == "wbc8-mobilenetv2"
    assert told["patient_id"] == "P 1"
    text = (tmp_path / "x.html").read_text("utf-8")
    assert text.count("data:image/jpeg") == 1 + told["cells"]["found"]
    widget.report(tmp_path / "none" / "x.pdf")
    qtbot.waitUntil(lambda: "ends in .html" in widget.status.text(), timeout=TIMEOUT)


def test_a_review_of_opened_results_is_reported(viewer, dock, case, qtbot):
    from napari_wbc._widgets._review import begin

    viewer.open(case / "r/nine", plugin="napari-wbc")
    widget = dock()
    layer = next(layer for layer in viewer.layers if layer.name.endswith("cells"))
    review = begin(viewer, layer)
    label = int(review.session.cells.table.query("`class` == 'neutrophil'")["label"].iloc[0])
    assert review.decide([label], "monocyte")
    shown = dock("Differential")
    shown.report(case / "y.json")
    qtbot.waitUntil(lambda: "y.json: " in shown.status.text(), timeout=TIMEOUT)
    shown.recount()  # as platelets that are counted late do
    assert "y.json: " in shown.status.text()
    widget.report(case / "x.json")
    qtbot.waitUntil(lambda: "x.json: " in widget.status.text(), timeout=TIMEOUT)
    told, other = (json.loads((case / name).read_text("utf-8")) for name in ("x.json", "y.json"))
    assert other["differential"] == told["differential"]
    counts = differential(review.session.cells)
    assert [row["n"] for row in told["differential"]] == counts["n"].tolist()
    assert [(row["n"], row["changed"]) for row in told["review"]["readers"]] == [(1, 1)]
    assert told["model"]["name"] == "wbc8-mobilenetv2"  # of run.json beside the folder
    review.end()


def test_what_was_entered(viewer, dock):
    from napari_wbc._widgets._report import ReportDialog

    dialog = ReportDialog(dock(), slide_id="smear.jpg")
    dialog.patient_id.setText(" P 2 ")
    dialog.wbc.setText("6400")
    assert dialog.asked() == Asked("smear.jpg", "P 2", 6400.0)
    for text, message in (
        ("many", "'many', but must be a number"),
        ("6.4", "per µL: for 6.4 × 10⁹/L enter 6400"),
        ("6,4", "write 6400, without a comma"),
    ):
        dialog.wbc.setText(text)
        with pytest.raises(ValueError, match=message):
            dialog.asked()
