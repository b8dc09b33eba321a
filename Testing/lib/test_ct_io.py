"""Image files in and out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK

from CTHarmonizeLib.ct.io import read_volume, write_nrrd
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import CannotRunError, InputError

OBLIQUE = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)


def random_volume(dtype=np.int16, shape=(3, 20, 24)) -> Volume:
    hu = np.random.default_rng(1).normal(0, 400, shape).round().astype(dtype)
    return Volume(hu, (0.7, 0.7, 2.5), (10.25, -20.5, 30.125), OBLIQUE)


@pytest.mark.parametrize("compress", [False, True])
def test_nrrd_round_trip(tmp_path, compress):
    volume = random_volume()
    path = tmp_path / "Lunge – 肺 ü" / "a b.nrrd"
    assert write_nrrd(volume, path, compress=compress) == path
    back = read_volume(path)
    assert back.hu.dtype == np.int16 and np.array_equal(back.hu, volume.hu)
    assert np.abs(back.ijk_to_ras() - volume.ijk_to_ras()).max() < 1e-9
    assert os.listdir(path.parent) == ["a b.nrrd"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nhdr"])
def test_other_formats(tmp_path, suffix):
    volume = random_volume()
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction)
    path = tmp_path / f"größe{suffix}"
    SimpleITK.WriteImage(image, str(path))
    back = read_volume(path)
    assert np.array_equal(back.hu, volume.hu)
    assert np.abs(back.ijk_to_ras() - volume.ijk_to_ras()).max() < 1e-4  # NIfTI: float32


def test_hu_are_rounded_not_truncated(tmp_path):
    hu = np.array([-1000.6, -0.5, 0.51, 40.49, 40000.0, -50000.0] * 4, dtype=np.float32).reshape(1, 4, 6)
    path = write_nrrd(Volume(hu, (1.0, 1.0, 1.0)), tmp_path / "a.nrrd")
    assert read_volume(path).hu[0, 0].tolist() == [-1001, 0, 1, 40, 32767, -32768]


def test_float_files(tmp_path):
    volume = random_volume(np.float32)
    whole = write_nrrd(volume, tmp_path / "whole.nrrd", "float32")
    assert read_volume(whole).hu.dtype == np.int16
    fraction = write_nrrd(volume.with_hu(volume.hu + np.float32(0.25)), tmp_path / "fraction.nrrd", "float32")
    back = read_volume(fraction)
    assert back.hu.dtype == np.float32 and np.array_equal(back.hu, volume.hu + np.float32(0.25))


def test_not_finite_is_not_written(tmp_path):
    hu = np.full((1, 4, 4), np.nan, dtype=np.float32)
    with pytest.raises(CannotRunError):
        write_nrrd(Volume(hu, (1.0, 1.0, 1.0)), tmp_path / "a.nrrd")
    assert os.listdir(tmp_path) == []


def test_header_facts(tmp_path):
    image = SimpleITK.GetImageFromArray(random_volume().hu)
    pairs = {"Manufacturer": "SIEMENS", "DICOM_ConvolutionKernel": "Br40f\\3", "Slice Thickness": "2.0", "KVP": "120",
             "0018|1152": "85"}  # fmt: skip
    for key, value in pairs.items():
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    facts = read_volume(tmp_path / "a.nrrd").facts
    assert (facts.manufacturer, facts.kernel, facts.slice_thickness) == ("SIEMENS", "Br40f\\3", 2.0)
    assert (facts.kvp, facts.exposure_mas, facts.origin) == (120.0, 85.0, "header")


def test_no_facts(tmp_path):
    assert read_volume(write_nrrd(random_volume(), tmp_path / "a.nrrd")).facts is None


def test_one_slice_and_four_dimensions(tmp_path):
    hu = random_volume().hu
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(hu[0]), str(tmp_path / "flat.mha"))
    flat = read_volume(tmp_path / "flat.mha")
    assert flat.shape == (1, 20, 24) and "one slice" in flat.warnings[0]
    four = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(hu)])
    SimpleITK.WriteImage(four, str(tmp_path / "one_time.nii"))
    assert np.array_equal(read_volume(tmp_path / "one_time.nii").hu, hu)
    two = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(hu)] * 2)
    SimpleITK.WriteImage(two, str(tmp_path / "two_times.nii"))
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "two_times.nii")


def sentence(path) -> str:
    with pytest.raises(InputError) as raised:
        read_volume(path)
    message = str(raised.value)
    assert "\n" not in message and message.endswith(".") and "0x" not in message and "itk::" not in message
    return message


def test_bad_files(tmp_path):
    assert "no file" in sentence(tmp_path / "missing.nrrd")
    (tmp_path / "text.nrrd").write_text("not an image")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name in ("text.nrrd", "empty.nii.gz", "notes.txt", "empty"):
        assert name in sentence(tmp_path / name)
    colour = SimpleITK.GetImageFromArray(np.zeros((3, 20, 20, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(colour, str(tmp_path / "colour.nrrd"))
    assert "3 values" in sentence(tmp_path / "colour.nrrd")


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii", "a.nii.gz", "a.mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_truncated(tmp_path, name, compress):
    path = tmp_path / name
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(random_volume().hu), str(path), useCompression=compress)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 600])
    assert name in sentence(path)


def test_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CannotRunError, match="disk is full"):
        write_nrrd(random_volume(), tmp_path / "a.nrrd")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file size")
@pytest.mark.parametrize("compress", [False, True])
def test_write_that_fails_half_way(tmp_path, compress):
    script = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from CTHarmonizeLib.ct.io import write_nrrd\n"
        "from CTHarmonizeLib.ct.volume import Volume\n"
        "from CTHarmonizeLib.errors import CannotRunError\n"
        "volume = Volume(np.random.default_rng(0).integers(-1000, 1000, (20, 64, 64)).astype('int16'), (1., 1., 1.))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "try:\n"
        f"    write_nrrd(volume, sys.argv[1], compress={compress})\n"
        "except CannotRunError as error:\n"
        "    print(error); sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.nrrd")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "a.nrrd" in done.stdout
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotRunError, match="cannot be written"):
        write_nrrd(random_volume(), tmp_path / "file" / "a.nrrd")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd"])
def test_a_file_without_spacing_is_refused(tmp_path, name):
    path = tmp_path / name
    image = SimpleITK.GetImageFromArray(random_volume().hu)
    image.SetSpacing((0.7, 0.7, 2.0))
    SimpleITK.WriteImage(image, str(path))
    assert read_volume(path).pixel_spacing == pytest.approx(0.7)
    lines = path.read_bytes().split(b"\n")
    kept = [line for line in lines if not line.startswith((b"space directions", b"spacings", b"ElementSpacing"))]
    assert len(kept) == len(lines) - 1
    path.write_bytes(b"\n".join(kept))
    with pytest.raises(InputError, match="does not state the size of its voxels"):
        read_volume(path)
