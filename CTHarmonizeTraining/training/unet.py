"""Training of the U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from CTHarmonizeLib.networks.unet import UNetConfig
from CTHarmonizeTraining.training.image import RegressionTraining


@dataclass(kw_only=True)
class UNetTraining(RegressionTraining):
    """U-Net by regression (FBP + U-Net, Jin et al. 2017)."""

    method: ClassVar[str] = "unet"

    network: UNetConfig = UNetConfig()
