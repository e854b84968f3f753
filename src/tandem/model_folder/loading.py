"""A saved model from its folder, whoever wrote it: weights, tokenizer and settings, or one sentence.

Importing this loads torch and transformers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from tandem.checksums import check_file, check_files, read_checksums
from tandem.errors import DamageError, RunDirError, SettingsError, is_out_of_memory
from tandem.folders import (
    CHECKSUMS,
    CONFIG,
    CONTEXTS_SAMPLE,
    PHASE1_HEAD,
    PHASE1_SNAPSHOTS,
    RECORD,
    SETTINGS,
    SNAPSHOTS,
    check_reading,
)
from tandem.model_folder.checking import HEAD, MODELS, AnyModel, check_weights, read_config, read_json
from tandem.settings import DataSettings, Settings, load_settings
from tandem.tokens.tokenizer import load_tokenizer, to_transformers, vocab_size

READ_SECTIONS = ("data", "contexts", "phase2")
"""Of a model's settings, what is read when it is scored; all that Tandem ever wrote have them."""
REASON_CHARACTERS = 500
"""A message gives so much of what a library says."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
"""What a tokenizer is read from; one of them is enough."""


def load_model(folder: Path, verify: bool = True) -> tuple[AnyModel, PreTrainedTokenizerFast]:
    """A saved model or ensemble and its tokenizer. Raises RunDirError if the folder lacks one, or is damaged.

    Whatever the folder says: weights are in float32, text is neither cut nor padded, decoding tidies nothing,
    and generation follows its arguments alone. The embedding may have more rows than the tokenizer entries.
    Without `verify` its files are not compared with their checksums.
    """
    with _as_damage(folder):
        values = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    check_reading(folder, "model folder")
    try:  # each file where it is read
        if verify:
            check_files(folder, (SETTINGS, CONTEXTS_SAMPLE, PHASE1_HEAD, SNAPSHOTS, PHASE1_SNAPSHOTS))
    except DamageError as error:
        raise RunDirError(
            f"the model in {folder} is not what was saved ({error}); train or copy it again, or remove its "
            f"{CHECKSUMS} if another program changed it on purpose"
        ) from None
    with _as_damage(folder):
        if (kind := str(values.get("model_type"))) not in MODELS:
            raise RunDirError(f"{folder} holds a model of type '{kind}', not a Tandem model")
        config = read_config(folder)
        check_weights(folder, config)
        with quiet_transformers():
            loaded: Any = MODELS[config.model_type].from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                generation_config=GenerationConfig(),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            model: AnyModel = loaded[0]
        tokenizer = _load_tokenizer(folder, model)
        mark = tokenizer.eos_token_id
        model.generation_config = GenerationConfig(bos_token_id=mark, eos_token_id=mark, pad_token_id=mark)
        if fault := _fault(model, tokenizer, loaded[1]):
            raise ValueError(fault)
    return model.eval(), tokenizer


@contextmanager
def _as_damage(folder: Path) -> Iterator[None]:
    """Within the block an error means that the model in `folder` cannot be read."""
    try:
        yield
    except RunDirError:
        raise
    except Exception as error:  # of damaged files the libraries raise whatever they come upon
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise RunDirError(
            f"the model in {folder} cannot be read ({reason[:REASON_CHARACTERS]}); train or copy it again"
        ) from None


def _load_tokenizer(folder: Path, model: AnyModel) -> PreTrainedTokenizerFast:
    """The tokenizer beside a model, whose end-of-text token is the one that the model was trained with."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise RunDirError(
            f"{folder} holds a model without its tokenizer; save that there too "
            "(tokenizer.save_pretrained), or copy tokenizer.json from where the model came from"
        )
    tokenizer, eos = load_tokenizer(str(folder))
    marks = model.config.eos_token_id, model.config.bos_token_id
    named = (mark[0] if isinstance(mark, list) and mark else mark for mark in marks)
    own = (tokenizer.id_to_token(mark) for mark in named if isinstance(mark, int) and mark >= 0)
    return to_transformers(tokenizer, next((token for token in own if token is not None), eos))


def model_settings(folder: Path) -> Settings | None:
    """The settings a saved model was trained with; none for a folder without them.

    Raises SettingsError where they cannot be read, or are not whole.
    """
    path = folder / SETTINGS
    mend = "put back the one that `tandem train` wrote, with a Tandem no older than that"
    if not path.is_file():
        if path.exists() or (folder / RECORD).exists():
            raise SettingsError(f"{path} is missing; {mend}")
        return None
    try:
        settings = load_settings(str(path))
    except SettingsError as error:
        raise SettingsError(f"{error}; {mend}") from None
    if missing := [name for name in READ_SECTIONS if name not in settings.model_fields_set]:
        raise SettingsError(f"{path} is empty or not whole: it has no section '{missing[0]}'; {mend}")
    return settings


def settings_for(
    folder: Path, tokenizer: PreTrainedTokenizerFast, on_warning: Callable[[str], None]
) -> tuple[Settings, bool]:
    """The settings of a saved model, and whether they are its own.

    For a folder without them, as `save_pretrained` makes it, they are defaults that fit any model, and
    `on_warning` is told which. Raises SettingsError as `model_settings`.
    """
    if (own := model_settings(folder)) is not None:
        try:
            check_file(folder / SETTINGS, read_checksums(folder).get(SETTINGS))
        except DamageError:
            on_warning(f"{folder / SETTINGS} is not the one that was saved; what it says now is used")
        return own, True
    mark = tokenizer.eos_token
    between = "a blank line stands between documents" if mark is None else f"{mark} begins each document"
    on_warning(
        f"{folder} has no settings.yaml, so how its training text was read is not known; taken instead: a "
        f".txt file is one document, {between}, and its recipe is left open"
    )
    return Settings(data=DataSettings(separator="\n\n" if mark is None else "eos")), False


def unused_ids(model: AnyModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Rows of the embedding that no entry of the tokenizer uses: padding, mostly."""
    return sorted(set(range(model.config.vocab_size)) - set(tokenizer.get_vocab().values()))


def _fault(model: AnyModel, tokenizer: PreTrainedTokenizerFast, loading: dict[str, Any]) -> str | None:
    """What is wrong with a loaded model: the library would fill in missing weights at random."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = (name[0] if isinstance(name, tuple) else name for name in loading.get(kind, ()))
        names = (name.removeprefix("model.") for name in found)
        tied = model.config.tie_word_embeddings
        if wrong := sorted(name for name in names if not (tied and name.endswith(HEAD))):
            return f"{kind.replace('_', ' ')} in its weights, such as {wrong[0]}"
    if (entries := vocab_size(tokenizer.backend_tokenizer)) > model.config.vocab_size:
        return f"its tokenizer has {entries} entries and its embedding {model.config.vocab_size} rows"
    named = (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id)
    marks = [mark for marks in named for mark in (marks if isinstance(marks, list) else [marks])]
    if any(isinstance(mark, int) and not 0 <= mark < model.config.vocab_size for mark in marks):
        return f"its config.json names tokens {marks} that its vocabulary does not have"
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        return "some of its weights are not finite"
    return None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars, which would tear ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
