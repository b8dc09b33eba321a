"""What a CT file's own tags say about its acquisition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True)
class DicomFacts:
    """Acquisition tags of a CT series; None or empty where the file does not say.

    ``kernel`` is the raw convolution kernel, its values joined by ``\\`` (``Br40f\\3``). Millimetres, kV, mAs.
    ``origin`` is where the facts come from: ``dicom`` tags or a ``header``'s key-value pairs.
    """

    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    iterative_strength: str = ""
    exposure_mas: float | None = None
    kvp: float | None = None
    slice_thickness: float | None = None
    pixel_spacing: float | None = None
    series_description: str = ""
    image_type: tuple[str, ...] = ()
    origin: str = "dicom"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def text_value(dataset: Dataset, keyword: str) -> str:
    """Value of a tag as clean text, several values joined by a backslash; empty where missing or unreadable."""
    return "\\".join(text_values(dataset, keyword))


def text_values(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Values of a tag as clean texts."""
    value = _get(dataset, keyword)
    if value is None:
        return ()
    values = value if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)) else [value]
    texts = (_clean(item) for item in values)
    return tuple(text for text in texts if text)


def number_values(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Values of a tag as floats; empty where missing or unreadable."""
    try:
        return tuple(float(text) for text in text_values(dataset, keyword))
    except ValueError:
        return ()


def number_value(dataset: Dataset, keyword: str) -> float | None:
    """First value of a tag as a float."""
    values = number_values(dataset, keyword)
    return values[0] if values else None


def functional_group(dataset: Dataset, frame: int, sequence: str) -> Dataset | None:
    """Item of an enhanced multi-frame object's functional group ``sequence``: the frame's own, else the shared one."""
    groups = []
    per_frame = _get(dataset, "PerFrameFunctionalGroupsSequence")
    if per_frame is not None and frame < len(per_frame):
        groups.append(per_frame[frame])
    groups.extend(_get(dataset, "SharedFunctionalGroupsSequence") or [])
    for group in groups:
        items = _get(group, sequence)
        if items:
            return items[0]
    return None


def facts_from_dataset(dataset: Dataset) -> DicomFacts:
    """Facts of a classic or an enhanced multi-frame CT data set (its first frame)."""
    parts = [dataset]
    if _get(dataset, "SharedFunctionalGroupsSequence") is not None or _get(dataset, "PerFrameFunctionalGroupsSequence"):
        names = (
            "CTReconstructionSequence",
            "CTExposureSequence",
            "CTXRayDetailsSequence",
            "CTAcquisitionDetailsSequence",
            "PixelMeasuresSequence",
        )
        parts += [item for item in (functional_group(dataset, 0, name) for name in names) if item is not None]

    def text(keyword: str) -> str:
        return next((value for part in parts if (value := text_value(part, keyword))), "")

    def number(keyword: str) -> float | None:
        return next((value for part in parts if (value := number_value(part, keyword)) is not None), None)

    return DicomFacts(
        manufacturer=text("Manufacturer"),
        model=text("ManufacturerModelName"),
        kernel=text("ConvolutionKernel"),
        iterative_strength=_private_iterative_strength(dataset),
        exposure_mas=_exposure(number),
        kvp=number("KVP"),
        slice_thickness=_positive(number("SliceThickness")),
        pixel_spacing=_positive(number("PixelSpacing")),
        series_description=text("SeriesDescription"),
        image_type=text_values(dataset, "ImageType"),
    )


def facts_from_header(pairs: Mapping[str, str]) -> DicomFacts | None:
    """Facts of key-value pairs such as an NRRD header's; None where none of them is about the acquisition.

    Keys are compared without case, spaces, punctuation, and a prefix such as ``DICOM_`` or ``NRRD.``; DICOM
    numbers (``0018|1210``) serve too.
    """
    values = {_key(key): value.strip() for key, value in pairs.items() if value.strip()}

    def text(*names: str) -> str:
        return next((values[name] for name in names if name in values), "")

    def number(*names: str) -> float | None:
        try:
            return float(text(*names).split("\\")[0])
        except ValueError:
            return None

    exposure = {
        "Exposure": number("exposure", "exposuremas", "mas", "00181152"),
        "ExposureInuAs": number("exposureinuas", "00181153"),
        "XRayTubeCurrent": number("xraytubecurrent", "00181151"),
        "ExposureTime": number("exposuretime", "00181150"),
    }
    facts = DicomFacts(
        manufacturer=text("manufacturer", "00080070"),
        model=text("model", "manufacturermodelname", "00081090"),
        kernel=text("convolutionkernel", "kernel", "reconstructionkernel", "00181210"),
        exposure_mas=_exposure(exposure.get),
        kvp=number("kvp", "00180060"),
        slice_thickness=_positive(number("slicethickness", "00180050")),
        series_description=text("seriesdescription", "0008103e"),
        image_type=tuple(text("imagetype", "00080008").split("\\")) if text("imagetype", "00080008") else (),
        origin="header",
    )
    return None if facts == DicomFacts(origin="header") else facts


def _exposure(number) -> float | None:
    """mAs from whichever tags are there. Scanners differ in whether it is per rotation: for the reader only."""
    for keyword, factor in (("Exposure", 1.0), ("ExposureInmAs", 1.0), ("ExposureInuAs", 1e-3)):
        value = _positive(number(keyword))
        if value is not None:
            return value * factor
    for current, time in (("XRayTubeCurrent", "ExposureTime"), ("XRayTubeCurrentInmA", "ExposureTimeInms")):
        if _positive(number(current)) is not None and _positive(number(time)) is not None:
            return number(current) * number(time) / 1000.0
    return None


def _private_iterative_strength(dataset: Dataset) -> str:
    """Iterative strength where it stands outside the kernel: GE's ASiR annotation, Philips' iDose level."""
    for group, creator, element in ((0x0053, "GEHC_CT_ADVAPP_001", 0x40), (0x01F7, "ELSCINT1", 0x9B)):
        try:
            value = _clean(dataset.private_block(group, creator)[element].value)
        except Exception:  # noqa: BLE001  (a missing or broken private tag is no fact, and no error)
            continue
        if value:
            return value
    return ""


def _get(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception:  # noqa: BLE001  (pydicom converts lazily: one broken element must not lose the rest)
        return None


def _clean(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return str(value).replace("\x00", "").strip()


def _key(name: str) -> str:
    plain = "".join(character for character in name.lower() if character.isalnum())
    for prefix in ("dicom", "nrrd", "meta"):
        plain = plain.removeprefix(prefix)
    return plain


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None
