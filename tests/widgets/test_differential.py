"""The dock of the differential, on the review that the gallery changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from napari.utils.notifications import notification_manager
from PIL import Image

from napari_wbc.cells import measure
from napari_wbc.count import differential
from napari_wbc.export import write_folder
from napari_wbc.record import FORMAT
from napari_wbc.reference import SHIPPED, load_ranges, with_ranges
from napari_wbc.report import Asked, make_report

CLASSES = ("neutrophil", "lymphocyte", "monocyte", "erythroblast")
TITLE, GALLERY = "Differential", "Gallery of cells"


@pytest.fixture
def results(tmp_path):
    n = 300
    labels = np.zeros((100, 100), np.int32)
    for k in range(n):
        labels[5 * (k // 20) + 1 : 5 * (k // 20) + 4, 5 * (k % 20) + 1 : 5 * (k % 20) + 4] = k + 1
    p = np.random.default_rng(1).dirichlet([3, 1, 0.5, 0.5], n)
    return write_folder(tmp_path / "results", measure(labels, slide="a").with_predictions(p, CLASSES, 0.5), labels)


@pytest.fixture
def counts(viewer, dock, results, qtbot):
    notification_manager.records.clear()
    viewer.open(str(results), plugin="napari-wbc")
    widget = dock(TITLE)
    qtbot.waitUntil(lambda: widget.counts is not None and widget.results.counts is not None, timeout=20_000)
    return widget


def shown(widget) -> dict[str, list[str]]:
    table = widget.results.table
    rows = [row for row in range(table.rowCount()) if table.item(row, 1)]
    return {
        table.item(row, 0).text(): [table.item(row, k).text() for k in range(1, table.columnCount())] for row in rows
    }


def choose(widget, target):
    index = widget.target.findData(target)
    widget.target.setCurrentIndex(index)
    widget.target.activated.emit(index)


def test_target_progress_limits_and_signature(counts, qtbot):
    session = counts.review.session
    choose(counts, 100)
    chosen = session.counted
    assert counts.progress.maximum() == chosen.sum()
    assert counts.progress.text() == f"0 of {chosen.sum()} reviewed"
    assert "taken systematically" in counts.results.head.text()
    assert "seed 0" in counts.results.head.text()
    unsure = (session.cells.table["class"][chosen] == "unidentified").sum()
    said = f"{chosen.sum()} cells: {chosen.sum() - unsure} with a class, {unsure} unidentified. "
    assert counts.results.head.text().startswith(said)
    labels = session.cells.table["label"][chosen]
    counts.review.accept(labels.iloc[:43])
    qtbot.waitUntil(lambda: counts.progress.value() == 43, timeout=5000)
    assert counts.state.text().endswith("unidentified; not signed.")
    counts.sign_button.click()  # it stays preliminary, and says so
    assert f"unidentified; signed by {counts.review.reviewer}, " in counts.state.text()
    said = f"with {chosen.sum() - 43} of {chosen.sum()} cells that nobody looked at."
    assert counts.state.text().endswith(said)
    assert " ".join(notification_manager.records[-1].message.replace(" …", "").split()) == f"Signed {said}"
    counts.review.accept(labels.iloc[43:44])  # which voids the signature
    qtbot.waitUntil(lambda: counts.state.text().endswith("unidentified; not signed."), timeout=5000)
    unsure = session.cells.table.loc[chosen & (session.cells.table["class"] == "unidentified"), "label"]
    counts.review.decide(unsure, "neutrophil")
    counts.review.accept(labels)
    counts.sign_button.click()
    assert session.is_final
    assert counts.state.text().startswith(f"Signed by {counts.review.reviewer}")
    assert "nobody" not in counts.state.text()
    white = counts.counts[counts.counts["group"] == "white"]
    assert white["n"].sum() == 100 == white["of"].iloc[0]
    expected = with_ranges(differential(session.cells.where(session.counted)), load_ranges())
    assert shown(counts)["neutrophil"][0] == str(int(expected.set_index("class").loc["neutrophil", "n"]))
    counts.review.undo()
    qtbot.waitUntil(lambda: "not signed" in counts.state.text(), timeout=5000)
    counts.seed.setValue(5)
    counts.seed.editingFinished.emit()
    assert (session.counted != chosen).any()
    assert session.settings["seed"] == 5


def test_absolute_counts_ranges_and_flags(counts, tmp_path):
    choose(counts, None)
    counts.wbc.setText("12000")
    counts.wbc.editingFinished.emit()
    table = counts.counts.set_index("class")
    n, of = table.loc["neutrophil", ["n", "of"]]
    assert table.loc["neutrophil", "per_ul"] == pytest.approx(12000 * n / of, abs=1)
    counts.sign_button.click()
    counts.wbc.setText("12001")
    counts.wbc.editingFinished.emit()
    assert f"signed by {counts.review.reviewer}, " in counts.state.text()
    counts.warn("Report in x.html.")  # as anything that is said meanwhile
    counts.wbc.setText("12000")
    counts.wbc.editingFinished.emit()
    assert f"signed by {counts.review.reviewer}, " in counts.state.text()
    assert shown(counts)["neutrophil"][3] == "40 – 63"
    assert shown(counts)["neutrophil"][4].startswith(f"{table.loc['neutrophil', 'per_ul']:,.0f}")
    assert table.loc["erythroblast", "unit"] == "per 100 white cells"
    text = SHIPPED.read_text("utf-8").replace("[40, 63]", "[1, 2]").replace("%: MedlinePlus", "Our laboratory")
    (tmp_path / "ours.toml").write_text(text, "utf-8")
    counts.use_ranges(tmp_path / "ours.toml")
    sign = shown(counts)["neutrophil"][1][-1]
    row = counts.counts.set_index("class").loc["neutrophil"]
    assert sign == ("▲" if row["low"] > 2 else "△")
    # The report of the same smear has the same sign.
    page = make_report(counts.review.session.folder, Asked(ranges=counts.ranges)).as_html()
    assert f'<span class="flag">{sign} high</span>' in page
    assert "Our laboratory" in counts.results.notes.text()
    (tmp_path / "bad.toml").write_text("x = [")
    counts.use_ranges(tmp_path / "bad.toml")
    assert "not a table of reference ranges" in counts.status.text()
    assert notification_manager.records[-1].message.startswith("bad.toml: not a table of reference …\n")
    assert counts.ranges == load_ranges()
    counts.wbc.setText("0")
    counts.wbc.editingFinished.emit()
    assert "WBC is 0" in counts.status.text()
    assert counts.review.session.settings["wbc"] is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [("6.4", "WBC is per µL: for 6.4 × 10⁹/L enter 6400"), ("6,4", "write 6400, without a comma")],
)
def test_a_wbc_in_another_unit_or_with_a_comma_is_refused(counts, typed, message, qtbot):
    choose(counts, None)
    qtbot.keyClicks(counts.wbc, typed)
    qtbot.keyPress(counts.wbc, "\r")
    assert message in counts.status.text()
    assert counts.review.session.settings["wbc"] is None
    assert counts.counts["per_ul"].isna().all()
    assert counts.wbc.text() == ""


def test_a_wbc_in_another_unit_that_a_review_holds_gives_no_absolute_counts(counts):
    choose(counts, None)
    session = counts.review.session
    with pytest.raises(ValueError, match="enter 6400"):
        session.set(wbc=6.4)
    session._take({"do": "set", "values": {"wbc": 6.4}})  # as an earlier version wrote it
    counts.recount()
    assert "for 6.4 × 10⁹/L enter 6400" in counts.results.head.text()
    assert counts.counts["per_ul"].isna().all()


def test_two_readers(counts, results, tmp_path, qtbot):
    counts.tabs.setCurrentIndex(1)
    counts.compare_with(None)
    said = counts.readers.kappa.text()
    assert "234 of 234 cells that both gave a class have the same (100.0 %); Cohen's κ = 1.00" in said
    assert "Left unidentified by one or both: 66." in said
    some = counts.review.session.cells.table.query("`class` == 'neutrophil'")["label"].iloc[:60]
    counts.review.decide(some, "lymphocyte")
    qtbot.waitUntil(lambda: "174 of 234" in counts.readers.kappa.text(), timeout=5000)
    assert not counts.results.isVisibleTo(counts.tabs)  # the other page lies behind, whatever is decided
    assert counts.readers.agreement.matrix.loc["lymphocyte", "neutrophil"] == 60
    rows = {counts.readers.shares.item(k, 0).text(): k for k in range(counts.readers.shares.rowCount())}
    assert counts.readers.shares.item(rows["neutrophil"], 5).text() == "no"
    assert counts.readers.shares.item(rows["monocyte"], 5).text() == "yes"
    other = write_folder(tmp_path / "other", counts.review.session.before, None, files=("cells.csv", "cells.parquet"))
    (other / "slide.json").write_text('{"slide": null}')
    counts.compare_with(other)
    assert "174 of 234" in counts.readers.kappa.text()
    counts.compare_with(tmp_path)
    assert "no results" in counts.status.text()


def test_gallery_and_differential_share_one_review(counts, dock, viewer, qtbot):
    gallery = dock(GALLERY)
    assert gallery.review is counts.review
    choose(counts, None)
    gallery.view.reach(int(gallery.view.labels[0]))
    gallery.decide("smudge")
    qtbot.waitUntil(lambda: counts.counts.set_index("class")["n"].get("smudge") == 1, timeout=5000)
    gallery.reviewer.setText("Dr. A. Reader")
    gallery.reviewer.editingFinished.emit()
    gallery.decide("smudge")
    assert set(counts.review.session.cells.table["reviewer"]) >= {"Dr. A. Reader"}
    gallery.reviewer.setText("=1+1")
    gallery.reviewer.editingFinished.emit()
    assert gallery.reviewer.text() == "Dr. A. Reader"
    viewer.window.remove_dock_widget(gallery)
    assert not counts.review.session.read_only  # still open here


def test_without_cells_and_themes(viewer, dock, results):
    counts = dock(TITLE)
    assert "Classify a smear first" in counts.status.text()
    assert not counts.sign_button.isEnabled()
    viewer.open(str(results), plugin="napari-wbc")
    for theme in ("light", "dark"):
        viewer.theme = theme
    counts.grab()


def test_all_pictures_of_a_run_are_counted_together_and_reviewed_one_after_the_other(viewer, dock, tmp_path, qtbot):
    labels = np.kron(np.arange(1, 21, dtype=np.int32).reshape(4, 5), np.ones((8, 8), np.int32))
    p = np.random.default_rng(2).dirichlet([3, 1, 0.5, 0.5], 20)
    for name in ("a", "b"):
        image = tmp_path / f"{name}.png"
        Image.fromarray(np.full((*labels.shape, 3), 200, np.uint8)).save(image)
        cells = measure(labels, slide=image.name).with_predictions(p, CLASSES, 0.0)
        write_folder(tmp_path / "run" / name, cells, labels, picture=image)
    inputs = [{"result": name, "slide": f"{name}.png", "state": "ok"} for name in ("a", "b")]
    (tmp_path / "run/run.json").write_text(json.dumps({"format": FORMAT, "inputs": inputs}))
    viewer.open(str(tmp_path / "run"), plugin="napari-wbc")  # all on top of each other: one is seen

    def seen() -> set[str]:
        return {layer.name[:1] for layer in viewer.layers if layer.visible}

    assert seen() == {"a"}
    picture = dock("Segment cells").image
    for name in ("b", "a"):
        picture.setCurrentText(name)
        picture.activated.emit(picture.currentIndex())
        assert seen() == {name}
        assert all(layer.visible for layer in viewer.layers if layer.name.startswith(name))
    viewer.layers.selection.active = viewer.layers["a cells"]
    counts, gallery = dock(TITLE), dock(GALLERY)
    qtbot.waitUntil(lambda: counts.review is not None and gallery.review is counts.review, timeout=20_000)
    counts.review.decide([1, 2, 3], "basophil")
    counts.tabs.setCurrentIndex(2)
    qtbot.waitUntil(lambda: counts.run.case is not None, timeout=20_000)
    rows = [[counts.run.pictures.item(k, c).text() for c in range(3)] for k in range(2)]
    assert rows == [["a", "20", "3"], ["b", "20", "0"]]
    assert counts.run.status.text() == "2 pictures, 3 of 40 cells reviewed."
    assert counts.run.results.counts.set_index("class").loc["basophil", "n"] == 3
    counts.run.pictures.cellDoubleClicked.emit(1, 0)
    qtbot.waitUntil(lambda: counts.review.session.folder == tmp_path / "run/b", timeout=20_000)
    assert gallery.review is counts.review
    assert viewer.layers["b cells"].visible
    assert not viewer.layers["a cells"].visible
    assert viewer.layers[-1].metadata["napari-wbc"]["folder"] == str(tmp_path / "run/b")
    counts.review.decide([5], "basophil")
    counts.go_to(str(tmp_path / "run/a"))  # it is open still
    assert counts.review.session.folder == tmp_path / "run/a"
    counts.tabs.setCurrentIndex(2)
    qtbot.waitUntil(lambda: counts.run.status.text() == "2 pictures, 4 of 40 cells reviewed.", timeout=20_000)
