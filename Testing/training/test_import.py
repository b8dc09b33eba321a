"""Importers of measured CT, the frozen split, and training pairs of it: tiny data in each real layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK
import torch
import yaml
import zarr
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import acquisition_vector
from CTHarmonizeTraining.cli import main
from CTHarmonizeTraining.data.measured import MeasuredPairs
from CTHarmonizeTraining.data.pairs import FILTER_MARGIN
from CTHarmonizeTraining.data.patient import BLOCK, PatientStore, Reconstruction
from CTHarmonizeTraining.data.splits import PARTS, Splits, drawn_part, stores_for
from CTHarmonizeTraining.importing.anatomy import MU_MAX
from CTHarmonizeTraining.importing.command import import_collection
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.fit import NETWORK, fit
from CTHarmonizeTraining.training.trainer import Machine

SIDE, PIXEL = 96, 3.0


def phantom(slices: int, noise: float, seed: int = 0) -> np.ndarray:
    """Water-like disk of 240 mm with marks that tell slices and sides apart, in air; HU (slices, rows, columns)."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    hu = np.where(np.hypot(x, y) * PIXEL < 120, 40.0, -1000.0)[None].repeat(slices, 0)
    hu[:, 30:34, 40:60] += 10 * np.arange(1, slices + 1)[:, None, None]
    body = hu > -900
    return np.rint(hu + body * np.random.default_rng(seed).normal(0, noise, hu.shape)).astype(np.int16)


def write_series(folder: Path, hu: np.ndarray, first: float = 0.0, missing: int | None = None, **tags) -> Path:
    """A CT series, 2 mm slices from ``first`` mm upwards, stored with slope 1 and intercept -1024."""
    folder.mkdir(parents=True)
    series = generate_uid()
    for number, image in enumerate(hu):
        if number == missing:
            continue
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        values = {
            "SeriesInstanceUID": series,
            "StudyInstanceUID": "1.2.3",
            "Modality": "CT",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "Manufacturer": "SIEMENS",
            "ConvolutionKernel": "B30f",
            "SliceThickness": 2.0,
            "PixelSpacing": [PIXEL, PIXEL],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-144.0, -144.0, first + 2.0 * number],
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            **tags,
        }
        for name, value in values.items():
            setattr(slice_, name, value)
        slice_.Rows, slice_.Columns = image.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.PixelData = (image.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        # the names' order says nothing of the slices' order
        slice_.save_as(folder / f"{(7 * number) % len(hu):03d}.IMA", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def challenge(tmp_path_factory) -> tuple[Path, Path]:
    """The Grand Challenge's layout, and what was imported of it. L067's quarter dose lacks the two lowest slices."""
    root = tmp_path_factory.mktemp("mayo") / "Training_Image_Data"
    write_series(root / "L067" / "full_1mm", phantom(8, 10), StudyInstanceUID="1.67")
    write_series(root / "L067" / "quarter_1mm", phantom(8, 20, 1)[2:], first=4.0, StudyInstanceUID="1.67.1")
    write_series(root / "L096" / "full_1mm", phantom(6, 10), StudyInstanceUID="1.96")
    out = root.parent / "out"
    import_collection("mayo", root, out)
    return root, out


def test_a_full_and_a_quarter_dose_series_are_matched_slice_by_slice(challenge) -> None:
    store = PatientStore(challenge[1] / "L067.zarr")
    (pair,) = store.sets
    assert store.patient == "L067"
    assert [entry.name for entry in pair.reconstructions] == ["full B30f", "low B30f"]
    assert [entry.dose for entry in pair.reconstructions] == [100.0, 25.0]
    assert pair.hu.shape == (2, 6, SIDE, SIDE)  # the slices that both have
    assert np.array_equal(pair.hu[0], phantom(8, 10)[2:])
    assert np.array_equal(pair.hu[1], phantom(8, 20, 1)[2:])
    assert pair.volume(1).origin == (-144.0, -144.0, 4.0) and pair.spacing == (PIXEL, PIXEL, 2.0)
    full, low = (entry.acquisition for entry in pair.reconstructions)
    assert full.f50 == low.f50 and full.slice_thickness == 2.0
    assert low.noise == pytest.approx(2 * full.noise, rel=0.2)


def test_a_patient_with_one_dose_is_left_out_with_the_reason(challenge, capsys) -> None:
    root, out = challenge
    import_collection("mayo", root, out)
    said = capsys.readouterr().err
    assert "Patient L096 was left out: 'full B30f' is alone: a pair needs two." in said
    assert not (out / "L096.zarr").exists()
    assert "L096" not in json.loads((out / "splits.json").read_text())["patients"]


def test_two_persons_in_one_folder_are_no_patient(tmp_path) -> None:
    for name, person in (("full", "ANNA"), ("low", "BERTA")):
        write_series(tmp_path / "in" / "P1" / name, phantom(4, 10), PatientID=person)
    with pytest.raises(InputError, match="several persons, 'P1/full' is of 'ANNA' and 'P1/low' is of 'BERTA'"):
        import_collection("folders", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "P1.zarr").exists()


def test_what_is_no_ct_is_told(tmp_path, capsys) -> None:
    root = tmp_path / "in"
    for name, noise in (("full", 10), ("low", 20)):
        write_series(root / "P1" / name, phantom(4, noise, noise), PatientID="ANNA")
    write_series(root / "P1" / "brain", phantom(4, 10), Modality="MR")
    (root / "P1" / "nothing").mkdir()
    import_collection("folders", root, tmp_path / "out")
    said = capsys.readouterr().err
    assert "Note: 'P1/brain' was left out: it holds no CT but MR." in said
    assert "Note: 'P1/nothing' was left out: it holds nothing." in said
    assert said.count("Note: ") == 2 and (tmp_path / "out" / "P1.zarr").exists()
    with pytest.raises(InputError, match="as 'mayo'. Looked for: folders of full-dose and low-dose CT series"):
        import_collection("mayo", root, tmp_path / "other")
    assert "'P1/full' was left out: its name and description tell no patient such as L067" in capsys.readouterr().err


def test_tcia_folders_are_read_and_projections_passed_over(tmp_path, capsys) -> None:
    """By the folders' names for C002, by the series descriptions for N005, whose folders are UIDs."""
    study = tmp_path / "LDCT-and-Projection-data" / "C002" / "12-23-2021-NA-NA-62464"
    write_series(study / "1.000000-Full Dose Images-71581", phantom(4, 10), StudyInstanceUID="1.1")
    write_series(study / "1.000000-Low Dose Images-39882", phantom(4, 30, 1), StudyInstanceUID="1.1")
    write_series(study / "1.000000-Full dose projections-24362", phantom(4, 0), StudyInstanceUID="1.1")
    head = tmp_path / "LDCT-and-Projection-data" / "low dose set" / "N005" / "1.2.840.1"
    for name, noise, words in (("1.2.840.2", 10, "Full Dose Images"), ("1.2.840.3", 20, "Low Dose Images")):
        write_series(head / name, phantom(4, noise), StudyInstanceUID="1.5", SeriesDescription=words)
    import_collection("mayo", tmp_path / "LDCT-and-Projection-data", tmp_path / "out")
    doses = {}
    for name in ("C002", "N005"):
        (pair,) = PatientStore(tmp_path / "out" / f"{name}.zarr").sets
        doses[name] = {entry.name: entry.dose for entry in pair.reconstructions}
    assert doses == {"C002": {"full B30f": 100.0, "low B30f": 10.0}, "N005": {"full B30f": 100.0, "low B30f": 25.0}}
    assert "projections" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def reconstructions(tmp_path_factory) -> Path:
    """A folder per patient, a folder per dose and kernel."""
    root = tmp_path_factory.mktemp("folders") / "in"
    for name, noise in (("dose100_B30f", 8), ("dose100_B50f", 16), ("dose10_B30f", 25)):
        tags = {"StudyInstanceUID": "1.1", "ConvolutionKernel": name.partition("_")[2]}
        write_series(root / "P1" / name, phantom(6, noise, seed=noise), **tags)
    return root


MISMATCHES = {
    "beside": (dict(first=0.7), "0.70 mm beside"),
    "short": (dict(slices=2), "only 2 of 6 slices"),
    "gap": (dict(missing=3), "unevenly spaced"),
    "study": (dict(StudyInstanceUID="1.9"), "another study"),
    "thick": (dict(SliceThickness=5.0), "5 mm thick, not 2 mm"),
    "zoom": (dict(PixelSpacing=[2.9, 2.9]), "2.9 mm, not 3 mm"),
    "moved": (dict(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), "turned"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_what_does_not_match_is_told_and_the_others_go_on(tmp_path, capsys, case) -> None:
    change, words = MISMATCHES[case]
    root = tmp_path / "in"
    tags = {"StudyInstanceUID": "1.2", **change}
    hu = phantom(tags.pop("slices", 6), 10)
    write_series(root / "P2" / "a", phantom(6, 10), StudyInstanceUID="1.2")
    write_series(root / "P2" / "b", hu, **tags)
    for name in ("dose100_B30f", "dose10_B30f"):
        write_series(root / "P3" / name, phantom(6, 10), StudyInstanceUID="1.3")
    import_collection("folders", root, tmp_path / "out")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Patient P2 was left out")]
    assert len(said) == 1 and words in said[0] and "b" in said[0], said
    assert (tmp_path / "out" / "P3.zarr").is_dir() and not (tmp_path / "out" / "P2.zarr").exists()


def test_kernels_and_doses_of_a_study_become_one_set(reconstructions, tmp_path) -> None:
    import_collection("folders", reconstructions, tmp_path)
    (matched,) = PatientStore(tmp_path / "P1.zarr").sets
    told = {entry.name: entry for entry in matched.reconstructions}
    assert sorted(told) == ["dose100_B30f", "dose100_B50f", "dose10_B30f"]
    assert told["dose100_B50f"].facts["kernel"] == "Siemens B50f"
    assert told["dose100_B50f"].acquisition.mtf_peak > told["dose100_B30f"].acquisition.mtf_peak
    assert told["dose10_B30f"].dose < 0.3 * told["dose100_B30f"].dose  # as the noise, 25 to 8 HU, tells
    assert told["dose10_B30f"].facts["sources"]["noise"] == "measured"


def test_one_study_under_two_patients_is_refused(tmp_path, capsys) -> None:
    root = tmp_path / "in"
    for patient in ("A", "B"):
        for name in ("x", "y"):
            write_series(root / patient / name, phantom(4, 10), StudyInstanceUID="1.7")
    import_collection("folders", root, tmp_path / "out")
    assert "Patient B was left out: it holds the same study as the patient A" in capsys.readouterr().err


def test_nothing_matched_is_one_sentence_and_status_2(tmp_path, capsys) -> None:
    write_series(tmp_path / "in" / "P1" / "only", phantom(4, 10))
    assert main(["import", "folders", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("ctharmonize-train: Nothing in") and "a pair needs two" in said


def test_fractional_slopes_round_to_hu(tmp_path) -> None:
    """A slope of 0.5: stored values are twice as large."""
    hu = phantom(3, 10)
    for name in ("a", "b"):
        folder = write_series(tmp_path / "in" / "P1" / name, hu)
        for file in folder.iterdir():
            data = dcmread(file)
            data.PixelData = (2 * (data.pixel_array.astype(np.int32))).astype(np.uint16).tobytes()
            data.RescaleSlope = 0.5
            data.save_as(file)
    import_collection("folders", tmp_path / "in", tmp_path / "out")
    assert np.array_equal(PatientStore(tmp_path / "out" / "P1.zarr").sets[0].hu[1], hu)


def test_the_split_never_moves_a_patient(tmp_path) -> None:
    few, many = Splits(3, {}), Splits(3, {})
    names = [f"P{number:03d}" for number in range(600)]
    for name in names[::2]:
        few.add(name)
    few.patients["P000"] = "test"  # decided otherwise once: it stays
    few.write(tmp_path)
    again = Splits.of(tmp_path)
    for name in names:
        again.add(name)
        many.add(name)
    assert again.patients["P000"] == "test"
    assert all(again.patients[name] == few.patients[name] for name in names[::2])
    assert {name: part for name, part in again.patients.items() if name != "P000"} == {
        name: part for name, part in many.patients.items() if name != "P000"
    }
    counts = [list(many.patients.values()).count(part) for part in PARTS]
    assert np.abs(np.array(counts) / 600 - (0.7, 0.1, 0.2)).max() < 0.06
    assert any(drawn_part(name, 3) != drawn_part(name, 4) for name in names)
    with pytest.raises(InputError, match="frozen"):
        Splits.of(tmp_path, seed=5)


def test_a_later_import_keeps_stores_and_parts(tmp_path) -> None:
    root = tmp_path / "in"
    for patient in ("A", "B", "C"):
        for name in ("x", "y"):
            write_series(root / patient / name, phantom(3, 10), StudyInstanceUID=f"1.{ord(patient)}")
        import_collection("folders", root, tmp_path / "out", seed=1)
        if patient == "A":
            before = json.loads((tmp_path / "out" / "splits.json").read_text())
            written = (tmp_path / "out" / "A.zarr" / "zarr.json").stat().st_mtime_ns
    after = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert sorted(after["patients"]) == ["A", "B", "C"] and after["seed"] == before["seed"] == 1
    assert after["patients"]["A"] == before["patients"]["A"]
    assert (tmp_path / "out" / "A.zarr" / "zarr.json").stat().st_mtime_ns == written
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_training_reads_only_its_part(tmp_path) -> None:
    for name in ("A", "B", "C", "D"):
        zarr.open_group(str(tmp_path / f"{name}.zarr"), mode="w")
    Splits(0, {"A": "train", "B": "test", "C": "validation"}).write(tmp_path)
    assert [path.stem for path in stores_for(tmp_path, "train")] == ["A"]
    assert [path.stem for path in stores_for(tmp_path, "validation")] == ["C"]
    with pytest.raises(InputError, match="'test'"):
        stores_for(tmp_path / "B.zarr", "train")
    assert stores_for(tmp_path / "A.zarr", "train") == [tmp_path / "A.zarr"]


def eight(image: np.ndarray) -> list[np.ndarray]:
    """The turns and flips of a square."""
    turned = [np.rot90(image, turns) for turns in range(4)]
    return turned + [np.flip(image, 1) for image in turned]


def test_crops_are_the_volumes_and_lie_in_the_body(challenge) -> None:
    store = challenge[1] / "L067.zarr"
    pairs = MeasuredPairs([store], 100, 32, seed=4, series=("low*", "full*"))
    (matched,) = PatientStore(store).sets
    full, low = matched.hu[0].astype(np.float32), matched.hu[1].astype(np.float32)
    told = torch.tensor(acquisition_vector(*(matched.reconstructions[which].acquisition for which in (1, 0))))
    seen = set()
    for index in range(6):
        pair = pairs[index]
        assert set(pair) == {"planes", "target", "acquisition", "draw"}
        assert pair["planes"].shape == (2, 32, 32) and pair["target"].shape == (1, 32, 32)
        assert torch.equal(pair["acquisition"], told)
        places = [
            (number, row, column)
            for number in range(6)
            for row in range(0, SIDE - 31, BLOCK)
            for column in range(0, SIDE - 31, BLOCK)
            for image in eight(pair["target"][0].numpy())
            if np.array_equal(image, full[number, row : row + 32, column : column + 32])
        ]
        assert len(places) == 1  # the target is a crop of the full dose
        number, row, column = places[0]
        seen.add(places[0])
        source = low[number, row : row + 32, column : column + 32]
        there = full[number, row : row + 32, column : column + 32]
        turn = next(turn for turn, image in enumerate(eight(pair["target"][0].numpy())) if np.array_equal(image, there))
        assert np.array_equal(eight(pair["planes"][0].numpy())[turn], source)  # the source the same place, turned alike
        assert (source > -500).mean() >= 0.75  # all of the disk is body; its rim is smoothed
        assert min(row, column) >= FILTER_MARGIN and max(row, column) + 32 + FILTER_MARGIN <= SIDE
    assert len(seen) > 3


def test_padding_reaches_the_network_as_air(tmp_path) -> None:
    hu = phantom(4, 10)
    hu[:, 44:52, 44:52] = -3024
    acquisition = Acquisition(2.0, 3.0, 1.0, 10.0, PIXEL, 2.0)
    entries = [Reconstruction(name, acquisition, dose, {}) for name, dose in (("a", 100.0), ("b", 25.0))]
    volumes = [Volume(hu, (PIXEL, PIXEL, 2.0))] * 2
    PatientStore.write(tmp_path / "x.zarr", "x", "folders", [(entries, volumes)])
    pairs = MeasuredPairs([tmp_path / "x.zarr"], 10, 48, planes=1)
    lowest = {float(pairs[index][key].min()) for index in range(10) for key in ("planes", "target")}
    assert min(lowest) == -1024.0


def test_items_depend_on_seed_and_index_only(challenge) -> None:
    store = challenge[1] / "L067.zarr"
    one, again, other = (MeasuredPairs([store], 100, 32, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[7][key], again[7][key]) for key in one[7])
    assert not torch.equal(one[7]["planes"], one[8]["planes"])
    assert not torch.equal(one[7]["planes"], other[7]["planes"])


def test_body_windows_are_exact(challenge) -> None:
    (matched,) = PatientStore(challenge[1] / "L067.zarr").sets
    body = matched.body.astype(int)
    disk = phantom(1, 0)[0] > -500
    blocks = disk.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).sum((1, 3))
    assert np.abs(body - blocks).max() <= 12  # pixels of 64, where the mask is smoothed
    places = matched.body_windows(32, 0.8, 16)
    side = 32 // BLOCK
    for number, row, column in np.ndindex(places.shape):
        fits = 2 <= row <= SIDE // BLOCK - side - 2 and 2 <= column <= SIDE // BLOCK - side - 2
        held = body[number, row : row + side, column : column + side].sum() if fits else 0
        assert places[number, row, column] == (held >= 0.8 * 32 * 32)
    assert places.any() and not matched.body_windows(SIDE, 0.8, 16).any()
    with pytest.raises(InputError, match="multiple of 8"):
        matched.body_windows(30, 0.8)


def test_full_dose_is_the_target_as_often_as_asked(challenge) -> None:
    store = challenge[1] / "L067.zarr"
    low_to_full = MeasuredPairs([store], 40, 32, full_dose_share=1.0)[0]["acquisition"]
    always = MeasuredPairs([store], 40, 32, full_dose_share=1.0)
    seldom = MeasuredPairs([store], 40, 32, full_dose_share=0.0)
    assert all(torch.equal(always[index]["acquisition"], low_to_full) for index in range(10))
    assert 2 < sum(torch.equal(seldom[index]["acquisition"], low_to_full) for index in range(20)) < 18
    with pytest.raises(InputError, match="No pair of 'x'"):
        MeasuredPairs([store], 40, 32, series=("x", "*"))


def write_lodopab(root: Path, part: str, hu: np.ndarray, patients: list[int] | None, spare: int = 0) -> None:
    """Images (n, 362, 362) in whole HU as the authors' script stores them; ``spare`` places of the file stay empty."""
    root.mkdir(exist_ok=True)
    attenuation = (hu + np.random.default_rng(0).uniform(0, 1, hu.shape)) * (20 - 0.02) / 1000 + 20
    images = np.clip(attenuation / MU_MAX, 0, 1).transpose(0, 2, 1).astype(np.float32)
    with h5py.File(root / f"ground_truth_{part}_000.hdf5", "w") as file:
        file["data"] = np.concatenate([images, np.zeros((spare, 362, 362), np.float32)])
    with h5py.File(root / f"observation_{part}_000.hdf5", "w") as file:
        file["data"] = np.arange(len(hu), dtype=np.float32)[:, None, None] + np.zeros((1, 10, 513), np.float32)
    if patients is not None:
        (root / f"patient_ids_rand_{part}.csv").write_text("".join(f"{number}\n" for number in patients))


def test_lodopab_gives_back_the_scanners_hu_and_keeps_its_parts(tmp_path) -> None:
    hu = np.random.default_rng(1).integers(-1000, 3071, (3, 362, 362))
    write_lodopab(tmp_path / "in", "train", hu, [11, 7, 11], spare=2)
    write_lodopab(tmp_path / "in", "test", hu[:1], None)
    import_collection("lodopab", tmp_path / "in", tmp_path / "out")
    assert pytest.approx(81.35858) == MU_MAX
    volume = read_volume(tmp_path / "out" / "LoDoPaB-train-0011.nrrd")
    error = np.abs(volume.hu - hu[[0, 2]])
    assert volume.hu.dtype == np.int16 and error.max() <= 1 and error.mean() < 5e-4
    assert volume.pixel_spacing == pytest.approx(260 / 362)
    assert not list((tmp_path / "out").rglob("*.zarr"))  # anatomy alone; 'lodopab-pairs' keeps the observations
    parts = json.loads((tmp_path / "out" / "splits.json").read_text())["patients"]
    assert parts == {"LoDoPaB-train-0011": "train", "LoDoPaB-train-0007": "train", "LoDoPaB-test-0000": "test"}


def test_a_damaged_lodopab_file_does_not_stop_the_others(tmp_path, capsys) -> None:
    write_lodopab(tmp_path / "in", "train", np.zeros((1, 362, 362)), [1])
    (tmp_path / "in" / "ground_truth_test_000.hdf5").write_bytes(b"not HDF5")
    import_collection("lodopab", tmp_path / "in", tmp_path / "out")
    assert "Patient ground_truth_test_000 was left out" in capsys.readouterr().err
    assert (tmp_path / "out" / "LoDoPaB-train-0001.nrrd").is_file()


def test_luna_volumes_become_anatomy_in_their_place(tmp_path, capsys) -> None:
    hu = phantom(5, 10)
    image = SimpleITK.GetImageFromArray(hu)
    image.SetSpacing((0.7, 0.7, 1.25))
    image.SetOrigin((-198.0, -195.0, -335.5))
    for folder, name in (("subset0", "1.3.6.1"), ("seg-lungs-LUNA16", "1.3.6.1"), ("LIDC-IDRI-0007", "1.3.6.2")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        SimpleITK.WriteImage(image, str(tmp_path / "in" / folder / f"{name}.mhd"))
    SimpleITK.WriteImage(image, str(tmp_path / "in" / "LIDC-IDRI-0007" / "1.3.6.3.mhd"))
    SimpleITK.WriteImage(image + 1024, str(tmp_path / "in" / "subset0" / "1.3.6.9.mhd"))
    import_collection("luna", tmp_path / "in", tmp_path / "out")
    said = capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "out").glob("*.nrrd"))
    assert names == ["1.3.6.1.nrrd", "LIDC-IDRI-0007.nrrd"]
    assert "1.3.6.9 was left out" in said and "'1.3.6.3.mhd' is a further scan" in said
    volume = read_volume(tmp_path / "out" / "1.3.6.1.nrrd")
    assert np.array_equal(volume.hu, hu) and volume.origin == (-198.0, -195.0, -335.5)
    assert volume.spacing == (0.7, 0.7, 1.25)


@pytest.fixture
def configuration(tmp_path) -> Path:
    network = dict(
        encoder_blocks=1, encoder_channels=8, encoder_growth=4, encoder_taps=[1], steps=1, hidden=8, feature_channels=8
    )
    stage = {"iterations": 2, "batch": 2, "learning_rate": 0.0001}
    kind = {"class_path": "CTHarmonizeTraining.training.ctflow.CTFlowTraining"}
    kind["init_args"] = {"network": network, "truth": "target", "encoder": stage, "flow": stage}
    data = {"size": 32, "workers": 1, "full_dose_share": 1.0, "simulated": {"kernels": ["medium", "medium"]}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"method": kind, "data": data}))
    return path


MACHINE = Machine("cpu", precision="32-true")


def test_fit_trains_on_measured_pairs(challenge, configuration, tmp_path) -> None:
    stores = tmp_path / "stores"
    stores.mkdir()
    for name in ("L067", "L333"):
        shutil.copytree(challenge[1] / "L067.zarr", stores / f"{name}.zarr")
    Splits(0, {"L067": "train", "L333": "validation"}).write(stores)
    fit(stores, tmp_path / "run", *settings.load(configuration), machine=MACHINE)
    assert (tmp_path / "run" / NETWORK).is_file()
    for stage in ("encoder", "flow"):
        state = torch.load(tmp_path / "run" / stage / "last.ckpt", weights_only=True)
        assert state["global_step"] == 2


def test_fit_says_what_measured_pairs_cannot_give(challenge, configuration, tmp_path) -> None:
    text = configuration.read_text()
    configuration.write_text(text.replace("truth: target", "truth: clean"))
    stores = tmp_path / "stores"
    stores.mkdir()
    (stores / "L067.zarr").symlink_to(challenge[1] / "L067.zarr")
    with pytest.raises(InputError, match="no splits.json"):
        fit(stores, tmp_path / "run", *settings.load(configuration), machine=MACHINE)
    (stores / "splits.json").write_text('{"seed": 0, "patients": {"L067": "train"}}')
    with pytest.raises(InputError, match="truth has to be target"):
        fit(stores, tmp_path / "run", *settings.load(configuration), machine=MACHINE)
    configuration.write_text(text)
    scenes = tmp_path / "scenes.zarr"
    zarr.open_group(str(scenes), mode="w")
    with pytest.raises(InputError, match="cannot be mixed"):
        fit(stores, tmp_path / "run", *settings.load(configuration), scenes, machine=MACHINE)


def test_a_lost_split_is_written_again(challenge, tmp_path) -> None:
    """Patients that are there already get the parts that they had."""
    copy = tmp_path / "stores"
    shutil.copytree(challenge[1], copy)
    before = json.loads((copy / "splits.json").read_text())
    (copy / "splits.json").unlink()
    import_collection("mayo", str(challenge[0]), copy)
    assert json.loads((copy / "splits.json").read_text()) == before
