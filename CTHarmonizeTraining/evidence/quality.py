"""How near an image comes to the noise-free target and to the anatomy itself, voxel by voxel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from CTHarmonizeTraining.evaluation import measures
from CTHarmonizeTraining.evaluation.perception import Lpips
from CTHarmonizeTraining.evaluation.volumes import PLANES
from CTHarmonizeTraining.evidence.cases import Case
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Section, Table

_EVERY = {"axial": 3, "coronal": 12, "sagittal": 12}
"""Every how many images of a plane are judged: neighbours are alike, and structural similarity takes long."""

_LEAST_BODY = 0.1  # of an image, from which on it counts
_ANATOMY = "to the anatomy"


class QualityStudy:
    """RMSE, NRMSE, PSNR and SSIM in three planes, against the noise-free image with the target's kernel, and in axial
    slices against the anatomy (as Zarei et al. 2024 do); mean difference in HU of each tissue.

    NRMSE is the RMSE over the range of the anatomy's HU inside the body, as there. ``distances``: LPIPS by backbone.
    """

    sampled = False
    measured_by = (measures,)

    def __init__(self, distances: Mapping[str, Lpips] | None = None) -> None:
        self.distances = distances or {}
        self.name = "-".join(["quality", *self.distances])  # with other distances it finds other things

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """Items are planes and masks (``axial, lung``) and tissues."""
        clean = case.clean[image.target.kernel]
        found = [*self._bias(case, image, clean)]
        for axis, plane in enumerate(PLANES):
            for where in ("body", "lung") if plane == "axial" else ("body",):
                mask = case.body if where == "body" else case.lung
                for name, value in self._scores(axis, plane, image.hu, clean, mask).items():
                    found.append(Finding(name, value, item=f"{plane}, {where}"))
        for name, value in self._scores(0, "axial", image.hu, case.truth, case.body).items():
            found.append(Finding(f"{name} {_ANATOMY}", value, item="axial, body"))
        for backbone, distance in self.distances.items():
            value = distance(image.hu[:: _EVERY["axial"]], clean[:: _EVERY["axial"]])
            found.append(Finding(f"LPIPS ({backbone})", float("nan") if value is None else value, item="axial, body"))
        return found

    @staticmethod
    def _bias(case: Case, image: Image, clean: np.ndarray) -> Iterator[Finding]:
        difference = image.hu - clean
        for tissue, mask in case.tissues.items():
            yield Finding("bias", float(difference[mask].mean()) if mask.any() else float("nan"), 0.0, tissue)

    @staticmethod
    def _scores(axis: int, plane: str, image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
        image, truth, mask = (np.moveaxis(volume, axis, 0)[:: _EVERY[plane]] for volume in (image, truth, mask))
        shown = mask.mean((1, 2)) >= _LEAST_BODY
        if not shown.any():
            return {}
        image, truth, mask = image[shown], truth[shown], mask[shown]
        error = np.sqrt(measures.squared_error(image, truth, mask).sum() / mask.sum())
        return {
            "RMSE": float(error),
            "NRMSE": float(100.0 * error / np.ptp(truth[mask])),
            "PSNR": measures.psnr(image, truth, mask),
            "SSIM": measures.ssim(image, truth, mask),
        }

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """RMSE in the body, and the largest bias but bone's."""
        error = rows[(rows.measure == "RMSE") & (rows.item == "axial, body")].groupby("method").value.mean()
        biases = rows[(rows.measure == "bias") & (rows.item != "bone")]
        largest = biases.groupby("method").value.agg(lambda values: values.abs().max())
        return pd.DataFrame({"RMSE to noise-free, HU": error, "largest HU bias": largest})

    def section(self, rows: pd.DataFrame) -> Section:
        """Tables of all mappings, and in the shapes of the papers' tables."""
        low, high = measures.SCORE_WINDOW
        backbones = [name for name in rows.measure.unique() if name.startswith("LPIPS")]
        text = (
            "Against the image without noise through the target's kernel, inside the body and inside the lungs. PSNR "
            f"and SSIM: HU clipped to {low:g} to {high:g}, range {high - low:g} HU; NRMSE: over the range of the true "
            "HU inside the body. Every third axial slice and every twelfth coronal and sagittal one, means over cases. "
        )
        text += (
            "LPIPS with ImageNet's weights."
            if backbones
            else "LPIPS is left out: it ranks nothing without ImageNet's weights, which were not at hand."
        )
        parts = [
            _table(rows, "quality", "All mappings", {
                "RMSE, body (HU)": ("RMSE", "axial, body"),
                "RMSE, lungs (HU)": ("RMSE", "axial, lung"),
                "PSNR (dB)": ("PSNR", "axial, body"),
                "SSIM": ("SSIM", "axial, body"),
            }, ("source", "target")),
            _table(
                rows[(rows.source == "medium 25 %") & (rows.target == "medium 100 %")],
                "quality-dose",
                "Less dose, same kernel: in the shape of CTFlow's table 1",
                {"PSNR (dB)": ("PSNR", "axial, body"), "SSIM": ("SSIM", "axial, body")}
                | {name: (name, "axial, body") for name in backbones},
            ),
            _table(
                rows[(rows.source == "medium 25 %") & (rows.target == "medium 100 %")],
                "quality-planes",
                "Axial, coronal and sagittal planes: in the shape of the 3D GAN's table 1",
                {
                    f"{score}, {plane}": (score, f"{plane}, body")
                    for score in ("PSNR", "SSIM")
                    for plane in PLANES
                },
                note="The 3D methods read slices of 2 mm, means of two of these, and make slices of 1 mm of them.",
            ),
            _table(
                rows[rows.target == "medium 100 %"],
                "quality-anatomy",
                "Against the anatomy: in the shape of the physics-informed GAN's tables I and II",
                {
                    f"{score}{unit}": (f"{score} {_ANATOMY}", "axial, body")
                    for score, unit in (("NRMSE", " (%)"), ("SSIM", ""), ("PSNR", " (dB)"))
                },
                spread=True,
                note="Mean and standard deviation over cases and sources. The anatomy is the phantom itself, which no "
                "scan shows: the physics-informed GAN aims at it, all other methods at the medium kernel.",
            ),
            _biases(rows),
        ]
        return Section("Image quality", text, parts)


def _table(
    rows: pd.DataFrame,
    name: str,
    title: str,
    columns: Mapping[str, tuple[str, str]],
    by: tuple[str, ...] = (),
    spread: bool = False,
    note: str = "",
) -> Table:
    """Means over what is not told apart, a line for each method (of each mapping); ``columns``: measure and item."""
    made = {}
    for column, (measure, item) in columns.items():
        values = rows[(rows.measure == measure) & (rows.item == item) & (rows.method != REFERENCE)]
        grouped = values.groupby([*by, "method"], sort=False).value
        made[column] = grouped.mean()
        if spread:
            made[f"{column}, SD"] = grouped.std()
    frame = pd.DataFrame(made).reset_index()
    digits = {column: 3 if column.startswith(("SSIM", "LPIPS")) else 1 for column in frame}
    return Table(name, title, frame, note, digits)


def _biases(rows: pd.DataFrame) -> Table:
    values = rows[(rows.measure == "bias") & (rows.method != REFERENCE) & rows.value.notna()]
    largest = values.pivot_table(
        index="method", columns="item", values="value", aggfunc=lambda v: v.iloc[v.abs().argmax()], sort=False
    )
    note = "The one farthest from 0 of all cases and mappings. Bone is thin: there, blur moves the mean."
    return Table("quality-bias", "Largest mean difference from the target, HU", largest.reset_index(), note, digits=1)
