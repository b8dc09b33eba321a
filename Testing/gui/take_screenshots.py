"""Pictures of the panel, ready, with each method, running, done, measured, in trouble:
``python Testing/gui/take_screenshots.py FOLDER [VOLUME]``.

VOLUME is an NRRD file; without it a phantom is shown. Needs slicer-core and PySide6 (see SlicerHost).
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "Testing"), str(REPOSITORY / "CTHarmonize")]

from SlicerHost import start  # noqa: E402


def main(folder: Path, path: Path | None, method: str | None = None) -> None:
    host = start()
    import slicer

    widget = host.loadModule(REPOSITORY / "CTHarmonize/CTHarmonize.py")
    ui, panel = widget.ui, widget.panel
    uiWidget = ui.inputsCollapsibleButton.parent()

    def shoot(name: str, width: int = 360) -> None:
        uiWidget.setFixedWidth(width)
        for _turn in range(3):  # wrapped lines first know their height once their width is set
            host.process(0.1)
            uiWidget.setFixedHeight(uiWidget.layout().totalHeightForWidth(width))
        host.screenshot(uiWidget, folder / f"{name}.png")
        uiWidget.setMinimumHeight(0)
        uiWidget.setMaximumHeight(16777215)

    shoot("panel_empty")
    if path is None:
        from CTHarmonizeGui import phantom

        node = phantom.addPhantom(40, 256, "CT phantom")
        node.SetAttribute("Manufacturer", "SIEMENS")
        node.SetAttribute("ConvolutionKernel", "B40f")
        node.SetAttribute("KVP", "120")
        node.SetAttribute("Exposure", "85")
    else:
        node = slicer.util.loadVolume(str(path))
    ui.inputSelector.setCurrentNode(node)
    if method:
        names = [ui.methodComboBox.itemData(i) for i in range(ui.methodComboBox.count)]
        ui.methodComboBox.setCurrentIndex(names.index(method))
    shoot("panel_measuring")
    host.process(300, until=lambda: not panel._detector.busy)
    shoot("panel_ready")
    chosen = ui.methodComboBox.currentIndex
    for index in range(ui.methodComboBox.count):
        ui.methodComboBox.setCurrentIndex(index)
        shoot(f"method_{ui.methodComboBox.itemData(index)}")
    ui.methodComboBox.setCurrentIndex(chosen)
    ui.correctionCollapsibleButton.collapsed = False
    ui.advancedCollapsibleButton.collapsed = False
    shoot("panel_open_320", 320)
    ui.correctionCollapsibleButton.collapsed = True
    ui.advancedCollapsibleButton.collapsed = True
    ui.applyButton.click()
    job = panel.job
    host.process(600, until=lambda: job.finished or (job.fraction > 0.3 and job.secondsLeft is not None))
    shoot("panel_running")
    host.process(3600, until=lambda: job.finished)
    shoot("panel_done")
    ui.measureCollapsibleButton.collapsed = False
    shoot("panel_measure")
    ui.measureButton.click()
    host.process(600, until=lambda: ui.measureButton.text == "Measure")
    shoot("panel_measured")
    ui.measureCollapsibleButton.collapsed = True
    grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", "Acquisition transform")
    grid.SetAndObserveTransformFromParent(slicer.vtkOrientedGridTransform())
    node.SetAndObserveTransformNodeID(grid.GetID())
    shoot("panel_problem")
    for error in host.errors:
        print(error, file=sys.stderr)
    host.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None, *sys.argv[3:4])
