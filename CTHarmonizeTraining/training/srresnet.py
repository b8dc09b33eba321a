"""Training of SRResNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from CTHarmonizeLib.networks.srresnet import SRResNetConfig
from CTHarmonizeTraining.training.image import RegressionTraining


@dataclass(kw_only=True)
class SRResNetTraining(RegressionTraining):
    """SRResNet by regression (Ledig et al. 2017)."""

    method: ClassVar[str] = "srresnet"

    network: SRResNetConfig = SRResNetConfig()
