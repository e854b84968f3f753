"""Command-line arguments: settings of a preset, each of which can be overridden, and a command's own."""

import contextlib
import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import Field

from tandem.baselines import BASELINES
from tandem.cli.grammar import check
from tandem.cli.line import Line, Option, options_of
from tandem.cli.values import reads
from tandem.cli.words import PRESETS, kind_of
from tandem.errors import SettingsError
from tandem.settings import (
    Positive,
    Seed,
    Settings,
    known_keys,
    load_settings,
)
from tandem.text.recorded import named_from_here

Arguments = TypeVar("Arguments")
Json = Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff]


OF_EXPERIMENTS = {"configurations", "seeds", "save_models", "workers", "executor"}
"""Settings that mean nothing to a single training, beside the sections on which no result depends."""


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

    output: Annotated[str, Field(min_length=1)] | None = None
    """Model folder; none: `models/NAME-CONFIGURATION-seedSEED`."""

    context_layers: Positive | None = None
    """Layers of the ContextBlock; none: those of the first of the settings' `configurations`."""
    token_layers: Positive | None = None
    """Layers of the TokenBlock; none: those of the first of the settings' `configurations`."""
    seed: Seed = 0
    """Seed of this training."""
    variant: str | None = None
    """Which of the `variants` in the settings file to train; none: the settings without them."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Prepare the text, print what the training would take (time, memory, disk), and train nothing."""
    json_output: Json = False
    """Print the record as JSON."""


@dataclass(frozen=True)
class EvaluateArguments:
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
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`."""
    json_output: Json = False
    """Print JSON."""


@dataclass(frozen=True)
class GenerateArguments:
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
    seed: Seed = 0
    """Seed of the sampling."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`."""
    json_output: Json = False
    """Print one JSON object at the end instead of streaming text."""


@dataclass(frozen=True)
class AuditArguments:
    """Check what an experiment or a model says of itself; the exit code is 1 if a check fails."""

    path: Annotated[Path, tyro.conf.Positional]
    """Run directory of an experiment, or a model folder."""
    json_output: Json = False
    """Print the audit as JSON."""


@dataclass(frozen=True)
class ReportArguments:
    """Rebuild the report of an experiment from its records alone."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Run directory of an experiment."""
    lang: Literal["en", "ja"] = "en"
    """Language of the report."""
    json_output: Json = False
    """Print the paths of the report's files as JSON."""


ARGUMENTS: dict[str, type[Any]] = {
    "experiment": ExperimentArguments,
    "train": TrainArguments,
    "evaluate": EvaluateArguments,
    "generate": GenerateArguments,
    "audit": AuditArguments,
    "report": ReportArguments,
    "config": ConfigArguments,
}
"""What each command takes."""
NAMED_OTHERWISE = ("json_output", "all_baselines")
"""Arguments whose options are not called as they are."""
OF_SCORED_TEXT = {"data.train": "data", "data.txt_documents": "txt_documents", "data.separator": "separator"}
"""Arguments of `tandem evaluate` that say of its text what these settings say of training text."""


def parse_with_preset(
    command: str, kind: type[Settings], args: Sequence[str], default_preset: str
) -> tuple[Settings, Any]:
    """`[PRESET|FILE] [--setting value …]` → the resolved settings, and all arguments of type `kind`.

    Raises SettingsError for what cannot be understood; `--help` prints and raises SystemExit(0).
    """
    line = Line.of(command, options_of(kind, hidden_settings(kind)), args)
    given = bool(args) and not args[0].startswith("-")
    preset, rest = (args[0], args[1:]) if given else (default_preset, args)
    if _asks_for_help(args):
        rest = ["--help"]
        preset = preset if kind_of(preset) in PRESETS else default_preset
    else:
        check(line)
    own = _own(kind)
    loaded = named_from_here(load_settings(preset), Path(preset))
    base = loaded.model_dump(exclude=hidden_settings(kind) - {"variants", "configurations"})
    for name in hidden_settings(kind):  # tyro looks at annotations alone, which pydantic has read long ago
        kind.__annotations__[name] = Annotated[kind.model_fields[name].annotation, tyro.conf.Suppress]
    prog = f"tandem {command} [PRESET|FILE]"
    try:
        arguments = _parse(prog, kind, rest, default=kind(**base))
    except SettingsError:
        kind(**_with_options(base, line))  # tyro says what is wrong with one section alone, this with all
        raise
    settings = Settings(**arguments.model_dump(exclude=own))
    if getattr(arguments, "all_baselines", False):
        every = settings.baselines.model_copy(update={"models": tuple(BASELINES)})
        settings = settings.model_copy(update={"baselines": every})
    return settings, arguments


def _with_options(values: dict[str, Any], line: Line) -> dict[str, Any]:
    """Settings with what a line says otherwise; a text stays one where it is not what it should be."""
    for part in line.parts:
        if part.option is None or part.option.kind == "switch" or not part.values:
            continue
        *sections, key = part.option.name.removeprefix("--").replace("-", "_").split(".")
        section = values
        for name in sections:
            section = section[name]
        given = [_value(part.option, word) for word in part.values]
        if key in ("configurations", "untrained"):
            section[key] = [given[first : first + 2] for first in range(0, len(given), 2)]
        else:
            section[key] = given if part.option.many and given != [None] else given[0]
    return values


def _value(option: Option, word: str) -> str | float | None:
    read: Callable[[str], float] | None = {"int": int, "float": float}.get(option.kind)
    if option.none and word == "None":
        return None
    return read(word) if read and reads(read, word) else word


def parse(command: str, kind: type[Arguments], args: Sequence[str]) -> Arguments:
    """Arguments of a command that has no preset. Raises SettingsError for what cannot be understood."""
    if _asks_for_help(args):
        args = ["--help"]
    else:
        check(Line.of(command, options_of(kind, hidden_settings(kind)), args))
    return _parse(f"tandem {command}", kind, args)


def _parse(
    prog: str, kind: type[Arguments], args: Sequence[str], default: Arguments | None = None
) -> Arguments:
    """Parse with tyro; what it cannot parse becomes one SettingsError sentence."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            extra: dict[str, Any] = {} if default is None else {"default": default}
            return tyro.cli(kind, prog=prog, args=list(args), **extra)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        sentence = _first_sentence(said.getvalue())
        raise SettingsError(f"{sentence}; see {prog.split(' [')[0]} --help") from None


def option_names(command: str) -> dict[str, str]:
    """The options of a command, such as `--phase2.lr`, by the names of the settings or arguments they give.

    Those of a text to score go by the settings that say the same of training text. Empty for no command.
    """
    kind = ARGUMENTS.get(command)
    if kind is None:
        return {}
    if issubclass(kind, Settings):
        hidden = hidden_settings(kind)
        keys = {key for key in known_keys() if key.split(".")[0] not in hidden} | _own(kind)
        return {key: _option(key) for key in keys if key not in NAMED_OTHERWISE}
    options = {name: _option(name) for name in inspect.signature(kind).parameters}
    return options | {key: options[own] for key, own in OF_SCORED_TEXT.items() if kind is EvaluateArguments}


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _own(kind: type[Settings]) -> set[str]:
    """Arguments of a command that are no settings."""
    return {name for name in kind.model_fields if name not in Settings.model_fields}


def hidden_settings(kind: type) -> set[str]:
    """Settings that a command leaves out because it has its own way to say the same."""
    if not issubclass(kind, Settings):
        return set()
    hidden = {"variants"}  # which have too many levels for a command line, and stand in files only
    if kind is TrainArguments:
        executors = {name for name, section in kind.subsections().items() if not section.changes_results}
        hidden |= OF_EXPERIMENTS | executors
    return hidden


def _asks_for_help(args: Sequence[str]) -> bool:
    """Wherever it stands: whoever asks for help may have written the rest wrongly."""
    return not {"-h", "--help"}.isdisjoint(args)


def _first_sentence(box: str) -> str:
    """The message of tyro's error box, without its title, frame and hints, on one line.

    The frame is of box characters, or of blanks and hyphens where the terminal has no others.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯─ ")
        if text and set(text) != {"-"} and not line.startswith("╭"):
            parts[-1].append(text)
        elif parts[-1]:
            parts.append([])
    titled = not box.startswith("╭") and len(parts) > 1  # without a frame the title is a part of its own
    return " ".join(parts[1 if titled else 0]) or "the arguments cannot be understood"
