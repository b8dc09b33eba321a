"""From a trained network to a model folder: ``card.json`` and ``weights.safetensors``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from CTHarmonizeLib.ct.acquisition import parse_kernel
from CTHarmonizeLib.ct.mtf import nyquist
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.ctflow import CTFlowMethod
from CTHarmonizeLib.models import CARD, WEIGHTS, load_model
from CTHarmonizeLib.models.schema import card_problem
from CTHarmonizeTraining.data.pairs import SceneSampler
from CTHarmonizeTraining.training.base import Training

TABLE_F50 = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)
"""f50 (lp/cm) at which a card states the noise at full dose."""

FULL_DOSE_PHOTONS = 2.5e5
"""Photons of 100 % dose for the card, per 0.75 mm of detector."""


def noise_table(stores: Sequence[str | Path], phantom: str, pixel_spacing: float = 0.5) -> dict:
    """A card's ``noise_at_full_dose``: the median over the scenes of phantom ``stores`` of the deviation in HU that
    each kernel shows in water-like tissue at 100 % dose and :data:`FULL_DOSE_PHOTONS`."""
    samplers = [SceneSampler(path) for path in stores]
    sigma = []
    for f50 in TABLE_F50:
        mtf = parse_kernel(f50, pixel_spacing)
        levels = [
            sampler.noise_level(scene, int(np.argmax(sampler.dose[scene])), mtf)
            * np.sqrt(sampler.photons[scene] / FULL_DOSE_PHOTONS)
            for sampler in samplers
            for scene in range(len(sampler))
        ]
        sigma.append(round(float(np.median(levels)), 1))
    return {
        "phantom": phantom,
        "pixel_spacing": pixel_spacing,
        "slice_thickness": float(np.mean([sampler.thickness for sampler in samplers])),
        "f50": list(TABLE_F50),
        "sigma": sigma,
    }


def write_model(weights: dict[str, Tensor], method: Training, facts: dict, folder: str | Path) -> Path:
    """Write a model folder and check that it loads.

    ``facts`` are the card's entries that training does not know: name, version, licence, ``training``, ``quality``,
    ``noise_at_full_dose``, ``halo``, ranges. Subnetworks are stored in half precision where they run in it anyway;
    what inverts stays float32. Raises InputError where the card would not be valid.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: _stored(name, value) for name, value in weights.items()})
    card = {
        **method.card(),
        "notice": "Research use, not a medical device.",
        **facts,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
    }
    problem = card_problem(card)
    if problem:
        raise InputError(f"The card is not complete: {problem}")
    (folder / WEIGHTS).write_bytes(content)
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    CTFlowMethod(load_model(folder), torch.device("cpu"), torch.float32)
    return folder


def _stored(name: str, value: Tensor) -> Tensor:
    convolution = value.ndim == 4 and name.startswith("encoder.")
    return (value.half() if convolution else value).contiguous()


def reachable_f50(pixel_range: tuple[float, float]) -> list[float]:
    """f50 (lp/cm) that training's kernels cover on its pixel sizes."""
    return [2.3, round(0.8 * nyquist(pixel_range[0]), 2)]
