"""BM3D: similar blocks are stacked and shrunk together in a transform (Dabov et al. 2007), for coloured noise
(Makinen, Azzari and Foi 2020). The package is for non-commercial use only, so it is never installed by itself."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.denoising import Denoiser, noise_power
from CTHarmonizeLib.methods.base import Package

SCALE_HU = 1000.0
"""HU that are 1 to the package, always: it expects images of about that range."""

THRESHOLD, WIENER = 2.7, 1.0
"""Hard threshold in deviations, and weight of the noise in the Wiener stage: those of Dabov et al. Stated, for else the
package looks them up by the spectrum with a function that NumPy 2.4 no longer has."""


class Bm3d(Denoiser):
    """The authors' package ``bm3d``, told the noise's power spectrum, mixed with the source."""

    name: ClassVar[str] = "bm3d"
    title: ClassVar[str] = "BM3D (classical, non-commercial)"
    summary: ClassVar[str] = (
        "Takes noise away down to the target dose by filtering similar blocks together. Needs no model; its package is "
        "for non-commercial use only."
    )
    packages: ClassVar[tuple[Package, ...]] = (
        Package("bm3d>=4.0.3", "bm3d", "whose licence allows non-commercial use only"),
    )

    def denoise(self, image: np.ndarray, source: Acquisition, strength: float) -> np.ndarray:
        import bm3d

        profile = bm3d.BM3DProfile()
        profile.num_threads = 1  # with more its results differ from run to run
        profile.lambda_thr3d, profile.mu2 = THRESHOLD, WIENER
        power = noise_power(source, image.shape) * (strength / SCALE_HU) ** 2
        return SCALE_HU * bm3d.bm3d(image / SCALE_HU, power, profile)
