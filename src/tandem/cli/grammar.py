"""Mistakes on the command line: each is named, with the command that was probably meant.

Every check takes the line and gives the first mistake of its kind, with the line put right where that is
possible. Checks go on with the line put right, so that the command that is shown has all of them mended.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tandem.cli.line import Argument, Line, is_option
from tandem.cli.values import as_meant, reads
from tandem.cli.words import (
    CONFIGURATION,
    HYPHENS,
    NAMES,
    PRESETS,
    QUOTES,
    TEXTS,
    command_line,
    is_text_name,
    kind_of,
    pattern_of,
)
from tandem.errors import SettingsError
from tandem.settings import Settings, load_settings

MOST = 20
"""Mistakes on one line that are mended; a line with more is not worth it."""

SETTINGS_BYTES = 1 << 16
"""A larger text file is not tried as settings, since YAML would take minutes to read it."""
SOURCES = {
    "train": "--data.train",
    "experiment": "--data.train",
    "config": "--data.train",
    "evaluate": "--data",
    "generate": "--prompt-file",
}
"""By command, the option that takes a text file."""
PLACES = {
    "train": "a preset or settings file",
    "experiment": "a preset or settings file",
    "config": "a preset or settings file",
    "evaluate": "a model folder",
    "generate": "a model folder",
    "audit": "a run directory or model folder",
    "report": "a run directory",
}
"""By command, what it takes besides options."""
FIRST = {command for command, place in PLACES.items() if place == PLACES["train"]}
"""Commands whose own word stands before all options; that of the others stands anywhere."""
ALSO = {
    "learning-rate": "lr",
    "batch-size": "batch-positions",
    "max-length": "max-new-tokens",
    "out": "output",
    "gpu": "device",
}
"""What other programs call an option, and what it is called here."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong, in words, and what was meant, if that is known: the line, or another command."""

    what: str
    meant: Line | str | None = None
    without: Line | None = None
    """The line less what nobody can tell the meaning of: checks go on with it."""


def check(line: Line) -> None:
    """Raises SettingsError for all mistakes, with the command that was probably meant."""
    found: list[Mistake] = []
    meant: Line | str | None = line
    while isinstance(meant, Line) and len(found) < MOST:
        mistake = next(filter(None, (look(meant) for look in CHECKS)), None)
        if mistake is None:
            break
        found.append(mistake)
        meant = mistake.meant or mistake.without
    if not found:
        return
    said = "; ".join(dict.fromkeys(mistake.what for mistake in found))
    if any(mistake.meant is None for mistake in found):
        raise SettingsError(said)
    shown = command_line(meant.command, meant.args()) if isinstance(meant, Line) else meant
    raise SettingsError(f"{said}; give: {shown}")


def pasted_hyphens(line: Line) -> Mistake | None:
    """`–data.train` or `-data.train` instead of `--data.train`."""
    for index, part in _unknown(line):
        name = part.given.lstrip(f"-{HYPHENS}")
        for hyphen in HYPHENS:
            name = name.replace(hyphen, "-")
        option = line.options.get(f"--{name.replace('_', '-')}")
        if option is None or part.given.startswith("--"):
            continue
        one = part.given.startswith("-")
        what = (
            f"{part.given} begins with {'one hyphen' if one else 'a dash'}, "
            f"and options begin with two hyphens{'' if one else ' (word processors make a dash of them)'}"
        )
        again = Line.of(line.command, line.options, (f"--{name}", *part.values, *part.strays)).parts[1:]
        return Mistake(what, line.replaced(index, *again))
    return None


def pasted_quotes(line: Line) -> Mistake | None:
    """`“Once upon a time”`, which the shell takes for four words."""
    for index, part in enumerate(line.parts):
        given = (*part.values, *part.strays)
        opening = next((n for n, word in enumerate(given) if word[0:1] in tuple(QUOTES)), None)
        if opening is None or (part.option and part.option.free and not part.strays):
            continue
        closing = next((n for n in range(opening, len(given)) if given[n][-1:] in tuple(QUOTES)), None)
        if closing is None or (opening == closing and Path(given[opening]).exists()):
            continue
        text = " ".join(given[opening : closing + 1]).strip(QUOTES)
        what = f"{given[opening]} begins with a quotation mark of a word processor, which no shell knows"
        before = (part.given,) if part.given else ()
        words = (*before, *given[:opening], text, *given[closing + 1 :])
        again = Line.of(line.command, line.options, words).parts
        return Mistake(what, line.replaced(index, *(again[1:] if part.given else again)))
    return None


def unknown_option(line: Line) -> Mistake | None:
    """An option that the command does not have, with those that may have been meant."""
    for index, part in _unknown(line):
        before = line.parts[index - 1]
        if before.takes_more() and not before.values and not part.given.startswith("--"):
            continue  # meant as a value: the parser says how one that begins with a hyphen is written
        what = f"there is no option {part.given}"
        depths = (*part.values, *part.strays)
        if line.command == "train" and part.given == "--configurations" and len(depths) == 2:
            rest = line.replaced(index).with_option("--context-layers", depths[0])
            return Mistake(f"{what}, as one is trained", rest.with_option("--token-layers", depths[1]))
        maybe = _similar(part.given, line)
        if len(maybe) == 1:
            again = (maybe[0], *part.values, *part.strays)
            meant = line.replaced(index, *Line.of(line.command, line.options, again).parts[1:])
            return Mistake(f"{what}; did you mean {maybe[0]}", meant)
        hint = f"; did you mean one of {', '.join(maybe)}?" if maybe else ""
        if not maybe and part.given.lstrip("-").split(".")[0] in Settings.model_fields:
            hint = "; `tandem experiment` has it"
        return Mistake(f"{what}{hint} (tandem {line.command} --help lists all)", without=line.replaced(index))
    return None


def empty_value(line: Line) -> Mistake | None:
    """`--data.train=`, of an option that takes no empty text, or no value at all."""
    for index, part in enumerate(line.parts):
        if part.takes_more() and part.option and not part.option.many:
            what = f"{part.given} has no value (one that begins with a hyphen is written --option=-value)"
            after = line.parts[index + 1 : index + 2]
            if not after or after[0].option or not after[0].given:
                return Mistake(what)
            value = Argument(part.option, part.given, (after[0].given, *after[0].values, *after[0].strays))
            return Mistake(what, line.replaced(index + 1).replaced(index, value))
        if part.option and not part.option.free and "" in part.values:
            return Mistake(f"{part.given} is empty; give it a value, or leave it out")
    return None


def several_words(line: Line) -> Mistake | None:
    """A value of which the shell made several words: a pattern or a text without quotes."""
    own = _own_word(line)
    for index, part in enumerate(line.parts):
        if part.option is None or part.option.kind != "text" or not part.values or part.option.many:
            continue
        strays = part.strays
        remaining: tuple[str, ...] = ()
        if own and own[0] == index and (len(strays) == 1 or kind_of(strays[own[1]]) in {"model", "run"}):
            remaining = (strays[own[1]],)
            strays = strays[: own[1]] + strays[own[1] + 1 :]
        if not strays:
            continue
        words = (*part.values, *strays)
        joined = " ".join(words)
        prompt_is_there = line.command != "generate" or line.find("--prompt") or line.find("--prompt-file")
        one_text = prompt_is_there and all(kind_of(word) == "word" for word in strays)
        if part.option.free or one_text or Path(joined).exists():
            what = f"{part.given} takes one value, and without quotes this is {len(words)} words to the shell"
            return Mistake(
                what, line.replaced(index, Argument(part.option, part.given, (joined,), remaining))
            )
        if part.option.name in {*SOURCES.values(), "--data.validation"} and _are_texts(words):
            return _from_pattern(line, index, part.option.name, words)
    return None


def stray_word(line: Line) -> Mistake | None:
    """A word that is no option, no value, and not what the command takes."""
    line = _with_lists_ended(line)
    own = _own_word(line)
    for index, part in enumerate(line.parts):
        for number in range(len(part.strays)):
            if (index, number) == own:
                continue
            # The command's own word stays where it is.
            remaining = tuple(word for n, word in enumerate(part.strays) if n < number or (index, n) == own)
            group = tuple(word for n, word in enumerate(part.strays) if n >= number and (index, n) != own)
            rest = line.replaced(index, replace(part, strays=remaining))
            return _placed(line, rest, index, group, has_own=own is not None)
    return None


def other_place(line: Line) -> Mistake | None:
    """What the command takes besides options, of another kind than that."""
    own = _own_word(line)
    if own is None:
        return None
    index, number = own
    word = line.parts[index].strays[number]
    kind = kind_of(word)
    rest = _without(line, index, number)
    wrong = f"{word} is {NAMES[kind]}, and `tandem {line.command}` takes {PLACES[line.command]} here"
    if line.command in FIRST and kind == "model":
        inside = str(Path(word) / "settings.yaml")
        return Mistake(f"{wrong}, such as that model's own", _with_own(rest, inside))
    if line.command == "report" and kind == "model":
        return Mistake(wrong, command_line("audit", [word]))
    if line.command in FIRST and kind == "run":
        return Mistake(f"{wrong}; another command shows its report", command_line("report", [word]))
    if line.command in {"evaluate", "generate"} and kind == "run":
        models = sorted(path.parent for path in Path(word).glob("models/*/config.json"))
        return Mistake(wrong, _with_own(rest, str(models[0]))) if models else None
    data = line.find("--data")
    if (
        line.command == "evaluate"
        and kind in TEXTS
        and data
        and [kind_of(v) for v in data.values] == ["model"]
    ):
        index = rest.parts.index(data)
        swapped = rest.replaced(index, replace(data, values=(word,)))
        return Mistake(wrong, _with_own(swapped, data.values[0]))
    return None


def value_as_meant(line: Line) -> Mistake | None:
    """A value written in a way of elsewhere: `true`, `none`, `[0,1]`, `C2T1`, `1e6`, `−3`."""
    for index, part in enumerate(line.parts):
        if part.option is None:
            continue
        meant = as_meant(part)
        if meant is not None:
            what, now = meant
            return Mistake(what, line.replaced(index, *(() if now is None else (now,))))
    return None


def no_number(line: Line) -> Mistake | None:
    """A text where a command without settings takes a number; of settings all that is wrong is said later."""
    for index, part in enumerate(line.parts):
        numeric = part.option and part.option.kind in {"int", "float"} and line.command not in FIRST
        if numeric and part.values and not reads(float, part.values[0]):
            return Mistake(f"{part.given} takes a number, not {part.values[0]}", without=line.replaced(index))
    return None


def given_twice(line: Line) -> Mistake | None:
    """An option of several values that is given again with others; of one with one value the last counts."""
    for index, part in enumerate(line.parts):
        again = part.option and next((o for o in line.parts[:index] if o.option == part.option), None)
        if not again or not part.option or not part.option.many or again.values == part.values:
            continue
        one, other = (" ".join((p.given, *p.values)) for p in (again, part))
        values = tuple(dict.fromkeys((*again.values, *part.values)))
        remaining = line.replaced(index, replace(part, values=values))
        remaining = replace(remaining, parts=tuple(p for p in remaining.parts if p is not again))
        return Mistake(f"{one} and {other} contradict each other, so give all values to one", remaining)
    return None


def two_prompts(line: Line) -> Mistake | None:
    """Both ways to give a prompt."""
    if line.find("--prompt") and line.find("--prompt-file"):
        return Mistake("--prompt and --prompt-file each give the prompt; keep one of the two")
    return None


def missing(line: Line) -> Mistake | None:
    """What the command cannot do without."""
    if line.command not in FIRST and _own_word(line) is None:
        name = "RUN_DIR" if line.command in {"audit", "report"} else "MODEL"
        return Mistake(f"`tandem {line.command}` needs {PLACES[line.command]}", _with_own(line, name))
    if line.command == "evaluate" and not line.find("--data"):
        return Mistake("--data is missing, the text to score", line.with_option("--data", "FILE"))
    if line.command == "generate" and not line.find("--prompt") and not line.find("--prompt-file"):
        what = "--prompt is missing, the text to continue (`-` reads standard input)"
        return Mistake(what, line.with_option("--prompt", "TEXT"))
    return None


CHECKS: tuple[Callable[[Line], Mistake | None], ...] = (
    pasted_hyphens,
    pasted_quotes,
    unknown_option,
    empty_value,
    value_as_meant,
    several_words,
    stray_word,
    other_place,
    no_number,
    given_twice,
    two_prompts,
    missing,
)


def no_such_command(word: str, rest: list[str], commands: list[str]) -> str:
    """What to say of a first word that is no command, with the command that was probably meant."""
    kind = kind_of(word)
    meant = None
    if rest and rest[0] in commands:
        return f"the command comes first; give: {command_line(rest[0], [word, *rest[1:]])}"
    if kind == "model":
        meant = [
            command_line("generate", [word, "--prompt", "TEXT"]),
            command_line("evaluate", [word, "--data", "FILE"]),
        ]
    elif kind == "run":
        meant = [command_line("report", [word, *rest])]
    elif kind in TEXTS:
        meant = [command_line("train", ["--data.train", word, *rest])]
    elif kind in PRESETS:
        meant = [command_line("experiment", [word, *rest]), command_line("train", [word, *rest])]
    if meant:
        return f"{word} is {NAMES[kind]}, and a command comes first; give: {' or: '.join(meant)}"
    near = difflib.get_close_matches(word, commands, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    if is_option(word):
        hint = "; a command comes before all options"
    return f"there is no command '{word}'{hint} (commands: {', '.join(commands)})"


def _placed(line: Line, rest: Line, index: int, words: tuple[str, ...], has_own: bool) -> Mistake:
    """A stray word where it belongs; `rest` is the line without these words, the first of which it is."""
    word, kind, source = words[0], kind_of(words[0]), SOURCES.get(line.command)
    more = words[1:]
    if kind == "address" or (word == "-" and line.command in FIRST):
        twice = "- is standard input, which training cannot read twice"
        what = twice if word == "-" else f"{word} is {NAMES[kind]}"
        return Mistake(f"{what}; save the text in a file, and give that")
    free = source if source and not rest.find(source) and not rest.find("--prompt") else None
    if free and _are_texts(words):
        return _from_pattern(rest, None, free, words)
    after = _after(rest, index, more)
    said = f"{word} is {NAMES[kind]}"
    if kind == "missing file" and is_text_name(word) and free:
        what = f"a text stands after {free}, and there is no file {word} yet"
        return Mistake(what, after.with_option(free, word))
    if line.command in FIRST and kind in PRESETS and not has_own:
        return Mistake(
            f"{said}, and a preset or settings file comes first, before all options", _with_own(after, word)
        )
    if line.command == "generate" and not rest.find("--prompt") and not rest.find("--prompt-file"):
        if kind in {"text", "file"}:
            return Mistake(
                f"{said}, and the prompt is read from it by --prompt-file",
                after.with_option("--prompt-file", word),
            )
        text = " ".join(words)
        return Mistake("the prompt stands after --prompt, in quotes", rest.with_option("--prompt", text))
    if kind == "configuration" and (match := CONFIGURATION.fullmatch(word)):
        context, token = match.groups()
        if line.command == "train":
            after = after.with_option("--context-layers", context).with_option("--token-layers", token)
            return Mistake(f"{said}, and its layers are options", after)
        if line.command in FIRST:
            return Mistake(
                f"{said}, and its layers are options", after.with_option("--configurations", context, token)
            )
    name, equals, value = word.partition("=")
    if (option := line.options.get(f"--{name.replace('_', '-')}")) is not None:
        values = (value,) if equals else more
        again = Line.of(line.command, line.options, (option.name, *values)).parts[1:]
        now = after if equals else rest
        return Mistake(
            f"{name} is an option, and options begin with two hyphens",
            replace(now, parts=(*now.parts, *again)),
        )
    second = " a second one" if has_own else " it"
    return Mistake(f"{said}, and `tandem {line.command}` has no place for{second}")


def _from_pattern(rest: Line, index: int | None, option: str, words: tuple[str, ...]) -> Mistake:
    """Several files as one source of text."""
    if len(words) == 1:
        kind = NAMES[kind_of(words[0])]
        return Mistake(
            f"{words[0]} is {kind}, and a text stands after {option}", rest.with_option(option, words[0])
        )
    pattern = pattern_of(words)
    what = f"{option} takes one source, and here are {len(words)} files"
    if option == "--prompt-file" or pattern is None:
        return Mistake(f"{what}; put them into one {'file' if option == '--prompt-file' else 'folder'}")
    what += ": the shell made them of a pattern without quotes"
    if index is None:
        return Mistake(what, rest.with_option(option, pattern))
    part = rest.parts[index]
    return Mistake(what, rest.replaced(index, Argument(part.option, part.given, (pattern,))))


def _own_word(line: Line) -> tuple[int, int] | None:
    """Where the word stands that the command takes besides options: part, and number among its strays."""
    places = [(index, n, word) for index, part in enumerate(line.parts) for n, word in enumerate(part.strays)]
    if line.command in FIRST:
        first = line.parts[0].strays[:1]
        return (0, 0) if first and _may_be_settings(line, first[0]) else None
    fitting = {"model", "run"}
    best = next((p for p in places if kind_of(p[2]) in fitting), None)
    data_is_there = line.command not in SOURCES or line.find(SOURCES[line.command]) or line.find("--prompt")
    if best is None:  # a path that is no model is said to be none; a text or a sentence never was one
        unlikely = set() if data_is_there else TEXTS
        best = next((p for p in places if kind_of(p[2]) not in unlikely and " " not in p[2].strip()), None)
    return best[:2] if best else None


def _may_be_settings(line: Line, word: str) -> bool:
    """Whether the first word is to be read as a preset or settings file; if not, it is a stray one."""
    kind = kind_of(word)
    if kind == "text":
        try:
            return Path(word).stat().st_size < SETTINGS_BYTES and bool(load_settings(word))
        except (SettingsError, OSError):
            return False
    if kind == "missing file":
        return not is_text_name(word)
    option = f"--{word.partition('=')[0].replace('_', '-')}"
    if kind in PRESETS:
        return True
    return kind in {"model", "run", "word", "file", "folder"} and option not in line.options


def _with_lists_ended(line: Line) -> Line:
    """Numbers end where a file or preset stands, which an option with any number of values would take too."""
    for index, part in enumerate(line.parts):
        if part.option and part.option.many and part.option.kind == "int":
            ends = (
                n for n, word in enumerate(part.values) if kind_of(word) in PRESETS | TEXTS | {"model", "run"}
            )
            if (end := next(ends, None)) is not None:
                strays = (*part.values[end:], *part.strays)
                line = line.replaced(index, replace(part, values=part.values[:end], strays=strays))
    return line


def _are_texts(words: tuple[str, ...]) -> bool:
    kinds = {kind_of(word) for word in words}
    return kinds <= TEXTS | {"file"} and not kinds.isdisjoint(TEXTS)


def _unknown(line: Line) -> Iterator[tuple[int, Argument]]:
    return ((index, part) for index, part in enumerate(line.parts) if part.option is None and part.given)


def _similar(given: str, line: Line) -> list[str]:
    """Options that may be meant by a name."""
    known = sorted(line.options)
    name = given.replace("_", "-").lstrip("-")
    if len(name) == 1:
        return [option for option in known if option.startswith(f"--{name}") and "." not in option]
    if name in {"data", "text", "input", "file"} and line.command in SOURCES:
        return [SOURCES[line.command]]
    if near := difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.7):
        return near
    name = ALSO.get(name, name)
    lasts = {option: option.rsplit(".", 1)[-1].lstrip("-") for option in known}
    if same := [option for option, last in lasts.items() if name.rsplit(".", 1)[-1] == last]:
        return same
    words = set(name.rsplit(".", 1)[-1].split("-"))
    if within := [option for option, last in lasts.items() if words <= set(last.split("-"))]:
        return within
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(lasts.values()), n=1, cutoff=0.75)
    return [next(option for option, last in lasts.items() if last == near[0])] if near else []


def _without(line: Line, index: int, number: int) -> Line:
    part = line.parts[index]
    return line.replaced(index, replace(part, strays=(*part.strays[:number], *part.strays[number + 1 :])))


def _with_own(line: Line, word: str) -> Line:
    """With the command's own word before all options."""
    return line.replaced(0, replace(line.parts[0], strays=(word, *line.parts[0].strays)))


def _after(line: Line, index: int, words: tuple[str, ...]) -> Line:
    part = line.parts[index]
    return line.replaced(index, replace(part, strays=(*part.strays, *words)))
