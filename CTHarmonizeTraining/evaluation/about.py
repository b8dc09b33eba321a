"""What every evaluation depends on, whatever it judges: kept with its results."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

import CTHarmonizeLib
import CTHarmonizeTraining.evaluation
import CTHarmonizeTraining.simulation
from CTHarmonizeLib.request import Choice, Request
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.evaluation.measures import SCORE_WINDOW
from CTHarmonizeTraining.evaluation.perception import Lpips


def about(
    request: Request, choice: Choice, device: torch.device, precision: torch.dtype, lpips: dict[str, Lpips]
) -> dict:
    """Code, method, model and settings, and the words for its scores."""
    card = choice.model.card if choice.model else None
    low, high = SCORE_WINDOW
    return {
        "version": __version__,
        "code": _code(),
        "method": request.method,
        "sets_kernel": "kernel" in choice.method.target_fields or choice.method.makes_truth,
        "model": card and {key: card[key] for key in ("name", "version", "weights_sha256", "deviation_factor")},
        "samples": choice.samples,
        "temperature": choice.temperature,
        "seed": request.seed,
        "device": str(device),
        "precision": str(precision).removeprefix("torch."),
        "scores": f"PSNR and SSIM: HU clipped to {low:g}..{high:g}, range {high - low:g} HU, against the noise-free "
        "target, inside the body",
        "lpips": {backbone: found.about for backbone, found in lpips.items()},
    }


def _code() -> str:
    """SHA-256 of what computes the scans, the images and their scores."""
    digest = hashlib.sha256()
    for package in (CTHarmonizeLib, CTHarmonizeTraining.evaluation, CTHarmonizeTraining.simulation):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
