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
    lines = [_("Done in {seconds:.0f} s.").format(seconds=max(1, job.seconds)) + _aim(job.report), *job.warnings]
    return Message("warning" if job.warnings else "done", "\n".join(lines))


def _aim(report: dict[str, Any]) -> str:
    """From which sharpness and noise to which."""
    source = (report.get("source") or {}).get("acquisition") or {}
    target = (report.get("target") or {}).get("acquisition") or {}
    if not all(part.get(key) for part in (source, target) for key in ("f50", "noise")):
        return ""
    sentence = _("From f50 {f50:.1f} lp/cm and noise {noise:.0f} HU towards {toF50:.1f} lp/cm and {toNoise:.0f} HU.")
    return " " + sentence.format(
        f50=source["f50"], noise=source["noise"], toF50=target["f50"], toNoise=target["noise"]
    )
