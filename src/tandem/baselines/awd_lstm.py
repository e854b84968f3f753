"""The AWD-LSTM baseline: an LSTM with the regularisation of Merity, Keskar & Socher 2017 (arXiv:1708.02182).

As there, the matrices from state to state have DropConnect, dropouts are locked (Gal & Ghahramani 2016,
arXiv:1512.05287), and whole words are dropped. Large and fast-changing outputs are penalised (AR and TAR).
Windows vary in length, and the learning rate with them. Input and output share one embedding. Weights are
averaged once validation no longer improves. Other than there, AdamW with a falling learning rate takes the
place of SGD, and all layers are as wide as the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tandem.baselines.base import BaselineInputs
from tandem.baselines.lstm import open_forget_gates, side_by_side
from tandem.baselines.network import NetworkBaseline, Step, random_state
from tandem.settings import AwdLstmSettings, Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tandem.contexts import Tokens
    from tandem.records import Epoch
    from tandem.training.checkpoint import Cursor

    State = tuple[Tensor, Tensor]

SHORT = 0.05
"""Share of windows that are about half as long as the others."""
SPREAD = 5 / 70
"""Standard deviation of a window's length, as a share of the mean."""
LEAST = 0.25
"""Of the mean length, a window has at least so much."""


class AwdLstmBaseline(NetworkBaseline):
    """embedding → LSTM layers, all of one width."""

    title = "AWD-LSTM"
    description = "AWD-LSTM (regularised recurrent network)"
    section = "baselines.awd_lstm"
    memory_settings = (
        "baselines.awd_lstm.streams",
        "baselines.awd_lstm.window",
        "baselines.max_parameters",
    )

    def widths(self, settings: Settings, max_parameters: int) -> range:
        """From 1 on; the matrices of one layer alone have 8 width² parameters."""
        return range(1, math.isqrt(max_parameters // (8 * settings.baselines.awd_lstm.layers)) + 2)

    def parameter_count(self, settings: Settings, vocab_size: int, width: int) -> int:
        return vocab_size * width + settings.baselines.awd_lstm.layers * 8 * width * (width + 1)

    def build(self, settings: Settings, vocab_size: int, width: int) -> nn.ModuleDict:
        """Its two modules, which `read_tokens` puts together."""
        from torch import nn

        layers = settings.baselines.awd_lstm.layers
        embedding, lstm = nn.Embedding(vocab_size, width), nn.LSTM(width, width, layers)
        nn.init.uniform_(embedding.weight, -0.1, 0.1)
        open_forget_gates(lstm)
        return nn.ModuleDict({"embedding": embedding, "lstm": lstm})

    def embedding(self, model: Any) -> Tensor:
        weight: Tensor = model["embedding"].weight
        return weight

    def epoch_size(self, settings: Settings, tokens: int) -> tuple[int, int]:
        """Every token but the first is predicted once; the lengths of windows do not change their number."""
        own = settings.baselines.awd_lstm
        return math.ceil(math.ceil((tokens - 1) / own.streams) / own.window), tokens - 1

    def losses(
        self, model: Any, ids: Tokens, inputs: BaselineInputs, draws: torch.Generator, cursor: Cursor
    ) -> Iterator[Step]:
        """One window of every stream a step, the state carried on without its gradient."""
        from tandem.cross_entropy import mean_nll

        own, chunk = inputs.settings.baselines.awd_lstm, inputs.settings.phase2.chunk_positions
        tokens, targets, valid = side_by_side(ids, own.streams)
        bounds = window_bounds(len(tokens), own.window, draws)
        before = cursor.carried
        state: State | None = (before["h"], before["c"]) if before else None
        for start, end in list(pairwise(bounds))[cursor.steps :]:
            part = slice(start, end)
            real = valid[part]
            read = {"inputs": tokens[part], "targets": targets[part][real]}
            read |= {"random": random_state(inputs.device)}
            read |= {} if state is None else dict(zip("hc", state, strict=True))
            with inputs.execution.autocast(inputs.device):
                raw, hidden, (h, c) = read_tokens(model, tokens[part], state, own)
                loss = mean_nll(hidden[real], self.embedding(model), targets[part][real], chunk)
            penalty = own.activation * hidden.float().square().mean()
            if end - start > 1:
                penalty = penalty + own.temporal_activation * (raw[1:] - raw[:-1]).square().mean()
            state = (h.detach(), c.detach())
            carried = {"h": h.detach(), "c": c.detach()}
            yield Step(loss, int(real.sum()), read, carried, penalty, (end - start) / own.window)

    def hidden_parts(self, model: Any, ids: Tensor | Tokens, chunk_positions: int) -> Iterator[Tensor]:
        """All read as one stream from a zero state."""
        state: State | None = None
        for part in ids[:-1].split(chunk_positions):
            _, hidden, state = read_tokens(model, part[:, None], state)
            yield hidden[:, 0]

    def averaged_epochs(self, settings: Settings, history: Sequence[Epoch]) -> int:
        """From the epoch on after the first one that is worse than one `average_after` epochs before it."""
        losses = [epoch.validation_nll_nats for epoch in history]
        for number in range(settings.baselines.awd_lstm.average_after, len(losses)):
            if losses[number] > min(losses[: number + 1 - settings.baselines.awd_lstm.average_after]):
                return len(losses) - number
        return 0


def read_tokens(
    model: Any, ids: Tensor, state: State | None = None, own: AwdLstmSettings | None = None
) -> tuple[Tensor, Tensor, State]:
    """ids [T, B] → output of the last layer, the same after dropout, both [T, B, E], and the state after it.

    The state before (none: zero) and the one after are [L, B, E] each. Without settings nothing is dropped.
    """
    import torch
    from torch.nn import functional as F

    def locked(values: Tensor, probability: float, *shape: int) -> Tensor:
        """`values` with the same elements dropped all along each dimension of which `shape` has 1."""
        return values * F.dropout(values.new_ones(shape), probability) if own and probability else values

    embedding, lstm = model["embedding"].weight, model["lstm"]
    (vocab_size, width), streams = embedding.shape, ids.shape[1]
    layers: int = lstm.num_layers
    if state is None:
        state = (embedding.new_zeros(layers, streams, width), embedding.new_zeros(layers, streams, width))
    hidden = F.embedding(ids, embedding)
    if own is not None and own.word_dropout:
        hidden = hidden * F.dropout(embedding.new_ones(vocab_size, 1), own.word_dropout)[ids]
    raw, after = hidden, []
    # In float32 always: under autocast, oneDNN and cuDNN would carry the states in half precision.
    with torch.autocast(ids.device.type, enabled=False):
        for layer in range(layers):
            before = state[0][layer : layer + 1], state[1][layer : layer + 1]
            w_ih, w_hh, b_ih, b_hh = (getattr(lstm, f"{n}_l{layer}") for n in _WEIGHTS)
            if own is not None:
                hidden = locked(hidden, own.hidden_dropout if layer else own.input_dropout, 1, streams, width)
                w_hh = locked(w_hh, own.weight_dropout, *w_hh.shape)
            weights = [w_ih, w_hh, b_ih, b_hh]
            raw, h, c = torch.lstm(hidden, before, weights, True, 1, 0.0, False, False, False)
            hidden = raw
            after.append((h, c))
        if own is not None:
            hidden = locked(hidden, own.output_dropout, 1, streams, width)
    return raw, hidden, (torch.cat([h for h, _ in after]), torch.cat([c for _, c in after]))


_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def window_bounds(length: int, window: int, draws: torch.Generator) -> list[int]:
    """Where the windows of streams of so many tokens start, and the end of the last one.

    There are as many as if all had `window` tokens. Their lengths are drawn around that, or around half of
    it, and then scaled so that they fill the stream; each has a token at least.
    """
    import torch

    count = math.ceil(length / window)
    means = torch.where(torch.rand(count, generator=draws) < SHORT, 0.5, 1.0)
    lengths = (means + SPREAD * torch.randn(count, generator=draws)).clamp(min=LEAST).double()
    ends = (lengths.cumsum(0) / lengths.sum() * (length - count)).round().long() + torch.arange(1, count + 1)
    return [0, *ends.tolist()]
