"""A main window with the module panel on the left and a status bar, where slicer.util looks for them."""

from __future__ import annotations

from PySide6 import QtCore, QtWidgets


class MainWindow(QtWidgets.QMainWindow):
    """Stands for qSlicerMainWindow."""

    standsForCpp = True

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer (stand-in)")
        self._scroll = QtWidgets.QScrollArea(self)
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._dock = QtWidgets.QDockWidget("Module", self)
        self._dock.setFeatures(QtWidgets.QDockWidget.DockWidgetFeature.NoDockWidgetFeatures)
        self._dock.setWidget(self._scroll)
        self._dock.setMinimumWidth(440)
        self.addDockWidget(QtCore.Qt.DockWidgetArea.LeftDockWidgetArea, self._dock)
        self.setCentralWidget(QtWidgets.QWidget(self))
        self.statusBar()
        self.resize(1000, 900)

    def showPanel(self, widget: QtWidgets.QWidget) -> None:
        """Puts a module's panel into the dock; the one before leaves it, hidden."""
        before = self._scroll.widget()
        if before is widget:
            return
        if before is not None:
            before.exit()
            self._scroll.takeWidget().setParent(None)
        self._scroll.setWidget(widget)
        self.show()
        widget.show()
        widget.enter()
