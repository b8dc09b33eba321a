"""One harmonization: a volume out of the scene, through the worker, three volumes back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from CTHarmonizeGui import registry, scene
from CTHarmonizeGui.folder import JobFolder
from CTHarmonizeGui.job import BackgroundJob
from CTHarmonizeGui.process import Clock, Process
from CTHarmonizeLib.errors import CannotRunError, InputError

OUTPUTS = ("harmonized", "mean", "standardDeviation")
"""The volumes that come back, as the worker names them; a method without samples has no standard deviation."""

SPREAD = "augmentationSpread"
"""What such a method gives in its place, where it is asked for."""


@dataclass(frozen=True)
class Request:
    """What is asked of the engine. None leaves a target field as the source's and any other to the model's default.

    Kernels are names or an f50 in lp/cm, doses percent, ``targetThickness`` and ``coherence`` mm.
    """

    targetKernel: str | float | None
    targetDose: float | None
    targetThickness: float | None = None
    method: str = "ctflow"
    model: str | None = None
    samples: int | None = 16
    temperature: float | None = None
    seed: int = 0
    device: str = "auto"
    sourceKernel: str | float | None = None
    sourceDose: float | None = None
    coherence: float = 0.0
    augment: bool = False

    def targetWords(self) -> str:
        """``medium, 100 %``"""
        words = []
        if self.targetKernel is not None:
            named = isinstance(self.targetKernel, str) and not _isNumber(self.targetKernel)
            words.append(self.targetKernel if named else _("f50 {f50:g} lp/cm").format(f50=float(self.targetKernel)))
        if self.targetDose is not None:
            words.append(f"{self.targetDose:g} %")
        if self.targetThickness is not None:
            words.append(f"{self.targetThickness:g} mm")
        return ", ".join(words)

    def job(self, inputFile: Path, outputFolder: Path) -> dict[str, Any]:
        """The worker's job file."""
        return {"input": str(inputFile), "outputFolder": str(outputFolder), "roi": None, **vars(self)}


class HarmonizationJob(BackgroundJob):
    """Harmonizes ``inputVolume``; ``harmonizedVolume``, ``meanVolume``, ``standardDeviationVolume`` once done.

    ``volumes`` maps the names in :data:`OUTPUTS` to nodes to fill; a missing one is made. ``header`` are
    acquisition tags to hand on (DICOM keywords). ``report`` is the engine's result.json.
    Raises InputError where ``inputVolume`` or the outputs cannot be.
    """

    def __init__(
        self,
        inputVolume,
        request: Request,
        volumes: Mapping[str, Any],
        header: Mapping[str, str],
        process: Process,
        clock: Clock,
    ) -> None:
        scene.checkInput(inputVolume)
        _checkOutputs(inputVolume, [volumes.get(key) for key in OUTPUTS])
        super().__init__(JobFolder(slicer.app.temporaryPath), process, clock)
        self.inputVolume = inputVolume
        self.request = request
        self.header = dict(header)
        self.volumes = {key: volumes.get(key) for key in OUTPUTS}
        self.report: dict[str, Any] = {}
        self.isSpread = False
        self.made: frozenset[str] = frozenset()

    @property
    def harmonizedVolume(self):
        return self.volumes["harmonized"] if self.state == "done" else None

    @property
    def meanVolume(self):
        return self.volumes["mean"] if self.state == "done" else None

    @property
    def standardDeviationVolume(self):
        """Over the samples; of a method without samples None, or its ``isSpread`` over turns and flips."""
        made = self.state == "done" and "standardDeviation" in self.made
        return self.volumes["standardDeviation"] if made else None

    def start(self) -> None:
        registry.add(self)
        super().start()

    def arguments(self) -> list[str]:
        return ["-m", "CTHarmonizeLib.worker", str(self.folder.path / "job.json")]

    def prepare(self) -> Iterator[None]:
        inputFile, outputFolder = self.folder.path / "input.nrrd", self.folder.path / "output"
        outputFolder.mkdir(mode=0o700)
        yield from scene.exportVolume(self.inputVolume, inputFile, self.header)
        job = json.dumps(self.request.job(inputFile, outputFolder))
        (self.folder.path / "job.json").write_text(job, encoding="utf-8")

    def collect(self, result: dict[str, Any]) -> Iterator[None]:
        named = dict(result.get("files", {}))
        self.isSpread = SPREAD in named
        if self.isSpread:
            named["standardDeviation"] = named[SPREAD]
        files = {key: Path(named[key]) for key in OUTPUTS if key in named}
        if not {"harmonized", "mean"} <= {*files} or not all(path.is_file() for path in files.values()):
            raise CannotRunError(_("The background process ended well but left no images: please report this."))
        self.report = result.get("report") or {}
        self.made = frozenset(files)
        images = {}
        for key, path in files.items():
            images[key] = scene.readVolume(path)
            yield
        made = []  # all in one turn: whoever cancels finds either the old volumes or the new ones
        for key in files:
            node, isNew = scene.outputVolume(self.volumes[key], self.outputName(key))
            self.volumes[key] = node
            scene.fillVolume(node, *images.pop(key), self.inputVolume)
            if isNew:
                made.append(node)
                scene.showDeviation(node) if key == "standardDeviation" else scene.showLike(node, self.inputVolume)
            scene.setAttributes(node, {"output": key, **self._summary()})
        scene.placeBeside(made, self.inputVolume)

    def outputName(self, key: str) -> str:
        """``<input> harmonized (medium, 100 %)``, with ``mean`` or ``standard deviation`` after it."""
        words = self.request.targetWords()
        name = _("{input} harmonized").format(input=self.inputVolume.GetName()) + (f" ({words})" if words else "")
        deviation = _("augmentation spread") if self.isSpread else _("standard deviation")
        suffix = {"harmonized": "", "mean": _("mean"), "standardDeviation": deviation}[key]
        return f"{name} {suffix}".strip()

    def _summary(self) -> dict[str, Any]:
        """What the volumes keep of result.json when the scene is saved."""
        model = self.report.get("model")
        model = model if isinstance(model, dict) else {"name": model}
        return {
            "method": self.request.method,
            "model": " ".join(str(model[key]) for key in ("name", "version") if model.get(key)),
            "modelChecksum": model.get("weights_sha256") or model.get("sha256") or model.get("checksum"),
            "seed": self.request.seed,
            "target": self.request.targetWords(),
            "report": json.dumps({**self.report, "input": self.inputVolume.GetName()}),
        }

    def _end(self, state: str) -> None:
        registry.discard(self)
        super()._end(state)


def _checkOutputs(inputVolume, volumes) -> None:
    chosen = [node for node in volumes if node is not None]
    if any(node is inputVolume for node in chosen):
        raise InputError(_("An output is the input volume itself: choose another, or 'Create new volume'."))
    if len({node.GetID() for node in chosen}) < len(chosen):
        raise InputError(_("Two outputs are the same volume: choose different ones, or 'Create new volume'."))
    for node in chosen:
        if not node.IsA("vtkMRMLScalarVolumeNode"):
            raise InputError(_("'{name}' cannot take the result: choose a scalar volume.").format(name=node.GetName()))


def _isNumber(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
