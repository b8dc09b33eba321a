"""Does the result depend on how the work is divided? And what do many samples cost over one?"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.device import choose_device, choose_precision
from CTHarmonizeLib.harmonization import Result, harmonize
from CTHarmonizeLib.request import Request

IMAGES = ("harmonized", "mean", "standard_deviation", "augmentation_spread")


@dataclass(frozen=True)
class Difference:
    """Of a ``variant`` from the whole slice in float32, by image: ``largest`` and ``rms`` in HU, ``share`` of voxels
    that differ. Harmonized image and mean are whole HU: a difference in the last place of a float shows as 1 HU in a
    few voxels; deviation and spread are not rounded."""

    variant: str
    largest: dict[str, float]
    rms: dict[str, float]
    share: dict[str, float]


def differences(
    volume: Volume,
    request: Request,
    tiles: Sequence[int] = (256, 128),
    batches: Sequence[int] = (2,),
    threads: Sequence[int] = (1,),
    roi: Roi | None = None,
) -> list[Difference]:
    """Runs ``request`` on ``volume`` in many ways with the same seed: tiles of the given sides, so many slices at
    once, so many threads, the region ``roi`` (the middle where None); and where the device would choose bfloat16,
    that too. Each is compared with the untiled float32 run of one slice at a time."""
    usual = torch.get_num_threads()
    plain = replace(request, tile=None, batch=1, threads=usual, roi=None, precision="float32")
    region = roi or _middle(volume.shape)
    variants = [(f"tile {side}", replace(plain, tile=side)) for side in tiles]
    variants += [(f"{count} slices at once", replace(plain, batch=count)) for count in batches]
    variants += [(_threads(count), replace(plain, threads=count)) for count in threads]
    variants += [("region", replace(plain, roi=region))]
    if tiles:
        variants += [(f"region, tile {tiles[-1]}", replace(plain, roi=region, tile=tiles[-1]))]
    if choose_precision(choose_device(request.device)) is torch.bfloat16:
        variants += [("bfloat16", replace(plain, precision="bfloat16"))]
        variants += [(f"bfloat16, tile {side}", replace(plain, precision="bfloat16", tile=side)) for side in tiles[:1]]
    try:
        return compared(volume, plain, variants)
    finally:
        torch.set_num_threads(usual)


def compared(volume: Volume, plain: Request, variants: Sequence[tuple[str, Request]]) -> list[Difference]:
    """How each of the named ``variants`` differs from the run ``plain``."""
    reference = harmonize(volume, plain)
    return [
        _difference(name, reference, harmonize(volume, varied), varied.roi or Roi.whole(volume.shape))
        for name, varied in variants
    ]


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _middle(shape: tuple[int, int, int]) -> Roi:
    """An odd box around the middle: no edge of it lies on a tile's or the latents' grid."""
    columns, rows = ((size // 3 + 1, 2 * size // 3 + 2) for size in (shape[2], shape[1]))
    return Roi(columns, rows, (shape[0] // 2, shape[0]))


def _difference(variant: str, reference: Result, result: Result, roi: Roi) -> Difference:
    largest, rms, share = {}, {}, {}
    there = [image for image in IMAGES if getattr(reference, image) is not None]
    for image in there:
        whole, part = getattr(reference, image).hu, getattr(result, image).hu
        gap = np.abs(whole[roi.index()].astype(np.float64) - part)
        largest[image], rms[image] = float(gap.max()), float(np.sqrt(np.mean(gap**2)))
        share[image] = float(np.count_nonzero(gap) / gap.size)
    return Difference(variant, largest, rms, share)


@dataclass(frozen=True)
class Cost:
    """``one`` and ``many``: median seconds of a run with one sample and with ``samples``; ``ratio`` of the two;
    ``machine``: processor or device, threads, precision."""

    samples: int
    one: float
    many: float
    ratio: float
    machine: str


def cost_of_samples(volume: Volume, request: Request, samples: int = 16, repeats: int = 3) -> Cost:
    """Seconds of the engine's work alone (no reading, describing, loading), the two measured in turns after one run
    that warms up."""
    one, many = [], []
    result = harmonize(volume, replace(request, samples=1))
    for _ in range(repeats):
        one.append(harmonize(volume, replace(request, samples=1)).report["seconds"]["harmonize"])
        many.append(harmonize(volume, replace(request, samples=samples)).report["seconds"]["harmonize"])
    machine = f"{machine_name(torch.device(result.report['device']))}, {result.report['precision']}"
    few, much = statistics.median(one), statistics.median(many)
    return Cost(samples, few, much, much / few, machine)


def machine_name(device: torch.device) -> str:
    """The processor and its threads; before them the ``device``, where that is another one."""
    machine = f"{processor()}, {_threads(torch.get_num_threads())}"
    if device.type == "cpu":
        return machine
    return f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else device}; {machine}"


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
