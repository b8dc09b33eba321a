"""Small DICOM files for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid


def dataset(stored: np.ndarray, series: str, **tags) -> Dataset:
    """A classic CT slice, or what ``tags`` make of it; a tag of None is left out."""
    result = Dataset()
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "SeriesInstanceUID": series,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Manufacturer": "SIEMENS",
        "ConvolutionKernel": "B40f",
        "KVP": 120,
        "Exposure": 85,
        "SliceThickness": 2.0,
        "PixelSpacing": [0.7, 0.7],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-10, -20, 30],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        **tags,
    }
    for name, value in values.items():
        if value is not None:
            setattr(result, name, value)
    result.Rows, result.Columns = stored.shape[-2:]
    result.SamplesPerPixel, result.PhotometricInterpretation = 1, "MONOCHROME2"
    result.BitsAllocated = result.BitsStored = 16
    result.HighBit, result.PixelRepresentation = 15, int(stored.dtype.kind == "i")
    result.PixelData = np.ascontiguousarray(stored).tobytes()
    return result


def save(result: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    result.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, stored: np.ndarray, positions, series: str | None = None, **tags) -> Path:
    """A classic series: ``stored`` (slices, rows, columns) at ``positions`` (mm along z, or triples)."""
    series = series or generate_uid()
    for number, (image, position) in enumerate(zip(stored, positions, strict=True)):
        place = position if np.ndim(position) else [-10, -20, float(position)]
        # the names' order says nothing of the slices' order
        name = f"{(7 * number) % len(stored):03d}-{series[-6:]}.dcm"
        save(dataset(image, series, ImagePositionPatient=list(place), **tags), folder / name)
    return folder


def item(**tags) -> Dataset:
    result = Dataset()
    for name, value in tags.items():
        setattr(result, name, value)
    return result


def enhanced(stored: np.ndarray, positions, intercepts, **tags) -> Dataset:
    """An enhanced multi-frame CT: rescale and place per frame, kernel and pixel measures shared."""
    result = dataset(
        stored,
        generate_uid(),
        SOPClassUID=EnhancedCTImageStorage,
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        **dict.fromkeys(("ConvolutionKernel", "KVP", "Exposure", "SliceThickness", "PixelSpacing"), None),
        **dict.fromkeys(("ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept"), None),
    )
    result.NumberOfFrames = len(stored)
    result.SharedFunctionalGroupsSequence = Sequence([
        item(
            PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.6, 0.6], SliceThickness=1.5)]),
            PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
            CTReconstructionSequence=Sequence([item(ConvolutionKernel=["Br40f", "3"])]),
            CTExposureSequence=Sequence([item(ExposureInmAs=55.0)]),
            CTXRayDetailsSequence=Sequence([item(KVP=100.0)]),
        )
    ])  # fmt: skip
    result.PerFrameFunctionalGroupsSequence = Sequence([
        item(
            PlanePositionSequence=Sequence([item(ImagePositionPatient=[-1.0, -2.0, float(position)])]),
            PixelValueTransformationSequence=Sequence(
                [item(RescaleSlope=1.0, RescaleIntercept=float(intercept), RescaleType="HU")]
            ),
        )
        for position, intercept in zip(positions, intercepts, strict=True)
    ])  # fmt: skip
    for name, value in tags.items():
        setattr(result, name, value)
    return result
