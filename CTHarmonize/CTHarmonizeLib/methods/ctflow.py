"""CTFlow as a method: one conditional flow for every source and target acquisition (Wei et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.methods.conditioning import to_hu
from CTHarmonizeLib.methods.learned import FlowMethod

if TYPE_CHECKING:
    from torch import Tensor

    from CTHarmonizeLib.networks.ctflow import CTFlow, Encoding


class CTFlowMethod(FlowMethod):
    """Samples of the target image given the source, from the model's network and acquisition numbers."""

    name: ClassVar[str] = "ctflow"
    title: ClassVar[str] = "CTFlow"
    summary: ClassVar[str] = (
        "Normalizing flow: changes kernel and dose, draws plausible images, and shows their mean and deviation."
    )

    @staticmethod
    def build(entries: dict) -> CTFlow:
        from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig

        return CTFlow(CTFlowConfig.from_dict(entries))

    def estimate(self, state: Encoding) -> Tensor:
        """The encoder's estimate, in HU."""
        return to_hu(self.network.to_image(state.estimate), self.window)[:, 0]

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        config, size = self.network.config, 2 if self.precision.itemsize == 2 else 4
        encoder = (config.encoder_channels + 4 * config.encoder_growth) * 4 / config.encoder_stride**2
        shares = sum(2 * config.steps * config.hidden / 4**level for level in range(1, config.levels + 1))
        return int(rows * columns * slices * (size * (encoder + 2 * shares) + 4 * (40 + 24 * samples)))
