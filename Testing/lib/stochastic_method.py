"""A small stochastic method for tests of the engine: convolutions, and latents at strides 2, 4 and 8."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.methods.base import Method

ACQUISITION = Acquisition(
    f50=4.0, f10=6.6, mtf_peak=1.0, noise=20.0, pixel_spacing=0.8, slice_thickness=2.0, noise_frequency=None
)


class NoisyConvolution(Method):
    """Estimate: a convolution. Sample: that, plus filtered latents whose strength follows the image, and a part
    that is even in the latents, so that antithetic samples do not cancel exactly."""

    name = "noisy-convolution"
    title = summary = "For tests."
    stochastic = True
    needs_model = False
    target_fields = frozenset({"kernel", "dose"})
    window = (-1100.0, 3000.0)
    halo = 16  # 8 for the estimate and the latents' convolution, and the coarsest latent's support
    multiple = 8

    def __init__(self, amplitude: float = 10.0, anchor_mm: float | None = None) -> None:
        super().__init__(None, torch.device("cpu"), torch.float32)
        random = np.random.default_rng(5)
        kernel = random.random((1, 2, 7, 7)).astype(np.float32)
        shares = np.array([1.0, 0.1], np.float32)[:, None, None]  # of the two planes
        self.kernel = torch.from_numpy(shares * kernel / kernel.sum((2, 3), keepdims=True))
        self.mixers = [torch.from_numpy(random.normal(size=(1, c, 3, 3)).astype(np.float32)) / 6 for c in (2, 4, 16)]
        self.amplitude = amplitude
        self.anchor_mm = anchor_mm
        self.encoded: list[tuple[int, ...]] = []
        self.sampled: list[int] = []

    def prepare(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        # A global operation: tiles must get it as the whole slice has it.
        return torch.stack([slices, slices - slices.mean(dim=(1, 2), keepdim=True)], dim=1)

    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        self.encoded.append(tuple(planes.shape))
        return F.conv2d(F.pad(planes, (3, 3, 3, 3), mode="replicate"), self.kernel)[:, 0]

    def estimate(self, state: Tensor) -> Tensor:
        return state

    def latent_shapes(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        return [(2, rows // 2, columns // 2), (4, rows // 4, columns // 4), (16, rows // 8, columns // 8)]

    def sample(self, state: Tensor, latents: list[Tensor]) -> Tensor:
        count, slices = latents[0].shape[:2]
        self.sampled.append(count)
        noise = 0.0
        for latent, mixer in zip(latents, self.mixers, strict=True):
            mixed = F.conv2d(latent.flatten(0, 1), mixer, padding=1)
            noise = noise + F.interpolate(mixed, size=state.shape[-2:], mode="nearest")[:, 0]
        noise = noise.unflatten(0, (count, slices))
        strength = self.amplitude * (1.0 + 0.2 * torch.tanh(state / 500.0))
        return state + strength * (noise + 0.2 * noise**2)


def chest(slices: int = 3, rows: int = 72, columns: int = 90, seed: int = 1) -> Volume:
    """A noisy disc of soft tissue with bone in air; int16 HU."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    radius = np.hypot((y - rows / 2) / rows, (x - columns / 2) / columns)
    image = np.where(radius < 0.4, 40.0, -1000.0)
    image[np.hypot(y - rows / 2, x - columns / 3) < rows / 12] = 900.0
    hu = image + random.normal(0.0, 20.0, (slices, rows, columns))
    return Volume(np.rint(hu).astype(np.int16), (0.8, 0.8, 2.0), (-10.0, 20.0, 5.0))
