"""DICOM: series, geometry, rescale, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct_dicom import dataset, enhanced, save, write_series
from pydicom.uid import JPEG2000Lossless, RLELossless, SecondaryCaptureImageStorage, generate_uid

from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared DICOM files")


def pixels(slices: int = 5, dtype=np.uint16) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 2000, (slices, 16, 18)).astype(dtype)


def sentence(path) -> str:
    with pytest.raises(InputError) as raised:
        read_volume(path)
    message = str(raised.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_series(tmp_path):
    stored = pixels()
    volume = read_volume(write_series(tmp_path / "Röntgen 影", stored, [30, 32, 34, 36, 38]))
    assert np.array_equal(volume.hu, stored.astype(int) - 1024) and volume.hu.dtype == np.int16
    assert volume.spacing == (0.7, 0.7, 2.0) and volume.origin == (-10.0, -20.0, 30.0) and volume.warnings == ()
    facts = volume.facts
    assert (facts.manufacturer, facts.kernel, facts.exposure_mas, facts.kvp) == ("SIEMENS", "B40f", 85.0, 120.0)
    assert (facts.slice_thickness, facts.pixel_spacing, facts.origin) == (2.0, 0.7, "dicom")


def test_slices_from_head_to_foot_are_the_same_volume(tmp_path):
    stored = pixels()
    volume = read_volume(write_series(tmp_path, stored, [38, 36, 34, 32, 30]))
    assert np.array_equal(volume.hu, stored[::-1].astype(int) - 1024) and volume.origin[2] == 30.0


def test_oblique_stack_without_shear(tmp_path):
    across, down = np.array([0.0, 1.0, 0.0]), np.array([0.6, 0.0, -0.8])
    normal = np.cross(across, down)
    positions = [np.array([1.0, 2.0, 3.0]) + 2.5 * index * normal for index in range(5)]
    volume = read_volume(
        write_series(tmp_path, pixels(), positions, ImageOrientationPatient=[*across, *down], PixelSpacing=[0.7, 0.6])
    )
    last = volume.ijk_to_ras() @ [3, 2, 4, 1]
    expected = positions[4] + 3 * 0.6 * across + 2 * 0.7 * down  # DICOM's first spacing is between rows
    assert np.allclose(last[:3] * [-1, -1, 1], expected, atol=1e-6)
    assert volume.spacing[2] == pytest.approx(2.5)


def test_rescale_is_exact(tmp_path):
    stored = pixels(2, np.int16)
    whole = read_volume(write_series(tmp_path / "a", stored, [0, 2], RescaleSlope=2, RescaleIntercept=-1000))
    assert whole.hu.dtype == np.int16 and np.array_equal(whole.hu, 2 * stored.astype(int) - 1000)
    part = read_volume(write_series(tmp_path / "b", stored, [0, 2], RescaleSlope=0.5, RescaleIntercept=-1000.25))
    assert part.hu.dtype == np.float32 and np.array_equal(part.hu, (0.5 * stored - 1000.25).astype(np.float32))


def test_padding_stays(tmp_path):
    stored = pixels(2, np.int16)
    stored[:, :3] = -2000
    volume = read_volume(write_series(tmp_path, stored, [0, 2], PixelPaddingValue=-2000))
    assert (volume.hu[:, :3] == -3024).all()


def test_largest_series_is_taken(tmp_path):
    write_series(tmp_path / "a", pixels(3), [0, 2, 4], SeriesDescription="thin lung", SeriesNumber=4)
    write_series(tmp_path / "b", pixels(5), [0, 2, 4, 6, 8], SeriesDescription="soft")
    volume = read_volume(tmp_path)
    assert volume.shape[0] == 5 and volume.facts.series_description == "soft"
    assert "thin lung" in volume.warnings[0] and "3 slices" in volume.warnings[0]


def test_localizer_and_copies_are_left_out(tmp_path):
    series = generate_uid()
    write_series(tmp_path, pixels(), [0, 2, 4, 6, 8], series)
    save(dataset(pixels(1)[0], series, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "scout.dcm")
    (tmp_path / "notes.txt").write_text("not DICOM")
    first = next(path for path in tmp_path.iterdir() if path.name.startswith("000"))
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    volume = read_volume(tmp_path)
    assert volume.shape[0] == 5
    assert any("localizer" in warning for warning in volume.warnings)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary capture"),
        ({"Modality": "MR", "SOPClassUID": pydicom.uid.MRImageStorage}, "MR Image Storage"),
        ({"RescaleType": "Z_EFF"}, "Z_EFF"),
        ({"RescaleSlope": None}, "rescale"),
        ({"ImagePositionPatient": None}, "position"),
        ({"PixelSpacing": None}, "pixel spacing"),
        ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]}, "perfusion"),
    ],
)
def test_refused(tmp_path, tags, words):
    assert words in sentence(save(dataset(pixels(1)[0], generate_uid(), **tags), tmp_path / "a.dcm"))


def test_uneven_and_missing_slices(tmp_path):
    assert "2.00 to 4.00 mm" in sentence(write_series(tmp_path / "a", pixels(), [0, 2, 4, 8, 10]))
    assert "same place" in sentence(write_series(tmp_path / "b", pixels(), [0, 2, 2, 4, 6]))


def test_positions_with_one_decimal(tmp_path):
    positions = np.round(1.25 * np.arange(5), 1)
    assert read_volume(write_series(tmp_path, pixels(), positions)).spacing[2] == pytest.approx(1.25)


def test_gantry_tilt(tmp_path):
    angle = np.radians(12.0)
    positions = [[0.0, 0.0, 3.0 * index] for index in range(5)]
    orientation = [1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle))]
    message = sentence(write_series(tmp_path / "a", pixels(), positions, ImageOrientationPatient=orientation))
    assert "tilted" in message and "12.0 degrees" in message
    one = read_volume(write_series(tmp_path / "b", pixels(1), [[0, 0, 0]], ImageOrientationPatient=orientation))
    assert any("12.0 degrees" in warning for warning in one.warnings)


def test_one_slice(tmp_path):
    volume = read_volume(save(dataset(pixels(1)[0], generate_uid()), tmp_path / "a"))
    assert volume.spacing[2] == 2.0 and "one slice" in volume.warnings[0]
    bare = read_volume(save(dataset(pixels(1)[0], generate_uid(), SliceThickness=None), tmp_path / "b"))
    assert bare.spacing[2] == 1.0 and "1 mm is assumed" in bare.warnings[0]


def test_multi_valued_kernel_and_broken_tags(tmp_path):
    made = dataset(pixels(1)[0], generate_uid(), ConvolutionKernel=["Br40f", "3"], Exposure=None, KVP=None)
    made.ExposureTime, made.XRayTubeCurrent, made.Manufacturer = 500, 200, " SIEMENS "
    facts = read_volume(save(made, tmp_path / "a.dcm")).facts
    assert (facts.kernel, facts.exposure_mas, facts.kvp, facts.manufacturer) == ("Br40f\\3", 100.0, None, "SIEMENS")


def test_enhanced_multi_frame(tmp_path):
    stored = pixels(4)
    volume = read_volume(save(enhanced(stored, [6, 2, 0, 4], [-1024, -1000, -1024, -900]), tmp_path / "a.dcm"))
    offsets = np.array([-1024, -1000, -900, -1024])[:, None, None]
    assert np.array_equal(volume.hu, stored[[2, 1, 3, 0]].astype(int) + offsets)
    assert volume.spacing == (0.6, 0.6, 2.0) and volume.origin == (-1.0, -2.0, 0.0)
    facts = volume.facts
    assert (facts.kernel, facts.slice_thickness, facts.exposure_mas, facts.kvp) == ("Br40f\\3", 1.5, 55.0, 100.0)


def test_enhanced_derived_map(tmp_path):
    made = enhanced(pixels(2), [0, 2], [0, 0], ImageType=["DERIVED", "PRIMARY", "VOLUME", "ENERGY_PROP_WT"])
    assert "derived map" in sentence(save(made, tmp_path / "a.dcm"))


@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated(tmp_path, share):
    path = save(dataset(pixels(1)[0], generate_uid()), tmp_path / "a.dcm")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "a.dcm" in sentence(path)


def test_compressed_and_without_decoder(tmp_path, monkeypatch):
    stored = pixels(1)[0]
    made = dataset(stored, generate_uid())
    made.compress(RLELossless)
    path = save(made, tmp_path / "a.dcm")
    assert np.array_equal(read_volume(path).hu[0], stored.astype(int) - 1024)

    def missing(self):
        raise RuntimeError("no decoder\nis installed")

    monkeypatch.setattr(pydicom.dataset.Dataset, "pixel_array", property(missing))
    assert np.array_equal(read_volume(path).hu[0], stored.astype(int) - 1024)  # by SimpleITK, which rescales itself
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    assert "incomplete" in sentence(path)
    made.file_meta.TransferSyntaxUID = JPEG2000Lossless  # which the pixels are not
    assert "no decoder is installed" in sentence(save(made, tmp_path / "b.dcm"))


def test_pydicom_files():
    small = read_volume(pydicom.data.get_testdata_file("CT_small.dcm"))
    assert small.shape == (1, 128, 128) and small.spacing == (0.661468, 0.661468, 5.0)
    assert (small.hu.min(), small.hu.max()) == (-896, 1167)
    lossy = read_volume(pydicom.data.get_testdata_file("693_J2KI.dcm"))
    assert lossy.shape == (1, 512, 512) and any("derived" in warning for warning in lossy.warnings)
    head = read_volume(pydicom.data.get_testdata_file("J2K_pixelrep_mismatch.dcm"))
    assert head.hu.min() == -2000 and any("22.0 degrees" in warning for warning in head.warnings)


@needs_shared
def test_shared_files():
    assert "steps from 1.08 to 7.00 mm, gantry tilt 18.5 degrees" in sentence(SHARED / "ge_tilt_varspacing")
    assert "localizer" in sentence(SHARED / "philips_localizer_secondary")
    assert "secondary capture" in sentence(SHARED / "philips_localizer_secondary" / "exam_summary_I50")
    assert "perfusion map" in sentence(SHARED / "pydicom_data" / "eCT_Supplemental.dcm")
    for name in ("693_J2KR.dcm", "bad_sequence.dcm", "explicit_VR-UN.dcm"):
        assert read_volume(SHARED / "pydicom_data" / name).shape == (1, 512, 512)
