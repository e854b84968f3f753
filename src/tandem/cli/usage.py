"""What `tandem --help` and `tandem --version` print, at once: nothing here imports a library."""

from collections.abc import Sequence

COMMANDS = {
    "experiment": "train and compare configurations over several seeds, and write the report",
    "train": "train one configuration into a model folder",
    "adapt": "train a model's token layers on other text",
    "evaluate": "score a model on text",
    "score": "score and filter documents one by one, or minimal pairs",
    "generate": "continue a prompt",
    "ensemble": "average several models' probabilities in one model folder",
    "quantize": "copy a model with weights of 8 bits, a quarter of the size",
    "audit": "check what an experiment or a model says of itself",
    "report": "rebuild an experiment's report from its records, also as CSV or for LaTeX",
    "compare": "compare two experiments on the same text",
    "config": "list the presets, or print one with all its settings",
    "doctor": "say what this machine has for Tandem, and what is missing",
    "completion": "print a script by which a shell completes commands and options",
}
HELP = {"-h", "--help", "help"}  # with a command or without


def answer(args: Sequence[str]) -> str | None:
    """What to print for arguments that ask for no command; none for those that do."""
    if not args or (args[0] in HELP and not COMMANDS.keys() & set(args[1:2])):
        commands = "\n".join(f"  {name:12}{summary}" for name, summary in COMMANDS.items())
        end = "`tandem COMMAND --help` lists every setting with its default and unit."
        return f"usage: tandem COMMAND …\n\n{commands}\n\n{end}"
    if args[0] in {"-V", "--version"}:
        from importlib import metadata

        return f"tandem {metadata.version('tandem-lm')}"
    return None
