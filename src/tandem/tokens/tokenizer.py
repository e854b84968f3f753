"""Tokenizers: a byte-level BPE trained on the training split, or a loaded one, and its end-of-text token."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tandem.decoding import read_text
from tandem.errors import DataError, MisfitError
from tandem.fingerprint import fingerprint
from tandem.patience import Pace, patiently
from tandem.text.hub import files_of
from tandem.text.places import user_path
from tandem.tokens.rules import Rules

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (
    *(END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<|im_end|>"),
    "[SEP]",
)
"""Customary end-of-text tokens, tried in this order where a tokenizer does not say which one is its own."""

PIECE_CHARACTERS = 1 << 15
"""Longer documents are encoded in pieces of about this length, where that changes nothing."""
CUT = re.compile(r"(?=[ \n]\S)")
UNIT_CHARACTERS = 1 << 10
"""A longer run of letters, of digits, of white space or of other characters is cut, in training and after.

BPE training takes time in the square of such a run: two to five times as long a character at 4,096.
"""
LOADED_UNIT_CHARACTERS = 1 << 16
"""The same for a loaded tokenizer of other rules, where a cut changes ids. Ordinary text has no such run."""
RUN = re.compile(r"[^\W\d_]+|\d+|\s+|(?:[^\w\s]|_)+")
VOCABULARY = "tokenizer.vocab_size"
MOST_IDS = 1 << 24
"""No vocabulary has more entries."""


class VocabularyError(MisfitError):
    """The text supports fewer merges than the vocabulary asks for; `fitting` says how many."""


def train_bpe(
    documents: Iterable[str], vocab_size: int, on_progress: Callable[[str], None] = lambda _: None
) -> Tokenizer:
    """A byte-level BPE in GPT-2's style, learned from `documents`.

    It is deterministic, and any text round-trips. Its `vocab_size` entries are `<|endoftext|>` (id 0), all
    256 bytes, and merges. `on_progress` is told every few seconds how far it is. Raises VocabularyError if
    the text does not support so many merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pace, characters = Pace(on_progress), 0
    read_at: float | None = None

    def read(left: threading.Event) -> Iterator[str]:
        nonlocal read_at, characters
        for document in documents:
            for piece in pieces(document):
                if left.is_set():
                    return
                yield piece
                characters += len(piece)
        read_at = time.monotonic()

    def how_far() -> str:
        text = f"{characters / 1e6:,.1f} million characters"
        if read_at is None:
            return f"training a BPE: read {text}"
        return f"training a BPE: learning merges of {text}, for {time.monotonic() - read_at:.0f} s so far"

    patiently(lambda left: tokenizer.train_from_iterator(read(left), trainer), lambda: pace(how_far))
    if (reached := tokenizer.get_vocab_size()) != vocab_size:
        raise VocabularyError.of(
            f"the training text supports a BPE vocabulary of {reached} entries only, not {vocab_size}",
            {VOCABULARY: reached},
            "give more text",
        )
    return tokenizer


def load_tokenizer(source: str) -> tuple[Tokenizer, str | None]:
    """The tokenizer of a tokenizer.json file, a tokenizer folder or a hub name, and its end-of-text token.

    The end-of-text token is the `eos_token` of the tokenizer_config.json beside it, else the first of
    `END_OF_TEXT_NAMES` in its vocabulary, else None. Truncation and padding are switched off.

    Raises DataError as `files_of` does, and if the tokenizer cannot be read.
    """
    path = user_path(source)
    with files_of(source, "tokenizer", "tokenizer.source", "bpe", ".json") as fetch:
        if file := path if path.is_file() else fetch("tokenizer.json"):
            tokenizer, config = read_tokenizer(file), fetch("tokenizer_config.json")
            eos = _configured_eos(config) if config else None
        else:
            tokenizer, eos = _through_transformers(str(path) if path.is_dir() else source)
    tokenizer = plain(tokenizer)
    if eos is None or tokenizer.token_to_id(eos) is None:
        eos = next((name for name in END_OF_TEXT_NAMES if tokenizer.token_to_id(name) is not None), None)
    return tokenizer, eos


def plain(tokenizer: Tokenizer | PreTrainedTokenizerFast) -> Tokenizer:
    """A copy without the truncation and padding that its file may ask for. It may be changed."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer = tokenizer.backend_tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def literal(tokenizer: Tokenizer | PreTrainedTokenizerFast) -> Tokenizer:
    """As `plain`, and special tokens in text are text; all that are alike share it, so it is not changed.

    Each thread of the library keeps up to 4 MB of words that a tokenizer has encoded, though it is gone
    (LOG.md). So a process makes few of those that encode.
    """
    return _literal(plain(tokenizer).to_str())


@lru_cache(maxsize=8)
def _literal(rules: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(rules)
    tokenizer.encode_special_tokens = True
    return tokenizer


def to_transformers(tokenizer: Tokenizer, eos: str | None) -> PreTrainedTokenizerFast:
    """`tokenizer` as transformers wants it, so that a model folder can hold it and AutoTokenizer load it.

    `eos` becomes its end-of-text token. It begins texts too, as Tandem puts it before each document, so
    generation may start from it. It pads as well, on the right, where the state is frozen: programs that
    score a padded batch then meet no prediction that was made before the text.
    """
    special = {} if eos is None else {"eos_token": eos, "bos_token": eos, "pad_token": eos}
    return PreTrainedTokenizerFast(
        tokenizer_object=plain(tokenizer),
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Of its canonical JSON: vocabulary, merges and every rule."""
    return fingerprint("tokenizer", tokenizer.to_str())


def vocab_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id, added tokens included: the rows an embedding needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def merged_pieces(tokenizer: Tokenizer, size: int) -> npt.NDArray[np.int32] | None:
    """Of each of `size` tokens the two that a BPE joined it from, [V, 2]; -1 where it did not.

    None for a tokenizer that is no BPE, or one without merges, as of whole words.
    """
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("type") != "BPE" or not model["merges"]:
        return None
    pieces, ids = np.full((size, 2), -1, np.int32), model["vocab"]
    prefix = model.get("continuing_subword_prefix") or ""
    for left, right in reversed(model["merges"]):  # the first one that makes a token counts
        joined = left + right.removeprefix(prefix)
        if joined in ids:
            pieces[ids[joined]] = ids[left], ids[right]
    return pieces


def cutter(tokenizer: Tokenizer) -> Callable[[str], Iterator[str]]:
    """How a text is cut before `tokenizer` encodes it: the one rule for training, evaluation and prompts.

    Text without a run of more than UNIT_CHARACTERS (LOADED_UNIT_CHARACTERS, where that changes ids)
    encodes to the same ids as the whole. Any text decodes to itself where that of the whole does.
    """
    if Rules(tokenizer).may_be_cut:
        return pieces
    if _cuts_are_unseen(tokenizer):
        return lambda text: (text[begin:end] for begin, end in _short_runs(text, LOADED_UNIT_CHARACTERS))
    return lambda text: iter([text])


def pieces(text: str) -> Iterator[str]:
    """`text`, cut about every `PIECE_CHARACTERS` so that a single long document costs little memory.

    A cut lies before a space or line end that a visible character follows. Where there is none, it lies
    between two tokens of GPT-2's pre-tokenizer. What stands on either side is matched as before. Runs of one
    kind of character that are longer than UNIT_CHARACTERS are cut too.
    """
    for begin, end in _short_runs(text, UNIT_CHARACTERS):
        while end - begin > PIECE_CHARACTERS and (cut := _natural_cut(text, begin, end)):
            yield text[begin:cut]
            begin = cut
        yield text[begin:end]


def _natural_cut(text: str, begin: int, end: int) -> int | None:
    """The place of the first cut after about PIECE_CHARACTERS; none where the rest is to stay whole."""
    near, far = begin + PIECE_CHARACTERS, min(begin + 2 * PIECE_CHARACTERS, end)
    if found := CUT.search(text, near, far):
        return found.start()
    # A line without spaces. What ends there may reach further in the whole text, so the last few do not
    # count; and white space is matched by what follows it, so it is not cut off from that.
    spans = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text[begin:far])
    starts = [begin + start for _, (start, _) in spans if 0 < start < far - begin - 8]
    if cut := next((start for start in reversed(starts) if not text[start - 1].isspace()), None):
        return cut
    found = CUT.search(text, near, end)
    return found.start() if found else None


def _short_runs(text: str, longest: int) -> Iterable[tuple[int, int]]:
    """Begin and end of parts of `text`, which is cut where a run of one kind of character is too long."""
    return pairwise([0, *_run_cuts(text, longest), len(text)])


def _run_cuts(text: str, longest: int) -> Iterator[int]:
    """Where runs of one kind of character are cut so that no part has more than `longest`."""
    # A longer run covers the end of one of these strides, so it is looked for there alone.
    stride, position = longest // 2, 0
    while position < len(text):
        end = _run_end(text, position)
        if end - position < stride:
            position += stride
            continue
        begin = position
        if position and _run_end(text, position - 1) == end:  # it began within the stride before
            begin -= _run_end(text[max(0, position - stride) : position][::-1], 0)
        while end - begin > longest:
            begin += longest
            yield begin
        position += (end - position) // stride * stride
        if position < end:
            position += stride


def _run_end(text: str, position: int) -> int:
    found = RUN.match(text, position)
    assert found is not None  # every character is of one of the kinds
    return found.end()


def _cuts_are_unseen(tokenizer: Tokenizer) -> bool:
    """Whether text in two parts decodes to the whole: not where a tokenizer puts a space before each text."""

    def ids(text: str) -> list[int]:
        encoded: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return encoded

    return all(
        tokenizer.decode(ids(text) + ids(text), skip_special_tokens=False) == 2 * text
        for text in ("e", "E", "1", "-", " ", "\n")
    )


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json file, as it says.

    Raises FileNotFoundError if there is none, DataError if it cannot be read.
    """
    try:
        text = read_text(path)
        _check_ids(json.loads(text))
        return Tokenizer.from_str(text)
    except (FileNotFoundError, DataError):
        raise
    except Exception as error:  # the library raises plain Exception for every kind of bad file
        raise DataError(
            f"{path} is not a tokenizer.json that can be read ({str(error).splitlines()[0]})"
        ) from None


def _check_ids(tokenizer: Any) -> None:
    """ValueError where an id is so large that the library would go through billions of others."""
    vocabulary = tokenizer["model"].get("vocab", ())
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary)]
    ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
    if any(not isinstance(number, int) or number >= MOST_IDS for number in ids):
        raise ValueError(f"an id in it is no number below {MOST_IDS:,}")


def _configured_eos(config: Path) -> str | None:
    """The `eos_token` of a tokenizer_config.json, given as a string or as an object with `content`."""
    try:
        values = json.loads(read_text(config))
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"{config} is not valid JSON ({error}); mend it or remove it") from None
    token = values.get("eos_token") if isinstance(values, dict) else None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _through_transformers(source: str) -> tuple[Tokenizer, str | None]:
    """For older forms (vocab.json and merges.txt, SentencePiece), which transformers can convert."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            source, use_fast=True, trust_remote_code=False, local_files_only=Path(source).is_dir()
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise DataError(
            f"{source} holds no tokenizer that can be loaded ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise DataError(f"{source} has no fast tokenizer; save one with a tokenizer.json")
    return loaded.backend_tokenizer, loaded.eos_token
