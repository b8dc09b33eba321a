"""Branching trees of lung vessels and airways, as tapered 3D segments, and how they are drawn into a slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segments:
    """M tapered capsules: ends ``start`` and ``stop`` (M, 3) mm (x, y, z), radii ``first`` and ``last`` (M,) mm."""

    start: np.ndarray
    stop: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def scaled(self, factor: float, added: float = 0.0) -> Segments:
        """The same with other radii: factor * radius + added."""
        return Segments(self.start, self.stop, factor * self.first + added, factor * self.last + added)

    def thicker_than(self, radius: float) -> Segments:
        """Only those that reach ``radius`` mm."""
        keep = np.maximum(self.first, self.last) >= radius
        return Segments(self.start[keep], self.stop[keep], self.first[keep], self.last[keep])

    def beside(self, direction: np.ndarray, distance: float) -> Segments:
        """Shifted along ``direction`` by ``distance`` times the radius, so that a bundle runs in parallel."""
        shift = direction / np.linalg.norm(direction) * distance
        start, stop = self.start + self.first[:, None] * shift, self.stop + self.last[:, None] * shift
        return Segments(start, stop, self.first, self.last)


def polyline(points: np.ndarray, radii: np.ndarray | float) -> Segments:
    """Tube along ``points`` (M + 1, 3) mm."""
    points = np.asarray(points, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(points))
    return Segments(points[:-1], points[1:], radii[:-1], radii[1:])


def grow_tree(
    root: np.ndarray, targets: np.ndarray, tip_radius: float, rng: np.random.Generator, tortuosity: float = 0.07
) -> Segments:
    """Tree from ``root`` (3,) mm that supplies all ``targets`` (N, 3) mm.

    A branch heads for the centroid of its targets, which are then split across their longest extent (Kitaoka
    et al., J. Appl. Physiol. 1999). Radii obey Murray's law: tip_radius * (targets supplied)^(1/3).
    """
    rows: list[tuple[np.ndarray, np.ndarray, float, float]] = []

    def join(start: np.ndarray, stop: np.ndarray, first: float, last: float) -> None:
        length = np.linalg.norm(stop - start)
        bend = 0.5 * (start + stop) + rng.normal(0.0, tortuosity * length, 3)
        rows.append((start, bend, first, 0.5 * (first + last)))
        rows.append((bend, stop, 0.5 * (first + last), last))

    stack = [(np.asarray(root, dtype=np.float64), targets, tip_radius * len(targets) ** (1 / 3))]
    while stack:
        start, points, before = stack.pop()
        radius = tip_radius * len(points) ** (1 / 3)
        if len(points) == 1:
            join(start, points[0], min(before, 1.3 * radius), radius)
            continue
        stop = start + rng.uniform(0.3, 0.5) * (points.mean(0) - start)
        join(start, stop, min(before, 1.25 * radius), radius)
        spread = points - points.mean(0)
        axis = np.linalg.eigh(spread.T @ spread)[1][:, -1]
        order = np.argsort(spread @ axis)
        cut = int(np.clip(round(rng.uniform(0.3, 0.7) * len(points)), 1, len(points) - 1))
        stack.append((stop, points[order[:cut]], radius))
        stack.append((stop, points[order[cut:]], radius))
    start, stop, first, last = (np.array(column) for column in zip(*rows, strict=True))
    return Segments(start, stop, first, last)


def draw_segments(segments: Segments, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """Share of every pixel (rows of ``y``, columns of ``x``, mm) in the plane ``z`` that the segments cover."""
    cover = np.zeros((len(y), len(x)), np.float32)
    pixel = float(x[1] - x[0])
    reach = np.maximum(segments.first, segments.last) + pixel
    low = np.minimum(segments.start, segments.stop) - reach[:, None]
    high = np.maximum(segments.start, segments.stop) + reach[:, None]
    for i in np.flatnonzero((low[:, 2] < z) & (high[:, 2] > z)):
        columns = slice(*np.searchsorted(x, (low[i, 0], high[i, 0])))
        rows = slice(*np.searchsorted(y, (low[i, 1], high[i, 1])))
        patch = cover[rows, columns]
        if not patch.size:
            continue
        along = segments.stop[i] - segments.start[i]
        dx, dy = x[None, columns] - segments.start[i, 0], y[rows, None] - segments.start[i, 1]
        dz = z - segments.start[i, 2]
        share = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / max(along @ along, 1e-9), 0.0, 1.0)
        distance = np.sqrt((dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2 + (dz - share * along[2]) ** 2)
        radius = segments.first[i] + share * (segments.last[i] - segments.first[i])
        np.maximum(patch, np.clip(0.5 + (radius - distance) / pixel, 0.0, 1.0), out=patch)
    return cover
