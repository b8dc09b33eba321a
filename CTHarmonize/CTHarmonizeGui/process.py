"""A background process with its descendants: started with PythonSlicer, read as it speaks, ended as a tree."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

MODULE_FOLDER = Path(__file__).resolve().parent.parent
"""Folder on PYTHONPATH for the worker: it holds CTHarmonizeLib."""


class ProcessListener(Protocol):
    """Who is told what a process does."""

    def onOutput(self, data: bytes) -> None: ...

    def onErrorOutput(self, data: bytes) -> None: ...

    def onFinished(self, exitCode: int | None) -> None:
        """``exitCode`` is None where the process crashed, was killed or could not be started."""


class Process(Protocol):
    """What a job needs of a process; tests inject a fake."""

    def start(self, arguments: Sequence[str], listener: ProcessListener) -> None: ...

    def stop(self, force: bool) -> None:
        """Ask the whole tree to end, or with ``force`` kill it. Returns at once."""

    def wait(self, seconds: float) -> bool:
        """Block up to ``seconds``; True once the process has ended."""


class Clock(Protocol):
    """Time and the event loop; tests inject a fake."""

    def now(self) -> float: ...

    def callLater(self, seconds: float, function: Callable[[], None]) -> None: ...

    def turn(self) -> None:
        """Handle what the event loop has waiting, then rest for a moment."""


class QtClock:
    """Clock on Qt's event loop."""

    def now(self) -> float:
        return time.monotonic()

    def callLater(self, seconds: float, function: Callable[[], None]) -> None:
        import qt

        qt.QTimer.singleShot(int(1000 * seconds), function)

    def turn(self) -> None:
        import slicer

        slicer.app.processEvents()
        time.sleep(0.005)


class QtProcess:
    """PythonSlicer as a ``qt.QProcess``.

    >>> process = QtProcess()                                             # doctest: +SKIP
    >>> process.start(["-m", "CTHarmonizeLib.worker", "job.json"], listener)
    """

    def __init__(self) -> None:
        import qt

        self._process = qt.QProcess()
        self._listener: ProcessListener | None = None
        self._tree: list[int] = []

    def start(self, arguments: Sequence[str], listener: ProcessListener) -> None:
        import qt

        self._listener = listener
        environment = qt.QProcessEnvironment.systemEnvironment()
        for name, value in workerEnvironment(os.environ).items():
            environment.insert(name, value)
        self._process.setProcessEnvironment(environment)
        self._process.connect("readyReadStandardOutput()", self._onOutput)
        self._process.connect("readyReadStandardError()", self._onErrorOutput)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._onError)
        # never sys.executable: inside Slicer that is the application itself
        self._process.start(shutil.which("PythonSlicer") or "PythonSlicer", list(arguments))

    def stop(self, force: bool) -> None:
        import qt

        if self._process.state() == qt.QProcess.NotRunning:
            return
        root = int(self._process.processId())
        # PythonSlicer is a launcher: the worker is its child, and outlives it unless it is ended as well
        self._tree = sorted(set(self._tree) | set(processTree(root)))
        if force:
            killTree(self._tree, signal.SIGKILL if hasattr(signal, "SIGKILL") else None, root)
            self._process.kill()
        else:
            self._process.closeWriteChannel()  # the worker ends itself when its standard input does
            killTree(self._tree, signal.SIGTERM, None)

    def wait(self, seconds: float) -> bool:
        import qt

        if self._process.state() == qt.QProcess.NotRunning:
            return True
        return bool(self._process.waitForFinished(int(1000 * seconds)))

    def _onOutput(self) -> None:
        self._listener.onOutput(_bytes(self._process.readAllStandardOutput()))

    def _onErrorOutput(self) -> None:
        self._listener.onErrorOutput(_bytes(self._process.readAllStandardError()))

    def _onFinished(self, exitCode, exitStatus) -> None:
        import qt

        self._onOutput()
        self._onErrorOutput()
        crashed = exitStatus == qt.QProcess.CrashExit
        self._listener.onFinished(None if crashed else int(exitCode))

    def _onError(self, error) -> None:
        import qt

        if error == qt.QProcess.FailedToStart:  # no `finished` follows this one
            logging.error("CTHarmonize: PythonSlicer could not be started: %s", self._process.errorString())
            self._listener.onFinished(None)


def workerEnvironment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the worker's environment has beyond that of Slicer."""
    path = [str(MODULE_FOLDER), environment.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        # Slicer's own ITK factories cannot be loaded by another program and would fill the log with warnings
        "ITK_AUTOLOAD_PATH": "",
        "SITK_AUTOLOAD_PATH": "",
    }


def processTree(root: int) -> list[int]:
    """Ids of ``root`` and all its descendants; only ``root`` where the system does not tell (Windows)."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    tree, todo = [], [root]
    while todo:
        pid = todo.pop()
        tree.append(pid)
        todo += children.get(pid, [])
    return tree


def killTree(pids: Sequence[int], number: int | None, windowsRoot: int | None) -> None:
    """Send signal ``number`` to every process; on Windows end the tree of ``windowsRoot``."""
    if sys.platform == "win32":
        if windowsRoot is not None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(windowsRoot)], capture_output=True, check=False)
        return
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _parents() -> dict[int, int]:
    """Parent of every process, by process id."""
    parents: dict[int, int] = {}
    if os.path.isdir("/proc/self"):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                except OSError:
                    continue  # ended while we looked
                parents[int(entry)] = int(fields[1])
    elif sys.platform != "win32":
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False)
        for line in listing.stdout.splitlines():
            pid, parent = line.split()
            parents[int(pid)] = int(parent)
    return parents


def _bytes(data) -> bytes:
    """Bytes of a QByteArray (PythonQt hands some out as str)."""
    content = data.data()
    return content.encode("utf-8", "replace") if isinstance(content, str) else bytes(content)
