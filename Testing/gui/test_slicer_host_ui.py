"""The host's .ui loader is as strict as a test wants it, and its widgets behave as Slicer's."""

from __future__ import annotations

from pathlib import Path

import ctk
import pytest
import qt
import slicer
from SlicerHost.uiLoader import UiError

SAMPLE = Path(__file__).parents[1] / "SlicerHost" / "sample" / "Resources" / "UI" / "HostSample.ui"


@pytest.fixture
def loaded(host, tmp_path):
    """Loads the sample .ui with some text replaced."""

    def load(*replacements):
        text = SAMPLE.read_text(encoding="utf-8")
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "changed.ui"
        path.write_text(text, encoding="utf-8")
        return slicer.util.loadUI(str(path))

    return load


def test_widgets_have_the_types_that_slicer_asks_for(loaded):
    widget = loaded()
    ui = slicer.util.childWidgetVariables(widget)
    assert type(widget) is slicer.qMRMLWidget
    for name, kind in (
        ("invertCheckBox", qt.QCheckBox),
        ("samplesSpinBox", qt.QSpinBox),
        ("kernelComboBox", qt.QComboBox),
        ("applyButton", qt.QPushButton),
        ("doseSlider", ctk.ctkSliderWidget),
        ("inputSelector", slicer.qMRMLNodeComboBox),
    ):
        assert type(getattr(ui, name)) is kind
    assert ui.applyButton.text == "Apply" and ui.applyButton.enabled is False
    assert ui.inputSelector.nodeTypes == ["vtkMRMLScalarVolumeNode"] and ui.inputSelector.addEnabled is False
    assert ui.kernelComboBox.property("SlicerParameterName") == "kernel"
    assert not hasattr(widget, "applyButton")  # PySide6's loader would make it an attribute


def test_a_file_that_is_not_there(host, tmp_path):
    with pytest.raises(RuntimeError, match="file not found"):
        slicer.util.loadUI(str(tmp_path / "none.ui"))


def test_unknown_widget_class(loaded):
    with pytest.raises(UiError, match="ctkSlidingWidget"):
        loaded(("ctkSliderWidget", "ctkSlidingWidget"))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("mrmlSceneChanged(vtkMRMLScene*)", "sceneChanged(vtkMRMLScene*)", "has no sceneChanged"),
        ("setMRMLScene(vtkMRMLScene*)", "setScene(vtkMRMLScene*)", "has no setScene"),
        ("<receiver>inputSelector", "<receiver>selector", "'selector' that it does not contain"),
        ("<sender>HostSample", "<sender>Panel", "'Panel' that it does not contain"),
        ("mrmlSceneChanged(vtkMRMLScene*)", "windowTitleChanged(QString)", "does not carry"),
    ],
)
def test_connections_that_cannot_be_made(loaded, old, new, message):
    with pytest.raises(UiError, match=message):
        loaded((old, new))


def test_the_scene_reaches_the_selectors(loaded):
    widget = loaded()
    ui = slicer.util.childWidgetVariables(widget)
    assert ui.inputSelector.mrmlScene() is None
    widget.setMRMLScene(slicer.mrmlScene)
    assert ui.inputSelector.mrmlScene() is slicer.mrmlScene
    assert ui.outputSelector.mrmlScene() is slicer.mrmlScene


def test_collapsible_button(loaded, host):
    widget = loaded()
    ui = slicer.util.childWidgetVariables(widget)
    widget.show()
    host.process()
    button = ui.advancedCollapsibleButton
    assert button.collapsed and not button.checked and not ui.noteLineEdit.visible
    low = button.height
    seen = []
    button.connect("contentsCollapsed(bool)", seen.append)
    button.click()
    host.process()
    assert not button.collapsed and ui.noteLineEdit.visible and seen == [False] and button.height > 2 * low
    button.collapsed = True
    host.process()
    assert not ui.noteLineEdit.visible and button.height == low


def test_a_hidden_row_stays_hidden_when_its_section_is_folded_and_unfolded(loaded, host):
    widget = loaded()
    ui = slicer.util.childWidgetVariables(widget)
    widget.show()
    ui.advancedCollapsibleButton.collapsed = False
    ui.noteLineEdit.hide()
    ui.advancedCollapsibleButton.collapsed = True
    ui.advancedCollapsibleButton.collapsed = False
    assert not ui.noteLineEdit.visible and ui.samplesSpinBox.visible


def test_slider_and_spin_box(host):
    slider, seen = ctk.ctkSliderWidget(), []
    slider.minimum, slider.maximum, slider.singleStep, slider.decimals = 0, 10, 0.5, 1
    slider.connect("valueChanged(double)", seen.append)
    slider.value = 7.5
    assert slider.value == 7.5 and seen == [7.5]
    inner = slider.findChildren(qt.QSlider)[0]
    inner.value = inner.maximum // 2
    assert slider.value == 5.0
    slider.maximum = 4
    assert slider.value == 4.0
    box = ctk.ctkDoubleSpinBox()
    box.setRange(1, 2)
    box.setValue(9)
    assert box.value == 2.0


def test_path_line_edit(host, tmp_path):
    line, seen = ctk.ctkPathLineEdit(), []
    line.connect("currentPathChanged(QString)", seen.append)
    line.currentPath = str(tmp_path)
    assert line.currentPath == str(tmp_path) and seen == [str(tmp_path)]
    line.filters = 1  # QDir::Dirs
    host.answerNext("/chosen")
    line.browse()
    assert line.currentPath == "/chosen" and host.dialogs[-1].kind == "getExistingDirectory"


# Node selector


@pytest.fixture
def selector(host):
    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setMRMLScene(slicer.mrmlScene)
    return box


def volume(name):
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)


def test_selector_follows_the_scene(selector):
    assert selector.currentNode() is None and selector.nodeCount() == 0
    seen = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: seen.append(node and node.GetName()))
    first, second = volume("A"), volume("B")
    assert selector.currentNode() is first  # none is not allowed: the first is taken
    selector.setCurrentNode(second)
    assert selector.currentNodeID == second.GetID()
    slicer.mrmlScene.RemoveNode(second)
    assert selector.currentNode() is first
    slicer.mrmlScene.Clear(0)
    assert selector.currentNode() is None
    assert seen == ["A", "B", "A", None]


def test_selector_may_hold_none(selector):
    selector.noneEnabled = True
    node = volume("A")
    assert selector.currentNode() is None
    selector.setCurrentNodeID(node.GetID())
    slicer.mrmlScene.RemoveNode(node)
    assert selector.currentNode() is None


def test_selector_filters(selector):
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    hidden = volume("hidden")
    hidden.SetHideFromEditors(1)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", "text")
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    assert selector.nodes() == [labels]
    selector.showChildNodeTypes = False
    assert selector.nodes() == []
    selector.showHidden = True
    assert selector.nodes() == [hidden]
    selector.addAttribute("vtkMRMLScalarVolumeNode", "kind", "CT")
    assert selector.nodes() == []
    hidden.SetAttribute("kind", "CT")
    assert selector.nodes() == [hidden]


def test_selector_menu(selector, host):
    selector.noneEnabled = selector.renameEnabled = True
    selector.noneDisplay = "Create new volume"
    selector.baseName = "Mean"
    inner = selector.findChildren(qt.QComboBox)[0]
    entries = [inner.itemText(i) for i in range(inner.count)]
    assert entries[0] == "Create new volume" and entries[-1] == "Create new Volume"
    inner.activated.emit(inner.count - 1)
    node = selector.currentNode()
    assert node.GetName() == "Mean" and inner.currentText == "Mean"
    node.SetName("Other")
    assert inner.currentText == "Other"
    host.answerNext(("Third", True))
    inner.activated.emit(inner.findText("Rename current Volume"))
    assert node.GetName() == "Third"
    inner.activated.emit(inner.findText("Delete current Volume"))
    assert selector.currentNode() is None and inner.currentText == "Create new volume"


def test_selector_refuses_other_nodes(selector):
    text = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", "text")
    selector.setCurrentNode(text)
    assert selector.currentNode() is None
