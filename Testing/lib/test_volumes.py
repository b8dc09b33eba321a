"""Methods that see neighbouring slices and make several of each: geometry, values and what may be asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from model_folder import make_model_folder
from stochastic_method import ACQUISITION, chest
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib import cli, engine, harmonize
from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.dicom import DicomFacts
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.engine import Settings
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.methods.base import INVENTED, Method
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.networks.sngan import VolumeGenerator, VolumeGeneratorConfig
from CTHarmonizeLib.passthrough import interpolated

SMALL = {"blocks": 2, "channels": 8, "conditions": 11, "stride": 2, "gain": 4.0, "skip": "linear"}
OBLIQUE = tuple(np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0].ravel())
TARGET = {"f50": [2.0, 6.5], "dose": [10.0, 100.0], "thickness": [0.9, 1.1]}


class Halving(Method):
    """Two slices of each, by different mixtures of it, of its neighbours up to two slices away and of pixels around."""

    name = "halving"
    title = summary = "For tests."
    needs_model = False
    target_fields = frozenset({"thickness"})
    window = (-1100.0, 3000.0)
    halo = 4
    context = 2

    def __init__(self, anchor_mm: float | None = None, bias: float = 0.0) -> None:
        super().__init__(None, torch.device("cpu"), torch.float32)
        self.anchor_mm, self.bias = anchor_mm, bias
        kernel = torch.rand(2, 1, 5, 9, 9, generator=torch.Generator().manual_seed(0))
        kernel[0, :, 3:] = kernel[1, :, :2] = 0.0  # one looks up, one down
        self.kernel = kernel / kernel.flatten(1).sum(1).view(2, 1, 1, 1, 1)
        self.seen: list[tuple[int, ...]] = []

    @classmethod
    def slices_made(cls, card: dict | None) -> int:
        return 2

    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        self.seen.append(tuple(planes.shape))
        x = F.pad(planes[:, 0][None, None], (4, 4, 4, 4, 2, 2), mode="replicate")
        return F.conv3d(x, self.kernel)[0].transpose(0, 1).flatten(0, 1) + self.bias

    def estimate(self, state: Tensor) -> Tensor:
        return state


def generator(seed: int = 1, **changes: object) -> VolumeGenerator:
    """A small one with random weights everywhere, whose correction is of some HU."""
    torch.manual_seed(seed)
    network = VolumeGenerator(VolumeGeneratorConfig.from_dict({**SMALL, **changes}))
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    network.last.bias.data.zero_()
    return network


def learned(folder: Path, name: str = "sngan", **changes: object) -> Method:
    make_model_folder(folder, generator(), method=name, halo=0, target=TARGET, **changes)
    return method_named(name)(load_model(folder), torch.device("cpu"), torch.float32)


def run(volume: Volume, method: Method, **settings) -> np.ndarray:
    return engine.run(volume, method, ACQUISITION, ACQUISITION, Settings(**settings)).mean


def scan(slices: int = 7, rows: int = 48, columns: int = 60) -> Volume:
    """Slices that differ from each other, lying obliquely."""
    volume = chest(slices, rows, columns)
    volume.hu[:, 10:30, 10:40] += (60 * np.sin(np.arange(slices))).astype(np.int16)[:, None, None]
    return replace(volume, direction=OBLIQUE)


def test_half_slices_lie_between_the_same_faces() -> None:
    volume = replace(scan(5), facts=DicomFacts(slice_thickness=2.0))
    thin = volume.divided(2, np.repeat(volume.hu, 2, 0))
    assert thin.spacing == (0.8, 0.8, 1.0) and thin.facts.slice_thickness == 1.0
    old, new = volume.ijk_to_ras(), thin.ijk_to_ras()
    for face_old, face_new in ((-0.5, -0.5), (4.5, 9.5)):
        np.testing.assert_allclose(old @ [3, 4, face_old, 1], new @ [3, 4, face_new, 1], atol=1e-12)
    for slice_ in range(5):
        middle = (new @ [3, 4, 2 * slice_, 1] + new @ [3, 4, 2 * slice_ + 1, 1]) / 2
        np.testing.assert_allclose(old @ [3, 4, slice_, 1], middle, atol=1e-12)
    shift = np.asarray(thin.origin) - np.asarray(volume.origin)
    np.testing.assert_allclose(shift, -0.25 * 2.0 * np.reshape(OBLIQUE, (3, 3))[:, 2], atol=1e-12)
    with pytest.raises(ValueError, match="expected"):
        volume.divided(2, volume.hu)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_interpolation_is_linear_between_centres(factor: int) -> None:
    slices = torch.arange(5.0).view(5, 1, 1).expand(5, 2, 3) * 100.0
    thin = interpolated(slices, factor)
    centres = ((torch.arange(5 * factor) + 0.5) / factor - 0.5).clamp(0, 4)
    assert torch.allclose(thin[:, 1, 2], 100.0 * centres, atol=1e-4)


@pytest.mark.parametrize("anchor", [None, 2.5])
@pytest.mark.parametrize("division", [{"slab": 1}, {"slab": 3}, {"tile": 16}, {"slab": 2, "tile": 24}])
def test_division_of_the_work_does_not_matter(division: dict, anchor: float | None) -> None:
    whole = run(scan(), Halving(anchor), slab=7)
    assert whole.shape == (14, 48, 60)
    parts = run(scan(), Halving(anchor), **division)
    assert np.abs(whole.astype(int) - parts).max() <= 1 and np.mean(whole != parts) < 1e-3


@pytest.mark.parametrize("roi", ["0:60,0:48,2:5", "13:50,7:40,0:1", "5:20,9:30,6:7"])
def test_region_has_the_values_of_the_whole(roi: str) -> None:
    roi = Roi.parse(roi)
    whole, part = run(scan(), Halving(2.5), slab=7), run(scan(), Halving(2.5), roi=roi)
    first, last = (2 * index for index in roi.slices)
    change = np.abs(part.astype(int) - whole[first:last, slice(*roi.rows), slice(*roi.columns)])
    assert change.max() <= 1 and np.mean(change > 0) < 1e-3


def test_the_context_is_whole_slices_and_the_volumes_ends_are_repeated() -> None:
    volume, method = scan(3), Halving()
    made = run(volume, method, slab=1)
    assert method.seen == [(5, 1, 48, 60)] * 3
    longer = volume.with_hu(volume.hu)
    longer = replace(longer, hu=np.concatenate([volume.hu[:1]] * 2 + [volume.hu] + [volume.hu[-1:]] * 2))
    np.testing.assert_array_equal(run(longer, method)[4:-4], made)


def test_a_single_slice_becomes_two() -> None:
    volume = scan(1)
    made = run(volume, Halving())
    assert made.shape == (2, 48, 60)
    np.testing.assert_array_equal(made, run(replace(volume, hu=np.repeat(volume.hu, 5, 0)), Halving())[4:6])


def test_anchor_holds_the_mean_of_the_thin_slices_and_not_each() -> None:
    levels = np.array([40, 90, 20, 70, 60, 0, 50], np.int16)
    volume = scan().with_hu(np.broadcast_to(levels[:, None, None], (7, 48, 60)).copy())
    free, held = (run(volume, Halving(anchor, bias=30.0)).reshape(7, 2, -1) for anchor in (None, 2.5))
    assert np.abs(free.mean((1, 2)) - levels).max() > 20.0
    np.testing.assert_allclose(held.mean((1, 2)), levels, atol=0.51)
    assert np.abs(held[:, 0].mean(1) - held[:, 1].mean(1)).max() > 5.0, "thin slices of one thick one may differ"


def test_metal_and_padding_pass_in_thin_slices() -> None:
    volume = scan(6)
    volume.hu[:, 20:40, 30:50] = 3071
    volume.hu[:, :12] = -2048
    volume.hu[5] = -2048  # padding alone
    made = run(volume, Halving(2.5))
    assert (made[:10, 27:33, 37:43] == 3071).all()
    assert (made[:, :12] == -2048).all() and (made[10:] == -2048).all()
    body = made[8:10, 14:]
    assert body.min() > -1500, "no values between padding and image"


def test_too_little_memory_means_smaller_slabs_then_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = scan(9, 300, 300)

    class Greedy(Halving):
        def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
            if planes.shape[0] > 5 or planes.shape[-1] > 200:
                raise MemoryError
            return super().encode(planes, source, target)

    method = Greedy()
    outcome = engine.run(volume, method, ACQUISITION, ACQUISITION, Settings())
    assert (outcome.load.slices, outcome.load.tile) == (1, 144)
    np.testing.assert_allclose(outcome.mean, run(volume, Halving(), slab=9), atol=1)
    monkeypatch.setattr("CTHarmonizeLib.device.free_memory", lambda device: 1000)
    with pytest.raises(CannotRunError, match="GiB of memory"):
        run(volume, method)


def test_the_generator_is_the_published_one() -> None:
    """64 features, 8 residual blocks of two 3^3 convolutions, one after them, one thin one and the image's."""
    network = VolumeGenerator()
    block = 64 * 64 * 27 + 64
    assert sum(parameter.numel() for parameter in network.parameters()) == (27 * 64 + 64) + 18 * block + (27 * 64 + 1)
    with torch.no_grad():
        assert network(torch.rand(1, 1, 16, 64, 64)).shape == (1, 1, 32, 64, 64)
    deviation = float(network.trunk.weight.detach().std())
    assert deviation == pytest.approx(0.1 * (2.0 / (64 * 27)) ** 0.5, rel=0.02), "a tenth of Kaiming's"


@pytest.mark.parametrize("skip", ["none", "nearest", "linear"])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_a_generator_sees_as_far_as_it_says(skip: str, ratio: int) -> None:
    """Far enough, and no further than it takes."""
    network = generator(skip=skip, ratio=ratio, blocks=1).double()
    context, halo = network.config.context, network.config.halo
    x = torch.rand(1, 1, 2 * context + 3, 2 * halo + 4, 8, dtype=torch.float64, requires_grad=True)
    told = torch.rand(1, 11, dtype=torch.float64)
    slices, rows = x.shape[2:4]
    image = network(x, told)
    middle = image[0, 0, ratio * (slices // 2) : ratio * (slices // 2 + 1), rows // 2 : rows // 2 + 2]
    (gradient,) = torch.autograd.grad(middle.square().sum(), x)
    touched = gradient[0, 0].abs().amax(2)
    reached = torch.nonzero(touched.amax(1))[:, 0]
    assert (int(slices // 2 - reached.min()), int(reached.max() - slices // 2)) == (context, context)
    reached = torch.nonzero(touched.amax(0))[:, 0]
    assert int(max(rows // 2 - reached.min(), reached.max() - rows // 2 - 1)) <= halo


def test_half_precision_stays_near() -> None:
    planes, told = torch.rand(1, 1, 6, 24, 24), torch.rand(1, 11)
    with torch.inference_mode():
        for skip in ("none", "linear"):
            one = generator(skip=skip)(planes, told)
            half = generator(skip=skip).use_precision(torch.bfloat16)(planes, told)
            assert half.dtype == torch.float32 and one.shape == half.shape
            assert 0.0 < float((one - half).abs().max()) < 0.02 * float(one.abs().max())


def test_what_is_told_changes_the_image() -> None:
    planes, told = torch.rand(1, 1, 4, 16, 16), torch.zeros(1, 11)
    network = generator()
    with torch.no_grad():
        assert float((network(planes, told) - network(planes, told + 1.0)).abs().max()) > 1e-4


@pytest.mark.parametrize("entries", [{"ratio": 0}, {"skip": "cubic"}, {"colour": 1}])
def test_a_wrong_configuration_is_refused(entries: dict) -> None:
    with pytest.raises(ValueError, match="give|Unknown"):
        VolumeGeneratorConfig.from_dict(entries)


@pytest.mark.parametrize("name", ["sngan", "cnn3d"])
def test_the_engine_runs_a_network_alike_in_slabs_tiles_and_regions(name: str, tmp_path: Path) -> None:
    method = learned(tmp_path, name, anchor_mm=4.0)
    volume = scan(12, 96, 112)
    whole = run(volume, method, slab=12)
    plain = np.rint(interpolated(torch.from_numpy(volume.hu.astype(np.float32)), 2).numpy())
    assert np.abs(whole - plain).max() > 5
    for settings in ({"slab": 1}, {"slab": 5, "tile": 48}):
        assert np.abs(whole.astype(int) - run(volume, method, **settings)).max() <= 1
    part = run(volume, method, roi=Roi.parse("11:90,20:71,3:5"))
    assert np.abs(part.astype(int) - whole[6:10, 20:71, 11:90]).max() <= 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that makes slices of 1 mm out of those of 2 mm."""
    learned(tmp_path / "model")
    return tmp_path


def ask(volume: Volume, folder: Path, **request):
    return harmonize(volume, method="sngan", model=str(folder / "model"), device="cpu", **request)


def test_the_models_thickness_is_the_default_and_is_told(folder: Path) -> None:
    volume = scan(4, 64, 64)
    result = ask(volume, folder, dose=100)
    again = ask(volume, folder, dose=100, thickness=1.0)
    assert result.harmonized.shape == (8, 64, 64) and result.mean.spacing == (0.8, 0.8, 1.0)
    np.testing.assert_array_equal(result.mean.hu, again.mean.hu)
    report = result.report
    assert report["notes"] == ["The slices become 1 mm thick, 2 for each of the source's of 2 mm.", INVENTED]
    assert not any("thick" in warning for warning in report["warnings"])
    assert report["output"] == {"shape": [8, 64, 64], "spacing": [0.8, 0.8, 1.0]}
    assert report["source"]["acquisition"]["slice_thickness"] == 2.0
    assert report["target"]["acquisition"]["slice_thickness"] == 1.0


def test_an_unset_dose_is_the_sources_in_thin_slices(folder: Path) -> None:
    """The same photons in half the thickness: noise rises by the square root of 2, the dose stays."""
    report = ask(scan(4, 96, 96), folder, thickness=1.0, source_dose=40.0).report
    source, target = (report[side]["acquisition"]["noise"] for side in ("source", "target"))
    assert target == pytest.approx(2**0.5 * source, rel=1e-3)


@pytest.mark.parametrize(
    ("spacing", "request_", "words"),
    [
        (2.0, {"thickness": 0.75}, "2 mm cannot become slices of 0.75 mm: .* makes 2 of each, which gives 1 mm"),
        (2.0, {"thickness": 2.0}, "cannot become slices of 2 mm"),
        (3.0, {}, "slices of 0.9 to 1.1 mm, 2 of each: the source's of 3 mm would become 1.5 mm"),
        (3.0, {"thickness": 1.0}, "3 mm cannot become slices of 1 mm"),
        (2.0, {"thickness": -1.0}, "thickness .* must lie between"),
    ],
)
def test_what_the_model_cannot_make_is_one_sentence(spacing: float, request_: dict, words: str, folder: Path) -> None:
    volume = replace(scan(4, 64, 64), spacing=(0.8, 0.8, spacing))
    with pytest.raises(InputError, match=words):
        ask(volume, folder, dose=100, **request_)


def test_slices_that_overlap_are_refused(folder: Path) -> None:
    volume = replace(scan(4, 64, 64), spacing=(0.8, 0.8, 1.0), facts=DicomFacts(slice_thickness=2.0))
    with pytest.raises(InputError, match="2 mm thick but lie 1 mm apart"):
        ask(volume, folder, dose=100)


def test_methods_of_single_slices_still_refuse_a_thickness() -> None:
    with pytest.raises(InputError, match="mtf-filter cannot set the slice thickness"):
        harmonize(chest(), kernel="smooth", thickness=1.0, method="mtf-filter")


@pytest.mark.parametrize("kind", ["nrrd", "nii.gz"])
def test_files_have_the_thin_slices_in_their_place(kind: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    volume = scan(4, 64, 64)
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction)
    SimpleITK.WriteImage(image, str(folder / f"scan.{kind}"))
    image = SimpleITK.ReadImage(str(folder / f"scan.{kind}"))
    command = ["harmonize", str(folder / f"scan.{kind}"), "-o", str(folder / "out"), "--method", "sngan", "--dose"]
    command += ["100", "--model", str(folder / "model"), "--thickness", "1", "--augment"]
    command += ["--roi", "8:56,4:60,1:4"]
    assert cli.main([*command, "--device", "cpu"]) == 0
    assert "Note: The slices become 1 mm thick" in capsys.readouterr().err
    assert json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))["output"]["shape"] == [6, 56, 48]
    for name in ("harmonized", "mean", "augmentation_spread"):
        made = SimpleITK.ReadImage(str(folder / "out" / f"{name}.nrrd"))
        assert made.GetSize() == (48, 56, 6)
        for old, new in (((8, 4, 0.5), (0, 0, -0.5)), ((55, 59, 3.5), (47, 55, 5.5)), ((20, 30, 0.5), (12, 26, -0.5))):
            np.testing.assert_allclose(
                made.TransformContinuousIndexToPhysicalPoint(new),
                image.TransformContinuousIndexToPhysicalPoint(old),
                atol=1e-5 if kind != "nrrd" else 1e-9,
            )


def test_models_say_which_thickness_they_reach(folder: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setenv("CTHARMONIZE_MODELS", str(folder))
    assert cli.main(["models"]) == 0
    assert "slices of 0.9 to 1.1 mm" in capsys.readouterr().out
