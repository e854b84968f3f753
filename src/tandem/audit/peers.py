"""The AWD-LSTM and the transformer again, plainly; and all networks by name.

As in `networks`, no code is shared with what trains and scores them. Shape letters as there: t tokens of a
step, B streams or windows, E width, L layers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.audit.networks import (
    CHUNK,
    Ids,
    PlainGpt2,
    PlainLstm,
    PlainNetwork,
    PlainWindows,
    State,
    tokens_at,
)
from tandem.audit.plain import draws_of
from tandem.settings import Settings


class PlainAwdLstm(PlainNetwork):
    """Streams side by side in windows of drawn lengths; in training gate by gate and token by token."""

    name, embedding, has_state = "awd_lstm", "embedding.weight", True

    def _drawn(self, settings: Settings, weights: Mapping[str, Tensor]) -> nn.Module:  # noqa: ARG002
        vocab_size, width = weights[self.embedding].shape
        embedding, lstm = nn.Embedding(vocab_size, width), nn.LSTM(width, width, self.own.layers)
        nn.init.uniform_(embedding.weight, -0.1, 0.1)
        with torch.no_grad():  # forget gates, the second quarter, start open
            for layer in range(self.own.layers):
                lstm.get_parameter(f"bias_ih_l{layer}")[width : 2 * width] += 1
        return nn.ModuleDict({"embedding": embedding, "lstm": lstm})

    @property
    def drops(self) -> bool:
        """Any of the five."""
        own = self.own
        locked = own.input_dropout, own.hidden_dropout, own.output_dropout
        return max(own.word_dropout, own.weight_dropout, *locked) > 0

    def forward(
        self, inputs: Tensor, state: State | None, ahead: bool = False
    ) -> tuple[Tensor, State | None]:
        """Inputs [t, B]; see PlainNetwork."""
        own, training = self.own, self.module.training
        get = self.module.get_parameter
        words, inputs = get(self.embedding), inputs.roll(-1, 0) if ahead else inputs

        def mask(probability: float, *shape: int) -> Tensor:
            return F.dropout(words.new_ones(shape), probability, training)

        (vocab_size, width), (length, streams) = words.shape, inputs.shape
        hidden = (words * mask(own.word_dropout, vocab_size, 1))[inputs]
        nothing = words.new_zeros(own.layers, streams, width)
        before, after = (nothing, nothing) if state is None else state, []
        last = hidden
        with torch.autocast(self.device.type, enabled=False):
            for layer in range(own.layers):
                drop = own.hidden_dropout if layer else own.input_dropout
                hidden = hidden * mask(drop, 1, streams, width)
                whole = get(f"lstm.weight_hh_l{layer}")
                recurrent = whole * mask(own.weight_dropout, *whole.shape)
                bias = get(f"lstm.bias_ih_l{layer}") + get(f"lstm.bias_hh_l{layer}")
                read, outputs = hidden @ get(f"lstm.weight_ih_l{layer}").T + bias, []
                h, c = before[0][layer], before[1][layer]
                for t in range(length):
                    enter, forget, new, leave = (read[t] + h @ recurrent.T).chunk(4, dim=-1)
                    c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
                    h = leave.sigmoid() * c.tanh()
                    outputs.append(h)
                hidden = last = torch.stack(outputs)
                after.append((h, c))
            hidden = hidden * mask(own.output_dropout, 1, streams, width)
        changes = last.diff(dim=0).square().mean() if length > 1 else 0.0
        self.penalty = own.activation * hidden.square().mean() + own.temporal_activation * changes
        states = torch.stack([h for h, _ in after]), torch.stack([c for _, c in after])
        return hidden.flatten(0, 1), states

    def scored(self, ids: Ids, ahead: bool = False) -> Iterator[Tensor]:
        """From a zero state, by torch's own LSTM where nothing is dropped."""
        parts, state = dict(self.module.named_children()), None
        for positions in torch.arange(len(ids) - 1).split(CHUNK):
            tokens = tokens_at(ids, positions + ahead).to(self.device)[:, None]
            if self.module.training:
                hidden, state = self.forward(tokens, state)
            else:
                hidden, state = parts["lstm"](parts["embedding"](tokens), state)
            yield hidden.flatten(0, -2)

    def _bounds(self, length: int, seed: int, epoch: int) -> list[int]:
        """Ends of an epoch's windows: lengths around the mean, some around half of it, to fill `length`."""
        count, draws = math.ceil(length / self.own.window), draws_of(seed, "awd_lstm windows")
        for _ in range(epoch):
            short = torch.rand(count, generator=draws) < 0.05
            noise = torch.randn(count, generator=draws) / 14
        lengths = torch.maximum(torch.where(short, 0.5, 1.0) + noise, torch.tensor(0.25)).double()
        shares = lengths.cumsum(0) / lengths.sum()
        return [int(torch.round(share * (length - count))) + n for n, share in enumerate(shares, start=1)]

    def _window(self, tokens: int, seed: int, epoch: int, step: int) -> tuple[int, int]:
        ends = self._bounds(math.ceil((tokens - 1) / self.own.streams), seed, epoch)
        return (0, *ends)[step - 1], ends[step - 1]

    def positions(self, tokens: int, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """[t, B]: each stream goes on where it was."""
        count = tokens - 1
        rows = torch.arange(*self._window(tokens, seed, epoch, step))
        positions = rows[:, None] + torch.arange(0, count, math.ceil(count / self.own.streams))
        return positions.clamp(max=count - 1), positions < count

    def rate(self, tokens: int, seed: int, epoch: int, step: int) -> float:
        """In proportion to the length of the window."""
        start, end = self._window(tokens, seed, epoch, step)
        return float((end - start) / self.own.window)

    def unaveraged(self, losses: Sequence[float]) -> int | None:
        """The first epoch that is worse than one at least `average_after` epochs before it."""
        for last in range(self.own.average_after + 1, len(losses) + 1):
            if losses[last - 1] > min(losses[: last - self.own.average_after]):
                return last
        return None

    def epoch_size(self, tokens: int) -> tuple[int, int]:
        """Every token but the first once."""
        return math.ceil(math.ceil((tokens - 1) / self.own.streams) / self.own.window), tokens - 1

    def step_size(self, tokens: int) -> float:
        """On average."""
        steps, predicted = self.epoch_size(tokens)
        return predicted / steps


class PlainTransformer(PlainWindows):
    """A decoder with rotary positions, written out."""

    name, embedding = "transformer", "embedding.weight"

    def _drawn(self, settings: Settings, weights: Mapping[str, Tensor]) -> nn.Module:  # noqa: ARG002
        (vocab_size, width), own = weights[self.embedding].shape, self.own
        sizes = {
            "attention_norm": (width,),
            "attention": (3 * width, width),
            "query_norm": (width // own.heads,),
            "key_norm": (width // own.heads,),
            "attention_out": (width, width),
            "mlp_norm": (width,),
            "mlp": (4 * width, width),
            "mlp_out": (width, 4 * width),
        }
        embedding, layers = nn.Embedding(vocab_size, width), nn.ModuleList()
        nn.init.normal_(embedding.weight, std=0.02)
        for _ in range(own.layers):
            parts = nn.ModuleDict()
            for name, shape in sizes.items():
                if len(shape) == 1:
                    parts[name] = nn.RMSNorm(shape[0])
                    continue
                parts[name] = nn.Linear(shape[1], shape[0], bias=False)
                std = 0.0 if name.endswith("_out") else 1 / math.sqrt(shape[1])
                nn.init.normal_(parts[name].get_parameter("weight"), std=std)
            layers.append(parts)
        return nn.ModuleDict({"embedding": embedding, "layers": layers, "norm": nn.RMSNorm(width)})

    def forward(
        self, inputs: Tensor, state: State | None, ahead: bool = False
    ) -> tuple[Tensor, State | None]:
        """Inputs [B, t]; see PlainNetwork."""
        get, own = self.module.get_parameter, self.own
        hidden = self._dropout(_normal(get(self.embedding)[inputs], None))
        for layer in range(own.layers):
            p = {
                n.split(".")[2]: w
                for n, w in self.module.named_parameters()
                if n.startswith(f"layers.{layer}.")
            }
            read = F.linear(_normal(hidden, p["attention_norm"]), p["attention"])
            query, key, value = (part.unflatten(-1, (own.heads, -1)) for part in read.chunk(3, dim=-1))
            query, key = (
                _turned(_normal(part, norm))
                for part, norm in ((query, p["query_norm"]), (key, p["key_norm"]))
            )
            scores = torch.einsum("bthd,bshd->bhts", query, key.to(query.dtype)) / math.sqrt(query.shape[-1])
            if not ahead:
                later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -math.inf)
            mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), value.to(scores.dtype)).flatten(2)
            hidden = hidden + self._dropout(F.linear(mixed, p["attention_out"]))
            inner = F.linear(_normal(hidden, p["mlp_norm"]), p["mlp"]).clamp(min=0) ** 2
            hidden = hidden + self._dropout(F.linear(inner, p["mlp_out"]))
        return self._dropout(_normal(hidden, get("norm.weight"))).flatten(0, 1), state

    def _dropout(self, values: Tensor) -> Tensor:
        return F.dropout(values, self.own.dropout, self.module.training)


def _normal(values: Tensor, gains: Tensor | None) -> Tensor:
    """Divided by the root mean square of the last dimension, then times gains."""
    values = values.float()
    scaled = values / torch.sqrt(values.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)
    return scaled if gains is None else scaled * gains


def _turned(values: Tensor) -> Tensor:
    """values [B, t, heads, d]: elements i and i + d/2 as a complex number, turned by its position's angle."""
    length, size = values.shape[1], values.shape[-1]
    rates = torch.tensor([10_000 ** (-2 * i / size) for i in range(size // 2)])
    angles = torch.arange(length)[:, None, None] * rates.to(torch.float32)
    pairs = torch.complex(*values.float().chunk(2, dim=-1))
    pairs = pairs * torch.polar(torch.ones_like(angles), angles).to(pairs.device)
    return torch.cat((pairs.real, pairs.imag), dim=-1)


NETWORKS: dict[str, type[PlainNetwork]] = {
    "lstm": PlainLstm,
    "awd-lstm": PlainAwdLstm,
    "gpt2": PlainGpt2,
    "transformer": PlainTransformer,
}
