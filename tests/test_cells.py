import numpy as np
import pandas as pd
import pytest

from napari_wbc.cells import COLUMNS, Cells, CellsError, measure
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.palette import COLOURS, colour


def two_cells() -> Cells:
    labels = np.zeros((10, 20), np.int32)
    labels[2:6, 3:9] = 7
    labels[5:10, 12:15] = 70_000
    nuclei = np.zeros_like(labels)
    nuclei[3:5, 4:6] = 7
    return measure(labels, nuclei, slide="a", mpp=0.5)


def test_measure_gives_the_worked_out_numbers():
    table = two_cells().table
    assert table["label"].tolist() == [7, 70_000]
    assert table["area"].tolist() == [24, 15]
    assert table["nucleus_area"].tolist() == [4, 0]
    assert table["area_um2"].tolist() == [6, 3.75]
    assert table[["centroid-0", "centroid-1"]].to_numpy().tolist() == [[3.5, 5.5], [7, 13]]
    assert table[["bbox-0", "bbox-1", "bbox-2", "bbox-3"]].to_numpy().tolist() == [[2, 3, 6, 9], [5, 12, 10, 15]]
    assert table["at_border"].tolist() == [False, True]
    assert table["solidity"].tolist() == [1, 1]


@pytest.mark.parametrize("labels", [np.zeros((0, 0), int), np.zeros((5, 5), int)])
def test_nothing_labelled_is_an_empty_legal_table(labels):
    cells = measure(labels)
    assert len(cells) == 0
    assert list(cells.table.columns) == list(COLUMNS)


def test_a_label_image_without_background_is_one_cell():
    cells = measure(np.full((3, 4), 5))
    assert cells.table["label"].tolist() == [5]
    assert cells.table["area"].tolist() == [12]


def test_a_huge_id_costs_no_memory():
    labels = np.zeros((4, 4), np.int64)
    labels[0, 0] = 2**40
    assert measure(labels).table["label"].tolist() == [2**40]


def test_negative_labels_are_refused():
    with pytest.raises(CellsError, match="negative"):
        measure(np.full((3, 3), -1))


def test_predictions_below_the_threshold_are_unidentified():
    cells = two_cells().with_predictions(np.array([[0.6, 0.4], [0.45, 0.55]]), ["x", "y"], 0.58)
    assert cells.classes == ("x", "y")
    assert cells.table["class"].tolist() == ["x", UNIDENTIFIED]
    assert cells.table["probability"].tolist() == [0.6, 0.55]
    again = cells.with_predictions(np.array([[0.1], [1.0]]), ["z"], 0.5)
    assert again.classes == ("z",)
    assert again.table["class"].tolist() == [UNIDENTIFIED, "z"]


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(CellsError, match="need probabilities"):
        two_cells().with_predictions(np.zeros((1, 2)), ["x", "y"], 0.5)


def test_a_column_of_the_users_own_is_kept():
    table = two_cells().table
    table["remark"] = ["", "Auer rod"]
    assert Cells(table).table["remark"].tolist() == ["", "Auer rod"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="area"), "lacks the columns area"),
        (lambda t: t.assign(area="many"), "area cannot be read"),
        (lambda t: t.assign(probability=1.5), "outside 0 to 1"),
        (lambda t: t.assign(label=1), "same slide and label"),
    ],
)
def test_an_illegal_table_is_refused(change, message):
    with pytest.raises(CellsError, match=message):
        Cells(change(two_cells().table))


def test_empty_has_the_classes_asked_for():
    cells = Cells.empty(["a", "b"])
    assert cells.classes == ("a", "b")
    assert cells == Cells(pd.DataFrame(cells.table))


@pytest.mark.parametrize("label", ["ig", "Immature_granulocytes", " immature granulocyte "])
def test_a_class_has_one_colour_whatever_a_data_set_calls_it(label):
    assert colour(label) == COLOURS["immature granulocyte"]
    assert colour("blast") not in COLOURS.values()
