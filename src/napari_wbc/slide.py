"""Pictures in: a field of RGB uint8 or a whole slide read part by part, or a message that says what to do."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .pyramid import (
    PERSONAL,
    ArrayLevels,
    ArrayPixels,
    ImageError,
    Pixels,
    WithCoarser,
    agreeing,
    averaged,
    plausible_mpp,
)
from .slide_formats import SLIDE_SUFFIXES, is_zarr, open_levels

__all__ = ["IMAGE_SUFFIXES", "MAX_MEGAPIXELS", "SLIDE_SUFFIXES", "ImageError", "Slide", "Tile", "to_rgb"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_MEGAPIXELS = 250.0
LONGEST_SIDE = 2_000_000
"""Of a slide: 76 mm of glass at 0.04 µm per pixel, finer than any scanner. A file that claims more lies, and a view of
the whole would take days."""
_pillow_limit = threading.Lock()


@dataclass(frozen=True)
class Tile:
    """A square of a level.

    Parameters
    ----------
    level : int
        Which level.
    origin : (int, int)
        Row and column of the first pixel of `image` in the level; the halo is part of it.
    owns : (int, int, int, int)
        Top, left, bottom, right in the level, half open: what lies here belongs to this tile alone.
    image : (H, W, 3) uint8 array
        The pixels, as far as the level goes.
    """

    level: int
    origin: tuple[int, int]
    owns: tuple[int, int, int, int]
    image: npt.NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True)
class Slide:
    """A field of a smear in memory, or a whole slide of any size on disk.

    Parameters
    ----------
    pixels : Pixels
        Where the pixels are (`napari_wbc.pyramid`).
    name : str
        What the slide is called in tables.
    path : pathlib.Path, optional
        Where it was read from.
    mpp : float, optional
        Micrometres per pixel of level 0, where known.
    notes : tuple of str
        What was done to the picture on the way, for the user to read.
    """

    pixels: Pixels = field(repr=False)
    name: str = ""
    path: Path | None = None
    mpp: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path, *, mpp: float | None = None, max_megapixels: float = MAX_MEGAPIXELS) -> Slide:
        """Open a slide, of which nothing is read yet, or read a picture file.

        Parameters
        ----------
        path : str or pathlib.Path
            A slide of a scanner (SVS, NDPI, MRXS, SCN, BIF, VMS, DICOM), pyramidal TIFF or OME-TIFF, or OME-Zarr; or
            a picture: PNG, JPEG, TIFF, BMP or WebP.
        mpp : float, optional
            Micrometres per pixel, where known; a slide's own are taken if not given.
        max_megapixels : float
            Larger pictures are refused before they are decoded, but a TIFF in RGB is then opened as a slide.

        Raises
        ------
        ImageError
            If there is no such file, or it is no picture, cut short, too large or grey.
        """
        path = Path(path)
        if not (path.is_file() or is_zarr(path)):
            raise ImageError(f"{path}: no such file")
        if path.is_file() and path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty; export or copy it again")
        try:
            pixels, notes = open_levels(path, max_megapixels)
            if pixels is not None:
                if max(pixels.shapes[0]) > LONGEST_SIDE:
                    raise ImageError(
                        f"the slide claims {_size(*pixels.shapes[0])}, more than a glass slide has; export it again"
                    )
                known, doubt = plausible_mpp(pixels.mpp)
                mpp = known if mpp is None else mpp
                return cls(WithCoarser(pixels), path.name, path, mpp, notes + doubt)
            if path.suffix.lower() in (".tif", ".tiff"):
                array, notes = _read_tiff(path, max_megapixels)
            else:
                array, notes = _read_pillow(path, max_megapixels)
            image, more = to_rgb(array)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        return cls(ArrayPixels(image), path.name, path, mpp, notes + more)

    @classmethod
    def from_array(cls, array: npt.ArrayLike, name: str = "", *, mpp: float | None = None) -> Slide:
        """Wrap an array; see `to_rgb` for what is taken and what raises ImageError."""
        image, notes = to_rgb(np.asarray(array))
        return cls(ArrayPixels(image), name, None, mpp, notes)

    @classmethod
    def from_levels(cls, arrays: Sequence[Any], name: str = "", *, mpp: float | None = None) -> Slide:
        """Wrap levels of any library of arrays, (H, W, 3) or (H, W, 4) uint8, finest first, as a whole slide."""
        n = agreeing([array.shape[:2] for array in arrays])
        return cls(WithCoarser(ArrayLevels(arrays[:n])), name, None, mpp)

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole slide, whose pixels are read part by part, not a field."""
        return not isinstance(self.pixels, ArrayPixels)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of level 0."""
        return self.pixels.shapes[0]

    @property
    def downsamples(self) -> tuple[float, ...]:
        """How many pixels of level 0 a pixel of each level is wide."""
        return tuple(max(self.shape[0] / h, self.shape[1] / w) for h, w in self.pixels.shapes)

    def level_for(self, downsample: float) -> tuple[int, float]:
        """Return the coarsest level of the file that is no coarser than this, and its factor to level 0."""
        down = self.downsamples
        level = max((k for k, one in enumerate(down) if one <= downsample * 1.001), default=0)
        # Levels are rounded up to whole pixels: their factor is the whole number near by.
        whole = round(down[level])
        return level, float(whole) if abs(down[level] - whole) < 0.005 * whole else down[level]

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """The picture, (H, W, 3); of a whole slide level 0, or ImageError if it is too large to hold."""
        if isinstance(self.pixels, ArrayPixels):
            return self.pixels.image
        if self.shape[0] * self.shape[1] > MAX_MEGAPIXELS * 1e6:
            raise ImageError(f"{self.name}: a whole slide of {_size(*self.shape)} cannot be held at once")
        return self.read((0, 0, *self.shape))

    def read(self, region: tuple[int, int, int, int], level: int = 0) -> npt.NDArray[np.uint8]:
        """Read a part of a level.

        Parameters
        ----------
        region : (int, int, int, int)
            Top, left, bottom, right in pixels of the level, half open.
        level : int
            0 is the finest.

        Returns
        -------
        (bottom - top, right - left, 3) uint8 array
            White where the region goes beyond the level.

        Raises
        ------
        ImageError
            If the file is damaged there, or is not the one any more that was opened.
        """
        top, left, bottom, right = region
        rows, columns = self.pixels.shapes[level]
        inside = (max(0, top), max(0, left), min(rows, bottom), min(columns, right))
        if inside == region:
            return self._part(level, region)
        out = np.full((max(0, bottom - top), max(0, right - left), 3), 255, np.uint8)
        if inside[0] < inside[2] and inside[1] < inside[3]:
            part = self._part(level, inside)
            out[inside[0] - top : inside[2] - top, inside[1] - left : inside[3] - left] = part
        return out

    def _part(self, level: int, region: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
        try:
            return self.pixels.read(level, *region)
        except ImageError as error:
            raise ImageError(f"{self.path or self.name}: {error}") from error

    def tiles(self, size: int, halo: int = 0, level: int = 0) -> Iterator[Tile]:
        """Read a level tile by tile.

        Parameters
        ----------
        size : int
            Side of the squares that the tiles own, pixels of the level.
        halo : int
            How much a tile shows beyond what it owns, on every side.
        level : int
            0 is the finest.

        Yields
        ------
        Tile
            Row by row; what they own covers the level exactly once.
        """
        rows, columns = self.pixels.shapes[level]
        for top in range(0, rows, size):
            for left in range(0, columns, size):
                owns = (top, left, min(top + size, rows), min(left + size, columns))
                first = (max(0, top - halo), max(0, left - halo))
                last = (min(rows, owns[2] + halo), min(columns, owns[3] + halo))
                yield Tile(level, first, owns, self.read((*first, *last), level))

    def thumbnail(self, longest: int = 1024) -> npt.NDArray[np.uint8]:
        """Return the whole slide as a small picture, its longer side about `longest` pixels at most."""
        shapes = self.pixels.shapes
        level = next((k for k, shape in enumerate(shapes) if max(shape) <= 2 * longest), len(shapes) - 1)
        image = self.read((0, 0, *shapes[level]), level)
        return averaged(image, max(1, -(-max(image.shape[:2]) // longest)))

    def associated_image(self, name: str, *, personal: bool = False) -> npt.NDArray[np.uint8]:
        """Return an image beside the slide.

        Parameters
        ----------
        name : str
            One of `pixels.associated`.
        personal : bool
            Must be True for the label and for the macro image: they may show the patient's name.

        Raises
        ------
        ImageError
            If there is no such image, or it may show a name and `personal` is False.
        """
        if name in PERSONAL and not personal:
            raise ImageError(f"the {name} image may show the patient's name; ask for it with personal=True")
        return self.pixels.associated_image(name)

    def check_unchanged(self) -> None:
        """Raise ImageError if the file of a whole slide was deleted or replaced since it was opened."""
        try:
            self.pixels.check_unchanged()
        except ImageError as error:
            raise ImageError(f"{self.path}: {error}") from error

    def sha256(self) -> str | None:
        """Return the SHA-256 of the file in hexadecimal, or None for an array or a folder."""
        if self.path is None or self.path.is_dir():
            return None
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def to_rgb(array: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Turn an array into RGB uint8 and say what was done.

    Parameters
    ----------
    array : (H, W, 3) or (H, W, 4) array
        uint8; wider integers, taken for 8, 10, 12, 14 or 16 bits by their
        maximum; or float, 0 to 1 or 0 to 255. Alpha is laid over white.
        Channels in front, (3, H, W) or (4, H, W), are moved to the end.

    Returns
    -------
    image : (H, W, 3) uint8 array
    notes : tuple of str
        One sentence for each conversion.

    Raises
    ------
    ImageError
        For other shapes and types, grey pictures, empty ones, negative or too
        large values, NaN and infinity.
    """
    notes = []
    if array.ndim == 3 and array.shape[2] not in (3, 4) and array.shape[0] in (3, 4):
        array = np.moveaxis(array, 0, -1)
        notes.append("colour channels moved from the first axis to the last")
    if array.size == 0:
        raise ImageError(f"the picture has no pixels (shape {array.shape}); export it again")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 2)):
        raise ImageError(
            "the picture is grey; white cells are told from red cells by colour, so open the colour original"
        )
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ImageError(f"shape {array.shape} is not one RGB picture (H, W, 3); choose one plane of it")
    image, how = _to_uint8(array)
    notes += how
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.uint16)
        if (alpha < 255).any():
            notes.append("transparent pixels laid over white")
            image = ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        image = image[..., :3]
    if np.ptp(image) > 32 and (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all():
        raise ImageError(
            "the picture is grey (its three channels are equal); white cells are told from red cells by "
            "colour, so open the colour original"
        )
    return np.ascontiguousarray(image), tuple(notes)


def _to_uint8(array: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], list[str]]:
    if array.dtype == np.uint8:
        return array, []
    if array.dtype == np.bool_:
        raise ImageError("the picture is a black-and-white mask; open the colour original")
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ImageError(f"pixels of type {array.dtype} cannot be used; save the picture as 8-bit RGB")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).any(axis=-1).sum())
        raise ImageError(f"{bad} pixels are NaN or infinite; replace them or save the picture as 8-bit RGB")
    low, high = float(array.min()), float(array.max())
    if low < 0:
        raise ImageError(f"pixel values reach {low:g}; values from 0 up are needed")
    if np.issubdtype(array.dtype, np.floating):
        full = 1.0 if high <= 1 else 255.0
    else:  # cameras of 10, 12 and 14 bits store their values in 16
        full = next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits), 0.0)
    if not 0 < high <= full and high > 0:
        raise ImageError(f"pixel values reach {high:g}; save the picture as 8-bit RGB")
    image = np.rint(array.astype(np.float32) * (255.0 / full)).astype(np.uint8)
    return image, [f"{array.dtype} values 0 to {full:g} scaled to 8 bits"]


def _size(height: int, width: int) -> str:
    return f"{width} × {height} pixels ({width * height / 1e6:.0f} megapixels)"


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"the picture claims {_size(height, width)}, more than "
            f"the limit of {max_megapixels:g}; cut it into fields or raise the limit (max_megapixels)"
        )


def _check_single(frames: int) -> None:
    if frames > 1:
        raise ImageError(f"the file holds {frames} pictures; save the one to read by itself")


def _read_pillow(path: Path, max_megapixels: float) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    from PIL import Image, UnidentifiedImageError

    notes: tuple[str, ...] = ()
    # Pillow's own limit is a global; ours is checked on the header, before decoding.
    with _pillow_limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(path) as picture:
                _check_size(*picture.size, max_megapixels)
                _check_single(int(getattr(picture, "n_frames", 1)))
                mode = picture.mode
                if mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
                    target = "RGBA" if "transparency" in picture.info else "RGB"
                    notes = (f"{mode} colours converted to {target}",) if mode != "P" else ()
                    return np.asarray(picture.convert(target)), notes
                return np.asarray(picture), notes
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(f"not a picture that can be read; use {', '.join(IMAGE_SUFFIXES)}") from error
        # Pillow's decoders raise whatever a broken file makes them raise.
        except Exception as error:
            raise ImageError(f"the file is damaged or cut short ({error}); export or copy it again") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _read_tiff(path: Path, max_megapixels: float) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            sizes = dict(zip(series.axes, series.shape, strict=True))
            _check_size(sizes.get("X", 1), sizes.get("Y", 1), max_megapixels)
            _check_single(series.size // max(1, sizes.get("X", 1) * sizes.get("Y", 1) * 4))
            notes = (f"first of {len(tiff.series)} pictures in the file",) if len(tiff.series) > 1 else ()
            page = series.keyframe
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE or page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
                return _read_pillow(path, max_megapixels)
            return series.asarray(), notes
    except ImageError:
        raise
    # tifffile raises whatever a broken file makes it raise.
    except Exception as error:
        raise ImageError(f"not a TIFF, damaged or cut short ({error}); export or copy it again") from error
