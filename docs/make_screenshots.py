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

        for name in options.names or SHOTS:
            take(name, Path(home), options)
