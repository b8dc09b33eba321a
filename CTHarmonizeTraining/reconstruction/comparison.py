"""``ctharmonize-train reconstruct``: classical and learned reconstruction of the same measurements, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from CTHarmonizeLib.device import choose_device
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.splits import stores_for
from CTHarmonizeTraining.evaluation.invariance import machine_name
from CTHarmonizeTraining.evaluation.measures import Estimate, estimate
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.reconstruction.figures import draw_images, draw_samples
from CTHarmonizeTraining.reconstruction.reconstructors import (
    Case,
    DeepImagePrior,
    FilteredBackProjection,
    Reconstructor,
    TotalVariation,
    Trained,
    cases,
    check_unseen,
    middle,
)
from CTHarmonizeTraining.simulation.rays import RayTransform

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
"""Numbers of samples of which the mean is judged."""

RESERVED = ("truth", FilteredBackProjection.name, TotalVariation.name, DeepImagePrior.name)
"""Names that no run may have."""

_TUNED_ON = 4  # validation slices on which a weight is chosen; a deep image prior has one


def reconstruct(
    stores: Path,
    output: Path,
    runs: list[Path] | None = None,
    images: int = 32,
    samples: int = 100,
    prior_images: int = 4,
    prior_iterations: int = 400,
    device: str = "auto",
) -> None:
    """Reconstruct measurements with classical and learned methods, and compare them: table, figures and numbers.

    The classical ones (filtered back-projection, total variation, deep image prior with total variation) are tuned on
    the stores' part validation; all are judged on the part test. PSNR and SSIM are those of LoDoPaB-CT: the range is
    the ground truth's own, image by image.

    Args:
        stores: folder that 'import lodopab-pairs' wrote.
        output: folder for reconstruction.json, table.md and the figures.
        runs: output folders of 'fit', of methods that read measurements or their filtered back-projection.
        images: test slices, spread evenly over the patients.
        samples: of a flow, whose mean is its reconstruction.
        prior_images: of them that the deep image prior reconstructs, which takes minutes each; 0 leaves it out.
        prior_iterations: of the deep image prior.
        device: auto, cpu or cuda.
    """
    if images < 1 or samples < 1 or prior_images < 0 or prior_iterations < 10:
        raise InputError("Give one image and one sample or more, and ten iterations or more.")
    where, output = choose_device(device), check_output_folder(output)
    tests = cases(stores_for(stores, "test"), images, where)
    tuned_on = cases(stores_for(stores, "validation"), _TUNED_ON, where)
    rays = tests[0].rays
    for run in runs or ():
        check_unseen(Path(run), stores_for(stores, "test"))
    learned = [Trained(Path(run), rays, where) for run in runs or ()]
    names = [*RESERVED, *(method.name for method in learned)]
    if len({*names}) < len(names):
        raise InputError(f"Runs are told by their folders' names: these are not different, or one of {RESERVED}.")
    side = min([rays.side, *(method.side for method in learned if method.side)])
    transform = RayTransform(rays).to(where)
    methods: list[tuple[Reconstructor, Sequence[Case]]] = [(FilteredBackProjection(tuned_on), tests)]
    say("choosing the weight of the total variation")
    methods.append((TotalVariation(transform, tuned_on), tests))
    if prior_images:
        say("choosing the weight of the deep image prior")
        prior = DeepImagePrior(transform, tuned_on[:1], prior_iterations)
        methods.append((prior, tests[:: max(1, len(tests) // prior_images)][:prior_images]))
    methods += [(method, tests) for method in learned]

    found = [_judged(method, judged, samples, side) for method, judged in methods]
    entries = [one.entry for one in found]
    curves = {one.entry["method"]: one.curve for one in found if one.curve}
    machine = machine_name(where)
    told = {"rays": asdict(rays), "side": side, "machine": machine, "methods": entries, "samples": curves}
    write_whole(output / "reconstruction.json", json.dumps(told, indent=1) + "\n")
    write_whole(output / "table.md", table(told))
    draw_images(
        {"truth": shown(tests[0].truth, side), **{one.entry["method"]: one.image for one in found}},
        {entry["method"]: entry["each"][0] for entry in entries},
        output / "reconstructions.png",
        {one.entry["method"]: one.deviation for one in found if one.deviation is not None},
    )
    if curves:
        draw_samples(curves, output / "samples.png")
    say(f"The table is {output / 'table.md'}.")


@dataclass(frozen=True)
class _Judged:
    """What is told of a method: the table's ``entry``, its ``image`` of the first case; of a flow, the ``curve`` of its
    scores against the number of samples, and their ``deviation`` on that case."""

    entry: dict
    image: np.ndarray
    curve: dict[str, list[float]] | None = None
    deviation: np.ndarray | None = None


def _judged(method: Reconstructor, judged: Sequence[Case], samples: int, side: int) -> _Judged:
    say(f"{method.name}: {len(judged)} images")
    more, curve, deviation = "", None, None
    begun = time.perf_counter()
    if isinstance(method, Trained) and method.draws:
        found = [_means(method, case, samples, side) for case in judged]
        courses = np.mean([course for course, *_ in found], axis=0)
        counts = [count for count in COUNTS if count <= samples]
        curve = {"samples": counts, "psnr": courses[:, 0].tolist(), "ssim": courses[:, 1].tolist()}
        made, deviation = [mean for _, mean, *_ in found], found[0][2]
        seconds, more = sum(took for *_, took in found), f", mean of {samples} samples"
    else:
        made = [shown(method.image(case), side) for case in judged]
        seconds = time.perf_counter() - begun
    scores = [score(image, shown(case.truth, side)) for image, case in zip(made, judged, strict=True)]
    each = [
        {"image": case.name, "psnr": psnr, "ssim": ssim} for case, (psnr, ssim) in zip(judged, scores, strict=True)
    ]
    entry = {
        "method": method.name,
        "settings": method.settings + more,
        "images": len(judged),
        **{key: _estimated([one[key] for one in each]) for key in ("psnr", "ssim")},
        "seconds": seconds / len(judged),
        "each": each,
    }
    return _Judged(entry, made[0], curve, deviation)


def shown(image: Tensor, side: int) -> np.ndarray:
    """The middle (side, side) of an image (1, 1, n, n)."""
    return middle(image, side)[0, 0].cpu().double().numpy()


def score(image: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM (uniform windows of 7 x 7 pixels); the range of both is the truth's own, as LoDoPaB-CT's
    authors take it."""
    span = float(truth.max() - truth.min())
    return tuple(float(of(truth, image, data_range=span)) for of in (peak_signal_noise_ratio, structural_similarity))


def _means(
    method: Trained, case: Case, count: int, side: int
) -> tuple[list[tuple[float, float]], np.ndarray, np.ndarray, float]:
    """Scores of the means of the first :data:`COUNTS` samples, the mean of all ``count``, their deviation, and the
    seconds that drawing them took."""
    truth, scores = shown(case.truth, side), []
    total, squares = np.zeros_like(truth), np.zeros_like(truth)
    seconds, begun = 0.0, time.perf_counter()
    for number, sample in enumerate(method.samples(case, count), start=1):
        image = shown(sample, side)
        seconds += time.perf_counter() - begun
        total += image
        squares += image**2
        if number in COUNTS:
            scores.append(score(total / number, truth))
        begun = time.perf_counter()
    mean = total / count
    return scores, mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0) * count / max(1, count - 1)), seconds


def _estimated(values: Sequence[float]) -> dict:
    """Mean with its 95 % interval over images."""
    found: Estimate = estimate(lambda total, count: total / count, np.array(values), np.ones(len(values)))
    return asdict(found)


def table(told: dict) -> str:
    """Markdown, the best of those judged on all images in bold."""
    rays, most = told["rays"], max(entry["images"] for entry in told["methods"])
    whole = [entry for entry in told["methods"] if entry["images"] == most]
    best = {key: max(entry[key]["value"] for entry in whole) for key in ("psnr", "ssim")}
    lines = [
        f"{rays['views']} views of {rays['beams']} beams, images of {told['side']} x {told['side']} pixels, {most} "
        "test images; PSNR and SSIM with the range of each ground truth, means with 95 % intervals over images; "
        f"seconds an image: {told['machine']}; filtered back-projection on the processor.",
        "",
        "| method | PSNR, dB | SSIM | seconds | settings |",
        "|---|---|---|---|---|",
    ]
    for entry in told["methods"]:
        cells = [entry["method"] + ("" if entry["images"] == most else f" ({entry['images']} images)")]
        for key, digits in (("psnr", 2), ("ssim", 3)):
            value, low, high = (entry[key][part] for part in ("value", "low", "high"))
            bold = "**" if entry in whole and value == best[key] else ""
            cells.append(f"{bold}{value:.{digits}f}{bold} ({low:.{digits}f} to {high:.{digits}f})")
        lines.append("| " + " | ".join([*cells, f"{entry['seconds']:.2g}", entry["settings"]]) + " |")
    return "\n".join(lines) + "\n"
