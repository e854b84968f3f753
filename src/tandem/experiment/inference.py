"""A trained model that is used: on a device, in 8-bit weights, and as one of several that are averaged."""

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from tandem.advice import advice, named
from tandem.checksums import write_checksums
from tandem.errors import RunDirError, SettingsError
from tandem.experiment.artefacts import model_record
from tandem.experiment.card import CARD, ensemble_card, has_foreign_card, model_card, write_card
from tandem.experiment.machine import choose_device
from tandem.folders import CONFIG, RECORD, SETTINGS, atomic_folder, check_writing
from tandem.model import TandemEnsemble
from tandem.model.quantized_tandem import multiplies_int8
from tandem.model_folder.checking import AnyModel
from tandem.model_folder.loading import load_model, quiet_transformers, settings_for
from tandem.tokens.tokenizer import plain, tokenizer_fingerprint


def load_for_inference(
    folder: Path, device: str = "auto", int8: bool = False, verify: bool = True
) -> tuple[AnyModel, PreTrainedTokenizerFast]:
    """As `load_model`, on a device; `int8`: its weights rounded to 8 bits, if they are not so already.

    `auto` is the CPU for 8-bit weights, since products of them are there alone; elsewhere they are multiplied
    in float32. Raises SettingsError where `int8` asks for products that the torch in use does not have.
    """
    model, tokenizer = load_model(folder, verify)
    if int8 and not multiplies_int8():
        raise SettingsError(
            f"{named('int8')} is not possible: torch {torch.__version__} has no products of 8-bit numbers "
            f"for this processor ({platform.machine()})" + advice("leave it out")
        )
    if int8 and not model.config.int8:
        model.to_int8()
    model.to(choose_device("cpu" if model.config.int8 and device == "auto" else device))  # type: ignore[arg-type]  # transformers wraps Module.to without its types
    return model, tokenizer


class QuantizedModel(BaseModel):
    """A copy of a model folder in 8-bit weights, and the bytes of the weights of both."""

    model: str
    output: str
    model_bytes: int
    output_bytes: int


def quantize_model(folder: Path, output: Path, verify: bool = True) -> QuantizedModel:
    """Copy a model folder in 8-bit weights, with its tokenizer, settings, record and card.

    What only training and the audit read is left out. `verify` as of `load_model`. Raises RunDirError for a
    `folder` that is no model or has such weights already, and for an `output` that holds anything it could be
    mixed up with.
    """
    model, tokenizer = load_model(folder, verify)
    if model.config.int8:
        raise RunDirError(f"{folder} holds 8-bit weights already; give the model that it was made from")
    _check_new(output)
    copied = (SETTINGS, RECORD, CARD) if has_foreign_card(folder) else (SETTINGS, RECORD)
    card = None
    if len(model.members) > 1:
        card = ensemble_card([config.name for config in model.config.configs], int8=True)
    elif (record := model_record(folder)) is not None and record.is_tandem and record.validation:
        card = model_card(record, model.config.cell, int8=True)
    _write_model(output, model.to_int8(), tokenizer, folder, copied, card)
    before, after = (
        sum(path.stat().st_size for path in place.glob("model*.safetensors")) for place in (folder, output)
    )
    return QuantizedModel(model=str(folder), output=str(output), model_bytes=before, output_bytes=after)


class Ensemble(BaseModel):
    """An ensemble folder, and the model folders that its members came from."""

    output: str
    members: tuple[str, ...]


def make_ensemble(folders: Sequence[Path], output: Path, verify: bool = True) -> Ensemble:
    """Write the average of several models' probabilities as one model folder.

    Text is read as for the first, whose tokenizer and settings it takes. `verify` as of `load_model`. Raises
    RunDirError for a folder that is no model, or is an ensemble itself. Raises SettingsError for fewer than
    two, for one that is given twice, and for models that read text otherwise than the first.
    """
    if len(folders) < 2:
        raise SettingsError("an ensemble needs two models or more; give several model folders")
    if twice := next(
        (one for n, one in enumerate(folders) if one.resolve() in map(Path.resolve, folders[:n])), None
    ):
        raise SettingsError(f"{twice} is given twice; give each model once")
    _check_new(output)
    loaded = []
    for folder in folders:
        model, tokenizer = load_model(folder, verify)
        if len(model.members) > 1:
            raise RunDirError(f"{folder} is an ensemble itself; give the models that it was made of")
        settings, _ = settings_for(folder, tokenizer, lambda _: None)
        reading = (tokenizer_fingerprint(plain(tokenizer)), settings.data.separators["validation"])
        loaded.append((model.members[0], tokenizer, reading))
    for folder, (_, _, reading) in zip(folders, loaded, strict=True):
        for what, own, other in zip(("tokenizer", "separator"), loaded[0][2], reading, strict=True):
            if own != other:
                raise SettingsError(
                    f"{folder} has another {what} than {folders[0]}, so the two cannot be averaged; train "
                    "all members with the same text and settings, and seeds of their own"
                )
    try:
        ensemble = TandemEnsemble.of([model for model, _, _ in loaded])
    except ValueError as error:
        raise SettingsError(f"these models cannot be averaged: {error}") from None
    names = [folder.resolve().name for folder in folders]
    _write_model(output, ensemble, loaded[0][1], folders[0], (SETTINGS,), ensemble_card(names))
    return Ensemble(output=str(output), members=tuple(map(str, folders)))


def _check_new(output: Path) -> None:
    """RunDirError where a model folder made at `output` would mix with what is there, or replace a model."""
    check_writing(output, "model folder")
    if (output / CONFIG).exists():
        raise RunDirError(
            f"{output} holds a model, which would be lost" + advice(("give another {}", "output"))
        )


def _write_model(
    output: Path,
    model: AnyModel,
    tokenizer: PreTrainedTokenizerFast,
    source: Path,
    copied: Sequence[str],
    card: str | None,
) -> None:
    """A model folder, with these files of `source` as they are, and a card where none of somebody else is."""
    with atomic_folder(output, CONFIG) as draft:
        with quiet_transformers():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        for name in copied:
            if (source / name).is_file():
                (draft / name).write_bytes((source / name).read_bytes())
        if has_foreign_card(output):
            (draft / CARD).unlink(missing_ok=True)
        elif card is not None:
            write_card(draft, card)  # not over a copied one
        write_checksums(draft, (CARD,))
