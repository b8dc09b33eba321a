"""How near the thin slices that a model makes of thick ones come to the true ones, beside plain interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from CTHarmonizeLib import harmonize
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.passthrough import interpolated
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.patient import MatchedSet, PatientStore
from CTHarmonizeTraining.simulation.pair import NOISE_FREE
from CTHarmonizeTraining.simulation.scan import body_mask


def judge_volumes(folder: Path, store: Path, device: str = "auto") -> list[dict]:
    """A card's ``quality`` of the model in ``folder``, on a ``store`` of pairs as 'simulate' writes it.

    Thick slices are means of the ``source``'s neighbouring ones; their thin slices are held against the ``target``, and
    against the noise-free one where there is one: root mean square error in HU inside the body, of the model
    (``value``) and of linear interpolation (``interpolated``). Raises InputError for a store without such a pair.
    """
    opened = PatientStore(store)
    return [entry for matched in opened.sets for entry in _judged(folder, matched, opened.path.stem, device)]


def _judged(folder: Path, matched: MatchedSet, name: str, device: str) -> list[dict]:
    card = load_model(folder).card
    names = [entry.name for entry in matched.reconstructions]
    if not {"source", "target"} <= {*names}:
        raise InputError(f"The store '{name}' has no source and target, but {', '.join(names)}.")
    source = matched.reconstructions[names.index("source")]
    target = matched.reconstructions[names.index("target")]
    thick = _thick(matched, names.index("source"), card)
    made = harmonize(
        thick, method=card["method"], model=str(folder), device=device,
        kernel=target.acquisition.f50, dose=card["target"]["dose"][1], source_kernel=source.acquisition.f50,
    ).mean  # fmt: skip
    plain = interpolated(torch.from_numpy(thick.hu.astype(np.float32)), len(made.hu) // len(thick.hu)).numpy()
    body = np.stack([body_mask(image, made.pixel_spacing) for image in _truth(matched, names, len(made.hu))])
    entries = []
    for against in ("target", NOISE_FREE):
        if against in names:
            truth = matched.hu[names.index(against)][: len(made.hu)].astype(float)
            errors = {
                key: round(float(np.sqrt(np.mean((image.astype(float) - truth)[body] ** 2))), 2)
                for key, image in (("value", made.hu), ("interpolated", plain))
            }
            words = (
                f"RMSE in HU inside the body against the {'noise-free' if against == NOISE_FREE else 'noisy'} target"
            )
            words += f", {source.dose:g} % to {target.dose:g} % dose, {len(thick.hu)} slices of "
            words += f"{made.spacing[2] * len(made.hu) / len(thick.hu):g} mm to {made.spacing[2]:g} mm"
            entries.append({"data": f"{name}, simulated scans", "measure": words, **errors})
            say(f"{name}: {words}: {errors['value']}, interpolated {errors['interpolated']}")
    return entries


def _thick(matched: MatchedSet, index: int, card: dict) -> Volume:
    """Means of as many slices as make the thickness that the model was trained for, rounded to whole HU."""
    thin = matched.volume(index)
    count = max(1, round(float(np.mean(card["slice_thickness"])) / thin.spacing[2]))
    whole = len(thin.hu) // count * count
    means = thin.hu[:whole].reshape(-1, count, *thin.hu.shape[1:]).mean(1, dtype=np.float32)
    columns, rows, slices = thin.spacing
    step = np.reshape(thin.direction, (3, 3))[:, 2] * slices
    origin = tuple(map(float, np.asarray(thin.origin) + step * (count - 1) / 2.0))
    return Volume(np.rint(means).astype(np.int16), (columns, rows, count * slices), origin, thin.direction)


def _truth(matched: MatchedSet, names: list[str], count: int) -> np.ndarray:
    return matched.hu[names.index(NOISE_FREE if NOISE_FREE in names else "target")][:count]
