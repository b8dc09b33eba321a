"""A QUiLoader that knows Slicer's widgets and refuses what Slicer would only warn of, or leave unconnected."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from PySide6 import QtCore, QtUiTools

from . import manners


class UiError(RuntimeError):
    """A .ui file names a widget class, a signal or a slot that does not exist."""


class QUiLoader(QtUiTools.QUiLoader):
    """Loads a .ui file; raises UiError on an unknown widget class, object, signal or slot."""

    widgetClasses: dict[str, type] = {}  # Slicer's own, filled by the host

    def createWidget(self, className, parent=None, name=""):
        if className in self.widgetClasses:
            widget = self.widgetClasses[className](parent)
            widget.setObjectName(name)
            self._alive.append(widget)
            return widget
        if className not in self.availableWidgets():
            self._unknown.append(className)
            className = "QWidget"  # carry on, to name all unknown classes at once
        return super().createWidget(className, parent, name)

    def load(self, device, parent=None):
        self._unknown, self._alive = [], []
        tree = ElementTree.fromstring(bytes(device.readAll().data()))
        # Connections are made below: Qt's loader would only warn of a wrong one.
        connections = tree.find("connections")
        if connections is not None:
            tree.remove(connections)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        with manners.droppingAttributes():
            widget = super().load(buffer, parent)
        if self._unknown:
            raise UiError(f"the .ui file uses unknown widget classes: {', '.join(sorted(set(self._unknown)))}")
        for connection in connections if connections is not None else ():
            self._connect(widget, connection)
        return widget

    @staticmethod
    def _connect(root, connection) -> None:
        sender, signal, receiver, slot = (
            connection.findtext(key, "") for key in ("sender", "signal", "receiver", "slot")
        )
        ends = []
        for name in (sender, receiver):
            found = root if root.objectName == name else root.findChild(QtCore.QObject, name)
            if found is None:
                raise UiError(f"the .ui file connects an object '{name}' that it does not contain")
            ends.append(found)
        try:
            manners.connectMethods(ends[0], signal, ends[1], slot)
        except ValueError as error:
            raise UiError(f"in the .ui file, {error}") from None
