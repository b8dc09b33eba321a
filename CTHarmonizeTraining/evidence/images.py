"""What a method makes of a case's scans, told what a user would tell it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

import CTHarmonizeLib
from CTHarmonizeLib import engine, methods
from CTHarmonizeLib.ct.acquisition import target_mtf
from CTHarmonizeLib.ct.measure import measure_noise
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.device import choose_device, choose_precision
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.request import Request, choose, plan
from CTHarmonizeTraining.evaluation.candidates import dose_like, towards
from CTHarmonizeTraining.evaluation.invariance import machine_name
from CTHarmonizeTraining.evidence.cases import Case, Scan
from CTHarmonizeTraining.evidence.kept import fingerprint, kept
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED, Image
from CTHarmonizeTraining.training.origin import check_test_data

MEAN, ONE = "mean", "one image"
"""What is shown of a method that draws samples: after a comma behind its name."""

_COMPUTING = (
    "ct/acquisition.py", "ct/describe.py", "ct/edge.py", "ct/kernels.py", "ct/measure.py", "ct/mtf.py", "denoising.py",
    "engine.py", "latents.py", "methods", "networks", "passthrough.py", "request.py", "statistics.py", "tiling.py",
)  # fmt: skip


def installed(names: Sequence[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Methods that can run here, of those named or of all, and why others cannot. Raises InputError for unknown
    names."""
    found, missing = [], {}
    for name in names or methods.available():
        methods.method_named(name)
        try:
            choose(towards(Request(method=name), "medium", 100.0))
        except (InputError, CannotRunError) as error:
            missing[name] = str(error)
        else:
            found.append(name)
    return found, missing


class Maker:
    """The method of ``request``, loaded once for many scans; what it made is kept in ``folder``."""

    def __init__(self, request: Request, folder: Path) -> None:
        self.request, self.folder = request, folder
        self.choice = choose(towards(request, "medium", 100.0))
        self.device = choose_device(request.device)
        self.precision = choose_precision(self.device, request.precision)
        self.method = self.choice.method(self.choice.model, self.device, self.precision)

    @property
    def draws(self) -> bool:
        """Whether the method draws samples."""
        return self.method.stochastic

    @property
    def slices_made(self) -> int:
        """Of each source slice."""
        return self.choice.factor

    @property
    def sets_kernel(self) -> bool:
        """Whether the method can give another kernel than the source's."""
        return "kernel" in self.method.target_fields or self.method.makes_truth

    def check_unseen(self, seeds: Sequence[int]) -> None:
        """Raise InputError where the model was trained on one of these chests."""
        if self.choice.model and "sources" in (trained := self.choice.model.card["training"]):
            check_test_data(trained, None, seeds)

    def facts(self) -> dict:
        """What its images depend on, but for the scans."""
        model = self.choice.model
        return {
            "method": self.request.method,
            "model": model and {key: model.card[key] for key in ("name", "version", "weights_sha256")},
            "samples": self.choice.samples,
            "temperature": self.choice.temperature,
            "seed": self.request.seed,
            "device": str(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "machine": machine_name(self.device),
        }

    def key(self, case: Case, source: Scan, target: Scan) -> str:
        """What tells the images of these scans from others."""
        digest = hashlib.sha256()
        digest.update(np.ascontiguousarray(case.scans[source]))
        digest.update(np.ascontiguousarray(case.references[target]))
        facts = {**self.facts(), "code": _code(), "region": repr(case.region), "scans": [source, target]}
        digest.update(json.dumps({k: v for k, v in facts.items() if k != "machine"}, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def images(self, case: Case, source: Scan, target: Scan) -> list[Image]:
        """Of a deterministic method one image, else its mean and one of the samples. Raises InputError where the
        method cannot reach ``target``."""
        name = self.request.method
        made = kept(self._path(case, source, target), lambda: self._made(case, source, target))
        if not self.draws:
            return [Image(name, source, target, made["mean"])]
        samples = made["samples"]
        return [
            Image(f"{name}, {MEAN}", source, target, made["mean"], made["deviation"], samples),
            Image(f"{name}, {ONE}", source, target, samples[0]),
        ]

    def told(self, case: Case, source: Scan, target: Scan) -> tuple[float, list[str]]:
        """Of images that are kept: seconds for each slice, and what was warned of."""
        with np.load(self._path(case, source, target), allow_pickle=False) as made:
            return float(made["seconds"]), str(made["warnings"]).splitlines()

    def _path(self, case: Case, source: Scan, target: Scan) -> Path:
        return self.folder / f"{self.request.method}-{self.key(case, source, target)}.npz"

    def _made(self, case: Case, source: Scan, target: Scan) -> dict[str, np.ndarray]:
        """What the engine makes, and what it took for each slice."""
        volume, region = self._given(case, source)
        noise = measure_noise(case.references[target], case.spacing[0])
        f50 = target_mtf(target.kernel, case.spacing[0]).f50
        asked = towards(self.request, target.kernel, dose_like(noise and noise.sigma, self.choice, f50, target.dose))
        settled = plan(replace(asked, source_kernel=source.kernel), self.choice, volume)
        settings = engine.Settings(
            samples=self.choice.samples,
            temperature=self.choice.temperature,
            seed=self.request.seed,
            deviation_factor=self.choice.model.card["deviation_factor"] if self.choice.model else 1.0,
            roi=region,
            keep_samples=True,
        )
        start = time.perf_counter()
        outcome = engine.run(volume, self.method, settled.source, settled.target, settings)
        made = {
            "mean": outcome.mean,
            "seconds": np.array((time.perf_counter() - start) / len(outcome.mean)),
            "warnings": np.array("\n".join(settled.warnings)),
        }
        return made | ({"samples": outcome.samples, "deviation": outcome.deviation} if self.draws else {})

    def _given(self, case: Case, source: Scan) -> tuple[Volume, Roi]:
        """The scan, and what to compute of it. For a method that makes thin slices of thick ones: means of neighbours,
        which are what a scanner makes of the same readings."""
        volume, factor = case.volume(source), self.choice.factor
        if factor == 1:
            return volume, case.region
        count = len(volume.hu) // factor
        thick = volume.hu[: count * factor].reshape(count, factor, *volume.hu.shape[1:]).mean(1, dtype=np.float32)
        columns, rows, slices = case.spacing
        given = Volume(np.rint(thick).astype(np.int16), (columns, rows, factor * slices))
        return given, replace(case.region, slices=(0, count))


def untouched(case: Case, source: Scan, target: Scan) -> Image:
    """The source scan as it is."""
    return Image(UNTOUCHED, source, target, case.seen(case.scans[source]))


def reference(case: Case, target: Scan) -> Image:
    """The scan at the target's acquisition."""
    return Image(REFERENCE, target, target, case.seen(case.references[target]))


@cache
def _code() -> str:
    """SHA-256 of the code that computes the images."""
    place = Path(CTHarmonizeLib.__file__).parent
    files = [path for name in _COMPUTING for path in sorted((place / name).rglob("*.py")) or [place / name]]
    return fingerprint(*files)
