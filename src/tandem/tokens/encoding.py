"""Documents to tokens, by the rules for what stands between documents.

Encoding takes the text of documents literally: the end-of-text token and other special tokens come from the
separator alone, never from text that happens to spell them. (A tokenizer's added tokens that are not marked
special are matched in text, as everywhere.)
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, pre_tokenizers

from tandem.advice import advice
from tandem.errors import DataError
from tandem.patience import Pace, patiently
from tandem.tokens.lost import Decoding, Lost, such_as
from tandem.tokens.store import Ids, TokenStream, ids_dtype, make_stream
from tandem.tokens.tokenizer import cutter, is_byte_level, plain, vocab_size

Counts = npt.NDArray[np.int64]

BATCH_CHARACTERS = 1 << 20
"""Text encoded at once; bounds the memory that encodings take (some 200 bytes a character)."""

# Set explicitly, this keeps the library silent when a later subprocess forks; it uses its threads either way.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@dataclass(frozen=True)
class Encoded:
    """Documents in a row as tokens.

    ids        [T] uint16 or int32
    lengths    [D] tokens of each document, those of its separator included
    sizes      [D] UTF-8 bytes of each document's text, separator text included
    lost       [D] those of them that the tokens cannot give back
    such_as    the first few characters of these
    """

    ids: Ids
    lengths: Counts
    sizes: Counts
    lost: Counts
    such_as: tuple[str, ...]


class Encoder:
    """How the documents of one split become tokens.

    With separator `eos` the end-of-text token comes before every document: EOS doc1 EOS doc2 … Any other
    separator is text, encoded with the document that it follows, and not after the last. `on_encoded` is told
    how many characters were encoded since it was last told.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos: str | None,
        separator: str,
        on_encoded: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Raises DataError if the separator is `eos` and the tokenizer has none."""
        # A copy, as the switch that takes special tokens in text literally belongs to the tokenizer object.
        self._tokenizer = plain(tokenizer)
        self._tokenizer.encode_special_tokens = True
        self._decoding = Decoding(tokenizer)
        self._cut = cutter(self._tokenizer)
        self._on_encoded = on_encoded
        self._lead: list[int] = []
        self._between = separator
        self.dtype = ids_dtype(vocab_size(tokenizer))
        if separator == "eos":
            eos_id = None if eos is None else tokenizer.token_to_id(eos)
            if eos_id is None:
                raise DataError(
                    "the tokenizer has no end-of-text token to stand between documents"
                    + advice(("give a text for it with {}, such as a blank line", "data.separator"))
                )
            self._lead, self._between = [eos_id], ""

    def encode(self, documents: Sequence[str], first: int, last: int) -> Encoded:
        """The documents first..last-1 of all `documents`, as they stand in the stream of all."""
        sizes = np.zeros(last - first, np.int64)

        def texts() -> Iterator[tuple[int, str]]:
            for number in range(first, last):
                text = self._text(documents, number)
                sizes[number - first] = len(text.encode())
                for piece in self._cut(text):
                    yield number - first, piece

        parts: list[np.ndarray] = [np.empty(0, self.dtype)]
        lengths, lost = np.zeros(last - first, np.int64), np.zeros(last - first, np.int64)
        examples: tuple[str, ...] = ()
        for batch in _batches(texts()):
            batch_texts = [piece for _, piece in batch]
            encoded = [encoding.ids for encoding in self._encode_batch(batch_texts)]
            missing = self._decoding.lost(batch_texts, encoded)
            for (number, _), ids, units in zip(batch, encoded, missing, strict=True):
                ids = ids if lengths[number] else self._lead + ids
                lengths[number] += len(ids)
                parts.append(np.array(ids, self.dtype))
                if units:
                    lost[number] += _bytes(units)
                    examples = such_as((*examples, *units))
            self._on_encoded(sum(map(len, batch_texts)))
        return Encoded(np.concatenate(parts), lengths, sizes, lost, examples)

    def _encode_batch(self, texts: list[str]) -> list[Encoding]:
        made: list[Encoding] = patiently(
            lambda _: self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        )
        return made

    def scored_bytes(
        self, documents: Sequence[str], lengths: Counts, sizes: Counts, lost: Lost, source: str
    ) -> int:
        """UTF-8 bytes that all tokens but the first stand for; lengths and sizes [D] as in `Encoded`.

        All of the text after a leading end-of-text token; else the bytes of the very first token are not
        scored, as nothing predicts it. What is lost counts, wherever it stands. Raises DataError, which names
        `source`, for fewer than two tokens.
        """
        if lengths.sum() < 2:
            if lost.bytes:
                raise DataError(
                    f"the tokenizer has no tokens for the text of {source}, which holds {lost.examples}; "
                    "give text of the kind that the tokenizer was made for, or use another tokenizer"
                )
            raise DataError(
                f"{source} gives {lengths.sum()} token(s), but predicting the next one takes at least 2; "
                "add text"
            )
        total = int(sizes.sum())
        if self._lead:
            return total
        return total - self._first_token_bytes(self._text(documents, int(np.flatnonzero(lengths)[0])))

    def _text(self, documents: Sequence[str], number: int) -> str:
        """What is encoded of one document."""
        return documents[number] + (self._between if number < len(documents) - 1 else "")

    def _first_token_bytes(self, text: str) -> int:
        """UTF-8 bytes of `text` that its first token stands for, and gives back."""
        before = 0
        for piece in self._cut(text):
            encoding = self._tokenizer.encode(piece, add_special_tokens=False)
            if len(encoding):
                break
            before += len(piece.encode())
        text, token = piece, encoding.tokens[0]
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        if is_byte_level(self._tokenizer) and set(token) <= alphabet:
            added_space = token.startswith("Ġ") and not text.startswith(" ")
            return len(token) - added_space
        # Elsewhere a token is a range of characters; what lies before the second one belongs to the first.
        rest = encoding.offsets[1][0] if len(encoding) > 1 else len(text)
        first = text[:rest]
        (missing,) = self._decoding.lost([first], [encoding.ids[:1]])
        return max(0, before + len(first.encode()) - _bytes(missing))


def encode_documents(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    eos: str | None,
    separator: str,
    chain: str,
    source: str,
    on_progress: Callable[[str], None] = lambda _: None,
) -> TokenStream:
    """`documents` as one stream of tokens, in memory; `Encoder` has the rules.

    `chain` is the fingerprint of what the stream is made from; `source` names the text in errors.
    `on_progress` is told every few seconds how far it is.

    Raises DataError if the end-of-text token is asked for but `eos` is None, or if fewer than two tokens
    result.
    """
    encoder = Encoder(tokenizer, eos, separator, characters_told(on_progress))
    made = encoder.encode(documents, 0, len(documents))
    lost = Lost(bytes=int(made.lost.sum()), such_as=made.such_as)
    scored = encoder.scored_bytes(documents, made.lengths, made.sizes, lost, source)
    return make_stream(chain, made.ids, np.cumsum(made.lengths) - made.lengths, made.sizes, scored, lost)


def _bytes(units: Counter[str]) -> int:
    """UTF-8 bytes of these, each as often as it says."""
    return sum(times * len(unit.encode()) for unit, times in units.items())


def characters_told(on_progress: Callable[[str], None]) -> Callable[[int], None]:
    """For an `Encoder`: tells every few seconds how many characters are encoded in all."""
    pace, done = Pace(on_progress), 0

    def encoded(characters: int) -> None:
        nonlocal done
        done += characters
        pace(lambda: f"encoded {done / 1e6:,.1f} million characters")

    return encoded


def _batches(numbered: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """`numbered` pieces in lists of about `BATCH_CHARACTERS` characters, at least one piece each."""
    batch: list[tuple[int, str]] = []
    characters = 0
    for number, piece in numbered:
        batch.append((number, piece))
        characters += len(piece)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
