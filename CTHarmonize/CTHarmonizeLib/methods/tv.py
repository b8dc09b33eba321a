"""Total-variation denoising: the image nearest to the source with less variation (Rudin, Osher and Fatemi 1992)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.denoising import Denoiser
from CTHarmonizeLib.methods.base import Package

ITERATIONS = 100
"""Of Chambolle's projection (2004), always as many: a stop by the image's own energy would make a slice's result
depend on how much bone it shows."""

WEIGHTS = (0.05, 4.0)
"""Range of the weight, in multiples of the source's noise. The upper end leaves a few percent of the noise."""

_BISECTIONS = 10  # to 0.4 % of the weight


class TotalVariation(Denoiser):
    """scikit-image's ``denoise_tv_chambolle``. The weight itself is solved for the target's noise.

    That is Rudin's and Chambolle's own rule, to choose the weight by the noise that is to be removed. Mixing with the
    source, as the other denoisers do, left a slightly larger error on simulated chests.
    """

    name: ClassVar[str] = "tv"
    title: ClassVar[str] = "Total variation (classical)"
    summary: ClassVar[str] = "Takes noise away down to the target dose and keeps strong edges. Needs no model."
    packages: ClassVar[tuple[Package, ...]] = (Package("scikit-image", "skimage"),)

    def denoise(self, image: np.ndarray, source: Acquisition, strength: float) -> np.ndarray:
        from skimage.restoration import denoise_tv_chambolle

        return denoise_tv_chambolle(image, weight=strength * source.noise, eps=0.0, max_num_iter=ITERATIONS)

    def solve(self, left: Callable[[float], np.ndarray], noise: np.ndarray, wanted: float) -> tuple[float, float]:
        """The weight, by bisection of its logarithm: the more, the less noise stays."""
        low, high = map(math.log, WEIGHTS)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if left(math.exp(middle)).std() < wanted else (middle, high)
        return math.exp(0.5 * (low + high)), 0.0
