"""All studies on all methods: cases are scanned, harmonized, measured, and the report is written."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.report import as_json
from CTHarmonizeLib.request import Request
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.evaluation import measures
from CTHarmonizeTraining.evidence import slabs, uncertainty
from CTHarmonizeTraining.evidence.cases import Case, Scan
from CTHarmonizeTraining.evidence.images import MEAN, Maker, installed, reference, untouched
from CTHarmonizeTraining.evidence.kept import fingerprint
from CTHarmonizeTraining.evidence.lesions import LesionStudy
from CTHarmonizeTraining.evidence.quality import QualityStudy
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Section, Study
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

SAMPLES_MEAN = "mean over samples"
"""Of a measure that was taken in each sample: behind the method's name, after a comma."""

_COLUMNS = ["study", "case", "method", "source", "target", "item", "measure", "value", "truth", "low", "high"]
_SAME = ["study", "case", "target", "item", "measure"]


def studies() -> list[Study]:
    """All that can be run here."""
    return [QualityStudy(), LesionStudy(), UncertaintyStudy()]


def run(
    output: Path,
    seeds: Sequence[int],
    names: Sequence[str] | None,
    request: Request,
    cache: Path | None = None,
    slices: int | None = None,
) -> pd.DataFrame:
    """All findings, also written with the report to ``output``.

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
    chosen = studies()
    makers = [Maker(_asked(request, name), cache / "images") for name in found]
    cases = slabs.slabs(seeds, **({} if slices is None else {"slices": slices}))
    desk = _Desk(output / "findings", chosen, makers, missing)
    rows = pd.DataFrame(desk.rows(slabs.case_of(slab, cache, say) for slab in cases), columns=_COLUMNS)
    rows = joined(rows)
    write_whole(output / "measurements.csv", rows.to_csv(index=False))
    facts = {
        "version": __version__,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "cases": [asdict(slab) for slab in cases],
        "methods": {maker.request.method: maker.facts() for maker in makers},
        "seconds a slice": desk.seconds(),
        "left out": desk.left_out,
        "warnings": {maker.request.method: maker.told for maker in makers if maker.told},
    }
    write_whole(output / "facts.json", as_json(facts, indent=1))
    say(f"measured in {(time.perf_counter() - start) / 60:.0f} min")
    return rows


def _asked(request: Request, name: str) -> Request:
    return Request(
        method=name, samples=request.samples, seed=request.seed, device=request.device, precision=request.precision
    )


def joined(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with what the reference scan's same measure is, in the column ``reference``."""
    known = rows[rows.method == REFERENCE].set_index(_SAME).value.rename("reference")
    return rows.join(known, on=_SAME)


class _Desk:
    """Measures images, and keeps what it found in ``folder``."""

    def __init__(self, folder: Path, chosen: Sequence[Study], makers: Sequence[Maker], missing: dict[str, str]) -> None:
        self.folder, self.studies, self.makers = folder, chosen, makers
        self.left_out = dict(missing)
        self._seconds: dict[str, list[float]] = {}

    def seconds(self) -> dict[str, float]:
        """Of each method, for a slice: the median over scans."""
        return {name: float(np.median(values)) for name, values in self._seconds.items()}

    def rows(self, cases: Iterable[Case]) -> Iterator[dict]:
        """All findings in all cases."""
        for case in cases:
            for target in dict.fromkeys(target for _, target in MAPPINGS):
                yield from self._measured(case, [reference(case, target)], self.studies)
            for source, target in MAPPINGS:
                yield from self._measured(case, [untouched(case, source, target)], self.studies)
                for maker in self.makers:
                    yield from self._made(maker, case, source, target)

    def _made(self, maker: Maker, case: Case, source: Scan, target: Scan) -> Iterator[dict]:
        """Findings in what a method makes of a scan, of an earlier run where they are known."""
        name = maker.request.method
        key = maker.key(case, source, target)
        places = {study: self.folder / f"{name}-{key}-{study.name}-{_code(study)}.json" for study in self.studies}
        due = [study for study, place in places.items() if not place.is_file()]
        if due:
            try:
                shown = maker.images(case, source, target, any(study.sampled for study in due))
            except InputError as error:
                self.left_out[f"{name}, {source} to {target}"] = str(error)
                return
            say(f"{case.name}, {source} to {target}: {name}")
            for study in due:
                write_whole(places[study], as_json([*self._measured(case, shown, [study])]))
        self._seconds.setdefault(name, []).append(maker.seconds(case, source, target))
        for place in places.values():
            for row in json.loads(place.read_text(encoding="utf-8")):
                yield {name: np.nan if value is None else value for name, value in row.items()}

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
    """What tells a study's code from an earlier one's."""
    return fingerprint(inspect.getfile(type(study)), measures)[:8]


def sections(rows: pd.DataFrame, chosen: Sequence[Study]) -> list[Section]:
    """The report's parts, one of each study, and the intervals of all."""
    made = [study.section(rows[rows.study == study.name]) for study in chosen]
    if rows.low.notna().any():
        words = "Measures that were taken in each of the samples have an interval."
        made.append(Section("Intervals of measures", words, [uncertainty.intervals(rows)]))
    return made
