"""What a run says about itself: the content of ``result.json``."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from CTHarmonizeLib.ct.volume import PADDING_BELOW, Volume
from CTHarmonizeLib.version import __version__

if TYPE_CHECKING:
    import torch

    from CTHarmonizeLib.engine import Outcome
    from CTHarmonizeLib.request import Choice, Plan, Request

NOTICE = "Research use, not a medical device."
_WORTH_A_WARNING = 1e-6  # share of redrawn voxels


def build(
    path: Path | None,
    volume: Volume,
    region: Volume,
    made: Volume,
    request: Request,
    choice: Choice,
    plan: Plan,
    outcome: Outcome,
    device: torch.device,
    precision: torch.dtype,
    seconds: dict[str, float],
    warnings: list[str],
) -> dict:
    """Plain data for JSON. HU statistics are over the region that was computed, ``region``; ``made`` is its result."""
    import torch

    card = choice.model.card if choice.model else None
    return {
        "request": request.as_dict(),
        "input": {
            "path": None if path is None else str(path),
            "shape": list(volume.shape),
            "spacing": list(volume.spacing),
        },
        "output": {"shape": list(made.shape), "spacing": list(made.spacing)},
        "source": plan.description.as_dict(),
        "target": {"acquisition": plan.target.as_dict(), "dose": round(plan.dose, 2)},
        "method": choice.method.name,
        "model": card and {key: card[key] for key in ("name", "version", "weights_sha256", "licence")},
        "samples": choice.samples,
        "temperature": choice.temperature if choice.method.stochastic else None,
        "seed": request.seed,
        "deviation_factor": card["deviation_factor"] if card else 1.0,
        "hu": {
            "input": hu_statistics(region.hu),
            "harmonized": hu_statistics(outcome.harmonized),
            "mean": hu_statistics(outcome.mean),
        },
        "standard_deviation": _deviation(outcome) if choice.method.stochastic else None,
        "augmentation_spread": None if choice.method.stochastic else _deviation(outcome),
        "resampled": {
            "share": outcome.redrawn / outcome.drawn,
            "voxels": outcome.redrawn,
            "replaced_by_estimate": outcome.replaced,
        },
        "device": str(device),
        "precision": str(precision).removeprefix("torch."),
        "at_once": {"slices": outcome.load.slices, "samples": outcome.load.samples, "tile": outcome.load.tile},
        "seconds": seconds,
        "versions": {
            "ctharmonize": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "notes": plan.notes,
        "warnings": warnings,
        "notice": card["notice"] if card else NOTICE,
    }


def _deviation(outcome: Outcome) -> dict[str, float] | None:
    if outcome.deviation is None:
        return None
    return {"mean": float(outcome.deviation.mean(dtype=np.float64)), "largest": float(outcome.deviation.max())}


def outcome_warnings(outcome: Outcome) -> list[str]:
    """Sentences on what went wrong inside a run that still gave a result."""
    share = outcome.redrawn / outcome.drawn
    if share <= _WORTH_A_WARNING:
        return []
    kept = f", and {outcome.replaced} stayed so and became the estimate" if outcome.replaced else ""
    return [
        f"{outcome.redrawn} voxels ({100 * share:.2g} % of all samples) were implausible and were drawn again at a "
        f"lower temperature{kept}: the source may lie outside what the model knows."
    ]


def hu_statistics(hu: np.ndarray) -> dict[str, float]:
    """Smallest, largest, mean, deviation and some percentiles of HU rounded to whole numbers, without padding."""
    whole = hu if hu.dtype == np.int16 else np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
    counts = np.zeros(65536, np.int64)
    for plane in whole:
        counts += np.bincount(plane.ravel().astype(np.int32) + 32768, minlength=65536)
    values = np.arange(-32768, 32768)
    if counts[values > PADDING_BELOW].any():
        counts[values <= PADDING_BELOW] = 0
    share = np.cumsum(counts) / counts.sum()
    mean = float(counts @ values / counts.sum())
    present = values[counts > 0]
    return {
        "minimum": int(present[0]),
        "maximum": int(present[-1]),
        "mean": mean,
        "deviation": math.sqrt(float(counts @ (values - mean) ** 2 / counts.sum())),
        **{f"percentile_{p}": int(values[np.searchsorted(share, p / 100)]) for p in (1, 5, 50, 95, 99)},
    }


def as_json(data: Any, indent: int | None = None) -> str:
    """JSON text, UTF-8; numbers that are not finite become null, as JSON has no others."""
    return json.dumps(_plain(data), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    if isinstance(data, np.generic):
        data = data.item()
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data if data is None or isinstance(data, (str, int, float, bool)) else str(data)
