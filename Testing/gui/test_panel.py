"""The panel on the stand-in application, with the real worker: choose, apply, watch, cancel, close, reload."""

from __future__ import annotations

import os
import sys
import time
import unittest
from pathlib import Path

import numpy as np
import pytest
import qt
import slicer
import vtk

MODULE = Path(__file__).resolve().parents[2] / "CTHarmonize/CTHarmonize.py"
sys.path[:0] = [str(MODULE.parents[1] / "Testing/lib")]
TIMEOUT = 240.0  # only ever reached on failure or on a starved machine


@pytest.fixture
def widget(host):
    yield host.loadModule(MODULE)
    from CTHarmonizeGui import registry

    registry.endAll()
    assert not jobFolders()


@pytest.fixture
def volume(widget):
    from CTHarmonizeGui import phantom

    node = phantom.addPhantom()
    widget.ui.inputSelector.setCurrentNode(node)
    return node


def jobFolders() -> list[Path]:
    return list(Path(slicer.app.temporaryPath).glob("ctharmonize-*"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def choose(combo, data: str) -> None:
    combo.setCurrentIndex([combo.itemData(i) for i in range(combo.count)].index(data))


def apply(host, widget):
    """Press Apply and wait for the worker's own first words; the job."""
    widget.ui.applyButton.click()
    job = widget.panel.job
    assert job is not None, widget.ui.messageLabel.text
    assert host.process(TIMEOUT, until=lambda: job.finished or "started" in job.events)
    return job


def finish(host, widget, job) -> None:
    assert host.process(TIMEOUT, until=lambda: job.finished)
    assert job.state == "done", job.error


def smooth(widget) -> None:
    choose(widget.ui.methodComboBox, "mtf-filter")
    choose(widget.ui.targetKernelComboBox, "smooth")


def slow(volume, slices: int = 200) -> None:
    """Make the volume so tall that its job can be caught at work."""
    voxels = slicer.util.arrayFromVolume(volume)
    slicer.util.updateVolumeFromArray(volume, np.tile(voxels, (slices // len(voxels), 2, 2)))


def test_without_a_volume_the_panel_says_what_to_do(host, widget):
    ui = widget.ui
    assert not ui.applyButton.enabled
    assert "Choose the CT volume" in ui.messageLabel.text and ui.messageLabel.visible
    assert ui.applyButton.toolTip == ui.messageLabel.text
    assert slicer.util.getModuleLogic("CTHarmonize") is widget.logic


def test_unusable_volumes_get_a_sentence(host, widget, volume):
    ui = widget.ui
    assert ui.applyButton.enabled
    grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", "tilt")
    grid.SetAndObserveTransformFromParent(slicer.vtkOrientedGridTransform())
    volume.SetAndObserveTransformNodeID(grid.GetID())
    assert not ui.applyButton.enabled
    assert "non-linear transform 'tilt'" in ui.messageLabel.text
    volume.SetAndObserveTransformNodeID(None)
    assert ui.applyButton.enabled
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    hierarchy.SetItemAttribute(hierarchy.GetItemByDataNode(volume), "DICOM.Modality", "MR")
    widget.panel.refresh()
    assert "is a MR image" in ui.messageLabel.text
    color = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    image = vtk.vtkImageData()
    image.SetDimensions(32, 32, 2)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    color.SetAndObserveImageData(image)
    from CTHarmonizeLib.errors import InputError

    with pytest.raises(InputError, match="3 values a voxel"):
        widget.logic.harmonize(color)


def test_detects_from_tags_at_once_and_measures_in_the_background(host, widget):
    from CTHarmonizeGui import phantom

    node = phantom.addPhantom()
    for key, value in {"Manufacturer": "SIEMENS", "ConvolutionKernel": "B40f", "Exposure": "85"}.items():
        node.SetAttribute(key, value)
    widget.ui.inputSelector.setCurrentNode(node)
    text = widget.ui.detectedLabel.text
    assert "Siemens B40f" in text and "85 mAs" in text and "measuring" in text
    assert "96 × 96 × 4, 0.8 × 0.8 × 2.5 mm" in text
    assert host.process(TIMEOUT, until=lambda: "measuring" not in widget.ui.detectedLabel.text)
    text = widget.ui.detectedLabel.text
    assert "sharpness f50 3.9 lp/cm (header)" in text
    noise = float(text.split("noise ")[1].split(" HU")[0])
    assert noise == pytest.approx(25.0, rel=0.15) and "(measured)" in text
    assert "f50 4.0 lp/cm" in widget.ui.expectedLabel.text
    assert "less noise" not in widget.ui.messageLabel.text


def test_a_target_noisier_than_the_input_is_told_before_apply(host, widget):
    from CTHarmonizeGui import phantom

    node = phantom.addPhantom(noise=3.0)
    widget.ui.inputSelector.setCurrentNode(node)
    assert host.process(TIMEOUT, until=lambda: "measuring" not in widget.ui.detectedLabel.text)
    assert "less noise" in widget.ui.messageLabel.text and "mean volume does not" in widget.ui.messageLabel.text
    widget.ui.methodComboBox.setCurrentIndex(widget.ui.methodComboBox.findData("mtf-filter"))
    assert "less noise" not in widget.ui.messageLabel.text


def test_what_is_no_ct_gets_the_engines_sentence(host, widget, volume):
    voxels = np.array(slicer.util.arrayFromVolume(volume), np.float32)
    slicer.util.updateVolumeFromArray(volume, (voxels - voxels.min()) / np.ptp(voxels))
    widget.panel.refresh()
    assert host.process(TIMEOUT, until=lambda: "measuring" not in widget.ui.detectedLabel.text)
    assert "they look rescaled; CTHarmonize needs HU" in widget.ui.detectedLabel.text


def test_apply_gives_three_volumes_in_their_place(host, widget, volume):
    from CTHarmonizeGui import phantom

    ui = widget.ui
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Patient")
    study = hierarchy.CreateStudyItem(patient, "Study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    hierarchy.CreateFolderItem(study, "After")
    rigid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 12.5)
    rigid.SetMatrixTransformToParent(matrix)
    volume.SetAndObserveTransformNodeID(rigid.GetID())
    smooth(widget)
    assert ui.augmentCheckBox.enabled and not ui.standardDeviationSelector.enabled
    ui.augmentCheckBox.checked = True
    assert ui.standardDeviationSelector.enabled
    ui.applyButton.click()
    job = widget.panel.job
    assert ui.applyButton.text == "Cancel" and ui.progressBar.visible and not ui.targetCollapsibleButton.enabled
    seen, stages = [], set()
    job_onChanged = job.onChanged
    job.onChanged = lambda j: (job_onChanged(j), seen.append(ui.progressBar.value), stages.add(ui.progressLabel.text))
    finish(host, widget, job)
    assert seen == sorted(seen) and seen[-1] == 100 and len(stages) > 2
    assert ui.applyButton.text == "Apply" and not ui.progressBar.visible
    assert "Done in" in ui.messageLabel.text

    phantom.checkResult(unittest.TestCase(), job, volume)
    names = [node.GetName() for node in (job.harmonizedVolume, job.meanVolume, job.standardDeviationVolume)]
    stem = "CT phantom harmonized (smooth)"
    assert names == [stem, f"{stem} mean", f"{stem} augmentation spread"]
    assert job.harmonizedVolume.GetParentTransformNode() is rigid
    assert slicer.util.arrayFromVolume(job.harmonizedVolume).dtype == np.int16
    assert slicer.util.arrayFromVolume(job.standardDeviationVolume).dtype == np.float32
    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(study, children)
    order = [hierarchy.GetItemName(children.GetId(i)) for i in range(children.GetNumberOfIds())]
    assert order == ["CT phantom", *names, "After"]
    deviation = job.standardDeviationVolume.GetDisplayNode()
    assert deviation.GetWindow() != volume.GetDisplayNode().GetWindow()
    assert deviation.GetColorNodeID() != volume.GetDisplayNode().GetColorNodeID()
    assert ui.harmonizedSelector.currentNode() is job.harmonizedVolume
    kept = job.harmonizedVolume
    assert kept.GetAttribute("CTHarmonize.method") == "mtf-filter" and kept.GetAttribute("CTHarmonize.seed") == "0"
    assert kept.GetAttribute("CTHarmonize.target") == "smooth"
    assert not job.folder.path.exists()


def test_a_kernel_that_a_method_cannot_set_is_not_shown_as_chosen(host, widget, volume):
    ui = widget.ui
    choose(ui.targetKernelComboBox, "medium")
    choose(ui.methodComboBox, "nlm")
    assert ui.targetKernelComboBox.currentText == "As the input" and not ui.targetKernelComboBox.enabled
    assert widget.panel.request()["targetKernel"] is None
    choose(ui.methodComboBox, "mtf-filter")
    assert ui.targetKernelComboBox.currentText == "Medium" and widget.panel.request()["targetKernel"] == "medium"


def test_a_method_without_samples_has_no_deviation(host, widget, volume):
    smooth(widget)
    widget.ui.applyButton.click()
    job = widget.panel.job
    finish(host, widget, job)
    assert job.standardDeviationVolume is None and widget.ui.standardDeviationSelector.currentNode() is None
    assert slicer.mrmlScene.GetFirstNodeByName("CT phantom harmonized (smooth) standard deviation") is None
    assert job.report["standard_deviation"] is None


def test_a_second_run_updates_in_place_and_another_input_does_not(host, widget, volume):
    from CTHarmonizeGui import phantom

    smooth(widget)
    job = apply(host, widget)
    finish(host, widget, job)
    first = job.harmonizedVolume
    before = slicer.util.arrayFromVolume(first).copy()
    first.GetDisplayNode().SetWindowLevel(1500.0, -600.0)
    job.meanVolume.SetName("my mean")
    count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    choose(widget.ui.targetKernelComboBox, "medium")
    job = apply(host, widget)
    finish(host, widget, job)
    assert job.harmonizedVolume is first
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == count
    assert (slicer.util.arrayFromVolume(first) != before).any()
    assert first.GetName() == "CT phantom harmonized (medium)" and job.meanVolume.GetName() == "my mean"
    assert first.GetDisplayNode().GetWindow() == 1500.0

    other = phantom.addPhantom(name="Other")
    widget.ui.inputSelector.setCurrentNode(other)
    assert widget.ui.harmonizedSelector.currentNode() is None  # the first patient's results stay
    widget.ui.harmonizedSelector.setCurrentNode(other)
    widget.ui.applyButton.click()
    assert "input volume itself" in widget.ui.messageLabel.text and widget.panel.job is None


def test_cancel_changes_nothing(host, widget, volume):
    slow(volume)
    smooth(widget)
    job = apply(host, widget)
    worker = job.events["started"]["pid"]
    assert alive(worker) and oct(job.folder.path.stat().st_mode & 0o777) == "0o700"
    begin = time.monotonic()
    widget.ui.applyButton.click()
    assert host.process(TIMEOUT, until=lambda: job.finished)
    assert job.state == "cancelled" and time.monotonic() - begin < 5.0
    assert host.process(5.0, until=lambda: not alive(worker))
    assert not job.folder.path.exists()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1
    assert widget.ui.applyButton.text == "Apply" and "Cancelled" in widget.ui.messageLabel.text


@pytest.mark.parametrize("event", ["close", "delete", "quit"])
def test_what_ends_a_job(host, widget, volume, event):
    from CTHarmonizeGui import registry

    slow(volume)
    smooth(widget)
    job = apply(host, widget)
    worker = job.events["started"]["pid"]
    if event == "close":
        slicer.mrmlScene.Clear(0)
    elif event == "delete":
        slicer.mrmlScene.RemoveNode(volume)
    else:
        host.app.aboutToQuit.emit()
        assert job.finished  # there is no event loop to wait in
    assert host.process(TIMEOUT, until=lambda: job.finished)
    assert job.state == "cancelled" and not jobFolders()
    assert host.process(5.0, until=lambda: not alive(worker))
    assert not registry.running
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == (1 if event == "quit" else 0)


def test_a_job_survives_the_reload_of_the_module(host, widget, volume):
    from CTHarmonizeGui import registry

    slow(volume)
    smooth(widget)
    job = apply(host, widget)
    registry.forgetModules()
    slicer.util.reloadScriptedModule("CTHarmonize")
    reloaded = slicer.modules.CTHarmonizeWidget
    host.process()
    assert reloaded is not widget and reloaded.panel.job is job
    assert reloaded.ui.applyButton.text == "Cancel" and reloaded.ui.progressBar.visible
    reloaded.ui.applyButton.click()
    assert host.process(TIMEOUT, until=lambda: job.finished) and job.state == "cancelled"
    assert reloaded.ui.applyButton.text == "Apply"


def test_a_worker_that_dies_is_reported(host, widget, volume):
    slow(volume)
    smooth(widget)
    job = apply(host, widget)
    os.kill(job.events["started"]["pid"], 9)
    assert host.process(TIMEOUT, until=lambda: job.finished)
    assert job.state == "failed" and "ended from outside" in widget.ui.messageLabel.text
    assert not job.folder.path.exists() and widget.ui.applyButton.enabled


def test_what_the_method_cannot_set_is_disabled_with_the_reason(host, widget, volume):
    ui = widget.ui
    smooth(widget)
    assert not ui.targetDoseSlider.enabled and "cannot set this" in ui.targetDoseSlider.toolTip
    assert not ui.samplesSpinBox.enabled and "draws no samples" in ui.samplesSpinBox.toolTip
    assert ui.targetKernelComboBox.enabled and "f50" in ui.targetKernelComboBox.toolTip
    assert widget.panel.request()["targetDose"] is None


def test_a_new_method_is_one_class_in_one_module(host, widget, volume, monkeypatch):
    """Nothing but the module that holds it: the panel offers it, asks for its packages, and the request names it."""
    import made_up_method

    made_up_method.install(monkeypatch)
    widget.panel.findModels()
    widget.panel.refresh()
    ui = widget.ui
    choose(ui.methodComboBox, "made-up")
    assert ui.methodComboBox.currentText == "Made up" and "one class" in ui.methodComboBox.toolTip
    assert ui.targetDoseSlider.enabled and not ui.targetKernelComboBox.enabled
    request = widget.panel.request()
    assert request["method"] == "made-up" and request["targetDose"] == 100 and request["targetKernel"] is None
    host.answerNext(qt.QMessageBox.Cancel)
    ui.applyButton.click()
    assert widget.panel.job is None
    assert "made-up-package" in host.dialogs[-1].text and "made-up terms" in host.dialogs[-1].text
    assert "made-up-package" in ui.messageLabel.text and "was not installed" in ui.messageLabel.text


def test_kernel_by_number(host, widget, volume):
    ui = widget.ui
    assert ui.targetKernelSpinBox.readOnly and ui.targetKernelSpinBox.value == pytest.approx(4.0)
    choose(ui.targetKernelComboBox, "f50")
    assert not ui.targetKernelSpinBox.readOnly
    ui.targetKernelSpinBox.value = 3.3
    assert widget.panel.request()["targetKernel"] == "3.3"
    assert ui.targetKernelSpinBox.maximum == pytest.approx(5.0)  # 0.8 of Nyquist on 0.8 mm pixels
    assert "sharp" in [ui.targetKernelComboBox.itemData(i) for i in range(ui.targetKernelComboBox.count)]
    choose(ui.targetKernelComboBox, "")
    assert widget.panel.request()["targetKernel"] is None


def test_state_is_saved_with_the_scene(host, widget, volume, tmp_path):
    ui = widget.ui
    choose(ui.methodComboBox, "mtf-filter")
    choose(ui.targetKernelComboBox, "f50")
    ui.targetKernelSpinBox.value = 3.3
    ui.targetDoseSlider.value = 45
    choose(ui.sourceKernelComboBox, "sharp")
    ui.sourceDoseSpinBox.value = 30
    ui.samplesSpinBox.value = 5
    ui.seedSpinBox.value = 7
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear(0)
    assert widget._parameterNode.targetKernel == "medium" and ui.sourceDoseSpinBox.value == 0
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Connect()
    widget.enter()
    assert widget._parameterNode.targetKernel == "3.3" and ui.targetKernelSpinBox.value == pytest.approx(3.3)
    assert ui.targetDoseSlider.value == 45 and ui.samplesSpinBox.value == 5 and ui.seedSpinBox.value == 7
    assert widget._parameterNode.sourceKernel == "sharp" and ui.sourceDoseSpinBox.value == 30


def test_a_wrong_model_folder_is_refused_with_the_reason(host, widget, volume, tmp_path):
    host.answerNext(str(tmp_path))
    widget.ui.addModelButton.click()
    assert "is no model folder" in widget.ui.messageLabel.text
    assert not slicer.util.settingsValue("CTHarmonize/modelFolders", "")


def test_console(host, widget):
    """Without the panel: at once, then waiting with the event loop turning, then the volumes."""
    from CTHarmonizeGui import phantom

    node = phantom.addPhantom()
    logic = slicer.util.getModuleLogic("CTHarmonize")
    begin = time.monotonic()
    job = logic.harmonize(node, "smooth", None, method="mtf-filter", samples=None, device="cpu")
    assert time.monotonic() - begin < 0.5 and not job.finished and job.harmonizedVolume is None
    ticks = []
    timer = qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(1))
    timer.start(10)
    assert job.waitForFinished(TIMEOUT), job.error
    timer.stop()
    assert len(ticks) > 10
    phantom.checkResult(unittest.TestCase(), job, node)
    assert job.report and job.fraction == 1.0
    job = logic.harmonize(node, "no such kernel", None, method="mtf-filter", samples=None)
    assert not job.waitForFinished(TIMEOUT)
    assert job.state == "failed" and "no such kernel" in job.error and job.error.endswith(".")


def test_a_name_that_is_cut_off_stands_in_the_tool_tip(host, widget, volume):
    from CTHarmonizeGui import phantom, scene

    selector = widget.ui.harmonizedSelector
    own = selector.toolTip
    node = phantom.addPhantom(name="LUNG 1.0 Br40 chest low dose follow-up harmonized (medium, 100 %)")
    node.SetNodeReferenceID(scene.INPUT_ROLE, volume.GetID())
    selector.setCurrentNode(node)
    assert selector.toolTip == f"{node.GetName()}\n{own}"
    assert widget.ui.inputSelector.toolTip.startswith(volume.GetName() + "\n")
    selector.setCurrentNode(None)
    assert selector.toolTip == own
    smooth(widget)
    assert "no standard deviation" in widget.ui.standardDeviationSelector.toolTip  # why it is disabled comes first


def test_narrow(host, widget, volume):
    """At 320 px nothing is cut off."""
    widget.ui.advancedCollapsibleButton.collapsed = False
    widget.ui.correctionCollapsibleButton.collapsed = False
    host.process(0.05)
    assert widget.ui.inputsCollapsibleButton.parent().minimumSizeHint().width() <= 320
