"""WikiText-2 by words: the perplexity that papers give, of a model trained here within an hour.

    TANDEM_SHARED=… python bench/wikitext.py [--set KEY=VALUE …] [--seed 0] [--threads 2]
        [--precision bfloat16] [--no-test]

The tokens are the data set's own: words, `<unk>` among them, and `<eos>` for every end of a line, so that the
vocabulary has 33,278 entries and the test text 245,569 tokens. Perplexity is over all of them (the first,
which nothing predicts, is charged as if drawn evenly from the vocabulary). The ContextBlock reads on from the
first word to the last, as the models do that it is compared with: 99.3 is an LSTM of Grave et al. 2016
(arXiv:1612.04426), 65.8 the AWD-LSTM of Merity et al. 2017 (arXiv:1708.02182).

Seconds are of the whole process, from the raw text to the last score. One line of OUTPUT/results.jsonl a run.
"""

import time

BEGAN = time.perf_counter()

import argparse  # noqa: E402 (the clock above measures imports too)
import gzip  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import yaml  # noqa: E402
from measuring import SMALL, made_small, run  # noqa: E402
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers  # noqa: E402

from tandem.contexts import Stream, compute_contexts  # noqa: E402
from tandem.experiment.single_run import train_one  # noqa: E402
from tandem.metrics import score_stream  # noqa: E402
from tandem.model_folder.loading import load_model  # noqa: E402
from tandem.settings import Configuration, Settings, load_settings  # noqa: E402
from tandem.tokens.prepare import tokenize_for_evaluation  # noqa: E402
from tandem.training.progress import Tick, Watcher  # noqa: E402

WORDS = {"train": 2_088_628, "valid": 217_646, "test": 245_569}
VOCABULARY = 33_278
RECIPE: dict[str, dict[str, Any]] = {
    "model": {"embed_dim": 400, "context_dim": 1024},
    "prediction": {
        "max_epochs": 20,
        "streams": 64,
        "window": 64,
        "lr": 0.005,
        "decay_per_epoch": 1.5,
        "dropout": 0.5,
        "embed_dropout": 0.25,
        "output_dropout": 0.3,
        "sample_positions": 4096,
    },
    "phase2": {"lr": 0.0001, "dropout": 0.5, "embed_dropout": 0.25, "output_dropout": 0.3},
}
"""What differs from the preset here: ten times the text in an hour, on two cores with units for bf16."""


def corpus_in(shared: Path) -> Path:
    """The folder of WikiText-2 among the corpora."""
    return shared / "corpora" / "wikitext-2"


def word_tokenizer(text: Path, target: Path) -> None:
    """The data set's own tokens: the words of its training text."""
    with gzip.open(text, "rt", encoding="utf-8") as file:
        counts = Counter(word for line in file for word in (*line.split(), "<eos>"))
    assert SMALL or len(counts) == VOCABULARY, len(counts)
    vocabulary = {word: number for number, (word, _) in enumerate(counts.most_common())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("\n", " <eos> ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(target))


def settings_for(corpus: Path, output: Path, pairs: Sequence[str] = (), **general: Any) -> Settings:
    """The preset, RECIPE over it, and KEY=VALUE over that; the words of the corpus go to a file in `output`.

    `general`: settings that have no section.
    """
    words = output / "words.json"
    word_tokenizer(corpus / "train.txt.gz", words)
    values = load_settings("predictive").model_dump(mode="json")
    for section, changes in RECIPE.items():
        values[section] |= changes
    values = made_small(values)
    for pair in pairs:
        name, _, value = pair.partition("=")
        section, _, key = name.partition(".")
        values[section][key] = yaml.safe_load(value)
    values |= general
    values["tokenizer"]["source"] = str(words)
    values["data"] |= {
        "train": str(corpus / "train.txt.gz"),
        "validation": str(corpus / "valid.txt.gz"),
        "separator": "",
    }
    return Settings(**values)


def perplexity_by_words(nll_nats: float, tokens: int, split: str, vocabulary: int) -> float:
    """Over all words and ends of lines of a split; `nll_nats`: the mean over all but the first of them."""
    assert SMALL or tokens == WORDS[split], f"{split} has {tokens:,} tokens here, not {WORDS[split]:,}"
    return math.exp((nll_nats * (tokens - 1) + math.log(vocabulary)) / tokens)


class Told(Watcher):
    """Says on stderr what every tenth of an epoch shows."""

    def __init__(self) -> None:
        self.last = ""

    def tick(self, tick: Tick) -> None:
        """One line a tenth."""
        if (now := f"{tick.phase}, {tick.unit} {tick.done:.1f}") != self.last:
            self.last = now
            figures = ", ".join(f"{name} {value:.4g}" for name, value in tick.figures.items())
            print(f"{time.perf_counter() - BEGAN:.0f} s: {now}: {figures}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="such as prediction.lr=0.003"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/wikitext"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of training"
    )
    parser.add_argument("--no-test", action="store_true", help="leave the test text untouched")
    chosen = parser.parse_args()
    if not (shared := os.environ.get("TANDEM_SHARED")):
        sys.exit("TANDEM_SHARED does not name a folder with the corpora")
    chosen.output.mkdir(parents=True, exist_ok=True)
    general = {"threads": chosen.threads, "precision": chosen.precision}
    settings = settings_for(corpus_in(Path(shared)), chosen.output, chosen.set, **general)
    configuration = Configuration(2, 2)
    folder = chosen.output / time.strftime("model-%Y%m%d-%H%M%S")
    record = train_one(settings, configuration, chosen.seed, folder, Told())
    assert record.validation is not None
    assert record.parameters is not None
    assert record.phase1 is not None
    valid = tokens_of(settings, "valid")
    vocabulary = Tokenizer.from_file(settings.tokenizer.source).get_vocab_size()
    result = {
        "seed": chosen.seed,
        "set": chosen.set,
        "precision": chosen.precision,
        "parameters": record.parameters.total,
        "validation_ppl": perplexity_by_words(record.validation.nll_nats, valid, "valid", vocabulary),
        "phase1_seconds": record.phase1.seconds_s,
    }
    if not chosen.no_test:
        nll, tokens = test_nll(folder, settings)
        result["test_ppl"] = perplexity_by_words(nll, tokens, "test", vocabulary)
    result |= {"seconds": time.perf_counter() - BEGAN, "threads": chosen.threads}
    with (chosen.output / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result))


def tokens_of(settings: Settings, split: str) -> int:
    """How many tokens a split has in this run's own tokenization."""
    path = Path(settings.data.train).with_name(f"{split}.txt.gz")
    tokenizer = Tokenizer.from_file(settings.tokenizer.source)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return len(tokenizer.encode(file.read()))


@torch.no_grad()
def test_nll(folder: Path, settings: Settings) -> tuple[float, int]:
    """Mean NLL in nats over all but the first token of the test text, and how many tokens it has."""
    model, tokenizer = load_model(folder)
    source = str(Path(settings.data.train).with_name("test.txt.gz"))
    tokens = tokenize_for_evaluation(source, settings.data, tokenizer)
    stream = Stream.of(model, tokens.ids)
    contexts, _ = compute_contexts(model, stream, settings.contexts)
    return score_stream(model, stream, contexts, settings.phase2.chunk_positions).nll_nats, len(tokens)


if __name__ == "__main__":
    run(main)
