"""The 3D spectral-norm GAN as a method (Wei et al. 2020): dose and slice thickness at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.methods.base import INVENTED
from CTHarmonizeLib.methods.learned import VolumeMethod

if TYPE_CHECKING:
    from CTHarmonizeLib.networks.sngan import VolumeGenerator


class SNGANMethod(VolumeMethod):
    """The generator's volume."""

    name: ClassVar[str] = "sngan"
    title: ClassVar[str] = "3D SN-GAN"
    summary: ClassVar[str] = (
        "3D network trained against a critic: makes thin slices of thick ones at another dose, with a texture that is "
        "plausible and not measured."
    )
    caution: ClassVar[str] = INVENTED
    usual_ratio: ClassVar[int] = 2

    @staticmethod
    def build(entries: dict) -> VolumeGenerator:
        from CTHarmonizeLib.networks.sngan import VolumeGenerator, VolumeGeneratorConfig

        return VolumeGenerator(VolumeGeneratorConfig.from_dict(entries))
