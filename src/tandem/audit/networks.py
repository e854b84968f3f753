"""Network baselines again, plainly: what the settings define, with the weights that were kept.

No code is shared with what trains and scores them. Shape letters: T tokens, V vocabulary, E embedding width,
H hidden width, L layers, n predictions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model

from tandem.audit.plain import draws_of, gradients_of, seed_of, whole_nll
from tandem.settings import Settings

Ids = npt.NDArray[np.integer[Any]]
State = tuple[Tensor, Tensor]

CHUNK = 512
"""Predictions whose logits are held at once."""


class TokenBatch(NamedTuple):
    """What a step of training reads: inputs, which of them are `real` and predict targets [n], a state."""

    inputs: Tensor
    targets: Tensor
    real: Tensor
    state: State | None


class PlainNetwork(ABC):
    """One of them: as the seed draws it, or with given weights.

    own         its section of the settings.
    embedding   the name of the weights [V, E] that are both the first and the last layer.
    lr          the largest learning rate: of its section, or another one that was chosen.
    limit_s     the seconds that training is given; none: it is given epochs.
    penalty     what training adds to the loss of the tokens that were read last.
    """

    name: str
    embedding: str
    has_state = False
    """Whether a step goes on from the state after the one before it."""
    warm_up = 0.0
    """Share of all steps in which the learning rate rises."""
    penalty: Tensor | float = 0.0

    def __init__(self, settings: Settings, weights: Mapping[str, Tensor], seed: int) -> None:
        """As large as the `weights`, with those that the seed draws. Raises KeyError without their widths."""
        self.own: Any = settings.section(f"baselines.{self.name}")
        self.lr: float = self.own.lr
        self.limit_s = settings.baselines.seconds
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, self.name))
            self.module = self._drawn(settings, weights)
            self.random_state = torch.random.get_rng_state()

    @abstractmethod
    def _drawn(self, settings: Settings, weights: Mapping[str, Tensor]) -> nn.Module:
        """Its initial weights, from torch's generator; the depth is that of the settings."""

    @abstractmethod
    def forward(
        self, inputs: Tensor, state: State | None, ahead: bool = False
    ) -> tuple[Tensor, State | None]:
        """Tokens of one step → hidden [·, E] in the order of targets, and the state after it.

        `ahead` is there to explain figures: every token may then be seen.
        """

    @abstractmethod
    def scored(self, ids: Ids, ahead: bool = False) -> Iterator[Tensor]:
        """Hidden [·, E] in parts that follow on each other, for all tokens but the last, as one text."""

    @abstractmethod
    def positions(self, tokens: int, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Which positions a step of training reads, and which of them predict the next token.

        Steps and epochs count from 1; both tensors have the shape of the step's inputs.
        """

    @abstractmethod
    def epoch_size(self, tokens: int) -> tuple[int, int]:
        """Steps of an epoch, and the tokens that it predicts."""

    @abstractmethod
    def step_size(self, tokens: int) -> float:
        """Tokens that a step predicts, but for the last one of an epoch."""

    @property
    def drops(self) -> bool:
        """Whether training draws dropout at random."""
        found: bool = self.own.dropout > 0
        return found

    def rate(self, tokens: int, seed: int, epoch: int, step: int) -> float:  # noqa: ARG002
        """What a step's learning rate is multiplied by beside the schedule's share."""
        return 1.0

    def unaveraged(self, losses: Sequence[float]) -> int | None:  # noqa: ARG002
        """Of validation losses by epoch, the last epoch before weights are averaged; none: they are not."""
        return None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.module.parameters()).device

    def learning_rate(self, tokens: int, step: int, seconds_s: float | None = None) -> float:
        """At a step of the whole training, from 1: a linear rise, then half a cosine down to a tenth.

        Where it is given seconds, by those that were used before.
        """
        if self.limit_s is not None and seconds_s is not None:
            used = seconds_s / self.limit_s
            if used < self.warm_up:
                return self.lr * used / self.warm_up
            done = min(1.0, (used - self.warm_up) / (1 - self.warm_up))
            return self.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        steps = self.epoch_size(tokens)[0] * self.own.max_epochs
        rise = round(steps * self.warm_up)
        if step <= rise:
            return self.lr * step / (rise + 1)
        done = (step - 1 - rise) / max(1, steps - 1 - rise)
        return self.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * min(1.0, done))) / 2)

    @torch.no_grad()
    def losses(
        self, ids: Ids, ahead: bool = False, dropout: bool = False
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """NLL in nats of all tokens but the first, and whether each is the likeliest, both [T - 1]."""
        self.module.train(dropout)
        head, losses, right, done = self.module.get_parameter(self.embedding), [], [], 1
        for part in self.scored(ids, ahead):
            for hidden in part.split(CHUNK):
                logits = hidden @ head.T
                targets = tokens_at(ids, torch.arange(done, done + len(hidden))).to(self.device)
                losses.append(F.cross_entropy(logits, targets, reduction="none").double().cpu())
                right.append((logits.argmax(1) == targets).cpu())
                done += len(hidden)
        return torch.cat(losses).numpy(), torch.cat(right).numpy()

    def gradient(self, batch: TokenBatch, bfloat16: bool) -> tuple[float, dict[str, Tensor], State | None]:
        """Mean NLL of a step of training, in nats; its gradient by name; the state after it."""
        inputs, targets, real = (part.to(self.device) for part in batch[:3])
        state = batch.state and (batch.state[0].to(self.device), batch.state[1].to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            hidden, state = self.forward(inputs, state)
            head = self.module.get_parameter(self.embedding)
            loss = whole_nll(hidden[real.flatten()], head, None, targets)
        gradients = gradients_of(loss + self.penalty, dict(self.module.named_parameters()))
        found = {name: part for name, part in gradients.items() if part is not None}
        return float(loss.detach()), found, state


class PlainLstm(PlainNetwork):
    """Streams of the text side by side; the state goes on from step to step within an epoch."""

    name, embedding, has_state = "lstm", "embedding.weight", True

    def _drawn(self, settings: Settings, weights: Mapping[str, Tensor]) -> nn.Module:
        size, width = settings.model.embed_dim, weights["lstm.weight_hh_l0"].shape[1]
        vocab_size, layers, dropout = len(weights[self.embedding]), self.own.layers, self.own.dropout
        embedding = nn.Embedding(vocab_size, size)
        lstm = nn.LSTM(size, width, layers, dropout=dropout if layers > 1 else 0.0)
        projection = nn.Linear(width, size) if width != size else nn.Identity()
        nn.init.uniform_(embedding.weight, -0.1, 0.1)
        with torch.no_grad():  # forget gates, the second quarter, start open
            for layer in range(layers):
                lstm.get_parameter(f"bias_ih_l{layer}")[width : 2 * width] += 1
        return nn.ModuleDict({"embedding": embedding, "lstm": lstm, "projection": projection})

    def forward(
        self, inputs: Tensor, state: State | None, ahead: bool = False
    ) -> tuple[Tensor, State | None]:
        """Inputs [t, B]; see PlainNetwork."""
        parts: Any = self.module
        embeds = self._dropout(parts["embedding"](inputs.roll(-1, 0) if ahead else inputs))
        with torch.autocast(self.device.type, enabled=False):
            hidden, state = parts["lstm"](embeds, state)
        return parts["projection"](self._dropout(hidden)).flatten(0, 1), state

    def _dropout(self, values: Tensor) -> Tensor:
        return F.dropout(values, self.own.dropout, self.module.training)

    def scored(self, ids: Ids, ahead: bool = False) -> Iterator[Tensor]:
        """From a zero state."""
        state: State | None = None
        for positions in torch.arange(len(ids) - 1).split(CHUNK):
            tokens = tokens_at(ids, positions + ahead).to(self.device)
            hidden, state = self.forward(tokens[:, None], state)
            yield hidden

    def positions(self, tokens: int, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """[t, B]: each stream goes on where it was."""
        own, count = self.own, tokens - 1
        length = math.ceil(count / own.streams)
        rows = torch.arange((step - 1) * own.window, min(step * own.window, length))
        positions = rows[:, None] + torch.arange(0, count, length)
        return positions.clamp(max=count - 1), positions < count

    def epoch_size(self, tokens: int) -> tuple[int, int]:
        """Every token but the first once."""
        return math.ceil(math.ceil((tokens - 1) / self.own.streams) / self.own.window), tokens - 1

    def step_size(self, tokens: int) -> float:  # noqa: ARG002
        """Rows that are cut short count as if whole."""
        return float(self.own.streams * self.own.window)


class PlainWindows(PlainNetwork):
    """One that reads windows of the text, in an order that is drawn for each epoch."""

    warm_up = 0.1

    def scored(self, ids: Ids, ahead: bool = False) -> Iterator[Tensor]:
        """By windows half of which overlap: each token by the first window that has it."""
        window, count = self.own.window, len(ids) - 1
        size, stride = min(window, count), window // 2
        starts = torch.arange(0, max(1, count - window + stride), stride)
        for batch in starts.split(max(1, CHUNK // stride)):
            positions = batch[:, None] + torch.arange(size)
            inputs = tokens_at(ids, positions.clamp(max=count - 1)).to(self.device)
            hidden = self.forward(inputs, None, ahead)[0]
            new = (positions >= batch[:, None] + window - stride) | (batch[:, None] == 0)
            yield hidden[(new & (positions < count)).flatten().to(self.device)]

    def positions(self, tokens: int, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """[B, t]: windows, of which the first is cut short by a random offset, in random order."""
        own, count = self.own, tokens - 1
        size, draws = min(own.window, count), draws_of(seed, f"{self.name} windows")
        for _ in range(epoch):
            offset = int(torch.randint(own.window, (), generator=draws))
            starts = torch.arange(math.ceil(count / own.window) + 1) * own.window - offset
            starts = starts.clamp(0, count - size)[torch.randperm(len(starts), generator=draws)]
        positions = starts[(step - 1) * own.batch_windows : step * own.batch_windows, None] + torch.arange(
            size
        )
        return positions, torch.ones_like(positions, dtype=torch.bool)

    def epoch_size(self, tokens: int) -> tuple[int, int]:
        """One window more than fit, as the first and the last are moved into the text."""
        windows = math.ceil((tokens - 1) / self.own.window) + 1
        return math.ceil(windows / self.own.batch_windows), windows * min(self.own.window, tokens - 1)

    def step_size(self, tokens: int) -> float:
        """Whole windows."""
        return float(self.own.batch_windows * min(self.own.window, tokens - 1))


class PlainGpt2(PlainWindows):
    """transformers' own class."""

    name, embedding = "gpt2", "wte.weight"

    def _drawn(self, settings: Settings, weights: Mapping[str, Tensor]) -> nn.Module:  # noqa: ARG002
        vocab_size, width = weights[self.embedding].shape
        own, drop = self.own, self.own.dropout
        sizes = {"vocab_size": vocab_size, "n_positions": own.window, "n_embd": width}
        depths = {"n_layer": own.layers, "n_head": own.heads}
        drops = {"resid_pdrop": drop, "embd_pdrop": drop, "attn_pdrop": drop}
        return GPT2Model(
            GPT2Config(**sizes, **depths, **drops, use_cache=False, bos_token_id=None, eos_token_id=None)
        )

    def forward(
        self, inputs: Tensor, state: State | None, ahead: bool = False
    ) -> tuple[Tensor, State | None]:
        """Inputs [B, t]; see PlainNetwork."""
        batch, length = inputs.shape
        everything = torch.zeros(batch, 1, length, length, device=inputs.device) if ahead else None
        hidden = self.module(input_ids=inputs, attention_mask=everything).last_hidden_state
        return hidden.flatten(0, 1), state


def tokens_at(ids: Ids, positions: Tensor) -> Tensor:
    """Tokens at positions, int64 of their shape."""
    return torch.from_numpy(np.asarray(ids[positions.numpy()]).astype(np.int64))
