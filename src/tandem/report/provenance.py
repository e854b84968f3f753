"""Where the records come from: tables of the environment and of the data, with every fingerprint."""

from collections.abc import Callable, Iterable

from tandem.records import DataRecord, Environment, RunRecord
from tandem.report.blocks import Table
from tandem.report.results import Analysis
from tandem.report.wording import NONE, Texts, bytes_text, code, literal


def environment_table(analysis: Analysis, texts: Texts) -> Table:
    """Where it ran; one column per environment."""
    environments = [environment for environment, _ in analysis.environments]
    fields: list[tuple[str, Callable[[Environment], str]]] = [
        ("device", lambda e: f"{literal(e.device_name)} ({code(e.device)})"),
        ("device_memory", lambda e: bytes_text(e.device_memory_bytes)),
        ("cpu", lambda e: texts("cpu_threads", count=str(e.cpu_count), threads=str(e.threads))),
        ("platform", lambda e: literal(e.platform)),
        ("versions", lambda e: f"Python {literal(e.python)}, torch {literal(e.torch)}, "
                               f"transformers {literal(e.transformers)}, Tandem {literal(e.tandem)}"),
        ("code_version", lambda e: code(e.code_fingerprint)),
        ("git_commit", lambda e: code(e.git_commit) if e.git_commit else NONE),
    ]  # fmt: skip
    rows = [[texts(f"fact.{key}"), *(show(e) for e in environments)] for key, show in fields]
    several = len(environments) > 1
    heads = [
        texts("fact.environment", number=str(i + 1) if several else "") for i in range(len(environments))
    ]
    if several:
        rows.append([texts("fact.runs"), *(literal(", ".join(runs)) for _, runs in analysis.environments)])
    return Table([texts("fact.fact"), *heads], rows, texts("caption.environment"))


def data_table(analysis: Analysis, texts: Texts) -> Table:
    """What it was trained and scored on; one column per data set."""
    sets = [data for data, _ in analysis.data]
    # What tells of embeddings are the configurations: a control has none of what phase 1 makes of them.
    own = [r for r in analysis.records if r.kind == "tandem"] or list(analysis.records)
    embeddings = _by_variant([(r.variant, _embeddings(r, texts)) for r in own], texts)
    embeddings_found = _by_variant([(r.variant, code(r.data.embeddings_fingerprint)) for r in own], texts)
    settings = _by_variant([(variant, code(found)) for variant, found in analysis.settings], texts)
    fields: list[tuple[str, Callable[[DataRecord], str]]] = [
        ("train", lambda d: _split(d.train_source, d.train_documents, d.train_tokens, d.train_bytes, texts)),
        ("validation", lambda d: _split(d.validation_source, d.validation_documents, d.validation_tokens,
                                        d.validation_bytes, texts)),
        ("duplicates", lambda d: f"{d.duplicates_dropped:,}"),
        ("overlap", lambda d: f"{d.overlap_documents:,}"),
        ("lost", lambda d: texts("lost_bytes", train=f"{d.train_lost_bytes:,}",
                                 validation=f"{d.validation_lost_bytes:,}")),
        ("tokenizer", lambda d: texts("tokenizer", source=code(d.tokenizer), size=f"{d.vocab_size:,}")),
        ("embeddings", lambda _: embeddings),
        ("text_fingerprint", lambda d: code(d.text_fingerprint)),
        ("tokenizer_fingerprint", lambda d: code(d.tokenizer_fingerprint)),
        ("tokens_fingerprint", lambda d: code(d.tokens_fingerprint)),
        ("embeddings_fingerprint", lambda _: embeddings_found),
        ("settings_fingerprint", lambda _: settings),
    ]  # fmt: skip
    rows = [[texts(f"fact.{key}"), *(show(d) for d in sets)] for key, show in fields]
    several = len(sets) > 1
    heads = [texts("fact.data_set", number=str(i + 1) if several else "") for i in range(len(sets))]
    return Table([texts("fact.fact"), *heads], rows, texts("caption.data"))


def _embeddings(record: RunRecord, texts: Texts) -> str:
    """Where they come from, and which phase trains them."""
    if record.recipe == "predictive" and record.kind == "tandem":
        trained = "trained_phase1"
    else:
        trained = "trained" if record.data.embeddings_trained else "frozen"
    return f"{code(record.data.embeddings)} {texts(f'embeddings.{trained}')}"


def _by_variant(found: Iterable[tuple[str | None, str]], texts: Texts) -> str:
    """What is the same for all variants once; else each variant's, and what belongs to baselines."""
    own: dict[str | None, dict[str, None]] = {}
    for variant, said in found:
        own.setdefault(variant, {})[said] = None
    if len({tuple(said) for said in own.values()}) == 1:
        return texts("joined", names=list(next(iter(own.values()))))
    names = [
        texts("of_variant", variant=variant or texts("of_baselines"), said=" ".join(said))
        for variant, said in own.items()
    ]
    return texts("joined", names=names)


def _split(source: str, documents: int, tokens: int, size: int, texts: Texts) -> str:
    counts = {"documents": f"{documents:,}", "tokens": f"{tokens:,}", "bytes": f"{size:,}"}
    return texts("split_size", source=code(source), **counts)
