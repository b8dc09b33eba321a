"""The background process of the panel: ``python -m CTHarmonizeLib.worker JOB.json``.

One JSON object a line, UTF-8, on standard output:

    {"event": "started", "pid": ...}            {"event": "stage", "stage": ...}
    {"event": "progress", "fraction": 0..1, "stage": ..., "secondsLeft": seconds or null}
    {"event": "warning", "message": ...}        {"event": "result", "files": {...}, "report": {...}}
    {"event": "error", "message": one sentence, "status": 2 | 3 | 130}

Everything else that anything prints goes to standard error. ``result`` comes after the files have their names. The
process ends itself, leaving no files, on SIGTERM, when the pipe on its standard input closes, and when its parent
is gone; so who starts it with a pipe keeps that open as long as the job should live.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import stat
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from CTHarmonizeLib.cli import sentence
from CTHarmonizeLib.errors import Cancelled, InputError

CANCELLED = Cancelled.exit_status
GRACE_SECONDS = 3.0
"""How long a cancelled run may take to stop by itself; then the process ends at once."""

_OPTIONS = {
    "targetKernel": "kernel",
    "targetDose": "dose",
    "targetThickness": "thickness",
    "method": "method",
    "model": "model",
    "sourceKernel": "source_kernel",
    "sourceDose": "source_dose",
    "samples": "samples",
    "temperature": "temperature",
    "seed": "seed",
    "device": "device",
    "precision": "precision",
    "coherence": "coherence",
    "roi": "roi",
    "threads": "threads",
    "augment": "augment",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one job; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    events = Events(_take_over_stdout())
    guard = Guard()
    guard.start()
    status = 0
    try:
        if len(arguments) != 1:
            raise InputError("The worker needs one argument, the job file.")
        _run(_read_job(Path(arguments[0])), events, guard)
    except BaseException as error:
        traceback.print_exc()
        message, status = (str(Cancelled()), CANCELLED) if guard.ended.is_set() else sentence(error)
        try:
            events.send("error", message=message, status=status)
        except OSError:
            pass  # nobody listens any more
    guard.finished.set()
    return status


def _run(job: dict, events: Events, guard: Guard) -> None:
    _import_libraries()
    guard.watch_input()
    from CTHarmonizeLib.harmonization import check_output_folder, harmonize
    from CTHarmonizeLib.request import Request

    for key in ("input", "outputFolder"):
        if not job.get(key):
            raise InputError(f"The job file does not say '{key}'.")
    options = {name: job[key] for key, name in _OPTIONS.items() if job.get(key) is not None}
    request = Request(**options)
    guard.folder = check_output_folder(job["outputFolder"])
    events.send("started", pid=os.getpid())
    result = harmonize(job["input"], request, ProgressEvents(events), guard.ended.is_set)
    for warning in result.report["warnings"]:
        events.send("warning", message=warning)
    files = result.save(guard.folder)
    if guard.ended.is_set():
        for path in files.values():
            path.unlink(missing_ok=True)
        raise Cancelled
    events.send("result", files={key: str(path) for key, path in files.items()}, report=result.report)


def _import_libraries() -> None:
    """All compiled code that a job needs, before a thread reads standard input.

    On Windows a pending read of a pipe holds up whoever asks for that pipe's type, as C runtimes do when their
    library is loaded: `import numpy` would wait for ever.
    """
    import SimpleITK  # noqa: F401

    import CTHarmonizeLib.engine
    import CTHarmonizeLib.harmonization  # noqa: F401

    for name in ("safetensors.torch", "psutil"):  # used where they are there
        with suppress(ImportError):
            importlib.import_module(name)


def _read_job(path: Path) -> dict:
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The job file '{path}' cannot be read: {error}.") from error
    if not isinstance(job, dict):
        raise InputError(f"The job file '{path}' is no JSON object.")
    return job


def _take_over_stdout() -> int:
    """The pipe to the parent, for events alone: whatever else writes to standard output goes to standard error."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return pipe


class Events:
    """Lines of JSON to the parent."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, event: str, **content: Any) -> None:
        from CTHarmonizeLib.report import as_json

        line = (as_json({"event": event, **content}) + "\n").encode("utf-8")
        with self._lock:
            while line:
                line = line[os.write(self._pipe, line) :]


class ProgressEvents:
    """Turns progress into events, at most ten a second, with the time left from a smoothed rate."""

    def __init__(self, events: Events, clock=time.monotonic) -> None:
        self._events, self._clock = events, clock
        self._stage: str | None = None
        self._sent = self._then = clock()
        self._before = 0.0
        self._rate: float | None = None  # of the fraction, a second

    def __call__(self, fraction: float, stage: str) -> None:
        now = self._clock()
        if stage != self._stage:
            self._stage, self._rate = stage, None
            self._before, self._then = fraction, now
            self._events.send("stage", stage=stage)
        elif now - self._sent < 0.1:
            return
        if now > self._then and fraction > self._before:
            rate = (fraction - self._before) / (now - self._then)
            # The mean since the stage began at first, later what the last minute or so was like.
            weight = min(1.0, max(0.05, (now - self._then) / 30.0)) if self._rate is not None else 1.0
            self._rate = rate if self._rate is None else self._rate + weight * (rate - self._rate)
            self._before, self._then = fraction, now
        left = None if self._rate is None else round((1.0 - fraction) / self._rate, 1)
        self._sent = now
        self._events.send("progress", fraction=round(fraction, 4), stage=stage, secondsLeft=left)


class Guard:
    """Ends the run when it is no longer wanted: ``ended`` is set, and after a grace period the process exits."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.finished = threading.Event()
        self.folder: Path | None = None

    def start(self) -> None:
        """Watch for signals and for the parent's end."""
        self._watch_signals()
        if hasattr(os, "getppid") and os.name == "posix":
            self._in_background(self._wait_for_parent)
        self._in_background(self._enforce)

    def watch_input(self) -> None:
        """Watch for the end of standard input too: it may have come already, so nothing is missed by being late."""
        try:
            piped = stat.S_ISFIFO(os.fstat(0).st_mode) or stat.S_ISSOCK(os.fstat(0).st_mode)
        except OSError:
            piped = False
        if piped:
            self._in_background(self._wait_for_end_of_input)

    def _in_background(self, target) -> None:
        threading.Thread(target=target, daemon=True).start()

    def _watch_signals(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # A handler would wait for the main thread, which may be inside one long convolution.
            wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
            signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
            self._in_background(lambda: (signal.sigwait(wanted), self.ended.set()))
        else:
            for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), lambda number, frame: self.ended.set())

    def _wait_for_end_of_input(self) -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        self.ended.set()

    def _wait_for_parent(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.5)
        self.ended.set()

    def _enforce(self) -> None:
        self.ended.wait()
        if not self.finished.wait(GRACE_SECONDS):
            if self.folder is not None and self.folder.is_dir():
                for aside in self.folder.glob(".ctharmonize-*"):
                    shutil.rmtree(aside, ignore_errors=True)
            os._exit(CANCELLED)


if __name__ == "__main__":
    sys.exit(main())
