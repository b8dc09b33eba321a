"""CT Harmonize for 3D Slicer: the module's shell. What it does is in CTHarmonizeGui and CTHarmonizeLib."""

from typing import Annotated, Any

import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class CTHarmonize(ScriptedLoadableModule):
    """The module as Slicer's module factory sees it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("CT Harmonize")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Image Synthesis")]
        self.parent.dependencies = []  # PyTorch is asked for when it is needed: the module loads without it
        self.parent.contributors = ["CTHarmonize developers"]
        self.parent.helpText = _("""
<p>Makes a CT look as if it had been reconstructed with another kernel and taken with another dose: choose the
volume, a target sharpness and dose, and press Apply. Three volumes come back: one plausible image, the mean of
all samples, and their standard deviation in HU.</p>
<p>Research use, not a medical device.</p>
<p>See <a href="https://github.com/CTHarmonize/CTHarmonize">the documentation</a>.</p>
""")
        self.parent.acknowledgementText = _("""
Built on CTFlow (conditional normalizing flows for CT harmonization), on the physics-informed kernel
transfer by the ratio of modulation transfer functions, and on 3D Slicer and PyTorch.
""")


@parameterNodeWrapper
class CTHarmonizeParameterNode:
    """What the panel shows, saved with the scene.

    inputVolume - CT volume in HU.
    targetKernel - name, f50 in lp/cm as text, or empty: as the input.
    targetDose - percent.
    method, model - name and model folder; empty or not installed: the first that is.
    sourceKernel, sourceDose - corrections of what was detected; empty and 0: as detected.
    harmonizedVolume, meanVolume, standardDeviationVolume - outputs; none: new ones are made.
    temperature - 0: the model's default.
    coherence - mm; 0: off.
    augment - of a method without samples, its spread under turns and flips.
    beforeVolume, afterVolume, referenceVolume - what is measured; the last may be none.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    targetKernel: str = "medium"
    targetDose: Annotated[float, WithinRange(10, 100)] = 100
    method: str = ""
    model: str = ""
    sourceKernel: str = ""
    sourceDose: Annotated[float, WithinRange(0, 400)] = 0
    harmonizedVolume: vtkMRMLScalarVolumeNode
    meanVolume: vtkMRMLScalarVolumeNode
    standardDeviationVolume: vtkMRMLScalarVolumeNode
    samples: Annotated[int, WithinRange(1, 256)] = 16
    temperature: Annotated[float, WithinRange(0, 2)] = 0
    seed: Annotated[int, WithinRange(0, 2147483647)] = 0
    device: Annotated[str, Choice(["auto", "cpu", "cuda", "mps"])] = "auto"
    coherence: Annotated[float, WithinRange(0, 20)] = 0
    augment: bool = False
    beforeVolume: vtkMRMLScalarVolumeNode
    afterVolume: vtkMRMLScalarVolumeNode
    referenceVolume: vtkMRMLScalarVolumeNode


class CTHarmonizeWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Life cycle of the panel; its behaviour is CTHarmonizeGui.panel."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None

    def setup(self) -> None:
        """Called when the module is opened for the first time, and after a reload."""
        from CTHarmonizeGui import dependencies
        from CTHarmonizeGui.panel import Panel
        from CTHarmonizeGui.process import QtClock

        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/CTHarmonize.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = CTHarmonizeLogic()
        self.panel = Panel(
            self.ui, QtClock(), self.logic.harmonize, self.logic.makeDetection, self.logic.makeComparison,
            dependencies.ensure,
        )  # fmt: skip
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Called when the application closes and when the module is reloaded; running jobs are not ours to end."""
        self.setParameterNode(None)
        if self.panel:
            self.panel.close()
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the reader opens this module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the reader opens a different module."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._parameterNodeGuiTag = None
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.panel.refresh)

    def onReload(self) -> None:
        """Developers' reload: the files behind the module too, but not the jobs that run."""
        from CTHarmonizeGui import registry

        registry.forgetModules()
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller, event) -> None:
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Use the scene's parameter node, with the first CT volume chosen where there is none."""
        from CTHarmonizeGui import scene

        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            self._parameterNode.inputVolume = scene.firstInput()

    def setParameterNode(self, parameterNode: CTHarmonizeParameterNode | None) -> None:
        """Connect the widgets to ``parameterNode`` and follow it."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.panel.refresh)
        self._parameterNode = parameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.panel.refresh)
        if self.panel:
            self.panel.setParameters(self._parameterNode)


class CTHarmonizeLogic(ScriptedLoadableModuleLogic):
    """Harmonizes volumes of the scene, with or without the panel.

    >>> job = CTHarmonizeLogic().harmonize(volumeNode, targetKernel="medium")     # doctest: +SKIP
    >>> job.waitForFinished() or print(job.error)
    >>> job.harmonizedVolume, job.meanVolume, job.standardDeviationVolume
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)

    def getParameterNode(self) -> CTHarmonizeParameterNode:
        return CTHarmonizeParameterNode(super().getParameterNode())

    def harmonize(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        targetKernel: str | float | None = "auto",
        targetDose: float | str | None = "auto",
        targetThickness: float | None = None,
        method: str = "ctflow",
        model: str | None = None,
        samples: int | None = 16,
        temperature: float | None = None,
        seed: int = 0,
        device: str = "auto",
        sourceKernel: str | float | None = None,
        sourceDose: float | None = None,
        coherence: float = 0,
        augment: bool = False,
        harmonizedVolume: vtkMRMLScalarVolumeNode | None = None,
        meanVolume: vtkMRMLScalarVolumeNode | None = None,
        standardDeviationVolume: vtkMRMLScalarVolumeNode | None = None,
    ) -> Any:
        """Start a harmonization in the background and return its job at once.

        Kernels are names (smooth, medium, sharp) or an f50 in lp/cm, doses percent, thickness and coherence mm.
        Targets that are not given are medium and 100 %, as far as the method can set them, or the noise-free truth of
        a method that makes nothing else; a target of None stays as it is in the volume. Other None are the model's
        defaults. Outputs of None are made.
        A method without samples makes no standard deviation, unless ``augment`` asks for its spread over turns and
        flips of the slices, which is no uncertainty. The job has ``waitForFinished()``, ``cancel()``, ``fraction``,
        ``warnings``, ``error``, ``report`` and the volumes. Raises CTHarmonizeLib.errors.InputError for a volume that
        cannot be used, or an unknown method.
        """
        from CTHarmonizeGui.choices import usualTarget
        from CTHarmonizeGui.detection import acquisitionTags
        from CTHarmonizeGui.harmonization import HarmonizationJob, Request
        from CTHarmonizeGui.process import QtClock, QtProcess

        usualKernel, usualDose = usualTarget(method)
        request = Request(
            targetKernel=usualKernel if targetKernel == "auto" else targetKernel,
            targetDose=usualDose if targetDose == "auto" else targetDose,
            targetThickness=targetThickness,
            method=method,
            model=None if model is None else str(model),
            samples=samples,
            temperature=temperature,
            seed=seed,
            device=device,
            sourceKernel=sourceKernel,
            sourceDose=sourceDose,
            coherence=coherence,
            augment=augment,
        )
        volumes = {"harmonized": harmonizedVolume, "mean": meanVolume, "standardDeviation": standardDeviationVolume}
        header = acquisitionTags(volumeNode) if volumeNode else {}
        job = HarmonizationJob(volumeNode, request, volumes, header, QtProcess(), QtClock())
        job.start()
        return job

    def makeDetection(self, volumeNode: vtkMRMLScalarVolumeNode) -> Any:
        """A job, not yet started, that describes the volume's acquisition."""
        from CTHarmonizeGui.detection import DetectionJob
        from CTHarmonizeGui.process import QtClock, QtProcess

        return DetectionJob(volumeNode, QtProcess(), QtClock())

    def makeComparison(
        self,
        beforeVolume: vtkMRMLScalarVolumeNode,
        afterVolume: vtkMRMLScalarVolumeNode,
        referenceVolume: vtkMRMLScalarVolumeNode | None = None,
    ) -> Any:
        """A job, not yet started, that measures volumes on one grid; its ``table`` is a node of the scene once done.

        Raises CTHarmonizeLib.errors.InputError where they cannot be compared.
        """
        from CTHarmonizeGui.comparison import ComparisonJob
        from CTHarmonizeGui.process import QtClock, QtProcess

        return ComparisonJob(beforeVolume, afterVolume, referenceVolume, QtProcess(), QtClock())

    def compareVolumes(
        self,
        beforeVolume: vtkMRMLScalarVolumeNode,
        afterVolume: vtkMRMLScalarVolumeNode,
        referenceVolume: vtkMRMLScalarVolumeNode | None = None,
    ) -> slicer.vtkMRMLTableNode:
        """Measure volumes on one grid: noise, sharpness, HU of tissues, and emphysema and volume of the lungs.

        The table's node, shown beside a plot of the lungs' HU and one of the noise power spectrum, which have nodes
        too; a second call with the same volumes updates them. The event loop keeps turning meanwhile. Raises
        CTHarmonizeLib.errors.CTHarmonizeError where the volumes cannot be measured.
        """
        from CTHarmonizeLib.errors import CTHarmonizeError

        job = self.makeComparison(beforeVolume, afterVolume, referenceVolume)
        job.start()
        if not job.waitForFinished():
            raise CTHarmonizeError(job.error)
        return job.table


class CTHarmonizeTest(ScriptedLoadableModuleTest):
    """Self test: a small phantom through the logic and a real background process."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        self.setUp()
        self.test_harmonizePhantom()

    def test_harmonizePhantom(self) -> None:
        from CTHarmonizeGui import phantom

        volume = phantom.addPhantom()
        job = CTHarmonizeLogic().harmonize(volume, "smooth", None, method="mtf-filter", samples=None, device="cpu")
        self.assertTrue(job.waitForFinished(300.0), job.error)
        phantom.checkResult(self, job, volume)
        self.delayDisplay("Test passed")
