"""The shipped model on real cells, and everything that can be wrong with a model's files."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CROPS

from napari_wbc.classifier import Classifier, ModelCard, ModelError, save_model
from napari_wbc.crop import CropSize
from napari_wbc.models import available_models, build, find_model, fold_batch_norm

NAMES = {"ig": "immature granulocyte"}


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the shipped model that a test may spoil."""
    card = find_model()
    for path in (card, card.with_suffix(".safetensors")):
        shutil.copyfile(path, tmp_path / f"copy{path.suffix}")
    return tmp_path / "copy.json"


def change_card(path: Path, **values: object) -> None:
    card = json.loads(path.read_text()) | values
    path.write_text(json.dumps(card))


def test_the_shipped_model_names_real_cells(classifier, real_crops):
    truth = [NAMES.get(path.parent.name, path.parent.name) for path in CROPS]
    probabilities = classifier.predict(real_crops)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    found = [classifier.card.classes[k] for k in probabilities.argmax(1)]
    assert len(truth) == 24
    assert sum(a == b for a, b in zip(truth, found, strict=True)) >= 23


def test_batches_and_progress_do_not_change_the_result(classifier, real_crops):
    seen = []
    small = classifier.predict(real_crops, batch_size=5, progress=seen.append)
    np.testing.assert_allclose(small, classifier.predict(real_crops), atol=1e-5)
    assert seen == [5, 10, 15, 20, 24]


def test_the_batch_is_halved_when_memory_runs_out(classifier, real_crops, monkeypatch):
    sizes = []
    views = len(classifier.card.ways)
    monkeypatch.setattr("napari_wbc.classifier.CPU_PIXELS", 10**9)  # half of a batch at once

    def forward(crops):
        sizes.append(len(crops) // views)
        if len(crops) > 6 * views:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return classifier.network(crops)

    short = Classifier(classifier.card, torch.nn.Identity())
    short.network = Forward(forward, classifier.network)
    np.testing.assert_allclose(short.predict(real_crops, batch_size=24), classifier.predict(real_crops), atol=1e-5)
    assert sizes[0] == 12
    assert sizes[-4:] == [6, 6, 6, 6]
    assert set(sizes) == {12, 6}


class Forward(torch.nn.Module):
    def __init__(self, function, network):
        super().__init__()
        self.function = function
        self.network = network

    def forward(self, crops):
        return self.function(crops)


def test_no_number_depends_on_the_number_of_threads(classifier, real_crops):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(classifier.judge(real_crops))
    finally:
        torch.set_num_threads(before)
    for probabilities, unlikeness in found[1:]:
        np.testing.assert_array_equal(probabilities, found[0][0])
        np.testing.assert_array_equal(unlikeness, found[0][1])


def test_another_error_is_not_taken_for_memory(classifier, real_crops):
    def forward(crops):
        raise RuntimeError("shapes do not fit")

    broken = Classifier(classifier.card, torch.nn.Identity())
    broken.network = Forward(forward, classifier.network)
    with pytest.raises(RuntimeError, match="shapes"):
        broken.predict(real_crops)


def test_crops_of_another_size_are_refused(classifier):
    with pytest.raises(ValueError, match="takes uint8 crops"):
        classifier.predict(np.zeros((1, 7, 7, 3), np.uint8))


def test_no_crop_gives_no_row(classifier):
    size = classifier.card.crop.pixels
    assert classifier.predict(np.zeros((0, size, size, 3), np.uint8)).shape == (0, 8)


def test_folding_batch_norm_changes_nothing():
    torch.manual_seed(0)
    network = build("mobilenet_v2", 3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = network.eval()(x)
        after = fold_batch_norm(network)(x)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_every_shipped_model_loads_and_fits_the_wheel():
    assert available_models()
    for name, path in available_models().items():
        assert Classifier.load(name, device="cpu").card.name == name
        assert path.with_suffix(".safetensors").stat().st_size <= 5_000_000


def test_saved_and_loaded_is_the_same_model(tmp_path, real_crops):
    torch.manual_seed(0)
    card = ModelCard("mine", "mobilenet_v2", ("a", "b"), CropSize(24, 96), ({"step": "scale_to_unit"},))
    saved = save_model(tmp_path / "mine", card, build("mobilenet_v2", 2).state_dict())
    assert Classifier.load(tmp_path).card == saved
    assert Classifier.load(tmp_path / "mine.safetensors", device="cpu").card.classes == ("a", "b")
    assert ModelCard.from_json(saved.to_json()) == saved


def test_a_model_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="wbc8-mobilenetv2"):
        Classifier.load("no such model")


def test_truncated_weights(model):
    path = model.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"copy\.safetensors.*SHA-256.*copy the card"):
        Classifier.load(model)


def test_a_pickle_in_disguise_is_never_executed(model, tmp_path):
    import hashlib

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    data = pickle.dumps(Evil())
    model.with_suffix(".safetensors").write_bytes(data)
    change_card(model, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ModelError, match="not a safetensors file"):
        Classifier.load(model)
    assert not (tmp_path / "executed").exists()


def test_weights_are_missing(model):
    model.with_suffix(".safetensors").unlink()
    with pytest.raises(ModelError, match="weights are missing"):
        Classifier.load(model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ["a", "b"]}, "do not fit the card's network 'mobilenet_v2' with 2 classes"),
        ({"network": "resnet1"}, "unknown network"),
        ({"classes": []}, "different names"),
        ({"classes": ["a"] * 8}, "different names"),
        ({"classes": "abcdefgh"}, "must be a list"),
        ({"preprocessing": [{"step": "os.system"}]}, "unknown preprocessing step"),
        ({"crop": {"side_um": -1, "pixels": 96}}, "makes no sense"),
        ({"temperature": 0}, "temperature"),
        ({"surprise": 1}, "unknown or of the wrong type"),
    ],
)
def test_a_card_that_lies(model, values, message):
    change_card(model, **values)
    with pytest.raises(ModelError, match=message) as caught:
        Classifier.load(model)
    assert "copy." in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_card_that_is_none(model, text):
    model.write_text(text)
    with pytest.raises(ModelError, match="not a valid model card"):
        Classifier.load(model)
