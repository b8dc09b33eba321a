"""A procedural chest: detail finer than any scan, known exactly, and coherent from slice to slice.

Everything is a signed distance (mm, negative inside) or a tree of capsules in 3D space, painted from the skin
inwards with edges one pixel wide. x runs to the patient's left, y to the back, z from the lungs' apices down; mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from CTHarmonizeTraining.simulation.nodules import Nodule, paint_nodule
from CTHarmonizeTraining.simulation.shapes import bar, ellipse, texture, tube_distance
from CTHarmonizeTraining.simulation.trees import draw_segments, grow_tree, polyline

HEIGHT = 270.0
"""Extent in z (mm) of a phantom."""

EMPHYSEMA_BELOW = -950.0
"""HU, as CT densitometry counts emphysema (LAA-950)."""


class ChestPhantom:
    """The chest of one ``seed``.

    ``pixel`` mm, ``size`` pixels a side; ``emphysema``: share of the parenchyma (the lung without airways, vessels,
    fissures and nodules) that lies below :data:`EMPHYSEMA_BELOW`, the same in every plane; ``nodules``: how many, or
    the nodules themselves. What is left out is drawn from the seed; :meth:`truth` says what it was.
    """

    def __init__(
        self,
        seed: int,
        pixel: float = 0.4,
        size: int = 1000,
        emphysema: float | None = None,
        nodules: int | Sequence[Nodule] | None = None,
    ) -> None:
        self.seed, self.pixel = seed, pixel
        self.axis = ((np.arange(size) - (size - 1) / 2) * pixel).astype(np.float32)
        rng = np.random.default_rng((seed, 0))
        u = rng.uniform
        self.fat, self.muscle = u(6, 20), u(11, 16)
        self.body = np.array([u(158, 184), u(104, 122)])
        self.cavity = self.body - self.fat - self.muscle - 9.0 - np.array([0.0, 3.0])
        self.middle = -7.0
        self.spine = self.middle + self.cavity[1] - 15.0
        self.contrast = u(0, 1) < 0.5
        self.blood = u(130, 320) if self.contrast else u(35, 48)
        self.organ = u(85, 115) if self.contrast else u(45, 62)
        self.lung_hu, self.gravity = u(-865, -815), u(15, 40)
        self.cortex, self.marrow = u(800, 1350), u(120, 260)
        self.rib_phase, self.rib_step = u(0, 24), u(22, 25)
        self.heart = np.array([u(14, 24), u(-34, -24), u(165, 180)])
        self.heart_axes = np.array([u(50, 60), u(36, 44), u(48, 58)])
        self.dome_top = np.array([u(195, 210), u(205, 222)])
        self.emphysema = float(rng.choice([0.0, 0.0, u(0.02, 0.3)])) if emphysema is None else emphysema
        self.waves = np.random.default_rng((seed, 1)).uniform(0, 2 * np.pi, 4)
        self._great_vessels(rng)
        self._lung_trees(rng)
        self.nodules = self._draw_nodules(rng, nodules)

    def slice(self, z: float, thickness: float = 1.0, sub_slices: int | None = None) -> np.ndarray:
        """HU (size, size) float32 of the slab of ``thickness`` mm around ``z`` (0 to :data:`HEIGHT`)."""
        count = sub_slices or max(3, int(np.ceil(thickness / 0.5)))
        planes = z + ((np.arange(count) + 0.5) / count - 0.5) * thickness
        return np.mean([self.plane(float(plane)) for plane in planes], axis=0, dtype=np.float32)

    def plane(self, z: float) -> np.ndarray:
        """HU (size, size) float32 of the infinitely thin plane ``z``."""
        x, y = self.axis[None, :], self.axis[:, None]
        image = np.full((len(self.axis), len(self.axis)), -1000.0, np.float32)
        body = ellipse(x, y, (0, 0), self.body, 2.4)
        fine, coarse = self._texture("soft", 0.8, z), self._texture("soft", 7.0, z)
        self._paint(image, body, 20.0 + 15.0 * fine)
        self._paint(image, body + 1.8, -105.0 + 4.0 * fine + 6.0 * coarse)
        strands = np.abs(self._texture("strands", 9.0, z))
        self._paint(image, np.maximum(body + 4.0, (strands - 0.02) * 9.0), -40.0)
        uneven = 5.0 * self._texture("muscle", 25.0, z)
        muscle = np.maximum(ellipse(x, y, (0, 0), self.body - self.fat, 2.3) + uneven, body + 4.0)
        marbling = self._texture("marbling", 4.0, z, stretch=3.0)
        self._paint(image, muscle, np.where(marbling > 1.35, -60.0, 52.0 + 6.0 * fine + 3.0 * coarse))
        cavity = self._cavity(x, y, z)
        self._layers_of_fat(image, cavity, muscle, z)
        back = self._back_muscle(x, y)
        self._paint(image, back, 55.0 + 5 * fine)
        self._wall_bones(image, cavity, x, y, z)
        self._paint(image, cavity, -95.0 + 5.0 * fine + 8.0 * coarse)
        self._mediastinum(image, x, y, z, fine, coarse)
        self._below_diaphragm(image, cavity, x, y, z, fine, coarse)
        self._paint(image, np.maximum(back, cavity), 55.0 + 5 * fine)  # outside the cavity it would hide the ribs
        self._spine(image, x, y, z)
        self._lungs(image, x, y, z)
        return image

    def lung(self, z: float) -> np.ndarray:
        """Where the plane ``z`` lies in the lungs, with all that they hold: (size, size) bool."""
        return self._lung(self.axis[None, :], self.axis[:, None], z) < 0.0

    def lung_distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance (mm) of ``points`` (count, 3; x, y, z in mm) from the lungs' surface, negative inside."""
        if not len(points):
            return np.zeros(0)
        return self._lung(*points.T)

    def truth(self) -> dict[str, Any]:
        """What the chest holds, as plain values: ``seed``, ``emphysema_percent`` (of the parenchyma, below -950 HU),
        ``lung_ml`` and ``nodules``, whose volume is that without spicules."""
        step = 3.0
        side = np.arange(-self.body.max(), self.body.max(), step, dtype=np.float32)
        planes = np.arange(step / 2, HEIGHT, step)
        inside = sum(int((self._lung(side[None, :], side[:, None], z) < 0.0).sum()) for z in planes)
        return {
            "seed": self.seed,
            "emphysema_percent": 100.0 * self.emphysema,
            "lung_ml": inside * step**3 / 1000.0,
            "nodules": [nodule.as_dict() for nodule in self.nodules],
        }

    # Places

    def _cavity(self, x: np.ndarray, y: np.ndarray, z: np.ndarray | float) -> np.ndarray:
        rise = np.clip(1.0 - np.asarray(z, np.float32) / (0.62 * HEIGHT), 0.0, 1.3) ** 2
        axes = (self.cavity[0] * (1 - 0.62 * rise), self.cavity[1] * (1 - 0.45 * rise))
        return ellipse(x, y, (0.0, self.middle + 12.0 * rise), axes, 2.2)

    def _dome(self, x: np.ndarray, y: np.ndarray, z: np.ndarray | float) -> np.ndarray:
        """Below the diaphragm (negative)."""
        result = None
        for side, top in zip((-1.0, 1.0), self.dome_top, strict=True):
            px, py = (x - side * 60.0) / 74.0, (y - self.middle + 15.0) / 88.0
            uneven = np.sin(x / 17.0 + self.waves[0]) * np.cos(y / 21.0 + self.waves[1]) + np.sin((y - x) / 31.0)
            surface = top + 42.0 * (px**2 + py**2) + 2.2 * uneven
            slope = 1.0 + (84.0 * px / 72.0) ** 2 + (84.0 * py / 88.0) ** 2
            one = (surface - z) / np.sqrt(slope)
            result = one if result is None else np.minimum(result, one)
        return result

    def _heart(self, x: np.ndarray, y: np.ndarray, z: np.ndarray | float, scale: float = 1.0) -> np.ndarray:
        turn = np.deg2rad(38.0)
        dx, dy, dz = x - self.heart[0], y - self.heart[1], z - self.heart[2]
        px, py = np.cos(turn) * dx - np.sin(turn) * dy, np.sin(turn) * dx + np.cos(turn) * dy
        axes = self.heart_axes * scale
        r = np.sqrt((px / axes[0]) ** 2 + (py / axes[1]) ** 2 + (dz / axes[2]) ** 2)
        return (r - 1.0) * axes.min()

    def _lung(self, x: np.ndarray, y: np.ndarray, z: np.ndarray | float) -> np.ndarray:
        """Both lungs (negative inside)."""
        width = 24.0 + 10.0 * np.exp(-(((z - 110.0) / 40.0) ** 2))
        side = np.sign(x)
        bulges = 4.0 * np.sin(y / 12.0 + z / 37.0 + self.waves[2] + 2.0 * side)
        bulges += 2.5 * np.sin(y / 6.5 - z / 23.0 + self.waves[3] + side)
        front = 7.0 / (1.0 + np.exp((y - self.middle + 0.45 * self.cavity[1]) / 6.0))
        centre = ellipse(x, y, (0.0, self.middle), (width, self.cavity[1] + 8.0), 2.0) + bulges + front
        vertebra = np.hypot(x, (y - self.spine) * 1.15) - 21.0
        back = np.maximum(np.abs(x) - 17.0, self.spine - y)
        middle = np.minimum(np.minimum(centre, self._heart(x, y, z) - 4.0), np.minimum(vertebra, back))
        for tube in (self.aorta, self.trunk):
            middle = np.minimum(middle, tube_distance(tube, x, y, z) - 2.0)
        return np.maximum(np.maximum(self._cavity(x, y, z) + 2.5, -middle), -self._dome(x, y, z) + 2.0)

    def _back_muscle(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Beside and behind the spine (negative inside)."""
        return np.maximum(np.hypot(x, y - self.spine - 10) - 38.0, self.spine + 4 - y)

    # What the seed draws

    def _great_vessels(self, rng: np.random.Generator) -> None:
        back = self.spine - 6.0
        arch = [(14, -38, 150), (8, -38, 118), (10, -28, 98), (20, -8, 88), (27, 12, 92), (27, back - 14, 112)]
        down = [(26, back - 6, 150), (22, back - 4, 200), (16, back - 6, 280)]
        wobble = rng.normal(0, 1.5, (len(arch) + len(down), 3))
        self.aorta = polyline(np.array(arch + down) + wobble, np.array([17, 16, 14.5, 14, 13.5, 13, 12, 11.5, 11]))
        self.trunk = polyline([(30, -34, 140), (24, -22, 122), (2, -6, 116), (-34, 2, 122)], [13, 13, 11, 9])
        self.trunk_left = polyline([(24, -22, 122), (36, 4, 114)], [11, 9])
        self.cava = polyline([(-20, -26, 40), (-22, -26, 100), (-22, -24, 160)], [8, 9, 9])
        self.cava_low = polyline([(-22, -14, 200), (-24, -6, 280)], [11, 12])
        self.trachea = polyline([(0, 8, -20), (0, 10, 60), (1, 12, 108)], [8.5, 8.5, 8.5])
        self.bronchi = [
            polyline([(1, 12, 106), (-16, 11, 119), (-36, 8, 130)], [7.5, 7, 6]),
            polyline([(1, 12, 106), (20, 12, 124), (38, 10, 134)], [7, 6.5, 5.5]),
        ]
        self.oesophagus = polyline([(6, 28, -20), (8, back - 24, 110), (12, back - 22, 280)], 6.0)

    def _lung_trees(self, rng: np.random.Generator) -> None:
        self.targets, self.arteries, self.airways, self.veins = [], [], [], []
        for side in (-1.0, 1.0):
            points = rng.uniform([5, -self.body[1], 2], [self.body[0], self.body[1], HEIGHT], (40000, 3))
            points[:, 0] *= side
            points = points[self._lung(*points.T) < -3.5]
            self.targets.append(points)
            hilum = np.array([side * 36.0, 8.0, 130.0])
            bundle = grow_tree(hilum, points[:2600], 0.36, rng)
            self.arteries.append(bundle.beside(np.array([side, -0.6, 0.2]), 1.9))
            self.airways.append(bundle.thicker_than(0.75))
            self.veins.append(grow_tree(hilum + [0, -8, 22], points[2600:4600], 0.33, rng))

    def _draw_nodules(self, rng: np.random.Generator, nodules: int | Sequence[Nodule] | None) -> list[Nodule]:
        if nodules is not None and not isinstance(nodules, int):
            return list(nodules)
        made = []
        for _ in range(int(rng.integers(0, 7)) if nodules is None else nodules):
            diameter = float(np.exp(rng.uniform(np.log(4), np.log(22))))
            points = self.targets[rng.integers(2)]
            points = points[self._lung(*points.T) < -(diameter / 2 + 3)]
            hu = float(rng.choice([rng.uniform(10, 90), rng.uniform(-680, -450)], p=[0.7, 0.3]))
            lobulation = float(rng.choice([0.0, rng.uniform(0.05, 0.2)]))
            spicules = int(rng.choice([0, rng.integers(8, 20)])) if hu > 0 and diameter > 7 else 0
            for _ in range(100):  # clear of the others and their spicules, where there is room
                centre = points[rng.integers(len(points))]
                if all(np.linalg.norm(centre - other.centre) > diameter + other.diameter for other in made):
                    break
            centre = tuple(float(v) for v in centre)
            made.append(Nodule(centre, diameter, hu, lobulation, spicules, int(rng.integers(2**31))))
        return made

    # Painting

    def _paint(self, image: np.ndarray, distance: np.ndarray, hu: np.ndarray | float) -> None:
        cover = np.clip(0.5 - distance / self.pixel, 0.0, 1.0)
        image += cover * (hu - image)

    def _texture(self, name: str, scale: float, z: float, stretch: float = 1.0) -> np.ndarray:
        return texture(self.seed, name, len(self.axis), scale / self.pixel, stretch, z / scale)

    def _layers_of_fat(self, image: np.ndarray, cavity: np.ndarray, muscle: np.ndarray, z: float) -> None:
        """Fat planes between the muscles of the chest wall."""
        wave, gaps = self._texture("planes", 24.0, z, stretch=2.0), self._texture("gaps", 15.0, z)
        for depth, sign in ((14.0, 1.0), (27.0, -1.0)):
            plane = np.abs(cavity - depth - sign * 5.0 * wave) - 0.9 * np.maximum(sign * gaps, -0.6)
            self._paint(image, np.maximum(plane, muscle + 2.0), -85.0)
        self._paint(image, cavity - 1.2, -70.0)

    def _bone(self, image: np.ndarray, distance: np.ndarray, z: float, cortex: float, marrow: float) -> None:
        near = np.flatnonzero((distance < self.pixel).any(1))
        if not len(near):
            return
        rows = slice(near[0], near[-1] + 1)
        shell = cortex * (1 + 0.08 * self._texture("soft", 0.8, z)[rows])
        self._paint(image[rows], distance[rows], shell)
        mesh, patch = self._texture("bone", 0.75, z)[rows], self._texture("bone", 3.0, z)[rows]
        inner = self.marrow * marrow + 70.0 * mesh * marrow + 40.0 * patch
        thick = 0.9 + 0.25 * self._texture("soft", 7.0, z)[rows]
        self._paint(image[rows], distance[rows] + thick, inner)

    def _wall_bones(self, image: np.ndarray, cavity: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> None:
        angle = np.arctan2(np.abs(x) / self.cavity[0], (y - self.middle) / self.cavity[1]) / np.pi
        level = z - 62.0 * angle**1.15 + self.rib_phase
        off = (level + self.rib_step / 2) % self.rib_step - self.rib_step / 2
        across = (off / 6.3) ** 2 + ((cavity - 4.6) / 3.4) ** 2
        rib = (np.sqrt(across) - 1.0) * 3.4
        beyond = np.maximum(np.abs(angle - 0.375) - 0.285, 0.0) * 380
        tapering = (np.sqrt(across + (beyond / 14.0) ** 2) - 1.0) * 3.4
        self._paint(image, np.maximum(rib, np.abs(angle - 0.8) * 380 - 0.13 * 380), 105.0)
        self._bone(image, tapering, z, self.cortex, 0.9)
        front = self.middle - self.cavity[1]
        if 45 < z < 215:
            rise = (12.0 + 0.45 * self.cavity[1]) * max(0.0, 1 - z / (0.62 * HEIGHT)) ** 2
            sternum = ellipse(x, y, (0.0, front + rise - 7.0), (24.0 if z < 95 else 17.0, 5.5), 3.0)
            self._bone(image, sternum, z, 0.7 * self.cortex, 0.7)
        if z < 170:
            edge = 0.06 * min(1.0, (170 - z) / 60)
            beyond = np.maximum(np.abs(angle - 0.33) - 0.02 - edge, 0.0) * 380
            blade = (np.hypot((cavity - 17.0 - 8 * (angle - 0.3)) / 2.4, beyond / 15.0) - 1.0) * 2.4
            self._bone(image, blade, z, 0.8 * self.cortex, 0.6)

    def _spine(self, image: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> None:
        s = self.spine
        level = (z % 27.0) / 27.0
        disc = np.clip((np.abs(level - 0.5) - 0.41) / 0.02, 0, 1)
        waist = 1.5 * np.cos(2 * np.pi * (level - 0.5))
        body = ellipse(x, y, (0, s), (17.0 - waist, 14.0 - waist), 2.4)
        if disc < 1:
            self._bone(image, body, z, 0.75 * self.cortex, 1.0)
        if disc > 0:
            self._paint(image, body - 1.0, disc * 95.0 + (1 - disc) * image)
        bars = [((-11, s + 10), (-9, s + 22), 4.2), ((11, s + 10), (9, s + 22), 4.2)]
        if 0.25 < level < 0.8:
            bars += [((-9, s + 24), (0, s + 33), 3.6), ((9, s + 24), (0, s + 33), 3.6)]
            bars += [((0, s + 33), (0, s + 40 + 12 * (level - 0.25)), 3.0)]
        if 0.3 < level < 0.65:
            bars += [((-10, s + 20), (-31, s + 25), 4.2), ((10, s + 20), (31, s + 25), 4.2)]
        arch = np.min([bar(x, y, *ends) for ends in bars], axis=0)
        self._bone(image, arch, z, 0.9 * self.cortex, 1.0)
        canal = np.hypot(x, (y - s - 21.0) * 1.1) - 8.0
        self._paint(image, canal, 8.0)
        self._paint(image, canal + 3.2, 38.0)

    def _mediastinum(
        self, image: np.ndarray, x: np.ndarray, y: np.ndarray, z: float, fine: np.ndarray, coarse: np.ndarray
    ) -> None:
        strands = np.abs(self._texture("strands", 9.0, z)) * 9 - 0.5
        self._paint(image, np.maximum(strands, self._cavity(x, y, z)), -20.0)
        nodes = self._texture("nodes", 8.0, z)
        self._paint(image, np.maximum((1.9 - nodes) * 6.0, np.hypot(x, y - 5) - 40.0), 35.0)
        wall = 45.0 + 5 * fine + (60.0 if self.contrast else 0.0)
        self._paint(image, self._heart(x, y, z, 1.0), wall)
        dx, dy, dz = self.heart
        for shift, axes, value in (
            ((18, 4, 8), (26, 18, 30), self.blood),
            ((-20, 2, -4), (20, 22, 30), 0.9 * self.blood),
            ((-2, -20, 4), (30, 13, 26), 0.95 * self.blood),
            ((0, 26, -26), (28, 13, 20), self.blood),
        ):
            r = np.sqrt(
                ((x - dx - shift[0]) / axes[0]) ** 2
                + ((y - dy - shift[1]) / axes[1]) ** 2
                + ((z - dz - shift[2]) / axes[2]) ** 2
            )
            chamber = np.maximum((r - 1.0) * min(axes), self._heart(x, y, z, 0.88))
            self._paint(image, chamber, value + 4 * fine + 3 * coarse)
        for tube in (self.cava_low, self.cava, self.trunk_left, self.trunk, self.aorta):
            distance = tube_distance(tube, x, y, z)
            self._paint(image, distance - 1.2, 45.0)
            self._paint(image, distance, self.blood + 4 * fine)
        gullet = tube_distance(self.oesophagus, x, y, z)
        self._paint(image, gullet, 38.0 + 5 * fine)
        self._paint(image, gullet + 4.4, -400.0)

    def _below_diaphragm(
        self,
        image: np.ndarray,
        cavity: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        z: float,
        fine: np.ndarray,
        coarse: np.ndarray,
    ) -> None:
        below = np.maximum(cavity, self._dome(x, y, z))
        if not (below < 0).any():
            return
        outside_heart = np.maximum(below, -self._heart(x, y, z) + 2)
        self._paint(image, outside_heart, 50.0)
        self._paint(image, outside_heart + 2.5, -98.0 + 6 * coarse)
        liver = np.maximum(outside_heart + 1.5, x - 25.0 - 10 * self._texture("liver", 30.0, z))
        self._paint(image, liver, self.organ + 4 * fine + 2.5 * coarse)
        veins = np.abs(self._texture("liver veins", 14.0, z)) - 0.05
        self._paint(image, np.maximum(veins * 14, liver + 8), self.organ + (35.0 if self.contrast else -12.0))
        spleen = np.maximum(outside_heart + 3, ellipse(x, y, (88, 38), (34, 24), 2.0))
        self._paint(image, spleen, self.organ - 4 + 4 * fine)
        stomach = np.maximum(outside_heart + 4, ellipse(x, y, (62, -28), (36, 26), 2.0))
        self._paint(image, stomach, 40.0 + 12 * coarse)
        self._paint(image, np.maximum(stomach + 4, y + 30.0), -990.0)
        tube = tube_distance(self.aorta, x, y, z)
        self._paint(image, tube, self.blood + 4 * fine)

    def _lungs(self, image: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> None:
        lung = self._lung(x, y, z)
        fine, mid = self._texture("lung", 0.9, z), self._texture("lung", 3.5, z)
        tissue = self.lung_hu + self.gravity * (y - self.middle) / self.cavity[1] + 18.0 * fine + 9.0 * mid
        inner = lung < 0.0
        if self.emphysema > 0 and inner.any():
            holes = self._texture("emphysema", 6.0, z)
            # every plane has the stated share, and the blurred edge its contour at -950 HU where the holes end
            holes = holes - np.quantile(holes[inner], 1.0 - self.emphysema)
            edge = np.clip((tissue - EMPHYSEMA_BELOW) / (tissue + 972.0), 0.0, 1.0)
            inside = np.clip(edge + 4.2 / self.pixel * holes, 0, 1)
            tissue += inside * (-972.0 + 6.0 * fine - tissue)
        wave = 3.0 * self._texture("fissure", 40.0, z)
        oblique = np.abs((y - self.middle) * 0.75 + (z - 135.0) * -0.66 + 0.12 * np.abs(x) + wave) - 0.35
        tissue += np.clip(0.5 - oblique / self.pixel, 0, 1) * (-480.0 - tissue)
        level = np.abs(z - 140.0 + 0.1 * y + 2 * wave) - 0.4
        level = np.maximum(level, np.maximum(x + 30.0, y - self.middle))
        tissue += np.clip(0.5 - level / self.pixel, 0, 1) * (-520.0 - tissue)
        for trees, hu in ((self.veins, 0.8), (self.arteries, 1.0)):
            for tree in trees:
                tissue += draw_segments(tree, self.axis, self.axis, z) * (hu * self.blood + 5.0 - tissue)
        cover = np.clip(0.5 - lung / self.pixel, 0.0, 1.0)
        image += cover * (tissue - image)
        in_lung = np.clip(0.5 - (lung - 8.0) / self.pixel, 0.0, 1.0)
        for tree, region, bore in (
            *((tree, in_lung, 0.82) for tree in self.airways),
            *((tube, 1.0, 1.0) for tube in (*self.bronchi, self.trachea)),
        ):
            wall = draw_segments(tree.scaled(1.12 * bore, 0.45), self.axis, self.axis, z) * region
            image += wall * (30.0 - image)
            lumen = draw_segments(tree.scaled(bore), self.axis, self.axis, z) * region
            image += lumen * (-995.0 - image)
        for nodule in self.nodules:  # last, so that no airway takes of their volume
            paint_nodule(image, nodule, self.axis, z)


def chest_phantom(
    seed: int, positions: Sequence[float], thickness: float = 1.0, pixel: float = 0.4, size: int = 1000
) -> np.ndarray:
    """Slices (positions, size, size) float32 HU of the chest of ``seed``, at z ``positions`` mm (0 to HEIGHT)."""
    phantom = ChestPhantom(seed, pixel, size)
    return np.stack([phantom.slice(z, thickness) for z in positions])
