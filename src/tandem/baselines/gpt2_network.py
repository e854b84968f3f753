"""The GPT-2 baseline: transformers' own class (Radford et al. 2019), small and trained from scratch."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2Model

from tandem.baselines.base import Fitted, Task
from tandem.baselines.common import score_hidden, widest
from tandem.baselines.training import Course, Losses, train
from tandem.contexts import Tokens
from tandem.cross_entropy import mean_nll
from tandem.metrics import Score
from tandem.settings import Gpt2Settings
from tandem.training.execution import PLAIN, Execution
from tandem.training.initialization import generator_for, seeded
from tandem.training.progress import OnTick, silent

WARM_UP = 0.1


def parameter_count(vocab_size: int, width: int, settings: Gpt2Settings) -> int:
    """Of a GPT-2 of these sizes, whose head is its embedding."""
    norm = 2 * width
    attention = 3 * width * width + 3 * width + width * width + width
    mlp = 8 * width * width + 5 * width
    layers = settings.layers * (2 * norm + attention + mlp)
    return (vocab_size + settings.window) * width + layers + norm


def build(vocab_size: int, width: int, settings: Gpt2Settings) -> GPT2Model:
    """A GPT-2 without its head, with transformers' own initial weights, N(0, 0.02)."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=settings.window,
        n_embd=width,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2Model(config)


def fit_gpt2(
    task: Task,
    max_parameters: int,
    settings: Gpt2Settings,
    seed: int,
    device: torch.device,
    chunk_positions: int = 512,
    on_tick: OnTick = silent,
    execution: Execution = PLAIN,
) -> Fitted:
    """Train a GPT-2 of at most `max_parameters` on task.train, as wide as they allow, and score validation.

    The width is a multiple of the number of heads. Training is on `device` as `execution` says (which several
    processes cannot share), scoring in float32; `chunk_positions` bounds the logits held at once. Raises
    SettingsError if not even the smallest width fits, NonFiniteLossError if a step is not finite.
    """
    began = time.perf_counter()

    def total(width: int) -> int:
        return parameter_count(task.vocab_size, width, settings)

    # The matrices of one layer alone have 12 width² parameters.
    heads = settings.heads
    widths = range(heads, max(heads, math.isqrt(max_parameters // 12)) + 1, heads)
    width = widest(total, widths, max_parameters, "GPT-2")
    ids, validation = Tokens(task.train, device), Tokens(task.validation, device)
    cuts = generator_for(seed, "gpt2 windows")
    windows = len(window_starts(len(ids), settings.window, 0))
    with seeded(device, seed, "gpt2"):
        model = build(task.vocab_size, width, settings).to(device)  # type: ignore[arg-type]
        score, record = train(
            model,
            lambda: _losses(model, ids, settings, cuts, chunk_positions, execution),
            lambda: score_gpt2(model, validation, chunk_positions),
            Course(
                "GPT-2",
                Gpt2Settings.path,
                epoch_steps=math.ceil(windows / settings.batch_windows),
                epoch_tokens=windows * min(settings.window, len(ids) - 1),
                warm_up=WARM_UP,
            ),
            settings,
            on_tick,
        )
    embedding = model.wte.weight.numel()
    return Fitted(
        score,
        embedding,
        total(width) - embedding,
        record,
        time.perf_counter() - began,
        lambda ids: score_gpt2(model, Tokens(ids, device), chunk_positions),
    )


def window_starts(tokens: int, window: int, offset: int) -> Tensor:
    """Where the training windows of a stream of so many tokens start; the first is cut short by `offset`.

    All windows are whole, so the first and the last are shifted into the stream and overlap their
    neighbours; their number is the same for every offset in 0..window-1.
    """
    count = tokens - 1
    last = count - min(window, count)
    return (torch.arange(math.ceil(count / window) + 1) * window - offset).clamp(0, last)


def _losses(
    model: GPT2Model,
    ids: Tensor | Tokens,
    settings: Gpt2Settings,
    cuts: torch.Generator,
    chunk_positions: int,
    execution: Execution,
) -> Losses:
    """One pass over the windows from a random offset, in random order."""
    offset = int(torch.randint(settings.window, (), generator=cuts))
    starts = window_starts(len(ids), settings.window, offset)
    starts = starts[torch.randperm(len(starts), generator=cuts)].to(ids.device)
    within = torch.arange(min(settings.window, len(ids) - 1), device=ids.device)
    for batch in starts.split(settings.batch_windows):
        positions = batch[:, None] + within
        targets = ids[positions + 1].flatten()
        with execution.autocast(ids.device):
            hidden = _hidden(model, ids[positions]).flatten(0, 1)
            loss = mean_nll(hidden, model.wte.weight, targets, chunk_positions)
        yield loss, len(targets)


def score_gpt2(model: GPT2Model, ids: Tensor | Tokens, chunk_positions: int) -> Score:
    """Score of ids [T], all but the first, by a model in eval mode.

    Windows slide by half their length; the first is scored whole, of every other one the tokens that are
    new in it. Hence all but the first tokens are predicted from at least half a window.
    """
    window = model.config.n_positions
    stride = window // 2
    count = len(ids) - 1
    starts = torch.arange(0, max(1, count - window + stride), stride, device=ids.device)
    within = torch.arange(min(window, count), device=ids.device)

    def hidden() -> Iterator[Tensor]:
        for batch in starts.split(max(1, chunk_positions // stride)):
            positions = batch[:, None] + within
            new = (positions >= window - stride + batch[:, None]) | (batch[:, None] == 0)
            # The last window may reach beyond the end: what stands there is read by nothing that is scored.
            out = _hidden(model, ids[positions.clamp(max=count - 1)])
            yield out[new & (positions < count)]

    return score_hidden(hidden(), model.wte.weight, ids, chunk_positions)


def _hidden(model: GPT2Model, ids: Tensor) -> Tensor:
    """ids [B, T] → hidden [B, T, E]."""
    return model(input_ids=ids).last_hidden_state
