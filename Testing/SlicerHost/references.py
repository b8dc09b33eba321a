"""Keeps None, True and False alive: PySide6 6.12 is built for Pythons in which they are immortal.

On Python before 3.12 (slicer-core is built for 3.11) it gives away a reference to None with many a call
(`widget.property("unknown")`, `comboBox.setCurrentIndex(0)`), until the interpreter frees None and crashes.
"""

from __future__ import annotations

import ctypes
import sys

_MANY = 1 << 40


def makeImmortal() -> None:
    """Gives the constants more references than a process can lose."""
    if sys.version_info < (3, 12):
        for constant in (None, True, False, NotImplemented, Ellipsis, 0, 1, "", ()):
            # the reference count is the first field of CPython's PyObject
            count = ctypes.c_ssize_t.from_address(id(constant))
            if count.value < _MANY:
                count.value += _MANY
