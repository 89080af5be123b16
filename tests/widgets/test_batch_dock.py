"""The dock that annotates many slides, driven as a user drives it: a real window, a real process."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import slides

from napari_wbc._widgets import _batch
from napari_wbc._widgets._layers import cells_of
from napari_wbc.cells import Cells
from napari_wbc.export import read_results

TIMEOUT = 600_000
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def smears(tmp_path):
    """Return a folder with a slide, a photo and a broken file."""
    folder = tmp_path / "my smears"
    folder.mkdir()
    slides.write(folder / "slide.svs", slides.mosaic(1, 2), factor=2)
    (folder / "slide.svs.truth.csv").unlink()
    shutil.copy(slides.FIELDS[0], folder / "photo.jpg")
    (folder / "broken.svs").write_bytes(b"II*\0garbage")
    return folder


@pytest.fixture
def batch(dock, tmp_path, monkeypatch):
    monkeypatch.setattr(_batch, "RESULTS", tmp_path / "results")
    return dock("Batch annotate")


def rows(widget) -> dict[str, tuple[str, str]]:
    return {
        widget.table.item(row, 0).text(): (widget.table.item(row, 1).text(), widget.table.item(row, 2).text())
        for row in range(widget.table.rowCount())
    }


def test_a_folder_is_done_shown_opened_and_equal_to_classify(viewer, dock, press, batch, smears, tmp_path):
    assert batch.status.text() == _batch.NEEDS_SLIDES
    batch.slides.setPlainText(str(smears))
    assert batch.status.text() == _batch.READY
    said = press(batch)
    assert "2 done, 1 failed" in said
    assert "in 2 pictures" in said
    assert "in 2 slides" not in said
    assert "\nScale " in said
    n = sum((read_results(tmp_path / "results" / name).cells.table["class"] == "neutrophil").sum()
            for name in ("slide", "photo"))  # fmt: skip
    assert f"neutrophil {n} (" in said
    assert "│" not in said
    table = rows(batch)
    assert table["photo.jpg"][0] == table["slide.svs"][0] == "done"
    assert "failed: damaged or cut short" in table["broken.svs"][0]
    results = read_results(tmp_path / "results/slide")
    assert table["slide.svs"][1] == str(len(results.cells))
    assert batch.open_button.isEnabled()
    press(batch)  # finished slides are skipped
    assert rows(batch)["slide.svs"][0] == "skipped: done before"
    batch.open_slide([batch.table.item(k, 0).text() for k in range(3)].index("slide.svs"))
    assert {"slide.svs", "cells"} <= {layer.name for layer in viewer.layers}
    batch.open_slide([batch.table.item(k, 0).text() for k in range(3)].index("photo.jpg"))
    assert viewer.layers["cells labels"].contour > 0  # outlines hide nothing
    # The dock Classify makes the same table of the same slide.
    viewer.layers.clear()
    viewer.open(str(smears / "slide.svs"), plugin="napari-wbc")
    press(dock())
    layer = next(layer for layer in viewer.layers if layer.name == "cells")
    assert cells_of(layer.features, layer.data) == Cells(results.cells.table)


@pytest.mark.skipif(os.name == "nt", reason="looks into /proc")
def test_a_run_that_is_cancelled_goes_on(qtbot, press, batch, smears, tmp_path):
    for k in range(5):  # so many that the run cannot end before it is cancelled
        shutil.copy(smears / "slide.svs", smears / f"slide_{k}.svs")
    batch.slides.setPlainText(f"{smears / 'photo.jpg'}\n{smears / '*.svs'}")
    batch.folder.setText(str(tmp_path / "out"))
    batch.start()
    (process,) = batch.child._processes
    qtbot.waitUntil(lambda: rows(batch).get("photo.jpg", ("", ""))[0] == "done", timeout=TIMEOUT)
    pid = process.processId()
    batch.cancel_button.click()
    qtbot.waitUntil(lambda: not batch.is_running, timeout=TIMEOUT)
    assert "goes on" in batch.status.text()
    assert not Path(f"/proc/{pid}").exists()
    assert rows(batch)["slide_4.svs"][0] == "waiting"
    before = sum(state == "done" for state, *_ in rows(batch).values())
    assert f"{7 - before} done, {before} done before, 1 failed" in press(batch)
    record = json.loads((tmp_path / "out/run.json").read_text())
    states = {Path(entry["path"]).name: entry["state"] for entry in record["inputs"]}
    assert sorted(states.values()) == ["done"] * (7 - before) + ["failed"] + ["skipped"] * before
    assert states["photo.jpg"] == "skipped"
    assert states["slide_4.svs"] == "done"
    batch.threshold.setText("0,9")
    said = press(batch)
    assert "parameters.threshold was not given and is 0.9" in said
    assert "choose another Results folder" in said


def test_a_misspelled_path_is_named(press, batch, smears):
    batch.slides.setPlainText(str(smears / "photoo.jpg"))
    said = press(batch)
    assert "photoo.jpg: no such file or folder; check the spelling" in said
    assert "give files, folders" in said
