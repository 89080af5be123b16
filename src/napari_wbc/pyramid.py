"""Where the pixels of a slide are: levels of a TIFF, of OpenSlide's formats, of an OME-Zarr, or of arrays.

All of them read any part of any level, from any thread, and decode no more than that part.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]
PLAUSIBLE_MPP = (0.01, 5.0)
"""Outside these no light microscope works; a file that claims so is not believed."""

PERSONAL = ("label", "macro")
"""Associated images that may show the patient's name: the label, and the macro image with the label on it."""

_PERSONAL_PROPERTY = re.compile(
    r"(?i)patient|barcode|name|title|user|label|accession|comment|description|slide.?id|date"
)
_FACTOR, _BLOCK, _COARSEST = 4, 512, 2048
_CACHE_BYTES = 96 << 20


class ImageError(ValueError):
    """A picture cannot be used; the message names it and says what to do."""


class Pixels(Protocol):
    """Levels of pixels.

    Attributes
    ----------
    shapes : rows and columns of each level, finest first
    tile : side of the squares that are cheapest to read, pixels
    mpp : what the file says of µm per pixel, as it says it; None if it says nothing
    properties : what else the scanner wrote, without what may name a patient
    associated : names of the images beside the slide, in lower case
    """

    shapes: tuple[tuple[int, int], ...]
    tile: int
    mpp: float | None
    properties: Mapping[str, str]
    associated: tuple[str, ...]

    def read(self, level: int, top: int, left: int, bottom: int, right: int) -> RGB:
        """Return a part that lies inside the level."""

    def associated_image(self, name: str) -> RGB:
        """Return an image beside the slide."""

    def check_unchanged(self) -> None:
        """Raise ImageError if the file is no longer the one that was opened."""


class Blocks:
    """Decoded squares that were used last; threads may share it."""

    def __init__(self, most_bytes: int = _CACHE_BYTES) -> None:
        self._most, self._bytes, self._lock = most_bytes, 0, threading.Lock()
        self._found: OrderedDict[Hashable, RGB] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], RGB]) -> RGB:
        """Return the square of this key, made if it is not here."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        block = make()
        with self._lock:
            if key not in self._found:
                self._found[key] = block
                self._bytes += block.nbytes
            while self._bytes > self._most and len(self._found) > 1:
                self._bytes -= self._found.popitem(last=False)[1].nbytes
        return block


def plausible_mpp(mpp: float | None) -> tuple[float | None, tuple[str, ...]]:
    """Return the µm per pixel that a file claims if a microscope may have them, else None and why."""
    if mpp is None:
        return None, ()
    if math.isfinite(mpp) and PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        return mpp, ()
    return None, (f"the file claims {mpp:g} µm per pixel, which no microscope has: taken as unknown",)


def harmless(properties: Mapping[Any, Any]) -> dict[str, str]:
    """Return what a scanner wrote without what may name a patient."""
    return {str(k): str(v)[:200] for k, v in properties.items() if not _PERSONAL_PROPERTY.search(str(k))}


def agreeing(shapes: Sequence[tuple[int, int]]) -> int:
    """Return how many levels, from the finest on, show the same picture by their sizes."""
    for k in range(1, len(shapes)):
        (rows, columns), (height, width) = shapes[0], shapes[k]
        factor = max(rows / height, columns / width)
        near = abs(rows - height * factor) < 2 * factor + 0.02 * rows and abs(columns - width * factor) < 2 * factor + (
            0.02 * columns
        )
        if not near or height >= shapes[k - 1][0] or width >= shapes[k - 1][1]:
            return k
    return len(shapes)


def averaged(image: RGB, factor: int) -> RGB:
    """Reduce by a whole factor, each pixel the rounded mean of a square; the edge is repeated."""
    rows, columns = (-(-n // factor) * factor for n in image.shape[:2])
    if image.shape[:2] != (rows, columns):
        image = np.pad(image, ((0, rows - image.shape[0]), (0, columns - image.shape[1]), (0, 0)), mode="edge")
    total = np.zeros((rows // factor, columns // factor, 3), np.uint16 if factor <= 16 else np.uint32)
    for dy in range(factor):
        for dx in range(factor):
            total += image[dy::factor, dx::factor]
    return np.asarray((total + factor * factor // 2) // (factor * factor), np.uint8)


@dataclass
class _Bare:
    """What levels have that are in no file."""

    shapes: tuple[tuple[int, int], ...]
    tile: int = _BLOCK
    mpp: float | None = None
    properties: Mapping[str, str] = None  # type: ignore[assignment]
    associated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.properties = self.properties or {}

    def associated_image(self, name: str) -> RGB:
        """Return an image beside the slide; there is none."""
        raise ImageError(f"there is no image {name!r} beside the slide")

    def check_unchanged(self) -> None:
        """Do nothing: there is no file."""


class ArrayPixels(_Bare):
    """A field in memory."""

    def __init__(self, image: RGB) -> None:
        super().__init__((image.shape[:2],))
        self.image = image

    def read(self, level: int, top: int, left: int, bottom: int, right: int) -> RGB:
        """Return a part of the field."""
        del level
        return self.image[top:bottom, left:right]


class ArrayLevels(_Bare):
    """Levels that are arrays of some library, (H, W, 3) or (H, W, 4) uint8, or (3, H, W) with ``channel`` 0."""

    def __init__(self, arrays: Sequence[Any], channel: int = 2) -> None:
        for array in arrays:
            if array.ndim != 3 or array.shape[channel] not in (3, 4) or array.dtype != np.uint8:
                raise ImageError(
                    f"a level of shape {tuple(array.shape)} and type {array.dtype}; 8-bit RGB levels are needed"
                )
        rows = 1 if channel == 0 else 0
        super().__init__(tuple((int(a.shape[rows]), int(a.shape[rows + 1])) for a in arrays))
        self._arrays, self._channel = list(arrays), channel
        chunks = getattr(arrays[0], "chunks", None)
        side = chunks[rows] if chunks else _BLOCK
        self.tile = int(min(max(side if isinstance(side, int) else side[0], 128), 2048))

    def read(self, level: int, top: int, left: int, bottom: int, right: int) -> RGB:
        """Return a part of a level."""
        window = (slice(top, bottom), slice(left, right))
        array = self._arrays[level]
        try:
            if self._channel == 0:
                return np.ascontiguousarray(np.moveaxis(np.asarray(array[(slice(0, 3), *window)]), 0, -1))
            return np.ascontiguousarray(np.asarray(array[window])[..., :3])
        except MemoryError:
            raise
        # zarr, and whatever library the arrays are of, raise what broken chunks make them raise.
        except Exception as error:
            raise ImageError(f"a part of level {level} is damaged ({error}); copy or export the slide again") from error


class _File(_Bare):
    """A file that must not change while it is read."""

    def __init__(self, path: Path, shapes: tuple[tuple[int, int], ...], tile: int) -> None:
        super().__init__(shapes, tile)
        self.path = path
        self._identity = _identity(path.stat())

    def check_unchanged(self) -> None:
        """Raise ImageError if the file was deleted, replaced or written to."""
        try:
            same = _identity(self.path.stat()) == self._identity
        except OSError as error:
            raise ImageError("the file was deleted or moved while it was read; put it back and run again") from error
        if not same:
            raise ImageError("the file was replaced or written to while it was read; run again when it is complete")


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class TiffPixels(_File):
    """Levels of a TIFF, its tiles or strips decoded by tifffile and imagecodecs.

    Parameters
    ----------
    path : pathlib.Path
    pages : the pages of tifffile that hold the levels, finest first
    images : pages of the images beside the slide, by name
    """

    def __init__(self, path: Path, pages: Sequence[Any], images: Mapping[str, Any]) -> None:
        super().__init__(path, tuple((p.imagelength, p.imagewidth) for p in pages), int(pages[0].chunks[0]))
        self._pages, self._images = list(pages), dict(images)
        self.associated = tuple(images)
        self._local, self._blocks = threading.local(), Blocks()
        for page in [*pages, *images.values()]:
            ends = np.asarray(page.dataoffsets, np.int64) + np.asarray(page.databytecounts, np.int64)
            if len(ends) and ends.max() > path.stat().st_size:
                raise ImageError("the file is cut short: pixels that it lists lie behind its end; copy it again")
            _ = page.decode  # made once, before threads share it

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1), "tiles")

    def read(self, level: int, top: int, left: int, bottom: int, right: int) -> RGB:
        """Return a part of a level; its tiles are decoded in threads."""
        out = np.empty((bottom - top, right - left, 3), np.uint8)
        rows, columns = self._pages[level].chunks[:2]
        places = [
            (r, c) for r in range(top // rows, -(-bottom // rows)) for c in range(left // columns, -(-right // columns))
        ]

        def paste(place: tuple[int, int]) -> None:
            y, x = place[0] * rows, place[1] * columns
            block = self._blocks.get((level, *place), lambda: self._decoded(level, place))
            first, last = (max(top, y), max(left, x)), (min(bottom, y + rows), min(right, x + columns))
            part = block[first[0] - y : last[0] - y, first[1] - x : last[1] - x]
            out[first[0] - top : last[0] - top, first[1] - left : last[1] - left] = part

        for _ in map(paste, places) if len(places) < 4 else self._pool.map(paste, places):
            pass
        return out

    def _decoded(self, level: int, place: tuple[int, int]) -> RGB:
        page = self._pages[level]
        rows, columns = page.chunks[:2]
        index = place[0] * -(-page.imagewidth // columns) + place[1]
        file = self._handle()
        try:
            size = page.databytecounts[index]
            if size == 0:  # scanners leave empty glass out
                return np.full((rows, columns, 3), 255, np.uint8)
            file.seek(page.dataoffsets[index])
            segment = page.decode(file.read(size), index, jpegtables=page.jpegtables, _fullsize=True)[0]
        # Decoders raise whatever a damaged tile makes them raise.
        except Exception as error:
            raise ImageError(
                f"tile {place[1]}, {place[0]} of level {level} is damaged ({error}); copy or export the slide again"
            ) from error
        return np.asarray(segment.reshape(-1, *segment.shape[-2:])[:rows, :, :3], np.uint8)

    def _handle(self) -> BinaryIO:
        """A handle of this thread: threads that share one move it under each other."""
        if not hasattr(self._local, "file"):
            self._local.file = self.path.open("rb")
            if _identity(os.fstat(self._local.file.fileno())) != self._identity:
                raise ImageError("the file was replaced or written to while it was read; run again")
        file: BinaryIO = self._local.file
        return file

    def associated_image(self, name: str) -> RGB:
        """Return an image beside the slide."""
        if name not in self._images:
            return super().associated_image(name)
        page = self._images[name]
        image = TiffPixels(self.path, [page], {})
        try:
            return image.read(0, 0, 0, page.imagelength, page.imagewidth)
        finally:
            image._handle().close()


class OpenSlidePixels(_File):
    """Levels of a slide that OpenSlide reads."""

    def __init__(self, path: Path, slide: Any) -> None:
        super().__init__(path, tuple((h, w) for w, h in slide.level_dimensions), 512)
        self._slide, found = slide, slide.properties
        self.tile = int(found.get("openslide.level[0].tile-width", 512))
        self.mpp = mean_mpp(found.get("openslide.mpp-x"), found.get("openslide.mpp-y"))
        self.properties = harmless(found)
        self.associated = tuple(name.lower() for name in slide.associated_images)
        self._paper = tuple(bytes.fromhex(found.get("openslide.background-color", "FFFFFF")))

    def read(self, level: int, top: int, left: int, bottom: int, right: int) -> RGB:
        """Return a part of a level."""
        factor = self._slide.level_downsamples[level]
        place = (round(left * factor), round(top * factor))
        try:
            return _on_paper(self._slide.read_region(place, level, (right - left, bottom - top)), self._paper)
        # OpenSlide raises its own errors, and Pillow's.
        except Exception as error:
            raise ImageError(f"OpenSlide cannot read a part of it ({error}); copy or export the slide again") from error

    def associated_image(self, name: str) -> RGB:
        """Return an image beside the slide."""
        for key, image in self._slide.associated_images.items():
            if key.lower() == name:
                return _on_paper(image, self._paper)
        return super().associated_image(name)


def _on_paper(image: Any, paper: tuple[int, ...]) -> RGB:
    """Lay an RGBA picture of Pillow over a colour."""
    from PIL import Image

    if image.getextrema()[3][0] == 255:
        return np.asarray(image)[..., :3]
    under = Image.new("RGBA", image.size, (*paper, 255))
    return np.asarray(Image.alpha_composite(under, image))[..., :3]


def mean_mpp(x: Any, y: Any) -> float | None:
    """Return µm per pixel from two values of a file; NaN where they contradict each other, None without any."""
    if x is None or y is None:
        return None
    try:
        across, down = float(x), float(y)
    except ValueError:
        return math.nan
    agree = math.isfinite(across + down) and abs(across - down) <= 0.05 * max(abs(across), abs(down))
    return (across + down) / 2 if agree else across if not math.isfinite(across) else math.nan


class WithCoarser:
    """Levels of a file, and made from them what a view of the whole needs: levels down to 2,048 pixels.

    The parts of made levels that were used last are kept.
    """

    def __init__(self, pixels: Pixels) -> None:
        self._pixels, self._n, self._blocks = pixels, len(pixels.shapes), Blocks()
        shapes = list(pixels.shapes)
        while max(shapes[-1]) > _COARSEST:
            shapes.append((-(-shapes[-1][0] // _FACTOR), -(-shapes[-1][1] // _FACTOR)))
        self.shapes, self.tile, self.mpp = tuple(shapes), pixels.tile, pixels.mpp
        self.properties, self.associated = pixels.properties, pixels.associated
        self.associated_image, self.check_unchanged = pixels.associated_image, pixels.check_unchanged

    def read(self, level: int, top: int, left: int, bottom: int, right: int) -> RGB:
        """Return a part of a level."""
        if level < self._n:
            return self._pixels.read(level, top, left, bottom, right)
        out = np.empty((bottom - top, right - left, 3), np.uint8)
        for row in range(top // _BLOCK, -(-bottom // _BLOCK)):
            for column in range(left // _BLOCK, -(-right // _BLOCK)):
                y, x = row * _BLOCK, column * _BLOCK
                block = self._blocks.get((level, row, column), lambda y=y, x=x: self._made(level, y, x))  # type: ignore[misc]
                first = (max(top, y), max(left, x))
                last = (min(bottom, y + len(block)), min(right, x + block.shape[1]))
                part = block[first[0] - y : last[0] - y, first[1] - x : last[1] - x]
                out[first[0] - top : last[0] - top, first[1] - left : last[1] - left] = part
        return out

    def _made(self, level: int, y: int, x: int) -> RGB:
        rows, columns = self.shapes[level - 1]
        bottom, right = min(rows, (y + _BLOCK) * _FACTOR), min(columns, (x + _BLOCK) * _FACTOR)
        return averaged(self.read(level - 1, y * _FACTOR, x * _FACTOR, bottom, right), _FACTOR)
