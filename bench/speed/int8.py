"""Weights of 8 bits beside float32: tokens per second of generation and scoring, perplexity, and bytes.

Two small models are trained on python-docs, with the sizes of preset `demo`. The larger ones have random
weights: what a token costs does not depend on them, so no perplexity is given. Generation draws one token
after another (`next_tokens`), and by transformers' own `generate` beside it. Scoring is that of `tandem
evaluate`: contexts with their checks, and the exact softmax.
"""

import copy
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from measuring import SMALL, Candidate, Spread, byte_size, interleaved, made_small, number, print_table

from tandem.contexts import Stream, compute_contexts
from tandem.experiment.generate import next_tokens, sampler
from tandem.experiment.inference import quantize_model
from tandem.experiment.single_run import train_one
from tandem.metrics import score_stream
from tandem.model import TandemCache, TandemConfig, TandemForCausalLM
from tandem.model_folder.loading import load_model
from tandem.settings import Configuration, Phase2Settings, Settings, load_settings
from tandem.text.splits import split_documents
from tandem.tokens.prepare import tokenize
from tandem.training.progress import Watcher

from .inputs import CONTEXTS, random_model, zipf_ids

CHUNK = Phase2Settings().chunk_positions
ROUNDS, STEPS, SCORED, TEXT = (1, 2, 100, 500) if SMALL else (5, 32, 1000, 20_000)
"""Rounds, tokens generated and tokens put to the softmax in each, and tokens of a text with its contexts."""
PREDICTIVE = {"cell": "gated", "token_projection": True, "output_bias": True, "weight_init_std": None}
SIZES: dict[str, dict[str, object]] = {
    "preset predictive": {"vocab_size": 8192, "embed_dim": 384, "context_dim": 896, **PREDICTIVE},
    "preset original": {"vocab_size": 50257, "embed_dim": 768, "context_dim": 500},
    "V 50,257, C 1,024": {"vocab_size": 50257, "embed_dim": 768, "context_dim": 1024, **PREDICTIVE},
}
"""Models of random weights."""


def table(device: torch.device) -> None:
    """Print the speeds, then the perplexities and bytes."""
    with tempfile.TemporaryDirectory() as place:
        rows, models = [], {}
        for variant in ("original", "predictive"):
            folder = Path(place) / variant
            models[f"demo, {variant}"] = _trained(variant, folder, device)
            rows.append(_perplexities(variant, folder, device))
        for name, sizes in SIZES.items():
            sizes = {**sizes, "vocab_size": 300, "embed_dim": 32, "context_dim": 8} if SMALL else sizes
            config = TandemConfig(context_layers=2, token_layers=2, **sizes)  # type: ignore[arg-type]
            models[name] = random_model(config, device)
        print_table(
            "Speed with weights of 8 bits, C2T2",
            (
                *("model", "parameters", "generating, tokens per s", "by transformers' `generate`"),
                *("with 8 bits", "8 bits ÷ float32, tokens per s"),
                *("scoring, tokens per s", "with 8 bits", "8 bits ÷ float32", "the same without contexts"),
            ),
            [_speeds(name, model) for name, model in models.items()],
            f"{ROUNDS} rounds; {Spread.how}. In each, {STEPS} tokens are generated, "
            f"contexts made of {TEXT:,} tokens, and {SCORED:,} put to the token layers and the softmax.",
        )
        print_table(
            f"Perplexity and bytes with weights of 8 bits, {TEXT:,} tokens of validation text",
            ("recipe", "perplexity", "with 8 bits", "difference", "weights", "with 8 bits", "share"),
            rows,
        )


def _settings(variant: str, device: torch.device) -> Settings:
    demo = load_settings("demo").with_variant(variant)
    return Settings(**{**made_small(demo.model_dump()), "device": str(device)})


def _trained(variant: str, folder: Path, device: torch.device) -> TandemForCausalLM:
    """Into a folder."""
    train_one(_settings(variant, device), Configuration(2, 2), 0, folder, Watcher())
    return load_model(folder)[0]


def _perplexities(variant: str, folder: Path, device: torch.device) -> list[str]:
    copied = quantize_model(folder, folder.with_name(f"{folder.name}-int8"))
    data = _settings(variant, device).data
    splits = split_documents(data, None, lambda _: None)
    scores = []
    for place in (copied.model, copied.output):
        model, tokenizer = load_model(Path(place))
        separator = data.separators["validation"]
        tokens = tokenize(splits.validation, tokenizer, separator, splits.validation_source, lambda _: None)
        stream = Stream.of(model, tokens.ids[:TEXT])
        scores.append(score_stream(model, stream, compute_contexts(model, stream, CONTEXTS)[0], CHUNK))
    exact, rounded = (score.perplexity for score in scores)
    return [
        variant,
        *(f"{value:.3f}" for value in (exact, rounded)),
        f"{rounded / exact - 1:+.3%}",
        *map(byte_size, (copied.model_bytes, copied.output_bytes)),
        f"{copied.output_bytes / copied.model_bytes:.3f}",
    ]


@torch.no_grad()
def _speeds(name: str, model: TandemForCausalLM) -> list[str]:
    rounded = copy.deepcopy(model).to_int8()
    stream = Stream.of(model, zipf_ids(SCORED, model.config.vocab_size))
    text = Stream.of(model, zipf_ids(TEXT, model.config.vocab_size))
    contexts = [compute_contexts(one, stream, CONTEXTS)[0] for one in (model, rounded)]
    timings = interleaved(
        {
            "generate": Candidate(_generating(model), STEPS),
            "library": Candidate(_by_transformers(model), STEPS),
            "generate 8": Candidate(_generating(rounded), STEPS),
            "contexts": Candidate(lambda: compute_contexts(model, text, CONTEXTS), TEXT),
            "contexts 8": Candidate(lambda: compute_contexts(rounded, text, CONTEXTS), TEXT),
            "softmax": Candidate(lambda: score_stream(model, stream, contexts[0], CHUNK), SCORED),
            "softmax 8": Candidate(lambda: score_stream(rounded, stream, contexts[1], CHUNK), SCORED),
        },
        ROUNDS,
    )
    for kind in ("", " 8"):
        timings = timings.with_sum(f"score{kind}", {f"contexts{kind}": 1, f"softmax{kind}": 1})
    return [
        name,
        f"{model.num_params()['total']:,}",
        *(number(1e9 / timings.ns(way)) for way in ("generate", "library", "generate 8")),
        timings.ratio("generate", "generate 8").show(),
        *(number(1e9 / timings.ns(way)) for way in ("score", "score 8")),
        timings.ratio("score", "score 8").show(),
        timings.ratio("softmax", "softmax 8").show(),
    ]


def _generating(model: TandemForCausalLM) -> Callable[[], object]:
    choose = sampler(model, 1.0)

    @torch.inference_mode()
    def run() -> None:
        torch.manual_seed(0)
        list(islice(next_tokens(model, TandemCache(), 0, choose), STEPS))

    return run


def _by_transformers(model: TandemForCausalLM) -> Callable[[], object]:
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": None}

    @torch.inference_mode()
    def run() -> None:
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, pad_token_id=0, **options
        )

    return run
