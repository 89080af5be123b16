"""The command line in a process that kills itself, as a power cut does, at one moment of a batch.

    python killed.py MOMENT FOLDER ARGUMENTS…

A parent that watches the process kills it late on a busy machine, when it has come to its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def done(out: Path) -> int:
    return len(list((out / ".states").glob("*.json")))


# At each of these a run is killed; the next one goes on. The moments lie in the life of one folder.
MOMENTS = {
    "before the first slide": lambda slide, report, out: report.get("state") == "waiting",
    "in the first slide": lambda slide, report, out: report.get("state") == "running",
    "while files are written": lambda slide, report, out: report and any(out.glob(".*.partial")),
    "after a slide": lambda slide, report, out: done(out) >= 2,
    "in the last slide": lambda slide, report, out: slide == "ü ..svs" and report.get("state") == "running",
}


class Watched:
    """Standard error that looks at each line of progress, and between them every millisecond."""

    def __init__(self, stream, moment, out: Path) -> None:
        self.stream, self.moment, self.out, self.line = stream, moment, out, {}
        threading.Thread(target=self.watch, daemon=True).start()

    def look(self) -> None:
        if self.moment(self.line.get("slide"), self.line.get("report", {}), self.out):
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        while True:
            self.look()
            time.sleep(0.001)

    def write(self, text: str) -> int:
        if text.startswith("{") and "report" in (line := json.loads(text)):
            self.line = line
            self.look()
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


if __name__ == "__main__":
    sys.stderr = Watched(sys.stderr, MOMENTS[sys.argv[1]], Path(sys.argv[2]))
    sys.argv = ["napari-wbc", *sys.argv[3:]]
    from napari_wbc.cli import main

    main()
