"""Stand-ins for the qMRML widgets, on the real MRML scene."""

from __future__ import annotations

import weakref

import vtk
from PySide6 import QtCore, QtWidgets
from shiboken6 import Shiboken

from .ctkWidgets import ctkDoubleSpinBox, ctkSliderWidget
from .properties import stored, withSetters


def _observe(subject, event, method) -> int:
    """Calls the widget's method with the event's node, for as long as the widget lives."""
    weak = weakref.WeakMethod(method)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def call(_subject, _event, node=None):
        live = weak()
        if live is None or not Shiboken.isValid(live.__self__):
            subject.RemoveObserver(tag)
        else:
            live(node)

    tag = subject.AddObserver(event, call)
    return tag


class _WithScene:
    """A widget that is told of the scene."""

    standsForCpp = True

    def mrmlScene(self):
        return self.__dict__.get("_scene")

    def _takeScene(self, scene) -> bool:
        if scene is self.mrmlScene():
            return False
        self._scene = scene
        return True


class qMRMLWidget(_WithScene, QtWidgets.QWidget):
    """The container of a panel: hands the scene to the widgets connected to it."""

    mrmlSceneChanged = QtCore.Signal(object)

    @QtCore.Slot(object)
    def setMRMLScene(self, scene) -> None:
        if self._takeScene(scene):
            self.mrmlSceneChanged.emit(scene)


class qSlicerWidget(qMRMLWidget):
    """What qSlicerWidget adds to it is of no use to a panel."""



class qMRMLSliderWidget(_WithScene, ctkSliderWidget):
    """A slider that knows the scene's units."""

    quantity = stored(str, "quantity", "")

    @QtCore.Slot(object)
    def setMRMLScene(self, scene) -> None:
        self._takeScene(scene)


class qMRMLSpinBox(_WithScene, ctkDoubleSpinBox):
    """A spin box that knows the scene's units."""

    quantity = stored(str, "quantity", "")

    @QtCore.Slot(object)
    def setMRMLScene(self, scene) -> None:
        self._takeScene(scene)


@withSetters
class qMRMLNodeComboBox(_WithScene, QtWidgets.QWidget):
    """Chooses a node of the scene, or makes, renames or deletes one."""

    currentNodeChanged = QtCore.Signal((object,), (bool,))
    currentNodeIDChanged = QtCore.Signal(str)
    currentNodeRenamed = QtCore.Signal(str)
    nodeActivated = QtCore.Signal(object)
    nodeAdded = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)
    nodeAboutToBeRemoved = QtCore.Signal(object)
    mrmlSceneChanged = QtCore.Signal(object)

    nodeTypes = stored("QStringList", "nodeTypes", [], after="_refresh")
    showHidden = stored(bool, "showHidden", False, after="_refresh")
    showChildNodeTypes = stored(bool, "showChildNodeTypes", True, after="_refresh")
    noneEnabled = stored(bool, "noneEnabled", False, after="_refresh")
    noneDisplay = stored(str, "noneDisplay", "None", after="_refresh")
    addEnabled = stored(bool, "addEnabled", True, after="_refresh")
    removeEnabled = stored(bool, "removeEnabled", True, after="_refresh")
    editEnabled = stored(bool, "editEnabled", False, after="_refresh")
    renameEnabled = stored(bool, "renameEnabled", False, after="_refresh")
    selectNodeUponCreation = stored(bool, "selectNodeUponCreation", True)
    baseName = stored(str, "baseName", "")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node = None
        self._attributes: list[tuple[str, str, str | None]] = []
        self._labels: dict[str, str] = {}
        self._observed: list[tuple[object, int]] = []
        self._nodeTag: int | None = None
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._combo = QtWidgets.QComboBox(self)
        self._combo.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._combo.setMinimumContentsLength(12)
        row.addWidget(self._combo)
        self._combo.activated.connect(self._activated)
        self._refresh()

    # The scene

    @QtCore.Slot(object)
    def setMRMLScene(self, scene) -> None:
        if not self._takeScene(scene):
            return
        for subject, tag in self._observed:
            subject.RemoveObserver(tag)
        self._observed = []
        if scene is not None:
            for event, slot in (
                (scene.NodeAddedEvent, self._nodeWasAdded),
                (scene.NodeAboutToBeRemovedEvent, self._nodeIsRemoved),
                (scene.NodeRemovedEvent, self._sceneChanged),
                (scene.EndBatchProcessEvent, self._sceneChanged),
            ):
                self._observed.append((scene, _observe(scene, event, slot)))
        self._refresh()
        self.mrmlSceneChanged.emit(scene)

    def _accepts(self, node) -> bool:
        for kind in self.nodeTypes:
            fits = node.IsA(kind) if self.showChildNodeTypes else node.GetClassName() == kind
            if not fits or (node.GetHideFromEditors() and not self.showHidden):
                continue
            wanted = [(name, value) for of, name, value in self._attributes if of == kind]
            if all(
                node.GetAttribute(name) is not None if value is None else node.GetAttribute(name) == value
                for name, value in wanted
            ):
                return True
        return False

    def nodes(self) -> list:
        scene = self.mrmlScene()
        if scene is None:
            return []
        every = (scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes()))
        return [node for node in every if self._accepts(node)]

    def nodeCount(self) -> int:
        return len(self.nodes())

    def nodeFromIndex(self, index: int):
        return self.nodes()[index] if 0 <= index < self.nodeCount() else None

    def addAttribute(self, nodeType: str, name: str, value=None) -> None:
        self._attributes.append((nodeType, name, None if value is None else str(value)))
        self._refresh()

    def _nodeWasAdded(self, node) -> None:
        if node is not None and self._accepts(node):
            self.nodeAdded.emit(node)
            self._refresh()

    def _sceneChanged(self, _node) -> None:
        self._refresh()

    def _nodeIsRemoved(self, node) -> None:
        if node is None or not self._accepts(node):
            return
        self.nodeAboutToBeRemoved.emit(node)
        if node is self._node:
            others = [n for n in self.nodes() if n is not node]
            self._select(None if self.noneEnabled or not others else others[0])

    # The choice

    def currentNode(self):
        return self._node

    @QtCore.Slot(object)
    def setCurrentNode(self, node) -> None:
        if isinstance(node, str):
            self.setCurrentNodeID(node)
            return
        self._select(node if node is not None and node in self.nodes() else None)

    @QtCore.Slot(str)
    def setCurrentNodeID(self, nodeID: str) -> None:
        scene = self.mrmlScene()
        self.setCurrentNode(scene.GetNodeByID(nodeID) if scene is not None and nodeID else None)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self.nodeFromIndex(index))

    currentNodeID = QtCore.Property(str, lambda self: self._node.GetID() if self._node else "", setCurrentNodeID)

    def _select(self, node) -> None:
        if node is not self._node:
            if self._nodeTag is not None:
                self._node.RemoveObserver(self._nodeTag)
            self._node = node
            self._nodeTag = None
            if node is not None:
                self._nodeTag = _observe(node, vtk.vtkCommand.ModifiedEvent, self._sceneChanged)
            self._fill()
            self.currentNodeChanged[object].emit(node)
            self.currentNodeChanged[bool].emit(node is not None)
            self.currentNodeIDChanged.emit(self.currentNodeID)
        else:
            self._fill()

    def _refresh(self) -> None:
        if "_combo" not in self.__dict__:
            return
        nodes = self.nodes()
        if self._node is not None and self._node not in nodes:
            self._select(None)
        if self._node is None and not self.noneEnabled and nodes:
            self._select(nodes[0])
        self._fill()

    def _fill(self) -> None:
        self._combo.blockSignals(True)
        self._combo.clear()
        if self.noneEnabled:
            self._combo.addItem(self.noneDisplay)
        for node in self.nodes():
            self._combo.addItem(node.GetName(), node.GetID())
        actions = [("create", f"Create new {self.nodeTypeLabel(kind)}", kind) for kind in self.nodeTypes]
        actions = actions if self.addEnabled else []
        if self._node is not None:
            label = self.nodeTypeLabel(self._node.GetClassName())
            actions += [("rename", f"Rename current {label}", "")] if self.renameEnabled else []
            actions += [("delete", f"Delete current {label}", "")] if self.removeEnabled else []
        if actions and self._combo.count:
            self._combo.insertSeparator(self._combo.count)
        for action in actions:
            self._combo.addItem(action[1], (action[0], action[2]))
        if self._node is not None:
            self._combo.setCurrentIndex(self._combo.findData(self._node.GetID()))
        elif self.noneEnabled:
            self._combo.setCurrentIndex(0)
        else:
            self._combo.setPlaceholderText(f"Select a {self.nodeTypeLabel(next(iter(self.nodeTypes), 'Node'))}")
            self._combo.setCurrentIndex(-1)
        self._combo.blockSignals(False)

    def _activated(self, index: int) -> None:
        data = self._combo.itemData(index)
        if isinstance(data, (tuple, list)):
            action, kind = data
            self._fill()
            {"create": lambda: self.addNode(kind), "rename": self.renameCurrentNode, "delete": self.removeCurrentNode}[
                action
            ]()
            return
        self.setCurrentNodeID(data or "")
        self.nodeActivated.emit(self._node)

    # What its menu does

    def nodeTypeLabel(self, kind: str) -> str:
        if kind in self._labels:
            return self._labels[kind]
        scene = self.mrmlScene()
        node = scene.CreateNodeByClass(kind) if scene is not None else None
        if node is None:
            return kind.removeprefix("vtkMRML").removesuffix("Node")
        node.UnRegister(None)
        return node.GetNodeTagName()

    def setNodeTypeLabel(self, label: str, nodeType: str) -> None:
        self._labels[nodeType] = label
        self._fill()

    def addNode(self, nodeType: str | None = None):
        """Makes a node of the first (or the given) type, as the menu's "Create new" does."""
        scene = self.mrmlScene()
        kind = nodeType or self.nodeTypes[0]
        name = scene.GenerateUniqueName(self.baseName or self.nodeTypeLabel(kind))
        node = scene.AddNewNodeByClass(kind, name)
        for of, attribute, value in self._attributes:
            if of == kind:
                node.SetAttribute(attribute, value or "")
        self._refresh()
        if self.selectNodeUponCreation:
            self._select(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        if self._node is not None:
            self.mrmlScene().RemoveNode(self._node)

    def renameCurrentNode(self) -> None:
        if self._node is None:
            return
        name, accepted = QtWidgets.QInputDialog.getText(
            self, "Rename", "New name:", QtWidgets.QLineEdit.EchoMode.Normal, self._node.GetName()
        )
        if accepted and name:
            self._node.SetName(name)
            self.currentNodeRenamed.emit(name)
