"""What is said when a target has less dose than the source."""

from __future__ import annotations

from dataclasses import replace

import pytest

from CTHarmonizeLib.ct.acquisition import REFERENCE_NOISE, Acquisition, added_noise, target_acquisition

SOURCE = Acquisition(4.0, 6.5, 1.0, 3.0, 0.7, 2.0)


def sentence(noise: float, kernel: str | None, dose: float | None) -> str:
    source = replace(SOURCE, noise=noise)
    return added_noise(source, target_acquisition(source, REFERENCE_NOISE, kernel, dose), REFERENCE_NOISE)


def test_added_noise_is_told() -> None:
    assert "(3 HU) than the target (15 HU)" in sentence(3.0, "medium", 100.0)
    assert "less noise" in sentence(12.0, "medium", 10.0)


@pytest.mark.parametrize(
    ("noise", "kernel", "dose"),
    [(40.0, "medium", 100.0), (14.0, "medium", 100.0), (14.0, "sharp", 100.0), (14.0, "sharp", None)],
)
def test_noise_that_belongs_to_the_kernel_is_not(noise: float, kernel: str, dose: float | None) -> None:
    assert not sentence(noise, kernel, dose)
