"""The section *Measure*, with the real engine in its process: table, plots, layout, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import slicer

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "CTHarmonize")]
TIMEOUT = 240.0


@pytest.fixture
def widget(host):
    yield host.loadModule(REPOSITORY / "CTHarmonize/CTHarmonize.py")
    from CTHarmonizeGui import registry

    registry.endAll()
    assert not list(Path(slicer.app.temporaryPath).glob("ctharmonize-*"))


def addChest(name: str, noise: float, seed: int = 0):
    """A body with two lungs, in noise."""
    size, spacing = 224, 1.2
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * spacing
    plane = np.where((x / 120) ** 2 + (y / 90) ** 2 < 1, 40.0, -1000.0)
    plane[((np.abs(x) - 50) / 35) ** 2 + (y / 60) ** 2 < 1] = -860.0
    hu = plane + np.random.default_rng(seed).normal(0.0, noise, (3, size, size))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, np.rint(hu).astype(np.int16))
    node.SetSpacing(spacing, spacing, 3.0)
    return node


def cells(table) -> dict[str, list[str]]:
    rows = range(table.GetNumberOfRows())
    return {table.GetCellText(row, 0): [table.GetCellText(row, n) for n in range(1, table.GetNumberOfColumns())]
            for row in rows}  # fmt: skip


def columns(table) -> list[str]:
    return [table.GetColumnName(n) for n in range(table.GetNumberOfColumns())]


def test_the_button_measures_and_shows(host, widget):
    before, after = addChest("Chest", 40.0), addChest("Chest harmonized", 10.0, 1)
    ui = widget.ui
    ui.beforeSelector.setCurrentNode(before)
    assert not ui.measureButton.enabled and "Choose the volumes" in ui.measureButton.toolTip
    ui.afterSelector.setCurrentNode(before)
    assert not ui.measureButton.enabled and "twice" in ui.measureButton.toolTip
    ui.afterSelector.setCurrentNode(after)
    assert ui.measureButton.enabled and widget._parameterNode.afterVolume is after
    ui.measureButton.click()
    assert ui.measureButton.text == "Cancel" and "Measuring" in ui.measureLabel.text and not ui.afterSelector.enabled
    assert host.process(TIMEOUT, until=lambda: ui.measureButton.text == "Measure")
    assert "'Chest harmonized against Chest'" in ui.measureLabel.text, ui.measureLabel.text

    (table,) = [node for node in slicer.util.getNodesByClass("vtkMRMLTableNode") if node.GetLocked()]
    assert columns(table) == ["Measure", "Unit", "Before", "After"]
    found = cells(table)
    unit, *noise = found["Noise in water-like tissue"]
    assert unit == "HU" and [float(value) for value in noise] == pytest.approx([40.0, 10.0], rel=0.15)
    assert float(found["Mean of the lungs"][2]) == pytest.approx(-860.0, abs=5.0)
    assert found["Mean of fat"] == ["HU", "–", "–"]
    charts = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    assert [chart.GetTitle() for chart in charts] == ["HU of the lungs", "Noise power spectrum"]
    series = charts[0].GetNthPlotSeriesNode(1)
    assert series.GetName() == "After" and series.GetTableNode().GetNumberOfRows() == 60
    selection = slicer.app.applicationLogic().GetSelectionNode()
    assert selection.GetActiveTableID() == table.GetID() and selection.GetActivePlotChartID() == charts[0].GetID()
    assert slicer.app.layoutManager().layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotTableView

    ui.measureButton.click()  # in place
    assert host.process(TIMEOUT, until=lambda: ui.measureButton.text == "Measure")
    assert [node for node in slicer.util.getNodesByClass("vtkMRMLTableNode") if node.GetLocked()] == [table]
    assert len(slicer.util.getNodesByClass("vtkMRMLPlotChartNode")) == 2
    assert len(slicer.util.getNodesByClass("vtkMRMLPlotSeriesNode")) == 4


def test_the_console_measures_too(host, widget):
    from CTHarmonizeLib.errors import CTHarmonizeError, InputError

    volumes = [addChest(name, noise, seed) for seed, (name, noise) in enumerate([("a", 40), ("b", 12), ("c", 10)])]
    table = widget.logic.compareVolumes(*volumes)
    assert columns(table)[2:] == ["Before", "After", "Reference"]
    assert cells(table)["Root mean square difference to the reference"][3] == "–"
    with pytest.raises(InputError, match="Choose the volumes"):
        widget.logic.compareVolumes(volumes[0], None)
    volumes[1].SetSpacing(1.2, 1.2, 2.0)
    count = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(CTHarmonizeError, match="do not have the same voxels"):
        widget.logic.compareVolumes(*volumes)
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_measuring_can_be_cancelled_and_ends_with_its_volume(host, widget):
    before, after = addChest("Chest", 40.0), addChest("Chest harmonized", 10.0, 1)
    ui = widget.ui
    ui.beforeSelector.setCurrentNode(before)
    ui.afterSelector.setCurrentNode(after)
    ui.measureButton.click()
    ui.measureButton.click()
    assert host.process(TIMEOUT, until=lambda: ui.measureButton.text == "Measure")
    assert "Cancelled" in ui.measureLabel.text and not slicer.util.getNodesByClass("vtkMRMLTableNode")
    ui.measureButton.click()
    slicer.mrmlScene.RemoveNode(before)
    assert host.process(TIMEOUT, until=lambda: ui.measureButton.text == "Measure")
    assert not ui.measureButton.enabled and not slicer.util.getNodesByClass("vtkMRMLTableNode")


def test_what_was_harmonized_is_offered(host, widget):
    before = addChest("Chest", 40.0)
    ui = widget.ui
    ui.inputSelector.setCurrentNode(before)
    ui.methodComboBox.setCurrentIndex(ui.methodComboBox.findData("mtf-filter"))
    ui.applyButton.click()
    job = widget.panel.job
    assert host.process(TIMEOUT, until=lambda: job.finished) and job.state == "done", job.error
    assert ui.beforeSelector.currentNode() is before and ui.afterSelector.currentNode() is job.harmonizedVolume
    assert ui.measureButton.enabled
