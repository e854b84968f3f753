"""How many small mistakes in the package the audit misses: each is made by a program, tried out and audited.

    python bench/mutants.py --count 100 --seed 0 --results mutants.jsonl
    python bench/mutants.py --count 0 --results mutants.jsonl                       # the tables alone
    python bench/mutants.py --again passed --results mutants.jsonl                  # those that passed before

A mutant is the package with one operator, number, argument or statement changed (`mutations.py` has all the
kinds). Of all mutants of lines that run, some are drawn. Each makes a tiny experiment: both recipes, two
seeds, two layers each, dropout, a sampled softmax. For code of baselines it is one configuration beside
several baselines. Then the audit, which is not mutated, looks at what it left. A mutant of the report works
on finished experiments, and stays while their report is audited.

    stopped       the run, or Tandem itself, said that something is wrong
    no effect     every reported figure is within 0.5% of what it is without the mutant
    caught        a check failed, or the audit refused the run directory
    warned        a check warned, and none failed
    passed        figures are others, and the audit said nothing

Results are appended to a file, one line of JSON each; a mutant that is in it is not tried again.
"""

import argparse
import gc
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

from measuring import SMALL, print_table, run, start
from mutations import functions_of, mutated, mutations_of, traced

import tandem
from tandem.audit import audit
from tandem.audit.report import report_check
from tandem.experiment.runner import run_experiment
from tandem.records import Manifest, RunRecord, read_records
from tandem.report.analysis import Analysis
from tandem.report.render import Document
from tandem.report.wording import Texts
from tandem.settings import Settings
from tandem.training.progress import Watcher

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from report_records import BOTH, make_baselines, make_grid, make_manifest, make_record, make_variants
from sentences import WORDS, sentences

PACKAGE = Path(tandem.__file__).parent
FILES = (
    *(
        "training/*.py",
        "objectives/*.py",
        "model/cell*.py",
        "model/modeling_tandem.py",
        "model/token_block_tandem.py",
    ),
    *("cross_entropy.py", "metrics.py", "patience.py", "contexts/*.py"),
    *("experiment/pipeline.py", "experiment/prepared.py", "experiment/contexts.py", "experiment/runner.py"),
    *("experiment/one_run.py", "experiment/single_run.py"),
    *("tokens/*.py", "text/splits.py", "text/documents.py", "text/rows.py"),
)
"""Code whose mutants make an experiment."""
BASELINES = ("baselines/*.py", "experiment/baseline.py")
"""Those that make baselines beside it."""
REPORT = ("report/analysis.py", "report/statistics.py", "report/phase1.py")
"""Those that report a finished one."""
NOT_THESE = ("training/snapshots.py", "training/progress.py", "contexts/job.py", "contexts/context_store.py")
"""What only the audit reads, people see, or far larger texts need."""
OUTCOMES = ("stopped", "no effect", "caught", "warned", "passed")
CHANGED = 0.005
"""A figure is another one from this relative difference on."""
LIMIT_S = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", help="parts of the package, such as training/phase2.py")
    parser.add_argument("--results", type=Path, help="a file of JSON lines")
    parser.add_argument("--again", choices=OUTCOMES, help="try again those with this outcome")
    chosen = parser.parse_args()
    chosen.count = min(chosen.count, 1) if SMALL else chosen.count
    start(1)
    with tempfile.TemporaryDirectory() as made:
        results = chosen.results or Path(made) / "mutants.jsonl"
        before = read(results)
        bench = Bench(Path(made)) if chosen.count or chosen.again else None
        if chosen.again:
            names = [name for name, one in before.items() if one["outcome"] == chosen.again and there(name)]
        else:
            drawn = bench.draw(chosen.count, chosen.seed, chosen.files) if bench else []
            names = [name for name in drawn if name not in before]
        for number, name in enumerate(names, start=1):
            assert bench is not None
            began = time.perf_counter()
            found = {"mutant": name, **bench.outcome_of(name), "seconds_s": time.perf_counter() - began}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{number}/{len(names)} {found['outcome']}: {name} {found['said'][:150]}", flush=True)
        show(read(results))


def there(name: str) -> bool:
    """Whether the source still has this mutant: lines move."""
    file = name.partition(":")[0]
    return any(one.name == name for one in mutations_of((PACKAGE / file).read_text("utf-8"), file)[1])


def read(results: Path) -> dict[str, dict[str, Any]]:
    """What is known of each mutant; the last line counts."""
    lines = results.read_text("utf-8").splitlines() if results.is_file() else []
    return {one["mutant"]: one for one in map(json.loads, lines)}


class Bench:
    """Makes the experiment with and without mutants, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        for module in walk_packages([str(PACKAGE)], "tandem."):
            if not module.name.endswith("__main__"):
                with suppress(ImportError):  # a filter for another program, which is not here
                    import_module(module.name)
        self._folder = folder
        self._text = folder / "text.jsonl"
        self._text.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()), "utf-8")
        self._functions = functions_of(PACKAGE)
        gc.freeze()  # a child that collects garbage would copy all of this process's memory
        self._right: dict[bool, dict[str, float | str]] = {}
        self._reported = self._forked(reported)

    def _of_whole(self, baselines: bool) -> dict[str, list[int]]:
        """Make an experiment without a mutant; gives the lines that ran."""
        whole = self._folder / f"whole{baselines:d}"

        def work() -> dict[str, list[int]]:
            with traced(PACKAGE) as lines:
                self._work(whole, baselines, None)
                reported()
            return {file: sorted(of) for file, of in lines.items()}

        lines = self._forked(work)
        odd = self._audit(whole)
        if "error" in odd or odd["failed"] or odd["warned"]:
            raise SystemExit(f"the experiment is odd without any mutant: {lines.get('error', '')} {odd}")
        self._right[baselines] = figures(whole)
        return lines

    def draw(self, count: int, seed: int, files: list[str] | None) -> list[str]:
        """Names of mutants in lines that run, drawn at random without putting back."""
        names = []
        all_lines = {}
        patterns = (*FILES, *BASELINES, *REPORT)
        for path in sorted({p for pattern in patterns for p in PACKAGE.glob(pattern)}):
            file = path.relative_to(PACKAGE).as_posix()
            if file in NOT_THESE or (files and not any(file.startswith(part) for part in files)):
                continue
            of_baselines = is_of_baselines(file)
            if of_baselines not in all_lines:
                all_lines[of_baselines] = self._of_whole(of_baselines)
            lines = {*all_lines[of_baselines].get(file, ())}
            for one in mutations_of(path.read_text("utf-8"), file)[1]:
                if not one.where[0] or lines & {*range(one.line, one.last_line + 1)}:
                    names.append(one.name)
        random.Random(seed).shuffle(names)
        return names[:count]

    def outcome_of(self, name: str) -> dict[str, Any]:
        """What becomes of a mutant: its `outcome`, and what was `said` of it."""
        if name.partition(":")[0] in REPORT:
            return self._of_report(name)
        folder, baselines = self._folder / "mutant", is_of_baselines(name.partition(":")[0])
        if baselines not in self._right:
            self._of_whole(baselines)
        shutil.rmtree(folder, ignore_errors=True)
        done = self._experiment(folder, baselines, name)
        if done != "finished":
            return {"outcome": "stopped", "said": done}
        found = self._forked(lambda: figures(folder))
        if not isinstance(found, dict):
            return {"outcome": "stopped", "said": str(found)}
        if not (others := different(self._right[baselines], found)):
            return {"outcome": "no effect", "said": ""}
        return self._judged(self._audit(folder), others)

    def _of_report(self, name: str) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            with mutated(PACKAGE, name, self._functions):
                said = reported()
                try:
                    checks = [report_check(*experiment) for experiment in experiments()]
                except Exception as error:  # the audit would say so in its place
                    return {"reported": said, "error": repr(error)}
            failed = [check.figure for check in checks if check.status == "fail"]
            return {"reported": said, "failed": {"report": failed[0]} if failed else {}, "warned": {}}

        found = self._forked(work)
        if "reported" not in found:
            return {"outcome": "stopped", "said": found.get("error", "")}
        others = different(self._reported, found["reported"])
        return self._judged(found, others) if others else {"outcome": "no effect", "said": ""}

    def _judged(self, found: Mapping[str, Any], others: list[str]) -> dict[str, Any]:
        shown = "; ".join(others[:4])
        if "error" in found:
            return {"outcome": "caught", "said": f"refused: {found['error']}", "changed": shown}
        for outcome, which in (("caught", "failed"), ("warned", "warned")):
            if found[which]:
                said = "; ".join(f"{check}: {figure}" for check, figure in found[which].items())
                return {"outcome": outcome, "said": said[:600], "changed": shown}
        return {"outcome": "passed", "said": shown, "changed": shown}

    def _experiment(self, folder: Path, baselines: bool, name: str) -> str:
        """`finished`, or what stopped it."""
        found = self._forked(lambda: self._work(folder, baselines, name))
        return found if isinstance(found, str) else str(found.get("error", found))

    def _work(self, folder: Path, baselines: bool, name: str | None) -> str:
        os.environ["TANDEM_CACHE"] = str(folder / "cache")
        with nullcontext() if name is None else mutated(PACKAGE, name, self._functions):
            run_experiment(settings_of(self._text, folder, baselines), _Impatient())
        return "finished"

    def _audit(self, folder: Path) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            os.environ["TANDEM_CACHE"] = str(folder / "cache")
            checks = [(run.run, check) for run in audit(folder).runs for check in run.checks]
            said: dict[str, Any] = {"failed": {}, "warned": {}}
            for of, check in checks:
                if check.status in ("fail", "warn"):
                    which = said["failed" if check.status == "fail" else "warned"]
                    which.setdefault(check.name, f"{of or 'data'}: {check.figure}")
            return said

        return self._forked(work)

    def _forked(self, work: Callable[[], Any]) -> Any:
        """What `work` gives in a process that begins as this one is; `error` where it stops or never ends."""
        answer = self._folder / "answer.json"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                os.chdir(self._folder)
                sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (it ends)
                signal.alarm(LIMIT_S)
                try:
                    found = work()
                except BaseException as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    text = str(error).strip().split("\n")[0]
                    found = {"error": f"{type(error).__name__} in {where.name}: {text}"[:300]}
                answer.write_text(json.dumps(found), "utf-8")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        if not answer.is_file():
            return {"error": f"did not end within {LIMIT_S} s, or crashed"}
        return json.loads(answer.read_text("utf-8"))


class _Impatient(Watcher):
    """Ends an experiment whose first run fails."""

    def run_finished(self, record: RunRecord) -> None:
        """Raises SystemExit where it failed."""
        if record.status == "failed":
            raise SystemExit(record.failure)


def documents(count: int = 30) -> list[str]:
    """Text in which each word depends on the one before."""
    texts = sentences(count, words=WORDS[:17])
    return [*texts, texts[3]]  # one of them twice


def is_of_baselines(file: str) -> bool:
    """Whether a file is tried out with baselines."""
    return any(Path(file).match(pattern) for pattern in BASELINES)


def settings_of(text: Path, folder: Path, baselines: bool) -> Settings:
    """The tiny experiment, of two recipes or of baselines."""
    network = {"layers": 1, "max_epochs": 2}
    others = {
        "configurations": ((1, 1),),
        "baselines": {
            "models": ("lstm", "gpt2", "kneser-ney", "bigram", "unigram"),
            "order": 3,
            "lstm": {**network, "streams": 4},
            "gpt2": {**network, "window": 32},
        },
    }
    predictive = {
        "recipe": "predictive",
        "embeddings": {"source": "random", "norm": 1.0},
        "model": {"cell": "gated", "token_projection": True, "output_bias": True, "weight_init_std": None},
        "prediction": {"max_epochs": 2, "streams": 8, "window": 32, "negatives": 64, "lr": 0.02},
        "phase2": {
            **{"start": "phase1", "dropout": 0.2, "embed_dropout": 0.1, "output_dropout": 0.1},
            **{"negatives": 64, "schedule": "linear", "shuffle": True, "weight_decay": 0.1, "lr": 0.01},
            **{"max_grad_norm": 0.3, "batch_positions": 128, "max_epochs": 3},
        },
    }
    variants = {"original": {}} if SMALL else {"original": {}, "predictive": predictive}
    recipes = {"configurations": ((2, 2),), "variants": variants}
    return Settings.model_validate(
        {
            "name": "mutants",
            "output": str(folder),
            "seeds": (0,) if SMALL else (0, 1),
            "device": "cpu",
            "threads": 1,
            **(others if baselines else recipes),
            "data": {"train": str(text), "validation_fraction": 0.15},
            "tokenizer": {"vocab_size": 300},
            "embeddings": {"norm": 1.0},
            "model": {"embed_dim": 24, "context_dim": 16, "weight_init_std": 0.3},
            "contexts": {"segment_length": 64, "check_tokens": 256},
            "phase1": {"max_iterations": 6, "batch_positions": 500},
            "phase2": {"max_epochs": 3, "patience": 2, "batch_positions": 256, "lr": 0.01},
        }
    )


def figures(folder: Path) -> dict[str, float | str]:
    """What the records of an experiment report, by run and name; no times."""
    found: dict[str, float | str] = {}
    for record in read_records(folder):
        for name, value in of_record(record):
            found[f"{record.run} {name}"] = value
    return found


def of_record(record: RunRecord) -> Iterator[tuple[str, float | str]]:
    """The figures of one run that the report or the command line show."""
    validation, phase1 = record.validation, record.phase1
    if validation is not None:
        yield from ((name, getattr(validation, name)) for name in ("perplexity", "accuracy", "bits_per_byte"))
        if validation.documents is not None:
            tokens, nll = validation.documents.unpack()
            yield "documents", len(tokens)
            yield "NLL of documents, weighted", float((nll * range(1, len(nll) + 1)).sum())
    if record.parameters is not None:
        yield from ((f"parameters {n}", v) for n, v in record.parameters.model_dump().items())
    data = record.data.model_dump()
    yield from ((n, v) for n, v in data.items() if isinstance(v, int))
    if phase1 is not None:
        said = phase1.model_dump()
        yield from (
            (f"phase 1 {n}", said[n]) for n in ("tokens", "iterations", "convergence_rate") if n in said
        )
        for head in said.get("heads", ()):
            yield f"perplexity of head {head['token_layers']}", math.exp(min(head["nll_nats"], 700))
        for entry in said["history"]:
            number = entry.get("iteration", entry.get("epoch"))
            names = ("loss", "train_nll_nats", "grad_norm", "convergence_rate")
            yield from ((f"phase 1, {number}: {n}", entry[n]) for n in names if n in entry)
    if record.contexts is not None:
        yield "effective rank, training", record.contexts.effective_rank_train
        yield "effective rank", record.contexts.effective_rank_validation
        for point in record.contexts.memory:
            if point.change >= 0.05:
                yield f"memory after {point.distance}", point.change
    if (trained := record.trained) is not None:
        yield from ((n, getattr(trained, n)) for n in ("best_epoch", "epochs", "train_perplexity", "stopped"))
        for epoch in trained.history:
            yield f"epoch {epoch.epoch}: training NLL", epoch.train_nll_nats
            yield f"epoch {epoch.epoch}: validation NLL", epoch.validation_nll_nats
            yield f"epoch {epoch.epoch}: validation accuracy", epoch.validation_accuracy


def experiments() -> Iterator[tuple[list[RunRecord], Manifest]]:
    """Records made up for the report: variants and baselines, memories, a run that failed."""
    seeds = (0, 1, 2)
    variants = {name: {"recipe": recipe} for name, recipe in BOTH.items()}
    runs = make_variants(seeds=seeds) + make_baselines(seeds, BOTH)
    yield runs, make_manifest(seeds, variants=variants)
    remembers = [make_record(c, t, s, half_life=9.0 * c) for c in (1, 2) for t in (1, 2) for s in (0, 1, 2)]
    yield remembers, make_manifest(seeds)
    yield [*make_grid(), make_record(3, 1, failure="no memory"), *make_baselines()], make_manifest()


def reported() -> dict[str, float | str]:
    """Every number and word of their reports, in order."""
    pages = [str(Document(Analysis(*one), Texts("en"), ())) for one in experiments()]
    return {str(n): _number(word) for n, word in enumerate(re.split(r"[\s|]+", " ".join(pages)))}


def _number(word: str) -> float | str:
    try:
        return float(word.replace(",", "").strip("()%[]*~±−–"))
    except ValueError:
        return word


def different(right: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Which figures are others."""
    if not isinstance(found, Mapping) or "error" in found:
        return [str(found)]
    wrong = []
    for name in dict.fromkeys((*right, *found)):
        one, other = right.get(name), found.get(name)
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        if one != other and not (numbers and math.isclose(one, other, rel_tol=CHANGED)):
            wrong.append(
                f"{name} {one if not numbers else f'{one:.5g}'} → {other if not numbers else f'{other:.5g}'}"
            )
    return wrong


def show(results: Mapping[str, dict[str, Any]]) -> None:
    """The tables."""
    rooms = sorted({name.partition("/")[0].partition(":")[0] for name in results})
    rows = []
    for room in [*rooms, "all"]:
        of = [one for name, one in results.items() if room == "all" or re.match(rf"{room}[/:]", name)]
        count = Counter(one["outcome"] for one in of)
        changed = sum(count[outcome] for outcome in OUTCOMES[2:])
        share = f"{count['passed'] / changed:.1%}" if changed else "–"
        rows.append([room, str(len(of)), *(str(count[outcome]) for outcome in OUTCOMES), share])
    print_table("Mutants", ("", "tried", *OUTCOMES, "passed of those with an effect"), rows)
    passed = {name: one for name, one in results.items() if one["outcome"] == "passed"}
    if passed:
        print_table(
            "Those that passed", ("mutant", "figures"), [[n, p["changed"]] for n, p in passed.items()]
        )


if __name__ == "__main__":
    run(main)
