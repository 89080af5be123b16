"""How unlike a cell is to those that the network knows: the score, its place in card and table, and its training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_wbc.cells import IMPROBABLE, UNLIKE, Cells, reasons
from napari_wbc.class_names import UNIDENTIFIED
from napari_wbc.classifier import Classifier, ModelError
from napari_wbc.crop import CropSize
from napari_wbc.models import find_model
from napari_wbc.pipeline import analyse, annotate, run
from napari_wbc.recipe import load_recipe
from napari_wbc.review import differs_from_model
from napari_wbc.slide import Slide
from napari_wbc.strange import make_strange
from napari_wbc.train import train
from napari_wbc.unlikeness import Gauge, check_unlikeness


def test_the_statistics_are_mean_and_deviation_of_the_middle() -> None:
    layer = nn.Identity()
    maps = torch.zeros(1, 2, 5, 5)
    maps[0, 0, 1:4, 1:4] = torch.arange(9.0).reshape(3, 3)  # a fifth on each side is not looked at
    maps[0, 0, 0] = 100
    gauge = Gauge([layer], torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.tensor(0.5))
    with gauge.watching():
        layer(maps)
    deviation = float(np.std(np.arange(9)))
    statistics = gauge.statistics()
    np.testing.assert_allclose(statistics, [[4, 0, deviation, 0]], rtol=1e-6)
    np.testing.assert_allclose(gauge.score(statistics), [4 + 2 * deviation + 0.5], rtol=1e-6)
    assert not layer._forward_hooks


def test_a_reason_for_every_unidentified_cell() -> None:
    found = reasons(np.array([0.9, 0.4, 0.9, 0.4]), np.array([0.1, 0.1, 0.8, np.nan]), 0.5, 0.7)
    assert found.tolist() == ["", IMPROBABLE, UNLIKE, IMPROBABLE]


def test_cells_beyond_the_limit_stay_unidentified(field: Path, classifier: Classifier) -> None:
    told = run(analyse(Slide.open(field), classifier)).cells.table
    assert told["unlikeness"].between(0, 1).all()
    limit = float(told["unlikeness"].max()) - 1e-6
    strict = Classifier(
        replace(classifier.card, unlikeness=classifier.card.unlikeness | {"above": limit}),
        classifier.network, classifier.gauge,
    )  # fmt: skip
    cells = annotate(field, model=strict)
    k = int(cells.table["unlikeness"].argmax())
    assert cells.table.loc[k, ["class", "reason"]].tolist() == [UNIDENTIFIED, UNLIKE]
    assert cells.table.loc[k, "probability"] == told.loc[k, "probability"]
    assert not differs_from_model(cells)
    assert differs_from_model(Cells(cells.table.assign(**{"class": "monocyte"})))


def test_what_is_no_cell_is_more_unlike(classifier: Classifier, shared_data: Path) -> None:
    from napari_wbc.dataset import read_dataset
    from napari_wbc.dataset_pictures import cut_cells

    cells = read_dataset(shared_data / "pbc").of_split("val").rows(np.arange(0, 1700, 34))
    wide = CropSize(classifier.card.crop.side_um * 1.7, round(classifier.card.crop.pixels * 1.7))
    crops = np.asarray(cut_cells(cells, wide, mpp=0.145))
    torch.manual_seed(0)
    strange = make_strange(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255, wide)
    strange = (strange.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    first = (wide.pixels - classifier.card.crop.pixels) // 2
    middle = slice(first, first + classifier.card.crop.pixels)
    like = classifier.judge(np.ascontiguousarray(crops[:, middle, middle]))[1]
    unlike = classifier.judge(np.ascontiguousarray(strange[:, middle, middle]))[1]
    above = classifier.card.unlike_above
    assert (like > above).mean() <= 0.06
    assert (unlike > above).mean() >= 0.6


def test_every_way_of_making_crops_strange_changes_them() -> None:
    from napari_wbc.strange import WAYS

    torch.manual_seed(0)
    crops = torch.rand(3, 3, 80, 80)
    for way in WAYS:
        changed = way(crops, CropSize(38.0, 80))
        assert changed.shape == crops.shape
        assert torch.isfinite(changed).all()
        assert (changed - crops).abs().mean() > 0.05, way.__name__


def test_a_trained_model_tells_what_it_does_not_know(tree: Path, tmp_path: Path) -> None:
    recipe = replace(
        load_recipe("wbc"), start="random", pixels=32, epochs=1, batch_size=4, unlike=0.05, batch_norm="train"
    )
    done = train(tree, recipe, tmp_path / "run", mpp=0.145, val=0.34, device="cpu", install=False)
    model = Classifier.load(tmp_path / "run", device="cpu")
    assert 1 <= len(model.card.unlikeness["blocks"]) <= 8
    assert (model.card.sha256, dict(model.card.unlikeness)) == (done.card.sha256, dict(done.card.unlikeness))
    unlikeness = model.judge(np.zeros((2, 32, 32, 3), np.uint8))[1]
    assert ((unlikeness >= 0) & (unlikeness <= 1)).all()


@pytest.mark.parametrize(
    "told",
    [
        {"blocks": [], "above": 0.5},
        {"blocks": "features", "above": 0.5},
        {"blocks": ["features.2"], "above": 2},
        {"blocks": ["features.2"]},
    ],
)
def test_cards_that_say_nonsense(told: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="unlikeness"):
        check_unlikeness(told)


@pytest.mark.parametrize("told", [{"blocks": ["features.99"], "above": 0.5}, {"blocks": ["features.2"], "above": 0.5}])
def test_a_card_and_weights_that_do_not_belong_together(told: dict[str, object], tmp_path: Path) -> None:
    card = find_model()
    for path in (card, card.with_suffix(".safetensors")):
        shutil.copyfile(path, tmp_path / f"copy{path.suffix}")
    text = json.loads(card.read_text()) | {"unlikeness": told}
    (tmp_path / "copy.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match="unlikeness"):
        Classifier.load(tmp_path / "copy.json", device="cpu").predict(np.zeros((1, 128, 128, 3), np.uint8))
