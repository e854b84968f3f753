"""The LSTM baseline: one embedding for input and output, truncated backpropagation through time.

Sources: Hochreiter & Schmidhuber 1997; the tied embedding of Press & Wolf 2017 (arXiv:1608.05859); dropout
between the layers only, after Zaremba et al. 2014 (arXiv:1409.2329).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tandem.baselines.base import BaselineInputs
from tandem.baselines.network import NetworkBaseline, Step, random_state
from tandem.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tandem.contexts import Tokens
    from tandem.training.checkpoint import Cursor

    State = tuple[Tensor, Tensor]


class LstmBaseline(NetworkBaseline):
    """embedding → LSTM → linear back to the embedding's width where the LSTM's differs."""

    title = "LSTM"
    description = "LSTM (recurrent network)"
    section = "baselines.lstm"
    memory_settings = ("baselines.lstm.streams", "baselines.lstm.window", "baselines.max_parameters")

    def widths(self, settings: Settings, max_parameters: int) -> range:  # noqa: ARG002
        """From 1 on; the recurrent matrix of the first layer alone has 4 width² parameters."""
        return range(1, math.isqrt(max_parameters // 4) + 2)

    def parameter_count(self, settings: Settings, vocab_size: int, width: int) -> int:
        embed_dim, layers = settings.model.embed_dim, settings.baselines.lstm.layers
        first = 4 * width * (embed_dim + width + 2)
        others = (layers - 1) * 4 * width * (2 * width + 2)
        projection = embed_dim * (width + 1) if width != embed_dim else 0
        return vocab_size * embed_dim + first + others + projection

    def build(self, settings: Settings, vocab_size: int, width: int) -> nn.ModuleDict:
        """Its four modules, which `read_tokens` puts together."""
        from torch import nn

        embed_dim, own = settings.model.embed_dim, settings.baselines.lstm
        embedding = nn.Embedding(vocab_size, embed_dim)
        lstm = nn.LSTM(embed_dim, width, own.layers, dropout=own.dropout if own.layers > 1 else 0.0)
        projection = nn.Linear(width, embed_dim) if width != embed_dim else nn.Identity()
        nn.init.uniform_(embedding.weight, -0.1, 0.1)
        open_forget_gates(lstm)
        modules = {"embedding": embedding, "lstm": lstm, "projection": projection}
        return nn.ModuleDict({**modules, "dropout": nn.Dropout(own.dropout)})

    def embedding(self, model: Any) -> Tensor:
        weight: Tensor = model["embedding"].weight
        return weight

    def epoch_size(self, settings: Settings, tokens: int) -> tuple[int, int]:
        """Every token but the first is predicted once."""
        own = settings.baselines.lstm
        return math.ceil(math.ceil((tokens - 1) / own.streams) / own.window), tokens - 1

    def losses(
        self,
        model: Any,
        ids: Tokens,
        inputs: BaselineInputs,
        draws: torch.Generator,  # noqa: ARG002
        cursor: Cursor,
    ) -> Iterator[Step]:
        """`window` tokens of every stream a step, the state carried on without its gradient."""
        from tandem.cross_entropy import mean_nll

        own, chunk = inputs.settings.baselines.lstm, inputs.settings.phase2.chunk_positions
        tokens, targets, valid = side_by_side(ids, own.streams)
        before = cursor.carried
        state: State | None = (before["h"], before["c"]) if before else None
        for start in range(cursor.steps * own.window, len(tokens), own.window):
            part = slice(start, start + own.window)
            real = valid[part]
            read = {"inputs": tokens[part], "targets": targets[part][real]}
            read |= {"random": random_state(inputs.device)}
            read |= {} if state is None else dict(zip("hc", state, strict=True))
            with inputs.execution.autocast(inputs.device):
                hidden, (h, c) = read_tokens(model, tokens[part], state)
                loss = mean_nll(hidden[real], self.embedding(model), targets[part][real], chunk)
            state = (h.detach(), c.detach())
            yield Step(loss, int(real.sum()), read, {"h": h.detach(), "c": c.detach()})

    def hidden_parts(self, model: Any, ids: Tensor | Tokens, chunk_positions: int) -> Iterator[Tensor]:
        """All read as one stream from a zero state."""
        state: State | None = None
        for part in ids[:-1].split(chunk_positions):
            hidden, state = read_tokens(model, part[:, None], state)
            yield hidden[:, 0]


def open_forget_gates(lstm: nn.LSTM) -> None:
    """Let the forget gate of each layer start open: Jozefowicz et al. 2015. (The gates are i, f, g, o.)"""
    import torch

    with torch.no_grad():
        for layer in range(lstm.num_layers):
            lstm.get_parameter(f"bias_ih_l{layer}")[lstm.hidden_size : 2 * lstm.hidden_size] += 1.0


def read_tokens(model: nn.ModuleDict, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """ids [T, B] and the state before them (none: zero) → hidden [T, B, E] and the state after them."""
    import torch

    embeds = model["dropout"](model["embedding"](ids))
    # In float32 always: under autocast, oneDNN and cuDNN would carry the states in half precision.
    with torch.autocast(ids.device.type, enabled=False):
        hidden, state = model["lstm"](embeds, state)
    assert state is not None
    return model["projection"](model["dropout"](hidden)), state


def side_by_side(ids: Tensor | Tokens, streams: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids [T] cut into at most `streams` of equal length: inputs, targets, and which are real, [t, B] each.

    Only the last stream may end early; no token is left out, and each but the first is a target once.
    """
    import torch

    count = len(ids) - 1
    length = math.ceil(count / streams)
    starts = torch.arange(0, count, length, device=ids.device)
    positions = torch.arange(length, device=ids.device)[:, None] + starts
    valid = positions < count
    positions = positions.clamp(max=count - 1)
    return ids[positions], ids[positions + 1], valid
