"""The Wasserstein GANs of Yang et al. (2018), CTFlow's comparators, as methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.methods.base import INVENTED
from CTHarmonizeLib.methods.learned import ImageMethod

if TYPE_CHECKING:
    from CTHarmonizeLib.networks.wgan import WGANGenerator


class _WGANMethod(ImageMethod):
    caution: ClassVar[str] = INVENTED

    @staticmethod
    def build(entries: dict) -> WGANGenerator:
        from CTHarmonizeLib.networks.wgan import WGANConfig, WGANGenerator

        return WGANGenerator(WGANConfig.from_dict(entries))


class WGANMSEMethod(_WGANMethod):
    """The image of a generator trained against a critic and by squared error."""

    name: ClassVar[str] = "wgan-mse"
    title: ClassVar[str] = "WGAN-MSE"
    summary: ClassVar[str] = "Adversarial network with squared error: changes kernel and dose, keeps some texture."


class WGANVGGMethod(_WGANMethod):
    """The image of a generator trained against a critic and by the difference of features."""

    name: ClassVar[str] = "wgan-vgg"
    title: ClassVar[str] = "WGAN-VGG"
    summary: ClassVar[str] = "Adversarial network with perceptual loss: changes kernel and dose, keeps texture."
