"""Command-line arguments: settings of a preset, each of which can be overridden, and a command's own."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro
from pydantic import Field, TypeAdapter, ValidationError

from tandem.advice import named
from tandem.baselines import BASELINES
from tandem.cli.grammar import check
from tandem.cli.line import Line, Option, options_of
from tandem.cli.values import reads
from tandem.cli.words import PRESETS, kind_of
from tandem.errors import SettingsError
from tandem.settings import Positive, Seed, Settings, load_settings, sentence
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
    seed: int = 0
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
    strict: bool = False
    """The exit code is 1 also where something could not be checked."""
    quick: bool = False
    """Recompute the first seed of each configuration and of each baseline only; records and data are checked
    whole. Other runs are said to be not checked."""
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
    given = bool(args) and not args[0].startswith("-")
    preset = args[0] if given else default_preset
    if _asks_for_help(args):
        preset = preset if kind_of(preset) in PRESETS else default_preset
        _help(f"tandem {command} [PRESET|FILE]", kind, kind(**_settings_of(preset, kind)))
    line = _checked(command, kind, args)
    arguments = kind(**_with_options(_settings_of(preset, kind), line))
    own = set(kind.model_fields) - set(Settings.model_fields)
    settings = Settings(**arguments.model_dump(exclude=own))
    if getattr(arguments, "all_baselines", False):
        every = settings.baselines.model_copy(update={"models": tuple(BASELINES)})
        settings = settings.model_copy(update={"baselines": every})
    return settings, arguments


def parse(command: str, kind: type[Arguments], args: Sequence[str]) -> Arguments:
    """Arguments of a command that has no preset. Raises as `parse_with_preset`."""
    if _asks_for_help(args):
        _help(f"tandem {command}", kind)
    line = _checked(command, kind, args)
    own_word = next(word for part in line.parts for word in part.strays)
    values = {next(iter(inspect.signature(kind).parameters)): own_word}
    try:
        return TypeAdapter(kind).validate_python(_with_options(values, line))
    except ValidationError as error:
        raise SettingsError(sentence(error, shown_as=named)) from None


def _asks_for_help(args: Sequence[str]) -> bool:
    """Wherever it stands: whoever asks for help may have written the rest wrongly."""
    return not {"-h", "--help"}.isdisjoint(args)


def _help(prog: str, kind: type[Any], default: Settings | None = None) -> NoReturn:
    """Print the options with their defaults, and raise SystemExit(0)."""
    for name in hidden_settings(kind):  # tyro looks at annotations alone, which pydantic has read long ago
        kind.__annotations__[name] = Annotated[kind.model_fields[name].annotation, tyro.conf.Suppress]
    extra: dict[str, Any] = {} if default is None else {"default": default}
    tyro.cli(kind, prog=prog, args=["--help"], **extra)
    raise SystemExit(0)


def _checked(command: str, kind: type, args: Sequence[str]) -> Line:
    line = Line.of(command, options_of(kind, hidden_settings(kind)), args)
    check(line)
    return line


def _settings_of(preset: str, kind: type[Settings]) -> dict[str, Any]:
    """Those of a preset or file, without those that the command leaves out."""
    loaded = named_from_here(load_settings(preset), Path(preset))
    return loaded.model_dump(exclude=hidden_settings(kind) - {"variants", "configurations"})


def _with_options(values: dict[str, Any], line: Line) -> dict[str, Any]:
    """Values by name, with what a line says otherwise; a text stays one where it is not what it should be."""
    for part in line.parts:
        if (option := part.option) is None:
            continue
        *sections, key = option.key.split(".")
        section = values
        for name in sections:
            section = section[name]
        given = [_value(option, word) for word in part.values]
        if option.kind == "switch":
            section[key] = part.given.replace("_", "-") == option.name
        elif option.pairs and given != [None]:
            section[key] = [given[first : first + 2] for first in range(0, len(given), 2)]
        else:
            section[key] = given if option.many and given != [None] else given[0]
    return values


def _value(option: Option, word: str) -> str | float | None:
    read: Callable[[str], float] | None = {"int": int, "float": float}.get(option.kind)
    if option.none and word == "None":
        return None
    return read(word) if read and reads(read, word) else word


def option_names(command: str) -> dict[str, str]:
    """The options of a command, such as `--phase2.lr`, by the names of the settings or arguments they give.

    Those of a text to score go by the settings that say the same of training text. Empty for no command.
    """
    if (kind := ARGUMENTS.get(command)) is None:
        return {}
    options = options_of(kind, hidden_settings(kind)).values()
    names = {option.key: option.name for option in options if option.key not in NAMED_OTHERWISE}
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
