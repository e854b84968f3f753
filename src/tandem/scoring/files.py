"""Scoring the documents of files: their figures go beside their own fields, in order, and may be filtered.

What is finished is counted window by window in a small file beside the output. So a run that was stopped goes
on where it was, and its output is that of a run that never stopped.
"""

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ValidationError

from tandem.advice import named
from tandem.errors import DataError, RunDirError, SettingsError
from tandem.fingerprint import Fingerprint, fingerprint
from tandem.folders import atomic_write
from tandem.patience import Pace
from tandem.scoring.drafts import Draft, JsonLines, Rows, form_of
from tandem.scoring.scorer import DIGITS, FIGURES, ScoredText, Scorer, windows, words_of
from tandem.text.files import read_records
from tandem.text.reading import Reading
from tandem.text.rows import record_text

CONTRAST, TOKEN_SCORES, WORD_SCORES = "contrast_bits_per_byte", "token_scores", "word_scores"
"""Fields that are added when asked for."""


def bits_of(name: str) -> str:
    """The field that another model's figure is in."""
    return f"{name}_bits_per_byte"


@dataclass(frozen=True)
class Limits:
    """Which documents are kept: all limits count; a document without figures meets none.

    keep_quantile    this share of the documents: of the lowest perplexity, or with a contrast the lowest one.
    """

    min_perplexity: float | None = None
    max_perplexity: float | None = None
    keep_quantile: float | None = None

    def __post_init__(self) -> None:
        """Raises SettingsError for a share that is none."""
        if self.keep_quantile is not None and not 0 < self.keep_quantile < 1:
            said = named(f"keep_quantile {self.keep_quantile:g}")
            raise SettingsError(f"{said} is not possible: it must be above 0 and below 1")

    @property
    def chooses(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in asdict(self).values())

    def keeps(self, row: dict[str, Any], highest: float | None = None) -> bool:
        """Whether a row is kept, where `highest` is the highest rank that is."""
        perplexity, rank = row["perplexity"], _rank(row)
        if perplexity is None or rank is None:
            return not self.chooses
        return (
            (self.min_perplexity is None or perplexity >= self.min_perplexity)
            and (self.max_perplexity is None or perplexity <= self.max_perplexity)
            and (highest is None or rank <= highest)
        )


@dataclass(frozen=True)
class Added:
    """What is added to the figures of a document: its tokens, its words, a contrast to another model.

    also    bits per byte by more models on the same ContextBlock, by the name of each.
    """

    tokens: bool = False
    words: bool = False
    contrast: Scorer | None = None
    also: Mapping[str, Scorer] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of all fields that rows get."""
        wanted = ((self.contrast, CONTRAST), (self.tokens, TOKEN_SCORES), (self.words, WORD_SCORES))
        return [*FIGURES, *(name for add, name in wanted if add), *map(bits_of, self.also)]


class Counts(BaseModel):
    """What is finished, as it is written beside the output.

    job      fingerprint of the models and of what was asked for.
    read     digest of the texts that were scored.
    sizes    bytes of the drafts of output and rejected documents.
    passed   documents that are kept.
    """

    job: str
    read: str = ""
    sizes: tuple[int, ...] = ()
    documents: int = 0
    tokens: int = 0
    nll_nats: float = 0.0
    passed: int = 0


class Row(NamedTuple):
    """A document, and the record that it stands in."""

    text: str
    fields: dict[str, Any]


class ByteOutput(Protocol):
    """What rows are written to as they come."""

    def write(self, encoded: bytes, /) -> int:
        """Write all of these bytes; returns how many they are."""

    def flush(self) -> None:
        """Hand on what was written."""


@dataclass
class FileScoring:
    """One run over files. Without an output, rows are JSON lines on `stream`, and a stopped run begins anew.

    sources      files, folders, patterns, or `-`.
    text_field   the field that holds a text; none: `text`, or `messages` as in training.
    """

    scorer: Scorer
    sources: Sequence[str]
    text_field: str | None
    output: Path | None
    rejected: Path | None
    limits: Limits = field(default_factory=Limits)
    added: Added = field(default_factory=Added)
    stream: "ByteOutput | None" = None

    def run(self, on_progress: Callable[[str], None]) -> Counts:
        """Score all documents, and return what came of it.

        Raises SettingsError for what cannot be asked together, DataError for input that cannot be read. Then
        what was scored before stays, and the same command goes on with it. Raises RunDirError for an output
        that is there already, or whose draft is of another run.
        """
        if self.limits.keep_quantile is not None and self.output is None:
            raise SettingsError(
                f"{named('keep_quantile')} needs all figures before it keeps a document; give a file by "
                f"{named('output')}"
            )
        if self.rejected is not None and not self.limits.chooses:
            raise SettingsError(f"nothing rejects a document; give a limit besides {named('rejected')}")
        if self.rejected is not None and self.rejected == self.output:
            raise SettingsError(f"{named('output')} and {named('rejected')} are one file; give two")
        for other in self.added.also.values():
            self.scorer.check_same_contexts(other)
        names = self.added.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SettingsError(f"two figures would be called {twice}; rename a model folder")
        drafts = [
            Draft(path, form_of(path, setting))
            for path, setting in ((self.output, "output"), (self.rejected, "rejected"))
            if path is not None
        ]
        try:
            return self._run(drafts, self._begun(drafts), on_progress)
        finally:
            for draft in drafts:
                draft.close()

    def _run(self, drafts: list[Draft], counts: Counts, on_progress: Callable[[str], None]) -> Counts:
        """Score what is not finished yet."""
        ranks, digest, reading = array("d"), Fingerprint("scored"), Reading(", ".join(self.sources))
        rows = self._rows(reading)
        self._pass_over(rows, counts, digest)
        if self.limits.keep_quantile is not None:
            for part in drafts[0].rows():
                ranks.extend(_ranks(part))
        pace, began, before = Pace(on_progress), time.monotonic(), (counts.documents, counts.tokens)

        def how_far() -> str:
            seconds = max(1e-9, time.monotonic() - began)
            done = (counts.documents, counts.tokens)
            speeds = [(now - then) / seconds for now, then in zip(done, before, strict=True)]
            return (
                f"scored {done[0]:,} documents, {done[1]:,} tokens "
                f"({speeds[0]:,.0f} documents and {speeds[1]:,.0f} tokens a second)"
            )

        if before[0]:
            on_progress(f"going on after {before[0]:,} documents that were scored before")
        for window in windows(rows, lambda row: len(row.text)):
            done = self._scored(window)
            if self.limits.keep_quantile is not None:
                ranks.extend(_ranks(done))
            self._write(done, drafts, counts)
            for row in window:
                digest.update(row.text)
            counts.read, counts.sizes = digest.hexdigest(), tuple(draft.size for draft in drafts)
            self._count(counts)
            pace(how_far)
        if not counts.documents:
            raise DataError(f"{reading.source} holds no documents; give another source")
        self._finish(drafts, counts, ranks)
        if (sentence := reading.sentence()) is not None:
            on_progress(sentence)
        on_progress(how_far())
        return counts

    def _rows(self, reading: Reading) -> Iterator[Row]:
        for record, where in read_records(self.sources, reading, self.text_field or "text"):
            text = record_text(record, where, self.text_field)
            assert isinstance(record, dict)
            if clash := next((name for name in self.added.names if name in record), None):
                raise DataError(
                    f"{where} has a field {clash!r} of its own, which the figure of that name would replace; "
                    "rename it, or take it out"
                )
            yield Row(text, record)

    def _scored(self, window: list[Row]) -> Rows:
        """The rows of a window with their figures."""
        texts = [row.text for row in window]
        scored, *others = self.scorer.scored_with([*self.added.also.values()], texts)
        rows = [row.fields | asdict(one.score) for row, one in zip(window, scored, strict=True)]
        for name, by_other in zip(self.added.also, others, strict=True):
            for row, other in zip(rows, by_other, strict=True):
                row[bits_of(name)] = other.score.bits_per_byte
        if self.added.contrast is not None:
            for row, other in zip(rows, self.added.contrast.scored(texts), strict=True):
                pair = row["bits_per_byte"], other.score.bits_per_byte
                row[CONTRAST] = None if None in pair else round(pair[0] - pair[1], DIGITS)
        if self.added.tokens or self.added.words:
            for row, one in zip(rows, scored, strict=True):
                row |= self._parts(one)
        return rows

    def _parts(self, scored: ScoredText) -> dict[str, Any]:
        tokens = self.scorer.tokens_of(scored)
        parts = {
            TOKEN_SCORES: tokens if self.added.tokens else None,
            WORD_SCORES: words_of(scored.text, tokens) if self.added.words else None,
        }
        return {name: [asdict(one) for one in own] for name, own in parts.items() if own is not None}

    def _write(self, rows: Rows, drafts: list[Draft], counts: Counts) -> None:
        """Append rows to the output or the rejected, and count them. What a quantile keeps is known later."""
        waits = self.limits.keep_quantile is not None
        passed = [row for row in rows if waits or self.limits.keeps(row)]
        if self.output is not None:
            drafts[0].append(passed)
        else:
            assert self.stream is not None
            self.stream.write(JsonLines().encode(passed))
            self.stream.flush()
        if self.rejected is not None and not waits:
            drafts[-1].append([row for row in rows if not self.limits.keeps(row)])
        counts.documents += len(rows)
        counts.passed += len(passed)
        counts.tokens += sum(row["tokens"] for row in rows)
        counts.nll_nats += sum(row["tokens"] * (row["nll_nats"] or 0) for row in rows)

    def _finish(self, drafts: list[Draft], counts: Counts, ranks: "array[float]") -> None:
        """Put the files where they belong."""
        if self.limits.keep_quantile is not None:
            highest = float(np.quantile(ranks, self.limits.keep_quantile, method="lower")) if ranks else 0.0
            scored, *rejected = drafts
            passing = Draft(scored.path, scored.form, ".kept")
            drafts = [passing, *rejected]
            for draft in drafts:
                draft.go_on(0)
            counts.passed = 0
            for rows in scored.rows():
                passed = [row for row in rows if self.limits.keeps(row, highest)]
                counts.passed += len(passed)
                passing.append(passed)
                for draft in rejected:
                    draft.append([row for row in rows if not self.limits.keeps(row, highest)])
        for draft in reversed(drafts):  # the output last: where it is, all is finished
            draft.finish()
        if self.output is not None:
            if self.limits.keep_quantile is not None:
                scored.place.unlink()
            _counts_beside(self.output).unlink()

    def _begun(self, drafts: list[Draft]) -> Counts:
        """What an earlier run of the same job finished; its drafts are opened behind that.

        One that was made a file already is taken out of `drafts`.
        """
        job = fingerprint(
            "scoring",
            self.scorer.fingerprint,
            self.added.contrast.fingerprint if self.added.contrast else None,
            asdict(self.limits),
            {name: other.fingerprint for name, other in self.added.also.items()},
            {"fields": self.added.names, "text": self.text_field, "sources": [*self.sources]},
            str(self.rejected),
        )
        counts = Counts(job=job)
        going_on = self.output is not None and drafts[0].place.exists()
        for draft in drafts:
            if draft.path.exists() and (draft.path == self.output or not going_on):
                raise RunDirError(f"{draft.path} is there already; remove it, or give another file")
        if going_on:
            assert self.output is not None
            drafts[:] = [draft for draft in drafts if draft.place.exists() or not draft.path.exists()]
            try:
                counts = Counts.model_validate_json(_counts_beside(self.output).read_bytes())
            except (FileNotFoundError, ValidationError):
                counts = Counts(job="")
            sizes = [draft.place.stat().st_size if draft.place.exists() else -1 for draft in drafts]
            if counts.job != job or any(a < b for a, b in zip(sizes, counts.sizes, strict=False)):
                raise RunDirError(
                    f"{drafts[0].place} was begun by another command, or with another model; give that one "
                    "again to go on, or remove the file"
                )
        for number, draft in enumerate(drafts):
            draft.go_on(counts.sizes[number] if counts.sizes else 0)
        self._count(counts)
        return counts

    def _count(self, counts: Counts) -> None:
        """Write down what is finished."""
        if self.output is not None:
            with atomic_write(_counts_beside(self.output)) as draft:
                draft.write_text(counts.model_dump_json(), "utf-8")

    def _pass_over(self, rows: Iterator[Row], counts: Counts, digest: Fingerprint) -> None:
        """Read what was scored before. Raises DataError where it is not what it was."""
        for _ in range(counts.documents):
            if (row := next(rows, None)) is not None:
                digest.update(row.text)
        if counts.documents and digest.hexdigest() != counts.read:
            raise DataError(
                f"the first {counts.documents:,} documents are no longer those that were scored before; put "
                f"them back, or remove {self.output}.partial to begin anew"
            )


def _ranks(rows: Rows) -> Iterator[float]:
    return (rank for row in rows if (rank := _rank(row)) is not None)


def _counts_beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.progress")


def _rank(row: dict[str, Any]) -> float | None:
    """By what documents are ordered for a quantile."""
    rank: float | None = row.get(CONTRAST, row["perplexity"])
    return rank
