"""ctharmonize-train simulate: pairs of scans in their place, and stores of scenes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
import zarr

from CTHarmonizeLib.ct.acquisition import parse_kernel
from CTHarmonizeLib.ct.describe import describe
from CTHarmonizeLib.ct.io import read_volume, write_nrrd
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.cli import main
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.simulation import phantom, scan
from CTHarmonizeTraining.simulation.command import simulate
from CTHarmonizeTraining.simulation.nodules import Nodule
from CTHarmonizeTraining.simulation.projector import Geometry, Grid
from CTHarmonizeTraining.simulation.scenes import SceneStore

ROWS, COLUMNS = 41, 48  # an odd difference: the slice lies half a pixel beside the isocentre
SPACING = (1.0, 1.0, 2.5)
VIEWS = 64
IMAGES = ("source", "target", "target_noise_free")
OBLIQUE = (0.0, 1.0, 0.0, -0.8, 0.0, 0.6, 0.6, 0.0, 0.8)  # a rotation that mixes all axes


def disk(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radius: float) -> np.ndarray:
    return np.clip(radius + 0.5 - np.hypot(x - centre[0], y - centre[1]), 0, 1)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Water with a dense marker beside its middle; the slices are not square and lie obliquely."""
    y, x = np.mgrid[:ROWS, :COLUMNS].astype(float)
    water = -1000 + 1000 * disk(x, y, (24, 20), 16)
    marker = 900 * disk(x, y, (31, 15), 2.5)
    hu = np.stack([water, water + marker, water + 0.5 * marker, water]).astype(np.int16)
    return write_nrrd(Volume(hu, SPACING, (12.5, -40.0, 7.0), OBLIQUE), tmp_path_factory.mktemp("ct") / "disk.nrrd")


@pytest.fixture(scope="module")
def pair(ct: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    run = ["simulate", str(ct), str(folder), "--source_kernel", "smooth", "--source_dose", "5", "--target_kernel"]
    assert main([*run, "3.5", "--slices", "1:3", "--views", str(VIEWS), "--device", "cpu"]) == 0
    return folder


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "disk full"), ModuleNotFoundError("x", name="zarr")])
def test_what_ends_a_command_is_one_sentence(ct, tmp_path, monkeypatch, capsys, error):
    def fail(*given, **options):
        raise error

    monkeypatch.setattr("CTHarmonizeTraining.simulation.command.read_subject", fail)
    run = ["simulate", str(ct), str(tmp_path / "pair"), "--source_kernel", "smooth", "--target_kernel", "3.5"]
    assert main(run) == 3
    said = capsys.readouterr().err
    assert said.startswith("ctharmonize-train: ") and said.count("\n") == 1
    assert main([*run, "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_help_names_debug(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--debug" in capsys.readouterr().out


def centre_of_marker(path: Path) -> np.ndarray:
    """Physical point (mm) of the centre of what is denser than water in the densest slice."""
    image = SimpleITK.ReadImage(str(path))
    excess = np.clip(SimpleITK.GetArrayFromImage(image).astype(float) - 150, 0, None)
    k = int(excess.sum((1, 2)).argmax())
    rows, columns = np.indices(excess[k].shape)
    index = [float((excess[k] * axis).sum() / excess[k].sum()) for axis in (columns, rows)]
    return np.array(image.TransformContinuousIndexToPhysicalPoint([*index, float(k)]))


def values(folder: Path) -> dict[str, np.ndarray]:
    return {name: read_volume(folder / f"{name}.nrrd").hu.astype(float) for name in IMAGES}


def test_images_lie_on_the_grid_of_the_input(ct, pair):
    expected = read_volume(ct)
    for name in IMAGES:
        volume = read_volume(pair / f"{name}.nrrd")
        assert volume.hu.dtype == np.int16 and volume.shape == (2, ROWS, COLUMNS)
        np.testing.assert_allclose(volume.spacing, SPACING)
        shift = np.eye(4)
        shift[2, 3] = 1  # the first slice was left out
        np.testing.assert_allclose(volume.ijk_to_ras(), expected.ijk_to_ras() @ shift, atol=1e-9)
    assert np.linalg.norm(centre_of_marker(pair / "target_noise_free.nrrd") - centre_of_marker(ct)) < 0.1


@pytest.mark.parametrize(("pixel", "size"), [(0.7, 57), (1.3, None), (None, 37)])
def test_a_marker_stays_in_place_on_another_grid(ct, tmp_path, pixel, size):
    simulate(str(ct), tmp_path, "smooth", 100, 2.5, 100, pixel, size, slices=":3", views=VIEWS, device="cpu")
    volume = read_volume(tmp_path / "target_noise_free.nrrd")
    pixel = pixel or 1.0
    assert volume.shape[1:] == ((size, size) if size else (round(ROWS / pixel), round(COLUMNS / pixel)))
    np.testing.assert_allclose(volume.spacing, (pixel, pixel, SPACING[2]))
    assert np.linalg.norm(centre_of_marker(tmp_path / "target_noise_free.nrrd") - centre_of_marker(ct)) < 0.1


def test_values_are_those_of_the_scan(ct, pair):
    images = values(pair)
    y, x = np.mgrid[:ROWS, :COLUMNS]
    water = (np.hypot(x - 24, y - 20) < 12) & (np.hypot(x - 31, y - 15) > 7)
    for name, tolerance in (("source", 8), ("target", 4), ("target_noise_free", 1)):
        assert abs(images[name][:, water].mean()) < tolerance, name
    noise = [(images[name] - images["target_noise_free"])[:, water].std() for name in ("source", "target")]
    assert noise[0] > 2 * noise[1] > 2

    # Padded by hand: the seven missing rows are air, three above and four below.
    square = np.full((2, COLUMNS, COLUMNS), -1000.0, np.float32)
    square[:, 3:-4] = read_volume(ct).hu[1:3]
    kernel, geometry = NAMED_KERNELS["smooth"], Geometry.covering(66.0, VIEWS)
    whole = scan.simulate(torch.from_numpy(square), 1.0, kernel, 100.0, Grid(48, 48, 1.0), geometry).clean
    simulated = pair.parent / "smooth"
    simulate(str(ct), simulated, "smooth", 5, "smooth", 100, slices="1:3", views=VIEWS, device="cpu")
    np.testing.assert_allclose(values(simulated)["target_noise_free"], whole[:, 3:-4].numpy(), atol=1.0)


def test_the_seed_and_the_slice_make_the_noise(ct, pair, tmp_path):
    def run(name: str, **options) -> dict[str, np.ndarray]:
        given = dict(source_kernel="smooth", source_dose=5, target_kernel=3.5, views=VIEWS, device="cpu")
        simulate(str(ct), tmp_path / name, **given, **options)
        return values(tmp_path / name)

    images, one, other = values(pair), run("one", slices="2:3"), run("other", slices="1:3", seed=1)
    for name in IMAGES:
        np.testing.assert_array_equal(one[name][0], images[name][1])
    np.testing.assert_array_equal(other["target_noise_free"], images["target_noise_free"])
    for name in IMAGES[:2]:
        assert (other[name] != images[name]).mean() > 0.5
    source, target = (images[name] - images["target_noise_free"] for name in IMAGES[:2])
    inside = np.s_[:, 10:30, 14:34]
    assert abs(np.corrcoef(source[inside].ravel(), target[inside].ravel())[0, 1]) < 0.3


def test_the_report_says_what_was_simulated(ct, pair):
    facts = json.loads((pair / "simulation.json").read_text(encoding="utf-8"))
    smooth = NAMED_KERNELS["smooth"]
    expected = {"kernel": "smooth", "f50": smooth.f50, "f10": smooth.f10, "mtf_peak": 1.0, "dose": 5.0}
    assert facts["source"] == pytest.approx(expected)
    assert facts["target"]["f50"] == 3.5 and facts["target"]["dose"] == 100
    assert (facts["input"], facts["slices"], facts["seed"]) == (str(ct), [1, 3], 0)
    assert (facts["views"], facts["photons"], facts["size"]) == (VIEWS, 2.5e5, [COLUMNS, ROWS])
    assert facts["warnings"] == ["The slices of 48 x 41 pixels were padded with air to 48 x 48."]


def test_a_fan_with_blur_shows_the_same_anatomy(ct, pair, tmp_path):
    run = ["simulate", str(ct), str(tmp_path), "--source_kernel", "ge-standard", "--source_dose", "5"]
    run += ["--target_kernel", "3.5", "--slices", "1:3", "--views", str(VIEWS), "--device", "cpu"]
    assert main([*run, "--beam", "fan", "--focal_spot", "0.6", "--tube_modulation", "1"]) == 0
    plain, fan = values(pair), values(tmp_path)
    difference = (fan["target_noise_free"] - plain["target_noise_free"])[:, 8:33, 12:37]
    assert np.abs(difference).mean() < 3.0 and abs(difference.mean()) < 1.0
    facts = json.loads((tmp_path / "simulation.json").read_text(encoding="utf-8"))
    assert (facts["beam"], facts["detector_width"], facts["focal_spot"]) == ("fan", 0.5, 0.6)
    assert facts["source"]["kernel"] == "ge-standard" and facts["source"]["f50"] == pytest.approx(4.0)  # of 4.1


def test_slices_of_different_thickness_keep_the_outer_faces(ct, pair, tmp_path):
    given = dict(source_kernel="smooth", source_dose=5, target_kernel=3.5, views=VIEWS, device="cpu")
    simulate(str(ct), tmp_path, **given, source_thickness=5.0)
    thick, thin = (read_volume(tmp_path / f"{name}.nrrd") for name in IMAGES[:2])
    assert thick.shape == (2, ROWS, COLUMNS) and thin.shape == (4, ROWS, COLUMNS)
    np.testing.assert_allclose(thick.spacing, (1.0, 1.0, 5.0))
    np.testing.assert_allclose(thin.ijk_to_ras(), read_volume(ct).ijk_to_ras(), atol=1e-9)
    between = thin.ijk_to_ras() @ [0, 0, 0.5, 1]
    np.testing.assert_allclose(thick.ijk_to_ras()[:, 3], between, atol=1e-9)
    facts = json.loads((tmp_path / "simulation.json").read_text(encoding="utf-8"))
    assert (facts["source_thickness"], facts["target_thickness"]) == (5.0, 2.5)


def test_a_thick_slice_is_the_mean_of_thin_ones_with_all_their_photons(ct, tmp_path):
    given = dict(source_kernel="smooth", source_dose=5, target_kernel="smooth", views=VIEWS, device="cpu")
    simulate(str(ct), tmp_path / "thin", **given)
    simulate(str(ct), tmp_path / "thick", **given, source_thickness=5.0, target_thickness=5.0)
    thin, thick = values(tmp_path / "thin"), values(tmp_path / "thick")
    means = thin["target_noise_free"].reshape(2, 2, ROWS, COLUMNS).mean(1)
    np.testing.assert_allclose(thick["target_noise_free"], means, atol=1.0)
    noise = [(images["source"] - images["target_noise_free"])[:, 8:33, 12:37].std() for images in (thick, thin)]
    assert noise[0] / noise[1] == pytest.approx(0.5**0.5, rel=0.15)


def test_slices_that_fill_no_thick_one_are_left_out(ct, tmp_path):
    simulate(str(ct), tmp_path, "smooth", target_kernel="smooth", slices=":3", target_thickness=5.0, views=VIEWS)
    facts = json.loads((tmp_path / "simulation.json").read_text(encoding="utf-8"))
    assert facts["slices"] == [0, 2] and any("last 1 slices" in warning for warning in facts["warnings"])
    assert read_volume(tmp_path / "source.nrrd").shape[0] == 2


def test_an_image_says_with_which_kernel_it_was_simulated(ct, pair, tmp_path):
    for name, f50 in (("source", NAMED_KERNELS["smooth"].f50), ("target", 3.5), ("target_noise_free", 3.5)):
        described = describe(read_volume(pair / f"{name}.nrrd"))
        assert described.acquisition.f50 == pytest.approx(f50, abs=1e-3), name
        assert described.sources["f50"] == described.sources["slice_thickness"] == "header"
        assert described.exposure_mas is None and described.acquisition.slice_thickness == SPACING[2]
    assert described.kernel_name == "simulated 3.5"
    given = dict(slices="1:3", views=VIEWS, device="cpu")
    simulate(str(ct), tmp_path, "sharp", 25, "ge-lung", 100, 0.6, target_thickness=5.0, **given)
    lung, described = parse_kernel("ge-lung", 0.6), describe(read_volume(tmp_path / "target.nrrd"))
    for name in ("f50", "f10", "peak"):
        told = getattr(described.acquisition, name.replace("peak", "mtf_peak"))
        assert told == pytest.approx(getattr(lung, name), rel=1e-3)
    assert described.kernel_name == "simulated ge-lung" and described.acquisition.slice_thickness == 5.0
    simulate(str(tmp_path / "source.nrrd"), tmp_path / "low", views=VIEWS, device="cpu", insert_noise=20)
    kept = describe(read_volume(tmp_path / "low" / "source.nrrd"))  # noise changes no sharpness
    assert kept.acquisition.f50 == pytest.approx(NAMED_KERNELS["sharp"].f50, abs=1e-3)


def test_inserted_noise_is_that_of_a_scan_at_the_lower_dose(tmp_path):
    y, x = np.mgrid[:40, :40].astype(float)
    water = np.repeat((-1000 + 1000 * disk(x, y, (19.5, 19.5), 17))[None], 24, 0).astype(np.int16)
    water[:, :2, :2] = -2000  # padding
    path = write_nrrd(Volume(water, SPACING), tmp_path / "water.nrrd")
    given = dict(source_kernel="medium", target_kernel="medium", views=VIEWS, device="cpu")
    simulate(str(path), tmp_path / "scan", **given, source_dose=20, target_dose=100)
    scan_100 = tmp_path / "scan" / "target.nrrd"
    simulate(str(scan_100), tmp_path / "low", "medium", views=VIEWS, device="cpu", insert_noise=20, seed=7)
    scratch, inside = values(tmp_path / "scan"), np.s_[:, 10:30, 10:30]
    truth = scratch["target_noise_free"]
    low = read_volume(tmp_path / "low" / "source.nrrd").hu
    np.testing.assert_array_equal(read_volume(tmp_path / "low" / "target.nrrd").hu, scratch["target"])
    assert not (tmp_path / "low" / "target_noise_free.nrrd").exists()
    wanted = (scratch["source"] - truth)[inside].var()
    assert (low - truth)[inside].var() == pytest.approx(wanted, rel=0.05)
    assert abs((low - truth)[inside].mean()) < 0.1 * wanted**0.5
    simulate(str(path), tmp_path / "padded", "medium", views=VIEWS, device="cpu", insert_noise=20, slices=":1")
    padded = read_volume(tmp_path / "padded" / "source.nrrd").hu[0]
    assert (padded[:2, :2] == -2000).all() and padded[:2, 4:].std() > 0


@pytest.mark.parametrize("name", IMAGES)
def test_no_image_is_written_over_the_input(ct, tmp_path, name):
    path = tmp_path / "scans" / f"{name}.nrrd"
    path.parent.mkdir()
    shutil.copy(ct, path)
    given = dict(source_kernel="smooth", target_kernel="smooth", views=VIEWS, device="cpu", slices="1:2")
    with pytest.raises(InputError, match="would be overwritten by an image: choose another output folder"):
        simulate(str(path), tmp_path / "elsewhere" / ".." / "scans", **given)
    assert path.read_bytes() == ct.read_bytes() and len(list(path.parent.iterdir())) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_a_cut_out_is_warned_of(tmp_path):
    hu = np.full((1, 48, 48), 40, np.int16)
    hu[:, :4] = -1000
    path = write_nrrd(Volume(hu, SPACING), tmp_path / "cut.nrrd")
    simulate(str(path), tmp_path, "smooth", target_kernel="smooth", views=VIEWS, device="cpu")
    warnings = json.loads((tmp_path / "simulation.json").read_text(encoding="utf-8"))["warnings"]
    assert any("outside the circle" in warning for warning in warnings)


@pytest.mark.parametrize("scenes", [0, 1])
def test_a_field_of_view_that_cuts_the_body_off_is_warned_of(tmp_path, monkeypatch, capsys, scenes):
    monkeypatch.setattr(scan, "SCENE_ROWS", 32)
    monkeypatch.setattr("CTHarmonizeTraining.simulation.scenes.SCENE_ROWS", 32)
    y, x = np.mgrid[:48, :48].astype(float)
    body = np.where(np.hypot(x - 23.5, y - 23.5) > 24, -2000, 40)  # the scanner's padding around its field of view
    path = write_nrrd(Volume(body[None].astype(np.int16), SPACING), tmp_path / "cut.nrrd")
    given = dict(source_kernel="smooth", target_kernel="smooth", views=VIEWS, device="cpu", scenes=scenes)
    simulate(str(path), tmp_path / "out", **given)
    assert "Up to 100 % of the edge of the field of view lies inside the body" in capsys.readouterr().err


def test_images_of_another_run_do_not_stay_beside_new_ones(ct, tmp_path):
    given = dict(slices=":1", views=VIEWS, device="cpu", source_kernel="smooth", target_kernel="smooth")
    simulate(str(ct), tmp_path, **given, report=True)
    simulate(str(ct), tmp_path, **given, insert_noise=20)
    assert {path.name for path in tmp_path.iterdir()} == {"source.nrrd", "target.nrrd", "simulation.json"}


def test_scenes_go_into_no_folder_of_something_else(ct, pair, tmp_path):
    for other in (pair, tmp_path / "pair.zarr"):
        if other != pair:
            given = dict(source_kernel="smooth", target_kernel="smooth", slices="1:3", views=VIEWS, device="cpu")
            simulate(str(ct), other, **given)
        before = sorted(other.rglob("*"))
        with pytest.raises(InputError, match="holds something else"):
            simulate(str(ct), other, views=VIEWS, device="cpu", scenes=1)
        assert sorted(other.rglob("*")) == before
    with pytest.raises(InputError, match="is a store, which would be mixed with images"):
        simulate(str(ct), tmp_path / "pair.zarr" / "0", views=VIEWS, device="cpu")


def test_a_phantom_is_scanned_from_the_head_down(monkeypatch, tmp_path):
    small = phantom.ChestPhantom(3, pixel=8.0, size=50, emphysema=0.3)
    monkeypatch.setattr(phantom, "ChestPhantom", {3: small}.__getitem__)
    simulate("phantom:3", tmp_path, "smooth", thickness=5.0, slices="26:28", size=90, pixel_spacing=4, views=VIEWS)
    volume = read_volume(tmp_path / "source.nrrd")
    assert volume.spacing == pytest.approx((4.0, 4.0, 5.0))
    np.testing.assert_allclose(volume.ijk_to_ras() @ [44.5, 44.5, 0, 1], [0, 0, -130, 1], atol=1e-9)
    np.testing.assert_allclose(volume.ijk_to_ras() @ [44.5, 44.5, 1, 1], [0, 0, -135, 1], atol=1e-9)
    truth = small.slice(130.0, 5.0)
    clean = read_volume(tmp_path / "target_noise_free.nrrd").hu[0, 5:-5, 5:-5].reshape(40, 2, 40, 2).mean((1, 3))
    assert np.corrcoef(clean.ravel(), truth[5:-5, 5:-5].ravel())[0, 1] > 0.97
    stated = json.loads((tmp_path / "simulation.json").read_text(encoding="utf-8"))["truth"]
    assert stated["seed"] == 3 and stated["emphysema_percent"] == pytest.approx(30.0)
    assert stated["lung_ml"] == small.truth()["lung_ml"]
    low = np.concatenate([small.slice(z, 5.0)[small.lung(z)] < -950.0 for z in (130.0, 135.0)])
    assert stated["slices_laa950_percent"] == pytest.approx(100.0 * low.mean())
    for nodule, entry in zip(small.nodules, stated["nodules"], strict=True):
        assert entry["volume"] == pytest.approx(nodule.volume)
        assert entry["centre"] == pytest.approx([*nodule.centre[:2], -nodule.centre[2]])  # LPS


def test_a_stated_nodule_lies_where_it_is_seen(monkeypatch, tmp_path):
    nodule = Nodule((-70.0, 12.0, 131.0), 26.0, 900.0, 0.0, 0, 1)
    small = phantom.ChestPhantom(3, pixel=2.0, size=190, emphysema=0.0, nodules=[nodule])
    monkeypatch.setattr(phantom, "ChestPhantom", {3: small}.__getitem__)
    given = dict(target_kernel="smooth", thickness=5.0, slices="26:27", size=190, pixel_spacing=2.0, views=VIEWS)
    simulate("phantom:3", tmp_path, "smooth", **given)
    volume = read_volume(tmp_path / "target_noise_free.nrrd")
    (entry,) = json.loads((tmp_path / "simulation.json").read_text(encoding="utf-8"))["truth"]["nodules"]
    lps_to_ijk = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.ijk_to_ras())
    i, j, k = np.rint(lps_to_ijk @ [*entry["centre"], 1.0])[:3].astype(int)
    assert k == 0 and volume.hu[0, j - 2 : j + 3, i - 2 : i + 3].mean() == pytest.approx(900.0, abs=60.0)


def test_dicom_and_nifti_give_what_nrrd_gives(ct, pair, tmp_path):
    image = SimpleITK.ReadImage(str(ct))
    SimpleITK.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    (tmp_path / "dicom").mkdir()
    writer, series = SimpleITK.ImageFileWriter(), "1.2.826.0.1.3680043.8.498.1"
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for k in range(image.GetDepth()):
        one = image[:, :, k]
        place = image.TransformIndexToPhysicalPoint((0, 0, k))
        for tag, value in {
            "0008|0060": "CT",
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{k + 1}",
            "0020|000d": f"{series}.9",
            "0020|000e": series,
            "0018|0050": "2.5",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in place),
            "0020|0037": "\\".join(f"{direction[i]:.6f}" for i in (0, 3, 6, 1, 4, 7)),
        }.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(tmp_path / "dicom" / f"{k}.dcm"))
        writer.Execute(one)
    given = dict(source_kernel="smooth", source_dose=5, target_kernel=3.5, slices="1:3", views=VIEWS, device="cpu")
    for name in ("ct.nii.gz", "dicom"):
        simulate(str(tmp_path / name), tmp_path / f"from {name}", **given)
        np.testing.assert_array_equal(
            values(tmp_path / f"from {name}")["target_noise_free"], values(pair)["target_noise_free"]
        )
        place = read_volume(tmp_path / f"from {name}" / "source.nrrd").ijk_to_ras()
        np.testing.assert_allclose(place, read_volume(pair / "source.nrrd").ijk_to_ras(), atol=1e-3)


def test_a_pair_becomes_a_store_for_training(ct, pair, tmp_path):
    run = ["simulate", str(ct), str(tmp_path / "disk.zarr"), "--source_kernel", "smooth", "--source_dose", "5"]
    run += ["--target_kernel", "3.5", "--slices", "1:3", "--views", str(VIEWS), "--device", "cpu"]
    assert main(run) == 0
    store = PatientStore(tmp_path / "disk.zarr")
    (entry,) = store.sets
    assert (store.patient, store.layout) == ("disk", "simulated")
    assert zarr.open_group(tmp_path / "disk.zarr", mode="r").attrs["source"] == "disk.nrrd"
    assert [each.name for each in entry.reconstructions] == list(IMAGES)
    images = values(pair)
    for number, (name, each) in enumerate(zip(IMAGES, entry.reconstructions, strict=True)):
        np.testing.assert_array_equal(entry.hu[number], images[name])
        np.testing.assert_allclose(entry.volume(number).ijk_to_ras(), read_volume(pair / f"{name}.nrrd").ijk_to_ras())
        told = each.acquisition
        assert (told.f50, each.dose) == ((NAMED_KERNELS["smooth"].f50, 5.0) if name == "source" else (3.5, 100.0))
        assert (told.pixel_spacing, told.slice_thickness) == pytest.approx((1.0, 2.5))
        assert each.facts["seed"] == 0 and each.facts["photons"] == 2.5e5
    assert json.loads((tmp_path / "splits.json").read_text(encoding="utf-8"))["patients"].keys() == {"disk"}
    assert main(run) == 2  # a store is never written over


def test_scenes_go_into_a_store_that_goes_on(ct, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "SCENE_ROWS", 32)
    monkeypatch.setattr("CTHarmonizeTraining.simulation.scenes.SCENE_ROWS", 32)
    run = ["simulate", str(ct), str(tmp_path / "s.zarr"), "--scenes", "2", "--realisations", "3", "--device", "cpu"]
    for slices in ("1:2", "1:3"):
        assert main([*run, "--views", str(VIEWS), "--slices", slices]) == 0
    store = SceneStore(tmp_path / "s.zarr")
    assert store.finished() == {1, 2} and len(store) == 4
    assert store[3].clean.shape == (32, 32) and store[3].noise.shape == (3, 32, 32)
    assert store.group.attrs["source"] == "disk.nrrd" and store.group.attrs["slice_thickness"] == 2.5
    assert main([*run, "--views", str(VIEWS), "--seed", "1"]) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source_kernel": "B99"}, "Kernel 'B99' is unknown"),
        ({"target_kernel": 5.5}, "does not fit pixels of 1 mm"),
        ({"target_kernel": "5.5", "pixel_spacing": 2.0}, "does not fit pixels of 2 mm"),
        ({"source_dose": 0.0}, "dose of 0 is out of range"),
        ({"views": 66}, "multiple of 4"),
        ({"slices": "2"}, "not of the form a:b"),
        ({"slices": "2:9"}, "do not lie inside the input's 0:4"),
        ({"slices": "3:3"}, "do not lie inside"),
        ({"size": 8}, "size of 8 is out of range"),
        ({"pixel_spacing": 0.0}, "pixel spacing of 0 is out of range"),
        ({"input": "phantom:x"}, "'phantom:x' is no phantom"),
        ({"input": "none.nrrd"}, "There is no file or folder 'none.nrrd'"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"beam": "cone"}, "no beam 'cone'"),
        ({"focal_spot": 3.0}, "focal spot of 3 is out of range"),
        ({"detector_width": 0.0}, "detector width of 0 is out of range"),
        ({"tube_modulation": 1.5}, "tube modulation of 1.5 is out of range"),
        ({"beam": "fan", "scenes": 2}, "plain parallel beams"),
        ({"detector_width": 2.0, "target_kernel": 5.0, "pixel_spacing": 0.5}, "too sharp for this detector"),
        ({"source_thickness": 3.0}, "3 mm is no whole multiple of the slice spacing of 2.5 mm"),
        ({"target_thickness": 0.0}, "no whole multiple"),
        ({"target_thickness": 5.0, "slices": "1:2"}, "too few for these thicknesses: give at least 2"),
        ({"insert_noise": 100.0}, "0.1 to less than 100"),
        ({"insert_noise": 25.0, "pixel_spacing": 0.5}, "as it is"),
        ({"insert_noise": 25.0, "input": "phantom:3"}, "as it is"),
        ({"scenes": 2, "source_thickness": 5.0}, "Scenes take no thickness"),
        ({"source_kernel": "ge-b30f"}, "Kernel 'ge-b30f' is unknown"),
        ({"output": "out.zarr", "source_thickness": 5.0}, "the same thickness"),
        ({"output": "out.zarr", "report": True}, "A store takes no report"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(ct, tmp_path, options, sentence):
    given = {"input": str(ct), "output": "out", "device": "cpu", "views": VIEWS, **options}
    given["output"] = tmp_path / given["output"]
    with pytest.raises(InputError, match=sentence):
        simulate(**given)
    assert not given["output"].exists()


def test_the_command_line_explains_itself(capsys):
    for arguments, word in ((["--help"], "simulate"), (["simulate", "--help"], "phantom:SEED")):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert word in capsys.readouterr().out
    assert main(["simulate", "none.nrrd", "out", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "none.nrrd" in error and "Traceback" not in error and error.count("\n") == 1
