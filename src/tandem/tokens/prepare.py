"""From settings to tokens: read, split, train or load the tokenizer, encode, and keep the result.

Neither text nor tokens are ever in memory as a whole. What is in memory: some 100 bytes a document, the
largest document, the tokens of a shard, and the distinct words while a BPE is trained.

In the cache, CHAIN is the fingerprint of text, tokenizer and separators:

    preparing/CHAIN/    tokenizer-FINGERPRINT.json, and SPLIT-NUMBER.shard with the tokens of each shard
    corpora/CHAIN/      corpus.json (counts and fingerprints), tokenizer.json, and SPLIT.*.npy: [T] ids,
                        [D] document_starts and document_bytes; moved there when it is complete
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path
from tokenizers import Tokenizer, __version__
from transformers import PreTrainedTokenizerFast

from tandem.claims import locked
from tandem.errors import DataError, StorageError
from tandem.fingerprint import fingerprint
from tandem.folders import atomic_write, draft_folder, remove_drafts, storing
from tandem.settings import DataSettings, TokenizerSettings
from tandem.text.documents import put_down
from tandem.text.sources import open_documents
from tandem.text.splits import Splits, split_documents
from tandem.tokens.encoding import Encoder, count_characters
from tandem.tokens.shards import Shards
from tandem.tokens.store import CacheFault, TokenStream, cache_faults, map_stream
from tandem.tokens.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    merged_pieces,
    plain,
    read_tokenizer,
    to_transformers,
    tokenizer_fingerprint,
    train_bpe,
    vocab_size,
)


@dataclass(frozen=True)
class Corpus:
    """Both splits as tokens, their tokenizer, and what they were made from.

    vocab_size    V, one more than the largest id.
    """

    train: TokenStream
    validation: TokenStream
    tokenizer: PreTrainedTokenizerFast
    vocab_size: int
    text_fingerprint: str
    tokenizer_fingerprint: str
    train_source: str
    validation_source: str
    duplicates_dropped: int
    overlap_documents: int

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-text token, whether or not it separates documents. None if there is none."""
        return self.tokenizer.eos_token_id

    @cached_property
    def fingerprint(self) -> str:
        """Of both token streams, chained from text, tokenizer and separators."""
        return fingerprint("corpus", self.train.fingerprint, self.validation.fingerprint)

    @cached_property
    def pieces(self) -> npt.NDArray[np.int32] | None:
        """As of `merged_pieces`."""
        return merged_pieces(plain(self.tokenizer), self.vocab_size)

    @classmethod
    def of(
        cls, splits: Splits, model: Tokenizer, eos: str | None, train: TokenStream, validation: TokenStream
    ) -> "Corpus":
        """The text of `splits` as tokens of `model`, whose end-of-text token is `eos`."""
        return cls(
            train=train,
            validation=validation,
            tokenizer=to_transformers(model, eos),
            vocab_size=vocab_size(model),
            text_fingerprint=splits.fingerprint,
            tokenizer_fingerprint=tokenizer_fingerprint(model),
            train_source=splits.train_source,
            validation_source=splits.validation_source,
            duplicates_dropped=splits.duplicates_dropped,
            overlap_documents=splits.overlap_documents,
        )

    def record(self) -> dict[str, Any]:
        """What corpus.json says."""
        return {
            "schema_version": 2,
            "chain": self.train.chain,
            "text_fingerprint": self.text_fingerprint,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "vocab_size": self.vocab_size,
            "eos_token": self.tokenizer.eos_token,
            "train": self.train.record(),
            "validation": self.validation.record(),
        }


def default_cache_dir() -> Path:
    """Where prepared corpora and embeddings are kept: `TANDEM_CACHE`, else `tandem` in the user's cache."""
    own = os.environ.get("TANDEM_CACHE")
    return Path(own) if own else user_cache_path("tandem", appauthor=False)


def read_splits(data: DataSettings, cache: Path, on_progress: Callable[[str], None]) -> Splits:
    """As `split_documents`. `on_progress` is told what is read, and how many documents became of it."""
    on_progress(f"reading {data.train}" + (f" and {data.validation}" if data.validation else ""))
    splits = split_documents(data, cache, on_progress)
    on_progress(splits.in_words())
    return splits


def prepare_corpus(
    data: DataSettings,
    tokenizer: TokenizerSettings,
    cache: Path,
    on_progress: Callable[[str], None] = lambda _: None,
    splits: Splits | None = None,
) -> Corpus:
    """The tokens that `data` and `tokenizer` ask for, from `cache` if the same were made before.

    The text itself is always read, so a changed file is noticed. `splits` is what was read just before. A
    corpus in the cache that is damaged is made again, and `on_progress` is told.

    Raises VocabularyError for a vocabulary that the text does not support. Raises DataError or SettingsError
    for sources that cannot be used, a split of fewer than two tokens, or a cache that cannot be written.
    """
    if splits is None:
        splits = read_splits(data, cache, on_progress)
    model: Tokenizer | None = None
    eos: str | None = END_OF_TEXT
    request: dict[str, Any] = {"bpe": tokenizer.vocab_size, "tokenizers": __version__}
    if tokenizer.source != "bpe":
        model, eos = load_tokenizer(tokenizer.source)
        request = {"loaded": tokenizer_fingerprint(model), "eos": eos}
    chain = fingerprint("corpus", splits.fingerprint, request, *data.separators.values())
    corpus, folder = None, cache / "corpora" / chain
    remove_drafts(folder.parent)
    if folder.exists():
        try:
            corpus = _read_corpus(folder, eos, splits)
            on_progress(f"using the prepared tokens in {folder}")
        except CacheFault as fault:
            on_progress(f"the prepared tokens in {folder} are not usable: {fault}; making them again")
    if corpus is None:
        work = cache / "preparing" / chain
        try:
            # A file that is gone means that another process has completed the corpus.
            with storing("tokens", work), suppress(FileNotFoundError):
                work.mkdir(parents=True, exist_ok=True)
                path = _write_tokenizer(work, model, splits, tokenizer.vocab_size, on_progress)
                documents = {"train": splits.train, "validation": splits.validation}
                _make_corpus(  # which alone holds the shards, whose encoders take memory
                    folder,
                    Shards(path, chain, eos, data.separators, documents, count_characters(on_progress)),
                    splits,
                    tokenizer.processes,
                    on_progress,
                )
            if not folder.exists():
                raise DataError(f"{work} was removed while tokens were made there; give the command again")
            corpus = _read_corpus(folder, eos, splits)
        except CacheFault as fault:
            raise DataError(
                f"the tokens just written to {folder} came back changed ({fault}); check the disk"
            ) from None
        except StorageError:
            raise
        except DataError:  # the same text would be refused again
            shutil.rmtree(work, ignore_errors=True)
            raise
    for split, stream in (("training", corpus.train), ("validation", corpus.validation)):
        if stream.lost.bytes:
            on_progress(stream.lost.sentence(f"{split} text", stream.text_bytes))
    return corpus


def _write_tokenizer(
    work: Path,
    model: Tokenizer | None,
    splits: Splits,
    entries: int,
    on_progress: Callable[[str], None],
) -> Path:
    """The file of the tokenizer in `work`. Without a `model`, one process trains a BPE."""

    def path_of(tokenizer: Tokenizer) -> Path:
        return work / f"tokenizer-{tokenizer_fingerprint(tokenizer)}.json"

    with locked(work, "tokenizer"):
        for path in work.glob("tokenizer-*.json"):
            with suppress(DataError):
                if path.is_file() and path == path_of(read_tokenizer(path)):
                    return path
            path.unlink()
        if model is None:
            on_progress(f"training a BPE of {entries:,} entries on {len(splits.train):,} documents")
            model = train_bpe(splits.train, entries, on_progress)
        with atomic_write(path_of(model)) as draft:
            draft.write_text(model.to_str(), "utf-8")
        return path_of(model)


def _make_corpus(
    folder: Path, shards: Shards, splits: Splits, processes: int, on_progress: Callable[[str], None]
) -> None:
    """Put the corpus into `folder`, and remove its shards. Raises FileNotFoundError when they are gone."""
    work = shards.tokenizer.parent
    _ = shards.encoders  # raises before any helper starts
    while True:
        missing, count = shards.missing(), len(shards.all)
        on_progress(
            f"encoding {len(splits.train) + len(splits.validation):,} documents in {count} shards"
            + (f", of which {count - len(missing)} are there" if len(missing) < count else "")
        )
        helpers = min(processes, len(missing)) - 1
        with shards.helped(helpers) if helpers > 0 else nullcontext():
            shards.make_missing()
        with locked(work, "corpus"):
            if not shards.tokenizer.exists():
                raise FileNotFoundError(shards.tokenizer)
            try:
                _write_corpus(folder, shards, splits)
            except CacheFault as fault:
                on_progress(f"{fault}; making them again")
                continue
            shards.tokenizer.unlink()  # what tells other processes
            shutil.rmtree(work, ignore_errors=True)
            return


def _write_corpus(folder: Path, shards: Shards, splits: Splits) -> None:
    """Put the corpus into `folder` in one step.

    Raises CacheFault where a shard is not whole, OSError where the corpus cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # It is not forced to disk: what a loss of power damages is noticed when it is read, and made again.
    with draft_folder(folder, folder) as place:
        draft = place / "draft"
        draft.mkdir()
        train = shards.joined("train", draft, splits.train_source)
        validation = shards.joined("validation", draft, splits.validation_source)
        record = Corpus.of(splits, shards.model, shards.eos, train, validation).record()
        shards.model.save(str(draft / "tokenizer.json"))
        (draft / "corpus.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
        with suppress(FileNotFoundError):
            folder.rename(place / "damaged")
        draft.rename(folder)


def _read_corpus(folder: Path, eos: str | None, splits: Splits) -> Corpus:
    """The corpus in `folder`, which is named as its chain. Its tokens are memory-mapped.

    Raises CacheFault if a byte differs from what its record or the text say.
    """
    with cache_faults():
        for path in folder.iterdir():
            if not path.is_file():  # a pipe would be waited for
                raise CacheFault(f"{path.name} is no file")
        recorded = json.loads((folder / "corpus.json").read_bytes())
        model = read_tokenizer(folder / "tokenizer.json")
        train, validation = (
            map_stream(folder, split, recorded[split], folder.name) for split in ("train", "validation")
        )
        corpus = Corpus.of(splits, model, eos, train, validation)
        found = corpus.record()
        if differing := [name for name in {**found, **recorded} if found.get(name) != recorded.get(name)]:
            raise CacheFault(f"its {differing[0]} is not the recorded one")
        return corpus


def tokenize_for_evaluation(
    source: str,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerFast,
    on_progress: Callable[[str], None] = lambda _: None,
) -> TokenStream:
    """The tokens of any source, by the rules for validation text in `data`, with a model's own tokenizer.

    All documents count, repeated ones too. Nothing is set aside, compared with training text or kept on disk.
    Raises DataError or SettingsError for a source that cannot be used.
    """
    found = open_documents(source, data.txt_documents, on_progress, data.max_document_bytes)
    documents = put_down(found, None)
    return tokenize(documents, tokenizer, data.separators["validation"], source, on_progress)


def tokenize(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    separator: str,
    source: str,
    on_progress: Callable[[str], None] = lambda _: None,
) -> TokenStream:
    """`documents` as tokens of a model's own tokenizer, in memory; raises as `Encoder` and its methods."""
    model = plain(tokenizer)
    eos = tokenizer.eos_token if isinstance(tokenizer.eos_token, str) else None
    chain = fingerprint("evaluation", tokenizer_fingerprint(model), separator)
    return Encoder(model, eos, separator, count_characters(on_progress)).encode_all(documents, chain, source)
