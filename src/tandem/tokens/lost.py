"""Text that tokens cannot give back: found by decoding them again, counted in UTF-8 bytes.

A tokenizer may drop a character, give an unknown token for it, or change it first (lower case, accents, white
space). Such text costs no bits in the tokens' likelihood, so it is counted here, and charged apart.

Two texts are compared by what they hold, wherever it stands: single characters, and runs of white space. The
spaces that decoders set between words make up for none but single spaces. Those at either end of a text do
not count, as many tokenizers put one there and take it away again.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from tandem.tokens.rules import Rules
from tandem.tokens.tokenizer import plain

UNIT = re.compile(r"\s+|\S")
EXAMPLES, EXAMPLE_CHARACTERS = 5, 8


class Lost(BaseModel):
    """Text that tokens cannot give back.

    bytes      UTF-8 bytes of it.
    such_as    the first few different characters, or runs of white space, of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int = 0
    such_as: tuple[str, ...] = ()

    def __add__(self, other: "Lost") -> "Lost":
        return Lost(bytes=self.bytes + other.bytes, such_as=_first_few((*self.such_as, *other.such_as)))

    def sentence(self, what: str, total: int) -> str:
        """How much of `what`, which has `total` bytes, is lost, and what comes of it."""
        return (
            f"{what}: its tokens cannot give back {self.bytes:,} of {total:,} bytes "
            f"({self.bytes / max(1, total):.2%}), such as {self.examples}; "
            "bits per byte charge 8 bits for each of them"
        )

    @property
    def examples(self) -> str:
        """What was lost first, as a person can read it whatever it is."""
        return ", ".join(map(repr, self.such_as))


NOTHING_LOST = Lost()


def _first_few(units: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(unit[:EXAMPLE_CHARACTERS] for unit in units))[:EXAMPLES]


class Decoding:
    """What a tokenizer's tokens give back of the text that they were made from."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        rules = Rules(tokenizer)
        self._lossless, self._unknown = rules.is_lossless, rules.unknown_id
        if self._lossless:
            return
        self._tokenizer = plain(tokenizer)
        if (decoder := rules.exact_decoder) is not None:
            self._tokenizer.decoder = decoder

    def lost(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> Lost:
        """What the ids of each text do not give back of it, of all texts together."""
        if self._lossless:
            return NOTHING_LOST
        decoded = self._tokenizer.decode_batch(list(ids), skip_special_tokens=False)
        missing = [
            item
            for text, back, row in zip(texts, decoded, ids, strict=True)
            for item in self._missing(text, back, sum(token == self._unknown for token in row)).items()
        ]
        return Lost(
            bytes=sum(times * len(unit.encode()) for unit, times in missing),
            such_as=_first_few(unit for unit, _ in missing),
        )

    def _missing(self, text: str, back: str, unknown: int) -> Counter[str]:
        """Units of a text that does not come back whole, how often each. `unknown` counts unknown tokens."""
        if text == back and not unknown:
            return Counter()
        there = Counter(UNIT.findall(text.strip(" ")))
        given = Counter(UNIT.findall(back.strip(" ")))
        if unknown:
            assert self._unknown is not None
            # Decoding spells the token's name, whose characters were never there.
            given -= Counter((self._tokenizer.id_to_token(self._unknown) or "") * unknown)
        missing = there - given
        # Where a word was dropped, the spaces beside it come back as one run, or at an end.
        spare = sum(len(run) * times for run, times in (given - there).items() if not run.strip(" "))
        spare += len(back) - len(back.strip(" "))
        missing[" "] = max(0, missing[" "] - spare)
        missing = +missing
        if (normalizer := self._tokenizer.normalizer) is None:
            return missing
        # What a changed character became (T → t) must not make up for one of that kind that was dropped.
        became: Counter[str] = Counter()
        for unit, times in missing.items():
            for other in normalizer.normalize_str(unit):
                became[other] += 0 if other == unit or other.isspace() else times
        for unit in became:
            gone = min(there[unit], there[unit] + became[unit] - given[unit])
            if gone > 0:
                missing[unit] = gone
        return missing
