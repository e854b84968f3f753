"""Text of any size, made up here: documents of words that are drawn by Zipf's law."""

import gzip
import json
import math
from pathlib import Path

import numpy as np

SYLLABLES = [a + b for a in "bdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ol")]
WORDS, ZIPF = 60_000, 1.05
DOCUMENT_WORDS = 400
"""Median; lengths are log-normal."""


def write_text(path: Path, megabytes: float, seed: int = 0) -> None:
    """Write gzipped JSON lines with so much text. Below 1 MB there are fewer words, in shorter documents."""
    share = min(1.0, megabytes)
    word_count, document_words = round(WORDS * share), max(25, round(DOCUMENT_WORDS * share))
    draws = np.random.default_rng(seed)
    lengths = 1 + draws.geometric(0.45, word_count)
    words = np.array(["".join(draws.choice(SYLLABLES, length)) for length in lengths])
    shares = 1 / np.arange(1, word_count + 1) ** ZIPF
    edges = np.cumsum(shares / shares.sum())
    written = 0
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        while written < megabytes * 1e6:
            count = max(20, round(document_words * math.exp(draws.standard_normal())))
            drawn = words[np.minimum(np.searchsorted(edges, draws.random(count)), word_count - 1)]
            ends = np.where(draws.random(count) < 0.08, ".\n", " ")
            text = "".join(f"{word}{end}" for word, end in zip(drawn, ends, strict=True))
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text)
