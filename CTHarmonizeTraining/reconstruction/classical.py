"""Reconstruction without training: total variation, and a deep image prior with total variation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib.networks.unet import UNet, UNetConfig
from CTHarmonizeTraining.simulation.rays import RayTransform

PRIOR = UNetConfig(channels=32, depth=3, gain=4.0)
"""Of the deep image prior; Baguer et al. tune theirs to each problem."""

_PRIOR_RATE = 1e-3


def total_variation(observation: Tensor, transform: RayTransform, weight: float, iterations: int = 300) -> Tensor:
    """Image x >= 0 that minimises |A x - y|^2 / 2 + weight * TV(x), (b, 1, side, side) in shares of the largest
    attenuation, of observations y (b, 1, views, beams).

    TV is isotropic, of forward differences; A has a norm near 1 (:class:`RayTransform`). By the primal-dual algorithm
    of Chambolle & Pock (J. Math. Imaging Vis. 40, 2011).
    """
    lines = observation / transform.unit
    step = 0.99 / (transform.norm**2 + 8.0) ** 0.5
    image = torch.zeros_like(transform.adjoint(lines))
    ahead, dual = image, torch.zeros_like(lines)
    slopes = torch.zeros(2, *image.shape, device=image.device)
    for _ in range(iterations):
        dual = (dual + step * (transform(ahead) - lines)) / (1.0 + step)
        slopes = slopes + step * gradient(ahead)
        slopes = slopes / (slopes.norm(dim=0) / weight).clamp_min(1.0)
        before = image
        image = (image - step * (transform.adjoint(dual) - divergence(slopes))).clamp_min(0.0)
        ahead = 2.0 * image - before
    return image


def variation(image: Tensor) -> Tensor:
    """Isotropic total variation of each of (b, 1, side, side): (b,)."""
    return gradient(image).square().sum(0).add(1e-12).sqrt().sum((1, 2, 3))


def gradient(image: Tensor) -> Tensor:
    """Forward differences along rows and columns, 0 at the far border: (2, b, 1, side, side)."""
    return torch.stack((F.pad(image.diff(dim=2), (0, 0, 0, 1)), F.pad(image.diff(dim=3), (0, 1))))


def divergence(slopes: Tensor) -> Tensor:
    """Minus the adjoint of :func:`gradient`."""
    rows, columns = slopes[0][:, :, :-1], slopes[1][:, :, :, :-1]
    return F.pad(rows, (0, 0, 0, 1)) - F.pad(rows, (0, 0, 1, 0)) + F.pad(columns, (0, 1)) - F.pad(columns, (1, 0))


def deep_image_prior(
    observation: Tensor, start: Tensor, transform: RayTransform, weight: float, iterations: int = 400, seed: int = 0
) -> Tensor:
    """Image (1, 1, side, side) that a U-Net makes of ``start``, trained on the one observation (1, 1, views, beams) to
    minimise |A x - y|^2 / 2 + weight * TV(x) (DIP + TV, after Baguer, Leuschner & Schmidt 2020); of the last tenth of
    the iterations the mean.

    ``start`` (1, 1, side, side) is the filtered back-projection, to which the network adds a correction: from noise, as
    the deep image prior was published, our U-Net, which has no normalisation, collapsed at 128 pixels.
    """
    lines = observation / transform.unit
    side = transform.rays.side
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(PRIOR).to(lines.device)
    margin = -side % PRIOR.multiple
    padded = F.pad(start, (0, margin, 0, margin), mode="reflect")
    optimizer = torch.optim.Adam(network.parameters(), lr=_PRIOR_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PRIOR_RATE, iterations + 1, pct_start=0.05)
    last, total = max(1, iterations // 10), torch.zeros(1, 1, side, side, device=lines.device)
    for number in range(iterations):
        image = network(padded)[..., :side, :side]
        if number >= iterations - last:
            total += image.detach()
        loss = 0.5 * (transform(image) - lines).square().sum() + weight * variation(image).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return (total / last).clamp_min(0.0)
