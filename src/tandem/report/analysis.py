"""From saved records to every figure the report shows: no words here, and nothing that is not recorded."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from tandem.records import AuditRecord, BaselineKind, Manifest, Phase1Record, RunRecord
from tandem.report.compare import compare_configurations, compare_depths, compare_with_baselines
from tandem.report.results import Analysis, DepthResult, ModelResult, ScanResult
from tandem.report.statistics import spread
from tandem.report.trust import judge

Item = TypeVar("Item", bound=Hashable)
BASELINE_ORDER: tuple[BaselineKind, ...] = ("kneser-ney", "lstm", "gpt2", "untrained", "bigram", "unigram")


def analyse(
    records: Sequence[RunRecord], manifest: Manifest | None, audit: AuditRecord | None = None
) -> Analysis:
    """Analyse the records of one experiment. Partial, failed and single runs are all allowed."""
    records = sorted(records, key=_place)
    tandem = [r for r in records if r.kind == "tandem"]
    configurations = tuple(_models(tandem))
    own_settings, left_out = _by_newest_settings([r for r in records if r.kind != "tandem"])
    baselines = tuple(_models(own_settings))
    depths = tuple(
        _depth(layers, [r for r in tandem if r.context_layers == layers])
        for layers in sorted({r.context_layers for r in tandem if r.context_layers is not None})
    )
    present = {(r.configuration, r.seed) for r in records}
    recorded = {r.run for r in records}
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
        baselines=baselines,
        depths=depths,
        scans=tuple(_scans(tandem)),
        comparisons=compare_configurations(configurations) if comparable else (),
        baseline_comparisons=compare_with_baselines(baselines, configurations) if comparable else (),
        depth_comparisons=tuple(compare_depths(depths)) if comparable else (),
        failed=tuple(r for r in records if r.status == "failed"),
        left_out=tuple(r for r in left_out if r.status == "finished"),
        missing=tuple(run for run in planned if run not in present),
        missing_baselines=tuple(run for run in manifest.baselines if run not in recorded) if manifest else (),
        trust=judge(audit, records),
        seeds=tuple(sorted({r.seed for r in records if r.seed is not None})),
        seconds_spent=math.fsum(r.seconds_spent_s for r in records),
        seconds_alone=math.fsum(r.seconds_alone_s for r in records),
        finished_at=max(r.finished_at for r in records),
    )


def _place(record: RunRecord) -> tuple[int, int, int, str, int]:
    """Where a record stands: configurations by depth, then baselines by kind, then seeds."""
    kind = 0 if record.kind == "tandem" else 1 + BASELINE_ORDER.index(record.kind)
    seed = -1 if record.seed is None else record.seed
    return (kind, record.token_layers or 0, record.context_layers or 0, record.configuration, seed)


def _by_newest_settings(baselines: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Records with the settings of the newest one of the same label, finished or not; and all others.

    A resume with other settings makes a baseline's runs again; until it is through, both kinds are there.
    """
    newest = {r.configuration: r.baseline_fingerprint for r in sorted(baselines, key=lambda r: r.finished_at)}
    kept = [r for r in baselines if r.baseline_fingerprint == newest[r.configuration]]
    return kept, [r for r in baselines if r.baseline_fingerprint != newest[r.configuration]]


def _models(records: Sequence[RunRecord]) -> Iterator[ModelResult]:
    """One result for each configuration or baseline."""
    for name in _distinct(r.configuration for r in records):
        own = [r for r in records if r.configuration == name]
        yield ModelResult(
            name=name,
            kind=own[0].kind,
            context_layers=own[0].context_layers,
            token_layers=own[0].token_layers,
            parameters=next((r.parameters for r in own if r.parameters is not None), None),
            runs={r.seed: r for r in own if r.status == "finished" and r.validation is not None},
        )


def _depth(layers: int, records: Sequence[RunRecord]) -> DepthResult:
    runs: dict[int, Phase1Record] = {}
    for record in sorted(records, key=lambda r: (r.seed or 0, not r.phase1_computed_here)):
        if record.phase1 is not None and record.seed is not None:
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
    with_contexts = [
        (r.context_layers, r.contexts)
        for r in records
        if r.context_layers is not None and r.contexts is not None
    ]
    for layers in sorted({layers for layers, _ in with_contexts}):
        contexts = [c for depth, c in with_contexts if depth == layers]
        yield ScanResult(layers, "train", tuple(c.train for c in contexts))
        yield ScanResult(layers, "validation", tuple(c.validation for c in contexts))


def _distinct(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))


def _grouped(
    records: Sequence[RunRecord], key: Callable[[RunRecord], Item]
) -> tuple[tuple[Item, tuple[str, ...]], ...]:
    """Each distinct item with the runs it belongs to."""
    return tuple(
        (item, tuple(r.run for r in records if key(r) == item)) for item in _distinct(key(r) for r in records)
    )
