"""The runs of one experiment against each other: what should differ and does not, and what should not."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tandem.audit.history import variant_settings
from tandem.records import MADE_AGAIN, Check, Manifest, RunRecord, records_path
from tandem.settings import Settings, settings_fingerprint

MAY_NOT_MATTER = (
    *("chunk_positions", "sample_positions", "max_grad_norm", "patience"),
    *("max_iterations", "convergence_stop", "convergence_mse"),
)
"""Settings of the phases that can be others and change no figure: they bound memory, steps or time."""
SHOWN = 6
"""Findings of one check that are told one by one."""
BASELINES: dict[str, Callable[[Settings], list[str]]] = {
    "kneser-ney": lambda settings: [f"KN-{settings.baselines.order}"],
    "lstm": lambda settings: [f"LSTM-seed{seed}" for seed in settings.seeds],
    "awd-lstm": lambda settings: [f"AWD-LSTM-seed{seed}" for seed in settings.seeds],
    "gpt2": lambda settings: [f"GPT-2-seed{seed}" for seed in settings.seeds],
    "transformer": lambda settings: [f"Transformer-seed{seed}" for seed in settings.seeds],
    "bigram": lambda _: ["bigram"],
    "unigram": lambda _: ["unigram"],
}
"""Names of the runs of a baseline."""


def sibling_checks(run_dir: Path, manifest: Manifest, records: Sequence[RunRecord]) -> Iterator[Check]:
    """`siblings`, `variants` and `runs` of all records of a run directory, failed ones included."""
    written = manifest.settings
    finished = [record for record in records if record.status == "finished"]
    settings = {name: variant_settings(written, name) for name in (None, *_variants(written))}
    alike = [*_alike(finished, settings), *_shared(finished, settings[None])]
    doubts = [*_mixed(finished), *_unshared(finished)]
    yield _check("siblings", "runs that differ in seed or settings, figure by figure", alike, doubts)
    unlike = [*_unlike(records, settings), *_in_another_precision(finished, manifest)]
    yield _check("variants", "the settings of every variant, in its records", unlike)
    yield _check(
        "runs",
        "runs that the settings plan, against those that are recorded",
        _twice(run_dir, finished),
        _unmade(manifest, settings, records),
    )


def _check(name: str, looked_at: str, wrong: Iterable[str], doubts: Iterable[str] = ()) -> Check:
    wrong, doubts = list(wrong), list(doubts)
    said = [*wrong, *doubts]
    more = [f"and {len(said) - SHOWN} more"] if len(said) > SHOWN else []
    return Check(
        name=name,
        looked_at=looked_at,
        figure="; ".join([*said[:SHOWN], *more]) or "as it should be",
        status="fail" if wrong else "warn" if doubts else "pass",
    )


def _variants(written: Mapping[str, Any]) -> list[str | None]:
    return list(written.get("variants") or {})


# What should differ


def _alike(finished: Sequence[RunRecord], settings: Mapping[str | None, Settings]) -> Iterator[str]:
    """Pairs of runs with a figure in common to the last digit, though something tells them apart."""
    for what, of in (
        ("validation NLL", lambda r: r.validation and r.validation.nll_nats),
        ("phase-1 weights", _weights),
        ("first epoch", _first_epoch),
    ):
        groups: dict[object, list[RunRecord]] = {}
        for record in finished:
            if (figure := of(record)) is not None:
                groups.setdefault(figure, []).append(record)
        for a, b in (pair for group in groups.values() for pair in combinations(group, 2)):
            # Runs that ended with epoch 0 have the figures of their phase 1.
            untouched = all(r.phase2 is not None and r.phase2.best_epoch == 0 for r in (a, b))
            start = what == "phase-1 weights" or (what == "validation NLL" and untouched)
            if (reason := _apart(a, b, settings, start)) is not None:
                yield f"{a.run} and {b.run} have the same {what} to the last digit: {reason}"


def _weights(record: RunRecord) -> object:
    parts = record.phase1.parts if record.phase1 else ()
    return tuple((part.part, part.after) for part in parts if part.trained) or None


def _first_epoch(record: RunRecord) -> object:
    history = record.trained.history if record.trained else ()
    return next(((e.train_nll_nats, e.validation_nll_nats) for e in history if e.epoch > 0), None)


def _apart(a: RunRecord, b: RunRecord, settings: Mapping[str | None, Settings], start: bool) -> str | None:
    """What tells two runs apart and reached nothing; None where they may be alike.

    With `start` their figures are those of phase 1, which the depth of the TokenBlock and phase 2 do not
    change.
    """
    if a.seed is None or b.seed is None:
        return None  # nothing is drawn: a bigram is a Kneser-Ney model of order 2
    for what, of in (
        ("the kind of model", lambda r: r.kind),
        ("the depth", lambda r: (r.context_layers, None if start else r.token_layers)),
        ("the seed", lambda r: r.seed),
    ):
        if of(a) != of(b):
            return f"{what} reached nothing"
    ours, theirs = (_mattering(r, settings[r.variant], start) for r in (a, b))
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return f"{', '.join(names[:3])} reached nothing" if names else None


def _mattering(record: RunRecord, settings: Settings, start: bool) -> dict[str, Any]:
    """Settings that change the figures of a run, by dotted name; with `start` those before phase 2 alone."""
    if not record.is_tandem:
        return {}
    control, tokens = record.kind != "tandem", record.data.train_tokens
    phase1 = {"original": "phase1", "predictive": "prediction"}.get(settings.recipe)
    values = settings.model_dump(mode="json")
    found: dict[str, Any] = {
        f"{section}.{name}": value
        for section in ("embeddings", "model", "" if control else phase1, "" if start else "phase2")
        if section
        for name, value in values[section].items()
        if name not in MAY_NOT_MATTER
    }
    of_source = {"spectral": (), "random": ("window",)}.get(settings.embeddings.source, ("window", "norm"))
    unread = [f"embeddings.{name}" for name in of_source]
    if record.data.train_documents == record.data.validation_documents == 1:
        unread.append("model.boundary")
    if settings.phase2.schedule == "constant":
        unread.append("phase2.max_epochs")
    if start:
        unread.append("embeddings.trained")  # phase 2 trains them, if any
    if control:
        unread.append("phase2.start")  # it has no head to start from
    else:
        found["recipe"] = settings.recipe
    for name in unread:
        found.pop(name, None)
    # What a text or a vocabulary of this size makes of them.
    for name, value in found.items():
        if name.endswith(".negatives"):
            found[name] = None if value is None or 2 * value >= record.data.vocab_size else value
        elif name.endswith(("tokens_per_step", ".batch_positions", ".streams", ".window")):
            found[name] = min(value or tokens, tokens)
        elif name.endswith("head_layers"):
            found[name] = sorted(set(value))
    return found


# What should not differ


def _sharing(finished: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs of one variant, context depth and seed, which share a phase 1."""
    groups: dict[object, list[RunRecord]] = {}
    for r in finished:
        if r.is_tandem:
            groups.setdefault((r.kind, r.variant, r.context_layers, r.seed), []).append(r)
    return list(groups.values())


def _shared(finished: Sequence[RunRecord], settings: Settings) -> Iterator[str]:
    """The time of a phase 1 is counted by one of the runs that share it."""
    for group in _sharing(finished):
        counted = [r.run for r in group if r.phase1_computed_here]
        there = {(r.context_layers, r.token_layers) for r in group}
        planned = {depths for depths in settings.configurations if depths[0] == group[0].context_layers}
        if len(counted) > 1:
            yield f"{' and '.join(counted)} each count the time of the phase 1 that they share"
        elif not counted and group[0].kind == "tandem" and planned <= there:
            yield f"nobody counts the time of the phase 1 of {' and '.join(r.run for r in group)}"


def _unshared(finished: Sequence[RunRecord]) -> Iterator[str]:
    """A phase 1 that was trained again, on another processor, say."""
    for group in _sharing(finished):
        if len({_weights(r) for r in group}) > 1:
            yield f"{' and '.join(r.run for r in group)} share a phase 1, and its weights differ"


def _mixed(finished: Sequence[RunRecord]) -> Iterator[str]:
    """Runs that other code made, other libraries, or in another precision."""
    for what, name in (("code", "code_fingerprint"), ("torch", "torch"), ("precision", "precision")):
        by: dict[str, list[str]] = {}
        for r in finished:
            if r.seed is not None or name != "precision":
                by.setdefault(getattr(r.environment, name), []).append(r.run)
        if len(by) > 1:
            shown = "; ".join(f"{value}: {', '.join(runs)}" for value, runs in by.items())
            yield f"runs were made with different {what} ({shown})"


def _unlike(records: Sequence[RunRecord], settings: Mapping[str | None, Settings]) -> Iterator[str]:
    """Records that do not show the settings of their variant; variants that share a fingerprint."""
    for r in records:
        if not r.is_tandem:
            continue
        if (own := settings.get(r.variant)) is None:
            yield f"{r.run} is of a variant '{r.variant}' that the settings do not have"
            continue
        for name, said, right in (
            ("embed_dim", r.embed_dim, own.model.embed_dim),
            ("context_dim", r.context_dim, own.model.context_dim),
            ("recipe", r.recipe, own.recipe),
            ("embeddings.source", r.data.embeddings, own.embeddings.source),
            ("embeddings.trained", r.data.embeddings_trained, own.embeddings.trained),
        ):
            if said != right:
                yield f"{r.run} has {name} {said}, the settings of its variant say {right}"
    said_by = {r.variant: r.settings_fingerprint for r in records if r.is_tandem and r.variant in settings}
    for a, b in combinations(said_by, 2):
        same = settings_fingerprint(settings[a].model_dump(mode="json")) == settings_fingerprint(
            settings[b].model_dump(mode="json")
        )
        if said_by[a] == said_by[b] and not same:
            yield f"variants {a} and {b} differ in their settings, and their runs name the same ones"


def _in_another_precision(finished: Sequence[RunRecord], manifest: Manifest) -> Iterator[str]:
    """Runs that did not train in the precision of the experiment."""
    for r in finished:
        if r.seed is not None and manifest.precision not in (None, said := r.environment.precision):
            yield f"{r.run} was trained in {said}, and the experiment is in {manifest.precision}"


# Planned and recorded


def _planned(settings: Mapping[str | None, Settings], written: Mapping[str, Any]) -> Iterator[str]:
    """Names of all runs that the settings plan; of baselines that Tandem does not bring, none."""
    common = settings[None]
    for name in _variants(written) or [None]:
        label = "" if name is None else f"{name}-"
        depths = [f"{label}C{context}T{token}" for context, token in common.configurations]
        if "untrained" in common.baselines.models:
            controls = common.baselines.untrained or common.configurations[:1]
            depths += [f"{label}C{context}T{token}-untrained" for context, token in controls]
        for seed in common.seeds:
            yield from (f"{one}-seed{seed}" for one in depths)
    for kind in common.baselines.models:
        yield from BASELINES[kind](common) if kind in BASELINES else ()


def _unmade(
    manifest: Manifest, settings: Mapping[str | None, Settings], records: Sequence[RunRecord]
) -> Iterator[str]:
    """Planned runs without a finished record, and runs that nothing planned."""
    recorded = {r.run: r.status for r in records}
    planned = list(_planned(settings, manifest.settings))
    for what, runs in (
        ("were not made", [run for run in planned if run not in recorded]),
        ("failed", [run for run in planned if recorded.get(run) == "failed"]),
    ):
        if runs:
            yield f"of {len(planned)} planned runs {len(runs)} {what}: {', '.join(runs)}"
    known = {*planned, *manifest.baselines}
    known |= {f"{name}-seed{seed}" for name in manifest.configurations for seed in manifest.seeds}
    if others := [run for run in recorded if run not in known]:
        yield f"no settings plan these runs: {', '.join(others)}"


def _twice(run_dir: Path, finished: Sequence[RunRecord]) -> Iterator[str]:
    """Runs with several finished records of the same settings, or under two names."""
    lines = map(json.loads, records_path(run_dir).read_bytes().split(b"\n")[:-1])
    counts = Counter[tuple[str, ...]]()
    for line in lines:
        key = (line["run"], line["settings_fingerprint"], line.get("baseline_fingerprint"))
        if line["status"] == "finished":
            counts[key] += 1
        elif (line["failure"] or "").startswith(MADE_AGAIN):
            counts[key] -= 1
    for (run, *_), count in counts.items():
        if count > 1:
            yield f"{run} was recorded as finished {count} times"
    places = Counter((r.kind, r.variant, r.configuration, r.seed) for r in finished)
    for (_, _, configuration, seed), count in places.items():
        if count > 1:
            yield f"{configuration} with seed {seed} is recorded under {count} names"
