"""Make the moving picture of one click on Classify: a real window, the bundled sample, the real button.

Run ``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_movie.py`` or, with a display, without ``xvfb-run``.
Waiting is shown shorter than it is: at most two seconds of it.
"""

import sys
import time
from pathlib import Path

import napari
from napari.settings import get_settings
from PIL import Image, ImageDraw
from qtpy.QtCore import QPoint
from qtpy.QtWidgets import QApplication

from napari_wbc.palette import COLOURS

TO = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images/classify.gif"
SIZE, WIDTH = (1280, 800), 960
SHOW_MS, STEP_MS, MOST_STEPS = 1500, 250, 8


def wait(seconds, until=lambda: False):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        QApplication.processEvents()
        time.sleep(0.01)


def frame(viewer, pointer=None):
    """Return the window as it is, with the mouse drawn where it is said to be."""
    picture = Image.fromarray(viewer.window.screenshot(canvas_only=False, flash=False)).convert("RGB")
    if pointer is not None:
        x, y = (int(v * picture.width / viewer.window.geometry()[2]) for v in (pointer.x(), pointer.y()))
        arrow = [(0, 0), (0, 24), (6, 18), (11, 28), (15, 26), (10, 17), (18, 17)]
        ImageDraw.Draw(picture).polygon([(x + a, y + b) for a, b in arrow], fill="white", outline="black")
    return picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)


def main():
    get_settings().appearance.theme = "dark"
    viewer = napari.Viewer()
    viewer.window.resize(*SIZE)
    dock = viewer.window.add_plugin_dock_widget("napari-wbc", "Classify white cells")[1]
    viewer.open_sample("napari-wbc", "nine_fields")
    viewer.window.resize(*SIZE)
    wait(0.5)
    viewer.reset_view()
    wait(0.5)
    button = dock.run_button
    frames = [(frame(viewer), SHOW_MS)]
    frames.append((frame(viewer, button.mapTo(button.window(), QPoint(button.width() // 2, 18))), SHOW_MS // 2))
    button.click()
    running = []
    while dock.is_running:
        wait(STEP_MS / 1000, until=lambda: not dock.is_running)
        if dock.is_running:
            running.append(frame(viewer))
    keep = [running[k * len(running) // MOST_STEPS] for k in range(MOST_STEPS)] if running else []
    frames += [(picture, STEP_MS) for picture in keep]
    wait(1)
    frames.append((frame(viewer), 2 * SHOW_MS))
    layer, view = viewer.layers["cells"], viewer.scene.camera
    zoom, centre = view.zoom, view.center
    place = layer.data_to_world(layer.data[len(layer.data) // 2])
    for share in (0.33, 0.67, 1.0):
        view.zoom = zoom * (1 + 2 * share)
        view.center = tuple(c + (p - c) * share for c, p in zip(centre[-2:], place[-2:], strict=True))
        wait(0.2)
        frames.append((frame(viewer), STEP_MS))
    frames[-1] = (frames[-1][0], 2 * SHOW_MS)
    # One palette for all frames, so that nothing flickers, with the colours of the classes as they are.
    sheet = Image.new("RGB", (WIDTH, frames[-1][0].height * 2))
    sheet.paste(frames[-4][0], (0, 0))
    sheet.paste(frames[-1][0], (0, frames[-1][0].height))
    palette = sheet.quantize(256 - len(COLOURS))
    exact = [value for hexadecimal in COLOURS.values() for value in bytes.fromhex(hexadecimal.removeprefix("#"))]
    palette.putpalette([*palette.getpalette()[: 3 * (256 - len(COLOURS))], *exact])
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture, _ in frames]
    pictures[0].save(TO, save_all=True, append_images=pictures[1:], duration=[ms for _, ms in frames], loop=0,
                     optimize=True)  # fmt: skip
    print(f"{TO}: {len(pictures)} pictures, {TO.stat().st_size / 1e6:.2f} MB")
    viewer.close()


if __name__ == "__main__":
    main()
