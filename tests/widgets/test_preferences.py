"""What the user prefers, in napari's own settings and without them."""

from __future__ import annotations

import json
from pathlib import Path

import napari.settings
import pytest
import yaml

import napari_wbc
from napari_wbc._widgets import ClassifyWidget, _preferences
from napari_wbc._widgets._preferences import DEFAULTS, preference
from napari_wbc._widgets._review_open import user
from napari_wbc.models import DEFAULT_MODEL
from napari_wbc.palette import PALETTES, colour, use_palette

OWN = hasattr(napari.settings, "get_plugin_settings")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Take napari's settings of plugins away; the file is in a folder of the test."""
    monkeypatch.delattr(napari.settings, "get_plugin_settings", raising=False)
    monkeypatch.setattr(_preferences, "preferences_file", lambda: tmp_path / "preferences.json")
    return tmp_path / "preferences.json"


def test_the_manifest_has_the_same_defaults():
    manifest = yaml.safe_load((Path(napari_wbc.__file__).parent / "napari.yaml").read_text())
    properties = manifest["contributions"]["configurations"]["preferences"]["properties"]
    assert {name: told["default"] for name, told in properties.items()} == DEFAULTS
    assert properties["palette"]["enum"] == list(PALETTES)


@pytest.mark.skipif(not OWN, reason="napari before 0.9 has no settings of plugins")
def test_a_dock_begins_with_what_is_preferred(viewer, qtbot, tmp_path, monkeypatch, reader):
    monkeypatch.setattr(napari.settings, "_PLUGIN_SETTINGS", {})
    preferences = napari.settings.get_plugin_settings("napari-wbc", path_dir=tmp_path).preferences
    shown = ClassifyWidget(viewer)
    qtbot.addWidget(shown)
    assert shown.threshold.text() == ""
    assert shown.model.currentText() == DEFAULT_MODEL
    card = tmp_path / "mine.json"
    card.write_text("{}")
    preferences.model, preferences.threshold, preferences.reviewer = str(card), 0.8, "A. Reader"
    shown = ClassifyWidget(viewer)
    qtbot.addWidget(shown)
    assert shown.threshold.text() == "0.8"
    assert shown.model.currentData() == str(card)
    assert user() == reader[0]  # who said so goes before
    reader.clear()
    assert user() == "A. Reader"
    preferences.reviewer = "=1+1"
    assert user() == ""


@pytest.mark.parametrize("name", [*PALETTES, "of another day"])
def test_the_palette_is_that_of_the_classes(kept, viewer, qtbot, name):
    kept.write_text(json.dumps({"palette": name}))
    try:
        qtbot.addWidget(ClassifyWidget(viewer))
        chosen = PALETTES.get(name, PALETTES["Okabe and Ito"])
        assert colour("Eosinophils") == chosen["eosinophil"]
        assert len({colour(every) for every in chosen}) == len(chosen)
    finally:
        use_palette("")


def test_without_them_a_file_says_it(kept, dock):
    assert preference("threshold") == 0
    kept.write_text(json.dumps({"threshold": 0.7, "reviewer": " B. Reader ", "model": "of another day"}))
    assert (preference("threshold"), preference("reviewer")) == (0.7, "B. Reader")
    shown = dock()
    assert shown.threshold.text() == "0.7"
    assert shown.model.currentText() == DEFAULT_MODEL


@pytest.mark.parametrize("text", ["", "[1]", '{"threshold": "high"}', '{"threshold": 5}', '{"threshold": NaN}'])
def test_a_damaged_file_says_nothing(kept, text):
    kept.write_text(text)
    assert preference("threshold") == DEFAULTS["threshold"]
