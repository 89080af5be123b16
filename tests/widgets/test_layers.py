"""Cells to layers and back, without a window."""

import numpy as np
import pandas as pd
import pytest
from napari.layers import Layer

from napari_wbc.cells import Cells, measure
from napari_wbc.palette import COLOURS, colour

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
    assert list(layers) == ["cells labels", "cells", "names", "counts"]
    assert back(layers["cells"]) == cells
    assert layers["names"].text.values.tolist() == ["neutrophil 90%", "lymphocyte 70%", "erythroblast 80%"]


def test_a_cell_that_is_unlike_the_known_ones_says_so_in_place_of_a_probability(cells, labels):
    """*unidentified 89%* would be a riddle: the probability is that of its likeliest class."""
    table = cells.table.assign(reason=["unlike", "improbable", "unlike"])
    for k in (0, 1):
        table.loc[k, ["class", "class_model"]] = "unidentified"
    layers = make(Cells(table), labels)  # the third one has a class: a reviewer's, say
    texts = layers["names"].text.values.tolist()
    assert texts == ["unidentified: unlike", "unidentified 70%", "erythroblast 80%"]


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
    assert "2 white cells of 3 cells, exact 95 % limits" in texts
    assert "50.0 % (1.3–98.7)" in texts
    assert texts.count("1") == 3


def overlap(one, other):
    return (one.min(axis=0) < other.max(axis=0)).all() and (one.max(axis=0) > other.min(axis=0)).all()


def test_the_panel_of_counts_is_below_the_picture_and_its_columns_apart():
    names = ("immature granulocyte", "erythroblast", "a class of one's own with a long name")
    shares = np.repeat(np.eye(3), [20, 1, 5], axis=0)
    labels = np.zeros((120, 160), np.int32)
    labels.ravel()[:: 120 * 160 // 26][:26] = np.arange(1, 27)
    layer = make(measure(labels).with_predictions(shares, names, 0.5), labels)["counts"]
    panel, *lines = layer.data
    texts = layer.text.values.tolist()[1:]
    assert panel.min(axis=0)[0] > labels.shape[0]
    assert panel.min(axis=0)[1] == 0
    written = [box for box, text in zip(lines, texts, strict=True) if text]
    assert all((box.min(axis=0) >= panel.min(axis=0)).all() for box in written)
    assert all((box.max(axis=0) <= panel.max(axis=0)).all() for box in written)
    assert not any(overlap(a, b) for k, a in enumerate(written) for b in written[:k])


def test_names_stand_inside_the_picture_and_apart():
    labels = np.zeros((400, 600), np.int32)
    for k, (row, column) in enumerate([(0, 0), (0, 560), (360, 0), (360, 560), (180, 280), (180, 325), (225, 300)]):
        labels[row : row + 40, column : column + 40] = k + 1
    names = ("immature granulocyte", "neutrophil")
    cells = measure(labels).with_predictions(np.tile([0.3, 0.7], (7, 1)).T[[0, 1]].T, names, 0)
    plates = make(cells, labels)["names"].data
    assert len(plates) == 7
    assert all((box.min(axis=0) >= 0).all() and (box.max(axis=0) <= labels.shape).all() for box in plates)
    assert not any(overlap(a, b) for k, a in enumerate(plates) for b in plates[:k])


@pytest.mark.parametrize("name", COLOURS)
def test_names_can_be_read_on_their_plate(name):
    from napari_wbc._widgets._panel import ink_on

    def luminance(text):
        light = [value / 255 for value in bytes.fromhex(text[1:])]
        light = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in light]
        return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] + 0.05

    one, other = sorted([luminance(colour(name)), luminance(ink_on(colour(name)))])
    assert other / one > 4.5  # WCAG 2, level AA


def test_outlines_and_names_follow_corrections(cells, labels):
    from napari_wbc._widgets._layers import show_corrections

    labels[labels == 70_000] = 7
    cells = measure(labels).with_predictions(np.eye(3), CLASSES, 0.5)
    layers = make(cells, labels)
    table = cells.table.copy()
    table.loc[0, "class"] = "lymphocyte"
    show_corrections(layers, Cells(table[table["label"] != 7]), labels.shape)
    outlines = layers["cells labels"]
    wanted = [int(colour("lymphocyte")[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    assert np.allclose(outlines.get_color(3)[:3], wanted, atol=0.01)
    assert outlines.get_color(7)[3] == 0
    assert outlines.features.set_index("index")["class"][3] == "lymphocyte"
    # The probability is of the class that the model said.
    assert layers["names"].text.values.tolist() == ["lymphocyte", "lymphocyte 100%"]


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


def test_many_cells_have_no_names(cells):
    from napari_wbc._widgets._layers import layers_of
    from napari_wbc._widgets._panel import MAX_NAMES

    table = pd.concat([cells.table] * MAX_NAMES, ignore_index=True)
    table["label"] = np.arange(len(table))
    names = next(layer for layer in layers_of(Cells(table), None) if layer[1]["name"] == "names")
    assert not Layer.create(*names).data
