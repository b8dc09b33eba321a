"""A scripted module lives on the host as in Slicer: loading, parameter node, scene closing, reload, quitting."""

from __future__ import annotations

import enum
import pathlib
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import qt
import slicer
from slicer.parameterNodeWrapper import Choice, Default, Maximum, Minimum, WithinRange, parameterNodeWrapper

SAMPLE = Path(__file__).parents[1] / "SlicerHost" / "sample" / "HostSample.py"


@pytest.fixture
def panel(host):
    slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.int16), name="CT")
    return host.loadModule(SAMPLE)


def test_loading(panel, host):
    module = slicer.modules.hostsample
    assert module.title == "Host sample" and module.categories == ["Examples"]
    assert module.name == "HostSample" and slicer.util.modulePath("HostSample") == str(SAMPLE)
    assert slicer.util.getModuleWidget("HostSample") is panel is slicer.modules.HostSampleWidget
    assert slicer.util.getModuleLogic("HostSample").shout("a") == "A"
    assert slicer.util.getModule("HostSample") is module and "HostSample" in slicer.util.moduleNames()
    assert panel.events[-1] == "enter" and panel.parent.isEntered
    with pytest.raises(AttributeError, match="creating new attributes"):
        module.titel = "misspelt"
    with pytest.raises(RuntimeError, match="Could not find module"):
        slicer.util.selectModule("Nothing")
    slicer.selfTests["HostSample"](msec=0)


def test_the_panel_and_its_parameter_node_follow_each_other(panel):
    node = panel._parameterNode
    assert node.inputVolume.GetName() == "CT" and panel.ui.applyButton.enabled
    assert (node.kernel, panel.ui.kernelComboBox.currentText) == ("medium", "medium")
    assert panel.ui.sideComboBox.currentText == "RIGHT" and panel.ui.temperatureSpinBox.value == 0.7
    assert (panel.ui.samplesSpinBox.minimum, panel.ui.samplesSpinBox.maximum) == (1, 64)
    panel.ui.kernelComboBox.currentIndex = 2
    panel.ui.doseSlider.value = 25
    panel.ui.invertCheckBox.checked = True
    panel.ui.noteLineEdit.text = "final"
    panel.ui.folderLineEdit.currentPath = "/models"
    assert (node.kernel, node.dose, node.invert, node.note) == ("sharp", 25.0, True, "final")
    assert node.folder == pathlib.Path("/models")
    node.samples = 8
    node.side = type(node.side).LEFT
    assert panel.ui.samplesSpinBox.value == 8 and panel.ui.sideComboBox.currentText == "LEFT"


def test_after_disconnecting_the_widgets_go_their_own_way(panel):
    node = panel._parameterNode
    panel.setParameterNode(None)
    panel.ui.samplesSpinBox.value = 3
    node.dose = 50
    assert node.samples == 16 and panel.ui.doseSlider.value == 100


def test_closing_the_scene(panel):
    slicer.mrmlScene.Clear(0)
    assert panel.events[-3:] == ["startClose", None, "endClose"] or panel.events[-2:] == ["startClose", "endClose"]
    assert panel.ui.inputSelector.currentNode() is None and panel._parameterNode.inputVolume is None
    assert panel._parameterNode.kernel == "medium"


def test_state_is_saved_with_the_scene(panel, tmp_path):
    panel._parameterNode.kernel = "sharp"
    panel._parameterNode.seed = 7
    path = str(tmp_path / "scene.mrml")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    assert panel._parameterNode.kernel == "medium"
    slicer.mrmlScene.SetURL(path)
    assert slicer.mrmlScene.Connect()
    panel.initializeParameterNode()
    assert (panel._parameterNode.kernel, panel._parameterNode.seed) == ("sharp", 7)


def test_reload_makes_a_new_panel_and_cleans_the_old(panel):
    slicer.util.reloadScriptedModule("HostSample")
    fresh = slicer.util.getModuleWidget("HostSample")
    assert fresh is not panel and panel.events[-1] == "cleanup"
    assert fresh.ui.applyButton is not panel.ui.applyButton
    assert type(fresh) is sys.modules["HostSample"].HostSampleWidget


def test_quitting(panel, host):
    seen = []
    slicer.app.connect("aboutToQuit()", lambda: seen.append(list(panel.events)))
    host.quit()
    assert len(seen) == 1 and "cleanup" not in seen[0] and "cleanup" in panel.events
    assert not hasattr(slicer.modules, "hostsample")


def test_leaving_the_panel(panel, host, tmp_path):
    other = tmp_path / "Other.py"
    other.write_text(SAMPLE.read_text(encoding="utf-8").replace("HostSample", "Other"), encoding="utf-8")
    resources = tmp_path / "Resources" / "UI"
    resources.mkdir(parents=True)
    ui = (SAMPLE.parent / "Resources" / "UI" / "HostSample.ui").read_text(encoding="utf-8")
    (resources / "Other.ui").write_text(ui, encoding="utf-8")
    host.loadModule(other)
    assert panel.events[-1] == "exit" and not panel.parent.isEntered
    host.showModule("HostSample")
    assert panel.events[-1] == "enter"


def test_screenshot_shows_the_panel(panel, host, tmp_path):
    path = host.screenshot(panel, tmp_path / "panel.png")
    image = qt.QImage(str(path))
    colors = {image.pixelColor(x, y).name() for x in range(0, image.width(), 3) for y in range(0, image.height(), 3)}
    assert image.width() > 300 and len(colors) > 20  # text, frames and a blue bar; an empty widget has one


# The wrapper by itself


class Side(enum.Enum):
    LEFT = 1
    RIGHT = 2


def wrapped(**members):
    cls = type("Parameters", (), {"__annotations__": members})
    return parameterNodeWrapper(cls)


def newNode():
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


def test_values_are_stored_as_slicer_stores_them(host):
    node = newNode()
    parameters = wrapped(
        number=int, flag=bool, side=Side, path=pathlib.Path, volume=slicer.vtkMRMLVolumeNode,
        maybe=typing.Optional[float],  # noqa: UP045
    )(node)
    assert (parameters.number, parameters.flag, parameters.side, parameters.maybe) == (0, False, Side.LEFT, None)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    parameters.number, parameters.flag, parameters.side, parameters.volume = 5, True, Side.RIGHT, volume
    parameters.maybe = 2.5
    stored = {name: node.GetParameter(name) for name in ("number", "flag", "side", "maybe_0")}
    assert stored == {"number": "5", "flag": "True", "side": "RIGHT", "maybe_0": "2.5"}
    assert node.GetNodeReference("volume") is volume and not node.HasParameter("maybe_1")
    slicer.mrmlScene.RemoveNode(volume)
    assert parameters.volume is None


@pytest.mark.parametrize(
    "kind, value, error",
    [
        (int, 2.5, TypeError),
        (int, None, ValueError),
        (str, 3, TypeError),
        (bool, 1, TypeError),
        (slicer.vtkMRMLVolumeNode, "vtkMRMLScalarVolumeNode1", TypeError),
        (typing.Annotated[float, WithinRange(0, 1)], 2.0, ValueError),
        (typing.Annotated[int, Minimum(1), Default(1)], 0, ValueError),
        (typing.Annotated[int, Maximum(1)], 2, ValueError),
        (typing.Annotated[str, Choice(["a"]), Default("a")], "b", ValueError),
    ],
)
def test_wrong_values_are_refused(host, kind, value, error):
    parameters = wrapped(member=kind)(newNode())
    with pytest.raises(error):
        parameters.member = value


@pytest.mark.parametrize("kind", [int | None, object, complex])
def test_types_that_slicer_cannot_store_are_refused(host, kind):
    with pytest.raises(Exception, match="Unable to create serializer"):
        wrapped(member=kind)


def test_reserved_names_are_refused(host):
    with pytest.raises(ValueError, match="reserved"):
        wrapped(default=int)


def test_widgets_that_slicer_cannot_connect_are_refused(host):
    parameters = wrapped(text=str, number=float)(newNode())
    for name, widget in (("text", qt.QComboBox()), ("text", qt.QLabel()), ("number", qt.QSpinBox())):
        with pytest.raises(RuntimeError):
            parameters.connectParametersToGui({name: widget})
    with pytest.raises(ValueError, match="Cannot find a param"):
        parameters.connectParametersToGui({"nothing": qt.QLineEdit()})
