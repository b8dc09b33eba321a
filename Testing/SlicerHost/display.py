"""A screen to draw on: the one there is, an Xvfb of our own, or Qt's offscreen platform."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys


def ensureDisplay(size: str = "1600x1200x24") -> str:
    """Sets DISPLAY or QT_QPA_PLATFORM before Qt starts; returns which. Xvfb ends with the process."""
    if not sys.platform.startswith("linux") or os.environ.get("QT_QPA_PLATFORM"):
        return os.environ.get("QT_QPA_PLATFORM", "native")
    if os.environ.get("DISPLAY"):
        return os.environ["DISPLAY"]
    program = shutil.which("Xvfb")
    if program is not None:
        reader, writer = os.pipe()
        server = subprocess.Popen(
            [program, "-displayfd", str(writer), "-screen", "0", size, "-nolisten", "tcp", "-terminate"],
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(writer)
        with os.fdopen(reader) as answer:
            number = answer.readline().strip()  # empty where the server could not start
        if number:
            atexit.register(server.terminate)
            os.environ["DISPLAY"] = f":{number}"
            return os.environ["DISPLAY"]
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    return "offscreen"
