"""The images that are compared: the method's, through the real engine, and what it must beat."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from CTHarmonizeLib import engine
from CTHarmonizeLib.ct.acquisition import TRUTH, Acquisition, target_mtf
from CTHarmonizeLib.ct.measure import measure_noise
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.device import choose_device, choose_precision
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.methods.base import Method
from CTHarmonizeLib.request import DOSES, Plan, Request, choose, plan

INPUT, FILTER, ENCODER, SAMPLE, MEAN = "input", "mtf-filter", "encoder", "sample", "mean"
COLUMNS = (INPUT, FILTER, ENCODER, SAMPLE, MEAN)
"""Untouched input, MTF-ratio filter, encoder alone (a deterministic method's output), one sample, mean of all."""


@dataclass(frozen=True)
class Harmonized:
    """What a method makes of one scan: ``images`` (slices, rows, columns) in HU by column; ``deviation`` (float32
    HU; None for a deterministic method); what it was told; its ``warnings``; ``seconds`` a slice by column; share of
    voxels that were ``redrawn``."""

    images: dict[str, np.ndarray]
    deviation: np.ndarray | None
    source: Acquisition
    target: Acquisition
    warnings: list[str]
    seconds: dict[str, float]
    redrawn: float


class Candidates:
    """A method and the MTF-ratio filter, loaded once for many scans.

    ``request``: method, model, samples, seed, device and precision; its targets are set for every scan. Raises
    InputError where the method or model cannot be had.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.choice = choose(towards(request, "medium", 100.0))
        self.filter_choice = choose(Request(kernel="medium", method="mtf-filter"))
        device = choose_device(request.device)
        self.device, self.precision = device, choose_precision(device, request.precision)
        self.method = self.choice.method(self.choice.model, device, self.precision)
        self.filter = self.filter_choice.method(None, device, self.precision)
        self.method.encode = _Remembering(self.method.encode)

    def harmonize(
        self,
        volume: Volume,
        source_kernel: str,
        target_kernel: str,
        target_dose: float,
        reference: np.ndarray | None = None,
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> Harmonized:
        """All columns for ``volume``. As a user would, it tells the kernel and leaves the noise to be measured.

        Of a ``reference`` (slices, rows, columns), HU at the target acquisition, the noise is measured too, and the
        dose that the card gives for it is asked for: patients differ from the card's phantom at the same dose.
        """
        if reference is not None:
            target_dose = self._dose_like(reference, volume.pixel_spacing, target_kernel, target_dose)
        to_kernel = Request(kernel=target_kernel, method="mtf-filter", source_kernel=source_kernel)
        filtered = plan(to_kernel, self.filter_choice, volume)
        request = replace(towards(self.request, target_kernel, target_dose), source_kernel=source_kernel)
        settled = plan(request, self.choice, volume)
        estimating = copy.copy(self.method)
        estimating.stochastic = False  # the engine then takes the estimate, anchored and blended like a sample
        settings = engine.Settings(
            samples=self.choice.samples,
            temperature=self.choice.temperature,
            seed=self.request.seed,
            deviation_factor=self.choice.model.card["deviation_factor"] if self.choice.model else 1.0,
        )
        parts: dict[str, list[np.ndarray]] = {name: [] for name in (FILTER, ENCODER, SAMPLE, MEAN, "deviation")}
        seconds = dict.fromkeys((FILTER, ENCODER, MEAN), 0.0)
        redrawn = drawn = 0

        # Slice by slice, so that encoder and samples share the encoding of which one slice's fits the memory.
        count = volume.shape[0]
        for number in range(count):
            roi = replace(Roi.whole(volume.shape), slices=(number, number + 1))
            one = replace(settings, roi=roi)

            def timed(column: str, method: Method, told: Plan, one: engine.Settings = one) -> engine.Outcome:
                start = time.perf_counter()
                outcome = engine.run(volume, method, told.source, told.target, one)
                seconds[column] += (time.perf_counter() - start) / count
                return outcome

            parts[FILTER].append(timed(FILTER, self.filter, filtered).mean)
            parts[ENCODER].append(timed(ENCODER, estimating, settled).mean)
            if self.method.stochastic:
                outcome = timed(MEAN, self.method, settled)
                parts[SAMPLE].append(outcome.harmonized)
                parts[MEAN].append(outcome.mean)
                parts["deviation"].append(outcome.deviation)
                redrawn += outcome.redrawn
                drawn += outcome.drawn
            progress((number + 1) / count)
        whole = {name: np.concatenate(planes) for name, planes in parts.items() if planes}
        deviation = whole.pop("deviation", None)
        images = {INPUT: volume.hu, **whole}
        return Harmonized(
            images, deviation, settled.source, settled.target, settled.warnings, seconds, redrawn / max(drawn, 1)
        )

    def _dose_like(self, reference: np.ndarray, spacing: float, kernel: str, otherwise: float) -> float:
        """Dose in percent, within the method's reach, whose noise on the card is that of ``reference``."""
        found = measure_noise(reference, spacing)
        if found is None or self.choice.method.makes_truth:
            return otherwise
        low, high = self.choice.model.card["target"]["dose"] if self.choice.model else DOSES
        return float(np.clip(self.choice.table.dose(target_mtf(kernel, spacing).f50, found.sigma), low, high))


def towards(request: Request, kernel: str | float, dose: float) -> Request:
    """``request`` for a target, as far as its method can set it."""
    method = method_named(request.method)
    if method.makes_truth:
        return replace(request, kernel=TRUTH, dose=None)
    fields = method.target_fields
    return replace(request, kernel=kernel if "kernel" in fields else None, dose=dose if "dose" in fields else None)


class _Remembering:
    """A method's ``encode`` that keeps its last state: the encoder alone and the samples of a slice share it."""

    def __init__(self, encode: Callable[[torch.Tensor, Acquisition, Acquisition], Any]) -> None:
        self.encode = encode
        self.last: tuple | None = None

    def __call__(self, planes: torch.Tensor, source: Acquisition, target: Acquisition) -> Any:
        if self.last is not None:
            told, seen, state = self.last
            if told == (source, target) and seen.shape == planes.shape and torch.equal(seen, planes):
                return state
        self.last = None  # two states at once might not fit the memory
        state = self.encode(planes, source, target)
        self.last = ((source, target), planes.clone(), state)
        return state
