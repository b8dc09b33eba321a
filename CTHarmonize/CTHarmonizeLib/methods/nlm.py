"""Non-local means: each pixel becomes a mean of those whose surroundings look alike (Buades, Coll and Morel 2005)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.denoising import Denoiser
from CTHarmonizeLib.methods.base import Package

PATCH, REACH = 5, 6
"""Pixels of the patches that are compared, and how far from each other they may lie."""

CUT_OFF = 0.8
"""h in multiples of the noise: the literature's for weights exp(-max(d - 2 sigma^2, 0) / h^2), d the mean squared
difference of two patches (Darbon et al. 2008, scikit-image). On simulated chests 0.4 and 0.6 left a larger error, and
1.0 shifted soft tissue more."""


class NonLocalMeans(Denoiser):
    """scikit-image's ``denoise_nl_means`` in its fast mode, mixed with the source."""

    name: ClassVar[str] = "nlm"
    title: ClassVar[str] = "Non-local means (classical)"
    summary: ClassVar[str] = (
        "Takes noise away down to the target dose by averaging places that look alike. Needs no model."
    )
    packages: ClassVar[tuple[Package, ...]] = (Package("scikit-image", "skimage"),)

    def denoise(self, image: np.ndarray, source: Acquisition, strength: float) -> np.ndarray:
        from skimage.restoration import denoise_nl_means

        # float64: the fast mode sums squares over the whole slice and takes differences of the sums
        return denoise_nl_means(
            image, PATCH, REACH, h=strength * CUT_OFF * source.noise, fast_mode=True, sigma=source.noise
        )
