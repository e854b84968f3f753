"""Whether a token of training takes longer in a large text: both phases on texts of two sizes, in turns.

    python bench/big_turns.py [--megabytes 38] [--times 1 16] [--rounds 3] [--moment 60] [--folder FOLDER]

What bench/big_training.py trains from start to end, which takes more than an hour on the large text, in
which a shared machine changes more than what is to be measured. Here each text is prepared, then phase 1 is
trained for a moment on one and on the other, several times; the same with phase 2, once the contexts are made
and kept where there is room (memory, disk). Prints nanoseconds per token, and the large text's throughput
over the small one's of the same round. Target: at least 0.9.
"""

import os
import sys
from pathlib import Path
from statistics import median

from big_corpus import parser_for, texts_of
from big_training import MODEL
from measuring import Spread, run

from tandem.cli.arguments import TrainArguments, parse_with_preset
from tandem.experiment import estimate
from tandem.experiment.contexts import contexts_of
from tandem.experiment.one_run import set_up_process
from tandem.experiment.pipeline import new_heads
from tandem.experiment.prepared import new_model, prepare, streams
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.settings import Configuration
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import OnTick

CONFIGURATION = Configuration(1, 1)


class Text:
    """One text, prepared, and moments of training on it."""

    def __init__(self, text: Path, threads: int) -> None:
        options = {**MODEL, "--data.train": text, "--threads": threads}
        arguments = [str(part) for option in options.items() for part in option]
        settings, _ = parse_with_preset("train", TrainArguments, arguments, "predictive")
        self.settings = OBJECTIVES[settings.recipe].for_one_run(settings, CONFIGURATION.token_layers)
        set_up_process(self.settings)
        self.prepared = prepare(self.settings, lambda what: print(what, file=sys.stderr))
        self.tokens = len(self.prepared.corpus.train)

    def phase1_s(self) -> float:
        """Seconds of an epoch, by a moment of it."""
        model = new_model(self.prepared, CONFIGURATION, 0)
        heads = new_heads(self.prepared, 1, 0)
        train, _ = streams(self.prepared, model)

        def begin(on_tick: OnTick) -> None:
            objective = OBJECTIVES[self.settings.recipe]
            execution = self.prepared.execution
            objective.train(Phase1Inputs(model, heads, train, self.settings, 0, on_tick, execution))

        return estimate.seconds_of(begin)

    def make_contexts(self) -> None:
        """Of a block that was not trained, which takes as long."""
        model = new_model(self.prepared, CONFIGURATION, 0)
        self.split, _, self.contexts = contexts_of(self.prepared, model, *streams(self.prepared, model))

    def phase2_s(self) -> float:
        """Seconds of an epoch, by a moment of it."""
        model = new_model(self.prepared, CONFIGURATION, 0)
        tiny = Split(self.split.stream.first(2), self.split.contexts)

        def begin(on_tick: OnTick) -> None:
            train_token_block(
                model,
                self.split,
                tiny,
                self.settings.phase2,
                0,
                on_tick=on_tick,
                execution=self.prepared.execution,
            )

        return estimate.seconds_of(begin)


def row(what: str, seconds: dict[int, list[float]], texts: dict[int, Text]) -> str:
    """Of the table: nanoseconds per token of each size, and the throughput of the largest."""
    small, large = min(texts), max(texts)
    per_token = {
        size: [1e9 * s / texts[size].tokens for s in all_of_it] for size, all_of_it in seconds.items()
    }
    shares = Spread.of([a / b for a, b in zip(per_token[small], per_token[large], strict=True)])
    times = " | ".join(f"{median(per_token[size]):,.0f}" for size in texts)
    return f"| {what} | {times} | {shares.show()} |"


def main() -> None:
    parser = parser_for(__doc__, 38, [1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--moment", type=float, default=60, help="seconds")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    estimate.MOMENT_S = given.moment
    with texts_of(given) as (folder, paths):
        os.environ["TANDEM_CACHE"] = str(folder / "cache")
        texts = {times: Text(path, given.threads) for times, path in paths.items()}
        heads = " | ".join(f"{texts[size].tokens:,} tokens, ns each" for size in texts)
        print(f"| | {heads} | throughput of the large text |\n|---|---:|---:|---:|")
        for what, begin in (("phase 1", Text.phase1_s), ("phase 2", Text.phase2_s)):
            if what == "phase 2":
                for text in texts.values():
                    text.make_contexts()
                made = {size: [text.contexts.train.seconds_s] for size, text in texts.items()}
                print(row("contexts, once", made, texts), flush=True)
            seconds: dict[int, list[float]] = {size: [] for size in texts}
            for _ in range(given.rounds):
                for size, text in texts.items():
                    seconds[size].append(begin(text))
            print(row(what, seconds, texts), flush=True)
        kept = ", ".join(
            f"{text.contexts.train.storage} of {text.tokens:,} tokens" for text in texts.values()
        )
        print(f"\nContexts: {kept}. {given.rounds} rounds of {given.moment:g} s; {Spread.how}.")


if __name__ == "__main__":
    run(main)
