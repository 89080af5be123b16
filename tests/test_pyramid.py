"""Whole slides of every format: the same pixels, the scale, and what is refused."""

import threading

import numpy as np
import pytest
import slides
import tifffile
from pictures import FIELDS

from napari_wbc import _slide_reader
from napari_wbc.inputs import find_images
from napari_wbc.pyramid import averaged, plausible_mpp
from napari_wbc.slide import ImageError, Slide

LEVELS = ((960, 1280), (240, 320))


@pytest.fixture(scope="module")
def image():
    return slides.mosaic()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, image):
    """Return a folder with the same slide in all formats."""
    folder = tmp_path_factory.mktemp("slides with spaces, ü and ..")
    for name in slides.FORMATS:
        slides.write(folder / name, image)
    return folder


@pytest.mark.parametrize("name", slides.FORMATS)
def test_a_slide_opens_with_its_levels_scale_and_pixels(folder, image, name):
    slide = Slide.open(folder / name)
    assert slide.is_whole
    assert slide.pixels.shapes == LEVELS
    assert slide.mpp == pytest.approx(slides.MPP, rel=1e-3)
    assert slide.downsamples == (1, 4)
    # Across the seams of tiles; JPEG changes colours a little.
    part = slide.read((200, 300, 700, 900)).astype(int)
    assert np.abs(part - image[200:700, 300:900]).mean() < 4
    coarse = slide.read((0, 0, 240, 320), 1).astype(int)
    assert np.abs(coarse - averaged(image, 4)).mean() < 4
    beyond = slide.read((-10, -10, 5, 5))
    assert (beyond[:10] == 255).all()
    assert slide.notes == ()


@pytest.mark.parametrize("name", ["slide.tif", "slide.svs"])
def test_tifffile_and_openslide_give_the_same_pixels(folder, name):
    openslide = pytest.importorskip("openslide")
    from napari_wbc.pyramid import OpenSlidePixels

    other = OpenSlidePixels(folder / name, openslide.OpenSlide(folder / name))
    slide = Slide.open(folder / name)
    assert other.shapes == slide.pixels.shapes
    assert other.mpp == pytest.approx(slide.mpp, rel=1e-3)
    np.testing.assert_allclose(other.read(0, 90, 200, 600, 800), slide.read((90, 200, 600, 800)), atol=3)


def test_tiles_cover_a_level_once_and_show_their_halo(folder, image):
    slide = Slide.open(folder / "new.ome.zarr")
    seen = np.zeros(LEVELS[0], int)
    for tile in slide.tiles(300, 20):
        top, left, bottom, right = tile.owns
        seen[top:bottom, left:right] += 1
        y, x = tile.origin
        assert (top - y, left - x) == (min(top, 20), min(left, 20))
        np.testing.assert_array_equal(tile.image, image[y : y + tile.image.shape[0], x : x + tile.image.shape[1]])
    assert (seen == 1).all()


def test_threads_read_one_slide_without_mixing_its_parts(folder):
    slide = Slide.open(folder / "slide.tif")
    wanted = {k: Slide.open(folder / "slide.tif").read((k, 2 * k, k + 300, 2 * k + 300)) for k in range(0, 600, 60)}
    wrong = []

    def read(k):
        parts = [slide.read((k, 2 * k, k + 300, 2 * k + 300)) for _ in range(5)]
        wrong.extend(k for part in parts if not np.array_equal(part, wanted[k]))

    threads = [threading.Thread(target=read, args=(k,)) for k in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_may_name_a_patient_is_shown_only_on_request(folder):
    slide = Slide.open(folder / "slide.svs")
    assert slide.pixels.associated == ("thumbnail", "label", "macro")
    assert slide.associated_image("thumbnail").shape == (300, 400, 3)
    for name in ("label", "macro"):
        with pytest.raises(ImageError, match="patient's name"):
            slide.associated_image(name)
        assert slide.associated_image(name, personal=True).shape == (300, 400, 3)
    assert "AppMag" in " ".join(slide.pixels.properties)
    assert "Title" not in " ".join(slide.pixels.properties)


def test_levels_that_a_file_lacks_are_made_lazily(tmp_path, image):
    big = np.tile(image, (3, 2, 1))
    tifffile.imwrite(tmp_path / "flat.tif", big, tile=(256, 256), photometric="rgb")
    assert not Slide.open(tmp_path / "flat.tif").is_whole
    slide = Slide.open(tmp_path / "flat.tif", max_megapixels=1)
    assert slide.pixels.shapes == ((2880, 2560), (720, 640))
    np.testing.assert_array_equal(slide.read((0, 0, 720, 640), 1), averaged(big, 4))
    assert slide.thumbnail(200).shape == (180, 160, 3)


@pytest.mark.parametrize("claimed", [0.0, 1e9, float("nan"), float("inf"), -1.0])
def test_an_absurd_scale_counts_as_unknown_and_is_said(claimed):
    mpp, notes = plausible_mpp(claimed)
    assert mpp is None
    assert "no microscope" in notes[0]


def test_an_absurd_scale_in_a_file(tmp_path, image):
    slide = Slide.open(slides.write(tmp_path / "a.tif", image, mpp=1e5))
    assert slide.mpp is None
    assert "100000 µm per pixel" in slide.notes[0]
    assert Slide.open(tmp_path / "a.tif", mpp=0.07).mpp == 0.07


@pytest.mark.parametrize("claimed", [b"0.0000", b"1.e+09", b"NaN   ", b"-0.072"])
def test_a_scanner_that_writes_an_absurd_scale(folder, tmp_path, claimed):
    data = (folder / "slide.svs").read_bytes()
    assert b"MPP = 0.0725" in data
    (tmp_path / "a.svs").write_bytes(data.replace(b"MPP = 0.0725", b"MPP = " + claimed))
    slide = Slide.open(tmp_path / "a.svs")
    assert slide.mpp is None
    assert "which no microscope has" in slide.notes[0]


def test_levels_that_disagree_are_left_out(tmp_path, image):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for k, part in enumerate((image, averaged(image, 2), averaged(image, 4)[:, :100])):
            tiff.write(part, tile=(256, 256), photometric="rgb", subfiletype=int(k > 0), metadata=None)
    slide = Slide.open(tmp_path / "a.tif")
    assert slide.pixels.shapes == ((960, 1280), (480, 640))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.svs", b"", "empty"),
        ("a.svs", FIELDS[0].read_bytes(), "holds a JPEG"),
        ("a.ndpi", FIELDS[0].read_bytes(), "holds a JPEG"),
        ("a.svs", b"no slide at all", "not a slide"),
        ("a.svs", b"II*\0\x08\0\0\0", "damaged or cut short"),
    ],
)
def test_a_broken_slide_is_named_with_a_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        Slide.open(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["slide.tif", "slide.svs", "slide.ome.tif"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_a_truncated_slide_is_refused(folder, tmp_path, name, share):
    data = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match="cut short"):
        Slide.open(tmp_path / name)


def test_a_damaged_tile_is_named(folder, tmp_path):
    data = bytearray((folder / "slide.tif").read_bytes())
    with tifffile.TiffFile(folder / "slide.tif") as tiff:
        start, size = tiff.pages[0].dataoffsets[6], tiff.pages[0].databytecounts[6]
    data[start : start + size] = b"\0" * size
    (tmp_path / "a.tif").write_bytes(data)
    slide = Slide.open(tmp_path / "a.tif")
    slide.read((0, 0, 100, 100))
    with pytest.raises(ImageError, match="tile 1, 1 of level 0 is damaged"):
        slide.read((300, 300, 400, 400))


def test_a_slide_that_is_replaced_or_deleted_while_it_is_read(folder, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes((folder / "slide.tif").read_bytes())
    slide = Slide.open(path)
    slide.check_unchanged()
    path.write_bytes((folder / "slide.svs").read_bytes())
    with pytest.raises(ImageError, match="replaced"):
        slide.check_unchanged()
    with pytest.raises(ImageError, match="replaced"):
        slide.read((0, 0, 9, 9))
    path.unlink()
    with pytest.raises(ImageError, match="deleted"):
        slide.check_unchanged()


def test_a_codec_that_could_run_code_is_refused(tmp_path):
    import json

    path = slides.write(tmp_path / "old.ome.zarr", slides.mosaic(1, 1))
    for meta in path.glob("*/.zarray"):
        text = json.loads(meta.read_text())
        text["filters"] = [{"id": "pickle", "protocol": 4}]
        meta.write_text(json.dumps(text))
    with pytest.raises(ImageError, match=r"pickle|cannot|can be read"):
        Slide.open(path)


def test_a_real_slide_of_a_scanner(shared_data):
    slide = Slide.open(shared_data / "slides/CMU-1-Small-Region.svs")
    assert slide.pixels.shapes == ((2967, 2220), (742, 555))
    assert slide.mpp == 0.499
    openslide = pytest.importorskip("openslide").OpenSlide(slide.path)
    wanted = np.asarray(openslide.read_region((700, 500), 0, (640, 480)))[..., :3]
    np.testing.assert_array_equal(slide.read((500, 700, 980, 1340)), wanted)


@pytest.mark.parametrize("name", slides.FORMATS)
def test_napari_gets_one_lazy_layer_in_micrometres(folder, name):
    ((levels, attributes, kind),) = _slide_reader.get_reader(str(folder / name))(str(folder / name))
    assert kind == "image"
    assert [level.shape for level in levels] == [(*shape, 3) for shape in LEVELS]
    assert attributes["multiscale"]
    assert attributes["scale"] == pytest.approx((slides.MPP, slides.MPP), rel=1e-3)
    assert attributes["units"] == ("micrometer", "micrometer")
    assert attributes["metadata"]["thumbnail"].shape[2] == 3
    part = np.asarray(levels[0][250:300, 500:600])
    np.testing.assert_array_equal(part, Slide.open(folder / name).read((250, 500, 300, 600)))


def test_the_reader_says_no_to_what_is_no_slide(tmp_path, image):
    tifffile.imwrite(tmp_path / "flat.tif", image, photometric="rgb")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 64, 64), np.uint16))
    (tmp_path / "broken.tif").write_bytes(b"II*\0garbage")
    (tmp_path / "a.zarr").mkdir()
    for path in (*tmp_path.iterdir(), FIELDS[0], tmp_path / "none.tif"):
        assert _slide_reader.get_reader(str(path)) is None, path
    (tmp_path / "broken.svs").write_bytes(b"II*\0garbage")
    with pytest.raises(ImageError, match="damaged"):
        _slide_reader.get_reader(str(tmp_path / "broken.svs"))(str(tmp_path / "broken.svs"))


def test_folders_are_searched_for_slides_and_not_inside_them(folder):
    found, missing = find_images([folder])
    assert sorted(path.name for path in found) == sorted(slides.FORMATS)
    assert missing == []
