"""The physics-informed GAN (Zarei et al. 2024) as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.methods.base import INVENTED
from CTHarmonizeLib.methods.conditioning import mtf_map
from CTHarmonizeLib.methods.learned import ImageMethod

if TYPE_CHECKING:
    from torch import Tensor

    from CTHarmonizeLib.networks.physics import PhysicsGenerator


class PhysicsGANMethod(ImageMethod):
    """The image of a generator that is told the source's MTF and was trained towards the phantoms' noise-free truth."""

    name: ClassVar[str] = "physics-gan"
    title: ClassVar[str] = "Physics-informed GAN"
    summary: ClassVar[str] = "Adversarial network told the source's sharpness: shows the truth as phantoms taught it."
    target_fields: ClassVar[frozenset[str]] = frozenset({"kernel"})
    makes_truth: ClassVar[bool] = True
    caution: ClassVar[str] = f"The result shows the anatomy as no scan could, without noise and blur. {INVENTED}"

    @staticmethod
    def build(entries: dict) -> PhysicsGenerator:
        from CTHarmonizeLib.networks.physics import PhysicsConfig, PhysicsGenerator

        return PhysicsGenerator(PhysicsConfig.from_dict(entries))

    def inputs(self, planes: Tensor, source: Acquisition, target: Acquisition) -> tuple[Tensor, Tensor | None, Tensor]:
        """Planes, conditions, and the source's MTF (b, 1, n, n)."""
        import torch

        mtf = torch.from_numpy(mtf_map(source)).to(planes.device).expand(len(planes), 1, -1, -1)
        return (*super().inputs(planes, source, target), mtf)
