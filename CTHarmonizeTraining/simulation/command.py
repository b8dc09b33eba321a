"""``ctharmonize-train simulate``: two scans of one anatomy, whose difference is known, or scenes for training."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from CTHarmonizeLib.ct.acquisition import parse_kernel
from CTHarmonizeLib.ct.io import write_nrrd
from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeLib.device import choose_device
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.simulation.fan import FanBeam
from CTHarmonizeTraining.simulation.noise import Exposure
from CTHarmonizeTraining.simulation.projector import Geometry, Grid
from CTHarmonizeTraining.simulation.scan import seeded_generator
from CTHarmonizeTraining.simulation.scanner import Scanner
from CTHarmonizeTraining.simulation.scenes import simulate_scenes
from CTHarmonizeTraining.simulation.subject import check, read_subject

IMAGES = ("source", "target", "target_noise_free")


def simulate(
    input: str,
    output: Path,
    source_kernel: float | str = "sharp",
    source_dose: float = 25.0,
    target_kernel: float | str = "medium",
    target_dose: float = 100.0,
    pixel_spacing: float | None = None,
    size: int | None = None,
    slices: str = ":",
    thickness: float = 1.0,
    views: int = 1000,
    photons: float = 2.5e5,
    seed: int = 0,
    device: str = "auto",
    scenes: int = 0,
    realisations: int = 5,
    beam: str = "parallel",
    detector_width: float | None = None,
    focal_spot: float = 0.0,
    tube_modulation: float = 0.0,
) -> None:
    """Scan one anatomy twice: source.nrrd, target.nrrd, target_noise_free.nrrd and simulation.json.

    Or write scenes, the input of ``fit``. The images lie where the input lies. A CT that is scanned again keeps
    its own blur and noise, in source and target alike; phantoms have none. What lies outside the circle inscribed
    in the slice, and padding, count as air.

    Args:
        input: CT volume (DICOM folder, NRRD, NIfTI, MetaImage), or phantom:SEED, a procedural chest.
        output: folder for the images; with scenes the Zarr store, which goes on where it was interrupted.
        source_kernel: smooth, medium, sharp, a vendor's such as siemens-b30f, ge-lung, philips-yb or toshiba-fc51,
            or an f50 in lp/cm.
        source_dose: percent.
        target_kernel: as source_kernel.
        target_dose: percent.
        pixel_spacing: of the images, mm; the input's own (phantoms: 0.7) where left out.
        size: of the images, pixels a side around the input's middle; the input's field of view where left out.
        slices: half-open range a:b of the input's slices.
        thickness: of a phantom's slices, one after another from the lungs' apices down, mm.
        views: of the scan, over 180 degrees; a multiple of 4.
        photons: at 100 percent dose, per 0.75 mm of detector and view.
        seed: of the noise; it and a slice's index give that slice's noise, the same in every range of slices.
        device: auto, cpu or cuda.
        scenes: instead of the images, so many scenes a slice; kernels, doses, photons and grid are then not used.
        realisations: noise images a scene.
        beam: parallel, or fan (570 mm from source to isocentre, 1040 mm to the detector), rebinned to parallel.
        detector_width: width over which a detector averages, mm at the isocentre; where left out, parallel
            0.25 and fan 0.5.
        focal_spot: width over which the focal spot blurs, mm at the isocentre.
        tube_modulation: strength of the angular modulation of the tube current at the same dose, 0 (none) to 1
            (the square root of the attenuation).
    """
    where = _device(device)
    check("views", views, views >= 4 and views % 4 == 0, "a positive multiple of 4")
    check("seed", seed, seed >= 0, "0 or more")
    check("scenes", scenes, 0 <= scenes <= 100, "0 to 100")
    check("realisations", realisations, 1 <= realisations <= 100, "1 to 100")
    check("thickness", thickness, 0.1 <= thickness <= 20.0, "0.1 to 20 mm")
    check("photons", photons, 1e2 <= photons <= 1e9, "100 to 1e9")
    check("tube modulation", tube_modulation, 0.0 <= tube_modulation <= 1.0, "0 to 1")
    check("focal spot", focal_spot, 0.0 <= focal_spot <= 2.0, "0 to 2 mm")
    if detector_width is not None:
        check("detector width", detector_width, 0.1 <= detector_width <= 2.0, "0.1 to 2 mm")
    if beam not in ("parallel", "fan"):
        raise InputError(f"There is no beam '{beam}': give parallel or fan.")
    if scenes and (beam != "parallel" or detector_width or focal_spot or tube_modulation):
        raise InputError("Scenes are always scanned in plain parallel beams: leave beam, blur and modulation out.")
    output = check_output_folder(output)
    subject = read_subject(input, thickness)
    chosen = subject.indices(slices)
    for warning in subject.warnings:
        _say(f"Note: {warning}")
    if scenes:
        facts = {"source": subject.name, "slice_thickness": subject.spacing[2], "seed": seed}
        counts = {"per_slice": scenes, "realisations": realisations, "views": views}
        simulate_scenes(subject.slice_of, subject.pixel, chosen, output, **facts, **counts, device=str(where))
        return
    grid = subject.grid_of(pixel_spacing, size)
    source, target = _Side.of(source_kernel, source_dose, grid), _Side.of(target_kernel, target_dose, grid)
    scanner = _scanner(subject.reach(grid), views, beam, detector_width, focal_spot, photons, tube_modulation)
    for side in (source, target):
        _check_sharpness(side.mtf, scanner.geometry)
    desk = _Desk(scanner, grid, seed, where)
    images = np.empty((len(IMAGES), len(chosen), grid.rows, grid.columns), np.int16)
    lost = 0.0
    for number, index in enumerate(chosen):
        hu = subject.slice_of(index)
        lost = max(lost, _outside(hu))
        images[:, number] = desk.pair(hu, subject.pixel, index, source, target)
        _say(f"slice {number + 1} of {len(chosen)}")
    warnings = list(subject.warnings)
    if lost > 0.01:
        warnings.append(
            f"Up to {100 * lost:.0f} % of what is denser than lung in a slice lies outside the circle inscribed in it "
            "and was left out: give whole slices, not a cut-out."
        )
        _say(f"Note: {warnings[-1]}")
    for name, image in zip(IMAGES, images, strict=True):
        write_nrrd(subject.place(image, grid, chosen.start), output / f"{name}.nrrd")
    facts = {
        "version": __version__,
        "input": input,
        "slices": [chosen.start, chosen.stop],
        "source": source.as_dict(),
        "target": target.as_dict(),
        "pixel_spacing": grid.pixel,
        "size": [grid.columns, grid.rows],
        "slice_thickness": subject.spacing[2],
        "views": views,
        "photons": photons,
        "electronic_noise": scanner.exposure.electronic,
        "beam": beam,
        "detector_width": scanner.geometry.aperture or scanner.geometry.pitch,
        "focal_spot": focal_spot,
        "tube_modulation": tube_modulation,
        "seed": seed,
        "device": where.type,
        "warnings": warnings,
    }
    try:
        (output / "simulation.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CannotRunError(f"'{output / 'simulation.json'}' cannot be written: {error.strerror}.") from error


@dataclass(frozen=True)
class _Side:
    """One of the two scans."""

    kernel: float | str
    mtf: Mtf
    dose: float

    @classmethod
    def of(cls, kernel: float | str, dose: float, grid: Grid) -> _Side:
        check("dose", dose, 0.1 <= dose <= 400.0, "0.1 to 400 %")
        return cls(kernel, parse_kernel(kernel, grid.pixel), float(dose))

    def as_dict(self) -> dict[str, float | str]:
        mtf = self.mtf
        return {"kernel": self.kernel, "f50": mtf.f50, "f10": mtf.f10, "mtf_peak": mtf.peak, "dose": self.dose}


@dataclass(frozen=True)
class _Desk:
    """Where both scans are run: the scanner, the images' grid, the seed of the noise."""

    scanner: Scanner
    grid: Grid
    seed: int
    device: torch.device

    def pair(self, hu: np.ndarray, pixel: float, index: int, source: _Side, target: _Side) -> np.ndarray:
        """:data:`IMAGES` of the slice ``hu`` (n, n), int16; ``index`` and the seed key its noise."""
        true = torch.from_numpy(hu).to(self.device)[None]
        clean = self.scanner.project(true, pixel)
        noisy = self.scanner.measure(clean, (source.dose, target.dose), seeded_generator(self.device, self.seed, index))
        first = self.scanner.image(noisy[..., :1], source.mtf, self.grid)
        second = self.scanner.image(torch.cat((noisy[..., 1:], clean), 2), target.mtf, self.grid)
        return np.clip(np.rint(torch.cat((first, second)).cpu().numpy()), -32768, 32767).astype(np.int16)


def _scanner(
    reach: float,
    views: int,
    beam: str,
    detector_width: float | None,
    focal_spot: float,
    photons: float,
    modulation: float,
) -> Scanner:
    """Scanner whose beams cover ``reach`` mm."""
    geometry = Geometry.covering(reach, views, aperture=detector_width, focal_spot=focal_spot)
    if beam == "parallel":
        return Scanner(geometry, None, Exposure(photons), modulation)
    geometry = replace(geometry, aperture=detector_width or 2 * geometry.pitch)
    try:
        fan = FanBeam(geometry)
    except ValueError as error:
        raise InputError(f"The fan is too narrow for these slices: {error}.") from None
    return Scanner(geometry, fan, Exposure(photons), modulation)


def _check_sharpness(mtf: Mtf, geometry: Geometry) -> None:
    """Raise InputError where detector and focal spot leave too little for ``mtf``."""
    limit = geometry.usable_band()
    if mtf.f50 > limit:
        raise InputError(
            f"A kernel with f50 {mtf.f50:.1f} lp/cm is too sharp for this detector and focal spot, which show nothing "
            f"beyond {limit:.1f} lp/cm."
        )


def _outside(hu: np.ndarray) -> float:
    """Share of what is denser than lung that lies outside the circle inscribed in ``hu`` (n, n)."""
    middle = np.arange(len(hu)) - (len(hu) - 1) / 2
    dense = hu > -500.0
    outside = middle**2 + middle[:, None] ** 2 > (len(hu) / 2) ** 2
    return float((dense & outside).sum() / max(1, dense.sum()))


def _device(name: str) -> torch.device:
    device = choose_device(name)
    if device.type != "mps":
        return device
    if name == "auto":  # Apple's GPUs have no double precision, which the angles need
        return torch.device("cpu")
    raise CannotRunError("Scans cannot be simulated on an Apple GPU: choose the device cpu.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
