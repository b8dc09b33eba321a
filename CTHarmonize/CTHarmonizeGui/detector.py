"""Keeps the description of the chosen volume current, in the background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from CTHarmonizeGui.process import Clock
from CTHarmonizeLib.errors import CTHarmonizeError

DEBOUNCE_SECONDS = 0.4


class Detector:
    """Describes the volume it is shown, once for each state of its voxels.

    ``makeJob(node)`` gives a :class:`detection.DetectionJob`. ``onChanged()`` is called when there is news.

    >>> detector.watch(volumeNode)                                        # doctest: +SKIP
    >>> detector.description["acquisition"]["f50"]
    """

    def __init__(self, makeJob: Callable[[Any], Any], clock: Clock, onChanged: Callable[[], None]) -> None:
        self._makeJob, self._clock, self._onChanged = makeJob, clock, onChanged
        self._known: dict[tuple, dict[str, Any]] = {}
        self._key: tuple | None = None
        self._job: Any = None
        self.problem = ""

    @property
    def description(self) -> dict[str, Any]:
        """The engine's ``describe`` of the watched volume; empty until it is known."""
        return self._known.get(self._key, {})

    @property
    def warnings(self) -> list[str]:
        """What the description says is doubtful."""
        return list(self.description.get("warnings", ()))

    @property
    def busy(self) -> bool:
        """A measurement is under way or about to start."""
        return self._key is not None and self._key not in self._known and not self.problem

    def watch(self, node) -> None:
        """Describe ``node`` (None: nothing) unless that is done or under way."""
        key = None if node is None else (node.GetID(), node.GetImageData().GetMTime(), tuple(node.GetSpacing()))
        if key == self._key:
            return
        self.stop()
        self._key, self.problem = key, ""
        if self.busy:
            self._clock.callLater(DEBOUNCE_SECONDS, lambda: self._begin(key, node))

    def stop(self) -> None:
        """End what runs."""
        job, self._job, self._key = self._job, None, None
        if job is not None:
            job.cancel()

    def _begin(self, key: tuple, node) -> None:
        if key != self._key or self._job is not None:
            return
        try:
            self._job = self._makeJob(node)
        except (CTHarmonizeError, OSError) as error:
            self.problem = str(error)
            self._onChanged()
            return
        self._job.onChanged = lambda job: self._onJob(key, job)
        self._job.start()

    def _onJob(self, key: tuple, job) -> None:
        if not job.finished or job is not self._job:
            return
        self._job = None
        if job.state == "done":
            self._known[key] = job.description
        elif key == self._key:
            self.problem = job.error
        self._onChanged()
