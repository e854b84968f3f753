"""Documents to tokens, by the rules for what stands between documents.

The text of documents is encoded literally: special tokens, such as that of end-of-text, come from separators
alone. A tokenizer's added tokens that are not marked special are matched in text, as everywhere.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from tandem.advice import advice
from tandem.errors import DataError
from tandem.patience import Pace, patiently
from tandem.tokens.lost import NOTHING_LOST, Decoding
from tandem.tokens.rules import Rules
from tandem.tokens.store import TokenStream, ids_dtype
from tandem.tokens.tokenizer import cutter, literal, vocab_size

BATCH_CHARACTERS = 1 << 20
"""Characters of text encoded at once. Encodings take some 200 bytes a character."""

# Set explicitly, this keeps the library silent when a later subprocess forks. It uses its threads either way.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class Encoder:
    """How the documents of one split become tokens.

    With separator `eos` the end-of-text token comes before every document: EOS doc1 EOS doc2 … Any other
    separator is text. It is encoded with the document that it follows, and not after the last.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos: str | None,
        separator: str,
        on_encoded: Callable[[int], None] | None = None,
    ) -> None:
        """`on_encoded` is told the number of characters of each batch.

        Raises DataError if the separator is `eos` and the tokenizer has none.
        """
        self._tokenizer = literal(tokenizer)
        self._decoding = Decoding(tokenizer)
        self._cut = cutter(self._tokenizer)
        self._on_encoded = on_encoded or (lambda _: None)
        self._dtype = ids_dtype(vocab_size(tokenizer))
        self._lead: list[int] = []
        self._between = separator
        if separator == "eos":
            eos_id = None if eos is None else tokenizer.token_to_id(eos)
            if eos_id is None:
                raise DataError(
                    "the tokenizer has no end-of-text token to stand between documents"
                    + advice(("give a text for it, such as a blank line by {}", "data.separator \n\n"))
                )
            self._lead, self._between = [eos_id], ""

    def encode(self, documents: Sequence[str], first: int = 0, last: int | None = None) -> TokenStream:
        """Documents first..last-1 of all `documents`, as they stand in the stream of all.

        All of their text is among the `scored_bytes`.
        """
        last = len(documents) if last is None else last
        sizes, lengths = np.zeros((2, last - first), np.int64)

        def numbered_pieces() -> Iterator[tuple[int, str]]:
            for number in range(first, last):
                text = self._text(documents, number)
                sizes[number - first] = len(text.encode())
                for piece in self._cut(text):
                    yield number - first, piece

        parts, lost = [np.empty(0, self._dtype)], NOTHING_LOST
        for batch in _batches(numbered_pieces()):
            texts = [piece for _, piece in batch]
            encoded = self._encode_batch(texts)
            lost += self._decoding.lost(texts, encoded)
            for (number, _), ids in zip(batch, encoded, strict=True):
                ids = ids if lengths[number] else self._lead + ids
                lengths[number] += len(ids)
                parts.append(np.array(ids, self._dtype))
            self._on_encoded(sum(map(len, texts)))
        return TokenStream(np.concatenate(parts), lengths.cumsum() - lengths, sizes, int(sizes.sum()), lost)

    def encode_all(self, documents: Sequence[str], chain: str, source: str) -> TokenStream:
        """`documents` as one stream with this `chain`, in memory; raises as `with_scored_bytes`."""
        return self.with_scored_bytes(replace(self.encode(documents), chain=chain), documents, source)

    def with_scored_bytes(self, stream: TokenStream, documents: Sequence[str], source: str) -> TokenStream:
        """The stream of all `documents` with the bytes that are scored.

        After a leading end-of-text token that is all of the text. Else nothing predicts the very first token.
        Raises DataError, which names `source`, for fewer than two tokens.
        """
        if len(stream) < 2:
            raise DataError(
                f"the tokenizer has no tokens for the text of {source}, which holds {stream.lost.examples}; "
                "give text of the kind that the tokenizer was made for, or use another tokenizer"
                if stream.lost.bytes
                else f"{source} gives {len(stream)} token(s), but predicting the next one takes at least 2; "
                "add text"
            )
        return self._without_first_token(stream, documents)

    def encode_each(self, documents: Sequence[str]) -> list[TokenStream]:
        """Every document as a stream of its own, as `encode_all` of it alone; none has too few tokens.

        The separator is to be `eos` or empty.
        """
        assert not self._between
        whole = self.encode(documents)
        if whole.lost.bytes:
            streams = [self.encode([document]) for document in documents]
        else:
            edges = pairwise([*whole.document_starts.tolist(), len(whole)])
            start = whole.document_starts[:1]
            streams = [
                TokenStream(whole.ids[first:last], start, whole.document_bytes[n : n + 1], int(size))
                for n, ((first, last), size) in enumerate(zip(edges, whole.document_bytes, strict=True))
            ]
        return [
            self._without_first_token(stream, [document]) if len(stream) else stream
            for stream, document in zip(streams, documents, strict=True)
        ]

    def spans(self, document: str) -> list[tuple[int, int]]:
        """Where the characters of each token of a document begin and end, that before documents left out.

        A tokenizer may leave spaces out of them; tokens that share a character all have it.
        """
        spans, begin = [], 0
        for piece in self._cut(document):
            offsets = self._tokenizer.encode(piece, add_special_tokens=False).offsets
            spans += [(begin + first, begin + last) for first, last in offsets]
            begin += len(piece)
        return spans

    def _without_first_token(self, stream: TokenStream, documents: Sequence[str]) -> TokenStream:
        """With the bytes that are scored, of a stream that has any token."""
        if self._lead:
            return stream
        # Documents without a token may come before the first one that has any.
        first = int(np.searchsorted(stream.document_starts, 0, side="right")) - 1
        unscored = self._first_token_bytes(self._text(documents, first))
        return replace(stream, scored_bytes=stream.scored_bytes - unscored)

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        encoded = patiently(lambda _: self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        return [encoding.ids for encoding in encoded]

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
        token = encoding.tokens[0]
        if Rules(self._tokenizer).is_byte_level and set(token) <= set(pre_tokenizers.ByteLevel.alphabet()):
            added_space = token.startswith("Ġ") and not piece.startswith(" ")
            return len(token) - added_space
        # Elsewhere a token is a range of characters. What lies before the second one belongs to the first.
        first = piece[: encoding.offsets[1][0]] if len(encoding) > 1 else piece
        lost = self._decoding.lost([first], [encoding.ids[:1]])
        return max(0, before + len(first.encode()) - lost.bytes)


def count_characters(on_progress: Callable[[str], None]) -> Callable[[int], None]:
    """For an `Encoder`: tells every few seconds how many characters are encoded in all."""
    pace, done = Pace(on_progress), 0

    def on_encoded(characters: int) -> None:
        nonlocal done
        done += characters
        pace(lambda: f"encoded {done / 1e6:,.1f} million characters")

    return on_encoded


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
