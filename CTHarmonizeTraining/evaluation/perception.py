"""LPIPS (Zhang et al. 2018): how unlike two images look to networks that learned to see from photographs.

The package ``lpips`` computes it. With random weights it ranks nothing, so there is only ImageNet's, or none.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeTraining.console import say

WINDOW = (-1000.0, 500.0)
"""HU that become the -1 to 1 that the network reads, in all three colours; beyond it they are clipped."""

BACKBONES = {"alex": ("AlexNet", "AlexNet_Weights"), "vgg": ("VGG-16", "VGG16_Weights")}
"""The network's name and that of its weights in torchvision, by what ``lpips`` calls it."""

SMALLEST = 64
"""Pixels a side below which AlexNet's last layers see nothing."""

_VERSION = "0.1"


class Lpips:
    """LPIPS with one backbone. ``about``: which network, which weights, which window, for people."""

    def __init__(self, network: nn.Module, about: str, device: torch.device) -> None:
        self.network, self.about, self.device = network.eval().requires_grad_(False).to(device), about, device

    def __call__(self, images: np.ndarray, others: np.ndarray) -> float | None:
        """Mean over slices of (slices, rows, columns) in HU, of whole images; None where they are too small."""
        if min(images.shape[1:]) < SMALLEST:
            return None
        found = [self._distance(one, other) for one, other in zip(images, others, strict=True)]
        return float(np.mean(found))

    def _distance(self, one: np.ndarray, other: np.ndarray) -> float:
        with torch.inference_mode():
            return float(self.network(self._seen(one), self._seen(other)))

    def _seen(self, hu: np.ndarray) -> torch.Tensor:
        """(1, 3, rows, columns) in [-1, 1]."""
        low, high = WINDOW
        grey = (np.clip(hu.astype(np.float32), low, high) - low) * (2.0 / (high - low)) - 1.0
        return torch.from_numpy(grey).to(self.device).expand(1, 3, -1, -1)


def load_lpips(backbone: str, device: torch.device) -> Lpips:
    """LPIPS with ImageNet's weights, from torch's folder of downloads or, where they are not there, the network.

    Raises CannotRunError where packages or weights cannot be had, with what to do.
    """
    name, entry = BACKBONES[backbone]
    try:
        import lpips
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise CannotRunError(
            f"it needs the packages lpips and torchvision, the latter of the release that fits this torch ({error})."
        ) from error
    url = getattr(models, entry).IMAGENET1K_V1.url
    place = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    missing = f"download {url} to {place}."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, of how lpips asks it
            network = lpips.LPIPS(net=backbone, version=_VERSION, verbose=False)
    except (OSError, RuntimeError) as error:  # no network; a file that is not whole
        raise CannotRunError(f"{name}'s ImageNet weights cannot be had ({error}): {missing}") from error
    digest = place.stem.rsplit("-", 1)[-1]  # torchvision checks it of a download, but not of a file that is there
    if not hashlib.sha256(place.read_bytes()).hexdigest().startswith(digest):
        raise CannotRunError(f"'{place}' does not hold {name}'s ImageNet weights: {missing}")
    return Lpips(
        network,
        f"{name}, ImageNet weights {place.name}, linear layers of LPIPS {_VERSION}, HU clipped to "
        f"{WINDOW[0]:g}..{WINDOW[1]:g}, whole slices, against the noisy target",
        device,
    )


def available(backbones: Iterable[str], device: torch.device) -> dict[str, Lpips]:
    """LPIPS for each of ``backbones`` that can be had here; of the others it says why they are left out. Raises
    InputError for one that there is not."""
    found = {}
    for backbone in dict.fromkeys(backbones):
        if backbone not in BACKBONES:
            raise InputError(f"There is no LPIPS with '{backbone}': choose from {', '.join(BACKBONES)}.")
        try:
            found[backbone] = load_lpips(backbone, device)
        except CannotRunError as error:
            say(f"LPIPS ({backbone}) is left out: {error}")
    return found
