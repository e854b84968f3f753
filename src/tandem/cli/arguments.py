"""Command-line arguments: settings of a preset, each of which can be overridden, and a command's own."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tandem.advice import named
from tandem.baselines import BASELINES
from tandem.cli.line import read
from tandem.cli.options import Option, options_of
from tandem.errors import SettingsError
from tandem.folders import look
from tandem.settings import Depth, Place, Positive, Seed, Settings, load_settings, preset_names, sentence
from tandem.shown import command as typed
from tandem.text.listing import known_kind
from tandem.text.recorded import named_from_here
from tandem.text.sources import source_of

Json = Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff]

OF_EXPERIMENTS = {"configurations", "seeds", "save_models", "workers", "executor"}
"""Settings that mean nothing to a single training, beside the sections on which no result depends."""
SETTINGS_BYTES = 1 << 16
"""A larger text file is not tried as settings, since YAML would take minutes to read it."""
HELP = {"-h", "--help"}
"""Wherever one of these stands: whoever asks for help may have written the rest wrongly."""
Arguments = TypeVar("Arguments", bound="OwnArguments")


class ConfigArguments(Settings):
    """Print the resolved settings of a preset or settings file, overrides included."""

    json_output: Json = False
    """Print JSON instead of YAML."""


class ExperimentArguments(Settings):
    """Train every configuration with every seed, compare them, audit the runs, and write the report."""

    all_baselines: Annotated[bool, tyro.conf.arg(name="baselines"), tyro.conf.FlagCreatePairsOff] = False
    """Run all baselines beside the configurations; `--baselines.models` names single ones."""

    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Prepare the text, print what the runs would take (time, memory, disk), and run nothing."""
    lang: Literal["en", "ja"] = "en"
    """Language of the report."""
    json_output: Json = False
    """Print the records as JSON lines instead of the summary table."""


class TrainArguments(Settings):
    """Train one configuration into a model folder."""

    output: Annotated[Place, Field(min_length=1)] | None = None
    """Model folder; none: `models/NAME-CONFIGURATION-seedSEED`."""

    context_layers: Depth | None = None
    """Layers of the ContextBlock; none: those of the first of the settings' `configurations`."""
    token_layers: Depth | None = None
    """Layers of the TokenBlock; none: those of the first of the settings' `configurations`."""
    seed: Seed = 0
    """Seed of this training."""
    variant: str | None = None
    """Which of the `variants` in the settings file to train; none: the settings without them."""
    force_new: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train anew, where the same training has ended already or was stopped."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Prepare the text, print what the training would take (time, memory, disk), and train nothing."""
    json_output: Json = False
    """Print the record as JSON."""


class OwnArguments(BaseModel):
    """Base of the arguments of a command that takes no settings."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class EvaluateArguments(OwnArguments):
    """Score a model on text: perplexity, accuracy, bits per byte, effective rank, convergence rate."""

    model: Annotated[Path, tyro.conf.Positional]
    """Model folder, as `tandem train` writes it."""
    data: str
    """Text to score: any source that the setting data.train takes, or `-`: text on standard input."""
    txt_documents: str | None = None
    """What a document is in .txt files (`file`, `blank-line`, `start:REGEX`); none: as in training."""
    separator: str | None = None
    """What stands between documents; none: as in the model's validation text."""
    mix: bool = False
    """Score also a mixture of the model with an n-gram, counted on its training text, and a cache of the last
    2,000 tokens. What it says is shown apart."""
    adapt: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Score also the model as it goes on learning from the text: each part is scored, then learned from. What
    it says is shown apart, and the model folder stays as it is."""
    int8: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Round the weights to 8 bits, which is faster on a CPU, and the `auto` device is one."""
    verify: bool = True
    """Compare the files of the model with their checksums first."""
    threads: Positive | None = None
    """Threads of the CPU; none: one for each core."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`."""
    json_output: Json = False
    """Print JSON."""


class ScoreArguments(OwnArguments):
    """Score every document by itself, and write its figures beside its own fields; or score minimal pairs."""

    model: Annotated[Path, tyro.conf.Positional]
    """Model folder, as `tandem train` writes it."""
    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """JSON lines, Parquet, or text with one document a line: files, folders, patterns, or `-`. Where none is
    given, standard input is read."""
    text_field: str | None = None
    """Field or column that holds a text; none: `text`, or the contents of `messages`."""
    output: Path | None = None
    """File to write, .jsonl or .parquet; none: JSON lines on standard output. A stopped run goes on where it
    was when the same command is given again."""
    tokens: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add `token_scores`: the characters and the surprisal of each token."""
    words: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add `word_scores`: the same of each word between white space, as a sum over its tokens."""
    contrast: Path | None = None
    """Another model folder; `contrast_bits_per_byte` is what MODEL needs more than that one."""
    also: tuple[Path, ...] = ()
    """More model folders with the same ContextBlock, as `tandem adapt` makes them. The text is read once for
    all; each adds `NAME_bits_per_byte`, where NAME is its folder's."""
    min_perplexity: float | None = None
    """Keep documents of at least this perplexity."""
    max_perplexity: float | None = None
    """Keep documents of at most this perplexity."""
    keep_quantile: float | None = None
    """Keep this share of the documents: those of the lowest perplexity, or of the lowest contrast."""
    rejected: Path | None = None
    """File for the documents that are not kept, .jsonl or .parquet; none: they are left out."""
    pairs: str | None = None
    """Instead of FILES: minimal pairs, with `good` and `bad` (or BLiMP's names) and perhaps a `group`."""
    verify: bool = True
    """Compare the files of the model with their checksums first."""
    threads: Positive | None = None
    """Threads of the CPU; none: one for each core."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`."""
    json_output: Json = False
    """Print the accuracies of --pairs as JSON."""


class GenerateArguments(OwnArguments):
    """Continue a prompt, streaming the text as it comes; memory does not grow with its length."""

    model: Annotated[Path, tyro.conf.Positional]
    """Model folder, as `tandem train` writes it."""
    prompt: str = ""
    """Text to continue (`-`: what standard input holds); may be empty where the model has an end-of-text
    token to start from. This or `--prompt-file` must be given."""
    prompt_file: str | None = None
    """File that holds the text to continue, of any length; its last line end is not part of it."""
    max_new_tokens: Annotated[int, tyro.conf.arg(metavar="TOKENS")] = 100
    """Tokens to generate at most; the end-of-text token ends earlier."""
    temperature: float = 1.0
    """Softmax temperature; 0: always the likeliest token."""
    top_k: int | None = None
    """Sample from this many likeliest tokens only; none: all."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability; none: all."""
    seed: int = 0
    """Seed of the sampling."""
    int8: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Round the weights to 8 bits, which is faster on a CPU, and the `auto` device is one."""
    verify: bool = True
    """Compare the files of the model with their checksums first."""
    threads: Positive | None = None
    """Threads of the CPU; none: one for each core."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`."""
    json_output: Json = False
    """Print one JSON object at the end instead of streaming text."""


class AdaptArguments(OwnArguments):
    """Train new token layers of a model on other text; its context layers and embedding stay."""

    model: Annotated[Path, tyro.conf.Positional]
    """Model folder, as `tandem train` writes it."""
    data: str
    """Text to adapt to: any source that the setting data.train takes."""
    validation: str | None = None
    """Text to choose the best epoch by; none: a part of the documents of `data`."""
    output: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the adapted model; none: `MODEL-adapted`."""
    seed: Seed = 0
    """Seed of this training."""
    threads: Positive | None = None
    """Threads of the CPU; none: one for each core."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`."""
    force_new: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train anew, where the same training has ended already or was stopped."""
    json_output: Json = False
    """Print the record as JSON."""


class EnsembleArguments(OwnArguments):
    """Average the probabilities of several models: one model folder, better than each of them."""

    model: Annotated[Path, tyro.conf.Positional]
    """Model folder, as `tandem train` writes it."""
    others: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """More model folders with the same tokenizer, such as those of other seeds."""
    output: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the ensemble; none: `MODEL-ensemble`."""
    verify: bool = True
    """Compare the files of the models with their checksums first."""
    json_output: Json = False
    """Print the folder and its members as JSON."""


class QuantizeArguments(OwnArguments):
    """Copy a model folder with weights of 8 bits: a quarter of the size, faster on a CPU, for inference."""

    model: Annotated[Path, tyro.conf.Positional]
    """Model folder, as `tandem train` writes it."""
    output: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the copy; none: `MODEL-int8`."""
    verify: bool = True
    """Compare the files of the model with their checksums first."""
    json_output: Json = False
    """Print the folder and the bytes of both as JSON."""


class AuditArguments(OwnArguments):
    """Check what an experiment or a model says of itself; the exit code is 1 if a check fails."""

    path: Annotated[Path, tyro.conf.Positional]
    """Run directory of an experiment, or a model folder."""
    strict: bool = False
    """The exit code is 1 also where something could not be checked."""
    quick: bool = False
    """Recompute the first seed of each configuration and of each baseline only; records and data are checked
    whole. Other runs are said to be not checked."""
    json_output: Json = False
    """Print the audit as JSON."""


class ReportArguments(OwnArguments):
    """Rebuild the report of an experiment from its records alone."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Run directory of an experiment."""
    lang: Literal["en", "ja"] = "en"
    """Language of the report."""
    only: Annotated[Literal["md", "html", "csv", "latex"] | None, tyro.conf.arg(name="format")] = None
    """Write this alone: text, page, every model's figures, or a table for LaTeX; none: text and page."""
    json_output: Json = False
    """Print the paths of the report's files as JSON."""


class CompareArguments(OwnArguments):
    """Compare two experiments on the same text: every configuration and baseline that both have."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Run directory of the first experiment."""
    others: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run directory of the second one."""
    json_output: Json = False
    """Print the comparison as JSON."""


class DoctorArguments(OwnArguments):
    """Say what this machine has for Tandem: versions, device, memory, extras, and whether bf16 is faster."""

    json_output: Json = False
    """Print JSON."""


class CompletionArguments(OwnArguments):
    """Print a script by which a shell completes commands, presets and options."""

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """Shell that will read the script."""


ARGUMENTS: dict[str, type[Any]] = {
    "experiment": ExperimentArguments,
    "train": TrainArguments,
    "evaluate": EvaluateArguments,
    "score": ScoreArguments,
    "generate": GenerateArguments,
    "adapt": AdaptArguments,
    "ensemble": EnsembleArguments,
    "quantize": QuantizeArguments,
    "audit": AuditArguments,
    "report": ReportArguments,
    "compare": CompareArguments,
    "config": ConfigArguments,
    "doctor": DoctorArguments,
    "completion": CompletionArguments,
}
"""What each command takes."""
NAMED_OTHERWISE = ("help", "json_output", "all_baselines")
"""Options that no message advises."""
OF_SCORED_TEXT = {"data.train": "data", "data.txt_documents": "txt_documents", "data.separator": "separator"}
"""Arguments of `tandem evaluate` that say of its text what these settings say of training text."""


def parse_with_preset(
    command: str, kind: type[Settings], args: Sequence[str], default_preset: str
) -> tuple[Settings, Any]:
    """`[PRESET|FILE] [--setting value …]` → the resolved settings, and all arguments of type `kind`.

    Raises SettingsError for what cannot be understood; `--help` prints and raises SystemExit(0).
    """
    if HELP & set(args):
        first = args[0]
        there = first in preset_names() or (first.endswith((".yaml", ".yml")) and Path(first).is_file())
        default = kind(**_settings_of(first if there else default_preset, kind))
        _help(f"tandem {command} [PRESET|FILE]", kind, default)
    preset, given = read(command, _options(kind), args)
    values = _settings_of(preset or default_preset, kind)
    given |= {"baselines.models": list(BASELINES)} if given.get("all_baselines") else {}
    for key, value in given.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    arguments = kind(**values)
    return Settings(**arguments.model_dump(include=set(Settings.model_fields))), arguments


def parse(command: str, kind: type[Arguments], args: Sequence[str]) -> Arguments:
    """Arguments of a command that has no preset. Raises as `parse_with_preset`."""
    if HELP & set(args):
        _help(f"tandem {command}", kind)
    own, given = read(command, _options(kind), args)
    try:
        return kind(**({} if own is None else {next(iter(kind.model_fields)): own}), **given)
    except ValidationError as error:
        raise SettingsError(sentence(error, shown_as=named)) from None


def _help(prog: str, kind: type[Any], default: Settings | None = None) -> NoReturn:
    """Print the options with their defaults, and raise SystemExit(0)."""
    for name in hidden_settings(kind):  # tyro looks at annotations alone, which pydantic has read long ago
        kind.__annotations__[name] = Annotated[kind.model_fields[name].annotation, tyro.conf.Suppress]
    extra: dict[str, Any] = {} if default is None else {"default": default}
    if os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"  # which tyro knows
    tyro.cli(kind, prog=prog, args=["--help"], **extra)
    raise SystemExit(0)


def _options(kind: type[BaseModel]) -> dict[str, Option]:
    return options_of(kind, hidden_settings(kind))


def _settings_of(preset: str, kind: type[Settings]) -> dict[str, Any]:
    """Those of a preset or file, without those that the command leaves out.

    Raises SettingsError, which says of a text that it is one.
    """
    path = Path(preset)
    is_text = source_of(preset) is not None or known_kind(path) or glob.has_magic(preset)
    try:
        if is_text and path.is_file() and path.stat().st_size > SETTINGS_BYTES:
            raise SettingsError(preset)
        loaded = named_from_here(load_settings(preset), path)
    except SettingsError:
        if not is_text and look(path).kind != "other":
            raise
        right = typed("--data.train", preset)
        raise SettingsError(
            f"{preset} is no preset or settings file; if it is your text, give {right}"
        ) from None
    return loaded.model_dump(exclude=hidden_settings(kind) - {"variants", "configurations"})


def option_names(command: str) -> dict[str, str]:
    """The options of a command, such as `--phase2.lr`, by the names of the settings or arguments they give.

    Those of a text to score go by the settings that say the same of training text. Empty for no command.
    """
    if (kind := ARGUMENTS.get(command)) is None:
        return {}
    names = {o.key: o.name for o in _options(kind).values() if o.key not in NAMED_OTHERWISE}
    return names | {key: names[own] for key, own in OF_SCORED_TEXT.items() if kind is EvaluateArguments}


def hidden_settings(kind: type) -> set[str]:
    """Settings that a command leaves out because it has its own way to say the same."""
    if not issubclass(kind, Settings):
        return set()
    hidden = {"variants"}  # which have too many levels for a command line, and stand in files only
    if kind is TrainArguments:
        executors = {name for name, section in kind.subsections().items() if not section.changes_results}
        hidden |= OF_EXPERIMENTS | executors
    return hidden
