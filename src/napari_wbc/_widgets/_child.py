"""A `napari-wbc` command in a process of its own: the window stays free, and what it imports stays out of it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from functools import partial

from qtpy.compat import isalive
from qtpy.QtCore import QObject, QProcess, QProcessEnvironment, QTimer, Signal

_log = logging.getLogger(__name__)
# A command ends by itself within `napari_wbc.piped.GRACE`; this is for one that cannot.
_LAST_RESORT_MS = 3000
_DONE = (0, 3)
"""Exit codes of a command that did its work; 3 says that some files failed."""


class Child(QObject):
    """Run one command at a time.

    Notes
    -----
    `progressed` carries stage, done and total; `reported` the name of a slide of a batch, and how it fares. `ended`
    carries what the command printed if it did what it should, else nothing, and then why it did not; both are empty if
    it was told to stop.
    """

    progressed = Signal(str, int, int)
    reported = Signal(str, dict)
    ended = Signal(str, str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._processes: list[QProcess] = []
        self._rest, self._said, self._stopped = b"", list[str](), False
        # Bound methods of a dying object are not called any more; a function of its list is.
        self.destroyed.connect(partial(_end, self._processes))

    @property
    def is_running(self) -> bool:
        """Whether a command is at it."""
        return bool(self._processes)

    def start(self, *arguments: str) -> None:
        """Start a command of ``napari-wbc`` that reports progress as JSON."""
        process = QProcess()
        environment = QProcessEnvironment.systemEnvironment()
        environment.insert("PYTHONIOENCODING", "utf-8")
        process.setProcessEnvironment(environment)
        process.readyReadStandardError.connect(self._listen)
        process.finished.connect(self._on_finished)
        process.errorOccurred.connect(self._on_error)
        self._processes.append(process)
        self._rest, self._said, self._stopped = b"", [], False
        # -P: a folder of this name where napari was started is not the package.
        process.start(sys.executable, ["-P", "-m", "napari_wbc", "--progress", "json", *arguments])

    def stop(self) -> None:
        """Have the command end within two seconds."""
        for process in self._processes:
            self._stopped = True
            process.closeWriteChannel()
            QTimer.singleShot(_LAST_RESORT_MS, process.kill)

    def _listen(self) -> None:
        if not self._processes:
            return
        *lines, self._rest = (self._rest + self._processes[0].readAllStandardError().data()).split(b"\n")
        for line in lines:
            try:
                told = json.loads(line)
                if "report" in told:
                    self.reported.emit(str(told["slide"]), dict(told["report"]))
                    continue
                stage, done, total = str(told["stage"]), int(told["done"]), int(told["total"])
            except (ValueError, TypeError, KeyError):
                self._said.append(line.decode("utf-8", "replace").rstrip())
            else:
                self.progressed.emit(stage, done, total)

    def _on_finished(self, code: int, status: QProcess.ExitStatus) -> None:
        self._listen()
        output = self._processes[0].readAllStandardOutput().data().decode("utf-8", "replace")
        if code in _DONE and status == QProcess.ExitStatus.NormalExit:
            self._leave(output, "")
        elif self._stopped:
            self._leave("", "")
        elif status == QProcess.ExitStatus.CrashExit:
            self._leave("", "the system ended the process, perhaps for want of memory; what was written before is kept")
        else:
            self._leave("", self._why())

    def _on_error(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            self._leave("", f"{sys.executable} cannot be started: {self._processes[0].errorString()}")

    def _why(self) -> str:
        """Return the message of a command that failed: the last line that it wrote."""
        said = [line for line in (*self._said, self._rest.decode("utf-8", "replace")) if line.strip()]
        if any("Traceback" in line for line in said):
            _log.error("%s", "\n".join(said))
            return f"{said[-1].strip()} (the log has the details)"
        # A value that the command line refuses stands in a box.
        boxed = [line.strip("│ ") for line in said if line.startswith("│")]
        return " ".join(boxed or said[-1:]) or "the command failed without a word"

    def _leave(self, output: str, why: str) -> None:
        for process in self._processes:
            process.deleteLater()
        self._processes.clear()
        self.ended.emit(output, why)


def arguments_of(**values: object) -> Sequence[str]:
    """Return options for values that are given, ``lr=0.1`` as ``--lr 0.1``."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def _end(processes: list[QProcess]) -> None:
    """End what runs, and wait for it: its owner is gone."""
    for process in processes:
        if isalive(process):
            process.blockSignals(True)
            process.closeWriteChannel()
            if not process.waitForFinished(_LAST_RESORT_MS):
                process.kill()
                process.waitForFinished(_LAST_RESORT_MS)
