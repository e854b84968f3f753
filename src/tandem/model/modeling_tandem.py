"""The two-block language model (SPEC section 1).

Shape letters: B batch, T tokens, K chosen positions, V vocabulary, E embed_dim, C context_dim.

A ContextBlock folds token after token into one context vector; a TokenBlock turns the context and the
current token into a prediction of the next one:

    e_t = embed_norm(embedding[token_t])
    c_t = context_block(c_{t-1}, e_t)
    x_t = token_block(c_{t-1}, c_t, e_t)
    logits_t = x_t · embeddingᵀ

TandemModel gives x_t. On it stand a causal language model and two classifiers.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .cache_tandem import TandemCache
from .cell_tandem import ContextBlock
from .cells_tandem import CELLS
from .configuration_tandem import TandemConfig
from .quantized_tandem import Int8Embedding, Int8Head, Int8Linear, int8_linears, stored_numbers
from .state_tandem import HasState, StateGenerationMixin
from .token_block_tandem import TokenBlock, TokenLayer


@dataclass
class TandemOutput(BaseModelOutputWithPast):
    """As of every base model, and `contexts` [B, T, C]: the context after each token, if asked for."""

    contexts: Tensor | None = None


@dataclass
class TandemCausalLMOutput(CausalLMOutputWithPast):
    """As of every causal LM, and `contexts` [B, T, C]: the context after each token, if asked for."""

    contexts: Tensor | None = None


class TandemPreTrainedModel(HasState):
    """What all models share: the configuration, initial weights, and where the embedding is."""

    config_class = TandemConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": [
            OutputRecorder(nn.LayerNorm, layer_name="embed_norm", capture_initial_hidden_state=False),
            OutputRecorder(TokenLayer, capture_initial_hidden_state=False),
        ]
    }

    def get_input_embeddings(self) -> nn.Module:
        """The embedding [V, E]."""
        embedding: nn.Module = self._base.embedding
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another embedding [V, E] in its place."""
        self._base.embedding = value

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As of PreTrainedModel; every Auto class finds the code of its model in the folder."""
        kinds: list[Any] = [TandemConfig, *TandemPreTrainedModel.__subclasses__()]
        self.config.auto_map = {
            kind._auto_class: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
            for kind in kinds
            if kind.__module__ in (TandemConfig.__module__, __name__)
        }
        super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # By leaves, since transformers passes over custom modules that have no parameter of their own.
        if isinstance(module, nn.Linear):
            std = self.config.weight_init_std
            init.normal_(module.weight, std=module.in_features**-0.5 if std is None else std)
            if module.bias is not None:  # the head may have none, and its weights are the embedding's
                init.normal_(module.bias, std=self.config.bias_init_std)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        block = self._base.context_block
        if any(module is own for own in block.modules()):
            block.initialize(module)

    def state_fingerprint(self) -> str:
        """Of all that a state depends on: embedding, embed_norm, context_block, and the boundary."""
        whole = hashlib.sha256(f"{self.config.boundary} {self.config.bos_token_id}".encode())
        for name, weight in self._base.state_dict().items():
            if not name.startswith("token_block."):
                whole.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
                whole.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return whole.hexdigest()


class TandemModel(TandemPreTrainedModel):
    """Embedding, ContextBlock and TokenBlock: from tokens to the state x_t that predicts the next one."""

    # Saved folders carry the code, so that they load with `trust_remote_code` where Tandem is absent.
    _auto_class = "AutoModel"

    def __init__(self, config: TandemConfig) -> None:
        super().__init__(config)
        self.embedding: Any = nn.Embedding(config.vocab_size, config.embed_dim)
        self.embed_norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        block: Any = CELLS[config.cell]()
        self.context_block: ContextBlock = block(config)
        self.token_block = TokenBlock(config)
        self._no_split_modules = {
            type(layer).__name__ for block in (self.context_block, self.token_block) for layer in block.layers
        }
        if config.int8:
            self.to_int8()
        self.post_init()

    def to_int8(self) -> "TandemModel":
        """Round the embedding and all linear layers to 8 bits, in place, for inference; returns the model."""
        self.config.int8 = True
        int8_linears(self.context_block, exact=True)
        int8_linears(self.token_block)
        self.embedding = Int8Embedding(self.embedding.weight)
        return self.requires_grad_(False)

    def embed(self, input_ids: Tensor) -> Tensor:
        """e_t of SPEC section 1: ids [...] → normalised embeddings [..., E]."""
        return self.embed_norm(self.embedding(input_ids))

    def reset_mask(self, input_ids: Tensor) -> Tensor | None:
        """Where the context is zeroed before a token is read, like `input_ids`; none if it never is."""
        return input_ids == self.config.bos_token_id if self.config.boundary == "reset" else None

    @capture_outputs(tie_last_hidden_states=False)  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_contexts: bool = False,
        **kwargs: Any,
    ) -> TandemOutput:
        """The state that predicts the next token, at every position.

        input_ids [B, T] or inputs_embeds [B, T, E] (before `embed_norm`).
        attention_mask [B, ≥T]: 0 passes a token over, and what stands there is the last read token's; the
        last T columns count.
        position_ids [B or 1, T]: a 0 after a read token starts another sequence, from a zero context.
        past_key_values: a TandemCache, to go on from; of one stream, it serves all B.
        logits_to_keep: only the last so many positions, or those indices.
        Returns last_hidden_state [B, K, E], past_key_values with `use_cache`, contexts [B, T, C] with
        `output_contexts`, hidden_states with `output_hidden_states`: e_t and what each token layer gives, all
        [B, T, E]. Raises ValueError for inputs or caches that cannot be read.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        cache = TandemCache.from_given(past_key_values)
        if input_ids is not None:
            token_embeds, reset_mask = self.embed(input_ids), self.reset_mask(input_ids)
        else:
            if self.config.boundary == "reset":
                raise ValueError(
                    "boundary='reset' needs input_ids: embeddings do not tell where documents start"
                )
            token_embeds, reset_mask = self.embed_norm(inputs_embeds), None
        batch, length, _ = token_embeds.shape
        frozen = None if attention_mask is None else attention_mask[:, -length:] == 0
        # A graph has no branch on what a mask holds; without a graph, most masks hold nothing.
        if frozen is not None and not torch.compiler.is_compiling() and not frozen.any():
            frozen = None
        if position_ids is not None and length > 1:
            starts = _sequence_starts(position_ids.expand(batch, length), frozen)
            reset_mask = starts if reset_mask is None else reset_mask | starts
        start = None if cache is None or cache.context is None else cache.context.expand(batch, -1)
        previous, current = self.context_block.unroll(token_embeds, start, reset_mask, frozen)

        use_cache = use_cache if use_cache is not None else self.config.use_cache and not self.training
        if use_cache:
            cache = TandemCache() if cache is None else cache
            cache.store(current)

        wanted = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        every = slice(None)
        asked = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        first, then = (every, wanted) if asked else (wanted, every)  # hidden states are of all positions
        reads = [
            each[:, first] if frozen is None else _of_last_read(each, frozen, first)
            for each in (previous, current, token_embeds)
        ]
        return TandemOutput(
            last_hidden_state=self.token_block(*reads)[:, then],
            past_key_values=cache if use_cache else None,
            contexts=current if output_contexts else None,
        )


def _sequence_starts(position_ids: Tensor, frozen: Tensor | None) -> Tensor:
    """Where a sequence starts [B, T] that is not the first one of its row: at a 0 after a read token."""
    read = torch.ones_like(position_ids) if frozen is None else (~frozen).to(position_ids.dtype)
    return (position_ids == 0) & (read.cumsum(dim=1) > read)


def _of_last_read(values: Tensor, frozen: Tensor, wanted: Any) -> Tensor:
    """Values [B, T, n] → those of the last token that was read, at the wanted positions [B, K, n].

    So a text that is padded on the right ends with its own prediction. Before any token: its own value.
    """
    positions = torch.arange(frozen.shape[1], device=frozen.device).expand(frozen.shape)
    last = positions.masked_fill(frozen, -1).cummax(dim=1).values
    last = torch.where(last < 0, positions, last)[:, wanted]
    return values.gather(1, last[..., None].expand(-1, -1, values.shape[-1]))


def _start_rare(bias: Tensor | None, old: int) -> None:
    """Fill a head's bias [V] after its `old` entries: all new ones together count as the least of those.

    A bias holds log frequencies, so zero would be a frequency of 1.
    """
    if bias is not None and 0 < old < len(bias):
        bias[old:] = bias[:old].min() - math.log(len(bias) - old)


class TandemForCausalLM(TandemPreTrainedModel, StateGenerationMixin):
    """ContextBlock, TokenBlock and a head tied to the embedding, as a Hugging Face causal LM."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: TandemConfig) -> None:
        super().__init__(config)
        self.model = TandemModel(config)
        self.lm_head: Any = nn.Linear(config.embed_dim, config.vocab_size, bias=config.output_bias)
        if config.int8:
            self._head_to_int8()
        self.post_init()

    @property
    def members(self) -> "list[TandemForCausalLM]":
        """As of an ensemble of this model alone."""
        return [self]

    @property
    def embedding(self) -> Any:
        """Of the base model."""
        return self.model.embedding

    @property
    def embed_norm(self) -> nn.LayerNorm:
        """Of the base model."""
        return self.model.embed_norm

    @property
    def context_block(self) -> ContextBlock:
        """Of the base model."""
        return self.model.context_block

    @property
    def token_block(self) -> TokenBlock:
        """Of the base model."""
        return self.model.token_block

    def embed(self, input_ids: Tensor) -> Tensor:
        """As of TandemModel."""
        return self.model.embed(input_ids)

    def reset_mask(self, input_ids: Tensor) -> Tensor | None:
        """As of TandemModel."""
        return self.model.reset_mask(input_ids)

    def to_int8(self) -> "TandemForCausalLM":
        """Round the embedding and all linear layers to 8 bits, in place, for inference; returns the model.

        The head reads the embedding's rows, where it is tied to it. Saved models are a quarter as large.
        """
        self.model.to_int8()
        self._head_to_int8()
        return self.requires_grad_(False)

    def _head_to_int8(self) -> None:
        tied, bias = self.config.tie_word_embeddings, self.lm_head.bias
        self.lm_head = Int8Head(self.model.embedding, bias) if tied else Int8Linear(self.lm_head)
        self._tied_weights_keys = {}
        self.all_tied_weights_keys = {}

    @torch.no_grad()
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As PreTrainedModel does; new tokens start as rare as the rarest old one, where a bias says so.

        Their rows are about the mean of all, or, without `mean_resizing`, drawn with the deviation of the
        old ones.
        """
        if self.config.int8:
            raise ValueError("a model of 8-bit weights takes no new tokens; add them before `to_int8`")
        old = self.model.embedding.num_embeddings
        embedding: nn.Embedding = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        if embedding.num_embeddings > old:
            if not mean_resizing:
                for weight in dict.fromkeys((embedding.weight, self.lm_head.weight)):  # once where tied
                    weight[old:].normal_(std=float(weight[:old].std()))
            _start_rare(self.lm_head.bias, old)  # a head that is not tied got the mean, or about zero
        return embedding

    @torch.no_grad()
    def _adjust_bias(self, output_embeddings: nn.Linear, input_embeddings: nn.Parameter) -> None:
        old = 0 if output_embeddings.bias is None else len(output_embeddings.bias)
        super()._adjust_bias(output_embeddings, input_embeddings)  # pads it with zeros
        _start_rare(output_embeddings.bias, old)

    def named_weights(self) -> dict[str, Tensor]:
        """The state_dict by the names that records have: without the prefix of the base model."""
        return {name.removeprefix("model."): weight for name, weight in self.state_dict().items()}

    def num_params(self) -> dict[str, int]:
        """Parameters by part and in total; the tied head adds its bias, if it has one."""
        parts = ("embedding", "embed_norm", "context_block", "token_block")
        counts = {part: stored_numbers(getattr(self.model, part)) for part in parts}
        counts["head"] = 0 if self.lm_head.bias is None else self.lm_head.bias.numel()
        return counts | {"total": sum(counts.values())}

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> TandemCausalLMOutput:
        """Logits of the next token at every position.

        labels [B, T] as in every causal LM (shifted inside, -100 ignored); all else as of TandemModel.
        Returns logits [B, K, V], loss (scalar) with labels, and what TandemModel gives.
        """
        read = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        logits = self.lm_head(read.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return TandemCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=read.past_key_values,
            hidden_states=read.hidden_states,
            contexts=read.contexts,
        )


class TandemForSequenceClassification(TandemPreTrainedModel):
    """A class, or a number, for a whole text: by the state after its last token."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: TandemConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 1
        self.model = TandemModel(config)
        self.score = nn.Linear(config.embed_dim, self.num_labels, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits [B, num_labels] at the last token that was read; labels [B], or [B, num_labels].

        Without attention_mask, tokens at the end that are `pad_token_id` are passed over. All else as of
        TandemModel.
        """
        pad = self.config.pad_token_id
        if attention_mask is None and input_ids is not None and pad is not None:
            # from the right: whether there was another token yet
            attention_mask = (input_ids != pad).flip(1).cummax(dim=1).values.flip(1)
        read = self.model(input_ids, attention_mask=attention_mask, logits_to_keep=1, **kwargs)
        logits = self.score(read.last_hidden_state)[:, 0]
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config, **kwargs
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=read.past_key_values,
            hidden_states=read.hidden_states,
        )


class TandemForTokenClassification(TandemPreTrainedModel):
    """A class for every token, by the state after it."""

    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: TandemConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 1
        self.model = TandemModel(config)
        self.score = nn.Linear(config.embed_dim, self.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        """Logits [B, T, num_labels]; labels [B, T], of which -100 are ignored. All else as of TandemModel."""
        read = self.model(input_ids, **kwargs)
        logits = self.score(read.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, config=self.config, **kwargs)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=read.hidden_states)


__all__ = [
    "TandemCache",
    "TandemConfig",
    "TandemForCausalLM",
    "TandemForSequenceClassification",
    "TandemForTokenClassification",
    "TandemModel",
]
