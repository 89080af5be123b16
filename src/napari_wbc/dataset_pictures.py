"""The pictures of labelled cells: looked at for faults and copies, and cut to what a network sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .crop import CropSize, crop_cells
from .dataset import COLUMNS, MOST_PIXELS, Dataset, DatasetError


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Parameters
    ----------
    dataset : Dataset
        The cells whose pictures can be read, without exact copies.
    sizes : pandas.DataFrame
        Width and height of pictures, and how many have them.
    hashes : (n, 8) uint64 array
        Perceptual hash of each cell's picture in its eight turned and mirrored views.
    thumbnails : (n, 32, 32) float32 array
        Grey, mean 0, norm 1.
    """

    dataset: Dataset
    sizes: pd.DataFrame
    hashes: npt.NDArray[np.uint64] = field(repr=False)
    thumbnails: npt.NDArray[np.float32] = field(repr=False)


def check(dataset: Dataset, progress: Callable[[int, int], None] | None = None) -> Check:
    """Open every picture: leave out what cannot be read and exact copies, and take perceptual hashes.

    Parameters
    ----------
    dataset : Dataset
        As read.
    progress : callable, optional
        Called with pictures done and to do.

    Returns
    -------
    Check

    Raises
    ------
    DatasetError
        If no picture can be used.
    """
    from concurrent.futures import ThreadPoolExecutor

    table = dataset.table
    rows, problems = [], list(dataset.problems)
    sizes, hashes, thumbnails = [], [], []
    first: dict[str, tuple[str, str]] = {}
    records = table.to_dict("records")
    with ThreadPoolExecutor() as pool:
        for k, (row, seen) in enumerate(zip(records, pool.map(_look, records), strict=True)):
            if progress is not None and (k % 64 == 0 or k + 1 == len(table)):
                progress(k + 1, len(table))
            if isinstance(seen, str):
                problems.append((row["file"], seen))
                continue
            digest, size, thumbnail, views = seen
            if digest in first:
                file, name = first[digest]
                where = "" if name == row["class"] else f", which is in class {name!r}: both are left out"
                problems.append((row["file"], f"the same picture as {file}{where}"))
                if where:
                    problems.append((file, f"the same picture as {row['file']} of class {row['class']!r}: left out"))
                    first[digest] = (file, "")
                continue
            first[digest] = (row["file"], row["class"])
            rows.append({**row, "digest": digest})
            sizes.append(size)
            hashes.append(views)
            thumbnails.append(thumbnail)
    keep = np.array([first[row["digest"]][1] != "" for row in rows], dtype=bool)
    result = pd.DataFrame(rows, columns=[*COLUMNS, "digest"])[keep].drop(columns="digest").reset_index(drop=True)
    size_table = pd.DataFrame(sizes, columns=["width", "height"])[keep].value_counts().rename("pictures").reset_index()
    return Check(
        replace(dataset, table=result, problems=tuple(problems)),
        size_table,
        np.array(hashes, np.uint64).reshape(-1, 8)[keep],
        np.array(thumbnails, np.float32).reshape(-1, 32, 32)[keep],
    )


def _state(file: str) -> tuple[int, int]:
    state = Path(file).stat()
    return state.st_size, state.st_mtime_ns


_Seen = tuple[str, tuple[int, int], npt.NDArray[np.float32], list[int]]


def _look(row: Mapping[str, Any]) -> _Seen | str:
    """Digest, size, thumbnail and hashes of a cell's picture, or what is wrong with it."""
    from PIL import Image

    from .slide import ImageError, Slide

    try:
        data = Path(row["file"]).read_bytes()
        if not data:
            return "the file is empty"
        image = Slide.open(row["file"], max_megapixels=MOST_PIXELS / 1e6).image
    except ImageError as error:
        return str(error).removeprefix(f"{row['file']}: ")
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        return f"cannot be read: {type(error).__name__}: {error}"
    size = (image.shape[1], image.shape[0])
    where = ""
    if np.isfinite(row["x0"]):
        y0, x0, y1, x1 = (max(0, int(row[k])) for k in ("y0", "x0", "y1", "x1"))
        image, where = image[y0:y1, x0:x1], f"{y0},{x0},{y1},{x1}"
    if min(image.shape[:2]) < 8:
        return f"{image.shape[1]} × {image.shape[0]} pixels show no cell"
    digest = hashlib.sha256(data + where.encode()).hexdigest()
    grey = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BOX)
    thumbnail = np.asarray(grey, np.float32)
    thumbnail = thumbnail - thumbnail.mean()
    thumbnail /= max(float(np.linalg.norm(thumbnail)), 1e-6)
    return digest, size, thumbnail, [_perceptual_hash(view) for view in views(thumbnail)]


def views(picture: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The eight turned and mirrored views of a square picture."""
    turned = [np.rot90(picture, k) for k in range(4)]
    return turned + [view[:, ::-1] for view in turned]


def _perceptual_hash(thumbnail: npt.NDArray[np.float32]) -> int:
    """Signs of the 8 × 8 lowest frequencies about their median (pHash: Zauner, 2010)."""
    from scipy.fft import dctn

    low = dctn(thumbnail, norm="ortho")[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def cut_cells(
    dataset: Dataset,
    size: CropSize,
    file: Path | None = None,
    *,
    stored: CropSize | None = None,
    mpp: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Crops of all cells.

    Parameters
    ----------
    dataset : Dataset
        Checked cells.
    size : CropSize
        What each crop shows. By scale, the scale is `mpp`, or the cell's own in the table, or measured from the red
        cells; where there are none, a picture of a single cell is taken to show what the crop shows.
    file : pathlib.Path, optional
        Where the array is kept (a .npy file that is mapped into memory) and taken from the next time.
    stored : CropSize, optional
        What the crops really show, at the scale that `size` gives: more around it, so that training can turn them.
    mpp : float, optional
        Micrometres per pixel of all pictures.
    progress : callable, optional
        Called with cells done and to do.

    Returns
    -------
    (n, S, S, 3) uint8 array
        S pixels as in `stored`.
    """
    from concurrent.futures import ThreadPoolExecutor

    stored = stored or size
    key = hashlib.sha256(
        repr(
            (size, stored, mpp, dataset.table[[*COLUMNS]].to_csv(), [_state(f) for f in dataset.table["file"]])
        ).encode()
    ).hexdigest()
    shape = (len(dataset), stored.pixels, stored.pixels, 3)
    if file is not None:
        stamp = file.with_suffix(".sha256")
        if file.is_file() and stamp.is_file() and stamp.read_text() == key:
            return np.asarray(np.load(file, mmap_mode="r"))
        stamp.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        crops = np.asarray(np.lib.format.open_memmap(file, "w+", np.uint8, shape))
    else:
        crops = np.empty(shape, np.uint8)
    records = dataset.table.to_dict("records")
    with ThreadPoolExecutor() as pool:
        for k, crop in enumerate(pool.map(lambda row: _cut(row, size, stored, mpp), records)):
            crops[k] = crop
            if progress is not None and (k % 64 == 0 or k + 1 == len(records)):
                progress(k + 1, len(records))
    if file is not None:
        if isinstance(crops.base, np.memmap):
            crops.base.flush()
        stamp.write_text(key)
    return crops


def _mask(file: str, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where the cell of a mask picture lies."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            inside = np.asarray(picture.convert("L")) > 0
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{file}: the mask cannot be read ({error}); repair it or leave its cell out") from error
    if inside.shape != shape:
        raise DatasetError(f"{file}: the mask is {inside.shape}, its picture {shape}; they must be equal")
    return inside


def _cut(row: Mapping[str, Any], size: CropSize, stored: CropSize, mpp: float | None) -> npt.NDArray[np.uint8]:
    from .single import find_scale
    from .slide import Slide

    image = Slide.open(row["file"], max_megapixels=MOST_PIXELS / 1e6).image
    h, w = image.shape[:2]
    top, left, bottom, right = 0.0, 0.0, float(h), float(w)
    if row["mask"] and size.cells >= 0:
        inside = _mask(row["mask"], (h, w))
        if inside.any():
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    elif np.isfinite(row["x0"]) and size.cells >= 0:
        top, left, bottom, right = (float(row[k]) for k in ("y0", "x0", "y1", "x1"))
    alone = (top, left, bottom, right) == (0.0, 0.0, float(h), float(w))
    middle = np.array([[(top + bottom - 1) / 2, (left + right - 1) / 2]])
    side = max(bottom - top, right - left)
    if size.cells:
        # A picture that shows one cell and nothing else is the crop.
        scale = size.side_um / (side if alone else size.cells * side)
    else:
        known = mpp or (float(row["mpp"]) if np.isfinite(row["mpp"]) else None)
        scale = find_scale(Path(row["file"]), image, size.side_um, known)[0]
    return np.asarray(crop_cells(image, middle, scale, stored)[0])
