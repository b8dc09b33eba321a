"""Simulated scans of known truth, to judge methods by: kept on disk, so that the next model is judged quickly."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from CTHarmonizeLib.ct.acquisition import is_truth, target_mtf
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeTraining.simulation.noise import Exposure, add_noise
from CTHarmonizeTraining.simulation.projector import Geometry, Grid, attenuation, forward_project
from CTHarmonizeTraining.simulation.scan import reconstruct, seeded_generator

KERNELS = ("smooth", "medium", "sharp")


@dataclass(frozen=True)
class Protocol:
    """How the slices are scanned, with which ``kernels``.

    ``pixel_spacing`` (mm) and ``size`` (pixels) of the images, around the isocentre; source ``doses`` and
    ``target_dose`` in percent; ``views``; ``photons`` at 100 % (:class:`Exposure`); ``seed`` of the noise.
    """

    pixel_spacing: float = 0.66
    size: int = 512
    doses: tuple[float, ...] = (10.0, 25.0)
    target_dose: float = 100.0
    views: int = 1000
    photons: float = 2.5e5
    seed: int = 0
    kernels: tuple[str, ...] = field(default=KERNELS, repr=False)  # kept scans are known by the kernels' MTF


@dataclass(frozen=True)
class TrueSlices:
    """Slices that are scanned: ``hu`` (slices, n, n) with pixels of ``pixel`` mm around the isocentre; ``indices``
    of the slices in their source; ``name`` for people; ``fine``: whether they show detail beyond any kernel's
    reach (made up, not reconstructed from a patient's scan), so that sharpness can be judged; ``sides`` of the patient
    at the left and right edge."""

    name: str
    hu: np.ndarray
    pixel: float
    thickness: float
    indices: tuple[int, ...]
    fine: bool
    sides: tuple[str, str] = ("R", "L")


@dataclass(frozen=True)
class SimulatedScans:
    """Images (slices, rows, columns) of the same slices.

    ``sources`` by (kernel, dose) and ``targets`` by kernel: with noise, int16 HU, as scanners store them; the noise
    of source and target is independent. ``clean`` by kernel: without noise, float32 HU.
    """

    true: TrueSlices
    protocol: Protocol
    sources: Mapping[tuple[str, float], np.ndarray]
    targets: Mapping[str, np.ndarray]
    clean: Mapping[str, np.ndarray]

    def volume(self, hu: np.ndarray) -> Volume:
        """Images of this scan with their spacing."""
        spacing = self.protocol.pixel_spacing
        return Volume(np.ascontiguousarray(hu), (spacing, spacing, self.true.thickness))


def simulated_scans(
    true: TrueSlices, protocol: Protocol, cache: Path, progress: Callable[[str], None] = lambda text: None
) -> SimulatedScans:
    """Scans of ``true``, read from the folder ``cache`` where they are there, else simulated and kept.

    Each slice is projected once. Its noise depends on the seed and the slice's index alone, so that a slice is the
    same whatever is scanned beside it. Raises CannotRunError where ``cache`` cannot be written.
    """
    images = []
    for number, index in enumerate(true.indices):
        facts = _facts(true, number, protocol)
        digest = hashlib.sha256(facts.encode()).hexdigest()
        path = cache / f"{_plain(true.name)}-{index:04d}-{digest[:10]}.npz"
        stored = _read(path, facts)
        if stored is None:
            progress(f"simulating slice {number + 1} of {len(true.indices)} of {true.name}")
            stored = _scan(true, number, protocol)
            _write(path, stored, facts)
        images.append(stored)
    return SimulatedScans(
        true,
        protocol,
        {
            (kernel, dose): np.stack([image[_source_key(kernel, dose)] for image in images])
            for kernel in protocol.kernels
            for dose in protocol.doses
        },
        {kernel: np.stack([image[f"target_{kernel}"] for image in images]) for kernel in protocol.kernels},
        {kernel: np.stack([image[f"clean_{kernel}"] for image in images]) for kernel in protocol.kernels},
    )


def slices_of_ct(path: Path, slices: int | Sequence[int]) -> TrueSlices:
    """True slices from a CT file: so many, evenly spread over it, or those with the given indices."""
    from CTHarmonizeLib.ct.io import read_volume
    from CTHarmonizeLib.ct.volume import check_ct

    volume = read_volume(path)
    check_ct(volume)
    indices = _indices(slices, volume.shape[0])
    hu = volume.hu[list(indices)].astype(np.float32)
    side = max(hu.shape[1:])
    margins = [((side - size) // 2, side - size - (side - size) // 2) for size in hu.shape[1:]]
    hu = np.pad(hu, ((0, 0), *margins), constant_values=-1000.0)
    thickness = float(volume.spacing[2])
    return TrueSlices(Path(path).name, hu, volume.pixel_spacing, thickness, indices, fine=False, sides=volume.sides)


def slices_of_phantoms(
    seeds: Sequence[int],
    slices: int | Sequence[int],
    cache: Path,
    thickness: float = 1.5,
    progress: Callable[[str], None] = lambda text: None,
) -> TrueSlices:
    """True slices of procedural chests: so many of each, evenly spread, or those at the given z in mm.

    They take seconds to draw, so they are kept in ``cache``. The index of a slice is 1000 times the seed plus z.
    """
    from CTHarmonizeTraining.simulation import nodules, phantom, shapes, trees

    heights = _indices(slices, int(phantom.HEIGHT))
    drawing = (phantom, shapes, nodules, trees)
    code = hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in drawing)).hexdigest()
    drawn, chests = [], {}
    for seed in seeds:
        for z in heights:
            facts = json.dumps({"phantom": seed, "z": z, "thickness": thickness, "code": code})
            path = cache / f"true_{seed}-{z:04d}-{hashlib.sha256(facts.encode()).hexdigest()[:10]}.npz"
            stored = _read(path, facts)
            if stored is None:
                progress(f"drawing phantom {seed} at {z} mm")
                if seed not in chests:
                    chests[seed] = phantom.ChestPhantom(seed)
                chest = chests[seed]
                stored = {"hu": chest.slice(float(z), thickness), "pixel": np.array(chest.pixel)}
                _write(path, stored, facts)
            drawn.append(stored)
    indices = tuple(1000 * seed + z for seed in seeds for z in heights)
    name = "phantom_" + "_".join(map(str, seeds))
    hu = np.stack([stored["hu"] for stored in drawn])
    return TrueSlices(name, hu, float(drawn[0]["pixel"]), thickness, indices, fine=True)


def _indices(slices: int | Sequence[int], count: int) -> tuple[int, ...]:
    if isinstance(slices, int):
        if slices < 1:
            raise InputError(f"At least one slice is needed, not {slices}.")
        # Interior points: a scan's first and last slice are rarely typical.
        return tuple(sorted({int((i + 0.5) * count / slices) for i in range(min(slices, count))}))
    wrong = [index for index in slices if not 0 <= index < count]
    if wrong or not slices:
        raise InputError(f"The slices must lie between 0 and {count - 1}, not {list(slices)}.")
    return tuple(sorted(set(slices)))


def _scan(true: TrueSlices, number: int, protocol: Protocol) -> dict[str, np.ndarray]:
    slice_hu = torch.from_numpy(true.hu[number : number + 1].astype(np.float32))
    geometry = Geometry.covering(true.hu.shape[-1] * true.pixel, protocol.views)
    clean = forward_project(attenuation(slice_hu), true.pixel, geometry)
    doses = [*protocol.doses, protocol.target_dose]
    generator = seeded_generator("cpu", protocol.seed, true.indices[number])
    exposure = Exposure(protocol.photons)
    noisy = add_noise(clean.expand(-1, -1, len(doses)), doses, geometry.pitch, generator, exposure)
    grid = Grid(protocol.size, protocol.size, protocol.pixel_spacing)
    images = {}
    for kernel in protocol.kernels:
        mtf = target_mtf(kernel, protocol.pixel_spacing)
        *sources, target, truth = reconstruct(torch.cat((noisy, clean), 2), geometry, mtf, grid).numpy()
        for dose, source in zip(protocol.doses, sources, strict=True):
            images[_source_key(kernel, dose)] = _whole(source)
        images[f"target_{kernel}"] = _whole(truth if is_truth(kernel) else target)
        images[f"clean_{kernel}"] = truth
    return images


def _source_key(kernel: str, dose: float) -> str:
    return f"source_{kernel}_{dose:g}"


def _whole(hu: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


def _facts(true: TrueSlices, number: int, protocol: Protocol) -> str:
    """All that a slice's images depend on."""
    kernels = {name: repr(target_mtf(name, protocol.pixel_spacing)) for name in protocol.kernels}
    content = hashlib.sha256(np.ascontiguousarray(true.hu[number], np.float32).tobytes()).hexdigest()
    return json.dumps(
        {"slice": true.indices[number], "pixel": true.pixel, "content": content, "protocol": repr(protocol), **kernels}
    )


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name.split(".")[0])


def _read(path: Path, facts: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["facts"]) == facts:
                return {key: stored[key] for key in stored.files if key != "facts"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or cut short: simulated anew
    return None


def _write(path: Path, images: dict[str, np.ndarray], facts: str) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, facts=np.array(facts), **images)
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotRunError(f"The simulated scans cannot be kept in '{path.parent}': {error.strerror}.") from error
        raise
