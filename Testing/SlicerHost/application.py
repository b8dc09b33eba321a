"""`slicer.app`: the application object, with the parts of qSlicerApplication that modules use."""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from . import dialogs
from .modules import ModuleManager
from .scene import FileManager, Scene
from .views import LayoutManager
from .window import MainWindow

VERSION = "5.10.0"  # the oldest Slicer that the project supports

_PYTHON_SLICER = """#!/bin/sh
# Runs Python as Slicer's launcher of this name does: nothing of the caller's Python gets through but PYTHONPATH.
for name in $(env | sed -n 's/^\\(PYTHON[A-Z]*\\|VIRTUAL_ENV\\|QT_[A-Z_]*\\|PYTEST[A-Z_]*\\)=.*/\\1/p'); do
  [ "$name" = PYTHONPATH ] || unset "$name"
done
exec "{python}" "$@"
"""


class qSlicerApplication(QtWidgets.QApplication):
    """The one application of a process; made by `SlicerHost.start()`."""

    standsForCpp = True

    def __init__(self, testing: bool = False):
        super().__init__(["Slicer"])
        self.setApplicationName("Slicer")
        self.setApplicationVersion(VERSION)
        self.setOrganizationName("SlicerHost")
        self.setStyle("Fusion")
        font = QtGui.QFont("DejaVu Sans")
        font.setPixelSize(12)
        self.setFont(font)
        self._testing = testing
        self._home = Path(tempfile.mkdtemp(prefix="SlicerHost-"))
        atexit.register(shutil.rmtree, self._home, ignore_errors=True)  # where nobody calls remove()
        (self._home / "temporary").mkdir()
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
            QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, str(self._home / "settings"))
        self._environment = self._cleanEnvironment()
        self._writePythonSlicer()
        self._world = Scene()
        self._modules = ModuleManager(self)
        self._files = FileManager()
        self._installRequests: list[tuple] = []
        self._window = None
        slicer.app = self
        slicer.mrmlScene = self._world.scene
        self._modules.add("Volumes", self._world.volumesModule())
        self._layouts = LayoutManager(self._world, self)
        self._answers = dialogs.Answers()

    # For the host

    installRequests = property(lambda self: self._installRequests, doc="What slicer.packaging was asked for")
    answers = property(lambda self: self._answers)

    def openMainWindow(self) -> MainWindow:
        self._window = MainWindow(self._layouts.viewport())
        return self._window

    # Folders and processes

    def _cleanEnvironment(self) -> QtCore.QProcessEnvironment:
        """What Slicer was started in: without the variables and folders that its launcher sets."""
        environment = QtCore.QProcessEnvironment()
        for name, value in os.environ.items():
            if not name.startswith(("PYTHON", "PYTEST", "LD_LIBRARY_PATH", "QT_")):
                environment.insert(name, value)
        return environment

    def _writePythonSlicer(self) -> None:
        folder = self._home / "bin"
        folder.mkdir()
        launcher = folder / "PythonSlicer"
        launcher.write_text(_PYTHON_SLICER.replace("{python}", sys.executable), encoding="utf-8")
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"

    def startupEnvironment(self) -> QtCore.QProcessEnvironment:
        return self._environment

    slicerHome = property(lambda self: str(self._home))
    temporaryPath = property(lambda self: str(self._home / "temporary"))
    launcherExecutableFilePath = property(lambda self: str(self._home / "Slicer"))

    # Version and settings

    majorVersion = property(lambda self: int(VERSION.split(".")[0]))
    minorVersion = property(lambda self: int(VERSION.split(".")[1]))
    revision = property(lambda self: "34045")
    documentationBaseUrl = property(lambda self: "https://slicer.readthedocs.io/en/latest/")
    os = property(lambda self: "linux")

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def settings(self) -> QtCore.QSettings:
        return QtCore.QSettings()

    userSettings = revisionUserSettings = settings

    def testingEnabled(self) -> bool:
        return self._testing

    def translate(self, context: str, text: str) -> str:
        return QtCore.QCoreApplication.translate(context, text)

    # Scene, modules, views

    def mrmlScene(self):
        return self._world.scene

    def applicationLogic(self):
        return self._world.logic

    def moduleManager(self) -> ModuleManager:
        return self._modules

    def coreIOManager(self) -> FileManager:
        return self._files

    ioManager = coreIOManager

    def layoutManager(self) -> LayoutManager:
        return self._layouts

    def pauseRender(self) -> None:
        pass

    def resumeRender(self) -> None:
        pass

    def remove(self) -> None:
        """Takes the application's folder away and stops drawing."""
        self._layouts.detach()
        os.environ["PATH"] = os.environ["PATH"].removeprefix(f"{self._home / 'bin'}{os.pathsep}")
        shutil.rmtree(self._home, ignore_errors=True)
