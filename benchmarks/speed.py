"""Print speed as ratios taken in one run.

    xvfb-run -a python benchmarks/speed.py

Medians of several runs on as many threads as there are cores; the first, which warms up, is left out.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from napari_wbc.accelerator import SWITCH
from napari_wbc.classifier import CPU_PIXELS, Classifier
from napari_wbc.pipeline import analyse, run
from napari_wbc.slide import Slide

FIELDS = sorted((Path(__file__).parents[1] / "tests/data/fields").glob("*.jpg"))
BATCH = 64


def median_seconds(work: Callable[[], object], repeats: int = 9) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bare(classifier: Classifier, batch: int) -> Callable[[], object]:
    """The network alone, on input that is ready, with as many at once as is fastest."""
    size = classifier.card.crop.pixels
    # Each crop goes through the network once a view.
    x = torch.rand(batch * len(classifier.card.ways), 3, size, size).to(memory_format=torch.channels_last)
    parts = torch.split(x, max(1, CPU_PIXELS // size**2))

    def forward() -> object:
        with torch.inference_mode():
            return [classifier.network(part) for part in parts]

    return forward


def field(classifier: Classifier) -> None:
    for path in FIELDS[:3]:
        cells = len(run(analyse(Slide.open(path), classifier)).cells)
        whole = median_seconds(lambda path=path: run(analyse(Slide.open(path), classifier)))
        forward = median_seconds(bare(classifier, cells))
        allowed = 2 * forward + 0.150
        print(
            f"field {path.name}, {cells} cells: end to end {1e3 * whole:.0f} ms, forward pass {1e3 * forward:.0f} ms, "
            f"{whole / allowed:.2f} of the allowed 2 × forward + 150 ms"
        )


def predict(classifier: Classifier) -> None:
    size = classifier.card.crop.pixels
    crops = np.random.default_rng(0).integers(0, 255, (BATCH * 4, size, size, 3), np.uint8)
    forward = bare(classifier, BATCH)
    # Taken in turns, so that a change of the machine's speed hits both.
    ratios, rates = [], []
    for _ in range(9):
        alone = median_seconds(lambda: [forward() for _ in range(4)], 1)
        ours = median_seconds(lambda: classifier.predict(crops, batch_size=BATCH), 1)
        ratios.append(alone / ours)
        rates.append(len(crops) / ours)
    print(
        f"predict: {statistics.median(rates):.0f} crops/s of {size} px in batches of {BATCH}, "
        f"{100 * statistics.median(ratios):.0f} % of the bare network on its {len(classifier.card.ways)} views of each crop "
        f"({100 * statistics.median(ratios) / len(classifier.card.ways):.0f} % of it on one; 90 % or more wanted)"
    )


def accelerated(classifier: Classifier, fast: Classifier) -> None:
    """The whole of `predict` on both engines."""
    size = classifier.card.crop.pixels
    crops = np.random.default_rng(0).integers(0, 255, (BATCH * 4, size, size, 3), np.uint8)
    ratios = []
    for _ in range(5):
        slow = median_seconds(lambda: classifier.predict(crops), 1)
        ratios.append(slow / median_seconds(lambda: fast.predict(crops), 1))
    agree = classifier.predict(crops).argmax(1) == fast.predict(crops).argmax(1)
    print(
        f"{fast.engine}: predict is {statistics.median(ratios):.1f} times as fast as on torch; {agree.mean():.1%} agree"
    )


def imports() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import napari_wbc; t = time.perf_counter() - t; "
        "print(t, [m for m in ('torch', 'qtpy', 'napari') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    print("import napari_wbc: seconds and heavy modules loaded:", out.strip())


def dock() -> None:
    try:
        import napari
    except ImportError:
        print("dock: napari is not installed")
        return
    viewer = napari.Viewer(show=False)
    start = time.perf_counter()
    viewer.window.add_plugin_dock_widget("napari-wbc", "Classify white cells")
    seconds = time.perf_counter() - start
    print(f"dock: opens in {seconds:.2f} s of GUI time (less than 0.5 s wanted)")
    viewer.close()


def main() -> None:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**versions, "machine": platform.machine()}))
    imports()
    dock()
    os.environ[SWITCH] = "0"
    classifier = Classifier.load(device="cpu")
    predict(classifier)
    field(classifier)
    os.environ[SWITCH] = "1"
    fast = Classifier.load(device="cpu")
    if fast.engine != "torch":
        accelerated(classifier, fast)
        field(fast)


if __name__ == "__main__":
    main()
