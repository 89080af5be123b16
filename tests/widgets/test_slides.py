"""Whole slides in a real viewer: opened lazily, classified in all or in part."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import slides

from napari_wbc._widgets._layers import cells_of
from napari_wbc._widgets._source import drawn_regions, seen_region
from napari_wbc.pipeline import analyse, run
from napari_wbc.slide import Slide


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return slides.write(tmp_path_factory.mktemp("slide") / "slide.svs", slides.mosaic())


def layer_named(viewer, start):
    return next(layer for layer in viewer.layers if layer.name.startswith(start))


def test_a_slide_is_opened_classified_and_saved_like_a_field(viewer, dock, press, path, classifier, tmp_path):
    (image,) = viewer.open(str(path), plugin="napari-wbc")
    assert image.multiscale
    assert tuple(image.scale) == pytest.approx((slides.MPP, slides.MPP), rel=1e-3)
    assert str(image.units[0]) == "micrometer"
    assert len(viewer.layers) == 1
    assert not {"label", "macro"} & set(image.metadata)
    widget = dock()
    assert not widget.area.isHidden()
    press(widget)
    assert widget.results.head.text().splitlines()[-1].startswith("7 cells: ")
    cells = layer_named(viewer, "cells")
    wanted = run(analyse(Slide.open(path), classifier)).cells
    assert cells_of(cells.features, cells.data) == wanted
    names = [layer.name for layer in viewer.layers]
    assert [name for name in names if name == "cells so far"] == []
    density = layer_named(viewer, "density")
    for layer in (density, image):  # it ends where the slide does
        height, width = (layer.data[0] if layer.multiscale else layer.data).shape[:2]
        ends = layer.translate + layer.scale * np.array([(-0.5, -0.5), (height - 0.5, width - 0.5)])
        np.testing.assert_allclose(
            ends, np.array([(-0.5, -0.5), np.subtract(image.data[0].shape[:2], 0.5)]) * image.scale
        )
    area = np.prod(density.scale) / 1e6
    assert (density.data * area).sum() == pytest.approx(7)
    regions = layer_named(viewer, "regions")
    np.testing.assert_allclose(regions.extent.world[1], image.extent.world[1], atol=70)
    # Its maps are no smears.
    assert [widget.image.itemText(k) for k in range(widget.image.count())] == ["slide.svs"]
    folder = widget.save(tmp_path / "saved")
    assert {"cells.csv", "regions.csv", "slide.json"} <= {file.name for file in folder.iterdir()}
    viewer.layers.clear()
    viewer.open(str(folder), plugin="napari-wbc")
    assert [layer.name for layer in viewer.layers][:2] == ["slide.svs", "cells"]
    assert len(layer_named(viewer, "cells").data) == 7


def test_only_what_was_drawn_or_is_seen_is_classified(viewer, dock, press, path):
    (image,) = viewer.open(str(path), plugin="napari-wbc")
    widget = dock()
    widget.area.setCurrentText("inside drawn shapes")
    assert "nothing is drawn" in press(widget)
    box = np.array([(0, 640), (0, 1280), (480, 1280), (480, 640)]) * slides.MPP
    shapes = viewer.add_shapes([box], shape_type="rectangle", units=image.units)
    np.testing.assert_allclose(drawn_regions(shapes, image)[0][2], (480, 1280), rtol=1e-3)
    widget.image.choose(image)
    press(widget)
    assert widget.results.head.text().splitlines()[-1].startswith("2 cells: ")
    (seen,) = seen_region(image)
    assert (seen.min(axis=0) <= 1).all()
    assert (seen.max(axis=0) >= (940, 1260)).all()
