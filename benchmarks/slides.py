"""Print what whole slides cost and how many of their cells are found, in one run.

    python benchmarks/slides.py --data DATA [--folder FOLDER] [--rows sparse dense size tiles workers dask]

Slides are made by `make_slide.py` into the folder and kept there. Times are medians of three runs in processes of their
own; memory is the peak above what the imports take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

SPARSE_MPP, DENSE_MPP = 0.0725, 0.25
SLIDES = {  # size, fields with white cells, µm per pixel
    "sparse": ((32768, 24576), 280, SPARSE_MPP),
    "dense": ((32768, 24576), 4500, DENSE_MPP),
    "small": ((8192, 8192), 250, DENSE_MPP),
    "0.1": ((12288, 8192), 550, DENSE_MPP),
    "5": ((81920, 61440), 27500, DENSE_MPP),
}
N_BATCH = 8
WITHIN_UM = 6.0


def make(name: str, folder: Path, data: Path) -> Path:
    path = folder / f"{name}.tif"
    if not path.with_name(path.name + ".truth.csv").is_file():
        size, cells, mpp = SLIDES[name]
        command = [sys.executable, str(Path(__file__).with_name("make_slide.py")), str(path), "--data", str(data)]
        command += ["--size", *map(str, size), "--cells", str(cells), "--mpp", str(mpp)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def copies(path: Path) -> list[Path]:
    """Return slides of one content: the same work each."""
    found = [path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(N_BATCH)]
    for copy in found:
        if not copy.is_file():
            os.link(path, copy)
    return found


def child(task: str, path: Path, tile: int) -> dict[str, float]:
    """Do one task and say how long it took and how much memory."""
    import torch

    from napari_wbc.classifier import Classifier
    from napari_wbc.pipeline import analyse, run
    from napari_wbc.slide import Slide

    torch.set_num_threads(os.cpu_count() or 1)
    classifier = Classifier.load(device="cpu") if task == "classify" else None
    for name in ("matplotlib", "skimage.measure", "tifffile", "imagecodecs"):
        __import__(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found: dict[str, float] = {}
    if task == "openslide":
        from concurrent.futures import ThreadPoolExecutor

        import openslide

        slide = openslide.OpenSlide(path)
        width, height = slide.dimensions
        places = [(x, y) for y in range(0, height, 512) for x in range(0, width, 512)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda place: slide.read_region(place, 0, (512, 512)).size, places))
    elif task == "open":
        from napari_wbc._slide_reader import read_slide

        read_slide(path)
    else:
        result = run(analyse(Slide.open(path), classifier, tile=tile))
        truth = pd.read_csv(path.with_name(path.name + ".truth.csv"))
        found = score(result.cells.centroids, truth, SLIDES[path.stem][2])
        found["hash"] = int(pd.util.hash_pandas_object(result.cells.table).sum() % 2**31)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "megabytes": (after - before) / 1024, **found}


def batch(paths: list[Path], workers: int) -> dict[str, float]:
    """Do slides on so many workers that have started, and say how long it took and what the tables are."""
    from napari_wbc.batch import Batch
    from napari_wbc.batch_cluster import Cluster
    from napari_wbc.batch_folder import BatchFolder, Terms
    from napari_wbc.batch_list import list_slides
    from napari_wbc.classifier import Classifier
    from napari_wbc.record import Settings

    terms = Terms(Settings(), Classifier.load(device="cpu").card, "cpu")
    with tempfile.TemporaryDirectory() as out, Cluster.started(terms, None, workers=workers) as cluster:
        cluster.client.wait_for_workers(workers)
        cluster.client.run(import_all)
        with BatchFolder(Path(out), terms).held() as folder:
            start = time.perf_counter()
            for _ in (run := Batch(list_slides(paths)[0], folder)).run(cluster):
                pass
            seconds = time.perf_counter() - start
        assert not run.failures, run.failures
        tables = b"".join(path.read_bytes() for path in sorted(Path(out).rglob("cells.*")) if path.is_file())
    return {"seconds": seconds, "cells": run.cells, "hash": zlib.crc32(tables)}


def import_all() -> None:
    """Import in a worker what it will need: that is no part of the run."""
    for name in ("torch", "napari_wbc.pipeline", "skimage.measure", "tifffile", "imagecodecs"):
        __import__(name)


def score(centres: np.ndarray, truth: pd.DataFrame, mpp: float) -> dict[str, float]:
    """Share of the whole white cells of the table that have a cell of their own."""
    from scipy.spatial import cKDTree

    wanted = truth.loc[~truth["cut"], ["centroid-0", "centroid-1"]].to_numpy()
    if not len(centres):
        return {"recall": 0.0, "cells": 0, "truth": len(wanted)}
    apart, which = cKDTree(centres).query(wanted)
    hit = apart * mpp < WITHIN_UM
    return {"recall": len(set(which[hit])) / max(1, len(wanted)), "cells": len(centres), "truth": len(wanted)}


def measure(task: str, path: Path, tile: int = 512, repeats: int = 3) -> dict[str, float]:
    return measured([task, "--slide", str(path), "--tile", str(tile)], repeats)


def measured(task: list[str], repeats: int) -> dict[str, float]:
    """Medians over runs of a task in processes of their own."""
    runs = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--child", *task]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        runs.append(json.loads(out.splitlines()[-1]))
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def told(name: str, found: dict[str, float]) -> None:
    text = f"{name}: {found['seconds']:.2f} s, {found['megabytes']:.0f} MB above the imports"
    if "recall" in found:
        text += f", {found['cells']:.0f} cells, recall {100 * found['recall']:.1f} % of {found['truth']:.0f}"
    print(text, flush=True)


def fields_alone(path: Path, data: Path) -> float:
    """Recall when the same fields are analysed one by one, as pictures."""
    import make_slide

    from napari_wbc.pipeline import analyse, run
    from napari_wbc.segment import SegmentParameters
    from napari_wbc.slide import Slide

    size, cells, mpp = SLIDES[path.stem]
    smear = make_slide.Smear(data, size, cells, mpp)
    hits = total = 0
    for piece, top in smear.fields_of():
        image = smear.region(top, piece.left, min(top + smear.pitch, smear.height), piece.left + piece.width)
        result = run(analyse(Slide.from_array(image), parameters=SegmentParameters(mpp=mpp)))
        inside = [t for t in smear.truth if top <= t["centroid-0"] < top + smear.pitch and not t["cut"]]
        inside = [t for t in inside if piece.left <= t["centroid-1"] < piece.left + piece.width]
        for cell in inside:
            place = np.array([cell["centroid-0"] - top, cell["centroid-1"] - piece.left])
            near = np.linalg.norm(result.cells.centroids - place, axis=1) * mpp < WITHIN_UM
            hits, total = hits + bool(near.any()), total + 1
    return hits / max(1, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "napari-wbc-slides")
    parser.add_argument("--rows", nargs="+", default=["tiles", "workers", "dask", "sparse", "dense", "size"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child")
    parser.add_argument("--slide", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tile", type=int, default=512)
    args = parser.parse_args()
    if args.child:
        found = batch(args.slide, args.workers) if args.child == "batch" else child(args.child, *args.slide, args.tile)
        print(json.dumps(found))
        return
    print(json.dumps({"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}))
    if "tiles" in args.rows:
        path = make("small", args.folder, args.data)
        found = {tile: measure("segment", path, tile, 1) for tile in (512, 1024, 2048)}
        for tile, one in found.items():
            told(f"small, tiles of {tile}", one)
        print("identical tables:", len({one["hash"] for one in found.values()}) == 1)
        print(f"the same fields one by one: recall {100 * fields_alone(path, args.data):.1f} %")
    if "workers" in args.rows:
        paths = [str(make("small", args.folder, args.data))]
        runs = [measured(["batch", "--workers", str(n), "--slide", *paths], 1) for n in (1, 2)]
        print("1 worker against 2 worker processes: identical tables:", len({one["hash"] for one in runs}) == 1)
    if "dask" in args.rows:
        paths = [str(path) for path in copies(make("small", args.folder, args.data))]
        one, two = (measured(["batch", "--workers", str(n), "--slide", *paths], args.repeats) for n in (1, 2))
        print(
            f"Dask local cluster, 2 workers against 1 on {N_BATCH} slides: {one['seconds'] / two['seconds']:.2f}× "
            f"({one['seconds']:.1f} s, {two['seconds']:.1f} s, {one['cells']:.0f} cells)",
            flush=True,
        )
    for name in ("sparse", "dense"):
        if name in args.rows:
            path = make(name, args.folder, args.data)
            told(f"{name}, open as a layer", measure("open", path, repeats=args.repeats))
            told(f"{name}, OpenSlide decodes the base level", measure("openslide", path, repeats=args.repeats))
            told(f"{name}, end to end", measure("classify", path, repeats=args.repeats))
    if "size" in args.rows:
        for name in ("0.1", "dense", "5"):
            told(f"{name}, end to end", measure("classify", make(name, args.folder, args.data), repeats=1))


if __name__ == "__main__":
    main()
