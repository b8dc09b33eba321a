"""A CT volume from a DICOM folder or file: choosing the series, checking its geometry, decoding its pixels."""

from __future__ import annotations

import math
import os
import warnings as python_warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from CTHarmonizeLib.ct.dicom import (
    DicomFacts,
    facts_from_dataset,
    functional_group,
    number_value,
    number_values,
    text_value,
    text_values,
)
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

GRID_TOLERANCE_MM = 0.1
"""Largest distance of a slice from the regular grid: positions are often written with one decimal."""

_NOT_SLICES = {"LOCALIZER": "a localizer (scout view)", "SCOUT": "a localizer (scout view)"}
_NOT_HU = {
    "MIP": "a maximum-intensity projection",
    "MAX_IP": "a maximum-intensity projection",
    "MINIP": "a minimum-intensity projection",
    "MIN_IP": "a minimum-intensity projection",
    "PERFUSION": "a perfusion map",
    "SCREEN SAVE": "a screen capture",
    "DOSE_INFO": "a dose report",
}
_HU_TYPES = {"", "HU", "HU_MOD", "US"}


@dataclass(frozen=True)
class _Frame:
    """One slice: where it lies, and how its stored values become HU."""

    file: Path
    index: int
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]  # between columns, between rows
    size: tuple[int, int]  # rows, columns
    slope: float
    intercept: float
    series: str
    instance: str
    label: str
    tilt: float | None

    @property
    def stack(self) -> tuple:
        """Frames of one volume agree in this."""
        return (self.series, self.size, tuple(np.round(self.spacing, 4)), tuple(np.round(self.orientation, 3)))


def read_series(path: Path) -> Volume:
    """Read the CT series of a DICOM folder (the one with the most slices, searched in subfolders too) or file.

    Raises InputError with the reason where there is no CT slice, or where its geometry is no regular grid.
    """
    files = [path] if path.is_file() else sorted(file for file in _walk(path) if file.is_file())
    frames: list[_Frame] = []
    refused: dict[str, int] = {}
    notes: list[str] = []
    facts: dict[str, DicomFacts] = {}
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # pydicom reports each slight breach of the standard
        for file in files:
            dataset = _header(file)
            if dataset is None:
                continue
            try:
                found = _frames(dataset, file)
            except InputError as error:
                refused[str(error)] = refused.get(str(error), 0) + 1
                continue
            frames.extend(found)
            facts.setdefault(found[0].series, facts_from_dataset(dataset))
        if not frames:
            raise InputError(_nothing_found(path, refused))
        chosen, others = _choose(frames)
        notes.extend(others)
        ordered, direction, step, geometry_notes = _grid(chosen)
        fact = facts[ordered[0].series]
        notes.extend(geometry_notes)
        if step is None:
            step, note = _single_slice_step(fact)
            notes.append(note)
        hu = _pixels(ordered)
    if "DERIVED" in fact.image_type:
        notes.append("The series is marked as derived: it was processed after the scanner's reconstruction.")
    if refused and path.is_dir():
        notes.append(f"Left out of the folder: {_counted(refused)}.")
    first = ordered[0]
    return Volume(
        hu,
        (first.spacing[0], first.spacing[1], step),
        tuple(float(value) for value in first.position),
        tuple(float(value) for value in direction.ravel()),
        fact,
        tuple(notes),
    )


def _walk(folder: Path) -> Iterable[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith(".") and name != "DICOMDIR")


def _header(file: Path) -> Dataset | None:
    """The file's data set without its pixels; None where it is not DICOM."""
    import pydicom

    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
    except Exception:  # noqa: BLE001  (old files lack the preamble; others are damaged or of another kind)
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        except Exception:  # noqa: BLE001
            return None
        if not text_value(dataset, "SOPClassUID") and not text_value(dataset, "Modality"):
            return None
    return dataset


def _frames(dataset: Dataset, file: Path) -> list[_Frame]:
    """The slices of one file. Raises InputError, in words that complete "..., not CT slices", where it holds none."""
    kind = dataset.get("SOPClassUID")
    name = getattr(kind, "name", "") or ""
    image_type = tuple(value.upper() for value in text_values(dataset, "ImageType"))
    if "Secondary Capture" in name:
        raise InputError("a secondary capture (a picture of a screen or report)")
    if text_value(dataset, "Modality") != "CT" and not name.startswith(("CT Image", "Enhanced CT", "Legacy Converted")):
        raise InputError(f"an object of another kind ({name or text_value(dataset, 'Modality') or 'unknown'})")
    for value, words in {**_NOT_SLICES, **_NOT_HU}.items():
        if value in image_type:
            raise InputError(words)
    if number_value(dataset, "SamplesPerPixel") not in (None, 1.0):
        raise InputError("a colour picture")
    rows, columns = number_value(dataset, "Rows"), number_value(dataset, "Columns")
    if not rows or not columns:
        raise InputError("a file without an image")
    count = int(number_value(dataset, "NumberOfFrames") or 1)
    enhanced = dataset.get("PerFrameFunctionalGroupsSequence") is not None
    if enhanced and image_type[:1] == ("DERIVED",) and len(image_type) > 3 and image_type[3] not in _ENHANCED_VALUES:
        raise InputError(f"a derived map ({image_type[3]})")
    if count > 1 and not enhanced:
        raise InputError("a multi-frame image that does not say where its frames lie")
    return [_frame(dataset, file, index, (int(rows), int(columns)), enhanced) for index in range(count)]


_ENHANCED_VALUES = {"NONE", "MULTIPLICATION", "RESAMPLED", "FILTERED", "ADDITION", "AVERAGE", "MEAN", "VOLUME", "MPR"}
"""Derivations (fourth value of an enhanced object's image type) whose pixels are still HU of slices."""


def _frame(dataset: Dataset, file: Path, index: int, size: tuple[int, int], enhanced: bool) -> _Frame:
    def part(sequence: str) -> Dataset | None:
        return functional_group(dataset, index, sequence) if enhanced else dataset

    place, plane = part("PlanePositionSequence"), part("PlaneOrientationSequence")
    measures, rescale = part("PixelMeasuresSequence"), part("PixelValueTransformationSequence")
    frame_type = part("CTImageFrameTypeSequence")
    position = number_values(place, "ImagePositionPatient") if place is not None else ()
    orientation = number_values(plane, "ImageOrientationPatient") if plane is not None else ()
    spacing = number_values(measures, "PixelSpacing") if measures is not None else ()
    if len(position) != 3 or len(orientation) != 6 or len(spacing) != 2 or min(spacing) <= 0:
        raise InputError("an image without position, orientation or pixel spacing")
    if enhanced and frame_type is not None:
        types = tuple(value.upper() for value in text_values(frame_type, "FrameType"))
        for value, words in {**_NOT_SLICES, **_NOT_HU}.items():
            if value in types:
                raise InputError(words)
    unit = text_value(rescale, "RescaleType").upper() if rescale is not None else ""
    if unit not in _HU_TYPES:
        raise InputError(f"a map in units of '{unit}'")
    slope = number_value(rescale, "RescaleSlope") if rescale is not None else None
    intercept = number_value(rescale, "RescaleIntercept") if rescale is not None else None
    if slope is None or intercept is None or slope == 0.0:
        raise InputError("an image that does not say how its values become HU (no rescale slope and intercept)")
    number = text_value(dataset, "SeriesNumber")
    return _Frame(
        file=file,
        index=index,
        position=np.array(position),
        orientation=np.array(orientation),
        spacing=(spacing[1], spacing[0]),
        size=size,
        slope=slope,
        intercept=intercept,
        series=text_value(dataset, "SeriesInstanceUID"),
        instance=f"{text_value(dataset, 'SOPInstanceUID') or file}#{index}",
        label=" ".join(filter(None, (f"series {number}" if number else "", _quoted(dataset)))) or "an unnamed series",
        tilt=number_value(dataset, "GantryDetectorTilt"),
    )


def _quoted(dataset: Dataset) -> str:
    words = " ".join(filter(None, (text_value(dataset, "SeriesDescription"), text_value(dataset, "ConvolutionKernel"))))
    return f"'{words}'" if words else ""


def _choose(frames: list[_Frame]) -> tuple[list[_Frame], list[str]]:
    """Frames of the stack with the most slices, and sentences about the others."""
    stacks: dict[tuple, dict[str, _Frame]] = {}
    for frame in frames:
        stacks.setdefault(frame.stack, {})[frame.instance] = frame  # a copy of the same image counts once
    ranked = sorted(stacks.values(), key=lambda stack: -len(stack))
    chosen = list(ranked[0].values())
    if len(ranked) == 1:
        return chosen, []
    others = ", ".join(f"{next(iter(stack.values())).label} ({_slices(len(stack))})" for stack in ranked[1:6])
    more = f" and {len(ranked) - 6} more" if len(ranked) > 6 else ""
    return chosen, [
        f"The folder holds {len(ranked)} CT series: the one with the most slices was taken, {chosen[0].label} "
        f"({_slices(len(chosen))}), not {others}{more}."
    ]


def _grid(frames: list[_Frame]) -> tuple[list[_Frame], np.ndarray, float | None, list[str]]:
    """Ordered frames, 3 x 3 direction, slice step (None for one slice), notes. Raises InputError off a regular grid."""
    across, down = frames[0].orientation[:3], frames[0].orientation[3:]
    if abs(np.linalg.norm(across) - 1) > 1e-3 or abs(np.linalg.norm(down) - 1) > 1e-3 or abs(across @ down) > 1e-3:
        raise InputError("The image orientation of the DICOM files is not two perpendicular unit vectors.")
    across = across / np.linalg.norm(across)
    down = down - (across @ down) * across  # the tags' decimals leave it slightly off
    down /= np.linalg.norm(down)
    normal = np.cross(across, down)
    direction = np.stack([across, down, normal], axis=1)
    ordered = sorted(frames, key=lambda frame: (float(frame.position @ normal), frame.file.name, frame.index))
    notes = []
    if len(ordered) == 1:
        if abs(normal[2]) < math.cos(math.radians(1.0)):
            angle = math.degrees(math.acos(min(1.0, abs(normal[2]))))
            notes.append(f"The slice is tilted by {angle:.1f} degrees from the axial plane.")
        return ordered, direction, None, notes
    along = np.array([float(frame.position @ normal) for frame in ordered])
    steps = np.diff(along)
    if steps.min() < 0.01:
        same = int(np.count_nonzero(steps < 0.01))
        raise InputError(
            f"The series has {same} slices at the same place as another (several phases or reconstructions in one "
            "series): separate them into series of their own first."
        )
    step = float(along[-1] - along[0]) / (len(ordered) - 1)
    offsets = np.array([frame.position for frame in ordered]) - ordered[0].position
    drift = offsets - np.outer(along - along[0], normal)
    uneven = np.abs(along - along[0] - step * np.arange(len(ordered))).max()
    if uneven > max(GRID_TOLERANCE_MM, 0.02 * step):
        raise InputError(
            f"The slices are unevenly spaced (steps from {steps.min():.2f} to {steps.max():.2f} mm"
            f"{_tilt_words(ordered[0])}): a slice is missing or the series mixes several scans; "
            "choose a series with even steps."
        )
    if np.linalg.norm(drift, axis=1).max() > GRID_TOLERANCE_MM:
        angle = math.degrees(math.atan2(np.linalg.norm(drift[-1]), along[-1] - along[0]))
        raise InputError(
            f"The gantry was tilted: the slices are sheared by {angle:.1f} degrees against their stacking direction, "
            "which a volume on a regular grid cannot represent; resample the scan without tilt first."
        )
    return ordered, direction, step, notes


def _tilt_words(frame: _Frame) -> str:
    return f", gantry tilt {abs(frame.tilt):.1f} degrees" if frame.tilt else ""


def _single_slice_step(facts: DicomFacts) -> tuple[float, str]:
    """Slice step of a one-slice volume, mm, and the sentence that says so."""
    if facts.slice_thickness:
        return facts.slice_thickness, (
            f"The series has one slice only: its thickness ({facts.slice_thickness:g} mm) serves as the slice spacing."
        )
    return 1.0, "The series has one slice only and does not state its thickness: 1 mm is assumed."


def _pixels(frames: list[_Frame]) -> np.ndarray:
    """HU of ``frames`` (slices, rows, columns): int16 where all are whole numbers that fit, else float32."""
    rows, columns = frames[0].size
    whole = all(frame.slope == round(frame.slope) and frame.intercept == round(frame.intercept) for frame in frames)
    hu = np.empty((len(frames), rows, columns), dtype=np.int32 if whole else np.float32)
    cached: tuple[Path, np.ndarray, bool] | None = None
    for position, frame in enumerate(frames):
        if cached is None or cached[0] != frame.file:
            cached = (frame.file, *_decoded(frame.file))
        _, stored, rescaled = cached
        if stored.shape[1:] != frame.size or frame.index >= len(stored):
            raise InputError(f"'{frame.file.name}' holds an image of another size than its tags state.")
        values = stored[frame.index]
        if rescaled:
            hu[position] = values
        elif whole:
            hu[position] = values.astype(np.int32) * int(frame.slope) + int(frame.intercept)
        else:
            hu[position] = values.astype(np.float64) * frame.slope + frame.intercept
    if whole and hu.min() >= -32768 and hu.max() <= 32767:
        return hu.astype(np.int16)
    return hu.astype(np.float32, copy=False)


def _decoded(file: Path) -> tuple[np.ndarray, bool]:
    """(frames, rows, columns) of a file, and whether they are rescaled to HU already."""
    import pydicom

    try:
        dataset = pydicom.dcmread(file, force=True)
    except Exception as error:  # noqa: BLE001
        raise InputError(f"'{file.name}' is damaged: {_one_line(error)}.") from error
    if "PixelData" not in dataset:
        raise InputError(f"'{file.name}' is incomplete: its pixels are missing or cut off.")
    try:
        stored = dataset.pixel_array
        return (stored[None] if stored.ndim == 2 else stored), False
    except Exception as error:  # noqa: BLE001  (damaged, or compressed in a way pydicom has no decoder for)
        import SimpleITK

        try:
            values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        except RuntimeError:
            raise InputError(f"The pixels of '{file.name}' cannot be decoded: {_one_line(error)}.") from error
        return (values[None] if values.ndim == 2 else values), True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _nothing_found(path: Path, refused: dict[str, int]) -> str:
    kind = "folder" if path.is_dir() else "file"
    if not refused:
        wanted = "a DICOM CT file, NRRD, NIfTI or MetaImage" if kind == "file" else "DICOM CT files"
        return f"The {kind} '{path.name}' holds nothing that can be read: give {wanted}."
    return f"The {kind} '{path.name}' holds no CT slices, only {_counted(refused)}."


def _counted(refused: dict[str, int]) -> str:
    return ", ".join(words if count == 1 else f"{words} ({count} files)" for words, count in refused.items())


def _slices(count: int) -> str:
    return "1 slice" if count == 1 else f"{count} slices"
