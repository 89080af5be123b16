"""All regions at once against scikit-image and NumPy, region by region."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import ndimage as ndi
from skimage.filters import threshold_otsu
from skimage.measure import regionprops

from napari_wbc.regions import Regions, otsu, quantile, side_by_side


def drawn(seed):
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:  # crumbs of several numbers, none of which holds together
        return rng.integers(0, 6, (20, 30)) * (rng.random((20, 30)) < 0.1)
    smooth = ndi.gaussian_filter(rng.normal(size=(80, 90)), rng.uniform(0.5, 4))
    return ndi.label(smooth > np.quantile(smooth, 0.6))[0]


@pytest.mark.parametrize("seed", range(12))
def test_shapes_are_those_of_scikit_image(seed):
    labels = drawn(seed)
    regions = Regions(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # regions without a hull
        for one in regionprops(labels):
            k = one.label
            assert regions.count[k] == one.area
            assert tuple(regions.boxes[k]) == one.bbox
            np.testing.assert_allclose(regions.centroids[k], one.centroid)
            assert regions.eccentricity[k] == pytest.approx(one.eccentricity, abs=1e-6)
            assert regions.solidity[k] == pytest.approx(one.solidity if np.isfinite(one.solidity) else 1.0)
            np.testing.assert_array_equal(regions.points[k], one.coords)


def test_an_image_without_regions():
    regions = Regions(np.zeros((4, 5), int))
    assert regions.n == 1
    assert regions.boxes.tolist() == [[0, 0, 0, 0]]
    assert np.isnan(regions.solidity).all()


def test_quantiles_and_otsu_of_each_region():
    rng = np.random.default_rng(1)
    of = rng.integers(1, 9, 3000)
    of[of == 4] = 5  # a number that no region has
    values = (rng.normal(size=3000) + 3 * rng.integers(0, 2, 3000)).astype(np.float32)
    median, upper, parted = quantile(values, of, 9), quantile(values, of, 9, 0.75), otsu(values, of, 9, 64)
    for k in np.unique(of):
        own = values[of == k]
        assert median[k] == np.median(own)
        assert upper[k] == pytest.approx(np.percentile(own, 75))
        assert parted[k] == threshold_otsu(own, nbins=64)
    assert np.isnan([median[4], upper[4], parted[4]]).all()
    assert otsu(np.full(3, 2.5, np.float32), np.zeros(3, int), 1, 64) == [2.5]


def test_windows_lie_side_by_side_once_each():
    rng = np.random.default_rng(2)
    first = rng.integers(0, 50, (200, 2))
    boxes = np.hstack([first, first + rng.integers(1, 60, (200, 2))])
    seen = []
    for which, left, (height, width) in side_by_side(boxes, 3, most=16):
        rows, columns = (boxes[which, 2:] - boxes[which, :2]).T
        assert len(which) <= 16
        assert rows.max() == height <= 2 * rows.min()
        assert (left[1:] >= left[:-1] + columns[:-1] + 3).all()
        assert left[-1] + columns[-1] + 3 == width
        seen += which.tolist()
    assert sorted(seen) == list(range(200))
