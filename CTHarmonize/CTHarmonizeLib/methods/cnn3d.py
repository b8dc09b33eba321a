"""The same 3D network without a critic: the baseline of the 3D spectral-norm GAN (Wei et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from CTHarmonizeLib.methods.sngan import SNGANMethod


class CNN3DMethod(SNGANMethod):
    """The generator's volume, of a network that learned by the absolute error alone."""

    name: ClassVar[str] = "cnn3d"
    title: ClassVar[str] = "3D CNN"
    summary: ClassVar[str] = (
        "3D network trained for the least error: makes thin slices of thick ones at another dose, smooths texture away."
    )
