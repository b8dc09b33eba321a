"""A small scripted module with every widget that the host stands for: what the host's own tests run."""

from __future__ import annotations

import enum
import pathlib
from typing import Annotated, Optional

import qt
import slicer
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class Side(enum.Enum):
    LEFT = 1
    RIGHT = 2


class HostSample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Host sample")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Examples")]
        self.parent.helpText = _("Shows every widget.")


@parameterNodeWrapper
class HostSampleParameterNode:
    inputVolume: vtkMRMLScalarVolumeNode
    outputVolume: vtkMRMLScalarVolumeNode
    kernel: Annotated[str, Choice(["smooth", "medium", "sharp"])] = "medium"
    side: Side = Side.RIGHT
    samples: Annotated[int, WithinRange(1, 64)] = 16
    dose: Annotated[float, WithinRange(1, 100)] = 100.0
    temperature: Annotated[float, Default(0.7), WithinRange(0, 2)]
    invert: bool = False
    note: str = "draft"
    folder: pathlib.Path = pathlib.Path("models")
    seed: Optional[int] = None  # noqa: UP045 (Slicer's wrapper refuses `int | None`)


class HostSampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.events = []
        self._parameterNode = None
        self._guiTag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/HostSample.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = HostSampleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInput)
        self.initializeParameterNode()

    def cleanup(self):
        self.events.append("cleanup")
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self):
        self.events.append("enter")
        self.initializeParameterNode()

    def exit(self):
        self.events.append("exit")

    def onSceneStartClose(self, caller, event):
        self.events.append("startClose")
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        self.events.append("endClose")
        self.initializeParameterNode()

    def initializeParameterNode(self):
        self.setParameterNode(HostSampleParameterNode(self.logic.getParameterNode()))
        if not self._parameterNode.inputVolume:
            first = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            if first:
                self._parameterNode.inputVolume = first

    def setParameterNode(self, parameterNode):
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._guiTag)
        self._parameterNode = parameterNode
        if self._parameterNode:
            self._guiTag = self._parameterNode.connectGui(self.ui)

    def onInput(self, node):
        self.events.append(node.GetName() if node else None)
        self.ui.applyButton.enabled = node

    def onApply(self):
        self.events.append("apply")
        self.ui.progressBar.value = 100


class HostSampleLogic(ScriptedLoadableModuleLogic):
    def shout(self, text):
        return text.upper()


class HostSampleTest(ScriptedLoadableModuleTest):
    def runTest(self):
        self.delayDisplay("Starting")
        self.assertEqual(HostSampleLogic().shout("a"), "A")
        qt.QTimer.singleShot(0, lambda: None)
