"""The noise-free truth as training's target, and the stages of the physics-informed GAN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_data import write_store
from test_export import SMALL, about, disk
from test_fit import BATCH, CPU, STEPS, Watcher
from torch.nn import functional as F

from CTHarmonizeLib import harmonize
from CTHarmonizeLib.ct.acquisition import Acquisition, target_acquisition, truth_mtf
from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import CONDITIONS, acquisition_vector, acquisitions_of, mtf_map
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.networks.physics import PhysicsConfig
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.evaluation.candidates import towards
from CTHarmonizeTraining.evaluation.comparison import markdown
from CTHarmonizeTraining.evaluation.tables import _tables
from CTHarmonizeTraining.training import export as exporting
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.adversarial import AdversarialStage, Game
from CTHarmonizeTraining.training.base import Cycle, StageConfig
from CTHarmonizeTraining.training.export import export, quality, write_model
from CTHarmonizeTraining.training.facts import data_facts, noise_table, simulation
from CTHarmonizeTraining.training.fit import fit
from CTHarmonizeTraining.training.loader import Pairs
from CTHarmonizeTraining.training.perceptual import AcquisitionFeatures, FeatureConfig
from CTHarmonizeTraining.training.physics import (
    UNIT,
    Augmentation,
    InformedStage,
    Losses,
    PairCritic,
    PairCriticConfig,
    PhysicsStage,
    PhysicsTraining,
    lung_mask,
    source_mtfs,
)
from CTHarmonizeTraining.training.settings import DataConfig, SimulatedOptions
from CTHarmonizeTraining.training.trainer import run_stage
from CTHarmonizeTraining.training.unet import UNetTraining

TRUTH = (None, "truth")
NETWORK = PhysicsConfig(
    channels=4,
    depth=1,
    images=2,
    hidden=4,
    frequencies=1,
    attention="spatial",
    conditions=CONDITIONS,
    stride=2,
    gain=4.0,
)
DATA = DataConfig(size=32, workers=0, simulated=SimulatedOptions(kernels=TRUTH, pixel_range=(0.6, 1.0)))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("stores") / "phantom7.zarr", 0.0, source="phantom:7")


def stage_config(iterations: int = STEPS, **changes: object) -> StageConfig:
    given = {"warmup": 2, "average": 0.9, "gradient_clip": 1.0, "cycle": Cycle(4, 3.0), **changes}
    return StageConfig(iterations, 2e-3, batch=BATCH, **given)


def training(**changes: object) -> PhysicsTraining:
    entries = {
        "adversarial": stage_config(),
        "network": NETWORK,
        "critic": PairCriticConfig((4, 4, 8)),
        "game": Game(adversarial=0.05, critic_rate=1e-3),
        "losses": Losses(texture=0.0),
    }
    return PhysicsTraining(**{**entries, **changes})


def stage_of(**changes: object) -> PhysicsStage:
    torch.manual_seed(0)
    method = training(**changes)
    return method.stage("adversarial", method.build())


def pairs(store: Path, count: int, seed: int = 1) -> PairDataset:
    return PairDataset([store], count, 32, planes=1, seed=seed, kernels=TRUTH, pixel_range=(0.6, 1.0))


def batch_of(store: Path, count: int = BATCH) -> dict[str, torch.Tensor]:
    drawn = pairs(store, count)
    return torch.utils.data.default_collate([drawn[index] for index in range(count)])


def test_targets_are_the_truth_and_sources_are_drawn_as_ever(phantom: Path) -> None:
    towards_truth = pairs(phantom, 40)
    f50, noise = [], []
    for index in range(40):
        item = towards_truth[index]
        assert torch.equal(item["target"], item["clean"])
        source, target = acquisitions_of(item["acquisition"].tolist())
        assert target.f50 == pytest.approx(truth_mtf(target.pixel_spacing).f50, rel=1e-4)
        assert target.noise == pytest.approx(1.0)  # the least that a network is told
        assert float((item["planes"][0] - item["target"]).std()) > 1.0
        f50.append(source.f50)
        noise.append(source.noise)
    assert len({round(value, 3) for value in f50}) > 20 and max(f50) > 1.8 * min(f50)
    assert max(noise) > 4.0 * min(noise)


def test_a_fixed_source_kernel_can_lead_to_the_truth_too(phantom: Path) -> None:
    drawn = PairDataset([phantom], 1, 32, planes=1, kernels=("smooth", "truth"))[0]
    assert acquisitions_of(drawn["acquisition"].tolist())[0].f50 == pytest.approx(2.8, rel=1e-4)
    assert torch.equal(drawn["target"], drawn["clean"])


def test_the_truth_is_known_of_phantoms_only(phantom: Path, tmp_path: Path) -> None:
    patient = write_store(tmp_path / "siemens.zarr", 10.0)
    with pytest.raises(InputError, match=r"phantoms only, not of siemens\.zarr"):
        PairDataset([phantom, patient], 1, 32, kernels=TRUTH)
    left_out = PairDataset([phantom, patient], 8, 32, kernels=TRUTH, weights={"siemens": 0.0})
    assert all(torch.equal(left_out[index]["target"], left_out[index]["clean"]) for index in range(8))


def test_method_and_data_have_to_agree_on_the_truth(phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kernels has to be \[null, truth\]"):
        fit(phantom, tmp_path / "run", method=training(), data=DataConfig(32, 0), machine=CPU)
    unet = UNetTraining(regression=stage_config())
    with pytest.raises(InputError, match="Only a method that makes the noise-free truth"):
        fit(phantom, tmp_path / "run", method=unet, data=DATA, machine=CPU)
    assert not (tmp_path / "run").exists()


def test_the_card_states_no_dose(phantom: Path, tmp_path: Path) -> None:
    facts = data_facts([phantom], DATA)
    assert facts["target"]["dose"] is None
    low, high = facts["target"]["f50"]
    assert low < truth_mtf(1.0).f50 < truth_mtf(0.6).f50 < high < 1.1 * truth_mtf(0.6).f50
    assert facts["source"]["f50"][0] == 2.3
    words = simulation([phantom], DATA)
    assert "drawn continuously" in words and "target truth: without noise" in words and "full dose" not in words
    method = training()
    about = {
        "name": "Tiny", "version": "1", "licence": "none", "default_samples": 1, "default_temperature": 1.0,
        "deviation_factor": 1.0, "halo": 32, "quality": [],
        "training": {"data": [], "patients": 0, "simulated": words},
    }  # fmt: skip
    network = method.build()
    folder = write_model(network.state_dict(), method, {**facts, **about}, tmp_path / "model")
    stored = load_model(folder).weights()
    assert stored["filter.convolution.weight"].dtype == stored["omega.two.weight"].dtype == torch.float32
    assert stored["gamma.down.0.one.weight"].dtype == torch.float16


def test_evaluation_asks_for_the_truth() -> None:
    from CTHarmonizeLib.request import Request

    asked = towards(Request(method="physics-gan"), "medium", 100.0)
    assert (asked.kernel, asked.dose) == ("truth", None)
    entry = {"value": 1.0, "low": 0.9, "high": 1.1}
    pair = {
        "source": "sharp", "dose": 25.0, "target": "truth", "target_dose": 100.0,
        "rmse": {"clean": {"input": entry, "encoder": entry}}, "machine": "a processor",
    }  # fmt: skip
    results = {"data": {"name": "phantom", "slices": [1]}, "pairs": [pair]}
    (found,) = quality(results)
    assert "sharp 25 % to truth without noise; output" in found["measure"]
    results |= {"protocol": {"doses": [25.0], "target_dose": 100.0}, "scores": "PSNR", "device": "cpu"}
    results |= {"lpips": {}, "sets_kernel": True}
    assert _tables(results, ["RMSE"], lambda pair: ["1.0"])[0] == "| 25 % -> without noise | RMSE |"
    assert "simulated scans, target without noise." in markdown(pd.DataFrame({"dose": [], "mappings": []}), [results])


def test_a_cycle_goes_up_and_down() -> None:
    stage = StageConfig(400, 1e-4, halved_at=(0.5,), cycle=Cycle(100, 5.0))
    assert [stage.rate(step) for step in (0, 25, 50, 75, 100, 150)] == pytest.approx([1.0, 3.0, 5.0, 3.0, 1.0, 5.0])
    assert stage.rate(250) == pytest.approx(2.5)
    with pytest.raises(InputError, match="A cycle of 1 iterations"):
        Cycle(1)


def test_the_lung_is_found_and_the_skin_is_not() -> None:
    axis = torch.arange(160) - 79.5
    radius = torch.hypot(axis[:, None], axis)
    truth = torch.where(radius < 70, 40.0, -1000.0)
    lung = torch.hypot(axis[:, None], axis - 20) < 30
    truth[lung] = -860.0
    airway = torch.hypot(axis[:, None], axis + 35) < 12
    truth[airway] = -1000.0
    truth[76:84, 85:93] = 40.0  # a vessel is left out
    mask = lung_mask(truth[None, None])[0, 0]
    inner = torch.hypot(axis[:, None], axis - 20) < 26
    vessel = torch.hypot(axis[:, None], axis - 9) < 12
    assert float(mask[inner & ~vessel].mean()) > 0.98
    assert not mask[80:80, 87:91].any() and not mask[79:81, 88:90].any()
    assert not mask[radius > 60].any() and not mask[torch.hypot(axis[:, None], axis + 35) < 18].any()


def test_distance_and_texture_are_the_papers(phantom: Path) -> None:
    """Huber of an error of 204.8 HU, 0.1 in the paper's unit: 1000 * 0.5 * 0.01; beyond 0.5 linear (Eq. 4, 8)."""
    stage = stage_of(losses=Losses(texture=0.0))
    error = torch.full((2, 1, 4, 4), 0.1 * UNIT)
    assert float(stage.distance(error)) == pytest.approx(5.0, rel=1e-5)
    assert float(stage.distance(10.0 * error)) == pytest.approx(1000.0 * 0.5 * (1.0 - 0.25), rel=1e-5)
    torch.manual_seed(1)
    features = AcquisitionFeatures(FeatureConfig((4, 8))).eval().requires_grad_(False)
    stage.losses, stage._features = Losses(texture=50.0), (features,)
    batch = batch_of(phantom)
    lung = -850.0 + 60.0 * torch.randn_like(batch["clean"])
    batch = {**batch, "clean": F.avg_pool2d(lung, 3, 1, 1, count_include_pad=False), "target": lung}
    image = torch.rand_like(lung)
    mask = lung_mask(batch["clean"])
    assert mask.all()
    expected = stage.distance(stage.error(image, batch)) + 50.0 * features.texture(stage.hu(image), batch["clean"])
    assert float(stage.content(image, batch)) == pytest.approx(float(expected), rel=1e-5)
    solid = {**batch, "clean": torch.full_like(lung, 40.0)}
    assert float(stage.content(image, solid)) == pytest.approx(float(stage.distance(stage.error(image, solid))))


def test_the_critic_has_five_layers_and_sees_the_pair() -> None:
    """Widths of Pix2Pix's 70 x 70 discriminator (Isola et al. 2017), of which the last layer gives one channel."""
    critic = PairCritic(PairCriticConfig())
    widths = [2, 64, 128, 256, 512, 1]
    assert sum(parameter.numel() for parameter in critic.parameters()) == sum(
        16 * one * other + other for one, other in zip(widths, widths[1:], strict=False)
    )
    seen = []
    critic.last.register_forward_hook(lambda module, given, made: seen.append(made.shape[-1]))
    image, one, other = (torch.randn(2, 1, 256, 256) for _ in range(3))
    verdicts = [critic(image, planes, torch.zeros(2, CONDITIONS)).detach() for planes in (one, other)]
    assert verdicts[0].shape == (2,) and not torch.allclose(*verdicts) and seen == [30, 30]


def test_the_critics_unit_is_the_papers(phantom: Path) -> None:
    stage, batch = stage_of(), batch_of(phantom)
    told = batch["planes"] / UNIT, batch["acquisition"]
    with torch.no_grad():
        expected = stage.critic(batch["target"] / UNIT, *told) - stage.critic(batch["clean"] * 0.5 / UNIT, *told)
    found = stage.critic_loss(batch["clean"] * 0.5, batch, 0)["distance"].detach()
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_the_network_is_told_the_sources_mtf(phantom: Path) -> None:
    source = Acquisition(3.1, 5.2, 1.05, 12.0, 0.73, 2.0)
    vector = torch.tensor([acquisition_vector(source, source)])
    made = source_mtfs(vector)
    assert made.shape == (1, 1, 64, 64)
    assert np.abs(made[0, 0].numpy() - mtf_map(source)).max() < 1e-3  # the vector is float32, an MTF's shape rounded
    stage, batch = stage_of(), batch_of(phantom)
    planes, acquisition, mtf = stage.inputs(batch)
    assert torch.equal(mtf, source_mtfs(batch["acquisition"])) and acquisition is batch["acquisition"]


def test_augmentation_belongs_to_the_item_and_to_inputs_alone(phantom: Path) -> None:
    stage, batch = stage_of(augmentation=Augmentation(20.0, 10.0, 0.05, 0.02)), batch_of(phantom, 4)
    changed, again = stage.augmented(batch), stage.augmented(batch)
    last = stage.augmented({name: value[-1:] for name, value in batch.items()})
    for name in ("planes", "mtf"):
        assert torch.equal(changed[name], again[name]) and torch.equal(changed[name][-1:], last[name])
    assert all(changed[name] is batch[name] for name in ("clean", "target", "acquisition"))
    off = (changed["planes"] - batch["planes"]).flatten(1)
    assert 0.0 < float(off.mean(1).abs().min()) and float(off.std(1).min()) > 0.1
    assert len({round(float(value), 3) for value in off.std(1)}) == 4
    assert float((changed["mtf"] - source_mtfs(batch["acquisition"])).std()) == pytest.approx(0.02, rel=0.1)
    nothing = stage_of(augmentation=Augmentation(0.0, 0.0, 0.0, 0.0)).augmented(batch)
    assert torch.allclose(nothing["planes"], batch["planes"], atol=1e-3)
    air = torch.full_like(batch["planes"], -1000.0)  # which contrast leaves as it is
    stage.augmentation = Augmentation(0.0, 0.0, 0.05, 0.0)
    assert torch.allclose(stage.augmented({**batch, "planes": air})["planes"], air, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_gradients_are_normalised(scale: float) -> None:
    stage = stage_of()
    for parameter in stage.parameters():
        parameter.grad = scale * torch.ones_like(parameter)
    stage.configure_gradient_clipping(None, 0.5)
    gradients = torch.cat([parameter.grad.flatten() for parameter in stage.parameters()])
    assert float(gradients.norm()) == pytest.approx(0.5, rel=1e-4)
    before = gradients.clone()
    stage.configure_gradient_clipping(None, None)
    assert torch.equal(torch.cat([parameter.grad.flatten() for parameter in stage.parameters()]), before)


@pytest.mark.parametrize("kind", ["regression", "adversarial"])
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, phantom: Path, tmp_path: Path) -> None:
    def stage() -> InformedStage:
        torch.manual_seed(0)
        method = training(regression=stage_config())
        made = method.stage(kind, method.build())
        assert isinstance(made, AdversarialStage) is (kind == "adversarial")
        return made

    def data() -> Pairs:
        return Pairs(pairs(phantom, STEPS * BATCH), pairs(phantom, 2 * BATCH, seed=2), BATCH, workers=0)

    whole, resumed, watcher, again = stage(), stage(), Watcher(), Watcher()
    run_stage("test", whole, data(), tmp_path / "whole", CPU, [watcher])
    with pytest.raises(KeyboardInterrupt):
        run_stage("test", stage(), data(), tmp_path / "parts", CPU, [Watcher(4)])
    run_stage("test", resumed, data(), tmp_path / "parts", CPU, [again])
    assert list(again.losses) == [4, 5, 6, 7, 8]
    assert max(abs(again.losses[step] - watcher.losses[step]) for step in again.losses) < 1e-4
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-5), name
    if kind == "adversarial":
        for name, value in whole.critic.state_dict().items():
            assert torch.allclose(value, resumed.critic.state_dict()[name], atol=1e-5), name


def test_it_learns(phantom: Path, tmp_path: Path) -> None:
    """The Huber loss on held-out pairs falls, and the filter takes part in it."""
    torch.manual_seed(0)
    config = StageConfig(90, 5e-3, batch=4, warmup=2, halved_at=(0.9,), gradient_clip=1.0)
    method = training(regression=config, network=replace(NETWORK, channels=8))
    stage = method.stage("regression", method.build())
    batch = torch.utils.data.default_collate([pairs(phantom, 8, seed=2)[index] for index in range(8)])
    before = float(stage.loss(batch)["loss"].detach())
    run_stage("test", stage, Pairs(pairs(phantom, 90 * 4), None, 4, workers=0), tmp_path, CPU)
    assert float(stage.loss(batch)["loss"].detach()) < 0.85 * before
    assert float(stage.network.omega.two.weight.abs().max()) > 0.0


def test_fit_trains_both_stages_and_the_ablation(phantom: Path, tmp_path: Path) -> None:
    short = {"regression": stage_config(2), "adversarial": stage_config(2)}
    fit(phantom, tmp_path / "run", method=training(**short), data=DATA, machine=CPU)
    assert (tmp_path / "run" / "network.safetensors").is_file()
    method, data = settings.load(tmp_path / "run" / "config.yaml")
    assert isinstance(method, PhysicsTraining) and data.towards_truth
    assert method.adversarial.cycle == Cycle(4, 3.0)
    plain = training(**short, network=replace(NETWORK, spectral=False))
    fit(phantom, tmp_path / "plain", method=plain, data=DATA, machine=CPU)
    assert (tmp_path / "plain" / "network.safetensors").is_file()


def test_noise_on_a_truths_card_can_be_inverted(phantom: Path) -> None:
    """The card's table is of the phantoms' noise through kernels, which the sources have."""
    from CTHarmonizeLib.ct.acquisition import NoiseTable
    from CTHarmonizeTraining.data.scenes import SceneSampler

    table = NoiseTable.from_card(noise_table([SceneSampler(phantom)]))
    source = Acquisition(4.0, 6.6, 1.0, 20.0, 0.8, 2.0)
    target = target_acquisition(source, table, "truth")
    assert table.dose(target.f50, target.noise) == np.inf
    assert table.dose(4.0, table.noise(4.0, 50.0)) == pytest.approx(50)


def test_export_judges_it_on_the_truth(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, from training to a model folder whose quality is measured against the truth, from every named kernel."""
    short = {"regression": stage_config(2), "adversarial": stage_config(2)}
    fit(phantom, tmp_path / "run", method=training(**short), data=DATA, machine=CPU)
    disk(tmp_path)
    monkeypatch.setattr(exporting, "evaluate", SMALL)
    named = about(tmp_path, data=[{"stores": "phantom*", "name": "A disk", "licence": "CC0"}])
    export(tmp_path / "run", tmp_path / "model", named, ct=tmp_path / "test.nrrd", slices=1, samples=2, device="cpu")
    card = load_model(tmp_path / "model").card
    assert card["target"]["dose"] is None and card["training"]["full_dose_share"] is None
    assert "up to 3 times that and back every 4 iterations" in card["training"]["schedule"]
    measures = [entry["measure"] for entry in card["quality"]]
    assert len(measures) == 6 and all("to truth without noise; output" in measure for measure in measures)
    assert all(entry["value"] > 0.0 for entry in card["quality"])
    hu = read_volume(tmp_path / "test.nrrd").hu
    scan = Volume(hu.astype(np.float32), (0.8, 0.8, 2.0))
    result = harmonize(scan, method="physics-gan", model=str(tmp_path / "model"), device="cpu")
    assert result.report["target"]["acquisition"]["noise"] == 0.0
