"""All studies on all methods: cases are scanned, harmonized, measured, and the report is written."""

from __future__ import annotations

import inspect
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.report import as_json
from CTHarmonizeLib.request import Request
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.evaluation import measures
from CTHarmonizeTraining.evaluation.perception import available
from CTHarmonizeTraining.evaluation.scores import Distances
from CTHarmonizeTraining.evidence import slabs, uncertainty
from CTHarmonizeTraining.evidence.cases import Case, Scan
from CTHarmonizeTraining.evidence.densitometry import DensitometryStudy
from CTHarmonizeTraining.evidence.detectability import DetectabilityStudy
from CTHarmonizeTraining.evidence.detection.study import DetectionStudy
from CTHarmonizeTraining.evidence.images import MEAN, Maker, installed, reference, untouched
from CTHarmonizeTraining.evidence.kept import fingerprint
from CTHarmonizeTraining.evidence.lesions import LesionStudy
from CTHarmonizeTraining.evidence.nodules import NoduleStudy
from CTHarmonizeTraining.evidence.pictures import example_figure
from CTHarmonizeTraining.evidence.quality import QualityStudy
from CTHarmonizeTraining.evidence.radiomics import RadiomicsStudy
from CTHarmonizeTraining.evidence.report import write_report
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Picture, Section, Study, Table
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

SAMPLES_MEAN = "mean over samples"
"""Of a measure that was taken in each sample: behind the method's name, after a comma."""

_COLUMNS = ["study", "case", "method", "source", "target", "item", "measure", "value", "truth", "low", "high"]
_SAME = ["study", "case", "target", "item", "measure"]


def studies(distances: Distances | None = None) -> tuple[list[Study], dict[str, str]]:
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
    desk = _Desk(output, chosen, makers, missing | not_chosen)
    rows = joined(pd.DataFrame(desk.rows(slabs.case_of(slab, cache, say) for slab in cases), columns=_COLUMNS))
    write_whole(output / MEASUREMENTS, rows.to_csv(index=False))
    facts = {
        "CTHarmonize": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "minutes": round((time.perf_counter() - start) / 60.0, 1),
        "cases": {f"phantom:{slab.seed}": asdict(slab) for slab in cases},
        "methods": {
            maker.request.method: maker.facts()
            | {"sets the kernel": maker.sets_kernel, "seconds a slice": desk.seconds(maker)}
            for maker in makers
        },
        "LPIPS": {backbone: found.about for backbone, found in distances.items()},
        "left out": desk.left_out,
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
    measured = set(rows["study"])
    chosen = [study for study in studies()[0] if study.name in measured]
    parts = [_summary(rows, chosen, facts), _examples(output), *_sections(rows, chosen)]
    return write_report(output, TITLE, facts, parts)


def _asked(request: Request, name: str) -> Request:
    return Request(
        method=name, samples=request.samples, seed=request.seed, device=request.device, precision=request.precision
    )


def joined(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with what the reference scan's same measure is, in the column ``reference``."""
    known = rows[rows.method == REFERENCE].set_index(_SAME).value.rename("reference")
    return rows.join(known, on=_SAME)


class _Desk:
    """Measures images; keeps what it found, and example pictures, in ``folder``."""

    def __init__(self, folder: Path, chosen: Sequence[Study], makers: Sequence[Maker], missing: dict[str, str]) -> None:
        self.folder, self.studies, self.makers = folder, chosen, makers
        self.left_out = dict(missing)
        self.warnings: dict[str, dict[str, list[str]]] = {}
        self._seconds: dict[str, list[float]] = {}

    def seconds(self, maker: Maker) -> float | None:
        """What a method takes for a slice: the median over scans."""
        taken = self._seconds.get(maker.request.method)
        return None if taken is None else round(float(np.median(taken)), 3)

    def rows(self, cases: Iterable[Case]) -> Iterator[dict]:
        """All findings in all cases."""
        for case in cases:
            for target in dict.fromkeys(target for _, target in MAPPINGS):
                yield from self._measured(case, [reference(case, target)], self.studies)
            for source, target in MAPPINGS:
                yield from self._measured(case, [untouched(case, source, target)], self.studies)
                for maker in self.makers:
                    yield from self._made(maker, case, source, target)
                if (source, target) in EXAMPLES:
                    self._draw(case, source, target)

    def _made(self, maker: Maker, case: Case, source: Scan, target: Scan) -> Iterator[dict]:
        """Findings in what a method makes of a scan, of an earlier run where they are known."""
        name = maker.request.method
        key = maker.key(case, source, target)
        folder = self.folder / "findings"
        places = {study: folder / f"{name}-{key}-{study.name}-{_code(study)}.json" for study in self.studies}
        due = [study for study, place in places.items() if not place.is_file()]
        if due:
            try:
                shown = maker.images(case, source, target)
            except InputError as error:
                self.left_out[f"{name}, {source} to {target}"] = str(error)
                return
            say(f"{case.name}, {source} to {target}: {name}")
            for study in due:
                write_whole(places[study], as_json([*self._measured(case, shown, [study])]))
        seconds, warnings = maker.told(case, source, target)
        self._seconds.setdefault(name, []).append(seconds)
        if warnings:
            self.warnings.setdefault(name, {})[f"{source} to {target}"] = warnings
        for place in places.values():
            for row in json.loads(place.read_text(encoding="utf-8")):
                yield {name: np.nan if value is None else value for name, value in row.items()}

    def _draw(self, case: Case, source: Scan, target: Scan) -> None:
        """Leave a picture of what some methods make of the scan, of one case."""
        path = _example(self.folder, source, target)
        if path.is_file():
            return
        shown = [untouched(case, source, target)]
        for maker in self.makers:
            if maker.request.method in SHOWN:
                try:
                    shown.append(maker.images(case, source, target)[0])
                except InputError:
                    continue  # told where it is measured
        middle = len(case.truth) // 2
        write_whole(path, example_figure(case, shown, case.seen(case.references[target]), middle).content)

    def _measured(self, case: Case, shown: Sequence[Image], chosen: Sequence[Study]) -> Iterator[dict]:
        for study in chosen:
            for image in shown:
                yield from (_row(study, case, image, finding) for finding in study.measure(case, image))
                if study.sampled and image.samples is not None:
                    yield from self._over_samples(study, case, image)

    @staticmethod
    def _over_samples(study: Study, case: Case, image: Image) -> Iterator[dict]:
        """Mean of each measure over the samples, with the limits between which another sample's would lie (95 %)."""
        each = [
            study.measure(case, Image(image.method, image.source, image.target, sample)) for sample in image.samples
        ]
        name = image.method.removesuffix(MEAN) + SAMPLES_MEAN
        for several in zip(*each, strict=True):
            values = np.array([finding.value for finding in several])
            mean, spread, count = float(values.mean()), float(values.std(ddof=1)), len(values)
            half = float(stats.t.ppf(0.975, count - 1)) * spread * (1.0 + 1.0 / count) ** 0.5
            first = several[0]
            shown = Image(name, image.source, image.target, image.hu)
            finding = Finding(first.measure, mean, first.truth, first.item)
            yield _row(study, case, shown, finding) | {"low": mean - half, "high": mean + half}


def _row(study: Study, case: Case, image: Image, finding: Finding) -> dict:
    return {
        "study": study.name,
        "case": case.name,
        "method": image.method,
        "source": str(image.source),
        "target": str(image.target),
        "item": finding.item,
        "measure": finding.measure,
        "value": finding.value,
        "truth": finding.truth,
        "low": float("nan"),
        "high": float("nan"),
    }


def _code(study: Study) -> str:
    """What tells a study's code from an earlier one's; ``measured_by``, where a study has it: the modules that it
    measures with."""
    return fingerprint(inspect.getfile(type(study)), measures, *getattr(study, "measured_by", ()))[:8]


def _summary(rows: pd.DataFrame, chosen: Sequence[Study], facts: dict) -> Section:
    """What a reader who reads no further should know."""
    towards = rows[rows.target == str(MEDIUM)]
    heads = [study.headline(towards[towards.study == study.name]) for study in chosen]
    frame = pd.concat(heads, axis=1)
    order = [name for name in rows.method.unique() if name in frame.index]
    keeping = [name for name, of in facts["methods"].items() if not of["sets the kernel"]]
    frame = frame.loc[order].rename(
        lambda name: f"{name} (keeps the kernel)" if name.partition(",")[0] in keeping else name
    )
    frame = frame.rename_axis("method").reset_index()
    cases = len(facts["cases"])
    text = (
        f"Simulated chests ({cases}) with known emphysema, nodules and small lesions were scanned with smooth, medium "
        "and sharp kernels at 10, 25 and 100 % dose, and harmonized to a medium kernel at 100 %. A method helps where "
        "it is nearer to the reference, a scan of that kind with noise of its own, than the untouched scan is. "
        "Simulated data favour the learned methods, which were trained on scans of the same simulator; no patient's "
        "scan was judged here."
    )
    note = (
        "Means over the chests and over all sources that lead to the medium kernel (the bias: the largest). Sources "
        "with another kernel count for methods that keep it, too. The physics-informed GAN aims at the anatomy without "
        "blur and noise, not at the reference."
    )
    return Section("What was found", text, [Table("summary", "All methods", frame, note, _SUMMARY_DIGITS)])


_SUMMARY_DIGITS = {
    "RMSE, HU": 1,
    "largest HU bias": 1,
    "noise, HU": 1,
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
