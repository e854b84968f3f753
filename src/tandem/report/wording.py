"""How the report words things: texts in two languages, numbers, and the little markup that sentences carry.

Every sentence is *light Markdown*: `code`, **strong**, and a backslash before a character meant literally.
Markdown output takes it as it is; HTML output converts it. Strings that come from records pass through
`literal` or `code` first.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import yaml
from markupsafe import Markup, escape

from tandem.errors import RunDirError
from tandem.report.statistics import Spread, perplexity
from tandem.shown import one_line

LANGUAGES = ("en", "ja")
NONE = "–"
"""Stands in a cell for a figure that there is none of."""

Value = str | Sequence[str]


@dataclass(frozen=True)
class Message:
    """A sentence before it is put into words: a key of the texts, and the values it names."""

    key: str
    values: Mapping[str, Value] = field(default_factory=dict)
    variant: str | None = None
    """Of which variant it is said, where it holds for one alone."""


class Texts:
    """All texts of the report in one language, by dotted key."""

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise RunDirError(f"there is no report in language '{language}'; choose {' or '.join(LANGUAGES)}")
        self.language = language
        self._texts = load_texts(language)

    def __call__(self, key: str, **values: Value) -> str:
        """The text of `key` with its values filled in; several values are joined as the language does."""
        joined = {
            name: value if isinstance(value, str) else self._texts["list_separator"].join(value)
            for name, value in values.items()
        }
        return self._texts[key].format_map(joined)

    def of(self, key: str) -> str | None:
        """The text of `key` as it is written down, if there is one."""
        return self._texts.get(key)

    def say(self, message: Message) -> str:
        """A message in words."""
        said = self(message.key, **message.values)
        return said if message.variant is None else self("of_variant", variant=message.variant, said=said)


@cache
def load_texts(language: str) -> dict[str, str]:
    """The texts of one language as {dotted key: text}."""
    return _flatten(yaml.safe_load(read_resource(f"texts.{language}.yaml")))


def read_resource(name: str) -> str:
    """A text file shipped with the report."""
    return (resources.files("tandem.report") / name).read_text("utf-8")


def _flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat


# Light Markdown


def literal(text: object) -> str:
    """Text from a record, so that no character of it acts as markup."""
    return re.sub(r"([\\`*_\[\]<>&#~$])", r"\\\1", one_line(" ".join(str(text).split())))


def code(text: object) -> str:
    """Text from a record as code, between more backticks than any in it."""
    shown = one_line(str(text)) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}{shown}{fence}" if fence == "`" else f"{fence} {shown} {fence}"


_INLINE = re.compile(
    r"\\(?P<literal>[\\`*_\[\]<>&#~$|])"
    r"|`(?P<code>[^`]+)`(?!`)"
    r"|(?P<fence>``+) (?P<fenced>.+?) (?P=fence)(?!`)"
    r"|\*\*(?P<strong>.+?)\*\*"
)


def inline_html(text: str) -> Markup:
    """Light Markdown as HTML, everything else escaped."""
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts.append(escape(text[end : match.start()]))
        if match["literal"] is not None:
            parts.append(escape(match["literal"]))
        elif match["strong"] is not None:
            parts.append(Markup("<strong>{}</strong>").format(inline_html(match["strong"])))
        else:
            parts.append(Markup("<code>{}</code>").format(match["code"] or match["fenced"]))
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def plain(text: str) -> str:
    """Light Markdown without its marks."""
    return _INLINE.sub(
        lambda match: (
            plain(match["strong"])
            if match["strong"]
            else match["literal"] or match["code"] or match["fenced"]
        ),
        text,
    )


# Numbers


def number(value: float | None, digits: int) -> str:
    """With thousands separators, a true minus sign, and words for what is no number."""
    if value is None:
        return NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e7:
        return f"{value:.2e}"
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """A difference, with its sign."""
    return ("+" if value is not None and value > 0 else "") + number(value, digits)


def perplexity_text(value: float | None) -> str:
    """A perplexity to about four figures."""
    large = value is not None and value >= 1000
    return number(value, 0 if large else 1 if value is None or value >= 10 else 2)


def count_text(value: float | None) -> str:
    """A count, or a mean of counts."""
    return number(value, 0 if value is None or value == round(value) else 1)


def nats_text(value: float | None) -> str:
    """A difference in nats per token."""
    return signed(value, 4)


def df_text(value: float | None) -> str:
    """Degrees of freedom."""
    return number(value, 1 if value is not None and value < 100 else 0)


def interval_text(interval: tuple[float, float] | None, text: Callable[[float], str]) -> str:
    """`[low, high]`."""
    return NONE if interval is None else f"[{text(interval[0])}, {text(interval[1])}]"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as percent."""
    return number(None if share is None else 100 * share, digits) + ("" if share is None else "%")


def seconds_text(value: float | None) -> str:
    """Seconds, to a sensible precision."""
    if value is None:
        return NONE
    return number(value, 0 if value >= 100 else 1 if value >= 1 else 3) + " s"


def count_short(value: float | None) -> str:
    """A count of parameters as 40.2M or 976K."""
    if value is None:
        return NONE
    if value >= 1e7:
        return f"{value / 1e6:,.1f}M"
    if value >= 1e6:
        return f"{value / 1e6:,.2f}M"
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


def seeds_text(seeds: Sequence[int]) -> tuple[str, ...]:
    """Seeds, to be joined as the language does."""
    return tuple(str(seed) for seed in seeds) or (NONE,)


def change_text(difference: float | None) -> str:
    """Change of perplexity that a difference in nats per token makes, in percent."""
    if difference is None:
        return NONE
    return signed(100 * (perplexity(difference) - 1), 1) + "%"


def error_text(value: float) -> str:
    """A numerical error, in powers of ten."""
    return "0" if value == 0 else f"{value:.1e}".replace("-", "−")


def plus_minus(spread: Spread | None, text: Callable[[float | None], str], mean: float | None = None) -> str:
    """`mean ± sd`; the mean alone for one seed. `mean` replaces the arithmetic mean."""
    if spread is None:
        return NONE
    shown = text(spread.mean if mean is None else mean)
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


def span(spread: Spread | None, text: Callable[[float | None], str]) -> str:
    """`low–high`, or the one value."""
    if spread is None:
        return NONE
    low, high = text(spread.low), text(spread.high)
    return low if low == high else f"{low}–{high}"
