"""Tokenizers: a byte-level BPE trained on the training split, or a loaded one, and its end-of-text token."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tandem.errors import DataError
from tandem.fingerprint import fingerprint
from tandem.text.files import user_path
from tandem.text.hub import hub_access

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (
    END_OF_TEXT,
    "</s>",
    "<eos>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<|eot_id|>",
    "<|im_end|>",
    "[SEP]",
)
"""Customary end-of-text tokens, tried in this order where a tokenizer does not say which one is its own."""

PIECE_CHARACTERS = 1 << 15
"""Longer documents are encoded in pieces of about this length, where that changes nothing."""
CUT = re.compile(r"(?=[ \n]\S)")


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE in GPT-2's style, learned from `documents`: deterministic, any text round-trips.

    Its `vocab_size` entries are `<|endoftext|>` (id 0), all 256 bytes, and merges. Raises DataError if the
    text does not support so many merges.
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
    tokenizer.train_from_iterator((piece for document in documents for piece in pieces(document)), trainer)
    if (reached := tokenizer.get_vocab_size()) != vocab_size:
        raise DataError(
            f"the training text supports a BPE vocabulary of {reached} entries only, not {vocab_size}; "
            f"lower it with --tokenizer.vocab-size {reached}, or give more text"
        )
    return tokenizer


def load_tokenizer(source: str) -> tuple[Tokenizer, str | None]:
    """The tokenizer of a tokenizer.json file, a tokenizer folder or a hub name, and its end-of-text token.

    The end-of-text token is the `eos_token` of the tokenizer_config.json beside it, else the first of
    `END_OF_TEXT_NAMES` in its vocabulary, else None. Truncation and padding are switched off.

    Raises DataError if there is no such tokenizer, it cannot be read, or the hub cannot be reached.
    """
    path = user_path(source)
    if path.is_file():
        tokenizer, config = read_tokenizer(path), path.with_name("tokenizer_config.json")
        eos = _configured_eos(config) if config.is_file() else None
    elif path.is_dir() and (path / "tokenizer.json").is_file():
        return load_tokenizer(str(path / "tokenizer.json"))
    elif path.is_dir():
        tokenizer, eos = _through_transformers(str(path), f"the folder {source}")
    elif source.endswith(".json") or source.startswith((".", "/", "~", "\\")) or source.count("/") > 1:
        raise DataError(f"there is no tokenizer file or folder {source}; check --tokenizer.source")
    else:
        tokenizer, eos = _from_hub(source)
    tokenizer = plain(tokenizer)
    if eos is None or tokenizer.token_to_id(eos) is None:
        eos = next((name for name in END_OF_TEXT_NAMES if tokenizer.token_to_id(name) is not None), None)
    return tokenizer, eos


def plain(tokenizer: Tokenizer | PreTrainedTokenizerFast) -> Tokenizer:
    """A copy that encodes all of every text and nothing else: without the truncation and padding that its
    file may ask for. What is changed in it changes nothing elsewhere."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer = tokenizer.backend_tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def to_transformers(tokenizer: Tokenizer, eos: str | None) -> PreTrainedTokenizerFast:
    """`tokenizer` as transformers wants it, so that a model folder can hold it and AutoTokenizer load it.

    `eos` becomes its end-of-text token, and its beginning-of-text token too: Tandem puts it before each
    document, so generation may start from it. It pads as well, on the left, where the state is frozen.
    """
    special = {} if eos is None else {"eos_token": eos, "bos_token": eos, "pad_token": eos}
    return PreTrainedTokenizerFast(
        tokenizer_object=plain(tokenizer),
        clean_up_tokenization_spaces=False,
        padding_side="left",  # generation continues at the right end of a batch
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Of its canonical JSON: vocabulary, merges and every rule."""
    return fingerprint("tokenizer", tokenizer.to_str())


def vocab_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id, added tokens included: the rows an embedding needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether every character of a token's string stands for one byte, as in GPT-2."""
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    kinds = [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))]
    return "ByteLevel" in kinds


def may_be_cut(tokenizer: Tokenizer) -> bool:
    """Whether `pieces` of a text encode to the same ids as the whole: so with GPT-2's pre-tokenizer."""
    rules = json.loads(tokenizer.to_str())
    pre = rules["pre_tokenizer"] or {}
    return (
        pre.get("type") == "ByteLevel"
        and pre.get("use_regex", True)
        and not pre.get("add_prefix_space", True)
        and rules["normalizer"] is None
        and all(token["special"] for token in rules["added_tokens"])
    )


def pieces(text: str) -> Iterator[str]:
    """`text`, cut about every `PIECE_CHARACTERS` so that a single long document costs little memory.

    Cuts lie before a space or line end that a visible character follows: no token of GPT-2's pre-tokenizer
    reaches across these, and what stands on either side is matched as before.
    """
    begin = 0
    while len(text) - begin > PIECE_CHARACTERS:
        cut = CUT.search(text, begin + PIECE_CHARACTERS)
        if cut is None:
            break
        yield text[begin : cut.start()]
        begin = cut.start()
    yield text[begin:]


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json file, as it says.

    Raises FileNotFoundError if there is none, DataError if it cannot be read.
    """
    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except FileNotFoundError:
        raise
    except Exception as error:  # the library raises plain Exception for every kind of bad file
        raise DataError(
            f"{path} is not a tokenizer.json that can be read ({str(error).splitlines()[0]})"
        ) from None


def _configured_eos(config: Path) -> str | None:
    """The `eos_token` of a tokenizer_config.json, given as a string or as an object with `content`."""
    try:
        values = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{config} is not valid JSON ({error}); mend it or remove it") from None
    token = values.get("eos_token") if isinstance(values, dict) else None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _from_hub(name: str) -> tuple[Tokenizer, str | None]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    with hub_access() as reachable:
        try:
            tokenizer = read_tokenizer(Path(hf_hub_download(name, "tokenizer.json")))
        except (LocalEntryNotFoundError, ConnectionError):
            raise DataError(_unreachable(name) if not reachable else _interrupted(name)) from None
        except EntryNotFoundError:
            return _through_transformers(name, f"the hub's '{name}'")
        except HFValidationError:
            raise DataError(
                f"'{name}' is neither a file, a folder nor a hub name; check --tokenizer.source"
            ) from None
        except (HfHubHTTPError, OSError):
            raise DataError(
                f"the hub has no tokenizer '{name}' that is open to you; check --tokenizer.source"
            ) from None
        try:
            return tokenizer, _configured_eos(Path(hf_hub_download(name, "tokenizer_config.json")))
        except (EntryNotFoundError, HfHubHTTPError, ConnectionError):
            return tokenizer, None


def _through_transformers(source: str, shown: str) -> tuple[Tokenizer, str | None]:
    """For older forms (vocab.json and merges.txt, SentencePiece), which transformers can convert."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise DataError(
            f"{shown} holds no tokenizer that can be loaded ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise DataError(f"{shown} has no fast tokenizer; save one with a tokenizer.json")
    return loaded.backend_tokenizer, loaded.eos_token


def _unreachable(name: str) -> str:
    return (
        f"'{name}' is no file or folder here, the Hugging Face hub cannot be reached and no copy is kept; "
        "connect to the network, or use a tokenizer.json file or 'bpe' as --tokenizer.source"
    )


def _interrupted(name: str) -> str:
    return f"the download of the tokenizer '{name}' broke off; try again, or give a tokenizer.json file"
