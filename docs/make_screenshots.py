"""Take the pictures of the docks: real windows, the bundled samples, the real buttons.

Run ``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_screenshots.py`` or, with a display, without
``xvfb-run``. Names of pictures as arguments take only those. ``slide=FILE`` takes the picture of a whole slide, such as
``benchmarks/make_slide.py`` writes (``--size 3200 2400 --cells 30 --zones``).
"""

import sys
import time
from pathlib import Path

import napari
from napari.settings import get_settings
from qtpy.QtWidgets import QApplication

FOLDER = Path(__file__).parent / "images"
SIZE = (1400, 900)
# Picture: sample, dock, theme.
SHOTS = {
    "classify": ("nine_fields", "Classify white cells", "dark"),
    "classify_light": ("nine_fields", "Classify white cells", "light"),
    "segment": ("smear_neutrophil_monocyte", "Segment cells", "dark"),
    "crop": ("smear_neutrophil_monocyte", "Crop cells", "dark"),
}


def wait(seconds, until=lambda: False):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        QApplication.processEvents()
        time.sleep(0.02)


def take(name):
    sample, title, theme = SHOTS[name]
    get_settings().appearance.theme = theme
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    if name == "slide":
        viewer.open(sample, plugin="napari-wbc")
    else:
        viewer.open_sample("napari-wbc", sample)
    _, dock = viewer.window.add_plugin_dock_widget("napari-wbc", title)
    wait(1)
    viewer.reset_view()
    dock.run_button.click()
    wait(300, until=lambda: not dock.is_running)
    if name == "crop":
        viewer.reset_view()
    wait(2)
    viewer.screenshot(path=str(FOLDER / f"{name}.png"), canvas_only=False)
    print(f"{name}: {dock.status.text()}")
    viewer.close()
    wait(0.5)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    before = get_settings().appearance.theme
    try:
        for argument in sys.argv[1:] or SHOTS:
            name, _, file = argument.partition("=")
            if file:
                SHOTS[name] = (file, "Classify white cells", "dark")
            take(name)
    finally:
        get_settings().appearance.theme = before
