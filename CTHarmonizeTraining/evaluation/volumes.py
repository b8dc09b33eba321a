"""How near the thin slices that a model makes of thick ones come to the true ones, beside what needs no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.device import choose_device
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import harmonize
from CTHarmonizeLib.passthrough import interpolated
from CTHarmonizeLib.request import Choice, Request, choose
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.patient import MatchedSet, PatientStore, Reconstruction
from CTHarmonizeTraining.evaluation import measures
from CTHarmonizeTraining.evaluation.candidates import BANDS, FILTER, dose_like, towards
from CTHarmonizeTraining.evaluation.invariance import machine_name
from CTHarmonizeTraining.evaluation.scores import TARGET, Distances, noise
from CTHarmonizeTraining.simulation.pair import NOISE_FREE
from CTHarmonizeTraining.simulation.scan import body_mask

PLANES = ("axial", "coronal", "sagittal")
"""What lies across the axes of (slices, rows, columns)."""

INTERPOLATED, MODEL = "interpolated", "model"
RIVALS = (INTERPOLATED, FILTER, BANDS)
"""What a model has to beat: linear interpolation of the thick slices, as they are or through a classical method."""

_LEAST_BODY = 0.1  # of an image, from which on it counts
_LEAST_SIDE = 11  # pixels of SSIM's window


@dataclass(frozen=True)
class ThinPair:
    """Thick slices and the true thin ones of a store's set. ``thick``: means of the ``source``'s neighbouring slices,
    rounded to whole HU; ``truth`` by name (target, and noise-free where that is known): int16 HU (slices, rows,
    columns); ``body``: bool, likewise."""

    name: str
    thick: Volume
    truth: Mapping[str, np.ndarray]
    body: np.ndarray
    spacing: tuple[float, float, float]
    source: Reconstruction
    target: Reconstruction

    @property
    def clean(self) -> np.ndarray:
        """Noise-free, or as near to it as is known."""
        return self.truth.get(NOISE_FREE, self.truth[TARGET])


def thin_pairs(store: Path, made: int) -> list[ThinPair]:
    """Pairs of all sets in ``store`` for a model that makes so many slices of each. Raises InputError for a store
    without them."""
    opened = PatientStore(store)
    name, several = opened.path.stem, len(opened.sets) > 1
    return [
        _pair(matched, f"{name}, set {number}" if several else name, made)
        for number, matched in enumerate(opened.sets, start=1)
    ]


def _pair(matched: MatchedSet, name: str, made: int) -> ThinPair:
    names = [entry.name for entry in matched.reconstructions]
    if not {"source", TARGET} <= {*names}:
        raise InputError(f"The store '{name}' has no source and target, but {', '.join(names)}.")
    source, target = (matched.reconstructions[names.index(side)] for side in ("source", TARGET))
    thin = matched.volume(names.index("source"))
    if len(thin.hu) < made:
        raise InputError(f"The store '{name}' has {len(thin.hu)} slices, of which no thick one can be made.")
    thick = _thick(thin, made)
    truth = {
        side: matched.hu[names.index(side)][: made * len(thick.hu)] for side in (TARGET, NOISE_FREE) if side in names
    }
    clean = truth.get(NOISE_FREE, truth[TARGET])
    body = np.stack([body_mask(image, thin.pixel_spacing) for image in clean])
    return ThinPair(name, thick, truth, body, thin.spacing, source, target)


def _thick(thin: Volume, count: int) -> Volume:
    """Means of ``count`` neighbouring slices, rounded to whole HU."""
    whole = len(thin.hu) // count * count
    means = thin.hu[:whole].reshape(-1, count, *thin.hu.shape[1:]).mean(1, dtype=np.float32)
    columns, rows, slices = thin.spacing
    step = np.reshape(thin.direction, (3, 3))[:, 2] * slices
    origin = tuple(map(float, np.asarray(thin.origin) + step * (count - 1) / 2.0))
    return Volume(np.rint(means).astype(np.int16), (columns, rows, count * slices), origin, thin.direction)


def judge_volumes(request: Request, store: Path, distances: Distances) -> list[dict]:
    """Scores of the model in ``request`` and of its rivals on each set of a ``store`` of thin pairs.

    Raises InputError where the model makes no thin slices, or the store has none for it.
    """
    choice = choose(towards(request, "medium", 100.0))
    if choice.factor == 1:
        raise InputError(
            f"The method {request.method} leaves slices as thick as they are: evaluate it on a CT volume or phantoms."
        )
    return [_judged(request, choice, pair, distances) for pair in thin_pairs(store, choice.factor)]


def _judged(request: Request, choice: Choice, pair: ThinPair, distances: Distances) -> dict:
    images, seconds = _images(request, choice, pair)
    return {
        "data": pair.name,
        "slices": len(pair.thick.hu),
        "thickness": [pair.thick.spacing[2], pair.spacing[2]],
        "source": {"f50": pair.source.acquisition.f50, "dose": pair.source.dose},
        "target": {"f50": pair.target.acquisition.f50, "dose": pair.target.dose},
        "noise_free": NOISE_FREE in pair.truth,
        "rmse": {
            "noisy" if side == TARGET else "clean": {name: _rmse(image, truth, pair) for name, image in images.items()}
            for side, truth in pair.truth.items()
        },
        "planes": {
            plane: {name: in_plane(axis, image, pair, distances) for name, image in images.items()}
            for axis, plane in enumerate(PLANES)
        },
        "noise": {
            name: noise(image, pair.thick.pixel_spacing)
            for name, image in {**images, TARGET: pair.truth[TARGET]}.items()
        },
        "seconds_a_slice": seconds,
        "machine": machine_name(choose_device(request.device)),
    }


def _images(request: Request, choice: Choice, pair: ThinPair) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Thin slices by name, and what each took, in seconds a slice made. Told is what is told of slices too: the
    kernels, and a dose that has the target's noise."""
    target = pair.target.acquisition

    def made(request: Request) -> tuple[np.ndarray, float]:
        of = choose(towards(request, "medium", 100.0))
        told = towards(request, target.f50, dose_like(target.noise, of, target.f50, 100.0))
        result = harmonize(pair.thick, replace(told, source_kernel=pair.source.acquisition.f50))
        return result.mean.hu, result.report["seconds"]["harmonize"]

    start = time.perf_counter()
    images = {INTERPOLATED: _interpolated(pair.thick.hu, choice.factor)}
    took = time.perf_counter() - start
    seconds = {INTERPOLATED: took}
    for name in (FILTER, BANDS):
        try:
            hu, own = made(Request(method=name, device=request.device))
        except InputError as error:
            if name == FILTER:
                raise
            say(f"{name} is left out of {pair.name}: {error}")
            continue
        images[name], seconds[name] = _interpolated(hu, choice.factor), own + took
    images[MODEL], seconds[MODEL] = made(request)
    return images, {name: value / len(images[name]) for name, value in seconds.items()}


def _interpolated(thick: np.ndarray, factor: int) -> np.ndarray:
    return interpolated(torch.from_numpy(thick.astype(np.float32)), factor).numpy()


def _rmse(image: np.ndarray, truth: np.ndarray, pair: ThinPair) -> dict:
    """Over all voxels of the body, with its interval over slices."""
    squares = measures.squared_error(image, truth, pair.body)
    return asdict(measures.rmse(squares, pair.body.sum((1, 2))))


def in_plane(axis: int, image: np.ndarray, pair: ThinPair, distances: Distances) -> dict:
    """Means over the images across ``axis`` that show enough of the body."""
    image, clean, noisy, body = (
        np.moveaxis(volume, axis, 0) for volume in (image, pair.clean, pair.truth[TARGET], pair.body)
    )
    shown = np.flatnonzero(body.mean((1, 2)) >= _LEAST_BODY)
    triples = [(image[number][None], clean[number][None], body[number][None]) for number in shown]
    large = min(image.shape[1:]) >= _LEAST_SIDE

    def mean(of: Callable[..., float]) -> float | None:
        return float(np.mean([of(*triple) for triple in triples])) if triples else None

    return {
        "images": len(shown),
        "rmse": mean(lambda one, other, mask: float(np.sqrt(np.mean((one[mask] - other[mask].astype(float)) ** 2)))),
        "psnr": mean(measures.psnr),
        "ssim": mean(measures.ssim) if large else None,
        "lpips": {
            backbone: distance(image[shown], noisy[shown]) if len(shown) else None
            for backbone, distance in distances.items()
        },
    }
