"""Long runs of what `tests/test_hostile.py` and `tests/widgets/test_clicks.py` do in short, and soaks.

``python benchmarks/reliability.py fuzz --times 2000`` damages every kind of file so often.
``python benchmarks/reliability.py fields --times 2000`` analyses so many fields in one process and watches memory.
``python benchmarks/reliability.py slide --slide SLIDE`` analyses a whole slide (`benchmarks/make_slide.py` makes one of
five gigapixels) and watches memory; ``--times`` does it so often in one process.
``xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/reliability.py classify --times 200`` presses Classify so
often in one viewer and counts widgets, threads, open files and layers.
``xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/reliability.py clicks --times 200`` clicks and types so
often on every dock. ``--seed`` chooses others. Exit code 1 if something is wrong.
"""

import argparse
import gc
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
os.environ.setdefault("NAPARI_WBC_OPENVINO", "0")


def rss():
    """Memory of this process now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def handles():
    """Open files of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def make_results(folder):
    """Real results of the bundled smear."""
    from typer.testing import CliRunner

    from napari_wbc._sample_data import samples
    from napari_wbc.cli import app

    nine = next(sample.path for sample in samples() if sample.key == "nine_fields")
    shutil.copy(nine, folder / "nine.jpg")
    assert CliRunner().invoke(app, ["annotate", str(folder / "nine.jpg"), "-o", str(folder / "r")]).exit_code == 0
    return folder / "r"


def fuzz(times, seed, only):
    import hostile

    warnings.simplefilter("ignore")
    logging.disable()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        results = make_results(Path(folder))
        for door in hostile.DOORS:
            if only not in door.name:
                continue
            report, start = hostile.Report(), time.perf_counter()
            hostile.attack(door, Path(folder, "x", "in"), results, hostile.one_by_one(door, seed, times), report)
            bad += len(report.faults)
            print(
                f"{door.name:28} {report.tried['refused']:6} refused {report.tried['read']:6} read "
                f"{time.perf_counter() - start:7.1f} s, slowest {report.slowest[0]:.2f} s, {len(report.faults)} faults",
                *report.faults[:5], sep="\n    ", flush=True,
            )  # fmt: skip
    print(f"highest memory {hostile.memory() >> 20} MB, {bad} faults")
    return bad


def fields(times, seed, only):
    """Analyse 400 × 400 pixels of real fields, turned and mirrored, one after the other."""
    import numpy as np
    from pictures import FIELDS
    from PIL import Image

    from napari_wbc.classifier import Classifier
    from napari_wbc.count import differential
    from napari_wbc.pipeline import analyse, run
    from napari_wbc.slide import Slide

    del only
    classifier, chance = Classifier.load(device="cpu"), np.random.default_rng(seed)
    pictures = [np.asarray(Image.open(path).convert("RGB"))[:400, :400] for path in FIELDS]
    start, at, n = time.perf_counter(), {}, 0
    for k in range(times):
        image = pictures[k % len(pictures)]
        image = np.rot90(image if chance.random() < 0.5 else image[::-1], chance.integers(4))
        found = run(analyse(Slide.from_array(np.ascontiguousarray(image), f"{k}"), classifier))
        differential(found.cells)
        n += len(found.cells)
        if k + 1 in {round(times * share) for share in (0.1, 0.25, 0.5, 0.75, 1.0)}:
            gc.collect()
            at[k + 1] = rss()
            print(f"{k + 1:6} fields, {n} cells, {rss():7.1f} MB, {handles()} open files, "
                  f"{threading.active_count()} threads, {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    first, *_, last = at.values()
    print(f"memory grew by {(last / first - 1) * 100:+.1f} % from a tenth of the run to its end (5 wanted)")
    return last > 1.05 * first


def slide(times, seed, only, path):
    """Analyse a whole slide; memory once the first tenth of its cells is classified, and from there on."""
    from napari_wbc.classifier import Classifier
    from napari_wbc.pipeline import analyse
    from napari_wbc.slide import Slide

    del seed, only
    classifier, start = Classifier.load(device="cpu"), time.perf_counter()
    for run in range(times):
        at, n, high = {}, 0, 0.0
        for step in analyse(Slide.open(path), classifier):
            n += 0 if step.cells is None else len(step.cells)
            if not n or not step.total:
                continue
            high = max(high, rss())
            tenth = 10 * step.done // step.total
            if tenth and tenth not in at:
                at[tenth] = rss()
                print(f"run {run + 1}, {10 * tenth:3} %: {n} cells, {rss():7.1f} MB, {handles()} open files, "
                      f"{threading.active_count()} threads, {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        if run == 0:
            first = at[min(at)]
        print(f"run {run + 1}: {n} cells, at the end {rss():.1f} MB, highest {high:.1f} MB", flush=True)
    growth = at[max(at)] / first - 1
    print(f"memory grew by {growth * 100:+.1f} % from a tenth of the first run to the end of the last (5 wanted)")
    return growth > 0.05


def classify(times, seed, only):
    """Press Classify in one viewer, over and over."""
    import napari
    from qtpy.QtWidgets import QApplication

    del seed, only
    viewer = napari.Viewer()
    viewer.open_sample("napari-wbc", "smear_neutrophil_monocyte")
    dock = viewer.window.add_plugin_dock_widget("napari-wbc", "Classify white cells")[1]
    seen, start = {}, time.perf_counter()
    for k in range(1, times + 1):
        dock.run_button.click()
        end = time.perf_counter() + 300
        while dock.is_running and time.perf_counter() < end:
            QApplication.processEvents()
            time.sleep(0.002)
        if k in {10, times // 4, times // 2, times}:
            gc.collect()
            QApplication.processEvents()
            seen[k] = {"widgets": len(QApplication.allWidgets()), "threads": threading.active_count(),
                       "open files": handles(), "layers": len(viewer.layers), "MB": round(rss())}  # fmt: skip
            print(f"{k:5} runs, {time.perf_counter() - start:.0f} s:", seen[k], flush=True)
    first, *_, last = seen.values()
    viewer.close()
    leaks = [name for name in ("widgets", "threads", "open files", "layers") if last[name] > first[name]]
    print("grew: " + (", ".join(leaks) or "nothing") + f"; memory {(last['MB'] / first['MB'] - 1) * 100:+.1f} %")
    return bool(leaks)


def clicks(times, seed, only):
    """Click on every dock; runs the test, which is the one place that knows how."""
    import pytest

    os.environ |= {"NAPARI_WBC_CLICKS": str(times), "NAPARI_WBC_SEED": str(seed)}
    test = HERE.parent / "tests/widgets/test_clicks.py"
    return int(pytest.main([str(test), "-q", "--disable-warnings", "--durations=0", *(["-k", only] if only else [])]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fuzz", "fields", "slide", "classify", "clicks"))
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of a kind of file, or of a dock")
    parser.add_argument("--slide", type=Path, help="for slide: the file")
    given = parser.parse_args()
    more = (given.slide,) if given.what == "slide" else ()
    sys.exit(bool(globals()[given.what](given.times, given.seed, given.only, *more)))
