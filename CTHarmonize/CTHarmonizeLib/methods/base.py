"""What the engine asks of a method: how source slices become samples.

A method is one module in this package with one subclass of :class:`Method`. The engine prepares whole slices,
cuts them into tiles (mostly one), encodes each tile once and draws as many samples from it as are wanted:

    planes = method.prepare(slices, source, target)     # whole padded slices, untiled
    state = method.encode(tile of planes, source, target)    # once per tile of a slab of slices
    samples = method.sample(state, latents)             # many times

Everything else (latents, tiles, halo, pass-through, statistics, memory, rounding) is the engine's work.
Importing a method's module must not import torch: import it inside the functions that use it, so that the
panel can list the methods before torch is installed.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.errors import CannotRunError, InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from CTHarmonizeLib.ct.volume import Volume
    from CTHarmonizeLib.models import Model

PLAUSIBLE_HU = (-2000.0, 5000.0)
"""HU beyond which no voxel of a harmonized CT can lie."""


class Package(NamedTuple):
    """A Python package that a method needs beside what every installation has.

    ``requirement``: for pip; ``module``: what is imported; ``terms``: what its user must agree to, for people, where
    its licence restricts the use.
    """

    requirement: str
    module: str
    terms: str = ""


INVENTED = "The method was trained against a critic: texture that looks real may be invented, and it cannot tell where."
"""Caution of adversarial methods."""


class Method(ABC):
    """Base class of all methods. Axis order is (slices, ..., rows, columns); HU are float32.

    Class attributes: ``name`` (command line, cards), ``title`` and ``summary`` (one sentence) for people,
    ``stochastic`` (draws samples), ``needs_model`` (has weights), ``target_fields`` (what of the target it can
    set: of ``kernel``, ``dose``, ``thickness``), ``makes_truth`` (its only target is the noise-free truth),
    ``caution`` (a sentence that stands with every result, empty: none), ``packages`` (optional ones that it needs).
    Instance attributes, which a method may set in ``__init__``: ``window`` (HU outside of which voxels pass
    through), ``halo`` (pixels of context that a tile needs on each side), ``multiple`` (a tile's sides and
    corner are multiples of it; each latent's stride divides it), ``anchor_mm`` (sigma of the Gaussian whose
    low-pass of every output is set to that of the source: kernels have gain 1 at zero frequency, so local mean
    HU must not move; None leaves it out), ``context`` (source slices that must be seen on each side of those that
    are wanted). ``factor`` slices are made of each source slice, as :meth:`slices_made` says. A method that draws
    samples works slice by slice: its context is 0 and its factor 1.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    stochastic: ClassVar[bool] = False
    needs_model: ClassVar[bool] = True
    target_fields: ClassVar[frozenset[str]] = frozenset()
    makes_truth: ClassVar[bool] = False
    caution: ClassVar[str] = ""
    packages: ClassVar[tuple[Package, ...]] = ()

    window: tuple[float, float] = (-1100.0, float("inf"))
    halo: int = 0
    multiple: int = 1
    anchor_mm: float | None = None
    context: int = 0

    def __init__(self, model: Model | None, device: torch.device, precision: torch.dtype) -> None:
        """Load the weights onto ``device``; ``precision`` (float32 or bfloat16) is for what need not invert.

        Raises InputError where the model is missing or does not fit the network.
        """
        if self.needs_model and model is None:
            raise InputError(f"The method {self.name} needs a model folder.")
        self.model = model
        self.device = device
        self.precision = precision
        self.factor = self.slices_made(None if model is None else model.card)
        if model is not None:
            self.window = tuple(map(float, model.card["intensity_window"]))
            self.halo = int(model.card["halo"])

    @classmethod
    def slices_made(cls, card: dict | None) -> int:
        """How many slices a model with this ``card`` makes of each source slice, between the same outer faces."""
        return 1

    @classmethod
    def _missing(cls) -> list[Package]:
        return [package for package in cls.packages if importlib.util.find_spec(package.module) is None]

    @classmethod
    def missing_packages(cls) -> list[str]:
        """Of ``packages``, those that are not installed, as pip names them. Imports none."""
        return [package.requirement for package in cls._missing()]

    @classmethod
    def check_packages(cls) -> None:
        """Raises CannotRunError, with what to install, where one of ``packages`` is missing. Imports none."""
        missing = cls._missing()
        if missing:
            names = " and ".join(package.requirement for package in missing)
            quoted = " ".join(f'"{package.requirement}"' for package in missing)
            terms = "".join(f" ({package.terms})" for package in missing if package.terms)
            raise CannotRunError(
                f"The method {cls.name} needs the Python package {names}{terms}, which is not installed here: "
                f"run pip install {quoted}, or choose another method."
            )

    def survey(self, volume: Volume, source: Acquisition, target: Acquisition) -> None:  # noqa: B027
        """Look at the whole volume, once, before its first slice is prepared: for what one slice cannot tell.

        The engine gives the same volume for a region of it, so that what is found here is the same. What later
        calls need, a method keeps in itself; most need nothing.
        """

    def prepare(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        """Planes (b, c, rows, columns) that need whole slices, such as Fourier filters.

        ``slices`` (b, rows, columns) are whole source slices, already padded to ``multiple``, with ``context`` before
        and after those that are wanted (at the volume's ends its last slice, repeated); plane 0 of the result is the
        source.
        """
        return slices[:, None]

    @abstractmethod
    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Any:
        """State of a tile (b, c, h, w) of the prepared planes: everything that no sample changes."""

    @abstractmethod
    def estimate(self, state: Any) -> Tensor:
        """The deterministic estimate (b * factor, h, w) in HU, of the context's slices too: a deterministic method's
        output, and what takes the place of voxels that stay implausible."""

    def latent_shapes(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        """(channels, rows, columns) of each latent for a tile of ``rows`` x ``columns``; none if deterministic."""
        return []

    def sample(self, state: Any, latents: list[Tensor]) -> Tensor:
        """Samples (n, b, h, w) in HU.

        ``latents[l]`` is (n, b, channels, rows, columns) as :meth:`latent_shapes` says, already times the
        temperature. The n samples share the state; how to go through them (together, or each step of a flow
        over all samples) is the method's choice. A sample must not depend on the others beside it.
        """
        raise NotImplementedError(f"{self.name} draws no samples.")

    def implausible(self, samples: Tensor, state: Any) -> Tensor:
        """Voxels (n, b, h, w), bool, that cannot be right and are to be drawn again."""
        low, high = PLAUSIBLE_HU
        return ~((samples >= low) & (samples <= high))

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        """Working memory in bytes of a slab of ``slices``, the context not counted, and ``samples`` drawn together; a
        rough upper bound."""
        return 4 * rows * columns * slices * (96 + 32 * samples)
