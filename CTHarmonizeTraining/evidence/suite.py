"""All studies on all methods: cases are scanned, harmonized, measured, and the report is written."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pandas as pd

from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.report import as_json
from CTHarmonizeLib.request import Request
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.evaluation.perception import Lpips, available
from CTHarmonizeTraining.evidence import slabs, uncertainty
from CTHarmonizeTraining.evidence.cases import Case, Scan
from CTHarmonizeTraining.evidence.densitometry import DensitometryStudy
from CTHarmonizeTraining.evidence.desk import COLUMNS, Desk, joined
from CTHarmonizeTraining.evidence.detectability import DetectabilityStudy
from CTHarmonizeTraining.evidence.detection.study import DetectionStudy
from CTHarmonizeTraining.evidence.images import Maker, installed, untouched
from CTHarmonizeTraining.evidence.lesions import LesionStudy
from CTHarmonizeTraining.evidence.nodules import NoduleStudy
from CTHarmonizeTraining.evidence.pictures import example_figure
from CTHarmonizeTraining.evidence.quality import QualityStudy
from CTHarmonizeTraining.evidence.radiomics import RadiomicsStudy
from CTHarmonizeTraining.evidence.report import write_report
from CTHarmonizeTraining.evidence.study import Picture, Section, Study, Table
from CTHarmonizeTraining.evidence.uncertainty import UncertaintyStudy
from CTHarmonizeTraining.files import write_whole

MEDIUM, SHARP = Scan("medium", 100.0), Scan("sharp", 100.0)
MAPPINGS = (
    (Scan("smooth", 25.0), MEDIUM),
    (Scan("medium", 25.0), MEDIUM),
    (Scan("sharp", 25.0), MEDIUM),
    (Scan("sharp", 10.0), MEDIUM),
    (Scan("smooth", 100.0), MEDIUM),
    (Scan("sharp", 100.0), MEDIUM),
    (Scan("medium", 100.0), SHARP),
    (Scan("smooth", 100.0), SHARP),
)
"""Source and target: less dose and other kernels, and, at full dose, the three pairs of kernels of CTFlow's table 2."""

EXAMPLES = (MAPPINGS[3], MAPPINGS[0], MAPPINGS[7])
SHOWN = ("mtf-filter", "unet", "sngan", "ctflow")
"""Mappings and methods of the example pictures."""

TITLE = "Does harmonization make measurements agree?"
MEASUREMENTS, FACTS, EXAMPLE_PICTURES = "measurements.csv", "facts.json", "examples"

def studies(distances: Mapping[str, Lpips] | None = None) -> tuple[list[Study], dict[str, str]]:
    """All that can run here, and why others cannot; ``distances``: LPIPS by backbone."""
    makers: list[Callable[[], Study]] = [
        lambda: QualityStudy(distances),
        DetectabilityStudy,
        DensitometryStudy,
        NoduleStudy,
        RadiomicsStudy,
        DetectionStudy,
        LesionStudy,
        UncertaintyStudy,
    ]
    made, missing = [], {}
    for make in makers:
        try:
            made.append(make())
        except (InputError, CannotRunError) as error:
            missing[f"study of {make.name}"] = str(error)
    return made, missing


def run(
    output: Path,
    seeds: Sequence[int],
    names: Sequence[str] | None,
    request: Request,
    cache: Path | None = None,
    slices: int = 24,
    lpips: Sequence[str] = (),
) -> None:
    """Leave all measurements, with what they depend on and example pictures, in ``output``.

    ``seeds`` of the chests; ``names`` of the methods (None: all that can run); ``request``: samples, seed, device and
    precision. What was found is kept, so that a stopped run goes on and a changed study is measured again alone.
    """
    start = time.perf_counter()
    output = check_output_folder(output)
    cache = cache or output / "cache"
    found, missing = installed(names)
    if not found:
        raise InputError(f"No method can run here: {'; '.join(missing.values())}")
    for name, reason in missing.items():
        say(f"{name} is left out: {reason}")
    makers = [Maker(_asked(request, name), cache / "images") for name in found]
    for maker in makers:
        maker.check_unseen(seeds)
    distances = available(lpips, makers[0].device)
    chosen, not_chosen = studies(distances)
    for name, reason in not_chosen.items():
        say(f"{name} is left out: {reason}")
    cases = slabs.slabs(seeds, slices=slices)
    desk = Desk(output / "findings", chosen, makers, MAPPINGS)
    rows: list[dict] = []
    for number, slab in enumerate(cases):
        case = slabs.case_of(slab, cache, say)
        rows += desk.rows(case)
        if number == 0:
            _draw_examples(output, makers, case)
    table = joined(pd.DataFrame(rows, columns=COLUMNS))
    write_whole(output / MEASUREMENTS, table.to_csv(index=False))
    facts = {
        "CTHarmonize": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "minutes": round((time.perf_counter() - start) / 60.0, 1),
        "cases": {f"phantom:{slab.seed}": asdict(slab) for slab in cases},
        "methods": {
            maker.request.method: maker.facts()
            | {
                "sets the kernel": maker.sets_kernel,
                "slices made of each": maker.slices_made,
                "seconds a slice": desk.seconds(maker),
            }
            for maker in makers
        },
        "LPIPS": {backbone: found.about for backbone, found in distances.items()},
        "left out": missing | not_chosen | desk.left_out,
        "warnings": desk.warnings,
        **versions(),
    }
    write_whole(output / FACTS, as_json(facts, indent=1))


def write(output: Path) -> Path:
    """The report of what :func:`run` left in ``output``; returns its path. Raises InputError where there is nothing."""
    try:
        rows = pd.read_csv(output / MEASUREMENTS, keep_default_na=False, na_values=[""], dtype={"item": str})
        facts = json.loads((output / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{output}' holds no measurements of 'evaluate --suite'.") from error
    rows["item"] = rows["item"].fillna("")
    found, missing = studies(dict.fromkeys(facts["LPIPS"]))
    chosen = [study for study in found if (rows["study"] == study.name).any()]
    if (count := rows["study"].nunique()) > len(chosen):
        raise InputError(f"{count - len(chosen)} of {count} studies cannot be shown here: {' '.join(missing.values())}")
    for left in ("tables", "pictures"):  # of an earlier report
        shutil.rmtree(output / left, ignore_errors=True)
    parts = [_summary(rows, chosen, facts), _examples(output), *_sections(rows, chosen)]
    return write_report(output, TITLE, facts, parts)


def _asked(request: Request, name: str) -> Request:
    return Request(
        method=name, samples=request.samples, seed=request.seed, device=request.device, precision=request.precision
    )


def _summary(rows: pd.DataFrame, chosen: Sequence[Study], facts: dict) -> Section:
    """What a reader who reads no further should know."""
    towards = rows[rows.target == str(MEDIUM)]
    heads = [study.headline(towards[towards.study == study.name]) for study in chosen]
    frame = pd.concat(heads, axis=1)
    order = [name for name in rows.method.unique() if name in frame.index]
    known = {
        name: [
            *([] if of["sets the kernel"] else ["keeps the kernel"]),
            *(["reads slices of 2 mm"] if of["slices made of each"] == 2 else []),
        ]
        for name, of in facts["methods"].items()
    }
    frame = frame.loc[order].rename(
        lambda name: f"{name} ({'; '.join(known[short])})" if known.get(short := name.partition(",")[0]) else name
    )
    frame = frame.rename_axis("method").reset_index()
    cases = len(facts["cases"])
    text = (
        f"Simulated chests ({cases}) with known emphysema, nodules and small lesions were scanned with smooth, medium "
        "and sharp kernels at 10, 25 and 100 % dose, and harmonized to a medium kernel at 100 %. A method helps where "
        "it is nearer to the reference, a scan of that kind with noise of its own, than the untouched scan is. Every "
        "method is told the kernels, and to aim at a dose that has the reference's noise. Simulated data favour the "
        "learned methods, which were trained on scans of the same simulator; no patient's scan was judged here."
    )
    note = (
        "Means over the chests and over all sources that lead to the medium kernel (the bias: the largest). Sources "
        "with another kernel count for methods that keep it, too. The physics-informed GAN aims at the anatomy without "
        "blur and noise, not at the reference."
    )
    return Section("What was found", text, [Table("summary", "All methods", frame, note, _SUMMARY_DIGITS)])


_SUMMARY_DIGITS = {
    "RMSE to noise-free, HU": 1,
    "largest HU bias": 1,
    "noise off by, HU": 1,
    "|ΔPerc15|, HU": 1,
    "nodule volume NRMSE, %": 1,
    "lesions lost, %": 1,
    "lesions made up, %": 1,
    "voxels in their 95 % interval, %": 1,
}


def _sections(rows: pd.DataFrame, chosen: Sequence[Study]) -> list[Section]:
    """The report's parts, one of each study, and the intervals of all."""
    made = [study.section(rows[rows.study == study.name]) for study in chosen]
    if rows.low.notna().any():
        words = "Measures that were taken in each of the samples have an interval."
        made.append(Section("Intervals of measures", words, [uncertainty.intervals(rows)]))
    return made


def _draw_examples(output: Path, makers: Sequence[Maker], case: Case) -> None:
    """Leave pictures of what some methods make of a case."""
    for source, target in EXAMPLES:
        shown = [untouched(case, source, target)]
        for maker in makers:
            if maker.request.method in SHOWN:
                try:
                    shown.append(maker.images(case, source, target)[0])
                except InputError:
                    continue  # told where it is measured
        picture = example_figure(case, shown, case.seen(case.references[target]), len(case.truth) // 2)
        write_whole(_example(output, source, target), picture.content)


def _example(output: Path, source: Scan, target: Scan) -> Path:
    return output / EXAMPLE_PICTURES / f"{source.kernel}-{source.dose:g}-{target.kernel}.jpg"


def _examples(output: Path) -> Section:
    """Example slices that the run left."""
    parts = []
    for source, target in EXAMPLES:
        path = _example(output, source, target)
        if path.is_file():
            title = f"{source} to {target}".capitalize()
            parts.append(Picture(f"example-{path.stem}", title, path.read_bytes(), _EXAMPLE_NOTE))
    text = "One slice of the first chest, in lung and soft-tissue windows, with the difference to the reference scan."
    return Section("Examples", text, parts)


_EXAMPLE_NOTE = (
    "The reference has noise of its own, which is in every difference. Deviation: of methods that draw samples."
)


def versions() -> dict[str, str]:
    """Of what computes, for the report's facts."""
    names = ("torch", "numpy", "scipy", "scikit-image", "monai", "pyradiomics")
    found = {"Python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
