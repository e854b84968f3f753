"""How good the recipe predictive is, beside Kneser-Ney, a tied LSTM, and itself trained end to end.

    TANDEM_SHARED=… python bench/quality.py run [--corpora python-docs …] [--seeds 0 1 2] [--output DIR]
    python bench/quality.py tables [--output DIR]

For every corpus, on the same tokens:

    KN-5        interpolated modified Kneser-Ney
    LSTM        tied, as many parameters as the smallest configuration, with every learning rate of LSTM_RATES
                for LSTM_EPOCHS; the rate that validates best also for EPOCHS_MORE; the better of the two
                counts, and its seconds
    C1T1, …     `tandem train predictive` for each of DEPTHS and each seed
    end to end  phase 1 of the same run, whose token layers are trained together with the ContextBlock; where
                they are as many as the configuration's, this is what training end to end gives

Nothing is chosen by the test text: it is scored after the choice, by the models that validation chose. Each
result is one line of OUTPUT/results.jsonl; a run that is there is not made again. Seconds are of whole
trainings on `--threads` threads, one after the other.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tandem.settings import Configuration, LstmSettings, Settings, load_settings

WIKI = "start:^ = [^=]"
CORPORA: dict[str, dict[str, Any]] = {
    "python-docs": {"train": "python-docs", "max_train_bytes": 800_000},
    "dialogue": {
        "train": "corpora/dialogue_sgd/train.jsonl.gz",
        "validation": "corpora/dialogue_sgd/valid.jsonl.gz",
        "test": "corpora/dialogue_sgd/test.jsonl.gz",
        "max_train_bytes": 2_000_000,
    },
    "textbooks": {
        "train": "corpora/prose_textbooks/train.jsonl.gz",
        "validation": "corpora/prose_textbooks/valid.jsonl.gz",
        "test": "corpora/prose_textbooks/test.jsonl.gz",
        "max_train_bytes": 2_000_000,
    },
    "wikitext-2": {
        "train": "corpora/wikitext-2/train.txt.gz",
        "validation": "corpora/wikitext-2/valid.txt.gz",
        "test": "corpora/wikitext-2/test.txt.gz",
        "txt_documents": WIKI,
        "max_train_bytes": 2_000_000,
    },
}
"""Sources below TANDEM_SHARED. python-docs has no test text of its own."""
DEPTHS = ((1, 1), (2, 1), (1, 2), (2, 2))
LSTM_RATES = (0.002, 0.004, 0.008, 0.016)
LSTM_EPOCHS, EPOCHS_MORE = 8, 12
LSTM_DROPOUT = 0.5


class Results:
    """results.jsonl: what is there is not made again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
        self.all: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, **key: object) -> dict[str, Any] | None:
        """The result with these entries, if there is one."""
        return next((r for r in self.all if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, result: dict[str, Any]) -> None:
        """Keep and tell one more."""
        self.all.append(result)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


def settings_of(corpus: str, shared: Path, threads: int) -> tuple[Settings, str | None]:
    """The preset on one corpus, and its test source."""
    data = dict(CORPORA[corpus])
    for key in ("train", "validation", "test"):
        if key in data and "/" in data[key]:
            data[key] = str(shared / data[key])
    test = data.pop("test", None)
    values = load_settings("predictive").model_dump()
    values |= {"configurations": DEPTHS, "threads": threads, "data": {**values["data"], **data}}
    return Settings(**values), test


def run(shared: Path, output: Path, corpora: list[str], seeds: list[int], threads: int) -> None:
    """Everything that is not there yet."""
    import torch

    torch.set_num_threads(threads)
    results = Results(output)
    for corpus in corpora:
        settings, test = settings_of(corpus, shared, threads)
        _baselines(corpus, settings, test, results, seeds)
        for seed in seeds:
            for depths in DEPTHS:
                _tandem(corpus, settings, test, results, Configuration(*depths), seed, output)


def _baselines(corpus: str, settings: Settings, test: str | None, results: Results, seeds: list[int]) -> None:
    from tandem.baselines import Task, fit_lstm, fit_ngram
    from tandem.experiment.baseline import parameters_allowed
    from tandem.experiment.pipeline import prepare
    from tandem.tokens.prepare import tokenize_for_evaluation

    prepared = prepare(settings, lambda what: print(what, file=sys.stderr))
    made = prepared.corpus
    task = Task(made.train.ids, made.validation.ids, made.vocab_size)
    held_out = None if test is None else tokenize_for_evaluation(test, settings.data, made.tokenizer)

    def keep(fitted: Any, choose: bool, **key: object) -> None:
        result = {
            "corpus": corpus,
            **key,
            "parameters": fitted.embedding_parameters + fitted.other_parameters,
            "validation_nll": fitted.score.nll_nats,
            "validation_bits": fitted.score.bits_per_byte(made.validation.scored_bytes),
            "best_epoch": fitted.training.best_epoch if fitted.training else None,
            "seconds": fitted.seconds_s,
        }
        if held_out is not None and not choose:
            result["test_nll"] = fitted.score_stream(held_out.ids).nll_nats
        results.add(result)

    if results.find(corpus=corpus, model="KN-5") is None:
        keep(fit_ngram("kneser-ney", task), False, model="KN-5")
    allowed = parameters_allowed(prepared)

    def lstm(rate: float, epochs: int, seed: int, choose: bool) -> None:
        key = {"model": "LSTM", "lr": rate, "epochs": epochs, "seed": seed, "choice": choose}
        if results.find(corpus=corpus, **key) is not None:
            return
        own = LstmSettings(lr=rate, max_epochs=epochs, dropout=LSTM_DROPOUT)
        device = prepared.device
        keep(fit_lstm(task, settings.model.embed_dim, allowed, own, seed, device), choose, **key)

    for rate in LSTM_RATES:
        lstm(rate, LSTM_EPOCHS, 0, choose=True)
    tried = [r for r in results.all if (r["corpus"], r["model"]) == (corpus, "LSTM") and r["choice"]]
    best = min(tried, key=lambda r: float(r["validation_nll"]))
    lstm(best["lr"], EPOCHS_MORE, 0, choose=True)
    tried = [r for r in results.all if (r["corpus"], r["model"]) == (corpus, "LSTM") and r["choice"]]
    best = min(tried, key=lambda r: float(r["validation_nll"]))
    for seed in seeds:
        lstm(best["lr"], best["epochs"], seed, choose=False)


def _tandem(
    corpus: str,
    settings: Settings,
    test: str | None,
    results: Results,
    configuration: Configuration,
    seed: int,
    output: Path,
) -> None:
    if results.find(corpus=corpus, model=configuration.name, seed=seed) is not None:
        return
    from tandem.experiment.evaluate import evaluate_model
    from tandem.experiment.runner import Unwatched, train_one
    from tandem.records import PredictionRecord

    folder = output / "models" / f"{corpus}-{configuration.name}-seed{seed}"
    began = time.perf_counter()
    record = train_one(settings, configuration, seed, folder, Unwatched())
    seconds = time.perf_counter() - began
    assert record.validation is not None
    assert record.parameters is not None
    assert isinstance(record.phase1, PredictionRecord)
    result = {
        "corpus": corpus,
        "model": configuration.name,
        "seed": seed,
        "parameters": record.parameters.total,
        "validation_nll": record.validation.nll_nats,
        "validation_bits": record.validation.bits_per_byte,
        "end_to_end_nll": record.phase1.head_for(configuration.token_layers).nll_nats,
        "phase1_seconds": record.phase1.seconds_s,
        "seconds": seconds,
    }
    if test is not None:
        result["test_nll"] = evaluate_model(folder, test).nll_nats
    results.add(result)


def tables(output: Path) -> None:
    """Markdown: one row a model and corpus, means over seeds."""
    results = Results(output).all
    heads = ("Corpus", "Model (seeds)", "Params", "Val PPL", "Test PPL", "Bits per byte", "Seconds")
    print(f"| {' | '.join((*heads, 'against KN-5', 'against LSTM'))} |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for corpus in dict.fromkeys(r["corpus"] for r in results):
        rows = [r for r in results if r["corpus"] == corpus and not r.get("choice")]
        means = {model: _mean(rows, model) for model in dict.fromkeys(r["model"] for r in rows)}
        for model, mean in means.items():
            against = [
                f"{100 * (math.exp(mean['validation_nll'] - means[other]['validation_nll']) - 1):+.1f}%"
                if other in means and other != model
                else "–"
                for other in ("KN-5", "LSTM")
            ]
            test = f"{math.exp(mean['test_nll']):.1f}" if "test_nll" in mean else "–"
            print(
                f"| {corpus} | {model} ({mean['seeds']:.0f}) | {mean['parameters']:,.0f} | "
                f"{math.exp(mean['validation_nll']):.1f} | {test} | {mean['validation_bits']:.3f} | "
                f"{mean['seconds']:.0f} | {' | '.join(against)} |"
            )


def _mean(rows: list[dict[str, Any]], model: str) -> dict[str, float]:
    own = [r for r in rows if r["model"] == model]

    def figures() -> Iterator[tuple[str, float]]:
        for name in ("parameters", "validation_nll", "validation_bits", "test_nll", "seconds"):
            values = [float(r[name]) for r in own if name in r]
            if values:
                yield name, sum(values) / len(values)

    return {"seeds": len(own), **dict(figures())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--corpora", nargs="+", choices=list(CORPORA), default=list(CORPORA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "tables":
        tables(arguments.output)
        return
    shared = os.environ.get("TANDEM_SHARED")
    if not shared and arguments.corpora != ["python-docs"]:
        sys.exit("TANDEM_SHARED does not name a folder with the corpora; only python-docs can do without")
    run(Path(shared or "."), arguments.output, arguments.corpora, arguments.seeds, arguments.threads)


if __name__ == "__main__":
    main()
