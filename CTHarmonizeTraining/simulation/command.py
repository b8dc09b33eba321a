"""``ctharmonize-train simulate``: two scans of one anatomy, whose difference is known, or scenes for training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_erosion

from CTHarmonizeLib.ct.dicom import DicomFacts
from CTHarmonizeLib.ct.io import write_nrrd
from CTHarmonizeLib.ct.kernels import SIMULATOR, simulated_kernel
from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeLib.ct.volume import PADDING_BELOW
from CTHarmonizeLib.device import choose_device
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.simulation.fan import FanBeam
from CTHarmonizeTraining.simulation.noise import Exposure
from CTHarmonizeTraining.simulation.pair import NOISE_FREE, Desk, Side, whole_slices
from CTHarmonizeTraining.simulation.pair_store import write_store
from CTHarmonizeTraining.simulation.phantom import EMPHYSEMA_BELOW
from CTHarmonizeTraining.simulation.projector import Geometry
from CTHarmonizeTraining.simulation.report import measure_sides, write_report
from CTHarmonizeTraining.simulation.scanner import Scanner
from CTHarmonizeTraining.simulation.scenes import simulate_scenes
from CTHarmonizeTraining.simulation.subject import Subject, check, read_subject

IMAGES = ("source", "target", NOISE_FREE)

LARGEST_CUT = 0.1
"""Share of the field of view's edge that may be denser than lung: a table crosses it."""


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
    source_thickness: float | None = None,
    target_thickness: float | None = None,
    insert_noise: float | None = None,
    report: bool = False,
) -> None:
    """Scan one anatomy twice: source.nrrd, target.nrrd, target_noise_free.nrrd and simulation.json.

    Or write, for ``fit``, a store of the pair, where the output ends in .zarr, or of scenes. The images lie where the
    input lies. A CT that is scanned again keeps its own blur and noise, in source and target alike; phantoms have
    none. What lies outside the circle inscribed in the slice, and padding, count as air.

    Args:
        input: CT volume (DICOM folder, NRRD, NIfTI, MetaImage), or phantom:SEED, a procedural chest.
        output: folder for the images; or, ending in .zarr, a store of the pair as ``import`` writes it, which must
            not exist yet; with scenes the store of scenes, which goes on where it was interrupted.
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
        photons: at 100 percent dose, per 0.75 mm of detector, view and slice of the input.
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
        source_thickness: of the source's slices, mm: a whole multiple of the input's slice spacing (phantoms:
            thickness), which it is where left out. Thick slices are means of true ones, with their photons.
        target_thickness: as source_thickness.
        insert_noise: instead of two scans: the CT itself as target, and as source the same with the noise of so
            many percent of its own dose. photons are then those of its own scan, and source_kernel its own kernel.
        report: also write report.html: example slices, and sharpness, noise and HU measured in a wire and in water.
    """
    where = _device(device)
    check("views", views, views >= 4 and views % 4 == 0, "a positive multiple of 4")
    check("seed", seed, seed >= 0, "0 or more")
    check("scenes", scenes, 0 <= scenes <= 100, "0 to 100")
    check("realisations", realisations, 2 <= realisations <= 100, "2 to 100")
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
    if scenes and (source_thickness or target_thickness or insert_noise or report):
        raise InputError("Scenes take no thickness of source or target, no inserted noise and no report.")
    output = check_output_folder(output)
    to_store = output.suffix == ".zarr" and not scenes
    if to_store and report:
        raise InputError("A store takes no report: simulate into a folder for one.")
    if to_store and output.exists():
        raise InputError(f"'{output}' exists already: choose another name for the store.")
    if not scenes and (output / "zarr.json").exists():
        raise InputError(f"'{output}' is a store, which would be mixed with images: choose another folder.")
    if not scenes and Path(input).expanduser().resolve() in {(output / f"{name}.nrrd").resolve() for name in IMAGES}:
        raise InputError(f"The input '{input}' would be overwritten by an image: choose another output folder.")
    if insert_noise is not None:
        check("dose to insert noise for", insert_noise, 0.1 <= insert_noise < 100.0, "0.1 to less than 100 %")
        if input.startswith("phantom:") or pixel_spacing or size or source_thickness or target_thickness:
            raise InputError(
                "Noise is inserted into a CT volume as it is: give no phantom, pixel spacing, size or thickness."
            )
    subject = read_subject(input, thickness)
    chosen = subject.indices(slices)
    warnings = [*subject.warnings, *_cut_off(subject, chosen)]
    for warning in warnings:
        say(f"Note: {warning}")
    if scenes:
        facts = {"source": subject.name, "slice_thickness": subject.spacing[2], "seed": seed}
        counts = {"per_slice": scenes, "realisations": realisations, "views": views}
        simulate_scenes(subject.slice_of, subject.pixel, chosen, output, **facts, **counts, device=str(where))
        return
    grid = subject.grid_of(pixel_spacing, size)
    source_slices, target_slices = subject.slices_in(source_thickness), subject.slices_in(target_thickness)
    source_percent = source_dose if insert_noise is None else insert_noise
    if to_store and source_slices != target_slices:
        raise InputError("The scans of a store lie on one grid: give source and target the same thickness.")
    source = Side.of(source_kernel, source_percent, grid.pixel, source_slices)
    target = Side.of(target_kernel, target_dose, grid.pixel, target_slices)
    whole = whole_slices(chosen, source, target)
    if len(whole) < len(chosen):
        warnings.append(f"The last {len(chosen) - len(whole)} slices fill no slice of both thicknesses: left out.")
        say(f"Note: {warnings[-1]}")
    scanner = _scanner(subject.reach(grid), views, beam, detector_width, focal_spot, photons, tube_modulation)
    for side in (source,) if insert_noise else (source, target):
        _check_sharpness(side.mtf, scanner.geometry)
    lung, emphysema = 0, 0

    def watched(index: int) -> np.ndarray:
        nonlocal lung, emphysema
        hu = subject.slice_of(index)
        if subject.lung_of is not None:
            inside = subject.lung_of(index)
            lung += int(inside.sum())
            emphysema += int((hu[inside] < EMPHYSEMA_BELOW).sum())
        return hu

    desk = Desk(replace(subject, slice_of=watched), scanner, grid, seed, where, say)
    volumes = desk.pair(whole, source, target) if insert_noise is None else desk.insert_noise(whole, source)
    spacing = subject.spacing[2]
    facts = {
        "version": __version__,
        "input": input,
        "slices": [whole.start, whole.stop],
        "source": source.as_dict(),
        "target": target.as_dict() if insert_noise is None else "the input as it is",
        "pixel_spacing": grid.pixel,
        "size": [grid.columns, grid.rows],
        "slice_thickness": spacing,
        "source_thickness": spacing * source_slices,
        "target_thickness": spacing * target_slices,
        "inserted_noise": insert_noise is not None,
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
    if subject.truth is not None:
        facts["truth"] = subject.truth | {"slices_laa950_percent": 100.0 * emphysema / lung if lung else None}
    if to_store:
        own = target if insert_noise is None else replace(source, dose=100.0)
        write_store(output, volumes, {"source": source, "target": own}, facts, subject.name)
        return
    for name in ("simulation.json", "report.html", f"{NOISE_FREE}.nrrd"):  # of an earlier run: not of these images
        (output / name).unlink(missing_ok=True)
    for name, volume in volumes.items():
        side = source if name == "source" else target
        header = _header(side, volume.spacing[2]) if insert_noise is None else _own_header(subject)
        write_nrrd(volume, output / f"{name}.nrrd", header=header)
    write_whole(output / "simulation.json", json.dumps(facts, indent=1) + "\n")
    if report:
        say("measuring for the report")
        sides = {"source": source, "target": target} if insert_noise is None else {"source": source}
        measured = measure_sides(scanner, sides, seed, where)
        write_report(output / "report.html", f"Simulated pair of {subject.name}", facts, volumes, sides, measured)


def _header(side: Side, thickness: float) -> dict[str, str]:
    """What an image's tags say of its scan; no dose, which percent do not tell."""
    return {
        "Manufacturer": SIMULATOR,
        "ConvolutionKernel": simulated_kernel(str(side.kernel), side.mtf),
        "SliceThickness": f"{thickness:g}",
        "SeriesDescription": f"Simulated by CTHarmonize {__version__}",
    }


def _own_header(subject: Subject) -> dict[str, str]:
    """What is still true of a CT that noise was inserted into: the kernel is its own, as far as its tags said."""
    facts = subject.facts or DicomFacts()
    tags = {
        "Manufacturer": facts.manufacturer,
        "ConvolutionKernel": facts.kernel,
        "SliceThickness": f"{facts.slice_thickness or subject.spacing[2]:g}",
    }
    return {name: value for name, value in tags.items() if value}


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
    if mtf.f10 > limit:  # beyond the limit there is nothing: less than a tenth may be lost
        raise InputError(
            f"A kernel with f50 {mtf.f50:.1f} and f10 {mtf.f10:.1f} lp/cm is too sharp for this detector and focal "
            f"spot, which show nothing beyond {limit:.1f} lp/cm."
        )


def _cut_off(subject: Subject, chosen: range) -> list[str]:
    """Sentences on what the field of view of the slices ``chosen`` of a CT does not show, or the scan leaves out."""
    if subject.truth is not None:  # a phantom is drawn whole
        return []
    outside, edge = np.max([_lost(subject, subject.slice_of(index)) for index in chosen], axis=0)
    warnings = []
    if outside > 0.01:
        warnings.append(
            f"Up to {100 * outside:.0f} % of what is denser than lung in a slice lies outside the circle inscribed in "
            "it and is left out: give whole slices, not a cut-out."
        )
    if edge > LARGEST_CUT:
        warnings.append(
            f"Up to {100 * edge:.0f} % of the edge of the field of view lies inside the body, which is cut off there: "
            "the simulated scan knows nothing of the rest and has too little noise; give slices that show the whole "
            "body."
        )
    return warnings


def _lost(subject: Subject, hu: np.ndarray) -> tuple[float, float]:
    """Of a slice ``hu`` (n, n): the share of what is denser than lung that lies outside the inscribed circle, and the
    share of the field of view's edge, of that inside the circle, that is denser than lung."""
    middle = np.arange(len(hu)) - (len(hu) - 1) / 2
    circle = middle**2 + middle[:, None] ** 2 <= (len(hu) / 2) ** 2
    dense = hu > -500.0
    seen, dense_seen = (subject.own_part(image) for image in (circle & (hu > PADDING_BELOW), dense))
    edge = seen & ~binary_erosion(seen, iterations=2)
    return float((dense & ~circle).sum() / max(1, dense.sum())), float(dense_seen[edge].mean()) if edge.any() else 0.0


def _device(name: str) -> torch.device:
    device = choose_device(name)
    if device.type != "mps":
        return device
    if name == "auto":  # Apple's GPUs have no double precision, which the angles need
        return torch.device("cpu")
    raise CannotRunError("Scans cannot be simulated on an Apple GPU: choose the device cpu.")
