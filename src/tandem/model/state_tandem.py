"""A state that a model reads itself into, and goes on from: what all Tandem models share.

Shape letters: B batch, T tokens, C context_dim (of an ensemble, the sum of those of its members).
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import PreTrainedModel

from .cache_tandem import TandemCache

READ_AT_ONCE = 4096
"""Tokens that `read` reads in one call."""


class HasState(PreTrainedModel):
    """A model whose memory of a text is a TandemCache."""

    _is_stateful = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @property
    def _base(self) -> Any:
        return self.base_model

    def state_fingerprint(self) -> str:
        """Of all that a state depends on."""
        raise NotImplementedError

    @torch.no_grad()
    def read(
        self,
        text_or_ids: str | Tensor | Sequence[int],
        state: TandemCache | None = None,
        tokenizer: Any = None,
    ) -> TandemCache:
        """The state after a text, going on from `state`, which stays as it is; of a size that never grows.

        text_or_ids: ids [T] or [B, T], or a text, of which `tokenizer` makes ids. Reading in pieces of ids
        equals reading at once. Raises ValueError for a text without a tokenizer.
        Give it as `past_key_values` to `generate`, which leaves it as it is, or, as `copy.copy(state)`, to
        the model itself. A prediction needs its last token, so leave that to those.
        """
        if isinstance(text_or_ids, str):
            if tokenizer is None:
                raise ValueError("a text needs the model's tokenizer; give it as `tokenizer`, or give ids")
            text_or_ids = tokenizer(text_or_ids, add_special_tokens=state is None)["input_ids"]
        ids = torch.atleast_2d(torch.as_tensor(text_or_ids, device=self.device))
        state = TandemCache() if state is None else copy.copy(state)
        for part in ids.split(READ_AT_ONCE, dim=1) if ids.shape[1] else ():
            self._base(part, past_key_values=state, use_cache=True, logits_to_keep=1)
        state.tokens_before, state.tokens_seen = state.tokens_before + int(state.tokens_seen), 0
        return state

    def save_state(self, state: TandemCache, path: str | Path) -> None:
        """Write a state to a safetensors file, with the fingerprint of what made it."""
        if state.context is None:
            raise ValueError("a state that has read nothing is not worth a file")
        about = {"fingerprint": self.state_fingerprint(), "tokens": str(state.tokens_before)}
        save_file({"context": state.context.contiguous()}, path, about)

    def load_state(self, path: str | Path) -> TandemCache:
        """A state that was saved. Raises ValueError where another model read it."""
        state = TandemCache()
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != self.state_fingerprint():
                raise ValueError(f"the state in {path} is another model's; let this one read the text itself")
            state.context, state.tokens_before = (
                file.get_tensor("context").to(self.device),
                int(about["tokens"]),
            )
        return state


class StateGenerationMixin(GenerationMixin):
    """`generate` that starts from a state, or from a new one."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """A cache from the start, as reading a prompt in pieces needs one.

        What `read` returned is copied, so that it serves again.
        """
        mixin: Any = GenerationMixin
        mixin._prepare_cache_for_generation(self, *args, **kwargs)
        config, model_kwargs = args[:2]
        cache = TandemCache.from_given(model_kwargs.get("past_key_values"))
        if cache is None and config.use_cache:
            cache = TandemCache()
        if cache is not None and cache.tokens_seen == 0:
            cache = copy.copy(cache)
            if cache.batch_size > 1:
                cache.batch_repeat_interleave(max(config.num_beams or 1, config.num_return_sequences or 1))
            if config.is_assistant:
                cache.activate_past_recording()
        model_kwargs.pop("past_key_values", None)
        if cache is not None:  # beams reorder whatever stands under this name
            model_kwargs["past_key_values"] = cache
