"""Text with some structure, as tests and programs of bench/ train on."""

import random
from collections.abc import Sequence

WORDS = (
    *("the", "a", "one", "context", "token", "block", "folds", "reads", "turns", "into", "next"),
    *("vector", "small", "model", "learns", "from", "text", "and", "then", "every", "layer", "norm"),
    *("keeps", "state", "of", "what", "came", "before", "it", "while", "phase", "two", "predicts"),
)


def sentences(count: int, seed: int = 0, words: Sequence[str] = WORDS) -> list[str]:
    """Documents of 60 words each: each word depends on the one before."""
    draws = random.Random(seed)
    documents = []
    for number in range(count):
        word, text = draws.randrange(len(words)), []
        for _ in range(60):
            text.append(words[word])
            word = (word * 3 + draws.choice((1, 2, 5))) % len(words)
        documents.append(f"{number}: " + " ".join(text) + ".")
    return documents
