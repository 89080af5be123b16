import numpy as np
import pytest

from napari_wbc.crop import CropSize, background_colour, crop_cells


def disc_field(mpp: float, diameter_um: float = 8.0) -> np.ndarray:
    """A dark disc in the middle of 40 µm of white."""
    n = round(40 / mpp)
    axis = (np.arange(n) + 0.5) * mpp - 20
    image = np.full((n, n, 3), 240, np.uint8)
    image[axis[:, None] ** 2 + axis[None] ** 2 < (diameter_um / 2) ** 2] = 60
    return image


@pytest.mark.parametrize("mpp", [0.05, 0.1, 0.25, 0.5])
def test_a_cell_has_the_same_size_at_every_scale(mpp):
    image = disc_field(mpp)
    centre = np.full((1, 2), (len(image) - 1) / 2)
    crop = crop_cells(image, centre, mpp, CropSize(20, 80))[0]
    assert crop.shape == (80, 80, 3)
    dark = crop[..., 0] < 150
    # 8 µm of 20 µm in 80 px is 32 px across.
    assert 2 * np.sqrt(dark.sum() / np.pi) == pytest.approx(32, abs=1)
    rows, columns = np.nonzero(dark)
    assert (rows.mean(), columns.mean()) == pytest.approx((39.5, 39.5), abs=0.5)


def test_outside_the_picture_is_background():
    image = disc_field(0.25)
    crop = crop_cells(image, np.array([[0.0, 0.0]]), 0.25, CropSize(20, 40))[0]
    assert (crop == 240).all()


def test_a_crop_does_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 120, 3), np.uint8)
    points = np.array([[10.2, 20.7], [80, 5], [45, 60], [89, 119]])
    size = CropSize(12, 32)
    together = crop_cells(image, points, 0.3, size)
    alone = np.concatenate([crop_cells(image, points[k : k + 1], 0.3, size) for k in range(4)])
    np.testing.assert_array_equal(together, alone)


def test_reduction_is_antialiased():
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::2] = 200
    crop = crop_cells(stripes, np.array([[100.0, 100.0]]), 0.1, CropSize(10, 10))[0]
    assert np.ptp(crop[2:-2, 2:-2]) < 20
    assert crop[5, 5, 0] == pytest.approx(100, abs=10)


def test_no_cell_gives_no_crop():
    assert crop_cells(disc_field(0.5), np.empty((0, 2)), 0.5, CropSize(20, 16)).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("mpp", [0, -1, np.nan, np.inf])
def test_an_absurd_scale_is_refused(mpp):
    with pytest.raises(ValueError, match="µm per pixel"):
        crop_cells(disc_field(0.5), np.array([[5.0, 5.0]]), mpp, CropSize(20, 16))


def test_an_absurd_size_is_refused():
    with pytest.raises(ValueError, match="makes no sense"):
        CropSize(0, 96)


def test_background_is_the_colour_between_the_cells():
    assert background_colour(disc_field(0.25)).tolist() == [240, 240, 240]
