"""The panel: what the reader sees and sets. Its state lives in the parameter node, saved with the scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from CTHarmonizeGui import choices, detection, registry, scene
from CTHarmonizeGui.detector import Detector
from CTHarmonizeGui.kernelfield import KernelField
from CTHarmonizeGui.measuring import Measuring
from CTHarmonizeGui.messages import Message, outcome, timeLeft
from CTHarmonizeGui.process import Clock
from CTHarmonizeGui.widgets import enable, fill, modelSummary, modelTitle, tellName
from CTHarmonizeLib.errors import CTHarmonizeError

_OUTPUT_SELECTORS = {
    "harmonizedVolume": "harmonizedSelector",
    "meanVolume": "meanSelector",
    "standardDeviationVolume": "standardDeviationSelector",
}


class Panel(VTKObservationMixin):
    """Fills and reads the widgets in ``ui``.

    ``harmonize(volumeNode, **request)`` starts a job, ``makeDetection(volumeNode)`` makes one that describes and
    ``makeComparison(before, after, reference)`` one that measures;
    ``ensureDependencies(packages=...)``, told what the method needs beside what all do, raises a CTHarmonizeError where
    packages are missing.
    """

    def __init__(
        self,
        ui: Any,
        clock: Clock,
        harmonize: Callable[..., Any],
        makeDetection: Callable[[Any], Any],
        makeComparison: Callable[..., Any],
        ensureDependencies: Callable[..., None],
    ) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self.job: Any = None
        self._clock, self._harmonize, self._ensureDependencies = clock, harmonize, ensureDependencies
        self._parameters: Any = None
        self._filling = False
        self._shownInput = None
        self._message = Message()
        self._choices = choices.Choices()
        self._detector = Detector(makeDetection, clock, self.refresh)
        self._measuring = Measuring(ui, makeComparison)
        self._targetKernel = KernelField(
            ui.targetKernelComboBox, ui.targetKernelSpinBox, _("As the input"), self._onTargetKernel
        )
        self._sourceKernel = KernelField(
            ui.sourceKernelComboBox, ui.sourceKernelSpinBox, _("As detected"), self._onSourceKernel
        )
        ui.methodComboBox.connect("currentIndexChanged(int)", self._onMethod)
        ui.modelComboBox.connect("currentIndexChanged(int)", self._onModel)
        ui.addModelButton.connect("clicked(bool)", self._onAddModel)
        ui.applyButton.connect("clicked(bool)", self._onApply)
        self.findModels()
        for job in registry.running:  # the module was reloaded while it worked
            if hasattr(job, "request"):
                self._follow(job)

    def setParameters(self, parameters: Any) -> None:
        """Show and edit this wrapped parameter node from now on; None: none."""
        self._parameters = parameters
        self._watchInput(parameters.inputVolume if parameters else None)
        if parameters is None:
            self._detector.stop()
            if self.job is None:
                self._message = Message()
        self._measuring.setParameters(parameters)
        self.refresh()

    def close(self) -> None:
        """The widget goes; a running harmonization does not."""
        self._detector.stop()
        self._measuring.close()
        self.removeObservers()
        if self.job is not None:
            self.job.onChanged = lambda job: None
        self._parameters = None

    def findModels(self) -> None:
        """Look again at what is installed."""
        folders = slicer.util.settingsValue(choices.SETTING, "") or ""
        self._choices = choices.findChoices([folder for folder in str(folders).split("\n") if folder])

    def refresh(self, caller=None, event=None) -> None:
        """Bring every widget in line with the parameter node, the job and what is known of the input."""
        if self._filling:
            return
        self._filling = True
        try:
            self._keepOutputsWithInput()
            problem = self._inputProblem()
            self._showInput(problem)
            aim = self._aim()
            self._showTarget(aim)
            self._showRun(problem, aim)
            self._measuring.refresh()
            for name in ("inputSelector", *_OUTPUT_SELECTORS.values()):
                tellName(getattr(self.ui, name))
        finally:
            self._filling = False

    # Showing

    @property
    def _input(self):
        return self._parameters.inputVolume if self._parameters else None

    @property
    def _method(self) -> choices.MethodChoice | None:
        return self._choices.method(self._parameters.method if self._parameters else "")

    @property
    def _model(self) -> Any | None:
        method = self._method
        return method.model(self._parameters.model if self._parameters else "") if method else None

    @property
    def _pixelSpacing(self) -> float:
        return float(self._input.GetSpacing()[0]) if self._input else 0.7

    @property
    def _sliceThickness(self) -> float:
        """As detected, before that as the slices lie."""
        known = (self._detector.description.get("acquisition") or {}).get("slice_thickness")
        return float(known or (self._input.GetSpacing()[2] if self._input else 2.0))

    def _inputProblem(self) -> str:
        try:
            scene.checkInput(self._input)
        except CTHarmonizeError as error:
            return str(error)
        return ""

    def _keepOutputsWithInput(self) -> None:
        """A new input gets new outputs: the results of another volume are not written over."""
        if self._parameters is None or self._input is self._shownInput:
            return
        self._watchInput(self._input)
        self._message = Message() if self.job is None else self._message
        for name in _OUTPUT_SELECTORS:
            node = getattr(self._parameters, name)
            if node is not None and node.GetNodeReference(scene.INPUT_ROLE) is not self._input:
                setattr(self._parameters, name, None)

    def _watchInput(self, node) -> None:
        """Voxels and transform may come after the choice, or change."""
        self.removeObservers()
        self._shownInput = node
        if node is not None:
            for event in (vtk.vtkCommand.ModifiedEvent, node.ImageDataModifiedEvent, node.TransformModifiedEvent):
                self.addObserver(node, event, self.refresh)

    def _showInput(self, problem: str) -> None:
        ui, node = self.ui, self._input
        self._detector.watch(None if problem else node)
        lines = []
        if node is not None and not problem:
            fromDicom = detection.isFromDicom(node)
            lines.append(detection.describeTags(detection.acquisitionTags(node), fromDicom))
            if self._detector.busy:
                lines.append(_("measuring sharpness and noise …"))
            elif self._detector.problem:
                lines.append(self._detector.problem)
            else:
                lines += detection.describeAcquisition(self._detector.description, fromDicom)
            lines.append(detection.describeGrid(node))
        ui.detectedLabel.text = _("Detected: {what}").format(what="\n".join(line for line in lines if line) or "–")
        ui.correctionCollapsibleButton.enabled = bool(lines)
        if self._parameters:
            self._sourceKernel.show(self._parameters.sourceKernel, choices.kernels(None, self._pixelSpacing),
                                    choices.kernelRange(None, self._pixelSpacing))

    def _showTarget(self, aim: choices.Aim) -> None:
        ui, method, model = self.ui, self._method, self._model
        fill(ui.methodComboBox, [(m.title, m.name) for m in self._choices.methods if m.usable], method and method.name)
        ui.methodComboBox.toolTip = method.summary if method else _("No method is installed.")
        fill(ui.modelComboBox, [(modelTitle(m), str(m.folder)) for m in method.models] if method else [],
              str(model.folder) if model else "")
        if method and not method.needsModel:
            fill(ui.modelComboBox, [(_("none needed"), "")], "")
        ui.modelComboBox.enabled = bool(model)
        ui.modelComboBox.toolTip = (
            modelSummary(model) if model else _("This method is a formula: it has no model.")
        )
        fields = method.targetFields if method else frozenset()
        cannot = _("The method '{title}' cannot set this: it stays as it is in the input.").format(
            title=method.title if method else "")
        onlyKernel = method.onlyKernel if method else ""
        for name, widgets in (
            ("kernel", (ui.targetKernelLabel, ui.targetKernelComboBox, ui.targetKernelSpinBox)),
            ("dose", (ui.targetDoseLabel, ui.targetDoseSlider)),
        ):
            for widget in widgets:
                enable(widget, name in fields, cannot)
        self._showThickness()
        for widget in (ui.samplesLabel, ui.samplesSpinBox, ui.temperatureLabel, ui.temperatureSpinBox,
                       ui.seedLabel, ui.seedSpinBox, ui.coherenceLabel, ui.coherenceSpinBox):
            enable(widget, bool(method and method.stochastic),
                    _("This method draws no samples: its one result is always the same."))
        ui.targetDoseLabel.visible = ui.targetDoseSlider.visible = not onlyKernel  # the truth has no dose
        enable(ui.augmentCheckBox, bool(method and not method.stochastic),
                _("This method draws samples: its standard deviation says more."))
        for widget in (ui.standardDeviationLabel, ui.standardDeviationSelector):
            enable(widget, bool(method and (method.stochastic or ui.augmentCheckBox.checked)),
                    _("This method draws no samples: it has no standard deviation."))
        ui.targetDoseSlider.minimum, ui.targetDoseSlider.maximum = choices.doseRange(model)
        if self._parameters and onlyKernel:
            self._targetKernel.showOnly(onlyKernel)
        elif self._parameters:
            self._targetKernel.show(
                self._parameters.targetKernel if "kernel" in fields else "",  # as the input
                choices.kernels(model, self._pixelSpacing),
                choices.kernelRange(model, self._pixelSpacing),
            )
        if self._parameters:
            ui.expectedLabel.text = aim.text or "–"

    def _showThickness(self) -> None:
        ui = self.ui
        thick = self._sliceThickness
        made = choices.thicknesses(self._method, self._model, thick)
        ui.targetThicknessLabel.visible = ui.targetThicknessComboBox.visible = made is not None
        items = [(words, str(value)) for value, words in (made or {}).items()]
        none = [(_("not of slices of {thick:.3g} mm").format(thick=thick), "")]
        fill(ui.targetThicknessComboBox, items or none, (items or none)[0][1])

    def _showRun(self, problem: str, aim: choices.Aim) -> None:
        ui, job = self.ui, self.job
        for section in (ui.inputsCollapsibleButton, ui.targetCollapsibleButton, ui.outputsCollapsibleButton,
                        ui.advancedCollapsibleButton):
            section.enabled = job is None and self._parameters is not None
        ui.applyButton.text = _("Apply") if job is None else _("Cancel")
        ui.progressBar.visible = ui.progressLabel.visible = job is not None
        message = self._message
        if job is not None:
            ui.progressBar.value = round(100 * job.fraction)
            ui.progressLabel.text = job.stage + timeLeft(job.secondsLeft)
            ui.applyButton.enabled = not job.cancelling
            ui.applyButton.toolTip = _("Stop the computation. Nothing in the scene changes.")
            message = Message("warning", "\n".join(job.warnings)) if job.warnings else Message()
        else:
            if not problem and self._method is None:
                problem = _("No model is installed: add a model folder with '…' beside Model.")
            ui.applyButton.enabled = not problem
            ui.applyButton.toolTip = problem or _("Harmonize the CT volume.")
            if problem:
                message = Message("error" if self._input else "info", problem)
            elif not message.text:
                warnings = [*self._choices.problems, *self._detector.warnings, aim.warning]
                message = Message("warning", "\n".join(filter(None, warnings)))
        message.show(ui.messageLabel)

    # Setting

    def _onTargetKernel(self, kernel: str) -> None:
        self._set("targetKernel", kernel)

    def _onSourceKernel(self, kernel: str) -> None:
        self._set("sourceKernel", kernel)

    def _onMethod(self, index: int) -> None:
        self._set("method", self.ui.methodComboBox.itemData(index))

    def _onModel(self, index: int) -> None:
        self._set("model", self.ui.modelComboBox.itemData(index))

    def _set(self, name: str, value) -> None:
        if not self._filling and self._parameters and value is not None:
            setattr(self._parameters, name, value)
            self.refresh()

    def _onAddModel(self, clicked: bool = False) -> None:
        import qt

        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Model folder"))
        if folder:
            self.addModel(folder)

    def addModel(self, folder: str) -> None:
        """Check a model folder, offer it from now on, and choose it; the reason is shown where it is refused."""
        import qt

        from CTHarmonizeLib.models import load_model

        try:
            model = load_model(folder)
        except CTHarmonizeError as error:
            self._message = Message("error", str(error))
        else:
            settings = qt.QSettings()
            known = str(slicer.util.settingsValue(choices.SETTING, "") or "").split("\n")
            settings.setValue(choices.SETTING, "\n".join(dict.fromkeys([*filter(None, known), str(folder)])))
            self._message = Message()
            self.findModels()
            if self._parameters:
                self._parameters.method, self._parameters.model = model.method, str(model.folder)
        self.refresh()

    # Running

    def _targetOf(self, name: str) -> Any:
        """Kernel or dose to ask for; None where it is to stay, or where the method cannot set it."""
        if not self._method or name not in self._method.targetFields:
            return None
        if self._method.onlyKernel:
            return self._method.onlyKernel
        return (self._parameters.targetKernel or None) if name == "kernel" else self._parameters.targetDose

    def _targetThickness(self) -> float | None:
        """mm to ask for; None where slices stay as they are, or where the engine is to say why they cannot change."""
        combo = self.ui.targetThicknessComboBox
        chosen = combo.itemData(combo.currentIndex)
        return float(chosen) if chosen else None

    def _aim(self) -> choices.Aim:
        """Of what the panel shows; a method without samples adds no noise, whatever the target."""
        if not self._parameters:
            return choices.Aim()
        aim = choices.aim(
            self._detector.description, self._model, self._targetOf("kernel"), self._targetOf("dose")
        )
        return aim if self._method and self._method.stochastic else replace(aim, warning="")

    def request(self) -> dict[str, Any]:
        """Arguments of ``logic.harmonize`` for what the panel shows."""
        parameters, model = self._parameters, self._model
        return {
            "targetKernel": self._targetOf("kernel"),
            "targetDose": self._targetOf("dose"),
            "targetThickness": self._targetThickness(),
            "method": self._method.name,
            "model": str(model.folder) if model else None,
            "samples": parameters.samples if self._method.stochastic else None,
            "temperature": parameters.temperature or None,
            "seed": parameters.seed,
            "device": parameters.device,
            "sourceKernel": parameters.sourceKernel or None,
            "sourceDose": parameters.sourceDose or None,
            "coherence": parameters.coherence if self._method.stochastic else 0.0,
            "augment": parameters.augment and not self._method.stochastic,
            **{name: getattr(parameters, name) for name in _OUTPUT_SELECTORS},
        }

    def _onApply(self, clicked: bool = False) -> None:
        if self.job is not None:
            self.job.cancel()
            return
        self._message = Message()
        try:
            self._ensureDependencies(packages=self._method.packages)
            self._follow(self._harmonize(self._input, **self.request()))
        except (CTHarmonizeError, OSError) as error:
            self._message = Message("error", str(error))
        self.refresh()

    def _follow(self, job: Any) -> None:
        self.job = job
        job.onChanged = self._onJob

    def _onJob(self, job: Any) -> None:
        if job.finished:
            self.job = None
            self._message = outcome(job)
            if job.state == "done" and self._parameters and self._input is job.inputVolume:
                for name in _OUTPUT_SELECTORS:
                    setattr(self._parameters, name, getattr(job, name))
                self._measuring.choose(job.inputVolume, job.harmonizedVolume)
                scene.showResult(job.harmonizedVolume, job.inputVolume)
        self.refresh()
