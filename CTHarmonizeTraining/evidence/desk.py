"""Images are measured; what was found is kept, and joined with what the reference scans show."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.report import as_json
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.evidence.cases import Case, Scan
from CTHarmonizeTraining.evidence.images import MEAN, Maker, reference, untouched
from CTHarmonizeTraining.evidence.kept import fingerprint
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Study
from CTHarmonizeTraining.files import write_whole

COLUMNS = ["study", "case", "method", "source", "target", "item", "measure", "value", "truth", "low", "high"]
_SAME = ["study", "case", "target", "item", "measure"]

SAMPLES_MEAN = "mean over samples"
"""Of a measure that was taken in each sample: behind the method's name, after a comma."""


def joined(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with what the reference scan's same measure is, in the column ``reference``."""
    known = rows[rows.method == REFERENCE].set_index(_SAME).value.rename("reference")
    return rows.join(known, on=_SAME)


class Desk:
    """Measures what ``makers`` make of cases, ``mappings`` of a source to a target each, and keeps what it found in
    ``folder``.

    ``left_out``: what methods cannot reach, and why; ``warnings`` of methods, by mapping.
    """

    def __init__(
        self, folder: Path, chosen: Sequence[Study], makers: Sequence[Maker], mappings: Sequence[tuple[Scan, Scan]]
    ) -> None:
        self.folder, self.studies, self.makers, self.mappings = folder, chosen, makers, mappings
        self.left_out: dict[str, str] = {}
        self.warnings: dict[str, dict[str, list[str]]] = {}
        self._seconds: dict[str, list[float]] = {}

    def seconds(self, maker: Maker) -> float | None:
        """What a method takes for a slice: the median over scans."""
        taken = self._seconds.get(maker.request.method)
        return None if taken is None else round(float(np.median(taken)), 3)

    def rows(self, case: Case) -> Iterator[dict]:
        """All findings in a case."""
        for target in dict.fromkeys(target for _, target in self.mappings):
            yield from self._measured(case, [reference(case, target)], self.studies)
        for source, target in self.mappings:
            yield from self._measured(case, [untouched(case, source, target)], self.studies)
            for maker in self.makers:
                yield from self._made(maker, case, source, target)

    def _made(self, maker: Maker, case: Case, source: Scan, target: Scan) -> Iterator[dict]:
        """Findings in what a method makes of a scan, of an earlier run where they are known."""
        name = maker.request.method
        key = maker.key(case, source, target)
        anatomy = case.once("key", lambda: hashlib.sha256(case.truth.tobytes() + case.labels.tobytes()).hexdigest()[:6])
        start = f"{name}-{key}-{anatomy}"
        places = {study: self.folder / f"{start}-{study.name}-{_code(study)}.json" for study in self.studies}
        told = self.folder / f"{start}.json"
        due = [study for study, place in places.items() if not (place.is_file() and told.is_file())]
        if due:
            try:
                shown = maker.images(case, source, target)
            except InputError as error:
                self.left_out[f"{name}, {source} to {target}"] = str(error)
                return
            say(f"{case.name}, {source} to {target}: {name}")
            for study in due:
                write_whole(places[study], as_json([*self._measured(case, shown, [study])]))
            write_whole(told, as_json(maker.told(case, source, target)))
        seconds, warnings = json.loads(told.read_text(encoding="utf-8"))
        self._seconds.setdefault(name, []).append(seconds)
        if warnings:
            self.warnings.setdefault(name, {})[f"{source} to {target}"] = warnings
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
    """What tells a study's code, and how measures of samples are taken, from earlier ones."""
    return fingerprint(inspect.getfile(type(study)), __file__, *study.measured_by)[:8]


