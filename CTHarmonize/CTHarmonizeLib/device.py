"""Where a run computes, in which precision, and how much it takes at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.request import DEVICES, PRECISIONS

if TYPE_CHECKING:
    from CTHarmonizeLib.methods.base import Method

_SHARE = 0.6  # of the free memory that a run plans to use
_UNKNOWN_MEMORY = 4 << 30
_SMALLEST_TILE = 128
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")


def choose_device(name: str = "auto") -> torch.device:
    """The device to run on: ``auto`` takes a CUDA GPU where one is usable; Apple's, which is less tested, only when
    asked for. Raises CannotRunError where the device is not there."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = "cuda" if usable["cuda"] else "cpu"
    if name not in usable:
        raise InputError(f"There is no device '{name}': choose one of {', '.join(DEVICES)}.")
    if not usable[name]:
        if name == "mps":
            raise CannotRunError("This machine has no Apple GPU that PyTorch can use: choose the device cpu or auto.")
        built = "no CUDA GPU was found" if torch.version.cuda else "the installed PyTorch was built without CUDA"
        raise CannotRunError(f"The device cuda cannot be used here ({built}): choose the device cpu or auto.")
    if name == "cuda":  # float32 means float32: what inverts must not lose half its digits
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(name)


def choose_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """Type of what need not invert: with ``auto`` bfloat16 where the processor computes in it, else float32."""
    if name not in PRECISIONS:
        raise InputError(f"There is no precision '{name}': choose one of {', '.join(PRECISIONS)}.")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        native = device.type == "cpu" and _processor_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _processor_has_bfloat16() -> bool:
    # "Supported" includes emulation on AVX-512 without the instructions, which is slower than float32.
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if features:
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            flags = file.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def free_memory(device: torch.device) -> int:
    """Bytes that a run may use on ``device``; a careful guess where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        import psutil

        free = psutil.virtual_memory().available
    except ImportError:  # Slicer's Python has it only by chance
        free = _linux_memory() or _UNKNOWN_MEMORY
    limit = _container_limit()
    return free if limit is None else min(free, limit)


def _linux_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def _container_limit() -> int | None:
    """What the control group still allows (Linux containers and cluster jobs)."""
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            used = int(file.read())
        with open("/sys/fs/cgroup/memory.stat", encoding="ascii") as file:
            cached = dict(line.split() for line in file).get("inactive_file", 0)  # given back when needed
        return max(0, limit - used + int(cached))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Load:
    """What is computed at once: slices in a slab, samples in a group, side of a tile (None: whole slices)."""

    slices: int
    samples: int
    tile: int | None = None

    def smaller(self, side: int) -> Load | None:
        """The next smaller load, samples first, for slices of ``side`` pixels; None below the smallest."""
        if self.samples > 1:
            return replace(self, samples=self.samples // 2)
        if self.slices > 1:
            return replace(self, slices=self.slices // 2)
        tile = min(self.tile or side, side) // 2 // 16 * 16
        return replace(self, tile=tile) if tile >= _SMALLEST_TILE else None


def plan_load(method: Method, shape: tuple[int, int, int], samples: int, margin: int, load: Load) -> Load:
    """The largest load up to ``load`` that fits the free memory, by the method's own figures.

    ``shape``: (slices, rows, columns) to do; ``margin``: pixels computed around a tile. Raises CannotRunError where
    even the smallest does not fit.
    """
    free = free_memory(method.device)
    slices, rows, columns = shape
    load = replace(load, slices=min(load.slices, slices), samples=min(load.samples, samples))

    def need(some: Load) -> int:
        sides = (min(side, (some.tile or side) + 2 * margin) for side in (rows, columns))
        return method.memory(some.slices, some.samples, *sides)

    while need(load) > _SHARE * free:
        less = load.smaller(max(rows, columns))
        if less is None or (less.tile and need(less) >= need(load)):
            if need(load) < free:  # a rough upper bound: worth the try
                return load
            raise CannotRunError(
                f"The method {method.name} needs about {need(load) / 2**30:.1f} GiB of memory for a slice of "
                f"{columns} x {rows} pixels, but only {free / 2**30:.1f} GiB are free: close other programs or choose "
                "another device."
            )
        load = less
    return load


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python failed for want of memory."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def limit_threads(count: int | None) -> None:
    """Let PyTorch use at most ``count`` processor cores (None: as many as it likes)."""
    if count:
        torch.set_num_threads(max(1, min(int(count), os.cpu_count() or 1)))
