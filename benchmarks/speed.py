"""Print speed as ratios taken in one run.

    xvfb-run -a python benchmarks/speed.py

On as many threads as there are cores; what is compared is run in turns, and the fastest run of each counts: other
programs only ever add to a time. The first run, which warms up, is left out. The load at the start and at the end says
whether the machine was idle: more than the number of cores is not.

The bare network sees each crop as often as `predict` shows it, in parts as large as is fastest. `predict` adds
preprocessing of each view and the score of unlikeness.
"""

from __future__ import annotations

import json
import os
import platform
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


def fastest(*works: Callable[[], object], repeats: int = 9) -> list[float]:
    """Seconds of each, taken in turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, own in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            own.append(time.perf_counter() - start)
    return [min(own[1:]) for own in times]


def bare(classifier: Classifier, batch: int) -> Callable[[], object]:
    """The network alone, on input that is ready, with as many at once as is fastest."""
    size = classifier.card.crop.pixels
    # Each crop goes through the network once a view.
    x = torch.rand(batch * len(classifier.card.ways), 3, size, size).to(memory_format=torch.channels_last)
    parts = torch.split(x, max(1, CPU_PIXELS // size**2))
    fast = classifier._accelerated  # noqa: SLF001 - what its engine runs

    def forward() -> object:
        with torch.inference_mode():
            return list(fast(parts)) if fast else [classifier.network(part) for part in parts]

    return forward


def field(classifier: Classifier) -> None:
    for path in FIELDS[:3]:
        cells = len(run(analyse(Slide.open(path), classifier)).cells)
        whole, forward = fastest(lambda path=path: run(analyse(Slide.open(path), classifier)), bare(classifier, cells))
        allowed = 2 * forward + 0.150
        print(
            f"field {path.name} on {classifier.engine}, {cells} cells: end to end {1e3 * whole:.0f} ms, forward pass {1e3 * forward:.0f} ms, "
            f"{whole / allowed:.2f} of the allowed 2 × forward + 150 ms"
        )


def predict(classifier: Classifier) -> None:
    size = classifier.card.crop.pixels
    crops = np.random.default_rng(0).integers(0, 255, (BATCH * 4, size, size, 3), np.uint8)
    forward = bare(classifier, BATCH)
    alone, ours = fastest(
        lambda: [forward() for _ in range(4)], lambda: classifier.predict(crops, batch_size=BATCH), repeats=5
    )
    share, ways = 100 * alone / ours, len(classifier.card.ways)
    print(
        f"predict on {classifier.engine}: {len(crops) / ours:.0f} crops/s of {size} px in batches of {BATCH}, {share:.0f} % of the bare network "
        f"on its {ways} views of each crop ({share / ways:.0f} % of it on one; 90 % or more wanted)"
    )


def accelerated(classifier: Classifier, fast: Classifier) -> None:
    """The whole of `predict` on both engines."""
    size = classifier.card.crop.pixels
    crops = np.random.default_rng(0).integers(0, 255, (BATCH * 4, size, size, 3), np.uint8)
    slow, quick = fastest(lambda: classifier.predict(crops), lambda: fast.predict(crops), repeats=5)
    agree = classifier.predict(crops).argmax(1) == fast.predict(crops).argmax(1)
    print(f"{fast.engine}: predict is {slow / quick:.1f} times as fast as on torch; {agree.mean():.1%} agree")


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
    print(json.dumps({**versions, "machine": platform.machine(), "load": os.getloadavg()[0]}))
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
        predict(fast)
        field(fast)
    print("load at the end:", os.getloadavg()[0])


if __name__ == "__main__":
    main()
