"""Measures two or three volumes of one case in the background, and puts a table and plots of them into the scene."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import slicer
from slicer.i18n import tr as _

from CTHarmonizeGui import registry, scene
from CTHarmonizeGui.folder import JobFolder
from CTHarmonizeGui.job import BackgroundJob
from CTHarmonizeGui.process import Clock, Process
from CTHarmonizeLib.errors import InputError

_PLOT_ROLE = "ctharmonizePlot"
"""Node reference of a table of measures to what its plots are made of."""

_COLORS = {"before": (0.76, 0.34, 0.10), "after": (0.12, 0.44, 0.71), "reference": (0.35, 0.35, 0.35)}


def titles() -> dict[str, str]:
    """What the volumes of a comparison are called."""
    return {"before": _("Before"), "after": _("After"), "reference": _("Reference")}


def checkVolumes(before, after, reference=None) -> None:
    """Raise InputError, with what to do, where these cannot be compared."""
    if before is None or after is None:
        raise InputError(_("Choose the volumes before and after."))
    chosen = [node for node in (before, after, reference) if node is not None]
    if len({node.GetID() for node in chosen}) < len(chosen):
        raise InputError(_("A volume is chosen twice: choose different ones."))
    for node in chosen:
        scene.checkInput(node)


class ComparisonJob(BackgroundJob):
    """Runs ``compare`` on ``volumes`` (before, after, reference); ``table`` is its node once done, and
    ``comparison`` all that was measured, with every digit.

    Raises InputError where they cannot be compared.
    """

    def __init__(self, before, after, reference, process: Process, clock: Clock) -> None:
        checkVolumes(before, after, reference)
        super().__init__(JobFolder(slicer.app.temporaryPath), process, clock)
        named = {"before": before, "after": after, "reference": reference}
        self.volumes = {name: node for name, node in named.items() if node is not None}
        self.inputVolume = before
        self.comparison: dict[str, Any] = {}
        self.table: Any = None

    def start(self) -> None:
        registry.add(self)
        super().start()

    def arguments(self) -> list[str]:
        files = {name: str(self.folder.path / f"{name}.nrrd") for name in self.volumes}
        more = ["--reference", files["reference"]] if "reference" in files else []
        return ["-m", "CTHarmonizeLib", "compare", files["before"], files["after"], *more, "--json"]

    def prepare(self) -> Iterator[None]:
        for name, node in self.volumes.items():
            yield from scene.exportVolume(node, self.folder.path / f"{name}.nrrd", {})

    def result(self) -> dict[str, Any] | None:
        try:
            result = json.loads(self.output.decode("utf-8"))
        except ValueError:
            return None
        return result if isinstance(result, dict) else None

    def collect(self, result: dict[str, Any]) -> Iterator[None]:
        for node in self.volumes.values():
            if slicer.mrmlScene.GetNodeByID(node.GetID() or "") is not node:
                raise InputError(_("A volume was removed while it was measured: choose others."))
        self.comparison = result
        self.table = _knownTable(self.volumes) or _newTable(self.volumes)
        _fillTable(self.table, list(self.volumes), result["rows"])
        charts = _plots(self.table, result["curves"])
        _show(self.table, charts)
        yield from ()

    def _end(self, state: str) -> None:
        registry.discard(self)
        super()._end(state)


def _role(name: str) -> str:
    return f"ctharmonize{name.title()}"


def _knownTable(volumes: dict[str, Any]):
    """The table that these volumes have; None where they have none."""
    for node in slicer.util.getNodesByClass("vtkMRMLTableNode"):
        if node.GetNodeReference(_role("before")) is not None and all(
            node.GetNodeReference(_role(name)) is volumes.get(name) for name in titles()
        ):
            return node
    return None


def _newTable(volumes: dict[str, Any]):
    """An empty table beside the volume before."""
    name = _("{after} against {before}").format(after=volumes["after"].GetName(), before=volumes["before"].GetName())
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", slicer.mrmlScene.GenerateUniqueName(name))
    for key, volume in volumes.items():
        node.SetNodeReferenceID(_role(key), volume.GetID())
    scene.placeBeside([node], volumes["before"])
    return node


def _fillTable(node, names: list[str], rows: list[dict[str, Any]]) -> None:
    """A line for each measure, as text: with the digits worth showing, and a dash for what could not be measured."""
    with slicer.util.NodeModify(node):
        node.RemoveAllColumns()
        columns = [(_("Measure"), [row["measure"] for row in rows]), (_("Unit"), [row["unit"] for row in rows])]
        columns += [(titles()[name], [_cell(row[name], row["digits"]) for row in rows]) for name in names]
        for title, cells in columns:
            column = node.AddColumn()
            column.SetName(title)
            node.SetColumnTitle(title, title)
            column.SetNumberOfValues(len(cells))
            for place, cell in enumerate(cells):
                column.SetValue(place, cell)
        node.SetUseColumnTitleAsColumnHeader(True)
        node.SetLocked(True)


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _plots(table, curves: list[dict[str, Any]]) -> list[Any]:
    """A chart for each of ``curves``, in place of those that ``table`` had."""
    import numpy as np

    old = [table.GetNthNodeReference(_PLOT_ROLE, n) for n in range(table.GetNumberOfNodeReferences(_PLOT_ROLE))]
    for node in old:
        slicer.mrmlScene.RemoveNode(node)
    table.RemoveNodeReferenceIDs(_PLOT_ROLE)
    charts = []
    for curve in curves:
        names, nodes = list(curve["y"]), {}
        chart = slicer.util.plot(
            np.column_stack([curve["x"], *curve["y"].values()]),
            xColumnIndex=0,
            columnNames=[curve["x_title"], *(titles()[name] for name in names)],
            title=f"{table.GetName()}: {curve['title']}",
            show=False,
            nodes=nodes,
        )
        chart.SetTitle(curve["title"])
        chart.SetXAxisTitle(curve["x_title"])
        chart.SetYAxisTitle(curve["y_title"])
        for name, series in zip(names, nodes["series"], strict=True):
            series.SetName(titles()[name])  # the legend's
            series.SetMarkerStyle(series.MarkerStyleNone)
            series.SetLineWidth(2)
            series.SetColor(*_COLORS[name])
        for node in (chart, nodes["table"], *nodes["series"]):
            table.AddNodeReferenceID(_PLOT_ROLE, node.GetID())
        charts.append(chart)
    return charts


def _show(table, charts: list[Any]) -> None:
    """Table and first chart in a layout that has both; the plot view's menu has the other chart."""
    manager = slicer.app.layoutManager()
    if manager is None:  # no main window
        return
    logic = slicer.app.applicationLogic()
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotTableView)
    selection = logic.GetSelectionNode()
    selection.SetActiveTableID(table.GetID())
    logic.PropagateTableSelection()
    if charts:
        selection.SetActivePlotChartID(charts[0].GetID())
        logic.PropagatePlotChartSelection()
