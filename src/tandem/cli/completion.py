"""Scripts by which a shell completes commands, presets and options; values are names of files to it."""

import shlex
from collections.abc import Iterator

from tandem.cli.arguments import ARGUMENTS, hidden_settings
from tandem.cli.line import OF_SETTINGS
from tandem.cli.options import Option, options_of
from tandem.cli.usage import COMMANDS
from tandem.settings import preset_names

# So zsh reads the script for bash.
ZSH = "autoload -Uz compinit bashcompinit; (( $+functions[compdef] )) || compinit; bashcompinit\n"
BASH = """_tandem() {{
    local last="${{COMP_WORDS[COMP_CWORD]}}" first="" options=""
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    (( COMP_CWORD == 1 )) && first="{commands}" options="--help --version"
    (( COMP_CWORD > 2 )) && first=""
    [[ "$last" == -* ]] && first="$options"
    COMPREPLY=($(compgen -W "$first" -- "$last"))
}}
complete -o default -F _tandem tandem"""


def script(shell: str) -> str:
    """What `shell` (bash, zsh or fish) is to read."""
    if shell == "fish":
        return "\n".join(_fish())
    words = {name: f'first="{_first(name)}" options="{" ".join(_long(name))}"' for name in COMMANDS}
    cases = "\n".join(f"        {name}) {given} ;;" for name, given in words.items())
    return (ZSH if shell == "zsh" else "") + BASH.format(cases=cases, commands=" ".join(COMMANDS))


def _long(command: str) -> dict[str, Option]:
    """The long options of a command, by name."""
    found = options_of(ARGUMENTS[command], hidden_settings(ARGUMENTS[command]))
    return {name: option for name, option in found.items() if name.startswith("--")}


def _first(command: str) -> str:
    """What may stand first after a command, besides options and names of files."""
    return " ".join(preset_names()) if command in OF_SETTINGS else "bash zsh fish" * (command == "completion")


def _fish() -> Iterator[str]:
    for command, summary in COMMANDS.items():
        yield f"complete -c tandem -n __fish_use_subcommand -f -a {command} -d {shlex.quote(summary)}"
        there = f"complete -c tandem -n '__fish_seen_subcommand_from {command}'"
        yield f"{there} -a '{_first(command)}'"
        for name, option in _long(command).items():
            yield f"{there} -l {name.removeprefix('--')}{'' if option.kind is bool else ' -r'}"
