"""Pictures in: a file or an array becomes an RGB uint8 field, or a message that says what to do."""

from __future__ import annotations

import hashlib
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_MEGAPIXELS = 250.0
_pillow_limit = threading.Lock()


class ImageError(ValueError):
    """A picture cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Slide:
    """A field of a smear.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
        The picture, RGB.
    name : str
        What the field is called in tables.
    path : pathlib.Path, optional
        Where it was read from.
    mpp : float, optional
        Micrometres per pixel, where known.
    notes : tuple of str
        What was done to the picture on the way, for the user to read.
    """

    image: npt.NDArray[np.uint8] = field(repr=False)
    name: str = ""
    path: Path | None = None
    mpp: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path, *, mpp: float | None = None, max_megapixels: float = MAX_MEGAPIXELS) -> Slide:
        """Read a picture file.

        Parameters
        ----------
        path : str or pathlib.Path
            PNG, JPEG, TIFF, BMP or WebP.
        mpp : float, optional
            Micrometres per pixel, where known.
        max_megapixels : float
            Larger pictures are refused before they are decoded.

        Raises
        ------
        ImageError
            If there is no such file, or it is no picture, cut short, too large or grey.
        """
        path = Path(path)
        if not path.is_file():
            raise ImageError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty; export or copy it again")
        try:
            if path.suffix.lower() in (".tif", ".tiff"):
                array, notes = _read_tiff(path, max_megapixels)
            else:
                array, notes = _read_pillow(path, max_megapixels)
            image, more = to_rgb(array)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        return cls(image, path.name, path, mpp, notes + more)

    @classmethod
    def from_array(cls, array: npt.ArrayLike, name: str = "", *, mpp: float | None = None) -> Slide:
        """Wrap an array; see `to_rgb` for what is taken and what raises ImageError."""
        image, notes = to_rgb(np.asarray(array))
        return cls(image, name, None, mpp, notes)

    def sha256(self) -> str | None:
        """Return the SHA-256 of the file in hexadecimal, or None for an array."""
        if self.path is None:
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
        raise ImageError(f"the picture has no pixels (shape {array.shape})")
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


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"the picture claims {width} × {height} pixels ({width * height / 1e6:.0f} megapixels), more than "
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
