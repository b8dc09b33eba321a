"""The conditional invertible neural network as a method (Denker et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import to_hu
from CTHarmonizeLib.methods.learned import FlowMethod

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from CTHarmonizeLib.models import Model
    from CTHarmonizeLib.networks.cinn import CINN, Encoding


class CINNMethod(FlowMethod):
    """Samples of the target image given the source, from a fully convolutional cINN; its estimate is the image of zero
    latents, the middle of the distribution in the latents' space and not its mean."""

    name: ClassVar[str] = "cinn"
    title: ClassVar[str] = "cINN"
    summary: ClassVar[str] = (
        "Conditional invertible network: changes kernel and dose, draws plausible images, and shows their mean and "
        "deviation."
    )

    def __init__(self, model: Model | None, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(model, device, precision)
        side = self.network.config.dense_size
        if side is not None:
            raise InputError(
                f"The model in {model.folder} has a dense last level, which fits only images of {side} x {side} "
                "pixels: choose a fully convolutional one (dense_size: null)."
            )

    @staticmethod
    def build(entries: dict) -> CINN:
        from CTHarmonizeLib.networks.cinn import CINN, CINNConfig

        return CINN(CINNConfig.from_dict(entries))

    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> tuple[Encoding, Tensor]:
        """States of all layers for a tile, and the image of zero latents (b, h, w) in HU."""
        encoding = self.network.encode(*self.inputs(planes, source, target))
        shapes = self.latent_shapes(*planes.shape[2:])
        zeros = [planes.new_zeros(len(planes), *shape) for shape in shapes]
        return encoding, to_hu(self.network.inverse(zeros, encoding), self.window)[:, 0]

    def estimate(self, state: tuple[Encoding, Tensor]) -> Tensor:
        """The image of zero latents, in HU."""
        return state[1]

    def sample(self, state: tuple[Encoding, Tensor], latents: list[Tensor]) -> Tensor:
        return super().sample(state[0], latents)

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        config, size = self.network.config, self.precision.itemsize
        widest = 128 / 4
        if config.conditioning == "encoder":
            widest = (config.encoder_channels + 4 * config.encoder_growth) * 4 / config.encoder_stride**2
        shares = sum(4 * config.blocks * config.hidden[0] / 4**level for level in range(1, len(config.kept) + 1))
        share = size * (widest + 2 * shares + sum(config.hidden))
        return int(rows * columns * slices * (share + 4 * (40 + 24 * samples)))
