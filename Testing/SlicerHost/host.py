"""The host: Slicer's modules `qt`, `ctk` and `slicer` made complete, and a hand on the running application."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

from .console import Console
from .display import ensureDisplay
from .references import makeImmortal

_host: Host | None = None


class _Merged(types.ModuleType):
    """A module whose names are those of several; an unknown name says that the host lacks it."""

    def __init__(self, name: str, sources: list, own: dict, hidden: tuple[str, ...] = ()):
        super().__init__(name)
        self.__dict__.update(own)
        self._sources, self._hidden = sources, hidden

    def __getattr__(self, name: str):
        if not name.startswith("_") and name not in self._hidden:
            for source in self._sources:
                if hasattr(source, name):
                    return getattr(source, name)
        raise AttributeError(f"SlicerHost's module '{self.__name__}' has no '{name}'")


class Host:
    """The running stand-in for Slicer; there is one in a process, from `start()`."""

    def __init__(self) -> None:
        makeImmortal()
        self.display = ensureDisplay()
        self.console = Console()
        self._completeModules()
        self.console.watchVtk()
        from .application import qSlicerApplication

        self.app = qSlicerApplication()
        self.window = self.app.openMainWindow()

    def _completeModules(self) -> None:
        from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

        from . import manners

        manners.teach()
        from .uiLoader import QUiLoader

        # Signals made in Python are not usable in PythonQt, nor are PySide6's decorators there.
        hidden = ("Signal", "Slot", "Property", "ClassInfo")
        sys.modules["qt"] = _Merged(
            "qt", [QtCore, QtGui, QtWidgets, QtNetwork], {"QUiLoader": QUiLoader}, hidden
        )
        import slicer
        import slicer.util

        # After its own import has ended: slicer-core imports every module that it finds in its path.
        slicer.__path__.append(str(Path(__file__).parent / "slicerExtra"))
        from . import ctkWidgets

        widgets = {name: cls for name, cls in vars(ctkWidgets).items() if name.startswith("ctk")}
        sys.modules["ctk"] = _Merged("ctk", [], widgets)
        from . import mrmlWidgets

        mrml = {name: cls for name, cls in vars(mrmlWidgets).items() if name.startswith(("qMRML", "qSlicer"))}
        vars(slicer).update(mrml)
        QUiLoader.widgetClasses.update(widgets | mrml)
        from . import modules

        slicer.qSlicerScriptedLoadableModule = modules.qSlicerScriptedLoadableModule
        slicer.qSlicerScriptedLoadableModuleWidget = modules.qSlicerScriptedLoadableModuleWidget

    # What went wrong

    @property
    def errors(self) -> list[str]:
        """Exceptions from slots, observers and threads, and Qt's warnings, since the last `takeErrors`."""
        return self.console.errors

    def takeErrors(self) -> list[str]:
        """Returns the errors so far and forgets them: for a test that provokes one."""
        taken = list(self.console.errors)
        self.console.errors.clear()
        return taken

    @property
    def dialogs(self) -> list:
        """The dialogs shown so far (kind, text, answer)."""
        return self.app.answers.shown

    def answerNext(self, *answers) -> None:
        """Prepares the answers of the next dialogs: buttons, paths."""
        self.app.answers.prepared.extend(answers)

    # Modules, time, pictures

    def loadModule(self, path: str | Path):
        """Loads a scripted module's .py file and shows its panel; returns the module's Python widget."""
        module = self.app.moduleManager().load(path)
        return self.showModule(module.name)

    def showModule(self, name: str):
        """Shows a loaded module's panel, as choosing it in Slicer does; returns its Python widget."""
        import slicer

        slicer.util.selectModule(name)
        self.process()
        return slicer.util.getModuleWidget(name)

    def process(self, seconds: float = 0.0, until: Callable[[], bool] | None = None) -> bool:
        """Keeps the event loop turning for `seconds`, or until the predicate holds; returns whether it does."""
        end = time.monotonic() + seconds
        while True:
            self.app.processEvents()
            self.app.sendPostedEvents(None, 52)  # QEvent::DeferredDelete, which processEvents leaves
            if until is not None and until():
                return True
            if time.monotonic() >= end:
                return until is None
            time.sleep(0.005)

    def screenshot(self, widget, path: str | Path) -> Path:
        """Saves a picture of a widget (a module's Python widget stands for its panel)."""
        widget = getattr(widget, "parent", widget) if not hasattr(widget, "grab") else widget
        widget.show()
        self.process(0.05)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not widget.grab().save(str(path)):
            raise OSError(f"the screenshot could not be written to {path}")
        return path

    # The scene's life

    def clear(self) -> None:
        """Unloads the scripted modules, closes the scene and forgets dialogs and requests: a fresh Slicer."""
        import slicer

        manager = self.app.moduleManager()
        for name in manager.scriptedModuleNames():
            manager.unload(name)
        slicer.mrmlScene.Clear(0)
        self.app.settings().clear()
        self.app.answers.shown.clear()
        self.app.answers.prepared.clear()
        self.app.installRequests.clear()
        self.process()

    def quit(self) -> None:
        """What happens when the user quits: aboutToQuit, then the modules go."""
        self.app.aboutToQuit.emit()
        self.clear()

    def close(self) -> None:
        """Quits and removes the application's folder. The process cannot start another host."""
        self.quit()
        self.window.close()
        self.app.remove()
        self.console.close()


def start() -> Host:
    """The host of this process, made at the first call."""
    global _host
    if _host is None:
        _host = Host()
    return _host
