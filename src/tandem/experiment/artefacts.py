"""What runs leave on disk beside their records: phase 1, which several share, and model folders."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from tandem.advice import advice, named
from tandem.checksums import (
    ABSENT,
    check_file,
    check_files,
    check_tensors,
    file_digest,
    read_checksums,
    seal_tensors,
    write_checksums,
)
from tandem.decoding import read_text
from tandem.errors import (
    DamageError,
    DataError,
    RunDirError,
    SettingsError,
    UnsavedError,
    is_out_of_memory,
    is_out_of_storage,
    storage_reason,
)
from tandem.experiment.card import CARD, has_foreign_card, model_card, write_card
from tandem.experiment.machine import choose_device
from tandem.experiment.model_folder import HEAD, WEIGHTS, check_weights, read_config, read_json
from tandem.fingerprint import fingerprint
from tandem.folders import (
    CHECKSUMS,
    CONFIG,
    RECORD,
    SETTINGS,
    atomic_folder,
    atomic_write,
    check_reading,
    check_writing,
    new_folder,
)
from tandem.model import TandemForCausalLM
from tandem.model.quantized_tandem import multiplies_int8
from tandem.objectives import OBJECTIVES, Objective
from tandem.records import Phase1Record, RunRecord
from tandem.settings import DataSettings, Settings, dump_settings, load_settings
from tandem.tokens.tokenizer import load_tokenizer, to_transformers, vocab_size

if TYPE_CHECKING:  # what trains is not needed to load a model
    from tandem.contexts import ContextsSample
    from tandem.experiment.pipeline import SavedPhase1, TrainedTokens
    from tandem.experiment.prepared import TrainingInputs
    from tandem.training.snapshots import Snapshots

READ_SECTIONS = ("data", "contexts", "phase2")
"""Of a model's settings, what is read when it is scored; all that Tandem ever wrote have them."""
REASON_CHARACTERS = 500
"""A message gives so much of what a library says."""
CONTEXTS_SAMPLE = "contexts_sample.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
"""What a tokenizer is read from; one of them is enough."""
SNAPSHOTS = "snapshots.safetensors"
"""A few steps of phase 2 (in a run directory's `phase1`, of phase 1)."""
PHASE1_SNAPSHOTS = f"phase1_{SNAPSHOTS}"
"""In a model folder that `tandem train` wrote: those of phase 1."""
PHASE1_HEAD = "phase1_head.safetensors"
"""In a model folder: the token layers of phase 1 that phase 2 started from."""


def phase1_path(run_dir: Path, variant: str | None, context_layers: int, seed: int) -> Path:
    """Where the phase 1 result that runs of this variant, context depth and seed share lies."""
    own = "" if variant is None else f"{variant}-"
    return run_dir / "phase1" / f"{own}C{context_layers}-seed{seed}.safetensors"


def phase1_fingerprint(prepared: TrainingInputs, context_layers: int, seed: int) -> str:
    """Of everything that phase 1 depends on: the context depth, the seed, and what they are trained on."""
    settings = prepared.settings
    section = OBJECTIVES[settings.recipe].section
    return fingerprint(
        "phase1",
        settings.recipe,
        settings.model.model_dump(mode="json"),
        settings.section(section).model_dump(mode="json") if section else {},
        prepared.corpus.fingerprint,
        prepared.table(seed)[1],
        prepared.execution.bfloat16,
        context_layers,
        seed,
    )


def save_phase1(
    path: Path,
    state: dict[str, torch.Tensor],
    record: Phase1Record,
    fingerprint: str,
    snapshots: Snapshots,
) -> None:
    """Keep the weights that a finished phase 1 leaves, atomically, with a fingerprint of its inputs.

    Beside them lie its snapshots.
    """
    new_folder(path.parent)
    beside = path.with_name(f"{path.stem}-{SNAPSHOTS}")  # before the weights, with which phase 1 is finished
    beside.unlink(missing_ok=True)
    about = {"fingerprint": fingerprint, "record": record.model_dump_json(), "checksum": ABSENT}
    if snapshots:
        with atomic_write(beside) as draft:
            snapshots.save(draft)
        about["beside"] = file_digest(beside)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(path) as draft:
        save_file(tensors, draft, about)
        seal_tensors(draft)


def load_phase1(path: Path, fingerprint: str, objective: Objective) -> SavedPhase1 | None:
    """The kept phase 1, or none where there is none, it is damaged, or it came from anything else."""
    if not path.is_file():
        return None
    try:
        check_tensors(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, objective.record_type.model_validate_json(metadata["record"])
    except (OSError, SafetensorError, KeyError, ValidationError, DamageError):
        return None


def phase1_snapshots(path: Path) -> Snapshots:
    """Those beside a kept phase 1; empty where there are none that can be read."""
    from tandem.training.snapshots import Snapshots

    beside = path.with_name(f"{path.stem}-{SNAPSHOTS}")
    with suppress(OSError, SafetensorError, KeyError, ValueError, DamageError):
        check_tensors(beside)
        return Snapshots.load(beside)
    return Snapshots()


def save_model(
    folder: Path,
    trained: TrainedTokens,
    prepared: TrainingInputs,
    record: RunRecord,
    phase1: Snapshots | None = None,
) -> None:
    """A Hugging Face model folder, with its card, settings, record, a sample of its contexts, and snapshots.

    Those of `phase1` too, where no run directory has them.

    Files of other kinds in the folder stay, and so does a README.md that Tandem did not write.
    """
    with atomic_folder(folder, CONFIG, (PHASE1_HEAD, SNAPSHOTS, PHASE1_SNAPSHOTS)) as draft:
        with quiet_transformers():
            trained.model.save_pretrained(draft)
            prepared.corpus.tokenizer.save_pretrained(draft)
        trained.phase2.sample.save(draft / CONTEXTS_SAMPLE)
        for name, snapshots in ((SNAPSHOTS, trained.snapshots), (PHASE1_SNAPSHOTS, phase1)):
            if snapshots:
                snapshots.save(draft / name)
        if trained.head is not None:
            save_file({name: tensor.cpu() for name, tensor in trained.head.items()}, draft / PHASE1_HEAD)
        (draft / "settings.yaml").write_text(dump_settings(prepared.settings), "utf-8")
        (draft / RECORD).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
        if not has_foreign_card(folder):
            write_card(draft, model_card(record, prepared.settings.model.cell))
        write_checksums(draft, (CARD,))


def save_baseline(
    folder: Path, weights: Mapping[str, torch.Tensor], snapshots: Snapshots, record: RunRecord
) -> None:
    """The weights of a baseline, a few steps of its training and its record, for the audit."""
    with atomic_folder(folder, RECORD, (SNAPSHOTS,)) as draft:
        # A clone each: tensors of one file may not share memory.
        save_file({name: weight.cpu().clone() for name, weight in weights.items()}, draft / WEIGHTS)
        if snapshots:
            snapshots.save(draft / SNAPSHOTS)
        (draft / RECORD).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
        write_checksums(draft)


def save_or_rescue(folder: Path, save: Callable[[Path], None], rescued: str, lost: str) -> None:
    """`save` a model to `folder`, or where the system refuses that, to a temporary folder.

    Raises UnsavedError then. It names both, and ends with what to do where the model is `rescued` or `lost`.
    """
    try:
        save(folder)
    except Exception as error:
        if not is_out_of_storage(error):
            raise
        said = f"cannot save the model in {folder} ({storage_reason(error)})"
        place = None
        try:
            place = Path(tempfile.mkdtemp(prefix=f"tandem-{folder.name}-"))
            save(place)
            said += f"; it is whole in {place} instead{rescued}"
        except Exception:  # the first error is the one to tell
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
            said += lost
        raise UnsavedError(said) from None


def finished_model(folder: Path, prepared: TrainingInputs, run: str) -> RunRecord | None:
    """The record of the model in a folder, none where none is there.

    RunDirError where it is of anything but this run, with these settings and tokens.
    """
    if not (folder / CONFIG).exists():
        return None
    record = model_record(folder)
    if record is None:
        there = "a model whose record cannot be read"
    elif record.run != run:
        there = f"{record.run}, another run than {run}"
    elif record.settings_fingerprint != prepared.settings.fingerprint():
        there = f"a {run} of other settings"
    elif record.data.tokens_fingerprint != prepared.corpus.fingerprint:
        there = f"a {run} of other text or tokens"
    elif record.environment.precision != prepared.precision:
        there = f"a {run} that was trained in {record.environment.precision}"
    else:
        return record
    raise RunDirError(
        f"{folder} holds {there}, which would be lost"
        + advice(("give another {}", "output"), "remove that folder")
    )


def model_record(folder: Path) -> RunRecord | None:
    """The record of the run that made a model folder; none where there is none that can be read."""
    with suppress(OSError, ValueError, DataError):
        if (folder / RECORD).is_file():
            return RunRecord.model_validate_json(read_text(folder / RECORD))
    return None


def model_damage(folder: Path) -> str | None:
    """What is missing or damaged in the folder of a trained model or baseline; none where it is whole.

    Of a folder without checksums only that it is not there, or has no weights.
    """
    try:
        check_files(folder)
    except DamageError as error:
        return str(error)
    return None if (folder / WEIGHTS).is_file() else "its weights are missing"


def load_sample(folder: Path) -> ContextsSample | None:
    """The sample of contexts in a model folder; none where there is none that can be read.

    Raises DamageError for another one than was written.
    """
    check_file(folder / CONTEXTS_SAMPLE, read_checksums(folder).get(CONTEXTS_SAMPLE))
    from tandem.contexts import ContextsSample

    with suppress(OSError, SafetensorError, TypeError):
        return ContextsSample.load(folder / CONTEXTS_SAMPLE)
    return None


def load_head(folder: Path) -> dict[str, torch.Tensor] | None:
    """Phase 1's token layers in a model folder; none where there are none that can be read.

    Raises DamageError for others than were written.
    """
    check_file(folder / PHASE1_HEAD, read_checksums(folder).get(PHASE1_HEAD))
    with suppress(OSError, SafetensorError):
        return load_file(folder / PHASE1_HEAD)
    return None


def load_model(folder: Path, verify: bool = True) -> tuple[TandemForCausalLM, PreTrainedTokenizerFast]:
    """A saved model and its tokenizer. Raises RunDirError if the folder does not hold both, intact.

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
        if (kind := values.get("model_type")) != "tandem":
            raise RunDirError(f"{folder} holds a model of type '{kind}', not a Tandem model")
        config = read_config(folder)
        check_weights(folder, config)
        with quiet_transformers():
            loaded: Any = TandemForCausalLM.from_pretrained(
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
            model: TandemForCausalLM = loaded[0]
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


def _load_tokenizer(folder: Path, model: TandemForCausalLM) -> PreTrainedTokenizerFast:
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


def unused_ids(model: TandemForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Rows of the embedding that no entry of the tokenizer uses: padding, mostly."""
    return sorted(set(range(model.config.vocab_size)) - set(tokenizer.get_vocab().values()))


def _fault(
    model: TandemForCausalLM, tokenizer: PreTrainedTokenizerFast, loading: dict[str, Any]
) -> str | None:
    """What is wrong with a loaded model: the library would fill in missing weights at random."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = (name[0] if isinstance(name, tuple) else name for name in loading.get(kind, ()))
        names = (name.removeprefix("model.") for name in found)
        if wrong := sorted(name for name in names if name != HEAD or not model.config.tie_word_embeddings):
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
