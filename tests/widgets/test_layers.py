"""Cells to layers and back, without a window."""

import numpy as np
import pandas as pd
import pytest
from napari.layers import Layer

from napari_wbc.cells import Cells, measure
from napari_wbc.palette import colour

CLASSES = ("neutrophil", "lymphocyte", "erythroblast")


@pytest.fixture
def labels():
    labels = np.zeros((120, 160), np.int32)
    labels[10:30, 10:30], labels[60:90, 50:80], labels[100:120, 140:160] = 3, 70_000, 5
    return labels


@pytest.fixture
def cells(labels):
    p = np.array([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    return measure(labels, slide="a", mpp=0.1).with_predictions(p, CLASSES, 0.5)


def make(cells, labels, **more):
    from napari_wbc._widgets._layers import layers_of

    layers = [Layer.create(*layer) for layer in layers_of(cells, labels, **more)]
    return {layer.name: layer for layer in layers}


def back(layer) -> Cells:
    from napari_wbc._widgets._layers import cells_of

    return cells_of(layer.features, layer.data)


def test_points_hold_the_whole_table(cells, labels):
    layers = make(cells, labels)
    assert list(layers) == ["cells labels", "cells", "counts"]
    assert back(layers["cells"]) == cells
    assert layers["cells"].text.values.tolist() == ["neutrophil 90%", "lymphocyte 70%", "erythroblast 80%"]


@pytest.mark.parametrize("row", range(3))
def test_colours_are_those_of_the_class(cells, labels, row):
    layers = make(cells, labels)
    name = cells.table.loc[row, "class"]
    expected = [int(colour(name)[k : k + 2], 16) for k in (1, 3, 5)]
    assert np.allclose(layers["cells"].face_color[row, :3] * 255, expected, atol=1)


def test_outlines_have_the_colours_of_the_class(labels):
    labels[labels == 70_000] = 7
    cells = measure(labels).with_predictions(np.eye(3), CLASSES, 0.5)
    layer = make(cells, labels)["cells labels"]
    for label, name in zip([3, 5, 7], CLASSES, strict=True):
        expected = [int(colour(name)[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        assert np.allclose(layer.get_color(label)[:3], expected, atol=0.01)


def test_labels_features_are_found_by_id(cells, labels):
    features = make(cells, labels)["cells labels"].features
    assert features["index"].tolist() == [3, 5, 70_000]
    assert features["class"].tolist() == ["neutrophil", "lymphocyte", "erythroblast"]


def test_counts_are_the_differential(cells, labels):
    texts = make(cells, labels)["counts"].text.values.tolist()
    assert "2 white cells, exact 95 % limits" in texts
    assert "50.0 % (1.3–98.7)" in texts
    assert texts.count("1") == 3


def test_the_panel_of_counts_hides_no_cell_where_a_corner_is_free(cells, labels):
    panel = make(cells, labels)["counts"].data[0]
    first, last = panel.min(axis=0), panel.max(axis=0)
    assert (first >= 0).all()
    assert (last <= labels.shape).all()
    boxes = cells.table[["bbox-0", "bbox-1", "bbox-2", "bbox-3"]].to_numpy()
    assert not any((box[:2] < last).all() and (box[2:] > first).all() for box in boxes)


def test_scale_is_that_of_every_layer(cells, labels):
    for layer in make(cells, labels, scale=(0.1, 0.1), name="a").values():
        assert layer.scale.tolist() == [0.1, 0.1]
        assert layer.name.startswith("a ")


@pytest.mark.parametrize("classes", [(), CLASSES])
def test_no_cells(classes):
    layers = make(Cells.empty(classes), np.zeros((40, 50), np.int32))
    assert len(layers["cells"].data) == 0
    assert back(layers["cells"]) == Cells.empty(classes)
    assert ("counts" in layers) == bool(classes)


def test_a_corrected_class(cells, labels):
    points = make(cells, labels)["cells"]
    points.features.loc[0, "class"] = "lymphocyte"
    expected = cells.table.copy()
    expected.loc[0, "class"] = "lymphocyte"
    assert back(points) == Cells(expected)


def test_moved_deleted_and_added_points(cells, labels):
    points = make(cells, labels)["cells"]
    points.data = points.data + np.array([[5.0, 0], [0, 0], [0, 0]])
    points.selected_data = {1}
    points.remove_selected()
    points.add([[20, 100]])
    table = back(points).table
    assert table["centroid-0"].tolist() == [cells.table["centroid-0"][0] + 5, cells.table["centroid-0"][2], 20]
    assert table["label"].tolist() == [3, 70_000, 70_001]
    assert pd.isna(table["area"][2])


def test_a_point_added_where_no_cell_was_found():
    points = make(Cells.empty(CLASSES), np.zeros((40, 50), np.int32))["cells"]
    points.add([[20, 30]])
    table = back(points).table
    assert table[["label", "centroid-0", "bbox-1"]].to_numpy().tolist() == [[1, 20, 30]]


def test_features_of_a_table_that_was_read(cells):
    from napari_wbc._widgets._layers import cells_of

    assert cells_of(cells.table.to_dict("list"), cells.centroids) == cells


def test_many_cells_have_no_text(cells):
    from napari_wbc._widgets._layers import MAX_TEXTS, layers_of

    table = pd.concat([cells.table] * MAX_TEXTS, ignore_index=True)
    table["label"] = np.arange(len(table))
    points = next(layer for layer in layers_of(Cells(table), None) if layer[2] == "points")
    assert set(np.ravel(Layer.create(*points).text.values)) == {""}
