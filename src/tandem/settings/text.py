"""Settings of the text, its tokens and their embeddings."""

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from tandem.settings.section import Positive, PositiveFloat, Section


class DataSettings(Section):
    """Text: where it comes from and how it is cut into documents and splits."""

    path: ClassVar[str] = "data"

    train: str = "python-docs"
    """Training text: `python-docs` (the embedded default), a .txt, .jsonl or .parquet file, a directory or
    glob of them, or `hf:NAME[:SPLIT]`. Files may be gzipped. SPLIT may be a slice: `train[:2000]`."""
    validation: str | None = None
    """Validation text, same forms; none: a part of the training documents is set aside."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the training text (in bytes, by whole documents) set aside when `validation` is not given."""
    split_seed: int = 0
    """Which documents are set aside, and which ones `max_train_bytes` keeps."""
    max_train_bytes: Positive | None = None
    """Use about this much training text (UTF-8 bytes, whole documents drawn at random); none: all."""
    txt_documents: str = "file"
    """What a document is in .txt files: `file`, `blank-line` (paragraphs), or `start:REGEX` (a document
    starts at every line that matches within its first 4,096 characters)."""
    separator: str = "eos"
    """What stands between documents: `eos` (the end-of-text token before each) or a text (may be empty). A
    blank line is $'\\n\\n' in a shell, "`n`n" in PowerShell and "\\n\\n" in a settings file."""
    validation_separator: str | None = None
    """The same for validation text; none: as `separator`."""
    allow_overlap: tuple[str, ...] = ()
    """Validation sources, named as in `validation`, whose documents may also occur in training."""

    @field_validator("train", "validation")
    @classmethod
    def _can_be_read_again(cls, value: str | None) -> str | None:
        if value == "-":
            raise ValueError(
                "standard input can be read once only, and the audit reads the text again; save it in a file"
            )
        return value

    @property
    def separators(self) -> dict[str, str]:
        """What stands between the documents of each split."""
        validation = self.separator if self.validation_separator is None else self.validation_separator
        return {"train": self.separator, "validation": validation}


class TokenizerSettings(Section):
    """Tokens: the vocabulary."""

    path: ClassVar[str] = "tokenizer"

    source: str = "bpe"
    """`bpe` (a byte-level BPE trained on the training split only), a tokenizer.json file, a tokenizer
    folder, or a hub name such as `gpt2`."""
    vocab_size: Annotated[int, Field(ge=257, le=1 << 24)] = 8192
    """Entries of the trained BPE, end-of-text token included; not used with another source."""
    processes: Annotated[int, Field(gt=0, le=1024)] = 1
    """Processes that encode a large text together, shard by shard. Further ones, on any machine that shares
    the cache, join when they are given the same command. (One alone uses all cores for most of the work.)"""


class EmbeddingSettings(Section):
    """Token embeddings, which are also the output head."""

    path: ClassVar[str] = "embeddings"

    source: str = "spectral"
    """`spectral` (truncated SVD of the PPMI of co-occurrences in the training tokens, the same for every
    seed), `random` (drawn from the seed), or the input embedding of a causal LM. That is a hub name such as
    `gpt2`, a model folder, or a .safetensors file."""
    trained: bool = False
    """Recipe `original`: train the embedding (hence the head) in phase 2; contexts are then recomputed before
    every epoch, and held in memory whatever `contexts.keep` says. (Recipe `predictive` trains it in phase 1,
    and phase 2 keeps it.)"""
    window: Positive = 4
    """Spectral: co-occurrences are counted up to this many tokens apart."""
    norm: PositiveFloat = 4.0
    """Spectral and random: root mean square length of an embedding vector."""
