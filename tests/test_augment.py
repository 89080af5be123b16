"""Disturbances of crops in training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from napari_wbc.augment import DISTURBANCES, disturb
from napari_wbc.batches import Batches
from napari_wbc.crop import CropSize
from napari_wbc.draws import drawing
from napari_wbc.recipe import load_recipe
from napari_wbc.turning import turn

STORED, SIZE = CropSize(32.9, 94, 0), CropSize(22.4, 64, 0)


def half_dark(n):
    crops = torch.full((n, 94, 94, 3), 240, dtype=torch.uint8)
    crops[:, 30:64, 30:64] = 90
    return crops


@pytest.mark.parametrize("border", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 32])
def test_a_border_leaves_background_beyond_it(n, border):
    torch.manual_seed(0)
    seen = turn(half_dark(n), STORED, SIZE, rotate=False, flip=False, border=border)
    assert seen.shape == (n, 3, 64, 64)
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 1
    dark = (seen[:, 0] < 0.6).float().mean((1, 2))
    if border == 0:  # every cell is whole
        torch.testing.assert_close(dark, dark[:1].expand(n))
    elif n > 1:  # some are cut
        assert dark.min() < 0.8 * dark.max()


def test_cells_that_no_border_cuts_stay_as_they_are():
    torch.manual_seed(3)
    few = turn(half_dark(1), STORED, SIZE, rotate=False, flip=False, border=1e-9)
    torch.testing.assert_close(few, turn(half_dark(1), STORED, SIZE, rotate=False, flip=False))


@pytest.mark.parametrize("name", sorted(DISTURBANCES))
def test_a_disturbance_leaves_its_input_and_repeats_its_draws(name):
    crops = turn(half_dark(24), STORED, SIZE)
    before = crops.clone()
    results = []
    for _ in range(2):
        with drawing(5):
            results.append(disturb(crops, [{"step": name, "of": 0.9}], (), SIZE))
    torch.testing.assert_close(crops, before, atol=0, rtol=0)
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)
    assert torch.isfinite(results[0]).all()
    assert not torch.equal(results[0], crops)


def test_a_blur_is_that_of_torchvision():
    from torchvision.transforms.functional import gaussian_blur

    from napari_wbc.augment import _gaussian

    crops = turn(half_dark(2), STORED, SIZE)
    torch.testing.assert_close(_gaussian(crops, 1.1), gaussian_blur(crops, [5, 5], [1.1, 1.1]), atol=1e-5, rtol=0)


def test_batches_do_not_depend_on_the_number_of_threads():
    recipe = load_recipe("wbc8").but(per_epoch=80, batch_size=40)
    n, side = 12, 218
    crops = np.random.default_rng(0).integers(0, 255, (n, side, side, 3), np.uint8)
    ready = SimpleNamespace(
        crops=crops, y=np.arange(n) % 8, classes=tuple(recipe.classes.values()), stored=CropSize(38.08, side),
        split=SimpleNamespace(rows=lambda _: np.arange(n)), extra=crops[:0], extra_y=np.zeros(0, int),
        extra_weight=np.zeros(0),
    )  # fmt: skip
    threads, seen = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            seen.append([x for x, _ in Batches(ready, recipe)])
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert len(seen[0]) == 2
    for one, two in zip(*seen, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)
    assert not torch.equal(*seen[0])
