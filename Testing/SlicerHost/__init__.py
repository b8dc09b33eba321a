"""A stand-in for the Slicer application, to test scripted modules where Slicer cannot be installed.

slicer-core gives the real MRML scene, nodes, logics, subject hierarchy and `slicer.util`; this package adds
what it lacks: `qt` and `ctk` on PySide6 with PythonQt's manners, the qMRML widgets, the scripted module's base
classes, the parameter node wrapper and `slicer.app`. A module under test runs unchanged, and its background
processes are real.

    from SlicerHost import start

    host = start()                      # before anything imports qt, ctk or slicer
    panel = host.loadModule("CTHarmonize/CTHarmonize.py")
    panel.ui.applyButton.click()
    host.process(10, until=lambda: panel.ui.progressBar.value == 100)
    host.screenshot(panel, "panel.png")
    assert not host.errors              # exceptions from slots, Qt's warnings
    host.close()
"""

from .host import Host, start

__all__ = ["Host", "start"]
