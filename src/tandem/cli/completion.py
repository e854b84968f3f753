"""Scripts by which a shell completes commands, presets and options; values are names of files to it."""

import shlex
from collections.abc import Iterator
from typing import get_args

from tandem.cli.arguments import ARGUMENTS, CompletionArguments, hidden_settings
from tandem.cli.line import OF_SETTINGS
from tandem.cli.options import Option, options_of
from tandem.cli.usage import COMMANDS
from tandem.settings import preset_names


def script(shell: str) -> str:
    """What `shell` (bash, zsh or fish) is to read."""
    return "\n".join(_fish() if shell == "fish" else _bash(zsh=shell == "zsh"))


def _options(command: str) -> dict[str, Option]:
    """The long options of a command, by name."""
    kind = ARGUMENTS[command]
    found = options_of(kind, hidden_settings(kind))
    return {name: option for name, option in found.items() if name.startswith("--")}


def _words(command: str) -> list[str]:
    """What may stand first after a command, besides options and names of files."""
    shells = get_args(CompletionArguments.model_fields["shell"].annotation)
    return preset_names() if command in OF_SETTINGS else list(shells) if command == "completion" else []


def _bash(zsh: bool) -> Iterator[str]:
    if zsh:
        yield "autoload -Uz compinit bashcompinit"
        yield "(( $+functions[compdef] )) || compinit"
        yield "bashcompinit"
    yield "_tandem() {"
    yield '    local last="${COMP_WORDS[COMP_CWORD]}" first="" options=""'
    yield '    case "${COMP_WORDS[1]}" in'
    for command in COMMANDS:
        first, options = " ".join(_words(command)), " ".join(_options(command))
        yield f'        {command}) first="{first}" options="{options}" ;;'
    yield "    esac"
    yield f'    (( COMP_CWORD == 1 )) && first="{" ".join(COMMANDS)}" options="--help --version"'
    yield '    (( COMP_CWORD > 2 )) && first=""'
    yield '    [[ "$last" == -* ]] && first="$options"'
    yield '    COMPREPLY=($(compgen -W "$first" -- "$last"))'
    yield "}"
    yield "complete -o default -F _tandem tandem"


def _fish() -> Iterator[str]:
    for command, summary in COMMANDS.items():
        yield f"complete -c tandem -n __fish_use_subcommand -f -a {command} -d {shlex.quote(summary)}"
        there = f"complete -c tandem -n '__fish_seen_subcommand_from {command}'"
        if words := _words(command):
            yield f"{there} -a '{' '.join(words)}'"
        for name, option in _options(command).items():
            yield f"{there} -l {name.removeprefix('--')}{'' if option.kind is bool else ' -r'}"
