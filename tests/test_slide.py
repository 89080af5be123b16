"""Pictures in: what is taken, what is converted, what is refused with a remedy."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_wbc.slide import ImageError, Slide, to_rgb

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("array", "note"),
    [
        (RGB, None),
        (RGB.astype(np.uint16) * 257, "uint16 values 0 to 65535"),
        ((RGB / 255.0).astype(np.float32), "float32 values 0 to 1"),
        (RGB.astype(float), "float64 values 0 to 255"),
        (np.dstack([RGB, np.full((4, 5), 255, np.uint8)]), None),
        (np.moveaxis(RGB, -1, 0), "first axis"),
    ],
)
def test_conversions_give_the_same_picture_and_say_what_was_done(array, note):
    image, notes = to_rgb(array)
    np.testing.assert_array_equal(image, RGB)
    assert (not notes) if note is None else any(note in text for text in notes)


def test_twelve_bit_values_are_scaled_by_their_own_range():
    image, notes = to_rgb(np.array([[[0, 2048, 4095]]], np.uint16))
    assert image.tolist() == [[[0, 128, 255]]]
    assert "0 to 4095" in notes[0]


def test_transparent_pixels_become_white():
    array = np.zeros((1, 2, 4), np.uint8)
    array[0, 1] = [10, 20, 30, 255]
    image, notes = to_rgb(array)
    assert image.tolist() == [[[255, 255, 255], [10, 20, 30]]]
    assert "transparent" in notes[0]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 0, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4), np.uint8), "grey"),
        (np.repeat(np.arange(0, 200, 2, dtype=np.uint8).reshape(10, 10, 1), 3, axis=2), "grey"),
        (np.zeros((5, 4, 4, 3), np.uint8), "not one RGB picture"),
        (np.full((2, 2, 3), np.nan), "4 pixels are NaN"),
        (np.full((2, 2, 3), -1.0), "from 0 up"),
        (np.full((2, 2, 3), 300.0), "8-bit RGB"),
        (np.zeros((2, 2, 3), bool), "mask"),
        (np.zeros((2, 2, 3), complex), "complex"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_remedy(array, message):
    with pytest.raises(ImageError, match=message):
        Slide.from_array(array)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("shape", [(1, 1, 3), (30, 40, 3)])
def test_a_picture_of_one_colour_is_legal(value, shape):
    assert Slide.from_array(np.full(shape, value, np.uint8)).image.shape == shape


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_files_read_back_exactly(tmp_path, suffix):
    path = tmp_path / f"blö <script> x{suffix}"
    Image.fromarray(RGB).save(path)
    slide = Slide.open(path)
    np.testing.assert_array_equal(slide.image, RGB)
    assert slide.name == path.name
    assert len(slide.sha256()) == 64


def test_a_16_bit_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB.astype(np.uint16) * 257, photometric="rgb")
    np.testing.assert_array_equal(Slide.open(tmp_path / "a.tif").image, RGB)


def test_a_cmyk_jpeg_is_converted_and_said_so(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    slide = Slide.open(tmp_path / "a.jpg")
    red, green, blue = slide.image[4, 4]
    assert red > 200
    assert green < 60
    assert blue < 60
    assert "CMYK" in slide.notes[0]


def test_a_palette_picture(tmp_path):
    Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    assert Slide.open(tmp_path / "a.png").image.shape == RGB.shape


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"", "empty"),
        ("a.png", b"no picture at all", "not a picture"),
        ("a.tif", b"II*\x00garbage", "damaged"),
        ("a.tif", b"nothing", "damaged"),
        ("bomb.png", png_header(30_000, 30_000), "30000 × 30000 pixels .900 megapixels.*max_megapixels"),
        ("cut.png", png_header(100, 100), "damaged"),
    ],
)
def test_a_bad_file_is_named_with_its_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        Slide.open(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_truncated_picture_is_refused(tmp_path, field):
    data = field.read_bytes()
    for share in (0.02, 0.3, 0.9):
        (tmp_path / "cut.jpg").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError, match=r"cut\.jpg"):
            Slide.open(tmp_path / "cut.jpg")


def test_the_limit_can_be_raised_and_pillows_own_is_left_alone(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    Image.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="2 megapixels"):
        Slide.open(tmp_path / "a.png", max_megapixels=1)
    assert Slide.open(tmp_path / "a.png", max_megapixels=3).image.shape == (1000, 2000, 3)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match="no such file"):
            Slide.open(path)


def test_an_animation_is_refused(tmp_path):
    frames = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(ImageError, match="3 pictures"):
        Slide.open(tmp_path / "a.webp")
