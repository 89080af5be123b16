"""Which files are whole slides, and who reads them: tifffile, OpenSlide or zarr."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .pyramid import (
    ArrayLevels,
    ImageError,
    OpenSlidePixels,
    Pixels,
    TiffPixels,
    agreeing,
    harmless,
    mean_mpp,
)

TIFF_SUFFIXES = (".tif", ".tiff", ".svs", ".btf", ".tf8")
OPENSLIDE_SUFFIXES = (".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
SLIDE_SUFFIXES = (".svs", ".btf", ".tf8", *OPENSLIDE_SUFFIXES, ".zarr")
"""Files with these suffixes are slides or nothing; a TIFF may be a slide or an ordinary picture."""

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP", b"RIFF": "WebP", b"%PDF": "PDF", b"PK": "ZIP"}
_JPEG_2000 = (33003, 33004, 33005, 34712)
_LARGEST_SEGMENT = 1 << 28
_CODECS = {
    *("bytes", "transpose", "crc32c", "sharding_indexed", "gzip", "zlib", "zstd", "blosc", "lz4", "bz2", "lzma"),
    *("shuffle", "delta", "bitround", "numcodecs.zlib", "numcodecs.lz4", "numcodecs.bz2", "numcodecs.lzma"),
    *("numcodecs.shuffle", "numcodecs.delta", "numcodecs.blosc", "numcodecs.zstd"),
}
_TO_UM = {"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_TO_UM |= {"nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


def is_zarr(path: Path) -> bool:
    """Whether a folder is a group of zarr."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup"))


def open_levels(path: Path, max_megapixels: float) -> tuple[Pixels | None, tuple[str, ...]]:
    """Open a file or folder as a whole slide.

    Parameters
    ----------
    path : pathlib.Path
    max_megapixels : float
        A TIFF without levels is a slide if it is larger.

    Returns
    -------
    pixels : Pixels or None
        None if it is an ordinary picture.
    notes : tuple of str
        What the user should know.

    Raises
    ------
    ImageError
        If it claims to be a slide and cannot be used.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_zarr(path), ()
    if suffix not in (*TIFF_SUFFIXES, *OPENSLIDE_SUFFIXES):
        return None, ()
    with path.open("rb") as stream:
        head = stream.read(8)
    if suffix in SLIDE_SUFFIXES:
        for magic, name in _MAGIC.items():
            if head.startswith(magic) and not (name == "ZIP" and suffix == ".dcm"):
                raise ImageError(f"not a slide: it holds a {name}; give it that suffix, or export the slide again")
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(path, max_megapixels)
    if suffix in OPENSLIDE_SUFFIXES:
        return _open_openslide(path), ()
    if suffix in SLIDE_SUFFIXES:
        raise ImageError("not a slide (no TIFF inside), or damaged; copy or export it again")
    return None, ()


def _open_openslide(path: Path) -> Pixels:
    try:
        import openslide
    except ImportError as error:
        raise ImageError('OpenSlide is needed for this format: pip install "napari-wbc[slides]"') from error
    try:
        return OpenSlidePixels(path, openslide.OpenSlide(path))
    except openslide.OpenSlideError as error:
        raise ImageError(f"OpenSlide cannot read it ({error}); copy or export the slide again") from error


def _open_tiff(path: Path, max_megapixels: float) -> tuple[Pixels | None, tuple[str, ...]]:
    import tifffile

    must = path.suffix.lower() in SLIDE_SUFFIXES
    try:
        with tifffile.TiffFile(path) as tiff:
            if any(getattr(tiff, f"is_{kind}", False) for kind in ("ndpi", "scn", "bif", "philips")):
                return _open_openslide(path), ()
            pages, images = _levels(tiff)
            first = pages[0]
            large = first.imagelength * first.imagewidth > max_megapixels * 1e6
            if len(pages) == 1 and not (must or large or tiff.is_svs):
                return None, ()
            if first.compression in _JPEG_2000 and tiff.is_svs:  # in colours that only OpenSlide converts
                return _open_openslide(path), ()
            n = agreeing([(page.imagelength, page.imagewidth) for page in pages])
            if not all(map(_is_rgb, pages[:n])):
                if len(pages) == 1 and not must:
                    return None, ()
                raise ImageError(
                    "its pixels are not 8-bit RGB in tiles or strips; export the slide as RGB with JPEG tiles"
                )
            pixels = TiffPixels(path, pages[:n], images)
            pixels.mpp, pixels.properties = _tiff_mpp(tiff, first), _properties(tiff)
            notes = (f"{len(pages) - n} levels left out: their sizes do not fit the first",) if n < len(pages) else ()
            return pixels, notes
    except ImageError:
        raise
    # tifffile raises whatever a broken file makes it raise.
    except Exception as error:
        if must:
            raise ImageError(f"damaged or cut short ({error}); copy or export the slide again") from error
        return None, ()  # the reader of ordinary pictures says what is wrong


def _levels(tiff: Any) -> tuple[list[Any], dict[str, Any]]:
    """Pages of the levels, finest first, and of the images beside them."""
    series = tiff.series
    pages = [level.keyframe for level in series[0].levels]
    if tiff.is_svs:
        return pages, {
            s.name.lower(): s.keyframe for s in series[1:] if s.name.lower() in ("thumbnail", *("label", "macro"))
        }
    if len(pages) == 1:  # levels that are not marked as such
        tiled = [page for page in tiff.pages if hasattr(page, "is_tiled") and page.is_tiled and _is_rgb(page)]
        if len(tiled) > 1 and tiled[0].index == pages[0].index:
            sizes = [(page.imagelength, page.imagewidth) for page in tiled]
            pages = tiled[: agreeing(sizes)]
    return pages, {}


def _is_rgb(page: Any) -> bool:
    return bool(
        page.dtype == "uint8"
        and page.samplesperpixel in (3, 4)
        and page.planarconfig == 1
        and page.photometric in (2, 6)
        and math.prod(page.chunks) <= _LARGEST_SEGMENT
    )


def _tiff_mpp(tiff: Any, page: Any) -> float | None:
    if tiff.is_svs:
        found = re.search(r"\|\s*MPP\s*=\s*([^|\s]+)", page.description)
        return mean_mpp(found[1], found[1]) if found else None
    if tiff.is_ome:
        text = tiff.ome_metadata or ""
        values = [_physical_size(text, axis) for axis in "XY"]
        return mean_mpp(*values)
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.resolutionunit or 1))
    if unit is None or None in tags:
        return None
    sizes = [unit * tag.value[1] / tag.value[0] if tag.value[0] else math.inf for tag in tags]
    return mean_mpp(*sizes)


def _physical_size(text: str, axis: str) -> float | None:
    size = re.search(rf'PhysicalSize{axis}\s*=\s*"([^"]*)"', text)
    unit = re.search(rf'PhysicalSize{axis}Unit\s*=\s*"([^"]*)"', text)
    if not size:
        return None
    try:
        return float(size[1]) * _TO_UM.get(unit[1] if unit else "µm", 1.0)
    except ValueError:
        return math.nan


def _properties(tiff: Any) -> dict[str, str]:
    if not tiff.is_svs:
        return {"format": "OME-TIFF" if tiff.is_ome else "TIFF"}
    pairs = (part.partition("=") for part in tiff.pages[0].description.split("|")[1:])
    return {"format": "Aperio SVS"} | {
        f"aperio.{k}": v for k, v in harmless({a.strip(): b.strip() for a, _, b in pairs}).items()
    }


def _open_zarr(path: Path) -> Pixels:
    import zarr

    try:
        group: Any = zarr.open_group(str(path), mode="r")
        attributes = dict(group.attrs)
        if "bioformats2raw.layout" in attributes or "bioformats2raw.layout" in attributes.get("ome", {}):
            group = group["0"]
            attributes = dict(group.attrs)
        found = attributes.get("ome", attributes).get("multiscales")
        if not found:
            raise ImageError("a zarr without an image of OME-NGFF (multiscales); export it as OME-Zarr 0.4 or 0.5")
        sets = found[0]["datasets"]
        arrays = [group[entry["path"]] for entry in sets]
        names = [axis["name"] if isinstance(axis, dict) else axis for axis in found[0].get("axes", "cyx")]
        _check_codecs(arrays)
        arrays, channel = _planes(arrays, names)
        n = agreeing([(a.shape[1], a.shape[2]) if channel == 0 else a.shape[:2] for a in arrays])
        pixels = ArrayLevels(arrays[:n], channel)
        pixels.mpp = _zarr_mpp(found[0], names)
        pixels.properties = {"format": f"OME-Zarr {attributes.get('ome', found[0]).get('version', '')}".strip()}
    except ImageError:
        raise
    # zarr raises whatever a broken folder makes it raise.
    except Exception as error:
        raise ImageError(f"not an OME-Zarr that can be read ({error}); export it again") from error
    return pixels


def _planes(arrays: Sequence[Any], names: Sequence[str]) -> tuple[list[Any], int]:
    """Arrays of channel, row and column, or row, column and channel; longer axes of time and depth are refused."""
    kept = [k for k, name in enumerate(names) if name in ("c", "y", "x")]
    others = [k for k in range(len(names)) if k not in kept]
    if any(arrays[0].shape[k] != 1 for k in others) or sorted(names[k] for k in kept) != ["c", "x", "y"]:
        raise ImageError(f"axes {''.join(names)} of shape {arrays[0].shape} are not one RGB picture; export it as such")
    channel = 0 if names[kept[0]] == "c" else 2
    return ([_Plane(a, others) for a in arrays] if others else list(arrays)), channel


class _Plane:
    """An array without its axes of length one; nothing is read until it is sliced."""

    def __init__(self, array: Any, dropped: Sequence[int]) -> None:
        self._array, self._dropped = array, dropped
        kept = [k for k in range(array.ndim) if k not in dropped]
        self.shape, self.chunks = (tuple(v[k] for k in kept) for v in (array.shape, array.chunks))
        self.ndim, self.dtype = len(kept), array.dtype

    def __getitem__(self, window: tuple[slice, ...]) -> Any:
        kept = iter([*window, *(slice(None) for _ in range(self.ndim - len(window)))])
        return self._array[tuple(0 if k in self._dropped else next(kept) for k in range(self._array.ndim))]


def _check_codecs(arrays: Sequence[Any]) -> None:
    """Refuse codecs that are not known to be harmless: one of numcodecs unpickles."""
    for array in arrays:
        text = json.loads(json.dumps(array.metadata.to_dict(), default=str))
        listed = [*text.get("codecs", ()), *(text.get("filters") or ()), text.get("compressor") or {}]
        inner = [codec.get("configuration", {}).get("codecs", ()) for codec in listed]
        for codec in [*listed, *(c for codecs in inner for c in codecs)]:
            name = codec.get("name", codec.get("id", ""))
            if name and name not in _CODECS:
                raise ImageError(
                    f"its pixels are packed by {name!r}, which is not opened; export it again, with zstd or blosc"
                )


def _zarr_mpp(image: dict[str, Any], names: Sequence[str]) -> float | None:
    units = {axis["name"]: axis.get("unit", "micrometer") for axis in image.get("axes", ()) if isinstance(axis, dict)}
    steps = dict.fromkeys("xy", 1.0)
    found = False
    for part in (image, image["datasets"][0]):
        for change in part.get("coordinateTransformations", ()):
            if change.get("type") == "scale":
                found = True
                for name in "xy":
                    steps[name] *= float(change["scale"][list(names).index(name)])
    if not found:
        return None
    return mean_mpp(*(steps[name] * _TO_UM.get(units.get(name, ""), 1.0) for name in "xy"))
