"""What is known of the input's acquisition: tags at once, measurements from a background process."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import slicer
from slicer.i18n import tr as _

from CTHarmonizeGui import registry, scene
from CTHarmonizeGui.folder import JobFolder
from CTHarmonizeGui.job import BackgroundJob
from CTHarmonizeGui.process import Clock, Process

_TAGS = {
    "Manufacturer": "0008,0070",
    "ManufacturerModelName": "0008,1090",
    "ConvolutionKernel": "0018,1210",
    "KVP": "0018,0060",
    "Exposure": "0018,1152",
    "ExposureInuAs": "0018,1153",
    "XRayTubeCurrent": "0018,1151",
    "ExposureTime": "0018,1150",
    "SliceThickness": "0018,0050",
    "SeriesDescription": "0008,103e",
}


def acquisitionTags(node) -> dict[str, str]:
    """DICOM keyword: value, of the volume's first DICOM file, of its attributes and of the NRRD file it is from."""
    tags: dict[str, str] = {}
    instances = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if instances and database is not None:
        for keyword, tag in _TAGS.items():
            value = database.instanceValue(instances[0], tag)
            if value:
                tags[keyword] = value
    for name in node.GetAttributeNames() or ():
        if not name.startswith(("DICOM.", "CTHarmonize.")) and name.isidentifier():
            tags.setdefault(name, node.GetAttribute(name) or "")
    storage = node.GetStorageNode()
    path = storage.GetFullNameFromFileName() if storage else ""
    if path and not node.GetModifiedSinceRead() and os.path.isfile(path):
        tags = {**dict(_headerPairs(path, os.stat(path).st_mtime_ns)), **tags}
    return tags


@lru_cache(maxsize=32)
def _headerPairs(path: str, modified: int) -> tuple[tuple[str, str], ...]:
    """Key-value pairs of an NRRD file's header, which Slicer does not keep for scalar volumes."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return ()
    if not head.startswith(b"NRRD"):
        return ()
    lines = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0].decode("utf-8", "replace").splitlines()
    return tuple(tuple(line.split(":=", 1)) for line in lines if ":=" in line and not line.startswith("#"))


def isFromDicom(node) -> bool:
    return bool(node.GetAttribute("DICOM.instanceUIDs"))


class DetectionJob(BackgroundJob):
    """Runs ``describe`` on ``inputVolume``; ``description`` is its JSON once done."""

    def __init__(self, inputVolume, process: Process, clock: Clock) -> None:
        scene.checkInput(inputVolume)
        super().__init__(JobFolder(slicer.app.temporaryPath), process, clock)
        self.inputVolume = inputVolume
        self.description: dict[str, Any] = {}

    def start(self) -> None:
        registry.add(self)
        super().start()

    def arguments(self) -> list[str]:
        return ["-m", "CTHarmonizeLib", "describe", str(self.folder.path / "input.nrrd"), "--json"]

    def prepare(self) -> Iterator[None]:
        yield from scene.exportVolume(
            self.inputVolume, self.folder.path / "input.nrrd", acquisitionTags(self.inputVolume)
        )

    def result(self) -> dict[str, Any] | None:
        try:
            result = json.loads(self.output.decode("utf-8"))
        except ValueError:
            return None
        return result if isinstance(result, dict) else None

    def collect(self, result: dict[str, Any]) -> Iterator[None]:
        self.description = result
        yield from ()

    def _end(self, state: str) -> None:
        registry.discard(self)
        super()._end(state)


def describeTags(tags: dict[str, str], fromDicom: bool) -> str:
    """``Siemens B40f, 120 kV, 85 mAs (DICOM)``; empty where the tags say nothing."""
    from CTHarmonizeLib.ct.dicom import facts_from_header

    facts = facts_from_header(tags)
    if facts is None:
        return ""
    maker = facts.manufacturer.split()[0].title() if facts.manufacturer else ""
    maker = maker.upper() if len(maker) <= 2 else maker  # GE
    parts = [" ".join(part for part in (maker, facts.kernel.replace("\\", " ")) if part)]
    if facts.kvp:
        parts.append(_("{value:g} kV").format(value=facts.kvp))
    if facts.exposure_mas:
        parts.append(_("{value:.3g} mAs").format(value=facts.exposure_mas))
    text = ", ".join(part for part in parts if part)
    return f"{text} ({_('DICOM') if fromDicom else _('header')})" if text else ""


def describeGrid(node) -> str:
    """``512 × 512 × 102, 0.70 × 0.70 × 1.5 mm``"""
    size = node.GetImageData().GetDimensions()
    spacing = node.GetSpacing()
    return " × ".join(str(n) for n in size) + ", " + " × ".join(f"{mm:.3g}" for mm in spacing) + " mm"


def describeAcquisition(description: dict[str, Any], fromDicom: bool) -> list[str]:
    """``sharpness f50 4.1 lp/cm (DICOM)``, ``noise 12 HU (measured)``."""
    acquisition, sources = description.get("acquisition") or {}, description.get("sources") or {}
    words = {
        "dicom": _("DICOM"),
        "header": _("DICOM") if fromDicom else _("header"),
        "measured": _("measured"),
        "given": _("given"),
        "assumed": _("assumed"),
    }

    def origin(field: str) -> str:
        return f" ({words.get(sources[field], sources[field])})" if sources.get(field) else ""

    lines = []
    if acquisition.get("f50"):
        lines.append(_("sharpness f50 {value:.1f} lp/cm").format(value=acquisition["f50"]) + origin("f50"))
    if acquisition.get("noise"):
        lines.append(_("noise {value:.0f} HU").format(value=acquisition["noise"]) + origin("noise"))
    return lines
