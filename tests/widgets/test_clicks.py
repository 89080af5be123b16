"""Random clicks and keys on every dock in a real window: nothing that a user can press may raise."""

from __future__ import annotations

import os

import pytest
from monkey import DOCKS, Ape, tracebacks
from napari.utils.notifications import notification_manager

CLICKS = int(os.environ.get("NAPARI_WBC_CLICKS", "40"))
SEED = os.environ.get("NAPARI_WBC_SEED", "0")


@pytest.mark.parametrize("name", DOCKS)
@pytest.mark.timeout(1200)
def test_no_click_or_key_raises(viewer, dock, case, name, tmp_path, monkeypatch, qtbot):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    notification_manager.records.clear()
    viewer.open(str(case / "r/nine"), plugin="napari-wbc")
    widget = dock(name)
    viewer.show()
    qtbot.waitExposed(viewer.window._qt_window)
    with Ape(f"{SEED} {name}", tmp_path) as ape:
        ape.play(widget, CLICKS)
    for stop in ("cancel_button",):
        if hasattr(widget, stop):
            getattr(widget, stop).click()
    if hasattr(widget, "is_running"):
        qtbot.waitUntil(lambda: not widget.is_running, timeout=240_000)
    assert len(ape.done) > CLICKS / 2
    assert not tracebacks(), ape.done[-10:]
