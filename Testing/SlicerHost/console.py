"""What would scroll by in Slicer's Python console and error log, kept so that a test can fail on it."""

from __future__ import annotations

import sys
import threading
import traceback

from PySide6 import QtCore

_SEVERE = {
    QtCore.QtMsgType.QtWarningMsg: "Qt warning",
    QtCore.QtMsgType.QtCriticalMsg: "Qt critical",
    QtCore.QtMsgType.QtFatalMsg: "Qt fatal",
}
# Said by the platform plugin and the test's display, not by the code under test.
_HARMLESS = ("This plugin does not support", "QStandardPaths: XDG_RUNTIME_DIR", "propagateSizeHints")


class Console:
    """Collects exceptions that escape from slots, observers and threads, and Qt's own warnings.

    PythonQt prints such an exception and carries on, so nothing else would tell a test of it.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._before = (sys.excepthook, sys.unraisablehook, threading.excepthook)
        sys.excepthook = self._exception
        sys.unraisablehook = lambda what: self._exception(what.exc_type, what.exc_value, what.exc_traceback)
        threading.excepthook = lambda what: self._exception(what.exc_type, what.exc_value, what.exc_traceback)
        QtCore.qInstallMessageHandler(self._qtMessage)
        self._vtkTag = None

    def watchVtk(self) -> None:
        """VTK's errors too, which Slicer shows in red; after the first import of vtk."""
        import vtk

        @vtk.calldata_type(vtk.VTK_STRING)
        def failed(_window, _event, text):
            self.errors.append(f"VTK error: {text}")

        self._vtkWindow = vtk.vtkOutputWindow.GetInstance()
        self._vtkTag = self._vtkWindow.AddObserver("ErrorEvent", failed)

    def close(self) -> None:
        sys.excepthook, sys.unraisablehook, threading.excepthook = self._before
        QtCore.qInstallMessageHandler(None)
        if self._vtkTag is not None:
            self._vtkWindow.RemoveObserver(self._vtkTag)

    def _exception(self, kind, value, trace) -> None:
        text = "".join(traceback.format_exception(kind, value, trace))
        self.errors.append(text)
        print(text, file=sys.stderr)

    def _qtMessage(self, kind, _context, text: str) -> None:
        if kind in _SEVERE and not text.startswith(_HARMLESS):
            self.errors.append(f"{_SEVERE[kind]}: {text}")
        print(text, file=sys.stderr)
