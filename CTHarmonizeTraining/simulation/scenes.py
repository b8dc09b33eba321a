"""Stores of simulated scenes, what training reads.

A store is a Zarr group (version 3, uncompressed, one scene a chunk) that grows slice by slice and can be read
while it does; an interrupted run goes on where it stopped:

    python -m CTHarmonizeTraining.simulation.scenes --input CT --slices 0:40 --out STORE.zarr --seed 0

With ``--input phantom:7`` the source is the procedural chest of seed 7, one slice of 1 mm a millimetre.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr

from CTHarmonizeLib.errors import CTHarmonizeError, InputError
from CTHarmonizeTraining.simulation.phantom import HEIGHT, ChestPhantom
from CTHarmonizeTraining.simulation.projector import WIDE_BAND_EDGE
from CTHarmonizeTraining.simulation.scan import SCENE_PIXEL, SCENE_ROWS, Scene, base_scenes

CLEAN_STEP = 0.125
"""HU per unit of the stored int16 noise-free image."""


@dataclass(frozen=True)
class StoredScene:
    """``clean`` (rows, columns), ``noise`` (realisations, rows, columns): HU, float32; ``dose``: percent."""

    clean: np.ndarray
    noise: np.ndarray
    dose: np.ndarray


class SceneStore:
    """Scenes of one source in a Zarr group.

    Arrays, N scenes: ``clean`` (N, rows, columns) int16 in 1/8 HU, ``noise`` (N, realisations, rows,
    columns) float16 HU, ``dose`` (N, realisations) percent, ``centre`` (N, 2) mm, ``photons`` (N,),
    ``slice`` (N,) index in the source. ``slice`` is written last: its length is the number of whole scenes.
    Attributes: ``pixel_mm``, ``wide_band_edge`` (lp/cm), ``slice_thickness`` (mm), ``source``, ``seed``,
    ``empty`` (slices without a body).
    """

    def __init__(self, path: str | os.PathLike, mode: str = "r") -> None:
        self.group = zarr.open_group(os.fspath(path), mode=mode)

    @classmethod
    def create(cls, path: str | os.PathLike, realisations: int, **facts: object) -> SceneStore:
        """A new store, or the present one where its ``facts`` agree. Raises InputError where they do not."""
        store = cls(path, "a")
        if "slice" in store.group:
            present = {key: store.group.attrs.get(key) for key in facts}
            if present != facts:
                wrong = ", ".join(key for key in facts if present[key] != facts[key])
                raise InputError(f"'{path}' was made with other settings ({wrong}): choose another folder.")
            return store
        side = (SCENE_ROWS, SCENE_ROWS)
        for name, shape, kind in (
            ("clean", side, "int16"),
            ("noise", (realisations, *side), "float16"),
            ("dose", (realisations,), "float32"),
            ("centre", (2,), "float32"),
            ("photons", (), "float32"),
            ("slice", (), "int32"),
        ):
            chunk = 1 if name in ("clean", "noise") else 1024
            store.group.create_array(
                name, shape=(0, *shape), chunks=(chunk, *shape), dtype=kind, compressors=None, overwrite=True
            )
        fixed = {"pixel_mm": SCENE_PIXEL, "clean_step_hu": CLEAN_STEP, "wide_band_edge": WIDE_BAND_EDGE}
        store.group.attrs.update({**facts, **fixed, "empty": []})
        return store

    def __len__(self) -> int:
        return self.group["slice"].shape[0]

    def __getitem__(self, index: int) -> StoredScene:
        """Scene ``index`` in HU, read from the disk."""
        clean = self.group["clean"][index].astype(np.float32) * CLEAN_STEP
        return StoredScene(clean, self.group["noise"][index].astype(np.float32), self.group["dose"][index])

    def finished(self) -> set[int]:
        """Slices of the source that need not be simulated again."""
        return {*self.group["slice"][:].tolist(), *self.group.attrs["empty"]}

    def add(self, slice_index: int, scenes: Sequence[Scene]) -> None:
        """Appends the scenes of one slice, whole or not at all."""
        if scenes:
            limits = np.iinfo(np.int16)
            clean = np.rint(np.stack([scene.clean for scene in scenes]) / CLEAN_STEP)
            self._write("clean", np.clip(clean, limits.min, limits.max))
            self._write("noise", np.stack([scene.noise for scene in scenes]))
            self._write("dose", np.stack([scene.dose for scene in scenes]))
            self._write("centre", np.array([scene.centre for scene in scenes]))
            self._write("photons", np.array([scene.photons for scene in scenes]))
            self._write("slice", np.full(len(scenes), slice_index))
        else:
            self.group.attrs["empty"] = [*self.group.attrs["empty"], slice_index]

    def _write(self, name: str, values: np.ndarray) -> None:
        count, array = len(self), self.group[name]
        array.resize((count + len(values), *array.shape[1:]))
        array[count:] = values.astype(array.dtype)


def simulate_scenes(
    slice_of: Callable[[int], np.ndarray],
    pixel: float,
    indices: Sequence[int],
    out: str | os.PathLike,
    source: str,
    slice_thickness: float,
    seed: int = 0,
    per_slice: int = 3,
    realisations: int = 5,
    views: int = 1000,
    batch: int = 4,
    device: str = "cpu",
) -> SceneStore:
    """Scenes of slices (n, n) HU, pixels of ``pixel`` mm, into the store ``out``.

    ``slice_of`` gives the slice of an index of ``indices``; index and ``seed`` key all that is random. Slices
    that the store has are skipped.
    """
    store = SceneStore.create(
        out,
        realisations,
        source=source,
        seed=seed,
        slice_thickness=slice_thickness,
        views=views,
        per_slice=per_slice,
    )
    finished = store.finished()
    todo = [index for index in indices if index not in finished]
    for i in range(0, len(todo), batch):
        start = time.perf_counter()
        keys = todo[i : i + batch]
        hu = torch.from_numpy(np.stack([slice_of(key) for key in keys]).astype(np.float32)).to(device)
        scenes = base_scenes(hu, pixel, [(seed, key) for key in keys], per_slice, realisations, views)
        for key, of_slice in zip(keys, scenes, strict=True):
            store.add(key, of_slice)
        seconds = (time.perf_counter() - start) / len(keys)
        print(f"slice {keys[-1]}: {len(store)} scenes, {seconds:.1f} s a slice", file=sys.stderr, flush=True)
    return store


@dataclass(frozen=True)
class _Source:
    name: str
    slices: int
    pixel: float
    thickness: float
    slice_of: Callable[[int], np.ndarray]


def _source(text: str) -> _Source:
    kind, _, seed = text.partition(":")
    if kind == "phantom" and seed.isdigit():
        phantom = ChestPhantom(int(seed))
        return _Source(text, int(HEIGHT), phantom.pixel, 1.0, phantom.slice)
    from CTHarmonizeLib.ct.io import read_volume

    volume = read_volume(text)
    return _Source(
        Path(text).name, len(volume.hu), volume.pixel_spacing, float(volume.spacing[2]), volume.hu.__getitem__
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Script entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, help="CT volume: image file or DICOM folder; or phantom:SEED")
    parser.add_argument("--slices", default=":", help="half-open range a:b of its slices")
    parser.add_argument("--out", required=True, type=Path, help="folder of the Zarr store")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-slice", type=int, default=3, help="scenes a slice")
    parser.add_argument("--realisations", type=int, default=5, help="noise images a scene, first at 100 %%")
    parser.add_argument("--views", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4, help="slices projected at once")
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        source = _source(given.input)
        first, _, last = given.slices.partition(":")
        indices = range(source.slices)[int(first or 0) : int(last) if last else None]
        simulate_scenes(
            source.slice_of,
            source.pixel,
            indices,
            given.out,
            source.name,
            source.thickness,
            given.seed,
            given.per_slice,
            given.realisations,
            given.views,
            given.batch,
            given.device,
        )
    except CTHarmonizeError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
