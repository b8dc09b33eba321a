"""A main window with the module panel on the left, slice views and a status bar, where slicer.util looks for them."""

from __future__ import annotations

import slicer
from PySide6 import QtCore, QtWidgets


class ModuleSelector(QtWidgets.QWidget):
    """Stands for qSlicerModuleSelectorToolBar."""

    standsForCpp = True
    moduleSelected = QtCore.Signal(str)

    def selectModule(self, name: str) -> None:
        module = slicer.app.moduleManager().module(name)
        if module is None:
            raise RuntimeError(f"Could not find module with name '{name}'")
        slicer.util.mainWindow().showPanel(name, module.widgetRepresentation())
        self.moduleSelected.emit(name)

    selectedModule = QtCore.Property(str, lambda self: slicer.util.mainWindow().shownModule)


class MainWindow(QtWidgets.QMainWindow):
    """Stands for qSlicerMainWindow."""

    standsForCpp = True

    def __init__(self, viewport: QtWidgets.QWidget) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer (stand-in)")
        self._shown = ""
        self._scroll = QtWidgets.QScrollArea(self)
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._dock = QtWidgets.QDockWidget("", self)
        self._dock.setObjectName("PanelDockWidget")
        self._dock.setFeatures(QtWidgets.QDockWidget.DockWidgetFeature.NoDockWidgetFeatures)
        self._dock.setWidget(self._scroll)
        self._dock.setMinimumWidth(440)
        self.addDockWidget(QtCore.Qt.DockWidgetArea.LeftDockWidgetArea, self._dock)
        self.setCentralWidget(viewport)
        self._selector = ModuleSelector(self)
        self._selector.hide()
        self.statusBar()
        self.resize(1240, 900)

    @property
    def shownModule(self) -> str:
        return self._shown

    def moduleSelector(self) -> ModuleSelector:
        return self._selector

    def showPanel(self, name: str, widget: QtWidgets.QWidget) -> None:
        """Puts a module's panel into the dock: the one before is left (`exit`), this one entered (`enter`)."""
        before = self._scroll.widget()
        self.show()
        if before is widget:
            return
        if before is not None:
            before.exit()
            self._scroll.takeWidget().setParent(None)
        self._shown = name
        self._dock.setWindowTitle(slicer.app.moduleManager().module(name).title)
        self._scroll.setWidget(widget)
        widget.show()
        widget.enter()
