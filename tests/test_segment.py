"""White cells drawn with known size and place, hostile images, and a few real fields."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage as ndi

from napari_wbc.scale import RED_CELL_UM, background, hue, optical_density, resample
from napari_wbc.segment import Appearance, SegmentParameters, appearance, segment

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

FILM = (235, 225, 215)
RED = (0.08, 0.22, 0.15)  # optical density (R, G, B) of the stained things
NUCLEUS = (0.45, 0.75, 0.15)
CYTOPLASM = (0.12, 0.14, 0.04)
PLATELET = (0.25, 0.40, 0.10)


class Smear:
    """A drawn field: discs of dye on a bright film, places and sizes in µm."""

    def __init__(self, width=56.0, height=42.0, mpp=0.1):
        self.mpp = mpp
        self.density = np.zeros((round(height / mpp), round(width / mpp), 3))

    def disc(self, x, y, radius, dye, *, over=False):
        rows, columns = np.ogrid[: self.density.shape[0], : self.density.shape[1]]
        inside = (columns * self.mpp - x) ** 2 + (rows * self.mpp - y) ** 2 < radius**2
        if over:
            self.density[inside] += dye
        else:
            self.density[inside] = dye
        return self

    def red_cells(self, places):
        for x, y in places:
            self.disc(x, y, RED_CELL_UM / 2, RED, over=True)
        return self

    def cell(self, x, y, lobes=((0.0, 0.0, 3.5),), radius=5.5):
        self.disc(x, y, radius, CYTOPLASM)
        for dx, dy, r in lobes:
            self.disc(x + dx, y + dy, r, NUCLEUS)
        return self

    def image(self, film=FILM, shade=0.0, noise=2.0):
        density = ndi.gaussian_filter(self.density, (0.2 / self.mpp, 0.2 / self.mpp, 0))
        rows, columns = np.mgrid[-1 : 1 : density.shape[0] * 1j, -1 : 1 : density.shape[1] * 1j]
        light = np.array(film) * (1 - shade * (rows**2 + columns**2) / 2)[..., None]
        rgb = light * 10**-density + np.random.default_rng(0).normal(0, noise, density.shape)
        return rgb.clip(0, 255).astype(np.uint8)


AROUND = [
    *[(5, 5), (16, 6), (28, 5), (40, 6), (51, 5)],
    *[(6, 36), (17, 37), (28, 36), (40, 37), (51, 36), (6, 20), (50, 20)],
]


@pytest.fixture
def smear():
    return Smear().red_cells(AROUND)


def centres(found):
    """(x, y) in pixels of each cell."""
    n = int(found.labels.max())
    return [(x, y) for y, x in ndi.center_of_mass(found.labels > 0, found.labels, range(1, n + 1))]


def test_one_cell_with_its_size_and_place(smear):
    found = segment(smear.cell(28, 21).image())
    assert found.labels.dtype == found.nuclei.dtype == np.int32
    assert found.labels.max() == 1
    assert centres(found)[0] == pytest.approx((280, 210), abs=5)
    assert (found.labels == 1).sum() * 0.01 == pytest.approx(np.pi * 5.5**2, rel=0.12)
    assert (found.nuclei == 1).sum() * 0.01 == pytest.approx(np.pi * 3.5**2, rel=0.12)
    assert np.all(found.labels[found.nuclei > 0] == found.nuclei[found.nuclei > 0])


@pytest.mark.parametrize("mpp", [0.06, 0.1, 0.2])
def test_red_cells_are_the_ruler(mpp):
    look = appearance(Smear(mpp=mpp).red_cells(AROUND).cell(28, 21).image())
    assert look.mpp_source == "red cells"
    assert look.n_red_cells >= 8
    assert look.mpp == pytest.approx(mpp, rel=0.05)


def test_overlapping_red_cells_are_the_ruler_too():
    pairs = [(x + d, y + d / 2) for x, y in AROUND for d in (0, 4)]
    look = appearance(Smear().red_cells(pairs).cell(28, 21).image())
    assert look.mpp == pytest.approx(0.1, rel=0.1)


def test_given_scale_overrides(smear):
    look = appearance(smear.cell(28, 21).image(), SegmentParameters(mpp=0.11))
    assert (look.mpp, look.mpp_source) == (0.11, "given")


def test_without_red_cells_the_nucleus_is_the_ruler():
    found = segment(Smear(20, 20).cell(10, 10, lobes=((0, 0, 4.2),)).image())
    assert found.appearance.mpp_source == "white cells"
    assert found.appearance.mpp == pytest.approx(0.1, rel=0.15)
    assert found.labels.max() == 1


def test_lobes_are_one_cell(smear):
    lobes = ((-2.8, -1.5, 1.9), (0.2, 2.6, 1.9), (2.9, -1.2, 1.9))
    found = segment(smear.cell(28, 21, lobes, radius=6.5).image())
    assert found.labels.max() == 1
    assert ndi.label(found.nuclei)[1] == 3


def test_touching_cells_are_two(smear):
    found = segment(smear.cell(22.5, 21).cell(33.3, 21).image())
    assert found.labels.max() == 2
    assert sorted(round(x / 10) for x, _ in centres(found)) == pytest.approx([22, 33], abs=1)


def test_touching_nuclei_are_parted(smear):
    found = segment(smear.cell(23.7, 21, lobes=((0, 0, 4.6),)).cell(32.6, 21, lobes=((0, 0, 4.6),)).image())
    assert found.labels.max() == 2


def test_platelets_and_red_cells_are_none(smear):
    for x in (12, 20, 36, 44):
        smear.disc(x, 21, 1.4, PLATELET)
    assert segment(smear.image()).labels.max() == 0
    assert segment(smear.cell(28, 21).image()).labels.max() == 1


@pytest.mark.parametrize("cut", [0.5, 1.3, 2.0, 3.1])
@pytest.mark.parametrize("turns", range(4))
def test_a_cell_that_the_border_cuts_reaches_it(smear, cut, turns):
    image = smear.cell(28, 42 - 5.5 + cut, [(0, -cut, 3.5)]).image()
    labels = segment(np.rot90(image, turns).copy()).labels
    assert labels.max() == 1
    assert (np.rot90(labels, -turns)[-1] == 1).sum() * smear.mpp == pytest.approx(2 * (11 * cut - cut**2) ** 0.5, abs=2)


def test_a_cell_beside_the_border_does_not_reach_it(smear):
    labels = segment(smear.cell(28, 42 - 5.5 - 0.8).image()).labels
    assert labels.max() == 1
    assert not labels[-1].any()


def test_a_sliver_at_the_border_is_no_cell(smear):
    assert segment(smear.cell(28, 21).cell(16, 44.5).image()).labels.max() == 1


def test_two_lobes_cut_by_the_border_are_one_cell(smear):
    lobes = ((-4.2, -2.0, 2.6), (4.2, -2.0, 2.6))
    assert segment(smear.cell(28, 39, lobes, radius=8).image()).labels.max() == 1


def test_granules_are_no_nucleus(smear):
    smear.disc(28, 21, 6.0, (0.16, 0.42, 0.12)).disc(26, 21, 3.2, (0.6, 1.0, 0.2))
    found = segment(smear.image())
    assert found.labels.max() == 1
    assert (found.nuclei == 1).sum() * 0.01 == pytest.approx(np.pi * 3.2**2, rel=0.12)


def test_settled_stain_is_no_cell(smear):
    smear.cell(28, 21).disc(40, 21, 3.5, (0.15, 0.22, 0.06))
    assert segment(smear.image()).labels.max() == 1


@pytest.mark.parametrize(
    ("film", "shade"),
    [(FILM, 0.4), ((150, 190, 160), 0.0), ((255, 240, 150), 0.0), ((130, 160, 185), 0.3), ((120, 110, 105), 0.0)],
    ids=["dark corners", "green", "yellow", "blue, dark corners", "dark"],
)
def test_light_does_not_change_the_cells(smear, film, shade):
    smear.cell(18, 21).cell(38, 21)
    plain, cast = segment(smear.image()), segment(smear.image(film, shade, noise=1.0))
    assert cast.labels.max() == 2
    both = (plain.labels > 0) & (cast.labels > 0)
    assert 2 * both.sum() / ((plain.labels > 0).sum() + (cast.labels > 0).sum()) > 0.93
    assert cast.appearance.mpp == pytest.approx(0.1, rel=0.06)


def test_a_given_appearance_is_used(smear):
    image = smear.cell(28, 21).image()
    look = appearance(image)
    tile = segment(image[120:300, 180:380], appearance=look)
    assert tile.appearance is look
    assert tile.labels.max() == 1
    blind = segment(image, appearance=replace(look, nuclear=float("inf")))
    assert blind.labels.max() == 0


HOSTILE = {
    "one pixel": np.full((1, 1, 3), 200, np.uint8),
    "one row": np.full((1, 300, 3), 200, np.uint8),
    "one column": np.random.default_rng(1).integers(0, 256, (300, 1, 3), dtype=np.uint8),
    "white": np.full((200, 300, 3), 255, np.uint8),
    "black": np.zeros((200, 300, 3), np.uint8),
    "violet": np.full((200, 300, 3), (90, 40, 140), np.uint8),
    "noise": np.random.default_rng(2).integers(0, 256, (240, 320, 3), dtype=np.uint8),
    "gradient": np.broadcast_to(np.linspace(0, 255, 320).astype(np.uint8)[None, :, None], (240, 320, 3)),
    "tiny noise": np.random.default_rng(3).integers(0, 256, (7, 5, 3), dtype=np.uint8),
}


@pytest.mark.parametrize("mpp", [None, 0.03, 0.2, 1.0])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_nothing(name, mpp):
    rgb = HOSTILE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = segment(rgb, SegmentParameters(mpp=mpp))
    assert found.labels.shape == found.nuclei.shape == rgb.shape[:2]
    assert found.labels.max() == 0
    assert found.appearance.mpp_source == ("unknown" if mpp is None else "given")


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3)),
        np.zeros((0, 5, 3), np.uint8),
        None,
    ],
    ids=["grey", "RGBA", "float", "no rows", "None"],
)
def test_other_arrays_are_refused(rgb):
    with pytest.raises(ValueError, match="RGB image"):
        segment(rgb)


@pytest.mark.parametrize("mpp", [0, -0.1, float("nan"), 7.0])
def test_absurd_scales_are_refused(mpp):
    with pytest.raises(ValueError, match="µm per pixel"):
        SegmentParameters(mpp=mpp)


def test_resample_keeps_the_mean_and_a_ramp():
    ramp = np.arange(12, dtype=np.uint8)[None, :].repeat(4, axis=0)
    assert resample(ramp, (2, 6))[:, 1:-1] == pytest.approx(np.tile([2.5, 4.5, 6.5, 8.5], (2, 1)))
    assert resample(ramp, (4, 12)) == pytest.approx(ramp)
    assert resample(np.full((5, 7, 3), 9, np.uint8), (11, 3)) == pytest.approx(np.full((11, 3, 3), 9))


def test_background_ignores_cells_and_a_bright_spot(smear):
    rgb = smear.cell(28, 21).image().astype(np.float32)
    rgb[180:220, 100:140] = 255
    density = optical_density(rgb, background(rgb))
    assert np.abs(np.median(density[280:330, 200:360], axis=(0, 1))).max() < 0.01
    assert density[210, 280] == pytest.approx(NUCLEUS, abs=0.03)
    assert hue(np.array(NUCLEUS)) > 0.62 > hue(np.array(RED))


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared image collection is not here")


def read(name):
    return np.asarray(Image.open(DATA / name).convert("RGB"))


@needs_data
@pytest.mark.parametrize(("number", "cells"), [("00001", 1), ("00032", 1), ("00065", 2), ("00140", 1), ("00257", 1)])
def test_real_fields(number, cells):
    found = segment(read(f"bccd/images/BloodImage_{number}.jpg"))
    assert found.labels.max() == cells
    assert isinstance(found.appearance, Appearance)
    assert 0.065 < found.appearance.mpp < 0.1


@needs_data
@pytest.mark.parametrize("number", ["004", "287", "364", "618"])
def test_real_fields_without_a_white_cell(number):
    assert segment(read(f"fields_rbc/chula_{number}.jpg")).labels.max() == 0


@needs_data
def test_a_bright_spot_is_no_cell():
    found = segment(read("bcisc_sample/mono_3-2.jpg"))
    assert found.labels.max() == 1
    assert found.labels[744, 1664] == 1
