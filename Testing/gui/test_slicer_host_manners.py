"""The host has PythonQt's manners: what Slicer refuses is refused here, what it allows works."""

from __future__ import annotations

import ctk
import pytest
import qt
import slicer
import vtk


def test_properties_are_attributes(host):
    button = qt.QPushButton("Apply")
    button.enabled = False
    assert button.enabled is False and not button.isEnabled()
    button.enabled = slicer.vtkMRMLScalarVolumeNode()  # PythonQt takes the truth of anything
    assert button.enabled is True
    button.text = "Cancel"
    assert button.text == "Cancel"
    spin = qt.QSpinBox()
    spin.setMaximum(10)
    spin.value = 20
    assert spin.value == 10
    # Also on an object that Qt made itself.
    assert spin.lineEdit().text == "10"


def test_a_property_cannot_be_called(host):
    with pytest.raises(TypeError, match="not callable"):
        qt.QLabel("text").text()
    with pytest.raises(TypeError, match="not callable"):
        qt.QCheckBox().objectName()


def test_virtual_methods_stay_methods(host):
    class Wide(qt.QLabel):
        def sizeHint(self):
            return qt.QSize(321, 20)

    frame = qt.QWidget()
    box = qt.QVBoxLayout(frame)
    box.addWidget(Wide("x"))
    assert frame.sizeHint().width() > 321


def test_misspelt_properties_are_refused(host):
    with pytest.raises(AttributeError, match="creating new attributes"):
        qt.QPushButton().enable = True
    with pytest.raises(AttributeError, match="creating new attributes"):
        ctk.ctkSliderWidget().maximumm = 3
    with pytest.raises(AttributeError, match="creating new attributes"):
        slicer.qMRMLNodeComboBox().nodeType = "vtkMRMLScalarVolumeNode"


def test_a_python_subclass_has_attributes_of_its_own(host):
    class Mine(qt.QWidget):
        pass

    widget = Mine()
    widget.anything = 3
    assert widget.anything == 3


@pytest.mark.parametrize("value", [3, None])
def test_text_takes_only_text(host, value):
    with pytest.raises(ValueError, match="QString"):
        qt.QLabel().text = value


def test_read_only_and_numeric_properties(host):
    label = qt.QLabel()
    with pytest.raises(AttributeError, match="not settable"):
        label.hasSelectedText = True
    with pytest.raises(ValueError, match="does not accept"):
        qt.QSpinBox().value = "3"
    bar = qt.QProgressBar()
    bar.value = 41.9
    assert bar.value == 41


def test_name_is_object_name(host):
    widget = qt.QWidget()
    widget.name = "panel"
    assert widget.objectName == widget.name == "panel"
    assert widget.className() == "QWidget"
    assert ctk.ctkSliderWidget().className() == "ctkSliderWidget"


def test_types_and_enums(host):
    box = qt.QCheckBox()
    assert type(box) == qt.QCheckBox and isinstance(box, qt.QWidget)  # noqa: E721 (as Slicer's wrapper asks)
    assert qt.QSizePolicy.Expanding is not None
    assert qt.QProcess.NotRunning != qt.QProcess.Running
    assert (qt.QMessageBox.Yes | qt.QMessageBox.No) & qt.QMessageBox.No
    assert qt.Qt.AlignLeft is not None


@pytest.mark.parametrize("name", ["Signal", "Slot", "Property", "QNothing"])
def test_what_python_qt_lacks_is_absent(host, name):
    assert not hasattr(qt, name)


def test_slots_take_fewer_arguments(host):
    button, seen = qt.QPushButton(), []
    button.checkable = True
    button.connect("clicked(bool)", lambda: seen.append("none"))
    button.connect("clicked(bool)", lambda checked: seen.append(checked))
    button.connect("clicked()", lambda *args: seen.append(args))

    class Receiver:
        def slot(self):
            seen.append("method")

    receiver = Receiver()
    button.connect("clicked(bool)", receiver.slot)
    button.clicked.connect(receiver.slot)
    button.click()
    assert seen == ["none", True, (), "method", "method"]


def test_disconnect(host):
    button, seen = qt.QPushButton(), []

    class Receiver:
        def slot(self):
            seen.append("slot")

    receiver = Receiver()
    assert button.connect("clicked(bool)", receiver.slot)
    assert button.disconnect("clicked(bool)", receiver.slot)
    assert not button.disconnect("clicked(bool)", receiver.slot)
    button.click()
    assert seen == []


def test_connect_refuses_what_does_not_exist(host):
    button = qt.QPushButton()
    with pytest.raises(ValueError, match="no signal"):
        button.connect("cliked(bool)", lambda: None)
    with pytest.raises(ValueError, match="no signal"):
        button.connect("clicked(int)", lambda: None)
    with pytest.raises(TypeError, match="not callable"):
        button.connect("clicked(bool)", "slot")


def test_an_exception_in_a_slot_is_kept(host):
    def fail(*_):
        raise RuntimeError("a slot went wrong")

    button = qt.QPushButton()
    button.connect("clicked(bool)", fail)
    button.click()
    button.clicked.connect(fail)
    button.click()
    qt.QTimer.singleShot(0, fail)
    host.process(0.05)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")
    node.AddObserver(vtk.vtkCommand.ModifiedEvent, fail)
    node.SetText("text")
    errors = host.takeErrors()
    # The second click calls both connections.
    assert len(errors) == 5 and all("a slot went wrong" in error for error in errors)


def test_qt_and_vtk_complaints_are_kept(host):
    widget = qt.QWidget()
    qt.QVBoxLayout(widget)
    qt.QVBoxLayout(widget)  # "already has a layout"
    vtk.vtkImageMapToColors().Update()
    errors = host.takeErrors()
    assert any("Qt warning" in error for error in errors)
    assert any("VTK error" in error for error in errors)


def test_timer_and_process(host):
    ticks = []
    timer = qt.QTimer()
    timer.interval = 5
    timer.connect("timeout()", lambda: ticks.append(1))
    timer.start()
    assert host.process(2, until=lambda: len(ticks) > 2)
    timer.stop()
    assert not timer.active

    output, ended = [], []
    process = qt.QProcess()
    process.connect(
        "readyReadStandardOutput()", lambda: output.append(process.readAllStandardOutput().data().decode())
    )
    process.connect("finished(int,QProcess::ExitStatus)", lambda code: ended.append(code))
    process.start("sh", ["-c", "echo one; exit 3"])
    assert host.process(5, until=lambda: bool(ended))
    assert "".join(output) == "one\n" and ended == [3] and process.state() == qt.QProcess.NotRunning


def test_settings_are_the_hosts_own(host):
    settings = qt.QSettings()
    settings.setValue("CTHarmonize/ModelFolders", ["/a", "/b"])
    assert slicer.util.settingsValue("CTHarmonize/ModelFolders", []) == ["/a", "/b"]
    assert settings.fileName().startswith(slicer.app.slicerHome)
    host.clear()
    assert not qt.QSettings().contains("CTHarmonize/ModelFolders")
