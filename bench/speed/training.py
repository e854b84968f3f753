"""Time per trained token: ours (phase 1 by prediction, contexts, phase 2), the LSTM's, and the GPT-2's.

All are trained for one epoch on the same text, as the package trains them, the baselines with about as many
parameters as ours (C2T2 of the preset `predictive`). Ours as a whole is the preset's mean over its epochs of
both phases, the computing of contexts included. The recipe draws a sample for its softmax, the baselines take
the whole vocabulary, so ours is given with the whole vocabulary, too.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from measuring import SMALL, Candidate, Spread, Timings, interleaved, number, print_table

from tandem.baselines import BASELINES
from tandem.contexts import Stream, compute_contexts
from tandem.experiment.baseline import baseline_inputs
from tandem.experiment.machine import uses_bfloat16
from tandem.experiment.pipeline import new_heads
from tandem.experiment.prepared import TrainingInputs, new_model, total_parameters
from tandem.group import PLAIN, Execution
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.settings import BaselineSettings, Configuration, Gpt2Settings, LstmSettings
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import silent

from .inputs import CONTEXTS, python_docs

CONFIGURATION = Configuration(2, 2)
VALIDATION_TOKENS = 256
"""So few that scoring them at the end of an epoch does not count."""
BASELINE_SETTINGS = BaselineSettings(lstm=LstmSettings(max_epochs=1), gpt2=Gpt2Settings(max_epochs=1))
WHOLE, HALF = ", whole vocabulary", ", bf16"


@dataclass(frozen=True)
class Sizes:
    """Training text in bytes, tokens trained on, and how often all is timed."""

    train_bytes: int
    vocab_size: int
    tokens: int
    rounds: int


FULL = Sizes(800_000, 8192, 32_768, 3)
FEW = Sizes(20_000, 300, 1_024, 1)


class Ours:
    """One model, trained on from round to round: what a step costs does not depend on its weights."""

    def __init__(self, prepared: TrainingInputs, tokens: int) -> None:
        settings = prepared.settings
        one_epoch = {"max_epochs": 1}
        self.settings = settings
        self.prediction = settings.prediction.model_copy(update=one_epoch)
        self.phase2 = settings.phase2.model_copy(update=one_epoch)
        self.model = new_model(prepared, CONFIGURATION, seed=0)
        self.heads = new_heads(prepared, CONFIGURATION.context_layers, seed=0)
        corpus = prepared.corpus
        self.train = Stream.of(self.model, corpus.train.ids).first(tokens)
        self.validation = Stream.of(self.model, corpus.validation.ids).first(VALIDATION_TOKENS)
        self.splits = (self._split(self.train), self._split(self.validation))

    def phase1(self, negatives: int | None, execution: Execution = PLAIN) -> None:
        """One epoch by prediction."""
        prediction = self.prediction.model_copy(update={"negatives": negatives})
        settings = self.settings.model_copy(update={"prediction": prediction})
        inputs = Phase1Inputs(self.model, self.heads, self.train, settings, 0, silent, execution)
        OBJECTIVES["predictive"].train(inputs)

    def contexts(self) -> None:
        """Of the training text, as they are computed between the phases."""
        self._split(self.train)

    def phase2_epoch(self, negatives: int | None, execution: Execution = PLAIN) -> None:
        """One epoch, on contexts that were computed before."""
        settings = self.phase2.model_copy(update={"negatives": negatives})
        train_token_block(self.model, *self.splits, settings, seed=0, execution=execution)

    def _split(self, stream: Stream) -> Split:
        return Split(stream, compute_contexts(self.model, stream, CONTEXTS)[0])


def table(device: torch.device) -> None:
    """Print it."""
    sizes = FEW if SMALL else FULL
    head = {"head_layers": (CONFIGURATION.token_layers,)}  # as `tandem train` predicts for one configuration
    prepared = python_docs("predictive", device, sizes.train_bytes, sizes.vocab_size, prediction=head)
    parameters = total_parameters(prepared, CONFIGURATION)
    on_cpu = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    kinds = ("", HALF) if on_cpu or uses_bfloat16("auto", device) else ("",)
    timings, counts = _measure(prepared, parameters, sizes, kinds)
    names = ["phase 1", "contexts", "phase 2", "ours", f"ours{WHOLE}", "LSTM", "GPT-2"]
    if HALF in kinds:
        names += [f"{name}{HALF}" for name in ("phase 1", "phase 2", "ours", "LSTM", "GPT-2")]
    rows = [
        [
            name,
            f"{counts.get(name.removesuffix(HALF), parameters):,}",
            number(timings.ns(name)),
            "1" if name == "LSTM" else timings.ratio(name, "LSTM").show(),
            "1" if name == "GPT-2" else timings.ratio(name, "GPT-2").show(),
        ]
        for name in names
    ]
    recipe = prepared.settings
    print_table(
        f"A trained token, V {prepared.corpus.vocab_size:,}, {sizes.tokens:,} tokens",
        ("what", "parameters", "ns per token and epoch", "÷ LSTM", "÷ GPT-2"),
        rows,
        f"{sizes.rounds} rounds; {Spread.how}. `ours`: {recipe.prediction.max_epochs} epochs of phase 1, "
        f"contexts once, {recipe.phase2.max_epochs} of phase 2, per token and epoch; {CONFIGURATION.name}, "
        f"{recipe.prediction.negatives} tokens drawn. LSTM and GPT-2: the whole vocabulary. "
        "bf16: products of matrices in it, where the processor has units for that.",
    )


def _measure(
    prepared: TrainingInputs, parameters: int, sizes: Sizes, kinds: tuple[str, ...]
) -> tuple[Timings, dict[str, int]]:
    """Times of all, those of products of matrices by `kinds` of them, and the parameters of the baselines."""
    ours = Ours(prepared, sizes.tokens)
    ids, held_out = prepared.corpus.train.ids[: sizes.tokens], prepared.corpus.validation.ids
    inputs = replace(
        baseline_inputs(prepared, 0),
        train=ids,
        validation=held_out[:VALIDATION_TOKENS],
        settings=prepared.settings.model_copy(update={"baselines": BASELINE_SETTINGS}),
        max_parameters=parameters,
    )
    counts: dict[str, int] = {}

    def fit(kind: str, execution: Execution) -> None:
        fitted = BASELINES[kind].fit(replace(inputs, execution=execution))
        counts[BASELINES[kind].title] = fitted.embedding_parameters + fitted.other_parameters

    tokens = len(ours.train) - 1
    drawn = ours.prediction.negatives
    candidates = {
        "contexts": Candidate(ours.contexts, tokens),
        f"phase 1{WHOLE}": Candidate(lambda: ours.phase1(None), tokens),
        f"phase 2{WHOLE}": Candidate(lambda: ours.phase2_epoch(None), tokens),
    }
    for suffix in kinds:
        with_it = Execution(bfloat16=suffix == HALF)
        candidates |= {
            f"phase 1{suffix}": Candidate(partial(ours.phase1, drawn, with_it), tokens),
            f"phase 2{suffix}": Candidate(partial(ours.phase2_epoch, drawn, with_it), tokens),
            f"LSTM{suffix}": Candidate(partial(fit, "lstm", with_it), tokens),
            f"GPT-2{suffix}": Candidate(partial(fit, "gpt2", with_it), tokens),
        }
    timings = interleaved(candidates, sizes.rounds, warm_up=False)
    first, second = prepared.settings.prediction.max_epochs, prepared.settings.phase2.max_epochs
    epochs = first + second
    for which in (*kinds, WHOLE):
        weights = {
            f"phase 1{which}": first / epochs,
            "contexts": 1 / epochs,
            f"phase 2{which}": second / epochs,
        }
        timings = timings.with_sum(f"ours{which}", weights)
    return timings, counts
