"""Each kind of work of an experiment, begun on a part of the text, and scaled to all of it."""

from collections import Counter
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict

from tandem.contexts import PIECE_TOKENS, SCANS, compute_contexts, held_in_memory, measure_memory
from tandem.experiment.baseline import run_baseline
from tandem.experiment.contexts import bytes_on_disk, kept_outside_memory, room_in_memory
from tandem.experiment.grid import RunSpec
from tandem.experiment.pipeline import new_heads
from tandem.experiment.prepared import TrainingInputs, new_model, streams
from tandem.experiment.stopwatch import allocated, seconds_of, timed
from tandem.metrics import effective_rank, score_stream
from tandem.model import TandemForCausalLM
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.settings import Configuration
from tandem.tokens.prepare import default_cache_dir
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import OnTick

TRIAL_BATCHES = 12
"""Batches of phase 2 in the part of the text on which contexts, scores and phase 2 are timed."""


class CostItem(BaseModel):
    """One kind of work: how often it will be done, and how long it takes once."""

    model_config = ConfigDict(frozen=True)
    what: str
    times: int
    seconds_s: float


def baseline_trial(prepared: TrainingInputs, spec: RunSpec) -> tuple[float, int]:
    """Seconds of a baseline, and the bytes that it takes on all of the text beyond those of the trial."""
    corpus = prepared.corpus
    whole = len(corpus.train)
    if spec.seed is None:  # an n-gram, whose cost is that of counting: so much a token
        many = min(whole, PIECE_TOKENS)
        few = many // 2

        def run(tokens: int) -> None:
            splits = (
                replace(split, ids=split.ids[: max(2, len(split) * tokens // whole)])
                for split in (corpus.train, corpus.validation)
            )
            train, validation = splits
            part = replace(prepared, corpus=replace(corpus, train=train, validation=validation))
            run_baseline(part, spec.kind, None, lambda _: None)

        seconds = timed(lambda: run(many)) * whole / many
        a_token = (allocated(lambda: run(many)) - allocated(lambda: run(few))) / (many - few)
        return seconds, max(0, round(a_token * (whole - many)))
    seconds = seconds_of(lambda on_tick: run_baseline(prepared, spec.kind, spec.seed, on_tick))
    # Scoring reads the validation text after every epoch, forwards only: about a third of training on it.
    return seconds * (1 + len(corpus.validation) / whole / 3), 0


@dataclass(frozen=True)
class _Contexts:
    """Contexts of the beginning of the text, and seconds of all of it.

    made_s                               both splits' contexts, and what is measured on them
    again_s                              both splits' contexts once more, in memory
    score_s                              one score of the validation text
    train_again_s, validation_again_s    to compute a split's contexts once more, where they are not kept
    """

    begun: Split
    made_s: float
    again_s: float
    score_s: float
    train_again_s: float
    validation_again_s: float


@dataclass
class Trial:
    """The work of all runs with one variant and context depth, timed on a model that is thrown away.

    held_bytes    what all of the text takes in memory beyond the trial, in phase 1 or of contexts
    disk_bytes    of contexts
    """

    prepared: TrainingInputs
    context_layers: int
    held_bytes: int = 0
    disk_bytes: int = 0

    def parts(self, specs: list[RunSpec]) -> list[CostItem]:
        """What these runs will take: what they share for each seed, and phase 2 for each run."""
        prepared, settings = self.prepared, self.prepared.settings
        name = "" if specs[0].variant is None else f"{specs[0].variant}, "
        trained = specs[0].kind == "tandem"
        name += "" if trained else f"{specs[0].kind}, "
        configuration = Configuration(self.context_layers)
        seed, seeds = settings.seeds[0], len({spec.seed for spec in specs})
        depth = f"C{self.context_layers}"
        model = new_model(prepared, configuration, seed)
        found = []
        if trained:
            found.append(CostItem(what=f"{name}{depth}, phase 1", times=seeds, seconds_s=self._phase1(seed)))
        contexts = self._contexts(model)
        heads = len(new_heads(prepared, self.context_layers, seed)) if trained else 0
        found.append(
            CostItem(
                what=f"{name}{depth}, contexts and scores",
                times=seeds,
                seconds_s=contexts.made_s + heads * (contexts.score_s + contexts.validation_again_s),
            )
        )
        for configuration, runs in Counter(
            spec.configuration for spec in specs if spec.configuration
        ).items():
            seconds = self._phase2(configuration, contexts, seed, starts_from_phase1=heads > 0)
            found.append(CostItem(what=f"{name}{configuration.name}, phase 2", times=runs, seconds_s=seconds))
        return found

    def _phase1(self, seed: int) -> float:
        objective = OBJECTIVES[self.prepared.settings.recipe]
        shorter, share, self.held_bytes = objective.trial(
            self.prepared.settings, len(self.prepared.corpus.train)
        )
        prepared = replace(self.prepared, settings=shorter)
        model = new_model(prepared, Configuration(self.context_layers), seed)
        heads = new_heads(prepared, self.context_layers, seed)
        train, _ = streams(prepared, model)

        def phase1(on_tick: OnTick) -> None:
            objective.train(Phase1Inputs(model, heads, train, shorter, seed, on_tick, prepared.execution))

        return seconds_of(phase1) / share

    def _contexts(self, model: TandemForCausalLM) -> _Contexts:
        """Both splits' contexts and what is measured on them, by those of the beginning of the text."""
        settings, (train, validation) = self.prepared.settings, streams(self.prepared, model)
        in_memory = settings.contexts.model_copy(update={"keep": "memory"})
        size = min(len(train), max(PIECE_TOKENS // 8, TRIAL_BATCHES * settings.phase2.batch_positions))
        whole = len(train) + len(validation)

        def scan(tokens: int) -> float:
            return timed(lambda: compute_contexts(model, train.first(tokens), in_memory))

        scan(size // 4)  # what is done once in a process
        few, many = scan(size // 4), scan(size)
        a_token = max(0.0, many - few) / (size - size // 4)  # checks of a fixed size are in both
        scanned = computing = 2 * few + a_token * (whole - size // 2)
        begun = train.first(size)
        contexts, _ = compute_contexts(model, begun, in_memory)
        train_again = validation_again = 0.0
        if held_in_memory(model, len(train), settings.contexts, room_in_memory(model, settings)):
            size_bytes = whole * model.config.context_dim * model.dtype.itemsize
            self.held_bytes = max(self.held_bytes, size_bytes)
        else:
            validation_again = a_token * len(validation)
            # A piece is read while the one before it is still there.
            pieces = 2 * min(PIECE_TOKENS, len(train)) * model.config.context_dim * model.dtype.itemsize
            self.held_bytes = max(self.held_bytes, pieces)
            if SCANS[model.context_block.scan].reads_all:
                computing += (
                    a_token * whole
                )  # checked as a whole, then computed again to be kept, or for the rank
            if kept_outside_memory(model, len(train), settings) == "disk":
                self.disk_bytes = bytes_on_disk(len(train), model.config.context_dim)
                computing += timed(lambda: contexts.on_disk(default_cache_dir())) * len(train) / size
            else:
                train_again = a_token * len(train)
        ranked = min(len(contexts), settings.contexts.rank_positions)
        seconds = timed(lambda: effective_rank(contexts, ranked))
        computing += 2 * seconds * settings.contexts.rank_positions / ranked
        chunk = settings.phase2.chunk_positions
        some = begun.first(min(size, 4 * chunk))
        score = timed(lambda: score_stream(model, some, contexts, chunk)) / (len(some) - 1) * len(validation)
        measured = timed(lambda: measure_memory(model, validation))
        return _Contexts(
            Split(begun, contexts),
            computing + measured,
            scanned + measured,
            score,
            train_again,
            validation_again,
        )

    def _phase2(
        self, configuration: Configuration, contexts: _Contexts, seed: int, starts_from_phase1: bool
    ) -> float:
        prepared, settings, split = self.prepared, self.prepared.settings, contexts.begun
        model = new_model(prepared, configuration, seed)
        tiny = Split(split.stream.first(2), split.contexts)  # its score costs nothing
        trains_embedding = settings.embeddings.trained
        seconds = seconds_of(
            lambda on_tick: train_token_block(
                model,
                split,
                tiny,
                settings.phase2,
                seed,
                refresh=(lambda: (split, tiny)) if trains_embedding else None,
                on_tick=on_tick,
                execution=prepared.execution,
            )
        )
        seconds *= (len(prepared.corpus.train) - 1) / (len(split.stream) - 1)
        epochs = settings.phase2.max_epochs
        if trains_embedding:  # all contexts are made anew, and held beside those before, and phase 1's
            size = len(prepared.corpus.train) + len(prepared.corpus.validation)
            size_bytes = size * settings.model.context_dim * model.dtype.itemsize
            self.held_bytes = max(self.held_bytes, 3 * size_bytes)
            return seconds + epochs * (contexts.score_s + contexts.again_s)
        # Where phase 2 starts from phase 1's token layers, these are scored first, on validation and on as
        # much of the training text; of the best epoch's contexts a sample is kept, for the audit.
        first = 1 if starts_from_phase1 and settings.phase2.start == "phase1" else 0
        beginning = min(1.0, len(prepared.corpus.validation) / len(prepared.corpus.train))
        return (
            seconds
            + (epochs + 2 * first) * contexts.score_s
            + (epochs + first + 1) * contexts.validation_again_s
            + (epochs + first * beginning + 1) * contexts.train_again_s
        )
