"""U-Net as a method (Jin et al. 2017; the physics-informed paper's ablation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.methods.learned import ImageMethod

if TYPE_CHECKING:
    from CTHarmonizeLib.networks.unet import UNet


class UNetMethod(ImageMethod):
    """The U-Net's image."""

    name: ClassVar[str] = "unet"
    title: ClassVar[str] = "U-Net"
    summary: ClassVar[str] = "Network trained for the least error: changes kernel and dose, smooths texture away."

    @staticmethod
    def build(entries: dict) -> UNet:
        from CTHarmonizeLib.networks.unet import UNet, UNetConfig

        return UNet(UNetConfig.from_dict(entries))
