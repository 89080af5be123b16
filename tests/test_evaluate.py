"""Judging models: metrics against values worked out by hand, limits, and the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from napari_wbc.console import result_line
from napari_wbc.dataset import DatasetError
from napari_wbc.evaluate import Evaluation, calibration_error, compare, evaluate
from napari_wbc.evaluate_report import classes_table, limits_note, metrics_table, number, write_report

CROPS = Path(__file__).parent / "data/crops"


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_wbc.evaluate.RESAMPLES", 100)


def result(p: list[list[float]], y: list[str], unit: list[int] | None = None, model: str = "m") -> Evaluation:
    classes = ("a", "b", "c")
    array = np.array(p, float)
    table = pd.DataFrame({"file": [f"{k}.png" for k in range(len(y))], "class": y})
    table["predicted"] = np.array(classes, object)[array.argmax(1)]
    table["probability"] = array.max(1)
    table["right"] = table["predicted"] == table["class"]
    for k, name in enumerate(classes):
        table[f"p_{name}"] = array[:, k]
    return Evaluation(model, "d", classes, table, np.array(unit or range(len(y))), classes)


FOUR = result([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.5, 0.4]], ["a", "b", "b", "c"])


def test_metrics_of_four_cells() -> None:
    summary = FOUR.summary.set_index("metric")["value"]
    assert summary["accuracy"] == 0.5
    assert summary["balanced accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    # F1 of a: 2/3; of b: precision 1/2, recall 1/2; of c: 0.
    assert summary["macro-F1"] == pytest.approx((2 / 3 + 0.5 + 0) / 3)
    assert summary["log loss"] == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.4]).mean())
    table = FOUR.per_class().set_index("class")
    assert table.loc["a", "specificity"] == pytest.approx(2 / 3)
    assert table.loc["b", "precision"] == 0.5
    assert table.loc["c", "recall"] == 0
    assert np.isnan(table.loc["c", "precision"])
    assert FOUR.confusion().loc["b"].tolist() == [1, 1, 0]


def test_calibration_error_by_hand() -> None:
    # Two bins: confidence 0.95, half right; confidence 0.55, all right.
    confidence, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)


def test_rejecting_the_least_probable() -> None:
    curve = FOUR.rejection()
    assert curve.iloc[0].tolist() == [0.0, 0.5]
    assert curve.iloc[-1].tolist() == [0.75, 1.0]


def test_limits_draw_whole_units() -> None:
    p = [[0.9, 0.05, 0.05]] * 20 + [[0.05, 0.9, 0.05]] * 20
    y = ["a"] * 20 + ["a"] * 20
    alone = result(p, y).summary.set_index("metric").loc["accuracy"]
    together = result(p, y, [0] * 20 + [1] * 20).summary.set_index("metric").loc["accuracy"]
    assert alone["low"] > 0.3
    assert together["low"] == 0
    assert together["high"] == 1


def test_where_no_cell_is_wrong_the_limits_are_exact_or_none() -> None:
    """A bootstrap of cells that are all right would say 1 to 1, whatever their number."""
    p, y = [[0.9, 0.05, 0.05]] * 6 + [[0.05, 0.9, 0.05]] * 6, ["a"] * 6 + ["b"] * 6
    told = result(p, y).summary.set_index("metric")
    assert told.loc["accuracy", ["low", "high"]].tolist() == [pytest.approx(0.025 ** (1 / 12)), 1.0]
    assert told.loc[["macro-F1", "Cohen's kappa"], ["low", "high"]].isna().all(axis=None)
    patients = result(p, y, [0, 0, 1, 1, 2, 2] * 2).summary.set_index("metric")
    assert patients.loc["accuracy", "low"] == pytest.approx(0.025 ** (1 / 3))  # three patients, not twelve cells
    one = result([*p[:11], p[0]], y, [0] * 12).summary.set_index("metric")
    assert one.loc["accuracy", ["low", "high"]].isna().all()  # of one patient nothing follows for others
    assert "those of the accuracy are exact" in limits_note(result(p, y))
    assert "exact" not in limits_note(FOUR)
    assert "bootstrap over 4 units of its split" in limits_note(FOUR)


@pytest.mark.parametrize(
    ("groups", "unit", "told"),
    [
        (["", "", "", ""], [0, 1, 2, 2], "3 pictures"),
        (["P1", "P1", "P2", "P2"], [0, 0, 1, 1], "2 groups (patients or slides) that the data name"),
        (["P1", "P1", "", ""], [0, 0, 1, 2], "1 group (patients or slides) that the data name and 2 pictures"),
    ],
)
def test_the_limits_say_what_was_drawn(groups, unit, told) -> None:
    judged = dataclasses.replace(FOUR, table=FOUR.table.assign(group=groups), unit=np.array(unit))
    assert f"bootstrap over {told}" in limits_note(judged)


def test_a_share_is_rounded_alike_from_a_card_and_from_cells() -> None:
    for value in (0.92552, 0.9255, 0.92548, 0.925449, 1.0, 0.0):
        card = {"what": "macro-F1", "value": round(100 * value, 2)}
        assert result_line(card) == f"macro-F1: {number(value, 'macro-F1')} %"
    assert number(0.92552, "macro-F1") == "92.6"


def test_what_is_read_is_in_per_cent_where_it_is_a_share() -> None:
    shown = metrics_table(FOUR).set_index("metric")
    assert shown.loc["accuracy, %", "value"] == "50.0"
    assert float(shown.loc["accuracy, %", "95 % limits"].split(" – ")[1]) > 50
    assert shown.loc["log loss", "value"] == f"{-np.log([0.8, 0.3, 0.7, 0.4]).mean():.3f}"
    classes = classes_table(FOUR).set_index("class")
    assert classes.loc["c", ["precision, %", "recall, %"]].tolist() == ["–", "0.0"]
    assert "AUC" in classes


def test_mcnemar() -> None:
    y = ["a"] * 10
    good, bad = [[0.8, 0.1, 0.1]], [[0.1, 0.8, 0.1]]
    first, second = result(good * 10, y), result(good * 2 + bad * 8, y, model="n")
    told = compare(first, second)
    assert (told["only first"], told["only second"]) == (8, 0)
    assert told["p"] == pytest.approx(2 * 0.5**8)
    with pytest.raises(ValueError, match="same cells"):
        compare(first, FOUR)


def test_the_shipped_model_on_real_cells(classifier, tmp_path: Path) -> None:
    told = evaluate(classifier, CROPS, mpp=0.145)
    assert len(told.table) == 24
    assert told.table["right"].mean() > 0.75
    assert set(told.table["class"]) == set(classifier.card.classes)
    page = write_report([told, told], tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    assert "wbc8-mobilenetv2 on crops" in text
    assert "McNemar" in text
    data = json.loads((tmp_path / "report/report.json").read_text(encoding="utf-8"))
    assert data["mcnemar"][0]["p"] == 1.0
    predictions = pd.read_csv(tmp_path / "report/wbc8-mobilenetv2_crops_predictions.csv")
    assert len(predictions) == 24


def test_among_classes(classifier) -> None:
    five = ["neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil"]
    told = evaluate(classifier, CROPS, mpp=0.145, among=five)
    assert set(told.table["predicted"]) <= set(five)
    np.testing.assert_allclose(told.probabilities.sum(1), 1, atol=1e-6)
    with pytest.raises(DatasetError, match="no class blast"):
        evaluate(classifier, CROPS, among=["blast"])


def test_classes_the_model_does_not_have(classifier, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(CROPS / "lymphocyte", tmp_path / "d/hairy cell")
    with pytest.raises(DatasetError, match="--class FROM=TO"):
        evaluate(classifier, tmp_path / "d")
    told = evaluate(classifier, tmp_path / "d", classes={"hairy cell": "lymphocyte"}, mpp=0.145)
    assert len(told.table) == 3


def test_names_cannot_write_into_the_page(tmp_path: Path) -> None:
    evil = result([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], ["a", "b"], model="<script>alert(1)</script>")
    text = write_report([evil], tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in text


def test_commands(tmp_path: Path, monkeypatch) -> None:
    from napari_wbc import cli_shared
    from napari_wbc.cli import app

    monkeypatch.setattr(cli_shared, "SELDOM", 0.0)
    told = CliRunner().invoke(app, ["dataset", str(CROPS), "-o", str(tmp_path / "split"), "--val", "0.34"])
    assert told.exit_code == 0, told.output
    assert "neutrophil" in told.output
    assert len(pd.read_csv(tmp_path / "split/split.csv")) == 24
    (tmp_path / "tiny.toml").write_text(
        'network = "custom_cnn"\nstart = "random"\npixels = 32\nbatch_norm = "train"\nepochs = 2\nbatch_size = 8\n'
        'preprocessing = [{ step = "scale_to_unit" }]\naugmentation = []\n'
    )
    command = ["train", str(CROPS), "-o", str(tmp_path / "run"), "--recipe", str(tmp_path / "tiny.toml")]
    told = CliRunner().invoke(app, [*command, "--mpp", "0.145", "--val", "0.34", "--name", "tiny", "--device", "cpu"])
    assert told.exit_code == 0, told.output
    assert "Model tiny" in told.output
    assert "epoch 2" in told.stderr  # where nobody watches there is no bar, but lines
    assert "Few steps: 4 in 2 epochs" in told.output
    said = " ".join(told.output.split())
    assert "% in the last, while fitted The finished model, cut and seen as in prediction: crops/val, accuracy" in said
    command = ["evaluate", "tiny", "wbc8-mobilenetv2", str(CROPS), "-o", str(tmp_path / "r"), "--mpp", "0.145"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert (tmp_path / "r/report.html").is_file()
    assert "accuracy, %" in told.output
    assert f"{CROPS.name}: 24 cells" in told.output
    assert "is its split.csv" in " ".join(CliRunner().invoke(app, [*command, "--part", "val"]).output.split())
    run = str(tmp_path / "run/split.csv")
    told = CliRunner().invoke(app, [*command, "--part", "val", "--split-file", run])
    assert told.exit_code == 0, told.output
    held = pd.read_csv(tmp_path / "run/predictions.csv")
    judged = pd.read_csv(tmp_path / "r/tiny_crops_val_predictions.csv")
    assert sorted(judged["file"]) == sorted(held["file"])
    assert judged["right"].sum() == held["right"].sum()
    words = "trained with --mpp 0.145; give --mpp here, too"
    assert words not in told.output
    told = CliRunner().invoke(app, command[:-2])
    assert " ".join(told.output.split()).count(words) == 1  # the shipped model's card names no such scale
    assert "--split-file needs --part" in CliRunner().invoke(app, [*command, "--split-file", run]).output
    told = CliRunner().invoke(app, ["models"])
    assert "tiny: custom_cnn" in told.output
    assert "measured on crops/val" in told.output
    told = CliRunner().invoke(app, ["train", str(CROPS), "-o", str(tmp_path / "x"), "--lr", "0"])
    assert told.exit_code == 2
    assert "lr is 0" in told.output
