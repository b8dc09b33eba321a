"""What methods without a model share: a formula makes the result of whole slices, and tiles only cut it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor


class FormulaMethod(Method):
    """A method whose result :meth:`filtered` computes."""

    needs_model: ClassVar[bool] = False

    @abstractmethod
    def filtered(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        """The result (b, rows, columns) in HU of whole ``slices`` (b, rows, columns)."""

    def prepare(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        """The source and the result, (b, 2, rows, columns)."""
        import torch

        return torch.stack([slices, self.filtered(slices, source, target)], dim=1)

    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        return planes[:, 1]

    def estimate(self, state: Tensor) -> Tensor:
        return state

    def implausible(self, samples: Tensor, state: Tensor) -> Tensor:
        return ~samples.isfinite()  # metal may exceed any HU
