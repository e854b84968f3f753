"""What generation carries from step to step, as transformers' Cache."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache, DynamicCache

RECORDED = 256
"""Contexts to go back to that a cache holds, once it is asked to record them."""


class TandemCache(Cache):
    """All that generation carries from step to step: one context vector a stream, whatever its length.

    It is the state of the model, too, that `read` returns: what was read before then counts as no part of
    the sequence that goes on from it.

    context         [B, C] after the last token; none where nothing was read.
    tokens_seen     tokens of this sequence that are folded into it.
    tokens_before   tokens that were read before this sequence, by `read`.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.context: Tensor | None = None
        self.tokens_seen: int | Tensor = 0
        self.tokens_before = 0
        self._records = False
        self._past: Tensor | None = None  # [B, up to RECORDED + 1, C]: the last contexts, with the one now

    @classmethod
    def from_given(cls, cache: Cache | None) -> "TandemCache | None":
        """What a caller gave as `past_key_values`; none, too, for an empty cache of the usual kind.

        Raises ValueError for any other: it cannot hold a context.
        """
        if cache is None or isinstance(cache, TandemCache):
            return cache
        if type(cache) is DynamicCache and cache.get_seq_length() == 0:
            return None
        raise ValueError(
            f"past_key_values is a {type(cache).__name__}, which cannot hold a context; give the one that "
            "the model returned, or none to start"
        )

    def split(self) -> "list[TandemCache]":
        """A state of one stream for each of the B streams."""
        contexts = () if self.context is None else self.context.split(1)
        return [self._of(context.clone()) for context in contexts]

    @classmethod
    def join(cls, states: "Sequence[TandemCache]") -> "TandemCache":
        """One state of all streams of several, which were read by the same model.

        Raises ValueError where one of them has read nothing. Its numbers of tokens are those of the longest.
        """
        contexts = [state.context for state in states if state.context is not None]
        if not states or len(contexts) < len(states):
            raise ValueError("only states that have read something can be joined")
        return max(states, key=lambda state: state.tokens_before)._of(torch.cat(contexts))

    def _of(self, context: Tensor) -> "TandemCache":
        state = TandemCache()
        state.context, state.tokens_seen, state.tokens_before = context, self.tokens_seen, self.tokens_before
        return state

    def store(self, contexts: Tensor) -> None:
        """Go on by the contexts [B, T, C] reached after each of T more tokens."""
        if self._records:
            if self._past is None:
                start = torch.zeros_like(contexts[:, 0]) if self.context is None else self.context
                self._past = start.expand_as(contexts[:, 0])[:, None]
            self._past = torch.cat((self._past, contexts), dim=1)[:, -RECORDED - 1 :].detach()
        # A copy: a view would keep the contexts of all tokens that were read with it.
        self.context = contexts[:, -1].clone()
        self.tokens_seen = self.tokens_seen + contexts.shape[1]

    def __len__(self) -> int:
        """States held: one, or none before the first step; so a cache counts as true once it holds one."""
        return int(self.is_initialized)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Tokens of this sequence folded into the context so far."""
        return self.tokens_seen  # type: ignore[return-value]  # a tensor in graphs, as of a StaticCache

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Tokens read so far and now, and where those begin that a mask is about."""
        return self.get_seq_length() + query_length, 0

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
        """Whether contexts are recorded: a folded token cannot be taken back otherwise."""
        return self._records

    def activate_past_recording(self) -> None:
        """From now on, record the last contexts, so that up to RECORDED tokens can be cropped."""
        self._records = True

    def is_recording_past(self, layer_idx: int = 0) -> bool:  # noqa: ARG002
        """Whether contexts are recorded."""
        return self._records

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; their number is given below zero, as everywhere in transformers.

        Raises ValueError for more of them than were recorded: a context vector cannot forget.
        """
        count = abs(tokens_to_remove)
        if count == 0:
            return
        recorded = 0 if self._past is None else self._past.shape[1] - 1
        if count > recorded:
            raise ValueError(
                f"a Tandem context cannot be cropped by {count} tokens, of which {recorded} are recorded; "
                "start again from the text to keep, or call activate_past_recording() before reading"
            )
        assert self._past is not None
        self._past = self._past[:, :-count]
        self.context, self.tokens_seen = self._past[:, -1].clone(), self.tokens_seen - count

    def reset(self) -> None:
        """Back to the empty stream."""
        self.context, self.tokens_seen, self.tokens_before, self._past = None, 0, 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: take streams `beam_idx` in their new order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep streams `indices`."""
        if self.context is not None:
            self.context = self.context.index_select(0, indices.to(self.context.device))
        if self._past is not None:
            self._past = self._past.index_select(0, indices.to(self._past.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every stream `repeats` times, side by side."""
        if self.context is not None:
            self.context = self.context.repeat_interleave(repeats, dim=0)
        if self._past is not None:
            self._past = self._past.repeat_interleave(repeats, dim=0)


def _flatten(cache: TandemCache) -> tuple[list[Tensor], bool]:
    if cache.context is None:
        return [], False
    seen = cache.tokens_seen
    return [cache.context, seen if isinstance(seen, Tensor) else torch.full((), seen, dtype=torch.long)], True


def _flatten_with_keys(cache: TandemCache) -> tuple[list[tuple[pytree.KeyEntry, Tensor]], bool]:
    values, started = _flatten(cache)
    names = (pytree.GetAttrKey(name) for name in ("context", "tokens_seen"))
    return list(zip(names, values, strict=False)), started


def _unflatten(values: Iterable[Any], started: bool) -> TandemCache:
    cache = TandemCache()
    if started:
        cache.context, cache.tokens_seen = values
    return cache


# Graphs that torch exports take and give caches; what is recorded for cropping stays outside of them.
pytree.register_pytree_node(
    TandemCache,
    _flatten,
    _unflatten,
    serialized_type_name=f"{TandemCache.__module__}.{TandemCache.__name__}",
    flatten_with_keys_fn=_flatten_with_keys,
)

__all__ = ["TandemCache"]
