"""The jobs that run. They belong to the module: logics and widgets come and go with every reload.

This file is not reloaded with the others (see ``forgetModules``).
"""

from __future__ import annotations

import atexit
import sys
from typing import Any

import slicer
import vtk

running: list[Any] = []
_observers: list[int] = []
_watchesQuit = False


def add(job: Any) -> None:
    """Keep ``job`` until it ends; it ends with its input volume, the scene and the application.

    A job has ``inputVolume``, ``finished``, ``cancel()`` and ``endNow()``.
    """
    global _watchesQuit
    running.append(job)
    if not _watchesQuit:
        _watchesQuit = True
        slicer.app.connect("aboutToQuit()", endAll)
        atexit.register(endAll)
    if not _observers:
        scene = slicer.mrmlScene
        _observers.append(scene.AddObserver(scene.StartCloseEvent, _onSceneClose))
        _observers.append(scene.AddObserver(scene.NodeAboutToBeRemovedEvent, _onNodeRemoved))


def discard(job: Any) -> None:
    """``job`` has ended."""
    if job in running:
        running.remove(job)
    if not running:
        while _observers:
            slicer.mrmlScene.RemoveObserver(_observers.pop())


def endAll() -> None:
    """End every job now: the application quits."""
    for job in list(running):
        job.endNow()
        discard(job)


def forgetModules() -> None:
    """Let a reload of the module load the files behind it anew as well, all but this one."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("CTHarmonizeGui", "CTHarmonizeLib") and name != __name__:
            del sys.modules[name]


def _onSceneClose(caller, event) -> None:
    for job in list(running):
        job.cancel()


@vtk.calldata_type(vtk.VTK_OBJECT)
def _onNodeRemoved(caller, event, node) -> None:
    for job in list(running):
        if job.inputVolume is node:
            job.cancel()
