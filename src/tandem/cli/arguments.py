"""Command-line arguments: settings of a preset, each of which can be overridden, and a command's own."""

import contextlib
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from tandem.errors import SettingsError
from tandem.settings import Positive, Seed, Settings, known_keys, load_settings, nearest_key

Arguments = TypeVar("Arguments")
Json = Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff]


class ConfigArguments(Settings):
    """Print the resolved settings of a preset or settings file, overrides included."""

    json_output: Json = False
    """Print JSON instead of YAML."""


class ExperimentArguments(Settings):
    """Train every configuration with every seed, compare them, and write the report."""

    lang: Literal["en", "ja"] = "en"
    """Language of the report."""
    json_output: Json = False
    """Print the records as JSON lines instead of the summary table."""


class TrainArguments(Settings):
    """Train one configuration into a model folder."""

    output: str | None = None
    """Model folder; none: `models/NAME-CONFIGURATION-seedSEED`."""

    context_layers: Positive = 1
    """Layers of the ContextBlock."""
    token_layers: Positive = 1
    """Layers of the TokenBlock."""
    seed: Seed = 0
    """Seed of this training."""
    json_output: Json = False
    """Print the record as JSON."""
    configurations: tyro.conf.Suppress[tuple[tuple[Positive, Positive], ...]] = ((1, 1),)
    seeds: tyro.conf.Suppress[tuple[Seed, ...]] = (0,)
    save_models: tyro.conf.Suppress[bool] = True


@dataclass(frozen=True)
class EvaluateArguments:
    """Score a model on text: perplexity, accuracy, bits per byte, effective rank, convergence rate."""

    model: Annotated[Path, tyro.conf.Positional]
    """Model folder, as `tandem train` writes it."""
    data: str
    """Text to score: any source that the setting data.train takes."""
    txt_documents: str | None = None
    """What a document is in .txt files (`file`, `blank-line`, `start:REGEX`); none: as in training."""
    separator: str | None = None
    """What stands between documents; none: as in the model's validation text."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`."""
    json_output: Json = False
    """Print JSON."""


@dataclass(frozen=True)
class GenerateArguments:
    """Continue a prompt, streaming the text as it comes; memory does not grow with its length."""

    model: Annotated[Path, tyro.conf.Positional]
    """Model folder, as `tandem train` writes it."""
    prompt: str
    """Text to continue; may be empty where the model has an end-of-text token to start from."""
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
class ReportArguments:
    """Rebuild the report of an experiment from its records alone."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Run directory of an experiment."""
    lang: Literal["en", "ja"] = "en"
    """Language of the report."""
    json_output: Json = False
    """Print the paths of the report's files as JSON."""


def parse_with_preset(
    command: str, kind: type[Settings], args: Sequence[str], default_preset: str
) -> tuple[Settings, Any]:
    """`[PRESET|FILE] [--setting value …]` → the resolved settings, and all arguments of type `kind`.

    Raises SettingsError for what cannot be understood; `--help` prints and raises SystemExit(0).
    """
    given = bool(args) and not args[0].startswith("-")
    preset, rest = (args[0], args[1:]) if given else (default_preset, args)
    own = {name for name in kind.model_fields if name not in Settings.model_fields}
    base = load_settings(preset).model_dump(exclude=set() if kind is Settings else _hidden(kind))
    prog = f"tandem {command} [PRESET|FILE]"
    _check_options(rest, kind, own, command)
    arguments = parse(prog, kind, rest, default=kind(**base))
    return Settings(**arguments.model_dump(exclude=own)), arguments


def parse(
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
        raise SettingsError(
            _first_sentence(said.getvalue()) + f"; see {prog.split(' [')[0]} --help"
        ) from None


def _hidden(kind: type[Settings]) -> set[str]:
    """Settings that a command leaves out because it has its own way to say the same."""
    return {"configurations", "seeds", "save_models"} if kind is TrainArguments else set()


def _check_options(args: Sequence[str], kind: type[Settings], own: set[str], command: str) -> None:
    """SettingsError for an option that is not known, naming the nearest one that is."""
    keys = {*known_keys(), *own} - _hidden(kind)
    options = {"--help", "-h", "--json"} | {f"--{key}" for key in keys} - {"--json_output"}
    options |= {f"--no-{key}" for key in ("save_models", "phase2.shuffle", "embeddings.trained")}
    options |= {"--phase2.no-shuffle", "--embeddings.no-trained"}
    known = {option.replace("_", "-") for option in options}
    for argument in args:
        option = argument.split("=", 1)[0].replace("_", "-")
        if not argument.startswith("--") or option in known:
            continue
        near = difflib.get_close_matches(option, sorted(known), n=1, cutoff=0.7)
        key = nearest_key(option.removeprefix("--").replace("-", "_"))
        hint = near[0] if near else f"--{key.replace('_', '-')}" if key else None
        raise SettingsError(
            f"there is no option {argument.split('=', 1)[0]}"
            + (f"; did you mean {hint}?" if hint else "")
            + f" (tandem {command} --help lists all)"
        )


def _first_sentence(box: str) -> str:
    """The message of tyro's error box, without its frame and hints, on one line."""
    lines: list[str] = []
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if not text or set(text) <= set("─"):
            if lines:
                break
            continue
        if not line.startswith("╭"):
            lines.append(text)
    return " ".join(lines) or "the arguments cannot be understood"
