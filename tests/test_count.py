import numpy as np
import pytest

from napari_wbc.cells import Cells, measure
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.count import clopper_pearson, differential


def cells_of(**counts: int) -> Cells:
    classes = ["neutrophil", "lymphocyte", "erythroblast", "platelet"]
    names = [name.replace("_", " ") for name, n in counts.items() for _ in range(n)]
    labels = np.zeros((1, 2 * len(names) + 1), int)
    labels[0, 1::2] = np.arange(1, len(names) + 1)
    table = measure(labels).with_predictions(np.full((len(names), 4), 0.25), classes, 0).table
    table["class"] = names
    return Cells(table)


def test_clopper_pearson_against_published_values():
    # Rümke's table of exact 95 % limits: 5 of 100 is 1 to 12 (rounded outwards), 50 of 100 is 39 to 61.
    assert clopper_pearson(5, 100) == pytest.approx((0.01643, 0.11283), abs=1e-5)
    assert clopper_pearson(50, 100) == pytest.approx((0.39832, 0.60168), abs=1e-5)
    # None seen: the upper limit is 1 - 0.025 ** (1 / n).
    assert clopper_pearson(0, 100) == pytest.approx((0, 1 - 0.025 ** (1 / 100)))
    assert clopper_pearson(0, 0) == (0, 1)


def test_percentages_are_over_identified_white_cells_only():
    table = differential(
        cells_of(neutrophil=12, lymphocyte=4, erythroblast=8, platelet=3, unidentified=4, not_a_white_cell=1, smudge=4),
        "s",
    ).set_index("class")
    assert table.loc["neutrophil", ["n", "of", "value"]].tolist() == [12, 16, 75]
    assert table.loc["lymphocyte", ["n", "of", "value"]].tolist() == [4, 16, 25]
    assert table.loc["erythroblast", ["n", "value", "unit"]].tolist() == [8, 50, "per 100 white cells"]
    assert table.loc["platelet", "n"] == 3
    assert np.isnan(table.loc["platelet", "low"])
    assert table.loc[UNIDENTIFIED, ["n", "of", "value"]].tolist() == [4, 20, 20]
    assert table.loc["not a white cell", ["n", "group"]].tolist() == [1, "other"]
    assert table.loc["smudge", ["n", "of", "value", "unit"]].tolist() == [4, 16, 25, "per 100 white cells"]
    assert table["n"].sum() == 36
    low, high = clopper_pearson(8, 24)
    expected = (100 * low / (1 - low), 100 * high / (1 - high))
    assert tuple(table.loc["erythroblast", ["low", "high"]]) == pytest.approx(expected, abs=1e-4)


def test_a_reviewers_new_class_counts_as_a_white_cell():
    table = differential(cells_of(neutrophil=1, blast=1)).set_index("class")
    assert table.loc["blast", ["group", "value"]].tolist() == ["white", 50]


def test_no_cell_is_zero_counts():
    table = differential(Cells.empty(["neutrophil", "erythroblast"]))
    assert table["n"].tolist() == [0, 0, 0]
    assert table["value"].isna().all()


def test_beside_few_white_cells_there_is_no_ratio():
    """Its limits would be 0 to 3900 per 100 beside one, and infinite beside none."""
    for white in (0, 1, 9):
        table = differential(cells_of(erythroblast=3, neutrophil=white, smudge=1)).set_index("class")
        assert table.loc[["erythroblast", "smudge"], "n"].tolist() == [3, 1]
        assert table.loc[["erythroblast", "smudge"], ["value", "low", "high"]].isna().all(axis=None)
    assert differential(cells_of(erythroblast=3, neutrophil=10)).set_index("class").loc["erythroblast", "value"] == 30
