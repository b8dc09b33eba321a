"""The suite from end to end on a small made-up case: rows, what is kept, what is left out, the report."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from CTHarmonizeLib.ct.volume import Roi
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.request import Request
from CTHarmonizeTraining import cli
from CTHarmonizeTraining.evidence import command, desk, images, kept, slabs, suite
from CTHarmonizeTraining.evidence.cases import Case, KnownNodule, Place, Scan
from CTHarmonizeTraining.evidence.densitometry import DensitometryStudy
from CTHarmonizeTraining.evidence.images import Maker
from CTHarmonizeTraining.evidence.lesions import LesionStudy
from CTHarmonizeTraining.evidence.lesions import response as lesion_response
from CTHarmonizeTraining.evidence.quality import QualityStudy
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED, Image
from CTHarmonizeTraining.evidence.uncertainty import UncertaintyStudy

SHAPE = (16, 96, 120)
SPACING = (1.4, 1.4, 1.0)
NOISE = {10.0: 60.0, 25.0: 35.0, 100.0: 12.0}
BLUR = {"smooth": 1.0, "medium": 0.7, "sharp": 0.4}  # pixels


def made_up_case() -> Case:
    z, y, x = (axis.astype(np.float32) for axis in np.indices(SHAPE))
    y, x = y - 47.5, x - 59.5
    truth = np.full(SHAPE, -1000.0, np.float32)
    body = (x / 54) ** 2 + (y / 40) ** 2 < 1
    truth[body] = 45.0
    lung = ((np.abs(x) - 27) / 18) ** 2 + (y / 26) ** 2 < 1
    truth[lung] = -860.0
    nodule = (x - 27) ** 2 + y**2 + (z - 8) ** 2 < 16
    truth[nodule] = 30.0
    lesions = (Place((8.0, 40.0, 90.0), 3.0, 100.0),)
    rng = np.random.default_rng(0)

    def seen(kernel: str) -> np.ndarray:
        return ndimage.gaussian_filter(truth, (0, BLUR[kernel], BLUR[kernel]))

    def scan(scan: Scan) -> np.ndarray:
        grain = ndimage.gaussian_filter(rng.normal(size=SHAPE), (0, BLUR[scan.kernel], BLUR[scan.kernel]))
        return np.rint(seen(scan.kernel) + NOISE[scan.dose] * grain / grain.std()).astype(np.int16)

    sources = dict.fromkeys(source for source, _ in suite.MAPPINGS)
    targets = dict.fromkeys(target for _, target in suite.MAPPINGS)
    return Case(
        name="phantom:1",
        spacing=SPACING,
        scans={source: scan(source) for source in sources},
        references={target: scan(target) for target in targets},
        region=Roi.whole(SHAPE),
        clean={kernel: seen(kernel) for kernel in BLUR},
        truth=truth,
        body=body,
        lung=lung,
        tissues={"lung": ndimage.binary_erosion(lung & ~nodule, iterations=3), "bone": np.zeros(SHAPE, bool)},
        labels=nodule.astype(np.int16),
        emphysema_percent=0.0,
        nodules=(KnownNodule(1, (8.0, 47.5, 86.5), 11.0, 700.0, 30.0, True),),
        lesions=lesions,
        vacant=(Place((8.0, 40.0, 30.0), 3.0, 0.0),),
    )


class Drawing(Maker):
    """A method with four samples, each the mean of the source and the reference with noise of its own; it reaches the
    medium kernel alone."""

    made = 0
    sets_kernel, slices_made = False, 1

    def __init__(self) -> None:
        self.request, self.device = Request(method="drawing"), torch.device("cpu")

    def check_unseen(self, seeds) -> None:
        pass

    def facts(self) -> dict:
        return {"method": "drawing"}

    def key(self, case, source, target) -> str:
        return f"{source}-{target}".replace(" ", "")

    def told(self, case, source, target):
        return 0.5, ["Judge with care."]

    def images(self, case, source, target) -> list[Image]:
        if target.kernel != "medium":
            raise InputError("It reaches the medium kernel alone.")
        Drawing.made += 1
        rng = np.random.default_rng(1)
        noise = np.stack([ndimage.gaussian_filter(rng.normal(0, 30, SHAPE), (0, 0.7, 0.7)) for _ in range(4)])
        samples = np.rint(case.clean["medium"] + noise).astype(np.int16)
        mean = np.rint(samples.mean(0)).astype(np.int16)
        deviation = samples.std(0, ddof=1).astype(np.float32)
        return [
            Image("drawing, mean", source, target, mean, deviation, samples),
            Image("drawing, one image", source, target, samples[0]),
        ]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(slabs, "case_of", lambda slab, cache, say: replace(made_up_case(), name=f"phantom:{slab.seed}"))
    chosen = [QualityStudy(), DensitometryStudy(), LesionStudy(), UncertaintyStudy()]
    monkeypatch.setattr(suite, "studies", lambda distances=None: (chosen, {"study of detection": "It needs MONAI."}))
    usual = suite.Maker
    monkeypatch.setattr(
        suite, "Maker", lambda request, folder: Drawing() if request.method == "nlm" else usual(request, folder)
    )
    Drawing.made = 0


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def test_suite_measures_joins_and_reports(small, tmp_path, capsys):
    output = tmp_path / "Befund ä"
    arguments = ["evaluate", str(output), "--suite", "papers", "--phantom", "[1, 2]", "--methods", "[mtf-filter, nlm]"]
    assert cli.main([*arguments, "--device", "cpu", "--debug"]) == 0
    rows = pd.read_csv(output / suite.MEASUREMENTS)
    assert {*rows.method} >= {
        UNTOUCHED, REFERENCE, "mtf-filter", "drawing, mean", "drawing, one image", "drawing, mean over samples",
    }  # fmt: skip

    # what the reference shows stands beside each measure of the same case and target
    volume = rows[(rows.measure == "LAA-950") & (rows.case == "phantom:1") & (rows.target == "medium 100 %")]
    known = volume[volume.method == REFERENCE].value.item()
    assert (volume.reference == known).all()

    # of each sample's measure the mean, and limits around it
    over = rows[rows.method == "drawing, mean over samples"]
    assert {*over.study} == {"densitometry"}
    assert ((over.low <= over.value) & (over.value <= over.high)).all()
    assert rows[rows.method == "drawing, mean"].low.isna().all()

    facts = json.loads((output / suite.FACTS).read_text(encoding="utf-8"))
    assert facts["left out"]["study of detection"] == "It needs MONAI."
    assert facts["left out"]["drawing, smooth 100 % to sharp 100 %"] == "It reaches the medium kernel alone."
    assert facts["warnings"]["drawing"]["sharp 10 % to medium 100 %"] == ["Judge with care."]

    page = _Page()
    page.feed((output / "report.html").read_text(encoding="utf-8"))
    for words in ("What was found", "Image quality", "Lung densitometry", "Small lesions", "Intervals", "needs MONAI"):
        assert words in page.text
    summary = pd.read_csv(output / "tables" / "summary.csv").set_index("method")
    error = summary["RMSE to noise-free, HU"]
    assert error["drawing, mean (keeps the kernel)"] < error[UNTOUCHED]
    assert summary.loc["drawing, mean (keeps the kernel)", "voxels in their 95 % interval, %"] > 50

    # once more: nothing is harmonized again, and the report is the same
    before = Drawing.made
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    assert Drawing.made == before
    pd.testing.assert_frame_equal(pd.read_csv(output / suite.MEASUREMENTS), rows)
    (output / "report.html").unlink()
    assert cli.main(["report", str(output)]) == 0
    assert (output / "report.html").is_file()


def test_a_changed_study_alone_is_measured_again(small, tmp_path, monkeypatch):
    def run() -> None:
        suite.run(tmp_path, [1], ["nlm"], Request(device="cpu"))

    run()
    first = Drawing.made
    usual, measured = desk._code, []
    monkeypatch.setattr(desk, "_code", lambda study: "changed" if study.name == "lesions" else usual(study))

    def noted(study):
        measure = study.measure

        def noting(case, image):
            measured.append((study.name, image.method))
            return measure(case, image)

        return noting

    for study in suite.studies()[0]:
        monkeypatch.setattr(study, "measure", noted(study))
    run()
    assert Drawing.made > first
    assert {name for name, method in measured if method.startswith("drawing")} == {"lesions"}


def test_wrong_options_are_one_sentence(tmp_path, capsys):
    for options, words in (
        (["--slices", "7"], "even number"),
        (["--samples", "2"], "At least 4 samples"),
        (["--methods", "[mtf]"], "no method 'mtf'"),
        (["--sices", "20"], "did you mean --slices"),
    ):
        assert cli.main(["evaluate", str(tmp_path), "--suite", "papers", *options]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no measurements" in capsys.readouterr().err


def test_a_model_is_not_judged_on_chests_that_it_was_trained_on(tmp_path):
    maker = Maker(Request(method="unet", device="cpu"), tmp_path)
    with pytest.raises(InputError, match="trained on"):
        maker.check_unseen([101])
    maker.check_unseen(command.SEEDS)


def test_thick_slices_are_means_of_neighbours(tmp_path):
    case, source = made_up_case(), suite.MAPPINGS[0][0]
    maker = Maker(Request(method="cnn3d", device="cpu"), tmp_path)
    volume, region = maker._given(case, source)
    assert volume.spacing == (1.4, 1.4, 2.0) and region.slices == (0, 8)
    pairs = case.scans[source].astype(float).reshape(8, 2, *SHAPE[1:]).mean(1)
    assert np.abs(volume.hu - pairs).max() <= 0.5


def test_installed_methods_and_why_others_are_not(monkeypatch):
    found, missing = images.installed(["mtf-filter", "wgan-vgg"])
    assert found[0] == "mtf-filter"
    assert {*found, *missing} == {"mtf-filter", "wgan-vgg"}
    with pytest.raises(InputError, match="no method"):
        images.installed(["nonsense"])


def test_what_is_cut_short_on_disk_is_made_again(tmp_path):
    path = tmp_path / "deep" / "x.npz"
    made = kept.kept(path, lambda: {"a": np.arange(3)})
    np.testing.assert_array_equal(made["a"], [0, 1, 2])
    path.write_bytes(path.read_bytes()[:40])
    again = kept.kept(path, lambda: {"a": np.arange(4)})
    np.testing.assert_array_equal(again["a"], [0, 1, 2, 3])
    np.testing.assert_array_equal(kept.kept(path, dict)["a"], [0, 1, 2, 3])


def test_a_slab_is_what_it_says(tmp_path, monkeypatch):
    """A real slab, small: nodules and lesions lie where they are said to, references have readings of their own."""
    monkeypatch.setattr(slabs, "LESIONS_OF_EACH", 1)
    slab = slabs.Slab(9190, 0.1, nodules=2, slices=16, pixel=0.8, views=120)
    case = slabs.case_of(slab, tmp_path)
    assert case.truth.shape == case.region.shape == case.lung.shape
    assert case.scans[Scan("sharp", 10.0)].shape == (16, slabs.GRID.rows, slabs.GRID.columns)
    assert case.seen(case.scans[Scan("sharp", 10.0)]).shape == case.truth.shape

    assert len(case.nodules) == 2
    for nodule in case.nodules:
        voxels = np.argwhere(case.labels == nodule.number)
        assert voxels.mean(0) == pytest.approx(nodule.centre, abs=0.5)
        assert len(voxels) * np.prod(case.spacing) == pytest.approx(nodule.volume, rel=0.1)
        assert case.truth[tuple(np.rint(nodule.centre).astype(int))] == pytest.approx(nodule.hu, abs=30)
        assert case.lung[tuple(np.rint(nodule.centre).astype(int))]

    # without noise a lesion's response is its contrast, but for what lies around it
    kernel = "medium"
    responses = [lesion_response(case.clean[kernel], place, kernel, case.spacing) for place in case.lesions]
    off = np.array(responses) - [place.contrast for place in case.lesions]
    assert np.median(np.abs(off)) < 30.0
    assert len(case.lesions) == len(case.vacant) == 9

    # one kernel at two doses shows the same anatomy; scan and reference of one acquisition have noise of their own
    clean = case.clean[kernel]
    scan, own = (case.seen(of[Scan(kernel, 100.0)]) - clean for of in (case.scans, case.references))
    inside = case.body
    assert abs(np.corrcoef(scan[inside], own[inside])[0, 1]) < 0.05
    low = case.seen(case.scans[Scan(kernel, 25.0)]) - clean
    assert low[inside].std() == pytest.approx(2.0 * scan[inside].std(), rel=0.25)
    # all kernels of a dose come of the same readings
    sharp = case.seen(case.scans[Scan("sharp", 100.0)]) - case.clean["sharp"]
    assert np.corrcoef(scan[inside], sharp[inside])[0, 1] > 0.5
    again = slabs.case_of(slab, tmp_path)
    np.testing.assert_array_equal(again.truth, case.truth)
    assert again.nodules == case.nodules and again.lesions == case.lesions
