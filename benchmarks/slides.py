"""Print what whole slides cost and how many of their cells are found, in one run.

    python benchmarks/slides.py --data DATA [--folder FOLDER] [--rows tiles workers agreement …] [--tiatoolbox PYTHON]

Slides are made by `make_slide.py` into the folder and kept there. Times are medians of three runs in processes of their
own, with the time of all processors together, which a busy machine changes less; memory is the peak above what the
imports take. With the Python of an environment that has TIAToolbox, the rows `sparse` and `dense` compare with its
PatchPredictor (`tiatoolbox_tiles.py`) on a share of the tiles, taken to all by count.
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
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import torch

    from napari_wbc.classifier import Classifier
    from napari_wbc.slide import Slide

SPARSE_MPP, DENSE_MPP = 0.0725, 0.25
SLIDES = {  # size, fields with white cells, µm per pixel
    "sparse": ((32768, 24576), 280, SPARSE_MPP),
    "dense": ((32768, 24576), 4500, DENSE_MPP),
    "small": ((8192, 8192), 250, DENSE_MPP),
    "0.1": ((12288, 8192), 550, DENSE_MPP),
    "5": ((81920, 61440), 27500, DENSE_MPP),
}
ROWS = ("tiles", "workers", "agreement", "network", "dask", "sparse", "dense", "size")
N_BATCH = 8
PBC_MPP = 0.145
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
    start, busy = time.perf_counter(), time.process_time()
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
    elif task == "unavoidable":
        found = unavoidable(Slide.open(path), path)
    else:
        spent = watched(classifier) if classifier else [0.0, 0.0]
        result = run(analyse(Slide.open(path), classifier, tile=tile))
        truth = pd.read_csv(path.with_name(path.name + ".truth.csv"))
        found = score(result.cells.centroids, truth, SLIDES[path.stem][2])
        found["hash"] = int(pd.util.hash_pandas_object(result.cells.table).sum() % 2**31)
        found["judged"], found["judging"] = spent
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "busy": time.process_time() - busy, "megabytes": (after - before) / 1024, **found}


def watched(classifier: Classifier) -> list[float]:
    """Count the views that are judged from now on, and the seconds that it takes."""
    spent, judge = [0.0, 0.0], classifier.judge

    def timed(crops: np.ndarray, **options: Any) -> Any:
        start = time.perf_counter()
        result = judge(crops, **options)
        spent[0] += len(crops) * len(classifier.card.ways)
        spent[1] += time.perf_counter() - start
        return result

    classifier.judge = timed  # type: ignore[method-assign]
    return spent


def unavoidable(slide: Slide, path: Path) -> dict[str, float]:
    """Seconds of what nobody gets around: the coarse level, the tiles that hold a crop, the bare forward pass."""
    from concurrent.futures import ThreadPoolExecutor

    from napari_wbc.classifier import Classifier
    from napari_wbc.coarse import View

    classifier = Classifier.load(device="cpu")
    truth = pd.read_csv(path.with_name(path.name + ".truth.csv"))
    parts = bare_parts(classifier, classifier.card.crop.pixels, 64)
    forward = engine_of(classifier)
    forward(parts)
    with ThreadPoolExecutor(2) as pool:
        start = time.perf_counter()
        view = View.of(slide, SLIDES[path.stem][2])
        rows, columns = view.shape
        blocks = [(y, x) for y in range(0, rows, 512) for x in range(0, columns, 512)]
        list(pool.map(lambda p: view.read(*p, min(p[0] + 512, rows), min(p[1] + 512, columns)).size, blocks))
        coarse = time.perf_counter() - start
        start = time.perf_counter()
        half, tile = classifier.card.crop.side_um / SLIDES[path.stem][2] / 2, slide.pixels.tile
        held = set()
        for y, x in truth[["centroid-0", "centroid-1"]].to_numpy():
            ys, xs = (range(int(max(0, v - half)) // tile, int(v + half) // tile + 1) for v in (y, x))
            held |= {
                (r * tile, c * tile) for r in ys for c in xs if r * tile < slide.shape[0] and c * tile < slide.shape[1]
            }
        list(pool.map(lambda p: slide.read((*p, p[0] + tile, p[1] + tile)).size, sorted(held)))
        tiles = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(len(truth) // 64):
        forward(parts)
    network = (time.perf_counter() - start) * len(truth) / (len(truth) // 64 * 64)
    return {
        "coarse": coarse,
        "tiles": tiles,
        "network": network,
        "views": len(truth) * len(classifier.card.ways) / network,
    }


def bare_parts(classifier: Classifier, side: int, crops: int) -> list[torch.Tensor]:
    """Noise for the network, in parts as `predict` makes them: of so many crops all views."""
    import torch

    from napari_wbc.classifier import CPU_PIXELS

    views, at_once = crops * len(classifier.card.ways), max(1, CPU_PIXELS // side**2)
    return list(torch.rand(views, 3, side, side, generator=torch.Generator().manual_seed(0)).split(at_once))


def engine_of(classifier: Classifier) -> Callable[[list[torch.Tensor]], Any]:
    """The bare network as `predict` uses it, without what comes before and after."""
    import torch

    if fast := classifier._accelerated:  # noqa: SLF001
        return lambda parts: list(fast(parts))

    def forward(parts: list[torch.Tensor]) -> None:
        with torch.inference_mode():
            for part in parts:
                classifier.network(part.contiguous(memory_format=torch.channels_last))

    return forward


def network() -> dict[str, float]:
    """Crops of 224 px a second, in batches of 32: torch as it comes, and the engine of `predict`."""
    import torch

    from napari_wbc.classifier import Classifier
    from napari_wbc.models import build, find_model

    classifier = Classifier.load(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        # The shipped network with crops of 224 px.
        card = replace(classifier.card, name="large", crop=replace(classifier.card.crop, pixels=224), views=())
        weights = find_model(None).with_suffix(".safetensors")
        Path(folder, "large.json").write_text(card.to_json())
        Path(folder, "large.safetensors").write_bytes(weights.read_bytes())
        large = Classifier.load(Path(folder, "large.json"), device="cpu")
        eager = build(card.network, len(card.classes), **{**card.head, "folded": False}).eval()
        crops = torch.rand(32, 3, 224, 224)
        parts, forward = bare_parts(large, 224, 32), engine_of(large)

        def as_it_comes() -> None:
            with torch.inference_mode():
                eager(crops)

        rates = []
        for work in (as_it_comes, lambda: forward(parts)):
            work()
            seconds = []
            for _ in range(7):
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
            rates.append(32 / statistics.median(seconds))
    return {"eager": rates[0], "engine": rates[1]}


def agreement(data: Path) -> dict[str, float]:
    """Share of pbc/val whose class is the same on the accelerator and on torch."""
    from PIL import Image

    from napari_wbc.accelerator import SWITCH
    from napari_wbc.classifier import Classifier
    from napari_wbc.crop import crop_cells

    os.environ[SWITCH] = "0"
    slow = Classifier.load(device="cpu")
    os.environ[SWITCH] = "1"
    fast = Classifier.load(device="cpu")
    crops = []
    for row in pd.read_csv(data / "pbc/labels.csv").query("split == 'val'").itertuples():
        image = np.asarray(Image.open(data / f"pbc/val/{row[2]}/{Path(str(row.file)).name}").convert("RGB"))
        crops.append(crop_cells(image, (np.array([image.shape[:2]]) - 1) / 2, PBC_MPP, slow.card.crop)[0])
    (a, unlike), (b, unlike_fast) = (one.judge(np.stack(crops)) for one in (slow, fast))
    same = a.argmax(1) == b.argmax(1)
    named = [
        (p.max(1) >= slow.card.threshold) & (u <= slow.card.unlike_above) for p, u in ((a, unlike), (b, unlike_fast))
    ]
    return {
        "crops": len(crops), "same": float(same.mean()), "decided": float((same & (named[0] == named[1])).mean()),
        "apart": float(np.abs(a - b).max()), "accelerated": float(fast.engine != "torch"),
    }  # fmt: skip


def tiatoolbox(python: Path, path: Path, share: float, tuned: bool) -> dict[str, float]:
    """Seconds of TIAToolbox for all tiles of a slide, from a share of them."""
    from napari_wbc.models import find_model

    malloc = {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "MALLOC_TOP_PAD_": str(1 << 26),
    }
    command = [str(python), str(Path(__file__).with_name("tiatoolbox_tiles.py")), str(path)]
    command += [str(find_model(None).with_suffix(".safetensors")), "--share", str(share)]
    environment = os.environ | (malloc if tuned else {})
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found = json.loads(out.splitlines()[-1])
    return {
        **{k: found[k] * found["of"] / found["tiles"] for k in ("seconds", "busy")},
        **{k: found[k] for k in ("tiles", "of", "tiatoolbox")},
    }


def batch(paths: list[Path], workers: int, threads: int) -> dict[str, float]:
    """Do slides on so many workers of so many threads that have started; how long it took and what the tables are."""
    from distributed import LocalCluster

    from napari_wbc.batch import Batch
    from napari_wbc.batch_cluster import Cluster
    from napari_wbc.batch_folder import BatchFolder, Terms
    from napari_wbc.batch_list import list_slides
    from napari_wbc.classifier import Classifier
    from napari_wbc.record import Settings

    terms = Terms(Settings(), Classifier.load(device="cpu").card, "cpu")
    env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with (
        tempfile.TemporaryDirectory() as out,
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, env=env) as local,
        Cluster.started(terms, None, scheduler=local.scheduler_address) as cluster,
    ):
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
    text = f"{name}: {found['seconds']:.2f} s ({found['busy']:.1f} s of processors), {found['megabytes']:.0f} MB above the imports"
    if "recall" in found:
        text += f", {found['cells']:.0f} cells, recall {100 * found['recall']:.1f} % of {found['truth']:.0f}"
    print(text, flush=True)


def speed(name: str, args: argparse.Namespace) -> None:
    """Print what a slide costs, and what the same costs others."""
    path = make(name, args.folder, args.data)
    told(f"{name}, open as a layer", measure("open", path, repeats=args.repeats))
    openslide = measure("openslide", path, repeats=args.repeats)
    told(f"{name}, OpenSlide decodes the base level", openslide)
    parts = measure("unavoidable", path, repeats=args.repeats)
    total = parts["coarse"] + parts["tiles"] + parts["network"]
    print(
        f"{name}, unavoidable: coarse read {parts['coarse']:.2f} s, tiles that hold a crop {parts['tiles']:.2f} s, bare "
        f"forward pass {parts['network']:.2f} s ({parts['views']:.0f} views/s)", flush=True,
    )  # fmt: skip
    ours = measure("classify", path, repeats=args.repeats)
    told(f"{name}, end to end", ours)
    views = ours["judged"] / ours["judging"]
    print(
        f"{name}: {ours['seconds'] / openslide['seconds']:.2f}× OpenSlide's base level "
        f"({ours['busy'] / openslide['busy']:.2f}× its time of processors), {ours['seconds'] / total:.2f}× the "
        f"unavoidable parts; inside the pipeline {views:.0f} views/s, {views / parts['views']:.0%} of the bare network",
        flush=True,
    )
    for tuned in (False, True) if args.tiatoolbox else ():
        other = tiatoolbox(args.tiatoolbox, path, args.share, tuned)
        print(
            f"{name}, TIAToolbox {other['tiatoolbox']} with its allocator {'tuned' if tuned else 'as it comes'}: "
            f"{other['seconds']:.0f} s for {other['of']} tiles (from {other['tiles']} of them), "
            f"{other['seconds'] / ours['seconds']:.1f}× ours ({other['busy'] / ours['busy']:.1f}× its time of processors)",
            flush=True,
        )  # fmt: skip


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
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--tiatoolbox", type=Path, metavar="PYTHON", help="of an environment that has TIAToolbox")
    parser.add_argument("--share", type=float, default=0.05, help="of the tiles that TIAToolbox does")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child")
    parser.add_argument("--slide", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tile", type=int, default=512)
    args = parser.parse_args()
    if args.child:
        if args.child == "batch":
            found = batch(args.slide, args.workers, args.threads)
        elif args.child == "network":
            found = network()
        elif args.child == "agreement":
            found = agreement(args.data)
        else:
            found = child(args.child, *args.slide, args.tile)
        print(json.dumps(found))
        return
    names = ("torch", "openvino", "tifffile", "imagecodecs", "openslide-python", "distributed", "numpy", "scipy")
    versions = {name: version(name) for name in names if find_spec(name.split("-")[0])}
    print(json.dumps({"python": platform.python_version(), "cores": os.cpu_count(), **versions}), flush=True)
    if "network" in args.rows:
        one = measured(["network"], args.repeats)
        print(
            f"bare network, 224 px, batch 32: {one['engine']:.0f} crops/s, {one['engine'] / one['eager']:.1f}× torch eager "
            f"as it comes ({one['eager']:.0f})", flush=True,
        )  # fmt: skip
    if "agreement" in args.rows:
        one = measured(["agreement", "--data", str(args.data)], 1)
        print(
            f"accelerator {'on' if one['accelerated'] else 'OFF'}: the same class as torch for {one['same']:.2%} of "
            f"{one['crops']:.0f} cells of pbc/val, the same with thresholds for {one['decided']:.2%}; probabilities differ by "
            f"{one['apart']:.1e} at most", flush=True,
        )  # fmt: skip
    if "tiles" in args.rows:
        path = make("small", args.folder, args.data)
        found = {tile: measure("segment", path, tile, 1) for tile in (512, 1024, 2048)}
        for tile, one in found.items():
            told(f"small, tiles of {tile}", one)
        print("identical tables:", len({one["hash"] for one in found.values()}) == 1)
        print(f"the same fields one by one: recall {100 * fields_alone(path, args.data):.1f} %")
    if "workers" in args.rows:
        paths = [str(make("small", args.folder, args.data))]
        kinds = ((1, 1), (2, 1), (1, 2))
        runs = [measured(["batch", "--workers", str(n), "--threads", str(t), "--slide", *paths], 1) for n, t in kinds]
        print("1 worker against 2 worker processes: identical tables:", len({one["hash"] for one in runs}) == 1)
    if "dask" in args.rows:
        paths = [str(path) for path in copies(make("small", args.folder, args.data))]
        one, two, both = (
            measured(["batch", "--workers", str(n), "--threads", str(threads), "--slide", *paths], repeats)
            for n, threads, repeats in ((1, 1, args.repeats), (2, 1, args.repeats), (1, 2, 1))
        )
        print(
            f"Dask local cluster, 2 workers against 1 of the same kind (one thread) on {N_BATCH} slides: "
            f"{one['seconds'] / two['seconds']:.2f}× ({one['seconds']:.1f} s, {two['seconds']:.1f} s, {one['cells']:.0f} "
            f"cells); 1 worker with two threads takes {both['seconds']:.1f} s; "
            f"identical tables: {one['hash'] == two['hash'] == both['hash']}", flush=True,
        )  # fmt: skip
    for name in ("sparse", "dense"):
        if name in args.rows:
            speed(name, args)
    if "size" in args.rows:
        for name in ("0.1", "dense", "5"):
            told(f"{name}, end to end", measure("classify", make(name, args.folder, args.data), repeats=1))


if __name__ == "__main__":
    main()
