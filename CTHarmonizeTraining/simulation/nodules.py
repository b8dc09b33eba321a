"""Lung nodules of known volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from CTHarmonizeTraining.simulation.trees import Segments, draw_segments


@dataclass(frozen=True)
class Nodule:
    """A lung nodule. ``diameter`` (mm) is that of the sphere of its volume, spicules apart; ``hu`` its value;
    ``lobulation`` how far its radius wavers, as a share; ``spicules`` how many, thin needles that reach 1.4 to 1.9
    radii from the ``centre`` (mm)."""

    centre: tuple[float, float, float]
    diameter: float
    hu: float
    lobulation: float
    spicules: int
    seed: int

    @property
    def volume(self) -> float:
        """mm^3."""
        return np.pi / 6 * self.diameter**3

    def as_dict(self) -> dict[str, Any]:
        """Plain values: mm, mm^3 and HU."""
        return {
            "centre": list(self.centre),
            "diameter": self.diameter,
            "volume": self.volume,
            "hu": self.hu,
            "lobulation": self.lobulation,
            "spicules": self.spicules,
        }


def paint_nodule(tissue: np.ndarray, nodule: Nodule, axis: np.ndarray, z: float) -> None:
    """Paints a plane ``z`` (mm) of ``nodule`` into ``tissue`` (rows, columns) HU, whose pixels lie at ``axis`` mm."""
    pixel = float(axis[1] - axis[0])
    dz = z - nodule.centre[2]
    radius = nodule.diameter / 2
    if abs(dz) > 2 * radius + 2:
        return
    columns = slice(*np.searchsorted(axis, nodule.centre[0] + np.array([-1, 1]) * (2 * radius + 2)))
    rows = slice(*np.searchsorted(axis, nodule.centre[1] + np.array([-1, 1]) * (2 * radius + 2)))
    dx, dy = axis[None, columns] - nodule.centre[0], axis[rows, None] - nodule.centre[1]
    patch = tissue[rows, columns]
    rng = np.random.default_rng(nodule.seed)
    distance = np.sqrt(dx**2 + dy**2 + dz**2)
    waves, phases = rng.normal(0, 3.0, (6, 3)), rng.uniform(0, 2 * np.pi, 6)

    def lobes(directions: np.ndarray) -> np.ndarray:
        return 1 + nodule.lobulation * np.sin(np.tensordot(directions, waves.T, 1) + phases).mean(-1) * 2

    unit = rng.normal(size=(4000, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scale = np.mean(lobes(unit) ** 3) ** (-1 / 3)
    here = np.stack(np.broadcast_arrays(dx, dy, dz), -1) / np.maximum(distance, 1e-6)[..., None]
    surface = radius * scale * lobes(here)
    spikes = unit[: nodule.spicules]
    if nodule.spicules:
        ends = spikes * radius * rng.uniform(1.4, 1.9, (nodule.spicules, 1))
        thin = Segments(np.zeros_like(ends), ends, np.full(len(ends), 0.9), np.full(len(ends), 0.2))
        cover = draw_segments(thin, dx[0], dy[:, 0], dz)
        patch += cover * (nodule.hu - 60.0 - patch)
    cover = np.clip(0.5 + (surface - distance) / pixel, 0, 1)
    patch += cover * (nodule.hu - patch)
