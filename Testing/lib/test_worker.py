"""The background process: events, exit statuses, and its end when nobody wants it any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from model_folder import make_model_folder
from stochastic_method import chest

import CTHarmonizeLib
from CTHarmonizeLib.ct.io import read_volume, write_nrrd
from CTHarmonizeLib.worker import ProgressEvents

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(CTHarmonizeLib.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


@pytest.fixture
def job(tmp_path):
    """A job whose run takes minutes unless ``samples`` is changed."""
    folder = tmp_path / "Auftrag ß"
    folder.mkdir(mode=0o700)
    write_nrrd(chest(2, 128, 128), folder / "input.nrrd")
    return {
        "input": str(folder / "input.nrrd"),
        "outputFolder": str(folder / "out"),
        "targetKernel": "medium",
        "targetDose": 50,
        "targetThickness": None,
        "method": "ctflow",
        "model": str(make_model_folder(folder / "model")),
        "sourceKernel": "sharp",
        "sourceDose": None,
        "samples": 1000,
        "temperature": None,
        "seed": 3,
        "device": "cpu",
        "roi": None,
        "coherence": 0,
        "title": "ignored",
    }


def start(job: dict, **changes) -> subprocess.Popen:
    path = Path(job["input"]).parent / "job.json"
    path.write_text(json.dumps({**job, **changes}), encoding="utf-8")
    command = [sys.executable, "-m", "CTHarmonizeLib.worker", str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=ENVIRONMENT, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, list[dict], str]:
    """Exit status, events and standard error of a process whose standard input stays open till it ends."""
    output = process.stdout.read()
    errors = process.stderr.read().decode("utf-8")
    status = process.wait(timeout=60)
    process.stdin.close()
    return status, [json.loads(line) for line in output.decode("utf-8").splitlines()], errors


def wait_until_sampling(process: subprocess.Popen) -> None:
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["stage"] == "Harmonizing" and event["fraction"] > 0.055:
            return
    pytest.fail(process.stderr.read().decode())


def left_behind(job: dict) -> list[Path]:
    folder = Path(job["outputFolder"])
    return list(folder.iterdir()) if folder.exists() else []


def test_result(job):
    status, events, errors = finish(start(job, samples=4))
    assert status == 0, errors
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started" and kinds[-1] == "result"
    assert "stage" in kinds and "error" not in kinds
    result = events[-1]
    assert set(result["files"]) == {"harmonized", "mean", "standardDeviation", "report"}
    assert all(Path(path).is_file() for path in result["files"].values())
    assert read_volume(result["files"]["mean"]).shape == (2, 128, 128)
    assert b"encoding: raw" in Path(result["files"]["mean"]).read_bytes()[:600]
    assert result["report"]["seed"] == 3 and result["report"]["samples"] == 4
    assert result["report"] == json.loads(Path(result["files"]["report"]).read_text(encoding="utf-8"))
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions) and 0.0 <= fractions[0] and fractions[-1] <= 1.0
    assert [event["message"] for event in events if event["event"] == "warning"] == result["report"]["warnings"]


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"targetKernel": "2"}, 2, "2.5 to 6.5"),
        ({"input": None}, 2, "'input'"),
        ({"samples": "many"}, 2, "samples"),
    ],
)
def test_errors_are_events(job, changes, status, text):
    found, events, errors = finish(start(job, **changes))
    assert found == status
    assert events[-1]["event"] == "error" and events[-1]["status"] == status
    assert text in events[-1]["message"] and "\n" not in events[-1]["message"]
    assert "Traceback" in errors  # for the panel's log


def test_a_job_file_that_is_not_there():
    command = [sys.executable, "-m", "CTHarmonizeLib.worker", "nowhere.json"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert json.loads(done.stdout)["status"] == 2


def test_standard_output_holds_events_alone(job):
    """Whatever a library prints, even from C, ends on standard error."""
    job.update(method="mtf-filter", model=None, targetDose=None, samples=None)
    path = Path(job["input"]).parent / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    code = (
        "import os, sys, CTHarmonizeLib.report as report, CTHarmonizeLib.worker as worker\n"
        "build = report.build\n"
        "def noisy(*arguments):\n"
        "    print('from python'); os.write(1, b'from C\\n'); return build(*arguments)\n"
        "report.build = noisy\n"
        f"sys.exit(worker.main([{str(path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, stdin=subprocess.DEVNULL, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line) for line in done.stdout.splitlines())
    assert b"from python" in done.stderr and b"from C" in done.stderr


def test_no_library_is_loaded_while_a_thread_reads_the_input(job):
    """Loading one asks for the type of standard input, which on Windows waits for the pending read."""
    path = Path(job["input"]).parent / "job.json"
    path.write_text(json.dumps({**job, "samples": 1}), encoding="utf-8")
    code = (
        "import sys, CTHarmonizeLib.worker as worker\n"
        "def compiled(): return {n for n, m in list(sys.modules.items())\n"
        "    if str(getattr(m, '__file__', '')).endswith(('.so', '.pyd'))}\n"
        "wait, loaded = worker.Guard._wait_for_end_of_input, []\n"
        "worker.Guard._wait_for_end_of_input = lambda self: (loaded.append(compiled()), wait(self))\n"
        f"status = worker.main([{str(path)!r}])\n"
        "print(len(loaded), sorted(compiled() - loaded[0]), status, file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert finish(process)[2].splitlines()[-1] == "1 [] 0"


@posix
def test_terminate_ends_it_without_files(job):
    process = start(job)
    wait_until_sampling(process)
    process.terminate()
    begun = time.monotonic()
    status, events, _ = finish(process)
    assert status == 130
    assert time.monotonic() - begun < 4
    assert events[-1] == {"event": "error", "message": "Cancelled.", "status": 130}
    assert not left_behind(job)


def test_closed_input_ends_it(job):
    process = start(job)
    wait_until_sampling(process)
    process.stdin.close()
    assert process.wait(timeout=10) == 130
    assert not left_behind(job)


@posix
def test_dead_parent_ends_it(job):
    """The parent is killed, and nothing tells the worker but that it is gone: its input is not a pipe."""
    path = Path(job["input"]).parent / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    code = (
        "import subprocess, sys, time\n"
        f"log = open({str(path.with_name('log'))!r}, 'wb')\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'CTHarmonizeLib.worker', {str(path)!r}],\n"
        "    stdin=subprocess.DEVNULL, stdout=log, stderr=log)\n"
        "print(child.pid, flush=True); time.sleep(100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    wait_for(lambda: "Harmonizing" in path.with_name("log").read_text(encoding="utf-8"), 30)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not alive(child), 10)
    assert not left_behind(job)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return Path("/proc").exists() is False


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@posix
def test_a_run_that_does_not_stop_is_ended(job):
    """A method that hangs in one call cannot outlive the grace period."""
    path = Path(job["input"]).parent / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    aside = Path(job["outputFolder"]) / ".ctharmonize-x"
    code = (
        "import sys, time, os, signal, CTHarmonizeLib.worker as worker, CTHarmonizeLib.harmonization as harmonization\n"
        "def hang(*arguments):\n"
        f"    os.makedirs({str(aside)!r}); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
        "harmonization.harmonize = hang\n"
        "worker.GRACE_SECONDS = 0.5\n"
        f"sys.exit(worker.main([{str(path)!r}]))"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 130
    assert time.monotonic() - begun < 20
    assert not left_behind(job)


class Recorder:
    def __init__(self) -> None:
        self.events: list[dict] = []

    def send(self, event: str, **content) -> None:
        self.events.append({"event": event, **content})


def test_time_left_follows_the_rate():
    now = [0.0]
    recorder = Recorder()
    progress = ProgressEvents(recorder, clock=lambda: now[0])
    progress(0.0, "a")
    for step in range(1, 51):
        now[0] = step * 0.5
        progress(0.01 * step, "a")
    left = recorder.events[-1]["secondsLeft"]
    assert left == pytest.approx(25.0, rel=0.02)
    for step in range(1, 41):  # four times slower from here on
        now[0] = 25.0 + step * 0.5
        progress(0.5 + 0.0025 * step, "a")
    assert recorder.events[-1]["secondsLeft"] == pytest.approx(80.0, rel=0.35)
    assert [event["stage"] for event in recorder.events if event["event"] == "stage"] == ["a"]


def test_at_most_ten_events_a_second():
    now = [0.0]
    recorder = Recorder()
    progress = ProgressEvents(recorder, clock=lambda: now[0])
    for step in range(1000):
        now[0] = step * 0.001
        progress(step / 1000, "a")
    assert len(recorder.events) <= 12
