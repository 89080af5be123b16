"""The first minutes of a new user, in an environment that holds the wheel and napari and nothing else.

Run in an empty folder: ``xvfb-run -a -s "-screen 0 1600x1000x24" python first_minutes.py``. Starts napari, goes through
the menus and the docks, classifies a sample, then closes the window in the middle of a run. Prints what a user sees and
how long it takes. Exit code 1 if something is missing, or if a thread of work or a process is left.
"""

import sys
import threading
import time
from pathlib import Path

begun = time.perf_counter()
import napari  # noqa: E402
from qtpy import API_NAME  # noqa: E402
from qtpy.QtGui import QAction  # noqa: E402
from qtpy.QtWidgets import QApplication, QDockWidget, QWidget  # noqa: E402

DOCKS = ("Classify white cells", "Gallery of cells", "Differential", "Segment cells", "Crop cells", "Train classifier",
         "Batch annotate")  # fmt: skip
faults = []


def wait(seconds, until=lambda: False):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not until():
        QApplication.processEvents()
        time.sleep(0.005)
    return time.perf_counter() < end


def need(true, what):
    if not true:
        faults.append(what)
        print("MISSING:", what)


def menu(window, *names):
    """The action that a user reaches through these menus."""
    actions = window._qt_window.menuBar().actions()  # noqa: SLF001 - napari offers no other way to its menus
    for name in names:
        found = [action for action in actions if action.text().replace("&", "").startswith(name)]
        need(found, " > ".join(names))
        if not found:
            return None
        if found[0].menu() is not None:
            found[0].menu().aboutToShow.emit()
            actions = found[0].menu().actions()
    return found[0]


def children():
    """Processes that this one started and that go on."""
    me = str(threading.get_native_id())
    return [p.name for p in Path("/proc").glob("[0-9]*") if (p / "stat").is_file()
            and (p / "stat").read_text().rsplit(")", 1)[1].split()[1] == me]  # fmt: skip


viewer = napari.Viewer()
wait(0.5)
print(f"napari {napari.__version__} with {API_NAME}: window after {time.perf_counter() - begun:.1f} s")
plugin = menu(viewer.window, "Plugins", "White blood cells")
listed = [action.text() for action in plugin.menu().actions() if isinstance(action, QAction) and action.text()]
print("docks:", ", ".join(listed))
need([name for name in listed if name in DOCKS] == list(DOCKS), "docks in the order of the work")
opened, before = {}, viewer.window.geometry()[3]
for name in DOCKS:
    start = time.perf_counter()
    menu(viewer.window, "Plugins", "White blood cells", name).trigger()
    wait(0.05)
    dock = next(
        dock for dock in QApplication.allWidgets() if isinstance(dock, QDockWidget) and name in dock.objectName()
    )
    opened[name] = next(w for w in dock.findChildren(QWidget) if type(w).__module__.startswith("napari_wbc._widgets"))
    says = opened[name].status.text()
    print(f"{name}: {time.perf_counter() - start:.2f} s: {says}")
    need(says and "\n" not in says and len(says) < 140, f"{name} says in one line what it needs")
height = viewer.window.geometry()[3]
print(f"with all docks open the window is {height} pixels high")
need(height <= before + 50, "room on the screen for all docks")
need("torch" not in sys.modules, "docks open without torch")
start = time.perf_counter()
menu(viewer.window, "File", "Open Sample", "White blood cells").menu().actions()[0].trigger()
wait(30, lambda: len(viewer.layers) > 0)
print(f"sample: {[layer.name for layer in viewer.layers]} after {time.perf_counter() - start:.1f} s")
dock = opened["Classify white cells"]
start = time.perf_counter()
dock.run_button.click()
need(dock.is_running, "progress")
need(wait(300, lambda: not dock.is_running), "Classify ends")
print(f"Classify: {time.perf_counter() - start:.1f} s: {dock.status.text()}; layers {[x.name for x in viewer.layers]}")
need("cells" in viewer.layers, "cells")
viewer.window.resize(1280, 800)
wait(1)
viewer.window.screenshot("first_minutes.png", canvas_only=False)
dock.run_button.click()
wait(0.2)
need(dock.is_running, "a second run")
start = time.perf_counter()
viewer.close()
wait(60, lambda: not any("Worker" in thread.name for thread in threading.enumerate()) and not children())
from napari.qt.threading import WorkerBase  # noqa: E402

WorkerBase.await_workers(60_000)
print(
    f"closed in the middle: nothing runs after {time.perf_counter() - start:.1f} s; processes: {children() or 'none'}"
)
need(not children(), "no process is left")
sys.exit(bool(faults))
