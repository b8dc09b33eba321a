"""CTHarmonize's engine: harmonizes CT volumes across kernels and doses. Plain Python, no Slicer.

    from CTHarmonizeLib import harmonize, describe, compare, installedModels

Importing this imports neither torch nor any other library; the functions import what they need.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from CTHarmonizeLib.errors import Cancelled, CannotRunError, CTHarmonizeError, InputError
from CTHarmonizeLib.version import __version__

if TYPE_CHECKING:
    import os

    from CTHarmonizeLib.comparison import Comparison
    from CTHarmonizeLib.ct.describe import Description
    from CTHarmonizeLib.ct.volume import Volume
    from CTHarmonizeLib.harmonization import Result
    from CTHarmonizeLib.models import BrokenModel, Model

__all__ = [
    "CTHarmonizeError",
    "Cancelled",
    "CannotRunError",
    "InputError",
    "__version__",
    "compare",
    "describe",
    "harmonize",
    "installedModels",
]


def harmonize(volume: Volume | str | os.PathLike, kernel: str | float | None = None, **options: Any) -> Result:
    """Harmonize a CT volume, or the DICOM folder, NRRD, NIfTI or MetaImage at a path.

    ``kernel``: ``smooth``, ``medium``, ``sharp`` or an f50 in lp/cm; ``options`` are the other fields of
    :class:`CTHarmonizeLib.request.Request` (``dose``, ``method``, ``model``, ``samples``, ``seed``, ...),
    ``progress(fraction, stage)`` and ``cancelled() -> bool``. Returns the volumes and a report.
    Raises InputError, CannotRunError or Cancelled.

    Example: ``harmonize("scan.nrrd", "medium", dose=100).save("out")``
    """
    from CTHarmonizeLib.harmonization import harmonize as run
    from CTHarmonizeLib.request import Request

    callbacks = {name: options.pop(name) for name in ("progress", "cancelled") if options.get(name) is not None}
    return run(volume, Request(kernel=kernel, **options), **callbacks)


def describe(
    volume: Volume | str | os.PathLike,
    source_kernel: str | float | None = None,
    source_dose: float | None = None,
) -> Description:
    """Acquisition of a CT volume or file: each value, and whether it was read, measured or given; warnings of the
    reading too."""
    from CTHarmonizeLib.ct.describe import describe as run
    from CTHarmonizeLib.ct.volume import check_ct

    volume = _as_volume(volume)
    check_ct(volume)
    description = run(volume, source_kernel=source_kernel, source_dose=source_dose)
    return replace(description, warnings=(*volume.warnings, *description.warnings))


def compare(
    before: Volume | str | os.PathLike,
    after: Volume | str | os.PathLike,
    reference: Volume | str | os.PathLike | None = None,
) -> Comparison:
    """Noise, sharpness, HU of tissues and measures of the lungs in two volumes or files on one grid, and in a
    ``reference`` of what the second should be like. Raises InputError."""
    from CTHarmonizeLib.comparison import compare_volumes

    return compare_volumes(_as_volume(before), _as_volume(after), None if reference is None else _as_volume(reference))


def installedModels(extraFolders: list[str | os.PathLike] | tuple = ()) -> list[Model | BrokenModel]:
    """The models that are installed, embedded ones first; unusable folders with their reason."""
    from CTHarmonizeLib.models import installed_models

    return installed_models(extraFolders)


def _as_volume(volume: Volume | str | os.PathLike) -> Volume:
    from CTHarmonizeLib.ct.io import read_volume
    from CTHarmonizeLib.ct.volume import Volume

    return volume if isinstance(volume, Volume) else read_volume(volume)
