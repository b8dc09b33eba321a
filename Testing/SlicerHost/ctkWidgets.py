"""Stand-ins for the CTK widgets that panels use: same properties and signals, and they look alike."""

from __future__ import annotations

import os

from PySide6 import QtCore, QtGui, QtWidgets

from .properties import forwarded, stored, withSetters


@withSetters
class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A titled section that folds: a header over a frame; expanded while checked."""

    standsForCpp = True
    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, *arguments):
        text = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        super().__init__(arguments[-1] if arguments and not isinstance(arguments[-1], str) else None)
        self._folded: set[QtWidgets.QWidget] = set()  # children that this button hides
        self.setCheckable(True)
        self.setChecked(True)
        self.setText(text or "Button")
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Minimum, QtWidgets.QSizePolicy.Policy.Preferred)
        self.setContentsMargins(1, self._headerHeight(), 1, 1)
        self.toggled.connect(self._fold)

    def _getCollapsed(self) -> bool:
        return not self.isChecked()

    def _setCollapsed(self, value: bool) -> None:
        self.setChecked(not value)

    collapsed = QtCore.Property(bool, _getCollapsed, _setCollapsed)
    contentsFrameShape = stored(int, "contentsFrameShape", 0)
    contentsLineWidth = stored(int, "contentsLineWidth", 1)
    collapsedHeight = stored(int, "collapsedHeight", 0)

    def _headerHeight(self) -> int:
        return self.fontMetrics().height() + 8

    def _fold(self, *_) -> None:
        collapsed = not self.isChecked()
        children = self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly)
        if collapsed:
            for child in children:
                if not child.isHidden():
                    self._folded.add(child)
                    child.hide()
        else:
            for child in [c for c in children if c in self._folded]:
                child.show()
            self._folded.clear()
        self.setMaximumHeight(self._headerHeight() if collapsed else 16777215)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def showEvent(self, event):
        super().showEvent(event)
        if not self.isChecked():
            self._fold()  # children that were added after it was folded

    def hitButton(self, position) -> bool:
        return position.y() <= self._headerHeight()

    def minimumSizeHint(self):
        return self.sizeHint()

    def sizeHint(self):
        width = self.fontMetrics().horizontalAdvance(self.text) + 40
        header = QtCore.QSize(width, self._headerHeight())
        if not self.isChecked() or self.layout() is None:
            return header
        return self.layout().totalSizeHint().expandedTo(header)

    def paintEvent(self, _event):
        painter = QtWidgets.QStylePainter(self)
        header = QtCore.QRect(0, 0, self.size.width(), self._headerHeight() - 1)
        frame = QtWidgets.QStyleOptionFrame()
        frame.initFrom(self)
        frame.rect = self.rect.adjusted(0, header.height() // 2, 0, 0)
        frame.lineWidth = 1
        if self.isChecked():
            painter.drawPrimitive(QtWidgets.QStyle.PrimitiveElement.PE_FrameGroupBox, frame)
        button = QtWidgets.QStyleOptionButton()
        button.initFrom(self)
        button.rect = header
        button.state |= QtWidgets.QStyle.StateFlag.State_Raised
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, button)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, (header.height() - 10) // 2, 10, 10)
        element = QtWidgets.QStyle.PrimitiveElement
        painter.drawPrimitive(
            element.PE_IndicatorArrowDown if self.isChecked() else element.PE_IndicatorArrowRight, arrow
        )
        painter.setPen(self.palette.color(QtGui.QPalette.ColorRole.ButtonText))
        flags = QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter
        painter.drawText(header.adjusted(22, 0, 0, 0), flags | QtCore.Qt.TextFlag.TextShowMnemonic, self.text)


@withSetters
class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box whose check mark folds it."""

    standsForCpp = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.setCheckable(True)
        self.toggled.connect(self._fold)

    def _setCollapsed(self, value: bool) -> None:
        self.setChecked(not value)

    collapsed = QtCore.Property(bool, lambda self: not self.isChecked(), _setCollapsed)

    def _fold(self, *_) -> None:
        self.setMaximumHeight(16777215 if self.isChecked() else self.fontMetrics().height() + 8)


class _ValueBox(QtWidgets.QWidget):
    """What the slider and the spin box have in common: a QDoubleSpinBox inside, as `self._box`."""

    standsForCpp = True
    valueChanged = QtCore.Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._row = QtWidgets.QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._box = QtWidgets.QDoubleSpinBox(self)
        self._box.setKeyboardTracking(False)
        self._box.valueChanged.connect(self.valueChanged)

    def setRange(self, minimum: float, maximum: float) -> None:
        self._box.setRange(minimum, maximum)


@withSetters
class ctkDoubleSpinBox(_ValueBox):
    """A spin box for a floating-point number."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._row.addWidget(self._box)

    value = forwarded(float, "_box", "value")
    minimum = forwarded(float, "_box", "minimum")
    maximum = forwarded(float, "_box", "maximum")
    singleStep = forwarded(float, "_box", "singleStep")
    decimals = forwarded(int, "_box", "decimals")
    prefix = forwarded(str, "_box", "prefix")
    suffix = forwarded(str, "_box", "suffix")
    specialValueText = forwarded(str, "_box", "specialValueText")
    decimalsOption = stored(int, "decimalsOption", 0)


@withSetters
class ctkSliderWidget(_ValueBox):
    """A slider with a spin box beside it, for a floating-point number."""

    valueIsChanging = QtCore.Signal(float)
    _ticks = 10000

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, self)
        self._slider.setRange(0, self._ticks)
        self._row.addWidget(self._slider, 1)
        self._row.addWidget(self._box)
        self._box.setRange(0.0, 99.0)
        self._slider.valueChanged.connect(self._slid)
        self._box.valueChanged.connect(self._placeSlider)

    value = forwarded(float, "_box", "value")
    singleStep = forwarded(float, "_box", "singleStep")
    decimals = forwarded(int, "_box", "decimals")
    prefix = forwarded(str, "_box", "prefix")
    suffix = forwarded(str, "_box", "suffix")
    tracking = forwarded(bool, "_slider", "tracking")
    pageStep = stored(float, "pageStep", 10.0)
    tickInterval = stored(float, "tickInterval", 0.0)
    spinBoxVisible = forwarded(bool, "_box", "visible")

    def _setMinimum(self, value: float) -> None:
        self._box.setMinimum(value)
        self._placeSlider()

    def _setMaximum(self, value: float) -> None:
        self._box.setMaximum(value)
        self._placeSlider()

    minimum = QtCore.Property(float, lambda self: self._box.minimum, _setMinimum)
    maximum = QtCore.Property(float, lambda self: self._box.maximum, _setMaximum)

    def setRange(self, minimum: float, maximum: float) -> None:
        super().setRange(minimum, maximum)
        self._placeSlider()

    def _slid(self, tick: int) -> None:
        step = self._box.singleStep or 1.0
        value = self.minimum + (self.maximum - self.minimum) * tick / self._ticks
        value = self.minimum + round((value - self.minimum) / step) * step
        self.valueIsChanging.emit(value)
        self._box.setValue(value)

    def _placeSlider(self, *_) -> None:
        width = self.maximum - self.minimum
        self._slider.blockSignals(True)
        self._slider.setValue(round(self._ticks * (self.value - self.minimum) / width) if width > 0 else 0)
        self._slider.blockSignals(False)


@withSetters
class ctkComboBox(QtWidgets.QComboBox):
    """A combo box with a text for "nothing chosen"."""

    standsForCpp = True
    defaultText = stored(str, "defaultText", "", after="_showDefault")
    forceDefault = stored(bool, "forceDefault", False)

    def _showDefault(self) -> None:
        self.setPlaceholderText(self.defaultText)


@withSetters
class ctkPathLineEdit(QtWidgets.QWidget):
    """A line for a path and a button that browses for it."""

    standsForCpp = True
    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)
    # ctkPathLineEdit::Filter is QDir::Filter
    Files = QtCore.QDir.Filter.Files
    Dirs = QtCore.QDir.Filter.Dirs
    Readable = QtCore.QDir.Filter.Readable
    Writable = QtCore.QDir.Filter.Writable

    def __init__(self, parent=None):
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._line = QtWidgets.QComboBox(self)
        self._line.setEditable(True)
        self._line.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._browse = QtWidgets.QToolButton(self)
        self._browse.setText("…")
        row.addWidget(self._line, 1)
        row.addWidget(self._browse)
        self._line.editTextChanged.connect(self.currentPathChanged)
        self._browse.clicked.connect(self.browse)

    def _getPath(self) -> str:
        return self._line.currentText

    def _setPath(self, path: str) -> None:
        self._line.setEditText(path)

    currentPath = QtCore.Property(str, _getPath, _setPath)
    filters = stored(int, "filters", 0)
    nameFilters = stored("QStringList", "nameFilters", [])
    label = stored(str, "label", "")
    settingKey = stored(str, "settingKey", "")
    showHistoryButton = stored(bool, "showHistoryButton", True)

    def browse(self) -> None:
        if self.filters & int(QtCore.QDir.Filter.Dirs.value):
            path = QtWidgets.QFileDialog.getExistingDirectory(self, "Select a directory", self.currentPath)
        else:
            path = QtWidgets.QFileDialog.getOpenFileName(self, "Open", self.currentPath)[0]
        if path:
            self.currentPath = path

    def addCurrentPathToHistory(self) -> None:
        if self.currentPath and self._line.findText(self.currentPath) < 0:
            self._line.addItem(self.currentPath)


class ctkDirectoryButton(QtWidgets.QPushButton):
    """A button that shows a folder, and asks for another."""

    standsForCpp = True
    directoryChanged = QtCore.Signal(str)
    directorySelected = QtCore.Signal(str)

    def __init__(self, *arguments):
        super().__init__(arguments[-1] if arguments and not isinstance(arguments[-1], str) else None)
        self.setIcon(self.style().standardIcon(QtWidgets.QStyle.StandardPixmap.SP_DirIcon))
        self.setDirectory(arguments[0] if arguments and isinstance(arguments[0], str) else os.getcwd())
        self.clicked.connect(self.browse)

    def setDirectory(self, path: str) -> None:
        path = os.path.abspath(path)
        if path != self.__dict__.get("_directory"):
            self._directory = path
            self.setText(path)
            self.directoryChanged.emit(path)

    directory = QtCore.Property(str, lambda self: self._directory, setDirectory)

    def browse(self, *_) -> None:
        path = QtWidgets.QFileDialog.getExistingDirectory(self, "Select a directory", self.directory)
        if path:
            self.directory = path
            self.directorySelected.emit(path)


@withSetters
class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box with "don't show again"."""

    standsForCpp = True
    dontShowAgain = stored(bool, "dontShowAgain", False)
    dontShowAgainVisible = stored(bool, "dontShowAgainVisible", False)
    dontShowAgainSettingsKey = stored(str, "dontShowAgainSettingsKey", "")


class ctkFittedTextBrowser(QtWidgets.QTextBrowser):
    """A text browser as tall as its text."""

    standsForCpp = True
