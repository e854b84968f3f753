"""Scoring a saved model on any text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from pydantic import BaseModel

from tandem.advice import named, written_settings
from tandem.baselines.kneser_ney import KneserNey
from tandem.contexts import Contexts, Stream, compute_contexts
from tandem.dynamic_evaluation import score_and_learn
from tandem.errors import SettingsError
from tandem.experiment.artefacts import model_record
from tandem.experiment.inference import load_for_inference
from tandem.experiment.machine import free_memory, keep_freed_memory
from tandem.folders import SETTINGS
from tandem.metrics import Score, bits_per_byte, effective_rank, hidden_parts, perplexity, score_average
from tandem.mixture import SHARPNESSES, cache_probabilities
from tandem.mixture import mix as mix_parts
from tandem.model import TandemForCausalLM
from tandem.model_folder.loading import settings_for, unused_ids
from tandem.objectives import OBJECTIVES
from tandem.records import Unbounded
from tandem.settings import DataSettings, Settings
from tandem.text.places import counted_from
from tandem.text.recorded import folder_of, read_recorded, whereabouts
from tandem.text.splits import Splits, split_documents
from tandem.tokens.prepare import tokenize, tokenize_for_evaluation
from tandem.tokens.store import TokenStream


class Mixture(BaseModel):
    """What the model makes of the text together with an n-gram and a cache (`tandem.mixture`)."""

    perplexity: Unbounded
    nll_nats: float
    bits_per_byte: float
    weights: dict[str, float]
    """Mean weight of each part, by name."""


class Adapted(BaseModel):
    """What the model makes of the text as it goes on learning from it (`tandem.dynamic_evaluation`)."""

    perplexity: Unbounded
    nll_nats: float
    accuracy: float
    bits_per_byte: float


class Evaluation(BaseModel):
    """What a model makes of a text.

    lost_bytes      of the text, what its tokens cannot give back; each costs 8 bits in bits_per_byte.
    lost_such_as    the first characters among them.
    phase1          figures that only the objective of its phase 1 has, by name.
    effective_rank  of an ensemble, the mean of its members'.
    int8            whether its weights were of 8 bits.
    """

    model: str
    configuration: str
    data: str
    documents: int
    tokens: int
    text_bytes: int
    lost_bytes: int
    lost_such_as: tuple[str, ...]
    perplexity: Unbounded
    nll_nats: float
    accuracy: float
    bits_per_byte: float
    effective_rank: float
    phase1: dict[str, float]
    int8: bool = False
    scan_error: float
    mixture: Mixture | None = None
    adapted: Adapted | None = None


def evaluate_model(
    folder: Path,
    source: str,
    *,
    txt_documents: str | None = None,
    separator: str | None = None,
    device: str = "auto",
    int8: bool = False,
    mix: bool = False,
    adapt: bool = False,
    verify: bool = True,
    on_progress: Callable[[str], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score the model or ensemble in `folder` on the text of `source`, tokenized as in its training.

    `int8`: with weights of 8 bits.
    `mix`: also of the model mixed with a cache, and with an n-gram counted on its training text.
    `adapt`: also of the model as it learns from the text.
    `verify`: as of `load_model`.
    `on_warning` is told what was assumed of a folder that does not say how its model was trained.

    Raises RunDirError for a folder that is no model. Raises SettingsError for `int8` where torch cannot, for
    `adapt` of 8-bit weights, and for a settings.yaml that cannot be used, or that `mix` lacks. Raises
    DataError for text that cannot be used, and for training text that is no longer what it was.
    """
    model, tokenizer = load_for_inference(folder, device, int8, verify)
    settings, own = settings_for(folder, tokenizer, on_warning)
    if unused := len(unused_ids(model, tokenizer)):
        on_warning(
            f"the embedding has {unused:,} rows that no token uses; a score counts the probability that the "
            "model gives them as lost"
        )
    if adapt and model.config.int8:
        raise SettingsError(f"{named('adapt')} changes weights, and those of {folder} are of 8 bits here")
    if mix and not own:
        raise SettingsError(
            f"{named('mix')} counts n-grams of the training text, which settings.yaml names, and there is "
            f"none in {folder}; copy it there from the folder that `tandem train` wrote, or leave it out"
        )
    keep_freed_memory()
    data = settings.data
    reading = data.model_copy(
        update={
            "txt_documents": txt_documents or data.txt_documents,
            "validation_separator": data.separators["validation"] if separator is None else separator,
        }
    )
    tokens = tokenize_for_evaluation(source, reading, tokenizer, on_progress)
    on_progress(f"scoring {len(tokens):,} tokens of {source}")
    members = list(model.members)
    stream = Stream.of(members[0], tokens.ids)
    memory = free_memory(model.device) // 2 // len(members)
    with written_settings(folder / SETTINGS, ("contexts",)):
        found = [compute_contexts(member, stream, settings.contexts, memory) for member in members]
    contexts = [own for own, _ in found]
    score = score_average(members, stream, contexts, settings.phase2.chunk_positions)
    mixture = None
    if mix:
        splits = _training_text(folder, data, on_progress, on_warning)
        counted = tokenize(
            splits.train, tokenizer, data.separators["train"], splits.train_source, on_progress
        )
        mixture = _mixture(members, stream, contexts, score, tokens, counted, settings)
    adapted = None
    if adapt:
        on_progress("scoring again, and learning on")
        learned = score_and_learn(members, stream, contexts)
        adapted = Adapted(
            perplexity=learned.perplexity,
            nll_nats=learned.nll_nats,
            accuracy=learned.accuracy,
            bits_per_byte=learned.bits_per_byte(tokens),
        )
    return Evaluation(
        model=str(folder),
        configuration=model.config.name,
        data=source,
        documents=len(tokens.document_starts),
        tokens=len(tokens),
        text_bytes=int(tokens.document_bytes.sum()),
        lost_bytes=tokens.lost.bytes,
        lost_such_as=tokens.lost.such_as,
        perplexity=score.perplexity,
        nll_nats=score.nll_nats,
        accuracy=score.accuracy,
        bits_per_byte=score.bits_per_byte(tokens),
        effective_rank=fmean(effective_rank(one, settings.contexts.rank_positions) for one in contexts),
        phase1=_phase1_figures(members, stream, settings) if own else {},
        int8=model.config.int8,
        scan_error=max(max(scan.loop_error, scan.join_error) for _, scan in found),
        mixture=mixture,
        adapted=adapted,
    )


def _phase1_figures(
    members: Sequence[TandemForCausalLM], stream: Stream, settings: Settings
) -> dict[str, float]:
    """What phase 1 of a model means on this text; nothing of an ensemble, which has several."""
    return {} if len(members) > 1 else OBJECTIVES[settings.recipe].evaluate(members[0], stream, settings)


def _training_text(
    folder: Path,
    data: DataSettings,
    on_progress: Callable[[str], None],
    on_warning: Callable[[str], None],
) -> Splits:
    """The text that a saved model was trained on; where its record is gone, whatever the settings name."""
    record = model_record(folder)
    sources = [source for source in (data.train, data.validation) if source]
    place = None if record is None else folder_of(record.folder, sources, folder)
    with counted_from(place), written_settings():
        on_progress(f"counting n-grams of {whereabouts(data.train)}")
        if record is None:
            on_warning(
                f"{folder} has no readable record.json, so it is not known whether {data.train} is still the "
                "text that the model was trained on"
            )
            return split_documents(data, None, on_progress)
        return read_recorded(data, record.data.text_fingerprint, record.run, None, on_progress)


def _mixture(
    members: Sequence[TandemForCausalLM],
    stream: Stream,
    contexts: Sequence[Contexts],
    score: Score,
    tokens: TokenStream,
    counted: TokenStream,
    settings: Settings,
) -> Mixture:
    """Of the stream with its contexts and the model's own score; the cache is that of the first member."""
    order = settings.baselines.order
    ngram = KneserNey.fit(counted.ids, members[0].config.vocab_size, order).score(tokens.ids)
    hidden = hidden_parts(members[0], stream, contexts[0], settings.phase2.chunk_positions)
    caches = cache_probabilities(hidden, stream.ids)
    own = np.exp(-np.stack((score.losses, ngram.losses), axis=1, dtype=np.float64))
    mixed = mix_parts(np.concatenate((own, caches), axis=1))
    names = ("model", f"KN-{order}", *(f"cache {sharpness:g}" for sharpness in SHARPNESSES))
    return Mixture(
        perplexity=perplexity(mixed.nll_nats),
        nll_nats=mixed.nll_nats,
        bits_per_byte=bits_per_byte(float(mixed.losses.sum()), tokens),
        weights=dict(zip(names, mixed.weights, strict=True)),
    )
