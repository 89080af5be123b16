"""Files that went wrong on the way or were made to harm, and what every reader owes to them.

A reader answers a damaged file with an error of this package that names the file and says what to do, within seconds,
within bounded memory, and without writing anything. `tests/test_hostile.py` tries some of it,
`benchmarks/reliability.py` far more.
"""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import slides
from PIL import Image

from napari_wbc.case import read_case
from napari_wbc.classifier import Classifier
from napari_wbc.coco import to_coco
from napari_wbc.dataset import read_dataset
from napari_wbc.decisions import read_log
from napari_wbc.evaluate import read_predictions
from napari_wbc.export import read_cells, read_results
from napari_wbc.protocol import load_protocol
from napari_wbc.recipe import load_recipe
from napari_wbc.reference import load_ranges
from napari_wbc.slide import Slide
from napari_wbc.split import read_split

HERE = Path(__file__).parent
SLOWEST_S = 20.0
MOST_BYTES = 1 << 30
_REMEDY = re.compile(
    r"; |\b(give|copy|export|use|save|write|update|move|take|install|choose|rename|must|needed|lacks|holds|"
    r"correct|train again|check|bring|is missing)\b"
)
_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|"[^"\n]{0,80}"|\b[A-Za-z_][A-Za-z_0-9-]*\b')
_POISON = (
    b"-1", b"0", b"1e999", b"-1e308", b"nan", b"NaN", b"inf", b"99999999999999999999", b"2147483648", b"1000000000",
    b"0.5", b"null", b"true", b"[]", b"{}", b'""', b'"../../../../tmp/evil"', b'"/etc/passwd"', b'"=cmd()"', b"\0",
    b"\xff\xfe", b",", b";", b"\n", b'"', b"[" * 2000, b'{"a":' * 2000, b"\xef\xbb\xbf", b"2024-02-30", b"<a>",
    b"1" * 400, "\u202e\u0301".encode(),
)  # fmt: skip


@dataclass(frozen=True)
class Door:
    """A way in: a file, and what reads it."""

    name: str
    make: Callable[[Path, Path], Path]
    """Takes an empty folder and a folder of real results, returns the file that is damaged."""
    read: Callable[[Path], object]
    """Takes that file."""
    slow: bool = False


@dataclass
class Report:
    """What became of damaged files."""

    tried: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")


def _picture(suffix: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, _: Path) -> Path:
        image = Image.open(HERE / "data/fields/BloodImage_00070.jpg").crop((0, 0, 160, 120))
        image.save(folder / f"x{suffix}", **({"compression": "tiff_lzw"} if suffix == ".tif" else {}))
        return folder / f"x{suffix}"

    return make


def _slide(name: str, part: str = "") -> Callable[[Path, Path], Path]:
    def make(folder: Path, _: Path) -> Path:
        path = slides.write(folder / name, slides.mosaic(1, 1)[:400, :500])
        return sorted(path.glob(part))[0] if part else path

    return make


def _look_at(path: Path) -> None:
    """All that is done with a picture or slide before a cell is sought."""
    while path.parent.suffix == ".zarr" or any(p.suffix == ".zarr" for p in path.parents):
        path = path.parent
    slide = Slide.open(path)
    slide.thumbnail(64)
    if not slide.is_whole or slide.shape[0] * slide.shape[1] < 1e6:
        _ = slide.image
    for name in slide.pixels.associated:
        slide.associated_image(name, personal=True)


def _result(name: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, results: Path) -> Path:
        shutil.copytree(results, folder / "r")
        return next((folder / "r").rglob(name))

    return make


def _alone(name: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, results: Path) -> Path:
        return Path(shutil.copy(next(results.rglob(name)), folder / name))

    return make


def _reviewed(folder: Path, results: Path) -> Path:
    from napari_wbc.review_session import ReviewSession

    shutil.copytree(results, folder / "r")
    place = next((folder / "r").rglob("cells.csv")).parent
    session = ReviewSession.open(place)
    labels = session.cells.table["label"].tolist()
    session.decide(labels[:2], "monocyte", "A. Reader")
    session.accept(labels[2:4], "A. Reader")
    session.remove(labels[4:5], "A. Reader")
    session.undo()
    session.close()
    return place / "decisions.jsonl"


def _open_results(path: Path) -> None:
    """What opening, reporting on and exporting a folder of results read."""
    case = read_case(path.parent.parent if path.parent.name != "r" else path.parent)
    for picture in case.pictures:
        _ = picture.rings, picture.name
    json.dumps(to_coco(case)[0], allow_nan=False)
    read_results(path.parent if path.parent.name != "r" else next(path.parent.rglob("cells.csv")).parent)


def _reopen_log(path: Path) -> None:
    read_log(path)
    read_results(path.parent)


def _card(folder: Path, _: Path) -> Path:
    return _small_model(folder / "m.json")


def _small_model(path: Path) -> Path:
    from napari_wbc.classifier import ModelCard, save_model
    from napari_wbc.crop import CropSize
    from napari_wbc.models import build

    card = ModelCard(
        name="m", network="custom_cnn", classes=("a", "b"), crop=CropSize(20.0, 64),
        preprocessing=({"step": "imagenet"},), head={"hidden": 0, "dropout": 0.2},
    )  # fmt: skip
    save_model(path, card, build("custom_cnn", 2).state_dict())
    return path


def _weights(folder: Path, _: Path) -> Path:
    return _small_model(folder / "m.json").with_suffix(".safetensors")


def _load_weights(path: Path) -> None:
    """The card says that these are its weights: what is behind the sum is read."""
    import hashlib

    card = path.with_suffix(".json")
    text = json.loads(card.read_text("utf-8"))
    text["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    card.write_text(json.dumps(text), "utf-8")
    Classifier.load(card, device="cpu")


def _recipe(folder: Path, _: Path) -> Path:
    from napari_wbc.recipe import recipes

    return Path(shutil.copy(recipes()["wbc8"], folder / "mine.toml"))


def _staged(folder: Path, _: Path) -> Path:
    from napari_wbc.recipe import recipes

    return Path(shutil.copy(recipes()["togatorop2023"], folder / "staged.toml"))


def _ranges(folder: Path, _: Path) -> Path:
    from napari_wbc.reference import SHIPPED

    return Path(shutil.copy(SHIPPED, folder / "ranges.toml"))


def _list(folder: Path, _: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(HERE / "data/fields/BloodImage_00070.jpg", folder / name)
    (folder / "list.csv").write_text(
        'slide,patient,group,"ward, floor"\na.jpg,P1,ill,"2, north"\nb.jpg,P2,well,3\n', "utf-8"
    )
    return folder / "list.csv"


def _read_list(path: Path) -> None:
    from napari_wbc.batch_list import list_slides

    list_slides([path])


def _predictions(folder: Path, _: Path) -> Path:
    rows = [f"{k}.jpg,{c},{c},0.8,True,val,{k},{p},{1 - p}" for k, (c, p) in enumerate([("a", 0.8), ("b", 0.2)] * 3)]
    path = folder / "predictions.csv"
    path.write_text("file,class,predicted,probability,right,split,unit,p_a,p_b\n" + "\n".join(rows) + "\n", "utf-8")
    return path


def _judge(path: Path) -> None:
    found = read_predictions(path.parent, "val")
    if len(found.table):
        found.values(), found.per_class(), found.confusion()


def _labelled(folder: Path, _: Path) -> Path:
    rows = []
    for k, file in enumerate(sorted((HERE / "data/crops").rglob("*.jpg"))[:6]):
        shutil.copy(file, folder / f"{k}.jpg")
        rows.append(f"{k}.jpg,{file.parent.name},P{k},train,0.145,1,2,60,70")
    (folder / "labels.csv").write_text("file,class,group,split,mpp,x0,y0,x1,y1\n" + "\n".join(rows) + "\n", "utf-8")
    return folder / "labels.csv"


def _boxes(folder: Path, _: Path) -> Path:
    for name in ("images", "annotations"):
        (folder / name).mkdir()
    rows = []
    for k in range(2):
        shutil.copy(HERE / "data/fields/BloodImage_00070.jpg", folder / f"images/{k}.jpg")
        box = "<xmin>10</xmin><ymin>20</ymin><xmax>90</xmax><ymax>99</ymax>"
        text = f"<annotation><object><name>WBC</name><bndbox>{box}</bndbox></object></annotation>\n"
        (folder / f"annotations/{k}.xml").write_text(text, "utf-8")
        rows.append(f"{k}.jpg,NEUTROPHIL")
    (folder / "labels.csv").write_text("image,types\n" + "\n".join(rows) + "\n", "utf-8")
    return folder / "annotations/0.xml"


def _split(folder: Path, results: Path) -> Path:
    _labelled(folder, results)
    rows = [f"{folder}/{k}.jpg,{'val' if k % 3 == 0 else 'train'}" for k in range(6)]
    (folder / "split.csv").write_text("file,split\n" + "\n".join(rows) + "\n", "utf-8")
    return folder / "split.csv"


def _open_in_napari(path: Path) -> None:
    """What napari does with a file that is dropped onto it."""
    from napari_wbc import _reader, _slide_reader

    for get in (_reader.get_reader, _slide_reader.get_reader):
        read = get(str(path))
        if read is not None:
            read(str(path))


DOORS = (
    *(Door(f"picture{s}", _picture(s), _look_at) for s in (".png", ".jpg", ".tif", ".bmp", ".webp")),
    *(Door(name, _slide(name), _look_at) for name in ("slide.tif", "slide.svs", "slide.ome.tif")),
    Door("new.ome.zarr, group", _slide("new.ome.zarr", "zarr.json"), _look_at),
    Door("new.ome.zarr, array", _slide("new.ome.zarr", "*/zarr.json"), _look_at),
    Door("old.ome.zarr, attributes", _slide("old.ome.zarr", ".zattrs"), _look_at),
    Door("old.ome.zarr, array", _slide("old.ome.zarr", "*/.zarray"), _look_at),
    *(Door(f"cells{s}", _alone(f"cells{s}"), read_cells) for s in (".csv", ".parquet", ".geojson")),
    *(Door(f"results, {name}", _result(name), _open_results) for name in ("cells.csv", "labels.tif", "run.json")),
    Door("decisions.jsonl", _reviewed, _reopen_log),
    Door("decisions.jsonl, exported", _reviewed, _open_results),
    Door("model card", _card, lambda path: Classifier.load(path, device="cpu")),
    Door("weights", _weights, _load_weights),
    Door("recipe", _recipe, load_recipe),
    Door("recipe of stages", _staged, load_protocol),
    Door("reference ranges", _ranges, load_ranges),
    Door("list of a batch", _list, _read_list),
    Door("predictions.csv", _predictions, _judge),
    Door("labels.csv of a data set", _labelled, lambda path: read_dataset(path.parent)),
    Door("boxes of a data set", _boxes, lambda path: read_dataset(path.parents[1])),
    Door("split.csv", _split, lambda path: read_split(path, read_dataset(path.parent / "labels.csv"))),
    *(Door(f"in napari, {name}", _result(name), _open_in_napari) for name in ("cells.csv", "labels.tif", "run.json")),
)


def truncations(data: bytes, parts: int = 50) -> Iterator[bytes]:
    """The file cut at every 1/50 of it, the empty one too."""
    for k in range(parts):
        yield data[: len(data) * k // parts]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The file with one to four things wrong."""
    if data[:1] == b"{" and chance.random() < 0.7 and (changed := _other_values(data, chance)):
        return changed
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(1, len(out)))
        kind = chance.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at : at + chance.randint(1, 200)]
        elif kind == 2:
            out[at:at] = chance.choice(_POISON)
        elif kind == 3:
            out[at:at] = out[at : at + chance.randint(1, 300)]
        elif kind == 4 and out:  # numbers in heads of binary formats
            out[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\1\0"))
        else:
            found = next(_TOKEN.finditer(out, at), None)
            if found:
                out[found.start() : found.end()] = chance.choice(_POISON)
    return bytes(out)


_VALUES = (
    None, True, -1, 0, 1e308, 10**25, 0.5, "", "x", "../../evil", "/etc/passwd", "\0", "=cmd()", "NaN", "\u202e", [],
    {}, [[]], [None], {"": None}, {"step": "scale"}, "neutrophil" * 1000, ["a", "a"], [1, 2, 3], 255, 2**31,
    "unidentified",
)  # fmt: skip


def _other_values(data: bytes, chance: random.Random) -> bytes:
    """JSON, or lines of it, with other values, without some, or with one more; empty if it is no JSON."""
    try:
        found = [json.loads(line) for line in ([data] if data.count(b"\n{") == 0 else data.splitlines())]
    except ValueError:
        return b""
    for _ in range(chance.randint(1, 3)):
        line = chance.randrange(len(found))
        holder, key = found, line
        while isinstance(holder[key], dict | list) and holder[key] and chance.random() < 0.85:
            holder = holder[key]
            key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
        if chance.random() < 0.2 and isinstance(holder, dict):
            del holder[key]
        elif chance.random() < 0.1 and isinstance(holder, dict):
            holder["surprise"] = copy.deepcopy(chance.choice(_VALUES))
        else:
            holder[key] = copy.deepcopy(chance.choice(_VALUES))
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in found).encode()


def fault_of(error: BaseException, path: Path) -> str:
    """Return what is wrong with an error that a reader raised; empty if it is as it should be."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    own = type(error).__module__.startswith("napari_wbc")
    # A plain ValueError or FileNotFoundError is documented of some readers; it must be ours, not of a library.
    if not own and not (type(error) in (ValueError, FileNotFoundError) and "napari_wbc" in Path(last.filename).parts):
        return f"{type(error).__name__} of {Path(last.filename).name}:{last.lineno}: {str(error)[:200]}"
    text = str(error)
    names = {path.name, *(p.name for p in path.parents[:3] if p.name), path.parent.as_posix()}
    if not any(name in text for name in names):
        return f"does not name the file: {text[:200]}"
    return "" if _REMEDY.search(text) else f"does not say what to do: {text[:200]}"


def listing(folder: Path) -> dict[str, int]:
    """All files below a folder with their sizes."""
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def memory() -> int:
    """Highest memory of this process until now, bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def attack(door: Door, folder: Path, results: Path, files: Callable[[bytes], Iterator[bytes]], report: Report) -> None:
    """Let a reader read damaged files, and note what it should not have done."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = door.make(folder, results)
    whole = path.read_bytes()
    door.read(path)  # the undamaged file is read
    for k, data in enumerate(files(whole)):
        path.write_bytes(data)
        before, highest, start = set(listing(folder.parent)), memory(), time.perf_counter()
        fault = ""
        try:
            door.read(path)
            report.tried["read"] += 1
        except Exception as error:  # noqa: BLE001
            fault = fault_of(error, path)
            report.tried["refused"] += 1
        seconds = time.perf_counter() - start
        report.slowest = max(report.slowest, (seconds, f"{door.name} {k}"))
        if seconds > SLOWEST_S:
            fault = fault or f"took {seconds:.0f} s"
        if memory() - highest > MOST_BYTES:
            fault = fault or f"took {(memory() - highest) >> 20} MB"
        if written := set(listing(folder.parent)) - before:
            fault = fault or f"wrote {sorted(written)[:3]}"
        if fault:
            report.faults.append(f"{door.name} {k}: {fault}")
            keep = folder.parent / f"fault-{len(report.faults)}-{path.name}"
            keep.write_bytes(data)


def one_by_one(door: Door, seed: int, n: int) -> Callable[[bytes], Iterator[bytes]]:
    """All truncations, then `n` damaged files, always the same for a seed."""

    def files(data: bytes) -> Iterator[bytes]:
        yield from truncations(data)
        chance = random.Random(f"{door.name} {seed}")
        for _ in range(n):
            yield damaged(data, chance)

    return files
