"""Blends what a run learns from: public sets, local files, the platinum ledger; and writes down what came of it.

Records are normalised by their schema, measured in tokens, freed of duplicates, and split into a training part and a
held-out one. The data card (data_card.json) tells of every source: revision, licence, counts, and why records were left
out.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from hivemind.training.duplicates import THRESHOLD, Duplicates
from hivemind.training.formatting import Refused, Turn, read_turns
from hivemind.training.hub_data import DEFAULT_LIMIT, DEFAULT_MIXTURE, HubUnavailable, resolve_revision, stream_hub
from hivemind.training.licences import Use, reviewed, use_of
from hivemind.training.platinum_data import read_platinum
from hivemind.training.records import LINE_MAX, files_of, read_records
from hivemind.training.sft_config import DataChoice, HubSource

CARD_FILE: Final = "data_card.json"
LEAST: Final = 2
"""The fewest samples that can be trained and tested on."""
_UNSTATED: Final = "LicenseRef-unstated"


class BadData(Exception):
    """Data that no run can be started with; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation to learn, where it is from, and its length in tokens; of a platinum example its id and place."""

    turns: tuple[Turn, ...]
    source: str
    tokens: int
    platinum_id: str = ""
    sequence: int = 0


@dataclass(slots=True)
class SourceReport:
    """What the data card tells of a source. `refused` counts records that were left out, by reason."""

    name: str
    kind: str
    licence: str
    use: Use
    revision: str = ""
    records: int = 0
    used: int = 0
    exact_duplicates: int = 0
    near_duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a run trains on and is tested on. `card`: the data card, ready for JSON; `first_sequence` and
    `last_sequence` of the platinum examples in it, 0 for none."""

    train: tuple[Sample, ...]
    heldout: tuple[Sample, ...]
    card: Mapping[str, Any]
    first_sequence: int
    last_sequence: int
    licence: str


@dataclass(frozen=True, slots=True)
class _Source:
    report: SourceReport
    records: Callable[[], Iterator[tuple[Mapping[str, Any], str, int]]]
    """Record, platinum id and sequence."""
    limit: int


def load_mixture(
    choice: DataChoice, *, seed: int, count_tokens: Callable[[Sequence[Turn]], int], max_tokens: int
) -> Mixture:
    """Reads, filters and splits the data of a run; the same choice and seed give the same mixture.

    `count_tokens` measures turns (and may raise formatting.Refused); samples above `max_tokens` are left out. Raises
    BadData where nothing usable is left, a licence forbids it, or the hub cannot be reached.
    """
    reader = _Reader(choice, count_tokens, max_tokens)
    tests = [reader.read(s) for s in _file_sources(choice.heldout_paths, choice.licence)]
    sources = _sources(choice, seed)
    samples = [sample for source in sources for sample in reader.read(source)]
    random.Random(seed).shuffle(samples)
    if choice.limit:
        samples = samples[: choice.limit]
    heldout = [sample for part in tests for sample in part][: choice.holdout_max]
    if not choice.heldout_paths:
        size = min(choice.holdout_max, max(1, round(choice.holdout * len(samples)))) if len(samples) >= LEAST else 0
        heldout, samples = samples[:size], samples[size:]
    if not samples or not heldout:
        raise BadData(_nothing(reader.reports))
    return _mixture(samples, heldout, reader, choice, seed)


class _Reader:
    """Normalises the records of one source after the other and remembers what it has seen."""

    def __init__(self, choice: DataChoice, count_tokens: Callable[[Sequence[Turn]], int], max_tokens: int) -> None:
        self._choice, self._count, self.max_tokens = choice, count_tokens, max_tokens
        self._duplicates = Duplicates()
        self.reports: list[SourceReport] = []

    def read(self, source: _Source) -> list[Sample]:
        """The samples of a source, up to its limit. BadData where its licence forbids it or the hub is away."""
        report = source.report
        self.reports.append(report)
        self._check_licence(report, report.licence)
        try:
            return list(islice(self._samples(source), source.limit or None))
        except HubUnavailable as error:
            raise BadData(str(error)) from error

    def _samples(self, source: _Source) -> Iterator[Sample]:
        report = source.report
        for record, platinum_id, sequence in source.records():
            report.records += 1
            try:
                turns = read_turns(record)
                tokens = self._count(turns)
            except Refused as error:
                report.refused[str(error)] += 1
                continue
            self._check_licence(report, _own_licence(record))
            if tokens > self.max_tokens:
                report.refused[f"is longer than {self.max_tokens} tokens"] += 1
            elif self._is_new(turns, report):
                report.used += 1
                yield Sample(turns, report.name, tokens, platinum_id, sequence)

    def _is_new(self, turns: Sequence[Turn], report: SourceReport) -> bool:
        kind = self._duplicates.kind_of("\n".join(t.content for t in turns[:-1]), turns[-1].content)
        report.exact_duplicates += kind == "exact"
        report.near_duplicates += kind == "near"
        return kind is None

    def _check_licence(self, report: SourceReport, licence: str) -> None:
        if not licence or (use_of(licence) != "non-commercial" and report.use != "non-commercial"):
            return
        report.licence, report.use = licence, "non-commercial"
        if not self._choice.allow_non_commercial:
            cure = "leave it out, or set data.allow_non_commercial (--allow-non-commercial)"
            raise BadData(f"{report.name} is under {licence}, which allows no commercial use: {cure}")


def _sources(choice: DataChoice, seed: int) -> list[_Source]:
    found = list(_file_sources(choice.paths, choice.licence))
    if choice.platinum:
        found.append(_platinum_source(choice))
    if choice.mixture:
        found += [_hub_source(s, choice, seed) for s in choice.hub or DEFAULT_MIXTURE]
    return found


def _file_sources(paths: Sequence[str], licence: str) -> Iterator[_Source]:
    for path in files_of(paths):
        named = licence or _UNSTATED
        report = SourceReport(path.name, "file", named, use_of(named), revision=_size_of(path))
        yield _Source(report, partial(_file_records, path, report.refused), 0)


def _file_records(path: Path, refused: Counter[str]) -> Iterator[tuple[Mapping[str, Any], str, int]]:
    return ((record, "", 0) for record in read_records(path, refused))


def _platinum_source(choice: DataChoice) -> _Source:
    licence = reviewed()["platinum"].licence
    report = SourceReport("platinum", "ledger", licence, use_of(licence))

    def records() -> Iterator[tuple[Mapping[str, Any], str, int]]:
        for example in read_platinum(Path(choice.platinum), choice.refused_tenants, report.refused):
            yield {**example.record, "licence": example.licence}, example.id, example.sequence

    return _Source(report, records, 0)


def _hub_source(source: HubSource, choice: DataChoice, seed: int) -> _Source:
    known = reviewed().get(source.name)
    report = SourceReport(source.name, "hub", known.licence if known else _UNSTATED, known.use if known else "unknown")

    def records() -> Iterator[tuple[Mapping[str, Any], str, int]]:
        report.revision = resolve_revision(source)
        return ((record, "", 0) for record in stream_hub(source, report.revision, seed))

    return _Source(report, records, max(1, round(source.share * (choice.limit or DEFAULT_LIMIT))))


def _own_licence(record: Mapping[str, Any]) -> str:
    """What a record says of itself."""
    own = record.get("licence", record.get("license"))
    return own if isinstance(own, str) else ""


def _size_of(path: Path) -> str:
    return f"{path.stat().st_size} bytes"


def _nothing(reports: Iterable[SourceReport]) -> str:
    """Why no sample is left."""
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons += report.refused
        reasons += Counter({"is a duplicate": report.exact_duplicates + report.near_duplicates})
    records = sum(r.records for r in reports)
    told = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(5)) or "the files hold no records"
    return f"too few usable samples (at least {LEAST} are needed) among {records} records: {told}"


def _mixture(
    train: Sequence[Sample], heldout: Sequence[Sample], reader: _Reader, choice: DataChoice, seed: int
) -> Mixture:
    reports = reader.reports
    licences = sorted({r.licence for r in reports if r.used})
    platinum = [s for s in (*train, *heldout) if s.platinum_id]
    sequences = sorted(s.sequence for s in platinum)
    warnings = [
        f"{r.name}: the licence {r.licence} is not known to allow commercial use; see datasets/LICENSES.md"
        for r in reports
        if r.used and r.use == "unknown"
    ]
    card = {
        "seed": seed,
        "sources": [{**asdict(r), "refused": dict(r.refused.most_common())} for r in reports],
        "filters": {"max_tokens": reader.max_tokens, "near_duplicate_jaccard": THRESHOLD, "max_line_bytes": LINE_MAX},
        "limit": choice.limit,
        "train": _lengths(train),
        "heldout": _lengths(heldout),
        "licences": licences,
        "warnings": warnings,
        "platinum": {"ids": sorted(s.platinum_id for s in platinum), "sequences": sequences},
    }
    return Mixture(
        tuple(train), tuple(heldout), card, min(sequences, default=0), max(sequences, default=0), " AND ".join(licences)
    )


def _lengths(samples: Sequence[Sample]) -> dict[str, float]:
    """Statistics of the samples' lengths in tokens."""
    sizes = sorted(s.tokens for s in samples)
    return {
        "samples": len(sizes), "tokens": sum(sizes), "min": sizes[0], "median": sizes[len(sizes) // 2],
        "mean": round(sum(sizes) / len(sizes), 1), "p95": sizes[int(len(sizes) * 0.95)], "max": sizes[-1],
    }  # fmt: skip


def samples_to_lines(samples: Iterable[Sample]) -> Iterator[str]:
    """Samples as JSON lines, each an array of the fields in their order."""
    for s in samples:
        turns = [[t.role, t.content, t.learn] for t in s.turns]
        fields = [turns, s.source, s.tokens, s.platinum_id, s.sequence]
        yield json.dumps(fields, ensure_ascii=False) + "\n"


def samples_from_lines(lines: Iterable[str]) -> Iterator[Sample]:
    """What `samples_to_lines` wrote."""
    for line in lines:
        turns, *others = json.loads(line)
        yield Sample(tuple(Turn(*t) for t in turns), *others)
