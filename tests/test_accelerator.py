"""The network on OpenVINO gives what torch gives."""

import shutil

import numpy as np
import pytest

from napari_wbc.accelerator import SWITCH
from napari_wbc.classifier import Classifier

pytest.importorskip("openvino", reason="the extra [fast] is not installed")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fast(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv(SWITCH, "1")
        classifier = Classifier.load(device="cpu")
        again = Classifier.load(device="cpu")  # from the cache
    assert classifier.engine == again.engine == "openvino"
    return classifier


def test_it_gives_the_same_probabilities_and_unlikeness(fast, classifier, real_crops):
    assert classifier.engine == "torch"
    expected, unlike = classifier.judge(real_crops)
    found, found_unlike = fast.judge(real_crops)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found_unlike, unlike, atol=1e-5)


def test_no_number_depends_on_the_batch(fast, real_crops):
    np.testing.assert_array_equal(fast.predict(real_crops)[3:5], fast.predict(real_crops[3:5]))


def test_a_folder_that_cannot_be_written_leaves_torch(tmp_path, monkeypatch, real_crops, classifier):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(SWITCH, "1")
    slow = Classifier.load(device="cpu")
    assert slow.engine == "torch"
    np.testing.assert_array_equal(slow.predict(real_crops), classifier.predict(real_crops))


def test_a_damaged_conversion_leaves_torch(fast, cache, tmp_path, monkeypatch):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(SWITCH, "1")
    assert Classifier.load(device="cpu").engine == "openvino"
    for file in (tmp_path / "napari-wbc/models").iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    assert Classifier.load(device="cpu").engine == "torch"
