"""slicer.app on the host: processes, dialogs, files, views, subject hierarchy, packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import qt
import slicer
import vtk
from slicer.i18n import tr as _


def test_python_slicer_is_clean(host, monkeypatch):
    program = shutil.which("PythonSlicer")
    assert program and program.startswith(slicer.app.slicerHome)
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("QT_PLUGIN_PATH", "/nowhere")
    code = "import os, sys, json; print(json.dumps([sys.executable, sys.path, dict(os.environ)]))"
    answer = subprocess.run([program, "-c", code], capture_output=True, text=True, check=True)
    executable, path, environment = json.loads(answer.stdout)
    assert os.path.realpath(executable) == os.path.realpath(sys.executable)
    assert "/mine" in path and not any("SlicerHost" in folder for folder in path)
    assert not {"PYTHONHOME", "PYTHONOPTIMIZE", "QT_PLUGIN_PATH"} & set(environment)


def test_python_slicer_passes_the_exit_status_and_dies_with_a_signal(host):
    program = shutil.which("PythonSlicer")
    assert subprocess.run([program, "-c", "import sys; sys.exit(3)"]).returncode == 3
    process = qt.QProcess()
    process.start(program, ["-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"])
    assert host.process(20, until=lambda: process.bytesAvailable() > 0)
    # The shell became Python: else ending it would leave Python behind.
    assert int(process.readAllStandardOutput().data()) == process.processId()
    process.terminate()
    assert process.waitForFinished(5000) and process.exitStatus() == qt.QProcess.CrashExit


def test_startup_environment(host):
    environment = slicer.util.startupEnvironment()
    assert environment["HOME"] == os.environ["HOME"]
    assert not [name for name in environment if name.startswith(("PYTHON", "QT_"))]
    assert slicer.app.slicerHome not in environment["PATH"]


def test_message_boxes_are_answered_and_recorded(host):
    assert slicer.util.confirmOkCancelDisplay("Install?") is True
    host.answerNext(qt.QMessageBox.Cancel)
    assert slicer.util.confirmOkCancelDisplay("Again?") is False
    host.answerNext(qt.QMessageBox.No)
    assert slicer.util.confirmYesNoDisplay("Sure?") is False
    slicer.util.errorDisplay("It failed", detailedText="why")
    assert qt.QMessageBox.question(None, "title", "Really?") == qt.QMessageBox.Yes
    host.answerNext("/folder")
    assert qt.QFileDialog.getExistingDirectory(None, "Choose a folder") == "/folder"
    assert [shown.text for shown in host.dialogs] == [
        "Install?", "Again?", "Sure?", "It failed", "Really?", "Choose a folder",
    ]


def test_status_bar(host):
    slicer.util.showStatusMessage("Harmonizing", 1000)
    assert slicer.util.mainWindow().statusBar().currentMessage() == "Harmonizing"


def test_installing_is_only_recorded(host):
    import slicer.packaging

    slicer.util.pip_install("surely-not-installed==1")
    assert slicer.packaging.pip_check("numpy")
    assert not slicer.packaging.pip_ensure(["surely-not-installed"])
    assert [request[:2] for request in host.app.installRequests] == [
        ("pip_install", ["surely-not-installed==1"]),
        ("pip_ensure", ["surely-not-installed"]),
    ]


def test_version_and_folders(host):
    assert (slicer.app.majorVersion, slicer.app.minorVersion) >= (5, 10)
    assert slicer.app.applicationVersion.startswith(f"{slicer.app.majorVersion}.{slicer.app.minorVersion}.")
    assert os.path.isdir(slicer.app.temporaryPath)
    assert slicer.util.tempDirectory().startswith(slicer.app.temporaryPath)
    with pytest.raises(AttributeError, match="creating new attributes"):
        slicer.app.myOwn = 3


def test_translation(host):
    assert _("Apply {count}").format(count=3) == "Apply 3"
    with pytest.raises(TypeError):
        _(3)


def test_volumes_are_read_and_written(host, tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    matrix = vtk.vtkMatrix4x4()
    for i, value in enumerate((-0.7, -0.7, 2.5)):
        matrix.SetElement(i, i, value)
    node = slicer.util.addVolumeFromArray(array, ijkToRAS=slicer.util.arrayFromVTKMatrix(matrix), name="CT")
    path = str(tmp_path / "ct.nrrd")
    assert slicer.util.saveNode(node, path)
    read = slicer.util.loadVolume(path)
    assert np.array_equal(slicer.util.arrayFromVolume(read), array) and read.GetName() == "ct"
    again = vtk.vtkMatrix4x4()
    read.GetIJKToRASMatrix(again)
    assert np.allclose(slicer.util.arrayFromVTKMatrix(again), slicer.util.arrayFromVTKMatrix(matrix))
    with pytest.raises(RuntimeError, match="Failed to load"):
        slicer.util.loadVolume(str(tmp_path / "none.nrrd"))
    assert host.takeErrors()  # VTK says so too


def test_slice_views_show_volumes(host, tmp_path):
    array = np.full((8, 32, 32), -1000, np.int16)
    array[:, 16:, 16:] = 1000  # anterior and right: above and left in an axial view
    node = slicer.util.addVolumeFromArray(array, name="CT")
    host.window.show()
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    host.process(0.05)
    image = view.grab().toImage()
    x, y, step = image.width() // 2, image.height() // 2, image.height() // 4
    assert image.pixelColor(x - step, y - step).lightness() > 200
    for dx, dy in ((1, -1), (-1, 1), (1, 1)):
        assert image.pixelColor(x + dx * step, y + dy * step).lightness() < 30
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == node.GetID()
    slicer.mrmlScene.Clear(0)
    assert composite.GetBackgroundVolumeID() is None


def test_subject_hierarchy_follows_the_nodes(host):
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    node = slicer.util.addVolumeFromArray(np.zeros((2, 2, 2), np.int16), name="CT")
    item = hierarchy.GetItemByDataNode(node)
    assert item and hierarchy.GetItemName(item) == "CT"
    hierarchy.SetItemParent(item, study)
    assert hierarchy.GetItemParent(item) == study
    slicer.mrmlScene.RemoveNode(node)
    assert not hierarchy.GetItemByDataNode(node) and hierarchy.GetNumberOfItems() == 1
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    assert hierarchy.GetNumberOfItems() == 1
    slicer.mrmlScene.Clear(0)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "next")
    assert slicer.mrmlScene.GetSubjectHierarchyNode().GetItemByDataNode(volume)


def test_ctrl_processing_ends_on_a_predicate_or_in_time(host):
    seen = []
    qt.QTimer.singleShot(30, lambda: seen.append(1))
    assert host.process(2, until=lambda: bool(seen))
    assert not host.process(0.02, until=lambda: False)


def test_without_a_display_the_host_makes_one(tmp_path):
    """In a process of its own, as the first thing that it does."""
    code = "from SlicerHost import start; host = start(); print(host.display); host.close()"
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "QT_QPA_PLATFORM")}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.startswith(":" if shutil.which("Xvfb") else "offscreen")
    alone = {**environment, "PATH": str(tmp_path)}  # no Xvfb to be found
    answer = subprocess.run(
        [sys.executable, "-c", code], env=alone, capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.startswith("offscreen")
