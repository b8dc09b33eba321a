"""What is scanned: slabs of procedural chests whose emphysema and nodules are known, at several acquisitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Scan(NamedTuple):
    """An acquisition of a case: ``kernel`` by name, ``dose`` in percent."""

    kernel: str
    dose: float

    def __str__(self) -> str:
        return f"{self.kernel} {self.dose:g} %"


@dataclass(frozen=True)
class KnownNodule:
    """A nodule of a case: ``number`` from 1 in :attr:`Case.labels`, ``centre`` (slice, row, column) as fractions of
    voxels, ``diameter`` (mm) of the sphere of its volume, ``volume`` (mm^3), ``hu``, and whether it is ``solid``."""

    number: int
    centre: tuple[float, float, float]
    diameter: float
    volume: float
    hu: float
    solid: bool


@dataclass(frozen=True)
class Case:
    """One anatomy. Volumes are (slices, rows, columns), all on one grid of ``spacing`` (columns, rows, slices) mm.

    ``scans``: int16 HU, the noise of each its own; ``clean``: by kernel, float32 HU, without noise; ``truth``: the
    anatomy itself, averaged over each voxel, float32 HU; ``lung``: bool, both lungs with all that they hold, without
    trachea and main bronchi; ``labels``: int16, the number of the nodule that fills most of a voxel, 0 elsewhere.
    """

    name: str
    spacing: tuple[float, float, float]
    scans: Mapping[Scan, np.ndarray]
    clean: Mapping[str, np.ndarray]
    truth: np.ndarray
    lung: np.ndarray
    labels: np.ndarray
    emphysema_percent: float
    nodules: tuple[KnownNodule, ...] = field(default=())
