"""The tables of docs/results/conclusions.md, from the records of bench/conclusions.py."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from measuring import print_table

from tandem.contexts import ContextsSample
from tandem.metrics import effective_rank
from tandem.objectives.original import DispersionRecord
from tandem.records import RunRecord, read_audit, read_manifest, read_records
from tandem.report.analysis import Analysis
from tandem.report.statistics import Effect, crossed

Runs = dict[int | None, RunRecord]
CONTROL = {"C1T1": "C1T1-untrained", "C1T2": "C1T2-untrained"}
SEED_PPL = {"C1T1": 127.2, "C2T1": 138.7, "C1T2": 300.8, "C2T2": 132.2}
DEFECTS = (
    ("zero-validation", "C1T2", "validation contexts all zero"),
    ("previous-context", "C2T1", "a single token layer reads the previous context"),
    ("noisy-sweep", "C1T2", "training contexts from one noisy sweep"),
    ("noisy-sweep", "C2T1", "training contexts from one noisy sweep"),
)


def print_tables(output: Path, corpora: list[str]) -> None:
    """All tables, corpus after corpus."""
    for corpus in corpora:
        grid = print_grid(corpus, output / corpus)
        _convergence(output / corpus, grid)


def print_grid(title: str, folder: Path) -> dict[str, Runs]:
    """The four configurations of the part `grid`, in pairs and beside all others; and planted defects.

    Returns the runs by configuration and seed.
    """
    grid = runs_in(folder / "grid")
    record = next(iter(grid["C1T1"].values()))
    data = record.data
    print(f"\n# {title}\n")
    print(
        f"{data.train_tokens:,} training tokens in {data.train_documents} documents, "
        f"{data.validation_tokens:,} validation tokens in {data.validation_documents}; "
        f"V {data.vocab_size:,}, E {record.embed_dim}, C {record.context_dim}; "
        f"seeds {', '.join(map(str, sorted(s for s in grid['C1T1'] if s is not None)))}"
    )
    audit = read_audit(folder / "grid")
    print("audit of these runs:", audit.status if audit else "none")
    print_configurations("The four configurations", grid)
    _pairs(folder / "grid")
    _defects(folder, grid)
    _standing(folder / "grid", grid)
    return grid


def runs_in(folder: Path) -> dict[str, Runs]:
    """Finished runs by configuration and seed."""
    found: dict[str, Runs] = {}
    for record in read_records(folder) if folder.is_dir() else []:
        if record.status == "finished":
            found.setdefault(record.configuration, {})[record.seed] = record
    return found


def _configurations(grid: dict[str, Runs]) -> list[str]:
    return [name for name in ("C1T1", "C2T1", "C1T2", "C2T2") if name in grid]


def _table(title: str, head: str, rows: Sequence[Sequence[str]]) -> None:
    print_table(title, head.split("|"), rows)


def _spread(runs: Runs, figure: Callable[[RunRecord], float | None], digits: int = 1) -> str:
    values = [value for record in runs.values() if (value := figure(record)) is not None]
    return _mean_and_spread(values, digits) if values else "–"


def _mean_and_spread(values: Sequence[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _ppl(runs: Runs) -> float:
    return math.exp(fmean(r.validation.nll_nats for r in runs.values() if r.validation))


def _nll_spread(runs: Runs) -> str:
    return f"{_ppl(runs):.1f}" + (
        f" ± {stdev([r.validation.perplexity for r in runs.values() if r.validation]):.1f}"
        if len(runs) > 1
        else ""
    )


def _iterations(record: RunRecord) -> float | None:
    return record.phase1.iterations if isinstance(record.phase1, DispersionRecord) else None


def _converged(record: RunRecord) -> float | None:
    """In percent."""
    return 100 * record.phase1.convergence_rate if isinstance(record.phase1, DispersionRecord) else None


def effect(a: Runs, b: Runs) -> Effect:
    """The difference b − a in nats per token, over common seeds and all documents, as in the report."""
    seeds = sorted({s for s in (*a, *b) if s is not None})
    differences, tokens = {}, None
    for seed in seeds:
        of_a, of_b = a.get(seed, a.get(None)), b.get(seed, b.get(None))
        if of_a is None or of_b is None:
            continue
        assert of_a.validation is not None
        assert of_a.validation.documents is not None
        assert of_b.validation is not None
        assert of_b.validation.documents is not None
        tokens, nll_a = of_a.validation.documents.unpack()
        same, nll_b = of_b.validation.documents.unpack()
        assert (tokens == same).all()
        differences[seed] = nll_b - nll_a
    assert tokens is not None
    return crossed(differences, tokens)


def change(found: Effect) -> str:
    """PPL ratio with its interval, in percent."""

    def percent(nats: float) -> str:
        return f"{100 * (math.exp(nats) - 1):+.1f}%".replace("-", "−")

    assert found.difference is not None
    interval = f" [{percent(found.interval[0])}, {percent(found.interval[1])}]" if found.interval else ""
    return percent(found.difference) + interval


def print_configurations(title: str, grid: dict[str, Runs]) -> None:
    """Phase 1, contexts and the best epoch of each configuration, over its seeds."""
    rows = []
    for name in _configurations(grid):
        runs = grid[name]
        first = next(iter(runs.values()))
        assert first.parameters is not None
        rows.append(
            [
                name,
                f"{first.parameters.total:,}",
                _spread(runs, _iterations),
                _spread(runs, _converged),
                _spread(runs, lambda r: 100 * r.contexts.effective_rank_validation if r.contexts else None),
                _spread(runs, lambda r: r.phase2.best_epoch if r.phase2 else None),
                _spread(runs, lambda r: r.phase2.train_perplexity if r.phase2 else None),
                _nll_spread(runs),
                _spread(runs, lambda r: 100 * r.validation.accuracy if r.validation else None),
                _spread(runs, lambda r: r.validation.bits_per_byte if r.validation else None, 3),
            ]
        )
    head = "Config|Params|Phase1 Iter|Conv%|ER%|Best epoch|Train PPL|Val PPL|Val Acc|Bits per byte"
    _table(title, head, rows)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _pairs(folder: Path) -> None:
    analysis = Analysis(read_records(folder), read_manifest(folder))
    rows = []
    for c in analysis.comparisons:
        by_seed = ", ".join(f"{value:+.3f}".replace("-", "−") for value in c.effect.by_seed.values())
        rows.append(
            [
                f"{c.a} → {c.b}",
                f"{c.effect.difference:+.4f}".replace("-", "−"),
                change(c.effect),
                by_seed,
                "–" if c.effect.df is None else f"{c.effect.df:.1f}",
                _p(c.corrected_p),
                c.verdict.value.replace("_", " "),
            ]
        )
    _table("Pairs", "Pair|nats per token|PPL [95%]|each seed|df|p (Holm)|second is", rows)


def _defects(folder: Path, grid: dict[str, Runs]) -> None:
    rows = []
    reference = _ppl(grid["C1T1"])
    for part, name, what in DEFECTS:
        planted = runs_in(folder / part).get(name)
        if not planted:
            continue
        audit = read_audit(folder / part)
        named = (
            sorted({check.name for run, check in audit.failed() if run is None or name in run})
            if audit
            else []
        )
        right, wrong = _ppl(grid[name]), _ppl(planted)
        rows.append(
            [
                name,
                what,
                f"{right:.1f} ({right / reference:.2f})",
                f"{wrong:.1f} ({wrong / reference:.2f})",
                change(effect(grid[name], planted)),
                _spread(planted, lambda r: r.phase2.train_perplexity if r.phase2 else None),
                f"{SEED_PPL[name] / SEED_PPL['C1T1']:.2f}",
                ", ".join(named),
            ]
        )
    head = (
        "Config|Defect|PPL correct (÷ C1T1)|PPL planted (÷ C1T1)|planted ÷ correct [95%]|Train PPL planted"
        "|original ÷ its C1T1|audit fails"
    )
    if rows:
        _table("The original's defects, planted", head, rows)


def _convergence(folder: Path, grid: dict[str, Runs]) -> None:
    levels: list[tuple[str, Path, str]] = [("0% (untrained)", folder / "grid", CONTROL["C1T1"])]
    for stop in ("25", "50", "75"):
        levels.append((f"{stop}%", folder / f"converged-{stop}", "C1T1"))
    levels.append(("90%", folder / "grid", "C1T1"))
    levels.append(("99%", folder / "converged-99", "C1T1"))
    control = grid[CONTROL["C1T1"]]
    rows = [
        _convergence_row(label, place, name, runs_in(place).get(name), control)
        for label, place, name in levels
    ]
    if "C1T2" in grid and CONTROL["C1T2"] in grid:
        pair = (grid[CONTROL["C1T2"]], grid["C1T2"])
        for label, name, runs in (("0% (untrained)", CONTROL["C1T2"], pair[0]), ("90%", "C1T2", pair[1])):
            rows.append(_convergence_row(f"C1T2, {label}", folder / "grid", name, runs, pair[0]))
    head = "Phase 1 stops at|iterations|Conv% reached|ER% of kept contexts|Val PPL|against untrained [95%]"
    _table("What phase 1 adds (C1T1 unless marked)", head, [row for row in rows if row])


def _convergence_row(label: str, place: Path, name: str, runs: Runs | None, control: Runs) -> list[str]:
    if not runs:
        return []
    ranks = [
        100
        * effective_rank(
            ContextsSample.load(place / "models" / r.run / "contexts_sample.safetensors").validation
        )
        for r in runs.values()
    ]
    return [
        label,
        _spread(runs, _iterations),
        _spread(runs, _converged),
        _mean_and_spread(ranks, 1),
        _nll_spread(runs),
        "–" if name.endswith("untrained") else change(effect(control, runs)),
    ]


def _standing(folder: Path, grid: dict[str, Runs]) -> None:
    configurations = _configurations(grid)
    names = [*configurations, *CONTROL.values(), "KN-5", "LSTM", "GPT-2", "bigram", "unigram"]
    best = min(configurations, key=lambda name: _ppl(grid[name]))
    analysis = Analysis(read_records(folder), read_manifest(folder))
    rows = []
    for name in sorted((n for n in names if n in grid), key=lambda name: _ppl(grid[name])):
        runs = grid[name]
        first = next(iter(runs.values()))
        assert first.parameters is not None
        found = next((c for c in analysis.baseline_comparisons if (c.a, c.b) == (name, best)), None)
        verdict = "" if found is None else f", {found.verdict.value.replace('_', ' ')}"
        rows.append(
            [
                name,
                f"{first.parameters.total:,}",
                _nll_spread(runs),
                _spread(runs, lambda r: r.validation.bits_per_byte if r.validation else None, 3),
                _spread(runs, lambda r: 100 * r.validation.accuracy if r.validation else None),
                _spread(runs, lambda r: r.seconds_alone_s, 0),
                "–" if name == best else change(effect(runs, grid[best])) + verdict,
            ]
        )
    _table(
        "Where all stand", f"Model|Params|Val PPL|Bits per byte|Val Acc|Seconds|{best} against it [95%]", rows
    )
