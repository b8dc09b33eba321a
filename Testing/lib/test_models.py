"""Model folders: each kind of damage is refused with one sentence, when the folder is chosen."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys

import pytest
from model_folder import CALIBRATION, CARD, make_model_folder

from CTHarmonizeLib import installedModels
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.models import EMBEDDED, BrokenModel, Model, installed_models, load_model, model_for
from CTHarmonizeLib.models.schema import card_problem, card_schema

WHOLE_CARD = {**CARD, "weights_sha256": "0" * 64}


@pytest.fixture
def folder(tmp_path):
    return make_model_folder(tmp_path / "modèle 1")


def change_card(folder, **changes):
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    (folder / "card.json").write_text(json.dumps({**card, **changes}), encoding="utf-8")


def refused(folder, text):
    with pytest.raises(InputError, match=text) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")


def test_a_whole_folder_loads(folder):
    model = load_model(folder)
    assert (model.name, model.method) == ("Test model", "ctflow")
    assert sum(tensor.numel() for tensor in model.weights().values()) > 100


def test_missing_parts(folder, tmp_path):
    refused(tmp_path / "nothing", "no model folder")
    (folder / "weights.safetensors").unlink()
    refused(folder, "no weights.safetensors")
    (folder / "card.json").unlink()
    refused(folder, "no card.json")


def test_damaged_card(folder):
    (folder / "card.json").write_text("{", encoding="utf-8")
    refused(folder, "readable JSON")
    (folder / "card.json").write_text("[]", encoding="utf-8")
    refused(folder, "must be an object")
    (folder / "card.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "readable JSON")


def test_wrong_checksum(folder):
    change_card(folder, weights_sha256="0" * 64)
    refused(folder, "SHA-256")


def test_truncated_weights(folder):
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[:-10])
    refused(folder, "SHA-256")
    change_card(folder, weights_sha256=hashlib.sha256(whole[:-10]).hexdigest())
    refused(folder, "whole safetensors")


def test_pickled_weights_are_refused(folder):
    content = b"\x80\x04\x95" + b"x" * 100
    (folder / "weights.safetensors").write_bytes(content)
    change_card(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    refused(folder, "safetensors")


def test_weights_that_changed_after_the_check(folder):
    model = load_model(folder)
    (folder / "weights.safetensors").write_bytes(b"changed")
    with pytest.raises(InputError, match="SHA-256"):
        model.weights()


def test_network_that_does_not_fit_its_weights(folder):
    import torch

    from CTHarmonizeLib.methods import method_named

    for changes in ({"hidden": 8}, {"no_such_setting": 1}):
        change_card(folder, network={**CARD["network"], **changes})
        with pytest.raises(InputError) as caught:
            method_named("ctflow")(load_model(folder), torch.device("cpu"), torch.float32)
        assert "\n" not in str(caught.value)


BAD_CARDS = [
    ({"calibration": {**CALIBRATION, "crops": 0}}, "'calibration.crops' is too small"),
    ({"calibration": {**CALIBRATION, "surprise": 1}}, "'calibration.surprise' is unknown"),
    ({"calibration": {key: CALIBRATION[key] for key in CALIBRATION if key != "coverage"}}, "coverage' is missing"),
    (
        {"calibration": {**CALIBRATION, "temperatures": [{"temperature": 0.9, "crps": 3.0}]}},
        r"'calibration.temperatures\[0\].crps' must be an object",
    ),
    ({"halo": 1.5}, "'halo' must be a whole number"),
    ({"halo": True}, "'halo' must be a whole number"),
    ({"halo": -1}, "'halo' is too small"),
    ({"name": ""}, "'name' must not be empty"),
    ({"name": 3}, "'name' must be a text"),
    ({"intensity_window": [1]}, "'intensity_window' must have 2 entries"),
    ({"intensity_window": [1, "2"]}, r"'intensity_window\[1\]' must be a number"),
    ({"default_temperature": 3}, "'default_temperature' is too large"),
    ({"default_samples": 0}, "'default_samples' is too small"),
    ({"anchor_mm": 0}, "'anchor_mm' is too small"),
    ({"source": {"f50": [2, 3]}}, "'source.noise' is missing"),
    ({"source": {**CARD["source"], "dose": 1}}, "'source.dose' is unknown"),
    ({"target": {**CARD["target"], "thickness": "thin"}}, "'target.thickness' must be a list"),
    (
        {"training": {"data": [{"name": "a"}], "patients": 1, "simulated": ""}},
        r"'training.data\[0\].licence' is missing",
    ),
    ({"weights_sha256": "12"}, "'weights_sha256' does not look right"),
    ({"surprise": 1}, "'surprise' is unknown"),
]
CONTRADICTIONS = [
    ({"intensity_window": [100, -100]}, "runs from 100 down to -100"),
    ({"target": {**CARD["target"], "dose": [100, 10]}}, "'target.dose' runs"),
    ({"noise_at_full_dose": {**CARD["noise_at_full_dose"], "f50": [4, 2]}}, "must rise"),
    ({"noise_at_full_dose": {**CARD["noise_at_full_dose"], "f50": [2, 3, 4]}}, "unequal numbers"),
    ({"deviation_factor": float("nan")}, "finite"),
]


@pytest.mark.parametrize(("changes", "problem"), BAD_CARDS + CONTRADICTIONS)
def test_bad_cards_are_refused_with_the_reason(folder, changes, problem):
    change_card(folder, **changes)
    refused(folder, problem)


def test_every_required_entry_is_asked_for():
    for key in card_schema()["required"]:
        card = {name: value for name, value in WHOLE_CARD.items() if name != key}
        assert card_problem(card) == f"'{key}' is missing"


def test_own_checks_agree_with_jsonschema():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(card_schema())
    validator = jsonschema.Draft202012Validator(card_schema())
    for card in (WHOLE_CARD, {**WHOLE_CARD, "calibration": CALIBRATION}):
        assert validator.is_valid(card) and card_problem(card) is None
    for changes, _ in BAD_CARDS:
        assert not validator.is_valid({**copy.deepcopy(WHOLE_CARD), **changes}), changes


def test_schema_uses_no_keyword_that_the_checks_ignore():
    known = {"type", "required", "properties", "additionalProperties", "items", "minItems", "maxItems", "anyOf", "$ref"}
    known |= {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "minLength",
        "pattern",
        "description",
        "title",
        "$schema",
        "$defs",
    }

    def keywords(rule):
        yield from rule
        for name in ("properties", "$defs"):
            for inner in rule.get(name, {}).values():
                yield from keywords(inner)
        for inner in filter(None, [rule.get("items"), *rule.get("anyOf", [])]):
            yield from keywords(inner)

    assert set(keywords(card_schema())) <= known


def test_discovery(tmp_path, monkeypatch):
    parent = tmp_path / "models"
    make_model_folder(parent / "a")
    make_model_folder(parent / "b", halo=-1)
    (parent / "unrelated").mkdir()
    single = make_model_folder(tmp_path / "single", name="Single")
    monkeypatch.setenv("CTHARMONIZE_MODELS", os.pathsep.join([str(parent), str(single)]))
    found = [model for model in installedModels([single]) if EMBEDDED not in model.folder.parents]
    assert [model.folder.name for model in found] == ["a", "b", "single"]
    assert isinstance(found[0], Model)
    assert isinstance(found[1], BrokenModel) and "halo" in found[1].reason
    monkeypatch.delenv("CTHARMONIZE_MODELS")
    assert single in [model.folder for model in installed_models([str(single)])]


def test_embedded_models_are_whole():
    assert not [model for model in installed_models() if isinstance(model, BrokenModel)]


def test_model_for(folder, tmp_path, monkeypatch):
    assert model_for("ctflow", folder).folder == folder
    with pytest.raises(InputError, match="for the method ctflow, not other"):
        model_for("other", folder)
    with pytest.raises(InputError, match="No model for the method other") as raised:
        model_for("other")
    assert "--" not in str(raised.value)  # the panel and the console have no options
    monkeypatch.setenv("CTHARMONIZE_MODELS", str(folder))
    for name in ("Test model", folder.name):
        assert model_for("ctflow", name).folder == folder
    with pytest.raises(InputError, match="no model of that name is installed; there are: .*'Test model'"):
        model_for("ctflow", "Best model")


def test_a_fresh_slicer_without_safetensors_can_list_its_models(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert load_model(folder).name
