"""Dialogs that would wait for a person: recorded, and answered at once."""

from __future__ import annotations

import dataclasses

from PySide6 import QtWidgets


@dataclasses.dataclass(frozen=True)
class Shown:
    """A dialog that was shown: its kind, text, and the answer that it got."""

    kind: str
    text: str
    answer: object


class Answers:
    """The dialogs shown so far, and the answers that a test has prepared (else: the affirmative one)."""

    def __init__(self) -> None:
        self.shown: list[Shown] = []
        self.prepared: list = []
        answers = self
        box = QtWidgets.QMessageBox
        affirmative = (box.StandardButton.Ok, box.StandardButton.Yes, box.StandardButton.Save)

        def execBox(self):
            offered = [button for button in affirmative if self.standardButtons & int(button)]
            answer = answers._next(offered[0] if offered else box.StandardButton.Ok)
            answers.shown.append(Shown("message", self.text, answer))
            return int(answer)

        def execDialog(self):
            answer = answers._next(QtWidgets.QDialog.DialogCode.Accepted)
            answers.shown.append(Shown("dialog", self.windowTitle, answer))
            return int(answer)

        QtWidgets.QDialog.exec_ = QtWidgets.QDialog.exec = execDialog
        box.exec_ = box.exec = execBox
        for kind in ("information", "warning", "critical", "question", "about"):
            setattr(box, kind, self._static(kind))
        files = QtWidgets.QFileDialog
        for kind, nothing in (
            ("getExistingDirectory", ""),
            ("getOpenFileName", ""),
            ("getSaveFileName", ""),
            ("getOpenFileNames", []),
        ):
            setattr(files, kind, self._static(kind, nothing))
        QtWidgets.QInputDialog.getText = self._static("getText", "")

    def _next(self, fallback):
        return self.prepared.pop(0) if self.prepared else fallback

    def _static(self, kind: str, fallback=QtWidgets.QMessageBox.StandardButton.Ok):
        def show(parent=None, title: str = "", text: str = "", *_, **__):
            first = QtWidgets.QMessageBox.StandardButton.Yes if kind == "question" else fallback
            answer = self._next(first)
            self.shown.append(Shown(kind, text or title, answer))
            return answer

        return staticmethod(show)
