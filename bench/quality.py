"""How good the recipe predictive is, beside Kneser-Ney, a tied LSTM, and itself trained end to end.

    TANDEM_SHARED=… python bench/quality.py run [--corpora …] [--models KN-5 LSTM C2T2 …] [--seeds 0 1 2]
    python bench/quality.py tables

For every corpus, on the same tokens (of about TRAIN_BYTES of training text):

    KN-5        interpolated modified Kneser-Ney
    LSTM        tied, with at least as many parameters as any configuration here: with every learning rate of
                LSTM_RATES for --lstm-epochs, then the rate that validates best for EPOCHS_MORE, as long as
                more epochs validate better; the best of these counts, and is trained with the other
                --lstm-seeds too. Of each training the best epoch counts
    C1T1, …     `tandem train predictive` of these depths, with each seed
    end to end  phase 1 of the same run, whose token layers are trained together with the ContextBlock; where
                they are as many as the configuration's, this is what training end to end gives

Nothing is chosen by the test text: it is scored after the choice, by the models that validation chose. Each
result is one line of OUTPUT/results.jsonl; a run that is there is not made again. Several of these processes
may run beside each other with different corpora or models, but their seconds then tell little, which `--note`
can say. Seconds are of whole trainings on `--threads` threads.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import SMALL, made_small
from measuring import run as run_bench

from tandem.settings import Configuration, LstmSettings, Settings, load_settings

TRAIN_BYTES = 800_000
TEST_BYTES = 200_000
"""Of python-docs, which has no test text of its own: documents that training leaves out."""
CORPORA: dict[str, dict[str, Any]] = {
    "python-docs": {"train": "python-docs"},
    "dialogue": {
        "train": "corpora/dialogue_sgd/train.jsonl.gz",
        "validation": "corpora/dialogue_sgd/valid.jsonl.gz",
        "test": "corpora/dialogue_sgd/test.jsonl.gz",
    },
    "textbooks": {
        "train": "corpora/prose_textbooks/train.jsonl.gz",
        "validation": "corpora/prose_textbooks/valid.jsonl.gz",
        "test": "corpora/prose_textbooks/test.jsonl.gz",
    },
    "wikitext-2": {
        "train": "corpora/wikitext-2/train.txt.gz",
        "validation": "corpora/wikitext-2/valid.txt.gz",
        "test": "corpora/wikitext-2/test.txt.gz",
        "txt_documents": "start:^ = [^=]",
    },
}
"""Sources below TANDEM_SHARED."""
DEPTHS = ((1, 1), (2, 1), (1, 2), (2, 2))
NAMES = tuple(Configuration(*depths).name for depths in DEPTHS)
LSTM_RATES = (0.004,) if SMALL else (0.002, 0.004, 0.008, 0.016)
EPOCHS_MORE = () if SMALL else (10, 20)
LSTM_DROPOUT = 0.5


class Results:
    """results.jsonl: what is there is not made again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
        # Before there was a choice, it was float32.
        self.all: list[dict[str, Any]] = [{"precision": "float32", **json.loads(line)} for line in lines]

    def find(self, **key: object) -> dict[str, Any] | None:
        """The result with these entries, if there is one."""
        return next((r for r in self.all if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, result: dict[str, Any]) -> None:
        """Keep and tell one more."""
        self.all.append(result)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


def settings_of(
    corpus: str, shared: Path, output: Path, threads: int, precision: str
) -> tuple[Settings, str]:
    """The preset on one corpus, and its test source."""
    data = {"max_train_bytes": TRAIN_BYTES, **CORPORA[corpus]}
    for key in ("train", "validation", "test"):
        if "/" in data.get(key, ""):
            data[key] = str(shared / data[key])
    test = data.pop("test", None)
    values = load_settings("predictive").model_dump()
    values |= {"configurations": DEPTHS, "threads": threads, "data": {**values["data"], **data}}
    values["precision"] = precision
    settings = Settings(**made_small(values))
    return settings, test or _left_out(settings, output / f"{corpus}-test.jsonl")


def _left_out(settings: Settings, path: Path) -> str:
    """Documents of the training source that are neither trained nor validated on, in a file."""
    from tandem.text.splits import split_documents

    if not path.is_file():
        used = split_documents(settings.data)
        everything = settings.data.model_copy(update={"max_train_bytes": None})
        rest = sorted(set(split_documents(everything).train) - set(used.train))
        size = 0
        with path.open("w", encoding="utf-8") as file:
            for document in rest[:: max(1, sum(len(d) for d in rest) // TEST_BYTES)]:
                size += len(document.encode())
                file.write(json.dumps({"text": document}) + "\n")
        print(f"{path}: {size:,} bytes", file=sys.stderr)
    return str(path)


def chosen_lstm(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The trial that validates best."""
    trials = [r for r in results if r["model"] == "LSTM trial"]
    return min(trials, key=lambda r: float(r["validation_nll"]))


class Bench:
    """All models on one corpus."""

    def __init__(self, corpus: str, shared: Path, chosen: argparse.Namespace) -> None:
        from tandem.experiment.baseline import baseline_inputs
        from tandem.experiment.prepared import prepare, total_parameters
        from tandem.tokens.prepare import tokenize_for_evaluation

        self.output = chosen.output
        self.results = Results(chosen.output)
        threads, precision = chosen.threads, chosen.precision
        self.settings, self.test = settings_of(corpus, shared, chosen.output, threads, precision)
        self.prepared = prepare(self.settings, lambda what: print(what, file=sys.stderr))
        self.corpus = made = self.prepared.corpus
        self.inputs = baseline_inputs(self.prepared, None)
        self.held_out = tokenize_for_evaluation(self.test, self.settings.data, made.tokenizer)
        self.parameters = max(total_parameters(self.prepared, c) for c in self.settings.grid)
        self.key = {"corpus": corpus, "precision": precision}
        self.about = {
            "train_tokens": len(made.train),
            "threads": threads,
            "note": chosen.note,
        }

    def kneser_ney(self) -> None:
        """The 5-gram."""
        from tandem.baselines.ngram import fit_kneser_ney

        if self.results.find(**self.key, model="KN-5") is None:
            self._keep_baseline(fit_kneser_ney(self.inputs, 5), True, model="KN-5")

    def lstm(self, seeds: list[int], trial_epochs: int) -> None:
        """The LSTM: the choice of its rate and epochs with the first seed, then all seeds."""
        best: Any = None

        def tried() -> dict[str, Any]:
            return chosen_lstm([r for r in self.results.all if r.items() >= self.key.items()])

        def trial(rate: float, epochs: int) -> None:
            nonlocal best
            key = {"model": "LSTM trial", "lr": rate, "epochs": epochs, "seed": seeds[0]}
            if self.results.find(**self.key, **key) is None:
                fitted = self._fit_lstm(rate, epochs, seeds[0])
                self._keep_baseline(fitted, False, **key)
                best = fitted if tried() == self.results.all[-1] else best

        for rate in LSTM_RATES:
            trial(rate, trial_epochs)
        for epochs in EPOCHS_MORE:
            trial(tried()["lr"], epochs)
            if tried()["epochs"] != epochs:
                break
        chosen = tried()
        for seed in seeds:
            key = {"model": "LSTM", "lr": chosen["lr"], "epochs": chosen["epochs"], "seed": seed}
            if self.results.find(**self.key, **key) is None:
                again = best is None or seed != seeds[0]
                fitted = self._fit_lstm(chosen["lr"], chosen["epochs"], seed) if again else best
                self._keep_baseline(fitted, True, **key)

    def _fit_lstm(self, rate: float, epochs: int, seed: int) -> Any:
        from tandem.baselines import BASELINES

        own = LstmSettings(lr=rate, max_epochs=epochs, dropout=LSTM_DROPOUT)
        baselines = self.settings.baselines.model_copy(update={"lstm": own})
        settings = self.settings.model_copy(update={"baselines": baselines})
        # As wide as fits a little more than any configuration has, so that none has more than the LSTM.
        most = round(1.01 * self.parameters)
        return BASELINES["lstm"].fit(replace(self.inputs, settings=settings, seed=seed, max_parameters=most))

    def _keep_baseline(self, fitted: Any, touch_test: bool, **key: object) -> None:
        result = {
            **self.key,
            **key,
            "parameters": fitted.embedding_parameters + fitted.other_parameters,
            "validation_nll": fitted.score.nll_nats,
            "validation_bits": fitted.score.bits_per_byte(self.corpus.validation),
            "best_epoch": fitted.training.best_epoch if fitted.training else None,
            "seconds": fitted.seconds_s,
            **self.about,
        }
        if touch_test:
            result["test_nll"] = fitted.score_stream(self.held_out.ids).nll_nats
        self.results.add(result)

    def tandem(self, configuration: Configuration, seed: int) -> None:
        """One configuration of Tandem, as `tandem train` trains it."""
        from tandem.experiment.evaluate import evaluate_model
        from tandem.experiment.single_run import train_one
        from tandem.objectives.predictive import PredictionRecord
        from tandem.training.progress import Watcher

        key = {**self.key, "model": configuration.name, "seed": seed}
        if self.results.find(**key) is not None:
            return
        folder = self.output / "models" / "-".join(map(str, key.values()))
        shutil.rmtree(folder, ignore_errors=True)  # of a result that is to be made anew
        began = time.perf_counter()
        record = train_one(self.settings, configuration, seed, folder, Watcher())
        seconds = time.perf_counter() - began
        assert record.validation is not None
        assert record.parameters is not None
        assert isinstance(record.phase1, PredictionRecord)
        self.results.add(
            {
                **key,
                "parameters": record.parameters.total,
                "validation_nll": record.validation.nll_nats,
                "validation_bits": record.validation.bits_per_byte,
                "test_nll": evaluate_model(folder, self.test).nll_nats,
                "end_to_end_nll": record.phase1.head_for(configuration.token_layers).nll_nats,
                "phase1_seconds": record.phase1.seconds_s,
                "seconds": seconds,
                **self.about,
            }
        )


def run(shared: Path, chosen: argparse.Namespace) -> None:
    """Everything asked for that is not there yet."""
    import torch

    torch.set_num_threads(chosen.threads)
    for corpus in chosen.corpora:
        bench = Bench(corpus, shared, chosen)
        if "KN-5" in chosen.models:
            bench.kneser_ney()
        for seed in chosen.seeds:
            for depths, name in zip(DEPTHS, NAMES, strict=True):
                if name in chosen.models:
                    bench.tandem(Configuration(*depths), seed)
        if "LSTM" in chosen.models:
            bench.lstm(chosen.lstm_seeds or chosen.seeds, chosen.lstm_epochs)


def tables(output: Path) -> None:
    """Markdown: one row a model and corpus, means over seeds; against others by the test text."""
    results = Results(output).all
    heads = ("Corpus", "Model (seeds)", "Params", "Val PPL", "Test PPL", "Bits per byte", "Seconds")
    print(f"| {' | '.join((*heads, 'Against KN-5', 'Against LSTM'))} |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for corpus in dict.fromkeys(r["corpus"] for r in results):
        own = [r for r in results if r["corpus"] == corpus]
        tried = any(r["model"] == "LSTM trial" for r in own)
        lstm = {key: chosen_lstm(own)[key] for key in ("lr", "epochs")} if tried else {}
        rows = [r for r in own if r["model"] != "LSTM trial"]
        rows = [r for r in rows if r["model"] != "LSTM" or r.items() >= lstm.items()]
        kinds = dict.fromkeys((r["model"], r["precision"]) for r in rows)
        means = {kind: _mean(rows, *kind) for kind in kinds}
        for (model, precision), mean in means.items():
            others = [
                next((one for (name, _), one in means.items() if name == other != model), None)
                for other in ("KN-5", "LSTM")
            ]
            against = ["–" if other is None else _against(mean, other) for other in others]
            test = f"{math.exp(mean['test_nll']):.1f}" if "test_nll" in mean else "–"
            print(
                f"| {corpus}, {precision} | {model} ({mean['seeds']:.0f}) | {mean['parameters']:,.0f} | "
                f"{math.exp(mean['validation_nll']):.1f} | {test} | {mean['validation_bits']:.3f} | "
                f"{mean['seconds']:.0f} | {' | '.join(against)} |"
            )


def _against(mean: dict[str, float], other: dict[str, float]) -> str:
    """Perplexity against another model's, in percent."""
    nll = "test_nll" if "test_nll" in mean and "test_nll" in other else "validation_nll"
    return f"{100 * (math.exp(mean[nll] - other[nll]) - 1):+.1f}%"


def _mean(rows: list[dict[str, Any]], model: str, precision: str) -> dict[str, float]:
    own = [r for r in rows if (r["model"], r["precision"]) == (model, precision)]

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
    parser.add_argument(
        "--corpora", nargs="+", choices=list(CORPORA), default=["dialogue"] if SMALL else list(CORPORA)
    )
    parser.add_argument(
        "--models", nargs="+", choices=("KN-5", "LSTM", *NAMES), default=("KN-5", "LSTM", *NAMES)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0] if SMALL else [0, 1, 2])
    parser.add_argument("--lstm-seeds", nargs="+", type=int, help="none: as --seeds")
    parser.add_argument("--lstm-epochs", type=int, default=6, help="of each trial of a learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of training")
    parser.add_argument("--note", default="", help="kept with every result")
    chosen = parser.parse_args()
    if chosen.what == "tables":
        tables(chosen.output)
        return
    shared = os.environ.get("TANDEM_SHARED")
    if not shared and chosen.corpora != ["python-docs"]:
        sys.exit("TANDEM_SHARED does not name a folder with the corpora; only python-docs can do without")
    run(Path(shared or "."), chosen)


if __name__ == "__main__":
    run_bench(main)
