"""Take the pictures of the docks: real windows, the bundled samples, the real buttons.

Run ``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_screenshots.py`` or, with a display, without
``xvfb-run``. Names of pictures as arguments take only those. ``--cells DIR`` names the folder, with a folder a class,
of which a few cells are trained on, and ``--start FILE`` weights to start from in place of a download.
``--slide FILE`` takes the picture of a whole slide, such as ``benchmarks/make_slide.py`` writes (``--size 3200 2400
--cells 30 --zones``).
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent / "images"
SIZE = (1400, 900)
# Picture: sample, dock, theme.
SHOTS = {
    "classify": ("nine_fields", "Classify white cells", "dark"),
    "classify_light": ("nine_fields", "Classify white cells", "light"),
    "segment": ("smear_neutrophil_monocyte", "Segment cells", "dark"),
    "crop": ("smear_neutrophil_monocyte", "Crop cells", "dark"),
    "train": ("nine_fields", "Train classifier", "dark"),
    "batch": ("", "Batch annotate", "dark"),
}
# Of a review: the dock in front, theme.
REVIEWS = {
    "gallery": ("Gallery of cells", "dark"),
    "gallery_light": ("Gallery of cells", "light"),
    "differential": ("Differential", "dark"),
    "differential_light": ("Differential", "light"),
    "readers": ("Differential", "dark"),
}
REVIEW_SIZE = (1280, 800)
A_CLASS = 40


def wait(seconds, until=lambda: False):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        QApplication.processEvents()
        time.sleep(0.02)


def set_up_training(dock, home, cells, start):
    for folder in sorted(path for path in cells.iterdir() if path.is_dir()):
        (home / "cells" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:A_CLASS]:
            shutil.copy(file, home / "cells" / folder.name)
    dock.labelled.choose(home / "cells")
    wait(600, until=lambda: not dock.labelled.child.is_running)
    dock.mpp.setText("0.145")
    if start:
        dock.weights.insertItem(1, start.name, str(start))
        dock.weights.setCurrentIndex(1)


def set_up_batch(dock, home):
    """A folder of smears of which one is broken."""
    smears = home / "smears"
    smears.mkdir()
    for sample in samples():
        shutil.copy(sample.path, smears)
    (smears / "half copied.svs").write_bytes(b"II*\0" + bytes(99))
    dock.slides.setPlainText("~/smears")
    dock.folder.setText("~/results")


def take(name, home, options):
    sample, title, theme = SHOTS[name]
    get_settings().appearance.theme = theme
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    if name == "slide":
        viewer.open(sample, plugin="napari-wbc")
    elif sample:
        viewer.open_sample("napari-wbc", sample)
    _, dock = viewer.window.add_plugin_dock_widget("napari-wbc", title)
    wait(1)
    viewer.reset_view()
    if name == "train":
        set_up_training(dock, home, options.cells, options.start)
    if name == "batch":
        set_up_batch(dock, home)
    dock.run_button.click()
    wait(1800, until=lambda: not dock.is_running)
    if name == "slide":
        next(layer for layer in viewer.layers if layer.name.startswith("density")).visible = True
    if name == "batch":
        dock.open_slide(next(k for k in range(99) if dock.table.item(k, 0).text().startswith("nine")))
    if name == "crop":
        viewer.reset_view()
    wait(2)
    shot = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
    if name == "batch":  # few colours are enough to see where things are
        shot = shot.quantize(255, dither=Image.Dither.NONE)
    shot.save(FOLDER / f"{name}.png", optimize=True)  # all colours: those of the classes must not merge
    print(f"{name}: {dock.status.text()}")
    viewer.close()
    wait(0.5)


def take_review(name):
    title, theme = REVIEWS[name]
    get_settings().appearance.theme = theme
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*REVIEW_SIZE)
    viewer.open_sample("napari-wbc", "nine_fields")
    _, classify = viewer.window.add_plugin_dock_widget("napari-wbc", "Classify white cells")
    classify.run_button.click()
    wait(600, until=lambda: not classify.is_running)
    viewer.window.remove_dock_widget(classify)
    _, gallery = viewer.window.add_plugin_dock_widget("napari-wbc", "Gallery of cells")
    gallery.reviewer.setText("A. Reader")
    gallery.reviewer.editingFinished.emit()
    wait(2)
    gallery.review.accept(gallery.view.labels[:5])
    gallery.view.scroll_to("unidentified")
    unsure = [label for label in gallery.view.labels if gallery.view.heading("unidentified").isValid()][-3:]
    gallery.view.reach(int(unsure[0]))
    gallery.decide("lymphocyte")
    gallery.compare_button.setChecked(True)
    gallery.view.verticalScrollBar().setValue(0)
    gallery.view.reach(int(gallery.view.labels[2]))
    front = gallery
    if title == "Differential":
        _, front = viewer.window.add_plugin_dock_widget("napari-wbc", title)
        front.wbc.setText("6500")
        front.wbc.editingFinished.emit()
        wait(60, until=lambda: front.film is not None)
        front.tabs.setCurrentIndex(int(name == "readers"))
    wait(3)
    shot = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
    print(f"{name}: {front.status.text()} {shot.size}")
    if title == "Differential":  # the dock alone
        shot = shot.crop((front.mapTo(front.window(), front.rect().topLeft()).x(), 0, *shot.size))
    else:
        shot = shot.quantize(256, kmeans=2, dither=Image.Dither.NONE)
    shot.save(FOLDER / f"{name}.png", optimize=True)
    viewer.close()
    wait(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cells", type=Path, default=Path(__file__).parents[1] / "tests/data/crops")
    parser.add_argument("--start", type=Path)
    parser.add_argument("--slide", type=Path)
    options = parser.parse_args()
    if options.slide:
        SHOTS["slide"] = (str(options.slide.resolve()), "Classify white cells", "dark")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        # Settings, runs and models of the user stay as they are.
        os.environ |= {"HOME": home, "NAPARI_WBC_MODELS": f"{home}/models", "NAPARI_CONFIG": f"{home}/settings.yaml"}
        import napari
        from napari.settings import get_settings
        from qtpy.QtWidgets import QApplication

        from napari_wbc import samples

        for name in options.names or [*SHOTS, *REVIEWS]:
            if name in REVIEWS:
                take_review(name)
            else:
                take(name, Path(home), options)
