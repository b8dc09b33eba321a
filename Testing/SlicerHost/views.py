"""The layout and its slice views: drawn by Qt from the real slice logics, without a graphics card."""

from __future__ import annotations

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from vtk.util.numpy_support import vtk_to_numpy

_COLORS = {"Red": "#f34a33", "Yellow": "#edd54c", "Green": "#6eb04b"}


class SliceView(QtWidgets.QWidget):
    """Shows what one slice logic makes: background, foreground and label, blended, in its window and level."""

    def __init__(self, name: str, logic, parent=None):
        super().__init__(parent)
        self._name, self._logic = name, logic
        self._pending = False
        self._tag = logic.AddObserver(vtk.vtkCommand.ModifiedEvent, self._changed)
        self.setMinimumSize(QtCore.QSize(120, 120))
        self.setObjectName(f"{name}SliceView")

    def detach(self) -> None:
        self._logic.RemoveObserver(self._tag)

    def _changed(self, *_) -> None:
        self.update()

    def resizeEvent(self, event):
        super().resizeEvent(event)
        self._logic.ResizeSliceNode(max(1, self.width), max(1, self.height))

    def _image(self) -> QtGui.QImage | None:
        source = self._logic.GetImageDataConnection()
        if source is None:
            return None
        source.GetProducer().Update()
        data = source.GetProducer().GetOutputDataObject(source.GetIndex())
        columns, rows, _ = data.GetDimensions()
        scalars = data.GetPointData().GetScalars()
        if scalars is None or scalars.GetNumberOfComponents() != 4:
            return None
        pixels = vtk_to_numpy(scalars).reshape(rows, columns, 4)[::-1].tobytes()  # VTK counts rows upwards
        return QtGui.QImage(pixels, columns, rows, 4 * columns, QtGui.QImage.Format.Format_RGBA8888).copy()

    def paintEvent(self, _event):
        painter = QtGui.QPainter(self)
        painter.fillRect(self.rect, QtGui.QColor("black"))
        image = self._image()
        if image is not None:
            painter.drawImage(0, 0, image)
        painter.fillRect(QtCore.QRect(0, 0, self.width, 4), QtGui.QColor(_COLORS.get(self._name, "#888")))
        painter.setPen(QtGui.QColor("white"))
        painter.drawText(QtCore.QPoint(6, 20), self._name)
        node = self._logic.GetBackgroundLayer().GetVolumeNode()
        if node is not None:
            painter.drawText(QtCore.QPoint(6, self.height - 8), f"B: {node.GetName()}")


class SliceWidget(QtWidgets.QWidget):
    """Stands for qMRMLSliceWidget: a slice view with its nodes."""

    standsForCpp = True

    def __init__(self, name: str, logic, parent=None):
        super().__init__(parent)
        self._logic = logic
        self._view = SliceView(name, logic, self)
        box = QtWidgets.QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.addWidget(self._view)

    def sliceLogic(self):
        return self._logic

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self):
        return self._logic.GetSliceCompositeNode()

    def sliceView(self) -> SliceView:
        return self._view

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()


class LayoutManager(QtCore.QObject):
    """The three slice views in a row over two; remembers the layout it was given but does not rearrange."""

    standsForCpp = True
    layoutChanged = QtCore.Signal(int)

    def __init__(self, scene, parent=None):
        super().__init__(parent)
        self._scene = scene
        self._layout = slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView
        self._viewport = QtWidgets.QWidget()
        grid = QtWidgets.QGridLayout(self._viewport)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(2)
        self._widgets = {name: SliceWidget(name, logic) for name, logic in scene.sliceLogics.items()}
        for place, widget in zip(((0, 0, 1, 2), (1, 1, 1, 1), (1, 0, 1, 1)), self._widgets.values(), strict=True):
            grid.addWidget(widget, *place)

    def setLayout(self, layout: int) -> None:
        if layout != self._layout:
            self._layout = layout
            self.layoutChanged.emit(layout)

    layout = QtCore.Property(int, lambda self: self._layout, setLayout)

    def viewport(self) -> QtWidgets.QWidget:
        return self._viewport

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._widgets)

    def sliceWidget(self, name: str) -> SliceWidget | None:
        return self._widgets.get(name)

    def mrmlSliceLogics(self):
        return self._scene.sliceLogicCollection

    def resetSliceViews(self) -> None:
        for widget in self._widgets.values():
            widget.fitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """There are none."""

    threeDViewCount = property(lambda self: 0)

    def detach(self) -> None:
        for widget in self._widgets.values():
            widget.sliceView().detach()
