"""Scoring a text, and generating token after token, beside GPT-2 of about as many parameters.

All weights are random: what a token costs does not depend on them. GPT-2 is transformers' `GPT2LMHeadModel`
with the key/value cache that it takes by default (`DynamicCache`, which is copied at every token); its
position embeddings, which cost memory but no time, are not counted. Both generate greedily through the same
call, `model(token, past_key_values=…)`. The bytes of a state are those of the storage behind every tensor
that the cache holds, right after the text up to there was read (READ_AT_ONCE tokens a call).

Kneser-Ney is our own, in numpy, which makes whole distributions, and KenLM, which looks up single n-grams of
the same model in C++, where it is installed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import SMALL, Candidate, Spread, Timings, interleaved, number, print_table
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from tandem.baselines.gpt2 import Gpt2Baseline
from tandem.baselines.kneser_ney import KneserNey
from tandem.baselines.network import widest
from tandem.contexts import Stream, compute_contexts
from tandem.experiment.prepared import TrainingInputs, new_model
from tandem.metrics import score_stream
from tandem.model import TandemCache, TandemForCausalLM
from tandem.settings import Configuration, Gpt2Settings, Phase2Settings

from .inputs import CONTEXTS, python_docs, zipf_ids
from .kenlm_queries import kenlm_scorer

CONFIGURATION = Configuration(2, 2)
CHUNK = Phase2Settings().chunk_positions
WINDOWS = (64, 1024)
"""Tokens that GPT-2 sees at once when it scores; they slide by half."""
READ_AT_ONCE = 1024
BATCHES, BATCH_POSITION = ((1, 2), 50) if SMALL else ((1, 8, 64), 500)
ORDER = 5


@dataclass(frozen=True)
class Sizes:
    """Positions in a text at which a token is timed, for ours and for GPT-2, and how many tokens it is."""

    train_bytes: int
    vocab_size: int
    scored_tokens: int
    positions: tuple[int, ...]
    gpt2_positions: tuple[int, ...]
    steps: int
    rounds: int


FULL = Sizes(
    *(800_000, 8192, 20_000),
    positions=(100, 500, 1_000, 10_000, 100_000, 1_000_000),
    gpt2_positions=(100, 500, 1_000, 10_000),
    steps=32,
    rounds=7,
)
FEW = Sizes(
    *(20_000, 300, 200),
    positions=(50, 100),
    gpt2_positions=(50,),
    steps=2,
    rounds=1,
)


def table(device: torch.device) -> None:
    """Print all three."""
    sizes = FEW if SMALL else FULL
    prepared = python_docs("predictive", device, sizes.train_bytes, sizes.vocab_size)
    ours = new_model(prepared, CONFIGURATION, seed=0)
    parameters = ours.num_params()["total"]
    gpt2 = _gpt2(prepared, parameters, max(sizes.gpt2_positions) + sizes.steps + 1)
    with torch.inference_mode():
        _scoring(prepared, ours, parameters, sizes)
        _one_by_one(ours, gpt2, sizes)
        _side_by_side(ours, gpt2, sizes)


def _gpt2(prepared: TrainingInputs, parameters: int, positions: int) -> GPT2LMHeadModel:
    """As wide as the parameters allow, position embeddings not counted."""
    vocab_size, shape = prepared.corpus.vocab_size, Gpt2Settings()
    heads = shape.heads
    baselines = prepared.settings.baselines.model_copy(update={"gpt2": shape})
    settings = prepared.settings.model_copy(update={"baselines": baselines})

    def total(width: int) -> int:
        return Gpt2Baseline().parameter_count(settings, vocab_size, width) - shape.window * width

    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=widest(total, range(heads, 4096, heads), parameters, "GPT-2"),
        n_layer=shape.layers,
        n_head=heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval().to(prepared.device)


def _scoring(prepared: TrainingInputs, ours: TandemForCausalLM, parameters: int, sizes: Sizes) -> None:
    train, ids = prepared.corpus.train.ids, prepared.corpus.validation.ids[: sizes.scored_tokens]
    stream = Stream.of(ours, ids)
    tokens = len(stream) - 1
    contexts, _ = compute_contexts(ours, stream, CONTEXTS)
    kneser_ney = KneserNey.fit(train, prepared.corpus.vocab_size, ORDER)
    candidates = {
        "ours": Candidate(lambda: _score_ours(ours, stream), tokens),
        "ours, contexts alone": Candidate(lambda: compute_contexts(ours, stream, CONTEXTS), tokens),
        "ours, from contexts": Candidate(lambda: score_stream(ours, stream, contexts, CHUNK), tokens),
    }
    for window in WINDOWS:
        gpt2 = _gpt2(prepared, parameters, window)
        candidates[f"GPT-2, windows of {window:,}"] = Candidate(_score_gpt2(gpt2, stream.ids[:]), tokens)
    candidates[f"Kneser-Ney, {ORDER}-gram, ours in numpy"] = Candidate(lambda: kneser_ney.score(ids), tokens)
    if (queries := kenlm_scorer(kneser_ney, ids)) is None:
        print("KenLM is not installed: without its row\n")
    else:
        candidates[f"Kneser-Ney, the same {ORDER}-gram by KenLM"] = Candidate(queries, tokens)
    timings = interleaved(candidates, sizes.rounds)
    print_table(
        f"Scoring {tokens:,} tokens, exact softmax, V {prepared.corpus.vocab_size:,}",
        ("model", "tokens per second", "time ÷ ours"),
        [
            [
                name,
                number(1e9 / timings.ns(name)),
                "1" if name == "ours" else timings.ratio(name, "ours").show(),
            ]
            for name in candidates
        ],
        _about(ours, sizes),
    )


def _score_ours(model: TandemForCausalLM, stream: Stream) -> None:
    score_stream(model, stream, compute_contexts(model, stream, CONTEXTS)[0], CHUNK)


def _score_gpt2(model: GPT2LMHeadModel, ids: Tensor) -> Callable[[], object]:
    return lambda: Gpt2Baseline().score(model.transformer, ids, CHUNK)


class Generation:
    """One model at one place of one or several texts: greedy steps from there, as often as wanted.

    state_bytes    of its cache, once the texts were read
    """

    def __init__(self, model: TandemForCausalLM | GPT2LMHeadModel, ids: Tensor, steps: int) -> None:
        """Read ids [B, T]."""
        self._model, self._steps = model, steps
        self.cache: TandemCache | DynamicCache = (
            TandemCache() if isinstance(model, TandemForCausalLM) else DynamicCache()
        )
        for part in ids.split(READ_AT_ONCE, dim=1):
            self._last = self._next(part)
        self.state_bytes = state_bytes(self.cache)

    def __call__(self) -> None:
        """Generate so many tokens, then go back: a key/value cache is cut to what it was."""
        token = self._last
        for _ in range(self._steps):
            token = self._next(token)
        if isinstance(self.cache, DynamicCache):
            self.cache.crop(-self._steps)

    def candidate(self, batch: int = 1) -> Candidate:
        """Its time is given by token and text."""
        return Candidate(self, self._steps * batch)

    def _next(self, ids: Tensor) -> Tensor:
        """Read ids [B, n]; the likeliest next tokens [B, 1]."""
        output = self._model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(dim=-1, keepdim=True)


def state_bytes(cache: TandemCache | DynamicCache) -> int:
    """Of the storage behind all that the cache holds."""
    if isinstance(cache, TandemCache):
        return 0 if cache.context is None else cache.context.untyped_storage().nbytes()
    tensors = [tensor for layer in cache.layers for tensor in vars(layer).values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if isinstance(tensor, Tensor))


def made_up_texts(model: TandemForCausalLM | GPT2LMHeadModel, batch: int, tokens: int) -> Tensor:
    """Token ids [batch, tokens] on the model's device."""
    ids = zipf_ids(batch * tokens, model.config.vocab_size).reshape(batch, tokens)
    return torch.from_numpy(ids).to(model.device)


def _one_by_one(ours: TandemForCausalLM, gpt2: GPT2LMHeadModel, sizes: Sizes) -> None:
    runs: dict[str, Generation] = {}
    for at in sizes.positions:
        runs[f"ours {at}"] = Generation(ours, made_up_texts(ours, 1, at), sizes.steps)
    for at in sizes.gpt2_positions:
        runs[f"gpt2 {at}"] = Generation(gpt2, made_up_texts(gpt2, 1, at), sizes.steps)
    timings = interleaved({name: run.candidate() for name, run in runs.items()}, sizes.rounds)
    first = f"ours {sizes.positions[0]}"
    print_table(
        "One token after another",
        (
            *("position", "ours, µs per token", f"÷ at {sizes.positions[0]}", "bytes of its state"),
            *("GPT-2, µs per token", "GPT-2 ÷ ours", "bytes of its cache"),
        ),
        [
            [
                f"{at:,}",
                number(timings.ns(f"ours {at}") / 1000),
                "1" if f"ours {at}" == first else timings.ratio(f"ours {at}", first).show(),
                f"{runs[f'ours {at}'].state_bytes:,}",
                *_gpt2_cells(timings, runs, at),
            ]
            for at in sizes.positions
        ],
        f"{sizes.steps} tokens each time. {_about(ours, sizes)} "
        f"GPT-2 has {gpt2.config.n_positions:,} positions.",
    )


def _gpt2_cells(timings: Timings, runs: dict[str, Generation], at: int) -> list[str]:
    name = f"gpt2 {at}"
    if name not in runs:
        return ["–", "–", "–"]
    ratio = timings.ratio(name, f"ours {at}").show()
    return [number(timings.ns(name) / 1000), ratio, f"{runs[name].state_bytes:,}"]


def _side_by_side(ours: TandemForCausalLM, gpt2: GPT2LMHeadModel, sizes: Sizes) -> None:
    candidates = {}
    for batch in BATCHES:
        for name, model in (("ours", ours), ("GPT-2", gpt2)):
            run = Generation(model, made_up_texts(model, batch, BATCH_POSITION), sizes.steps)
            candidates[f"{name} {batch}"] = run.candidate(batch)
    timings = interleaved(candidates, sizes.rounds)
    print_table(
        f"Texts side by side, from position {BATCH_POSITION}",
        (
            "texts",
            "ours, tokens per s",
            "against one text",
            "GPT-2, tokens per s",
            "GPT-2 ÷ ours, time",
        ),
        [
            [
                str(batch),
                number(1e9 / timings.ns(f"ours {batch}")),
                "1" if batch == 1 else f"{timings.ratio('ours 1', f'ours {batch}').show()} times",
                number(1e9 / timings.ns(f"GPT-2 {batch}")),
                timings.ratio(f"GPT-2 {batch}", f"ours {batch}").show(),
            ]
            for batch in BATCHES
        ],
        _about(ours, sizes),
    )


def _about(ours: TandemForCausalLM, sizes: Sizes) -> str:
    return (
        f"{sizes.rounds} rounds; {Spread.how}. {ours.config.name}, "
        f"{ours.num_params()['total']:,} parameters, E {ours.config.embed_dim}, C {ours.config.context_dim}."
    )
