"""An extension of Tandem, as another package would bring it: each part is a class and a line at the end."""

import itertools
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tandem.baselines import BASELINES, Baseline, BaselineInputs, Fitted
from tandem.experiment.executors import EXECUTORS, Executor, Tell, Worker
from tandem.records import Check, RunRecord
from tandem.settings import Positive, Probability, Section, add_section
from tandem.text.sources import SOURCES, Source


class DecaySettings(Section):
    """Frequencies that fade."""

    rate: Probability = 0.99
    """What is left of a token's count after each further token."""


class DecayBaseline(Baseline):
    """Frequencies of single tokens in what was read before, older ones counting for less."""

    title = "Decay"
    description = "frequencies that fade"
    section = "baselines.decay"
    seeded = False

    def fit(self, inputs: BaselineInputs) -> Fitted:
        """p(w) = (c(w) + 1) / (C + V), with the faded counts c of the tokens before, and their sum C."""
        from tandem.metrics import Score

        began, vocab_size = time.perf_counter(), inputs.vocab_size
        rate = inputs.settings.section(self.section).rate

        def score(ids: np.ndarray) -> Score:
            counts, losses, correct = np.zeros(vocab_size), [], 0
            for before, token in itertools.pairwise(ids):
                counts *= rate
                counts[before] += 1
                losses.append(-np.log((counts[token] + 1) / (counts.sum() + vocab_size)))
                correct += int(counts.argmax() == token)
            return Score.of(np.array(losses, np.float32), correct)

        return Fitted(score(inputs.validation), 0, vocab_size, None, time.perf_counter() - began, score)

    def refit(self, inputs: BaselineInputs, record: RunRecord) -> Fitted:  # noqa: ARG002
        """Nothing is drawn at random."""
        return self.fit(inputs)

    def checks(self, inputs: BaselineInputs, record: RunRecord) -> list[Check]:
        """Its number of parameters."""
        said = record.parameters.total if record.parameters else None
        right = said == inputs.vocab_size
        return [
            Check(
                name="faded",
                looked_at="its counts",
                figure=f"{said} counts",
                status="pass" if right else "fail",
            )
        ]


def counted(name: str, *_: object) -> Iterator[str]:
    """`numbers:COUNT`: so many documents, each of numbers in words."""
    words = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for document in range(int(name.removeprefix("numbers:"))):
        yield f"{document}: " + " ".join(random.Random(document).choices(words, k=60)) + "."


class SpawnedSettings(Section):
    """Processes that are spawned."""

    changes_results = False

    limit: Positive = 4
    """How many there are at most."""


class SpawnedExecutor(Executor):
    """Processes of this machine, `spawned.limit` at most."""

    @contextmanager
    def helping(self, worker: Worker, count: int, tell: Tell) -> Iterator[None]:
        """See Executor."""
        count = min(count, self.settings.section("spawned").limit)
        processes = [multiprocessing.get_context("spawn").Process(target=worker) for _ in range(count)]
        for process in processes:
            process.start()
        tell(f"workers: {count} more, spawned")
        try:
            yield
        finally:
            for process in processes:
                process.terminate()
                process.join()


add_section("baselines.decay", DecaySettings)
add_section("spawned", SpawnedSettings)
BASELINES["decay"] = DecayBaseline()
SOURCES["numbers:"] = Source(counted)
EXECUTORS["spawned"] = SpawnedExecutor
