"""The panel with a model that makes thin slices: the choice, when it is shown, and the nodes that come back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "CTHarmonize"), str(REPOSITORY / "Testing/lib")]

pytest.importorskip("torch")


@pytest.fixture
def widget(host, tmp_path):
    import torch
    from model_folder import make_model_folder

    from CTHarmonizeGui import phantom, registry
    from CTHarmonizeLib.networks.sngan import VolumeGenerator, VolumeGeneratorConfig

    torch.manual_seed(0)
    config = VolumeGeneratorConfig(blocks=1, channels=4, conditions=11, stride=2, gain=4.0, skip="linear")
    target = {"f50": [2.5, 6.5], "dose": [25.0, 100.0], "thickness": [0.9, 1.3]}
    folder = make_model_folder(tmp_path / "thin", VolumeGenerator(config), method="sngan", target=target)
    widget = host.loadModule(REPOSITORY / "CTHarmonize/CTHarmonize.py")
    node = phantom.addPhantom(4, 64)
    widget.ui.inputSelector.setCurrentNode(node)
    host.answerNext(str(folder))
    widget.ui.addModelButton.click()
    yield widget
    registry.endAll()


def place(node, spacing: float) -> None:
    """Slices ``spacing`` mm apart, lying obliquely."""
    directions = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    matrix = np.eye(4)
    matrix[:3, :3] = directions * [0.7, 0.7, spacing]
    matrix[:3, 3] = [11.0, -7.0, 3.0]
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))


def test_the_choice_is_shown_where_the_model_changes_slices(host, widget):
    ui = widget.ui
    place(widget._parameterNode.inputVolume, 2.0)
    assert ui.methodComboBox.currentText == "3D SN-GAN"
    assert ui.targetThicknessComboBox.visible and ui.targetThicknessLabel.visible
    assert ui.targetThicknessComboBox.currentText == "1 mm, 2 of each of 2 mm"
    assert widget.panel.request()["targetThickness"] == 1.0
    place(widget._parameterNode.inputVolume, 5.0)
    assert host.process(240.0, until=lambda: "5 mm" in ui.targetThicknessComboBox.currentText)
    assert ui.targetThicknessComboBox.currentText == "not of slices of 5 mm"
    assert widget.panel.request()["targetThickness"] is None
    names = [ui.methodComboBox.itemData(i) for i in range(ui.methodComboBox.count)]
    ui.methodComboBox.setCurrentIndex(names.index("mtf-filter"))
    assert not ui.targetThicknessComboBox.visible and not ui.targetThicknessLabel.visible
    assert widget.panel.request()["targetThickness"] is None


def test_thin_slices_come_back_between_the_inputs_faces(host, widget):
    node = widget._parameterNode.inputVolume
    place(node, 2.5)
    assert host.process(240.0, until=lambda: not widget.panel._detector.busy)
    widget.ui.applyButton.click()
    job = widget.panel.job
    assert host.process(240.0, until=lambda: job.finished) and job.state == "done", job.error
    assert job.harmonizedVolume.GetName() == "CT phantom harmonized (medium, 100 %, 1.25 mm)"
    assert job.report["notes"][0] == "The slices become 1.25 mm thick, 2 for each of the source's of 2.5 mm."
    old, new = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(old)
    old = slicer.util.arrayFromVTKMatrix(old)
    for volume in (job.harmonizedVolume, job.meanVolume):
        assert slicer.util.arrayFromVolume(volume).shape == (8, 64, 64)
        volume.GetIJKToRASMatrix(new)
        made = slicer.util.arrayFromVTKMatrix(new)
        for face, thin in ((-0.5, -0.5), (1.5, 3.5), (3.5, 7.5)):
            np.testing.assert_allclose(old @ [20, 5, face, 1], made @ [20, 5, thin, 1], atol=1e-6)
    np.testing.assert_allclose(volume.GetSpacing(), (0.7, 0.7, 1.25), atol=1e-9)


def test_what_cannot_be_made_is_the_engines_sentence(host, widget):
    place(widget._parameterNode.inputVolume, 5.0)
    assert host.process(240.0, until=lambda: not widget.panel._detector.busy)
    widget.ui.applyButton.click()
    job = widget.panel.job
    assert host.process(240.0, until=lambda: job.finished) and job.state == "failed"
    assert "the source's of 5 mm would become 2.5 mm" in widget.ui.messageLabel.text
