"""How often the comparison of two equal models is called a difference, at a nominal 5%.

    python bench/false_positives.py [--repetitions 2000] [--seed 0]

Two models that are equal on average are compared over S seeds × D documents by the report's own estimate
(`tandem.report.statistics.estimate`), so every p below 0.05 is a false alarm. Documents have log-normal
lengths (median 300 tokens, σ = 1: the longest of 100 has some 4,000). Per token, the difference of a document
with a seed is made of four parts, whose standard deviations in arbitrary units make the scenarios:

    seed        normal, one a seed
    document    Student's t with 4 degrees of freedom (heavy-tailed), one a document
    both        the same, one for each seed and document
    token       normal, divided by √(tokens / 300)

The printed rates carry a standard error of 0.5 points at 2,000 repetitions. The last scenario has neither a
seed nor a document effect, which two trained models hardly show; the test is conservative there, as it cannot
know that both are absent. About half a minute on one core.
"""

import argparse
import math
from collections.abc import Mapping

import numpy as np
from measuring import SMALL, run

from tandem.report.statistics import ALPHA, estimate

SEEDS, DOCUMENTS = (3, 5, 8), (20, 100, 500)
SCENARIOS: Mapping[str, tuple[float, float, float, float]] = {
    "seeds only": (1.0, 0.0, 0.0, 0.1),
    "seeds dominate": (1.0, 1.0, 1.0, 1.0),
    "balanced": (0.3, 1.0, 1.0, 1.0),
    "documents dominate": (0.1, 1.0, 0.5, 1.0),
    "no seed effect": (0.0, 1.0, 0.5, 1.0),
    "no document effect": (0.3, 0.0, 1.0, 1.0),
    "neither": (0.0, 0.0, 1.0, 1.0),
}


def rate(
    parts: tuple[float, float, float, float],
    seeds: int,
    documents: int,
    repetitions: int,
    rng: np.random.Generator,
) -> float:
    """Share of repetitions called a difference."""
    alarms = 0
    for _ in range(repetitions):
        tokens = np.maximum(5, rng.lognormal(math.log(300), 1.0, documents)).astype(np.int64)
        of_seed, of_document, of_both, of_token = parts
        per_token = (
            of_seed * rng.normal(size=(seeds, 1))
            + of_document * rng.standard_t(4, documents) / math.sqrt(2)
            + of_both * rng.standard_t(4, (seeds, documents)) / math.sqrt(2)
            + of_token * rng.normal(size=(seeds, documents)) / np.sqrt(tokens / 300)
        )
        alarms += estimate(per_token * tokens, tokens).p < ALPHA
    return alarms / repetitions


def main() -> None:
    parser = argparse.ArgumentParser(description="False positives of the comparison over seeds × documents.")
    parser.add_argument("--repetitions", type=int, default=2 if SMALL else 2000, help="comparisons a cell")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print(f"false positives in %, nominal {100 * ALPHA:.0f}; {options.repetitions} repetitions a cell")
    print(f"{'':20}" + "".join(f"{f'D = {documents}':^24}" for documents in DOCUMENTS))
    print(f"{'scenario':20}" + "".join(f"{f'S = {seeds}':>8}" for _ in DOCUMENTS for seeds in SEEDS))
    by_seeds: dict[int, list[float]] = {seeds: [] for seeds in SEEDS}
    for name, parts in SCENARIOS.items():
        line = f"{name:20}"
        for documents in DOCUMENTS:
            for seeds in SEEDS:
                found = rate(parts, seeds, documents, options.repetitions, rng)
                by_seeds[seeds].append(found)
                line += f"{100 * found:8.1f}"
        print(line, flush=True)
    means = ", ".join(f"S = {seeds}: {100 * np.mean(rates):.1f}" for seeds, rates in by_seeds.items())
    print(f"mean over scenarios and documents: {means}")


if __name__ == "__main__":
    run(main)
