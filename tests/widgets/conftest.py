"""Docks in a real viewer."""

from __future__ import annotations

import sys
import threading

import pytest

pytest.importorskip("napari")
pytest.importorskip("qtpy")

if threading.gettrace() is not None:  # coverage is measured, and knows nothing of threads that Qt starts
    from napari.qt.threading import WorkerBase

    _run = WorkerBase.run

    def _traced(self) -> None:
        sys.settrace(threading.gettrace())
        _run(self)

    WorkerBase.run = _traced

# Generous: on a machine that others use too an analysis takes its time.
TIMEOUT = 600_000


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    """Return who reviews; taken out of the list, nobody has said a name yet."""
    said = ["T. Reader"]
    monkeypatch.setattr("napari_wbc._widgets._review_open._said", said)
    return said


@pytest.fixture
def viewer(make_napari_viewer):
    from napari.qt.threading import WorkerBase

    yield make_napari_viewer()
    WorkerBase.await_workers(TIMEOUT)


@pytest.fixture
def dock(viewer):
    """Open a dock as the plugin menu does."""

    def open_dock(name: str = "Classify white cells"):
        return viewer.window.add_plugin_dock_widget("napari-wbc", name)[1]

    return open_dock


@pytest.fixture
def press(qtbot):
    """Press the button of a dock and wait until it has finished."""

    def press_and_wait(widget) -> str:
        from qtpy.QtCore import Qt

        qtbot.mouseClick(widget.run_button, Qt.MouseButton.LeftButton)
        qtbot.waitUntil(lambda: not widget.is_running, timeout=TIMEOUT)
        return widget.status.text()

    return press_and_wait


@pytest.fixture
def sample():
    """Return the picture of a sample by its key."""
    from napari_wbc import samples

    return lambda key: next(sample.path for sample in samples() if sample.key == key)
