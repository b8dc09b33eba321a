"""Running mean and standard deviation, without keeping the images."""

from __future__ import annotations

import torch
from torch import Tensor


class PairStatistics:
    """Mean and deviation of samples that are added one by one, in order; samples 2k and 2k + 1 are a pair.

    A pair's members are x = p + d and x = p - d with the pair's mean p and half difference d. Since E[d] = 0 and p
    and d are uncorrelated (the members may be exchanged), Var(x) = Var(p) + E[d^2]. Both parts are estimated
    without bias: E[d^2] by its average, Var(p) by the usual variance over independent pairs (Welford's update).
    The ordinary N - 1 formula over all samples would be too high for pairs that cancel. An unpaired last sample
    counts for the mean alone; with one pair only E[d^2] is known, a lower bound.
    """

    def __init__(self, like: Tensor) -> None:
        self.pairs = 0
        self._mean = torch.zeros_like(like)
        self._squares = torch.zeros_like(like)
        self._halves = torch.zeros_like(like)
        self._held: Tensor | None = None

    def add(self, sample: Tensor) -> None:
        """Take in the next sample."""
        if self._held is None:
            self._held = sample
            return
        middle, half = 0.5 * (self._held + sample), 0.5 * (self._held - sample)
        self._held = None
        self.pairs += 1
        change = middle - self._mean
        self._mean += change / self.pairs
        self._squares += change * (middle - self._mean)
        self._halves += half**2

    def mean(self) -> Tensor:
        """Mean of all samples so far."""
        if self._held is None:
            return self._mean
        return self._mean + (self._held - self._mean) / (2 * self.pairs + 1)

    def deviation(self) -> Tensor:
        """Standard deviation of one sample (root of the unbiased variance); zero before the first pair."""
        if self.pairs == 0:
            return torch.zeros_like(self._mean)
        variance = self._halves / self.pairs
        if self.pairs > 1:
            variance = variance + self._squares / (self.pairs - 1)
        return variance.sqrt()


class Spread:
    """Standard deviation of images that are added one by one, over the images that there are (Welford's update)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, image: Tensor) -> None:
        """Take in the next image."""
        if self._mean is None or self._squares is None:
            self._mean, self._squares = torch.zeros_like(image), torch.zeros_like(image)
        self.count += 1
        change = image - self._mean
        self._mean += change / self.count
        self._squares += change * (image - self._mean)

    def deviation(self) -> Tensor:
        """Root of the mean squared distance from the mean; the images are all there are, not a sample of more."""
        return (self._squares / self.count).sqrt()
