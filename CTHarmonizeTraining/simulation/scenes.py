"""Stores of simulated scenes, what training reads.

A store is a Zarr group (version 3, uncompressed, one scene a chunk) that grows slice by slice and can be read
while it does; an interrupted run goes on where it stopped. ``ctharmonize-train simulate --scenes`` makes them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.simulation.projector import WIDE_BAND_EDGE
from CTHarmonizeTraining.simulation.scan import SCENE_PIXEL, SCENE_ROWS, Scene, base_scenes

CLEAN_STEP = 0.125
"""HU per unit of the stored int16 noise-free image."""

_ARRAYS = ("clean", "noise", "dose", "centre", "photons", "slice")


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
        """A new store, or the present one where its ``facts`` agree. Raises InputError where they do not, and where
        the folder holds something else."""
        begun = {entry.name for entry in Path(path).glob("*")}
        if "slice" not in begun and (foreign := sorted(begun - {"zarr.json", *_ARRAYS})):
            raise InputError(f"'{path}' holds something else ('{foreign[0]}'): choose another folder for the scenes.")
        store = cls(path, "a")
        if "slice" in store.group:
            present = {key: store.group.attrs.get(key) for key in facts}
            if present != facts:
                wrong = ", ".join(key for key in facts if present[key] != facts[key])
                raise InputError(f"'{path}' was made with other settings ({wrong}): choose another folder.")
            return store
        fixed = {"pixel_mm": SCENE_PIXEL, "clean_step_hu": CLEAN_STEP, "wide_band_edge": WIDE_BAND_EDGE}
        store.group.attrs.update({**facts, **fixed, "empty": []})
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
        say(f"slice {keys[-1]}: {len(store)} scenes, {seconds:.1f} s a slice")
    return store
