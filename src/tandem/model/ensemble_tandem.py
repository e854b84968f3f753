"""Several Tandem models as one: the average of their probabilities.

Members read the same tokens, each with its own embedding. The state of all is one vector, in which their
contexts stand side by side. So an ensemble is read, saved and generated from like one model.

Shape letters: B batch, T tokens, K chosen positions, V vocabulary, C context_dim (here the sum over members).
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from .cache_tandem import TandemCache
from .configuration_tandem import TandemEnsembleConfig
from .modeling_tandem import TandemCausalLMOutput, TandemForCausalLM
from .state_tandem import HasState, StateGenerationMixin


def average(logits: Sequence[Tensor]) -> Tensor:
    """Log of the mean of the probabilities of these logits, each [..., V]; of one alone, its logits."""
    if len(logits) == 1:
        return logits[0]
    mixed = logits[0].float().log_softmax(dim=-1)
    for one in logits[1:]:
        mixed = torch.logaddexp(mixed, one.float().log_softmax(dim=-1))
    return mixed - math.log(len(logits))


class TandemEnsemble(HasState, StateGenerationMixin):
    """The average of several models' probabilities, as a Hugging Face causal LM."""

    config_class = TandemEnsembleConfig
    base_model_prefix = "ensemble"
    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: TandemEnsembleConfig) -> None:
        super().__init__(config)
        self.members: Any = nn.ModuleList(TandemForCausalLM(one) for one in config.configs)
        members: list[Any] = list(self.members)
        self._no_split_modules = {name for member in members for name in member._no_split_modules}
        self._take_ties()
        self.post_init()

    def _take_ties(self) -> None:
        """Those of the members; the library looks for them in children alone."""
        self._tied_weights_keys = {
            f"members.{number}.{tied}": f"members.{number}.{source}"
            for number, member in enumerate(self.members)
            for tied, source in member.all_tied_weights_keys.items()
        }

    @classmethod
    def of(cls, members: Sequence[TandemForCausalLM]) -> "TandemEnsemble":
        """Of these models, which become its own.

        Raises ValueError where their configurations do not fit each other.
        """
        configs: list[Any] = [member.config for member in members]
        config = TandemEnsembleConfig.of(configs)
        with torch.device("meta"):
            ensemble = cls(config)
        ensemble.members = nn.ModuleList(members)
        return ensemble.eval()

    def get_input_embeddings(self) -> nn.Module:
        """Of the first member; each has its own."""
        embedding: nn.Module = self.members[0].get_input_embeddings()
        return embedding

    def to_int8(self) -> "TandemEnsemble":
        """As of each member, in place; returns the ensemble."""
        for member in self.members:
            member.to_int8()
        self.config.int8 = True
        self.config.members = TandemEnsembleConfig.of([member.config for member in self.members]).members
        self._take_ties()
        self.all_tied_weights_keys = self._tied_weights_keys
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As of PreTrainedModel; every Auto class finds the code of the ensemble in the folder."""
        kinds: tuple[Any, ...] = (TandemEnsembleConfig, TandemEnsemble)
        self.config.auto_map = {
            kind._auto_class: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for kind in kinds
        }
        super().save_pretrained(*args, **kwargs)

    def state_fingerprint(self) -> str:
        """Of all that a state depends on: of each member in turn."""
        parts = "".join(member.state_fingerprint() for member in self.members)
        return hashlib.sha256(parts.encode()).hexdigest()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_contexts: bool = False,
        **kwargs: Any,
    ) -> TandemCausalLMOutput:
        """Log-probabilities of the next token at every position, as `logits` [B, K, V].

        Arguments as of TandemForCausalLM; `contexts` [B, T, C] are those of all members side by side. Raises
        ValueError for `inputs_embeds`, as each member has an embedding of its own.
        """
        if input_ids is None or kwargs.pop("inputs_embeds", None) is not None:
            raise ValueError("an ensemble needs input_ids: each member has an embedding of its own")
        cache = TandemCache.from_given(past_key_values)
        starts: Sequence[Tensor | None] = [None] * len(self.members)
        if cache is not None and cache.context is not None:
            starts = cache.context.split([member.config.context_dim for member in self.members], dim=-1)
        logits, contexts = [], []
        for member, start in zip(self.members, starts, strict=True):
            state = TandemCache()
            state.context = start
            read = member(
                input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=state,
                use_cache=False,
                logits_to_keep=logits_to_keep,
                output_contexts=True,
                **kwargs,
            )
            logits.append(read.logits)
            contexts.append(read.contexts)
        mixed, joined = average(logits), torch.cat(contexts, dim=-1)
        use_cache = use_cache if use_cache is not None else self.config.use_cache and not self.training
        if use_cache:
            cache = TandemCache() if cache is None else cache
            cache.store(joined)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=mixed, labels=labels, vocab_size=mixed.shape[-1], **kwargs)
        return TandemCausalLMOutput(
            loss=loss,
            logits=mixed,
            past_key_values=cache if use_cache else None,
            contexts=joined if output_contexts else None,
        )


__all__ = ["TandemEnsemble", "TandemEnsembleConfig"]
