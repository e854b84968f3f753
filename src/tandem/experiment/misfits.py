"""Settings that do not fit the text or each other: all of it is found before any of it is said.

Every such check stands here or with the objective of phase 1 that it is about. It tells the settings that
would mend what it found.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch

from tandem.baselines import BASELINES
from tandem.errors import DataError, MisfitError
from tandem.model import CELLS, TandemConfig, TandemForCausalLM
from tandem.objectives import OBJECTIVES
from tandem.objectives.base import large_batch
from tandem.settings import Configuration, ModelSettings, Settings
from tandem.tokens.embeddings import check_fit
from tandem.tokens.prepare import Corpus

STEPS, LEAST_BATCH = 10, 8
"""Optimizer steps that an epoch has with the size of batch that is advised, and the smallest such size."""


def misfits(
    variants: Mapping[str | None, Settings],
    changes: Mapping[str, Mapping[str, Any]],
    corpus: Corpus,
    baselines: bool,
) -> list[MisfitError]:
    """All there are, of any variant; `changes` is what each variant sets; `baselines`: theirs as well.

    Raises DataError for so little text that no size of batch can be advised.
    """
    found = [
        error if name is None else _of_variant(error, name, changes[name])
        for name, settings in variants.items()
        for error in (
            *_cell(settings),
            *OBJECTIVES[settings.recipe].misfits(settings, len(corpus.train)),
            *_sizes(settings, corpus),
            *_rules(settings),
        )
    ]
    # Of a model that is not possible no parameters can be counted.
    if baselines and not any(error for settings in variants.values() for error in _cell(settings)):
        found += _baselines(list(variants.values()), corpus)
    return found


def _cell(settings: Settings) -> Iterator[MisfitError]:
    """What the cell cannot have: the first of the depths that it refuses."""
    model, block = settings.model, CELLS[settings.model.cell]()
    config = TandemConfig(embed_dim=model.embed_dim, context_dim=model.context_dim)
    for depths in settings.configurations:
        config.context_layers, config.token_layers = depths
        try:
            block.check_config(config)
        except ValueError as error:
            said = str(error).replace("=", " = ", 1)
            yield MisfitError.of(f"setting model.{said}", {}, "choose other sizes or another model.cell")
            return


def _sizes(settings: Settings, corpus: Corpus) -> Iterator[MisfitError]:
    """What is too large for the text."""
    tokens = len(corpus.train)
    if settings.phase2.batch_positions > tokens - 1:
        if (fits := (tokens - 1) // STEPS) < LEAST_BATCH:
            raise DataError(
                f"the training text {corpus.train_source} has {tokens} tokens, too few to learn from; give "
                f"at least {STEPS * LEAST_BATCH + 1}"
            )
        yield large_batch("phase2", settings.phase2.batch_positions, tokens - 1, fits)
    try:
        check_fit(settings.embeddings, corpus.vocab_size, settings.model.embed_dim)
    except DataError as error:
        yield error if isinstance(error, MisfitError) else MisfitError.of(str(error), {})


def _rules(settings: Settings) -> Iterator[MisfitError]:
    """What contradicts another setting."""
    model = settings.model
    if model.boundary == "reset" and (
        settings.data.separator != "eos" or settings.data.validation_separator not in (None, "eos")
    ):
        yield MisfitError.of(
            "setting model.boundary = 'reset' needs data.separator = 'eos': the end-of-text token is what "
            "starts a document",
            {"model.boundary": "carry"},
        )


def _baselines(variants: list[Settings], corpus: Corpus) -> Iterator[MisfitError]:
    """What is too large for the parameters that the baselines may have."""
    baselines = variants[0].baselines
    sizes = [min(parameters_for(one, corpus, c) for c in one.grid) for one in variants]
    allowed = baselines.max_parameters or max(sizes)
    largest = variants[sizes.index(max(sizes))]
    least = {
        kind: one.least_parameters(largest, corpus.vocab_size)
        for kind, one in BASELINES.items()
        if one.sized and kind in baselines.models
    }
    if large := {kind: size for kind, size in least.items() if size > allowed}:
        shown = " and ".join(f"{name} has {size}" for name, size in large.items())
        yield MisfitError.of(
            f"of the baselines, {shown} parameters at least, more than the {allowed} it may have",
            {"baselines.max_parameters": max(large.values())},
        )


def _of_variant(error: MisfitError, name: str, changes: Mapping[str, Any]) -> MisfitError:
    """An error of one variant: no option changes what the variant sets itself, only its file."""
    fitting = dict(error.fitting)
    for setting in error.fitting:
        section, _, key = setting.partition(".")
        own = changes.get(section)
        if isinstance(own, Mapping) and key in own:
            mend = f"set variants.{name}.{setting} to {fitting.pop(setting)} in the settings file"
            return MisfitError.of(f"variant {name}: {error.said}", fitting, mend)
    return error


def config_for(settings: Settings, corpus: Corpus, configuration: Configuration) -> TandemConfig:
    """The Hugging Face configuration of a model, which calls all of ModelSettings by the same names."""
    return _config(settings.model, corpus.vocab_size, corpus.eos_token_id, configuration)


def _config(
    model: ModelSettings, vocab_size: int, eos: int | None, configuration: Configuration
) -> TandemConfig:
    return TandemConfig(
        **model.model_dump(),
        vocab_size=vocab_size,
        context_layers=configuration.context_layers,
        token_layers=configuration.token_layers,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def parameters_for(settings: Settings, corpus: Corpus, configuration: Configuration) -> int:
    """Of a model, without making it."""
    return _parameters(settings.model, corpus.vocab_size, corpus.eos_token_id, configuration)


@lru_cache  # asked for again with every run that is looked for in a run directory
def _parameters(model: ModelSettings, vocab_size: int, eos: int | None, configuration: Configuration) -> int:
    with torch.device("meta"):
        return TandemForCausalLM(_config(model, vocab_size, eos, configuration)).num_params()["total"]
