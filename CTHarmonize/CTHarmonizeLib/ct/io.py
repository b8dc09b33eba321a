"""CT volumes in and out of files."""

from __future__ import annotations

import errno
import gzip
import math
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from CTHarmonizeLib.ct.dicom import facts_from_header
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import CannotRunError, InputError

if TYPE_CHECKING:
    import SimpleITK

IMAGE_SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd")


_NRRD_SPACING = re.compile(rb"^(space directions|spacings):(?!.*nan)", re.MULTILINE | re.IGNORECASE)
_META_SPACING = re.compile(rb"^(ElementSpacing|ElementSize)\s*=", re.MULTILINE)
_LONGEST_HEADER = 1 << 20


def read_volume(path: str | os.PathLike) -> Volume:
    """Read a CT volume: a DICOM folder or file, NRRD, NIfTI or MetaImage.

    Values become int16 where they are whole numbers that fit, else float32; they are not changed otherwise, and
    padding outside the field of view stays as it is. Raises InputError with the reason where the file cannot be
    read or is no axial CT volume.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"There is no file or folder '{path}'.")
    if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
        return _read_image(path)
    from CTHarmonizeLib.ct import series

    return series.read_series(path)


def write_nrrd(
    volume: Volume,
    path: str | os.PathLike,
    dtype: str = "int16",
    compress: bool = False,
    header: Mapping[str, str] | None = None,
) -> Path:
    """Write ``volume`` as NRRD of ``dtype`` (``int16``: HU rounded; ``float32``); the file appears whole or not at all.

    ``header``: key-value pairs such as ``ConvolutionKernel`` that :func:`read_volume` finds again as facts. Raises
    CannotRunError where the folder cannot be written or the disk is full.
    """
    import SimpleITK

    path = Path(path)
    hu = volume.hu
    if dtype == "int16" and hu.dtype != np.int16:
        hu = np.clip(np.rint(hu), -32768, 32767)
    if hu.dtype.kind == "f" and not np.isfinite(hu).all():
        raise CannotRunError(f"'{path.name}' was not written: the result holds values that are not numbers.")
    hu = np.ascontiguousarray(hu, dtype=dtype)
    image = SimpleITK.GetImageFromArray(hu)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction)
    for key, value in (header or {}).items():
        image.SetMetaData(key, value)
    partial = path.with_name(f".{uuid4().hex}.nrrd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not compress and shutil.disk_usage(path.parent).free < hu.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        SimpleITK.WriteImage(image, str(partial), useCompression=compress)
        if not compress and partial.stat().st_size < hu.nbytes:  # the library does not notice a short write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(partial, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CannotRunError(
                f"The disk is full: '{path}' needs {hu.nbytes / 1e6:.0f} MB; free some space or choose another folder."
            ) from error
        raise CannotRunError(f"'{path}' cannot be written: {error.strerror or error}.") from error
    except RuntimeError as error:
        raise CannotRunError(
            f"'{path}' cannot be written: check that the folder can be written to and that the disk is not full."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def compact(values: np.ndarray) -> np.ndarray:
    """``values`` as int16 where they are whole numbers that fit, else as float32."""
    if values.dtype == np.int16:
        return values
    fits = values.size > 0 and values.min() >= -32768 and values.max() <= 32767  # False with NaN
    if fits and (values.dtype.kind in "iu" or all(np.array_equal(part, np.rint(part)) for part in values)):
        return values.astype(np.int16)
    return values.astype(np.float32, copy=False)


def _read_image(path: Path) -> Volume:
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"'{path.name}' cannot be read: {_reason(error)}.") from error
    _check_whole(path, image)
    if not _states_spacing(path):
        raise InputError(
            f"'{path.name}' does not state the size of its voxels, without which sharpness cannot be told: save it "
            "with its spacing."
        )
    warnings: list[str] = []
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"'{path.name}' has {image.GetNumberOfComponentsPerPixel()} values in each voxel: a CT volume has one."
        )
    if image.GetPixelID() in (SimpleITK.sitkComplexFloat32, SimpleITK.sitkComplexFloat64):
        raise InputError(f"'{path.name}' holds complex numbers: this is not a CT volume.")
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = SimpleITK.Extract(image, [*image.GetSize()[:-1], 0], [0] * image.GetDimension())
    if image.GetDimension() > 3:
        raise InputError(f"'{path.name}' has {image.GetDimension()} dimensions: give one 3D volume of it.")
    if image.GetDimension() == 2:
        image = SimpleITK.JoinSeries(image)
    keys = image.GetMetaDataKeys()
    facts = facts_from_header({key: image.GetMetaData(key) for key in keys})
    if image.GetSize()[2] == 1:
        warnings.append("The volume has one slice only: the slice thickness is what the file states.")
    return Volume(
        compact(SimpleITK.GetArrayFromImage(image)),
        tuple(image.GetSpacing()),
        tuple(image.GetOrigin()),
        tuple(image.GetDirection()),
        facts,
        tuple(warnings),
    )


def _reason(error: RuntimeError) -> str:
    """Why the library refused, in plain words: its own are of no use to a reader, but for NRRD's."""
    text = str(error).strip()
    if "orthonormal" in text:
        return "its axes are not perpendicular (a sheared or scaled orientation), which CTHarmonize cannot represent"
    last = text.splitlines()[-1].strip() if text else ""
    if last.startswith("[nrrd]") and ": " in last:
        return f"it is damaged or incomplete ({last.split(': ', 1)[1].rstrip('.')})"
    return "it is damaged, incomplete, or not of the kind that its name says"


def _states_spacing(path: Path) -> bool:
    """Whether an NRRD or MetaImage header states a spacing; the library takes 1 mm where it does not."""
    fields = {".nrrd": _NRRD_SPACING, ".nhdr": _NRRD_SPACING, ".mha": _META_SPACING, ".mhd": _META_SPACING}
    spacing = fields.get(path.suffix.lower())
    if spacing is None:
        return True
    with open(path, "rb") as file:
        header = file.read(_LONGEST_HEADER)
    # NRRD's header ends with an empty line, MetaImage's with the name of its data
    header = re.split(rb"\r?\n\r?\n|^ElementDataFile", header, maxsplit=1, flags=re.MULTILINE)[0]
    return spacing.search(header) is not None


def _check_whole(path: Path, image: SimpleITK.Image) -> None:
    """Raise InputError for a NIfTI file that ends too early: the library would fill up with zeros, which is water."""
    keys = image.GetMetaDataKeys()
    if "vox_offset" not in keys or "bitpix" not in keys or not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    voxels = math.prod(image.GetSize()) * image.GetNumberOfComponentsPerPixel()
    expected = int(float(image.GetMetaData("vox_offset"))) + voxels * int(image.GetMetaData("bitpix")) // 8
    size = 0
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
            while part := file.read(1 << 24):
                size += len(part)
    except (OSError, EOFError, zlib.error):
        pass  # the stream breaks off: what came before it counts
    if size < expected:
        raise InputError(f"'{path.name}' is incomplete: it holds {size} of {expected} bytes.")
