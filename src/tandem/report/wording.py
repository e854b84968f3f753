"""How the report puts things: sentences in two languages, and numbers.

Every sentence is Markdown with `code` and **strong** only. Strings that come from records pass through
`literal` or `code` first.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Union

import yaml

from tandem.errors import RunDirError
from tandem.report.statistics import MOST_SEEDS, Interval, Power, Spread, perplexity
from tandem.shown import one_line

LANGUAGES = ("en", "ja")
NONE = "–"
"""Cell of a figure that does not exist."""
Value = Union[str, Sequence[object], "Message"]
"""Several are joined as the language does; a message is put into words."""


class Message:
    """A sentence before it is put into words: its key in the texts, and the values it names."""

    def __init__(self, key: str, /, **values: Value) -> None:
        self.key, self.values = key, values


class Texts:
    """All texts of the report in one language, by dotted key. Raises RunDirError for an unknown language."""

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise RunDirError(f"there is no report in language '{language}'; choose {' or '.join(LANGUAGES)}")
        self.language = language
        self.suffix = "" if language == "en" else f".{language}"
        """Part of the names of the report's files."""
        self._texts = load_texts(language)

    def __call__(self, key: str, /, **values: Value) -> str:
        """The text of `key` with its values filled in."""
        return self._texts[key].format_map({name: self._value(value) for name, value in values.items()})

    def of(self, key: str) -> str | None:
        """The text of `key` as it is written down, if there is one."""
        return self._texts.get(key)

    def say(self, *messages: Message) -> str:
        """The messages in words, one after the other."""
        return self._texts["sentence_separator"].join(self(m.key, **m.values) for m in messages)

    def join(self, items: Iterable[object]) -> str:
        """The items as a list within a sentence."""
        return self._texts["list_separator"].join(map(str, items)) or NONE

    def _value(self, value: Value) -> str:
        if isinstance(value, Message):
            return self.say(value)
        return value if isinstance(value, str) else self.join(value)


@cache
def load_texts(language: str) -> dict[str, str]:
    """The texts of one language as {dotted key: text}; what it does not name stays English."""
    texts = flatten(yaml.safe_load(read_resource(f"texts.{language}.yaml")))
    own = {key: str(text) for key, text in texts.items()}
    return own if language == "en" else load_texts("en") | own


def read_resource(name: str) -> str:
    """A text file shipped with the report."""
    return (resources.files("tandem.report") / name).read_text("utf-8")


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """{dotted key: value} of nested mappings."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def literal(text: object) -> str:
    """Text from a record, so that no character of it acts as markup."""
    return re.sub(r"([\\`*_\[\]<>&#~$])", r"\\\1", one_line(" ".join(str(text).split())))


def code(text: object) -> str:
    """Text from a record as code, between more backticks than any in it."""
    shown = one_line(str(text)) or " "
    fence = "`" * (1 + longest_run("`", shown))
    return f"{fence}{shown}{fence}" if fence == "`" else f"{fence} {shown} {fence}"


def longest_run(character: str, text: str) -> int:
    """Length of the longest run of the character."""
    return max((len(run) for run in re.findall(f"{re.escape(character)}+", text)), default=0)


# Numbers. None is a figure that does not exist.


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators, a true minus sign, and words for what is no number."""
    if value is None:
        return NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.2e}" if abs(value) >= 1e7 else f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """A difference, with its sign."""
    return ("+" if value is not None and value > 0 else "") + number(value, digits)


def nats_text(value: float | None) -> str:
    """A difference in nats per token."""
    return signed(value, 4)


def perplexity_text(value: float | None) -> str:
    """A perplexity to about four figures."""
    return number(value, 1 if value is None else 0 if value >= 1000 else 1 if value >= 10 else 2)


def ratio_text(difference: float | None) -> str:
    """Ratio of perplexities that a difference in nats per token makes."""
    return number(None if difference is None else perplexity(difference), 3)


def change_text(difference: float | None) -> str:
    """Change of perplexity that a difference in nats per token makes, in percent."""
    return NONE if difference is None else signed(100 * (perplexity(difference) - 1)) + "%"


def count_text(value: float | None) -> str:
    """A count, or a mean of counts."""
    return number(value, 0 if value is None or value == round(value) else 1)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as percent."""
    return NONE if share is None else number(100 * share, digits) + "%"


def seconds_text(value: float | None) -> str:
    """Seconds, to a sensible precision."""
    return NONE if value is None else number(value, 0 if value >= 100 else 1 if value >= 1 else 3) + " s"


def count_short(value: float | None) -> str:
    """A count of parameters as 40.2M or 976K."""
    if value is None:
        return NONE
    if value >= 1e6:
        return f"{value / 1e6:,.{1 if value >= 1e7 else 2}f}M"
    return f"{value / 1e3:,.0f}K" if value >= 1e4 else f"{value:,.0f}"


def bytes_text(value: int | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return NONE
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value} B"


def p_text(p: float | None) -> str:
    """A p-value."""
    return NONE if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def power_texts(power: Power | None) -> tuple[str, str]:
    """What could be shown, in nats per token, and the seeds that the difference at hand needs."""
    if power is None:
        return NONE, NONE
    return number(power.detectable, 4), f">{MOST_SEEDS:,}" if power.seeds is None else number(power.seeds)


def interval_text(interval: Interval | None, text: Callable[[float], str] = nats_text) -> str:
    """`[low, high]`."""
    return NONE if interval is None else f"[{text(interval[0])}, {text(interval[1])}]"


def plus_minus(spread: Spread | None, text: Callable[[float | None], str]) -> str:
    """`mean ± sd`; the mean alone for one seed."""
    if spread is None:
        return NONE
    shown = text(spread.mean)
    if spread.sd is None:
        return shown
    figure, unit = _unit(shown)
    deviation, sd_unit = _unit(text(spread.sd))
    if unit == sd_unit and math.isfinite(spread.mean):  # as many decimals as the mean shows
        scale = 100 if unit == "%" else 1
        deviation = number(scale * spread.sd, len(figure.partition(".")[2]))
    return f"{figure} ± {deviation}{unit}" if unit == sd_unit else f"{shown} ± {deviation}{sd_unit}"


def _unit(text: str) -> tuple[str, str]:
    """A number and the unit written after it."""
    figure = text.rstrip("% s")
    return figure, text[len(figure) :]
