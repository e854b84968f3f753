"""From saved records to every figure the report shows: no words here, and nothing that is not recorded."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from tandem.baselines import BASELINES
from tandem.records import AuditRecord, Manifest, RunRecord
from tandem.report.compare import compare_configurations, compare_depths, compare_with_baselines
from tandem.report.depths import dispersion_results, memory_results, prediction_results, scan_results
from tandem.report.planned import trains_plainly
from tandem.report.results import Analysis, ModelResult
from tandem.report.trust import judge

Item = TypeVar("Item", bound=Hashable)
APART = {"embeddings": "", "embeddings_trained": False, "embeddings_fingerprint": ""}
"""What records of one experiment may differ in: variants have their own embeddings, random ones seeds too."""


def analyse(
    records: Sequence[RunRecord], manifest: Manifest | None, audit: AuditRecord | None = None
) -> Analysis:
    """Analyse the records of one experiment. Partial, failed and single runs are all allowed."""
    variants = _variants(records, manifest)
    records = sorted(records, key=lambda r: _place(r, variants))
    tandem = [r for r in records if r.kind == "tandem"]
    configurations = tuple(_models(tandem, manifest))
    own_settings, left_out = _by_newest_settings([r for r in records if r.kind != "tandem"])
    baselines = tuple(_models(own_settings, manifest))
    places = [
        (variant, layers)
        for variant in variants
        for layers in sorted(
            {r.context_layers for r in tandem if r.variant == variant and r.context_layers is not None}
        )
    ]
    depths = tuple(dispersion_results(places, tandem))
    present = {(r.configuration, r.seed) for r in records}
    recorded = {r.run for r in records}
    planned = (
        [(name, seed) for name in manifest.configurations for seed in manifest.seeds] if manifest else []
    )
    analysis = Analysis(
        experiment=manifest.name if manifest else records[0].experiment,
        records=tuple(records),
        manifest=manifest,
        environments=_grouped(records, lambda r: r.environment),
        data=_grouped(records, lambda r: r.data.model_copy(update=APART)),
        settings=tuple(_distinct((r.variant, r.settings_fingerprint) for r in records)),
        variants=tuple(variant for variant in variants if variant is not None),
        configurations=configurations,
        baselines=baselines,
        depths=depths,
        predictions=tuple(prediction_results(places, tandem)),
        scans=tuple(scan_results(places, tandem)),
        memories=tuple(memory_results(places, tandem)),
        comparisons=(),
        baseline_comparisons=(),
        depth_comparisons=(),
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
    if not analysis.comparable:
        return analysis
    return replace(
        analysis,
        comparisons=compare_configurations(configurations),
        baseline_comparisons=compare_with_baselines(baselines, configurations),
        depth_comparisons=tuple(compare_depths(depths)),
    )


def _variants(records: Sequence[RunRecord], manifest: Manifest | None) -> list[str | None]:
    """Variants of the Tandem models, as the manifest names their configurations first, else as recorded."""
    order = {name: place for place, name in enumerate(manifest.configurations)} if manifest else {}
    first: dict[str | None, int] = {}
    for record in records:
        if record.kind == "tandem":
            place = order.get(record.configuration, len(order))
            first[record.variant] = min(place, first.get(record.variant, place))
    return sorted(first, key=lambda variant: first[variant])


def _place(record: RunRecord, variants: Sequence[str | None]) -> tuple[int, int, int, int, str, int]:
    """Where a record stands: configurations by variant and depth, then baselines by kind, then seeds."""
    kind = 0 if record.kind == "tandem" else 1 + list(BASELINES).index(record.kind)
    variant = variants.index(record.variant) if record.variant in variants else len(variants)
    seed = -1 if record.seed is None else record.seed
    depths = (record.token_layers or 0, record.context_layers or 0)
    return (kind, variant, *depths, record.configuration, seed)


def _by_newest_settings(baselines: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Records with the settings of the newest one of the same label, finished or not; and all others.

    A resume with other settings makes a baseline's runs again; until it is through, both kinds are there.
    """
    newest = {r.configuration: r.baseline_fingerprint for r in sorted(baselines, key=lambda r: r.finished_at)}
    kept = [r for r in baselines if r.baseline_fingerprint == newest[r.configuration]]
    return kept, [r for r in baselines if r.baseline_fingerprint != newest[r.configuration]]


def _models(records: Sequence[RunRecord], manifest: Manifest | None) -> Iterator[ModelResult]:
    """One result for each configuration or baseline."""
    for name in _distinct(r.configuration for r in records):
        own = [r for r in records if r.configuration == name]
        trained = [r.trained for r in own if r.status == "finished" and r.trained is not None]
        # Of epoch 0, what phase 2 started from, the training figure is exact whatever the settings are.
        untouched = bool(trained) and all(training.best_epoch == 0 for training in trained)
        yield ModelResult(
            name=name,
            kind=own[0].kind,
            recipe=own[0].recipe,
            variant=own[0].variant,
            context_layers=own[0].context_layers,
            token_layers=own[0].token_layers,
            parameters=next((r.parameters for r in own if r.parameters is not None), None),
            runs={r.seed: r for r in own if r.status == "finished" and r.validation is not None},
            training_is_plain=own[0].kind != "tandem"
            or untouched
            or trains_plainly(manifest, own[0].variant),
        )


def _distinct(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))


def _grouped(
    records: Sequence[RunRecord], key: Callable[[RunRecord], Item]
) -> tuple[tuple[Item, tuple[str, ...]], ...]:
    """Each distinct item with the runs it belongs to."""
    return tuple(
        (item, tuple(r.run for r in records if key(r) == item)) for item in _distinct(key(r) for r in records)
    )
