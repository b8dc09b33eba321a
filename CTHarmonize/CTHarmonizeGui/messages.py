"""What the panel says: time left, outcome, and the one message below the button."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

_STYLES = {  # text and ground are both set: readable in Slicer's light and dark style alike
    "info": "background: #e8eef5; color: #1d3557; border-radius: 3px;",
    "done": "background: #e3f1e5; color: #1b4d2b; border-radius: 3px;",
    "warning": "background: #fff2cf; color: #5c4300; border-radius: 3px;",
    "error": "background: #fbe0de; color: #7a1510; border-radius: 3px;",
}


@dataclass(frozen=True)
class Message:
    """``kind`` is info, done, warning or error; an empty text shows nothing."""

    kind: str = "info"
    text: str = ""

    def show(self, label) -> None:
        label.text = self.text
        label.styleSheet = _STYLES[self.kind]
        label.visible = bool(self.text)


def timeLeft(seconds: float | None) -> str:
    """`` – about 2 min left``; empty where it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        left = _("{count} s").format(count=max(1, round(seconds)))
    elif seconds < 5400:
        left = _("{count} min").format(count=round(seconds / 60))
    else:
        left = _("{count:.1f} h").format(count=seconds / 3600)
    return " – " + _("about {time} left").format(time=left)


def outcome(job: Any) -> Message:
    """What to say of a job that has ended."""
    if job.state == "cancelled":
        return Message("info", _("Cancelled. Nothing in the scene was changed."))
    if job.state == "failed":
        return Message("error", job.error)
    done = _("Done in {seconds:.0f} s: the result is shown in the slice views.").format(seconds=max(1, job.seconds))
    if job.warnings:
        return Message("warning", "\n".join([done, *job.warnings]))
    return Message("done", done)
