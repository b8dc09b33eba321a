"""What a simulated scan scans: a CT volume or a procedural chest, and its place in the patient."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from CTHarmonizeLib.ct.dicom import DicomFacts
from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.volume import Volume, check_ct
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.simulation import phantom
from CTHarmonizeTraining.simulation.projector import Grid

PHANTOM_GRID = Grid(512, 512, 0.7)


def check(name: str, value: float, fine: bool, allowed: str) -> None:
    """Raise InputError, with what is ``allowed``, where the value of the option ``name`` is not ``fine``."""
    if not fine:
        raise InputError(f"A {name} of {value:g} is out of range: give {allowed}.")


@dataclass(frozen=True)
class Subject:
    """What is scanned: ``slice_of`` an index gives (n, n) float32 HU, pixels of ``pixel`` mm around the isocentre.

    ``grid``: the anatomy's own, in the scanner's mm; ``origin`` (LPS mm of the own grid's first pixel), ``spacing``
    and ``direction``: its place in the patient; ``facts``: what a CT's tags said. Of a phantom ``truth`` says what it
    holds, with places in the patient's mm (LPS), and ``lung_of`` an index where its lungs are, (n, n) bool.
    """

    name: str
    count: int
    slice_of: Callable[[int], np.ndarray]
    side: int
    pixel: float
    grid: Grid
    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    direction: tuple[float, ...]
    warnings: tuple[str, ...] = ()
    facts: DicomFacts | None = None
    truth: dict[str, Any] | None = None
    lung_of: Callable[[int], np.ndarray] | None = None

    def grid_of(self, pixel: float | None, size: int | None) -> Grid:
        """The own grid with another pixel or size, around the same middle; the field of view stays without a size."""
        own = self.grid
        pixel = own.pixel if pixel is None else pixel
        check("pixel spacing", pixel, 0.1 <= pixel <= 5.0, "0.1 to 5 mm")
        rows, columns = (round(count * own.pixel / pixel) for count in (own.rows, own.columns))
        rows, columns = (rows, columns) if size is None else (size, size)
        check("size", min(rows, columns), 16 <= min(rows, columns) and max(rows, columns) <= 4096, "16 to 4096 pixels")
        return Grid(rows, columns, pixel, own.centre)

    def mean_slice(self, index: int, count: int) -> np.ndarray:
        """Mean (n, n) of ``count`` slices from ``index`` on, HU float32; padding is air where there are several."""
        if count == 1:
            return self.slice_of(index)
        slices = [np.maximum(self.slice_of(index + k), -1000.0) for k in range(count)]
        return np.mean(slices, axis=0, dtype=np.float32)

    def slices_in(self, thickness: float | None) -> int:
        """How many slices make one of ``thickness`` mm (1 for None). Raises InputError where they do not."""
        spacing = self.spacing[2]
        if thickness is None:
            return 1
        count = round(thickness / spacing) if np.isfinite(thickness) else 0
        if count < 1 or abs(count * spacing - thickness) > 0.01 * spacing:
            raise InputError(
                f"A slice thickness of {thickness:g} mm is no whole multiple of the slice spacing of {spacing:g} mm."
            )
        return count

    def own_part(self, hu: np.ndarray) -> np.ndarray:
        """The part of a CT volume's padded slice ``hu`` (n, n) that was there: (rows, columns)."""
        row, column = ((self.side - size) // 2 for size in (self.grid.rows, self.grid.columns))
        return hu[row : row + self.grid.rows, column : column + self.grid.columns]

    def place(self, hu: np.ndarray, grid: Grid, first: int, count: int = 1) -> Volume:
        """Images ``hu`` (slices, rows, columns) on ``grid``, each of ``count`` slices from ``first`` on, where the
        input lies."""
        own, scale = self.grid, grid.pixel / self.grid.pixel
        column = (own.columns - 1 - scale * (grid.columns - 1)) / 2
        row = (own.rows - 1 - scale * (grid.rows - 1)) / 2
        start = np.array([column, row, first + (count - 1) / 2])
        origin = np.array(self.origin) + np.reshape(self.direction, (3, 3)) @ (start * self.spacing)
        spacing = (scale * self.spacing[0], scale * self.spacing[1], count * self.spacing[2])
        return Volume(hu, spacing, tuple(map(float, origin)), self.direction)

    def reach(self, grid: Grid) -> float:
        """Diameter (mm) of a circle around the isocentre that holds the slices' inscribed circle and all of ``grid``.

        Where there are no detectors, a corner of the grid would repeat what the last one saw.
        """
        x, y = (float(axis.abs().max()) for axis in grid.axes())
        return max(self.side * self.pixel, 2 * float(np.hypot(x, y)))

    def indices(self, text: str) -> range:
        """Slices of a half-open range ``a:b``. Raises InputError where they are not slices of this subject."""
        try:
            first, last = (int(part) if part else None for part in text.split(":"))
        except ValueError:
            raise InputError(f"The slices '{text}' are not of the form a:b (b is not included).") from None
        first, last = first or 0, self.count if last is None else last
        if not 0 <= first < last <= self.count:
            raise InputError(f"The slices {text} do not lie inside the input's 0:{self.count}.")
        return range(first, last)


def phantom_seed(source: str) -> int | None:
    """Seed of the procedural chest that ``source`` names, ``phantom:7`` (in older stores ``phantom 7``); None for
    another source."""
    found = re.fullmatch(r"phantom[: ]([0-9]+)", source)
    return int(found[1]) if found else None


def read_subject(text: str, thickness: float) -> Subject:
    """The phantom of ``phantom:SEED``, in slices of ``thickness`` mm, or the CT volume at a path."""
    return _phantom(text, thickness) if text.startswith("phantom:") else _ct(text)


def _phantom(text: str, thickness: float) -> Subject:
    seed = phantom_seed(text)
    if seed is None:
        raise InputError(f"'{text}' is no phantom: give phantom: and a whole number, such as phantom:7.")
    chest, grid = phantom.ChestPhantom(seed), PHANTOM_GRID
    truth = chest.truth()
    for nodule in truth["nodules"]:
        nodule["centre"][2] *= -1.0
    return Subject(
        name=text,
        count=int(phantom.HEIGHT / thickness),
        slice_of=lambda index: chest.slice(index * thickness, thickness),
        side=len(chest.axis),
        pixel=chest.pixel,
        grid=grid,
        origin=(-grid.pixel * (grid.columns - 1) / 2, -grid.pixel * (grid.rows - 1) / 2, 0.0),
        spacing=(grid.pixel, grid.pixel, thickness),
        direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0),  # its slices run from the head down
        truth=truth,
        lung_of=lambda index: chest.lung(index * thickness),
    )


def _ct(path: str) -> Subject:
    volume = read_volume(path)
    check_ct(volume)
    count, *shape = volume.shape
    side, pixel = max(shape), volume.pixel_spacing
    before = [(side - n) // 2 for n in shape]
    margins = [(first, side - n - first) for first, n in zip(before, shape, strict=True)]
    # An odd margin leaves the slice half a pixel beside the isocentre.
    y, x = ((first + (n - side) / 2) * pixel for first, n in zip(before, shape, strict=True))
    warnings = volume.warnings
    if shape[0] != shape[1]:
        warnings += (f"The slices of {shape[1]} x {shape[0]} pixels were padded with air to {side} x {side}.",)
    return Subject(
        name=Path(path).name,
        count=count,
        slice_of=lambda index: np.pad(volume.hu[index].astype(np.float32), margins, constant_values=-1000.0),
        side=side,
        pixel=pixel,
        grid=Grid(*shape, pixel, (x, y)),
        origin=volume.origin,
        spacing=volume.spacing,
        direction=volume.direction,
        warnings=warnings,
        facts=volume.facts,
    )
