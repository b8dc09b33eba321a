"""``ctharmonize-train evaluate --suite papers`` and ``ctharmonize-train report``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.request import Request
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.evidence import suite as suites

SEEDS = (9101, 9102, 9103, 9104)
"""Chests that are judged unless others are asked for; no shipped model was trained on them."""


def evaluate_suite(
    suite: Literal["papers"] = "papers",
    output: Path = Path("evidence"),
    methods: list[str] | None = None,
    phantom: int | list[int] | None = None,
    slices: int = 24,
    samples: int = 8,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    cache: Path | None = None,
    lpips: list[str] | None = None,
) -> None:
    """Measure what the papers measured, for all methods, on simulated chests of known truth: report.html.

    Chests with emphysema, nodules and small lesions are scanned with three kernels at several doses, harmonized by
    every method, and measured: image quality, densitometry, nodules, radiomics, detectability, detection, lesions lost
    and made up, and whether the uncertainty is true. A stopped run goes on where it was.

    Args:
        suite: what is measured; there is one suite.
        output: folder for report.html, its tables and all measurements.
        methods: what is judged; all that can run here where left out.
        phantom: seed or seeds of the chests.
        slices: of 1 mm, of each chest; an even number.
        samples: how many are drawn by methods that do, for mean, deviation and intervals.
        seed: of the samples.
        device: auto, cpu, cuda or mps.
        precision: auto, float32 or bfloat16.
        cache: folder of the simulated scans and of the images; "cache" in the output folder where left out.
        lpips: backbones of LPIPS, alex or vgg; left out where ImageNet's weights cannot be had.
    """
    seeds = [phantom] if isinstance(phantom, int) else [*(phantom or SEEDS)]
    if slices < 16 or slices % 2:
        raise InputError(f"An even number of at least 16 slices is needed, so that nodules fit in, not {slices}.")
    if samples < 4:
        raise InputError(f"At least 4 samples are needed for intervals, not {samples}.")
    request = Request(samples=samples, seed=seed, device=device, precision=precision)
    suites.run(output, seeds, methods, request, cache, slices, lpips or ())
    report(output)


def report(folder: Path) -> None:
    """Write report.html anew from what 'evaluate --suite' measured.

    Args:
        folder: the output folder of 'evaluate --suite'.
    """
    say(f"The report is in {suites.write(folder)}.")
