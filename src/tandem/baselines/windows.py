"""What transformers have in common: windows of the text, read side by side."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tandem.baselines.base import BaselineInputs
from tandem.baselines.network import NetworkBaseline, Step, random_state
from tandem.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tandem.contexts import Tokens
    from tandem.training.checkpoint import Cursor


class WindowBaseline(NetworkBaseline):
    """A network that reads windows of the text, each by itself.

    Its section of the settings has `window` and `batch_windows` as well.
    """

    warm_up = 0.1

    @abstractmethod
    def window(self, model: Any) -> int:
        """Tokens that it sees at once."""

    @abstractmethod
    def read_windows(self, model: Any, ids: Tensor) -> Tensor:
        """Hidden [B, t, E] of windows of ids [B, t]."""

    def epoch_size(self, settings: Settings, tokens: int) -> tuple[int, int]:
        """The number of windows does not depend on where the first one is cut."""
        own = settings.section(self.section)
        windows = len(window_starts(tokens, own.window, 0))
        return math.ceil(windows / own.batch_windows), windows * min(own.window, tokens - 1)

    def losses(
        self, model: Any, ids: Tokens, inputs: BaselineInputs, draws: torch.Generator, cursor: Cursor
    ) -> Iterator[Step]:
        """One pass over the windows from a random offset, in random order."""
        import torch

        from tandem.cross_entropy import mean_nll

        own, chunk = inputs.settings.section(self.section), inputs.settings.phase2.chunk_positions
        offset = int(torch.randint(own.window, (), generator=draws))
        starts = window_starts(len(ids), own.window, offset)
        starts = starts[torch.randperm(len(starts), generator=draws)].to(ids.device)
        within = torch.arange(min(own.window, len(ids) - 1), device=ids.device)
        for batch in starts.split(own.batch_windows)[cursor.steps :]:
            positions = batch[:, None] + within
            targets = ids[positions + 1].flatten()
            read = {"inputs": ids[positions], "targets": targets, "random": random_state(ids.device)}
            with inputs.execution.autocast(ids.device):
                hidden = self.read_windows(model, read["inputs"]).flatten(0, 1)
                loss = mean_nll(hidden, self.embedding(model), targets, chunk)
            yield Step(loss, len(targets), read)

    def hidden_parts(self, model: Any, ids: Tensor | Tokens, chunk_positions: int) -> Iterator[Tensor]:
        """Windows slide by half their length; of all but the first, what is new in them counts.

        Hence all but the first tokens are predicted from at least half a window.
        """
        import torch

        window = self.window(model)
        stride = window // 2
        count = len(ids) - 1
        starts = torch.arange(0, max(1, count - window + stride), stride, device=ids.device)
        within = torch.arange(min(window, count), device=ids.device)
        for batch in starts.split(max(1, chunk_positions // stride)):
            positions = batch[:, None] + within
            new = (positions >= window - stride + batch[:, None]) | (batch[:, None] == 0)
            # The last window may reach beyond the end: what stands there is read by nothing that is scored.
            hidden = self.read_windows(model, ids[positions.clamp(max=count - 1)])
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
