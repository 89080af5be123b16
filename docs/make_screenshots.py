"""Make every picture of the docs: real windows, the bundled samples, the real buttons.

Run ``xvfb-run -a -s "-screen 0 1600x1000x24" python docs/make_screenshots.py --data DATA`` or, with a display, without
``xvfb-run``. DATA holds the public data sets (docs/quality.md); without it what needs them is left out, and said.
Names of pictures as arguments take only those; ``_light`` after that of a dock gives it in napari's light theme, and
``--to DIR`` puts them elsewhere. The report needs ``chromium`` and ``pdftoppm``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SIZE = (1280, 800)
# Picture: sample (or the slide that is made for it), dock.
SHOTS = {
    "classify": ("nine_fields", "Classify white cells"),
    "segment": ("smear_neutrophil_monocyte", "Segment cells"),
    "crop": ("smear_neutrophil_monocyte", "Crop cells"),
    "train": ("nine_fields", "Train classifier"),
    "batch": ("", "Batch annotate"),
    "slide": ("slide", "Classify white cells"),
}
# Of a review: the dock in front.
REVIEWS = {"gallery": "Gallery of cells", "differential": "Differential", "readers": "Differential"}
# What other programs draw: picture and command; DATA stands for the data sets, TO for the picture's file.
OTHERS = {
    "classify.gif": ("make_movie.py", "TO"),
    "report.png": ("make_report.py", "TO"),
    "doubtful.jpg": ("../benchmarks/doubtful.py", "--data", "DATA", "-o", "TO"),
} | {
    f"evaluate_{name}.png": (
        "../benchmarks/evaluations.py", "--data", "DATA", "-o", "HOME", "--only", name, "--picture", "TO"
    )
    for name in ("pbc", "bccd", "dataset1", "dataset2")
}  # fmt: skip
WANTED = [
    "classify", "segment", "crop", "train", "batch", "slide", "gallery", "differential",
    "differential_light", "readers", *OTHERS,
]  # fmt: skip
NEED_DATA = {"train", "slide"} | {name for name, words in OTHERS.items() if "DATA" in words}
A_CLASS = 40


def wait(seconds, until=lambda: False):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        QApplication.processEvents()
        time.sleep(0.02)


def set_up_training(dock, home, data):
    """Few cells of each class, and weights to start from in place of a download."""
    for earlier in ("cells", "models", "Documents"):
        shutil.rmtree(home / earlier, ignore_errors=True)
    for folder in sorted(path for path in (data / "pbc/train").iterdir() if path.is_dir()):
        (home / "cells" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:A_CLASS]:
            shutil.copy(file, home / "cells" / folder.name)
    dock.labelled.choose(home / "cells")
    wait(600, until=lambda: not dock.labelled.child.is_running)
    dock.mpp.setText("0.145")
    start = data / "weights/mobilenet_v2_imagenet.safetensors"
    dock.weights.insertItem(1, start.name, str(start))
    dock.weights.setCurrentIndex(1)
    dock.name.setText("mine")


def set_up_batch(dock, home):
    """A folder of smears of which one is broken."""
    smears = home / "smears"
    shutil.rmtree(home / "results", ignore_errors=True)
    smears.mkdir(exist_ok=True)
    for sample in samples():
        shutil.copy(sample.path, smears)
    (smears / "half copied.svs").write_bytes(b"II*\0" + bytes(99))
    dock.slides.setPlainText("~/smears")
    dock.folder.setText("~/results")


def make_slide(home, data):
    """A small synthetic slide."""
    slide = home / "slide.tif"
    if not slide.exists():
        told = ("--size", "8192", "8192", "--cells", "250")
        command = [sys.executable, HERE.parent / "benchmarks/make_slide.py", slide, "--data", data, *told]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return slide


def take(name, to, theme, home, data):
    sample, title = SHOTS[name]
    get_settings().appearance.theme = theme
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    if sample == "slide":
        viewer.open(make_slide(home, data), plugin="napari-wbc")
    elif sample:
        viewer.open_sample("napari-wbc", sample)
    _, dock = viewer.window.add_plugin_dock_widget("napari-wbc", title)
    wait(1)
    viewer.window.resize(*SIZE)  # a wide dock makes the window wider
    viewer.reset_view()
    if name == "train":
        set_up_training(dock, home, data)
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
    shot.save(to, optimize=True)  # all colours: those of the classes must not merge
    print(f"{to.name}: {dock.status.text()} {shot.size}", flush=True)
    viewer.close()
    wait(0.5)


def take_review(name, to, theme):
    title = REVIEWS[name]
    get_settings().appearance.theme = theme
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
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
    print(f"{to.name}: {front.status.text()} {shot.size}", flush=True)
    if title == "Differential":  # the dock alone
        shot = shot.crop((front.mapTo(front.window(), front.rect().topLeft()).x(), 0, *shot.size))
    else:
        shot = shot.quantize(256, kmeans=2, dither=Image.Dither.NONE)
    shot.save(to, optimize=True)
    viewer.close()
    wait(0.5)


def main(options, home):
    for name in options.names or WANTED:
        stem = name.removesuffix("_light")
        to = options.to / (name if name in OTHERS else f"{name}.png")
        if stem in NEED_DATA and options.data is None:
            print(f"{name}: not made; --data says where the data sets are")
        elif name in OTHERS:
            script, *arguments = OTHERS[name]
            told = [str({"DATA": options.data, "HOME": home, "TO": to}.get(text, text)) for text in arguments]
            subprocess.run([sys.executable, HERE / script, *told], check=True)
        elif stem in REVIEWS:
            take_review(stem, to, "light" if name != stem else "dark")
        else:
            take(stem, to, "light" if name != stem else "dark", home, options.data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data", type=lambda text: Path(text).resolve())
    parser.add_argument("--to", type=lambda text: Path(text).resolve(), default=HERE / "images")
    options = parser.parse_args()
    options.to.mkdir(exist_ok=True, parents=True)
    with tempfile.TemporaryDirectory() as home:
        # Settings, runs and models of the user stay as they are.
        os.environ |= {"HOME": home, "NAPARI_WBC_MODELS": f"{home}/models", "NAPARI_CONFIG": f"{home}/settings.yaml"}
        import napari
        from napari.settings import get_settings
        from qtpy.QtWidgets import QApplication

        from napari_wbc import samples

        main(options, Path(home))
