"""The cases: chests are drawn, nodules and small lesions put into their lungs, and what comes of it is scanned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from CTHarmonizeLib.ct.acquisition import target_mtf
from CTHarmonizeLib.ct.volume import Roi
from CTHarmonizeTraining import simulation
from CTHarmonizeTraining.evaluation import measures
from CTHarmonizeTraining.evaluation.measures import Regions
from CTHarmonizeTraining.evidence.cases import Case, KnownNodule, Place, Scan
from CTHarmonizeTraining.evidence.kept import fingerprint, kept
from CTHarmonizeTraining.simulation.measurements import area_shares
from CTHarmonizeTraining.simulation.nodules import Nodule, paint_nodule
from CTHarmonizeTraining.simulation.noise import Exposure, add_noise
from CTHarmonizeTraining.simulation.phantom import HEIGHT, ChestPhantom
from CTHarmonizeTraining.simulation.projector import Geometry, Grid, attenuation, forward_project
from CTHarmonizeTraining.simulation.scan import reconstruct, seeded_generator

GRID = Grid(360, 512, 0.7)
THICKNESS = 1.0
"""mm; the slices touch."""

SOURCES = (
    Scan("smooth", 25.0),
    Scan("medium", 25.0),
    Scan("sharp", 25.0),
    Scan("sharp", 10.0),
    Scan("smooth", 100.0),
    Scan("medium", 100.0),
    Scan("sharp", 100.0),
)
REFERENCES = (Scan("medium", 100.0), Scan("sharp", 100.0))
KERNELS = ("smooth", "medium", "sharp")

EMPHYSEMA = (0.0, 0.05, 0.12, 0.25)
"""Shares of the parenchyma, of one case after the other."""

LESION_DIAMETERS = (2.0, 3.0, 4.0)
LESION_CONTRASTS = (50.0, 100.0, 200.0)
"""mm and HU: a lesion of each pair, :data:`LESIONS_OF_EACH` times, and as many vacant places of each diameter."""
LESIONS_OF_EACH = 4

_SUB_SLICES = 2  # planes that a slice is the mean of
_MARGIN = 16  # pixels around the lungs
_SIDE_MM = 400.0  # of what is drawn
_AROUND_MM = (4.8, 1.6)  # a small lesion's place: the lung around, over which it is averaged, and what is to be clear
_CLEAR_HU = 120.0  # above the lung around: what a small lesion's place may not hold
_DIAMETERS = (5.0, 16.0)  # of nodules, mm


@dataclass(frozen=True)
class Slab:
    """What a case is made of: the chest's ``seed``, its share of ``emphysema``, how many ``nodules``, and the
    ``slices`` of 1 mm around a height that the seed draws; it is drawn in pixels of ``pixel`` mm; ``views`` and
    ``photons`` of its scans."""

    seed: int
    emphysema: float = 0.0
    nodules: int = 8
    slices: int = 24
    pixel: float = 0.4
    views: int = 800
    photons: float = 2.5e5

    def heights(self) -> np.ndarray:
        """z of the slices, mm."""
        middle = np.random.default_rng((self.seed, 77)).uniform(0.38, 0.6) * HEIGHT
        return middle + (np.arange(self.slices) - (self.slices - 1) / 2.0) * THICKNESS


def slabs(seeds: Sequence[int], **settings: int) -> list[Slab]:
    """A slab of each seed, with more and more emphysema."""
    return [Slab(seed, EMPHYSEMA[number % len(EMPHYSEMA)], **settings) for number, seed in enumerate(seeds)]


def case_of(slab: Slab, cache: Path, say: Callable[[str], None] = lambda text: None) -> Case:
    """The scanned ``slab``, read from the folder ``cache`` where it is there, else simulated (some seconds a slice) and
    kept."""
    code = fingerprint(*sorted(Path(simulation.__file__).parent.glob("*.py")), measures, __file__)
    facts = json.dumps({**asdict(slab), "code": code, "kernels": [repr(target_mtf(k, GRID.pixel)) for k in KERNELS]})
    name = f"phantom:{slab.seed}"
    path = cache / f"case-{slab.seed}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.npz"
    return _case(name, slab, kept(path, lambda: _made(slab, lambda text: say(f"{name}: {text}"))))


def _case(name: str, slab: Slab, made: dict[str, np.ndarray]) -> Case:
    solid = made["nodules"][:, 5] > -300.0
    return Case(
        name=name,
        spacing=(GRID.pixel, GRID.pixel, THICKNESS),
        scans={source: made[f"scan {source}"] for source in SOURCES},
        references={reference: made[f"reference {reference}"] for reference in REFERENCES},
        region=Roi(*(tuple(map(int, pair)) for pair in made["region"])),
        clean={kernel: made[f"clean {kernel}"] for kernel in KERNELS},
        truth=made["truth"],
        body=made["body"],
        lung=made["lung"],
        tissues={key.removeprefix("tissue "): made[key] for key in made if key.startswith("tissue ")},
        labels=made["labels"],
        emphysema_percent=100.0 * slab.emphysema,
        nodules=tuple(
            KnownNodule(number, tuple(map(float, row[:3])), float(row[3]), float(row[4]), float(row[5]), bool(is_solid))
            for number, (row, is_solid) in enumerate(zip(made["nodules"], solid, strict=True), start=1)
        ),
        lesions=tuple(Place(tuple(map(float, row[:3])), float(row[3]), float(row[4])) for row in made["lesions"]),
        vacant=tuple(Place(tuple(map(float, row[:3])), float(row[3]), 0.0) for row in made["vacant"]),
    )


def _made(slab: Slab, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    """All arrays of a case."""
    chest = ChestPhantom(slab.seed, slab.pixel, round(_SIDE_MM / slab.pixel), slab.emphysema, nodules=0)
    heights, rng = slab.heights(), np.random.default_rng((slab.seed, 78))
    say("drawing")
    fine = np.stack([chest.slice(float(z), THICKNESS, _SUB_SLICES) for z in heights])
    lungs = np.stack([chest.lung(float(z)) for z in heights])
    grown = _nodules(slab, chest, heights, rng)
    for nodule in grown:
        _paint(fine, nodule, chest.axis, heights)
    spheres, vacant = _places(fine, lungs, grown, chest, heights, rng)
    for sphere, contrast in spheres:
        _add(fine, sphere, contrast, chest.axis, heights)
    shrink = _Shrinking(chest)
    cover = np.zeros((len(grown), len(heights), GRID.rows, GRID.columns), np.float32)
    for number, nodule in enumerate(grown):
        cover[number] = shrink(_cover(replace(nodule, spicules=0), chest.axis, heights))
    labels = np.where(cover.max(0, initial=0.0) > 0.5, cover.argmax(0) + 1, 0) if len(grown) else cover.sum(0)
    images = _scanned(slab, fine, chest.pixel, say)
    lung = np.stack([shrink(plane[None].astype(np.float32))[0] > 0.5 for plane in lungs])
    region = _region(lung)
    index = region.index()
    seen = Regions.of(images["clean smooth"], GRID.pixel)
    begin = (region.slices[0], region.rows[0], region.columns[0])

    def at(centre: Sequence[float]) -> list[float]:
        x, y, z = centre
        place = ((z - heights[0]) / THICKNESS, shrink.index(y, GRID.rows), shrink.index(x, GRID.columns))
        return [value - first for value, first in zip(place, begin, strict=True)]

    return {
        **{key: image if key.startswith(("scan", "reference")) else image[index] for key, image in images.items()},
        "region": np.array([region.columns, region.rows, region.slices]),
        "truth": np.stack([shrink(plane[None])[0] for plane in fine])[index].astype(np.float32),
        "body": seen.body[index],
        "lung": lung[index],
        **{f"tissue {name}": mask[index] for name, mask in seen.tissues.items()},
        "labels": labels[index].astype(np.int16),
        "nodules": np.array([[*at(n.centre), n.diameter, n.volume, n.hu] for n in grown]).reshape(-1, 6),
        "lesions": np.array([[*at(s.centre), s.diameter, contrast] for s, contrast in spheres]).reshape(-1, 5),
        "vacant": np.array([[*at(s.centre), s.diameter] for s in vacant]).reshape(-1, 4),
    }


def _nodules(slab: Slab, chest: ChestPhantom, heights: np.ndarray, rng: np.random.Generator) -> list[Nodule]:
    """Nodules that lie whole in the slab, apart from each other; less than asked for where there is no room."""
    made: list[Nodule] = []
    points = np.concatenate(chest.targets)
    for number in range(slab.nodules):
        # sizes in even steps, so that few nodules cover the range
        share = (number + rng.uniform(0.2, 0.8)) / slab.nodules
        least, most = _DIAMETERS
        diameter = float(np.exp(np.log(least) + share * np.log(most / least)))
        margin = diameter / 2 + 2.0
        whole = points[(points[:, 2] > heights[0] + margin) & (points[:, 2] < heights[-1] - margin)]
        deep = whole[chest.lung_distance(whole) < -(diameter / 2 + 3.0)]
        for centre in rng.permutation(deep)[:200]:
            if all(np.linalg.norm(centre - o.centre) > 0.75 * (diameter + o.diameter) + 4.0 for o in made):
                break
        else:
            continue
        solid = number % 3 != 2
        hu = rng.uniform(10, 90) if solid else rng.uniform(-620, -450)
        spicules = int(rng.integers(8, 16)) if solid and number % 2 and diameter > 7 else 0
        lobulation = float(rng.uniform(0.05, 0.2)) if number % 4 else 0.0
        seed = int(rng.integers(2**31))
        made.append(Nodule(tuple(map(float, centre)), diameter, float(hu), lobulation, spicules, seed))
    return made


def _places(
    fine: np.ndarray,
    lungs: np.ndarray,
    grown: Sequence[Nodule],
    chest: ChestPhantom,
    heights: np.ndarray,
    rng: np.random.Generator,
) -> tuple[list[tuple[Nodule, float]], list[Nodule]]:
    """Small lesions with their contrasts, and vacant places: in parenchyma without larger vessels, apart from each
    other and from nodules. Less than asked for where there is no room."""
    pixel = chest.pixel
    wanted = [
        (diameter, contrast)
        for _ in range(LESIONS_OF_EACH)
        for diameter in LESION_DIAMETERS
        for contrast in (*LESION_CONTRASTS, *[0.0] * len(LESION_CONTRASTS))
    ]
    deep = np.stack([ndimage.distance_transform_edt(plane) * pixel for plane in lungs])
    wide, narrow = (2 * round(reach / pixel) + 1 for reach in _AROUND_MM)
    near = ndimage.uniform_filter(fine, (5, wide, wide))
    crowded = ndimage.maximum_filter(fine - near, (5, narrow, narrow)) > _CLEAR_HU
    taken = [(np.array(nodule.centre), 0.95 * nodule.diameter) for nodule in grown]  # spicules reach so far
    lesions: list[tuple[Nodule, float]] = []
    vacant: list[Nodule] = []
    for diameter, contrast in wanted:
        depth = int(np.ceil(diameter / 2 / THICKNESS)) + 1
        free = (deep > diameter / 2 + 4.0) & ~crowded
        free[:depth] = free[len(free) - depth :] = False
        where = np.argwhere(free)
        for slice_, row, column in where[rng.integers(len(where), size=200)] if len(where) else ():
            at = np.array([chest.axis[column], chest.axis[row], heights[slice_]]) + rng.uniform(-0.3, 0.3, 3)
            if all(np.linalg.norm(at - other) > diameter / 2 + radius + 4.0 for other, radius in taken):
                break
        else:
            continue
        taken.append((at, diameter / 2))
        sphere = Nodule(tuple(map(float, at)), diameter, 0.0, 0.0, 0, 0)
        if contrast:
            lesions.append((sphere, contrast))
        else:
            vacant.append(sphere)
    return lesions, vacant


def _sub_planes(z: float) -> np.ndarray:
    return z + ((np.arange(_SUB_SLICES) + 0.5) / _SUB_SLICES - 0.5) * THICKNESS


def _cover(nodule: Nodule, axis: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Share of each voxel (slices, n, n) that the nodule fills."""
    planes = np.zeros((len(heights), len(axis), len(axis)), np.float32)
    for plane, z in zip(planes, heights, strict=True):
        for sub in _sub_planes(z):
            one = np.zeros_like(plane)
            paint_nodule(one, replace(nodule, hu=1.0), axis, sub)
            plane += one / _SUB_SLICES
    return planes


def _touched(nodule: Nodule, heights: np.ndarray) -> range:
    """Slices that the nodule, spicules included, may reach."""
    near = np.flatnonzero(np.abs(heights - nodule.centre[2]) <= nodule.diameter + 2.0)
    return range(near[0], near[-1] + 1) if len(near) else range(0)


def _paint(fine: np.ndarray, nodule: Nodule, axis: np.ndarray, heights: np.ndarray) -> None:
    for number in _touched(nodule, heights):
        planes = []
        for sub in _sub_planes(heights[number]):
            plane = fine[number].copy()
            paint_nodule(plane, nodule, axis, sub)
            planes.append(plane)
        fine[number] = np.mean(planes, axis=0, dtype=np.float32)


def _add(fine: np.ndarray, sphere: Nodule, contrast: float, axis: np.ndarray, heights: np.ndarray) -> None:
    chosen = _touched(sphere, heights)
    here = slice(chosen.start, chosen.stop)
    fine[here] += contrast * _cover(sphere, axis, heights[here])


class _Shrinking:
    """Means of the fine pixels of ``chest`` over the images' pixels."""

    def __init__(self, chest: ChestPhantom) -> None:
        middle = (len(chest.axis) - 1) / 2.0
        edges = [
            (np.arange(count + 1) - count / 2.0) * GRID.pixel / chest.pixel + middle + 0.5
            for count in (GRID.rows, GRID.columns)
        ]
        self.rows, self.columns = (area_shares(edge, len(chest.axis)).astype(np.float32) for edge in edges)

    def __call__(self, planes: np.ndarray) -> np.ndarray:
        return self.rows @ planes.astype(np.float32) @ self.columns.T

    @staticmethod
    def index(mm: float, count: int) -> float:
        """Fraction of a pixel at ``mm`` from the isocentre, of an axis of ``count``."""
        return mm / GRID.pixel + (count - 1) / 2.0


def _region(lung: np.ndarray) -> Roi:
    """Box around the lungs in all slices."""
    if not lung.any():
        return Roi.whole(lung.shape)
    sides = []
    for axis, size in ((2, GRID.columns), (1, GRID.rows)):
        seen = np.flatnonzero(lung.any(tuple({0, 1, 2} - {axis})))
        sides.append((int(max(0, seen[0] - _MARGIN)), int(min(size, seen[-1] + 1 + _MARGIN))))
    return Roi(*sides, (0, len(lung)))


def _scanned(slab: Slab, fine: np.ndarray, pixel: float, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Scans, references and images without noise, by name. All kernels of a dose are made of the same readings, as
    scanners do; the references have readings of their own."""
    geometry = Geometry.covering(fine.shape[-1] * pixel, slab.views)
    readings = sorted({(dose, "scan") for _, dose in SOURCES} | {(dose, "reference") for _, dose in REFERENCES})
    wanted: dict[str, list[str]] = {kernel: [f"clean {kernel}"] for kernel in KERNELS}
    for kernel in KERNELS:
        for dose, kind in readings:
            if Scan(kernel, dose) in (SOURCES if kind == "scan" else REFERENCES):
                wanted[kernel].append(f"{kind} {Scan(kernel, dose)}")
    shape = (len(fine), GRID.rows, GRID.columns)
    images = {
        name: np.empty(shape, np.float32 if name.startswith("clean") else np.int16)
        for names in wanted.values()
        for name in names
    }
    doses = [dose for dose, _ in readings]
    for number, plane in enumerate(fine):
        say(f"scanning slice {number + 1} of {len(fine)}")
        clean = forward_project(attenuation(torch.from_numpy(plane[None])), pixel, geometry)
        generator = seeded_generator("cpu", slab.seed, number, 79)
        noisy = add_noise(
            clean.expand(-1, -1, len(doses)), doses, geometry.pitch, generator, Exposure(slab.photons)
        )
        for kernel, names in wanted.items():
            used = [k for k, (dose, kind) in enumerate(readings) if f"{kind} {Scan(kernel, dose)}" in names]
            sinograms = torch.cat((clean, noisy[..., used]), 2)
            made = reconstruct(sinograms, geometry, target_mtf(kernel, GRID.pixel), GRID).numpy()
            for name, image in zip(names, made, strict=True):
                whole = image if name.startswith("clean") else np.clip(np.rint(image), -32768, 32767)
                images[name][number] = whole
    return images
