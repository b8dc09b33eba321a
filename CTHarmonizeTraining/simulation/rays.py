"""LoDoPaB-CT's rays, and line integrals of images along them as a linear operator with its exact adjoint."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from CTHarmonizeTraining.simulation.projector import Geometry, Grid

LODOPAB_WIDTH = 260.0
"""Side of LoDoPaB-CT's images, mm."""

LODOPAB_THICKNESS = 2.0
"""mm: it is not told, 2 mm is usual in LIDC."""

MU_WATER, MU_AIR = 20.0, 0.02
MU_MAX = 3071.0 * (MU_WATER - MU_AIR) / 1000.0 + MU_WATER
"""Linear attenuation (1/m) that LoDoPaB-CT calls 1: 81.35858, of 3071 HU."""

_NO_APERTURE = 1e-6  # mm: its rays have no width


@dataclass(frozen=True)
class Rays:
    """Parallel rays through square images of ``side`` pixels, ``width`` mm; the defaults are LoDoPaB-CT's.

    ``views`` lie at the middles of equal parts of 180 degrees, ``beams`` at the middles of equal parts of the image's
    diagonal. A ray obeys x cos a + y sin a = t, x along the columns, y along the rows.
    """

    side: int = 362
    views: int = 1000
    beams: int = 513
    width: float = LODOPAB_WIDTH

    def __post_init__(self) -> None:
        if self.views < 4 or self.views % 4 or min(self.side, self.beams) < 8 or not self.width > 0.0:
            raise ValueError(
                f"Rays need a multiple of 4 views, and 8 pixels and beams or more, not {self.views} views of "
                f"{self.beams} beams for {self.side} pixels of {self.width:g} mm in all."
            )

    @property
    def geometry(self) -> Geometry:
        """For our projector and filtered back-projection, which read a multiple of 4 views."""
        return Geometry(self.views, self.beams, self.width * 2.0**0.5 / self.beams, _NO_APERTURE)

    @property
    def grid(self) -> Grid:
        """The images'."""
        return Grid(self.side, self.side, self.width / self.side)


class RayTransform(nn.Module):
    """Line integrals (b, 1, views, beams) of images (b, 1, side, side), times a constant that brings the operator's
    norm near 1; :attr:`unit`: the metres that one of them stands for.

    Joseph's method (IEEE Trans. Med. Imaging 1, 1982): along the axis that a ray follows, an image is interpolated
    linearly once a row or column. The weights are kept as a sparse matrix and its transpose, up to 2 * side a ray:
    43 MB each for 128 pixels and 180 views, some 2 GB for LoDoPaB-CT's full size. Copies share them.
    """

    def __init__(self, rays: Rays) -> None:
        super().__init__()
        self.rays = rays
        pixel = rays.width / rays.side / 1000.0
        # the norm of a disc-like image: each of its pixels is met by `views` rays whose chords are about 0.8 wide
        density = pixel / (rays.geometry.pitch / 1000.0)
        self.unit = float((0.8 * rays.width / 1000.0 * rays.views * density * pixel) ** 0.5)
        matrix = _joseph(rays) * (1.0 / self.unit)
        self.shape = matrix.shape
        for name, part in (("matrix", matrix), ("transposed", matrix.T.tocsr())):
            part.sort_indices()
            kind = torch.int32 if part.nnz < 2**31 else torch.int64
            # as three plain tensors: modules with sparse ones cannot be copied
            self.register_buffer(f"{name}_rows", torch.as_tensor(part.indptr, dtype=kind), persistent=False)
            self.register_buffer(f"{name}_columns", torch.as_tensor(part.indices, dtype=kind), persistent=False)
            self.register_buffer(f"{name}_weights", torch.from_numpy(part.data.astype(np.float32)), persistent=False)

    @cached_property
    def norm(self) -> float:
        """Largest singular value, from above by less than 3 percent (power iteration; the first vector is all ones,
        which the largest one resembles)."""
        x = torch.ones(1, 1, self.rays.side, self.rays.side, device=self.matrix_weights.device)
        square = 0.0
        for _ in range(12):
            y = self.adjoint(self(x))
            square = float(y.norm() / x.norm())
            x = y / y.norm()
        return 1.01 * square**0.5

    def __deepcopy__(self, memo: dict) -> RayTransform:
        same = copy.copy(self)
        same._buffers = dict(self._buffers)
        return same

    @property
    def matrix(self) -> Tensor:
        """A, sparse (views * beams, side * side)."""
        return _sparse(self.matrix_rows, self.matrix_columns, self.matrix_weights, self.shape)

    @property
    def transposed(self) -> Tensor:
        """A's transpose, sparse."""
        return _sparse(self.transposed_rows, self.transposed_columns, self.transposed_weights, self.shape[::-1])

    def forward(self, image: Tensor) -> Tensor:
        """Line integrals."""
        values = _Product.apply(image.flatten(1), self.matrix, self.transposed)
        return values.view(len(image), 1, self.rays.views, self.rays.beams)

    def adjoint(self, lines: Tensor) -> Tensor:
        """Unfiltered back-projection (b, 1, side, side): <A x, y> = <x, A* y>."""
        values = _Product.apply(lines.flatten(1), self.transposed, self.matrix)
        return values.view(len(lines), 1, self.rays.side, self.rays.side)


class _Product(torch.autograd.Function):
    """Rows of ``x`` through ``matrix``, whose transpose leads the gradient back; always in float32."""

    @staticmethod
    def forward(context, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        context.matrices = transposed, matrix
        with torch.autocast(x.device.type, enabled=False):
            return (matrix @ x.float().T.contiguous()).T.contiguous()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradient, *context.matrices), None, None


def _joseph(rays: Rays) -> sparse.csr_matrix:
    """Weights (views * beams, side * side) in metres."""
    side, pixel = rays.side, rays.width / rays.side
    position = rays.geometry.positions.numpy()[:, None]  # mm
    along = (np.arange(side) - (side - 1) / 2) * pixel
    parts = []
    for angle in rays.geometry.angles.numpy():
        cosine, sine = np.cos(angle), np.sin(angle)
        follows_rows = abs(cosine) >= abs(sine)  # the ray crosses every row once
        across = (position - along * (sine if follows_rows else cosine)) / (cosine if follows_rows else sine)
        place = across / pixel + (side - 1) / 2
        lower = np.floor(place).astype(np.int64)
        share = place - lower
        length = pixel / 1000.0 / max(abs(cosine), abs(sine))
        rows, columns, weights = [], [], []
        for index, weight in ((lower, 1.0 - share), (lower + 1, share)):
            ray, step = np.nonzero((index >= 0) & (index < side) & (weight > 0.0))
            other = index[ray, step]
            rows.append(ray)
            columns.append(step * side + other if follows_rows else other * side + step)
            weights.append(length * weight[ray, step])
        entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
        parts.append(sparse.csr_matrix(entries, (rays.beams, side * side), dtype=np.float32))
    return sparse.vstack(parts, format="csr")


def _sparse(rows: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # CSR's state, and that its invariants are not checked
        return torch.sparse_csr_tensor(rows, columns, weights, shape)
