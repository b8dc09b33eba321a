"""The parts behind the panel against fakes: job, folder, dependencies, detector, export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "CTHarmonize"))

from CTHarmonizeGui import dependencies, scene  # noqa: E402
from CTHarmonizeGui.detector import DEBOUNCE_SECONDS, Detector  # noqa: E402
from CTHarmonizeGui.folder import JobFolder, sweep  # noqa: E402
from CTHarmonizeGui.job import GRACE_SECONDS, BackgroundJob  # noqa: E402
from CTHarmonizeGui.messages import timeLeft  # noqa: E402
from CTHarmonizeGui.process import processTree, workerEnvironment  # noqa: E402
from CTHarmonizeLib.errors import CannotRunError, InputError  # noqa: E402


class FakeClock:
    """Time that passes only when told to."""

    def __init__(self):
        self.time, self.calls = 0.0, []

    def now(self):
        self.time += 0.001
        return self.time

    def callLater(self, seconds, function):
        self.calls.append((self.time + seconds, function))

    def turn(self):
        self.advance(0.01)

    def advance(self, seconds):
        self.time += seconds
        for call in [call for call in self.calls if call[0] <= self.time]:
            self.calls.remove(call)
            call[1]()


class FakeProcess:
    """Says what it is told to say."""

    def __init__(self, endsOn=("terminate",)):
        self.endsOn, self.listener, self.arguments, self.stops = endsOn, None, None, []

    def start(self, arguments, listener):
        self.arguments, self.listener = list(arguments), listener

    def stop(self, force):
        self.stops.append("kill" if force else "terminate")
        if self.stops[-1] in self.endsOn:
            self.listener.onFinished(None if force else 130)

    def wait(self, seconds):
        return bool(set(self.stops) & set(self.endsOn))


class Job(BackgroundJob):
    def __init__(self, folder, process, clock, steps=3, problem=None):
        super().__init__(folder, process, clock)
        self.steps, self.problem, self.collected = steps, problem, None

    def arguments(self):
        return ["job.json"]

    def prepare(self):
        with open(self.folder.path / "input", "wb") as file:
            for _ in range(self.steps):
                file.write(b"x")
                if self.problem:
                    raise self.problem
                yield

    def collect(self, result):
        yield
        self.collected = result


@pytest.fixture
def parts(tmp_path):
    clock, process = FakeClock(), FakeProcess()
    job = Job(JobFolder(tmp_path), process, clock)
    return job, process, clock


def say(process, *events):
    for event in events:
        process.listener.onOutput(json.dumps(event).encode() + b"\n")


def test_job_runs_to_its_result_in_turns_of_the_event_loop(parts):
    job, process, clock = parts
    heard = []
    job.onChanged = lambda j: heard.append((j.state, round(j.fraction, 2), j.stage))
    job.start()
    assert process.arguments is None  # nothing before the event loop turns
    clock.turn()
    assert process.arguments == ["job.json"] and job.state == "running"
    line = json.dumps({"event": "progress", "fraction": 0.5, "stage": "Größe", "secondsLeft": 12}, ensure_ascii=False)
    for byte in (line + "\n").encode():  # in any pieces, within a character too
        process.listener.onOutput(bytes([byte]))
    assert (job.fraction, job.stage, job.secondsLeft) == (0.5, "Größe", 12.0)
    process.listener.onOutput(b"not JSON\n[1]\n")
    say(process, {"event": "warning", "message": "Careful."}, {"event": "result", "files": {}})
    assert job.state == "running"  # the result alone is no success
    process.listener.onFinished(0)
    assert job.state == "collecting" and job.folder.path.exists()
    assert job.waitForFinished()
    assert job.state == "done" and job.warnings == ["Careful."] and job.collected["files"] == {}
    assert not job.folder.path.exists() and heard[-1][0] == "done"


@pytest.mark.parametrize(
    "code, events, sentence",
    [
        (0, [{"event": "started"}], "without a result"),
        (3, [{"event": "error", "message": "No memory."}], "No memory."),
        (1, [{"event": "result", "files": {}}], "exit status 1"),
        (None, [{"event": "started"}], "ended from outside"),
        (None, [], "could not be started"),
    ],
)
def test_job_needs_both_status_and_result(parts, code, events, sentence):
    job, process, clock = parts
    job.start()
    clock.turn()
    say(process, *events)
    process.listener.onFinished(code)
    assert job.waitForFinished() is False
    assert job.state == "failed" and sentence in job.error and job.error.endswith(".")
    assert not job.folder.path.exists()


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    for problem, words in ((OSError(28, "No space left on device"), "No space left"), (InputError("Bad."), "Bad.")):
        clock = FakeClock()
        job = Job(JobFolder(tmp_path), FakeProcess(), clock, problem=problem)
        job.start()
        assert not job.waitForFinished()
        assert job.state == "failed" and words in job.error and not job.folder.path.exists()


@pytest.mark.parametrize("endsOn, stops", [(("terminate",), ["terminate"]), (("kill",), ["terminate", "kill"])])
def test_cancel_asks_first_and_kills_after_a_while(tmp_path, endsOn, stops):
    clock, process = FakeClock(), FakeProcess(endsOn)
    job = Job(JobFolder(tmp_path), process, clock)
    job.start()
    clock.turn()
    job.cancel()
    job.cancel()
    clock.advance(GRACE_SECONDS + 0.1)
    assert process.stops == stops and job.state == "cancelled" and not job.folder.path.exists()


@pytest.mark.parametrize("endsOn", [("terminate",), ("kill",), ()])
def test_quitting_leaves_nothing(tmp_path, endsOn):
    clock, process = FakeClock(), FakeProcess(endsOn)
    job = Job(JobFolder(tmp_path), process, clock)
    job.start()
    clock.turn()
    job.endNow()
    assert job.state == "cancelled" and not job.folder.path.exists()


def test_cancel_while_the_input_is_written(tmp_path):
    clock, process = FakeClock(), FakeProcess()
    job = Job(JobFolder(tmp_path), process, clock, steps=10**6)
    job.start()
    clock.turn()
    assert job.state == "preparing"
    job.cancel()
    clock.turn()
    assert job.state == "cancelled" and process.arguments is None and not job.folder.path.exists()


def test_folder_is_private_and_a_crashed_slicers_is_swept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = JobFolder(tmp_path).path.name.rpartition("-")[0].removesuffix(str(os.getpid()))
    stale, ours = tmp_path / f"{own}{ended.pid}-abc", tmp_path / f"{own}{os.getpid()}-abc"
    foreign = tmp_path / "ctharmonize-notes"
    elsewhere, unknown = (tmp_path / f"ctharmonize-{host}{ended.pid}-abc" for host in ("another-host-", ""))
    for folder in (stale, ours, foreign, elsewhere, unknown):
        folder.mkdir()
    sweep(tmp_path)
    assert not stale.exists() and ours.exists() and foreign.exists()
    assert elsewhere.exists() and unknown.exists()
    folder = JobFolder(tmp_path / "Größe 测试")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


def test_process_tree_knows_grandchildren():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=sys.stdin)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        for _ in range(200):
            if len(processTree(parent.pid)) == 2:
                break
            subprocess.run(["sleep", "0.02"], check=True)
        assert len(processTree(parent.pid)) == 2 and processTree(parent.pid)[0] == parent.pid
    finally:
        parent.communicate(b"\n")


def test_worker_finds_its_library_first():
    path = workerEnvironment({"PYTHONPATH": "/other"})["PYTHONPATH"].split(os.pathsep)
    assert (Path(path[0]) / "CTHarmonizeLib/worker.py").is_file() and path[1] == "/other"


class FakeInstaller:
    def __init__(self, *present, works=True, problem=None):
        self.present, self.works, self.problem, self.asked, self.terms = set(present), works, problem, [], []

    def has(self, package):
        return package in self.present

    def installTorch(self):
        self.install("torch")

    def install(self, requirement, terms=""):
        self.asked.append(requirement)
        self.terms.append(terms)
        if self.problem:
            raise self.problem
        if self.works:
            name = requirement.split(">")[0]
            self.present.add({"scikit-image": "skimage"}.get(name, name))


def test_dependencies_are_installed_only_where_missing():
    installer = FakeInstaller("torch", "safetensors")
    dependencies.ensure(installer)
    assert installer.asked == []
    installer = FakeInstaller()
    dependencies.ensure(installer)
    assert installer.asked == ["torch", dependencies.SAFETENSORS_REQUIREMENT]
    assert "torch" not in dependencies.SAFETENSORS_REQUIREMENT


def test_a_methods_packages_are_installed_after_the_others():
    from CTHarmonizeLib.methods import available

    methods = available()
    installer = FakeInstaller("torch", "safetensors")
    for _ in range(2):
        dependencies.ensure(installer, methods["nlm"].packages)
    assert installer.asked == ["scikit-image"] and installer.terms == [""]
    dependencies.ensure(installer, packages=methods["bm3d"].packages)
    assert installer.asked[1:] == ["bm3d>=4.0.3"] and "non-commercial" in installer.terms[1]
    with pytest.raises(CannotRunError, match="'scikit-image' is needed and was not installed"):
        dependencies.ensure(FakeInstaller("torch", "safetensors", works=False), methods["tv"].packages)


@pytest.mark.parametrize(
    "installer, words",
    [
        (FakeInstaller(works=False), "was not installed"),
        (FakeInstaller(problem=RuntimeError("User declined package installation")), "was not installed"),
        (FakeInstaller("torch", problem=RuntimeError("proxy says no\ntraceback")), "(proxy says no)"),
        (FakeInstaller(problem=CannotRunError("Install the extension.")), "Install the extension."),
    ],
)
def test_failed_installation_is_one_sentence(installer, words):
    with pytest.raises(CannotRunError) as caught:
        dependencies.ensure(installer)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_slicer_installer_asks_slicer(host, monkeypatch):
    installer = dependencies.SlicerInstaller()
    assert installer.has("numpy") and not installer.has("no_such_package")
    with pytest.raises(CannotRunError, match="extension 'PyTorch'"):
        installer.installTorch()
    installer.install("not-yet-there>=0.4")
    assert "not-yet-there>=0.4" in str(host.app.installRequests)


@pytest.mark.parametrize("agrees", [True, False])
def test_terms_are_named_before_anything_is_installed(host, agrees):
    import qt

    host.answerNext(qt.QMessageBox.Ok if agrees else qt.QMessageBox.Cancel)
    dependencies.SlicerInstaller().install("restricted>=1", "for non-commercial use only")
    (shown,) = host.dialogs
    assert "restricted>=1" in shown.text and "for non-commercial use only" in shown.text
    assert ("restricted>=1" in str(host.app.installRequests)) == agrees


class FakeDetection:
    def __init__(self, node):
        self.node, self.finished, self.state, self.started = node, False, "running", False
        self.description, self.error = {"acquisition": {"f50": 4.0}, "warnings": ["Hm."]}, ""

    def start(self):
        self.started = True

    def cancel(self):
        self.end("cancelled")

    def end(self, state):
        self.finished, self.state = True, state
        self.onChanged(self)


def test_detector_waits_measures_once_and_drops_what_is_not_wanted_any_more(host):
    from CTHarmonizeGui import phantom

    clock, made, news = FakeClock(), [], []
    detector = Detector(lambda node: made.append(FakeDetection(node)) or made[-1], clock, lambda: news.append(1))
    first, second = phantom.addPhantom(1, 16, "first"), phantom.addPhantom(1, 16, "second")
    detector.watch(first)
    detector.watch(second)
    assert detector.busy and not made
    clock.advance(DEBOUNCE_SECONDS + 0.01)
    assert [job.node for job in made] == [second] and made[0].started
    detector.watch(first)
    assert made[0].state == "cancelled"
    clock.advance(DEBOUNCE_SECONDS + 0.01)
    made[1].end("done")
    assert detector.description["acquisition"]["f50"] == 4.0 and detector.warnings == ["Hm."] and news
    detector.watch(None)
    assert not detector.description and not detector.busy
    detector.watch(first)
    assert not detector.busy and len(made) == 2  # known
    slicer.util.arrayFromVolumeModified(first)
    detector.watch(first)
    assert detector.busy


@pytest.mark.parametrize(
    "dtype, values, written",
    [
        ("int16", (-1024, 3071), "int16"),
        ("uint8", (0, 255), "int16"),
        ("uint16", (0, 4000), "int16"),
        ("int32", (-1024, 100000), "float32"),
        ("float32", (-1024.25, 3071.5), "float32"),
        ("float64", (-1024.25, 3071.5), "float32"),
    ],
)
def test_export_keeps_values_and_geometry(host, tmp_path, dtype, values, written):
    import SimpleITK as sitk

    from CTHarmonizeGui import phantom

    node = phantom.addPhantom(3, 16)
    voxels = np.linspace(*values, 3 * 16 * 16).reshape(3, 16, 16).astype(dtype)
    slicer.util.updateVolumeFromArray(node, voxels)
    path = tmp_path / "Größe 测试.nrrd"
    list(scene.exportVolume(node, path, {"ConvolutionKernel": "B40f\ntype: evil", "Empty": ""}))
    image = sitk.ReadImage(str(path))
    assert sitk.GetArrayFromImage(image).dtype == written
    assert np.array_equal(sitk.GetArrayFromImage(image), voxels.astype(written))
    assert image.GetMetaData("ConvolutionKernel") == "B40f type: evil" and "Empty" not in image.GetMetaDataKeys()
    array, matrix = scene.readVolume(path)
    assert np.abs(matrix - phantom.ijkToRas(node)).max() < 1e-9 and array.shape == voxels.shape


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_a_volume_that_changes_while_it_is_exported_is_refused(host, tmp_path, dtype):
    from CTHarmonizeGui import phantom

    node = phantom.addPhantom(3, 16)
    slicer.util.updateVolumeFromArray(node, slicer.util.arrayFromVolume(node).astype(dtype))
    steps = scene.exportVolume(node, tmp_path / "input.nrrd", {})
    next(steps)
    slicer.util.arrayFromVolume(node)[0] = 0
    slicer.util.arrayFromVolumeModified(node)
    with pytest.raises(CannotRunError, match="changed while it was being read: try again"):
        next(steps)


def test_tags_come_from_the_file_unless_the_voxels_were_changed(host, tmp_path):
    from CTHarmonizeGui import detection, phantom

    path = tmp_path / "scan.nrrd"
    list(scene.exportVolume(phantom.addPhantom(2, 16), path, {"Manufacturer": "SIEMENS", "ConvolutionKernel": "B40f"}))
    node = slicer.util.loadVolume(str(path))
    assert detection.acquisitionTags(node)["ConvolutionKernel"] == "B40f"
    assert detection.describeTags(detection.acquisitionTags(node), False) == "Siemens B40f (header)"
    slicer.util.arrayFromVolumeModified(node)
    assert "ConvolutionKernel" not in detection.acquisitionTags(node)


def test_tags_come_from_the_dicom_database(host, monkeypatch):
    from CTHarmonizeGui import detection, phantom

    class Database:
        def instanceValue(self, uid, tag):
            values = {"0008,0070": "GE MEDICAL SYSTEMS", "0018,1210": "SOFT", "0018,0060": "140"}
            return values.get(tag, "") if uid == "1.2.3" else "wrong"

    monkeypatch.setattr(slicer, "dicomDatabase", Database(), raising=False)
    node = phantom.addPhantom(2, 16)
    node.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    tags = detection.acquisitionTags(node)
    assert detection.describeTags(tags, detection.isFromDicom(node)) == "GE SOFT, 140 kV (DICOM)"
    lines = detection.describeAcquisition({"acquisition": {"f50": 3.0}, "sources": {"f50": "header"}}, True)
    assert lines == ["sharpness f50 3.0 lp/cm (DICOM)"]


def test_deviation_is_shown_from_zero_to_a_round_number(host):
    from CTHarmonizeGui import phantom

    node = phantom.addPhantom(2, 32)
    slicer.util.updateVolumeFromArray(node, np.random.default_rng(0).uniform(0, 12, (2, 32, 32)).astype(np.float32))
    scene.showDeviation(node)
    display = node.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (15.0, 7.5)
    slicer.util.updateVolumeFromArray(node, np.zeros((2, 32, 32), np.float32))
    scene.showDeviation(node)
    assert node.GetDisplayNode().GetWindow() == 1.0


def test_time_left_in_words():
    assert timeLeft(None) == ""
    assert "about 12 s left" in timeLeft(12.3)
    assert "about 3 min left" in timeLeft(170)
    assert "about 2.0 h left" in timeLeft(7200)
