"""Which widget can show which type, as in Slicer: others are refused."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import typing

import ctk
import qt
import slicer

from .serializers import Choice, Maximum, Minimum, WithinRange, splitAnnotations


@dataclasses.dataclass
class Decimals:
    """Annotation: the decimals that a spin box or slider shows."""

    value: int


@dataclasses.dataclass
class SingleStep:
    """Annotation: the step of a spin box or slider."""

    value: float


class GuiConnector:
    """Reads, writes and watches one widget through a property of it."""

    def __init__(self, widget, prop: str, signal: str, toWidget=lambda value: value, fromWidget=lambda value: value):
        self._widget, self._prop, self._signal = widget, prop, signal
        self._toWidget, self._fromWidget = toWidget, fromWidget
        self._callback = None

    def widget(self):
        return self._widget

    def read(self):
        return self._fromWidget(getattr(self._widget, self._prop))

    def write(self, value) -> None:
        setattr(self._widget, self._prop, self._toWidget(value))

    def changed(self) -> None:
        if self._callback:
            self._callback()

    def onChanged(self, callback) -> None:
        """Calls `callback` at each change of the widget; None ends that."""
        if self._callback is None and callback is not None:
            getattr(self._widget, self._signal).connect(self.changed)
        elif self._callback is not None and callback is None:
            getattr(self._widget, self._signal).disconnect(self.changed)
        self._callback = callback


class _NodeConnector(GuiConnector):
    def read(self):
        return self._widget.currentNode()

    def write(self, value) -> None:
        self._widget.setCurrentNode(value)


def _first(annotations: list, kind: type):
    return next((a for a in annotations if isinstance(a, kind)), None)


def _limit(widget, annotations: list, unbounded: tuple) -> None:
    """Applies the annotations to a number's widget; one without limits is opened as far as it goes."""
    for kind, name in ((Decimals, "decimals"), (SingleStep, "singleStep")):
        if _first(annotations, kind) is not None:
            setattr(widget, name, _first(annotations, kind).value)
    within, low, high = (_first(annotations, kind) for kind in (WithinRange, Minimum, Maximum))
    if isinstance(widget, (qt.QSlider, ctk.ctkSliderWidget)) and within is None and (low is None or high is None):
        raise RuntimeError("Cannot have a connection to a slider where the type is unbounded.")
    bounds = within or Minimum(None)
    widget.minimum = bounds.minimum if within else low.minimum if low else unbounded[0]
    widget.maximum = within.maximum if within else high.maximum if high else unbounded[1]


def _combo(widget, pairs: list) -> GuiConnector:
    """A combo box over (label, value) pairs; it is filled anew."""
    values = [value for _, value in pairs]

    def place(value) -> int:
        if value not in values:
            raise ValueError(f"Unable to find value {value} in choices {values}")
        return values.index(value)

    widget.clear()
    for label, _ in pairs:
        widget.addItem(label)
    return GuiConnector(widget, "currentIndex", "currentIndexChanged", place, lambda index: values[index])


def _nodeTypes(kind) -> list[str] | None:
    kinds = typing.get_args(kind) if typing.get_origin(kind) is typing.Union else (kind,)
    kinds = [k for k in kinds if k is not type(None)]
    if not all(isinstance(k, type) and issubclass(k, slicer.vtkMRMLNode) for k in kinds):
        return None
    return [k.__name__ for k in kinds]


def createGuiConnector(widget, datatype) -> GuiConnector:
    """The connector between a widget and an annotated type; raises RuntimeError where there is none."""
    kind, annotations = splitAnnotations(datatype)
    of = type(widget)
    if kind is bool and of is qt.QCheckBox:
        return GuiConnector(widget, "checked", "stateChanged")
    if kind is bool and of is qt.QPushButton:
        widget.checkable = True
        return GuiConnector(widget, "checked", "toggled")
    if kind is int and of in (qt.QSlider, qt.QSpinBox):
        _limit(widget, annotations, (-(2**31), 2**31 - 1))
        return GuiConnector(widget, "value", "valueChanged")
    if kind is float and of in (qt.QDoubleSpinBox, ctk.ctkSliderWidget):
        _limit(widget, annotations, (float("-inf"), float("inf")))
        return GuiConnector(widget, "value", "valueChanged")
    if kind in (int, float, str, bool) and of is qt.QComboBox:
        choice = _first(annotations, Choice)
        if choice is None:
            raise RuntimeError("A combo box needs the Choice annotation.")
        return _combo(widget, [(str(c), c) for c in choice.choices])
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and of is qt.QComboBox:
        label = getattr(kind, "label", lambda member: member.name)
        return _combo(widget, [(label(member), member) for member in kind])
    if kind is str and of is qt.QLineEdit:
        return GuiConnector(widget, "text", "textChanged")
    if kind is str and of is qt.QTextEdit:
        return GuiConnector(widget, "plainText", "textChanged")
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        if of is ctk.ctkPathLineEdit:
            return GuiConnector(widget, "currentPath", "currentPathChanged", str, kind)
        if of is ctk.ctkDirectoryButton:
            return GuiConnector(widget, "directory", "directoryChanged", str, kind)
    if of is slicer.qMRMLNodeComboBox and _nodeTypes(kind) is not None:
        widget.nodeTypes = _nodeTypes(kind)
        return _NodeConnector(widget, "", "currentNodeChanged")
    raise RuntimeError(f"Unable to create GUI connector from datatype '{datatype}' to widget type '{of}'")
