"""SRResNet as a method (Ledig et al. 2017; CTFlow's comparator)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.methods.learned import ImageMethod

if TYPE_CHECKING:
    from CTHarmonizeLib.networks.srresnet import SRResNet


class SRResNetMethod(ImageMethod):
    """The SRResNet's image."""

    name: ClassVar[str] = "srresnet"
    title: ClassVar[str] = "SRResNet"
    summary: ClassVar[str] = (
        "Residual network trained for the least error: changes kernel and dose, smooths texture away."
    )

    @staticmethod
    def build(entries: dict) -> SRResNet:
        from CTHarmonizeLib.networks.srresnet import SRResNet, SRResNetConfig

        return SRResNet(SRResNetConfig.from_dict(entries))
