"""The dock that classifies, driven as a user drives it."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from napari.layers import Image
from napari.qt.threading import WorkerBase
from napari.utils.notifications import notification_manager
from qtpy.QtWidgets import QFileDialog

from napari_wbc._widgets._source import slide_of
from napari_wbc.classifier import Classifier
from napari_wbc.count import differential
from napari_wbc.models import find_model, user_models
from napari_wbc.pipeline import analyse, run
from napari_wbc.slide import ImageError, Slide

KEY = "smear_neutrophil_monocyte"
SMALL = "yellow_eosinophil"
TIMEOUT = 240_000
NAMES = ["cells labels", "cells", "names", "counts"]


@pytest.fixture(scope="module")
def classifier():
    return Classifier.load()


def cells_in(viewer, name="cells"):
    from napari_wbc._widgets._layers import cells_of

    return cells_of(viewer.layers[name].features, viewer.layers[name].data)


def shown_counts(widget) -> dict[str, int]:
    table = widget.results.table
    rows = [row for row in range(table.rowCount()) if table.item(row, 1)]
    return {table.item(row, 0).text(): int(table.item(row, 1).text()) for row in rows}


def expected_counts(cells) -> dict[str, int]:
    counts = differential(cells)
    return dict(zip(counts["class"], counts["n"], strict=True))


def messages() -> str:
    return "\n".join(record.message for record in notification_manager.records)


@pytest.fixture(autouse=True)
def _no_old_messages():
    notification_manager.records.clear()


def test_the_dock_the_pipeline_and_the_command_line_agree(viewer, dock, press, sample, classifier, tmp_path):
    from napari_wbc.cli import main

    viewer.open(sample(KEY), plugin="napari")
    widget = dock()
    assert [widget.device.itemText(k) for k in range(widget.device.count())] == ["fastest", "cpu"]
    widget.device.setCurrentText("cpu")
    said = press(widget)
    expected = run(analyse(Slide.open(sample(KEY)), classifier))
    assert len(expected.cells)
    assert cells_in(viewer) == expected.cells
    assert shown_counts(widget) == expected_counts(expected.cells)
    assert [layer.name for layer in viewer.layers] == [sample(KEY).stem, *NAMES]
    n = (expected.cells.table["class"] == "unidentified").sum()
    counted = f"{len(expected.cells)} cells: {len(expected.cells) - n} with a class, {n or 'none'} unidentified."
    assert said == f"{sample(KEY).name} is classified: correct it in Gallery of cells, and click Save results…"
    assert widget.results.head.text().endswith(counted)
    head, notes = widget.results.head.text(), widget.results.notes.text()
    assert head.startswith(f"Scale: {expected.appearance.mpp:.3f} µm per pixel, measured from ")
    assert "Research use only" in notes

    saved = widget.save(tmp_path / "dock")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["napari-wbc", "annotate", str(sample(KEY)), "-o", str(tmp_path / "cli")])
        main()
    assert not stop.value.code
    (written,) = (tmp_path / "cli").glob("*/cells.csv")
    names = {path.name for path in written.parent.iterdir()}
    assert names <= {path.name for path in saved.iterdir()}
    for name in names - {"cells.parquet"}:
        assert (saved / name).read_bytes() == (written.parent / name).read_bytes(), name


def test_twice_gives_the_same_layers(viewer, dock, press):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    press(widget)
    (top, _), (bottom, _) = viewer.layers.extent.world
    camera = getattr(viewer, "scene", viewer).camera
    assert camera.center[-2] == pytest.approx((top + bottom) / 2, abs=1)  # picture and counts are in view
    before, cells = list(viewer.layers), cells_in(viewer)
    viewer.layers["cells labels"].visible = False
    viewer.layers.selection = {viewer.layers["cells"]}
    camera.center, camera.zoom = (0, 7, 9), 11
    press(widget)
    assert list(viewer.layers) == before
    assert cells_in(viewer) == cells
    assert not viewer.layers["cells labels"].visible
    assert viewer.layers.selection == {viewer.layers["cells"]}
    widget.threshold.setText("1")
    press(widget)
    assert list(viewer.layers) == before
    assert set(cells_in(viewer).table["class"]) == {"unidentified"}
    assert shown_counts(widget)["unidentified"] == len(cells_in(viewer))
    assert (camera.center, camera.zoom) == ((0, 7, 9), 11)


def test_two_pictures_have_layers_of_their_own(viewer, dock, press):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    press(widget)
    first = cells_in(viewer)
    viewer.open_sample("napari-wbc", "yellow_erythroblast")
    assert widget.image.layer.name == "yellow_erythroblast.jpg"
    press(widget)
    assert len(viewer.layers) == 2 * (1 + len(NAMES))
    assert cells_in(viewer) == first
    assert set(cells_in(viewer, "cells [1]").table["slide"]) == {"yellow_erythroblast.jpg"}


def test_own_regions(viewer, dock, press, sample, classifier):
    viewer.open_sample("napari-wbc", KEY)
    labels = np.zeros((480, 640), np.int32)
    labels[100:200, 100:200], labels[300:380, 400:480] = 7, 70_001
    viewer.add_labels(labels, name="by hand")
    widget = dock()
    widget.labels.choose(viewer.layers["by hand"])
    press(widget)
    assert cells_in(viewer).table["label"].tolist() == [7, 70_001]
    assert cells_in(viewer) == run(analyse(Slide.open(sample(KEY)), classifier, labels=labels)).cells


def test_regions_of_another_shape(viewer, dock, press):
    viewer.open_sample("napari-wbc", SMALL)
    viewer.add_labels(np.ones((5, 5), int), name="other")
    widget = dock()
    widget.labels.choose(viewer.layers["other"])
    assert "(5, 5)" in press(widget)
    assert "(5, 5)" in messages()
    widget.labels.choose(None)
    press(widget)
    assert "cells" in viewer.layers


def test_without_a_picture(viewer, dock, press):
    widget = dock()
    assert "Open Sample" in press(widget)
    viewer.open_sample("napari-wbc", SMALL)
    assert widget.status.text() == "Ready."
    viewer.layers.clear()
    assert "Open Sample" in widget.status.text()


def test_a_grey_picture(viewer, dock, press):
    viewer.add_image(np.arange(3600, dtype=np.uint8).reshape(60, 60), name="mine")
    widget = dock()
    assert "grey" in press(widget)
    assert "mine: the picture is grey" in messages()
    assert widget.run_button.isEnabled()


def test_counts_are_shown_beside_their_picture_only(viewer, dock, press):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    press(widget)
    smear, counts, scale = widget.image.layer, shown_counts(widget), widget.results.head.text()
    parts = widget.results, widget.save_button
    assert all(part.isVisibleTo(widget) for part in parts)
    viewer.add_image(np.zeros((60, 60), np.uint8), name="grey")
    assert "grey" in press(widget)  # refused
    assert not any(part.isVisibleTo(widget) for part in parts)
    viewer.open_sample("napari-wbc", "yellow_erythroblast")
    press(widget)
    assert widget.results.head.text() != scale
    widget.image.choose(smear)
    assert all(part.isVisibleTo(widget) for part in parts)
    assert (shown_counts(widget), widget.results.head.text()) == (counts, scale)
    widget.recount()
    assert cells_in(viewer) == widget.analysis.cells


@pytest.mark.parametrize(
    ("data", "rgb"), [(np.zeros((4, 60, 60, 3), np.uint8), True), (np.zeros((9, 60, 60), np.uint8), False)]
)
def test_stacks(data, rgb):
    with pytest.raises(ImageError, match="stack: a stack of shape"):
        slide_of(Image(data, rgb=rgb, name="stack"))


def test_the_finest_level_of_a_multiscale_picture(sample):
    image = Slide.open(sample(SMALL)).image
    layer = Image([image, image[::2, ::2]], rgb=True, name="levels", multiscale=True)
    assert np.array_equal(slide_of(layer).image, image)


@pytest.mark.parametrize(
    ("units", "mpp"), [(("um", "um"), 0.1), (("nm", "nm"), 1e-4), (("pixel", "pixel"), None), (None, None)]
)
def test_only_physical_units_are_a_scale(units, mpp):
    layer = Image(np.zeros((60, 60, 3), np.uint8), rgb=True, scale=(0.1, 0.1), units=units)
    assert slide_of(layer).mpp == (pytest.approx(mpp) if mpp else None)


def test_a_picture_without_white_cells(viewer, dock, press):
    viewer.add_image(np.full((90, 120, 3), 230, np.uint8), rgb=True, name="blank")
    widget = dock()
    assert press(widget) == "No white cell was found."
    assert len(viewer.layers["cells"].data) == 0
    assert set(shown_counts(widget).values()) == {0}


def test_scale_and_place_follow_the_picture(viewer, dock, press, sample, classifier):
    slide = Slide.open(sample(KEY))
    viewer.add_image(slide.image, rgb=True, name=slide.name, scale=(0.1, 0.1), translate=(5, 7), units=("um", "um"))
    widget = dock()
    press(widget)
    for name in NAMES:
        layer = viewer.layers[name]
        assert layer.scale.tolist() == [0.1, 0.1]
        assert layer.translate.tolist() == [5, 7]
        assert [str(unit) for unit in layer.units] == ["micrometer", "micrometer"]
    expected = run(analyse(Slide.from_array(slide.image, slide.name, mpp=0.1), classifier)).cells
    assert cells_in(viewer) == expected
    assert set(expected.table["mpp"]) == {0.1}


def test_a_corrected_class_is_counted_saved_reopened_and_never_overwritten(viewer, dock, press, tmp_path):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    press(widget)
    layer = viewer.layers["cells"]
    features = layer.features.copy()
    features["class"] = "monocyte"
    layer.features = features  # counted at once
    assert shown_counts(widget)["monocyte"] == len(features)
    layer.features.loc[0, "class"] = "basophil"  # as napari's table of features does
    widget.recount_button.click()
    corrected = cells_in(viewer)
    assert corrected.table["class"][0] == "basophil"
    assert shown_counts(widget) == expected_counts(corrected)
    assert viewer.layers["names"].text.values[0].startswith("basophil")
    assert viewer.layers["cells labels"].features["class"][0] == "basophil"
    saved = widget.save(tmp_path / "results")
    assert "basophil" in (saved / "cells.csv").read_text()
    press(widget)
    assert cells_in(viewer, "corrected cells") == corrected
    assert cells_in(viewer) == widget.analysis.cells

    viewer.layers.clear()
    viewer.open(saved, plugin="napari-wbc")
    assert "Results of" in widget.status.text()
    viewer.layers["cells"].features.loc[0, "class"] = "neutrophil"
    widget.recount_button.click()
    assert shown_counts(widget) == expected_counts(cells_in(viewer))
    assert viewer.layers["names"].text.values[0].startswith("neutrophil")
    widget.save(saved)
    assert "neutrophil" in (saved / "cells.csv").read_text()
    assert (saved / "annotated.png").is_file()
    reopened = cells_in(viewer)
    press(widget)
    assert cells_in(viewer, "corrected cells") == reopened
    assert cells_in(viewer) == widget.analysis.cells


def test_cancel_leaves_a_usable_dock(viewer, dock, press, qtbot):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    widget.run_button.click()
    assert not widget.run_button.isEnabled()
    widget.cancel_button.click()
    qtbot.waitUntil(lambda: not widget.is_running, timeout=TIMEOUT)
    assert widget.status.text() == "Cancelled."
    assert "cells" not in viewer.layers
    press(widget)
    assert "cells" in viewer.layers


def test_picture_removed_while_it_runs(viewer, dock, qtbot):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    widget.run_button.click()
    viewer.layers.clear()
    qtbot.waitUntil(lambda: not widget.is_running, timeout=TIMEOUT)
    assert len(viewer.layers) == 0


def test_dock_closed_while_it_runs(viewer, dock, qtbot):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    widget.run_button.click()
    viewer.window.remove_dock_widget(widget)
    qtbot.waitUntil(lambda: not WorkerBase._worker_set, timeout=TIMEOUT)
    assert "cells" not in viewer.layers


def test_viewer_closed_while_it_runs(viewer, dock, qtbot):
    viewer.open_sample("napari-wbc", SMALL)
    dock().run_button.click()
    viewer.close()
    qtbot.waitUntil(lambda: not WorkerBase._worker_set, timeout=TIMEOUT)


def test_a_scale_that_makes_no_sense(viewer, dock, press):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    for text, says in [("x", "number"), ("-1", "mpp is -1"), ("99", "at most 5")]:
        widget.mpp.setText(text)
        assert says in press(widget)


def test_a_card_from_elsewhere_is_chosen(dock, tmp_path, monkeypatch):
    widget, shipped = dock(), find_model()
    for file in (shipped, shipped.with_suffix(".safetensors")):
        shutil.copy(file, tmp_path / f"elsewhere{file.suffix}")
    browse = next(k for k in range(widget.model.count()) if widget.model.itemData(k) is None)
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("", ""))
    before = widget.model.currentData()
    widget.model.setCurrentIndex(browse)
    widget.model.activated.emit(browse)
    assert widget.model.currentData() == before  # nothing was chosen
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(tmp_path / "elsewhere.json"), ""))
    widget.model.setCurrentIndex(browse)
    widget.model.activated.emit(browse)
    assert widget.model.currentData() == str(tmp_path / "elsewhere.json")
    assert widget.model.currentText() == "elsewhere"


def test_a_model_that_was_made_meanwhile_is_in_the_list_when_it_is_opened(dock):
    widget, shipped = dock(), find_model()
    before = widget.model.currentText()
    for suffix in (".json", ".safetensors"):
        shutil.copy(shipped.with_suffix(suffix), user_models() / f"mine{suffix}")
    widget.model.showPopup()
    assert widget.model.findText("mine") >= 0
    assert widget.model.currentText() == before
    widget.model.hidePopup()


def test_a_model_that_is_gone(viewer, dock, press, tmp_path):
    viewer.open_sample("napari-wbc", SMALL)
    widget = dock()
    widget.model.insertItem(0, "gone", str(tmp_path / "gone.json"))
    widget.model.setCurrentIndex(0)
    assert "gone.json" in press(widget)


def test_opening_the_dock_imports_no_torch():
    code = (
        "import sys, napari; v = napari.Viewer(show=False)\n"
        "v.window.add_plugin_dock_widget('napari-wbc', 'Classify white cells')\n"
        "print(sorted({'torch', 'pandas', 'scipy.ndimage', 'matplotlib'} & set(sys.modules)))\n"
        "v.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == "[]"
