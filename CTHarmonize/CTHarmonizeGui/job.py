"""A background job: prepared and collected in turns of the event loop, computed by a process of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slicer.i18n import tr as _

from CTHarmonizeGui.folder import JobFolder
from CTHarmonizeGui.process import Clock, Process
from CTHarmonizeLib.errors import CTHarmonizeError

GRACE_SECONDS = 3.0
"""What a process that was asked to end is given before it is killed."""

_TURN_SECONDS = 0.03
_MOST_OUTPUT = 1 << 20


class BackgroundJob:
    """Writes, runs and takes over without ever blocking the window. A subclass says what.

    ``state`` goes from ``preparing`` through ``running`` and ``collecting`` to ``done``, ``failed`` or
    ``cancelled``. Success needs the exit status, the result and the files that it names. The folder is removed
    whatever happens. ``error`` is one sentence.

    >>> job = Subclass(folder, QtProcess(), QtClock())                    # doctest: +SKIP
    >>> job.onChanged = lambda job: print(job.fraction, job.stage)
    >>> job.start(); job.waitForFinished()
    """

    def __init__(self, folder: JobFolder, process: Process, clock: Clock) -> None:
        self.state = "preparing"
        self.fraction = 0.0
        self.stage = _("Preparing")
        self.secondsLeft: float | None = None
        self.warnings: list[str] = []
        self.events: dict[str, dict[str, Any]] = {}
        self.output = b""
        self.error = ""
        self.onChanged: Callable[[BackgroundJob], None] = lambda job: None
        self.folder, self._process, self._clock = folder, process, clock
        self._steps: Iterator[None] | None = None
        self._line = b""
        self._errorOutput = b""
        self._cancelled = False
        self._started, self._ended = clock.now(), None

    # What a subclass does; the generators yield wherever the event loop may have a turn

    def arguments(self) -> Sequence[str]:
        """What PythonSlicer is started with."""
        raise NotImplementedError

    def prepare(self) -> Iterator[None]:
        """Write what the process reads."""
        yield from ()

    def result(self) -> dict[str, Any] | None:
        """What the process has made: the worker's ``result`` event. None where it did not say."""
        return self.events.get("result")

    def collect(self, result: dict[str, Any]) -> Iterator[None]:
        """Take over what the process has made."""
        yield from ()

    # What others do with a job

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def cancelling(self) -> bool:
        """Asked to end, and not yet ended."""
        return self._cancelled and not self.finished

    @property
    def seconds(self) -> float:
        """From the making of the job to now, or to its end."""
        return (self._clock.now() if self._ended is None else self._ended) - self._started

    def start(self) -> None:
        """Returns at once."""
        self._turns(self.prepare(), self._launch)

    def waitForFinished(self, seconds: float | None = None) -> bool:
        """Keep the event loop turning until the job has ended (or ``seconds`` have passed); True on success."""
        deadline = None if seconds is None else self._clock.now() + seconds
        while not self.finished and (deadline is None or self._clock.now() < deadline):
            self._clock.turn()
        return self.state == "done"

    def cancel(self) -> None:
        """Ask the process tree to end; it is killed where it does not. Returns at once."""
        if self.finished or self._cancelled:
            return
        self._cancelled = True
        self.stage = _("Cancelling")
        if self.state == "running":
            self._process.stop(force=False)
            self._clock.callLater(GRACE_SECONDS, self._kill)
            self.onChanged(self)
        else:
            self._end("cancelled")

    def endNow(self) -> None:
        """End the process tree and remove the folder before returning: the application quits."""
        if self.finished:
            return
        self._cancelled = True
        if self.state == "running":
            self._process.stop(force=False)
            if not self._process.wait(GRACE_SECONDS):
                self._process.stop(force=True)
                self._process.wait(GRACE_SECONDS)
        if not self.finished:
            self._end("cancelled")

    # The process speaks

    def onOutput(self, data: bytes) -> None:
        if len(self.output) < _MOST_OUTPUT:
            self.output += data
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line.decode("utf-8"))
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event and not self.finished:
                self._onEvent(event)

    def onErrorOutput(self, data: bytes) -> None:
        self._errorOutput = (self._errorOutput + data)[-8192:]

    def onFinished(self, exitCode: int | None) -> None:
        if self.finished:
            return
        if self._cancelled or exitCode == 130:
            self._end("cancelled")
            return
        result = self.result() if exitCode == 0 else None
        if result is None:
            self._fail(self._whyItEnded(exitCode))
            return
        self.state = "collecting"
        self.fraction, self.stage, self.secondsLeft = 1.0, _("Loading the result"), None
        self.onChanged(self)
        self._turns(self.collect(result), lambda: self._end("done"))

    # Inside

    def _onEvent(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        self.events[kind] = event
        if kind == "warning":
            self.warnings.append(str(event.get("message", "")))
        elif kind == "error":
            self.error = str(event.get("message", ""))
        if kind in ("progress", "stage") and not self._cancelled:
            self.stage = str(event.get("stage") or self.stage)
        if kind == "progress":
            self.fraction = min(1.0, max(0.0, float(event.get("fraction") or 0.0)))
            left = event.get("secondsLeft")
            self.secondsLeft = None if left is None else float(left)
        self.onChanged(self)

    def _turns(self, steps: Iterator[None], then: Callable[[], None]) -> None:
        """Run ``steps`` a little in every turn of the event loop, then ``then``."""

        def turn() -> None:
            if self.finished:
                return
            pause = self._clock.now() + _TURN_SECONDS
            try:
                while self._clock.now() < pause:
                    next(steps)
            except StopIteration:
                then()
            except CTHarmonizeError as error:
                self._fail(str(error))
            except OSError as error:
                self._fail(_("A file could not be written or read ({reason}): free some disk space and try again.")
                           .format(reason=error.strerror or error))
            except Exception:
                logging.exception("CTHarmonize: a background job could not go on")
                self._fail(_("Something unexpected went wrong; the application's error log has the details."))
            else:
                self._clock.callLater(0.0, turn)

        self._steps = steps
        self._clock.callLater(0.0, turn)

    def _launch(self) -> None:
        self.state, self.stage = "running", _("Starting")
        self.onChanged(self)
        self._process.start(self.arguments(), self)

    def _kill(self) -> None:
        if not self.finished:
            self._process.stop(force=True)

    def _whyItEnded(self, exitCode: int | None) -> str:
        said = self._errorOutput.decode("utf-8", "replace").strip()
        if said:
            logging.error("CTHarmonize: the background process said:\n%s", said)
        if self.error:
            return self.error
        if "error" not in self.events and exitCode in (2, 3) and said:
            return said.splitlines()[-1]
        if "event" not in self.output.decode("utf-8", "replace") and not said:
            return _("The background process could not be started: reinstall the extension, "
                     "and see the application's error log.")
        if exitCode is None or exitCode in (-9, 137):
            return _("The background process was ended from outside, most often for want of memory: "
                     "close other programs or ask for fewer samples, and try again.")
        return _("The background process stopped without a result (exit status {status}); "
                 "the application's error log has the details.").format(status=exitCode)

    def _fail(self, sentence: str) -> None:
        self.error = sentence
        self._end("failed")

    def _end(self, state: str) -> None:
        if state == "cancelled":
            self.error = _("Cancelled.")
        self.state = state
        self.secondsLeft, self._ended = None, self._clock.now()
        self._closeSteps()
        self.folder.remove()
        self.onChanged(self)

    def _closeSteps(self) -> None:
        """Close the files of a step that was cut short."""
        try:
            if self._steps is not None:
                self._steps.close()
        except ValueError:  # it is that step which ends the job
            pass
