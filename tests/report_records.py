"""Made-up records for the tests of the report: sizes of the original experiment, values by the seed alone."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tandem.objectives.original import DispersionRecord, Phase1Iteration
from tandem.objectives.predictive import HeadRecord, PredictionEpoch, PredictionRecord
from tandem.records import (
    AuditRecord,
    Check,
    ContextsRecord,
    DataRecord,
    DocumentScores,
    Environment,
    Epoch,
    Manifest,
    MemoryPoint,
    Parameters,
    Phase1Record,
    RunAudit,
    RunRecord,
    ScanRecord,
    TrainingRecord,
    ValidationRecord,
    append_record,
    write_audit,
    write_manifest,
)
from tandem.report.statistics import perplexity

C, E, V = 500, 768, 50_257
DOCUMENTS = 20
NLL = {"C1T1": 4.85, "C2T1": 4.93, "C1T2": 4.80, "C2T2": 4.88}


LENGTHS = np.random.default_rng(5).lognormal(0, 0.8, DOCUMENTS)
TOKENS = np.maximum(1, (LENGTHS / LENGTHS.sum() * 22_000).astype(np.int64))
"""Scored tokens of the validation documents."""


def make_validation(model: str, seed: int, nll: float, *, documents: bool = True) -> ValidationRecord:
    """What a model of this NLL makes of the validation text; documents differ by their own and by model."""
    scores = None
    if documents:
        own = np.random.default_rng(11).normal(0, 0.3, DOCUMENTS)
        by_model = np.random.default_rng(list(model.encode())).normal(0, 0.02, DOCUMENTS)
        noise = np.random.default_rng([*model.encode(), seed]).normal(0, 0.01, DOCUMENTS)
        deviation = own + by_model + noise
        deviation -= (deviation * TOKENS).sum() / TOKENS.sum()
        scores = DocumentScores.pack(TOKENS, (nll + deviation) * TOKENS)
    wobble = random.Random(f"{model} {seed}").gauss(0, 0.0008)
    return ValidationRecord(
        tokens=int(TOKENS.sum()),
        nll_nats=nll,
        perplexity=perplexity(nll),
        accuracy=max(0.04, 0.247 - 0.12 * (nll - 4.85) + wobble),
        bits_per_byte=nll / math.log(2) / 4.5,
        documents=scores,
    )


def make_dispersion(noise: random.Random, iterations: int, stopped: str) -> DispersionRecord:
    """Phase 1 as the original has it."""
    return DispersionRecord(
        parts=(),
        iterations=iterations,
        stopped=stopped,
        convergence_rate=0.92 if stopped == "converged" else 0.71,
        tokens=2_403_563,
        seconds_s=9.5 * iterations,
        history=tuple(
            Phase1Iteration(
                iteration=i,
                loss=-0.3 * (1 - math.exp(-i / 9)) + noise.gauss(0, 0.002),
                grad_norm=1.3,
                convergence_rate=0.92 / (1 + math.exp(-(i - 0.7 * iterations) * 6 / iterations)),
                seconds_s=9.5 * i,
            )
            for i in range(2, iterations + 1)
        ),
    )


def make_prediction(context_layers: int, seed: int, head_nll: float, epochs: int = 6) -> PredictionRecord:
    """Phase 1 by prediction."""
    noise = random.Random(f"prediction {context_layers} {seed}")
    return PredictionRecord(
        parts=(),
        epochs=epochs,
        tokens=2_403_563,
        heads=(HeadRecord(token_layers=1, parameters=976_128, nll_nats=head_nll, accuracy=0.26),),
        seconds_s=130.0 * epochs,
        history=tuple(
            PredictionEpoch(
                epoch=e,
                train_nll_nats=4.6 + 2.5 * math.exp(-e / 1.5) + noise.gauss(0, 0.01),
                grad_norm=0.8,
                positions=2_403_562,
                position_sum=2_403_562 * 2_403_561 // 2,
                text_tokens=2_403_563,
                seconds_s=130.0 * e,
            )
            for e in range(1, epochs + 1)
        ),
    )


def make_contexts(
    scan: ScanRecord, memory: tuple[MemoryPoint, ...], recipe: str, context_layers: int, seed: int
) -> ContextsRecord:
    """Contexts that spread out further under the original's objective."""
    noise = random.Random(f"ranks {recipe} {context_layers} {seed}")
    train, validation = (0.78, 0.797) if recipe == "original" else (0.41, 0.43)
    return ContextsRecord(
        train=scan,
        validation=scan,
        memory=memory,
        effective_rank_train=train + noise.gauss(0, 0.004),
        effective_rank_validation=validation + noise.gauss(0, 0.004),
        seconds_s=1.0,
    )


def make_memory(half_life: float, seed: int = 0, last: int = 512) -> tuple[MemoryPoint, ...]:
    """A context that forgets half of a token in so many tokens, a little differently with every seed."""
    distances = [d for d in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if d <= last]
    first = 0.8 + 0.02 * seed
    return tuple(MemoryPoint(distance=d, change=first * 0.5 ** (d / half_life)) for d in distances)


def make_record(
    context_layers: int = 1,
    token_layers: int = 1,
    seed: int = 0,
    *,
    nll: float | None = None,
    iterations: int | None = None,
    stopped: str = "converged",
    phase2_stopped: str = "patience",
    failure: str | None = None,
    device_name: str = "NVIDIA L4",
    text_fingerprint: str = "5f0c1a9be2d7",
    documents: bool = True,
    recipe: str = "original",
    variant: str | None = None,
    half_life: float | None = None,
) -> RunRecord:
    """A record with the sizes of the original experiment and values that depend on the seed alone.

    `half_life` in tokens gives its contexts a memory. What a recipe or a variant has of its own: phase 1,
    names, and the fingerprints of settings and embeddings.
    """
    noise = random.Random(f"{context_layers} {token_layers} {seed}")
    depths = f"C{context_layers}T{token_layers}"
    name = depths if variant is None else f"{variant}-{depths}"
    if nll is None:
        nll = NLL.get(depths, 4.9) + 0.03 * random.Random(seed).gauss(0, 1) + noise.gauss(0, 0.002)
    iterations = iterations or (30 if context_layers == 1 else 14) + random.Random(seed).randint(-1, 1)
    context_block, token_block = context_layers * 635_500, token_layers * 976_128
    total = V * E + 2 * E + context_block + token_block
    phase1: Phase1Record = (
        make_dispersion(noise, iterations, stopped)
        if recipe == "original"
        else make_prediction(context_layers, seed, nll + 0.05)
    )
    epochs = 9 + noise.randint(-2, 2)
    history = tuple(
        Epoch(
            epoch=e,
            train_nll_nats=nll - 0.35 + 2.2 * math.exp(-e / 2.4) - 0.01 * e,
            validation_nll_nats=nll + 1.4 * math.exp(-e / 2.0) * (e < epochs),
            validation_accuracy=0.247 - 0.1 * math.exp(-e / 2.0),
            seconds_s=55.0 * e,
        )
        for e in range(1, epochs + 1)
    )
    phase2 = TrainingRecord(
        best_epoch=epochs,
        epochs=epochs + (phase2_stopped == "patience"),
        stopped=phase2_stopped,
        train_nll_nats=history[-1].train_nll_nats,
        train_perplexity=perplexity(history[-1].train_nll_nats),
        seconds_s=55.0 * epochs,
        history=history,
    )
    scan = ScanRecord(
        method="scan", tokens=22_723, segments=47, burn_in=160, loop_error=3.9e-6, join_error=2.1e-6,
        checked_tokens=2048, tolerance=1e-5, storage="memory", rounding=0.0, seconds_s=0.5,
    )  # fmt: skip
    memory = make_memory(half_life, seed) if half_life else ()
    done = failure is None
    here = token_layers == 1
    return RunRecord(
        run=f"{name}-seed{seed}",
        experiment="layers",
        folder="/elsewhere",
        recipe=recipe,
        variant=variant,
        configuration=name,
        context_layers=context_layers,
        token_layers=token_layers,
        embed_dim=E,
        context_dim=C,
        seed=seed,
        status="finished" if done else "failed",
        failure=failure,
        settings_fingerprint=f"9a1de07744c2{variant or ''}",
        data=DataRecord(
            train_source="hf:HuggingFaceH4/ultrachat_200k:train_sft[:2000]",
            validation_source="hf:HuggingFaceH4/ultrachat_200k:train_sft[50000:50020]",
            train_documents=2000, train_tokens=2_403_563, train_bytes=10_800_112,
            validation_documents=20, validation_tokens=22_723, validation_bytes=102_411,
            train_lost_bytes=0, validation_lost_bytes=0,
            duplicates_dropped=3, overlap_documents=0, vocab_size=V, tokenizer="gpt2",
            text_fingerprint=text_fingerprint, tokenizer_fingerprint="0b77", tokens_fingerprint="c0ffee12",
            embeddings="gpt2" if recipe == "original" else "spectral", embeddings_trained=False,
            embeddings_fingerprint="77ab" if recipe == "original" else "88cd",
        ),
        environment=Environment(
            cpu_capability="AVX2",
            device="cuda", device_name=device_name, device_memory_bytes=23_800_000_000, precision="float32",
            cpu_count=8, threads=4, platform="Linux-6.1-x86_64", python="3.12.4", torch="2.12.0",
            transformers="5.1.0", tandem="0.1.0", code_fingerprint="e41b8d02", git_commit="3f1c9ab",
        ),
        parameters=Parameters(
            embedding=V * E, embed_norm=2 * E, context_block=context_block, token_block=token_block,
            total=total, trained_phase1=context_block, trained_phase2=token_block + 2 * E,
        ),
        phase1=phase1 if done else None,
        phase1_computed_here=here if done else None,
        contexts=(
            make_contexts(scan, memory, recipe, context_layers, seed) if done else None
        ),
        phase2=phase2 if done else None,
        validation=make_validation(name, seed, nll, documents=documents) if done else None,
        seconds_spent_s=(phase1.seconds_s if here else 0) + phase2.seconds_s if done else 12.5,
        seconds_alone_s=phase1.seconds_s + phase2.seconds_s if done else 12.5,
        peak_memory_bytes=9_120_000_000,
        finished_at=f"2026-03-0{1 + seed % 9}T10:00:00+00:00",
    )  # fmt: skip


# All that a baseline's record holds: label, NLL, whether it has seeds, parameters.
BASELINES: dict[str, tuple[str, float, bool, int]] = {
    "kneser-ney": ("KN-5", 5.02, False, 3_911_204),
    "lstm": ("LSTM", 4.70, True, 40_190_000),
    "awd-lstm": ("AWD-LSTM", 4.82, True, 40_195_000),
    "gpt2": ("GPT-2", 4.81, True, 40_205_000),
    "transformer": ("Transformer", 4.77, True, 40_207_000),
    "untrained": ("C1T1-untrained", 4.94, True, 40_210_000),
    "bigram": ("bigram", 5.61, False, 912_345),
    "unigram": ("unigram", 7.02, False, 50_257),
}


def make_baseline(
    kind: str, seed: int = 0, *, nll: float | None = None, variant: str | None = None
) -> RunRecord:
    """A record of a baseline on the data of `make_record`; `seed` counts only where it has seeds.

    `variant` is that of a control without phase 1.
    """
    label, usual, seeded, total = BASELINES[kind]
    label = label if variant is None else f"{variant}-{label}"
    own = make_record(1, 1, seed, variant=variant)
    nll = usual + 0.02 * seeded * random.Random(f"{label} {seed}").gauss(0, 1) if nll is None else nll
    untrained, network = kind == "untrained", kind in ("lstm", "awd-lstm", "gpt2", "transformer")
    fields: dict[str, object] = {
        "run": f"{label}-seed{seed}" if seeded else label,
        "kind": kind,
        "configuration": label,
        "seed": seed if seeded else None,
        "parameters": own.parameters if untrained else Parameters(
            embedding=total // 2, other=total - total // 2, total=total,
            trained_phase1=0, trained_phase2=total,
        ),
        "phase1": None,
        "phase1_computed_here": None,
        "training": own.phase2 if network else None,
        "validation": make_validation(label, seed, nll),
        "seconds_spent_s": 80.0,
        "seconds_alone_s": 80.0,
    }  # fmt: skip
    if not untrained:
        fields["recipe"] = None
        sizes = ("context_layers", "token_layers", "embed_dim", "context_dim")
        fields |= dict.fromkeys(sizes) | {"contexts": None, "phase2": None}
    return own.model_copy(update=fields)


def make_baselines(
    seeds: Sequence[int] = (0, 1, 2, 3, 4), variants: Sequence[str] | Mapping[str, str] = ()
) -> list[RunRecord]:
    """Every kind of baseline with every seed it has; of the control without phase 1 one for each variant."""
    records = [
        make_baseline(kind, seed, variant=variant)
        for kind in BASELINES
        for variant in (variants if kind == "untrained" and variants else (None,))
        for seed in seeds
    ]
    return list({r.run: r for r in records}.values())


def without_documents(record: RunRecord) -> RunRecord:
    """A record without the scores of single documents."""
    assert record.validation is not None
    return record.model_copy(update={"validation": record.validation.model_copy(update={"documents": None})})


def make_audit(
    records: Sequence[RunRecord], outcomes: Mapping[tuple[str | None, str], str] | None = None
) -> AuditRecord:
    """An audit of these records; `outcomes` says by (run, check) what did not pass; run None is the data."""
    outcomes = outcomes or {}

    def check(run: str | None, name: str) -> Check:
        status = outcomes.get((run, name), "pass")
        return Check(name=name, looked_at=f"what {name} needs", figure="1.5e-06 | limit 1e-05", status=status)

    shared = RunAudit(run=None, finished_at=None, checks=(check(None, "leakage"), check(None, "tokens")))
    runs = [
        RunAudit(
            run=r.run,
            finished_at=r.finished_at,
            checks=tuple(check(r.run, name) for name in ("causality", "contexts", "counts")),
        )
        for r in records
    ]
    return AuditRecord(
        audited_at="2026-03-10T10:00:00+00:00", code_fingerprint="e41b8d02", runs=(shared, *runs)
    )


GRID = [(1, 1), (2, 1), (1, 2), (2, 2)]


def make_grid(seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> list[RunRecord]:
    """Every configuration with every seed."""
    return [make_record(*depths, seed) for seed in seeds for depths in GRID]


Variants = Mapping[str, str]
"""Recipes by variant."""
BOTH: Variants = {"original": "original", "predictive": "predictive"}
ABLATIONS: Variants = dict.fromkeys(
    ("full", "no_dropout", "no_decay", "residual", "one_epoch", "carry", "all_negatives", "no_memory"),
    "predictive",
)


def make_variants(
    variants: Variants = BOTH,
    grid: Sequence[tuple[int, int]] = tuple(GRID),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> list[RunRecord]:
    """Every configuration with every variant and seed; each variant a little worse than the last one."""
    return [
        make_record(
            *depths,
            seed,
            nll=NLL[f"C{depths[0]}T{depths[1]}"] + 0.02 * place + 0.01 * random.Random(seed).gauss(0, 1),
            recipe=recipe,
            variant=variant,
            half_life=4.0 * 3**place,
        )
        for seed in seeds
        for place, (variant, recipe) in enumerate(variants.items())
        for depths in grid
    ]


def make_manifest(
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    baselines: Sequence[str] = (),
    variants: Mapping[str, Mapping[str, object]] | None = None,
    grid: Sequence[tuple[int, int]] = tuple(GRID),
    **settings: object,
) -> Manifest:
    """Of `make_grid`, or of `make_variants` with what each of the `variants` sets."""
    names = [f"C{c}T{t}" for c, t in grid]
    return Manifest(
        name="layers",
        settings={
            "name": "layers",
            "seeds": list(seeds),
            "data": {"train": "a | b ``` <script>"},
            **({"variants": dict(variants)} if variants else {}),
            **settings,
        },
        settings_fingerprint="9a1de07744c2",
        tokens_fingerprint="c0ffee12",
        precision="float32",
        configurations=tuple(f"{v}-{name}" for v in variants for name in names) if variants else tuple(names),
        seeds=tuple(seeds),
        baselines=tuple(baselines),
        created_at="2026-03-01T08:00:00+00:00",
    )


def write_run_dir(
    folder: Path,
    records: Sequence[RunRecord],
    manifest: Manifest | None = None,
    audit: AuditRecord | None = None,
) -> Path:
    """A run directory that holds these."""
    folder.mkdir(exist_ok=True)
    for record in records:
        append_record(folder, record)
    if manifest is not None:
        write_manifest(folder, manifest)
    if audit is not None:
        write_audit(folder, audit)
    return folder
