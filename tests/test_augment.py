"""Disturbances of crops in training."""

import pytest
import torch

from napari_wbc.augment import turn
from napari_wbc.crop import CropSize

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
