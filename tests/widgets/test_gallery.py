"""The gallery: cells side by side, corrected by keys, mouse and menu; everything shows one table."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from napari.utils.notifications import notification_manager
from PIL import Image
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QInputDialog

from napari_wbc._widgets._thumbnails import SIDE_UM, cut_out
from napari_wbc.cells import measure
from napari_wbc.crop import CropSize, background_colour, crop_cells
from napari_wbc.export import read_results, write_folder
from napari_wbc.models import find_model, user_models
from napari_wbc.review import DECISIONS
from napari_wbc.slide import Slide
from napari_wbc.tables import read_cells

CLASSES = ("neutrophil", "lymphocyte", "monocyte", "erythroblast")
SIDE, STEP = 30, 48
TITLE = "Gallery of cells"


def picture(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n violet discs on a pale ground, and their labels."""
    across = int(np.ceil(np.sqrt(n)))
    image = np.full((across * STEP, across * STEP, 3), (235, 225, 230), np.uint8)
    labels = np.zeros(image.shape[:2], np.int32)
    yy, xx = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    disc = np.hypot(yy, xx) < SIDE / 2 - 1
    for k in range(n):
        top, left = STEP * (k // across) + 9, STEP * (k % across) + 9
        image[top : top + SIDE, left : left + SIDE][disc] = (110, 60 + 3 * k % 60, 150)
        labels[top : top + SIDE, left : left + SIDE][disc] = k + 1
    return image, labels


@pytest.fixture
def results(tmp_path):
    image, labels = picture(24)
    path = tmp_path / "smear.png"
    Image.fromarray(image).save(path)
    p = np.random.default_rng(1).dirichlet([0.5] * 4, 24)
    cells = measure(labels, slide="smear.png", mpp=0.5).with_predictions(p, CLASSES, 0.6)
    files = ("cells.csv", "cells.parquet", "cells.geojson", "labels.tif", "annotated.png", "differential.csv")
    return write_folder(tmp_path / "results", cells, labels, image=image, picture=path, files=files)


@pytest.fixture(autouse=True)
def _keys_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    notification_manager.records.clear()


@pytest.fixture
def gallery(viewer, dock, results, qtbot):
    viewer.open(str(results), plugin="napari-wbc")
    widget = dock(TITLE)
    qtbot.waitUntil(lambda: widget.review is not None and len(widget.view.labels) == 24, timeout=60_000)
    widget.view.resize(420, 900)
    return widget


def test_nobody_decides_without_a_name(gallery, reader, qtbot):
    """No account's name is taken for a person's: without a name nothing is decided, and it is asked for."""
    reader.clear()
    gallery.review.reviewer = ""
    gallery._show_reviewer()
    before = table_of(gallery)
    gallery.view.reach(3)
    assert not gallery.review.accept([3])
    qtbot.keyClick(gallery.view, Qt.Key.Key_Space)
    gallery.review.layer.features.loc[0, "class"] = "monocyte"  # as in napari's own table
    qtbot.waitUntil(lambda: gallery.review.layer.features["class"].tolist() == before["class"].tolist(), timeout=5000)
    assert not gallery.review.sign()
    pd.testing.assert_frame_equal(table_of(gallery), before)
    assert notification_manager.records[-1].message == gallery.status.text() == "Enter your name as Reviewer first."
    assert "border" in gallery.reviewer.styleSheet()  # the field is marked
    gallery.reviewer.setText("B. Reader")
    gallery.reviewer.editingFinished.emit()
    assert "0 of 24 reviewed" in gallery.status.text()
    assert not gallery.reviewer.styleSheet()
    assert gallery.review.accept([3])
    assert table_of(gallery).loc[3, "reviewer"] == "B. Reader"
    assert reader == ["B. Reader"]  # and of the pictures that are opened next


def test_what_was_changed_before_anybody_was_named_waits_for_a_name(viewer, dock, results, reader):
    """A log holds no decision of nobody; and nothing that was changed is lost."""
    reader.clear()
    viewer.open(str(results), plugin="napari-wbc")
    layer, classify = viewer.layers["cells"], dock("Classify white cells")
    changed = layer.features.copy()
    changed.loc[[3, 5], "class"] = "smudge"
    layer.features = changed
    layer.selected_data = {7}
    layer.remove_selected()
    gallery = dock(TITLE)
    assert gallery.banner.text() == "3 cells that you changed wait for your name: enter it as Reviewer."
    assert not (results / DECISIONS).exists()
    assert "smudge" not in set(table_of(gallery)["class"])
    assert classify.save(results) is None
    assert classify.status.text() == gallery.banner.text()
    viewer.window.remove_dock_widget(gallery)
    assert layer.features["class"][[3, 5]].tolist() == ["smudge"] * 2  # as before, since nobody took them over
    assert len(layer.data) == 23
    gallery = dock(TITLE)
    gallery.reviewer.setText("B. Reader")
    gallery.reviewer.editingFinished.emit()
    assert gallery.banner.isHidden()
    decided = table_of(gallery).query("`class` == 'smudge'")
    assert decided.index.tolist() == [4, 6]
    assert set(decided["reviewer"]) == {"B. Reader"}
    assert 8 not in table_of(gallery).index
    entries = [json.loads(line) for line in (results / DECISIONS).read_text().splitlines()][1:]
    assert {entry["reviewer"] for entry in entries if "reviewer" in entry} == {"B. Reader"}


def test_a_chosen_cell_is_framed_in_the_picture(gallery, viewer, dock):
    classify, crop = dock("Classify white cells"), dock("Crop cells")
    said = classify.status.text()
    active = viewer.layers.selection.active
    label = int(gallery.view.labels[3])
    gallery.view.select({label}, label)
    gallery.view.selection_changed.emit()
    frames = viewer.layers["chosen cells"]
    assert viewer.layers.selection.active == active
    names = [layer.name for layer in viewer.layers]
    assert names.index("cells") < names.index("chosen cells") < names.index("names")
    row = table_of(gallery).loc[label]
    assert np.allclose(frames.data, [row["centroid-0"], row["centroid-1"]])
    assert (frames.size > max(row["bbox-2"] - row["bbox-0"], row["bbox-3"] - row["bbox-1"])).all()
    assert frames.border_color.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]  # dark and light: seen on every stain
    for zoom in (0.01, 1, 30):
        gallery.review._camera.zoom = zoom
        wide = np.maximum(frames.size * zoom, frames.canvas_size_limits[0]) * frames.border_width
        assert np.allclose(wide, [6, 3])  # pixels of the screen
    viewer.layers["cells"].selected_data = {1, 2}
    gallery.review._look()
    assert np.allclose(frames.data[::2], viewer.layers["cells"].data[1:3])
    assert crop.cells.findText("chosen cells") < 0
    assert classify.status.text() == said
    gallery.view.select(set())
    gallery.view.selection_changed.emit()
    assert len(frames.data) == 0
    viewer.window.remove_dock_widget(gallery)
    assert frames not in viewer.layers


def test_results_that_are_opened_beside_another_picture_are_in_view(gallery, viewer, results, tmp_path):
    viewer.layers.clear()
    viewer.add_image(np.zeros((20, 20, 3), np.uint8), translate=(5000, 5000))
    viewer.reset_view()
    camera = getattr(viewer, "scene", viewer).camera
    far = camera.center
    gallery.open_results(results)
    shown = camera.center, camera.zoom
    assert shown[0] != far
    viewer.reset_view()
    assert (camera.center, camera.zoom) == shown


def table_of(widget) -> pd.DataFrame:
    return widget.review.session.cells.table.set_index("label")


def all_agree(widget, results, *, saved: bool = False) -> bool:
    """Whether session, layer, labels, gallery, log and files say the same."""
    cells = widget.review.session.cells
    viewer, layer = widget.viewer, widget.review.layer
    widget.review.show_rest()
    names = dict(zip(cells.table["label"], cells.table["class"], strict=True))
    features = layer.features
    assert dict(zip(features["label"], features["class"].astype(object), strict=True)) == names
    assert features["class_reviewed"].tolist() == cells.table["class_reviewed"].tolist()
    outlines = viewer.layers["cells labels"].features.set_index("index")["class"]
    assert {label: outlines[label] for label in names if label in outlines.index} == {
        label: name for label, name in names.items() if label in outlines.index
    }
    sections = {section.name: section.total for section in widget.view.arrangement.sections}
    counts = cells.table["class"].value_counts()
    assert {name: n for name, n in sections.items() if n} == counts.to_dict()
    assert read_results(results).cells == cells
    if saved:
        assert read_cells(results / "cells.csv") == cells
        assert read_cells(results / "cells.parquet") == cells
    return True


def press(widget, qtbot, text, modifier=Qt.KeyboardModifier.NoModifier):
    qtbot.keyClicks(widget.view, text, modifier)


def drop(view, point):
    data = QMimeData()
    data.setData("application/x-napari-wbc-cells", b"")
    buttons, keys = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    view.dropEvent(QDropEvent(QPointF(point), Qt.DropAction.MoveAction, data, buttons, keys))


def test_a_whole_case_by_keys_drag_and_menu(gallery, results, qtbot):
    view, session = gallery.view, gallery.review.session
    before = table_of(gallery)["class"].to_dict()
    first = int(view.labels[0])
    view.reach(first)
    press(gallery, qtbot, "s")
    assert table_of(gallery).loc[first, ["class", "class_model"]].tolist() == ["smudge", before[first]]
    assert view.current != first
    assert all_agree(gallery, results)
    # Twenty more by key, each the cell that is current then.
    for k in range(20):
        press(gallery, qtbot, "nlmr"[k % 4])
    assert all_agree(gallery, results)
    # Many at once, dropped on the heading of another class.
    some = {int(label) for label in view.labels[2:6]}
    view.select(some)
    view.scroll_to("monocyte")
    drop(view, view.heading("monocyte").center())
    assert set(table_of(gallery).loc[sorted(some), "class"]) == {"monocyte"}
    assert all_agree(gallery, results)
    # By the menu.
    view.select({first})
    menu = gallery.menu()
    action = next(action for action in menu.actions() if action.text().startswith("not a white cell"))
    action.trigger()
    assert table_of(gallery).loc[first, "class"] == "not a white cell"
    for _ in range(5):
        qtbot.keyClick(view, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert all_agree(gallery, results)
    qtbot.keyClick(view, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
    assert all_agree(gallery, results)
    while session.can_undo:
        gallery.undo()
    assert table_of(gallery)["class"].to_dict() == before
    assert all_agree(gallery, results)
    while session.can_redo:
        gallery.redo()
    gallery.review.session.save()
    assert all_agree(gallery, results, saved=True)


def test_a_class_of_ones_own_and_a_key_of_ones_own_by_the_menu(gallery, qtbot, monkeypatch):
    def choose(text):
        next(action for action in gallery.menu().actions() if action.text().startswith(text)).trigger()

    label = int(gallery.view.labels[0])
    gallery.view.select({label})
    monkeypatch.setattr(QInputDialog, "getText", lambda *_: ("blast", True))
    choose("another class")
    assert table_of(gallery).loc[label, "class"] == "blast"
    answers = iter([("hairy cell", False), ("q", True)])
    monkeypatch.setattr(QInputDialog, "getText", lambda *_: next(answers))
    gallery.view.select({label})
    choose("another class")  # cancelled
    assert table_of(gallery).loc[label, "class"] == "blast"
    monkeypatch.setattr(QInputDialog, "getItem", lambda *_: ("blast", True))
    choose("Change the key")
    other = int(gallery.view.labels[-1])
    gallery.view.reach(other)
    qtbot.keyClick(gallery.view, Qt.Key.Key_Q)
    assert table_of(gallery).loc[other, "class"] == "blast"


def test_space_accepts_and_goes_to_the_next_unreviewed(gallery, results, qtbot):
    view = gallery.view
    view.reach(int(view.labels[0]))
    for k in range(1, 25):
        press(gallery, qtbot, " ")
        assert gallery.review.session.reviewed.sum() == k
    assert (table_of(gallery)["class"] == table_of(gallery)["class_model"]).all()
    press(gallery, qtbot, ".")
    assert "All shown cells are reviewed" in gallery.status.text()
    assert all_agree(gallery, results)


def test_arrows_move_select_and_zoom(gallery, qtbot):
    view = gallery.view
    view.reach(int(view.labels[0]))
    qtbot.keyClick(view, Qt.Key.Key_Right)
    assert view.current == view.labels[1]
    qtbot.keyClick(view, Qt.Key.Key_Right, Qt.KeyboardModifier.ShiftModifier)
    assert view.selected == set(view.labels[1:3].tolist())
    qtbot.keyClick(view, Qt.Key.Key_End)
    assert view.current == view.labels[-1]
    qtbot.keyClick(view, Qt.Key.Key_Up)
    qtbot.keyClick(view, Qt.Key.Key_Home)
    assert view.current == view.labels[0]
    for key in (Qt.Key.Key_Down, Qt.Key.Key_PageDown, Qt.Key.Key_PageUp, Qt.Key.Key_Left):
        qtbot.keyClick(view, key)
    side = view.side
    press(gallery, qtbot, "+")
    assert view.side == side + 8 == gallery.size_slider.value()
    qtbot.keyClick(view, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    assert len(view.selected) == 24
    qtbot.keyClick(view, Qt.Key.Key_Escape)
    assert not view.selected


def test_a_click_flies_there_and_a_selection_in_the_picture_is_followed(gallery, viewer, qtbot):
    view, layer = gallery.view, gallery.review.layer
    label = int(view.labels[7])
    view.ensure_seen(label)
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=view.rectangle(label).center())
    row = gallery.review.rows_of([label])[0]
    assert layer.selected_data == {row}
    assert viewer.layers.selection.active == layer
    assert np.allclose(getattr(viewer, "scene", viewer).camera.center[-2:], gallery.review.session.cells.centroids[row])
    layer.selected_data = {3, 5}
    wanted = set(gallery.review.session.cells.table["label"].iloc[[3, 5]])
    qtbot.waitUntil(lambda: view.selected == wanted, timeout=5000)


def test_the_mouse_selects_some_and_a_rectangle(gallery, qtbot):
    view = gallery.view
    view.verticalScrollBar().setValue(0)
    a, b, c = (int(label) for label in view.labels[:3])
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=view.rectangle(a).center())
    control, shift = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, control, view.rectangle(c).center())
    assert view.selected == {a, c}
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=view.rectangle(a).center())
    assert view.selected == {a}
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, shift, view.rectangle(c).center())
    assert view.selected == {a, b, c}
    section = next(section for section in view.arrangement.sections if len(section))
    view.scroll_to(section.name)
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=view.heading(section.name).center())
    assert view.selected == set(view.labels[section.start : section.stop].tolist())
    start = QPoint(view.viewport().width() - 3, 35)
    qtbot.mousePress(view.viewport(), Qt.MouseButton.LeftButton, pos=start)
    qtbot.mouseMove(view.viewport(), QPoint(2, 140))
    qtbot.mouseRelease(view.viewport(), Qt.MouseButton.LeftButton, pos=QPoint(2, 140))


def test_filters_and_sorts(gallery, viewer, qtbot):
    view, table = gallery.view, table_of(gallery)

    def shown():
        return set(view.labels.tolist())

    gallery.filters.show_box.setCurrentText("unidentified")
    assert shown() == set(table.index[table["class"] == "unidentified"])
    gallery.filters.show_box.setCurrentText("neutrophil")
    assert shown() == set(table.index[table["class"] == "neutrophil"])
    assert [section.name for section in view.arrangement.sections] == ["neutrophil"]
    gallery.filters.show_box.setCurrentText("all cells")
    gallery.filters.range.setValue((0.5, 0.8))
    assert shown() == set(table.index[table["probability"].between(0.5, 0.8)])
    gallery.filters.range.setValue((0, 1))
    for sort, key in (("probability", "probability"), ("size", "area")):
        gallery.filters.sort_box.setCurrentText(sort)
        gallery.filters.direction.setChecked(False)
        for descending in (False, True):
            gallery.filters.direction.setChecked(descending)
            for section in view.arrangement.sections:
                values = table.loc[view.labels[section.start : section.stop], key].to_numpy()
                assert (np.diff(values if not descending else values[::-1]) >= 0).all()
    gallery.review.accept([9])
    gallery.review.accept([2])
    gallery.filters.sort_box.setCurrentText("time of review")
    gallery.filters.direction.setChecked(True)
    gallery.filters.show_box.setCurrentText("not reviewed yet")
    assert shown() == set(table.index) - {2, 9}
    gallery.filters.show_box.setCurrentText("all cells")
    gallery.filters.inside.setChecked(True)
    assert not gallery.filters.inside.isChecked()  # nothing is drawn
    viewer.add_shapes([[0, 0], [0, 100], [100, 100], [100, 0]], shape_type="polygon")
    gallery.filters.inside.setChecked(True)
    inside = (table["centroid-0"] < 100) & (table["centroid-1"] < 100)
    assert shown() == set(table.index[inside])


def test_an_edit_in_the_table_of_features_is_a_decision(gallery, results, viewer, qtbot):
    layer = gallery.review.layer
    column = layer.features.columns.get_loc("class")
    layer.features.iloc[4, column] = "monocyte"  # as napari's table does: it sends no event
    qtbot.waitUntil(lambda: table_of(gallery).loc[5, "class_reviewed"] == "monocyte", timeout=5000)
    assert all_agree(gallery, results)
    features = layer.features.copy()
    features["class"] = "lymphocyte"
    layer.features = features
    qtbot.waitUntil(lambda: (table_of(gallery)["class"] == "lymphocyte").all(), timeout=5000)
    assert all_agree(gallery, results)
    gallery.undo()
    assert all_agree(gallery, results)


def test_points_deleted_in_the_picture_and_brought_back(gallery, results, qtbot):
    layer = gallery.review.layer
    layer.selected_data = {0, 3}
    layer.remove_selected()
    qtbot.waitUntil(lambda: len(gallery.review.session.cells) == 22, timeout=5000)
    assert all_agree(gallery, results)
    gallery.undo()
    assert len(layer.data) == 24
    assert all_agree(gallery, results)
    gallery.view.select({7})
    qtbot.keyClick(gallery.view, Qt.Key.Key_Delete)
    assert 7 not in table_of(gallery).index
    assert all_agree(gallery, results)


def test_a_missed_cell_is_added_where_somebody_clicks(viewer, dock, press_run, sample, qtbot, tmp_path):
    viewer.open_sample("napari-wbc", "smear_neutrophil_monocyte")
    press_run()
    gallery = dock(TITLE)
    n = len(gallery.view.labels)
    gone = table_of(gallery).iloc[0]
    gallery.view.select({int(gone.name)})
    gallery.remove()
    assert len(gallery.view.labels) == n - 1
    gallery.add_button.setChecked(True)
    assert gallery.review.layer.mode == "add"
    gallery.review.layer.add([[gone["centroid-0"], gone["centroid-1"]]])
    qtbot.waitUntil(lambda: len(gallery.review.session.cells) == n, timeout=120_000)
    added = table_of(gallery).iloc[-1]
    assert added["class_model"] == gone["class_model"]
    assert added["area"] == pytest.approx(gone["area"], rel=0.1)
    assert added.name > gone.name
    folder = gallery.review.session.keep(tmp_path / "kept")
    assert all_agree(gallery, folder)


@pytest.mark.parametrize("installed", [True, False])
def test_an_added_cell_is_judged_by_the_model_of_the_run(installed, viewer, dock, case, qtbot):
    run, default = case / "r/run.json", find_model()
    told, card = json.loads(run.read_text()), json.loads(default.read_text("utf-8"))
    # The same network, but what is first for one is last for the other.
    other = dict(zip(card["classes"], reversed(card["classes"]), strict=True))
    told["model"] = {"name": "other", "sha256": card["sha256"] if installed else "0" * 64}
    run.write_text(json.dumps(told))
    if installed:
        (user_models() / "other.json").write_text(json.dumps(card | {"classes": list(other.values())}), "utf-8")
        shutil.copy(default.with_suffix(".safetensors"), user_models() / "other.safetensors")
    viewer.open(str(case / "r/nine"), plugin="napari-wbc")
    gallery = dock(TITLE)
    assert viewer.layers["cells labels"].contour > 0  # filled, they would hide the cells
    table = table_of(gallery)
    gone = table[table["class_model"] == "neutrophil"].iloc[0]
    gallery.view.select({int(gone.name)})
    gallery.remove()
    gallery.review.add_at(np.array([[gone["centroid-0"], gone["centroid-1"]]]))
    qtbot.waitUntil(lambda: len(gallery.review.session.cells) == len(table), timeout=120_000)
    added = table_of(gallery).iloc[-1]
    assert added["class_model"] == (other["neutrophil"] if installed else "")
    warned = [str(record.message) for record in notification_manager.records]
    assert any("the model other is not installed here" in text for text in warned) != installed


@pytest.fixture
def press_run(viewer, dock, press):
    def run_classify():
        widget = dock()
        press(widget)
        return widget

    return run_classify


def test_a_run_in_memory_is_reviewed_saved_and_never_overwritten(viewer, dock, press, press_run, tmp_path, qtbot):
    viewer.open_sample("napari-wbc", "smear_neutrophil_monocyte")
    classify = press_run()
    gallery, counts = dock(TITLE), dock("Differential")
    label = int(gallery.view.labels[0])
    gallery.view.reach(label)
    gallery.decide("basophil")
    cells = gallery.review.session.cells
    rows = classify.results.table
    shown = {rows.item(k, 0).text(): rows.item(k, 1).text() for k in range(rows.rowCount()) if rows.item(k, 1)}
    assert shown["basophil"] == "1"
    unsaved = "ot saved yet: Save results… in Classify white cells"
    assert gallery.status.text().endswith(f" · n{unsaved}")
    qtbot.waitUntil(lambda: counts.state.text().endswith(f" N{unsaved}."), timeout=5000)
    counts.sign_button.click()
    assert gallery.review.session.signed is None
    assert gallery.status.text() == f"N{unsaved}."
    saved = classify.save(tmp_path / "results")
    assert (saved / DECISIONS).is_file()
    assert unsaved not in gallery.status.text()
    qtbot.waitUntil(lambda: unsaved not in counts.state.text(), timeout=5000)
    assert read_results(saved).cells == cells
    counts.sign_button.click()
    assert gallery.review.session.signed is not None
    press(classify)  # the model runs again
    qtbot.waitUntil(lambda: gallery.review is not None and gallery.review.session.cells != cells, timeout=5000)
    assert not gallery.review.session.reviewed.any()
    layer = viewer.layers["corrected cells"]
    assert layer.features["class"].astype(object).tolist() == cells.table["class"].tolist()
    assert read_results(saved).cells == cells


def test_a_second_window_says_that_it_can_only_look(gallery, results, make_napari_viewer, qtbot):
    other = make_napari_viewer()
    other.open(str(results), plugin="napari-wbc")
    second = other.window.add_plugin_dock_widget("napari-wbc", TITLE)[1]
    assert "another window" in second.banner.text()
    assert not second.banner.isHidden()
    before = table_of(second)["class"].tolist()
    second.view.reach(int(second.view.labels[0]))
    second.decide("smudge")
    assert table_of(second)["class"].tolist() == before
    column = second.review.layer.features.columns.get_loc("class")
    second.review.layer.features.iloc[0, column] = "monocyte"
    qtbot.waitUntil(lambda: second.review.layer.features["class"].iloc[0] == before[0], timeout=5000)
    assert gallery.banner.isHidden()


def test_pictures_are_decoded_as_they_are_seen_and_forgotten(gallery, qtbot):
    seen = [int(label) for label in gallery.view.labels[:3]]
    gallery.view.grab()  # what asks for them is being painted
    qtbot.waitUntil(lambda: all(gallery.thumbnails.get(k) is not None for k in seen), timeout=20_000)
    pixmap = gallery.thumbnails.get(seen[0])
    assert pixmap.width() == gallery.view.side
    middle = pixmap.toImage().pixelColor(pixmap.width() // 2, pixmap.height() // 2)
    assert middle.blue() > middle.green()  # the violet cell is in the middle
    gallery.view.set_side(120)
    gallery.view.grab()
    qtbot.waitUntil(lambda: gallery.thumbnails.get(seen[0]) is not None, timeout=20_000)
    assert gallery.thumbnails.get(seen[0]).width() == 120


def test_keys_are_shown_bound_and_kept(gallery, dock, viewer, qtbot):
    assert gallery.view.letters["neutrophil"] == "n"
    assert gallery.view.letters["erythroblast"] == "r"
    assert len(set(gallery.view.letters.values())) == len(gallery.view.letters)
    gallery.set_key("monocyte", "Q")
    assert gallery.view.letters["monocyte"] == "q"
    gallery.view.reach(int(gallery.view.labels[0]))
    label = gallery.view.current
    press(gallery, qtbot, "q")
    assert table_of(gallery).loc[label, "class"] == "monocyte"
    gallery.set_key("monocyte", "!")
    assert "is no key" in gallery.status.text()
    viewer.window.remove_dock_widget(gallery)
    assert dock(TITLE).view.letters["monocyte"] == "q"


def test_compare_shows_reference_cells_of_the_class(gallery):
    gallery.view.reach(int(gallery.view.labels[0]))
    gallery.compare_button.setChecked(True)
    gallery.filters.show_box.setCurrentText("monocyte")
    gallery.compare_button.setChecked(False)
    gallery.compare_button.setChecked(True)
    assert gallery.reference.title.text().startswith("Reference: monocyte")
    assert not gallery.reference.strip.pixmap().isNull()
    gallery.filters.show_box.setCurrentText("smudge")
    gallery.compare_button.setChecked(False)
    gallery.compare_button.setChecked(True)
    assert "no reference cells" in gallery.reference.title.text()


def test_results_whose_picture_was_moved(viewer, dock, results, qtbot):
    from qtpy.QtWidgets import QApplication

    moved = results.parent / "elsewhere" / "deep" / "smear.png"
    moved.parent.mkdir(parents=True)
    (results.parent / "smear.png").rename(moved)
    viewer.open(str(results), plugin="napari-wbc")
    gallery = dock(TITLE)
    assert not gallery.picture_button.isHidden()
    assert len(gallery.view.labels) == 24
    from PIL import Image

    Image.new("RGB", (10, 10), "violet").save(results.parent / "other.png")
    gallery.find_picture(results.parent / "other.png")
    assert gallery.status.text().startswith(f"{results.parent / 'other.png'}: another picture: it has 10 × 10 pixels")
    gallery.find_picture(moved)
    assert gallery.picture_button.isHidden()
    QApplication.processEvents()
    assert gallery.thumbnails is not None
    settings = [json.loads(line) for line in (results / DECISIONS).read_text().splitlines()][-1]
    assert settings["values"] == {"picture": str(moved)}


def test_without_cells_and_when_layers_go(viewer, dock, results, qtbot):
    gallery = dock(TITLE)
    assert "Classify a smear first" in gallery.status.text()
    gallery.open_results(results)
    assert len(gallery.view.labels) == 24
    gallery.view.grab()
    viewer.layers.clear()
    qtbot.waitUntil(lambda: gallery.review is None, timeout=5000)
    assert len(gallery.view.labels) == 0
    gallery.open_results(results)  # the lock is free again
    assert not gallery.review.session.read_only


def test_closing_the_dock_writes_the_tables_and_frees_the_folder(gallery, viewer, results):
    from napari_wbc.review_session import ReviewSession

    gallery.view.reach(int(gallery.view.labels[0]))
    gallery.decide("smudge")
    cells = gallery.review.session.cells
    viewer.window.remove_dock_widget(gallery)
    assert read_cells(results / "cells.csv") == cells
    session = ReviewSession.open(results)
    assert not session.read_only
    assert session.cells == cells
    session.close()


def test_a_quiz_over_reviewed_cells(gallery, results, viewer, qtbot):
    gallery.quiz_button.setChecked(True)
    assert not gallery.quiz_button.isChecked()
    assert "no cell has been reviewed" in gallery.status.text()
    gallery.review.accept([k for k in range(1, 25) if table_of(gallery).loc[k, "class"] != "unidentified"][:6])
    before = gallery.review.session.cells
    gallery.quiz_button.setChecked(True)
    view = gallery.view
    assert len(view.labels) == 6
    assert view.hide_classes
    assert not viewer.layers["cells labels"].visible
    first = view.current
    wrong = next(name for name in CLASSES if name != table_of(gallery).loc[first, "class"])
    press(gallery, qtbot, view.letters[wrong])
    assert gallery.status.text() == "Wrong. 0 of 1 right."
    for k in range(1, 6):
        press(gallery, qtbot, view.letters[table_of(gallery).loc[view.current, "class"]])
        assert gallery.status.text() == f"Right. {k} of {k + 1} right."
    assert not view.hide_classes
    assert viewer.layers["cells labels"].visible
    assert gallery.review.session.cells == before
    assert len(view.labels) == 24


def test_edges_of_many_tiny_points_are_not_smoothed(gallery, monkeypatch):
    layer, camera = gallery.review.layer, gallery.viewer.camera
    camera.zoom = 0.01
    assert layer.antialiasing == 1  # 24 points
    monkeypatch.setattr("napari_wbc._widgets._review.MANY", 10)
    camera.zoom = 0.02
    assert layer.antialiasing == 0
    camera.zoom = 8.0
    assert layer.antialiasing == 1


@pytest.mark.parametrize("place", ["middle", "corner"])
def test_a_thumbnail_is_the_square_around_its_cell_from_any_level(place, field):
    image = np.asarray(Image.open(field).convert("RGB"))
    centre = np.array(image.shape[:2]) * (0.4 if place == "middle" else 0.999)
    paper = background_colour(image)
    expected = crop_cells(image, centre[None], 0.1, CropSize(SIDE_UM, 60))[0].astype(int)
    one = cut_out(Slide.from_array(image), centre, 0.1, 60, paper)
    assert np.abs(one - expected).max() <= 3
    half = image[:480, :640].reshape(240, 2, 320, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    several = cut_out(Slide.from_levels([image[:480, :640], half]), centre, 0.1, 60, paper)
    assert np.abs(several - expected).mean() < 2.5
