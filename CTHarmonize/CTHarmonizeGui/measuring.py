"""The panel's section *Measure*: which volumes, the button, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from CTHarmonizeGui.comparison import checkVolumes
from CTHarmonizeGui.messages import Message
from CTHarmonizeGui.widgets import tellName
from CTHarmonizeLib.errors import CTHarmonizeError

_SELECTORS = ("beforeSelector", "afterSelector", "referenceSelector")


class Measuring:
    """Fills and reads the section's widgets in ``ui``; ``makeComparison(before, after, reference)`` makes a job."""

    def __init__(self, ui: Any, makeComparison: Callable[..., Any]) -> None:
        self.ui = ui
        self.job: Any = None
        self._makeComparison = makeComparison
        self._parameters: Any = None
        self._message = Message()
        ui.measureButton.connect("clicked(bool)", self._onMeasure)

    def setParameters(self, parameters: Any) -> None:
        """Show and edit this wrapped parameter node from now on; None: none."""
        self._parameters = parameters
        if self.job is None:
            self._message = Message()
        self.refresh()

    def close(self) -> None:
        """The widget goes: nobody is left to read the measures."""
        if self.job is not None:
            self.job.onChanged = lambda job: None
            self.job.cancel()
        self._parameters = None

    def choose(self, before: Any, after: Any) -> None:
        """Offer a run's input and output for measuring."""
        if self._parameters:
            self._parameters.beforeVolume, self._parameters.afterVolume = before, after

    def refresh(self) -> None:
        """Bring the section in line with the parameter node and the job."""
        ui = self.ui
        problem = "" if self.job is not None else self._problem()
        ui.measureButton.text = _("Measure") if self.job is None else _("Cancel")
        ui.measureButton.enabled = not problem and not (self.job is not None and self.job.cancelling)
        ui.measureButton.toolTip = problem or (
            _("Measure noise, sharpness, tissues and lungs, and show them as a table and plots.")
            if self.job is None
            else _("Stop measuring. Nothing in the scene changes.")
        )
        for name in _SELECTORS:
            selector = getattr(ui, name)
            selector.enabled = self.job is None
            tellName(selector)
        self._message.show(ui.measureLabel)

    def _volumes(self) -> tuple:
        parameters = self._parameters
        return parameters.beforeVolume, parameters.afterVolume, parameters.referenceVolume

    def _problem(self) -> str:
        try:
            if self._parameters:
                checkVolumes(*self._volumes())
        except CTHarmonizeError as error:
            return str(error)
        return "" if self._parameters else _("The scene is closing.")

    def _onMeasure(self, clicked: bool = False) -> None:
        if self.job is not None:
            self.job.cancel()
            return
        try:
            self.job = self._makeComparison(*self._volumes())
        except (CTHarmonizeError, OSError) as error:
            self._message = Message("error", str(error))
        else:
            self._message = Message("info", _("Measuring …"))
            self.job.onChanged = self._onJob
            self.job.start()
        self.refresh()

    def _onJob(self, job: Any) -> None:
        if job.finished:
            self.job = None
            self._message = {
                "done": Message("done", _("Measured: '{name}' and its plots.").format(
                    name=job.table.GetName() if job.table else "")),
                "cancelled": Message("info", _("Cancelled. Nothing in the scene was changed.")),
                "failed": Message("error", job.error),
            }[job.state]
        self.refresh()
