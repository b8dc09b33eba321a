"""Translation of a module's texts: the host speaks English, the calls are those of Slicer."""

from __future__ import annotations

import os
import sys

import slicer


def translate(context: str, text: str) -> str:
    return slicer.app.translate(context, text)


def getContext(sourceFile: str) -> str:
    """The translation context of a source file: its name, after its package's where it stands in one."""
    name = os.path.splitext(os.path.basename(sourceFile))[0]
    folder = os.path.dirname(sourceFile)
    if os.path.isfile(os.path.join(folder, "__init__.py")):
        return f"{os.path.basename(folder)}.{name}"
    return name


def tr(text: str) -> str:
    # Slicer's takes one string and nothing else; an f-string or a non-string would not be found by lupdate.
    if not isinstance(text, str):
        raise TypeError(f"tr() takes a string, not {type(text).__name__}")
    return translate(getContext(sys._getframe(1).f_code.co_filename), text)
