"""What the demo harmonizes: a CT slice that pydicom brings along, a simulated chest, or the reader's own scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.errors import InputError

_CHEST_SLICE = 60  # of 2 mm: where airways and vessels branch


@dataclass(frozen=True)
class Case:
    """One scan and what is asked for. ``truth``: file of the noise-free image with the target kernel, where known."""

    name: str
    title: str
    volume: Volume
    kernel: str
    dose: float = 100.0
    truth: Path | None = None


def head() -> Case:
    """A real slice of a head, 512 x 512, from the files inside pydicom. It has less noise than any target, so the
    smooth kernel adds least."""
    from pydicom.data import get_testdata_file

    try:
        volume = read_volume(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))
    except (InputError, TypeError):  # no decoder for JPEG 2000 here, or no such file in this pydicom
        raise InputError(
            "The installed pydicom has no CT slice that can be read: give a scan of your own with CT=path."
        ) from None
    return Case("head", "Head, a real slice", volume, "smooth")


def chest(slices: int, folder: Path) -> Case:
    """A simulated scan of a made-up chest, sharp kernel at 25 % dose, to become medium at 100 %; the pair of scans is
    left in ``folder``."""
    from CTHarmonizeTraining.simulation.command import simulate

    first = _CHEST_SLICE - slices // 2
    simulate("phantom:1", folder, "sharp", 25.0, "medium", 100.0, slices=f"{first}:{first + slices}", thickness=2.0)
    truth = folder / "target_noise_free.nrrd"
    return Case("chest", "Simulated chest", read_volume(folder / "source.nrrd"), "medium", truth=truth)


def own(path: str | Path, slices: int | None, kernel: str, dose: float) -> Case:
    """The reader's scan; ``slices``: only as many, from its middle."""
    volume = read_volume(path)
    if slices is not None and slices < volume.shape[0]:
        first = (volume.shape[0] - slices) // 2
        rows, columns = volume.shape[1:]
        volume = volume.crop(Roi((0, columns), (0, rows), (first, first + slices)))
    name = Path(path).expanduser().resolve().name.split(".")[0] or "scan"
    return Case(name, name, volume, kernel, dose)
