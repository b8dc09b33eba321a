"""The panel with a method that draws samples: a tiny untrained CTFlow, chosen, restricted and run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import slicer

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "CTHarmonize"), str(REPOSITORY / "Testing/lib")]

pytest.importorskip("torch")


@pytest.fixture
def folder(tmp_path):
    from model_folder import make_model_folder

    target = {"f50": [2.5, 4.2], "dose": [25.0, 100.0], "thickness": None}
    return make_model_folder(tmp_path / "Modell ä", target=target)


@pytest.fixture
def widget(host, folder):
    from CTHarmonizeGui import phantom, registry

    widget = host.loadModule(REPOSITORY / "CTHarmonize/CTHarmonize.py")
    widget.ui.inputSelector.setCurrentNode(phantom.addPhantom(2, 64))
    host.answerNext(str(folder))
    widget.ui.addModelButton.click()
    yield widget
    registry.endAll()


def test_a_chosen_model_is_offered_and_limits_the_target(host, widget, folder):
    ui = widget.ui
    assert ui.methodComboBox.currentText == "CTFlow"
    assert ui.modelComboBox.currentText == "Test model 1" and str(folder) in ui.modelComboBox.toolTip
    kernels = [ui.targetKernelComboBox.itemData(i) for i in range(ui.targetKernelComboBox.count)]
    assert "medium" in kernels and "sharp" not in kernels
    assert (ui.targetDoseSlider.minimum, ui.targetDoseSlider.maximum) == (25.0, 100.0)
    assert ui.targetDoseSlider.enabled and ui.samplesSpinBox.enabled
    assert str(folder) in slicer.util.settingsValue("CTHarmonize/modelFolders", "")
    slicer.util.reloadScriptedModule("CTHarmonize")  # found again, from the settings and the scene
    assert slicer.modules.CTHarmonizeWidget.ui.modelComboBox.currentText == "Test model 1"


def test_samples_make_mean_and_deviation(host, widget, folder):
    ui = widget.ui
    ui.targetDoseSlider.value = 50
    ui.samplesSpinBox.value = 2
    ui.temperatureSpinBox.value = 0.5
    ui.seedSpinBox.value = 3
    assert not ui.augmentCheckBox.enabled and "samples" in ui.augmentCheckBox.toolTip
    ui.applyButton.click()
    job = widget.panel.job
    assert host.process(240.0, until=lambda: job.finished) and job.state == "done", job.error
    assert job.harmonizedVolume.GetName() == "CT phantom harmonized (medium, 50 %)"
    request = job.report["request"]
    assert request["samples"] == 2 and request["seed"] == 3 and request["temperature"] == 0.5
    assert slicer.util.arrayFromVolume(job.standardDeviationVolume).max() > 0
    mean, one = (slicer.util.arrayFromVolume(node) for node in (job.meanVolume, job.harmonizedVolume))
    assert (np.abs(mean.astype(int) - one) > 0).any()
    kept = job.meanVolume
    assert kept.GetAttribute("CTHarmonize.model") == "Test model 1"
    assert len(kept.GetAttribute("CTHarmonize.modelChecksum")) == 64
    assert str(job.folder.path) not in kept.GetAttribute("CTHarmonize.report")


@pytest.fixture
def truthful(host, tmp_path):
    """The panel with a small untrained model that makes the truth."""
    from model_folder import make_model_folder

    from CTHarmonizeGui import phantom, registry
    from CTHarmonizeLib.networks.physics import PhysicsConfig, PhysicsGenerator

    config = PhysicsConfig(channels=4, depth=1, images=1, hidden=2, frequencies=1, stride=2)
    target = {"f50": [3.0, 9.0], "dose": None, "thickness": None}
    folder = make_model_folder(tmp_path / "truth", PhysicsGenerator(config), method="physics-gan", target=target)
    widget = host.loadModule(REPOSITORY / "CTHarmonize/CTHarmonize.py")
    widget.ui.inputSelector.setCurrentNode(phantom.addPhantom(2, 64))
    host.answerNext(str(folder))
    widget.ui.addModelButton.click()
    yield widget
    registry.endAll()


def test_a_method_that_makes_the_truth_leaves_nothing_to_choose(host, truthful):
    ui = truthful.ui
    assert ui.methodComboBox.currentText == "Physics-informed GAN"
    kernels = [ui.targetKernelComboBox.itemText(i) for i in range(ui.targetKernelComboBox.count)]
    assert kernels == ["Truth (noise-free)"] and not ui.targetKernelSpinBox.visible
    assert not ui.targetDoseSlider.visible and not ui.targetDoseLabel.visible
    request = truthful.panel.request()
    assert request["targetKernel"] == "truth" and request["targetDose"] is None and request["samples"] is None
    assert host.process(60.0, until=lambda: not truthful.panel._detector.busy)
    assert ui.expectedLabel.text.endswith("lp/cm, no noise")
    ui.applyButton.click()
    job = truthful.panel.job
    assert host.process(240.0, until=lambda: job.finished) and job.state == "done", job.error
    assert job.harmonizedVolume.GetName() == "CT phantom harmonized (truth)"
    assert job.report["target"]["acquisition"]["noise"] == 0.0 and job.report["target"]["dose"] is None
    names = [ui.methodComboBox.itemData(i) for i in range(ui.methodComboBox.count)]
    ui.methodComboBox.setCurrentIndex(names.index("mtf-filter"))  # the reader's own choice comes back
    assert ui.targetKernelComboBox.currentText == "Medium" and ui.targetKernelSpinBox.visible
    assert ui.targetDoseSlider.visible and not ui.targetDoseSlider.enabled
    assert truthful.panel.request()["targetKernel"] == "medium"


def test_in_the_console_a_target_need_not_be_given(host, truthful):
    """Whatever a method can set, it is asked for nothing else."""
    from CTHarmonizeLib.errors import InputError

    logic, model = truthful.logic, str(truthful.panel.request()["model"])
    volume = truthful.ui.inputSelector.currentNode()
    job = logic.harmonize(volume, method="physics-gan", model=model, device="cpu")
    assert job.waitForFinished(240.0), job.error
    assert job.harmonizedVolume.GetName() == "CT phantom harmonized (truth)"
    targets = {}
    for method in ("ctflow", "mtf-filter", "nlm", "sngan"):
        job = logic.harmonize(volume, method=method)
        targets[method] = (job.request.targetKernel, job.request.targetDose)
        job.cancel()
        job.waitForFinished(60.0)
    assert targets == {
        "ctflow": ("medium", 100.0), "mtf-filter": ("medium", None), "nlm": (None, 100.0), "sngan": ("medium", 100.0)
    }
    job = logic.harmonize(volume, None, 50, method="ctflow")
    assert (job.request.targetKernel, job.request.targetDose) == (None, 50)
    job.cancel()
    job.waitForFinished(60.0)
    with pytest.raises(InputError, match="no method 'magic'"):
        logic.harmonize(volume, method="magic")
