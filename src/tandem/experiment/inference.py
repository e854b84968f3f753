"""A trained model that is used: on a device, and in 8-bit weights."""

import platform
from pathlib import Path

import torch
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from tandem.advice import advice, named
from tandem.checksums import write_checksums
from tandem.errors import RunDirError, SettingsError
from tandem.experiment.artefacts import model_record
from tandem.experiment.card import CARD, has_foreign_card, model_card, write_card
from tandem.experiment.machine import choose_device
from tandem.folders import CONFIG, RECORD, SETTINGS, atomic_folder, check_writing
from tandem.model import TandemForCausalLM
from tandem.model.quantized_tandem import multiplies_int8
from tandem.model_folder.loading import load_model, quiet_transformers


def load_for_inference(
    folder: Path, device: str = "auto", int8: bool = False, verify: bool = True
) -> tuple[TandemForCausalLM, PreTrainedTokenizerFast]:
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
    check_writing(output, "model folder")
    if (output / CONFIG).exists():
        raise RunDirError(
            f"{output} holds a model, which would be lost" + advice(("give another {}", "output"))
        )
    with atomic_folder(output, CONFIG) as draft:
        with quiet_transformers():
            model.to_int8().save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        written = (SETTINGS, RECORD, CARD) if has_foreign_card(folder) else (SETTINGS, RECORD)
        for name in written:
            if (folder / name).is_file():
                (draft / name).write_bytes((folder / name).read_bytes())
        if has_foreign_card(output):
            (draft / CARD).unlink(missing_ok=True)
        elif (record := model_record(folder)) is not None and record.is_tandem and record.validation:
            write_card(draft, model_card(record, model.config.cell, int8=True))  # not over a copied one
        write_checksums(draft, (CARD,))
    before, after = (
        sum(path.stat().st_size for path in place.glob("model*.safetensors")) for place in (folder, output)
    )
    return QuantizedModel(model=str(folder), output=str(output), model_bytes=before, output_bytes=after)
