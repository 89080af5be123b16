"""Targets, ranges and two readers, against worked-out numbers."""

import numpy as np
import pytest

from napari_wbc.agreement import by_model, compare, difference_limits, kappa
from napari_wbc.cells import Cells, measure
from napari_wbc.count import differential, differential_of
from napari_wbc.counted import chosen, walk
from napari_wbc.reference import SHIPPED, RangesError, flag_sign, load_ranges, with_ranges

CLASSES = ["neutrophil", "lymphocyte", "monocyte"]


def cells_of(*names: str) -> Cells:
    labels = np.zeros((1, 2 * len(names) + 1), int)
    labels[0, 1::2] = np.arange(1, len(names) + 1)
    said = measure(labels, slide="a").with_predictions(np.tile([0.8, 0.1, 0.1], (len(names), 1)), CLASSES, 0.5)
    return Cells(said.table.assign(**{"class": list(names)}))


def test_kappa_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 4, (2, 300))
    two = np.where(rng.random(300) < 0.6, one, two)
    matrix = np.histogram2d(one, two, bins=[range(5)] * 2)[0].astype(int)
    assert kappa(matrix) == pytest.approx(metrics.cohen_kappa_score(one, two))
    # Cohen 1960 and every textbook: 20 + 15 of 50 agree.
    assert kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)
    assert np.isnan(kappa(np.zeros((2, 2), int)))
    assert np.isnan(kappa(np.array([[5, 0], [0, 0]])))
    assert np.isnan(kappa(np.array([[5, 3], [0, 0]])))  # of one class: it would be 0 whatever


@pytest.mark.parametrize("counts", [(5, 100, 12, 100), (0, 100, 6, 100), (60, 100, 120, 200), (3, 50, 3, 400)])
def test_limits_of_a_difference_are_quantiles_of_the_hypergeometric(counts):
    hypergeom = pytest.importorskip("scipy.stats").hypergeom
    a, n, b, m = counts
    law = hypergeom(n + m, a + b, n)
    k = np.arange(0, a + b + 1)
    inside = k[(law.cdf(k) >= 0.025) & (law.sf(k - 1) >= 0.025)]
    expected = [x / n - (a + b - x) / m for x in (inside[0], inside[-1])]
    assert difference_limits(a, n, b, m) == pytest.approx(expected)


def test_the_difference_of_large_counts_is_that_of_the_formula_of_laboratories():
    low, high = difference_limits(120, 400, 120, 400)
    assert high == pytest.approx(1.96 * np.sqrt(0.3 * 0.7 * 2 / 400), abs=0.004)
    assert low == -high
    assert difference_limits(0, 0, 3, 10) == (-1, 1)


def test_two_readers():
    one = cells_of(*["neutrophil"] * 6, "lymphocyte", "lymphocyte", "smudge", "")
    two = cells_of(*["neutrophil"] * 5, "monocyte", "lymphocyte", "lymphocyte", "smudge", "neutrophil")
    found = compare(one, two, ("A", "B"))
    assert (found.common, found.same) == (9, 8)
    assert found.matrix.loc["neutrophil", "monocyte"] == 1
    shares = found.shares.set_index("class")
    assert shares.loc["neutrophil", ["n_1", "of_1", "n_2", "of_2"]].tolist() == [6, 8, 6, 9]
    assert shares.loc["neutrophil", "difference"] == pytest.approx(75 - 100 * 6 / 9, abs=1e-3)
    assert shares["within"].all()
    assert "smudge" not in shares.index
    model = compare(one, by_model(one))
    assert model.matrix.loc["lymphocyte", "neutrophil"] == 2
    nothing = compare(Cells.empty(CLASSES), Cells.empty(CLASSES))
    assert nothing.common == 0
    assert np.isnan(nothing.kappa)


def test_a_cell_that_the_model_left_unidentified_is_no_disagreement():
    before = cells_of("unidentified", "unidentified", "neutrophil", "lymphocyte")
    after = cells_of("neutrophil", "lymphocyte", "neutrophil", "lymphocyte")
    found = compare(after, before)
    assert (found.common, found.same, found.unidentified) == (2, 2, 2)
    assert found.kappa == 1
    assert found.matrix.loc["neutrophil", "unidentified"] == 1  # what became of them stands in the matrix
    only = compare(after.where(np.arange(4) < 2), before.where(np.arange(4) < 2))
    assert (only.common, only.unidentified) == (0, 2)
    assert np.isnan(only.kappa)  # was 0, as if they disagreed


def test_counts_that_differ_by_more_than_chance():
    one, two = (
        cells_of(*["neutrophil"] * 90, *["lymphocyte"] * 10),
        cells_of(*["neutrophil"] * 60, *["lymphocyte"] * 40),
    )
    assert not compare(one, two).shares.set_index("class").loc["lymphocyte", "within"]


def test_the_sign_of_a_value_outside_its_range_says_whether_its_limits_are_outside_too():
    assert flag_sign("high", 55, 70, 40, 50) == "▲"
    assert flag_sign("high", 45, 70, 40, 50) == "△"
    assert flag_sign("low", 10, 35, 40, 50) == "▼"
    assert flag_sign("low", 10, 45, 40, 50) == "▽"
    assert flag_sign("", 41, 49, 40, 50) == ""


def test_ranges_flags_and_absolute_counts():
    counts = differential(cells_of(*["neutrophil"] * 85, *["lymphocyte"] * 10, *["monocyte"] * 5, "erythroblast"))
    table = with_ranges(counts, load_ranges(), 12_000).set_index("class")
    assert table["flag"].to_dict() == {
        "neutrophil": "high", "lymphocyte": "low", "monocyte": "", "erythroblast": "", "unidentified": ""
    }  # fmt: skip
    assert table.loc["neutrophil", ["per_ul", "per_ul_flag"]].tolist() == [10_200, "high"]
    assert table.loc["lymphocyte", ["per_ul", "per_ul_flag"]].tolist() == [1200, ""]
    assert table.loc["erythroblast", "per_ul"] == 120
    assert with_ranges(counts, load_ranges())["per_ul"].isna().all()
    few = with_ranges(differential_of({"neutrophil": 60, "lymphocyte": 40, "basophil": 0}), load_ranges(), 6_000)
    # Most counts of 100 meet no basophil: that is low neither in % nor per µL.
    assert few.set_index("class").loc["basophil", ["flag", "per_ul_flag"]].tolist() == ["", ""]
    for wbc in (0, -1, 1e9, float("nan")):
        with pytest.raises(ValueError, match="WBC is"):
            with_ranges(counts, load_ranges(), wbc)


def test_ranges_of_ones_own(tmp_path):
    text = SHIPPED.read_text("utf-8").replace("[40, 63]", "[50, 60]")
    (tmp_path / "ours.toml").write_text(text, "utf-8")
    assert load_ranges(tmp_path / "ours.toml").percent["neutrophil"] == (50, 60)
    for bad in ("nonsense", "source='x'", "source='x'\n[ranges.a]\npercent=[2,1]", "source='x'\n[ranges.a]\npercent=3"):
        (tmp_path / "bad.toml").write_text(bad)
        with pytest.raises(RangesError, match=r"bad\.toml: not a table of reference ranges"):
            load_ranges(tmp_path / "bad.toml")
    with pytest.raises(RangesError, match="cannot be read"):
        load_ranges(tmp_path / "none.toml")


def test_the_walk_is_even_at_every_number_and_the_same_for_the_same_seed():
    centroids = np.random.default_rng(0).random((2000, 2)) * [1000, 3000]
    order = walk(centroids, 1)
    assert sorted(order) == list(range(2000))
    assert (walk(centroids, 1) == order).all()
    assert (walk(centroids, 2) != order).any()
    for n in (100, 200, 400):
        # Each of eight parts of the smear gives its share.
        part = centroids[order[:n], 1] // 750 + 4 * (centroids[order[:n], 0] // 500)
        assert np.abs(np.bincount(part.astype(int), minlength=8) - n / 8).max() <= 0.2 * n / 8 + 3
    assert len(walk(np.empty((0, 2)))) == 0
    assert len(walk(np.ones((3, 2)))) == 3


def test_the_count_takes_what_it_meets_on_the_way():
    cells = cells_of("neutrophil", "platelet", "smudge", "lymphocyte", "erythroblast", "unidentified", "monocyte")
    order = np.arange(7)
    assert chosen(cells, order, 2).tolist() == [True] * 4 + [False] * 3
    assert chosen(cells, order, 3).tolist() == [True] * 6 + [False]
    assert chosen(cells, order, 100).all()
    assert chosen(cells, order, None).all()
