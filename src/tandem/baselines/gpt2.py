"""The GPT-2 baseline: transformers' own class (Radford et al. 2019), small and trained from scratch."""

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


class Gpt2Baseline(NetworkBaseline):
    """A GPT-2; its width is a multiple of the number of heads."""

    title = "GPT-2"
    description = "GPT-2 (transformer)"
    section = "baselines.gpt2"
    memory_settings = ("baselines.gpt2.batch_windows", "baselines.gpt2.window", "baselines.max_parameters")
    warm_up = 0.1

    def widths(self, settings: Settings, max_parameters: int) -> range:
        """From width 1 of each head on; the matrices of one layer alone have 12 width² parameters."""
        heads = settings.baselines.gpt2.heads
        return range(heads, max(heads, math.isqrt(max_parameters // 12)) + 1, heads)

    def parameter_count(self, settings: Settings, vocab_size: int, width: int) -> int:
        own, norm = settings.baselines.gpt2, 2 * width
        attention = 3 * width * width + 3 * width + width * width + width
        mlp = 8 * width * width + 5 * width
        return (vocab_size + own.window) * width + own.layers * (2 * norm + attention + mlp) + norm

    def build(self, settings: Settings, vocab_size: int, width: int) -> nn.Module:
        """Without its head, with transformers' own initial weights, N(0, 0.02)."""
        from transformers import GPT2Config, GPT2Model

        own = settings.baselines.gpt2
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=own.window,
            n_embd=width,
            n_layer=own.layers,
            n_head=own.heads,
            resid_pdrop=own.dropout,
            embd_pdrop=own.dropout,
            attn_pdrop=own.dropout,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        return GPT2Model(config)

    def embedding(self, model: Any) -> Tensor:
        weight: Tensor = model.wte.weight
        return weight

    def epoch_size(self, settings: Settings, tokens: int) -> tuple[int, int]:
        """The number of windows does not depend on where the first one is cut."""
        own = settings.baselines.gpt2
        windows = len(window_starts(tokens, own.window, 0))
        return math.ceil(windows / own.batch_windows), windows * min(own.window, tokens - 1)

    def losses(
        self, model: Any, ids: Tokens, inputs: BaselineInputs, draws: torch.Generator, cursor: Cursor
    ) -> Iterator[Step]:
        """One pass over the windows from a random offset, in random order."""
        import torch

        from tandem.cross_entropy import mean_nll

        own, chunk = inputs.settings.baselines.gpt2, inputs.settings.phase2.chunk_positions
        offset = int(torch.randint(own.window, (), generator=draws))
        starts = window_starts(len(ids), own.window, offset)
        starts = starts[torch.randperm(len(starts), generator=draws)].to(ids.device)
        within = torch.arange(min(own.window, len(ids) - 1), device=ids.device)
        for batch in starts.split(own.batch_windows)[cursor.steps :]:
            positions = batch[:, None] + within
            targets = ids[positions + 1].flatten()
            read = {"inputs": ids[positions], "targets": targets, "random": random_state(ids.device)}
            with inputs.execution.autocast(ids.device):
                hidden = model(input_ids=read["inputs"]).last_hidden_state.flatten(0, 1)
                loss = mean_nll(hidden, self.embedding(model), targets, chunk)
            yield Step(loss, len(targets), read)

    def hidden_parts(self, model: Any, ids: Tensor | Tokens, chunk_positions: int) -> Iterator[Tensor]:
        """Windows slide by half their length; of all but the first, what is new in them counts.

        Hence all but the first tokens are predicted from at least half a window.
        """
        import torch

        window = model.config.n_positions
        stride = window // 2
        count = len(ids) - 1
        starts = torch.arange(0, max(1, count - window + stride), stride, device=ids.device)
        within = torch.arange(min(window, count), device=ids.device)
        for batch in starts.split(max(1, chunk_positions // stride)):
            positions = batch[:, None] + within
            new = (positions >= window - stride + batch[:, None]) | (batch[:, None] == 0)
            # The last window may reach beyond the end: what stands there is read by nothing that is scored.
            hidden = model(input_ids=ids[positions.clamp(max=count - 1)]).last_hidden_state
            yield hidden[new & (positions < count)]


def window_starts(tokens: int, window: int, offset: int) -> Tensor:
    """Where the training windows of a stream of so many tokens start; the first is cut short by `offset`.

    All windows are whole, so the first and the last are shifted into the stream and overlap their
    neighbours; their number is the same for every offset in 0..window-1.
    """
    import torch

    count = tokens - 1
    last = count - min(window, count)
    return (torch.arange(math.ceil(count / window) + 1) * window - offset).clamp(0, last)
