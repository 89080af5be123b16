"""Platelets: small azure bodies between the red cells, and what their number means."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from napari_wbc.case import read_case
from napari_wbc.cells import Cells, measure
from napari_wbc.platelets import FIELD_MM2, PER_UL, Film, Platelets, film_of, platelets_in, pooled
from napari_wbc.report import make_report
from napari_wbc.slide import Slide

MPP = 0.1
PAPER, RED, AZURE, NUCLEUS = (240, 235, 235), (215, 165, 160), (165, 130, 215), (100, 50, 150)


def film(*discs) -> np.ndarray:
    """Draw discs (row, column, diameter in µm, colour), one over the other, with soft edges."""
    from scipy.ndimage import gaussian_filter

    image = np.full((400, 500, 3), PAPER, float)
    rows, columns = np.ogrid[:400, :500]
    for row, column, um, colour in discs:
        image[np.hypot(rows - row, columns - column) < um / MPP / 2] = colour
    image = gaussian_filter(image, (1.5, 1.5, 0)) + np.random.default_rng(0).normal(0, 1.0, image.shape)
    return image.clip(0, 255).astype(np.uint8)


REDS = [(60, 60, 7.2, RED), (60, 200, 7.2, RED), (330, 80, 7.2, RED), (200, 60, 7.2, RED), (330, 240, 7.2, RED)]


def test_small_azure_bodies_between_red_cells_are_found():
    here = [(130, 130), (60, 420), (350, 400)]
    image = film(
        *REDS, (200, 330, 11, NUCLEUS), *((y, x, 2.5, AZURE) for y, x in here),
        (60, 60, 2.5, AZURE),  # a flaw on a red cell
        (130, 420, 0.8, AZURE), (300, 330, 6.0, AZURE),  # too small, too large
        (380, 180, 2.5, RED),  # a crumb of a red cell
    )  # fmt: skip
    found = platelets_in(image, MPP)
    assert sorted(map(tuple, found.round(-1).tolist())) == sorted(here)
    assert len(platelets_in(film(*REDS), MPP)) == 0


def test_what_lies_in_a_cell_counts_by_its_class():
    labels = np.zeros((400, 500), np.int32)
    labels[100:140, 100:140], labels[300:320, 300:320] = 1, 2
    cells = measure(labels, slide="a", mpp=MPP)
    table = cells.table.assign(**{"class": ["neutrophil", "platelet"]})
    found = Film([(0, 0, 400, 500)], [np.array([[120.0, 120.0], [200.0, 200.0], [310.0, 310.0]])], MPP)
    assert found.count(Cells(table)) == Platelets(2, 400 * 500 * MPP**2 / 1e6, 1)
    assert found.count(Cells(table.assign(**{"class": "neutrophil"}))).n == 1


def test_the_estimate_is_per_field_and_per_microlitre():
    one = Platelets(30, 10 * FIELD_MM2)
    assert one.per_field == pytest.approx(3)
    assert one.per_ul == pytest.approx(3 * PER_UL)
    low, high = one.limits
    # Garwood's limits of a Poisson count of 30: 20.24 to 42.83.
    assert (low / PER_UL * 10, high / PER_UL * 10) == pytest.approx((20.24, 42.83), abs=0.01)
    assert Platelets(0, FIELD_MM2).limits == pytest.approx((0, 3.689 * PER_UL), rel=1e-3)
    assert "3.0 per oil-immersion field" in one.line
    assert "about 28,000 per µL (19,000 – 40,000 by chance alone)" in one.line
    assert pooled([one, None, Platelets(10, FIELD_MM2)]) == Platelets(40, 11 * FIELD_MM2, 2)
    assert pooled([None]) is None


@pytest.mark.parametrize("mpp", [math.nan, 0.5])
def test_without_a_fine_scale_there_is_no_estimate(mpp):
    labels = np.zeros((40, 40), np.int32)
    labels[10:30, 10:30] = 1
    slide = Slide.from_array(np.full((40, 40, 3), 230, np.uint8))
    assert film_of(slide, measure(labels, slide="a", mpp=mpp)) is None
    assert film_of(slide, Cells.empty()) is None


def test_no_part_of_a_small_slide_is_counted_twice():
    labels = np.zeros((1400, 2200), np.int32)  # 280 µm by 440 µm: no place for ten windows of 195 µm
    for k in range(24):
        labels[100 + k // 6 * 350 :, 100 + k % 6 * 380 :][:40, :40] = k + 1
    slide = Slide.from_levels([np.full((*labels.shape, 3), 230, np.uint8)])
    assert slide.is_whole
    seen = film_of(slide, measure(labels, slide="a", mpp=0.2))
    covered = np.zeros(labels.shape, int)
    for top, left, bottom, right in seen.windows:
        assert (bottom - top, right - left) == (975, 975)
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1
    counted = seen.count(Cells.empty())
    assert counted.parts == len(seen.windows) < 10
    assert counted.area_mm2 == pytest.approx(covered.sum() * 0.2**2 / 1e6)


def test_the_report_says_it(case):
    report = make_report(case / "r/nine")
    found = report.content["platelets"]
    assert found["n"] > 0
    assert found["per_ul"] == pytest.approx(PER_UL * found["per_field"])
    assert found["line"].replace("µ", "u") in report.as_html().replace("µ", "u")
    assert f"platelets,n,{found['n']}" in report.as_csv()
    assert json.loads(report.as_json())["platelets"] == found
    whole = read_case(case / "r/nine")
    lost = replace(whole, pictures=(replace(whole.pictures[0], path=None),))
    assert make_report(lost).content["platelets"] is None
