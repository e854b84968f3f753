"""The audit of a run directory or of one model folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tandem.advice import written_settings
from tandem.audit.baselines import NGRAMS, baseline_checks, consistency_check, refit_check, unchecked
from tandem.audit.behaviour import behaviour_checks
from tandem.audit.contexts import context_checks
from tandem.audit.data import baseline_gaps, data_checks
from tandem.audit.figures import counts_check, figure_checks
from tandem.audit.history import history_check
from tandem.audit.inputs import AuditInputs, measured_by
from tandem.audit.measures import measure_checks
from tandem.audit.peers import NETWORKS
from tandem.audit.replay import step_checks
from tandem.audit.report import report_check
from tandem.audit.resuming import AuditCheckpoint
from tandem.audit.siblings import sibling_checks
from tandem.audit.subject import ComputedContexts, Subject
from tandem.audit.weights import weight_checks
from tandem.baselines import BASELINES
from tandem.decoding import read_text
from tandem.errors import DataError, RunDirError, SettingsError, TandemError, storage_reason
from tandem.experiment.artefacts import model_record
from tandem.experiment.machine import choose_device, code_fingerprint, keep_freed_memory
from tandem.experiment.run_dir import check_writable
from tandem.fingerprint import fingerprint
from tandem.folders import check_reading
from tandem.model_folder.loading import load_model, model_settings
from tandem.records import AuditRecord, Check, RunAudit, RunRecord, read_manifest, read_records, write_audit
from tandem.records.audit import Status
from tandem.settings import Settings, read_yaml, settings_fingerprint
from tandem.text.places import counted_from
from tandem.text.recorded import as_it_was, changed, folder_of, read_recorded, whereabouts
from tandem.tokens.embeddings import MADE_HERE, pretrained
from tandem.tokens.prepare import default_cache_dir, prepare_corpus
from tandem.tokens.tokenizer import load_tokenizer, plain, tokenizer_fingerprint

OnProgress = Callable[[str], None]
CONFIG = (
    *("vocab_size", "embed_dim", "context_dim", "context_layers", "token_layers", "cell"),
    *("token_projection", "output_bias"),
    "boundary",
    *("layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""What config.json says of a model that changes what it computes."""
SAVED_MODEL = "the saved model"


def audit(path: Path, on_progress: OnProgress = lambda _: None, quick: bool = False) -> AuditRecord:
    """Audit a run directory, or a model folder; the result is also written to its audit.json.

    With `quick`, of a run directory only the first seed of each configuration and baseline is recomputed.
    The second reader of the text, `ranks`, `memory`, `heads`, the scores of single epochs and the scanned
    half of `causality` are left out.

    Raises RunDirError for a folder that is neither, that has nothing to audit or cannot be written to;
    DataError where the text is no longer there, or no longer what the runs were trained on.
    """
    found = check_reading(path, "run directory", "model folder")
    with written_settings():
        if found.kind == "model folder":
            record = audit_model(path, on_progress)
        else:
            record = audit_run_dir(path, on_progress, quick)
    try:
        write_audit(path, record)
    except OSError as error:
        raise RunDirError(
            f"cannot write {path / 'audit.json'} ({storage_reason(error)}); make room or mend the place, and "
            "audit again"
        ) from None
    return record


def audit_run_dir(
    run_dir: Path, on_progress: OnProgress = lambda _: None, quick: bool = False
) -> AuditRecord:
    """Every check of every finished run of an experiment. Arguments and errors as of `audit`."""
    manifest = read_manifest(run_dir)
    if manifest is None:
        raise RunDirError(
            f"{run_dir} has records but no manifest.json, so nothing says what they should be; restore it"
        )
    every = read_records(run_dir, on_progress)
    records = [record for record in every if record.status == "finished"]
    if not records:
        raise RunDirError(f"{run_dir} has no finished run to audit; run the experiment first")
    variants, of_data = _prepare(Settings(**manifest.settings), records, run_dir, on_progress, quick)
    reference = measured_by(variants.values())
    gaps = baseline_gaps(reference, records)
    shared = [_settings_check(manifest.settings, records), *of_data]
    shared += _guarded(sibling_checks(run_dir, manifest, every), "siblings")
    shared += _guarded((report_check(*given) for given in [(every, manifest)]), "report")
    runs = _Runs(manifest.settings, tuple(records), variants, reference, gaps, quick)
    audits = [RunAudit(run=None, finished_at=None, checks=tuple(shared))]
    whole = [code_fingerprint(), str(quick), *(one.model_dump_json() for one in (manifest, *records))]
    checkpoint = AuditCheckpoint(run_dir, *whole)
    for record in records:
        on_progress(f"auditing {record.run}")
        if record.is_tandem and record.variant not in variants:
            raise RunDirError(
                f"the settings in {run_dir} have no variant '{record.variant}', with which {record.run} "
                "was made; give the settings file that has it, or take the record out"
            )
        folder = run_dir / "models" / record.run
        audits.append(checkpoint.of_run(record.run, folder, partial(runs.audit, record, folder)))
    checkpoint.remove()
    return _record(audits)


def audit_model(folder: Path, on_progress: OnProgress = lambda _: None) -> AuditRecord:
    """Every check of one trained model, from its folder alone. Raises as `audit` does."""
    try:
        path = folder / "settings.yaml"
        written = read_yaml(read_text(path), path.name) if path.is_file() else None
    except (OSError, DataError, SettingsError):
        written = None
    record = model_record(folder)
    settings = model_settings(folder) if isinstance(written, dict) else None
    if record is None or settings is None or written is None:
        raise RunDirError(
            f"{folder} has no readable record.json and settings.yaml, so there is nothing to audit its "
            "figures against; give the folder that `tandem train` wrote, or train the model again"
        )
    model, _ = load_model(folder)  # one that cannot be read is no finding, but a wrong folder
    if model.config.int8:
        raise RunDirError(
            f"{folder} holds a copy with weights of 8 bits, whose figures are not those of its record; audit "
            "the folder that it was made from"
        )
    variants, of_data = _prepare(settings, [record], folder, on_progress)
    prepared = variants[None]
    on_progress(f"auditing {record.run}")
    shared = (_settings_check(written, [record]), *of_data)
    runs = _Runs(written, (record,), {record.variant: prepared}, prepared, baseline_gaps(prepared, ()))
    data = RunAudit(run=None, finished_at=None, checks=shared)
    return _record([data, runs.audit(record, folder)])


def _prepare(
    settings: Settings,
    records: Sequence[RunRecord],
    folder: Path,
    on_progress: OnProgress,
    quick: bool = False,
) -> tuple[dict[str | None, AuditInputs], tuple[Check, ...]]:
    """Text, tokens and embeddings again, by variant, with the checks of them.

    Raises DataError where one of them is another one.
    Each is compared with the records as soon as it is read, since all that follows depends on it.
    """
    check_writable(folder)  # said before the work, not after
    settings = _on_a_device_here(settings)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # numbers below 1e-38 take some processors many times longer
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    latest, data, tokenizer = records[-1], settings.data, settings.tokenizer.source
    ours = (record for record in records if record.kind == "tandem")
    of_variants = {record.variant: record for record in ours if record.variant in settings.variant_names}
    embeddings = {name: settings.with_variant(name).embeddings.source for name in of_variants}
    sources = [data.train, data.validation or data.train, tokenizer, *embeddings.values()]
    with counted_from(folder_of(latest.folder, sources, folder)):
        on_progress(f"reading {whereabouts(data.train, data.validation)}")
        splits = read_recorded(
            data, latest.data.text_fingerprint, latest.run, default_cache_dir(), on_progress
        )
        if tokenizer != "bpe":
            with as_it_was("tokenizer", latest.run, tokenizer):
                found = tokenizer_fingerprint(load_tokenizer(tokenizer)[0])
            if found != latest.data.tokenizer_fingerprint:
                raise changed("tokenizer", latest.run, tokenizer)
        for name, record in of_variants.items():
            if (source := embeddings[name]) not in MADE_HERE:
                _check_embeddings(source, record)
        corpus = prepare_corpus(data, settings.tokenizer, default_cache_dir(), on_progress, splits)
        device = choose_device(settings.device)
        named = {name: settings.with_variant(name) for name in settings.variant_names}
        variants = {name: AuditInputs.of(one, corpus, device) for name, one in named.items()}
        return variants, _guarded(data_checks(variants, splits, quick), "data")


def _on_a_device_here(settings: Settings) -> Settings:
    """The settings, with any device where the runs' own is not here."""
    try:
        choose_device(settings.device)
    except SettingsError:
        return settings.model_copy(update={"device": "auto"})
    return settings


def _check_embeddings(source: str, record: RunRecord) -> None:
    """DataError where the embedding in a file, folder or the hub is no longer what a run began with."""
    assert record.embed_dim is not None
    with as_it_was("embedding", record.run, source):
        table = pretrained(source, record.data.vocab_size, record.embed_dim)
    if fingerprint("embeddings", table) != record.data.embeddings_fingerprint:
        raise changed("embedding", record.run, source)


def _settings_check(written: Mapping[str, Any], records: Sequence[RunRecord]) -> Check:
    """`settings`: whether those that were written down are those that the runs name."""
    found = settings_fingerprint(written)
    # The settings of a variant are worked out from those written down.
    names = {record.variant for record in records if record.variant is not None}
    names |= set(written.get("variants") or ())  # of those that failed too: baselines may have their sizes
    variants = {name: settings_fingerprint(_variant_as_written(written, name)) for name in names}
    # A baseline is given the sizes of one of them.
    anyone = {found, *variants.values()}
    others = [
        record.run
        for record in records
        if record.settings_fingerprint not in ({variants[record.variant]} if record.variant else anyone)
    ]
    figure = f"fingerprint {found}"
    return Check(
        name="settings",
        looked_at="the settings as they are written down, against the fingerprint in every record",
        figure=f"{figure}, or its variant's, which {', '.join(others)} do not have" if others else figure,
        status="fail" if others else "pass",
    )


def _variant_as_written(written: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The settings of a variant, without those that came into Tandem after they were written down."""
    changes = (written.get("variants") or {}).get(variant)
    if changes is None:  # a model folder has the settings of its variant
        return dict(written)
    values = Settings(**written).with_variant(variant).model_dump(mode="json")
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(written.get(key), Mapping):
            there = {*written[key], *(changes.get(key) or {})}
            values[key] = {name: inner for name, inner in value.items() if name in there}
    return {key: value for key, value in values.items() if key in written or key in changes}


@dataclass(frozen=True)
class _Runs:
    """The runs of an experiment, and what their checks share.

    written      the settings as they are written down.
    variants     what the runs of each variant started from; `reference`, what baselines are measured by.
    gaps         of each baseline, in nats.
    quick        whether only the first seed of each configuration is recomputed.
    """

    written: Mapping[str, Any]
    records: tuple[RunRecord, ...]
    variants: Mapping[str | None, AuditInputs]
    reference: AuditInputs
    gaps: dict[str, float]
    quick: bool = False
    contexts: ComputedContexts = field(default_factory=ComputedContexts)

    def audit(self, record: RunRecord, folder: Path) -> RunAudit:
        """Every check of one of them, whose model is in `folder`."""
        given = (self.written, record, self.records)
        history = _guarded((history_check(*each) for each in [given]), "history")
        checks = (*self._checks(record, folder), *history)
        return RunAudit(run=record.run, finished_at=record.finished_at, checks=checks)

    def _checks(self, record: RunRecord, folder: Path) -> tuple[Check, ...]:
        prepared = self.variants[record.variant] if record.is_tandem else self.reference
        first = next(one.run for one in self.records if one.configuration == record.configuration)
        if self.quick and record.run != first:
            return _record_checks(
                prepared, record, f"not checked: a quick audit recomputes {first} only", "skip"
            )
        if not record.is_tandem:
            return _baseline_checks(prepared, record, folder)
        if not folder.is_dir():
            wanted = prepared.settings.save_models
            return _record_checks(prepared, record, "no model is kept", "warn" if wanted else "skip")
        try:
            subject = Subject.load(prepared, record, self.records, folder, self.contexts, self.quick)
        except TandemError as error:
            return (Check(name="model", looked_at=SAVED_MODEL, figure=str(error), status="fail"),)
        if subject.saved_again is not None:
            return _record_checks(prepared, record, subject.saved_again, "warn")
        return (
            _saved_check(subject),
            *_guarded(weight_checks(subject), "weights"),
            *_guarded(step_checks(subject), "steps"),
            *_guarded(behaviour_checks(subject), "behaviour"),
            *_guarded(context_checks(subject), "contexts"),
            *_guarded(_measures(subject), "measures"),
            *_guarded(figure_checks(subject, self.gaps), "figures"),
        )


def _baseline_checks(prepared: AuditInputs, record: RunRecord, folder: Path) -> tuple[Check, ...]:
    """Of a model of another kind; one that another package brings is fitted again, where it can be."""
    counts = counts_check(prepared, record)
    if record.kind in (*NETWORKS, *NGRAMS):
        ours = baseline_checks(prepared.settings, prepared.corpus, prepared.device, record, folder)
        return (counts, *_guarded(ours, record.kind))
    baseline, inputs = BASELINES[record.kind], prepared.for_baseline(record.seed)
    fitted = baseline.refit(inputs, record)
    figures = (
        (
            unchecked("model", SAVED_MODEL, f"the audit has no code of its own for {record.kind}"),
            consistency_check(record),
        )
        if fitted is None
        else (refit_check(fitted.score, prepared.corpus.validation, record),)
    )
    return (counts, *figures, *_guarded(iter(baseline.checks(inputs, record)), record.kind))


def _record_checks(prepared: AuditInputs, record: RunRecord, why: str, status: Status) -> tuple[Check, ...]:
    """Of a run whose figures cannot be recomputed from a model, and `why`."""
    return (
        Check(
            name="model",
            looked_at=SAVED_MODEL,
            figure=f"{why}, so its figures were not recomputed",
            status=status,
        ),
        counts_check(prepared, record),
        consistency_check(record),
    )


def _measures(subject: Subject) -> Iterator[Check]:
    """Made once for the runs that share phase 1 and contexts."""
    yield from subject.contexts.checks(subject, "measures", measure_checks)


def _saved_check(subject: Subject) -> Check:
    """`model`: whether configuration, tokenizer and record in the model's folder are the run's own."""
    corpus, model = subject.prepared.corpus, subject.model
    wrong = []
    ours, theirs = (tokenizer_fingerprint(plain(one)) for one in (subject.tokenizer, corpus.tokenizer))
    if ours != theirs:
        wrong.append("its tokenizer is not the one it was trained with")
    wanted = subject.prepared.config(subject.depths).to_dict()
    said = model.config.to_dict()
    wrong += [
        f"{name} is {said.get(name)} instead of {wanted[name]}"
        for name in CONFIG
        if said.get(name) != wanted[name]
    ]
    saved = model_record(subject.folder)
    if saved is None:
        wrong.append("it has no readable record.json")
    elif saved != subject.record:
        wrong.append("its record.json is not the record of the run")
    return Check(
        name="model",
        looked_at="configuration, tokenizer and record in the model's folder, against the run's",
        figure="; ".join(wrong) or "the run's own",
        status="fail" if wrong else "pass",
    )


def _guarded(checks: Iterator[Check], what: str) -> tuple[Check, ...]:
    """The checks; one that cannot even be computed has failed, and says how."""
    done: list[Check] = []
    try:
        for check in checks:
            done.append(check)
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        TandemError,
    ) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        done.append(
            Check(name=what, looked_at="whether the check can be computed", figure=reason, status="fail")
        )
    return tuple(done)


def _record(audits: Sequence[RunAudit]) -> AuditRecord:
    return AuditRecord(
        audited_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_fingerprint=code_fingerprint(),
        runs=tuple(audits),
    )


def failures(record: AuditRecord) -> Iterable[str]:
    """One line for each check that failed, its runs named."""
    found: dict[str, list[str]] = {}
    for run, check in record.failed():
        found.setdefault(check.name, []).append(run or "the data")
    for name, runs in found.items():
        yield f"{name} ({', '.join(runs)})"
