"""What generation carries from step to step, as transformers' Cache."""

from torch import Tensor
from transformers.cache_utils import Cache


class TandemCache(Cache):
    """All that generation carries from step to step: one context vector a stream, whatever its length."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.context: Tensor | None = None  # [B, C]
        self.tokens_seen = 0

    def store(self, context: Tensor, new_tokens: int) -> None:
        """Keep the context [B, C] reached after `new_tokens` more tokens."""
        # A copy: a view would keep the contexts of all tokens that were read with it.
        self.context = context.clone()
        self.tokens_seen += new_tokens

    def __len__(self) -> int:
        """States held: one, or none before the first step; so a cache counts as true once it holds one."""
        return int(self.is_initialized)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Tokens folded into the context so far."""
        return self.tokens_seen

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Tokens read so far and now, and where those begin that a mask is about."""
        return self.tokens_seen + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:  # noqa: ARG002
        """Whether a first step was made."""
        return self.is_initialized

    @property
    def batch_size(self) -> int:
        """Streams held; -1 before the first step."""
        return -1 if self.context is None else self.context.shape[0]

    @property
    def is_initialized(self) -> bool:
        """Whether a first step was made."""
        return self.context is not None

    @property
    def is_croppable(self) -> bool:
        """A folded token cannot be taken back."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, except for nothing: a context vector cannot forget its last tokens."""
        if tokens_to_remove != 0:
            raise ValueError("a Tandem context cannot be cropped; start again from the text to keep")

    def reset(self) -> None:
        """Back to the empty stream."""
        self.context, self.tokens_seen = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: take streams `beam_idx` in their new order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep streams `indices`."""
        if self.context is not None:
            self.context = self.context.index_select(0, indices.to(self.context.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every stream `repeats` times, side by side."""
        if self.context is not None:
            self.context = self.context.repeat_interleave(repeats, dim=0)


__all__ = ["TandemCache"]
