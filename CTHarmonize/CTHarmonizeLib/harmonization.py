"""From a request to results: the one road that panel, console, command line and worker all take."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from CTHarmonizeLib import report
from CTHarmonizeLib.ct.io import read_volume, write_nrrd
from CTHarmonizeLib.ct.volume import Volume, check_ct
from CTHarmonizeLib.errors import Cancelled, CannotRunError, InputError
from CTHarmonizeLib.request import Request, choose, plan

Progress = Callable[[float, str], None]

READING, DESCRIBING, LOADING, HARMONIZING, WRITING = (
    "Reading the volume",
    "Describing the source",
    "Loading the method",
    "Harmonizing",
    "Writing the results",
)
FILES = {
    "harmonized": "harmonized.nrrd",
    "mean": "mean.nrrd",
    "standardDeviation": "standard_deviation.nrrd",
    "augmentationSpread": "augmentation_spread.nrrd",
    "report": "result.json",
}
"""Names of the result files, by what the worker's ``result`` event calls them."""

_STARTS = {READING: 0.0, DESCRIBING: 0.02, LOADING: 0.04, HARMONIZING: 0.05, WRITING: 0.99}


@dataclass(frozen=True)
class Result:
    """``harmonized`` (sample 0) and ``mean``: int16 HU; ``report``: plain data. Float32 HU: ``standard_deviation`` over
    the samples, None of a method without samples, and ``augmentation_spread``, its spread over turns and flips where
    that was asked for, which is no uncertainty."""

    harmonized: Volume
    mean: Volume
    standard_deviation: Volume | None
    report: dict
    augmentation_spread: Volume | None = None

    def save(self, folder: str | os.PathLike, compress: bool = False) -> dict[str, Path]:
        """Write the volumes and ``result.json`` into ``folder``; the paths, by the keys of FILES.

        All are written aside first and then renamed, so older results are replaced only by whole new ones, and what
        there is no new one of is removed: it would be taken for this run's. Raises
        CannotRunError where the disk is full or the folder cannot be written.
        """
        folder = check_output_folder(folder)
        volumes = {
            "harmonized": (self.harmonized, "int16"),
            "mean": (self.mean, "int16"),
            "standardDeviation": (self.standard_deviation, "float32"),
            "augmentationSpread": (self.augmentation_spread, "float32"),
        }
        written = {key: volume for key, volume in volumes.items() if volume[0] is not None}
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".ctharmonize-", dir=folder) as aside:
                aside = Path(aside)
                for key, (volume, pixel) in written.items():
                    write_nrrd(volume, aside / FILES[key], pixel, compress)
                (aside / FILES["report"]).write_text(report.as_json(self.report, indent=2), encoding="utf-8")
                for key in (*written, "report"):
                    os.replace(aside / FILES[key], folder / FILES[key])
                for key in volumes.keys() - written.keys():
                    (folder / FILES[key]).unlink(missing_ok=True)
        except BaseException as error:
            if made:  # the outermost folder that was not there before
                shutil.rmtree(made[-1], ignore_errors=True)
            if isinstance(error, OSError):
                raise CannotRunError(f"The results cannot be written to '{folder}': {error.strerror}.") from error
            raise
        return {key: folder / FILES[key] for key in (*written, "report")}


def check_output_folder(folder: str | os.PathLike) -> Path:
    """``folder`` as a path. Raises InputError or CannotRunError where no results can be written to it."""
    folder = Path(folder).expanduser().absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"The results cannot go to '{folder}': '{there}' is a file.")
    if not os.access(there, os.W_OK):
        raise CannotRunError(f"The results cannot be written to '{folder}': no permission.")
    return folder


def check_input_kept(source: str | os.PathLike, folder: Path) -> None:
    """Raise InputError where results in ``folder`` would replace the file ``source``."""
    path = Path(source).expanduser().absolute()
    if path.name in FILES.values() and path.exists() and path.parent.resolve() == folder.resolve():
        raise InputError(f"The results would replace the input '{path}': give another folder for them.")


def harmonize(
    volume: Volume | str | os.PathLike,
    request: Request,
    progress: Progress = lambda fraction, stage: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Result:
    """Harmonize ``volume`` (or the file or DICOM folder at a path) as ``request`` says.

    ``progress`` is told the fraction of the whole run and its stage; ``cancelled`` is asked often. Raises
    InputError, CannotRunError or Cancelled. Nothing is written.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def enter(stage: str, last: str | None) -> None:
        nonlocal clock
        if last is not None:
            seconds[last], clock = round(time.perf_counter() - clock, 3), time.perf_counter()
        if cancelled():
            raise Cancelled
        progress(_STARTS[stage], stage)

    choice = choose(request)
    enter(READING, None)
    path = None if isinstance(volume, Volume) else Path(volume)
    if path is not None:
        volume = read_volume(path)
    check_ct(volume)
    enter(DESCRIBING, "read")
    settled = plan(request, choice, volume)
    enter(LOADING, "describe")

    from CTHarmonizeLib import device, engine

    device.limit_threads(request.threads)
    place = device.choose_device(request.device)
    precision = device.choose_precision(place, request.precision)
    method = choice.method(choice.model, place, precision)
    enter(HARMONIZING, "load")
    settings = engine.Settings(
        samples=choice.samples,
        temperature=choice.temperature,
        seed=int(request.seed),
        coherence=request.coherence,
        deviation_factor=1.0 if choice.model is None else float(choice.model.card["deviation_factor"]),
        roi=request.roi,
        slab=request.batch and int(request.batch),
        tile=request.tile and int(request.tile),
        augment=request.augment,
    )
    span = _STARTS[WRITING] - _STARTS[HARMONIZING]
    outcome = engine.run(
        volume,
        method,
        settled.source,
        settled.target,
        settings,
        lambda fraction: progress(_STARTS[HARMONIZING] + span * fraction, HARMONIZING),
        cancelled,
    )
    enter(WRITING, "harmonize")
    region = volume if request.roi is None else volume.crop(request.roi)
    warnings = settled.warnings + report.outcome_warnings(outcome)
    harmonized, mean, deviation = (
        None if hu is None else replace(region.divided(choice.factor, hu), warnings=tuple(warnings))
        for hu in (outcome.harmonized, outcome.mean, outcome.deviation)
    )
    drawn = choice.method.stochastic
    return Result(
        harmonized,
        mean,
        deviation if drawn else None,
        report.build(
            path, volume, region, harmonized, request, choice, settled, outcome, place, precision, seconds, warnings
        ),
        None if drawn else deviation,
    )
