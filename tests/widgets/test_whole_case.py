"""A whole case in one window: corrected, counted to 100, signed, reported, exported, opened again.

After every step picture, gallery, counts, log and table must say the same (`agree`), and that is what this test did
(`Case.wanted`).
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from napari.utils.colormaps.standardize_color import transform_color
from PIL import Image
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QTimer
from qtpy.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent
from qtpy.QtWidgets import QApplication, QDialogButtonBox, QDockWidget, QFileDialog
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))
import slides

from napari_wbc._widgets._gallery_view import MIME
from napari_wbc._widgets._panel import SHORT
from napari_wbc.atomic import safe_name
from napari_wbc.cells import REVIEW_COLUMNS
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.cli import app
from napari_wbc.count import differential
from napari_wbc.export import read_results
from napari_wbc.palette import colour
from napari_wbc.review import DECISIONS
from napari_wbc.tables import read_cells

LEFT, RIGHT = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton
PLAIN, CONTROL, SHIFT = (
    Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier,
)  # fmt: skip
READER, TARGET = "A. Reader", 100
MPP = 0.186


@pytest.fixture(autouse=True)
def _keys_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="session", params=["case.tif"])  # "case.png" does the same on a field, in two minutes more
def annotated_case(request, classifier, tmp_path_factory) -> Path:
    """Return a run of the command line over 136 cells of a whole slide."""
    from napari_wbc import samples

    nine = next(sample.path for sample in samples() if sample.key == "nine_fields")
    # Half as fine: still finer than what is segmented.
    image = np.asarray(Image.open(nine).reduce(2))
    four = np.concatenate([np.concatenate([part, part[:, ::-1]], axis=1) for part in (image, image[::-1])])
    folder = tmp_path_factory.mktemp("whole_case")
    path = folder / request.param
    if path.suffix == ".tif":
        slides.write(path, np.concatenate([four, four]), MPP)
    else:
        Image.fromarray(np.concatenate([four, four])).save(path)
    done = CliRunner().invoke(app, ["annotate", str(path), "-o", str(folder / "r"), "--threshold", "0.8"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def folder(annotated_case, tmp_path) -> Path:
    """Return a copy of its results, still without decisions; the picture stays where it was."""
    shutil.copytree(annotated_case / "r", tmp_path / "r")
    return tmp_path / "r/case"


def when_asked(act) -> None:
    """Do something with the menu or the dialog that opens next, as its user would, and close it."""

    def look() -> None:
        window = QApplication.activePopupWidget() or QApplication.activeModalWidget()
        if window is None:
            QTimer.singleShot(20, look)
            return
        try:
            act(window)
        finally:
            window.close()

    QTimer.singleShot(20, look)


class Case:
    """Gallery and Differential on one folder of results, and the classes that its cells should have."""

    def __init__(self, viewer, folder: Path, qtbot) -> None:
        self.viewer, self.folder, self.qtbot = viewer, folder, qtbot
        window = viewer.window._qt_window
        window.resize(1500, 950)
        with qtbot.waitExposed(window):
            window.show()
        viewer.open(str(folder), plugin="napari-wbc")
        open_dock = viewer.window.add_plugin_dock_widget
        self.gallery = open_dock("napari-wbc", "Gallery of cells")[1]
        self.counts = open_dock("napari-wbc", "Differential")[1]
        # Side by side, as a user drags them: what is behind another tab is not drawn.
        place = next(dock for dock in window.findChildren(QDockWidget) if dock.isAncestorOf(self.counts))
        window.addDockWidget(Qt.DockWidgetArea.LeftDockWidgetArea, place)
        place.show()
        qtbot.waitUntil(lambda: self.gallery.view.isVisible() and self.counts.results.isVisible(), timeout=20_000)
        assert self.gallery.review is self.counts.review
        self.view, self.review = self.gallery.view, self.gallery.review
        self.view.resize(420, 900)
        self.log = b""
        table = read_results(folder).cells.table
        self.wanted = dict(zip(table["label"], table["class"], strict=True))
        self.done: list[dict[int, str]] = []
        self.undone: list[dict[int, str]] = []

    def fresh(self, n: int, but: str = "") -> list[int]:
        """Return the first cells of the gallery that nobody decided on, none of them of a class."""
        reviewed = set(self.review.session.cells.table["label"][self.review.session.reviewed])
        return [k for k in map(int, self.view.labels) if k not in reviewed and self.wanted[k] != but][:n]

    def now(self, **changed: str | None) -> None:
        """Take note of a decision: classes by label; None for a cell that is gone."""
        self.done.append(dict(self.wanted))
        self.undone.clear()
        for label, name in changed.items():
            if name is None:
                del self.wanted[int(label)]
            else:
                self.wanted[int(label)] = name
        agree(self)

    # ---- what the user does

    def click(self, label: int, modifier=PLAIN, button=LEFT) -> None:
        self.view.ensure_seen(label)
        self.qtbot.mouseClick(self.view.viewport(), button, modifier, self.view.rectangle(label).center())

    def select(self, labels: list[int]) -> None:
        self.click(labels[0])
        for label in labels[1:]:
            self.click(label, CONTROL)
        assert self.view.selected == set(labels)

    def key(self, name: str) -> None:
        self.qtbot.keyClicks(self.view, self.view.letters[name])

    def drop_on(self, name: str) -> None:
        """Drag what is selected to the heading of a class."""
        self.view.scroll_to(name)
        bar = self.view.verticalScrollBar()
        bar.setValue(bar.value() - 100)  # at its edges the list scrolls under a drag
        data, place = QMimeData(), self.view.heading(name).center()
        data.setData(MIME, b"")
        for kind, point in ((QDragEnterEvent, place), (QDragMoveEvent, place), (QDropEvent, QPointF(place))):
            QApplication.sendEvent(self.view.viewport(), kind(point, Qt.DropAction.MoveAction, data, LEFT, PLAIN))

    def menu(self, label: int, text: str) -> None:
        """Choose from the menu of a cell."""

        def choose(menu) -> None:
            action = next(action for action in menu.actions() if action.text().split("\t")[0] == text)
            menu.setActiveAction(action)
            self.qtbot.keyClick(menu, Qt.Key.Key_Return)

        self.view.ensure_seen(label)
        when_asked(choose)
        self.qtbot.mousePress(self.view.viewport(), RIGHT, PLAIN, self.view.rectangle(label).center())

    def undo(self) -> None:
        self.qtbot.mouseClick(self.gallery.undo_button, LEFT)
        self.undone.append(self.wanted)
        self.wanted = self.done.pop()
        agree(self)

    def redo(self) -> None:
        self.qtbot.mouseClick(self.gallery.redo_button, LEFT)
        self.done.append(self.wanted)
        self.wanted = self.undone.pop()
        agree(self)

    def show(self, what: str) -> None:
        self.gallery.filters.show_box.setCurrentText(what)


def agree(case: Case) -> None:
    """Picture, gallery, counts, log and table say the same, and what was decided."""
    timers = (case.review._later, case.counts._soon)
    case.qtbot.waitUntil(lambda: not any(timer.isActive() for timer in timers), timeout=20_000)
    session = case.review.session
    table = session.cells.table.set_index("label")
    assert table["class"].to_dict() == case.wanted
    picture_agrees(case, table)
    gallery_agrees(case, table)
    counts_agree(case, session)
    log_agrees(case, session)


def picture_agrees(case: Case, table) -> None:
    layer, classes = case.review.layer, table["class"].tolist()
    assert layer.features["label"].tolist() == table.index.tolist()
    for name in REVIEW_COLUMNS:
        assert layer.features[name].astype(object).tolist() == table[name].tolist(), name
    np.testing.assert_allclose(layer.data, case.review.session.cells.centroids, atol=0.01)
    np.testing.assert_allclose(layer.face_color, transform_color([colour(name) for name in classes]))
    named = {shown.metadata.get("napari-wbc", {}).get("role"): shown for shown in case.viewer.layers}
    texts = [re.sub(r" \d+%$|: unlike$", "", text) for text in named["names"].features["text"]]
    assert Counter(texts) == Counter(SHORT.get(name, name) for name in classes)
    lines = named["counts"].features["text"].tolist()
    assert {name: int(lines[lines.index(name) + 1]) for name in set(classes)} == Counter(classes)
    if "cells labels" not in named:
        return  # a whole slide
    outlines = named["cells labels"]
    there = set(np.flatnonzero(np.bincount(outlines.data.ravel())[1:]) + 1)
    assert there >= set(table.index)
    colours = outlines.colormap.map(np.array([*table.index, *sorted(there - set(table.index))]))
    np.testing.assert_allclose(colours[: len(table)], transform_color([colour(name) for name in classes]), atol=0.01)
    assert (colours[len(table) :, 3] == 0).all()  # removed


def gallery_agrees(case: Case, table) -> None:
    view, n = case.view, Counter(table["class"])
    assert sorted(view.labels) == sorted(set(view.labels))
    assert view._decided.tolist() == (table["class_reviewed"][view.labels] != "").tolist()
    for section in view.arrangement.sections:
        names = table["class"][view.labels[section.start : section.stop]]
        assert set(names) <= {section.name}
        shown = f"{len(names)} of {n[section.name]}" if len(names) != n[section.name] else f"{len(names)}"
        assert view._title(section) == f"{section.name}  {shown}"
    session, shown = case.review.session, case.gallery.filters.show_box.currentText()
    kept = {
        "all cells": table.index == table.index, "not reviewed yet": ~session.reviewed, "of the count": session.counted,
    }.get(shown, table["class"] == shown)  # fmt: skip
    assert sorted(view.labels) == sorted(table.index[kept])
    if shown == "all cells":
        assert set(n) <= {section.name for section in view.arrangement.sections}
    said = case.gallery.status.text()
    if said == "All shown cells are reviewed.":
        assert (table["class_reviewed"][view.labels] != "").all()
    else:
        assert said.startswith(f"{(table['class_reviewed'] != '').sum()} of {len(table)} reviewed")


def counts_agree(case: Case, session) -> None:
    dock, counted = case.counts, session.counted
    rows = dock.results.table
    shown = {rows.item(k, 0).text(): rows.item(k, 1).text() for k in range(rows.rowCount()) if rows.item(k, 1)}
    expected = differential(session.cells.where(counted))
    assert shown == dict(zip(expected["class"], expected["n"].astype(str), strict=True))
    assert (dock.progress.value(), dock.progress.maximum()) == ((session.reviewed & counted).sum(), counted.sum())
    assert dock.reviewer.text() == case.gallery.reviewer.text() == case.review.reviewer


def log_agrees(case: Case, session) -> None:
    """The log was only added to; it gives the table, by this package and without it."""
    path = case.folder / DECISIONS
    if not path.exists():
        assert not session.reviewed.any()
        return
    log = path.read_bytes()
    assert log.startswith(case.log)
    case.log = log
    assert read_results(case.folder).cells == session.cells
    with (case.folder / "cells.before_review.csv").open(encoding="utf-8", newline="") as stream:
        names = {int(row["label"]): row["class"] for row in csv.DictReader(stream)}
    done, undone = [], []
    for entry in map(json.loads, log.decode().splitlines()[1:]):
        if entry["do"] == "undo":
            undone.append(done.pop())
        elif entry["do"] == "redo":
            done.append(undone.pop())
        elif entry["do"] not in ("set", "sign", "outline"):
            done.append(entry)
            undone.clear()
    for entry in done:
        if entry["do"] == "class":
            names |= dict.fromkeys(entry["cells"], entry["class"])
        elif entry["do"] == "remove":
            names = {label: name for label, name in names.items() if label not in entry["cells"]}
        elif entry["do"] == "add":
            names[entry["cell"]["label"]] = entry["cell"]["class"]
    assert names == case.wanted


def enter(case: Case, field, text: str) -> None:
    case.qtbot.keyClick(field, Qt.Key.Key_A, CONTROL)
    case.qtbot.keyClicks(field, text)
    case.qtbot.keyClick(field, Qt.Key.Key_Return)


def correct_twenty(case: Case) -> None:
    """Six by key, four dragged, three by menu, seven at once."""
    case.click(case.fresh(1)[0])
    for name in ("monocyte", "smudge", "lymphocyte", "eosinophil", "neutrophil", "erythroblast"):
        label = case.view.current
        case.key(name)
        case.now(**{str(label): name})
        assert case.view.current != label
    some = case.fresh(4, but="basophil")
    case.select(some)
    case.drop_on("basophil")
    case.now(**dict.fromkeys(map(str, some), "basophil"))
    for name in ("eosinophil", "immature granulocyte", "not a white cell"):
        label = case.fresh(1, but=name)[0]
        case.menu(label, name)
        case.now(**{str(label): name})
    seven = case.fresh(1)
    place = case.view.place_of(seven[0])
    seven = case.view.labels[place : place + 7].tolist()
    case.click(seven[0])
    case.click(seven[-1], SHIFT)
    assert case.view.selected == set(seven)
    case.key("monocyte")
    case.now(**dict.fromkeys(map(str, seven), "monocyte"))


def remove_and_add(case: Case) -> None:
    """Remove two cells, and add one of them again by a click on it in the picture."""
    table = case.review.session.cells.table.set_index("label")
    # A certain one of usual size.
    usual = table.loc[case.fresh(200)].query("area.between(2500, 3500)")
    missed = int(usual["probability"].idxmax())
    row = table.loc[missed]
    case.click(missed)
    case.qtbot.keyClick(case.view, Qt.Key.Key_Delete)
    case.now(**{str(missed): None})
    wrong = case.fresh(1)[0]
    case.menu(wrong, "Remove from the table")
    case.now(**{str(wrong): None})
    case.qtbot.mouseClick(case.gallery.add_button, LEFT)
    image = case.review.image
    place = image.data_to_world((row["centroid-0"], row["centroid-1"]))[-2:]
    camera = case.viewer.camera
    camera.center, camera.zoom = (0, *place), 2 / float(image.scale[-1])
    canvas = case.viewer.window._qt_viewer.canvas
    middle = QPoint(*(round(side / 2) for side in canvas.view.size))
    n = len(case.wanted)
    case.qtbot.mouseClick(canvas.native, LEFT, PLAIN, middle)
    case.qtbot.waitUntil(lambda: len(case.review.session.cells) == n + 1, timeout=120_000)
    added = case.review.session.cells.table.iloc[-1]
    assert added["label"] > max(case.wanted)
    assert np.hypot(added["centroid-0"] - row["centroid-0"], added["centroid-1"] - row["centroid-1"]) < 5
    assert added["area"] == pytest.approx(row["area"], rel=0.2)
    assert added["class_model"] == row["class_model"]
    case.qtbot.mouseClick(case.gallery.add_button, LEFT)
    assert case.review.layer.mode == "pan_zoom"
    case.now(**{str(added["label"]): added["class"]})
    assert case.view.selected == {added["label"]}


def count_to_target(case: Case) -> None:
    """Count to 100: accept, then name all that is unidentified."""
    case.qtbot.keyClick(case.counts.target, Qt.Key.Key_Home)
    assert case.review.session.settings["target"] == TARGET
    agree(case)
    # Space goes on to the next cell, also where those that were reviewed are not shown any more.
    case.show("not reviewed yet")
    inorder = case.view.labels[:4].tolist()
    case.click(inorder[0])
    for label in inorder[:3]:
        assert case.view.current == label
        case.qtbot.keyClicks(case.view, " ")
        case.now()
    case.show("of the count")
    case.qtbot.keyClick(case.counts.seed, Qt.Key.Key_Up)
    case.qtbot.keyClick(case.counts.seed, Qt.Key.Key_Return)
    assert case.review.session.settings["seed"] == 1
    agree(case)
    case.click(int(case.view.labels[0]))
    for _ in range(2):
        done = case.counts.progress.value()
        case.qtbot.keyClicks(case.view, ".")
        case.qtbot.keyClicks(case.view, " ")
        case.now()
        assert case.counts.progress.value() == done + 1
    case.qtbot.keyClick(case.view, Qt.Key.Key_A, CONTROL)
    case.qtbot.keyClicks(case.view, " ")
    case.now()
    case.show("unidentified")
    unsure = [label for label, name in case.wanted.items() if name == UNIDENTIFIED]
    assert len(unsure) > 4
    assert "unidentified" in case.counts.state.text()
    case.click(int(case.view.labels[0]))
    for name in ("lymphocyte", "neutrophil", "lymphocyte"):
        label = case.view.current
        case.key(name)
        case.now(**{str(label): name})
    rest = [str(label) for label in unsure if case.wanted[label] == UNIDENTIFIED]
    case.qtbot.keyClick(case.view, Qt.Key.Key_A, CONTROL)
    case.key("neutrophil")
    case.now(**dict.fromkeys(rest, "neutrophil"))
    assert not len(case.view.labels)
    case.show("all cells")
    agree(case)
    white = case.counts.counts.query("group == 'white'")["n"].sum()
    assert white == TARGET
    assert case.counts.progress.value() == case.counts.progress.maximum() >= TARGET
    assert case.counts.state.text() == "Preliminary: not signed."


def report(case: Case, file: Path, monkeypatch) -> None:
    """Click *Report…*, and fill in what it asks."""

    def fill(dialog) -> None:
        case.qtbot.keyClicks(dialog.patient_id, "P 7")
        dialog.open.setChecked(False)
        buttons = dialog.findChild(QDialogButtonBox)
        case.qtbot.mouseClick(buttons.button(QDialogButtonBox.StandardButton.Save), LEFT)

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(file), ""))
    when_asked(fill)
    case.qtbot.mouseClick(case.counts.report_button, LEFT)
    case.qtbot.waitUntil(lambda: case.counts.status.text() == f"Report in {file}.", timeout=120_000)
    assert case.counts.state.text().startswith(f"Signed by {READER}, ")


def report_agrees(case: Case, beside: Path, monkeypatch) -> None:
    for name in ("x.html", "x.json"):
        report(case, beside / name, monkeypatch)
    session = case.review.session
    counted = session.cells.where(session.counted)
    n = {row["class"]: row["n"] for row in differential(counted).to_dict("records")}
    told = json.loads((beside / "x.json").read_text("utf-8"))
    assert {row["class"]: row["n"] for row in told["differential"]} == n
    assert told["preliminary"] == []
    assert told["signature"]["name"] == READER
    assert (told["patient_id"], told["cells"]["found"]) == ("P 7", len(case.wanted))
    assert told["cells"]["white"] == TARGET
    changed = (counted.table["class_reviewed"] != counted.table["class_model"]).sum()
    (reader,) = told["review"]["readers"]
    assert (reader["reviewer"], reader["n"], reader["share"]) == (READER, len(counted), 100)
    assert reader["changed"] == changed > 0
    assert (told["skipped"]["added"], told["skipped"]["removed"]) == (1, 2)
    page = (beside / "x.html").read_text("utf-8")
    assert "Preliminary" not in page
    assert f"<td>{READER}</td><td>{len(counted)} (100 %)</td><td>{changed}</td>" in page
    rows = re.findall(r'class="name">([^<]+)</span></span></td><td>(\d+)</td>', page)
    assert {name: int(number) for name, number in rows} == n
    shares = re.findall(r'class="name">([^<]+)</span></span></td><td>\d+</td><td>([\d.]+)</td>', page)
    white = {name: f"{100 * k / TARGET:.1f}" for name, k in n.items()}
    assert {name: white[name] for name, _ in shares} == dict(shares)
    assert "neutrophil" in dict(shares)


def exports_agree(case: Case, beside: Path) -> None:
    """GeoJSON, COCO, crops and a report of all cells hold every cell, with the classes of the review."""

    def run(*words: object) -> None:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        assert "left out" not in done.output

    n = Counter(case.wanted.values())
    for name in ("x.geojson", "coco.json", "crops"):
        run("export", case.folder, "-o", beside / name)
    run("report", case.folder, "-o", beside / "all.json", "--count", "all")
    features = json.loads((beside / "x.geojson").read_text("utf-8"))["features"]
    assert Counter(feature["properties"]["classification"]["name"] for feature in features) == n
    coco = json.loads((beside / "coco.json").read_text("utf-8"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert Counter(names[one["category_id"]] for one in coco["annotations"]) == n
    by_label = {one["attributes"]["label"]: names[one["category_id"]] for one in coco["annotations"]}
    assert by_label == case.wanted
    crops = Counter(path.parent.name for path in (beside / "crops").glob("*/*.png"))
    assert crops == {safe_name(name): k for name, k in n.items()}
    told = json.loads((beside / "all.json").read_text("utf-8"))["differential"]
    assert {row["class"]: row["n"] for row in told if row["n"]} == n


def test_a_whole_case(folder, annotated_case, make_napari_viewer, viewer, press, qtbot, tmp_path, monkeypatch):
    case = Case(viewer, folder, qtbot)
    assert len(case.wanted) > TARGET + 10
    agree(case)
    enter(case, case.gallery.reviewer, READER)
    agree(case)
    correct_twenty(case)
    for _ in range(5):
        case.undo()
    for _ in range(2):
        case.redo()
    remove_and_add(case)
    count_to_target(case)
    qtbot.mouseClick(case.counts.sign_button, LEFT)
    assert case.counts.state.text().startswith(f"Signed by {READER}, ")
    agree(case)
    report_agrees(case, tmp_path, monkeypatch)
    exports_agree(case, tmp_path)
    cells, log = case.review.session.cells, case.log
    for suffix in (".csv", ".parquet", ".geojson"):
        assert read_cells(folder / f"cells{suffix}") == cells

    viewer.close()
    again = Case(make_napari_viewer(), folder, qtbot)
    assert again.gallery.banner.isHidden(), again.gallery.banner.text()
    assert again.review.session.cells == cells
    assert again.wanted == case.wanted
    assert again.counts.state.text().startswith(f"Signed by {READER}, ")
    agree(again)

    # The model runs again: by the command line, and in the window.
    picture = next(annotated_case.glob("case.*"))
    assert CliRunner().invoke(app, ["annotate", str(picture), "-o", str(folder.parent)]).exit_code != 0
    assert CliRunner().invoke(app, ["report", str(folder), "-o", str(tmp_path / "y.json")]).exit_code == 0
    told, before = (json.loads((tmp_path / name).read_text("utf-8")) for name in ("y.json", "x.json"))
    assert told["model"] == before["model"]
    assert told["pictures"] == before["pictures"]
    assert told["made"]["parameters"] == before["made"]["parameters"] != {}
    assert told["differential"] == before["differential"]
    classify = again.viewer.window.add_plugin_dock_widget("napari-wbc", "Classify white cells")[1]
    press(classify)
    assert f"\n{len(case.wanted) + 1} cells: " in classify.results.head.text()
    kept = again.viewer.layers["corrected cells"]
    assert dict(zip(kept.features["label"], kept.features["class"].astype(object), strict=True)) == case.wanted
    assert (folder / DECISIONS).read_bytes().startswith(log)
    assert read_results(folder).cells == cells


def test_a_window_that_its_user_closes_writes_the_tables_and_frees_the_folder(case):
    folder = case / "r/nine"
    code = f"""
import napari
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QApplication
from napari_wbc.review_session import ReviewSession
viewer = napari.Viewer(show=False)
viewer.open({str(folder)!r}, plugin="napari-wbc")
docks = [viewer.window.add_plugin_dock_widget("napari-wbc", name)[1] for name in ("Gallery of cells", "Differential")]
docks[0].review.set_reviewer("A. Reader")
docks[0].view.reach(int(docks[0].view.labels[0]))
docks[0].decide("smudge")
viewer.window._qt_window.close()
QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
session = ReviewSession.open({str(folder)!r})
print(session.read_only or "free", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["free"], done.stderr[-2000:]
    cells = read_cells(folder / "cells.csv")
    assert (cells.table["class"] == "smudge").sum() == 1
    assert cells == read_results(folder).cells
