"""From saved records to every figure the report shows: no words here, and nothing that is not recorded."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import TypeVar

from tandem.records import Manifest, Phase1Record, RunRecord
from tandem.report.results import (
    Analysis,
    Comparison,
    ConfigurationResult,
    DepthComparison,
    DepthResult,
    ScanResult,
)
from tandem.report.statistics import Verdict, holm, paired, spread, verdict

Item = TypeVar("Item", bound=Hashable)


def analyse(records: Sequence[RunRecord], manifest: Manifest | None) -> Analysis:
    """Analyse the records of one experiment. Partial, failed and single runs are all allowed."""
    records = sorted(records, key=lambda r: (r.token_layers, r.context_layers, r.seed))
    configurations = tuple(
        _configuration([r for r in records if (r.context_layers, r.token_layers) == depths])
        for depths in _distinct((r.context_layers, r.token_layers) for r in records)
    )
    depths = tuple(
        _depth(layers, [r for r in records if r.context_layers == layers])
        for layers in sorted({r.context_layers for r in records})
    )
    present = {(r.configuration, r.seed) for r in records}
    planned = (
        [(name, seed) for name in manifest.configurations for seed in manifest.seeds] if manifest else []
    )
    data = _grouped(records, lambda r: r.data.model_copy(update={"embeddings_fingerprint": ""}))
    settings = _distinct(r.settings_fingerprint for r in records)
    comparable = len(data) == len(settings) == 1
    return Analysis(
        experiment=manifest.name if manifest else records[0].experiment,
        records=tuple(records),
        manifest=manifest,
        environments=_grouped(records, lambda r: r.environment),
        data=data,
        embeddings=tuple(_distinct(r.data.embeddings_fingerprint for r in records)),
        settings=tuple(settings),
        configurations=configurations,
        depths=depths,
        scans=tuple(_scans(records)),
        comparisons=tuple(_compare_configurations(configurations)) if comparable else (),
        depth_comparisons=tuple(_compare_depths(depths)) if comparable else (),
        failed=tuple(r for r in records if r.status == "failed"),
        missing=tuple(run for run in planned if run not in present),
        seeds=tuple(sorted({r.seed for r in records})),
        seconds_spent=math.fsum(r.seconds_spent_s for r in records),
        seconds_alone=math.fsum(r.seconds_alone_s for r in records),
        finished_at=max(r.finished_at for r in records),
    )


def _configuration(records: Sequence[RunRecord]) -> ConfigurationResult:
    first = records[0]
    finished = {r.seed: r for r in records if r.status == "finished" and r.phase2 is not None}
    phase1 = [r.phase1 for r in finished.values() if r.phase1 is not None]
    phase2 = {seed: r.phase2 for seed, r in finished.items() if r.phase2 is not None}
    epochs = phase2.values()
    memory = [r.peak_memory_bytes for r in finished.values() if r.peak_memory_bytes is not None]
    return ConfigurationResult(
        name=first.configuration,
        context_layers=first.context_layers,
        token_layers=first.token_layers,
        phase2=phase2,
        parameters=next((r.parameters for r in records if r.parameters is not None), None),
        iterations=spread(p.iterations for p in phase1),
        convergence_rate=spread(p.convergence_rate for p in phase1),
        effective_rank=spread(p.effective_rank_validation for p in phase1),
        nll=spread(p.validation_nll_nats for p in epochs),
        perplexity=spread(p.validation_perplexity for p in epochs),
        train_nll=spread(p.train_nll_nats for p in epochs),
        train_perplexity=spread(p.train_perplexity for p in epochs),
        accuracy=spread(p.validation_accuracy for p in epochs),
        bits_per_byte=spread(p.validation_bits_per_byte for p in epochs),
        best_epoch=spread(p.best_epoch for p in epochs),
        phase2_seconds=spread(p.seconds_s for p in epochs),
        seconds_alone=spread(r.seconds_alone_s for r in finished.values()),
        peak_memory_bytes=max(memory, default=None),
    )


def _depth(layers: int, records: Sequence[RunRecord]) -> DepthResult:
    runs: dict[int, Phase1Record] = {}
    for record in sorted(records, key=lambda r: (r.seed, not r.phase1_computed_here)):
        if record.phase1 is not None:
            runs.setdefault(record.seed, record.phase1)
    return DepthResult(
        context_layers=layers,
        used_by=tuple(_distinct(r.configuration for r in records)),
        phase1=runs,
        iterations=spread(p.iterations for p in runs.values()),
        convergence_rate=spread(p.convergence_rate for p in runs.values()),
        effective_rank_train=spread(p.effective_rank_train for p in runs.values()),
        effective_rank_validation=spread(p.effective_rank_validation for p in runs.values()),
        seconds=spread(p.seconds_s for p in runs.values()),
    )


def _scans(records: Iterable[RunRecord]) -> Iterator[ScanResult]:
    with_contexts = [(r.context_layers, r.contexts) for r in records if r.contexts is not None]
    for layers in sorted({layers for layers, _ in with_contexts}):
        contexts = [c for depth, c in with_contexts if depth == layers]
        yield ScanResult(layers, "train", tuple(c.train for c in contexts))
        yield ScanResult(layers, "validation", tuple(c.validation for c in contexts))


def _compare_configurations(configurations: Sequence[ConfigurationResult]) -> Iterator[Comparison]:
    pairs = [(a, b) for a, b in combinations(configurations, 2) if a.phase2 and b.phase2]
    tests = [paired(a.nll_by_seed, b.nll_by_seed) for a, b in pairs]
    for (a, b), test, p in zip(pairs, tests, holm([t.p for t in tests]), strict=True):
        accuracy = paired(a.accuracy_by_seed, b.accuracy_by_seed)
        yield Comparison(a.name, b.name, test, accuracy, p, verdict(test, p))


def _compare_depths(depths: Sequence[DepthResult]) -> Iterator[DepthComparison]:
    pairs = [(a, b) for a, b in combinations(depths, 2) if a.phase1 and b.phase1]
    tests = [paired(a.iterations_by_seed, b.iterations_by_seed, resolution=1) for a, b in pairs]
    for (a, b), test, p in zip(pairs, tests, holm([t.p for t in tests]), strict=True):
        found = verdict(test, p)
        faster = {Verdict.BETTER: b, Verdict.WORSE: a}.get(found)
        if faster is not None and set(faster.at_limit) & set(test.seeds):
            found = Verdict.NO_DIFFERENCE_SHOWN
        yield DepthComparison(a.context_layers, b.context_layers, test, p, found)


def _distinct(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))


def _grouped(
    records: Sequence[RunRecord], key: Callable[[RunRecord], Item]
) -> tuple[tuple[Item, tuple[str, ...]], ...]:
    """Each distinct item with the runs it belongs to."""
    return tuple(
        (item, tuple(r.run for r in records if key(r) == item)) for item in _distinct(key(r) for r in records)
    )
