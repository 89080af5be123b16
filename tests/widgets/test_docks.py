"""Segment and crop docks, the manifest, the samples."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

import napari_wbc
from napari_wbc.pipeline import analyse, run
from napari_wbc.segment import SegmentParameters
from napari_wbc.slide import Slide

KEY = "smear_neutrophil_monocyte"
SMALL = "yellow_eosinophil"
MANIFEST = yaml.safe_load((Path(napari_wbc.__file__).parent / "napari.yaml").read_text())["contributions"]


@pytest.mark.parametrize("command", MANIFEST["commands"], ids=lambda command: command["id"])
def test_every_command_imports(command):
    module, name = command["python_name"].split(":")
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("key", [sample["key"] for sample in MANIFEST["sample_data"]])
def test_every_sample_opens(key):
    from napari.layers import Layer

    from napari_wbc import _sample_data

    (layer,) = getattr(_sample_data, f"open_{key}")()
    assert Layer.create(*layer).rgb


def test_segment(viewer, dock, press, sample):
    viewer.open_sample("napari-wbc", KEY)
    widget = dock("Segment cells")
    assert list(widget.parameters) == list(SegmentParameters.__dataclass_fields__)
    assert all(box.toolTip() for box in widget.parameters.values())
    said = press(widget)
    expected = run(analyse(Slide.open(sample(KEY))))
    assert f"{expected.appearance.mpp:.3f} µm per pixel, measured from {expected.appearance.n_red_cells} red" in said
    assert np.array_equal(viewer.layers["cells labels"].data, expected.labels)
    assert viewer.layers["cells labels"].features["area"].tolist() == expected.cells.table["area"].tolist()
    assert "counts" not in viewer.layers
    widget.parameters["mpp"].setValue(0.1)
    press(widget)
    assert len(viewer.layers) == 3
    expected = run(analyse(Slide.open(sample(KEY), mpp=0.1)))
    assert np.array_equal(viewer.layers["cells labels"].data, expected.labels)
    assert set(viewer.layers["cells"].features["mpp"]) == {0.1}


def test_crop_found_cells_and_save(viewer, dock, press, tmp_path):
    viewer.open_sample("napari-wbc", KEY)
    widget = dock("Crop cells")
    widget.pixels.setValue(32)
    widget.folder.setText(str(tmp_path / "crops"))
    press(widget)
    crops = viewer.layers["crops"].data
    assert crops.shape[1:] == (32, 32, 3)
    assert len(list((tmp_path / "crops").rglob("*.png"))) == len(crops) > 0
    widget.pixels.setValue(48)
    press(widget)
    assert viewer.layers["crops"].data.shape[1:] == (48, 48, 3)
    assert len(viewer.layers) == 2
    assert viewer.dims.axis_labels[0] == "crop"  # which stands at the slider


def test_crop_points_of_ones_own(viewer, dock, press, sample, tmp_path):
    from napari_wbc.crop import CropSize, crop_cells

    picture = Slide.open(sample(SMALL))
    viewer.add_image(picture.image, rgb=True, name="picture", scale=(0.1, 0.1), units=("um", "um"))
    viewer.add_points([[5.0, 6.0], [7.0, 8.0]], name="mine", units=("um", "um"))
    widget = dock("Crop cells")
    widget.cells.choose(viewer.layers["mine"])
    widget.folder.setText(str(tmp_path / "crops"))
    assert press(widget).startswith("2 crops")
    expected = crop_cells(picture.image, np.array([[50.0, 60.0], [70.0, 80.0]]), 0.1, CropSize(22.4, 128))
    assert np.array_equal(viewer.layers["crops"].data, expected)
    assert len(list((tmp_path / "crops" / "unclassified").glob("*.png"))) == 2
    viewer.layers["mine"].data = [[-50.0, 6.0]]
    assert "no point of 'mine' lies in 'picture'" in press(widget)


def test_one_name_for_each_dock(dock):
    titles = {command["id"]: command["title"] for command in MANIFEST["commands"]}
    for widget in MANIFEST["widgets"]:
        opened = dock(widget["display_name"])
        assert titles[widget["command"]] == widget["display_name"]
        if widget["display_name"] not in ("Gallery of cells", "Differential"):  # they follow; there is nothing to start
            assert opened.run_button.text() == widget["display_name"]


def test_crop_cells_of_an_earlier_run(viewer, dock, press):
    viewer.open_sample("napari-wbc", KEY)
    press(dock("Segment cells"))
    widget = dock("Crop cells")
    widget.cells.choose(viewer.layers["cells"])
    press(widget)
    found = viewer.layers["crops"].data
    widget.cells.choose(viewer.layers["cells labels"])
    press(widget)
    assert np.array_equal(viewer.layers["crops"].data, found)


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("Enter your name as Reviewer first.", ["Enter your name as Reviewer first."]),
        ("Signed, but cells are unidentified.", ["Signed, but cells are unidentified."]),
        ("Find the picture before you add cells.", ["Find the picture before you add cells."]),
        (
            "/home/a b/far away/ranges.toml: not a table of reference ranges; take the shipped one",
            ["ranges.toml: not a table of reference …", "ranges; take the shipped one"],
        ),
        ("C:\\Users\\me\\run.json: damaged", ["run.json: damaged"]),
        ("0.5 cells / field, 3/4 of them seen", ["0.5 cells / field, 3/4 of them seen"]),
    ],
)
def test_the_line_that_napari_shows_of_a_message_is_read_whole(message, lines, viewer):
    from napari._qt.dialogs.qt_notification import NapariQtNotification
    from napari.utils.notifications import notification_manager

    from napari_wbc._widgets._toast import toast

    toast(message)
    said = notification_manager.records[-1].message
    assert said.split("\n") == lines
    shown = NapariQtNotification(said, "warning", parent=viewer.window._qt_window)
    shown.layout().activate()
    shown.row1.activate()
    assert shown.message.fontMetrics().horizontalAdvance(lines[0]) <= 300  # of 400, beside icon and buttons
    shown.close()


def test_a_dock_behind_another_comes_to_the_front_when_it_is_chosen_in_the_menu(make_napari_viewer, qtbot):
    """napari's menu shows and hides: of a dock behind a tab nobody wants it to be hidden."""
    viewer = make_napari_viewer(show=True)
    window = viewer.window
    (menu,) = [action.menu() for action in window.plugins_menu.actions() if "White blood cells" in action.text()]

    def choose(title: str) -> None:
        menu.aboutToShow.emit()
        next(action for action in menu.actions() if action.text() == title).trigger()

    def in_front() -> list[str]:
        docks = window._wrapped_dock_widgets
        seen = [name for name, dock in docks.items() if not dock.visibleRegion().isEmpty()]
        return [name.split(" (")[0] for name in seen if "White blood cells" in name]

    for title in ("Gallery of cells", "Differential", "Gallery of cells"):
        choose(title)
        qtbot.waitUntil(lambda title=title: in_front() == [title], timeout=10_000)
    choose("Gallery of cells")  # in front it is hidden, as napari has it
    qtbot.waitUntil(lambda: in_front() == ["Differential"], timeout=10_000)
    qtbot.wait(50)
    assert in_front() == ["Differential"]
    choose("Gallery of cells")
    qtbot.waitUntil(lambda: in_front() == ["Gallery of cells"], timeout=10_000)
