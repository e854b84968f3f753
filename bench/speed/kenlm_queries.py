"""Our Kneser-Ney model as KenLM reads it, so that both answer with the same probabilities.

KenLM is not among Tandem's dependencies: it is built from source (`pip install kenlm`, with cmake and a C++
compiler).
"""

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from tandem.baselines.kneser_ney import KneserNey

Ids = npt.NDArray[np.integer]
MARKS = ("<unk>", "<s>", "</s>")
"""Words that KenLM expects, and no text here has."""
SMALLEST = 1e-99
"""What stands for their probability of zero."""


def kenlm_scorer(model: KneserNey, ids: Ids) -> Callable[[], float] | None:
    """What gives KenLM's mean NLL in nats of ids [T], all but the first; none where it is not installed.

    A token is the word that its number spells. AssertionError where KenLM's answer is not ours.
    """
    try:
        import kenlm
    except ImportError:
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.arpa"
        write_arpa(model, path)
        loaded = kenlm.Model(str(path))
    text, first = " ".join(map(str, ids.tolist())), str(ids[0])

    def mean_nll() -> float:
        log10 = loaded.score(text, bos=False, eos=False) - loaded.score(first, bos=False, eos=False)
        return float(-log10 * math.log(10) / (len(ids) - 1))

    ours = model.score(ids).nll_nats
    # KenLM keeps probabilities in single precision, and adds them up in it.
    assert abs(mean_nll() - ours) < 1e-3 * ours, (mean_nll(), ours)
    return mean_nll


def write_arpa(model: KneserNey, path: Path) -> None:
    """In the ARPA format: of every n-gram its interpolated probability and the weight of its shorter form."""
    size = model.vocab_size
    tokens: list[Ids] = [np.arange(size)[:, None]]  # [n, k] of the k-grams
    shorter = np.zeros(size, np.int64)  # of each k-gram, the (k-1)-gram without its oldest token
    probabilities = [model.unigram]
    for k, level in enumerate(model.levels, start=2):
        history, token = level.keys // size, level.keys % size
        if k == 2:
            shorter = token
        else:
            shorter = np.searchsorted(model.levels[k - 3].keys, shorter[history] * size + token)
        tokens.append(np.concatenate((tokens[-1][history], token[:, None]), axis=1))
        probabilities.append(level.share + level.backoff[history] * probabilities[-1][shorter])
    backoffs = [level.backoff for level in model.levels]
    with path.open("w", encoding="ascii") as file:
        file.write("\\data\\\n")
        for k, grams in enumerate(tokens, start=1):
            file.write(f"ngram {k}={len(grams) + (len(MARKS) if k == 1 else 0)}\n")
        for k, (grams, probability) in enumerate(zip(tokens, probabilities, strict=True), start=1):
            file.write(f"\n\\{k}-grams:\n")
            if k == 1:
                file.writelines(f"{math.log10(SMALLEST)}\t{mark}\t0\n" for mark in MARKS)
            logs = np.log10(probability).tolist()
            after = np.log10(backoffs[k - 1]).tolist() if k <= len(backoffs) else None
            for number, gram in enumerate(grams.tolist()):
                backoff = "" if after is None else f"\t{after[number]:.7g}"
                file.write(f"{logs[number]:.7g}\t{' '.join(map(str, gram))}{backoff}\n")
        file.write("\n\\end\\\n")
