"""The random numbers behind the samples: reproducible, and the same in every tile, region, batch and device.

Each latent field is drawn on the processor by Philox, a counter-based generator, for a whole padded slice and then
cropped. Seed, slice, sample, level and attempt are put into the generator's key and counter themselves, so no two
fields share numbers and none depends on the order in which they are drawn.

Samples come in antithetic pairs: sample 2k + 1 has minus the latents of sample 2k. Each is still an exact draw,
since the normal distribution is symmetric; but whatever in a sample is odd in the latents, which is most of its
noise, cancels in the mean of an even number of samples. The deviation is estimated accordingly
(:mod:`CTHarmonizeLib.statistics`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_WORD = (1 << 64) - 1
_KEY = 0x43544861726D6F6E  # second key word, ours alone
_CACHE_BYTES = 256 << 20


def normal_field(
    seed: int, slice_index: int, sample: int, level: int, attempt: int, shape: tuple[int, int, int]
) -> np.ndarray:
    """Independent standard normal numbers of ``shape`` (channels, rows, columns), float32.

    ``slice_index`` is the slice's absolute index and may be negative; ``attempt`` is 0 but for resampled voxels.
    """
    counter = [0, slice_index & _WORD, sample & _WORD, (level << 32) | attempt]
    philox = np.random.Philox(key=np.array([seed & _WORD, _KEY], np.uint64), counter=np.array(counter, np.uint64))
    return np.random.Generator(philox).standard_normal(shape, dtype=np.float32)


def coherence_weights(coherence: float, slice_step: float) -> np.ndarray:
    """Weights along z (odd length, squares sum to 1) that make neighbouring slices' latents alike.

    ``coherence`` is the distance in mm at which the correlation of two slices has fallen to 1/e; 0 keeps slices
    independent. ``slice_step`` in mm. Each slice stays an exact draw.
    """
    sigma = 0.5 * coherence / slice_step
    if sigma < 0.05:
        return np.ones(1)
    radius = int(np.ceil(3.0 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / np.sqrt(np.sum(weights**2))


class Latents:
    """Latents of one run.

    ``shapes``: (channels, rows, columns) of each level for a whole padded slice of ``size`` (rows, columns).
    """

    def __init__(
        self,
        seed: int,
        shapes: list[tuple[int, int, int]],
        size: tuple[int, int],
        temperature: float,
        coherence: float = 0.0,
        slice_step: float = 1.0,
    ) -> None:
        self.seed = seed
        self.shapes = shapes
        self.temperature = temperature
        self.weights = coherence_weights(coherence, slice_step)
        self.strides = [size[0] // rows for _, rows, _ in shapes]
        # With coherence, neighbouring slices share fields; antithetic samples always do.
        field_bytes = 4 * max(1, sum(int(np.prod(shape)) for shape in shapes))
        self._fields = lru_cache(maxsize=max(2, _CACHE_BYTES // field_bytes))(self._draw)

    def _draw(self, slice_index: int, pair: int, attempt: int) -> list[np.ndarray]:
        return [
            normal_field(self.seed, slice_index, 2 * pair, level, attempt, shape)
            for level, shape in enumerate(self.shapes)
        ]

    def draw(self, slices: range, sample: int, region: tuple[slice, slice], attempt: int = 0) -> list[np.ndarray]:
        """Latents of one sample for absolute ``slices``, cropped to ``region`` (rows, columns), in levels.

        Each is (slices, channels, rows, columns), float32, times the temperature, halved with every ``attempt``.
        """
        scale = self.temperature * 0.5**attempt * (-1.0 if sample % 2 else 1.0)
        radius = len(self.weights) // 2
        levels = []
        for level, stride in enumerate(self.strides):
            rows, columns = (slice(part.start // stride, part.stop // stride) for part in region)
            slab = [
                sum(
                    np.float32(weight) * self._fields(index + offset, sample // 2, attempt)[level][:, rows, columns]
                    for offset, weight in enumerate(self.weights, start=-radius)
                )
                for index in slices
            ]
            levels.append(np.float32(scale) * np.stack(slab))
        return levels
