"""Do harmonized images serve a nodule detector as the reference scan does?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from CTHarmonizeTraining.evaluation.measures import Estimate
from CTHarmonizeTraining.evidence.agreement import concordance, mcbride
from CTHarmonizeTraining.evidence.cases import Case
from CTHarmonizeTraining.evidence.cells import interval
from CTHarmonizeTraining.evidence.detection import detect, network, scores
from CTHarmonizeTraining.evidence.detection.detect import CARD, SHIPPED, Detector
from CTHarmonizeTraining.evidence.detection.scores import (
    LEAST_DIAMETER,
    NOTHING,
    RATES,
    Counts,
    Outcome,
    Points,
    auc,
    bootstrap,
    cpm,
    match,
    sensitivity_at,
)
from CTHarmonizeTraining.evidence.plots import colour, png
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED, Finding, Image, Picture, Section, Table

BLOCK_MM = 8.0
"""Blocks of slices of which F1 is compared: a whole slab a case would be too few pairs for a concordance."""

HIT, FALSE = "probability", "false probability"

_PAIRS = (("smooth", "medium"), ("medium", "sharp"), ("smooth", "sharp"))
_CURVES = 5  # methods in the figure
_NAN = float("nan")
_LEAST_ODDS = 1e-5


class DetectionStudy:
    """Lung nodules that a detector, trained on the reference acquisition alone, finds in each image.

    ``detector``: the shipped one where None. Raises CannotRunError without MONAI.
    """

    name = "detection"
    sampled = False
    measured_by = (detect, network, scores, SHIPPED / CARD)

    def __init__(self, detector: Detector | None = None) -> None:
        self.detector = detector or Detector.load()

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """The 'probability' of each nodule (0: missed) and of each 'false' candidate; F1, precision and recall at the
        detector's threshold of the case, and F1 of each block of slices that holds the middle of a nodule."""
        mm = np.array(case.spacing[::-1])
        table = self.detector.detect(image.hu, case.spacing, case.lung)
        places = table[["slice", "row", "column"]].to_numpy() * mm
        probability = table["probability"].to_numpy()
        asked = [nodule for nodule in case.nodules if nodule.diameter >= LEAST_DIAMETER]
        centres = np.array([nodule.centre for nodule in asked]).reshape(-1, 3) * mm
        nodules = Points.of(centres, [nodule.diameter for nodule in asked])
        outcome, hit = match(places, probability, nodules, _excluded(case))
        found = [
            Finding(HIT, float(value), item=f"nodule {nodule.number}")
            for nodule, value in zip(asked, outcome.hits, strict=True)
        ]
        found += [Finding(FALSE, float(value), item=f"false {n}") for n, value in enumerate(outcome.false, start=1)]
        threshold = self.detector.threshold
        counts = Counts.of([outcome], threshold)
        found += [Finding(name, getattr(counts, name.lower())) for name in ("F1", "precision", "recall")]
        for first in np.arange(0.0, len(image.hu) * mm[0], BLOCK_MM):
            inside = [(first <= z) & (z < first + BLOCK_MM) for z in (centres[:, 0], places[hit == -1, 0])]
            if inside[0].any():
                block = Outcome(outcome.hits[inside[0]], outcome.false[inside[1]])
                item = f"{first:g} to {first + BLOCK_MM:g} mm"
                found.append(Finding("F1", Counts.of([block], threshold).f1, item=item))
        return found

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Mean F1 over cases and sources."""
        whole = rows[(rows["measure"] == "F1") & (rows["item"] == "")]
        return pd.DataFrame({"F1 of nodule detection": whole.groupby("method")["value"].mean()})

    def section(self, rows: pd.DataFrame) -> Section:
        """Scores of each method and source, concordance of F1 in the shape of CTFlow's table 2, and FROC curves."""
        judged = {
            key: _outcomes(of) for key, of in rows.groupby(["source", "target", "method"], sort=False, dropna=False)
        }
        # the reference is scanned as the target says, whatever the source: it stands beside every source
        keys = [key for key in judged if key[2] != REFERENCE]
        threshold = self.detector.threshold
        cases = rows["case"].nunique()
        nodules = rows[rows["measure"] == HIT].groupby("case")["item"].nunique().sum()
        card, validation = self.detector.card["training"], self.detector.card["validation"]
        text = (
            f"A 2D RetinaNet (MONAI), trained on simulated chests with the {card['kernel']} kernel at "
            f"{card['dose']:g} % dose alone (in other such chests, by which its threshold was chosen: F1 "
            f"{validation['f1']:.2f}, AP@0.5 of its boxes {validation['boxes_ap50']:.2f}), looks for {int(nodules)} "
            f"nodules in {cases} slabs. A candidate within a nodule's radius is a hit; of several one counts; those on "
            "lesions that are no nodules count neither way "
            "(LUNA16). Precision, recall and F1: at the threshold of the best F1 in validation "
            f"({threshold:.2f}). AUC: of hits against false candidates. CPM: mean sensitivity at 1/8 to 8 false "
            "positives a slab; a slab is less lung than LUNA16's scans, so the two do not compare. Intervals: 95 % of "
            "1000 bootstraps over slabs."
        )
        parts: list[Table | Picture] = [
            Table("detection", "Nodules found", pd.DataFrame(_scored(keys, judged, threshold))),
            Table(
                "detection-concordance",
                "Concordance of F1 with the reference scan: in the shape of CTFlow's table 2",
                pd.DataFrame(_concordances(_blocks(rows), "F1 differs by")),
                note=f"Lin's concordance of F1 in blocks of {BLOCK_MM:g} mm that hold a nodule's middle, over all "
                "cases (CTFlow: one F1 a patient), and McBride's word for it; the source is the one of the highest "
                "dose of its kernel. In brackets the 95 % interval, as if blocks of a case were independent. Where "
                "nearly all is found in every scan, F1 hardly varies and its concordance says little: F1 differs by "
                "so much on average, over all blocks.",
                digits=3,
            ),
            Table(
                "detection-scores",
                "Concordance of the detector's scores with the reference scan",
                pd.DataFrame(_concordances(_log_odds(rows), "log odds differ by")),
                note="The same of the log odds that the detector gives each nodule (0: missed), nodule by nodule: what "
                "changes before a nodule is missed.",
                digits=3,
            ),
        ]
        if keys:
            hardest = min(
                dict.fromkeys(key[:2] for key in keys),
                key=lambda pair: cpm(judged.get((*pair, UNTOUCHED)) or _any(judged, pair)),
            )
            parts.append(
                Picture(
                    "detection-froc",
                    f"FROC: {hardest[0]} to {hardest[1]}",
                    _figure(hardest, judged),
                    note=f"The mapping whose untouched scans are hardest; of the methods the {_CURVES} of the highest "
                    "CPM. Shaded: 95 % of bootstraps over slabs, of the untouched scan and the reference.",
                )
            )
        return Section("Nodule detection", text, parts)


def _excluded(case: Case) -> Points:
    """Findings that are neither nodules nor nothing: smaller nodules, and small lesions."""
    mm = np.array(case.spacing[::-1])
    found = [nodule for nodule in case.nodules if nodule.diameter < LEAST_DIAMETER]
    found += [*case.lesions]
    if not found:
        return NOTHING
    # a faint lesion's middle is less certain than a nodule's: one voxel more
    return Points.of(np.array([one.centre for one in found]) * mm, [one.diameter + 2.0 * mm.max() for one in found])


def _outcomes(rows: pd.DataFrame) -> list[Outcome]:
    """What was found in each case."""
    found = []
    for _, of in rows.groupby("case", sort=False):
        values = [of.loc[of["measure"] == measure, "value"].to_numpy(float) for measure in (HIT, FALSE)]
        found.append(Outcome(*values))
    return found


def _reference(judged: dict, target: str) -> list[Outcome]:
    """The reference scans of a target."""
    return judged.get((target, target, REFERENCE), [])


def _any(judged: dict, pair: tuple[str, str]) -> list[Outcome]:
    return next(scans for key, scans in judged.items() if key[:2] == pair)


def _scored(keys: Sequence[tuple[str, str, str]], judged: dict, threshold: float) -> Iterator[dict]:
    """Lines of the table: all methods of a mapping, the reference last."""
    for source, target in dict.fromkeys(key[:2] for key in keys):
        lines = [(key[2], judged[key]) for key in keys if key[:2] == (source, target)]
        if scans := _reference(judged, target):
            lines.append((REFERENCE, scans))
        for method, scans in lines:
            value, _, low, high = bootstrap(lambda some: _scores(some, threshold), scans)
            cells = [interval(Estimate(*found)) for found in zip(value, low, high, strict=True)]
            yield {
                "source": source,
                "target": target,
                "method": method,
                **dict(zip(("precision", "recall", "F1", "AUC", "CPM"), cells, strict=True)),
                "false positives a slab": Counts.of(scans, threshold).false / len(scans),
            }


def _scores(scans: Sequence[Outcome], threshold: float) -> list[float]:
    counts = Counts.of(scans, threshold)
    return [counts.precision, counts.recall, counts.f1, auc(scans), cpm(scans)]


def _blocks(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["measure"] == "F1") & (rows["item"] != "")]


def _log_odds(rows: pd.DataFrame) -> pd.DataFrame:
    """The nodules' scores on a scale on which those near 1 differ."""
    hits = rows[rows["measure"] == HIT]
    odds = {name: hits[name].clip(_LEAST_ODDS, 1.0 - _LEAST_ODDS) for name in ("value", "reference")}
    return hits.assign(**{name: np.log(p / (1.0 - p)) for name, p in odds.items()})


def _concordances(rows: pd.DataFrame, difference: str) -> Iterator[dict]:
    """Lines of a table: a method's concordance for each pair of kernels, their mean, and the mean ``difference``."""
    rows = rows[rows["method"] != REFERENCE]
    chosen = {pair: _of_kernels(rows, *pair) for pair in _PAIRS}
    for method in dict.fromkeys(rows["method"]):
        line: dict[str, str | float] = {"method": method}
        values, differences = [], []
        for (source, target), of in chosen.items():
            own = of[of["method"] == method]
            name = f"{source} to {target}"
            if own.empty:
                line[name] = "-"
                continue
            found = concordance(own["value"].to_numpy(float), own["reference"].to_numpy(float))
            values.append(found.value)
            differences.append((own["value"] - own["reference"]).abs())
            line[name] = f"{interval(found, 3)}, {mcbride(found.value)} (n = {len(own)})"
        line["mean"] = float(np.mean(values)) if len(values) == len(_PAIRS) else _NAN
        line[difference] = float(pd.concat(differences).mean()) if differences else _NAN
        yield line


def _of_kernels(rows: pd.DataFrame, source: str, target: str) -> pd.DataFrame:
    """Lines from one kernel to another, of the highest doses of both."""
    for column, kernel in (("target", target), ("source", source)):
        rows = rows[rows[column].str.startswith(f"{kernel} ")]
        doses = rows[column].str.extract(r" ([0-9.]+) %$")[0].astype(float)
        rows = rows[doses == doses.max()]
    return rows


def _figure(pair: tuple[str, str], judged: dict) -> bytes:
    """FROC curves of a mapping, PNG."""
    from matplotlib.figure import Figure

    rates = np.geomspace(RATES[0], RATES[-1], 61)
    of = {key[2]: scans for key, scans in judged.items() if key[:2] == pair and key[2] != REFERENCE}
    methods = sorted((name for name in of if name != UNTOUCHED), key=lambda name: -cpm(of[name]))[:_CURVES]
    lines = [(name, of[name], colour(number), "-") for number, name in enumerate(methods, start=1)]
    if reference := _reference(judged, pair[1]):
        lines.insert(0, (f"{REFERENCE} scan", reference, "#222222", "--"))
    if UNTOUCHED in of:
        lines.append((UNTOUCHED, of[UNTOUCHED], "#8d96a3", "-"))
    figure = Figure(figsize=(7.6, 4.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    for name, scans, shade, style in sorted(lines, key=lambda line: -cpm(line[1])):
        shaded = style == "--" or name == UNTOUCHED
        if shaded:
            _, _, low, high = bootstrap(lambda some: sensitivity_at(some, rates), scans)
            axes.fill_between(rates, low, high, color=shade, alpha=0.12, linewidth=0)
        label = f"{name}  ({cpm(scans):.2f})"
        axes.plot(rates, sensitivity_at(scans, rates), style, color=shade, linewidth=2.0, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set(xlim=(RATES[0], RATES[-1]), ylim=(0.0, 1.02), xlabel="false positives a slab", ylabel="sensitivity")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(title="CPM in brackets", frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    legend.get_title().set_fontsize(9)
    return png(figure)
