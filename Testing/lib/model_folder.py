"""Makes small valid model folders for tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

CARD = {
    "name": "Test model",
    "version": "1",
    "method": "ctflow",
    "network": {
        "encoder_blocks": 1,
        "encoder_channels": 4,
        "encoder_growth": 2,
        "encoder_taps": [1],
        "encoder_stride": 2,
        "planes": 2,
        "conditions": 11,
        "levels": 3,
        "steps": 1,
        "opening_steps": 1,
        "hidden": 4,
        "feature_channels": 4,
        "convolution": "orthogonal",
        "form": "residual",
        "residual_gain": 20.0,
    },
    "intensity_window": [-1100.0, 3071.0],
    "pixel_spacing": [0.4, 1.1],
    "slice_thickness": [0.5, 5.0],
    "source": {"f50": [2.0, 8.0], "noise": [3.0, 200.0]},
    "target": {"f50": [2.5, 6.5], "dose": [10.0, 100.0], "thickness": None},
    "noise_at_full_dose": {
        "phantom": "water cylinder of 30 cm",
        "pixel_spacing": 0.7,
        "slice_thickness": 2.0,
        "f50": [2.6, 4.0],
        "sigma": [8.0, 18.0],
    },
    "default_samples": 4,
    "default_temperature": 0.8,
    "deviation_factor": 1.0,
    "anchor_mm": None,
    "halo": 32,
    "training": {"data": [{"name": "none", "licence": "CC0", "use": "none"}], "patients": 0, "simulated": "nothing"},
    "quality": [{"data": "none", "measure": "RMSE, HU", "value": 1.0}],
    "licence": "Apache-2.0",
    "notice": "Research use, not a medical device.",
}

_SHARE = {"value": 0.51, "low": 0.4, "high": 0.6}
CALIBRATION = {
    "stores": ["chest"],
    "crops": 64,
    "pixels": 200000,
    "samples": 64,
    "ensemble": 16,
    "seed": 0,
    "temperatures": [{"temperature": 0.9, "crps": _SHARE, "above_lowest": _SHARE}],
    "coverage": [{"nominal": 0.5, "samples": _SHARE, "before": _SHARE, "after": _SHARE}],
    "factor_interval": [1.1, 1.2],
}
"""What calibration adds to a card."""


def make_model_folder(folder: Path, module: torch.nn.Module | None = None, **changes) -> Path:
    """A model of the network ``module``, an untrained CTFlow of the smallest size where left out, in ``folder``;
    ``changes`` replace entries of the card."""
    from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig

    if module is None:
        torch.manual_seed(1)
        module = CTFlow(CTFlowConfig.from_dict(CARD["network"]))
        for layer in module.modules():
            if hasattr(layer, "initialized"):
                layer.initialized.fill_(True)
    weights = save({name: value.contiguous() for name, value in module.state_dict().items()})
    network = module.config.as_dict()
    card = {**CARD, "network": network, "weights_sha256": hashlib.sha256(weights).hexdigest(), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return folder
