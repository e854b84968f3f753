"""The LSTM baseline: one embedding for input and output, truncated backpropagation through time.

Sources: Hochreiter & Schmidhuber 1997; the tied embedding of Press & Wolf 2017 (arXiv:1608.05859); dropout
between the layers only, after Zaremba et al. 2014 (arXiv:1409.2329).
"""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tandem.baselines.base import Fitted, Task
from tandem.baselines.common import score_hidden, widest
from tandem.baselines.training import Course, Losses, train
from tandem.contexts import Tokens
from tandem.cross_entropy import mean_nll
from tandem.metrics import Score
from tandem.settings import LstmSettings
from tandem.training.execution import PLAIN, Execution
from tandem.training.initialization import seeded
from tandem.training.progress import OnTick, silent

State = tuple[Tensor, Tensor]


class LstmModel(nn.Module):
    """embedding → LSTM → linear back to the embedding's width where the LSTM's differs.

    Logits are its output times the embedding, transposed.
    """

    def __init__(self, vocab_size: int, embed_dim: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.lstm = nn.LSTM(embed_dim, width, layers, dropout=dropout if layers > 1 else 0.0)
        self.projection = nn.Linear(width, embed_dim) if width != embed_dim else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        with torch.no_grad():
            for layer in range(layers):
                # The forget gate starts open: Jozefowicz et al. 2015. (The gates are i, f, g, o.)
                self.lstm.get_parameter(f"bias_ih_l{layer}")[width : 2 * width] += 1.0

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids [T, B] and the state before them (none: zero) → hidden [T, B, E] and the state after them."""
        embeds = self.dropout(self.embedding(ids))
        # In float32 always: under autocast, oneDNN and cuDNN would carry the states in half precision.
        with torch.autocast(ids.device.type, enabled=False):
            out, state = self.lstm(embeds, state)
        return self.projection(self.dropout(out)), state


def parameter_count(vocab_size: int, embed_dim: int, width: int, layers: int) -> int:
    """Of an LstmModel of these sizes."""
    first = 4 * width * (embed_dim + width + 2)
    others = (layers - 1) * 4 * width * (2 * width + 2)
    projection = embed_dim * (width + 1) if width != embed_dim else 0
    return vocab_size * embed_dim + first + others + projection


def fit_lstm(
    task: Task,
    embed_dim: int,
    max_parameters: int,
    settings: LstmSettings,
    seed: int,
    device: torch.device,
    chunk_positions: int = 512,
    on_tick: OnTick = silent,
    execution: Execution = PLAIN,
) -> Fitted:
    """Train an LSTM of at most `max_parameters` on task.train, as wide as they allow, and score validation.

    Training is on `device` as `execution` says (which several processes cannot share), scoring in float32;
    `chunk_positions` bounds the logits held at once.
    Raises SettingsError if not even width 1 fits, NonFiniteLossError if a step is not finite.
    """
    began = time.perf_counter()

    def total(width: int) -> int:
        return parameter_count(task.vocab_size, embed_dim, width, settings.layers)

    # The recurrent matrix of the first layer alone has 4 width² parameters.
    width = widest(total, range(1, math.isqrt(max_parameters // 4) + 2), max_parameters, "LSTM")
    ids, validation = Tokens(task.train, device), Tokens(task.validation, device)
    with seeded(device, seed, "lstm"):
        model = LstmModel(task.vocab_size, embed_dim, width, settings.layers, settings.dropout).to(device)
        inputs, targets, valid = side_by_side(ids, settings.streams)
        score, record = train(
            model,
            lambda: _losses(model, inputs, targets, valid, settings.window, chunk_positions, execution),
            lambda: score_lstm(model, validation, chunk_positions),
            Course(
                "LSTM",
                LstmSettings.path,
                epoch_steps=math.ceil(len(inputs) / settings.window),
                epoch_tokens=len(ids) - 1,
            ),
            settings,
            on_tick,
        )
    embedding = model.embedding.weight.numel()
    return Fitted(
        score,
        embedding,
        total(width) - embedding,
        record,
        time.perf_counter() - began,
        lambda ids: score_lstm(model, Tokens(ids, device), chunk_positions),
    )


def side_by_side(ids: Tensor | Tokens, streams: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids [T] cut into at most `streams` of equal length: inputs, targets, and which are real, [t, B] each.

    Only the last stream may end early; no token is left out, and each but the first is a target once.
    """
    count = len(ids) - 1
    length = math.ceil(count / streams)
    starts = torch.arange(0, count, length, device=ids.device)
    positions = torch.arange(length, device=ids.device)[:, None] + starts
    valid = positions < count
    positions = positions.clamp(max=count - 1)
    return ids[positions], ids[positions + 1], valid


def _losses(
    model: LstmModel,
    inputs: Tensor,
    targets: Tensor,
    valid: Tensor,
    window: int,
    chunk_positions: int,
    execution: Execution,
) -> Losses:
    """One pass, `window` tokens of every stream a step, the state carried on without its gradient."""
    state: State | None = None
    for start in range(0, len(inputs), window):
        part = slice(start, start + window)
        real = valid[part]
        with execution.autocast(inputs.device):
            hidden, (h, c) = model(inputs[part], state)
            loss = mean_nll(hidden[real], model.embedding.weight, targets[part][real], chunk_positions)
        state = (h.detach(), c.detach())
        yield loss, int(real.sum())


def score_lstm(model: LstmModel, ids: Tensor | Tokens, chunk_positions: int) -> Score:
    """Score of ids [T], all but the first, read as one stream from a zero state by a model in eval mode."""

    def hidden() -> Iterator[Tensor]:
        state: State | None = None
        for part in ids[:-1].split(chunk_positions):
            out, state = model(part[:, None], state)
            yield out[:, 0]

    return score_hidden(hidden(), model.embedding.weight, ids, chunk_positions)
