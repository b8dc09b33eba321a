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
from CTHarmonizeLib.ct.acquisition import TRUTH, Acquisition, is_truth, target_mtf
from CTHarmonizeLib.ct.measure import measure_noise
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.device import choose_device, choose_precision
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.methods.base import Method
from CTHarmonizeLib.request import DOSES, Choice, Plan, Request, choose, plan
from CTHarmonizeTraining.evaluation.invariance import machine_name

INPUT, FILTER, BANDS, ENCODER, SAMPLE, MEAN = "input", "mtf-filter", "band-normalization", "encoder", "sample", "mean"
COLUMNS = (INPUT, FILTER, BANDS, ENCODER, SAMPLE, MEAN)
"""Untouched input, MTF-ratio filter, frequency bands, encoder alone (a deterministic method's output), one sample,
mean of all."""

RIVALS = (INPUT, FILTER, BANDS)
"""What a learned method has to beat. The frequency bands are missing where they cannot be measured."""


@dataclass(frozen=True)
class Harmonized:
    """What a method makes of one scan: ``images`` (slices, rows, columns) in HU by column; ``deviation`` (float32
    HU; None for a deterministic method); what it was told; its ``warnings``; ``seconds`` a slice by column, taken on
    ``machine``; share of voxels that were ``redrawn``."""

    images: dict[str, np.ndarray]
    deviation: np.ndarray | None
    source: Acquisition
    target: Acquisition
    warnings: list[str]
    seconds: dict[str, float]
    machine: str
    redrawn: float


class Candidates:
    """A method and its classical rivals, loaded once for many scans.

    ``request``: method, model, samples, seed, device and precision; its targets are set for every scan. Raises
    InputError where the method or model cannot be had.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.choice = choose(towards(request, "medium", 100.0))
        device = choose_device(request.device)
        self.device, self.precision = device, choose_precision(device, request.precision)
        self.method = self.choice.method(self.choice.model, device, self.precision)
        self.method.encode = _Remembering(self.method.encode)
        self.rivals = {}
        for name in (FILTER, BANDS):
            choice = choose(towards(Request(method=name), "medium", 100.0))
            self.rivals[name] = choice, choice.method(None, device, self.precision)

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
        noise = None if reference is None else measure_noise(reference, volume.pixel_spacing)
        f50 = target_mtf(target_kernel, volume.pixel_spacing).f50

        def planned(request: Request, choice: Choice) -> Plan:
            dose = dose_like(noise and noise.sigma, choice, f50, target_dose)
            asked = towards(request, target_kernel, dose)
            if is_truth(target_kernel):  # which the rivals cannot promise, but can be sent towards
                asked = replace(asked, kernel=TRUTH, dose=None)
            return plan(replace(asked, source_kernel=source_kernel), choice, volume)

        settled = planned(self.request, self.choice)
        estimating = copy.copy(self.method)
        estimating.stochastic = False  # the engine then takes the estimate, anchored and blended like a sample
        settings = engine.Settings(
            samples=self.choice.samples,
            temperature=self.choice.temperature,
            seed=self.request.seed,
            deviation_factor=self.choice.model.card["deviation_factor"] if self.choice.model else 1.0,
        )
        parts: dict[str, list[np.ndarray]] = {name: [] for name in (*COLUMNS, "deviation")}
        seconds: dict[str, float] = {}
        count = volume.shape[0]

        def timed(column: str, method: Method, told: Plan, settings: engine.Settings = settings) -> engine.Outcome:
            start = time.perf_counter()
            outcome = engine.run(volume, method, told.source, told.target, settings)
            seconds[column] = seconds.get(column, 0.0) + (time.perf_counter() - start) / count
            parts[column].append(outcome.mean)
            return outcome

        warnings = list(settled.warnings)
        for name, (choice, method) in self.rivals.items():
            try:
                timed(name, method, planned(Request(method=name), choice))
            except InputError as error:
                if name == FILTER:
                    raise
                warnings.append(f"{name} is left out: {error}")
        redrawn = drawn = 0
        if not self.method.stochastic:
            timed(ENCODER, estimating, settled)
            progress(1.0)
        # Slice by slice, so that encoder and samples share the encoding of which one slice's fits the memory.
        for number in range(count if self.method.stochastic else 0):
            one = replace(settings, roi=replace(Roi.whole(volume.shape), slices=(number, number + 1)))
            timed(ENCODER, estimating, settled, one)
            outcome = timed(MEAN, self.method, settled, one)
            parts[SAMPLE].append(outcome.harmonized)
            parts["deviation"].append(outcome.deviation)
            redrawn += outcome.redrawn
            drawn += outcome.drawn
            progress((number + 1) / count)
        whole = {name: np.concatenate(planes) for name, planes in parts.items() if planes}
        deviation = whole.pop("deviation", None)
        images = {INPUT: volume.hu, **whole}
        machine = machine_name(self.device)
        share = redrawn / max(drawn, 1)
        return Harmonized(images, deviation, settled.source, settled.target, warnings, seconds, machine, share)


def dose_like(noise: float | None, choice: Choice, f50: float, otherwise: float) -> float:
    """Dose in percent, within the method's reach, that on its card has the measured ``noise`` (HU) at ``f50``."""
    if noise is None or choice.method.makes_truth:
        return otherwise
    low, high = choice.model.card["target"]["dose"] if choice.model else DOSES
    return float(np.clip(choice.table.dose(f50, noise), low, high))


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
