"""Measure the review: a real window with a slide of many cells, the real docks, the real log.

Run ``xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/review.py`` or, with a display, without ``xvfb-run``.
``--cells 20000`` says how many. The slide is tiled from the bundled sample, its cells are those of the sample over
and over with probabilities drawn at random: nothing here depends on a network. Prints measured beside wanted.
"""

import argparse
import gc
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

CLASSES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil", "immature granulocyte", "erythroblast",
           "platelet")  # fmt: skip


def rss():
    """Memory of this process now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Peak(threading.Thread):
    """Highest memory while it runs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.highest, self._on = 0.0, True

    def run(self):
        while self._on:
            self.highest = max(self.highest, rss())
            time.sleep(0.02)

    def stop(self):
        self._on = False
        return self.highest


def make_results(folder, n):
    """Write a slide as OME-Zarr and results of n cells on it."""
    import zarr

    from napari_wbc._sample_data import samples
    from napari_wbc.cells import Cells, measure
    from napari_wbc.export import write_folder
    from napari_wbc.segment import segment
    from napari_wbc.slide import Slide

    picture = Slide.open(next(sample.path for sample in samples() if sample.key == "nine_fields")).image
    found = segment(picture)
    one = measure(found.labels, found.nuclei, slide="tiled", mpp=found.appearance.mpp).table
    # The cells of the sample close together: a mosaic that is tiled.
    half, side = 80, 6
    one = one.iloc[: side * (len(one) // side)]
    padded = np.pad(picture, ((half, half), (half, half), (0, 0)), constant_values=230)
    field = np.empty((len(one) // side * 2 * half, side * 2 * half, 3), np.uint8)
    centres = one[["centroid-0", "centroid-1"]].round().astype(int).to_numpy()
    places = np.array([divmod(k, side) for k in range(len(one))]) * 2 * half
    for (y, x), (top, left) in zip(centres, places, strict=True):
        field[top : top + 2 * half, left : left + 2 * half] = padded[y : y + 2 * half, x : x + 2 * half]
    for axis in (0, 1):
        for name in (f"centroid-{axis}", f"bbox-{axis}", f"bbox-{axis + 2}"):
            one[name] += places[:, axis] + half - centres[:, axis]
    times = -(-n // len(one))
    across = int(np.ceil(np.sqrt(times)))
    height, width = field.shape[:2]
    table = pd.concat([one] * times, ignore_index=True).iloc[:n]
    tile = np.arange(n) // len(one)
    for axis, shift in enumerate((tile // across * height, tile % across * width)):
        for name in (f"centroid-{axis}", f"bbox-{axis}", f"bbox-{axis + 2}"):
            table[name] += shift
    table["label"] = np.arange(1, n + 1)
    p = np.random.default_rng(0).dirichlet([0.25] * len(CLASSES), n)
    cells = Cells(table).with_predictions(p, CLASSES, 0.5)
    path = folder / "tiled.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    shape = (3, across * height, across * width)
    levels = []
    for level in range(5):
        step = 2**level
        small = field[::step, ::step]
        array = group.create_array(str(level), shape=(3, -(-shape[1] // step), -(-shape[2] // step)),
                                   chunks=(3, 512, 512), dtype="uint8")  # fmt: skip
        band = np.tile(small, (1, across, 1))[:, : array.shape[2]]
        for k in range(across):
            top = k * small.shape[0]
            rows_left = min(small.shape[0], array.shape[1] - top)
            if rows_left > 0:
                array[:, top : top + rows_left, : band.shape[1]] = np.moveaxis(band[:rows_left], -1, 0)
        mpp = float(found.appearance.mpp) * step
        levels.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [1, mpp, mpp]}]})
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "yx")]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    note = (json.dumps({"slide": str(path), "shape": shape[1:]}) + "\n").encode()
    files = ("cells.csv", "cells.parquet", "cells.geojson", "differential.csv")
    return write_folder(folder / "results", cells, None, files=files, more={"slide.json": note})


def wait(seconds, until=lambda: False):
    from qtpy.QtWidgets import QApplication

    end = time.perf_counter() + seconds
    while not until() and time.perf_counter() < end:
        QApplication.processEvents()
        time.sleep(0.001)


def Frames(view):  # noqa: N802
    """Count how often the gallery is painted."""
    from qtpy.QtCore import QEvent, QObject

    class Counter(QObject):
        seen = 0

        def eventFilter(self, _, event):  # noqa: N802
            self.seen += event.type() == QEvent.Type.Paint
            return False

    counter = Counter(view)
    view.viewport().installEventFilter(counter)
    return counter


def agree(gallery, dock):
    """Whether table, layer, gallery and counts show the same."""
    cells = gallery.review.session.cells
    layer = gallery.review.layer
    want = cells.table["class"].value_counts()
    names = np.asarray(layer.features["class"].cat.categories, object)[layer.features["class"].cat.codes]
    sections = {section.name: section.total for section in gallery.view.arrangement.sections}
    counts = dict(zip(dock.counts["class"], dock.counts["n"], strict=True)) if dock.counts is not None else {}
    return (
        np.array_equal(names, cells.table["class"])
        and all(sections[name] == n for name, n in want.items())
        and all(counts.get(name) == n for name, n in want.items())
    )


def measure_all(folder, n):
    import napari
    from qtpy.QtWidgets import QApplication

    from napari_wbc.export import read_results
    from napari_wbc.review_session import ReviewSession

    rows = []
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1280, 800)
    viewer.open(str(folder), plugin="napari-wbc")
    wait(1)
    _, dock = viewer.window.add_plugin_dock_widget("napari-wbc", "Differential")
    dock.target.setCurrentIndex(dock.target.findData(None))
    wait(2)
    gc.collect()
    before, peak = rss(), Peak()
    peak.start()
    start = time.perf_counter()
    _, gallery = viewer.window.add_plugin_dock_widget("napari-wbc", "Gallery of cells")
    first = Frames(gallery.view)
    wait(30, lambda: first.seen)
    rows.append((f"first paint of a gallery of {n:,} cells", time.perf_counter() - start, 1.0, "s"))

    def there():
        """Share of the cells that are seen whose pictures are there."""
        return np.mean([gallery.thumbnails.get(int(label)) is not None for label in gallery.view.seen])

    def painted():
        view = gallery.view
        if gallery.thumbnails is None or not view.isVisible():
            return False
        return len(view.seen) > 0 and there() == 1

    wait(30, painted)
    rows.append(("all pictures of the first screen", time.perf_counter() - start, 1.0, "s"))
    bar, view = gallery.view.verticalScrollBar(), gallery.view
    wait(1)
    frames = Frames(view)
    start = time.perf_counter()
    step = max(40, bar.maximum() // 400)
    while time.perf_counter() - start < 4 and bar.value() < bar.maximum():
        bar.setValue(bar.value() + step)
        QApplication.processEvents()
    frames = frames.seen
    rows.append(("scrolling, frames a second", frames / (time.perf_counter() - start), 30, "/s"))
    bar.setValue(0)
    wait(1)
    shares, start = [], time.perf_counter()
    while (gone := time.perf_counter() - start) < 4:
        bar.setValue(int(2 * gone * view.viewport().height()))
        QApplication.processEvents()
        shares.append(there())
        time.sleep(max(0.0, 1 / 60 - (time.perf_counter() - start - gone)))  # a screen shows no more frames
    rows.append(("pictures that are there while it scrolls two screens a second", 100 * np.mean(shares), 90, "%"))
    for value in np.linspace(0, bar.maximum(), 60):
        bar.setValue(int(value))
        wait(0.05)
    wait(1)
    rows.append(("memory that the gallery takes, at most", peak.stop() - before, 300, "MB"))
    times, seen, delays = [], [], []
    for k, name in enumerate(("smudge", "basophil", "lymphocyte")):
        labels = np.random.default_rng(k).choice(n, min(500, n), replace=False) + 1
        view.select(set(labels.tolist()))
        view.selection_changed.emit()
        wait(0.5)
        start = time.perf_counter()
        gallery.review.decide(labels, name)
        wait(10, lambda: agree(gallery, dock))
        times.append(time.perf_counter() - start)
        QApplication.processEvents()
        seen.append(time.perf_counter() - start)
        wait(0.5)
    rows.append(("reclassify 500 cells until table, layer, gallery and counts agree", np.median(times), 0.2, "s"))
    rows.append(("… until the window is painted", np.median(seen), 0.2, "s"))
    for k in range(5):
        start = time.perf_counter()
        gallery.review.decide([k + 1], "smudge")
        wait(10, lambda: agree(gallery, dock))
        delays.append(time.perf_counter() - start)
        wait(0.3)
    rows.append(("change of one cell until all agree", np.median(delays), 0.1, "s"))
    layer = gallery.review.layer
    start = time.perf_counter()
    layer.features.iloc[7, layer.features.columns.get_loc("class")] = "monocyte"
    wait(10, lambda: gallery.review.session.cells.table["class"].iloc[7] == "monocyte" and agree(gallery, dock))
    rows.append(("an edit in napari's table of features until all agree", time.perf_counter() - start, 0.2, "s"))
    table = gallery.review.session.cells
    for title in ("Differential", "Gallery of cells"):
        widget = dock if title == "Differential" else gallery
        viewer.window.remove_dock_widget(widget)
    wait(1)
    start = time.perf_counter()
    session = ReviewSession.open(folder)
    rows.append((f"opening a saved review of {n:,} cells", time.perf_counter() - start, 2.0, "s"))
    same = session.cells == table and read_results(folder).cells == table
    session.close()
    rows.append(("replay of the log gives the identical table", float(same), 1, ""))
    viewer.close()
    wait(0.5)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=20_000)
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as home:
        results = make_results(Path(home), options.cells)
        print("| what | measured | wanted | |\n|---|---|---|---|")
        for what, measured, wanted, unit in measure_all(results, options.cells):
            most = unit not in ("/s", "%", "")
            good = measured <= wanted if most else measured >= wanted
            failed |= not good
            sign = "≤" if most else "≥"
            print(f"| {what} | {measured:.3g} {unit} | {sign} {wanted:g} {unit} | {'reached' if good else 'NOT'} |")
    sys.exit(int(failed))
